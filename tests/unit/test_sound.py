"""Every kind of sample, of channels and of time stamps gives the sound that a file holds."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.audio.plane import AudioPlane

from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu.store.shard import Steps
from micu_extract.backbones.base import Media, WaveformInput, find_real_steps
from micu_extract.media import sound
from micu_extract.media.damage import Damage
from micu_extract.media.sound import Mono, cut_windows, mix_weights, read_mono
from micu_extract.media.source import Window
from micu_extract.pipeline.encode import mask_out
from tests.media_files import Array, read_media, tone, write_media, write_wav

SCALES = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "s64": 2**63, "flt": 1, "dbl": 1}
TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}


def read_sound(path: Path, rate: int = 8000, window_s: float = 1.0, **window: float) -> Media:
    clip = Clip(clip_id="c", path=path.name, **window)  # type: ignore[arg-type]
    return read_media(clip, WaveformInput(sample_rate=rate, window_s=window_s), path.parent)


def waves_of(path: Path, rate: int = 8000, **window: float) -> Array:
    return np.concatenate(read_sound(path, rate, **window).units)


def failure_of(path: Path, **window: float) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        read_sound(path, **window)
    return caught.value


def make_frame(name: str, layout: str, values: Array) -> av.AudioFrame:
    """A frame of (C, S) values, whatever their format."""
    frame = av.AudioFrame(format=name, layout=layout, samples=values.shape[1], align=True)
    frame.sample_rate = 8000
    parts = values if frame.format.is_planar else values.T.reshape(1, -1)
    for i, part in enumerate(parts):
        plane = AudioPlane(frame, i)
        plane.update(part.tobytes().ljust(plane.buffer_size, b"\0"))
    return frame


# --- samples and channels ----------------------------------------------------------------------


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("kind", SCALES)
def test_every_format_of_samples_is_mixed_whatever_the_number_of_channels(kind, planar):
    draws = np.random.default_rng(0)
    for channels in range(1, 33):
        level = draws.uniform(-1, 1, (channels, 50))
        whole = level * (SCALES[kind] - 1) + (128 if kind == "u8" else 0)
        values = (level if kind in ("flt", "dbl") else whole).astype(TYPES[kind])
        layout = f"{channels} channels"
        frame = make_frame(kind + "p" * planar, layout, values)
        exact = (values.astype(np.float64) - (128 if kind == "u8" else 0)) / SCALES[kind]
        mono = sound._mix_down(frame)
        expected = mix_weights(frame.layout.name, channels).astype(np.float64) @ exact
        assert mono.dtype == np.float32
        np.testing.assert_allclose(mono, expected, atol=2e-6, err_msg=layout)


def test_channels_whose_places_nobody_knows_weigh_the_same():
    for channels in (9, 11, 25, 32, 64):
        weights = mix_weights(f"{channels} channels", channels)
        np.testing.assert_allclose(weights, np.full(channels, 1 / channels), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.m4a", "aac", 48000), ("a.opus", "libopus", 48000)],
)
def test_eight_planes_of_sound_are_all_that_is_read(tmp_path, name, codec, rate):
    channels = np.stack([tone(1.0, rate, 200.0 + 50 * i)[0] for i in range(8)])
    path = write_media(tmp_path / name, sound=channels, rate=rate, layout="7.1", sound_codec=codec)
    weights = mix_weights("7.1", 8)
    media = read_sound(path, rate)
    assert media.notes["source_channels"] == 8
    # Encoders order the channels otherwise, and low frequencies weigh nothing.
    spectrum = np.abs(np.fft.rfft(media.units[0][: rate // 2])) / (rate // 4)
    heard = spectrum[[(200 + 50 * i) // 2 for i in range(8)]]
    np.testing.assert_allclose(heard, 0.5 * weights, atol=0.02)


@pytest.mark.parametrize("channels", [8, 9, 16, 24, 32])
def test_files_of_many_channels_are_mixed(tmp_path, channels):
    planes = np.random.default_rng(0).uniform(-1, 1, (channels, 4000))
    path = write_wav(tmp_path / "a.wav", planes, 8000)
    with av.open(str(path)) as container:
        layout = container.streams.audio[0].codec_context.layout.name
    np.testing.assert_allclose(waves_of(path), mix_weights(layout, channels) @ planes, atol=1e-5)


def test_integers_of_64_bits_are_read(tmp_path):
    path = write_media(tmp_path / "a.wav", sound=tone(0.5, 8000), sound_codec="pcm_s64le")
    np.testing.assert_allclose(waves_of(path), tone(0.5, 8000)[0], atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 4000, 16000])
def test_samples_are_clipped_to_full_scale_resampled_or_not(tmp_path, rate):
    loud = write_wav(tmp_path / "a.wav", 3 * tone(1.0, 8000, 100.0), 8000)
    wave = waves_of(loud, rate)
    assert (wave.max(), wave.min()) == (1.0, -1.0)
    soft = write_wav(tmp_path / "b.wav", 1.9 * tone(1.0, 8000, 100.0), 8000)
    assert 0.9 < waves_of(soft, rate).max() < 1.0
    assert -1.0 < waves_of(soft, rate).min() < -0.9


def test_sound_that_changes_its_rate_and_its_channels_goes_on(tmp_path):
    parts = [(22050, "mono"), (44100, "stereo"), (22050, "mono")]
    whole = b""
    for rate, layout in parts:
        channels = np.repeat(tone(2.0, rate, 300.0), 1 + (layout == "stereo"), axis=0)
        part = write_media(
            tmp_path / "part.mp3",
            sound=channels,
            rate=rate,
            layout=layout,
            sound_codec="libmp3lame",
            options={"write_xing": "0", "id3v2_version": "0"},
        )
        whole += part.read_bytes()
    path = tmp_path / "a.mp3"
    path.write_bytes(whole)
    media = read_sound(path, 22050, window_s=10.0)
    wave = media.units[0]
    assert media.notes["source_rate"] == 22050
    assert len(wave) == pytest.approx(6.0 * 22050, abs=0.2 * 22050)
    for second in (0.5, 1.0, 2.5, 3.0, 4.5, 5.0):
        piece = wave[round(second * 22050) :][:11025]
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece))))
        assert spectrum.argmax() == 150, second  # 300 Hz, in steps of 2 Hz
        # One signal from frame to frame: a seam in each would spread over all frequencies.
        assert spectrum[:140].max() < 0.01 * spectrum.max(), second


# --- time stamps -------------------------------------------------------------------------------

RATE = 1000
SIZE = 20
"""Samples of a frame."""


def lay(
    monkeypatch: pytest.MonkeyPatch,
    stamps: Sequence[float | Fraction | None],
    window: Window | None = None,
    sizes: Sequence[int] = (),
) -> Mono:
    """The track of frames at `stamps`, s; the sample k of frame n is (n + 1 + k / 1000) / 1000."""

    def frames(*_: object) -> Any:
        for i, stamp in enumerate(stamps):
            size = sizes[i] if sizes else SIZE
            values = ((i + 1 + np.arange(size) / 1000) / 1000).astype(np.float32)
            frame = make_frame("fltp", "mono", values[None])
            frame.sample_rate = RATE
            yield None if stamp is None else Fraction(str(stamp)), frame

    monkeypatch.setattr(sound, "decode_sound", frames)
    source: Any = SimpleNamespace(name="'a'", kind="audio", stream=None)
    return read_mono(source, window or Window(Fraction(0), None), Damage())


def heard_at(mono: Mono, place: int) -> tuple[int, int]:
    """Number of the frame that is heard, and which of its samples; (-1, 0) for silence."""
    frame, sample = divmod(round(float(mono.samples[place]) * 1e6), 1000)
    return frame - 1, sample


def frames_in(mono: Mono) -> list[int]:
    """Number of the frame that is heard in each 10 ms, -1 for silence."""
    return [heard_at(mono, place)[0] for place in range(5, len(mono.samples), 10)]


def steady(count: int, pace: float = 1.0, start: Fraction = Fraction(0)) -> list[Fraction]:
    """Stamps that go on at `pace` times the samples' own."""
    return [start + Fraction(str(pace)) * SIZE * i / RATE for i in range(count)]


