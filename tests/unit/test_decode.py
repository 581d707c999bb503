import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from PIL import ExifTags, Image

import micu_extract.media.damage
from micu.base.errors import ConfigError, DecodeError, ExtraError, RegistryError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FrameInput, TextInput, WaveformInput
from micu_extract.media.damage import Damage, in_order_of_showing
from micu_extract.media.pictures import center_crop, read_pictures, resize, turn_upright
from micu_extract.media.readers import DECODERS
from micu_extract.media.sound import mix_weights
from micu_extract.media.source import DECODE_ERRORS, Source, Window
from tests.media_files import (
    frame_of,
    read_media,
    skip_without_decord,
    tone,
    write_media,
    write_wav,
)

SMALL = FrameInput(fps=4, resize=16, crop=16)


def clip_of(path, start_s=None, end_s=None) -> Clip:
    return Clip(clip_id="c", path=path.name, start_s=start_s, end_s=end_s)


def frames_of(path, wants=SMALL, decoder="pyav", **window) -> tuple[list[int], list[float]]:
    media = read_media(clip_of(path, **window), wants, path.parent, decoder)
    return [frame_of(unit) for unit in media.units], media.times_s.tolist()


def code_of(path, wants=SMALL, **window) -> str:
    with pytest.raises(DecodeError) as caught:
        read_media(clip_of(path, **window), wants, path.parent)
    assert caught.value.code in DECODE_ERRORS
    return caught.value.code


# --- pictures --------------------------------------------------------------------------------


def test_frames_are_those_on_screen_in_the_middle_of_each_part_of_a_second(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=20)
    frames, times = frames_of(path)
    assert times == [0.125, 0.375, 0.625, 0.875, 1.125, 1.375, 1.625, 1.875]
    assert frames == [1, 3, 6, 8, 11, 13, 16, 18]


def test_a_frame_that_appears_exactly_at_the_instant_is_the_one_that_counts(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=20)
    assert frames_of(path, FrameInput(fps=1, resize=16, crop=16))[0] == [5, 15]


def test_media_state_length_steps_and_source_rate(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=13)
    media = read_media(clip_of(path), SMALL, tmp_path)
    assert (media.steps, media.duration_s) == (2, 1.3)
    assert media.units.shape == (5, 16, 16, 3)
    assert media.units.dtype == np.uint8
    assert media.notes["source_fps"] == 10
    assert media.notes["corrupt_frames"] == 0


def test_a_file_shorter_than_the_manifest_says_keeps_the_steps_asked_for(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=13)
    media = read_media(clip_of(path, 0.0, 4.0), SMALL, tmp_path)
    assert (media.steps, media.duration_s, len(media.units)) == (4, 1.3, 5)


def test_a_last_part_too_short_for_a_step_gives_no_unit(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=27, fps=25)
    media = read_media(clip_of(path), FrameInput(fps=25, resize=16, crop=16), tmp_path)
    assert media.steps == 1
    assert media.times_s.max() < 1


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
def test_a_window_late_in_a_file_gives_the_frames_of_that_window(tmp_path, name, codec):
    path = write_media(tmp_path / name, frames=50, codec=codec, gop=7)
    assert frames_of(path, start_s=3.3, end_s=4.3) == (
        [34, 36, 39, 41],
        [0.125, 0.375, 0.625, 0.875],
    )


def test_times_that_were_guessed_in_another_order_are_put_in_order():
    guessed = [1, 2, 4, 3, 5, 8, 6, 7, 9]
    ordered = in_order_of_showing((Fraction(time), place) for place, time in enumerate(guessed))
    assert list(ordered) == [(Fraction(place + 1), place) for place in range(9)]


def test_a_window_of_a_stream_without_index_is_found_all_the_same(tmp_path):
    path = write_media(tmp_path / "a.ts", frames=50, gop=7)
    assert frames_of(path, start_s=3.3, end_s=4.3)[0] == [34, 36, 39, 41]


def test_nothing_is_decoded_past_the_end_of_the_window(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=200, gop=5)
    damage, window = Damage(), Window(Fraction(4), Fraction(5))
    with Source(clip_of(path), tmp_path, "video") as source:
        assert len(list(read_pictures(source, window, damage))) == 10
    assert damage.packets < 30


