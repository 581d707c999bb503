"""Results: rows in a long CSV file, and as a Markdown table; pages are `micu.report`'s."""

import logging
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from micu.base.errors import ConfigError
from micu.base.files import hold_folder, wait_for_lock, write_atomically
from micu.evaluate.columns import COLUMN_TITLES, NOT_RATES, SHOWN
from micu.evaluate.markdown import neutral
from micu.evaluate.sheets import (
    Sheet,
    count,
    read_columns,
    read_sheet,
    refuse_infinite,
    render_sheet,
    show,
    unfinished_columns,
)

logger = logging.getLogger(__name__)

LOCK = ".results.lock"
"""In a folder of results files: what their writers lock."""

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
    """`source-val`, `paired-quantile`, one that looks at the test set (`oracle`,
    `oracle-at-source-epoch`), or `none`."""
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
    """`paper` (as published), `clean`, or `diagnostic`: what `clean` does, but with a threshold
    that looks at the test set; empty where nothing differs."""
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
    known_classes: int = 0
    """Names in the list of known classes; 0 where none was given."""
    class_list: str = ""
    """Stem of that list's file, which tells lists of one size apart."""
    n_lacking: int | None = None
    """Test clips that the manifest has, but no features of, so that they are not tested; None where
    a file of before does not say."""
    test_sha256: str = ""
    """Of the ids of the test clips: numbers with another one are over other clips."""
    more: tuple[tuple[str, str], ...] = ()
    """What a results file has in columns that this version does not know, those left empty not."""

    def key(self) -> tuple[object, ...]:
        """What two rows about the same number have in common.

        The hash of the list of known classes stands for its size, and its name may change.
        """
        free = ("leaks", *ADDED)
        shared = {name: value for name, value in self.shared().items() if name not in free}
        return (*shared.values(), self.metric, *self.more)

    def shared(self) -> dict[str, object]:
        """What all rows of one job have in common, by column."""
        free = ("metric", "value", "n_clips", "note")
        return {name: value for name, value in self.values().items() if name not in free}

    def values(self) -> dict[str, str | int | float | None]:
        """What it has in each of `COLUMNS`."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(column.name for column in fields(Row) if column.name != "more")

ADDED = ("known_classes", "class_list", "n_lacking", "test_sha256")
"""Columns that files of before do not have."""

MOST_RATE = 1 + 1e-6
"""Of metrics that are rates, rounded."""

NUMBERS = ("value", "n_clips", "seed", "known_classes", "n_lacking")
"""Columns of numbers."""


def holds_results(columns: Iterable[str]) -> bool:
    """Whether these are the columns of a results file, in any order, and maybe of others, too."""
    return {*COLUMNS} - {*ADDED} <= {*columns}


ALIKE = 6
"""Columns of a results file by which one is known that others were taken from."""


def resembles_results(columns: Iterable[str]) -> bool:
    """Whether a table may be one of results of any version, or one that lacks a column.

    Tables of averages and of the paper's figures are none.
    """
    found = {*columns}
    return "value" in found and len(found & {*COLUMNS}) >= ALIKE


def was_cut_in_header(path: Path) -> bool:
    """Whether a file ends within a first line that may be that of a results file.

    Raises:
        ConfigError: It is no file.
        OSError: It cannot be read.
    """
    *whole, last = (name.lower() for name in ("", *unfinished_columns(path)))
    whole = [name.strip("\"'") for name in whole if name]
    begun = last.strip("\"'")
    if not whole:
        return bool(begun) and any(name.startswith(begun) for name in COLUMNS)
    return len({*whole} & {*COLUMNS}) > len(whole) / 2


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Add rows to a results file; a row about the same number replaces the old one.

    The file is replaced whole under a lock on its folder, so that several evaluations may write to
    it at once and a killed one leaves it as it was. One that a spreadsheet saved is in our own form
    again afterwards. Columns that this version does not know stay, and a row that says something in
    one of them is not replaced.

    Raises:
        ConfigError: There is a file that is not one of results, or is damaged.
    """
    path = path.resolve()  # a link stays one
    hold_folder(path.parent)
    with locked(path.parent):
        merged = {row.key(): row for row in (read_rows(path) if path.exists() else ())}
        merged |= {row.key(): row for row in rows}
        more = dict.fromkeys(name for row in merged.values() for name, _ in row.more)
        table = [
            [*row.values().values(), *(dict(row.more).get(name, "") for name in more)]
            for row in merged.values()
        ]
        write_atomically(path, render_sheet((*COLUMNS, *more), table).encode())


