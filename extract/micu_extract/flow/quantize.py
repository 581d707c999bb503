"""The 8-bit form of a displacement field, in the two conventions that networks were trained on."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rounding = Literal["nearest", "truncate"]

STILL = 128
"""Level of a displacement of zero that is rounded to the nearest."""


def quantize_flow(
    flow: NDArray[np.float32], bound: float, rounding: Rounding = "nearest"
) -> NDArray[np.uint8]:
    """Store displacements in 8 bits: 255 (v + bound) / (2 bound), clipped to ±bound.

    Args:
        flow: Displacements, any shape, px.
        bound: Displacement that maps to 0 and 255, px.
        rounding: `nearest`, as denseflow does, of whose images the networks were trained; or
            `truncate`, as mmaction2's `tools/misc/flow_extraction.py` does, in single precision.

    Returns:
        Levels of the same shape; a displacement of zero, 127.5, becomes `still_level(rounding)`.

    Differs: halves are rounded up; denseflow rounds them to the even level.
    """
    if rounding == "truncate":
        levels = np.clip(flow.astype(np.float32), np.float32(-bound), np.float32(bound))
        levels += np.float32(bound)
        levels *= np.float32(255 / (2.0 * bound))
        return levels.astype(np.uint8)
    clipped = np.clip(flow, -bound, bound).astype(np.float64)
    scaled = 255.0 * (clipped + bound) / (2.0 * bound)
    return np.floor(scaled + 0.5).astype(np.uint8)


def still_level(rounding: Rounding) -> int:
    """Level of a displacement of zero."""
    return STILL if rounding == "nearest" else STILL - 1
