"""TURN's contrast: clips of one modality find their clip in another, in one direction.

Source: Zhao et al., *Towards effective multi-modal interchanges in zero-resource sounding object
localization* (TURN), NeurIPS 2022, and its published code.
"""

import torch
from torch import Tensor

from micu.data import Batch
from micu.losses.contrastive import info_nce_pairs, mean_over_steps
from micu.losses.terms import LOSSES, Draws, Loss
from micu.model.micu import MICUOutput


@LOSSES.register("one_way")
class OneWayLoss(Loss):
    """InfoNCE of the means over steps, summed over pairs; cosine, temperature `contrastive.tau`.

    Differs: TURN has audio and text alone. Here each modality looks for those that stand after it
    in `config.modalities`.
    """

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Sum over unordered pairs, ()."""
        semantic = self.stack({name: q.semantic for name, q in output.quantized.items()})
        clips = mean_over_steps(semantic, batch.mask)[:, None]  # (M, 1, B, D)
        real = batch.mask.any(1)[None]
        tau = self.config.contrastive.tau
        pairs = info_nce_pairs(clips, clips, tau=tau, query_mask=real, key_mask=real)
        return torch.triu(pairs, diagonal=1).sum()
