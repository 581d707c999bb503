"""What is typed too early says the one next command in full."""

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.testing import CliRunner

from micu.cli.evaluate import main as eval_command
from micu.cli.train import main as train_command
from micu.evaluate.models import fitting_backbones
from micu.train.checkpoint import LoadedModel
from micu_extract.cli import cli as extract_command
from tests.feature_sets import make_clips, write_features
from tests.oracle import OFFICIAL, write_checkpoint, write_sets

MAKE_ONE = (
    "micu-extract manifest folder --annotations clips --split 70,15,15 --known-classes 6 -o my.csv"
)
COMMANDS = {
    "micu-extract": extract_command,
    "micu-train": train_command,
    "micu-eval": eval_command,
}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MICU_MANIFEST", raising=False)
    (tmp_path / "manifests/classes").mkdir(parents=True)
    (tmp_path / "manifests/classes/ave.csv").write_text("label\ndog\n")
    return tmp_path


def tell(line: str) -> str:
    """What a line that cannot be done says."""
    name, *words = line.split()
    done = CliRunner().invoke(COMMANDS[name], words, prog_name=name)
    assert done.exit_code != 0
    return f"{done.output}{done.exception}"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("micu-extract flow --tvl1", MAKE_ONE),
        ("micu-train --modalities v,a,f", MAKE_ONE),
        ("micu-train --modalities v,a --manifest my.csv", "micu-extract audio my.csv"),
        ("micu-train --modalities v,f --features made", MAKE_ONE),
        ("micu-eval oscmg runs/micu-vaf-43/last.pt --pairs v:a", "micu-train --modalities v,a"),
        ("micu-eval oscmg MICU.pt --pairs v:a", "https://github.com/haihuangcode/CMG"),
    ],
)
def test_in_a_fresh_clone_each_command_says_the_next_one(
    clone: Path, typed: str, expected: str
) -> None:
    assert f"type: {expected}" in tell(typed) or f"linked from {expected}" in tell(typed)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("micu-extract flow --tvl1", "micu-extract flow --tvl1 my.csv"),
        ("micu-train --modalities f,v", "micu-extract video my.csv"),
        ("micu-train --modalities f,t", "micu-extract flow --tvl1 my.csv"),
        ("micu-train --modalities v,a --features x", "micu-extract audio --out x my.csv"),
    ],
)
def test_a_manifest_that_lies_there_is_named(clone: Path, typed: str, expected: str) -> None:
    (clone / "a.media.csv").write_text("clip_id,state,files\n")
    (clone / "my.csv").write_text("clip_id,path,label\nx,x.mp4,dog\n")

    assert f"type: {expected}" in tell(typed)


def test_a_packed_manifest_that_lies_there_is_named(clone: Path) -> None:
    (clone / "a.csv.gz").write_bytes(b"\x1f\x8b")
    (clone / "my.csv.gz").write_bytes(gzip.compress(b"clip_id,path\nx,x.mp4\n"))
    assert "type: micu-extract flow --tvl1 my.csv.gz" in tell("micu-extract flow --tvl1")


def test_a_folder_of_features_without_a_record_asks_for_the_manifest(clone: Path) -> None:
    (clone / "features").mkdir()
    (clone / "my.csv").write_text("clip_id,path,label\nx,x.mp4,dog\n")

    told = tell("micu-train --modalities v,a")
    assert "type: micu-train --modalities v,a --manifest my.csv" in told


def test_a_run_that_lies_there_is_named_for_a_checkpoint_that_does_not(clone: Path) -> None:
    (clone / "runs/first").mkdir(parents=True)
    (clone / "runs/first/last.pt").touch()

    assert "runs/x/last.pt: no such checkpoint; type runs/first/last.pt" in tell(
        "micu-eval oscmg runs/x/last.pt --pairs v:a"
    )


def test_missing_features_are_extracted_by_the_backbone_of_the_checkpoint(clone: Path) -> None:
    write_sets(clone, "my", make_clips(), "avt", ("drum", "engine", "violin"))
    write_checkpoint(clone / "last.pt", clone / "features")
    (clone / "media").mkdir()
    audio = next((clone / "features/my").glob("audio-*"))
    audio.rename(clone / "away")
    write_features(clone / "features", make_clips(), {"audio": (6,)}, name="other")
    record = f'{{"manifest": "{clone}/my.csv", "media_root": "{clone}/media"}}'
    (clone / "features/last.json").write_text(record)
    backbone = audio.name.removeprefix("audio-")

    told = tell("micu-eval oscmg last.pt --pairs v:a --known manifests/classes/ave.csv")

    others = ", ".join(sorted(path.name for path in (clone / "features/my").iterdir()))
    line = f"--backbone {backbone} {clone}/my.csv --media-root {clone}/media"
    assert f"no audio features; there is {others}; type: micu-extract audio {line}" in told


def test_what_does_not_fit_is_told_before_something_is_extracted_beside_it(clone: Path) -> None:
    write_sets(clone, "my", make_clips(), "avt", ("drum", "engine", "violin"))
    write_checkpoint(clone / "last.pt", clone / "features")
    write_features(clone / "features", make_clips(), {"video": (9,)}, name="other")

    told = tell(
        "micu-eval oscmg last.pt --pairs v:a --manifest other.csv --known manifests/classes/ave.csv"
    )

    assert "no audio features; there is video-toy_grid; type: micu-extract audio" in told
    assert "video: shape: the checkpoint expects [7, 7, 512]" in told


def test_the_authors_checkpoint_names_no_backbone_and_its_shapes_do() -> None:
    loaded = SimpleNamespace(specs={}, model=SimpleNamespace(shapes={**OFFICIAL, "flow": (1,)}))

    found = fitting_backbones(cast(LoadedModel, loaded))
    assert found == {"video": "vgg19", "audio": "vggish", "text": "bert"}
