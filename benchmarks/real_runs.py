"""The runs of the real-data benchmark: each trains and is evaluated by the public commands.

A run is a folder; what it has finished stands in files there, and is not done again.
"""

import hashlib
import io
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import click
import torch
from joblib import Parallel, delayed

from benchmarks.methods import measured, take_turns
from benchmarks.real_methods import (
    ABLATIONS,
    METHODS,
    REFERENCE,
    DataSet,
    Place,
    Trial,
    assignments,
)
from micu.base.files import write_atomically
from micu.cli.evaluate import main as evaluate_command
from micu.cli.features import find_feature_sets
from micu.cli.train import main as train_command
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.evaluate.report import Row, read_rows
from micu.evaluate.thresholds import ORACLE_AT_SOURCE_EPOCH, THRESHOLDS
from micu.train.step import build_state

PROBE = ("--probe-learning-rate", "2e-3")
"""The published probe has hundreds of steps in an epoch; here they are about seven."""
DONE = "trained.json"
RECORD = "settings.json"
"""What the results in a run's folder were made with."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training."""

    data: DataSet
    name: str
    """Key of `METHODS` or `ABLATIONS`."""
    trial: Trial
    seed: int

    def folder(self, place: Place) -> Path:
        """Where it lies."""
        part = "runs" if self.name in METHODS else "ablation"
        return place.root / part / self.data.name / self.name / self.trial.slug / f"{self.seed}"


def call(command: click.Command, words: Sequence[str]) -> str:
    """Type a command in this process, with one thread.

    Returns:
        What it printed.

    Raises:
        ClickException: It did not end well; its messages are in the error.
    """
    torch.set_num_threads(1)
    printed, told = io.StringIO(), io.StringIO()
    # Before the command sets logging up: its handler would keep the stream of the first command.
    logging.getLogger().addHandler(logging.NullHandler())
    code: object = 0
    with redirect_stdout(printed), redirect_stderr(told):
        try:
            command.main(list(words), standalone_mode=False)
        except SystemExit as ended:
            code = ended.code
    if code:
        line = " ".join([command.name or "", *words])
        raise click.ClickException(f"{line}: exit code {code}\n{told.getvalue()}")
    return printed.getvalue()


def settings_of(place: Place, run: Run) -> list[str]:
    """Everything that the run changes in its preset, `KEY=VALUE`."""
    method = (METHODS | ABLATIONS)[run.name]
    settings = [*assignments(method, run.trial, run.data), *place.settings]
    if method.kept < 1:
        settings.append(f"data.exclude_ids={place.excluded(run.data, method.kept)}")
    return settings


def keep_record(place: Place, run: Run) -> None:
    """Write what the run is made with, unless it stands there.

    Raises:
        ClickException: The folder holds results of something else.
    """
    data, path = run.data, run.folder(place) / RECORD
    files = [place.manifest(data), *(place.known(data, count) for count in data.known)]
    record = {
        "settings": [word.replace(f"{place.root}/", "") for word in settings_of(place, run)],
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "probe": list(PROBE),
    }
    if not path.is_file() and not any(run.folder(place).glob("*.csv")):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=1).encode())
    found = json.loads(path.read_text()) if path.is_file() else {}
    differs = [key for key, value in record.items() if found.get(key) != value]
    if differs:
        raise click.ClickException(
            f"{run.folder(place)}: made with other {', '.join(differs)}, see {RECORD}; "
            "remove the folder, or name another with --out"
        )


def train(place: Place, run: Run) -> None:
    """Train, unless that was done."""
    folder = run.folder(place)
    keep_record(place, run)
    if (folder / DONE).is_file():
        return
    method, settings = (METHODS | ABLATIONS)[run.name], settings_of(place, run)
    printed = call(
        train_command,
        [
            *("--features", str(place.features), "--manifest", str(place.manifest(run.data))),
            *("--preset", method.preset, "--modalities", ",".join(run.data.modalities)),
            *("--seed", str(run.seed), "--out", str(folder), "--device", "cpu"),
            *("--save-every", "0", "--keep", "1", "--resume", "--json"),
            *(word for setting in settings for word in ("--set", setting)),
        ],
    )
    write_atomically(folder / DONE, printed.encode())


def measure_steps(place: Place, data: DataSet, runs: Iterable[Run], rounds: int) -> None:
    """Write the seconds of a step of each run: of one thread's processor time, the median.

    The methods take turns in this process, on drawn features; CMCM's step is one with codes.
    """
    torch.set_num_threads(1)
    shapes = {
        name: store.spec.shape
        for name, store in find_feature_sets(
            place.features, data.modalities, place.manifest(data), {}
        ).stores.items()
    }
    device = torch.device("cpu")
    states = {}
    for run in runs:
        config = measured(PRESETS[METHODS[run.name].preset](), data.modalities)
        config = with_overrides(config, settings_of(place, run))
        states[run.name] = build_state(config, shapes, device, 1000)
    times = take_turns(states, device, rounds)
    seconds = {name: statistics.median(cpu for _, cpu in taken) for name, taken in times.items()}
    write_atomically(place.cost(data), json.dumps(seconds, indent=1).encode())


