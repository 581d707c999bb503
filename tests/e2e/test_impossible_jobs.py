"""What `micu-eval` does where the data do not allow all that was asked: two data sets in one
manifest, as UCF↔VGGSound, whose training clips have video alone and the test clips sound alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.cli.evaluate import main
from micu.evaluate.report import read_rows
from micu.evaluate.scores import SCORES
from micu.store.manifest import Clip
from tests.checkpoints import with_task
from tests.oracle import know_everything, know_nothing, write_checkpoint, write_sets

CLASSES = ("bell", "bark", "flute")
PROBE = ("--probe-learning-rate", "0.03", "--probe-epochs", "2", "--probe-batch-size", "8")


def clips_of(splits: Sequence[str], per: int) -> list[Clip]:
    """`per` clips of each class and split."""
    kinds = [(split, name) for split in splits for name in CLASSES for _ in range(per)]
    return [
        Clip(clip_id=f"c/{i}", path="x.mp4", label=name, split=split)
        for i, (split, name) in enumerate(kinds)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, known classes and a checkpoint."""
    folder = tmp_path_factory.mktemp("impossible")
    clips = clips_of(("train", "test"), 3)
    apart = [replace(clip, path="sides.mp4") for clip in clips]  # of a file of their own
    sides = {"video": "train", "audio": "test"}
    write_sets(folder, "sides", apart, "va", CLASSES, lambda clip, kind: sides[kind] == clip.split)
    write_sets(folder, "both", clips, "vat", CLASSES)
    (folder / "known.csv").write_text("label\nbell\nbark\n")
    write_checkpoint(folder / "last.pt", folder / "features")
    return folder


def evaluate(root: Path, out: Path, manifest: str, *options: str) -> Result:
    where = ["--features", root / "features", "--manifest", root / f"{manifest}.csv", "--out", out]
    task, *rest = with_task(options)
    arguments = [task, root / "last.pt", *where, "--device", "cpu", *PROBE, *rest]
    return CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)


def open_set(root: Path) -> tuple[str, ...]:
    return ("--known", str(root / "known.csv"))


def test_all_scores_are_those_that_the_clips_allow_and_the_one_left_out_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=0)
    out = tmp_path / "r.csv"
    result = evaluate(root, out, "sides", "--pairs", "v:a", *open_set(root), "--score", "all")
    assert result.exit_code == 0, result.output
    assert {row.score for row in read_rows(out)} == {*SCORES} - {"quantization_error"}
    told = "left out: --score quantization_error: no training clip has audio features"
    assert result.stderr.count(told) == 1


def test_without_unknown_clips_no_score_is_ranked_and_no_note_claims_a_best(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=0)
    (tmp_path / "all.csv").write_text("\n".join(["label", *CLASSES]) + "\n")
    out, known = tmp_path / "r.csv", ("--known", str(tmp_path / "all.csv"))
    result = evaluate(root, out, "both", "--pairs", "v:a", *known, "--score", "all")
    assert result.exit_code == 0, result.output
    assert "nan" not in result.stdout
    notes = {row.note for row in read_rows(out) if row.threshold_source == "oracle"}
    assert not [note for note in notes if "best HOS" in note]
    assert [note for note in notes if "no HOS without test clips of known and of unknown" in note]


def test_a_ceiling_without_training_clips_is_told_of_and_left_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    out = tmp_path / "r.csv"
    result = evaluate(root, out, "sides", "cmg", "--pairs", "v:a", "--ceiling")
    assert result.exit_code == 0, result.output
    assert {row.method for row in read_rows(out)} == {"checkpoint"}
    assert "left out: ceiling audio → audio, clean: no training clip" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "v:a,a:v"], "checkpoint audio → video, clean: no training clip"),
        (["--pairs", "v:a", "--score", "quantization_error"], "no training clip has audio"),
        (
            ["--pairs", "v:a", "--protocol", "clean", "--threshold", "paired-quantile"],
            "--threshold paired-quantile: expected 20 or more clips",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    root: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = evaluate(root, tmp_path / "r.csv", "sides", *options, *open_set(root))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "seed 43" not in result.stderr


def test_an_encoder_that_no_probe_fits_ends_the_run_before_the_first_is_trained(
    root: Path, tmp_path: Path
) -> None:
    encoders = ("--encoder", "checkpoint", "--encoder", "input")
    result = evaluate(root, tmp_path / "r.csv", "both", "cmg", "--pairs", "v:a", *encoders)
    assert result.exit_code == 2
    assert "no probe fits both" in result.stderr
    assert "seed 43" not in result.stderr


@pytest.mark.parametrize("also", [(), ("--threshold", "source-val")])
def test_a_threshold_that_cannot_be_leaves_the_other_rows_where_they_are(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also: tuple[str, ...]
) -> None:
    know_nothing(monkeypatch)
    out = tmp_path / "r.csv"
    asked = (*also, "--threshold", "paired-quantile")
    result = evaluate(root, out, "both", "--pairs", "v:a", *open_set(root), *asked)
    assert result.exit_code == 0, result.output
    assert {row.threshold_source for row in read_rows(out)} == {"oracle", *also[1:]}
    assert "--threshold paired-quantile: expected 20 or more clips" in result.stderr
