"""Which pairs of pictures the flow clips of a video clip hold."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile

from micu_extract.backbones.base import FlowInput, count_steps
from micu_extract.media.frames import find_first_second, iter_instants
from micu_extract.media.source import Window

Pair = tuple[int, int]
"""Indices of the two pictures of a field, counted within the manifest's window."""


@dataclass(frozen=True, slots=True)
class FlowPlan:
    """The fields of each flow clip of a video clip."""

    centres: tuple[Fraction, ...]
    """Middle of each flow clip, s."""
    clips: tuple[tuple[Pair, ...], ...]
    """Per flow clip, the pair of each field."""
    steps: int
    """T of the video clip."""

    @property
    def pairs(self) -> list[Pair]:
        """Every pair once, in order."""
        return sorted({pair for fields in self.clips for pair in fields})


def plan_fields(
    starts: Sequence[Fraction], covered_s: Fraction, window: Window, wants: FlowInput
) -> FlowPlan:
    """Place a flow clip on each second from that of the first picture to what they reach.

    Without a time step, field k of a clip starts at picture c + (k - L // 2) * interval, where c is
    the picture whose time is nearest to the middle of the second, clamped to the pictures that have
    a next one, as mmaction2's `UntrimmedSampleFrames` does; it ends at the next picture.

    With the time step dt, field k starts at the picture nearest to the middle of the second plus
    (k - L // 2) * interval * dt, clamped likewise, and ends at the later picture whose time is
    nearest to dt after that.

    Args:
        starts: Time of each picture from the start of the clip, s; at least two, rising.
        covered_s: How much of the window the pictures cover, s.
        window: The clip.
        wants: Fields per clip, their distance and time step.

    Returns:
        At least one flow clip, unless no second is real.
    """
    steps = count_steps(float(window.length or covered_s))
    first = find_first_second(starts[0], covered_s, steps)
    if first is None:
        return FlowPlan((), (), steps)
    reached_s = min(covered_s, Fraction(steps))
    seconds = takewhile(lambda instant: instant < reached_s, iter_instants(window, 1, first))
    centres = tuple(seconds) or (min((first + covered_s) / 2, first + Fraction(1, 2)),)
    place = _place_by_count if wants.dt_s is None else _place_by_time
    return FlowPlan(centres, tuple(place(starts, centre, wants) for centre in centres), steps)


def _place_by_count(
    starts: Sequence[Fraction], centre: Fraction, wants: FlowInput
) -> tuple[Pair, ...]:
    middle, last = _find_nearest(starts, centre), len(starts) - 2
    offsets = [(k - wants.clip_len // 2) * wants.interval for k in range(wants.clip_len)]
    first = [min(max(middle + offset, 0), last) for offset in offsets]
    return tuple((i, i + 1) for i in first)


def _place_by_time(
    starts: Sequence[Fraction], centre: Fraction, wants: FlowInput
) -> tuple[Pair, ...]:
    dt, last = Fraction(str(wants.dt_s)), len(starts) - 2
    pairs = []
    for k in range(wants.clip_len):
        begin = centre + (k - wants.clip_len // 2) * wants.interval * dt
        first = min(_find_nearest(starts, begin), last)
        pairs.append((first, max(_find_nearest(starts, starts[first] + dt), first + 1)))
    return tuple(pairs)


def _find_nearest(starts: Sequence[Fraction], time: Fraction) -> int:
    """Index of the nearest picture; of two that are as near, the earlier one."""
    after = bisect_left(starts, time)
    if after == 0:
        return 0
    if after == len(starts):
        return after - 1
    return after - 1 if time - starts[after - 1] <= starts[after] - time else after
