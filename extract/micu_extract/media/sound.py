"""Sound of a clip: one channel at the file's own rate, cut to the sample, then resampled."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane
from numpy.typing import NDArray

from micu.base.errors import DecodeError
from micu_extract.media.damage import (
    Damage,
    check_gap,
    check_unit_bytes,
    decode_sound,
    nothing_decoded,
)
from micu_extract.media.source import Source, Window

_JUMP_S = Fraction(1, 10)
"""A time stamp that differs by no more from where the samples are is jitter; more is followed."""
_NEAR_S = 0.09
"""What differs by less is jitter without counting exactly."""
_MIN_PACE = Fraction(1, 2)
"""Stamps that go on at less than this part of the samples' own pace are not followed back."""
_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63, "flt": 1.0, "dbl": 1.0}
_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Mono:
    """One channel of sound."""

    samples: Samples
    """(S,), in [-1, 1] unless the file's own go beyond."""
    rate: int
    """Hz"""
    channels: int
    """How many the file had."""
    parts: tuple[tuple[int, int], ...]
    """First sample and end of each part that the file holds; the rest is silence in its place."""

    @property
    def duration_s(self) -> Fraction:
        """Length, s."""
        return Fraction(len(self.samples), self.rate)

    def resampled(self, rate: int) -> Samples:
        """The samples at another rate, Hz, clipped to [-1, 1]; the length is rounded."""
        converter = _Converter(rate)
        samples = np.concatenate([converter.convert(self.samples, self.rate), converter.flush()])
        wanted = max(1, round(self.duration_s * rate))
        padded = np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))
        clipped: Samples = np.clip(padded, -1.0, 1.0)
        return clipped


def read_mono(source: Source, window: Window, damage: Damage) -> Mono:
    """Decode the sound of a window.

    Samples follow one another as they are decoded. Where a time stamp is more than 0.1 s from that,
    they go on where it says: a gap is silent, and of what comes twice the first is kept. A stamp
    that the next one contradicts is damage and not followed. Stamps that run backwards or stand
    still have begun anew: the sound goes on, and they count from there.

    Raises:
        DecodeError: Nothing lies in the window, it is too long, or holds NaN or infinity.
    """
    track: _Track | None = None
    for time, frame, next_time in _look_ahead(decode_sound(source, window.start, damage)):
        if track is None:
            track = _Track(source, window, frame)
        damage.good += track.add(frame, time, next_time)
        if track.is_full:
            break
    if track is not None:
        damage.good += track.finish()
    if track is None or not track.parts:
        raise nothing_decoded(source, window, damage, anything=track is not None)
    mono = Mono(np.concatenate(track.chunks), track.rate, track.channels, tuple(track.parts))
    if not np.isfinite(mono.samples).all():
        raise DecodeError("non_finite", f"{source.name}: the sound holds NaN or infinity")
    return mono


