import errno
import os
import random
import resource
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

import micu_extract.media.damage
import micu_extract.media.source
from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FlowInput, FrameInput, WaveformInput
from micu_extract.media.damage import Damage
from micu_extract.media.source import DECODE_ERRORS
from tests.media_files import frame_of, read_media, tone, write_media, write_wav

FRAMES = FrameInput(fps=4, resize=16, crop=16)
WAVES = WaveformInput(sample_rate=8000, window_s=10)


def outcome(path: str | Path, wants, root: Path, **window) -> str:
    """`units`, or the code of the failure; anything else is an error of the test."""
    clip = Clip(clip_id="c", path=str(path), **window)
    try:
        media = read_media(clip, wants, root)
    except DecodeError as error:
        known = error.code in DECODE_ERRORS and str(error).encode()
        return error.code if known else f"unknown code {error.code!r}"
    assert 0 < len(media.units) == len(media.times_s)
    assert 0 <= media.times_s.min() <= media.times_s.max() < media.steps
    return "units"


def noisy(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (48, 64, 3)).astype(np.uint8)


def largest_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- what is not a media file ------------------------------------------------------------------


def test_zero_bytes_random_bytes_and_text_are_named_failures(tmp_path):
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "random.mp4").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    for wants in (FRAMES, FlowInput(), WAVES):
        assert outcome("zero.mp4", wants, tmp_path) == "empty"
        assert outcome("random.mp4", wants, tmp_path) == "unreadable"
        assert outcome("text.mp4", wants, tmp_path) == "unreadable"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", "missing"),
        ("no.mp4", "missing"),
        ("a\0b.mp4", "missing"),
        ("\ud800.mp4", "missing"),
        ("x" * 300 + ".mp4", "missing"),
        ("loop.mp4", "missing"),
        ("folder", "not_a_file"),
        ("/dev/zero", "outside_root"),
        ("../out.mp4", "outside_root"),
        ("link.mp4", "outside_root"),
        ("http://127.0.0.1:9/a.mp4", "missing"),
        ("concat:a.mp4", "missing"),
    ],
)
def test_paths_that_lead_nowhere_or_out_are_refused_before_opening(tmp_path, path, code):
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    write_media(tmp_path / "out.mp4", frames=2)
    (root / "link.mp4").symlink_to(tmp_path / "out.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    assert outcome(path, FRAMES, root) == code


def test_links_and_absolute_paths_inside_the_root_are_followed(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=5)
    (tmp_path / "link.mp4").symlink_to(path)
    assert outcome("link.mp4", FRAMES, tmp_path) == "units"
    assert outcome(path, FRAMES, tmp_path) == "units"


def test_a_pipe_named_like_a_video_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    started = time.monotonic()
    assert outcome("a.mp4", FRAMES, tmp_path) == "not_a_file"
    assert time.monotonic() - started < 120


def test_damage_that_ffmpeg_calls_no_permission_is_called_damage(tmp_path):
    path = write_media(tmp_path / "a.wmv", frames=5, codec="wmv2", pix_fmt="yuv420p")
    data = path.read_bytes()
    place = data.index(bytes.fromhex("9107dcb7b7a9cf118ee600c00c205365")) + 24
    path.write_bytes(data[:place] + bytes(16) + data[place + 16 :])  # the kind of the stream
    with pytest.raises(av.error.PermissionError):
        av.open(str(path))
    assert outcome("a.wmv", FRAMES, tmp_path) == "unreadable"


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_decoder_that_does_not_open_is_damage(tmp_path, kind):
    path = write_media(
        tmp_path / "a.mkv", frames=9, codec="libx265", pix_fmt="yuv420p", picture=noisy
    )
    if kind == "audio":
        path = write_media(tmp_path / "a.mkv", sound=tone(2, 8000), sound_codec="flac")
    data = path.read_bytes()
    place = data.index(b"\x63\xa2") + 5  # what the decoder is told before the first packet
    path.write_bytes(data[:place] + bytes([255] * 20) + data[place + 20 :])
    wants = FRAMES if kind == "video" else WAVES
    assert outcome("a.mkv", wants, tmp_path) in {"corrupt", "unreadable", "units"}


def test_whatever_a_decoder_raises_at_a_packet_counts_as_damage():
    class Broken:
        def decode(self, packet: object) -> list[object]:
            raise ValueError("cannot decode unknown codec")

    packets = [SimpleNamespace(size=1, pts=i, is_corrupt=False) for i in range(5)]
    source = SimpleNamespace(
        stream=SimpleNamespace(codec_context=Broken()),
        packets=lambda: iter(packets),
        time_of=lambda stamp: Fraction(stamp),
    )
    damage = Damage()
    assert list(micu_extract.media.damage.decode(source, Fraction(0), damage)) == []
    assert (damage.bad, damage.refused, damage.packets, damage.cut_off) == (5, 5, 5, True)


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EACCES, "permission"), (errno.EPERM, "unreadable"), (errno.EIO, "io_error")],
)
def test_what_the_system_says_while_a_file_is_read_is_told(tmp_path, monkeypatch, number, code):
    write_media(tmp_path / "a.mp4", frames=5)

    def refuse(*words: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(micu_extract.media.source.Source, "packets", refuse)
    assert outcome("a.mp4", FRAMES, tmp_path) == code


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    write_media(tmp_path / "a.mp4", frames=2).chmod(0)
    assert outcome("a.mp4", FRAMES, tmp_path) == "permission"


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.mp4", "größe 動画.mp4".encode(), b"-i a:b %d.mp4", b"concat:a|b.mp4"]
)
def test_names_that_are_not_utf8_or_look_like_options_are_opened(tmp_path, name):
    written = write_media(tmp_path / "a.mp4", frames=5)
    written.rename(tmp_path / os.fsdecode(name))
    assert outcome(os.fsdecode(name), FRAMES, tmp_path) == "units"


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile real.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nreal.ts\n#EXT-X-ENDLIST\n",
    ],
)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8"])
def test_playlists_do_not_open_other_files(tmp_path, script, name):
    write_media(tmp_path / "real.mp4", frames=5)
    write_media(tmp_path / "real.ts", frames=5)
    (tmp_path / name).write_text(script)
    assert outcome(name, FRAMES, tmp_path) == "unreadable"


