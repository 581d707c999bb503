"""Where a file is entered never changes which pictures are shown, or what is heard."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.media import damage as streams
from micu_extract.media.damage import Damage, _begin_again
from micu_extract.media.pictures import read_pictures
from micu_extract.media.sound import read_mono
from micu_extract.media.source import Source, Window
from tests.media_files import Array, write_media

FPS = 25
COUNT = 130
STARTS = ("2.1", "2.5", "3.0", "3.02", "4.1", "4.5", "4.99")
B_FRAMES = {"g": "12", "bf": "2"}
OPEN = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=12"}


def numbered(number: int) -> Array:
    """A picture that shows its number: eight squares, bright for ones."""
    picture = np.full((64, 64, 3), 40, np.uint8)
    for bit in range(8):
        row, column = divmod(bit, 4)
        bright = 220 if number >> bit & 1 else 40
        picture[row * 32 : row * 32 + 28, column * 16 : column * 16 + 12] = bright
    return picture


def number_of(picture: Array) -> int:
    places = [divmod(bit, 4) for bit in range(8)]
    return sum(
        (picture[row * 32 + 6 : row * 32 + 22, col * 16 + 3 : col * 16 + 9].mean() > 130) << bit
        for bit, (row, col) in enumerate(places)
    )


def write_numbered(path: Path, codec: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height = stream.width = 64
        stream.pix_fmt, stream.options, stream.bit_rate = "yuv420p", options, 500_000
        for i in range(COUNT):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown_in(path: Path, window: Window) -> list[tuple[Fraction, int]]:
    with Source(Clip(clip_id="c", path=path.name), path.parent, "video") as source:
        pictures = read_pictures(source, window, Damage())
        return [(p.start + window.start, number_of(p.load())) for p in pictures]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mpg", "mpeg1video", B_FRAMES),
        ("a.mpg", "mpeg2video", B_FRAMES),
        ("a.vob", "mpeg2video", B_FRAMES),
        ("a.m1v", "mpeg1video", B_FRAMES),
        ("a.m2v", "mpeg2video", B_FRAMES),
        ("a.ts", "mpeg2video", B_FRAMES),
        ("a.ts", "libx264", OPEN),
        ("a.mp4", "libx264", B_FRAMES),
        ("a.mp4", "libx264", OPEN),
        ("a.mkv", "libx264", OPEN),
        ("a.flv", "libx264", OPEN),
        ("a.asf", "mpeg4", B_FRAMES),
        ("a.avi", "mpeg4", B_FRAMES),
        ("a.avi", "libx264", OPEN),
        ("a.mxf", "libx264", OPEN),
    ],
)
def test_a_window_shows_what_decoding_from_the_start_shows(tmp_path, name, codec, options):
    path = write_numbered(tmp_path / name, codec, options)
    whole = shown_in(path, Window(Fraction(0), None))
    ends = [*(time for time, _ in whole[1:]), Fraction(1000)]
    for start in map(Fraction, STARTS):
        window = Window(start, start + Fraction(1, 5))
        expected = [
            (time, number)
            for (time, number), end in zip(whole, ends, strict=True)
            if end > start and time < window.end  # type: ignore[operator]
        ]
        assert shown_in(path, window) == expected, start


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_program_streams_begin_a_window_with_its_own_picture(tmp_path, codec):
    path = write_numbered(tmp_path / "a.mpg", codec, B_FRAMES)
    for start in map(Fraction, STARTS):
        shown = shown_in(path, Window(start, start + Fraction(1, 5)))
        assert [number for _, number in shown][:3] == [int(start * FPS) + i for i in range(3)]


@pytest.mark.parametrize(
    ("name", "codec", "entries"),
    [
        ("a.mp4", "libx264", [Fraction("4.5")]),
        ("a.mkv", "libx264", [Fraction("4.5")]),
        ("a.avi", "mpeg4", [Fraction("3.5")]),
        ("a.ts", "libx264", []),
        ("a.mpg", "mpeg2video", []),
        ("a.m2v", "mpeg2video", []),
    ],
)
def test_only_formats_that_store_when_pictures_are_shown_are_entered(
    tmp_path, monkeypatch, name, codec, entries
):
    path = write_numbered(tmp_path / name, codec, {"g": "12"})
    sought: list[Fraction] = []
    seek = Source.seek
    monkeypatch.setattr(Source, "seek", lambda self, to: sought.append(to) or seek(self, to))
    shown_in(path, Window(Fraction("4.5"), Fraction("4.7")))
    assert sought == entries
    shown_in(path, Window(Fraction(2), Fraction("2.2")))
    assert sought == entries


def test_a_seek_of_sound_that_lands_late_is_not_believed(tmp_path, monkeypatch):
    draws = np.random.default_rng(0)
    path = write_media(tmp_path / "a.mp4", sound=draws.uniform(-0.5, 0.5, (1, 8000 * 8)))
    clip, window = Clip(clip_id="c", path=path.name), Window(Fraction(5), Fraction(6))

    def heard() -> Array:
        with Source(clip, tmp_path, "audio") as source:
            return read_mono(source, window, Damage()).samples

    right = heard()
    seek = Source.seek
    for late in (Fraction("0.3"), Fraction(2)):
        monkeypatch.setattr(Source, "seek", lambda self, to, late=late: seek(self, to + late))
        np.testing.assert_allclose(heard(), right, atol=1e-5)
    monkeypatch.setattr(Source, "seek", lambda self, to: False)
    np.testing.assert_allclose(heard(), right, atol=1e-5)


def test_sound_is_entered_a_second_before_its_window(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", sound=np.zeros((1, 8000 * 8)))
    sought: list[Fraction] = []
    seek = Source.seek
    monkeypatch.setattr(Source, "seek", lambda self, to: sought.append(to) or seek(self, to))
    for start in (Fraction(2), Fraction("2.001"), Fraction(5)):
        with Source(Clip(clip_id="c", path=path.name), tmp_path, "audio") as source:
            read_mono(source, Window(start, start + 1), Damage())
    assert sought == [Fraction("1.001"), Fraction(4)]


def test_frames_before_the_first_stamp_come_before_it():
    def times(*stamps: Fraction | None) -> list[float]:
        stream = SimpleNamespace(start_time=0)
        source: Any = SimpleNamespace(stream=stream, rate=Fraction(10), time_of=Fraction)
        return [float(time) for time, _ in streams._fill_times(source, [(s, 0) for s in stamps])]

    second = Fraction(1)
    assert times(None, None, second, None) == [0.8, 0.9, 1.0, 1.1]
    assert times(second, None, 2 * second) == [1.0, 1.1, 2.0]
    assert times(None, None, None) == [0.0, 0.1, 0.2]
    assert times() == []
    count = streams._MAX_UNSTAMPED
    held = times(*[None] * count, 9 * second)
    assert (held[0], held[-2:]) == (pytest.approx(2.6), [pytest.approx(8.9), 9.0])
    held = times(*[None] * (count + 1), 9 * second)
    assert (held[0], held[-2:]) == (0.0, [pytest.approx(6.4), 9.0])


def test_a_file_that_is_begun_again_has_nothing_counted() -> None:
    restarted: list[bool] = []
    source: Any = SimpleNamespace(restart=lambda: restarted.append(True))
    damage = Damage()
    fresh = replace(damage)
    for number, name in enumerate(
        ("first_packet", "good", "bad", "packets", "refused", "cut_off"), 1
    ):
        setattr(damage, name, number)
    _begin_again(source, damage)
    assert damage == fresh
    assert restarted == [True]


@pytest.mark.parametrize(
    ("time_s", "is_damage"), [(None, True), (3, True), (Fraction(299, 100), False), (4, True)]
)
def test_packets_that_would_not_decode_are_damage_from_the_start_of_the_window_on(
    monkeypatch: pytest.MonkeyPatch, time_s: Fraction | int | None, is_damage: bool
) -> None:
    def refuse(packet: object) -> list[object]:
        raise ValueError

    packet = SimpleNamespace(size=1, is_corrupt=False, pts=0, dts=0)
    monkeypatch.setattr(streams, "_read_packets", lambda source, damage: iter([packet]))
    source: Any = SimpleNamespace(
        name="'a'",
        kind="video",
        time_of=lambda pts: time_s,
        stream=SimpleNamespace(codec_context=SimpleNamespace(decode=refuse)),
    )
    damage = Damage()
    assert list(streams.decode(source, Fraction(3), damage)) == []
    assert (damage.refused, damage.packets) == (1, 1)
    assert (damage.bad, damage.cut_off) == (int(is_damage), is_damage)


@pytest.mark.parametrize(
    ("time_s", "corrupt", "key", "begins_again"),
    [
        (Fraction(5), False, True, False),
        (Fraction(4), False, True, False),
        (Fraction(501, 100), False, True, True),
        (None, False, True, True),
        (Fraction(5), True, True, True),
        (Fraction(5), False, False, True),
    ],
)
def test_a_seek_that_lands_late_or_on_no_whole_key_frame_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
    time_s: Fraction | None,
    corrupt: bool,
    key: bool,
    begins_again: bool,
) -> None:
    first = SimpleNamespace(is_corrupt=corrupt, key_frame=key)
    begun: list[bool] = []

    def decode(source: object, start: Fraction, damage: Damage) -> Any:
        yield (Fraction(0), "from the start") if begun else (time_s, first)

    monkeypatch.setattr(streams, "decode", decode)
    monkeypatch.setattr(streams, "_find_entry", lambda source, start: Fraction(5))
    monkeypatch.setattr(streams, "_begin_again", lambda source, damage: begun.append(True))
    monkeypatch.setattr(streams, "_fill_times", lambda source, frames: frames)
    monkeypatch.setattr(streams, "in_order_of_showing", lambda frames: frames)
    source: Any = SimpleNamespace(seek=lambda entry: True)
    shown = list(streams.decode_from(source, Fraction(6), Damage()))
    assert begun == [True] * begins_again
    assert shown == [(Fraction(0), "from the start") if begins_again else (time_s, first)]


def test_a_clip_may_have_as_many_bytes_as_the_bound_and_no_more() -> None:
    source: Any = SimpleNamespace(name="'a'")
    streams.check_unit_bytes(source, streams.MAX_UNIT_BYTES)
    with pytest.raises(DecodeError) as caught:
        streams.check_unit_bytes(source, streams.MAX_UNIT_BYTES + 1)
    assert caught.value.code == "too_large"
