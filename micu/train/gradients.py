"""Gradients between the backward pass and the optimiser: unscaled, measured, judged, clipped."""

import math

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from micu.config.sections import OptimizerConfig
from micu.model.precision import LEAST_SCALE


def unscale_(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Divide gradients by the scale of the loss, and adapt it; whether it was too large."""
    before = scaler.get_scale()
    scaler.unscale_(optimizer)
    scaler.update()
    return LEAST_SCALE < before > scaler.get_scale()


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """L2 norm of each group's gradient, (), by the group's name."""
    norms = {}
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        none = group["params"][0].new_zeros(())  # a loss of weight 0 leaves its classifier without
        norms[group["name"]] = get_total_norm(gradients) if gradients else none
    return norms


def nonfinite_gradients(norms: dict[str, Tensor]) -> list[str]:
    """What to say about each norm that is not finite."""
    values = torch.stack(list(norms.values())).tolist()
    return [
        f"gradient of {name!r} is {value}"
        for name, value in zip(norms, values, strict=True)
        if not math.isfinite(value)
    ]


def clip_(
    optimizer: torch.optim.Optimizer, norms: dict[str, Tensor], settings: OptimizerConfig
) -> None:
    """Scale each group's gradient to at most the configured norm."""
    for group in optimizer.param_groups:
        if group["name"] in ("loss_jigsaw", "loss_mmjp") and not settings.clip_jigsaw:
            continue
        clip_grads_with_norm_(group["params"], settings.grad_clip, norms[group["name"]])
