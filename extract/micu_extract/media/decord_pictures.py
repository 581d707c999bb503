"""Pictures by decord, which is given nothing but packets that PyAV has read and decoded before it.

Left to itself, decord opens a file by probing that nothing locks to that one file, and takes the
times of pictures from the order of packets, which edit lists, AVI and broadcast streams make wrong.
So PyAV reads and decodes the file: it says which pictures there are, when, and whether they are
whole. The same packets, packed anew in memory, go to decord, and its n-th picture is PyAV's n-th.
Several are compared, the first and the last among them: what is dropped or doubled anywhere makes
the last one another.
"""

import io
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from micu.base.errors import DecodeError
from micu_extract.media.damage import Damage, decode_from
from micu_extract.media.pictures import (
    Picture,
    check_decoder,
    find_matrix,
    on_screen,
    to_rgb,
    turn_upright,
)
from micu_extract.media.source import Source, Window, out_of_memory

MOST_BYTES = 2**29
"""Packets of a clip that are held in memory; packing them and decord make three copies."""
MOST_COMPARED = 16
"""Pictures that are compared, beside the last one; evenly spread."""
LARGEST_DIFFERENCE = 2
"""Levels, of 255, that builds of FFmpeg may round apart; where it was tried, they did not."""
FORMATS = ("matroska", "nut", "mov")
"""Containers to pack packets in, those that decord gets on with best first."""
TURNED_FORMATS = ("nut", "matroska", "mov")
"""The same for pictures that we turn: in the others some versions of decord turn them, too."""
DIFFER = "decoders_differ"


def read_pictures_with_decord(source: Source, window: Window, damage: Damage) -> Iterator[Picture]:
    """The pictures that `micu_extract.media.pictures.read_pictures` gives, decoded by decord.

    Raises:
        ExtraError: decord is not installed.
        ConfigError: PyAV is too old.
        DecodeError: `decoders_differ`, or what PyAV raises.
    """
    check_decoder("decord")
    source.keeps = packets = _Packets(source.name)
    shown = _decode_before(source, window, damage)
    if not shown:
        return
    if damage.bad or damage.refused:
        bad = max(damage.bad, damage.refused)
        raise _differs(source, f"{bad} of its pictures are damaged or run backwards")
    if len({note.size for _, _, note in shown}) > 1:  # decord resizes the later ones
        raise _differs(source, "its pictures change their size")
    places = _find_places(source, packets, shown)
    compared = {place: note.frame for place, (_, _, note) in places.items() if note.frame}
    turned = any(note.matrix is not None for _, _, note in shown)
    film = _Film(source, _open(source, packets, turned=turned), compared)
    for place, (start, end, note) in places.items():
        load = partial(film.load, place, note.matrix)
        yield Picture(start - window.start, end - window.start, load)
    film.read_up_to(max(places))


def _import_decord() -> Any:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # else FFmpeg's remarks reach the screen
    return decord


# --- what PyAV says ----------------------------------------------------------------------------


