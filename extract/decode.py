"""Readers: from a manifest row to the units of media that a backbone wants.

A reader is registered under the `kind` of the input specs that it serves. Everything that is wrong
with a clip's media comes out as a `DecodeError` whose code is in `DECODE_ERRORS`; a reader never
hangs on a pipe, leaves the media root or decodes past the end of the clip.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from extract.backbones.base import (
    FlowInput,
    FrameInput,
    InputSpec,
    Media,
    TextInput,
    WaveformInput,
    count_steps,
)
from extract.flow.reader import read_flow
from extract.media import DECODE_ERRORS, Reading, Source, Window
from extract.pictures import (
    PICTURE_READERS,
    Picture,
    center_crop,
    open_pictures,
    resize,
)
from extract.sampling import find_covered_s, iter_instants, note_decoding
from extract.sound import cut_windows, read_mono
from extract.streams import Damage, check_damage, check_unit_bytes
from micu.errors import ConfigError, DecodeError
from micu.manifest import Clip
from micu.registry import Registry

__all__ = ["DECODERS", "DECODE_ERRORS", "READERS", "describe_reading", "read"]

Reader = Callable[[Clip, Any, Reading], Media]
READERS: Registry[Reader] = Registry("reader")

DECODERS = tuple(PICTURE_READERS)
"""Names of what can decode pictures; the first is the default."""


def read(clip: Clip, wants: InputSpec, reading: Reading) -> Media:
    """Decode a clip to the units that a backbone wants.

    Safe to call from several threads at once.

    Args:
        clip: Manifest row.
        wants: What to sample, and how.
        reading: Where media lie, and with what they are read.

    Returns:
        At least one unit.

    Raises:
        DecodeError: The clip's media cannot be used; the only error that media can cause.
        RegistryError: No such decoder.
        ConfigError: That decoder does not read what is wanted.
        ExtraError: That decoder is not installed.
    """
    try:
        return READERS[wants.kind](clip, wants, reading)
    except DecodeError:
        raise
    except (av.error.PermissionError, PermissionError) as error:
        raise DecodeError("permission", f"{clip.path!r}: {error}") from error
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError("unreadable", f"{clip.path!r}: {error}") from error
    except MemoryError as error:
        raise DecodeError("too_large", f"{clip.path!r}: does not fit in memory") from error


def describe_reading(wants: InputSpec, reading: Reading) -> dict[str, Any]:
    """JSON form of how media are read, for the shard header.

    Args:
        wants: What is sampled, which may differ from what the backbone was built with.
        reading: With what.

    Raises:
        MicuError: What computes optical flow is not installed.
        WeightsError: The weights of a flow network cannot be had or do not fit.
    """
    if isinstance(wants, TextInput):
        return {}
    described: dict[str, Any] = {"input": asdict(wants), "decoder": reading.decoder}
    if isinstance(wants, FlowInput):
        described["flow"] = reading.flow.describe()
    return described


@READERS.register("frames")
def read_frames(clip: Clip, wants: FrameInput, reading: Reading) -> Media:
    """Pictures of each second, `wants.fps` of them, resized, then cropped.

    Sampled by time, they are those on screen at the instants (i + 1/2) / fps from the start of the
    clip, the first one of the file if there is none yet. Instants past the end of the media or of
    the clip give nothing. Media that end before the first instant give their last picture.

    Sampled by count, they are chosen by `pick_by_count` from all n pictures of the clip, for the T
    seconds that the media reach. n is counted by decoding, as what a file says of itself is not to
    be trusted, and every picture is held, resized, until the last one has come. The frame i of
    second l is given the time l + (i + 1/2) / fps, wherever it lay.
    """
    window, damage = Window.of(clip), Damage()
    source, pictures = open_pictures(clip, reading, damage)
    with source:
        frames = _Frames(source, wants)
        by_count = wants.sampling == "count"
        if by_count:
            frames.take_all(pictures)
        else:
            frames.take_on_time(pictures, window)
        covered_s = find_covered_s(source, window, frames.last, damage)
        steps = count_steps(float(window.length or covered_s))
        if by_count:
            reached = min(steps, count_steps(float(covered_s)))
            kept = pick_by_count(len(frames.units), reached, wants.fps)
            times_s = (np.arange(len(kept)) + 0.5) / wants.fps
        else:
            if not frames.units and frames.last is not None:
                frames.add(frames.cut(frames.last), max(frames.last.start, Fraction(0)))
            kept = [i for i, time in enumerate(frames.times) if time < steps]
            times_s = np.array([float(frames.times[i]) for i in kept])
        check_unit_bytes(source, len(kept) * frames.units[0].nbytes)
        height, width = frames.shape
        notes = {**note_decoding(source, reading.decoder, damage), "height": height, "width": width}
    return Media(
        units=np.stack([frames.units[i] for i in kept]),
        times_s=times_s,
        duration_s=float(covered_s),
        steps=steps,
        notes=notes,
    )


@dataclass(slots=True)
class _Frames:
    """The frames of a clip, cut to size as they come."""

    source: Source
    wants: FrameInput
    units: list[NDArray[np.uint8]] = field(default_factory=list)
    times: list[Fraction] = field(default_factory=list)
    shape: tuple[int, ...] = (0, 0)
    """Height and width of the picture that was cut last, px."""
    last: Picture | None = None
    """The last picture that was decoded, taken or not."""

    def take_on_time(self, pictures: Iterable[Picture], window: Window) -> None:
        instants = iter_instants(window, self.wants.fps)
        instant = next(instants, None)
        for picture in pictures:
            self.last = picture
            unit: NDArray[np.uint8] | None = None
            while instant is not None and instant < picture.end:
                unit = self.cut(picture) if unit is None else unit
                self.add(unit, instant)
                instant = next(instants, None)

    def take_all(self, pictures: Iterable[Picture]) -> None:
        for picture in pictures:
            self.last = picture
            self.add(self.cut(picture), picture.start)

    def cut(self, picture: Picture) -> NDArray[np.uint8]:
        wants, full = self.wants, picture.load()
        self.shape = full.shape[:2]
        resized = resize(full, wants.resize, wants.interpolation, self.source.name)
        return center_crop(resized, wants.crop)

    def add(self, unit: NDArray[np.uint8], time: Fraction) -> None:
        self.units.append(unit)
        self.times.append(time)
        check_unit_bytes(self.source, len(self.units) * unit.nbytes)


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


@READERS.register("waveform")
def read_waveform(clip: Clip, wants: WaveformInput, reading: Reading) -> Media:
    """Mono sound at `wants.sample_rate`, in windows of `wants.window_s` seconds.

    Cut to the manifest's window at the file's own rate, exact to the sample, then resampled: what
    lies outside the clip cannot be heard in it. The last window is shorter where the sound ends.
    """
    if reading.decoder != "pyav":
        raise ConfigError(
            f"decoder {reading.decoder!r} reads pictures only; sound is read with 'pyav'"
        )
    window, damage = Window.of(clip), Damage()
    with Source(clip, reading.media_root, "audio") as source:
        sound = read_mono(source, window, damage)
        check_damage(source, window, window.start + sound.duration_s, damage)
        notes: dict[str, float | int | str] = {
            "source_rate": sound.rate,
            "source_channels": sound.channels,
            "corrupt_frames": damage.bad,
        }
    steps = count_steps(float(window.length or sound.duration_s))
    waveform = sound.resampled(wants.sample_rate)[: steps * wants.sample_rate]
    units, times_s = cut_windows(waveform, wants.sample_rate, wants.window_s)
    return Media(units, times_s, float(sound.duration_s), steps, notes)


@READERS.register("text")
def read_text(clip: Clip, wants: TextInput, reading: Reading) -> Media:
    """The text of the manifest row; a single unit without a place in time."""
    if not clip.text.strip():
        raise DecodeError("no_text", f"clip {clip.clip_id!r}: the manifest's text is empty")
    return Media([clip.text], np.empty(0), 0.0, 1)


READERS.register("flow")(read_flow)