@pytest.mark.parametrize("off", [Fraction(1, 10), Fraction(-1, 10), Fraction(1, 20)])
def test_a_tenth_of_a_second_is_jitter(monkeypatch, off):
    stamps = steady(30)
    stamps = stamps[:10] + [stamp + off for stamp in stamps[10:]]
    mono = lay(monkeypatch, stamps)
    assert frames_in(mono) == [i for i in range(30) for _ in range(2)]
    assert mono.parts == ((0, 600),)


def test_more_than_a_tenth_is_followed_both_ways(monkeypatch):
    late = [stamp + (i >= 10) * Fraction("0.101") for i, stamp in enumerate(steady(30))]
    mono = lay(monkeypatch, late)
    assert mono.parts == ((0, 200), (301, 701))
    assert not mono.samples[200:301].any()
    assert heard_at(mono, 301) == (10, 0)
    early = [stamp - (i >= 20) * Fraction("0.101") for i, stamp in enumerate(steady(30))]
    mono = lay(monkeypatch, early)
    # Frame 20 goes to sample 299, and the first 101 samples from there are there already.
    assert mono.parts == ((0, 499),)
    assert (heard_at(mono, 399), heard_at(mono, 400)) == ((19, 19), (25, 1))


@pytest.mark.parametrize("pace", [0.5, 0.8, 0.98, 1.02, 1.3])
def test_stamps_that_drift_are_followed_either_way(monkeypatch, pace):
    mono = lay(monkeypatch, steady(1000, pace))
    assert len(mono.samples) == pytest.approx(pace * 1000 * SIZE, abs=101)
    for place in range(0, len(mono.samples) - 200, 37):
        frame, sample = heard_at(mono, place)
        if frame >= 0:
            assert frame * SIZE * pace + sample == pytest.approx(place, abs=125)


