"""Finding and opening a clip's media file, and decoding one stream of it within a window of time.

Files are hostile until shown otherwise: only regular files below the media root are opened, only by
a list of container formats that never open other files, and no picture larger than a cap is ever
allocated. Times are relative to the start of the file, which is the earliest start of its sound and
pictures, whatever the file itself counts from.
"""

import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av

from micu.errors import DecodeError
from micu.manifest import Clip

DECODE_ERRORS = {
    "missing": "there is no such file",
    "outside_root": "the path, or the link behind it, leads out of the media root",
    "not_a_file": "a folder, a pipe or a device, not a regular file",
    "permission": "the file may not be read",
    "empty": "the file holds no bytes",
    "unreadable": "not a media file of a supported format, or damaged beyond opening",
    "no_video": "the file has no moving pictures (cover art does not count)",
    "no_audio": "the file has no sound",
    "no_text": "the manifest row has no text",
    "too_large": "a picture or the whole clip is larger than is safe to hold in memory",
    "too_short": "fewer than two pictures, so that nothing can move",
    "outside_media": "nothing of the clip's time lies within its media",
    "corrupt": "more than a fifth of what the clip needs is damaged or missing",
    "non_finite": "the sound holds NaN or infinity",
}
"""Every code of a `DecodeError`, with its meaning."""

MAX_PIXELS = 8192 * 4352
"""Largest picture that is decoded, px: 8K in either orientation of the cinema format."""
MAX_UNIT_BYTES = 2 * 2**30
"""Largest clip that is held in memory, bytes of decoded units."""
MAX_DAMAGE = 0.2
"""Part of a clip that may be damaged or missing before it counts as corrupt."""

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,gif,mxf,dv,"
    "wav,w64,aiff,au,caf,mp3,flac,aac,ac3,eac3,amr,wv,tta"
)
"""Container formats that are opened. Playlists, concatenation scripts and devices are not."""

_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": FORMATS,
    "max_pixels": str(MAX_PIXELS),
}
_SEEK_FROM_S = 2
_PREROLL_S = 1

Kind = Literal["video", "audio"]


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


@dataclass(slots=True)
class Damage:
    """What decoding met within the window, counted while it goes on."""

    good: int = 0
    bad: int = 0
    """Frames marked corrupt, packets that would not decode, times that run backwards."""
    cut_off: bool = False
    """A packet was incomplete or reading stopped with an error, as at the end of a cut-off file."""
    packets: int = 0
    """Packets read, inside the window or not."""
    first_packet: Fraction | None = None
    """Time of the first packet, s."""
    missing_s: Fraction = Fraction(0)
    """How much of the window should have had frames and had none, s."""


