"""Readers: from a manifest row to the units of media that backbones want.

A reader is registered under the `kind` of the input specs that it serves, and serves several at
once: each stream of a file is decoded once, however many backbones look at it. Everything that is
wrong with a clip's media comes out as a `DecodeError` whose code is in `DECODE_ERRORS`; a reader
never hangs on a pipe, leaves the media root or decodes past the end of the clip.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol, TypeVar

import av
import numpy as np

from micu.base.errors import ConfigError, DecodeError
from micu.base.registry import Registry
from micu.store.manifest import Clip
from micu_extract.backbones.base import (
    FlowInput,
    InputSpec,
    Media,
    TextInput,
    WaveformInput,
    count_steps,
    find_real_steps,
    versions_of,
)
from micu_extract.media.damage import Damage, check_damage, check_unit_bytes, too_short
from micu_extract.media.decord_pictures import read_pictures_with_decord
from micu_extract.media.flow import FlowCollector
from micu_extract.media.frames import ClipCollector, FrameCollector
from micu_extract.media.media_file import IO_ERROR, may_pass
from micu_extract.media.pictures import PICTURE_READERS, Picture, open_pictures
from micu_extract.media.sound import cut_windows, read_mono
from micu_extract.media.source import Reading, Source, Window, is_denied
from micu_extract.media.stills import open_source

T = TypeVar("T")
Found = Media | DecodeError
Reader = Callable[[Clip, Sequence[Any], Reading], list[Found]]
READERS: Registry[Reader] = Registry("reader")

PICTURE_READERS.register("decord")(read_pictures_with_decord)

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
    outcome = read_several(clip, {"": wants}, reading)[""]
    if isinstance(outcome, DecodeError):
        raise outcome
    return outcome


def read_several(clip: Clip, wants: Mapping[str, InputSpec], reading: Reading) -> dict[str, Found]:
    """Decode a clip once for several backbones.

    Args:
        clip: Manifest row.
        wants: What to sample, and how, by name.
        reading: Where media lie, and with what they are read.

    Returns:
        By the same names: units, or why there are none. Equal to what `read` gives for each alone.

    Raises:
        RegistryError: No such decoder.
        ConfigError: That decoder does not read what is wanted.
        ExtraError: That decoder is not installed.
    """
    together: dict[Reader, list[str]] = {}
    for name, spec in wants.items():
        together.setdefault(READERS[spec.kind], []).append(name)
    outcomes: dict[str, Found] = {}
    for reader, names in together.items():
        found = _read_safely(reader, clip, [wants[name] for name in names], reading)
        outcomes.update(zip(names, found, strict=True))
    return outcomes


def _read_safely(
    reader: Reader, clip: Clip, wants: Sequence[InputSpec], reading: Reading
) -> list[Found]:
    """What a reader gives; an error of the media is one for each of `wants`."""
    try:
        return reader(clip, wants, reading)
    except DecodeError as error:
        failed = error
    except MemoryError:  # FFmpeg's is an OSError too
        failed = DecodeError("too_large", f"{clip.path!r}: does not fit in memory")
    except (av.error.FFmpegError, OSError) as error:
        code = "permission" if is_denied(error) else "unreadable"
        failed = DecodeError(IO_ERROR if may_pass(error) else code, f"{clip.path!r}: {error}")
    return [failed for _ in wants]


def describe_reading(wants: InputSpec, reading: Reading) -> tuple[dict[str, Any], dict[str, str]]:
    """JSON form of how media are read, for the shard header, and the versions of what reads them.

    Args:
        wants: What is sampled, which may differ from what the backbone was built with.
        reading: With what.

    Raises:
        MicuError: What computes optical flow is not installed.
        WeightsError: The weights of a flow network cannot be had or do not fit.
    """
    if isinstance(wants, TextInput):
        return {}, {}
    versions: dict[str, str] = {}
    described: dict[str, Any] = {"input": asdict(wants), "decoder": reading.decoder}
    if reading.decoder == "decord":  # PyAV is in the backbone's own list
        versions |= versions_of("decord", "decord2", "eva-decord")
        described["times"] = "pyav"  # sets without it may hold other pictures
    if isinstance(wants, FlowInput):
        flow = reading.flow.describe()
        versions |= flow.pop("versions")
        described["flow"] = flow
    return described, versions


class PictureCollector(Protocol):
    """Something that makes units of the pictures of a clip, which it is shown one by one."""

    def find_kept(self) -> Media | None:
        """The units, if an earlier run kept them: then no media need be opened."""
        ...

    def take(self, picture: Picture, source: Source) -> None:
        """Look at the next picture of the clip."""
        ...

    def finish(self, source: Source, damage: Damage) -> Media:
        """The units, once the last picture was seen."""
        ...


COLLECTORS: Mapping[str, Callable[[Clip, Any, Reading], PictureCollector]] = {
    "frames": FrameCollector,
    "clips": ClipCollector,
    "flow": FlowCollector,
}
"""By the kind of the input spec."""


@READERS.register("frames")
@READERS.register("clips")
@READERS.register("flow")
def read_pictures_once(clip: Clip, wants: Sequence[InputSpec], reading: Reading) -> list[Found]:
    """Frames and flow of a clip's pictures, which are decoded once."""
    collectors = [COLLECTORS[spec.kind](clip, spec, reading) for spec in wants]
    outcomes: list[Found | None] = [collector.find_kept() for collector in collectors]
    if all(outcomes):
        return [outcome for outcome in outcomes if outcome is not None]
    damage = Damage()
    source, pictures = open_pictures(clip, reading, damage)
    with source:
        for picture in pictures:
            # Two backbones must not convert one picture twice.
            shown = replace(picture, load=functools.cache(picture.load))
            for i, collector in enumerate(collectors):
                outcomes[i] = outcomes[i] or _try(collector.take, shown, source)
            if all(outcomes):
                break
        return [
            _try(collector.finish, source, damage) if outcome is None else outcome
            for outcome, collector in zip(outcomes, collectors, strict=True)
        ]


