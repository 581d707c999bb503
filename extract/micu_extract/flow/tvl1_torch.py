"""TV-L1 flow with torch: many pairs at once, on a CPU or a GPU.

Every pair stops where it would stop alone: one that has converged keeps its state while the others
of its chunk go on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from micu_extract.flow.tvl1_parameters import SMALLEST_LEVEL_PX, TVL1

PAIRS_AT_ONCE = 16
"""Pairs of a chunk; about 330 bytes per pixel of a pair are in use."""

CHECK_EVERY = 5
"""Iterations between two looks at whether every pair has converged; a look waits for the GPU."""


@dataclass(slots=True)
class _State:
    """What the iterations move, of one level.

    Attributes:
        flow: Displacement, x and y, (P, 2, H, W), px.
        dual: Dual variables, (P, 2, 2, H, W): of x and y, to the right and down.
        active: Whether a pair still moves, (P, 1, 1, 1), bool.
    """

    flow: Tensor
    dual: Tensor
    active: Tensor


@dataclass(frozen=True, slots=True)
class _Data:
    """Brightness difference as a linear function of the displacement.

    Attributes:
        gradient: Of the warped second picture, x and y, (P, 2, H, W).
        inverse: 1 / |gradient|^2, (P, 1, H, W).
        rest: The difference where the displacement is zero, (P, 1, H, W).
    """

    gradient: Tensor
    inverse: Tensor
    rest: Tensor


def solve_pairs(
    previous: NDArray[np.uint8],
    following: NDArray[np.uint8],
    parameters: TVL1,
    device: str,
    *,
    pairs_at_once: int = PAIRS_AT_ONCE,
) -> NDArray[np.float32]:
    """Displacement of each pair of pictures.

    Args:
        previous: First pictures, (P, H, W).
        following: Second pictures, (P, H, W).
        parameters: Parameters of the method.
        device: What `torch.device` takes.
        pairs_at_once: Pairs of a chunk, which bounds the memory.

    Returns:
        Displacement, (P, H, W, 2), x then y, px.
    """
    flows = np.empty((*previous.shape, 2), np.float32)
    with torch.inference_mode():
        for start in range(0, len(previous), pairs_at_once):
            chunk = slice(start, start + pairs_at_once)
            first, second = (
                torch.from_numpy(pictures[chunk]).to(device).float().unsqueeze(1)
                for pictures in (previous, following)
            )
            flow = solve_chunk(first, second, parameters)
            flows[chunk] = flow.permute(0, 2, 3, 1).cpu().numpy()
    return flows


def solve_chunk(first: Tensor, second: Tensor, parameters: TVL1) -> Tensor:
    """Displacement of pairs on the device where they are.

    Args:
        first: First pictures, (P, 1, H, W), 0 to 255, float32.
        second: Second pictures, (P, 1, H, W).
        parameters: Parameters of the method.

    Returns:
        Displacement, (P, 2, H, W), px.
    """
    levels = zip(pyramid(first, parameters), pyramid(second, parameters), strict=True)
    flow: Tensor | None = None
    for image, target in reversed(list(levels)):
        if flow is None:
            flow = image.new_zeros(len(image), 2, *image.shape[-2:])
        else:
            flow = resize(flow, image.shape[-2:]) * (1 / parameters.scale_step)
        flow = solve_level(image, target, flow, parameters)
    assert flow is not None
    return flow


def pyramid(images: Tensor, parameters: TVL1) -> list[Tensor]:
    """The pictures, (P, 1, H, W), and their smaller versions."""
    levels = [images]
    step = parameters.scale_step
    while len(levels) < parameters.scales:
        # OpenCV rounds half to even, as `round` does, and samples at exactly 1 / step.
        size = [round(side * step) for side in levels[-1].shape[-2:]]
        if min(size) < SMALLEST_LEVEL_PX:
            break
        levels.append(resize(levels[-1], size, step))
    return levels


def resize(images: Tensor, size: Sequence[int], step: float | None = None) -> Tensor:
    """Linear interpolation, without a filter, as `cv2.resize` does.

    Args:
        images: (P, C, H, W).
        size: Rows and columns wanted.
        step: Size of a new pixel's inverse, in old ones; by default what `size` makes it.

    Returns:
        (P, C, *size).
    """
    for axis, count in zip((-2, -1), size, strict=True):
        old = images.shape[axis]
        ratio = old / count if step is None else 1 / step
        # On the CPU: not every device has float64.
        places = torch.arange(count, dtype=torch.float64, device="cpu")
        places = (places + 0.5) * ratio - 0.5
        places = places.clamp(0, old - 1)
        low = places.floor().long()
        shape = (-1, 1) if axis == -2 else (-1,)
        share = (places - low).float().view(shape).to(images.device)
        low = low.to(images.device)
        at_low = images.index_select(axis, low)
        at_high = images.index_select(axis, (low + 1).clamp(max=old - 1))
        images = at_low * (1 - share) + at_high * share
    return images


def solve_level(image: Tensor, target: Tensor, flow: Tensor, parameters: TVL1) -> Tensor:
    """Refine a displacement on one level.

    Args:
        image: First pictures, (P, 1, H, W).
        target: Second pictures, (P, 1, H, W).
        flow: Displacement to start from, (P, 2, H, W), px.
        parameters: Parameters of the method.

    Returns:
        The displacement, (P, 2, H, W), px.
    """
    pairs, _, height, width = image.shape
    enough = parameters.epsilon**2 * height * width
    stack = torch.cat([target, centred_gradient(target)], 1)
    state = _State(
        flow=flow,
        dual=image.new_zeros(pairs, 2, 2, height, width),
        active=image.new_ones(pairs, 1, 1, 1, dtype=torch.bool),
    )
    for _ in range(parameters.warps):
        data = _linearize(image, warp(stack, state.flow), state.flow)
        state.active = torch.ones_like(state.active)
        for _ in _rounds(state, parameters):
            change = _iterate(data, state, parameters)
            state.active = state.active & (change > enough)
    return state.flow


def _rounds(state: _State, parameters: TVL1) -> Iterator[None]:
    """One turn per iteration, with the median filter where it is due, until no pair is active."""
    for _ in range(parameters.outer_iterations):
        if parameters.median > 1:
            smooth = median(state.flow, parameters.median)
            state.flow = torch.where(state.active, smooth, state.flow)
        for inner in range(parameters.inner_iterations):
            yield
            if inner % CHECK_EVERY == CHECK_EVERY - 1 and not state.active.any():
                return
        if not state.active.any():
            return


def _linearize(image: Tensor, warped: Tensor, flow: Tensor) -> _Data:
    gradient = warped[:, 1:]
    return _Data(
        gradient=gradient,
        # Without gradient the threshold step is zero whatever the inverse; it must be finite.
        inverse=1 / (gradient.square().sum(1, keepdim=True) + 1e-12),
        rest=warped[:, :1] - (gradient * flow).sum(1, keepdim=True) - image,
    )


def _iterate(data: _Data, state: _State, parameters: TVL1) -> Tensor:
    """One iteration of the active pairs; return the sums of squared changes, (P, 1, 1, 1), px^2."""
    reach, step = parameters.lambda_ * parameters.theta, parameters.tau / parameters.theta
    along = -(data.rest + (data.gradient * state.flow).sum(1, keepdim=True)) * data.inverse
    update = along.clamp(-reach, reach) * data.gradient
    update += parameters.theta * divergence(state.dual)
    change = update.square().sum((1, 2, 3), keepdim=True)
    state.flow = torch.where(state.active, state.flow + update, state.flow)
    slope = forward_gradient(state.flow)
    shrink = 1 + step * slope.square().sum(2, keepdim=True).sqrt()
    moved = (state.dual + step * slope) / shrink
    state.dual = torch.where(state.active.unsqueeze(1), moved, state.dual)
    return change


def centred_gradient(images: Tensor) -> Tensor:
    """Half the difference of the neighbours; at the border, of the pixel and its neighbour.

    Args:
        images: (P, 1, H, W).

    Returns:
        Gradient, x and y, (P, 2, H, W).
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    x = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    y = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return 0.5 * torch.cat([x, y], 1)


