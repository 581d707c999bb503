"""The table of a sweep: what its runs logged in their last epoch and what `micu-eval` found."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from micu.base.files import file_sha256, write_atomically
from micu.evaluate.markdown import TextTable, render_markdown
from micu.evaluate.report import Row, read_rows, resembles_results, was_cut_in_header
from micu.evaluate.sheets import read_columns, render_sheet
from micu.report.compare import Cell, grouped, render_table
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
_key = attrgetter(*KEYS)

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
            threshold_source="none",
            metric=metric,
            value=_mean([(row.get(metric), row.get("clips", 1)) for row in taken]),
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
    rows = [row for path in paths for row in read_rows(path)]
    own = (row for row in rows if row.checkpoint_sha256 in ("", sha256))
    return [
        replace(probes[0], value=statistics.fmean(row.value for row in probes))
        for probes in grouped(own, _key).values()
    ]


def write_table(rows: Iterable[Row], runs: Sequence[SweepRun], path: Path) -> None:
    """Write mean and standard deviation (n - 1) over the runs of each setting, as a CSV file.

    A number that is not defined in one of the runs has the mean `nan`, and no deviation.

    Args:
        rows: Result of `collect`.
        runs: For the values of the axes, each of which is a column.
        path: Where to.
    """
    axes = {run.setting: run.values for run in runs}
    swept = dict.fromkeys(axis for values in axes.values() for axis in values)
    keys = [PAPER_SETTING if name == "setting" else name for name in KEYS]
    lines: list[tuple[object, ...]] = []
    for (setting, key), same in grouped(rows, lambda row: (row.preset, _key(row))).items():
        cell = Cell(tuple(row.value for row in same))
        spread = "" if math.isnan(cell.deviation) else cell.deviation
        values = (axes[setting].get(axis, "") for axis in swept)
        lines.append((setting, *values, *key, cell.mean, spread, len(same)))
    header = ["setting", *swept, *keys, "mean", "std", "runs"]
    write_atomically(path, render_sheet(header, lines).encode())


def render_sweep(rows: Sequence[Row]) -> str:
    """Markdown: what was logged, and below it what was evaluated, if anything was."""
    logged = [row for row in rows if row.task == TRAINING]
    tables = ["Means over the clips of the last epoch:", _render_logged(logged)]
    tasks = dict.fromkeys(row.task for row in rows if row.task != TRAINING)
    tables += [render_table([row for row in rows if row.task == task]) for task in tasks]
    return "\n\n".join(tables)


def _render_logged(rows: Sequence[Row]) -> str:
    values = grouped(rows, lambda row: (row.preset, row.metric))
    settings = grouped(rows, lambda row: row.preset)
    metrics = dict.fromkeys(row.metric for row in rows)
    lines = [
        (
            setting,
            str(len({row.seed for row in own})),
            *(_spread([row.value for row in values.get((setting, name), ())]) for name in metrics),
        )
        for setting, own in settings.items()
    ]
    return render_markdown(TextTable((("setting", "runs", *metrics), *lines)))


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, with four digits; a dash for what is NaN, or not there."""
    cell = Cell(tuple(values))
    if not values or math.isnan(cell.mean):
        return "–"
    spread = cell.deviation
    return f"{cell.mean:.4g}" if math.isnan(spread) else f"{cell.mean:.4g} ± {spread:.2g}"
