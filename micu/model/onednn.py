"""Products of float32 matrices on a processor at oneDNN's speed; elsewhere they are torch's own.

`torch.mm` goes to MKL, which on processors of AMD runs at half of what oneDNN reaches.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@cache
def has_onednn() -> bool:
    """Whether torch offers the product that its compiler takes on processors."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_ours(x: Tensor) -> bool:
    """Whether oneDNN multiplies it."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu"
    return plain and x.numel() > 0 and has_onednn() and not torch.is_autocast_enabled("cpu")


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply (N, C) by (C, O), whatever their strides, and add (O,); no gradient is recorded."""
    if not _is_ours(left):
        return left @ right if bias is None else torch.addmm(bias, left, right)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.T, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    """Rows (N, C) by weight (O, C), and bias (O,)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight.T, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (rows, weight), grad = ctx.saved_tensors, grad_outputs[0]
        return (
            product(grad, weight) if ctx.needs_input_grad[0] else None,
            product(grad.T, rows) if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`.

    Args:
        x: (..., C).
        weight: (O, C).
        bias: (O,).

    Returns:
        (..., O).
    """
    if not _is_ours(x):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return out.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`torch.nn.Linear`, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., O)."""
        return linear(x, self.weight, self.bias)