# --- what lacks a stream -----------------------------------------------------------------------


def test_a_missing_stream_fails_its_own_modality_only(tmp_path):
    write_media(tmp_path / "sound.mp4", sound=tone(1, 8000))
    write_media(tmp_path / "pictures.mp4", frames=10)
    assert outcome("sound.mp4", FRAMES, tmp_path) == "no_video"
    assert outcome("sound.mp4", FlowInput(), tmp_path) == "no_video"
    assert outcome("sound.mp4", WAVES, tmp_path) == "units"
    assert outcome("pictures.mp4", FRAMES, tmp_path) == "units"
    assert outcome("pictures.mp4", WAVES, tmp_path) == "no_audio"


# --- what is damaged ---------------------------------------------------------------------------


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def test_a_file_cut_off_is_corrupt_except_for_clips_before_the_cut(tmp_path):
    faststart = {"movflags": "faststart"}
    cut(write_media(tmp_path / "a.mp4", frames=40, picture=noisy, options=faststart), 0.6)
    assert outcome("a.mp4", FRAMES, tmp_path) == "corrupt"
    assert outcome("a.mp4", FRAMES, tmp_path, end_s=2.0) == "units"
    assert outcome("a.mp4", FRAMES, tmp_path, start_s=1.0, end_s=4.0) == "corrupt"


def test_a_file_cut_off_near_its_end_is_used_as_far_as_it_goes(tmp_path):
    faststart = {"movflags": "faststart"}
    cut(write_media(tmp_path / "a.mp4", frames=40, picture=noisy, options=faststart), 0.9)
    media = read_media(Clip(clip_id="c", path="a.mp4"), FRAMES, tmp_path)
    assert 3.2 < media.duration_s < 3.8


def test_a_file_without_its_table_is_unreadable(tmp_path):
    cut(write_media(tmp_path / "a.mp4", frames=40, picture=noisy), 0.9)
    assert outcome("a.mp4", FRAMES, tmp_path) == "unreadable"


