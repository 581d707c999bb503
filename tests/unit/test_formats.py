"""Files of every listed format that can be written here are read, whatever their name."""

import itertools
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FrameInput, WaveformInput
from micu_extract.media.formats import (
    BARE,
    CONTAINERS,
    MEDIA_SUFFIXES,
    PILLOW,
    holds_one_photograph,
)
from micu_extract.media.source import FORMATS
from tests.media_files import flat_picture, frame_of, read_media, tone, write_media

FRAMES = FrameInput(fps=2, resize=16, crop=16)
WAVES = WaveformInput(sample_rate=8000, window_s=10)
FILMS = {
    # ending: encoder, frames per second, and what it is written as where the ending does not tell
    "wmv": ("wmv2", 10, None),
    "asf": ("mpeg4", 10, None),
    "m2ts": ("libx264", 10, None),
    "ivf": ("libvpx-vp9", 10, None),
    "y4m": ("wrapped_avframe", 10, None),
    "nut": ("mpeg4", 10, None),
    "flv": ("flv", 10, None),
    "mxf": ("mpeg2video", 25, None),
    "h264": ("libx264", 10, None),
    "264": ("libx264", 24, "h264"),
    "mpeg4": ("mpeg4", 10, "m4v"),
    "mjpeg": ("mjpeg", 25, None),
}
SOUNDS = {
    "wma": ("wmav2", 44100, None),
    "wv": ("wavpack", 44100, None),
    "tta": ("tta", 44100, None),
    "w64": ("pcm_s16le", 8000, None),
    "caf": ("pcm_s16be", 8000, None),
    "voc": ("pcm_u8", 8000, None),
    "ac3": ("ac3", 48000, None),
    "eac3": ("eac3", 48000, None),
    "mka": ("flac", 44100, "matroska"),
    "oga": ("flac", 44100, "ogg"),
    "mp2": ("mp2", 44100, None),
}


def clip_of(path: Path, **window: float) -> Clip:
    return Clip(clip_id="c", path=path.name, **window)


