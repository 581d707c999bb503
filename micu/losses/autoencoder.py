"""Reconstruction of the inputs, and commitment of the encoders to their codes.

Over modalities m, whose features x(m) are rebuilt as r(m) from codes e(m) of embeddings z(m),

    L_rec    = sum_m mean over real steps and numbers of |r(m) - x(m)|^2
    L_commit = sum_m 1/2 |z(m) - sg(e(m))|^2 + 1/4 mean_{n!=m} |z(m) - sg(e(n))|^2, means likewise

with the weights `quantizer.commitment_own` and `commitment_cross`. Source: section 3.4 of Huang et
al., ICCV 2025; equation 7 has the own codes alone, the published code both.
"""

import torch
from torch import Tensor

from micu.data.dataset import Batch
from micu.losses.terms import LOSSES, Draws, Loss
from micu.model.micu import MICUOutput


def masked_mse(x: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the elements of real steps.

    Args:
        x: (B, T, ...).
        target: Like `x`.
        mask: (B, T) bool, True = real step.

    Returns:
        (); 0 if no step is real.
    """
    per_step = (x - target).square().flatten(2).mean(2)  # (B, T)
    return (per_step * mask).sum() / mask.sum().clamp(min=1)


@LOSSES.register("reconstruction")
class ReconstructionLoss(Loss):
    """Sum over modalities of the mean squared error of what is rebuilt: features, and FCID's clips.

    The clips that are rebuilt get gradient as a target, too, as published.
    """

    mean_over = "steps"

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Sum over modalities, ()."""
        errors = [
            masked_mse(output.reconstruction[modality], output.target[modality], batch.mask)
            for modality in self.config.modalities
            if modality in output.reconstruction
        ]
        if output.clips is not None:
            rebuilt, mask = output.clips.reconstruction, output.quantized_mask(batch.mask)
            errors += [
                masked_mse(rebuilt[modality], output.clips.content[modality], mask)
                for modality in self.config.modalities
            ]
        return torch.stack(errors).sum()


@LOSSES.register("commitment")
class CommitmentLoss(Loss):
    """Sum over modalities of the commitment losses that `UnifiedQuantizer.quantize` computes.

    With `quantizer.pool`, those of the clips' means are added.
    """

    mean_over = "steps"

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Sum over modalities, ()."""
        losses = self.stack({name: q.commitment_loss for name, q in output.quantized.items()})
        if not output.pooled:
            return losses.sum()
        pooled = self.stack({name: q.commitment_loss for name, q in output.pooled.items()})
        return losses.sum() + pooled.sum()
