from pathlib import Path

import pytest
from click.testing import CliRunner

from micu.base.errors import ManifestError
from micu.config.sections import DataConfig
from micu.data.dataset import select_clips
from micu.store.manifest import Clip, write_manifest, youtube_id
from micu.store.overlap import find_shared
from micu_extract.cli import cli


def clips(*names: str) -> list[Clip]:
    return [Clip(clip_id=name) for name in names]


@pytest.mark.parametrize(
    ("clip_id", "expected"),
    [
        ("---g-f_I2yQ", "---g-f_I2yQ"),
        ("---g-f_I2yQ_000001", "---g-f_I2yQ"),
        ("4YdbENYcIyE_23_33", "4YdbENYcIyE"),
        ("CEfOX4fYlsY_20.000_30.000", "CEfOX4fYlsY"),
        ("RUhOCu3LNXM#2", "RUhOCu3LNXM"),
        ("v_PlayingCello_g02_c04", None),
        ("short", None),
        ("---g-f_I2yQ.mp4", None),
        ("---g-f_I2yQ_1_2_3", None),
        ("hdstykfxcbw_000030", "hdstykfxcbw"),
        ("dog_barking_7", None),
        ("dog_barking_000007", None),
        ("Dog_Barking_1_2", None),
        ("street1_dog_000007", None),
        ("rattlesnake_000007", None),
    ],
)
def test_an_id_that_begins_with_a_youtube_video_names_it(
    clip_id: str, expected: str | None
) -> None:
    assert youtube_id(clip_id) == expected


def test_clips_are_shared_by_id_or_by_video() -> None:
    first = clips("---g-f_I2yQ_000001", "4YdbENYcIyE", "mine", "RUhOCu3LNXM")
    second = clips("---g-f_I2yQ_30_40", "---g-f_I2yQ_000007", "4YdbENYcIyE", "mine", "other")
    shared = find_shared(first, second)
    assert [(found.clip.clip_id, found.by) for found in shared] == [
        ("---g-f_I2yQ_000001", "youtube"),
        ("4YdbENYcIyE", "id"),
        ("mine", "id"),
    ]
    assert shared[0].others == ("---g-f_I2yQ_30_40", "---g-f_I2yQ_000007")


def test_the_command_counts_and_lists_what_is_shared(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.csv", clips("---g-f_I2yQ_000001", "mine", "free"))
    write_manifest(tmp_path / "b.csv", clips("---g-f_I2yQ", "mine"))
    out = tmp_path / "shared.csv"
    paths = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    result = CliRunner().invoke(cli, ["overlap", *paths, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "2 of 3 clips" in result.output
    assert "1 by id, 1 by YouTube video" in result.output
    rows = out.read_text().splitlines()
    assert rows == ["clip_id,by,others", "---g-f_I2yQ_000001,youtube,---g-f_I2yQ", "mine,id,mine"]
    # the list is one that pretraining can exclude
    (kept,) = select_clips(
        clips("---g-f_I2yQ_000001", "mine", "free"), DataConfig(exclude_ids=str(out))
    )
    assert kept.clip_id == "free"


def test_pretraining_leaves_out_the_clips_and_videos_of_other_manifests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_manifest(tmp_path / "a.csv", clips("---g-f_I2yQ_30_40"))
    write_manifest(tmp_path / "b.csv", clips("mine", "unheard"))
    config = DataConfig(exclude_manifests=(str(tmp_path / "a.csv"), str(tmp_path / "b.csv")))
    chosen = select_clips(clips("---g-f_I2yQ_000001", "mine", "free"), config)
    assert [clip.clip_id for clip in chosen] == ["free"]
    assert "a.csv excludes 1 of 3 clips: 0 by id, 1 by YouTube video" in caplog.text
    assert "b.csv excludes 1 of 2 clips: 1 by id, 0 by YouTube video" in caplog.text
    with pytest.raises(ManifestError, match="excludes every clip"):
        select_clips(clips("mine"), config)
    with pytest.raises(ManifestError, match="no such manifest"):
        select_clips(clips("mine"), DataConfig(exclude_manifests=(str(tmp_path / "c.csv"),)))
