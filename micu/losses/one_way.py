"""TURN's contrast: clips of one modality find their clip in another, in one direction.

Over the clips i of a batch, whose embeddings' means over steps are z̄,

    s_ij(m, n) = cos(z̄_i(m), z̄_j(n)) / tau
    L          = sum_{m<n} mean_i -log(exp s_ii(m, n) / sum_j exp s_ij(m, n))

Source: Zhao et al., *Towards effective multi-modal interchanges in zero-resource sounding object
localization* (TURN), NeurIPS 2022, and its published code (AwalkZY/TURN, 3640ef9:
`calc_overall_vq_loss` of `loss/__init__.py`).
"""

import torch
from torch import Tensor

from micu.data.dataset import Batch
from micu.losses.contrastive import clip_pairs, mean_over_steps
from micu.losses.terms import LOSSES, ClipsLoss, Draws
from micu.model.micu import MICUOutput


@LOSSES.register("one_way")
class OneWayLoss(ClipsLoss):
    """InfoNCE of the means over steps, summed over pairs; cosine, temperature `contrastive.tau`.

    Differs: TURN has audio and text alone. Here each modality looks for those that stand after it
    in `config.modalities`. TURN compares what a projector (1 x 1 convolution, batch normalisation)
    makes of the means; here it is the means, since codes are of them.
    """

    @property
    def summary_shape(self) -> tuple[int, ...]:
        """(M, D)."""
        return (len(self.config.modalities), self.config.encoder.embed_dim)

    def summarize(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Means over the steps of every clip, (B, M, D)."""
        semantic = self.stack({name: q.semantic for name, q in output.quantized.items()})
        return mean_over_steps(semantic, batch.mask).transpose(0, 1)

    def compare(self, summaries: Tensor, has_steps: Tensor) -> Tensor:
        """Sum over unordered pairs, ()."""
        clips = summaries.transpose(0, 1)
        pairs = clip_pairs(clips, clips, has_steps, tau=self.config.contrastive.tau)
        return torch.triu(pairs, diagonal=1).sum()
