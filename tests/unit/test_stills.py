"""Stills of every format come out upright, in their colours, and none stands for several."""

import struct
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import ExifTags, Image, features

import micu_extract.media.source
import micu_extract.media.stills
from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FrameInput, WaveformInput
from micu_extract.media.formats import CONTAINERS, PILLOW, find_still
from micu_extract.media.source import DECODE_ERRORS
from micu_extract.media.stills import open_source
from micu_extract.pipeline.probe import probe_file
from tests.heic_files import save_heic, save_tiled_heic
from tests.media_files import read_media, set_display_matrix, write_media

HEIGHT, WIDTH = 32, 48
WHOLE = FrameInput(fps=1, resize=(HEIGHT, WIDTH), crop=HEIGHT)
CORNERS = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
CORNERS[:16, :24] = (220, 30, 30)
CORNERS[:16, 24:] = (30, 220, 30)
"""Red to the left and green to the right above, dark below: every turn and mirror shows."""
KINDS = ["jpg", "png", "webp", "tiff", "bmp", "avif", "heic"]


def seen(path: Path, wants: FrameInput = WHOLE, **window: Any) -> np.ndarray:
    clip = Clip(clip_id="c", path=path.name, **window)
    return read_media(clip, wants, path.parent).units.astype(int)


def refusal(path: Path, wants: Any = WHOLE, **window: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        read_media(Clip(clip_id="c", path=path.name, **window), wants, path.parent)
    assert caught.value.code in DECODE_ERRORS
    return caught.value


def assert_alike(picture: np.ndarray, expected: np.ndarray, far: float = 6) -> None:
    left = (WIDTH - HEIGHT) // 2
    difference = picture - expected[:, left : left + HEIGHT].astype(int)
    assert np.abs(difference).mean() < far


def turned(picture: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores what is `picture` once EXIF's orientation is followed."""
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }
    return np.ascontiguousarray(stored[orientation])


def save(path: Path, picture: np.ndarray | Image.Image, **options: Any) -> Path:
    """A still; its ending says which."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if path.suffix == ".heic":
        save_heic(path)  # which is CORNERS, whatever was asked for
    else:
        quality = {} if path.suffix in (".png", ".bmp", ".tiff") else {"quality": 95}
        image.save(path, **quality, **options)
    return path


# --- upright, in their colours ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_still_is_a_clip_of_one_picture_in_its_colours(tmp_path, kind):
    path = save(tmp_path / f"a.{kind}", CORNERS)
    (picture,) = seen(path)
    assert_alike(picture, CORNERS)
    assert refusal(path, WaveformInput(sample_rate=8000, window_s=1)).code == "no_audio"
    assert refusal(path, start_s=5.0).code == "outside_media"
    probe = probe_file(path.name, tmp_path)
    assert (probe.state, probe.video, probe.audio) == ("ok", True, False)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "avif"])
def test_stills_are_upright_whatever_exif_says(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Camera"
    path = save(tmp_path / f"a.{kind}", turned(CORNERS, orientation), exif=exif)
    (picture,) = seen(path)
    assert_alike(picture, CORNERS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_films_of_camera_pictures_are_upright(tmp_path, orientation):
    """Each packet of a time lapse is a JPEG file with EXIF."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    write_media(
        tmp_path / "a.mov",
        frames=8,
        fps=4,
        codec="mjpeg",
        picture=lambda i: turned(CORNERS, orientation),
        exif=exif.tobytes(),
    )
    first, second = seen(tmp_path / "a.mov")
    assert_alike(first, CORNERS)
    assert_alike(second, CORNERS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_films_are_upright_whatever_their_display_matrix_says(tmp_path, orientation):
    matrix = {
        1: (1, 0, 0, 1),
        2: (-1, 0, 0, 1),
        3: (-1, 0, 0, -1),
        4: (1, 0, 0, -1),
        5: (0, 1, 1, 0),
        6: (0, 1, -1, 0),
        7: (0, -1, -1, 0),
        8: (0, -1, 1, 0),
    }[orientation]
    path = write_media(
        tmp_path / "a.mp4", frames=10, picture=lambda i: turned(CORNERS, orientation)
    )
    (picture,) = seen(set_display_matrix(path, *matrix))
    assert_alike(picture, CORNERS)


GRAY = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
MODES: dict[str, Image.Image] = {
    "1": Image.fromarray(GRAY).convert("1"),
    "L": Image.fromarray(GRAY),
    "LA": Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(GRAY)]),
    "P": Image.fromarray(CORNERS).convert("P", palette=Image.Palette.ADAPTIVE),
    "RGBA": Image.merge("RGBA", [*Image.fromarray(CORNERS).split(), Image.fromarray(GRAY)]),
    "CMYK": Image.fromarray(CORNERS).convert("CMYK"),
    "YCbCr": Image.fromarray(CORNERS).convert("YCbCr"),
    "I;16": Image.fromarray(GRAY.astype(np.uint16) * 257),
}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("png", mode) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    + [("tiff", mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16")]
    + [("bmp", mode) for mode in ("1", "L", "P", "RGBA")]
    + [("webp", "RGBA"), ("avif", "RGBA"), ("jpg", "L"), ("jpg", "CMYK")],
)
def test_gray_palette_alpha_cmyk_and_sixteen_bits_come_out_right(tmp_path, kind, mode):
    lossless = {"lossless": True, "exact": True} if kind == "webp" else {}
    path = save(tmp_path / f"a.{kind}", MODES[mode], **lossless)
    expected = np.repeat(GRAY[:, :, None], 3, axis=2) if mode == "I;16" else None
    if expected is None:  # what is behind transparent parts is shown, as torchvision does
        expected = np.asarray(MODES[mode].convert("RGB"))
    (picture,) = seen(path)
    assert_alike(picture, expected, far=8 if kind in ("jpg", "avif") else 2)


def test_pixels_that_have_no_place_between_black_and_white_are_refused(tmp_path):
    for name, values in (("f", GRAY.astype(np.float32)), ("i", GRAY.astype(np.int32))):
        Image.fromarray(values).save(tmp_path / f"{name}.tiff")
        error = refusal(tmp_path / f"{name}.tiff")
        assert error.code == "unreadable"
        assert "expected gray, palette, RGB or CMYK of at most 16 bits" in str(error)


# --- the content decides ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.mp4", "a.gif", "a", "img%03d.jpg", "a.m3u8"])
def test_what_is_in_a_still_decides_and_not_its_name(tmp_path, kind, name):
    path = save(tmp_path / f"b.{kind}", CORNERS)
    for number in range(3):
        save(tmp_path / f"img00{number}.jpg", 255 - CORNERS)
    (picture,) = seen(path.rename(tmp_path / name))
    assert_alike(picture, CORNERS)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "ts", "ogg", "flac", "mp3"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.wav", "a.webp", "a", "a.concat", "a.h264"])
def test_what_is_in_a_film_or_sound_decides_and_not_its_name(tmp_path, kind, name):
    sound = {"ogg": "libopus", "flac": "flac", "mp3": "mp3"}.get(kind, "")
    wave = 0.5 * np.sin(np.arange(96000) / 20)[None]
    if sound:
        write_media(tmp_path / f"b.{kind}", sound=wave, rate=48000, sound_codec=sound)
    else:
        codec = "mpeg4" if kind == "avi" else "libx264"
        write_media(tmp_path / f"b.{kind}", frames=20, codec=codec, picture=lambda i: CORNERS)
    path = (tmp_path / f"b.{kind}").rename(tmp_path / name)
    if not sound:
        assert_alike(seen(path)[0], CORNERS)
        return
    wants = WaveformInput(sample_rate=8000, window_s=10)
    media = read_media(Clip(clip_id="c", path=name), wants, tmp_path)
    assert 1.9 < media.duration_s < 2.1


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), name) + body


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"\xff\xd8\xff\xe0", "jpeg_pipe"),
        (b"\xff\xd8\x00", ""),
        (b"\x89PNG\r\n\x1a\n", "png_pipe"),
        (b"\x89PNG\r\n\x1a\x00", ""),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"RIFF\0\0\0\0WAVEfmt ", ""),
        (b"BM" + bytes(12) + b"\x28\0\0\0", "BMP"),
        (b"BM" + bytes(12) + b"\x0c\0\0\0", "BMP"),
        (b"BM" + bytes(12) + b"\x29\0\0\0", ""),
        (b"BM is a text", ""),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"II*", ""),
        (box(b"ftyp", b"heic\0\0\0\0mif1"), "HEIF"),
        (box(b"ftyp", b"avif\0\0\0\0mif1"), "AVIF"),
        (box(b"ftyp", b"mif1\0\0\0\0miafavif"), "AVIF"),
        (box(b"ftyp", b"mif1\0\0\0\0miaf") + b"avif", "HEIF"),
        (box(b"ftyp", b"isom\0\0\0\0mif1avif"), ""),
        (box(b"ftyp", b"qt  \0\0\0\0qt  "), ""),
        (b"", ""),
    ],
)
def test_stills_are_told_by_their_first_bytes(head, found):
    data = head
    assert find_still(lambda place, size: data[place : place + size]) == found
    assert found in {"", *CONTAINERS, *PILLOW}


