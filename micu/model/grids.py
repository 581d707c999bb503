"""Convolutions of small grids on a processor, in as few matrix products as they take (Toom-Cook).

A 3 x 3 convolution is a bilinear map of the grid's cells and the nine taps. An algorithm of rank R
evaluates both at R points, multiplies them there, (N, C) by (C, O), and interpolates. The direct
form multiplies for each pair of a cell and a tap: 81 times from 5 x 5 cells to 3 x 3, and 81 times
for 3 x 3 cells with padding, 32 of them with nothing but padding. Here both take 25.

Rounding in float32 moves results by 1e-6 to 4e-6 of their size, torch's direct form by 2e-7.
Elsewhere than on a processor, and under autocast, whose types do not bear the interpolation, the
layers are torch's own.

Source: Toom-Cook multiplication of polynomials, and Winograd's minimal filtering, its transpose
(Lavin & Gray 2016, arXiv 1509.09308).
"""

from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from micu.model.onednn import linear, product

Kind = Literal["valid", "same", "full"]
"""Cells off, cells kept (padding 1), cells added (transposed convolution): -2, 0, +2 per side."""

TAPS = 3
MAX_TILE = 5
POINTS = (0.0, 1.0, -1.0, -0.5, 2.0, -2.0)
"""Where polynomials are evaluated, and at infinity; as many as a tile needs, from the left."""

Matrix = NDArray[np.float64]


class Algorithm(NamedTuple):
    """A bilinear algorithm of rank R: `leave @ ((enter @ cells) * (weigh @ taps))`."""

    enter: Any
    """(R, cells in)"""
    weigh: Any
    """(R, taps)"""
    leave: Any
    """(cells out, R)"""


def full_tile(cells: int) -> Algorithm:
    """Convolution of a row of cells with three taps to `cells + 2`, by R = cells + 2 products."""
    rank = cells + TAPS - 1
    powers = np.array([[point**j for j in range(rank)] for point in POINTS[: rank - 1]])
    evaluate = np.vstack([powers, np.eye(rank)[-1]])  # infinity reads the highest coefficient

    def of(count: int) -> Matrix:
        return np.vstack([evaluate[:-1, :count], np.eye(count)[-1]])

    return Algorithm(of(cells), of(TAPS), np.linalg.inv(evaluate))


@cache
def row_algorithm(kind: Kind, cells: int) -> Algorithm:
    """The algorithm for a row of `cells`; longer rows are cut into tiles.

    A correlation is the transpose of the full convolution of what comes out.
    """
    out = cells if kind != "valid" else cells - TAPS + 1
    tiles = -(-out // MAX_TILE)
    ends = [out * (i + 1) // tiles for i in range(tiles)]
    enter, weigh, leave, start = [], [], [], 0
    for end in ends:
        tile = full_tile(end - start)
        enter.append(np.pad(tile.enter, ((0, 0), (start, out - end))))
        weigh.append(tile.weigh)
        leave.append(np.pad(tile.leave, ((start, out - end), (0, 0))))
        start = end
    whole = Algorithm(np.vstack(enter), np.vstack(weigh), np.hstack(leave))
    if kind == "full":
        return whole
    inwards = whole.leave.T if kind == "valid" else whole.leave.T[:, 1:-1]
    return Algorithm(inwards, whole.weigh, whole.enter.T)


@cache
def grid_algorithm(kind: Kind, height: int, width: int, dtype: torch.dtype) -> Algorithm:
    """The algorithm for a grid, as tensors: rows by columns."""
    pairs = zip(row_algorithm(kind, height), row_algorithm(kind, width), strict=True)
    return Algorithm(*(torch.from_numpy(np.kron(*pair)).to(dtype) for pair in pairs))


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(R, N, C) by (R, C, O)."""
    out = left.new_empty(len(left), left.shape[1], right.shape[2])
    for i, (x, y) in enumerate(zip(left, right, strict=True)):
        out[i] = product(x, y)  # copied while it is in the cache
    return out


class _SmallConvolution(torch.autograd.Function):
    """Cells (P, N, C) and weight (A, B, 3, 3) to cells (P', N, O), by a bilinear algorithm.

    Cells and weight are evaluated again for the gradient: what is kept is what came in.
    """

    @staticmethod
    def forward(
        ctx: Any, cells: Tensor, weight: Tensor, algorithm: Algorithm, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(cells, weight)
        ctx.algorithm, ctx.transposed = algorithm, transposed
        enter, weigh, leave = algorithm
        return _mapped(leave, _products(_mapped(enter, cells), _weights(weigh, weight, transposed)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (cells, weight), (enter, weigh, leave) = ctx.saved_tensors, ctx.algorithm
        grad = _mapped(leave.T, grad_outputs[0])  # (R, N, O)
        cells_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            taps = _weights(weigh, weight, ctx.transposed)
            cells_grad = _mapped(enter.T, _products(grad, taps.transpose(1, 2)))
            del taps
        if ctx.needs_input_grad[1]:
            evaluated = _mapped(enter, cells)
            left, right = (evaluated, grad) if ctx.transposed else (grad, evaluated)
            taps_grad = _products(left.transpose(1, 2), right)  # (R, A, B)
            weight_grad = (weigh.T @ taps_grad.flatten(1)).T.reshape(weight.shape)
        return cells_grad, weight_grad, None, None


def _mapped(matrix: Tensor, cells: Tensor) -> Tensor:
    """Apply a matrix (Q, P) to the first dimension of (P, N, C)."""
    return (matrix @ cells.flatten(1)).view(-1, *cells.shape[1:])


def _weights(weigh: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """The right factor of each product, (R, C, O); a transposed convolution's weight is (C, O)."""
    taps = (weigh @ weight.flatten(2).flatten(0, 1).T).view(-1, *weight.shape[:2])
    return taps if transposed else taps.transpose(1, 2)


def by_products(x: Tensor) -> bool:
    """Whether the convolutions of `x` are computed here rather than by torch."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _convolve(frames: Tensor, weight: Tensor, bias: Tensor | None, kind: Kind) -> Tensor:
    """Convolve (N, C, H, W), in any memory layout, to (N, O, H', W'), cells first in memory."""
    n, channels, height, width = frames.shape
    cells = frames.permute(2, 3, 0, 1).reshape(height * width, n, channels)
    transposed = kind == "full"
    if weight.shape[-1] == 1:
        flat = weight.flatten(1).T if transposed else weight.flatten(1)
        out = linear(cells, flat)
    else:
        algorithm = grid_algorithm(kind, height, width, frames.dtype)
        out = _SmallConvolution.apply(cells, weight, algorithm, transposed)
        grown = {"valid": 1 - TAPS, "same": 0, "full": TAPS - 1}[kind]
        height, width = height + grown, width + grown
    if bias is not None:
        out = out + bias
    return out.view(height, width, n, -1).permute(2, 3, 0, 1)


class GridConv(nn.Conv2d):
    """`nn.Conv2d` of 3 x 3 or 1 x 1, stride 1, for small grids."""

    def forward(self, frames: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W')."""
        if not by_products(frames):
            return super().forward(frames)
        kind: Kind = "same" if self.padding != (0, 0) else "valid"
        return _convolve(frames, self.weight, self.bias, kind)


class GridConvTranspose(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of 3 x 3 or 1 x 1, stride 1, for small grids."""

    def forward(self, frames: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W')."""
        if not by_products(frames):
            return super().forward(frames, output_size)
        return _convolve(frames, self.weight, self.bias, "full")
