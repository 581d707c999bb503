"""A stranger's first evaluations: what lacks is counted, what is mistyped is told in a sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.cli.report import main
from micu.evaluate.report import read_rows
from micu.manifest import Clip
from tests.e2e.test_evaluate import specs_of, write_checkpoint
from tests.feature_sets import make_clips, make_row, write_features

SHAPES = {"audio": (6,), "video": (5, 5, 4)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of several manifests, lists of classes, a run, and a folder without one."""
    root = tmp_path_factory.mktemp("home")
    clips = make_clips(48, ("train", "train", "val", "test"))
    write_features(root / "features", clips)
    write_checkpoint(root / "last.pt", specs_of(root / "features"))
    changed = {
        "nosplit": [replace(clip, split="") for clip in clips],
        "notest": [replace(clip, split="train") for clip in clips],
        "upper": [replace(clip, split=clip.split.upper()) for clip in clips],
    }
    for name, others in changed.items():
        write_features(root / "features", others, SHAPES, name=name)
    write_features(
        root / "features",
        [replace(clip, label="") for clip in clips],
        SHAPES,
        name="nolabel",
        make=lambda clip, *given: make_row(replace(clip, label="drum"), *given),
    )
    write_features(root / "features", clips, SHAPES, name="holes", has=has_features)
    write_features(
        root / "features", clips, SHAPES, name="deaf", has=lambda clip, kind: kind == "video"
    )
    write_features(root / "features", clips, {**SHAPES, "audio": (7,)}, name="wide")
    source = {"manifest": str(root / "toy.csv"), "media_root": str(root)}
    (root / "features" / "last.json").write_text(json.dumps(source))
    for name, text in (
        *(("known", "drum\nengine"), ("case", "DRUM\nengine"), ("typo", "drum\nengin")),
        *(("all", "drum\nengine\nviolin"), ("one", "drum"), ("blank", " drum \nengine")),
    ):
        (root / f"{name}.csv").write_text(f"label\n{text}\n")
    for name in ("run", "empty"):
        (root / name).mkdir()
    (root / "run" / "last.pt").write_bytes((root / "last.pt").read_bytes())
    return root


def has_features(clip: Clip, modality: str) -> bool:
    """Three test clips and two training clips lack audio, one more training clip video."""
    number = int(clip.clip_id.split("/")[-1])
    return not (number == 1 if modality == "video" else number in (0, 12, 9, 11, 21))


def micu_eval(*words: object) -> Result:
    arguments = list(map(str, words))
    return CliRunner().invoke(main, arguments, prog_name="micu-eval", catch_exceptions=False)


def evaluate(home: Path, out: Path, *words: object) -> Result:
    given = ("--features", home / "features", "--out", out, "--device", "cpu")
    return micu_eval(home / "last.pt", *given, *words)


def test_test_clips_without_features_are_told_and_in_the_rows(home: Path, tmp_path: Path) -> None:
    out, pairs = tmp_path / "r.csv", ("--pairs", "v:a,a:v", "--chance")
    known = ("--known", home / "known.csv", "--probe-epochs", "1")
    result = evaluate(home, out, *pairs, *known, "--manifest", home / "holes.csv")
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("seed 43")]
    assert "9 test clips; 1 more training clips lack video features; 3 more test clips" in told[0]
    assert told[0].endswith("lack audio features")
    assert "2 more training clips lack audio features" in told[1]
    assert "test clips lack" not in told[1]
    rows = read_rows(out)
    found = {(row.test_modality, row.n_clips, row.n_lacking) for row in rows if row.metric == "hos"}
    assert found == {("audio", 9, 3), ("video", 12, 0)}
    assert len({row.test_sha256 for row in rows if row.test_modality == "audio"}) == 1
    assert len({row.test_sha256 for row in rows}) == 2
    assert "lacking features" in result.stdout
    whole = evaluate(home, tmp_path / "w.csv", *pairs, *known)
    assert whole.exit_code == 0
    assert "lack" not in whole.stderr + whole.stdout
    assert {row.n_lacking for row in read_rows(tmp_path / "w.csv")} == {0}


@pytest.mark.parametrize(
    ("task", "told", "counts"),
    [
        (("cmg", "--pairs", "v:a", "--probe-epochs", "1"), "3 more test clips lack", {(9, 3)}),
        (("retrieval", "--pairs", "v:a"), "9 items, 9 captions; 3 more clips lack", {(9, 3)}),
        (("codebook",), "42 clips; 6 more lack features of a modality", {(42, 6)}),
    ],
)
def test_every_task_counts_the_clips_that_lack_features(
    home: Path, tmp_path: Path, task: tuple[str, ...], told: str, counts: set[tuple[int, int]]
) -> None:
    result = evaluate(home, tmp_path / "r.csv", "--manifest", home / "holes.csv", "--task", *task)
    assert result.exit_code == 0, result.output
    assert told in result.stderr
    rows = read_rows(tmp_path / "r.csv")
    assert {(row.n_clips, row.n_lacking) for row in rows} == counts
    assert len({row.test_sha256 for row in rows}) == 1
    assert rows[0].test_sha256


def test_an_evaluation_after_more_was_extracted_is_told_apart_in_the_report(
    home: Path, tmp_path: Path
) -> None:
    given = ("--pairs", "v:a", "--known", home / "known.csv", "--probe-epochs", "1")
    for name, seed in (("holes", "1"), ("toy", "2")):
        out = tmp_path / f"{name}.csv"
        result = evaluate(home, out, *given, "--manifest", home / f"{name}.csv", "--seed", seed)
        assert result.exit_code == 0, result.output
        text = out.read_text()
        for row in read_rows(out):  # as of one manifest, whose features were completed
            text = text.replace(row.manifest_sha256, "m").replace(row.features, "f")
        out.write_text(text)
    result = micu_eval("report", tmp_path, "-o", tmp_path / "r.md")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r.md").read_text()
    assert "12 (" in page
    assert "9 (" in page
    assert " ± " not in page.replace("mean ± standard", "")