def test_stamps_of_less_than_half_the_pace_are_no_clock(monkeypatch):
    for pace in (0.0, 0.25, 0.49):
        mono = lay(monkeypatch, steady(200, pace))
        assert mono.parts == ((0, 200 * SIZE),)
        assert frames_in(mono) == [i for i in range(200) for _ in range(2)]


@pytest.mark.parametrize("second", [0.0, 0.98, -95443.7])
def test_stamps_that_begin_anew_do_not_stop_the_sound(monkeypatch, second):
    stamps = steady(100) + steady(100, start=Fraction(str(second)))
    mono = lay(monkeypatch, stamps)
    assert mono.parts == ((0, 4000),)
    assert frames_in(mono) == [i for i in range(200) for _ in range(2)]
    # A gap after that is one, counted from where the clock began anew.
    mono = lay(monkeypatch, stamps[:150] + [stamp + 7 for stamp in stamps[150:]])
    assert mono.parts == ((0, 3000), (10000, 11000))


def test_what_comes_twice_by_its_stamps_is_kept_once(monkeypatch):
    mono = lay(monkeypatch, steady(100) + steady(100, start=Fraction(1)))
    assert mono.parts == ((0, 3000),)
    assert frames_in(mono)[::2] == [*range(100), *range(150, 200)]


@pytest.mark.parametrize("wrong", [16386.0, -0.5, -300.0, 0.3])
def test_a_single_damaged_stamp_moves_nothing(monkeypatch, wrong):
    stamps = steady(100)
    stamps[50] = Fraction(str(wrong))
    mono = lay(monkeypatch, stamps)
    assert mono.parts == ((0, 2000),)
    assert frames_in(mono) == [i for i in range(100) for _ in range(2)]