class _Packets(list[Any]):
    """Packets of a clip in the order of decoding, up to `MOST_BYTES` of them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._bytes = name, 0

    def append(self, packet: Any) -> None:
        self._bytes += packet.size
        if self._bytes > MOST_BYTES:
            raise DecodeError(
                "too_large",
                f"{self._name}: expected at most {MOST_BYTES} bytes of compressed pictures, which "
                "decord gets at once; take --decoder pyav, or set start_s and end_s in the "
                "manifest to cut the clip into shorter ones",
            )
        super().append(packet)

    def clear(self) -> None:
        self._bytes = 0
        super().clear()


@dataclass(slots=True)
class _Note:
    """What stays of a frame that PyAV decoded."""

    number: int
    """How many it decoded before."""
    pts: int | None
    duration: int | None
    is_corrupt: bool
    matrix: NDArray[np.int32] | None
    size: tuple[int, int]
    frame: Any
    """The frame, where it is to be compared; else None."""


_Shown = tuple[Fraction, Fraction, _Note]
"""From when to when a picture is on screen, s from the start of the file."""


def _decode_before(source: Source, window: Window, damage: Damage) -> list[_Shown]:
    """What PyAV shows within a window; of few frames more is kept than a note."""
    shown: list[_Shown] = []
    step = 1
    frames = enumerate(decode_from(source, window.start, damage))
    notes = ((time, _note(number, frame)) for number, (time, frame) in frames)
    for found in on_screen(source, window, damage, notes):
        if (len(shown) - 1) % step:
            shown[-1][2].frame = None  # it is not the last one
        shown.append(found)
        if len(shown) > MOST_COMPARED * step:
            step *= 2
            for i, (_, _, note) in enumerate(shown[:-1]):
                note.frame = None if i % step else note.frame
    return shown


def _note(number: int, frame: Any) -> _Note:
    duration = getattr(frame, "duration", None)
    matrix = find_matrix(frame)
    size = frame.width, frame.height
    return _Note(number, frame.pts, duration, bool(frame.is_corrupt), matrix, size, frame)


def _find_places(
    source: Source, packets: Sequence[Any], shown: Sequence[_Shown]
) -> dict[int, _Shown]:
    """By place: which of the pictures that the packets hold are shown; the first one has place 0.

    PyAV leaves out what an edit list does, decord does not: there the time stamps tell the place.
    """
    if not any(packet.is_discard for packet in packets):
        return {found[2].number: found for found in shown}
    stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
    if len(set(stamps)) < len(packets) or any(note.pts not in stamps for _, _, note in shown):
        raise _differs(source, "it has an edit list, and pictures without times of their own")
    return {bisect_left(stamps, note.pts): (start, end, note) for start, end, note in shown}


# --- what decord shows -------------------------------------------------------------------------


def _open(source: Source, packets: Sequence[Any], *, turned: bool) -> Any:
    """A reader of packets that shall be decoded from the first to the last.

    Raises:
        DecodeError: `decoders_differ`: no container takes them, or decord opens none.
    """
    reasons: list[str] = []
    for name in TURNED_FORMATS if turned else FORMATS:
        try:
            file = _pack(source, packets, name)
            with _refused(source):
                # With more threads, VP9 fails and a reader that outlives its thread can hang. By
                # itself decord would repeat a picture in place of one that is lost.
                return _import_decord().VideoReader(file, num_threads=1, fault_tol=1e-9)
        except DecodeError as error:
            if error.code != DIFFER:
                raise
            reasons.append(str(error.__cause__))
        except (av.error.FFmpegError, ValueError) as error:
            reasons.append(str(error))
    raise _differs(source, "; ".join(reason.partition("\n")[0] for reason in reasons))


def _pack(source: Source, packets: Sequence[Any], name: str) -> io.BytesIO:
    """A film of one packet per second; only the first one can be sought."""
    file = io.BytesIO()
    with av.open(file, "w", format=name) as container:
        stream = container.add_stream_from_template(source.stream, opaque=True)
        stream.codec_context.framerate = Fraction(1)
        for second, packet in enumerate(packets):
            packet.stream = stream
            packet.pts = packet.dts = second
            packet.time_base, packet.duration = Fraction(1), 1
            packet.is_keyframe = second == 0
            container.mux_one(packet)
    file.seek(0)
    return file


class _Film:
    """The pictures of a reader, from the first to the last, each compared where it can be.

    Args:
        source: What PyAV decoded.
        reader: decord's.
        compared: PyAV's frames, by place.
    """

    def __init__(self, source: Source, reader: Any, compared: Mapping[int, Any]) -> None:
        self._source, self._reader, self._compared = source, reader, compared
        self._read = 0
        self._latest: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)

    def load(self, place: int, matrix: NDArray[np.int32] | None) -> NDArray[np.uint8]:
        """The picture at a place at or after that of the one before, (H, W, 3) RGB, upright."""
        self.read_up_to(place)
        assert place == self._read - 1, "pictures are loaded in the order of showing"
        return self._latest if matrix is None else turn_upright(self._latest, matrix)

    def read_up_to(self, place: int) -> None:
        """Read and compare all pictures up to a place.

        Raises:
            DecodeError: `decoders_differ`.
        """
        while self._read <= place:
            with _refused(self._source):
                self._latest = _unpack(self._reader.next().asnumpy())
            frame = self._compared.get(self._read)
            if frame is not None and not self._is_same(frame):
                raise _differs(self._source, f"its picture {self._read} is another one")
            self._read += 1

    def _is_same(self, frame: Any) -> bool:
        theirs, matrix = to_rgb(frame, self._source.name), find_matrix(frame)
        ours = self._latest if matrix is None else turn_upright(self._latest, matrix)
        if ours.shape != theirs.shape:
            return False
        difference = np.maximum(ours, theirs) - np.minimum(ours, theirs)
        return int(difference.max(initial=0)) <= LARGEST_DIFFERENCE


def _unpack(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) of what decord takes for four channels: rows that FFmpeg padded."""
    height, width = picture.shape[:2]
    return picture.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


@contextmanager
def _refused(source: Source) -> Iterator[None]:
    """Whatever decord says, the file is refused."""
    from decord import DECORDError, DECORDLimitReachedError

    try:
        yield
    except MemoryError as error:
        raise out_of_memory(source.name) from error
    except (
        *(DECORDError, DECORDLimitReachedError, StopIteration),
        *(RuntimeError, ValueError, AssertionError),
    ) as error:
        raise _differs(source, str(error).partition("\n")[0] or "it ends early") from error


def _differs(source: Source, why: str) -> DecodeError:
    return DecodeError(
        DIFFER,
        f"{source.name}: decord cannot show the pictures that PyAV shows ({why[:300]}); type "
        "--decoder pyav",
    )
