"""decord shows PyAV's pictures at PyAV's times, or refuses the file; it is never given a file."""

import contextlib
import io
import sys
from collections.abc import Callable
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import micu_extract.media.decord_pictures
import micu_extract.media.pictures
from micu.base.errors import ConfigError, DecodeError, MicuError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FrameInput
from micu_extract.media.damage import Damage
from micu_extract.media.pictures import check_decoder
from micu_extract.media.readers import PICTURE_READERS, read
from micu_extract.media.source import Reading, Source, Window
from tests.media_files import Array, flat_picture, write_media

try:
    check_decoder("decord")
except MicuError as error:
    pytest.skip(str(error), allow_module_level=True)
import decord

WHOLE = Window(Fraction(0), None)
LATE = Window(Fraction(5, 2), Fraction(4))


def moving(frame: int, size: tuple[int, int] = (48, 64)) -> Array:
    """A picture with a bright bar that moves on by three pixels with each one."""
    height, width = size
    picture = np.full((height, width, 3), 30 + frame % 7, np.uint8)
    left = 3 * frame % width
    picture[height // 4 :, left : left + 9] = (230, 120, 40)
    return picture


def shown(path: Path, decoder: str, window: Window = WHOLE) -> list[tuple[object, ...]] | str:
    """The pictures of a file and their times, or why there are none."""
    try:
        with Source(Clip(clip_id="c", path=path.name), path.parent, "video") as source:
            pictures = PICTURE_READERS[decoder](source, window, Damage())
            return [(p.start, p.end, p.load().tobytes()) for p in pictures]
    except DecodeError as error:
        return error.code


def sized(height: int, width: int) -> Callable[[int], Array]:
    return lambda frame: moving(frame, (height, width))


FILMS = {
    "b_frames.mp4": {"gop": 250, "b_frames": 3},
    "b_frames.mkv": {"gop": 12, "b_frames": 3},
    "hevc.mp4": {"codec": "libx265"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx"},
    "xvid.avi": {"codec": "mpeg4", "b_frames": 2},
    "plain.avi": {"codec": "mpeg4"},
    "stream.ts": {"gop": 7, "b_frames": 2},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2, "fps": 25},
    "program.mpg": {"codec": "mpeg2video", "b_frames": 2, "fps": 25},
    "program1.mpg": {"codec": "mpeg1video", "b_frames": 2, "fps": 25},
    "flash.flv": {"codec": "flv"},
    "windows.wmv": {"codec": "wmv2"},
    "late.mkv": {"pts": range(100, 150)},
    "odd.mkv": {"picture": sized(33, 47), "pix_fmt": "yuv444p"},
    "narrow.mp4": {"picture": sized(48, 50)},
    "jpegs.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "turned.mp4": {"rotation": 90},
    "upside_down.mov": {"rotation": 180},
    "one.mp4": {"frames": 1},
    "two.mkv": {"frames": 2},
    "gray.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "variable.mkv": {"frames": 30, "pts": [i + (i // 5) ** 2 for i in range(30)]},
    "sparse.mp4": {"frames": 5, "pts": [0, 1, 2, 30, 31]},
}


@pytest.mark.parametrize("name", FILMS)
def test_decord_shows_the_pictures_of_pyav_at_its_times(tmp_path, name):
    settings = {"frames": 50, "picture": moving, "pix_fmt": "yuv420p", **FILMS[name]}
    path = write_media(tmp_path / name, **settings)
    for window in (WHOLE, LATE):
        assert shown(path, "decord", window) == shown(path, "pyav", window)
    assert shown(path, "pyav")


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "yuv422p", "yuv444p", "gray"])
def test_pictures_that_decord_gives_other_colours_are_refused(tmp_path, pix_fmt):
    path = write_media(tmp_path / "a.mp4", frames=20, picture=moving, pix_fmt=pix_fmt)
    assert shown(path, "decord") in (shown(path, "pyav"), "decoders_differ")


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mov", "cut.mkv", "cut.ts"])
def test_a_cut_that_copies_packets_shows_what_pyav_shows(tmp_path, name):
    whole = write_media(tmp_path / "whole.mp4", frames=60, picture=moving, gop=40, b_frames=2)
    with av.open(str(whole)) as film, av.open(str(tmp_path / name), "w") as cut:
        stream = cut.add_stream_from_template(film.streams.video[0], opaque=True)
        tick = film.streams.video[0].time_base
        for packet in film.demux(film.streams.video[0]):
            if packet.size:
                packet.pts -= round(Fraction(5, 2) / tick)
                packet.dts -= round(Fraction(5, 2) / tick)
                packet.stream = stream
                cut.mux_one(packet)
    found = shown(tmp_path / name, "decord")
    assert found in (shown(tmp_path / name, "pyav"), "decoders_differ")
    if name == "cut.mp4":  # with an edit list, which leaves out 25 pictures
        assert len(found) == 35


