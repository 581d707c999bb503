"""Two processes equal one on the same batches: losses, codebook, weights, signals, resuming."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from tests.feature_sets import make_clips, write_features
from tests.processes import CASES, TRAPPED, TRAPS, run_case, run_two
from tests.training import arguments, assert_same_run, contents, is_equal, metrics, train

VAT = "v,a,t"
EXACT = ("--set", "optimizer.dtype=float64", "--set", "encoder.dropout=0")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips(21))  # batches of 8, 8 and 5
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(features, folder):
    """What two processes did: by rank, runs, texts and what each command said."""

    def command(out, *more, struck=""):
        return [struck, *arguments(features, folder / out, *more, modalities=VAT)]

    commands = [
        command("exact", *EXACT, "--set", "optimizer.max_steps=4", "--json"),
        command("whole", "--set", "optimizer.max_steps=4"),
        command("parts", "--set", "optimizer.max_steps=4", struck="SIGUSR1"),
        command("parts", "--set", "optimizer.max_steps=4", "--resume"),
        command("again", "--set", "optimizer.max_steps=2"),
        command("dry", "--dry-run", "--json"),
        command("parts", "--set", "optimizer.max_steps=4"),
    ]
    run_two(folder, commands)
    return [
        {
            **torch.load(folder / f"{rank}.pt", weights_only=True),
            "told": json.loads((folder / f"{rank}.json").read_text()),
        }
        for rank in range(2)
    ]


def furthest(one, other):
    """Largest difference of two states, the attention's key biases left out.

    A softmax does not depend on them. Their gradient is rounding, which Adam scales up: they walk
    at random in float32, and nothing follows. In the networks that rebuild grids, some gradients
    are so small that their rounding differs with the rows of a product: in float32 their weights
    count for a tenth here.
    """
    assert one.keys() == other.keys()
    worst = 0.0
    for key, value in one.items():
        difference = (value.double() - other[key].double()).abs()
        if key.endswith("attention_in.bias"):
            difference = torch.stack([*difference.chunk(3)][::2])
        if key.startswith("model.reconstructors.") and value.dtype == torch.float32:
            difference = difference / 10
        worst = max(worst, difference.max().item())
    return worst


def numbers(report):
    """All numbers of a report in order."""
    parts = [v if isinstance(v, dict) else {"": v} for v in report.values()]
    return [float(value) for part in parts for value in part.values()]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(two, name):
    case = CASES[name]
    one = run_case(replace(case, settings=(*case.settings, *case.alone)))
    tolerance = 1e-9 if case.config.optimizer.dtype == "float64" else 1e-5
    for rank in two:
        state, reports = rank["runs"][name]
        assert furthest(one.state, state) < tolerance
        for ours, theirs in zip(one.reports, reports, strict=True):
            assert numbers(theirs) == pytest.approx(numbers(asdict(ours)), rel=tolerance, abs=1e-9)
    assert is_equal(two[0]["runs"][name][0], two[1]["runs"][name][0])


@pytest.mark.parametrize("name", ["dead codes", "the published step"])
def test_codes_die_and_are_restarted_in_the_cases_that_are_about_them(two, name):
    never = replace(CASES[name], settings=(*CASES[name].settings, "quantizer.reset=off"))

    unused = two[0]["runs"][name][0]["model.quantizer.unused"]
    assert not torch.equal(run_case(never).state["model.quantizer.unused"], unused)


@pytest.mark.parametrize("name", TRAPS)
def test_the_comparison_notices(two, name):
    one = run_case(TRAPPED)
    assert max(furthest(one.state, rank["runs"][name][0]) for rank in two) > 1e-4


def test_a_bad_loss_of_one_process_skips_the_step_in_all_and_stops_all_with_every_clip(two):
    for rank in two:
        *skipped, message, moved = rank["texts"]["poisoned"]
        assert skipped == ["skipped True", "skipped True"]
        assert "step 2: loss 'fine' is nan" in message
        assert "batch clips: clip2.0, clip2.1, clip2.2)" in message
        assert moved == "still True"


def test_what_processes_tell_each_other_arrives(two):
    for rank in two:
        texts = rank["texts"]
        assert texts["texts"] == ["1", "ü\n"]
        assert texts["largest"] == ["3"]
        assert texts["decided"] == ["first"]
        assert texts["errors"][0] == "no"
        assert (
            "rank: expected the same in all 2 processes, got other ones in 1"
            in (texts["errors"][1])
        )


# --- the command ---------------------------------------------------------------------------------


def test_the_command_trains_one_run_with_two_processes(two, features, folder, tmp_path):
    settings = (*EXACT, "--set", "optimizer.max_steps=4")
    assert train(features, tmp_path / "one", *settings, modalities=VAT).exit_code == 0

    (code, stdout, _), (other_code, other_stdout, other_stderr) = (r["told"][0] for r in two)
    assert (code, other_code) == (0, 0)
    assert json.loads(stdout)["steps"] == 4
    assert other_stdout == other_stderr == ""
    one, both = contents(tmp_path / "one" / "last.pt"), contents(folder / "exact" / "last.pt")
    assert furthest(one["model"], both["model"]) < 1e-9
    assert furthest(one["losses"], both["losses"]) < 1e-9
    assert (one["epoch"], one["batch"]) == (both["epoch"], both["batch"]) == (1, 1)
    assert (len(one["rng"]), len(both["rng"])) == (1, 2)
    for ours, theirs in zip(metrics(tmp_path / "one"), metrics(folder / "exact"), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-9)


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_bit_by_bit(two, folder):
    first, second = (rank["told"] for rank in two)
    assert [first[2][0], second[2][0]] == [75, 75]
    assert "stopped by SIGUSR1 after step 2" in first[2][2]
    assert second[2][2] == ""
    assert [first[3][0], second[3][0]] == [0, 0]
    assert_same_run(folder / "whole", folder / "parts")


def test_a_folder_that_is_taken_is_refused_by_all(two):
    for rank in two:
        code, _, stderr = rank["told"][-1]
        assert code == 2
        assert "holds a run already" in stderr


def test_a_dry_run_is_told_once(two, folder):
    assert json.loads(two[0]["told"][5][1])["steps_per_epoch"] == 3
    assert [rank["told"][5][0] for rank in two] == [0, 0]
    assert two[1]["told"][5][1] == ""
    assert not (folder / "dry").exists()


def test_another_number_of_processes_goes_on_and_says_what_differs(two, features, folder, caplog):
    settings = ("--set", "optimizer.max_steps=4", "--resume")
    result = train(features, folder / "again", *settings, modalities=VAT)

    assert result.exit_code == 0, result.output
    assert "written by 2 processes, going on with 1: other dropout masks" in caplog.text
    assert len(metrics(folder / "again")) == 4