def chunk(name: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(name + body)
    return struct.pack(">I4s", len(body), name) + body + struct.pack(">I", crc)


@pytest.mark.parametrize("padding", [0, 100_000])
def test_an_animated_png_is_told_however_late_it_says_so(tmp_path, padding):
    path = write_animation(tmp_path / "a.png", 3)
    data = path.read_bytes()
    head = 8 + 25  # signature and IHDR
    path.write_bytes(data[:head] + chunk(b"teSt", bytes(padding)) + data[head:])
    assert len(seen(path)) == 3


# --- one picture never stands for several ----------------------------------------------------

COLOURS = [(220, 40, 40), (40, 200, 60), (50, 70, 220), (220, 210, 50), (200, 60, 200)]


def write_animation(path: Path, count: int, milliseconds: int = 1000, **options: Any) -> Path:
    pictures = [Image.new("RGB", (WIDTH, HEIGHT), COLOURS[i % 5]) for i in range(count)]
    more = {"duration": milliseconds, "loop": 0, **options}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **more)
    return path


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "avif"])
def test_animated_stills_are_films(tmp_path, kind):
    path = write_animation(tmp_path / f"a.{kind}", 5)
    units = seen(path)
    assert len(units) == 5
    for unit, colour in zip(units, COLOURS, strict=True):
        assert np.abs(unit - np.array(colour)).mean() < 8
    (third,) = seen(path, start_s=2.0, end_s=3.0)
    assert np.abs(third - np.array(COLOURS[2])).mean() < 8
    assert refusal(path, start_s=5.0).code == "outside_media"
    media = read_media(Clip(clip_id="c", path=path.name), WHOLE, tmp_path)
    assert (media.duration_s, media.steps) == (5.0, 5)


