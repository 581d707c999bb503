"""What the tests of `micu-train` share: how it is run here, and when two runs are the same."""

import csv
import json

import torch
from click.testing import CliRunner

from micu.cli.train import main
from tests.feature_sets import SMALL

SETTINGS = [word for assignment in SMALL for word in ("--set", assignment)]


def arguments(features, out, *more, modalities="v,a"):
    where = ["--features", str(features), "--out", str(out), "--device", "cpu"]
    return [*where, "--modalities", modalities, *SETTINGS, *more]


def train(features, out, *more, modalities="v,a"):
    return CliRunner().invoke(main, arguments(features, out, *more, modalities=modalities))


def contents(path):
    return torch.load(path, weights_only=True)


def is_equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return one == other


def metrics(out):
    """Both logs without the column that depends on the clock, after checking that they agree."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    with (out / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == table
    return [{key: value for key, value in row.items() if key != "clips_per_s"} for row in rows]


def assert_same_run(one, other):
    first, second = contents(one / "last.pt"), contents(other / "last.pt")
    for key in (
        "model",
        "losses",
        "optimizer",
        "step",
        "epoch",
        "batch",
        "rng",
    ):
        assert is_equal(first[key], second[key]), key
    assert metrics(one) == metrics(other)
