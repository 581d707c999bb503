"""TURN's contrast: clips of one modality find their clip in another, in one direction.

Source: Zhao et al., *Towards effective multi-modal interchanges in zero-resource sounding object
localization* (TURN), NeurIPS 2022, and its published code.
"""

import torch
from torch import Tensor

from micu.data import Batch
from micu.losses.contrastive import clip_pairs, mean_over_steps
from micu.losses.terms import LOSSES, ClipsLoss, Draws
from micu.model.micu import MICUOutput


@LOSSES.register("one_way")
class OneWayLoss(ClipsLoss):
    """InfoNCE of the means over steps, summed over pairs; cosine, temperature `contrastive.tau`.

    Differs: TURN has audio and text alone. Here each modality looks for those that stand after it
    in `config.modalities`.
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