@pytest.mark.parametrize(("told", "lasts"), [(0, 0.3), (10, 0.3), (11, 0.033), (200, 0.6)])
def test_pictures_of_no_length_last_as_long_as_in_a_browser(tmp_path, told, lasts):
    path = write_animation(tmp_path / "a.webp", 3, told, minimize_size=False)
    media = read_media(Clip(clip_id="c", path=path.name), WHOLE, tmp_path)
    assert media.duration_s == pytest.approx(lasts)


def test_a_tiff_file_of_several_pages_is_refused(tmp_path):
    path = write_animation(tmp_path / "a.tiff", 3)
    error = refusal(path)
    assert error.code == "unreadable"
    assert str(error) == (
        "'a.tiff': a TIFF file of several pages, which have no times; expected one picture; "
        "save each page as a file of its own"
    )


@pytest.mark.parametrize(("kind", "pages"), [(1, 1), (4, 1), (2, 0), (0, 0)])
def test_small_copies_and_masks_are_no_pages_of_a_tiff_file(tmp_path, kind, pages):
    second = Image.new("RGB", (8, 8))
    with Image.open(save(tmp_path / "one.tiff", CORNERS)) as first:
        first.load()
        second.encoderinfo = {"tiffinfo": {254: kind}}
        first.save(tmp_path / "a.tiff", save_all=True, append_images=[second])
    if pages:
        assert_alike(seen(tmp_path / "a.tiff")[0], CORNERS)
    else:
        assert refusal(tmp_path / "a.tiff").code == "unreadable"


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\x01\x04\0\0"}])
def test_the_preview_of_a_raw_photograph_is_not_taken_for_it(tmp_path, tags):
    path = save(tmp_path / "a.tiff", CORNERS, tiffinfo=tags)
    error = refusal(path)
    assert error.code == "unreadable"
    assert "a camera's raw file" in str(error)