class _Track:
    """The samples of a window, laid where their time stamps say; all are at the first one's rate.

    Places are counted in samples from the start of the window, and may lie before it.
    """

    def __init__(self, source: Source, window: Window, first: Any) -> None:
        self.rate: int = first.sample_rate
        self.channels: int = first.layout.nb_channels
        self.chunks: list[Samples] = []
        self.parts: list[tuple[int, int]] = []
        self._source, self._window, self._start_s = source, window, window.start
        self._length = None if window.length is None else round(window.length * self.rate)
        self._offset_s = float(window.start)
        self._jump = _JUMP_S * self.rate
        self._converter = _Converter(self.rate)
        self._end = 0
        """How much of the window is laid."""
        self._cursor: int | None = None
        """Where the next sample goes."""
        self._ahead = Fraction(0)
        """How far stamps that began anew are from where their samples go."""
        self._followed = Fraction(0), 0
        """The last stamp that was followed, and where its sample went."""

    @property
    def is_full(self) -> bool:
        """Whether the end of the window is reached."""
        at = self._cursor or 0
        return self._length is not None and at >= self._length

    def add(self, frame: Any, time: Fraction | None, next_time: Fraction | None) -> bool:
        """Lay the samples of a frame; whether some lie in the window.

        Args:
            frame: At least one sample.
            time: Its time, s from the start of the file, if it has one.
            next_time: That of the frame after it.
        """
        check_unit_bytes(self._source, 4 * frame.samples * self.rate // frame.sample_rate)
        if self._cursor is None:
            self._go_to(Fraction(0) if time is None else self._place(time))
        elif time is not None and not self._is_near(time):
            size = Fraction(frame.samples * self.rate, frame.sample_rate)
            after = None if next_time is None else self._place(next_time)
            self._follow(self._place(time), after, size)
        return self._lay(self._converter.convert(_mix_down(frame), frame.sample_rate))

    def finish(self) -> bool:
        """Lay what is held back; whether some of it lies in the window."""
        return self._lay(self._converter.flush())

    def _place(self, time: Fraction) -> Fraction:
        return (time - self._start_s) * self.rate

    def _is_near(self, time: Fraction) -> bool:
        """Whether a stamp is jitter, beyond doubt: fractions take too long for every frame."""
        assert self._cursor is not None
        at_s = (self._cursor + float(self._ahead)) / self.rate
        return abs(float(time) - self._offset_s - at_s) < _NEAR_S

    def _go_to(self, place: Fraction) -> None:
        self._cursor = round(place - self._ahead)
        self._followed = place, self._cursor

    def _follow(self, place: Fraction, after: Fraction | None, size: Fraction) -> None:
        """Go where a stamp says, unless it is jitter, damage, or begins anew."""
        assert self._cursor is not None
        late = place - self._ahead - self._cursor
        if abs(late) <= self._jump:
            return
        if after is not None and abs(after - self._ahead - size - self._cursor) <= self._jump:
            return
        stamp, at = self._followed
        if self._ahead and abs(place - self._cursor) <= self._jump:
            self._ahead = Fraction(0)
        elif late < 0 and place - stamp < _MIN_PACE * (self._cursor - at):
            self._ahead = place - self._cursor
        else:
            self._lay(self._converter.flush())
        self._go_to(place)

    def _lay(self, samples: Samples) -> bool:
        assert self._cursor is not None
        start, end = self._cursor, self._cursor + len(samples)
        self._cursor = end
        if self._length is not None:
            end = min(end, self._length)
        first = max(start, self._end)
        if first >= end:
            return False
        if first > self._end:
            lacks = (Fraction(place, self.rate) for place in (self._end, first))
            check_gap(self._source, self._window, *lacks)
        check_unit_bytes(self._source, 4 * end)
        if first > self._end or not self.parts:
            self.chunks.append(np.zeros(first - self._end, np.float32))
            self.parts.append((first, first))
        self.chunks.append(samples[first - start : end - start])
        self.parts[-1] = self.parts[-1][0], end
        self._end = end
        return True


def _look_ahead(
    frames: Iterable[tuple[Fraction | None, Any]],
) -> Iterator[tuple[Fraction | None, Any, Fraction | None]]:
    """Each frame that holds something, with its time and that of the next one."""
    held: tuple[Fraction | None, Any] | None = None
    for time, frame in frames:
        if not frame.samples or not frame.sample_rate:
            continue
        if held is not None:
            yield *held, time
        held = time, frame
    if held is not None:
        yield *held, None


def cut_windows(
    waveform: NDArray[np.float32], rate: int, window_s: float
) -> tuple[list[NDArray[np.float32]], NDArray[np.float64]]:
    """Cut a waveform into windows; the last one may be shorter.

    Args:
        waveform: (S,).
        rate: Hz.
        window_s: Length of a window, s.

    Returns:
        The windows, and the middle of each, (U,), s.
    """
    size = round(window_s * rate)
    starts = range(0, len(waveform), size)
    windows = [waveform[start : start + size] for start in starts]
    middles = [start + len(part) / 2 for start, part in zip(starts, windows, strict=True)]
    return windows, np.array(middles) / rate


def _mix_down(frame: Any) -> Samples:
    """One channel of a decoded frame, (S,), in [-1, 1] unless its own samples go beyond."""
    kind, channels = frame.format.name.removesuffix("p"), frame.layout.nb_channels
    weights = mix_weights(frame.layout.name, channels)
    # `frame.planes` reads past the last plane where there are eight or more.
    if frame.format.is_planar:
        each = [_read_plane(frame, i, kind, frame.samples) for i in range(channels)]
        planes = np.stack(each)
    else:
        planes = _read_plane(frame, 0, kind, frame.samples * channels).reshape(-1, channels).T
    mono: Samples
    if kind == "flt" and frame.format.is_planar:  # AAC, MP3, Opus and Vorbis: nothing to convert
        mono = weights @ planes
        return mono
    middle = 128.0 if kind == "u8" else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = ((planes - middle) / _FULL_SCALE[kind]).astype(np.float32)
        mono = weights @ scaled
    return mono


def _read_plane(frame: Any, index: int, kind: str, count: int) -> NDArray[Any]:
    """Numbers of one plane of a frame, (count,); not copied."""
    plane: Any = AudioPlane(frame, index)
    return np.frombuffer(plane, _TYPES[kind], count)


@lru_cache(maxsize=256)
def mix_weights(layout: str, channels: int) -> NDArray[np.float32]:
    """Weight of each channel in the mono mix, (C,).

    FFmpeg's own matrix, found by mixing one unit sample per channel, and scaled down so that the
    weights never sum to more than one, which FFmpeg does for integer output: full scale in every
    channel stays full scale. Channels whose places are unknown weigh the same.
    """
    units = np.eye(channels, dtype=np.float32).reshape(1, -1)
    try:
        frame = av.AudioFrame.from_ndarray(units, format="flt", layout=layout)
        frame.sample_rate = 48000
        mixer = av.AudioResampler(format="fltp", layout="mono", rate=48000)
        weights = np.concatenate([part.to_ndarray()[0] for part in mixer.resample(frame)])
    except (av.error.FFmpegError, ValueError):
        weights = np.zeros(0, np.float32)
    if weights.shape != (channels,) or not weights.any():
        return np.full(channels, 1.0 / channels, np.float32)
    return (weights / max(1.0, float(np.abs(weights).sum()))).astype(np.float32)


class _Converter:
    """FFmpeg's resampler to one rate: what comes at another one is one signal until that changes.

    Args:
        rate: Of what comes out, Hz.
    """

    def __init__(self, rate: int) -> None:
        self._rate = self._source_rate = rate
        self._resampler: Any = None

    def convert(self, samples: Samples, source_rate: int) -> Samples:
        """(S,) to (about S * rate / source_rate,); a few samples are held back, and come later."""
        held = self.flush() if source_rate != self._source_rate else np.zeros(0, np.float32)
        self._source_rate = source_rate
        if source_rate == self._rate:
            return np.concatenate([held, samples]) if len(held) else samples
        if self._resampler is None:
            self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=self._rate)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = source_rate
        converted = self._resampler.resample(frame)
        return np.concatenate([held, *(part.to_ndarray()[0] for part in converted)])

    def flush(self) -> Samples:
        """What is held back."""
        held = [] if self._resampler is None else self._resampler.resample(None)
        self._resampler = None
        return np.concatenate([np.zeros(0, np.float32), *(part.to_ndarray()[0] for part in held)])