@pytest.mark.slow
def test_films_of_others_are_shown_as_pyav_shows_them_or_refused(shared):
    media, middle = Path(shared) / "media", Window(Fraction(5, 2), Fraction(3))
    refused = set()
    for folder in ("real", "odd", "reports"):
        for path in sorted((media / folder).glob("*.*")):
            theirs = shown(path, "pyav", middle)
            ours = shown(path, "decord", middle)
            if ours == "decoders_differ":
                refused.add(path.name)
            else:
                assert ours == theirs, path.name
    assert not {path.name for path in (media / "real").glob("*.*")} & refused
    assert len(refused) < 12, refused


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("count", [1, 3])
def test_stills_are_read_alike_whatever_decodes_films(tmp_path, suffix, count):
    pictures = [Image.fromarray(moving(5 * i)) for i in range(count)]
    more = {"save_all": True, "append_images": pictures[1:], "duration": 400}
    is_animated = count > 1 and suffix in (".png", ".gif", ".webp")
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    told = {"exif": exif} if suffix in (".jpg", ".webp", ".tiff") else {}
    pictures[0].save(tmp_path / f"a{suffix}", **(more if is_animated else {}), **told)
    found = {
        decoder: read(
            Clip(clip_id="c", path=f"a{suffix}"),
            FrameInput(fps=5, resize=16, crop=16),
            Reading(media_root=tmp_path, decoder=decoder),
        )
        for decoder in ("pyav", "decord")
    }
    assert len(found["pyav"].units) == (6 if is_animated else 1)
    np.testing.assert_array_equal(found["decord"].units, found["pyav"].units)


# --- what is refused ---------------------------------------------------------------------------


class Another:
    """decord with a picture that another one replaces, or that is missing."""

    def __init__(self, wrong: Callable[[list[Array]], list[Array]]) -> None:
        self._real, self._wrong = decord.VideoReader, wrong

    def __call__(self, *words: object, **options: object) -> "Another":
        reader = self._real(*words, **options)
        pictures = [reader.next().asnumpy().copy() for _ in range(len(reader))]
        self._pictures = iter(self._wrong(pictures))
        return self

    def next(self) -> "Another":
        self._picture = next(self._pictures)
        return self

    def asnumpy(self) -> Array:
        return self._picture


def brighter(levels: int) -> Callable[[list[Array]], list[Array]]:
    """The last picture, where the background is some levels brighter."""

    def change(pictures: list[Array]) -> list[Array]:
        last = pictures[-1].copy()
        last[0, 0] += np.uint8(levels)
        return [*pictures[:-1], last]

    return change


@pytest.mark.parametrize(
    ("wrong", "is_refused"),
    [
        (lambda pictures: pictures, False),
        (brighter(2), False),
        (brighter(3), True),
        (lambda pictures: [pictures[0], *pictures[:-1]], True),
        (lambda pictures: pictures[1:], True),
        (lambda pictures: [*pictures[:20], *pictures[21:]], True),
        (lambda pictures: [*pictures[:20], pictures[20], *pictures[20:]], True),
        (lambda pictures: pictures[:-1], True),
        (lambda pictures: [picture[:-2] for picture in pictures], True),
    ],
)
def test_pictures_that_are_not_those_of_pyav_are_refused(tmp_path, monkeypatch, wrong, is_refused):
    path = write_media(tmp_path / "a.mp4", frames=40, picture=moving)
    monkeypatch.setattr(decord, "VideoReader", Another(wrong))
    found = shown(path, "decord")
    assert (found == "decoders_differ") is is_refused
    if not is_refused:
        assert len(found) == 40


