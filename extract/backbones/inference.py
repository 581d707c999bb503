"""Running a network over units in batches: where, in which precision, and how it is repeatable."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

PRECISION = "float32"
"""TF32 is off, deterministic kernels are chosen; half precision is slower on a CPU."""


@contextmanager
def repeatable() -> Iterator[None]:
    """No gradients, float32 throughout, and the same kernels every time."""
    import torch

    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        yield


def encode_batches(
    units: Any,
    batch_size: int,
    forward: Callable[[Sequence[Any]], "torch.Tensor"],
) -> list[NDArray[np.float32]]:
    """Run `forward` over slices of at most `batch_size` units.

    Args:
        units: Units of any clips, in any number: a sequence or an array.
        batch_size: Units per slice.
        forward: From a slice of n units to their outputs, (n, ...), on any device.

    Returns:
        One output per unit, (...), float32.
    """
    outputs: list[NDArray[np.float32]] = []
    with repeatable():
        for start in range(0, len(units), batch_size):
            outputs.extend(forward(units[start : start + batch_size]).float().cpu().numpy())
    return outputs