def test_a_stream_cut_off_without_a_stated_length_is_a_shorter_file(tmp_path):
    cut(write_media(tmp_path / "a.mkv", frames=40, picture=noisy), 0.6)
    media = read_media(Clip(clip_id="c", path="a.mkv", end_s=4.0), FRAMES, tmp_path)
    assert media.steps == 4
    assert media.duration_s < 3
    assert media.times_s.max() < media.duration_s


def flip_bits(path: Path, flips: int) -> Path:
    data = bytearray(path.read_bytes())
    generator = random.Random(0)
    for _ in range(flips):
        data[generator.randrange(len(data) // 3, len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)
    return path


def test_a_few_flipped_bits_are_counted_and_many_are_refused(tmp_path):
    options = {"movflags": "faststart"}
    write_media(tmp_path / "few.mp4", frames=60, picture=noisy, gop=2, options=options)
    flip_bits(tmp_path / "few.mp4", 5)
    media = read_media(Clip(clip_id="c", path="few.mp4"), FRAMES, tmp_path)
    assert 0 < media.notes["corrupt_frames"] < 0.2 * 60
    write_media(tmp_path / "many.mp4", frames=60, picture=noisy, gop=20, options=options)
    flip_bits(tmp_path / "many.mp4", 400)
    assert outcome("many.mp4", FRAMES, tmp_path) == "corrupt"


def test_the_share_of_damage_that_is_borne_is_the_one_stated(tmp_path, monkeypatch):
    flip_bits(write_media(tmp_path / "a.mkv", frames=60, picture=noisy, gop=2), 5)
    assert outcome("a.mkv", FRAMES, tmp_path) == "units"
    monkeypatch.setattr(micu_extract.media.damage, "MAX_DAMAGE", 0.01)
    assert outcome("a.mkv", FRAMES, tmp_path) == "corrupt"


def test_sound_that_is_not_finite_is_refused_where_it_is_used(tmp_path):
    for value in (np.nan, np.inf):
        sound = tone(2, 8000)
        sound[0, 12000] = value
        write_wav(tmp_path / "a.wav", sound, 8000)
        assert outcome("a.wav", WAVES, tmp_path) == "non_finite"
        assert outcome("a.wav", WAVES, tmp_path, end_s=1.0) == "units"


def test_sound_that_claims_four_gigabytes_is_as_long_as_it_is(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(1, 8000), 8000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xf0\xff\xff\xff"
    path.write_bytes(data)
    media = read_media(Clip(clip_id="c", path="a.wav"), WAVES, tmp_path)
    assert (media.duration_s, len(media.units)) == (1.0, 1)


# --- what is too large -------------------------------------------------------------------------


def test_pictures_larger_than_the_cap_are_refused(tmp_path, monkeypatch):
    write_media(tmp_path / "a.mp4", frames=3)
    assert outcome("a.mp4", FRAMES, tmp_path) == "units"
    monkeypatch.setattr(micu_extract.media.source, "MAX_PIXELS", 32 * 48 - 1)
    assert outcome("a.mp4", FRAMES, tmp_path) == "too_large"


def test_probing_a_file_is_held_to_the_same_caps_as_decoding_it(tmp_path, monkeypatch):
    opened = []
    real_open = micu_extract.media.source.av.open

    def note_options(*arguments, **options):
        opened.append(options.get("options") or options.get("container_options"))
        return real_open(*arguments, **options)

    monkeypatch.setattr(micu_extract.media.source.av, "open", note_options)
    write_media(tmp_path / "a.mp4", frames=30)
    opened.clear()
    assert outcome("a.mp4", FRAMES, tmp_path, start_s=2.5) == "units"
    for options in opened:
        assert options["max_pixels"] == str(8192 * 4352)
        assert options["protocol_whitelist"] == "file"
    assert opened


def test_pictures_that_turn_out_to_be_huge_are_not_allocated(tmp_path):
    path = write_media(tmp_path / "a.avi", frames=10, codec="mjpeg")
    data = path.read_bytes()
    stated = b"\x08" + (32).to_bytes(2, "big") + (48).to_bytes(2, "big")
    assert data.count(stated) == 10
    path.write_bytes(data.replace(stated, b"\x08" + (16000).to_bytes(2, "big") * 2))
    before = largest_memory_mib()
    assert outcome("a.avi", FRAMES, tmp_path) == "corrupt"
    assert largest_memory_mib() - before < 100


def test_pictures_that_are_huge_by_every_account_are_not_called_damaged(tmp_path):
    path = write_media(tmp_path / "a.avi", frames=10, codec="mjpeg")
    data = path.read_bytes()
    in_jpeg = b"\x08" + (32).to_bytes(2, "big") + (48).to_bytes(2, "big")
    in_avi = (48).to_bytes(4, "little") + (32).to_bytes(4, "little")
    assert data.count(in_jpeg) == 10
    assert data.count(in_avi) >= 1
    data = data.replace(in_jpeg, b"\x08" + (8960).to_bytes(2, "big") + (16000).to_bytes(2, "big"))
    data = data.replace(in_avi, (16000).to_bytes(4, "little") + (8960).to_bytes(4, "little"))
    path.write_bytes(data)
    assert outcome("a.avi", FRAMES, tmp_path) == "too_large"


# --- what is unusual but good ------------------------------------------------------------------


def test_time_stamps_that_run_backwards_do_not_stop_the_clip(tmp_path):
    write_media(tmp_path / "a.ts", frames=10)
    write_media(tmp_path / "b.ts", frames=10)
    joined = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(joined)
    assert outcome("joined.ts", FRAMES, tmp_path) in {"units", "corrupt"}


def test_colour_formats_and_odd_sizes_come_out_as_rgb(tmp_path):
    path = write_media(
        tmp_path / "a.avi",
        frames=3,
        codec="mjpeg",
        picture=lambda i: np.full((33, 47, 3), 96, np.uint8),
    )
    media = read_media(Clip(clip_id="c", path=path.name), FRAMES, tmp_path)
    assert frame_of(media.units[0]) == 20


STRIPES = {
    "gray": ([90, 90, 90], [200, 200, 200]),
    "gray10le": ([90, 90, 90], [200, 200, 200]),
    "yuv444p": ([220, 30, 40], [30, 60, 210]),
    "yuv444p10le": ([220, 30, 40], [30, 60, 210]),
}
"""Colours of neighbouring columns, by pixel format: halved chroma would blend them."""


@pytest.mark.parametrize("pix_fmt", STRIPES)
def test_pictures_without_colour_or_with_all_of_it_keep_their_columns(tmp_path, pix_fmt):
    picture = np.empty((32, 32, 3), np.uint8)
    picture[:, ::2], picture[:, 1::2] = STRIPES[pix_fmt]
    codec = "ffv1" if "gray" in pix_fmt else "libx264"
    path = tmp_path / "a.mkv"
    write_media(path, frames=3, codec=codec, pix_fmt=pix_fmt, picture=lambda i: picture)
    with micu_extract.media.source.av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == pix_fmt
    whole = FrameInput(fps=4, resize=32, crop=32)
    media = read_media(Clip(clip_id="c", path=path.name), whole, tmp_path)
    np.testing.assert_allclose(media.units[0].astype(int), picture.astype(int), atol=12)


def test_packets_without_bytes_say_that_the_picture_stays(tmp_path, monkeypatch):
    """As Theora has them; a decoder takes such a packet for the end of the stream."""
    path = write_media(tmp_path / "a.mkv", frames=40, gop=1)
    real = micu_extract.media.damage._read_packets

    def empty_most(*arguments):
        for number, packet in enumerate(real(*arguments)):
            if packet is None or not packet.size or packet.pts * packet.time_base % 1 == 0:
                yield packet
                continue
            empty = av.Packet()
            empty.stream, empty.time_base = packet.stream, packet.time_base
            empty.pts, empty.dts = packet.pts if number % 2 else None, packet.dts
            yield empty

    monkeypatch.setattr(micu_extract.media.damage, "_read_packets", empty_most)
    media = read_media(Clip(clip_id="c", path=path.name), FRAMES, tmp_path)
    assert [frame_of(unit) for unit in media.units[::4]] == [0, 10, 20, 30]
    assert (media.steps, media.duration_s, media.notes["corrupt_frames"]) == (4, 4.0, 0)
    later = read_media(Clip(clip_id="c", path=path.name, start_s=2.5), FRAMES, tmp_path)
    assert [frame_of(unit) for unit in later.units] == [20, 20, 30, 30, 30, 30]


def test_sound_packets_without_bytes_are_passed_over(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mkv", sound=tone(2, 48000), rate=48000, sound_codec="flac")
    real = micu_extract.media.damage._read_packets

    def add_empty(*arguments):
        for packet in real(*arguments):
            if packet is not None and packet.size:
                empty = av.Packet()
                empty.stream, empty.time_base = packet.stream, packet.time_base
                empty.pts, empty.dts = packet.pts, packet.dts
                yield empty
            yield packet

    monkeypatch.setattr(micu_extract.media.damage, "_read_packets", add_empty)
    assert read_media(Clip(clip_id="c", path=path.name), WAVES, tmp_path).duration_s == 2.0


def test_theora_shows_its_last_picture_to_the_end_of_the_file(tmp_path):
    path = write_media(tmp_path / "a.mkv", frames=10, sound=tone(3, 8000))
    with micu_extract.media.source.Source(
        Clip(clip_id="c", path=path.name), tmp_path, "video"
    ) as source:
        assert source.last_shown_until == 0
        length = Fraction(source.container.duration, 10**6)
        source.stream = SimpleNamespace(codec_context=SimpleNamespace(name="theora"))
        assert source.last_shown_until == length > 2.9
        source.container.close()
        source.container = SimpleNamespace(duration=None, close=lambda: None)
        assert source.last_shown_until == 0


# --- real files --------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.slow
def test_every_odd_file_gives_units_or_a_known_code(shared):
    small = FrameInput(fps=1, resize=32, crop=32)
    files = sorted((shared / "media" / "odd").iterdir())
    useless = {}
    for path in files:
        outcomes = {outcome(path.name, wants, path.parent) for wants in (small, WAVES)}
        assert outcomes <= {"units", *DECODE_ERRORS}, path.name
        if "units" not in outcomes:
            useless[path.name] = outcomes
    assert useless == {
        "data__Karissa_Hobbs_-_Let's_Go_Fishin'.hq.ogg": {"unreadable"},
        "data__Karissa_Hobbs_-_Let's_Go_Fishin'.ogg": {"unreadable"},
        "mediabunny__annex-b.mp4": {"corrupt", "no_audio"},
        "moviepy__result.webm": {"empty"},
    }


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("data__Kevin_MacLeod_-_Vibe_Ace.ogg", "no_video"),  # cover art
        ("mediabunny__no-initial-keyframe.ts", "corrupt"),  # four fifths cannot be decoded
        ("auto-editor__h264-png.mp4", "units"),  # cover art beside a film
        ("torchcodec__av1_video.mkv", "units"),
        ("torchcodec__h264_10bits.mp4", "units"),
    ],
)
def test_odd_pictures_come_out_as_they_should(shared, name, code):
    assert outcome(name, FRAMES, shared / "media" / "odd") == code


@pytest.mark.shared
def test_phone_videos_filmed_at_every_angle_look_alike(shared):
    folder = shared / "media" / "odd"
    wants = FrameInput(fps=5, resize=(64, 64), crop=64)
    for angle, flat in {"0": True, "180": True, "90": False, "270": False}.items():
        media = read_media(Clip(clip_id="c", path=f"decord__video_{angle}.mov"), wants, folder)
        assert (media.notes["width"] > media.notes["height"]) == flat


@pytest.mark.shared
def test_a_film_that_stores_no_showing_times_is_whole(shared):
    folder = shared / "media" / "real"
    wants = FrameInput(fps=25, resize=16, crop=16)
    media = read_media(Clip(clip_id="c", path="mmaction2__test.avi"), wants, folder)
    assert media.notes["corrupt_frames"] == 0
    assert media.duration_s == 6.6
