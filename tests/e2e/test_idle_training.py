"""Steps that are skipped are told, and a run in which nothing moved is no success."""

import json
from pathlib import Path

import pytest
import torch

import micu.train.logs
import micu.train.step
from micu.sweep.conduct import conduct
from tests.feature_sets import make_clips, write_features
from tests.training import train
from tests.unit.test_sweep import Processes, jobs_in


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips())
    return root


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Lets the gradient of some steps, counted from 1, be not finite."""

    def choose(*steps: int) -> None:
        calls = []

        def judge(norms):  # type: ignore[no-untyped-def]
            calls.append(norms)
            return ["gradient of 'video' is nan"] if len(calls) in steps else []

        monkeypatch.setattr(micu.train.step, "nonfinite_gradients", judge)

    return choose


FOUR = ("--set", "optimizer.max_steps=4", "--set", "optimizer.skip_nonfinite=9")


def test_skipped_steps_are_told_on_the_way_and_at_the_end(
    features, tmp_path, spoil, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(micu.train.logs, "PROGRESS_S", 0.0)
    spoil(2, 3)
    result = train(features, tmp_path / "run", *FOUR)
    assert result.exit_code == 0, result.output
    assert "4 steps, 2 of them skipped; model in" in result.stderr
    assert [line.rpartition("; ")[2] for line in caplog.messages if "step 3/4" in line] == [
        "2 steps skipped"
    ]


def test_skipped_steps_of_before_count_when_a_run_goes_on(features, tmp_path, spoil):
    spoil(2)
    assert train(features, tmp_path / "run", *FOUR, "--set", "optimizer.max_steps=2").exit_code == 0
    spoil(1)
    again = train(features, tmp_path / "run", *FOUR, "--resume", "--json")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert (told["steps"], told["skipped"], told["has_moved"]) == (4, 2, True)


def test_a_run_without_skipped_steps_does_not_speak_of_them(features, tmp_path):
    result = train(features, tmp_path / "run", *FOUR)
    assert "4 steps; model in" in result.stderr
    assert "of them skipped" not in result.stderr


@pytest.mark.parametrize("good", [None, 1, 4])
def test_a_run_in_which_no_step_moved_anything_does_not_end_with_0(features, tmp_path, spoil, good):
    spoil(*(step for step in (1, 2, 3, 4) if step != good))
    out = tmp_path / "run"
    result = train(features, out, *FOUR)
    if good is not None:
        assert result.exit_code == 0, result.output
        assert "4 steps, 3 of them skipped" in result.stderr
        return
    assert result.exit_code == 3, result.output
    assert f"{out}: expected a trained model, got one as it was drawn" in result.stderr
    assert "no step of 4 moved anything, and 4 were skipped" in result.stderr
    again = train(features, out, *FOUR, "--resume", "--json")  # nothing is left to do
    assert again.exit_code == 3
    assert json.loads(again.stdout)["has_moved"] is False


def test_weights_and_codes_that_stay_are_noticed_without_any_skipped_step(
    features, tmp_path, monkeypatch
):
    monkeypatch.setattr(micu.train.step, "update_codebook_", lambda *words: None)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: None)
    result = train(features, tmp_path / "run", *FOUR)
    assert result.exit_code == 3, result.output
    assert "no step of 4 moved anything, and 0 were skipped" in result.stderr


def test_codes_that_move_alone_are_a_training(features, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: None)
    assert train(features, tmp_path / "run", *FOUR).exit_code == 0


def test_a_sweep_counts_a_run_in_which_nothing_moved_as_failed(tmp_path):
    from micu.base.process import StopFlag

    launch = Processes(lambda module, name: 3)
    ended = conduct(jobs_in(tmp_path), 1, launch, StopFlag(), lambda line: None)
    assert [each.state for each in ended] == ["failed", "failed"]
    assert "exit code 3" in ended[0].why