def test_a_clock_that_finds_back_is_believed(monkeypatch):
    stamps = steady(10) + steady(10, start=Fraction(-50)) + steady(80, start=Fraction("0.4"))
    mono = lay(monkeypatch, stamps)
    assert mono.parts == ((0, 2000),)
    late = [*stamps[:60], *(stamp + 1 for stamp in stamps[60:])]
    assert lay(monkeypatch, late).parts == ((0, 1200), (2200, 3000))


def test_frames_without_stamps_follow_the_one_before(monkeypatch):
    stamps: list[Fraction | None] = [None, *steady(9)[1:], None, None]
    assert lay(monkeypatch, stamps).parts == ((0, 220),)


def test_sparse_frames_keep_their_places(monkeypatch):
    mono = lay(monkeypatch, [Fraction(i, 5) for i in range(10)])
    assert mono.parts == tuple((200 * i, 200 * i + SIZE) for i in range(10))


def test_a_window_of_drifting_sound_begins_with_what_is_heard_then(monkeypatch):
    window = Window(Fraction(8), Fraction(9))
    mono = lay(monkeypatch, steady(1000, 0.98), window)
    assert len(mono.samples) == 1000
    # 8 s by the stamps is 8.163 s of samples, which is frame 408, within a tenth.
    assert 403 <= frames_in(mono)[0] <= 413