def test_frames_of_variable_rate_last_until_the_next_one(tmp_path):
    path = write_media(tmp_path / "a.mkv", frames=5, pts=[0, 1, 2, 15, 18])
    frames, times = frames_of(path)
    assert times[-1] == 1.875
    assert frames == [1, 2, 2, 2, 2, 2, 3, 4]


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_times_count_from_the_start_of_a_file_that_starts_at_ten_seconds(tmp_path, name):
    path = write_media(tmp_path / name, frames=20, pts=range(100, 120))
    assert frames_of(path)[0] == [1, 3, 6, 8, 11, 13, 16, 18]
    assert frames_of(path, start_s=1.0, end_s=1.5)[0] == [11, 13]


def test_pictures_that_start_after_the_sound_keep_their_place_in_time(tmp_path):
    sound = tone(2.5, 8000)
    path = write_media(
        tmp_path / "a.mkv", frames=15, pts=range(10, 25), sound=sound, sound_codec="pcm_s16le"
    )
    frames, times = frames_of(path, FrameInput(fps=2, resize=16, crop=16))
    assert times == [1.25, 1.75, 2.25]
    assert frames == [2, 7, 12]


def test_a_file_of_one_picture_gives_it(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=1)
    assert frames_of(path) == ([0], [0.0])


def test_a_window_after_the_end_says_so(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=30)
    assert code_of(path, start_s=3.0) == "outside_media"
    assert code_of(path, start_s=30.0, end_s=31.0) == "outside_media"


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_video_comes_out_upright(tmp_path, degrees):
    upright = np.full((32, 48, 3), 40, np.uint8)
    upright[:16, :24] = 220

    path = write_media(
        tmp_path / "a.mp4",
        frames=2,
        picture=lambda i: np.ascontiguousarray(np.rot90(upright, -degrees // 90)),
        rotation=degrees,
    )
    media = read_media(clip_of(path), FrameInput(fps=5, resize=(32, 48), crop=32), tmp_path)
    difference = media.units[0].astype(int) - center_crop(upright, 32)
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("across", [1, -1])
@pytest.mark.parametrize("down", [1, -1])
def test_every_display_matrix_of_quarter_turns_moves_pixels_as_it_says(transposed, across, down):
    one = 1 << 16
    m = [0, down * one, 0, across * one, 0] if transposed else [across * one, 0, 0, 0, down * one]
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    shown: dict[tuple[int, int], int] = {}
    for y in range(2):
        for x in range(3):
            place = (m[1] * x + m[4] * y) // one, (m[0] * x + m[3] * y) // one
            shown[place] = int(picture[y, x, 0])
    in_order = [shown[place] for place in sorted(shown)]
    turned = turn_upright(picture, np.array([*m, 0, 0, 0, 1 << 30], np.int32))
    assert turned.shape[:2] == ((3, 2) if transposed else (2, 3))
    assert turned.ravel().tolist() == in_order


def test_titles_that_are_no_utf8_do_not_matter(tmp_path):
    path = write_media(tmp_path / "a.mkv", frames=20, title="TITLE-TITLE")
    data = path.read_bytes()
    assert data.count(b"TITLE-TITLE") == 2
    path.write_bytes(data.replace(b"TITLE-TITLE", b"\xff\xfe\x80 \xc3\x28\xf0\x90\xed\xa0\x80"))
    assert frames_of(path, FrameInput(fps=1, resize=16, crop=16))[0] == [5, 15]


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(47, 91), (90, 33), (20, 20), (64, 65)])
@pytest.mark.parametrize(("size", "crop"), [(40, 32), ((30, 50), 41), (20, 25)])
def test_resizing_and_cropping_are_torchvisions(kernel, shape, size, crop):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    ours = center_crop(resize(picture, size, kernel, "x"), crop)
    theirs = CenterCrop(crop)(Resize(size, InterpolationMode(kernel))(Image.fromarray(picture)))
    np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_a_sliver_that_would_be_resized_beyond_the_cap_is_refused():
    with pytest.raises(DecodeError) as caught:
        resize(np.zeros((1, 8000, 3), np.uint8), 256, "bicubic", "x")
    assert caught.value.code == "too_large"


