"""Baselines through the commands: trained, stopped, gone on with, and evaluated like any run."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from micu.cli.evaluate import main as evaluate
from micu.config.presets import BASELINES
from micu.evaluate.report import read_rows
from tests.feature_sets import make_clips, write_features
from tests.training import assert_same_run, train

MODALITIES = "a,v,f,t"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips(36, ("train", "train", "test")))
    return root


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_baseline_is_trained_and_evaluated_by_the_same_commands(
    name: str, features: Path, tmp_path: Path
) -> None:
    whole, stopped, known = tmp_path / "whole", tmp_path / "stopped", tmp_path / "known.csv"
    once = ("--preset", name, "--set", "optimizer.epochs=2")
    assert train(features, whole, *once, modalities=MODALITIES).exit_code == 0
    train(features, stopped, *once, "--save-every", "2", "--keep", "0", modalities=MODALITIES)
    (stopped / "last.pt").unlink()
    for path in sorted(stopped.glob("step-*.pt"))[1:]:
        path.unlink()
    result = train(features, stopped, *once, "--resume", modalities=MODALITIES)
    assert result.exit_code == 0, result.output
    assert_same_run(whole, stopped)

    known.write_text("label\ndrum\nengine\n")
    out = tmp_path / "results.csv"
    arguments = [
        *("oscmg", whole / "last.pt", "--features", features, "--out", out, "--known", known),
        *("--device", "cpu", "--pairs", "v:a,f:v", "--probe-epochs", "2"),
    ]
    result = CliRunner().invoke(evaluate, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    rows = [row for row in read_rows(out) if row.metric == "hos"]
    assert {(row.train_modality, row.test_modality) for row in rows} == {
        *(("video", "audio"), ("flow", "video"))
    }
    assert all(row.preset.startswith(name) for row in rows)


def test_a_checkpoint_of_a_warm_start_is_not_evaluated_as_if_it_had_codes(
    features: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "results.csv"
    words = ("--preset", "cmcm", "--save-every", "1", "--keep", "0", "--set", "optimizer.epochs=2")
    assert train(features, run, *words).exit_code == 0
    told = {}
    for path in sorted(run.glob("step-*.pt")):
        arguments = ["codebook", path, "--features", features, "--out", out]
        told[path.name] = CliRunner().invoke(evaluate, [str(word) for word in arguments])
    steps = len(told)
    warmup = round(steps * 3 / 8)
    assert 1 < warmup < steps
    codes = [result.exit_code for result in told.values()]
    assert codes == [2] * (warmup - 1) + [0] * (steps - warmup + 1)
    first = next(iter(told.values()))
    assert (
        "expected a checkpoint from after the warm start of weights.code_matching" in first.output
    )
    assert "got one of step 1" in first.output
