"""TV-L1 flow on a CPU: kernels that numba compiles, and OpenCV's resize, remap and median filter.

A level's arrays are flat, without padding between rows, so that a block of rows is one long loop
for the compiler to vectorise. That is exact: the horizontal dual variables of the last column are
always zero, and so stand in for the missing left neighbour of the next row's first pixel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from micu.base.files import user_cache
from micu_extract.flow.tvl1_parameters import SMALLEST_LEVEL_PX, TVL1

BLOCK_PX = 8192
"""Pixels that one step of an iteration updates before the next step sees them; ten arrays of this
length fit in a core's cache."""

Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])


OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}


def _jit(function: F) -> F:
    """Compile for one thread, without the interpreter's lock; keep the result on disk.

    It is kept among the user's caches, not beside the code, where it would outlive an uninstalled
    package and be taken for one.
    """
    named = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = named or str(user_cache("numba"))
    try:
        compiled: F = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder for the cache can be written
        compiled = numba.njit(**OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = named
    return compiled


def _inlined(function: F) -> F:
    """Compile into each caller: code from the cache otherwise gives other bits than fresh code."""
    compiled: F = numba.njit(forceinline=True, **OPTIONS)(function)
    return compiled


@dataclass(frozen=True, slots=True)
class _Level:
    """Arrays of one level of the pyramid, used for every pair.

    Attributes:
        height: Rows, H.
        width: Columns, W.
        data: Gradient x, gradient y, 1 / |gradient|^2 and constant part of the brightness
            difference, (4, H W).
        flow: Displacement x and y, (2, L), px; L leaves a row after the pixels.
        dual: Dual variables of x (to the right, down) and of y, (4, L); a row before the pixels.
        grid: Column and row of each pixel, (2, H, W).
        inner: 1, and 0 where a pixel has no right neighbour, one block of rows.
    """

    height: int
    width: int
    data: Floats
    flow: Floats
    dual: Floats
    grid: Floats
    inner: Floats

    @classmethod
    def of(cls, height: int, width: int) -> Self:
        """Allocate for pictures of a size; what lies outside the pixels is zero and stays so."""
        rows = max(1, BLOCK_PX // width) + 1
        inner = np.ones((rows, width), np.float32)
        inner[:, -1] = 0
        y, x = np.mgrid[:height, :width]
        length = (height + 1) * width + 1
        return cls(
            height=height,
            width=width,
            data=np.empty((4, height * width), np.float32),
            flow=np.zeros((2, length), np.float32),
            dual=np.zeros((4, length), np.float32),
            grid=np.stack([x, y]).astype(np.float32),
            inner=inner.ravel(),
        )

    def field(self) -> Floats:
        """View of the displacement, (2, H, W)."""
        pixels = self.height * self.width
        return self.flow[:, :pixels].reshape(2, self.height, self.width)


@dataclass(frozen=True, slots=True)
class _Constants:
    """What the kernels need of the parameters, in float32."""

    reach: np.float32
    theta: np.float32
    step: np.float32
    enough: np.float32

    @classmethod
    def of(cls, parameters: TVL1, pixels: int) -> Self:
        """Constants for a level of so many pixels."""
        return cls(
            reach=np.float32(parameters.lambda_ * parameters.theta),
            theta=np.float32(parameters.theta),
            step=np.float32(parameters.tau / parameters.theta),
            enough=np.float32(parameters.epsilon**2 * pixels),
        )


def solve_pairs(
    previous: NDArray[np.uint8], following: NDArray[np.uint8], parameters: TVL1
) -> Floats:
    """Displacement of each pair of pictures, one after another, on one thread.

    Args:
        previous: First pictures, (P, H, W).
        following: Second pictures, (P, H, W).
        parameters: Parameters of the method.

    Returns:
        Displacement, (P, H, W, 2), x then y, px.
    """
    cv2.setNumThreads(1)  # clips are computed side by side
    sizes = [image.shape for image in _pyramid(previous[0], parameters)]
    levels = [_Level.of(*size) for size in sizes]
    flows = np.empty((*previous.shape, 2), np.float32)
    for flow, first, second in zip(flows, previous, following, strict=True):
        coarser: _Level | None = None
        firsts, seconds = _pyramid(first, parameters), _pyramid(second, parameters)
        for level, image, target in reversed(list(zip(levels, firsts, seconds, strict=True))):
            _start(level, coarser, parameters)
            _solve_level(level, image, target, parameters)
            coarser = level
        flow[...] = levels[0].field().transpose(1, 2, 0)
    return flows


def _pyramid(picture: NDArray[np.uint8], parameters: TVL1) -> list[Floats]:
    """The picture in float32, 0 to 255, and its smaller versions."""
    levels = [picture.astype(np.float32)]
    step = parameters.scale_step
    while len(levels) < parameters.scales:
        # Given the factor and not the size, OpenCV samples at exactly 1 / factor.
        smaller = _resize_by(levels[-1], step)
        if smaller is None or min(smaller.shape) < SMALLEST_LEVEL_PX:
            break
        levels.append(smaller)
    return levels


def _resize_by(image: Floats, step: float) -> Floats | None:
    if round(min(image.shape) * step) < 1:
        return None
    smaller: Floats = cv2.resize(image, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
    return smaller


def _start(level: _Level, coarser: _Level | None, parameters: TVL1) -> None:
    """Begin with the coarser level's field, or with none."""
    level.dual[...] = 0
    level.flow[...] = 0
    if coarser is None:
        return
    for target, source in zip(level.field(), coarser.field(), strict=True):
        size = (level.width, level.height)
        larger = cv2.resize(source, size, interpolation=cv2.INTER_LINEAR)
        np.multiply(larger, np.float32(1 / parameters.scale_step), out=target)


def _solve_level(level: _Level, image: Floats, target: Floats, parameters: TVL1) -> None:
    constants = _Constants.of(parameters, image.size)
    stack = np.dstack([target, *_centred_gradient(target)])
    field, first = level.field(), image.ravel()
    for _ in range(parameters.warps):
        places = level.grid + field
        warped = cv2.remap(stack, places[0], places[1], cv2.INTER_CUBIC).reshape(
            -1, 3
        )  # zero outside
        _linearize(warped, first, level.flow, level.data)
        for _ in range(parameters.outer_iterations):
            if parameters.median > 1:
                for channel in field:
                    channel[...] = cv2.medianBlur(channel, parameters.median)
            change = _iterate(
                level.data,
                level.flow,
                level.dual,
                level.inner,
                level.width,
                constants.reach,
                constants.theta,
                constants.step,
                constants.enough,
                parameters.inner_iterations,
            )
            if not change > constants.enough:
                break


def _centred_gradient(image: Floats) -> Sequence[Floats]:
    """Half the difference of the neighbours, x and y; at the border, of pixel and neighbour."""
    padded = np.pad(image, 1, "edge")
    half = np.float32(0.5)
    return (
        half * (padded[1:-1, 2:] - padded[1:-1, :-2]),
        half * (padded[2:, 1:-1] - padded[:-2, 1:-1]),
    )


@_jit
def _linearize(warped: Floats, first: Floats, flow: Floats, data: Floats) -> None:
    """Brightness difference as a linear function of the displacement, around the present one."""
    gx, gy, inverse, rest = data[0], data[1], data[2], data[3]
    u, v = flow[0], flow[1]
    for i in range(first.size):
        value, x, y = warped[i, 0], warped[i, 1], warped[i, 2]
        gx[i] = x
        gy[i] = y
        # Without gradient the threshold step is zero whatever the inverse; it must be finite.
        inverse[i] = np.float32(1) / (x * x + y * y + np.float32(1e-12))
        rest[i] = value - x * u[i] - y * v[i] - first[i]


@_inlined
def _update_flow(
    data: Floats,
    flow: Floats,
    dual: Floats,
    width: int,
    start: int,
    stop: int,
    reach: np.float32,
    theta: np.float32,
) -> np.float32:
    """Threshold step plus divergence of the dual variables; return the sum of squared changes."""
    gx, gy = data[0][start:stop], data[1][start:stop]
    inverse, rest = data[2][start:stop], data[3][start:stop]
    u, v = flow[0][start:stop], flow[1][start:stop]
    first, last = start + width, stop + width
    px, px_left = dual[0][first:last], dual[0][first - 1 : last - 1]
    py, py_up = dual[1][first:last], dual[1][start:stop]
    qx, qx_left = dual[2][first:last], dual[2][first - 1 : last - 1]
    qy, qy_up = dual[3][first:last], dual[3][start:stop]
    change = np.float32(0)
    for i in range(u.size):
        a, b = u[i], v[i]
        along = -(rest[i] + gx[i] * a + gy[i] * b) * inverse[i]
        along = min(max(along, -reach), reach)
        da = along * gx[i] + theta * (px[i] - px_left[i] + py[i] - py_up[i])
        db = along * gy[i] + theta * (qx[i] - qx_left[i] + qy[i] - qy_up[i])
        u[i] = a + da
        v[i] = b + db
        change += da * da + db * db
    return change


@_inlined
def _update_dual(
    component: Floats,
    right: Floats,
    down: Floats,
    inner: Floats,
    width: int,
    start: int,
    stop: int,
    step: np.float32,
) -> None:
    """Move one component's dual variables along its gradient, and shrink them to length 1."""
    here, following = component[start:stop], component[start + 1 : stop + 1]
    below = component[start + width : stop + width]
    px, py = right[start + width : stop + width], down[start + width : stop + width]
    for i in range(here.size):
        x = (following[i] - here[i]) * inner[i]
        y = below[i] - here[i]
        shrink = np.float32(1) / (np.float32(1) + step * np.sqrt(x * x + y * y))
        px[i] = (px[i] + step * x) * shrink
        py[i] = (py[i] + step * y) * shrink


@_jit
def _iterate(
    data: Floats,
    flow: Floats,
    dual: Floats,
    inner: Floats,
    width: int,
    reach: np.float32,
    theta: np.float32,
    step: np.float32,
    enough: np.float32,
    iterations: int,
) -> np.float32:
    """Iterate until the field changes little; return the last sum of squared changes, px^2."""
    pixels = data.shape[1]
    block = inner.size - width
    change = np.float32(0)
    for _ in range(iterations):
        change = np.float32(0)
        done = 0
        for start in range(0, pixels, block):
            stop = min(start + block, pixels)
            change += _update_flow(data, flow, dual, width, start, stop, reach, theta)
            # The dual variables lag by a row: they need the new field of the row below.
            end = stop - width
            if stop == pixels:
                # A copy of the last row below it makes its vertical gradient zero.
                flow[:, stop : stop + width] = flow[:, stop - width : stop]
                end = stop
            _update_dual(flow[0], dual[0], dual[1], inner, width, done, end, step)
            _update_dual(flow[1], dual[2], dual[3], inner, width, done, end, step)
            done = end
        if not change > enough:
            break
    return change
