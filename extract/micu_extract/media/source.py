"""Opening a clip's media file for decoding.

Files are hostile until shown otherwise: only regular files below the media root are opened, only by
a list of container formats that never open other files, and no picture larger than a cap is ever
allocated. Times are relative to the start of the file, which is the earliest start of its sound and
pictures, whatever the file itself counts from.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av

from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.flow.methods import FlowSettings
from micu_extract.media.formats import (
    BARE,
    CONTAINERS,
    PILLOW,
    find_still,
    holds_encrypted,
    holds_one_photograph,
    is_encrypted,
)
from micu_extract.media.media_file import IO_ERROR, MediaFile, may_pass

DECODE_ERRORS = {
    "missing": "there is no such file",
    "outside_root": "the path, or the link behind it, leads out of the media root",
    "not_a_file": "a folder, a pipe or a device, not a regular file",
    "permission": "the file may not be read",
    "io_error": "the file system did not answer, three times",
    "empty": "the file holds no bytes",
    "unreadable": "not a media file of a supported format, or damaged beyond opening",
    "encrypted": "the media are encrypted, and without their key nothing but noise",
    "no_video": "the file has no moving pictures (cover art does not count)",
    "no_audio": "the file has no sound",
    "no_text": "the manifest row has no text",
    "too_large": "a picture, a clip or the shard padded to it is too large to hold in memory",
    "too_short": "fewer than two pictures, so that nothing can move; or no sound worth a step",
    "outside_media": "nothing of the clip's time lies within its media",
    "corrupt": "more than a fifth of what the clip needs is damaged or missing",
    "decoders_differ": "decord does not show the pictures that PyAV shows; take `--decoder pyav`",
    "non_finite": "the sound holds NaN or infinity",
    "unsafe_pickle": "a released file asks for more than an array; nothing of it was run",
    "bad_archive": "not a zip file with exactly one pickle of the size that it declares",
    "bad_array": "no floats of the released shape: (t, 7, 7, 512) or (t, 128)",
}
"""Every code of a `DecodeError`, with its meaning."""

MAX_PIXELS = 8192 * 4352
"""Largest picture that is decoded, px: 8K in either orientation of the cinema format."""

FORMATS = ",".join(CONTAINERS)
"""Container formats that FFmpeg opens. Playlists, concatenation scripts and devices are not."""

_PYAV = tuple(int(part) for part in av.__version__.split(".")[:2])
# Before 17.1, options for streams end the process if probing finds a stream more, as in FLV files.
_LOCKED: dict[str, Any] = {
    "options" if _PYAV >= (17, 1) else "container_options": {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "max_pixels": str(MAX_PIXELS),
    }
}
if _PYAV < (19, 0):  # which needs no telling how to take titles that are no UTF-8
    _LOCKED["metadata_errors"] = "replace"

Kind = Literal["video", "audio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Where media lie, and with what they are read; the same for every clip of a run."""

    media_root: Path
    """Folder that the manifest's paths start from."""
    decoder: str = "pyav"
    """What decodes pictures; sound and text know `pyav` only."""
    flow: FlowSettings = field(default_factory=FlowSettings)
    """How optical flow is computed, where it is."""
    flow_cache: Path | None = None
    """Folder that keeps computed flow; changes speed alone, so that no header tells of it."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a file that a clip is, s from the start of the file; exact."""

    start: Fraction
    end: Fraction | None
    """None is the end of the file."""

    @classmethod
    def of(cls, clip: Clip) -> "Window":
        """The window of a manifest row; decimals are taken as they are written."""
        start = Fraction(str(clip.start_s or 0.0))
        return cls(start, None if clip.end_s is None else Fraction(str(clip.end_s)))

    @property
    def length(self) -> Fraction | None:
        """Length, s; None if it depends on the media."""
        return None if self.end is None else self.end - self.start

    def __str__(self) -> str:
        """In words; neither 0 nor the end of the file, which nobody need have typed."""
        start = f"from {float(self.start)} s " if self.start else ""
        return start + ("on" if self.end is None else f"to {float(self.end)} s")


