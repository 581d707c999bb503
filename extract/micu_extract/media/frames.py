"""Which instants of a clip are sampled, and its frames: pictures that stand for each second."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import count
from math import ceil

import numpy as np
from numpy.typing import NDArray

from micu.store.manifest import Clip
from micu_extract.backbones.base import (
    MIN_STEP_S,
    ClipInput,
    FrameInput,
    Media,
    count_steps,
    find_real_steps,
)
from micu_extract.media.damage import (
    Damage,
    check_damage,
    check_unit_bytes,
    nothing_decoded,
    too_short,
)
from micu_extract.media.pictures import Picture, center_crop, resize
from micu_extract.media.source import Reading, Source, Window

_LEAST_S = Fraction(str(MIN_STEP_S))


def iter_instants(window: Window, per_second: int, first_s: int = 0) -> Iterator[Fraction]:
    """Middles of the parts of each second of a window from `first_s` on, s from its start."""
    for i in count(first_s * per_second):
        instant = Fraction(2 * i + 1, 2 * per_second)
        if window.length is not None and instant >= window.length:
            return
        yield instant


def skip_seconds(begin_s: Fraction) -> int:
    """How many seconds come before the first picture: all that hold less than 0.1 s after it.

    In the next one it stands for what of that second comes before it, too.

    Args:
        begin_s: When the first picture comes, s from the start of the clip.
    """
    return max(0, ceil(begin_s + _LEAST_S) - 1)


def find_first_second(begin_s: Fraction, covered_s: Fraction, steps: int) -> int | None:
    """The first second that is real, by `find_real_steps`; None if the pictures come later.

    Args:
        begin_s: When the first picture comes, s from the start of the clip.
        covered_s: Where the last one ends, s.
        steps: T.
    """
    real = find_real_steps([(max(begin_s, Fraction(0)), covered_s)], steps)
    return int(real.argmax()) if real.any() else None


def find_covered_s(
    source: Source, window: Window, last: Picture | None, damage: Damage
) -> Fraction:
    """How much of the window the pictures cover, s, after judging their damage.

    Args:
        source: What was decoded.
        window: The clip.
        last: The last picture that was decoded; None if there was none.
        damage: What decoding met.

    Raises:
        DecodeError: Nothing was decoded, or too much is damaged.
    """
    if last is None:
        raise nothing_decoded(source, window, damage, anything=damage.packets > damage.bad)
    covered_s = last.end if window.length is None else min(last.end, window.length)
    check_damage(source, window, window.start + covered_s, damage)
    return covered_s


def note_decoding(source: Source, decoder: str, damage: Damage) -> dict[str, float | int | str]:
    """What decoding met, for `Media.notes`."""
    return {
        "decoder": decoder,
        "source_fps": round(float(source.rate), 6),
        "corrupt_frames": damage.bad,
    }


# --- frames --------------------------------------------------------------------------------------


class FrameCollector:
    """Pictures of each second, `wants.fps` of them, resized, then cropped.

    Sampled by time, they are those on screen at the instants (i + 1/2) / fps from the start of the
    clip; the first one of the file if there is none yet, but some come in that second. Instants in
    seconds before the first picture, past the end of the media or of the clip give nothing. Media
    that end before the first instant give their last picture.

    Sampled by count, they are chosen by `pick_by_count` from all n pictures of the clip, for the T
    seconds from the first picture to what the media reach. n is counted by decoding, as what a file
    says of itself is not to be trusted, and every picture is held, resized, until the last one has
    come. The frame i of second l is given the time l + (i + 1/2) / fps, wherever it lay.
    """

    def __init__(self, clip: Clip, wants: FrameInput, reading: Reading) -> None:  # noqa: D107
        self._wants, self._decoder = wants, reading.decoder
        self._window = Window.of(clip)
        self._by_count = wants.sampling == "count"
        self._instants: Iterator[Fraction] = iter(())
        self._instant: Fraction | None = None
        self._units: list[NDArray[np.uint8]] = []
        self._times: list[Fraction] = []
        self._shape: tuple[int, ...] = (0, 0)
        self._last: Picture | None = None
        self._begin_s: Fraction | None = None

    def find_kept(self) -> Media | None:
        """Nothing: frames are not kept from run to run."""
        return None

    def take(self, picture: Picture, source: Source) -> None:
        """Look at the next picture of the clip."""
        self._last = picture
        if self._begin_s is None:
            self._begin_s = picture.start
            first_s = skip_seconds(picture.start)
            self._instants = iter_instants(self._window, self._wants.fps, first_s)
            self._instant = next(self._instants, None)
        if self._by_count:
            self._add(self._cut(picture, source), picture.start, source)
            return
        unit: NDArray[np.uint8] | None = None
        while self._instant is not None and self._instant < picture.end:
            unit = self._cut(picture, source) if unit is None else unit
            self._add(unit, self._instant, source)
            self._instant = next(self._instants, None)

    def finish(self, source: Source, damage: Damage) -> Media:
        """The frames, once the last picture was seen."""
        window, fps = self._window, self._wants.fps
        covered_s = find_covered_s(source, window, self._last, damage)
        steps = count_steps(float(window.length or covered_s))
        reached = min(steps, count_steps(float(covered_s)))
        assert self._last is not None
        assert self._begin_s is not None
        first = find_first_second(self._begin_s, covered_s, steps)
        if first is None:
            raise too_short(source)
        if self._by_count:
            kept = pick_by_count(len(self._units), max(1, reached - first), fps)
            times_s = first + (np.arange(len(kept)) + 0.5) / fps
        else:
            if not self._units:
                middle = Fraction(2 * first + 1, 2)
                start = max(self._last.start, Fraction(first))
                start = start if start < first + 1 else middle
                self._add(self._cut(self._last, source), start, source)
            kept = [i for i, time in enumerate(self._times) if time < steps]
            times_s = np.array([float(self._times[i]) for i in kept])
        # Seconds before the first picture are rows, too.
        check_unit_bytes(source, (len(kept) + first * fps) * self._units[0].nbytes)
        height, width = self._shape
        notes = note_decoding(source, self._decoder, damage)
        return Media(
            units=np.stack([self._units[i] for i in kept]),
            times_s=times_s,
            duration_s=float(covered_s),
            steps=steps,
            notes={**notes, "height": height, "width": width},
        )

    def _cut(self, picture: Picture, source: Source) -> NDArray[np.uint8]:
        wants, full = self._wants, picture.load()
        self._shape = full.shape[:2]
        if wants.crop is None:
            is_large = isinstance(wants.resize, int) and min(self._shape) > wants.resize
            return (
                resize(full, wants.resize, wants.interpolation, source.name) if is_large else full
            )
        return center_crop(resize(full, wants.resize, wants.interpolation, source.name), wants.crop)

    def _add(self, unit: NDArray[np.uint8], time: Fraction, source: Source) -> None:
        self._units.append(unit)
        self._times.append(time)
        check_unit_bytes(source, len(self._units) * unit.nbytes)


class ClipCollector(FrameCollector):
    """Windows of frames, of each second that has some: those next to its middle.

    With F frames a second, sampled by time, the window of second s begins at the frame
    s F + (F - frames) // 2, counted from the start of the clip.
    """

    def __init__(self, clip: Clip, wants: ClipInput, reading: Reading) -> None:  # noqa: D107
        super().__init__(clip, wants, reading)
        self._frames = wants.frames

    def finish(self, source: Source, damage: Damage) -> Media:
        """The windows, once the last picture was seen."""
        media, fps = super().finish(source, damage), self._wants.fps
        frames = np.asarray(media.units)
        seconds = np.unique(media.times_s.astype(np.int64))
        check_unit_bytes(source, len(seconds) * self._frames * frames[0].nbytes)
        begin = int(media.times_s[0] * fps)
        first = seconds * fps + (fps - self._frames) // 2 - begin
        place = np.clip(first[:, None] + np.arange(self._frames), 0, len(frames) - 1)
        return replace(media, units=frames[place], times_s=seconds + np.float64(0.5))


def pick_by_count(pictures: int, seconds: int, per_second: int) -> list[int]:
    """Which pictures stand for each second, by their number alone, as the AVE data set has it.

    With n = pictures // seconds, frame i of second l is picture l n + i n / per_second, rounded
    down. The pictures % seconds last ones are never picked. Of fewer pictures than seconds, only
    the first one is.

    Args:
        pictures: How many there are.
        seconds: T; AVE's clips have ten.
        per_second: Frames of each second; a picture may serve more than once.

    Returns:
        (seconds * per_second) indices, second by second.

    Reference: Tian et al., Audio-Visual Event Localization in Unconstrained Videos, ECCV 2018, and
    the authors' scripts. Differs: any whole number of seconds.
    """
    interval = pictures // seconds
    return [
        int(second * interval + i / per_second * interval)
        for second in range(seconds)
        for i in range(per_second)
    ]
