"""Seconds before the first picture are not real, in video and flow; a little late is not late."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import micu_extract.media.damage
from micu.base.errors import DecodeError
from micu.store.manifest import Clip, write_manifest
from micu.store.sets import FeatureStore
from micu_extract.backbones.base import FlowInput, FrameInput, Media, mean_by_step
from micu_extract.cli import cli
from micu_extract.media.flow import plan_fields
from micu_extract.media.frames import find_first_second, skip_seconds
from micu_extract.media.readers import read
from micu_extract.media.source import Reading, Window
from tests.media_files import HASTY_FLOW, frame_of, read_media, tone, write_media

WHOLE = Window(Fraction(0), None)


def write_late(path: Path, first: int, count: int, fps: int = 10, seconds: float = 10.0) -> Path:
    """Sound from 0 s, and `count` pictures from `first` / fps on."""
    pts = range(first, first + count)
    return write_media(
        path, frames=count, fps=fps, pts=pts, sound=tone(seconds, 8000), sound_codec="pcm_s16le"
    )


def frames_of(path: Path, fps: int = 4, sampling: str = "time", **window: float) -> Media:
    wants = FrameInput(fps=fps, resize=16, crop=16, sampling=sampling)  # type: ignore[arg-type]
    clip = Clip(clip_id="c", path=path.name, **window)  # type: ignore[arg-type]
    return read_media(clip, wants, path.parent)


def mask_of(media: Media) -> list[int]:
    outputs = [np.ones(1, np.float32)] * len(media.units)
    return mean_by_step(outputs, media).mask.astype(int).tolist()


def test_seconds_before_the_first_picture_are_masked(tmp_path):
    path = write_late(tmp_path / "a.mkv", first=50, count=30)
    media = frames_of(path)
    assert mask_of(media) == [0] * 5 + [1] * 3
    assert media.times_s[0] == 5.125
    assert [frame_of(unit) for unit in media.units[:4]] == [1, 3, 6, 8]
    assert mask_of(frames_of(path, end_s=10.0)) == [0] * 5 + [1] * 3 + [0] * 2
    assert mask_of(frames_of(path, start_s=3.0, end_s=7.0)) == [0, 0, 1, 1]
    assert mask_of(frames_of(path, start_s=5.0, end_s=7.0)) == [1, 1]
    with pytest.raises(DecodeError, match=r"to 5\.0 s, lies outside its video") as caught:
        frames_of(path, end_s=5.0)
    assert caught.value.code == "outside_media"


def test_by_count_the_pictures_stand_for_the_seconds_from_the_first_one_on(tmp_path):
    path = write_late(tmp_path / "a.mkv", first=50, count=30)
    media = frames_of(path, fps=2, sampling="count")
    assert media.times_s.tolist() == [5.25, 5.75, 6.25, 6.75, 7.25, 7.75]
    assert [frame_of(unit) for unit in media.units] == [0, 5, 10, 15, 20, 25]
    assert mask_of(media) == [0] * 5 + [1] * 3


@pytest.mark.parametrize("first", [0, 1, 4, 40, 90])
def test_a_first_picture_that_comes_within_its_second_masks_nothing(tmp_path, first):
    on_time = frames_of(write_late(tmp_path / "a.mkv", 0, 200, fps=100), fps=16)
    late = frames_of(write_late(tmp_path / "b.mkv", first, 200 - first, fps=100), fps=16)
    assert mask_of(late) == [1, 1]
    assert late.times_s.tolist() == on_time.times_s.tolist()
    shown = [max(frame_of(unit) - first, 0) for unit in on_time.units[:8]]
    assert [frame_of(unit) for unit in late.units[:8]] == shown


def test_a_second_is_real_from_a_tenth_of_a_second_of_pictures(tmp_path):
    assert [skip_seconds(Fraction(tick, 1000)) for tick in (-500, 0, 900, 901, 1000)] == [
        0, 0, 0, 1, 1,
    ]  # fmt: skip
    assert [skip_seconds(Fraction(tick, 1000)) for tick in (1900, 1901, 5000)] == [1, 2, 5]
    assert mask_of(frames_of(write_late(tmp_path / "a.mkv", 90, 110, fps=100))) == [1, 1]
    assert mask_of(frames_of(write_late(tmp_path / "a.mkv", 91, 109, fps=100))) == [0, 1]


@pytest.mark.parametrize(
    ("begin", "covered", "steps", "first"),
    [
        ("0", "10", 10, 0),
        ("-3", "0.02", 1, 0),
        ("5", "10", 10, 5),
        ("0.95", "0.99", 1, 0),  # hardly a picture, and no other
        ("4.95", "5.04", 5, 4),
        ("4.95", "5.05", 6, 4),  # as much in both
        ("4.95", "5.06", 6, 5),
        ("4.95", "5.2", 6, 5),
        ("4.9", "4.95", 5, 4),
        ("5", "5.04", 5, None),
        ("5", "5.04", 10, 5),
        ("16386", "16387", 10, None),
    ],
)
def test_some_second_is_real_where_there_are_pictures(begin, covered, steps, first):
    assert find_first_second(Fraction(begin), Fraction(covered), steps) == first


@pytest.mark.parametrize("fps", [1, 4])
@pytest.mark.parametrize("sampling", ["time", "count"])
def test_a_single_late_picture_is_one_row_or_too_short(tmp_path, fps, sampling):
    path = write_late(tmp_path / "a.mkv", first=495, count=9, fps=100)
    for window in ({}, {"end_s": 5.0}, {"end_s": 10.0}):
        media = frames_of(path, fps, sampling, **window)
        assert mask_of(media)[:5] == [0, 0, 0, 0, 1]
        assert sum(mask_of(media)) == 1
    path = write_late(tmp_path / "a.mkv", first=500, count=2, fps=100)
    with pytest.raises(DecodeError) as caught:
        frames_of(path, fps, sampling)
    assert caught.value.code == "too_short"


def centres_of(starts: Sequence[str], covered: str, window: Window = WHOLE) -> list[float]:
    wants = FlowInput(clip_len=2, interval=1)
    plan = plan_fields([Fraction(start) for start in starts], Fraction(covered), window, wants)
    return [float(centre) for centre in plan.centres]


def test_flow_is_placed_on_seconds_from_the_first_picture_on():
    assert centres_of(["5", "5.5", "6", "7"], "8") == [5.5, 6.5, 7.5]
    assert centres_of(["0.9", "1", "1.5"], "2") == [0.5, 1.5]
    assert centres_of(["0.91", "1", "1.5"], "2") == [1.5]
    assert centres_of(["4.1", "4.2"], "4.3") == [4.15]
    assert centres_of(["4.95", "5"], "5.04") == [4.5]
    assert centres_of(["0.04", "0.1"], "0.2") == [0.1]
    assert centres_of(["5", "5.02"], "5.04") == []


def test_late_flow_is_masked_also_from_the_cache_and_too_little_is_too_short(tmp_path):
    path = write_late(tmp_path / "a.mkv", first=30, count=20)
    wants = FlowInput(clip_len=2, interval=1, resize=32, crop=32)
    clip = Clip(clip_id="c", path=path.name)
    reading = Reading(media_root=tmp_path, flow=HASTY_FLOW, flow_cache=tmp_path / "cache")
    for _ in range(2):
        media = read(clip, wants, reading)
        assert media.times_s.tolist() == [3.5, 4.5]
        assert mask_of(media) == [0, 0, 0, 1, 1]
    write_late(path, first=500, count=2, fps=100)
    with pytest.raises(DecodeError) as caught:
        read(clip, wants, reading)
    assert caught.value.code == "too_short"


def test_rows_before_late_pictures_count_as_memory(tmp_path, monkeypatch):
    path = write_late(tmp_path / "a.mkv", first=900, count=10, seconds=1.0)
    assert len(frames_of(path, fps=1).units) == 1
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", 50 * 16 * 16 * 3)
    with pytest.raises(DecodeError) as caught:
        frames_of(path, fps=1)
    assert caught.value.code == "too_large"
    flow = Reading(media_root=tmp_path, flow=HASTY_FLOW)
    with pytest.raises(DecodeError) as caught:
        read(
            Clip(clip_id="c", path=path.name),
            FlowInput(clip_len=1, interval=1, resize=16, crop=16),
            flow,
        )
    assert caught.value.code == "too_large"


def test_masks_reach_the_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_late(tmp_path / "pictures.mkv", first=30, count=30, seconds=6.0)
    write_media(
        tmp_path / "sound.mkv",
        frames=60,
        sound=tone(3.0, 8000),
        sound_codec="pcm_s16le",
        sound_pts=24000,
    )
    clips = [Clip(clip_id=name, path=f"{name}.mkv") for name in ("pictures", "sound")]
    write_manifest(tmp_path / "m.csv", clips)
    demo = ("--weights", "random", "--device", "cpu", "m.csv")
    for modality, backbone, late in (
        ("video", "swinv2-demo", "pictures"),
        ("flow", "slowonly-demo", "pictures"),
        ("audio", "htsat-demo", "sound"),
    ):
        method = ("--tvl1", "--warps", "1") if modality == "flow" else ()
        done = CliRunner().invoke(cli, [modality, *method, "--backbone", backbone, *demo])
        assert done.exit_code == 0, done.output
        store = FeatureStore(tmp_path / "features" / "m" / f"{modality}-{backbone}")
        for clip in clips:
            row = store.read(clip.clip_id)
            is_late = clip.clip_id == late
            assert row.mask.tolist() == [not is_late] * 3 + [True] * 3
            assert not row.values[~row.mask].any()