def test_a_clip_that_would_not_fit_in_memory_is_refused(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", frames=30, sound=tone(3, 8000))
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", 4000)
    assert code_of(path) == "too_large"
    assert code_of(path, WaveformInput(sample_rate=8000, window_s=10)) == "too_large"


def test_decord_gives_the_same_frames(tmp_path):
    skip_without_decord()
    path = write_media(tmp_path / "a.mp4", frames=50, gop=7, sound=tone(5, 8000))
    for window in ({}, {"start_s": 3.3, "end_s": 4.3}):
        assert frames_of(path, decoder="decord", **window) == frames_of(path, **window)
    late = write_media(tmp_path / "b.mkv", frames=15, pts=range(10, 25), sound=tone(2.5, 8000))
    assert frames_of(late, decoder="decord") == frames_of(late)


def test_a_missing_decord_is_named_with_what_to_type(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", frames=2)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ExtraError, match=r"pip install 'micu\[decord\]'"):
        frames_of(path, decoder="decord")


def test_an_unknown_decoder_is_refused_and_decord_reads_no_sound(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=2)
    assert DECODERS == ("pyav", "decord")
    with pytest.raises(RegistryError, match="did you mean 'decord'"):
        frames_of(path, decoder="decor")
    with pytest.raises(ConfigError, match="pictures only"):
        read_media(clip_of(path), WaveformInput(sample_rate=8000, window_s=10), tmp_path, "decord")


def test_clips_read_by_several_threads_at_once_are_those_read_alone(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=40, sound=tone(4, 8000))
    waves = WaveformInput(sample_rate=16000, window_s=2)
    alone = [read_media(clip_of(path), wants, tmp_path) for wants in (SMALL, waves)] * 4
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(
            lambda wants: read_media(clip_of(path), wants, tmp_path), [SMALL, waves] * 4
        )
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one.units, other.units, strict=True):
            np.testing.assert_array_equal(a, b)


def test_side_data_that_pyav_has_no_name_for_hide_none_that_it_has(tmp_path):
    picture = np.full((32, 48, 3), 40, np.uint8)
    picture[:16] = 220
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    exif[ExifTags.Base.Orientation] = 4  # mirrored top to bottom, which an angle cannot tell
    Image.fromarray(picture[::-1]).save(tmp_path / "a.jpg", exif=exif, quality=95)
    whole = FrameInput(fps=1, resize=(32, 48), crop=32)
    media = read_media(clip_of(tmp_path / "a.jpg"), whole, tmp_path)
    difference = media.units[0].astype(int) - center_crop(picture, 32)
    assert np.abs(difference).mean() < 4


# --- sound -----------------------------------------------------------------------------------


def waves_of(path, rate=8000, window_s=10.0, **window) -> np.ndarray:
    wants = WaveformInput(sample_rate=rate, window_s=window_s)
    return np.concatenate(read_media(clip_of(path, **window), wants, path.parent).units)


def test_a_window_of_sound_is_cut_to_the_sample(tmp_path):
    ramp = np.arange(8000 * 5)[None] / 50000
    path = write_wav(tmp_path / "a.wav", ramp, 8000)
    np.testing.assert_array_equal(
        waves_of(path, start_s=3.001, end_s=4.25), ramp[0, 24008:34000].astype(np.float32)
    )


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_late_window_of_compressed_sound_is_a_slice_of_the_whole(tmp_path, name):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 8000 * 8))
    path = write_media(tmp_path / name, frames=80, sound=noise)
    window = waves_of(path, start_s=5.5, end_s=6.5)
    np.testing.assert_allclose(window, waves_of(path)[44000:52000], atol=1e-5)


def test_sound_is_cut_into_windows_and_the_last_is_shorter(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(2.5, 8000), 8000)
    media = read_media(clip_of(path), WaveformInput(sample_rate=16000, window_s=1), tmp_path)
    assert [len(unit) for unit in media.units] == [16000, 16000, 8000]
    assert media.times_s.tolist() == [0.5, 1.5, 2.25]
    assert (media.steps, media.duration_s) == (3, 2.5)
    assert all(unit.dtype == np.float32 for unit in media.units)


def test_a_rest_too_short_for_a_step_makes_no_window(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(2.02, 8000), 8000)
    media = read_media(clip_of(path), WaveformInput(sample_rate=8000, window_s=2), tmp_path)
    assert [len(unit) for unit in media.units] == [16000]


