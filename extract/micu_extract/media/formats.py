"""What media files are by their content: the one list of formats, stills, and what is encrypted.

What a file is opened as is decided by what is in it. Its ending decides only whether `manifest
folder` and the look-up of a data set's media take it for media at all.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np

CONTAINERS: Mapping[str, str] = MappingProxyType(
    {
        "mov,mp4,m4a,3gp,3g2,mj2": ".mp4 .m4v .mov .qt .3gp .3g2 .mj2 .f4v .m4a .m4b",
        "matroska,webm": ".mkv .mk3d .mka .webm",
        "avi": ".avi .divx",
        "mpegts": ".ts .mts .m2ts .m2t",
        "mpeg": ".mpg .mpeg .m2p .vob",
        "mpegvideo": ".m1v .m2v .mpv",
        "ogg": ".ogg .ogv .oga .opus .spx",
        "asf": ".asf .wmv .wma",
        "flv": ".flv",
        "mxf": ".mxf",
        "gxf": ".gxf",
        "dv": ".dv .dif",
        "rm": ".rm .rmvb .ra",
        "wtv": ".wtv",
        "nut": ".nut",
        "dhav": ".dav",
        "ivf": ".ivf",
        "yuv4mpegpipe": ".y4m",
        # pictures one after the other, without times of their own
        "h261": ".h261",
        "h263": ".h263",
        "h264": ".h264 .264 .avc .h26l",
        "hevc": ".hevc .h265 .265",
        "vvc": ".vvc .h266 .266",
        "m4v": ".m4v .mpeg4",
        "vc1": ".vc1",
        "obu": ".obu",
        "av1": ".obu",
        "mjpeg": ".mjpeg .mjpg",
        # sound
        "wav": ".wav",
        "w64": ".w64",
        "aiff": ".aif .aiff .aifc",
        "au": ".au .snd",
        "caf": ".caf",
        "mp3": ".mp3 .mp2 .mpa",
        "flac": ".flac",
        "aac": ".aac .adts",
        "ac3": ".ac3",
        "eac3": ".eac3 .ec3",
        "dts": ".dts",
        "dtshd": ".dtshd",
        "mlp": ".mlp",
        "truehd": ".thd",
        "amr": ".amr .awb",
        "wv": ".wv",
        "tta": ".tta",
        "tak": ".tak",
        "shn": ".shn",
        "ape": ".ape",
        "mpc": ".mpc",
        "mpc8": ".mpc",
        "nistsphere": ".sph .nist",
        "voc": ".voc",
        "dsf": ".dsf",
        # stills, and stills that move
        "gif": ".gif",
        "apng": ".apng",
        "png_pipe": ".png",
        "jpeg_pipe": ".jpg .jpeg .jpe .jfif",
    }
)
"""FFmpeg's names of what it may open, with usual endings.

The rule: common formats of films, sound and stills that FFmpeg knows by their content, and whose
demuxer reads the one file that it was given. So no playlists, no scripts that name other files
(`hls`, `dash`, `concat`, `imf`, `sdp`), no names that are patterns of many (`image2`), no file
with a second one beside it (`vobsub`), no device, no network, and nothing that is known by its name
alone, such as raw samples.
"""

BARE = frozenset({"h261", "h263", "h264", "hevc", "vvc", "m4v", "vc1", "obu", "av1", "mjpeg"})
"""Those of them that are pictures one after the other, without times of their own."""

PILLOW: Mapping[str, str] = MappingProxyType(
    {
        "WEBP": ".webp",
        "BMP": ".bmp .dib",
        "TIFF": ".tif .tiff",
        "AVIF": ".avif .avifs",
        "HEIF": ".heic .heif .hif .heics",
        "PNG": ".png",
    }
)
"""Pillow's names of the stills that it reads, with usual endings."""

MEDIA_SUFFIXES = frozenset(
    ending
    for table in (CONTAINERS, PILLOW)
    for endings in table.values()
    for ending in endings.split()
)
"""Endings of media files, in lower case."""

STILL_SUFFIXES = frozenset(
    ending
    for endings in (CONTAINERS["png_pipe"], CONTAINERS["jpeg_pipe"], *PILLOW.values())
    for ending in endings.split()
)
"""Those of stills."""


ReadAt = Callable[[int, int], bytes]
"""Gives up to that many bytes from that place of a file on: (place, size)."""

_MAX_PARTS = 10_000
"""How many parts of a still's file are passed over in search of what it is."""
_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg_pipe",
    b"\x89PNG\r\n\x1a\n": "png_pipe",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}
"""Sizes of the second header of a BMP file: `BM` alone begins other files, too."""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}


def find_still(read_at: ReadAt) -> str:
    """What still a file is, by its content: a name of `CONTAINERS` or `PILLOW`; empty if none."""
    head = read_at(0, 256)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp":
        return _find_heif(head)
    found = next((name for start, name in _SIGNATURES.items() if head.startswith(start)), "")
    return _which_png(read_at) if found == "png_pipe" else found


def _find_heif(head: bytes) -> str:
    """Which still a file in the manner of MP4 is; a film may name a still's brand as its second."""
    major, box = head[8:12], head[: int.from_bytes(head[:4], "big")]
    brands = {box[place : place + 4] for place in range(16, len(box) - 3, 4)}
    if major in _AVIF_BRANDS or (major in _HEIF_BRANDS and brands & _AVIF_BRANDS):
        return "AVIF"
    return "HEIF" if major in _HEIF_BRANDS else ""


def _which_png(read_at: ReadAt) -> str:
    """What kind of PNG file it is: an animated one says so before its first picture.

    One with EXIF is Pillow's: FFmpeg turns it upright from version 8.1 on.
    """
    place = 8
    for _ in range(_MAX_PARTS):
        chunk = read_at(place, 8)
        if chunk[4:] == b"acTL":
            return "apng"
        if chunk[4:] == b"eXIf":
            return "PNG"
        if chunk[4:] in (b"IEND", b""):
            break
        place += 12 + int.from_bytes(chunk[:4], "big")
    return "png_pipe"


def holds_one_photograph(read_at: ReadAt) -> bool:
    """Whether what follows the first picture of a JPEG file belongs to it, as cameras write it.

    Depth, gain for bright screens, a small copy or another eye's view: the Multi-Picture Format.
    """
    place = 2
    for _ in range(_MAX_PARTS):
        segment = read_at(place, 8)
        if len(segment) < 8 or segment[0] != 0xFF or segment[1] in (0xD9, 0xDA):
            return False
        if segment[1] == 0xE2 and segment[4:] == b"MPF\0":
            return True
        place += 2 + int.from_bytes(segment[2:4], "big")
    return False


# --- encrypted media -----------------------------------------------------------------------------

# Without the key they decode to noise. FFmpeg opens them and does not say so; their containers do:
# MP4 calls the samples of a track `encv` or `enca`, transport streams have two bits in each packet,
# and of Matroska and ASF FFmpeg hands on what they say as metadata.

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
