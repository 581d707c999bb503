"""Reconstruction of the inputs, and commitment of the encoders to their codes."""

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
    """Sum over modalities of the mean squared error of what is rebuilt (section 3.2)."""

    mean_over = "steps"

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Sum over modalities, ()."""
        errors = [
            masked_mse(output.reconstruction[modality], output.target[modality], batch.mask)
            for modality in self.config.modalities
        ]
        return torch.stack(errors).sum()


@LOSSES.register("commitment")
class CommitmentLoss(Loss):
    """Sum over modalities of the quantizer's commitment losses (section 3.2).

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
