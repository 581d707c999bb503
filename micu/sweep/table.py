"""The table of a sweep: what its runs logged in their last epoch and what `micu-eval` found."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from micu.base.files import file_sha256, write_atomically
from micu.evaluate.markdown import TextTable, render_markdown
from micu.evaluate.report import Row, read_rows, resembles_results, was_cut_in_header
from micu.evaluate.sheets import read_columns, render_sheet
from micu.report.compare import render_table
from micu.sweep.conduct import CHECKPOINT
from micu.sweep.plan import SweepRun
from micu.train.logs import METRICS, read_metrics

TRAINING = "training, last epoch"
"""Column `task` of what was logged."""
NOT_RESULTS = ("step", "epoch", "batch", "learning_rate", "skipped", "clips", "clips_per_s")
KEYS = (
    *("task", "method", "train_modality", "test_modality", "threshold_source", "score", "probe"),
    *("features", "classes_sha256", "metric", "protocol", "splits", "setting", "conditions"),
    *("test_sha256",),
)
"""Columns of a results file that tell one number of a run from another."""


PAPER_SETTING = "paper_setting"
"""Column of the rows' `setting`, which in a sweep is a place in the grid."""


def collect(runs: Sequence[SweepRun], out: Path) -> list[Row]:
    """One row per number of each run; `preset` holds the setting, `seed` the run's.

    Args:
        runs: Those that are finished.
        out: The sweep's folder.
    """
    return [
        replace(row, preset=run.setting, seed=run.config.seed)
        for run in runs
        for row in [*_logged(out / run.name), *_evaluated(out / run.name)]
    ]


def _logged(folder: Path) -> list[Row]:
    """Losses, perplexities and counts of codes: the means over the clips of the last epoch.

    A clip has the numbers of its batch, so the last batch, which may be small, counts for little.
    Steps that were skipped count for nothing.
    """
    rows = read_metrics(folder / METRICS[0])
    epoch = [row for row in rows if row.get("epoch") == rows[-1].get("epoch")]
    taken = [row for row in epoch if not row.get("skipped")]
    return [
        Row(
            task=TRAINING,
            method="",
            train_modality="",
            test_modality="",
            preset="",
            seed=0,
            threshold_source="none",
            metric=metric,
            value=_mean([(row.get(metric), row.get("clips", 1)) for row in taken]),
            n_clips=0,
            checkpoint_sha256="",
            manifest_sha256="",
        )
        for metric in (rows[-1] if rows else {})
        if metric not in NOT_RESULTS and not metric.startswith("grad_norm_")
    ]


def _mean(weighted: Sequence[tuple[float | None, int]]) -> float:
    """Of values with weights; NaN if there is none, or one that was not finite."""
    values = [(math.nan if value is None else value, weight) for value, weight in weighted]
    clips = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / clips if clips else math.nan


def _evaluated(folder: Path) -> list[Row]:
    """The results files in a run's folder, the mean over seeds of a probe.

    Rows of a checkpoint that is no longer the run's last one are left out.
    """
    names = (path for path in sorted(folder.glob("*.csv")) if path.name not in METRICS)
    tables = [path for path in names if path.is_file()]
    paths = [p for p in tables if resembles_results(read_columns(p)) or was_cut_in_header(p)]
    sha256 = file_sha256(folder / CHECKPOINT) if paths else ""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for path in paths:
        for row in read_rows(path):
            if row.checkpoint_sha256 in ("", sha256):
                groups.setdefault(_key(row), []).append(row)
    return [
        replace(group[0], value=statistics.fmean(row.value for row in group))
        for group in groups.values()
    ]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(getattr(row, name) for name in KEYS)


def write_table(rows: Iterable[Row], runs: Sequence[SweepRun], path: Path) -> None:
    """Write mean and standard deviation (n - 1) over the runs of each setting, as a CSV file.

    A number that is not defined in one of the runs has the mean `nan`, and no deviation.

    Args:
        rows: Result of `collect`.
        runs: For the values of the axes, each of which is a column.
        path: Where to.
    """
    import pandas as pd

    axes: Mapping[str, Mapping[str, str]] = {run.setting: run.values for run in runs}
    swept = dict.fromkeys(axis for values in axes.values() for axis in values)
    keys = [PAPER_SETTING if name == "setting" else name for name in KEYS]
    table = [
        (row.preset, *(axes[row.preset].get(axis, "") for axis in swept), *_key(row), row.value)
        for row in rows
    ]
    header = ["setting", *swept, *keys]
    groups = pd.DataFrame(table, columns=[*header, "value"]).groupby(header, sort=False).value
    means = groups.agg(mean=statistics.fmean, std=_deviation, runs="size").reset_index()
    means["std"] = means["std"].map(lambda spread: "" if math.isnan(spread) else spread)
    write_atomically(path, render_sheet(list(means), means.itertuples(index=False)).encode())


def _deviation(values: Sequence[float]) -> float:
    """Of the sample; NaN for one value, or where one is NaN."""
    several = len(values) > 1 and not any(map(math.isnan, values))
    return statistics.stdev(values) if several else math.nan


def render_sweep(rows: Sequence[Row]) -> str:
    """Markdown: what was logged, and below it what was evaluated, if anything was."""
    logged = [row for row in rows if row.task == TRAINING]
    tables = ["Means over the clips of the last epoch:", _render_logged(logged)]
    tasks = dict.fromkeys(row.task for row in rows if row.task != TRAINING)
    tables += [render_table([row for row in rows if row.task == task]) for task in tasks]
    return "\n\n".join(tables)


def _render_logged(rows: Sequence[Row]) -> str:
    import pandas as pd

    frame = pd.DataFrame([row.values() for row in rows], columns=["preset", "metric", "value"])
    settings, metrics = (list(frame[name].unique()) for name in ("preset", "metric"))
    groups = frame.groupby(["preset", "metric"]).value
    table = groups.agg(_spread).unstack(fill_value="–").reindex(settings, columns=metrics)
    runs = groups.size().groupby("preset").max()
    lines = [(setting, str(runs[setting]), *table.loc[setting]) for setting in settings]
    return render_markdown(TextTable((("setting", "runs", *metrics), *lines)))


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, with four digits; a dash for what is NaN."""
    mean, spread = statistics.fmean(values), _deviation(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.4g}" if math.isnan(spread) else f"{mean:.4g} ± {spread:.2g}"
