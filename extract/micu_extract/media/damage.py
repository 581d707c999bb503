"""Decoding one stream of a media file within a window of time, and judging what was damaged.

Frames come in the order in which they are shown, with times that do not depend on whether the file
was entered by seeking.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from itertools import chain
from typing import Any

import av

from micu.base.errors import DecodeError
from micu_extract.media.source import MAX_PIXELS, WHOLE, Source, Window, out_of_memory

MAX_DAMAGE = 0.2
"""Part of a clip that may be damaged or missing before it counts as corrupt."""
MAX_UNIT_BYTES = 2 * 2**30
"""Largest clip that is held in memory, bytes of decoded units."""

MAX_GAP_S = 600
"""What lacks for longer, and for longer than all before it, is the work of a damaged time stamp."""

_SEEK_FROM_S = 2
_PREROLL_S = 1
_STAMPED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv", "asf"}
"""Formats that store when each picture is shown, which is the same however it is reached."""
_COUNTED = {"avi", "mxf"}
"""Formats that number pictures as they are stored: near where they are entered, times are off."""
_REORDER_FRAMES = 3
_MAX_UNSTAMPED = 64
"""Frames that are held until one has a time stamp."""


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
    refused: int = 0
    """Packets that would not decode, inside the window or not."""
    first_packet: Fraction | None = None
    """Time of the first packet, s."""
    missing_s: Fraction = Fraction(0)
    """How much of the window should have had frames and had none, s."""


def decode(
    source: Source, start: Fraction, damage: Damage
) -> Generator[tuple[Fraction | None, Any], None, None]:
    """Decode a stream from where it stands.

    A packet without bytes, as Theora has them, says that the picture before it stays.

    Args:
        source: What to decode.
        start: Packets that would not decode count as damage from here on, s.
        damage: Counts what goes wrong.

    Yields:
        Time from the start of the file, s, or None; and the frame.
    """
    context, shown = source.stream.codec_context, None
    for packet in _read_packets(source, damage):
        if packet is not None and packet.size:
            damage.packets += 1
            damage.cut_off |= bool(packet.is_corrupt)
            if damage.first_packet is None:
                damage.first_packet = source.time_of(packet.pts)
        if packet is not None and not packet.size and packet.dts is not None:
            # The decoder would take it for the end of the stream.
            if shown is not None and source.kind == "video":
                yield source.time_of(packet.dts if packet.pts is None else packet.pts), shown
            continue
        try:
            frames = context.decode(packet)
        except MemoryError as error:
            raise out_of_memory(source.name) from error
        except (av.error.FFmpegError, ValueError):
            # A decoder that did not open is no FFmpegError of PyAV 19 from the second packet on.
            damage.refused += 1
            time = None if packet is None else source.time_of(packet.pts)
            if time is None or time >= start:
                damage.bad += 1
                damage.cut_off = True
            continue
        for frame in frames:
            shown = frame
            yield source.time_of(frame.pts), frame


def decode_from(source: Source, start: Fraction, damage: Damage) -> Iterator[tuple[Fraction, Any]]:
    """Decode pictures, seeking to the last key frame before `start` where the format allows it.

    What is shown never depends on it. Program and transport streams, raw ones and others give other
    times after a seek than before, and are decoded from their start; so is a file where a seek
    lands late or on no key frame. Pictures without a time stamp follow the one before at the
    average rate.
    """
    entry = _find_entry(source, start)
    if entry is not None and source.seek(entry):
        frames = decode(source, start, damage)
        for time, frame in frames:
            if time is None or time > entry or frame.is_corrupt or not frame.key_frame:
                break
            yield from in_order_of_showing(_fill_times(source, chain([(time, frame)], frames)))
            return
        frames.close()
    if entry is not None:
        _begin_again(source, damage)
    yield from in_order_of_showing(_fill_times(source, decode(source, start, damage)))


def _begin_again(source: Source, damage: Damage) -> None:
    """Go back to the start of the file, with nothing counted."""
    source.restart()
    damage.first_packet, damage.good, damage.bad, damage.packets = None, 0, 0, 0
    damage.cut_off, damage.refused = False, 0


def _find_entry(source: Source, start: Fraction) -> Fraction | None:
    """Where to seek to, s, for what is shown from `start` on; None to decode from the beginning."""
    form = source.container.format.name
    entry = start - _PREROLL_S if form in _COUNTED else start
    return entry if entry > _SEEK_FROM_S and form in _STAMPED | _COUNTED else None


def decode_sound(
    source: Source, start: Fraction, damage: Damage
) -> Iterator[tuple[Fraction | None, Any]]:
    """Decode sound, seeking only where time stamps are exact to the sample after a seek."""
    exact = source.stream.time_base == Fraction(1, source.stream.codec_context.sample_rate or 1)
    if exact and "mp4" in source.container.format.name and start > _SEEK_FROM_S:
        # Transform codecs overlap neighbouring frames, so that the first ones after it are off.
        entry = start - _PREROLL_S
        frames = decode(source, start, damage)
        if source.seek(entry):
            time, frame = next(frames, (None, None))
            if time is not None and time <= entry:
                yield from chain([(time, frame)], frames)
                return
        frames.close()
        _begin_again(source, damage)
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


def check_gap(source: Source, window: Window, start_s: Fraction, end_s: Fraction) -> None:
    """Refuse a clip that a damaged time stamp makes hours long, before memory is taken for it.

    Args:
        source: What is decoded.
        window: The clip.
        start_s: Until when there is something, s from the start of the clip.
        end_s: When the next thing comes.

    Raises:
        DecodeError: `corrupt`.
    """
    start_s = max(start_s, Fraction(0))
    end_s = end_s if window.length is None else min(end_s, window.length)
    if end_s - start_s > max(Fraction(MAX_GAP_S), start_s):
        raise DecodeError(
            "corrupt",
            f"{source.name}: a time stamp says that nothing new comes from {float(start_s):.2f} s "
            f"to {float(end_s):.2f} s of the clip; expected at most {MAX_GAP_S} s without. If that "
            "is so, set start_s and end_s in the manifest to leave it out",
        )


def fits_in_memory(count: int) -> bool:
    """Whether a clip's decoded form of so many bytes is held."""
    return count <= MAX_UNIT_BYTES


