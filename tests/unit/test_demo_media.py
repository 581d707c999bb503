"""The demo's media: real files, varied, determined by the seed, and not given away by chance."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from micu.store.manifest import read_class_list, read_manifest
from micu_extract.demo.media import (
    DURATION_S,
    EVENTS,
    SAMPLE_RATES,
    SPLITS,
    draw_scene,
    plan_clips,
    render_frames,
    render_sound,
    write_clip,
    write_media,
    write_sentence,
)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media")
    write_media(path, workers=1, splits={"train": 1})
    return path


def test_the_manifest_lists_every_file_and_the_six_known_events(folder: Path) -> None:
    clips = read_manifest(folder / "manifest.csv", need=("path", "text", "label", "split")).clips

    assert {clip.path for clip in clips} == {
        f"media/{path.name}" for path in (folder / "media").iterdir()
    }
    assert {clip.label for clip in clips} == set(EVENTS)
    known = read_class_list(folder / "known.csv")
    assert len(known) == 6
    assert set(known) < set(EVENTS)


def test_splits_are_apart_and_hold_every_event_equally_often() -> None:
    clips = plan_clips(0)

    assert 150 <= len(clips) <= 200
    assert len({clip.clip_id for clip in clips}) == len({clip.path for clip in clips}) == len(clips)
    for split, count in SPLITS.items():
        for label in EVENTS:
            found = [clip for clip in clips if (clip.split, clip.label) == (split, label)]
            assert len(found) == count


def test_a_clip_is_four_seconds_of_h264_and_mono_aac(folder: Path) -> None:
    with av.open(str(folder / "media" / "fan-00.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert audio.layout.name == "mono"
        assert audio.rate in SAMPLE_RATES
        assert sum(1 for _ in container.decode(video)) == DURATION_S * video.average_rate
        assert container.duration / av.time_base == pytest.approx(DURATION_S, abs=0.1)


def test_the_broken_files_are_broken_in_three_ways(folder: Path) -> None:
    assert (folder / "media/empty.mp4").stat().st_size == 0
    with pytest.raises(av.error.FFmpegError):
        av.open(str(folder / "media/cut-off.mp4"))
    with av.open(str(folder / "media/sound-only.mp4")) as container:
        assert not container.streams.video
        assert container.streams.audio


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_clip(tmp_path / name, "bird", (seed, 7))

    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")

    assert first == again
    assert first != other


def test_a_sentence_fits_in_ten_words_and_often_leaves_the_noun_out() -> None:
    for label, event in EVENTS.items():
        sentences = [write_sentence(label, draws(seed)) for seed in range(60)]
        named = [any(noun in sentence for noun in event.nouns) for sentence in sentences]
        assert all(len(sentence.split()) <= 10 and "{" not in sentence for sentence in sentences)
        assert len(set(sentences)) > 40
        assert 0.3 < np.mean(named) < 0.95


@pytest.mark.parametrize("label", EVENTS)
def test_a_motion_waits_for_its_start_and_then_moves(label: str) -> None:
    scene = draw_scene(draws())
    times_s = np.arange(0, DURATION_S, 0.05)
    poses = EVENTS[label].motion(scene.cycles(times_s), draws())

    still = times_s < scene.start_s
    steps = np.abs(np.diff(poses.reshape(len(times_s), -1), axis=0)).max(1)

    assert (steps[still[1:]] == 0).all()
    assert (steps[~still[:-1]] > 1e-3).mean() > 0.5


def test_a_beat_falls_on_the_end_of_a_cycle() -> None:
    for seed in range(5):
        scene = draw_scene(draws(seed))
        beats = scene.beats_s()
        assert ((beats >= scene.start_s) & (beats < DURATION_S)).all()
        assert scene.cycles(beats) == pytest.approx(np.round(scene.cycles(beats)))


@pytest.mark.parametrize("label", EVENTS)
def test_pictures_show_something_that_moves(label: str) -> None:
    event, rng = EVENTS[label], draws(3)
    scene = draw_scene(rng)
    frames = render_frames(scene, event.shape, event.motion, rng)

    assert frames.dtype == np.uint8
    assert frames.shape == (DURATION_S * scene.fps, scene.height, scene.width, 3)
    half_second = frames[scene.fps :].astype(float) - frames[: -scene.fps]
    assert np.abs(half_second).max(axis=(1, 2, 3)).mean() > 60


@pytest.mark.parametrize("label", EVENTS)
@pytest.mark.parametrize("sample_rate", [16_000, 48_000])
def test_sound_is_finite_within_range_and_starts_with_the_motion(
    label: str, sample_rate: int
) -> None:
    before = []
    for seed in range(3):
        scene = replace(draw_scene(draws(seed)), start_s=0.6)
        sound = render_sound(EVENTS[label].sound, scene, sample_rate, draws(seed))
        assert sound.shape == (DURATION_S * sample_rate,)
        assert sound.dtype == np.float32
        assert np.isfinite(sound).all()
        assert 0.19 < np.abs(sound).max() <= 0.9
        before.append(np.abs(sound[: int(0.55 * sample_rate)]).max() / np.abs(sound).max())

    assert max(before) < 0.7  # noise and foreign sounds


def test_neither_brightness_nor_loudness_tells_the_events_apart() -> None:
    """Between events they differ less than within one."""
    brightness, loudness = np.empty((2, len(EVENTS), 6))
    for i, event in enumerate(EVENTS.values()):
        for seed in range(6):
            rng = draws(seed)
            scene = draw_scene(rng)
            brightness[i, seed] = render_frames(scene, event.shape, event.motion, rng).mean()
            loudness[i, seed] = np.abs(render_sound(event.sound, scene, 16_000, rng)).max()

    for table in (brightness, loudness):
        assert table.mean(1).std() < table.std(1).mean()
