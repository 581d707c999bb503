"""`manifest --split`, `--known-classes` and `--text`: own clips made ready to train on."""

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.base.errors import ConfigError, MicuError
from micu.store.manifest import Clip, read_class_list, read_manifest
from micu_extract.cli import cli
from micu_extract.datasets.drawing import draw_known, draw_splits


def clips_of(label: str, count: int, rows: int = 1) -> list[Clip]:
    """Clips of a class: `count` files with `rows` rows about each."""
    return [
        Clip(clip_id=f"{label}{item}#{row}", group=f"{label}{item}", label=label)
        for item in range(count)
        for row in range(rows)
    ]


def counts(clips: list[Clip]) -> list[int]:
    found = Counter(clip.split for clip in clips)
    return [found[name] for name in ("train", "val", "test")]


@pytest.mark.parametrize(
    ("files", "typed", "expected"),
    [
        (1, "70,15,15", [1, 0, 0]),
        (2, "70,15,15", [1, 0, 1]),
        (3, "70,15,15", [1, 1, 1]),
        (4, "70,15,15", [2, 1, 1]),
        (10, "70,15,15", [6, 2, 2]),
        (20, "0.7,.15,.15", [14, 3, 3]),
        (20, " 8, 0, 2", [16, 0, 4]),
        (3, "100,0,0", [3, 0, 0]),
        (3, "1,98,1", [1, 1, 1]),
    ],
)
def test_every_class_is_dealt_by_its_shares(files: int, typed: str, expected: list[int]) -> None:
    assert counts(draw_splits(clips_of("dog", files), typed, 0)) == expected


def test_rows_about_one_file_and_one_video_stay_together() -> None:
    video = [Clip(clip_id=f"RUhOCu3LNXM_{s}_{s + 9}", label="dog") for s in (10, 20, 30)]
    clips = draw_splits([*clips_of("dog", 9, rows=3), *video], "50,25,25", 3)

    items: dict[str, set[str]] = {}
    for clip in clips:
        items.setdefault(clip.clip_id.partition("#")[0][:11], set()).add(clip.split)
    assert all(len(splits) == 1 for splits in items.values())
    assert counts(clips)[1:] != [0, 0]


def test_the_draw_follows_the_seed_and_nothing_else() -> None:
    clips = [*clips_of("dog", 12), *clips_of("cat", 12)]
    drawn = {c.clip_id: c.split for c in draw_splits(clips, "50,25,25", 1)}
    moved = [
        Clip(clip_id=c.clip_id, label=c.label, group=f"{c.group}@elsewhere")
        for c in reversed(clips)
    ]

    assert {c.clip_id: c.split for c in draw_splits(moved, "50,25,25", 1)} == drawn
    assert {c.clip_id: c.split for c in draw_splits(clips, "50,25,25", 2)} != drawn
    assert [c.clip_id for c in draw_splits(clips, "50,25,25", 1)] == [c.clip_id for c in clips]
    by_place = [c.clip_id[:3] for c in clips if drawn[c.clip_id] == "test"]
    assert Counter(by_place) == {"dog": 3, "cat": 3}
    dogs, cats = (
        {i[3:] for i, split in drawn.items() if split == "test" and i[:3] == name}
        for name in ("dog", "cat")
    )
    assert dogs != cats


@pytest.mark.parametrize(
    "typed", ["70,30", "a,b,c", "0,50,50", "-1,2,3", "70,-1,15", "nan,1,1", "inf,1,1", ""]
)
def test_what_is_no_share_is_refused(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"--split: expected three shares.*70,15,15; got"):
        draw_splits(clips_of("dog", 3), typed, 0)


def test_splits_that_are_there_are_kept() -> None:
    with pytest.raises(ConfigError, match="without a split, got some; leave it out"):
        draw_splits([Clip(clip_id="a", split="train"), Clip(clip_id="b")], "70,15,15", 0)


def test_some_classes_are_drawn_as_known() -> None:
    clips = [clip for name in "abcd" for clip in clips_of(name, 2)]

    assert draw_known(clips, 2, 0) == draw_known(clips[::-1], 2, 0)
    assert len({draw_known(clips, 2, seed) for seed in range(9)}) > 1
    assert draw_known(clips, 3, 0).decode().splitlines()[0] == "label"
    with pytest.raises(MicuError, match="expected fewer than the 4 classes there are"):
        draw_known([*clips, Clip(clip_id="none")], 4, 0)


def make(folder: Path, *words: str) -> Result:
    root, out = str(folder / "clips"), str(folder / "my.csv")
    return CliRunner().invoke(cli, ["manifest", "folder", "--annotations", root, "-o", out, *words])


def test_a_folder_per_class_becomes_what_training_and_evaluation_need(tmp_path: Path) -> None:
    for name in ("dog_bark", "cat", "a,b"):
        for number in range(4):
            (tmp_path / "clips" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "clips" / name / f"{number}.mp4").touch()
    words = ("--split", "50,25,25", "--known-classes", "2", "--text", "label")
    done = make(tmp_path, *words)

    assert done.exit_code == 0, done.output
    assert "6 train, 3 val, 3 test" in done.output
    clips = read_manifest(tmp_path / "my.csv").clips
    assert {clip.text for clip in clips} == {"dog bark", "cat", "a,b"}
    known = (tmp_path / "known.csv").read_bytes()
    assert len(read_class_list(tmp_path / "known.csv")) == 2
    assert make(tmp_path, *words).exit_code == 0
    assert (tmp_path / "known.csv").read_bytes() == known


def test_a_class_list_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        (tmp_path / "clips" / name / "1.mp4").touch()
    (tmp_path / "known.csv").write_text("label\nmine\n")
    done = make(tmp_path, "--known-classes", "1")

    assert isinstance(done.exception, ConfigError)
    assert "got others, which are left as they are; remove it" in str(done.exception)
    assert (tmp_path / "known.csv").read_text() == "label\nmine\n"
    assert not (tmp_path / "my.csv").exists()


def test_a_seed_for_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    done = make(tmp_path, "--seed", "1")

    assert done.exit_code == 2
    assert "nothing is drawn" in done.output