def colour_of_third(number: int) -> np.ndarray:
    return flat_picture(number // 3)


@pytest.mark.parametrize("name", ["", "a", "a.jpg"])
@pytest.mark.parametrize("ending", FILMS)
def test_films_of_every_format_have_their_pictures_at_their_times(tmp_path, ending, name):
    codec, fps, written_as = FILMS[ending]
    assert f".{ending}" in MEDIA_SUFFIXES
    path = write_media(
        tmp_path / f"b.{ending}",
        frames=6 * fps,
        fps=fps,
        codec=codec,
        picture=colour_of_third,
        pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p",
        container_format=written_as,
    )
    path = path.rename(tmp_path / (name or path.name))
    shown = [int((k + 0.5) / 2 * fps) // 3 % 56 for k in range(12)]
    media = read_media(clip_of(path), FRAMES, tmp_path)
    assert [frame_of(unit) for unit in media.units] == shown
    assert (media.steps, float(media.duration_s)) == (6, pytest.approx(6, abs=0.05))
    assert media.notes["corrupt_frames"] == 0
    later = read_media(clip_of(path, start_s=3.0, end_s=5.0), FRAMES, tmp_path)
    assert [frame_of(unit) for unit in later.units] == shown[6:10]


@pytest.mark.parametrize("name", ["", "a", "a.mp4"])
@pytest.mark.parametrize("ending", SOUNDS)
def test_sounds_of_every_format_are_read(tmp_path, ending, name):
    codec, rate, written_as = SOUNDS[ending]
    assert f".{ending}" in MEDIA_SUFFIXES
    path = tmp_path / f"b.{ending}"
    write_media(
        path, sound=tone(3, rate), rate=rate, sound_codec=codec, container_format=written_as
    )
    path = path.rename(tmp_path / (name or path.name))
    media = read_media(clip_of(path), WAVES, tmp_path)
    assert 2.9 < media.duration_s < 3.2
    level = np.sqrt(np.mean(media.units[0][8000:16000] ** 2))
    assert level == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


def write_sphere(path: Path, samples: np.ndarray, rate: int) -> Path:
    """NIST SPHERE, as speech corpora have it, often with names in `.wav`."""
    fields = [
        "NIST_1A",
        "   1024",
        f"sample_count -i {len(samples)}",
        f"sample_rate -i {rate}",
        "channel_count -i 1",
        "sample_n_bytes -i 2",
        "sample_byte_format -s2 01",
        "sample_sig_bits -i 16",
        "sample_coding -s3 pcm",
        "end_head",
    ]
    head = "\n".join(fields).encode() + b"\n"
    path.write_bytes(head.ljust(1024, b" ") + samples.astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("name", ["a.sph", "a.wav", "a"])
def test_nist_sphere_is_read_under_any_name(tmp_path, name):
    write_sphere(tmp_path / name, 20000 * tone(2, 8000)[0], 8000)
    media = read_media(clip_of(tmp_path / name), WAVES, tmp_path)
    assert media.duration_s == 2
    expected = 20000 / 2**15 * tone(2, 8000)[0]
    np.testing.assert_allclose(media.units[0], expected, atol=1e-3)


def write_silent_ape(path: Path, frames: int) -> Path:
    """Monkey's Audio of silence, which is the one thing that it stores without packing."""
    rate, blocks = 8000, 8000
    body = [b""] * frames
    for number in range(frames):
        words = struct.pack(">III", 0x80000000, 3, 0)  # flags follow; both channels are silent
        words += bytes(8)
        body[number] = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    data = b"".join(body)
    head = struct.pack("<HHIIIHHI", 1000, 0, blocks, blocks, frames, 16, 2, rate)
    start = 52 + len(head) + 4 * frames
    table = b"".join(
        struct.pack("<I", start + place)
        for place in itertools.accumulate([0, *map(len, body[:-1])])
    )
    descriptor = b"MAC " + struct.pack("<HH", 3990, 0)
    descriptor += struct.pack("<IIIIIII", 52, len(head), len(table), 0, len(data), 0, 0) + bytes(16)
    path.write_bytes(descriptor + head + table + data)
    return path


@pytest.mark.parametrize("name", ["a.ape", "a.mp3", "a"])
def test_monkeys_audio_is_read_under_any_name(tmp_path, name):
    write_silent_ape(tmp_path / name, 3)
    media = read_media(clip_of(tmp_path / name), WAVES, tmp_path)
    assert media.duration_s == 3
    assert not media.units[0].any()


# --- the list --------------------------------------------------------------------------------


def test_ffmpeg_knows_every_format_by_its_name_and_opens_it_itself():
    for name in CONTAINERS:
        assert av.ContainerFormat(name.partition(",")[0], "r").is_input
    assert set(FORMATS.split(",")) == {part for name in CONTAINERS for part in name.split(",")}


def test_no_format_follows_other_files_or_needs_a_name():
    """Those that FFmpeg opens without a file, by a name, or that name further files."""
    following = {
        "hls",
        "dash",
        "concat",
        "sdp",
        "rtsp",
        "rtp",
        "lavfi",
        "imf",
        "vobsub",
        "mpegtsraw",
    }
    named = {
        "image2",
        "image2pipe",
        "rawvideo",
        "data",
        "s16le",
        "tty",
        "ffmetadata",
        "webm_dash_manifest",
    }
    assert not (following | named) & set(FORMATS.split(","))
    pictures = {name for name in CONTAINERS if name.endswith("_pipe")}
    assert pictures == {"png_pipe", "jpeg_pipe"}
    for name in CONTAINERS:
        flags = av.ContainerFormat(name.partition(",")[0], "r").flags
        assert not flags & 0x0003  # AVFMT_NOFILE, AVFMT_NEEDNUMBER


def test_endings_are_lower_case_and_belong_to_a_format():
    assert all(ending == ending.lower() and ending.startswith(".") for ending in MEDIA_SUFFIXES)
    assert {".wmv", ".wma", ".m2ts", ".webp", ".heic", ".sph", ".ape", ".mpc"} <= MEDIA_SUFFIXES
    assert not MEDIA_SUFFIXES & {
        ".txt",
        ".csv",
        ".m3u8",
        ".json",
        ".srt",
        ".zip",
        ".py",
        ".npy",
        "",
    }
    assert set(CONTAINERS) > BARE
    assert not {"GIF", "EPS", "PSD", "MPO"} & set(PILLOW)


# --- photographs of several pictures ---------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([segment(0xE2, b"MPF\0...")], True),
        ([segment(0xE1, bytes(60000)), segment(0xE2, b"MPF\0")], True),
        ([segment(0xE2, b"ICC_PROFILE")], False),
        ([segment(0xE1, b"MPF\0")], False),
        ([segment(0xDA, b"scan"), segment(0xE2, b"MPF\0")], False),
        ([b"\xff\xd9", segment(0xE2, b"MPF\0....")], False),
        ([b"noise and more noise"], False),
        ([], False),
    ],
)
def test_a_photograph_says_before_its_picture_that_others_follow(parts, found):
    data = b"\xff\xd8" + b"".join(parts)
    assert holds_one_photograph(lambda place, size: data[place : place + size]) == found


def test_looking_at_a_file_comes_to_an_end():
    looked = []

    def read_at(place: int, size: int) -> bytes:
        looked.append(place)
        return segment(0xE1, b"1234")[:size].ljust(size, b"\xff")

    assert not holds_one_photograph(read_at)
    assert len(looked) == 10_000


def test_damaged_chunks_of_a_png_file_are_no_trouble(tmp_path):
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 2**32 - 1, b"IHDR") + bytes(9)
    (tmp_path / "a.png").write_bytes(head + struct.pack(">I", zlib.crc32(head)))
    with pytest.raises(DecodeError) as caught:
        read_media(clip_of(tmp_path / "a.png"), FRAMES, tmp_path)
    assert caught.value.code in {"unreadable", "corrupt", "too_large", "no_video"}