def test_windows_that_begin_and_end_with_a_sample(monkeypatch):
    for first, last in ((0, 1), (399, 400), (398, 400), (57, 91)):
        window = Window(Fraction(first, RATE), Fraction(last, RATE))
        mono = lay(monkeypatch, steady(20), window)
        places = range(first, last)
        expected = [(i // SIZE + 1 + i % SIZE / 1000) / 1000 for i in places]
        np.testing.assert_allclose(mono.samples, expected, atol=1e-7)
    for window in (Window(Fraction(4, 10), None), Window(Fraction(2, 5), Fraction(1))):
        with pytest.raises(DecodeError) as caught:
            lay(monkeypatch, steady(20), window)
        assert caught.value.code == "outside_media"


# --- what is not there -------------------------------------------------------------------------


def real_of(path: Path, **window: float) -> list[int]:
    real = read_sound(path, **window).real
    assert real is not None
    return real.astype(int).tolist()


def test_seconds_before_late_sound_are_not_real(tmp_path):
    path = write_media(
        tmp_path / "a.mkv",
        frames=80,
        sound=tone(3.0, 8000),
        sound_codec="pcm_s16le",
        sound_pts=40000,
    )
    assert real_of(path) == [0] * 5 + [1] * 3
    assert real_of(path, end_s=10.0) == [0] * 5 + [1] * 3 + [0] * 2
    assert real_of(path, start_s=4.0, end_s=7.0) == [0, 1, 1]
    assert real_of(path, start_s=5.0, end_s=7.0) == [1, 1]
    assert "to 5.0 s" in str(failure_of(path, end_s=5.0))


def test_a_second_is_real_from_a_tenth_of_a_second_of_sound():
    def real(*parts: tuple[int, int], steps: int = 3) -> list[int]:
        return find_real_steps(parts, steps, 1000).astype(int).tolist()

    assert real((0, 3000)) == [1, 1, 1]
    assert real((900, 3000)) == [1, 1, 1]
    assert real((901, 3000)) == [0, 1, 1]
    assert real((0, 2100)) == [1, 1, 1]
    assert real((0, 2099)) == [1, 1, 0]
    assert real((0, 1000), (2000, 3000)) == [1, 0, 1]
    assert real((0, 50), (950, 1000), (1950, 2049)) == [1, 0, 0]
    assert real((0, 40)) == [1, 0, 0]
    assert real((1010, 1030), (2010, 2050)) == [0, 0, 1]
    assert real((3000, 3050)) == [0, 0, 0]


def test_seconds_that_are_not_real_are_stored_as_zeros_that_the_mask_denies():
    times_s = np.array([0.25, 0.75, 1.25, 1.75])
    steps = Steps(np.ones((4, 2, 3), np.float32), np.array([True, True, True, False]), times_s)
    masked = mask_out(steps, np.array([False, True]))
    assert masked.mask.tolist() == [False, False, True, False]
    assert masked.values[:, 0, 0].tolist() == [0, 0, 1, 0]
    assert mask_out(steps, None) is steps
    assert mask_out(steps, np.array([True, True])) is steps


def outcome_of(path: Path) -> str:
    try:
        return f"{read_sound(path).steps} step"
    except DecodeError as error:
        return f"{error.code}: {error}"


def test_a_file_of_less_than_its_own_priming_names_no_times(tmp_path):
    path = write_media(
        tmp_path / "a.mp3", sound=tone(0.02, 8000), rate=8000, sound_codec="libmp3lame"
    )
    whole = path.read_bytes()
    place = whole.index(b"\xff\xe3")
    for frames in range(1, 4):
        path.write_bytes(whole[place : place + 72 * frames])
        found = outcome_of(path)
        assert found == "1 step" or found.startswith(("too_short", "no_audio", "corrupt", "unrea"))
        assert "0.0 s" not in found


def test_sound_of_which_the_decoder_keeps_all_is_too_short(monkeypatch):
    def nothing(source: Any, start: Fraction, damage: Damage) -> Any:
        damage.packets = 1
        yield from ()

    monkeypatch.setattr(sound, "decode_sound", nothing)
    source: Any = SimpleNamespace(
        name="'a'", kind="audio", stream=SimpleNamespace(codec_context=None)
    )
    for bad, code in ((0, "too_short"), (1, "corrupt")):
        with pytest.raises(DecodeError) as caught:
            read_mono(source, Window(Fraction(0), None), Damage(bad=bad))
        assert caught.value.code == code


@pytest.mark.parametrize("window", [{}, {"start_s": 0.5, "end_s": 1.0}])
def test_sound_is_counted_at_four_bytes_a_sample_before_it_is_kept(tmp_path, monkeypatch, window):
    counted: list[int] = []
    monkeypatch.setattr(sound, "check_unit_bytes", lambda source, count: counted.append(count))
    path = write_wav(tmp_path / "a.wav", tone(1.0, 8000), 8000)
    with av.open(str(path)) as container:
        sizes = [frame.samples for frame in container.decode(audio=0)]
    read_sound(path, **window)
    if not window:
        ends = np.cumsum(sizes).tolist()
        assert counted == [4 * n for pair in zip(sizes, ends, strict=True) for n in pair]
    assert max(counted) == 4 * (4000 if window else 8000)


def test_windows_are_cut_with_their_middles_the_last_one_short():
    windows, middles = cut_windows(np.arange(25, dtype=np.float32), 10, 1.0)
    assert [len(window) for window in windows] == [10, 10, 5]
    assert np.concatenate(windows).tolist() == list(range(25))
    assert middles.tolist() == [0.5, 1.5, 2.25]


@pytest.mark.parametrize("ahead", [Fraction(0), Fraction(-400)])
def test_a_stamp_is_near_within_less_than_the_jump_and_nowhere_else(ahead):
    source: Any = SimpleNamespace(name="'a'")
    frame = SimpleNamespace(sample_rate=8000, layout=SimpleNamespace(nb_channels=1))
    track = sound._Track(source, Window(Fraction(1), None), frame)
    track._cursor, track._ahead = 8000, ahead
    due = 2 + ahead / 8000
    near = Fraction(sound._NEAR_S)
    assert 0 < sound._NEAR_S < sound._JUMP_S
    for away, is_near in ((0, True), (near * 99 / 100, True), (near * 101 / 100, False)):
        assert track._is_near(due + away) is is_near
        assert track._is_near(due - away) is is_near
    assert not track._is_near(Fraction(0))