def forward_gradient(flow: Tensor) -> Tensor:
    """Difference to the right and to the lower neighbour; zero where there is none.

    Args:
        flow: (P, 2, H, W).

    Returns:
        (P, 2, 2, H, W).
    """
    slope = flow.new_zeros(*flow.shape[:2], 2, *flow.shape[2:])
    torch.sub(flow[..., 1:], flow[..., :-1], out=slope[:, :, 0, :, :-1])
    torch.sub(flow[..., 1:, :], flow[..., :-1, :], out=slope[:, :, 1, :-1])
    return slope


def divergence(dual: Tensor) -> Tensor:
    """Negative adjoint of `forward_gradient`: (P, 2, 2, H, W) to (P, 2, H, W)."""
    x, y = dual.unbind(2)
    total = x + y
    total[..., 1:] -= x[..., :-1]
    total[..., 1:, :] -= y[..., :-1, :]
    return total


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Sample at displaced places: bicubic with a = -0.75, zero outside.

    Args:
        images: (P, C, H, W).
        flow: Displacement, (P, 2, H, W), px.

    Returns:
        (P, C, H, W).
    """
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device) + flow[:, 0]
    y = torch.arange(height, device=flow.device).unsqueeze(1) + flow[:, 1]
    places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return functional.grid_sample(images, places, "bicubic", "zeros", align_corners=False)


def median(images: Tensor, side: int) -> Tensor:
    """Median of each pixel's square neighbourhood; the border is repeated outwards.

    Columns are sorted, then the rows of the sorted columns: what then cannot be the median, because
    too many of the others are known to be smaller or larger, is left out.

    Args:
        images: (P, C, H, W).
        side: Side of the neighbourhood, odd, px.

    Returns:
        (P, C, H, W).
    """
    height, width = images.shape[-2:]
    reach = side // 2
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    columns = _sort([padded[..., i : i + height, :] for i in range(side)])
    candidates: list[Tensor] = []
    for i, column in enumerate(columns):
        row = _sort([column[..., j : j + width] for j in range(side)])
        below = [(i + 1) * (j + 1) - 1 for j in range(side)]
        above = [(side - i) * (side - j) - 1 for j in range(side)]
        half = side * side // 2
        candidates += [row[j] for j in range(side) if max(below[j], above[j]) <= half]
    return _middle(candidates)


def _sort(values: list[Tensor]) -> list[Tensor]:
    """Sort elementwise, smallest first."""
    values = list(values)
    for last in range(len(values) - 1, 0, -1):
        for i in range(last):
            low, high = values[i], values[i + 1]
            values[i], values[i + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return values


def _middle(values: list[Tensor]) -> Tensor:
    """Elementwise median of an odd number of values.

    Of more than half of the values, neither the smallest nor the largest can be the median: both
    are dropped, and the next value is taken in.
    """
    waiting = len(values) // 2 + 2
    kept, rest = values[:waiting], values[waiting:]
    while len(kept) > 1:
        for i in range(1, len(kept)):  # the largest goes last
            low, high = kept[i - 1], kept[i]
            kept[i - 1], kept[i] = torch.minimum(low, high), torch.maximum(low, high)
        for i in range(len(kept) - 2, 0, -1):  # the smallest of the others goes first
            low, high = kept[i - 1], kept[i]
            kept[i - 1], kept[i] = torch.minimum(low, high), torch.maximum(low, high)
        kept, rest = kept[1:-1] + rest[:1], rest[1:]
    return kept[0]