def read_rows(path: Path) -> list[Row]:
    """Read a results file; columns that one of before does not have are left at their defaults.

    Raises:
        ConfigError: It is missing, or not one, or was cut off.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such results file; micu-eval … --out {path} writes one")
    columns = read_columns(path)
    if not holds_results(columns):
        lacking = [name for name in COLUMNS if name not in (*columns, *ADDED)]
        got = ", ".join(map(show, columns)) if any(columns) else "an empty file"
        raise ConfigError(
            f"{path}: not a results file of this version; expected the columns "
            f"{', '.join(COLUMNS)}, got {got[:200]} without {', '.join(lacking)}; "
            "choose another --out"
        )
    sheet = read_sheet(path, ("value",), what="a results file")
    if sheet.changed:
        logger.warning("%s: saved by another program, with %s; it is read", path, sheet.changed)
    found: list[Row] = []
    for line, values in sheet.rows:
        try:
            found.append(_parse(values, sheet))
        except ValueError as error:
            raise ConfigError(f"{path}: line {line}: {error}") from error
    return found


def _parse(values: Mapping[str, str], sheet: Sheet) -> Row:
    return Row(
        **{
            **{name: values[name] for name in COLUMNS if name in values and name not in NUMBERS},
            "value": parse_value(sheet, values),
            "n_clips": count(values["n_clips"]),
            "seed": count(values["seed"]),
            "known_classes": count(values.get("known_classes") or "0"),
            "n_lacking": count(values["n_lacking"]) if values.get("n_lacking") else None,
            "more": tuple((k, v) for k, v in values.items() if k not in COLUMNS and v),
        }  # type: ignore[arg-type]
    )


def parse_value(sheet: Sheet, values: Mapping[str, str]) -> float:
    """The figure of one row of a results file.

    Raises:
        ValueError: It is none, or no rate where the metric is one; or the row does not say of what.
    """
    for name in ("task", "method", "metric"):
        if not values[name].strip():
            raise ValueError(f"{name}: expected one, got nothing; delete the row if it is not ours")
    value = refuse_infinite(sheet.number(values["value"]))
    if values["metric"] in COLUMN_TITLES and not (math.isnan(value) or 0 <= value <= MOST_RATE):
        raise ValueError(
            f"{values['metric']}: expected a rate from 0 to 1, got {show(values['value'])}; a "
            "spreadsheet may have taken the point for one between thousands"
        )
    return value


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which writers of its files share."""
    with wait_for_lock(folder / LOCK):
        yield


# --- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns; the first row is the header."""

    rows: tuple[tuple[str, ...], ...]


def tabulate(rows: Sequence[Row], metrics: Sequence[str]) -> Table:
    """One line per method, pair of modalities and protocol; one column per metric.

    Rates are in percent, here and nowhere else. Several seeds become mean ± standard deviation
    (of the sample, n - 1). Rows of different probes, features or classes stand on lines of their
    own, though probes and features have no column; so do several checkpoints that share a seed, and
    rows over other test clips, which are named where another line of the table is over others.
    """
    clips = name_clips(rows)
    jobs: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Row]] = {}
    known = name_lists(map(list_of, rows))
    for row in rows:
        pair = " → ".join(filter(None, (row.train_modality, row.test_modality)))
        where = (row.task, known[list_of(row)], pair)
        how = (row.protocol, row.threshold_source, row.score, row.leaks)
        tested = (clips.get(clips_of(row), ""), str(row.n_lacking or ""))
        shown = (*where, row.method, row.preset, *how, *tested)
        hidden = (
            *(row.splits, row.probe, row.features, row.classes_sha256, row.setting),
            *(row.conditions, row.manifest_sha256, row.test_sha256, *map("=".join, row.more)),
        )
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
        *(
            "task",
            "known classes",
            "modalities",
            "method",
            "preset",
            "protocol",
            "threshold",
            "score",
            "leaks",
        ),
        *("test clips", "lacking features", "checkpoint", "runs"),
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