def test_a_photograph_with_a_second_picture_for_bright_screens_is_one_picture(tmp_path):
    path = tmp_path / "a.jpg"
    other = Image.fromarray(255 - CORNERS)
    Image.fromarray(CORNERS).save(
        path, format="MPO", save_all=True, append_images=[other], quality=95
    )
    assert path.read_bytes().count(b"\xff\xd8\xff") == 2
    (picture,) = seen(path)
    assert_alike(picture, CORNERS)
    assert read_media(Clip(clip_id="c", path="a.jpg"), WHOLE, tmp_path).duration_s == 0.04


def test_jpeg_pictures_one_after_the_other_are_a_film(tmp_path):
    parts = []
    for number in range(50):
        save(tmp_path / "b.jpg", np.full((HEIGHT, WIDTH, 3), 40 if number < 25 else 200, np.uint8))
        parts.append((tmp_path / "b.jpg").read_bytes())
    (tmp_path / "a.mjpeg").write_bytes(b"".join(parts))
    first, second = seen(tmp_path / "a.mjpeg")
    assert abs(first.mean() - 40) < 3
    assert abs(second.mean() - 200) < 3


# --- hostile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["webp", "tiff", "bmp", "avif", "heic"])
def test_a_still_that_is_cut_or_scrambled_fails_by_a_known_code(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    whole = save(tmp_path / f"a.{kind}", noise).read_bytes()
    path, random = tmp_path / "b", np.random.default_rng(1)
    for part in (0.1, 0.3, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        assert refusal(path).code in {"unreadable", "corrupt"}
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 6):
            data[place] = random.integers(0, 256)
        path.write_bytes(data)
        try:
            seen(path)
            continue
        except DecodeError as caught:
            error = caught
        assert error.code in DECODE_ERRORS
        assert len(str(error)) < 500


@pytest.mark.parametrize("kind", ["webp", "tiff", "bmp", "avif", "heic", "png", "jpg"])
def test_stills_larger_than_the_cap_are_refused(tmp_path, kind, monkeypatch):
    path = save(tmp_path / f"a.{kind}", CORNERS)
    monkeypatch.setattr(micu_extract.media.stills, "MAX_PIXELS", HEIGHT * WIDTH)
    assert len(seen(path)) == 1
    monkeypatch.setattr(micu_extract.media.stills, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    monkeypatch.setattr(micu_extract.media.source, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    error = refusal(path)
    assert error.code == "too_large"
    if kind in ("webp", "tiff", "bmp", "avif", "heic"):
        assert f"pictures of {WIDTH} x {HEIGHT} px; expected at most" in str(error)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_few_bytes_that_claim_a_huge_picture_are_not_unpacked(tmp_path, side):
    path = save(tmp_path / "a.bmp", CORNERS)
    data = bytearray(path.read_bytes())
    data[18:26] = struct.pack("<ii", side, side)
    path.write_bytes(data)
    assert refusal(path).code == "too_large"


def test_a_still_of_more_bytes_than_pillow_should_read_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.webp", CORNERS)
    monkeypatch.setattr(micu_extract.media.stills, "MAX_STILL_BYTES", path.stat().st_size)
    assert len(seen(path)) == 1
    monkeypatch.setattr(micu_extract.media.stills, "MAX_STILL_BYTES", path.stat().st_size - 1)
    assert refusal(path).code == "too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(100),
        b"P6\n2 2\n255\n" + bytes(12),
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='b.png'/></svg>",
    ],
)
def test_other_formats_of_pillow_and_ffmpeg_are_not_tried(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    assert refusal(tmp_path / "a.png").code == "unreadable"


def test_an_animation_that_is_damaged_midway_is_used_as_far_as_it_goes(tmp_path, monkeypatch):
    path = write_animation(tmp_path / "a.webp", 10)
    real = micu_extract.media.stills.Still._decode

    def decode(still: Any, index: int) -> np.ndarray:
        if index >= good:
            raise SyntaxError("no such chunk\x1b[31m\n" + "x" * 9000)
        return real(still, index)

    monkeypatch.setattr(micu_extract.media.stills.Still, "_decode", decode)
    good = 9
    media = read_media(Clip(clip_id="c", path=path.name), WHOLE, tmp_path)
    assert (len(media.units), media.notes["corrupt_frames"]) == (9, 1)
    good = 3
    assert len(seen(path, end_s=3.0)) == 3
    assert refusal(path).code == "corrupt"
    good = 0
    error = refusal(path)
    assert (error.code, len(str(error)) < 300) == ("corrupt", True)
    assert str(error).startswith("'a.webp': Pillow cannot read it: SyntaxError: no such chunk")


def test_nothing_stays_open_after_a_still(tmp_path):
    handles = len(list(Path("/dev/fd").iterdir()))
    for kind in KINDS:
        path = save(tmp_path / f"a.{kind}", CORNERS)
        seen(path)
        path.write_bytes(path.read_bytes()[:60])
        refusal(path)
    assert len(list(Path("/dev/fd").iterdir())) == handles


# --- photographs in tiles ----------------------------------------------------------------------


def test_a_photograph_in_tiles_is_put_together(tmp_path):
    save_tiled_heic(tmp_path / "a.heic")
    both = FrameInput(fps=1, resize=(HEIGHT, 2 * WIDTH), crop=2 * WIDTH)
    (picture,) = seen(tmp_path / "a.heic", both)
    top = WIDTH - HEIGHT // 2  # the crop is a square, with black above and below
    photograph = picture[top : top + HEIGHT]
    difference = photograph - np.concatenate([CORNERS, CORNERS], axis=1).astype(int)
    assert np.abs(difference).mean() < 6


def test_a_photograph_in_tiles_is_refused_where_nothing_puts_it_together(tmp_path, monkeypatch):
    save_tiled_heic(tmp_path / "a.heic")
    monkeypatch.setattr(micu_extract.media.stills, "_is_installed", lambda plugin: False)
    error = refusal(tmp_path / "a.heic")
    assert error.code == "unreadable"
    if int(av.__version__.split(".")[0]) >= 17:  # older FFmpeg finds nothing in it
        assert (
            str(error) == "'a.heic': a photograph stored in tiles; to read it, pip install pi-heif"
        )


# --- without what reads them -----------------------------------------------------------------


@pytest.mark.skipif(int(av.__version__.split(".")[0]) < 17, reason="older FFmpeg knows less")
@pytest.mark.parametrize("kind", ["avif", "heic"])
def test_ffmpeg_reads_what_pillow_has_no_plugin_for(tmp_path, kind, monkeypatch):
    path = save(tmp_path / f"a.{kind}", CORNERS)
    monkeypatch.setattr(micu_extract.media.stills, "_is_installed", lambda plugin: False)
    with open_source(Clip(clip_id="c", path=path.name), tmp_path, "video") as source:
        assert not isinstance(source, micu_extract.media.stills.Still)
    assert_alike(seen(path)[0], CORNERS)


def test_a_plugin_that_is_not_there_is_no_error(monkeypatch):
    assert micu_extract.media.stills._is_installed("HEIF")
    monkeypatch.setitem(micu_extract.media.stills._PLUGINS, "HEIF", "no_such_module")
    assert not micu_extract.media.stills._is_installed("HEIF")
    assert micu_extract.media.stills._is_installed("AVIF") == features.check("avif")
    monkeypatch.setattr(features, "check", lambda name: False)
    assert not micu_extract.media.stills._is_installed("AVIF")


# --- real files ------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("i_exif6.jpg", 1),
        ("i_exif_make_only.jpg", 1),
        ("i_png_named.jpg", 1),
        ("i_jpg_named.png", 1),
        ("i_webp.webp", 1),
        ("i_bmp.bmp", 1),
        ("i_tiff.tiff", 1),
        ("heif__sample_still_photo.heic", 1),
        ("testdata__colors_hdr_p3.avif", 1),
        ("testdata__stereo_spatial.mp4", 1),
        ("p_anim.png", 6),
        ("q_timelapse_mjpeg.mov", 6),
        ("c_ogv.ogv", 6),
        ("c_wmv.wmv", 6),
        ("c_m2ts.m2ts", 6),
    ],
)
def test_files_from_bug_reports_come_out_right(shared, name, count):
    folder = shared / "media" / "reports"
    units = seen(folder / name)
    assert len(units) == count
    if name.startswith("i_"):
        top, bottom = units[0][:10].mean((0, 1)), units[0][-10:].mean((0, 1))
        assert top[0] > top[1] + 50
        assert bottom[1] > bottom[0] + 50
    if count == 6:
        colours = [tuple(np.round(unit.mean((0, 1)), -1).astype(int)) for unit in units]
        assert len(set(colours)) == 6