def find_media(path: str, media_root: Path) -> Path:
    """Resolve a manifest's path to a regular file below the media root.

    Raises:
        DecodeError: `missing`, `outside_root`, `not_a_file`, `permission` or `empty`.
    """
    if not path or "\0" in path:
        raise DecodeError("missing", f"{path!r}: expected the path of a media file in the manifest")
    try:
        root = media_root.resolve()
        real = (root / path).resolve()
        if not real.is_relative_to(root):
            raise DecodeError("outside_root", f"{path!r} leads to {str(real)!r}, out of {root}")
        status = real.stat()
    except PermissionError as error:
        raise DecodeError("permission", f"{path!r}: {error.strerror}") from error
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        raise DecodeError("missing", f"{path!r}: no such file below {media_root}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("not_a_file", f"{path!r}: expected a regular file")
    if status.st_size == 0:
        raise DecodeError("empty", f"{path!r}: the file holds no bytes")
    return real


class Source:
    """The main sound or picture stream of a clip's media file, open for decoding.

    Args:
        clip: Whose media to open.
        media_root: Folder that `clip.path` is relative to.
        kind: Which stream.

    Raises:
        DecodeError: The file cannot be opened, or has no such stream.
    """

    def __init__(self, clip: Clip, media_root: Path, kind: Kind) -> None:  # noqa: D107
        self.name = repr(clip.path)
        self.origin = Fraction(0)
        self.path = find_media(clip.path, media_root)
        self.kind = kind
        self._open()

    def _open(self) -> None:
        try:
            self.container = av.open(
                f"file:{self.path}", options=dict(_OPTIONS), metadata_errors="replace"
            )
        except av.error.PermissionError as error:
            raise DecodeError("permission", f"{self.name}: permission denied") from error
        except (av.error.FFmpegError, UnicodeError) as error:
            raise DecodeError("unreadable", f"{self.name}: {_reason(error)}") from error
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
        best = self.container.streams.best(self.kind)
        stream = best if best in moving else moving[0]
        if stream.codec_context is None:
            raise DecodeError("unreadable", f"{self.name}: no decoder for its {self.kind} stream")
        return stream

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

    @property
    def rate(self) -> Fraction:
        """Average frames per second, for frames that say nothing of their time."""
        return Fraction(self.stream.average_rate or self.stream.guessed_rate or 25)

    @property
    def declared_end(self) -> Fraction | None:
        """Where the file says that the stream ends, s; only formats whose table says so."""
        if "mp4" not in self.container.format.name or self.stream.duration is None:
            return None
        start = self.stream.start_time or 0
        tick: Fraction = self.stream.time_base
        return (start + self.stream.duration) * tick - self.origin

    def time_of(self, stamp: int | None) -> Fraction | None:
        """Seconds from the start of the file of a time stamp of the stream."""
        if stamp is None:
            return None
        tick: Fraction = self.stream.time_base
        return stamp * tick - self.origin

    def restart(self) -> None:
        """Go back to the start of the file."""
        self.container.close()
        self._open()

    def seek(self, time: Fraction) -> bool:
        """Go to the last key frame at or before `time`; whether the file lets us."""
        stamp = int((time + self.origin) / Fraction(self.stream.time_base))
        try:
            self.container.seek(stamp, stream=self.stream)
        except av.error.FFmpegError:
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def __enter__(self) -> "Source":  # noqa: D105
        return self

    def __exit__(  # noqa: D105
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def decode(
    source: Source, start: Fraction, damage: Damage
) -> Generator[tuple[Fraction | None, Any], None, None]:
    """Decode a stream from where it stands.

    Args:
        source: What to decode.
        start: Packets that would not decode count as damage from here on, s.
        damage: Counts what goes wrong.

    Yields:
        Time from the start of the file, s, or None; and the frame.
    """
    for packet in _read_packets(source, damage):
        time = None if packet is None else source.time_of(packet.pts)
        if packet is not None and packet.size:
            damage.packets += 1
            damage.cut_off |= bool(packet.is_corrupt)
            if damage.first_packet is None:
                damage.first_packet = time
        try:
            frames = source.stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            if time is None or time >= start:
                damage.bad += 1
                damage.cut_off = True
            continue
        for frame in frames:
            yield source.time_of(frame.pts), frame


def decode_from(source: Source, start: Fraction, damage: Damage) -> Iterator[tuple[Fraction, Any]]:
    """Decode pictures, seeking to the last key frame before `start` where the file allows it.

    A seek that lands late or on no key frame is not trusted: the file is decoded from its start.
    Pictures without a time stamp follow the one before at the average rate.
    """
    if start > _SEEK_FROM_S and source.seek(start):
        frames = decode(source, start, damage)
        for time, frame in frames:
            if time is None or time > start or frame.is_corrupt or not frame.key_frame:
                break
            yield time, frame
            yield from _fill_times(source, frames, time)
            return
        frames.close()
    if start > _SEEK_FROM_S:
        source.restart()
        damage.first_packet, damage.good, damage.bad, damage.packets = None, 0, 0, 0
        damage.cut_off = False
    yield from _fill_times(source, decode(source, start, damage), None)


def decode_sound(
    source: Source, start: Fraction, damage: Damage
) -> Iterator[tuple[Fraction | None, Any]]:
    """Decode sound, seeking only where time stamps are exact to the sample after a seek."""
    exact = source.stream.time_base == Fraction(1, source.stream.codec_context.sample_rate or 1)
    seekable = exact and "mp4" in source.container.format.name
    # Transform codecs overlap neighbouring frames, so that the first ones after a seek are off.
    if seekable and start > _SEEK_FROM_S and not source.seek(start - _PREROLL_S):
        source.restart()
    yield from decode(source, start, damage)


def check_damage(source: Source, window: Window, covered_end: Fraction, damage: Damage) -> None:
    """Refuse a clip of which too much is damaged or missing.

    What is missing is added to what was counted: the time up to the first frame is set by the
    caller; the time after the last one counts if the file says it goes on and is known to be cut.

    Args:
        source: What was decoded.
        window: The clip.
        covered_end: Where the last frame ends, s from the start of the file.
        damage: What was counted.

    Raises:
        DecodeError: `corrupt`.
    """
    missing_s = damage.missing_s
    declared = source.declared_end
    if damage.cut_off and declared is not None:
        expected_end = declared if window.end is None else min(declared, window.end)
        missing_s += max(Fraction(0), expected_end - covered_end)
    decoded = damage.good + damage.bad
    covered_s = covered_end - window.start
    missing = float(missing_s / covered_s * decoded) if covered_s > 0 else 0.0
    share = (damage.bad + missing) / max(decoded + missing, 1)
    if share > MAX_DAMAGE:
        raise DecodeError(
            "corrupt",
            f"{source.name}: {share:.0%} of the clip is damaged or missing, expected at most "
            f"{MAX_DAMAGE:.0%}; {float(covered_end):.2f} s of the file can be decoded. Set start_s "
            "and end_s in the manifest to use a good part of it",
        )


def check_unit_bytes(source: Source, count: int) -> None:
    """Refuse a clip whose decoded form would not fit in memory.

    Raises:
        DecodeError: `too_large`.
    """
    if count > MAX_UNIT_BYTES:
        raise DecodeError(
            "too_large",
            f"{source.name}: the clip needs more than {MAX_UNIT_BYTES} bytes of memory; set "
            "start_s and end_s in the manifest to cut it into shorter clips",
        )


def nothing_decoded(
    source: Source, window: Window, damage: Damage, *, anything: bool
) -> DecodeError:
    """Why a window gave nothing.

    Args:
        source: What was decoded.
        window: The clip.
        damage: What was counted.
        anything: Whether something was decoded outside the window.
    """
    if anything:
        return DecodeError(
            "outside_media",
            f"{source.name}: the clip, from {float(window.start)} s on, lies outside its "
            f"{source.kind}",
        )
    if damage.packets == 0 and not damage.cut_off:
        return DecodeError(f"no_{source.kind}", f"{source.name}: its {source.kind} stream is empty")
    return DecodeError("corrupt", f"{source.name}: nothing of its {source.kind} can be decoded")


def _read_packets(source: Source, damage: Damage) -> Iterator[Any]:
    """Packets of the stream; None flushes the decoder after an error that ends the file."""
    packets = source.container.demux(source.stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            damage.cut_off = True
            yield None
            return
        if packet is None:
            return
        yield packet


def _fill_times(
    source: Source, frames: Iterator[tuple[Fraction | None, Any]], last: Fraction | None
) -> Iterator[tuple[Fraction, Any]]:
    for stamped, frame in frames:
        time = stamped
        if time is None:
            start = source.time_of(source.stream.start_time) or Fraction(0)
            time = start if last is None else last + 1 / source.rate
        last = time
        yield time, frame


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return f"{text}; expected a media file, in one of the formats mp4, mkv, avi, wav, …"
