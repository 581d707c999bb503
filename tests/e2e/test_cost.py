"""What a dry run says a run will cost."""

import json
from types import SimpleNamespace

import pytest
import torch

import micu.train.cost
from micu.config.sections import TrainConfig
from micu.train.cost import RunCost, measure_cost
from tests.feature_sets import make_clips, write_features
from tests.training import train


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips())  # 24 clips, batches of 8
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def test_a_dry_run_measures_and_writes_nothing(features, out):
    result = train(features, out, "--dry-run", "--json")

    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["clips"], facts["steps_per_epoch"], facts["steps"]) == (24, 3, 15)
    assert facts["shapes"] == {"audio": [6], "video": [5, 5, 4]}
    assert facts["step_s"] > 0
    assert facts["read_s"] > 0
    assert facts["limit"] in ("steps", "reading")
    assert facts["epoch_s"] == pytest.approx(3 * (facts["step_s"] + facts["read_s"]), abs=0.06)
    assert facts["run_s"] == pytest.approx(5 * facts["epoch_s"], abs=0.3)
    assert facts["memory_bytes"] > 2**20
    assert not out.exists()


@pytest.mark.parametrize(
    ("step_s", "read_s", "workers", "pace_s", "limit"),
    [
        (2, 1, 0, 3, "steps"),
        (1, 2, 0, 3, "reading"),
        (2, 1, 4, 2, "steps"),
        (1, 2, 4, 2, "reading"),
    ],
)
def test_the_slower_of_reading_and_steps_sets_the_pace_unless_they_take_turns(
    step_s, read_s, workers, pace_s, limit
):
    cost = RunCost(step_s, read_s, workers, memory_bytes=0, batches=10, steps=25)

    assert (cost.epoch_s, cost.run_s, cost.limit) == (10 * pace_s, 25 * pace_s, limit)


def test_a_dry_run_tells_people_what_takes_the_time(features, out):
    result = train(features, out, "--dry-run", "--set", "optimizer.max_steps=7")

    assert result.exit_code == 0, result.output
    assert "24 clips: " in result.stdout
    assert "3 steps per epoch, 7 steps" in result.stdout
    assert "to read a batch by the training process: most of the time goes to" in result.stdout
    assert "min per epoch" in result.stdout


def test_steps_with_their_copies_are_measured_after_a_warm_up_and_the_median_counts(monkeypatch):
    now, seconds = [0.0], iter([100.0, 2.0, 9.0, 3.0])
    monkeypatch.setattr(micu.train.cost.time, "perf_counter", lambda: now[0])

    def step(state, batch):
        now[0] += next(seconds)

    def copy(device, dtype):
        now[0] += 0.5

    def read():
        for number in range(9):
            now[0] += 50.0 if number == 0 else 1.0
            yield SimpleNamespace(to=copy)

    class Loader:
        def __len__(self):
            return 9

    monkeypatch.setattr(micu.train.cost, "train_step", step)
    monkeypatch.setattr(micu.train.cost, "iterate", lambda loader: read())
    state = SimpleNamespace(model=torch.nn.Linear(1, 1), config=TrainConfig())

    cost = measure_cost(state, lambda epoch, start: Loader(), workers=0)

    assert (cost.step_s, cost.read_s) == (3.5, 1.0)
    assert (cost.batches, cost.steps) == (9, 45)