def test_pictures_are_compared_though_nobody_loads_them(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", frames=40, picture=moving)
    monkeypatch.setattr(decord, "VideoReader", Another(lambda pictures: pictures[1:]))
    with Source(Clip(clip_id="c", path=path.name), tmp_path, "video") as source:
        pictures = PICTURE_READERS["decord"](source, WHOLE, Damage())
        with pytest.raises(DecodeError, match=r"'a\.mp4': decord cannot show .* --decoder pyav"):
            list(pictures)


@pytest.mark.parametrize("frames", [1, 2, 16, 17, 18, 33, 34, 100])
def test_the_first_and_the_last_picture_are_compared_and_some_between(
    tmp_path, monkeypatch, frames
):
    path = write_media(tmp_path / "a.mp4", frames=frames, picture=moving)
    seen: list[int] = []

    class Film(micu_extract.media.decord_pictures._Film):
        def _is_same(self, frame: object) -> bool:
            seen.append(self._read)
            return super()._is_same(frame)

    monkeypatch.setattr(micu_extract.media.decord_pictures, "_Film", Film)
    assert len(shown(path, "decord")) == frames
    assert (seen[0], seen[-1]) == (0, frames - 1)
    assert min(frames, 9) <= len(seen) <= 18
    assert max(np.diff(seen), default=0) <= max(1, frames // 8)


def test_a_film_with_damaged_pictures_is_refused(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=50, gop=5, picture=lambda i: moving(i, (96, 128)))
    zero_packet(path, 21, keep=8)
    assert isinstance(shown(path, "pyav"), list)
    assert shown(path, "decord") == "decoders_differ"
    before = Window(Fraction(0), Fraction(1))
    assert shown(path, "decord", before) == shown(path, "pyav", before)


@pytest.mark.parametrize("frames", [1, 2, 20])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_turned_films_are_upright_or_refused(tmp_path, frames, codec, rotation):
    path = write_media(
        tmp_path / "a.mov",
        frames=frames,
        picture=moving,
        codec=codec,
        pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p",
        rotation=rotation,
    )
    assert shown(path, "decord") in (shown(path, "pyav"), "decoders_differ")


def zero_packet(path: Path, number: int, keep: int = 0) -> None:
    """Put zeros in place of a packet, but for its first bytes."""
    with av.open(str(path)) as film:
        packet = [packet for packet in film.demux(video=0) if packet.size][number]
        place, size = packet.pos + keep, packet.size - keep
    data = bytearray(path.read_bytes())
    data[place : place + size] = bytes(size)
    path.write_bytes(data)


def test_packets_that_pyav_refused_are_not_given_to_decord(tmp_path):
    """Before the window they are no damage of the clip; what PyAV's cap refuses is among them."""
    path = write_media(tmp_path / "a.mov", frames=50, codec="mjpeg", pix_fmt="yuvj420p")
    zero_packet(path, 2)
    window = Window(Fraction(1), Fraction(2))
    assert len(shown(path, "pyav", window)) == 10
    assert shown(path, "decord", window) == "decoders_differ"


def test_what_ffmpeg_remarks_does_not_reach_the_screen(tmp_path, capfd):
    path = write_media(tmp_path / "a.mp4", frames=50, gop=50, picture=moving)
    zero_packet(path, 10, keep=12)
    with Source(Clip(clip_id="c", path=path.name), tmp_path, "video") as source:
        packets = [packet for packet in source.packets() if packet.size]
        film = micu_extract.media.decord_pictures._open(source, packets, turned=False)
        with contextlib.suppress(decord.DECORDError):
            for _ in packets:
                film.next()
    assert capfd.readouterr() == ("", "")


def test_a_film_whose_pictures_change_their_size_is_refused(tmp_path):
    parts = [
        write_media(tmp_path / f"{i}.ts", frames=5, picture=sized(*size)).read_bytes()
        for i, size in enumerate([(48, 64), (32, 32), (48, 64)])
    ]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    assert shown(tmp_path / "joined.ts", "decord") == "decoders_differ"


def test_a_clip_with_too_many_bytes_is_refused_with_what_to_type(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", frames=50, picture=moving)
    with av.open(str(path)) as film:
        size = sum(packet.size for packet in film.demux(video=0))
    monkeypatch.setattr(micu_extract.media.decord_pictures, "MOST_BYTES", size)
    assert len(shown(path, "decord")) == 50
    monkeypatch.setattr(micu_extract.media.decord_pictures, "MOST_BYTES", size - 1)
    with pytest.raises(DecodeError, match="take --decoder pyav, or set start_s") as caught:
        read(
            Clip(clip_id="c", path="a.mp4"),
            FrameInput(fps=2, resize=16, crop=16),
            Reading(media_root=tmp_path, decoder="decord"),
        )
    assert caught.value.code == "too_large"


# --- what decord is given ----------------------------------------------------------------------


def polyglot(path: Path, text: str) -> Path:
    """A transport stream that begins as a text which names another file."""
    stream = write_media(path.with_name("plain.ts"), frames=30).read_bytes()
    head = text.encode()
    head += b"\n" * (-len(head) % 188)
    path.write_bytes(head + stream)
    return path


PLAYLIST = """#EXTM3U
#EXT-X-VERSION:3
#EXT-X-TARGETDURATION:10
#EXT-X-MEDIA-SEQUENCE:0
#EXTINF:10.0,
{}
#EXT-X-ENDLIST
"""
SCRIPT = "ffconcat version 1.0\nfile '{}'\n"


@pytest.mark.parametrize("text", [PLAYLIST, SCRIPT])
@pytest.mark.parametrize("is_absolute", [True, False])
@pytest.mark.parametrize("name", ["a.ts", "a.mp4", "a.m3u8"])
def test_a_file_that_begins_as_a_playlist_leads_nowhere(tmp_path, text, is_absolute, name):
    root = tmp_path / "media"
    root.mkdir()
    witness = write_media(
        tmp_path / "witness.ts", frames=30, picture=lambda i: np.full((32, 48, 3), 250, np.uint8)
    )
    path = polyglot(root / name, text.format(witness if is_absolute else "../witness.ts"))
    found = shown(path, "decord")
    assert found in (shown(path, "pyav"), "decoders_differ", "unreadable")
    if isinstance(found, list):
        assert found == shown(root / "plain.ts", "decord")


def test_decord_is_given_bytes_that_pyav_has_packed_and_no_name(tmp_path, monkeypatch):
    given: list[bytes] = []

    class Spy:
        def __init__(self, file: io.BytesIO, **options: object) -> None:
            given.append(file.getvalue())
            self._reader = decord.VideoReader(io.BytesIO(given[-1]), **options)
            self.next = self._reader.next

    path = polyglot(tmp_path / "a.ts", PLAYLIST.format("/etc/hostname"))
    real = decord.VideoReader
    module = type(sys)("decord")
    module.__dict__.update({**vars(decord), "VideoReader": Spy})
    monkeypatch.setitem(sys.modules, "decord", module)
    assert decord.VideoReader is real
    assert len(shown(path, "decord")) == 30
    assert len(given) == 1
    assert given[0].startswith(b"\x1a\x45\xdf\xa3")  # Matroska, whatever the file is
    assert b"hostname" not in given[0]
    assert flat_picture(0).shape == (32, 48, 3)


def test_a_pyav_that_cannot_hand_packets_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_decoder("decord")
    monkeypatch.setattr(micu_extract.media.pictures, "HANDS_OVER", False)

    with pytest.raises(ConfigError, match=r"expected PyAV 15 or newer, got .*pip install -U av"):
        check_decoder("decord")
    check_decoder("pyav")


@pytest.mark.parametrize(
    ("version", "hands_over"),
    [("14.4.0", False), ("15.0.0", True), ("15.1.0rc1", True), ("9.2.0", False), ("100.0", True)],
)
def test_pyav_hands_packets_over_from_version_15(
    monkeypatch: pytest.MonkeyPatch, version: str, hands_over: bool
) -> None:
    assert micu_extract.media.pictures.__file__
    spec = spec_from_file_location("pictures_of_another_pyav", micu_extract.media.pictures.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look it up
    monkeypatch.setattr(av, "__version__", version)
    spec.loader.exec_module(module)
    assert module.HANDING_OVER == 15
    assert module.HANDS_OVER is hands_over
