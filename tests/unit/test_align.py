"""Steps that stand where a model takes them, and steps that are moved there."""

import math

import numpy as np
import pytest

from micu.data.align import align_steps, repeat_real_steps, starts_on_grid
from micu.store.shard import FeatureRow

NAN = float("nan")


def make_row(values, mask=None, times_s=None):
    values = np.array(values, np.float32).reshape(-1, 1)
    mask = np.ones(len(values), np.bool_) if mask is None else np.array(mask, np.bool_)
    times_s = np.arange(len(values)) + 0.5 if times_s is None else np.array(times_s, np.float64)
    return FeatureRow("c", values, mask, times_s)


@pytest.mark.parametrize(
    ("times_s", "denied", "steps", "on_grid"),
    [
        ([0.5, 1.5, 2.5], (), 3, True),
        ([0.5, 1.5, 2.5], (), 2, True),
        ([0.5, 1.5, 2.5], (), 4, False),
        ([1.5, 0.5, 2.5], (), 3, False),
        ([0.5, 1.5, 2.5], (1,), 3, False),
        ([0.5, 1.5, 2.5], (2,), 2, True),
        ([NAN, NAN, NAN], (), 3, True),
        ([0.5, 1.5, 1.5], (), 2, False),
        ([0.5, 1.5, 0.0], (), 2, False),
        ([0.5, 1.5, -0.5], (), 2, True),
        ([0.5, 1.5, 1.5], (2,), 2, True),
    ],
)
def test_steps_on_the_grid_are_not_copied_and_others_are_moved_there(
    times_s, denied, steps, on_grid
):
    row = make_row([1, 2, 4], times_s=times_s)
    row.mask[list(denied)] = False
    assert starts_on_grid(row.mask, row.times_s, steps) is on_grid
    values, mask = align_steps(row, steps)
    assert np.shares_memory(values, row.values) == on_grid
    wanted = [[] for _ in range(steps)]
    for place, value in enumerate([1, 2, 4]):
        second = place if np.isnan(times_s[place]) else math.floor(times_s[place])
        if place not in denied and 0 <= second < steps:
            wanted[second].append(value)
    assert mask.tolist() == [bool(found) for found in wanted]
    if not denied:
        assert values[:, 0].tolist() == [np.mean(found) if found else 0 for found in wanted]


@pytest.mark.parametrize(
    ("real", "wanted"),
    [
        ([True, True, True], [1, 2, 3]),
        ([True, False, False], [1, 1, 1]),
        ([False, True, False], [2, 2, 2]),
        ([False, False, True], [3, 3, 3]),
        ([True, False, True], [1, 1, 3]),
        ([False, False, False], [8, 8, 8]),
    ],
)
def test_steps_that_are_not_real_repeat_the_last_or_else_the_first(real, wanted):
    values = np.array([[1], [2], [3]], np.float32)
    row = make_row([9, 8, 7], mask=[False, True, True])
    found = repeat_real_steps(values, np.array(real), row)
    assert found[:, 0].tolist() == wanted
