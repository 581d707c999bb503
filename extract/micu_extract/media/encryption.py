"""Telling encrypted media from damaged ones: without the key both decode to noise.

FFmpeg opens what is encrypted and does not say so. Its containers do: MP4 calls the samples of a
track `encv` or `enca`, transport streams have two bits in each packet, and of Matroska and ASF
FFmpeg hands on what they say as metadata.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

ReadAt = Callable[[int, int], bytes]
"""Up to so many bytes (second) from a place on (first)."""

_SAMPLE_ENTRIES = {b"encv", b"enca", b"drmi", b"drms", b"aavd"}
"""Of common encryption (cenc, cbcs), of FairPlay and of Audible."""
_METADATA = {"enc_key_id", "ASF_Protection_Type"}
_MAX_READS = 10_000
"""A file of more boxes than this before its last track is not looked through to its end."""
_PACKET_SIZES = (188, 192, 204)
_SCRAMBLED = 0xC0
_PROBE_BYTES = 2**20


def holds_encrypted(read_at: ReadAt, file_size: int) -> bool:
    """Whether a file is an MP4 file with an encrypted track: FFmpeg refuses to open some."""
    return bool(_encrypted_tracks(read_at, file_size))


def is_encrypted(
    read_at: ReadAt, file_size: int, container: str, stream_id: int, metadata: Mapping[str, str]
) -> bool:
    """Whether a stream of a file is encrypted, as far as its container says.

    Args:
        read_at: Reads the file.
        file_size: Bytes.
        container: FFmpeg's name of the format.
        stream_id: The stream's number in the file: of a track, or a packet identifier.
        metadata: Of the stream and of its file.
    """
    if "mp4" in container:
        return stream_id in _encrypted_tracks(read_at, file_size)
    if container == "mpegts":
        return _is_scrambled(read_at(0, _PROBE_BYTES), stream_id)
    return not _METADATA.isdisjoint(metadata)


def _encrypted_tracks(read_at: ReadAt, file_size: int) -> set[int]:
    """Numbers of the tracks of an MP4 file that have an encrypted sample entry."""
    left = iter(range(_MAX_READS))

    def read(place: int, size: int) -> bytes:
        return b"" if next(left, None) is None else read_at(place, size)

    moov = next(_find(read, (0, file_size), b"moov"), (0, 0))
    found = set()
    for trak in _find(read, moov, b"trak"):
        for stsd in _find(read, trak, b"mdia", b"minf", b"stbl", b"stsd"):
            # Its version, its flags and the number of entries come before them.
            entries = {kind for kind, _ in _boxes(read, (stsd[0] + 8, stsd[1]))}
            if entries & _SAMPLE_ENTRIES:
                found |= {_track_number(read, tkhd) for tkhd in _find(read, trak, b"tkhd")}
    return found


def _track_number(read_at: ReadAt, tkhd: tuple[int, int]) -> int:
    version = read_at(tkhd[0], 1)
    return int.from_bytes(read_at(tkhd[0] + (20 if version == b"\1" else 12), 4), "big")


def _find(read_at: ReadAt, span: tuple[int, int], *names: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of the content of every box that a path of names leads to."""
    for kind, content in _boxes(read_at, span):
        if kind == names[0]:
            yield from [content] if len(names) == 1 else _find(read_at, content, *names[1:])


def _boxes(read_at: ReadAt, span: tuple[int, int]) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Name, and begin and end of the content, of the boxes beside one another in a span."""
    place, end = span
    while place + 8 <= end:
        head = read_at(place, 16)
        size, header = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:
            size = end - place
        if size < header:
            return
        yield head[4:8], (place + header, min(place + size, end))
        place += size


def _is_scrambled(start: bytes, stream_id: int) -> bool:
    """Whether most packets of a stream are scrambled, at the start of a transport stream."""
    data = np.frombuffer(start, np.uint8)
    for size in _PACKET_SIZES:
        for offset in range(min(size, len(data) - 4 * size)):
            if (data[offset : offset + 5 * size : size] == 0x47).all():
                head = data[offset:]
                head = head[: len(head) // size * size].reshape(-1, size)[:, :4]
                head = head[head[:, 0] == 0x47].astype(int)
                ours = head[(head[:, 1] & 0x1F) << 8 | head[:, 2] == stream_id]
                return bool(2 * ((ours[:, 3] & _SCRAMBLED) > 0).sum() > len(ours))
    return False
