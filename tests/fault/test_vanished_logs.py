"""The metrics of a training that are deleted, replaced or cut while the run's folder stays."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import micu.train.fit
from micu.train.logs import METRICS, MetricsLog
from tests.feature_sets import make_clips, write_features
from tests.training import metrics, train

STEPS = ("--set", "optimizer.max_steps=4")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips())
    return root


def rename(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replace(path: Path) -> None:
    rename(path)
    path.write_text("other\n")


def empty(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


def cut(path: Path) -> None:
    """Within the last line."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)


AWAY = [Path.unlink, rename, replace]


def struck(
    monkeypatch: pytest.MonkeyPatch, path: Path, fate: Callable[[Path], None], at: int
) -> None:
    """Let it happen after a step, before its row is written; after the last row if `at` is 5."""
    step, write = micu.train.fit.train_step, MetricsLog.write

    def strike(state, batch):  # type: ignore[no-untyped-def]
        report = step(state, batch)
        if state.step == at:
            fate(path)
        return report

    def written(log, row):  # type: ignore[no-untyped-def]
        write(log, row)
        if row["step"] == at - 1 == 4:
            fate(path)

    monkeypatch.setattr(micu.train.fit, "train_step", strike)
    monkeypatch.setattr(MetricsLog, "write", written)


@pytest.mark.parametrize("at", [1, 2, 4, 5])
@pytest.mark.parametrize("fate", AWAY)
@pytest.mark.parametrize("name", METRICS)
def test_metrics_that_are_taken_away_are_written_again_whole(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    fate: Callable[[Path], None],
    at: int,
) -> None:
    out = tmp_path / "mine"
    struck(monkeypatch, out / name, fate, at)
    result = train(features, out, *STEPS)
    assert result.exit_code == 0, result.output
    told = f"{out / name}: was deleted, replaced or cut while the run writes it; it is written a"
    assert [text for text in caplog.messages if text.startswith(told)] == [f"{told}gain"]
    monkeypatch.undo()
    assert train(features, tmp_path / "other", *STEPS).exit_code == 0
    assert metrics(out) == metrics(tmp_path / "other")
    assert len(metrics(out)) == 4


@pytest.mark.parametrize(("fate", "left"), [(empty, [3, 4]), (cut, [1, 3, 4])])
@pytest.mark.parametrize("name", METRICS)
def test_metrics_that_are_cut_go_on_with_what_is_left(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    fate: Callable[[Path], None],
    left: list[int],
) -> None:
    out = tmp_path / "mine"
    struck(monkeypatch, out / name, fate, 3)
    assert train(features, out, *STEPS).exit_code == 0
    assert f"{out / name}: was deleted, replaced or cut" in caplog.text
    assert "it is written again, but what was cut is lost" in caplog.text
    if name.endswith(".csv"):
        with (out / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
    assert [int(row["step"]) for row in rows] == left


def test_metrics_that_nobody_touches_are_told_of_by_no_word(
    features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "mine"
    for steps in (2, 4):
        words = ("--set", f"optimizer.max_steps={steps}", "--resume")
        assert train(features, out, *words).exit_code == 0
    assert "written again" not in caplog.text
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4]


def test_a_folder_in_the_place_of_metrics_ends_the_training(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def become_a_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    out = tmp_path / "mine"
    struck(monkeypatch, out / "metrics.csv", become_a_folder, 2)
    result = train(features, out, *STEPS)
    assert result.exit_code == 74
    assert "Traceback" not in result.stderr