@pytest.mark.parametrize(("source_rate", "rate"), [(44100, 16000), (8000, 48000)])
def test_resampled_sound_keeps_its_pitch_its_phase_and_its_length(tmp_path, source_rate, rate):
    path = write_wav(tmp_path / "a.wav", tone(1.2345, source_rate), source_rate)
    resampled = waves_of(path, rate)
    expected = tone(1.2345, rate)[0]
    assert abs(len(resampled) - len(expected)) <= 1
    size = min(len(resampled), len(expected))
    np.testing.assert_allclose(resampled[200 : size - 200], expected[200 : size - 200], atol=1e-3)


def test_channels_are_mixed_without_growing_louder(tmp_path):
    left, right = tone(0.5, 8000, 200)[0], tone(0.5, 8000, 300)[0]
    path = write_wav(tmp_path / "a.wav", np.stack([left, right]), 8000)
    np.testing.assert_allclose(waves_of(path), (left + right) / 2, atol=1e-6)


def test_surround_is_mixed_in_the_proportions_of_ffmpeg():
    weights = mix_weights("5.1", 6)  # left, right, centre, low, back left, back right
    np.testing.assert_allclose(
        weights / weights[2], [0.5**0.5, 0.5**0.5, 1, 0, 0.5, 0.5], atol=1e-6
    )
    assert weights.sum() == pytest.approx(1)
    assert mix_weights("7.1", 8).sum() == pytest.approx(1)
    assert mix_weights("no such layout", 4).tolist() == [0.25] * 4


def test_sound_that_starts_late_is_preceded_by_silence(tmp_path):
    sound = tone(1.0, 8000)
    path = write_media(
        tmp_path / "a.mkv", frames=20, sound=sound, sound_codec="pcm_s16le", sound_pts=4000
    )
    wave = waves_of(path)
    assert (wave[:4000] == 0).all()
    np.testing.assert_allclose(wave[4000:12000], sound[0], atol=1e-4)


def test_a_gap_in_the_sound_is_silent_and_jitter_is_not_a_gap(tmp_path):
    sound = tone(1.792, 8000)
    half = sound.shape[1] // 2
    for gap, silence in ((4000, 4000), (400, 0)):
        path = write_media(tmp_path / "a.mkv", sound=sound, sound_codec="pcm_s16le", sound_gap=gap)
        wave = waves_of(path)
        assert len(wave) == sound.shape[1] + silence
        assert not wave[half : half + silence].any()
        np.testing.assert_allclose(wave[:half], sound[0, :half], atol=1e-4)
        np.testing.assert_allclose(wave[half + silence :], sound[0, half:], atol=1e-4)


def test_silence_and_integer_samples_are_ordinary_sound(tmp_path):
    silent = write_wav(tmp_path / "a.wav", np.zeros((2, 8000)), 8000)
    assert not waves_of(silent).any()
    for codec in ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f64le"):
        path = write_media(tmp_path / "b.wav", sound=tone(0.5, 8000), sound_codec=codec)
        np.testing.assert_allclose(waves_of(path), tone(0.5, 8000)[0], atol=0.01)


def test_sound_after_its_end_says_so(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(1, 8000), 8000)
    assert (
        code_of(path, WaveformInput(sample_rate=8000, window_s=1), start_s=1.0) == "outside_media"
    )


# --- text ------------------------------------------------------------------------------------


def test_text_is_one_unit_without_a_place_in_time(tmp_path):
    media = read_media(Clip(clip_id="c", text="a dog barks"), TextInput(), tmp_path)
    assert list(media.units) == ["a dog barks"]
    assert (len(media.times_s), media.duration_s) == (0, 0.0)


def test_a_row_without_text_says_so(tmp_path):
    with pytest.raises(DecodeError) as caught:
        read_media(Clip(clip_id="c", text=" "), TextInput(), tmp_path)
    assert caught.value.code == "no_text"


@pytest.mark.parametrize("name", ["COCO_val2014_000000000042.jpg", "p.PNG"])
def test_a_still_picture_is_a_clip_of_one_frame(tmp_path, name):
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / name)
    wants = FrameInput(fps=4, resize=32, crop=32)
    media = read_media(Clip(clip_id="p", path=name), wants, tmp_path)
    assert media.units.shape == (1, 32, 32, 3)
    assert media.steps == 1
    assert abs(media.units[0].reshape(-1, 3).mean(0) - (200, 30, 30)).max() < 3
