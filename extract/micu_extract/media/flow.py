"""The collector of optical flow: from the pictures of a clip to clips of quantised fields."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FlowInput, Media, Rounding, count_steps
from micu_extract.flow.methods import FlowSettings, estimate_flow
from micu_extract.media.damage import Damage, check_unit_bytes, fits_in_memory, too_short
from micu_extract.media.flow_cache import Fields, Film, FlowCache, Pair
from micu_extract.media.frames import (
    find_covered_s,
    find_first_second,
    iter_instants,
    note_decoding,
)
from micu_extract.media.pictures import Picture, center_crop, fit_short_side
from micu_extract.media.source import Reading, Source, Window

CALL_BYTES = 512 * 2**20
"""What the pairs of one call to the estimator may take, pictures and fields together."""

STILL = 128
"""Level of a displacement of zero that is rounded to the nearest."""


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


class FlowCollector:
    """Clips of quantised optical flow, one centred on each second from the first picture on.

    `plan_fields` says which pairs of pictures they hold; those alone are computed, each once, as
    neighbouring clips overlap. Pictures larger than wanted are resized (bilinear) before a field is
    computed on the whole of them; it is then scaled to the time step, quantised, resized where the
    input says so, and cropped.

    With a cache, fields are taken from there and added there. Media of which all are there are not
    opened.
    """

    def __init__(self, clip: Clip, wants: FlowInput, reading: Reading) -> None:  # noqa: D107
        self._wants, self._reading = wants, reading
        self._window = Window.of(clip)
        folder = reading.flow_cache
        self._cache = None if folder is None else FlowCache(folder, clip, wants, reading)
        self._known = None if self._cache is None else self._cache.load()
        self._pictures: list[NDArray[np.uint8]] = []
        self._starts: list[Fraction] = []
        self._last: Picture | None = None

    def find_kept(self) -> Media | None:
        """The clips, if the cache holds all their fields."""
        if self._known is None:
            return None
        film, fields, wants = self._known.film, self._known.fields, self._wants
        plan = plan_fields(film.starts, film.covered_s, self._window, wants)
        # What is too large goes the long way, which ends in an error that names the file.
        if plan.clips and fields.keys() >= set(plan.pairs):
            shape = next(iter(fields.values())).shape
            if fits_in_memory(_unit_bytes(plan, wants, shape)):
                return _to_media(plan, film, fields, wants)
        return None

    def take(self, picture: Picture, source: Source) -> None:
        """Prepare the next picture for the estimator."""
        self._last = picture
        if not self._starts or picture.start > self._starts[-1]:
            shape = self._pictures[0].shape if self._pictures else None
            flow = self._reading.flow
            self._pictures.append(_prepare(picture.load(), self._wants, flow, shape))
            self._starts.append(picture.start)
            check_unit_bytes(source, len(self._pictures) * self._pictures[0].nbytes)

    def finish(self, source: Source, damage: Damage) -> Media:
        """The clips, once the last picture was seen.

        Raises:
            DecodeError: The clip's media cannot be used, or hold one picture only.
            StoreError: The cache cannot be written.
            MicuError: What computes the flow is not there.
        """
        wants, reading, starts = self._wants, self._reading, self._starts
        covered_s = find_covered_s(source, self._window, self._last, damage)
        if len(self._pictures) < 2:
            raise DecodeError("too_short", f"{source.name}: one picture; flow needs two")
        plan = plan_fields(starts, covered_s, self._window, wants)
        if not plan.clips:
            raise too_short(source)
        check_unit_bytes(source, _unit_bytes(plan, wants, self._pictures[0].shape))
        film = Film(tuple(starts), covered_s, note_decoding(source, reading.decoder, damage))
        known = self._known
        held: Fields = known.fields if known is not None and known.film == film else {}
        missing = [pair for pair in plan.pairs if pair not in held]
        fields = {**held, **_compute(missing, self._pictures, starts, wants, reading.flow)}
        if self._cache is not None:
            self._cache.save(film, fields)
        return _to_media(plan, film, fields, wants)


def _prepare(
    picture: NDArray[np.uint8],
    wants: FlowInput,
    settings: FlowSettings,
    shape: tuple[int, ...] | None,
) -> NDArray[np.uint8]:
    """A picture as the estimator looks at it, (H, W) gray or (H, W, 3) RGB.

    Its short side becomes at most `wants.resize` px, unless `shape`, that of the clip's first
    picture, says otherwise.
    """
    import cv2

    gray = settings.pictures == "gray"
    if gray and wants.gray == "before":
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)
    height, width = picture.shape[:2]
    if shape is not None:
        height, width = shape[:2]
    elif min(height, width) > wants.resize:
        height, width = fit_short_side(picture.shape, wants.resize)
    if (height, width) != picture.shape[:2]:
        resized: Any = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        picture = resized
    if gray and picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)
    return picture


def _compute(
    pairs: Sequence[Pair],
    pictures: Sequence[NDArray[np.uint8]],
    starts: Sequence[Fraction],
    wants: FlowInput,
    settings: FlowSettings,
) -> dict[Pair, NDArray[np.uint8]]:
    """The quantised field of each pair, (H, W, 2), in as few calls as memory allows."""
    height, width = pictures[0].shape[:2]
    pair_bytes = height * width * 2 * 4 + 2 * pictures[0].nbytes
    per_call = max(1, CALL_BYTES // pair_bytes)
    fields: dict[Pair, NDArray[np.uint8]] = {}
    for begin in range(0, len(pairs), per_call):
        part = pairs[begin : begin + per_call]
        previous, following = (np.stack([pictures[pair[k]] for pair in part]) for k in (0, 1))
        for pair, flow in zip(part, estimate_flow(previous, following, settings), strict=True):
            scale = _time_scale(pair, starts, wants)
            fields[pair] = quantize_flow(flow * np.float32(scale), wants.bound, wants.rounding)
    return fields


def _time_scale(pair: Pair, starts: Sequence[Fraction], wants: FlowInput) -> float:
    """What turns a displacement between two pictures into one per time step."""
    if wants.dt_s is None:
        return 1.0
    return float(Fraction(str(wants.dt_s)) / (starts[pair[1]] - starts[pair[0]]))


def _to_media(plan: FlowPlan, film: Film, fields: Fields, wants: FlowInput) -> Media:
    fill = still_level(wants.rounding)
    cropped = {
        pair: center_crop(_resize_field(fields[pair], wants.field_side), wants.crop, fill).copy()
        for pair in plan.pairs
    }
    return Media(
        units=np.stack([np.stack([cropped[pair] for pair in pairs]) for pairs in plan.clips]),
        times_s=np.array([float(centre) for centre in plan.centres]),
        duration_s=float(film.covered_s),
        steps=plan.steps,
        notes={**film.notes, "pairs": len(plan.pairs)},
    )


def _unit_bytes(plan: FlowPlan, wants: FlowInput, shape: tuple[int, ...]) -> int:
    # Seconds before the first picture are rows, too; a field of a sliver becomes a long one.
    height, width = _field_size(shape, wants.field_side)
    return (int(plan.centres[-1]) + 1) * wants.clip_len * wants.crop**2 * 2 + height * width * 2


def _field_size(shape: tuple[int, ...], short: int | None) -> tuple[int, int]:
    """Height and width, px, of a field, whose short side becomes `short`, rounded as mmcv does."""
    height, width = shape[:2]
    scale = 1.0 if short is None else short / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _resize_field(field: NDArray[np.uint8], short: int | None) -> NDArray[np.uint8]:
    """A quantised field (H, W, 2), bilinear, as mmaction2's `Resize` does; levels stay levels."""
    import cv2

    height, width = _field_size(field.shape, short)
    if (height, width) == field.shape[:2]:
        return field
    resized: Any = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


# --- which fields ----------------------------------------------------------------------------


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


# --- their 8-bit form ------------------------------------------------------------------------


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