def check_unit_bytes(source: Source, count: int) -> None:
    """Refuse a clip whose decoded form would not fit in memory.

    Raises:
        DecodeError: `too_large`.
    """
    if not fits_in_memory(count):
        raise DecodeError(
            "too_large",
            f"{source.name}: the clip needs more than {MAX_UNIT_BYTES} bytes of memory; set "
            "start_s and end_s in the manifest to cut it into shorter clips",
        )


def too_short(source: Source) -> DecodeError:
    """Why a file that holds less than any step fails."""
    return DecodeError(
        "too_short", f"{source.name}: hardly anything of its {source.kind} is within its own times"
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
    if anything and window == WHOLE:
        return too_short(source)
    if anything:
        return DecodeError(
            "outside_media",
            f"{source.name}: the clip, {window}, lies outside its {source.kind}",
        )
    if damage.packets == 0 and not damage.cut_off:
        return DecodeError(f"no_{source.kind}", f"{source.name}: its {source.kind} stream is empty")
    if source.kind == "audio" and not damage.bad and not damage.cut_off:
        return too_short(source)  # the decoder kept all of it: a lone frame is priming
    context = source.stream.codec_context
    if source.kind == "video" and not (context.width and context.height):
        # FFmpeg, which is told the cap, keeps the size of larger pictures to itself.
        return DecodeError(
            "too_large",
            f"{source.name}: its pictures have no size that can be decoded: they are larger than "
            f"{MAX_PIXELS} px, or damaged",
        )
    return DecodeError("corrupt", f"{source.name}: nothing of its {source.kind} can be decoded")


def _read_packets(source: Source, damage: Damage) -> Iterator[Any]:
    """Packets of the stream; None flushes the decoder after an error that ends the file.

    Raises:
        DecodeError: `io_error`, where it is the file system that failed.
    """
    packets = source.packets()
    while True:
        try:
            packet = next(packets, None)
        except MemoryError as error:
            raise out_of_memory(source.name) from error
        except av.error.FFmpegError as error:
            source.raise_if_passing(error)  # a file system that goes away is no end of the file
            damage.cut_off = True
            yield None
            return
        if packet is None:
            return
        yield packet


def _fill_times(
    source: Source, frames: Iterable[tuple[Fraction | None, Any]]
) -> Iterator[tuple[Fraction, Any]]:
    """Give frames without a time stamp the time after the one before, at the average rate.

    The first ones, whose stamps a muxer lost as they were negative, come before the first that has
    one; if that is before the file begins, they are left to the window to drop.
    """
    first: list[Any] = []
    last: Fraction | None = None
    for stamped, frame in frames:
        time = stamped
        if last is None and time is None and len(first) < _MAX_UNSTAMPED:
            first.append(frame)
            continue
        if last is None:
            start = source.time_of(source.stream.start_time) or Fraction(0)
            begin = start if time is None else time - len(first) / source.rate
            for held in first:
                yield begin, held
                begin += 1 / source.rate
            time, first = begin if time is None else time, []
        elif time is None:
            time = last + 1 / source.rate
        last = time
        yield time, frame
    start = source.time_of(source.stream.start_time) or Fraction(0)
    for place, held in enumerate(first):
        yield start + place / source.rate, held


def in_order_of_showing(frames: Iterable[tuple[Fraction, Any]]) -> Iterator[tuple[Fraction, Any]]:
    """Give frames, which decoders put in the order of showing, the times of their places.

    Formats that store no showing times, AVI above all, have them guessed and neighbours swapped.
    """
    waiting: deque[Any] = deque()
    times: list[Fraction] = []
    for time, frame in frames:
        waiting.append(frame)
        heappush(times, time)
        if len(waiting) > _REORDER_FRAMES:
            yield heappop(times), waiting.popleft()
    while waiting:
        yield heappop(times), waiting.popleft()
