"""Readers: from a manifest row to the units of media that a backbone wants.

A reader is registered under the `kind` of the input specs that it serves. Everything that is wrong
with a clip's media comes out as a `DecodeError` whose code is in `DECODE_ERRORS`; a reader never
hangs on a pipe, leaves the media root or decodes past the end of the clip.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import count, takewhile
from pathlib import Path
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
from extract.flow import STILL, TVL1_PARAMETERS, quantize_flow, tvl1_flow
from extract.media import DECODE_ERRORS, Source, Window
from extract.pictures import (
    PICTURE_READERS,
    Picture,
    center_crop,
    fit_short_side,
    open_pictures,
    resize,
)
from extract.sound import cut_windows, read_mono
from extract.streams import Damage, check_damage, check_unit_bytes, nothing_decoded
from micu.errors import ConfigError, DecodeError
from micu.manifest import Clip
from micu.registry import Registry

__all__ = ["DECODERS", "DECODE_ERRORS", "READERS", "describe_reading", "read"]

Reader = Callable[[Clip, Any, Path, str], Media]
READERS: Registry[Reader] = Registry("reader")

DECODERS = tuple(PICTURE_READERS)
"""Names of what can decode pictures; the first is the default."""


def read(clip: Clip, wants: InputSpec, media_root: Path, decoder: str = "pyav") -> Media:
    """Decode a clip to the units that a backbone wants.

    Safe to call from several threads at once.

    Args:
        clip: Manifest row.
        wants: What to sample, and how.
        media_root: Folder that `clip.path` is relative to.
        decoder: One of `DECODERS`; sound and text know `pyav` only.

    Returns:
        At least one unit.

    Raises:
        DecodeError: The clip's media cannot be used; the only error that media can cause.
        RegistryError: No such decoder.
        ConfigError: That decoder does not read what is wanted.
        ExtraError: That decoder is not installed.
    """
    try:
        return READERS[wants.kind](clip, wants, media_root, decoder)
    except DecodeError:
        raise
    except (av.error.PermissionError, PermissionError) as error:
        raise DecodeError("permission", f"{clip.path!r}: {error}") from error
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError("unreadable", f"{clip.path!r}: {error}") from error
    except MemoryError as error:
        raise DecodeError("too_large", f"{clip.path!r}: does not fit in memory") from error


def describe_reading(wants: InputSpec, decoder: str) -> dict[str, Any]:
    """JSON form of how media are read, for the shard header."""
    if isinstance(wants, TextInput):
        return {}
    flow = {"tvl1": dict(TVL1_PARAMETERS)} if isinstance(wants, FlowInput) else {}
    return {"decoder": decoder, **flow}


@READERS.register("frames")
def read_frames(clip: Clip, wants: FrameInput, media_root: Path, decoder: str) -> Media:
    """Pictures at `wants.fps` instants of each second, resized, then cropped.

    The instants are (i + 1/2) / fps from the start of the clip; each gives the picture on screen
    then, the first one of the file if there is none yet. Instants past the end of the media or of
    the clip give nothing. Media that end before the first instant give their last picture.
    """
    window, damage = Window.of(clip), Damage()
    units: list[NDArray[np.uint8]] = []
    times: list[Fraction] = []
    last: Picture | None = None
    shape = (0, 0)

    def load(picture: Picture) -> NDArray[np.uint8]:
        nonlocal shape
        full = picture.load()
        shape = full.shape[:2]
        return center_crop(resize(full, wants.resize, wants.interpolation, source.name), wants.crop)

    source, pictures = open_pictures(clip, media_root, decoder, damage)
    with source:
        instants = _instants(window, wants.fps)
        instant = next(instants, None)
        for picture in pictures:
            last = picture
            unit: NDArray[np.uint8] | None = None
            while instant is not None and instant < picture.end:
                unit = load(picture) if unit is None else unit
                units.append(unit)
                times.append(instant)
                check_unit_bytes(source, len(units) * unit.nbytes)
                instant = next(instants, None)
        covered_s = _covered(source, window, last, damage)
        if not units and last is not None:
            units, times = [load(last)], [max(last.start, Fraction(0))]
        steps = count_steps(float(window.length or covered_s))
        kept = [i for i, time in enumerate(times) if time < steps]
        notes = {**_notes(source, decoder, damage), "height": shape[0], "width": shape[1]}
    return Media(
        units=np.stack([units[i] for i in kept]),
        times_s=np.array([float(times[i]) for i in kept]),
        duration_s=float(covered_s),
        steps=steps,
        notes=notes,
    )


@READERS.register("flow")
def read_flow(clip: Clip, wants: FlowInput, media_root: Path, decoder: str) -> Media:
    """Clips of quantised TV-L1 flow, one centred on each second that the media reach.

    Field k of a clip starts at picture c + (k - L // 2) * interval, where c is the picture whose
    time is nearest to the middle of the second; pictures are counted within the manifest's window
    and clamped to it, as mmaction2's `UntrimmedSampleFrames` does. A field is the displacement from
    a picture to the next one. Decoded pictures become gray, then are resized (bilinear) if their
    short side is larger than wanted, which is denseflow's order; the field is computed on the whole
    picture, quantised and cropped. Pictures smaller than the crop are padded with stillness.
    """
    window, damage = Window.of(clip), Damage()
    grays: list[NDArray[np.uint8]] = []
    starts: list[Fraction] = []
    last: Picture | None = None
    source, pictures = open_pictures(clip, media_root, decoder, damage)
    with source:
        for picture in pictures:
            last = picture
            grays.append(_to_gray(picture.load(), wants.resize, grays))
            starts.append(picture.start)
            check_unit_bytes(source, len(grays) * grays[0].nbytes)
        covered_s = _covered(source, window, last, damage)
        if len(grays) < 2:
            raise DecodeError("too_short", f"{source.name}: one picture; flow needs two")
        steps = count_steps(float(window.length or covered_s))
        reached_s = min(covered_s, Fraction(steps))
        centres = [*takewhile(lambda instant: instant < reached_s, _instants(window, 1))]
        centres = centres or [covered_s / 2]
        check_unit_bytes(source, len(centres) * wants.clip_len * wants.crop**2 * 2)
        notes = _notes(source, decoder, damage)
    fields = [_field_starts(starts, centre, wants) for centre in centres]
    pairs = sorted({pair for clip_fields in fields for pair in clip_fields})
    flows = {
        pair: center_crop(
            quantize_flow(tvl1_flow(grays[pair], grays[pair + 1]), wants.bound), wants.crop, STILL
        )
        for pair in pairs
    }
    return Media(
        units=np.stack([np.stack([flows[pair] for pair in clip_fields]) for clip_fields in fields]),
        times_s=np.array([float(centre) for centre in centres]),
        duration_s=float(covered_s),
        steps=steps,
        notes={**notes, "pairs": len(pairs)},
    )


@READERS.register("waveform")
def read_waveform(clip: Clip, wants: WaveformInput, media_root: Path, decoder: str) -> Media:
    """Mono sound at `wants.sample_rate`, in windows of `wants.window_s` seconds.

    Cut to the manifest's window at the file's own rate, exact to the sample, then resampled: what
    lies outside the clip cannot be heard in it. The last window is shorter where the sound ends.
    """
    if decoder != "pyav":
        raise ConfigError(f"decoder {decoder!r} reads pictures only; sound is read with 'pyav'")
    window, damage = Window.of(clip), Damage()
    with Source(clip, media_root, "audio") as source:
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
def read_text(clip: Clip, wants: TextInput, media_root: Path, decoder: str) -> Media:
    """The text of the manifest row; a single unit without a place in time."""
    if not clip.text.strip():
        raise DecodeError("no_text", f"clip {clip.clip_id!r}: the manifest's text is empty")
    return Media([clip.text], np.empty(0), 0.0, 1)


def _instants(window: Window, per_second: int) -> Iterator[Fraction]:
    """Middles of the parts of each second of a window, s from its start."""
    for i in count():
        instant = Fraction(2 * i + 1, 2 * per_second)
        if window.length is not None and instant >= window.length:
            return
        yield instant


def _covered(source: Source, window: Window, last: Picture | None, damage: Damage) -> Fraction:
    """How much of the window the pictures cover, s, after judging their damage."""
    if last is None:
        raise nothing_decoded(source, window, damage, anything=damage.packets > damage.bad)
    covered_s = last.end if window.length is None else min(last.end, window.length)
    check_damage(source, window, window.start + covered_s, damage)
    return covered_s


def _notes(source: Source, decoder: str, damage: Damage) -> dict[str, float | int | str]:
    return {
        "decoder": decoder,
        "source_fps": round(float(source.rate), 6),
        "corrupt_frames": damage.bad,
    }


def _field_starts(starts: list[Fraction], centre: Fraction, wants: FlowInput) -> list[int]:
    """Index of the first picture of each field of the clip around `centre`."""
    nearest = min(range(len(starts)), key=lambda i: abs(starts[i] - centre))
    offsets = (np.arange(wants.clip_len) - wants.clip_len // 2) * wants.interval
    return [int(i) for i in np.clip(nearest + offsets, 0, len(starts) - 2)]


def _to_gray(
    picture: NDArray[np.uint8], short: int, earlier: list[NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Gray picture, (H, W), with its short side at most `short` px, or as large as earlier ones."""
    import cv2

    gray: NDArray[np.uint8] = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    size = gray.shape if min(gray.shape) <= short else fit_short_side(gray.shape, short)
    height, width = earlier[0].shape if earlier else size
    if (height, width) != gray.shape:
        gray = cv2.resize(gray, (width, height), interpolation=cv2.INTER_LINEAR)
    return gray