WHOLE = Window(Fraction(0), None)
"""A file from its start to its end."""


class Source:
    """The main sound or picture stream of a clip's media file, open for decoding.

    Args:
        clip: Whose media to open.
        media_root: Folder that `clip.path` is relative to.
        kind: Which stream.
        file: The clip's media file, if it is open already; closed with this.
        still: What still it is, by `find_still`, if that is known already.

    Raises:
        DecodeError: The file cannot be opened, or has no such stream.
    """

    def __init__(  # noqa: D107
        self,
        clip: Clip,
        media_root: Path,
        kind: Kind,
        file: MediaFile | None = None,
        still: str | None = None,
    ) -> None:
        self.name = repr(clip.path)
        self.origin = Fraction(0)
        self.kind = kind
        self.keeps: list[Any] | None = None
        """Where set: the packets that were read since the file was opened or restarted."""
        self._file = file or MediaFile(clip.path, media_root)
        try:
            self._still = find_still(self._file.read_at) if still is None else still
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        still = self._still
        self.is_photograph = still == "jpeg_pipe" and holds_one_photograph(self._file.read_at)
        try:
            self.container = av.open(
                f"file:{self.path}",
                format=still if still in CONTAINERS else None,
                **_LOCKED,
            )
        except MemoryError as error:
            raise out_of_memory(self.name) from error
        except (av.error.FFmpegError, UnicodeError) as error:
            self.raise_if_passing(error)
            if is_denied(error):
                raise DecodeError("permission", f"{self.name}: permission denied") from error
            if holds_encrypted(self._file.read_at, self._file.size):
                raise self._encrypted() from error
            raise DecodeError(
                "unreadable",
                f"{self.name}: {getattr(error, 'strerror', None) or error}; expected a media file, "
                "in one of the formats mp4, mkv, avi, wav, …",
            ) from error
        try:
            self.stream = self._choose()
            self._prepare()
        except BaseException:
            self.container.close()
            raise

    def _choose(self) -> Any:
        """FFmpeg's choice of stream, unless it is a picture that does not move."""
        moving = [stream for stream in self._streams() if stream.type == self.kind]
        if not moving:
            what = {"video": "moving pictures", "audio": "sound"}[self.kind]
            raise DecodeError(f"no_{self.kind}", f"{self.name}: the file has no {what}")
        whole = av.stream.Disposition.default
        if self._still in PILLOW and not any(stream.disposition & whole for stream in moving):
            raise DecodeError(
                "unreadable",
                f"{self.name}: a photograph stored in tiles; to read it, pip install pi-heif",
            )
        best = self.container.streams.best(self.kind)
        stream = best if best in moving else moving[0]
        told = {**self.container.metadata, **stream.metadata}
        file, container = self._file, self.container.format.name
        if is_encrypted(file.read_at, file.size, container, stream.id, told):
            raise self._encrypted()
        if stream.codec_context is None:
            raise DecodeError("unreadable", f"{self.name}: no decoder for its {self.kind} stream")
        return stream

    def _encrypted(self) -> DecodeError:
        told = f"{self.name}: its {self.kind} is encrypted; expected media that are not"
        return DecodeError("encrypted", told)

    def _streams(self) -> list[Any]:
        """Sound and moving pictures."""
        attached = av.stream.Disposition.attached_pic
        streams = [*self.container.streams.video, *self.container.streams.audio]
        return [stream for stream in streams if not stream.disposition & attached]

    def _prepare(self) -> None:
        context = self.stream.codec_context
        if self.kind == "video" and context.width * context.height > MAX_PIXELS:
            raise DecodeError(
                "too_large",
                f"{self.name}: pictures of {context.width} x {context.height} px; expected at "
                f"most {MAX_PIXELS} px",
            )
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_count = 1  # clips are decoded side by side
        starts = [s.start_time * s.time_base for s in self._streams() if s.start_time is not None]
        self.origin = min(starts, default=Fraction(0))
        self._tick = Fraction(self.stream.time_base)

    @property
    def path(self) -> Path:
        """A path that leads to the open file itself, whatever its name leads to by now.

        For other libraries: what they open by it is what was checked. They must name the format,
        as the path has no ending; on macOS they share our place in the file, so that we must have
        finished reading.
        """
        return self._file.path

    @property
    def duration_s(self) -> float | None:
        """Length, s, as the file says; None if it does not."""
        duration = self.container.duration
        return None if duration is None else duration / 1e6

    @property
    def is_still(self) -> bool:
        """Whether it is a file of the formats of stills, animated or not."""
        return bool(self._still) or self.container.format.name == "gif"

    @property
    def rate(self) -> Fraction:
        """Average frames per second, for frames that say nothing of their time."""
        average, guessed = self.stream.average_rate, self.stream.guessed_rate
        # Of bare pictures FFmpeg takes 25 for the average, and guesses by what they say themselves.
        return Fraction((guessed or average if self.is_bare else average or guessed) or 25)

    @property
    def is_bare(self) -> bool:
        """Whether the file holds pictures one after the other, without times of their own."""
        return self.container.format.name in BARE

    @property
    def last_shown_until(self) -> Fraction:
        """Until when the last picture stays at least, s.

        Theora stores nothing while a picture stays, so that it stays to the end of the file.
        """
        if self.stream.codec_context.name != "theora" or self.duration_s is None:
            return Fraction(0)
        return Fraction(self.container.duration, 10**6)

    @property
    def declared_end(self) -> Fraction | None:
        """Where the file says that the stream ends, s; only formats whose table says so."""
        if "mp4" not in self.container.format.name or self.stream.duration is None:
            return None
        return self.time_of((self.stream.start_time or 0) + self.stream.duration)

    def time_of(self, stamp: int | None) -> Fraction | None:
        """Seconds from the start of the file of a time stamp of the stream."""
        if stamp is None:
            return None
        tick, origin = self._tick, self.origin
        # One fraction instead of two: this is done for every frame.
        return Fraction(
            stamp * tick.numerator * origin.denominator - origin.numerator * tick.denominator,
            tick.denominator * origin.denominator,
        )

    def packets(self) -> Iterator[Any]:
        """Packets of the stream from where the file stands; the last one is empty."""
        for packet in self.container.demux(self.stream):
            if self.keeps is not None and packet.size:
                self.keeps.append(packet)
            yield packet

    def restart(self) -> None:
        """Go back to the start of the file."""
        self.container.close()
        if self.keeps is not None:
            self.keeps.clear()
        self._open()

    def seek(self, time: Fraction) -> bool:
        """Go to the last key frame at or before `time`; whether the file lets us."""
        if self.is_bare:
            return False
        stamp = int((time + self.origin) / Fraction(self.stream.time_base))
        try:
            self.container.seek(stamp, stream=self.stream)
        except av.error.FFmpegError:
            return False
        return True

    def raise_if_passing(self, error: Exception) -> None:
        """Raise what FFmpeg met while it read the file, if that says nothing of the file.

        Raises:
            DecodeError: `io_error`.
        """
        if may_pass(error, self.path):
            told = getattr(error, "strerror", None) or str(error)
            raise DecodeError(IO_ERROR, f"{self.name}: {told}") from error

    def close(self) -> None:
        """Close the file."""
        self.container.close()
        self._file.close()

    def __enter__(self) -> "Source":  # noqa: D105
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self.close()


def is_denied(error: Exception) -> bool:
    """Whether the system refused to read a file; FFmpeg says -1, EPERM, of damaged ones."""
    return isinstance(error, PermissionError) and error.errno == errno.EACCES


def out_of_memory(name: str) -> DecodeError:
    """Why a file that decoding has no memory for fails; damage is something else."""
    return DecodeError("too_large", f"{name}: decoding needs more memory than its process may have")