Tested = tuple[str, ...]
"""Task, setting, known classes, protocol and modality of a test, and the digest of its clips."""

VALIDATION_METRIC = "val_acc"
"""The metric that is not over test clips."""


class HasClips(Protocol):
    """What says over which test clips it is, as `Row` does."""

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def metric(self) -> str: ...  # noqa: D102
    @property
    def setting(self) -> str: ...  # noqa: D102
    @property
    def classes_sha256(self) -> str: ...  # noqa: D102
    @property
    def protocol(self) -> str: ...  # noqa: D102
    @property
    def test_modality(self) -> str: ...  # noqa: D102
    @property
    def n_clips(self) -> int | str: ...  # noqa: D102
    @property
    def test_sha256(self) -> str: ...  # noqa: D102


def clips_of(row: HasClips) -> Tested:
    """The place in which a number stands beside others, and the test clips that it is over."""
    place = (row.task, row.setting, row.classes_sha256, row.protocol, row.test_modality)
    return (*place, row.test_sha256)


def name_clips(rows: Iterable[HasClips]) -> dict[Tested, str]:
    """What a table calls the test clips of rows that stand beside others over other clips.

    Their number, and the first digits of their digest; `?` where an older file has none. Rows that
    are all over the same clips, as far as they say, are not among them.
    """
    numbers: dict[Tested, dict[str, None]] = {}
    for row in rows:
        if row.metric != VALIDATION_METRIC:
            numbers.setdefault(clips_of(row), {})[str(row.n_clips)] = None
    places = [key[:-1] for key in numbers]
    return {
        key: f"{' or '.join(filter(None, found)) or '?'} ({key[-1][:8] or '?'})"
        for key, found in numbers.items()
        if places.count(key[:-1]) > 1 or len(found) > 1 or any(" to " in text for text in found)
    }


ClassList = tuple[str, str, str]
"""Of a list of known classes: size, or nothing where it is not known; name; hash."""


class HasClasses(Protocol):
    """What names its list of known classes, as `Row` does."""

    @property
    def known_classes(self) -> int | str: ...  # noqa: D102
    @property
    def class_list(self) -> str: ...  # noqa: D102
    @property
    def classes_sha256(self) -> str: ...  # noqa: D102


def list_of(row: HasClasses) -> ClassList:
    """The list of known classes of a row."""
    size = str(row.known_classes)
    return "" if size == "0" else size, row.class_list, row.classes_sha256


def name_lists(lists: Iterable[ClassList]) -> dict[ClassList, str]:
    """What a table calls each list of known classes.

    Its size; of several of one size also its file's name, or its hash where that is no help.
    """
    found = list(dict.fromkeys(lists))
    sizes = [size or ("?" if digest else "") for size, _, digest in found]
    names = [f"{size} ({key[1]})" for size, key in zip(sizes, found, strict=True)]
    told: dict[ClassList, str] = {}
    for i, key in enumerate(found):
        told[key] = sizes[i]
        if sizes[i] and (sizes.count(sizes[i]) > 1 or sizes[i] == "?"):
            alone = key[1] and names.count(names[i]) == 1
            told[key] = names[i] if alone else f"{sizes[i]} ({key[2][:12]})"
    return told


def shares_seeds(runs: Iterable[tuple[object, str]]) -> bool:
    """Whether two checkpoints have a seed in common: no mean over the seeds of both is one of one.

    Args:
        runs: Seed and checkpoint of each.
    """
    seeds = [seed for seed, _ in set(runs)]
    return len(seeds) > len(set(seeds))


def _short(text: str) -> str:
    """A preset that was changed, without its changes: `micu*`; what an oracle is; no `none`."""
    if text == "none":
        return ""
    if text.startswith("oracle"):
        return f"{text} (test set)"
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


def render_markdown(content: Table, *, own_titles: bool = False) -> str:
    """A table as Markdown, its columns aligned; nothing in a cell is markup.

    With `own_titles` the first row is Markdown already.
    """
    titles, *body = content.rows
    table = [titles if own_titles else [*map(neutral, titles)]]
    table += [[*map(neutral, row)] for row in body]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
