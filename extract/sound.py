"""Sound of a clip: one channel at the file's own rate, cut to the sample, then resampled."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from extract.media import Source, Window
from extract.streams import Damage, check_unit_bytes, decode_sound, nothing_decoded
from micu.errors import DecodeError

_JUMP_S = 0.1
"""A time stamp that differs by less from where the samples are is jitter, not a gap."""
_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63, "flt": 1.0, "dbl": 1.0}


@dataclass(frozen=True, slots=True)
class Mono:
    """One channel of sound."""

    samples: NDArray[np.float32]
    """(S,), in [-1, 1]"""
    rate: int
    """Hz"""
    channels: int
    """How many the file had."""

    @property
    def duration_s(self) -> Fraction:
        """Length, s."""
        return Fraction(len(self.samples), self.rate)

    def resampled(self, rate: int) -> NDArray[np.float32]:
        """The samples at another rate, Hz, clipped to [-1, 1]; the length is rounded."""
        samples = _resample(self.samples, self.rate, rate)
        wanted = max(1, round(self.duration_s * rate))
        padded = np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))
        return np.clip(padded, -1.0, 1.0)


def read_mono(source: Source, window: Window, damage: Damage) -> Mono:
    """Decode the sound of a window.

    Samples follow one another as they are decoded. Where a time stamp is more than 0.1 s later than
    that, the gap is filled with silence; an earlier one is ignored.

    Raises:
        DecodeError: Nothing lies in the window, it is too long, or holds NaN or infinity.
    """
    chunks: list[NDArray[np.float32]] = []
    rate = channels = cursor = taken = 0
    anything, length = False, None
    start_s, length_s = window.start, window.length
    for time, frame in decode_sound(source, window.start, damage):
        samples = _mix_down(frame)
        if not anything:
            rate, channels, anything = frame.sample_rate, frame.layout.nb_channels, True
            cursor = 0 if time is None else round((time - start_s) * rate)
            length = None if length_s is None else round(length_s * rate)
        if frame.sample_rate != rate:
            samples = _resample(samples, frame.sample_rate, rate)
        if time is not None and float(time) - float(start_s) - cursor / rate > _JUMP_S:
            cursor = round((time - start_s) * rate)
        end = cursor + len(samples) if length is None else min(cursor + len(samples), length)
        if end > max(cursor, 0):
            silence = max(cursor, 0) - taken
            check_unit_bytes(source, 4 * end)
            if silence:
                chunks.append(np.zeros(silence, np.float32))
            chunks.append(samples[max(0, -cursor) : end - cursor])
            damage.good += 1
            taken = end
        cursor += len(samples)
        if length is not None and cursor >= length:
            break
    if not taken:
        raise nothing_decoded(source, window, damage, anything=anything)
    mono = np.concatenate(chunks)
    if not np.isfinite(mono).all():
        raise DecodeError("non_finite", f"{source.name}: the sound holds NaN or infinity")
    return Mono(mono, rate, channels)


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


def _mix_down(frame: Any) -> NDArray[np.float32]:
    """One channel of a decoded frame, (S,), in [-1, 1]."""
    kind = frame.format.name.removesuffix("p")
    channels = frame.layout.nb_channels
    if kind == "flt" and frame.format.is_planar:  # AAC, MP3, Opus and Vorbis: nothing to convert
        planes = [np.frombuffer(plane, np.float32, frame.samples) for plane in frame.planes]
        return mix_weights(frame.layout.name, channels) @ np.stack(planes)
    raw = frame.to_ndarray()
    planes = raw if frame.format.is_planar else raw.reshape(-1, channels).T
    middle = 128.0 if kind == "u8" else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = ((planes - middle) / _FULL_SCALE[kind]).astype(np.float32)
        mono: NDArray[np.float32] = mix_weights(frame.layout.name, channels) @ scaled
    return mono


@cache
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


def _resample(samples: NDArray[np.float32], source_rate: int, rate: int) -> NDArray[np.float32]:
    """FFmpeg's resampler, (S,) to (about S * rate / source_rate,)."""
    if rate == source_rate or not len(samples):
        return samples
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = source_rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([np.zeros(0, np.float32), *(part.to_ndarray()[0] for part in parts)])