def _try(step: Callable[..., T], *given: Any) -> T | DecodeError:
    """What a step of a collector gives, or why it cannot go on."""
    try:
        return step(*given)
    except DecodeError as error:
        return error


@READERS.register("waveform")
def read_sound_once(clip: Clip, wants: Sequence[WaveformInput], reading: Reading) -> list[Found]:
    """Mono sound at each `sample_rate`, in windows of each `window_s` seconds; decoded once.

    Cut to the manifest's window at the file's own rate, exact to the sample, then resampled: what
    lies outside the clip cannot be heard in it. The last window is shorter where the sound ends.
    Where it begins late, or has gaps, there is silence, and seconds of which it fills less than
    0.1 s are not real.
    """
    if reading.decoder != "pyav":
        raise ConfigError(
            f"decoder {reading.decoder!r} reads pictures only; sound is read with 'pyav'"
        )
    window, damage = Window.of(clip), Damage()
    with open_source(clip, reading.media_root, "audio") as source:
        sound = read_mono(source, window, damage)
        for spec in wants:
            check_unit_bytes(source, 4 * int(sound.duration_s * spec.sample_rate))
        check_damage(source, window, window.start + sound.duration_s, damage)
        notes: dict[str, float | int | str] = {
            "source_rate": sound.rate,
            "source_channels": sound.channels,
            "corrupt_frames": damage.bad,
        }
        steps = count_steps(float(window.length or sound.duration_s))
        real = find_real_steps(sound.parts, steps, sound.rate)
        if not real.any():
            raise too_short(source)
    outcomes: list[Found] = []
    for spec in wants:
        waveform = sound.resampled(spec.sample_rate)[: steps * spec.sample_rate]
        units, times_s = cut_windows(waveform, spec.sample_rate, spec.window_s)
        outcomes.append(Media(units, times_s, float(sound.duration_s), steps, notes, real))
    return outcomes


@READERS.register("text")
def read_text(clip: Clip, wants: Sequence[TextInput], reading: Reading) -> list[Found]:
    """The text of the manifest row; a single unit without a place in time."""
    if not clip.text.strip():
        raise DecodeError("no_text", f"clip {clip.clip_id!r}: the manifest's text is empty")
    return [Media([clip.text], np.empty(0), 0.0, 1) for _ in wants]
