"""A run's folder: who may write there, what is gone on from, and what is never written over."""

import json
import os
from dataclasses import asdict

import pytest

import micu.train.fit
from micu.base.errors import ConfigError
from micu.base.files import lock_folder
from micu.cli.features import find_feature_sets
from micu.config.overrides import to_json, with_overrides
from micu.config.sections import TrainConfig
from micu.train.checkpoint import load_checkpoint
from micu.train.step import train_step
from tests.feature_sets import SMALL, make_clips, write_features
from tests.training import assert_same_run, metrics, train


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips())
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def test_going_back_to_an_earlier_checkpoint_repeats_its_steps_without_double_rows(
    features, tmp_path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        result = train(features, out, "--set", "optimizer.epochs=2", "--save-every", "2")
        assert result.exit_code == 0, result.output
    (parts / "last.pt").unlink()
    (parts / "step-000004.pt").rename(parts / "last.pt")
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tot')  # a kill in the middle of a line

    result = train(features, parts, "--set", "optimizer.epochs=2", "--resume")

    assert result.exit_code == 0, result.output
    assert_same_run(whole, parts)


def test_a_folder_with_a_run_is_not_touched_without_being_told(features, out):
    first = train(features, out, "--set", "optimizer.max_steps=1")
    before = {path: path.read_bytes() for path in out.iterdir()}

    again = train(features, out, "--set", "optimizer.max_steps=1")
    other = train(features, out, "--seed", "5", "--resume")
    both = train(features, out, "--overwrite", "--resume")

    assert (first.exit_code, again.exit_code, other.exit_code, both.exit_code) == (0, 2, 2, 2)
    assert "holds a run already; go on with it by --resume" in again.stderr
    assert "another configuration" in other.stderr
    assert "seed: there 43, here 5" in other.stderr
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_overwriting_starts_at_the_first_step(features, out):
    train(features, out, "--set", "optimizer.max_steps=2")

    result = train(features, out, "--set", "optimizer.max_steps=1", "--overwrite")

    assert result.exit_code == 0, result.output
    assert len(metrics(out)) == 1
    assert [path.name for path in out.glob("step-*")] == ["step-000001.pt"]


def test_resuming_where_there_is_no_run_starts_one(features, out):
    result = train(features, out, "--set", "optimizer.max_steps=1", "--resume")

    assert result.exit_code == 0, result.output
    assert load_checkpoint(out / "last.pt").step == 1


def test_resuming_a_finished_run_changes_nothing(features, out):
    train(features, out, "--set", "optimizer.max_steps=2")
    before = (out / "last.pt").read_bytes()

    result = train(features, out, "--set", "optimizer.max_steps=2", "--resume")

    assert result.exit_code == 0, result.output
    assert (out / "last.pt").read_bytes() == before
    assert len(metrics(out)) == 2


def test_a_run_without_its_last_checkpoint_goes_on_from_the_newest_other_one(
    features, tmp_path, caplog
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, steps in ((whole, 5), (parts, 4)):
        limit = ("--set", f"optimizer.max_steps={steps}")
        result = train(features, out, *limit, "--save-every", "2", "--keep", "0")
        assert result.exit_code == 0, result.output
    (parts / "last.pt").unlink()

    result = train(features, parts, "--set", "optimizer.max_steps=5", "--resume")

    assert result.exit_code == 0, result.output
    assert "no last.pt; going on from step-000004.pt" in caplog.text
    assert_same_run(whole, parts)


def test_the_newest_checkpoint_is_that_of_the_latest_step_whatever_its_digits(out):
    out.mkdir()
    config = with_overrides(TrainConfig(), SMALL)
    (out / "config.json").write_text(to_json(config))
    for name in ("step-999999.pt", "step-1000000.pt", "step-best.pt"):
        (out / name).touch()

    found = micu.train.fit.find_resumable(out, config, resume=True, overwrite=False)

    assert found == out / "step-1000000.pt"


def test_a_run_of_an_earlier_version_goes_on_if_what_it_lacks_is_as_by_default(out):
    out.mkdir()
    config = with_overrides(TrainConfig(), SMALL)
    value = asdict(config)
    del value["optimizer"]["micro_batch"]
    (out / "config.json").write_text(json.dumps(value))
    (out / "last.pt").touch()

    found = micu.train.fit.find_resumable(out, config, resume=True, overwrite=False)
    assert found == out / "last.pt"
    other = with_overrides(config, ["optimizer.micro_batch=4"])
    with pytest.raises(ConfigError, match=r"optimizer.micro_batch: there .*, here 4"):
        micu.train.fit.find_resumable(out, other, resume=True, overwrite=False)


def test_checkpoints_of_nobody_knows_which_run_are_not_written_over(features, out):
    train(features, out, "--set", "optimizer.max_steps=1")
    (out / "config.json").unlink()

    result = train(features, out, "--set", "optimizer.max_steps=2", "--resume")

    assert result.exit_code == 2
    assert "holds last.pt but no config.json" in result.stderr
    assert load_checkpoint(out / "last.pt").step == 1


def test_two_processes_do_not_train_in_one_folder(features, out):
    with lock_folder(out):
        result = train(features, out, "--set", "optimizer.max_steps=1")
        assert [path.name for path in out.iterdir()] == [".lock"]

    assert result.exit_code == 2
    assert f"another process is at work there (process {os.getpid()} on" in result.stderr
    assert train(features, out, "--set", "optimizer.max_steps=1").exit_code == 0


def test_a_run_holds_its_folder_for_as_long_as_it_trains(features, out, monkeypatch):
    def second(state, batch):
        with pytest.raises(ConfigError, match="another process is at work"), lock_folder(out):
            pass
        return train_step(state, batch)

    monkeypatch.setattr(micu.train.fit, "train_step", second)

    assert train(features, out, "--set", "optimizer.max_steps=1").exit_code == 0


def test_a_run_that_ended_while_another_one_read_its_features_is_not_written_over(
    features, out, monkeypatch
):
    def slow(*arguments):
        monkeypatch.undo()
        assert train(features, out, "--set", "optimizer.max_steps=1").exit_code == 0
        return find_feature_sets(*arguments)

    monkeypatch.setattr("micu.cli.train.find_feature_sets", slow)
    result = train(features, out, "--set", "optimizer.max_steps=1")

    assert result.exit_code == 2
    assert "holds a run already" in result.stderr
    assert len(metrics(out)) == 1


def test_a_run_does_not_go_on_with_as_many_clips_of_other_names(tmp_path, out):
    for name, clips in (("a", make_clips(9)), ("b", make_clips(10)[1:])):
        write_features(tmp_path / name / "features", clips)
    settings = ("--set", "optimizer.max_steps=1")
    assert train(tmp_path / "a" / "features", out, *settings).exit_code == 0

    result = train(tmp_path / "b" / "features", out, *settings, "--resume")

    assert result.exit_code == 2
    assert "trained on 9 clips" in result.stderr
    assert "here are 9" in result.stderr


def test_a_run_does_not_go_on_with_other_features(tmp_path, out):
    root = tmp_path / "a" / "features"
    write_features(root, make_clips())
    train(root, out, "--set", "optimizer.max_steps=1")
    fewer = tmp_path / "b" / "features"
    write_features(fewer, make_clips(18))

    result = train(fewer, out, "--set", "optimizer.max_steps=2", "--resume")

    assert result.exit_code == 2
    assert "trained on 24 clips" in result.stderr
    assert "here are 18" in result.stderr


def test_a_link_to_a_folder_that_is_not_there_is_named(features, out):
    out.symlink_to("gone")

    result = train(features, out, "--set", "optimizer.max_steps=1")

    assert result.exit_code == 2
    told = f"{out}: expected a file or a folder, got a link to {out.with_name('gone')}, which is"
    assert told in result.stderr
    assert not out.exists()