# --- evaluation ------------------------------------------------------------------------------


def _evaluate(place: Place, run: Run, file: str, task: str, *words: str) -> list[Row]:
    """Rows of one evaluation, made unless they are there."""
    if not (run.folder(place) / DONE).is_file():
        raise click.ClickException(f"{run.folder(place)}: not trained yet; that is a stage before")
    keep_record(place, run)
    path = run.folder(place) / f"{file}.csv"
    if not path.is_file():
        call(
            evaluate_command,
            [
                *(task, str(run.folder(place) / "last.pt"), "--out", str(path)),
                *("--features", str(place.features), "--manifest", str(place.manifest(run.data))),
                *("--device", "cpu", *(PROBE if task != "retrieval" else ()), *words),
            ],
        )
    return read_rows(path)


def validate(place: Place, run: Run) -> float:
    """What tuning looks at: accuracy on held-out clips of the modality that the probe is taught in.

    Over classes that are known in every class split, and the mean over modalities. No clip of the
    test split is read, no class that is unknown later, and no modality but the probe's own.
    """
    rows = _evaluate(
        place,
        run,
        "validation",
        "cmg",
        *("--protocol", "paper", "--test-splits", "val"),
        *("--known", str(place.known(run.data, min(run.data.known)))),
        *("--pairs", ",".join(f"{name}:{name}" for name in run.data.modalities)),
    )
    return statistics.fmean(row.value for row in rows if row.metric == "acc")


def retrieve(place: Place, run: Run) -> dict[str, float]:
    """Recall between the paired clips of the validation split, by rank: no label is read.

    The mean over pairs of modalities, of both directions.
    """
    pairs = ",".join(":".join(pair) for pair in combinations(run.data.modalities, 2))
    words = ("--protocol", "paper", "--test-splits", "val", "--pairs", pairs)
    rows = _evaluate(place, run, "retrieval", "retrieval", *words)
    return {
        f"R@{rank}": statistics.fmean(row.value for row in rows if row.metric == f"r{rank}_mean")
        for rank in (1, 5, 10)
    }


def rows_of_split(place: Place, run: Run, known: int | None) -> list[Row]:
    """Every pair of one class split, under both protocols; None is the closed-set task."""
    words = _pairs(run.data)
    if known is None:
        return _evaluate(place, run, "cmg", "cmg", *words)
    words = (*_open_set(place, run.data, known), *words)
    return _evaluate(place, run, f"oscmg-{known}", "oscmg", *words)


def reference_rows(place: Place, run: Run, known: int | None, *, first: bool) -> list[Row]:
    """The same network with random weights; once, also the linear probe and guessing.

    `known` is the class split, None for closed-set.
    """
    task = "cmg" if known is None else "oscmg"
    words = ["--encoder", "untrained", *_pairs(run.data)]
    words += [] if known is None else _open_set(place, run.data, known)
    words += ["--ceiling", "--chance"] if first else []
    return _evaluate(place, run, f"reference-{known or 'cmg'}", task, *words)


def evaluate(place: Place, run: Run, first: bool) -> None:
    """Everything that the table shows of a run; `first` is the run with ceiling and chance."""
    for known in (*run.data.known, None):
        rows_of_split(place, run, known)
        if run.name == REFERENCE:
            reference_rows(place, run, known, first=first)


def _open_set(place: Place, data: DataSet, known: int) -> list[str]:
    names = (*THRESHOLDS, ORACLE_AT_SOURCE_EPOCH)
    thresholds = (word for name in names for word in ("--threshold", name))
    return ["--known", str(place.known(data, known)), *thresholds]


def _pairs(data: DataSet) -> tuple[str, str]:
    return "--pairs", ",".join(f"{source}:{target}" for source, target in data.pairs)


# --- many of them ----------------------------------------------------------------------------


def do_all(
    title: str, work: Callable[..., object], jobs: Iterable[tuple[object, ...]], workers: int
) -> None:
    """Do the jobs in processes of one thread each, and tell how far they are."""
    listed, began = list(jobs), time.perf_counter()
    results = Parallel(workers, return_as="generator_unordered")(
        delayed(work)(*job) for job in listed
    )
    for number, _ in enumerate(results, 1):
        minutes = (time.perf_counter() - began) / 60
        click.echo(f"{title}: {number}/{len(listed)} after {minutes:.1f} min", err=True)
