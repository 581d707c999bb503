"""Where the stored steps of a clip stand among the T that a model takes."""

import numpy as np
from numpy.typing import NDArray

from micu.store.shard import FeatureRow


def starts_on_grid(mask: NDArray[np.bool_], times_s: NDArray[np.float64], steps: int) -> bool:
    """Whether the first steps of a clip are its seconds, or words, as they stand.

    Args:
        mask: (T',) bool, True = real step.
        times_s: (T',), centre of each step; NaN where steps are not seconds.
        steps: T.
    """
    if len(mask) < steps or not mask[:steps].all():
        return False
    index = np.arange(len(mask))
    second = np.where(np.isfinite(times_s), np.floor(times_s), index)
    if not (second[:steps] == index[:steps]).all():
        return False
    later = second[steps:]
    return not ((later >= 0) & (later < steps) & mask[steps:]).any()


def align_steps(row: FeatureRow, steps: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Put the steps of one clip on the grid of seconds, or of words where they have no times.

    Args:
        row: Features of one clip; steps that the mask denies are not used.
        steps: T.

    Returns:
        Values (T, ...), the mean where several steps lie in one second and zero where none does,
        and mask (T,), True = some step lies there.
    """
    if starts_on_grid(row.mask, row.times_s, steps):
        return row.values[:steps], row.mask[:steps]
    second = np.where(np.isfinite(row.times_s), np.floor(row.times_s), np.arange(len(row.values)))
    used = row.mask & (second >= 0) & (second < steps)
    where = second[used].astype(np.int64)
    counts = np.bincount(where, minlength=steps)
    sums = np.zeros((steps, *row.values.shape[1:]), np.float64)
    if counts.max() <= 1:
        sums[where] = row.values[used]
    else:
        np.add.at(sums, where, row.values[used])
    shape = (steps,) + (1,) * (row.values.ndim - 1)
    return (sums / np.maximum(counts, 1).reshape(shape)).astype(np.float32), counts > 0


def repeat_real_steps(
    values: NDArray[np.float32], real: NDArray[np.bool_], row: FeatureRow
) -> NDArray[np.float32]:
    """Fill steps that are not real with the last real one before, else with the first after.

    Args:
        values: (T, ...).
        real: (T,).
        row: Where the first real step is taken from if it comes after all of T.

    Returns:
        (T, ...), every step real or a repeated one.
    """
    if real.all():
        return values
    if not real.any():
        first = row.values[int(np.argmax(row.mask))]
        return np.broadcast_to(first, values.shape).copy()
    source = np.maximum.accumulate(np.where(real, np.arange(len(real)), -1))
    return values[np.where(source < 0, int(np.argmax(real)), source)]
