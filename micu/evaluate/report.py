"""Results: rows in a long CSV file, and as a Markdown table; pages are `micu.report`'s."""

import csv
import fcntl
import io
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from micu.errors import ConfigError
from micu.evaluate.columns import COLUMN_TITLES, NOT_RATES, SHOWN
from micu.files import write_atomically

CHANGES = " with "
"""Between a preset's name and what was changed in it."""

RELEASED = "released"
"""Begins what stands for the preset of a checkpoint of the authors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number, and everything that says how it was obtained."""

    task: str
    method: str
    """`checkpoint`, `untrained`, `input`, `ceiling` (probe trained on the target) or `chance`."""
    train_modality: str
    test_modality: str
    preset: str
    """Preset of the checkpoint, and what was changed in it."""
    seed: int
    threshold_source: str
    """`source-val`, `paired-quantile`, `oracle` (looks at the test set), or `none`."""
    metric: str
    value: float
    """Natural sign, rates in [0, 1]; NaN where `note` says why."""
    n_clips: int
    """Clips that the number is over."""
    checkpoint_sha256: str
    manifest_sha256: str
    classes_sha256: str = ""
    """Of the list of known classes."""
    score: str = ""
    """Known score, where a threshold is laid on one."""
    probe: str = ""
    """How the probe was trained, where there is one."""
    features: str = ""
    """`modality:backbone@fingerprint` of the feature sets, the probe's own first."""
    protocol: str = ""
    """`paper` (as published) or `clean`; empty where nothing differs."""
    leaks: str = ""
    """What the number rests on that it should not, names with `;` between two; see
    `micu.evaluate.leaks`."""
    splits: str = ""
    """Values of the manifest's `split` that were asked for, `train=a,b test=c`; empty: as usual."""
    note: str = ""
    setting: str = ""
    """What the paper's tables call the data and its known classes; `micu.report.paper` has them."""
    conditions: str = ""
    """What else the number depends on, `name:value` with spaces between: `pretraining` and
    `class-map` (first digits of the hashes of these files), `selected-on`, and what the cost was
    measured with."""

    def key(self) -> tuple[object, ...]:
        """What two rows about the same number have in common."""
        shared = {name: value for name, value in self.shared().items() if name != "leaks"}
        return (*shared.values(), self.metric)

    def shared(self) -> dict[str, object]:
        """What all rows of one job have in common, by column."""
        free = ("metric", "value", "n_clips", "note")
        return {name: value for name, value in asdict(self).items() if name not in free}


COLUMNS = tuple(column.name for column in fields(Row))


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Add rows to a results file; a row about the same number replaces the old one.

    The file is replaced whole under a lock on its folder, so that several evaluations may write to
    it at once and a killed one leaves it as it was.

    Raises:
        ConfigError: There is a file that is not one of results.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        merged = {row.key(): row for row in (read_rows(path) if path.exists() else ())}
        merged |= {row.key(): row for row in rows}
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in merged.values())
        write_atomically(path, table.getvalue().encode())


def read_rows(path: Path) -> list[Row]:
    """Read a results file.

    Raises:
        ConfigError: It is missing, or not one.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such results file; micu-eval … --out {path} writes one")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(
                f"{path}: not a results file of this version; expected the columns "
                f"{', '.join(COLUMNS)}; choose another --out"
            )
        try:
            return [_parse(values) for values in reader]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: line {reader.line_num}: {error}") from error


def _parse(values: Mapping[str, str]) -> Row:
    kinds = {"seed": int, "value": float, "n_clips": int}
    parsed = {name: kinds.get(name, str)(value) for name, value in values.items()}
    return Row(**parsed)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which writers of its files share."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns; the first row is the header."""

    rows: tuple[tuple[str, ...], ...]


def tabulate(rows: Sequence[Row], metrics: Sequence[str]) -> Table:
    """One line per method, pair of modalities and protocol; one column per metric.

    Rates are in percent, here and nowhere else. Several seeds become mean ± standard deviation
    (of the sample, n - 1). Rows of different probes, features or classes stand on lines of their
    own, though no column shows these; so do several checkpoints that share a seed.
    """
    jobs: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Row]] = {}
    for row in rows:
        pair = " → ".join(filter(None, (row.train_modality, row.test_modality)))
        source = row.threshold_source
        shown = (row.task, pair, row.method, row.preset, row.protocol, source, row.score, row.leaks)
        hidden = (row.splits, row.probe, row.features, row.classes_sha256)
        jobs.setdefault((shown, hidden), []).append(row)
    groups: dict[tuple[tuple[str, ...], ...], dict[str, list[float]]] = {}
    runs: dict[tuple[tuple[str, ...], ...], set[tuple[int, str]]] = {}
    for (job, others), found in jobs.items():
        apart = shares_seeds((row.seed, row.checkpoint_sha256) for row in found)
        for row in found:
            key = ((*job, row.checkpoint_sha256[:12] if apart else ""), others)
            groups.setdefault(key, {}).setdefault(row.metric, []).append(row.value)
            runs.setdefault(key, set()).add((row.seed, row.checkpoint_sha256))
    columns = [metric for metric in metrics if any(metric in group for group in groups.values())]
    header = (
        *("task", "modalities", "method", "preset", "protocol", "threshold", "score", "leaks"),
        *("checkpoint", "runs"),
    )
    lines = [
        (
            *map(_short, key[0]),
            str(len(runs[key])),
            *(_cell(group.get(name, []), name) for name in columns),
        )
        for key, group in groups.items()
    ]
    titles = tuple(COLUMN_TITLES.get(name, name) for name in columns)
    return _without_empty_columns(((*header, *titles), *lines))


def shares_seeds(runs: Iterable[tuple[object, str]]) -> bool:
    """Whether two checkpoints have a seed in common: no mean over the seeds of both is one of one.

    Args:
        runs: Seed and checkpoint of each.
    """
    seeds = [seed for seed, _ in set(runs)]
    return len(seeds) > len(set(seeds))


def _short(text: str) -> str:
    """A preset that was changed, without its changes: `micu*`; what an oracle is; no `none`."""
    if text in ("oracle", "none"):
        return {"oracle": "oracle (test set)", "none": ""}[text]
    name, *changes = text.split(CHANGES)
    return f"{name}*" if changes else name


def _cell(values: Sequence[float], metric: str) -> str:
    if not values or any(math.isnan(value) for value in values):
        return "–"
    scale = 1 if metric in NOT_RATES else 100
    if metric == "seconds_per_clip":
        return f"{statistics.fmean(values):.3g}"
    mean = f"{scale * statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.2f}"


def _without_empty_columns(rows: Sequence[tuple[str, ...]]) -> Table:
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return Table(tuple(tuple(row[i] for i in kept) for row in rows))


def render_table(rows: Sequence[Row], metrics: Sequence[str] = SHOWN) -> str:
    """Rows as a Markdown table, rates in percent."""
    return render_markdown(tabulate(rows, metrics))


def render_markdown(content: Table) -> str:
    """A table as Markdown, its columns aligned."""
    table = content.rows
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "| "
        + " | ".join(
            _escape_bar(text).ljust(width) for text, width in zip(row, widths, strict=True)
        )
        + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _escape_bar(text: str) -> str:
    return text.replace("|", "\\|")
