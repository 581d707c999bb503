"""Results: rows in a long CSV file; what is made of them is `micu.report`'s."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from micu.base.errors import ConfigError
from micu.base.files import hold_folder, wait_for_lock, write_atomically
from micu.evaluate.columns import COLUMN_TITLES
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

FROZEN = "frozen:"
"""What names of methods begin with that read the features of one frozen encoder, named after it."""
RELEASED = "released"
"""Begins what stands for the preset of a checkpoint of the authors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number, and everything that says how it was obtained."""

    task: str
    method: str
    """`checkpoint`, `untrained`, `input`, `ceiling` (probe trained on the target), `chance`, or
    `frozen:BACKBONE` (features as they were extracted, of one encoder for all modalities)."""
    train_modality: str = ""
    test_modality: str = ""
    preset: str = ""
    """Preset of the checkpoint, and what was changed in it."""
    seed: int | None = None
    """None where a file of before does not say, as in the counts below."""
    threshold_source: str = ""
    """`source-val`, `paired-quantile`, one that looks at the test set (`oracle`,
    `oracle-at-source-epoch`), or `none`."""
    metric: str
    value: float
    """Natural sign, rates in [0, 1]; NaN where `note` says why."""
    n_clips: int | None = None
    """Clips that the number is over."""
    checkpoint_sha256: str = ""
    manifest_sha256: str = ""
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
        """What two rows about the same number of one results file have in common.

        The hash of the list of known classes stands for its size, and its name may change.
        """
        free = ("leaks", *ADDED)
        shared = {name: value for name, value in self.shared().items() if name not in free}
        return (*shared.values(), self.metric, *self.more)

    def group(self) -> tuple[object, ...]:
        """What the rows that are averaged over seeds have in common."""
        free = ("seed", "n_lacking", "checkpoint_sha256")
        shared = {name: value for name, value in self.shared().items() if name not in free}
        return (*shared.values(), *self.more)

    def number(self) -> tuple[object, ...]:
        """What two rows about the same number have in common, whatever files they are of."""
        return (*self.group(), self.metric, self.seed, self.checkpoint_sha256)

    def others(self) -> dict[str, str]:
        """What else tells its number from others, by column."""
        conditions = {"conditions": self.conditions} if self.conditions else {}
        return {**conditions, **dict(self.more)}

    def known_list(self) -> "ClassList":
        """Its list of known classes."""
        return str(self.known_classes or ""), self.class_list, self.classes_sha256

    @property
    def other_split(self) -> str:
        """The splits that are tested in the test split's place; empty where it is among them.

        So it is where the published script of a setting tests the training clips.
        """
        asked = dict(part.split("=", 1) for part in self.splits.split() if "=" in part)
        leaks = dict(leak.split(":", 1) for leak in self.leaks.split(";") if ":" in leak)
        tested = asked.get("test", leaks.get("test-split", ""))
        published = tested == "train" and bool(self.setting)
        return "" if published or {"test", "all"} & {*tested.split(",")} else tested

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

NEEDED = frozenset({"task", "method", "metric", "value"})
"""Columns without which a table is no results file of any version."""

COUNTS = ("seed", "n_clips", "n_lacking", "known_classes")
"""Columns of whole numbers."""

ClassList = tuple[str, str, str]
"""Of a list of known classes: size, or nothing where it is not known; name; hash."""


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
    lacking = [name for name in COLUMNS if name not in (*columns, *ADDED)]
    if lacking:
        got = ", ".join(map(show, columns)) if any(columns) else "an empty file"
        raise ConfigError(
            f"{path}: not a results file of this version; expected the columns "
            f"{', '.join(COLUMNS)}, got {got[:200]} without {', '.join(lacking)}; "
            "choose another --out"
        )
    return _read(path, "a results file", ("seed", "n_clips"))


def read_results(path: Path) -> list[Row]:
    """Read a results file of any version; a column that is missing is empty.

    Raises:
        ConfigError: It is not one, is damaged or was cut off.
    """
    columns = read_columns(path)
    if not {*columns} >= NEEDED:
        raise ConfigError(
            f"{path}: expected a results file of micu-eval, with the columns "
            f"{', '.join(sorted(NEEDED))} and others; got {', '.join(map(show, columns))[:200]}"
        )
    return _read(path, "a results file of micu-eval")


def _read(path: Path, what: str, needed: Sequence[str] = ()) -> list[Row]:
    sheet = read_sheet(path, ("value",), what=what)
    if sheet.changed:
        logger.warning("%s: saved by another program, with %s; it is read", path, sheet.changed)
    found: list[Row] = []
    for line, values in sheet.rows:
        try:
            counts = {name: count(values[name]) for name in COUNTS if values.get(name)}
            counts |= {name: count(values[name]) for name in needed}
            texts = {k: v for k, v in values.items() if k in COLUMNS and k not in COUNTS}
            more = tuple((k, v) for k, v in values.items() if k not in COLUMNS and v)
            value = _parse_value(sheet, values)
            found.append(Row(**{**texts, **counts, "value": value}, more=more))  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(f"{path}: line {line}: {error}") from error
    return found


def _parse_value(sheet: Sheet, values: Mapping[str, str]) -> float:
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
