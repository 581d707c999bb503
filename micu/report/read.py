"""What a report is made of, found in files and folders: results, details, codebooks, ledgers.

Results files of older and of newer versions are read too: a column that is missing is empty, one
that is not known here is kept, and rows that differ in it are never averaged together.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from micu.base.errors import ConfigError, StoreError
from micu.evaluate import codebook, details
from micu.evaluate.codebook import CodebookUse, read_codebook
from micu.evaluate.details import Details, read_details
from micu.evaluate.report import (
    NEEDED,
    Row,
    read_results,
    resembles_results,
    was_cut_in_header,
)
from micu.evaluate.sheets import first_words, read_columns, read_sheet
from micu.report.commands import SUFFIX as COMMANDS_SUFFIX
from micu.report.commands import Command, read_commands
from micu.report.paper import COLUMNS as FIGURES
from micu.store.ledger import Failure, read_ledger
from micu.store.sets import read_set
from micu.store.shard import Header

logger = logging.getLogger(__name__)

METRICS = "metrics.csv"
"""A training's numbers, one row per step."""

SET = "set.json"
"""Marks the folder of a feature set."""


TABLES = (".csv", ".tsv")
SHEETS = (*TABLES, ".txt")
"""Ends the names of files in which results are looked for."""
WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
"""Ends the names of a spreadsheet's own files."""
FEW = 10
"""Unread files that an error lists."""


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that was found; each part may be empty."""

    results: list[Row] = field(default_factory=list)
    details: dict[Path, Details] = field(default_factory=dict)
    """By file."""
    codebooks: dict[str, CodebookUse] = field(default_factory=dict)
    """By file."""
    trainings: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Run folder → column of its metrics → one number per step, NaN where there was none."""
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    """By feature set."""
    sets: dict[str, Header] = field(default_factory=dict)
    """Feature sets by folder."""
    commands: list[Command] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Results files, as they were found."""
    skipped: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    def skip(self, told: str) -> None:
        """Note what could not be read."""
        self.skipped.append(told)
        logger.warning("skipped: %s", told)


def gather(runs: Sequence[Path]) -> Material:
    """Read what a report is made of.

    A results file brings what lies beside it: its commands, and `NAME-details` of `NAME.csv`.

    Args:
        runs: Files, and folders that are searched through.

    Raises:
        ConfigError: One of them is not there or cannot be used, or no result was found.
    """
    found, seen = Material(), set[tuple[int, int]]()
    for path in dict.fromkeys(runs):
        if not path.exists():
            raise ConfigError(f"{path}: no such results file or folder; micu-eval … writes some")
        if path.is_dir():
            for inner in _walk(path, found, seen):
                _take_if_whole(inner, found)
        elif not _take(path, found):
            raise ConfigError(
                f"{path}: expected a results file of micu-eval (columns "
                f"{', '.join(sorted(NEEDED))} and others), or one of details, codebook counts or "
                "a training's metrics"
            )
    found.results[:] = {row.number(): row for row in found.results}.values()
    if not found.results:
        listed = ", ".join(map(str, runs))
        unread = "".join(f"\nnot read: {told}" for told in found.skipped[:FEW])
        raise ConfigError(
            f"{listed}: no results in it; micu-eval CHECKPOINT … --out writes some{unread}"
        )
    return found


def _walk(folder: Path, found: Material, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Files in order of their names, those behind links last; each file and folder once.

    A link to nothing, or to a folder that the searched one lies in, is named in the report.
    """
    seen.add(_identity(folder))
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path.name)):
        try:
            identity = _identity(path)
            is_folder = path.is_dir()
            if path.is_symlink() and is_folder and folder.resolve().is_relative_to(path.resolve()):
                found.skip(f"{path}: a link to a folder that it lies in; name that one, if meant")
            elif identity not in seen and is_folder:
                yield from _walk(path, found, seen)
            elif identity not in seen and path.is_file():
                seen.add(identity)
                yield path
        except OSError as error:
            found.skip(f"{path}: cannot be read: {error.strerror or error}; mend or remove it")


def _identity(path: Path) -> tuple[int, int]:
    """What two names of one file or folder have in common."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _take_if_whole(path: Path, found: Material) -> None:
    """Read a file of a searched folder; one that is damaged is named in the report."""
    try:
        if _take(path, found):
            return
        suffix = path.suffix.lower()
        if suffix in WORKBOOKS:
            found.skip(f"{path}: a spreadsheet's own file; if it holds results, save it as CSV")
        elif suffix in SHEETS and any(map(resembles_results, first_words(path))):
            found.skip(
                f"{path}: looks like results of micu-eval, but its first line does not name the "
                f"columns {', '.join(sorted(NEEDED))}; remove what stands before them, and write "
                "them as here"
            )
        elif suffix in SHEETS and was_cut_in_header(path):
            found.skip(
                f"{path}: ends within its first line, as if results of micu-eval were cut off "
                "there; make it anew, or remove it"
            )
        elif suffix in TABLES and path.name != METRICS and not path.stat().st_size:
            found.skip(f"{path}: is empty; if it held results, make it anew, or remove it")
    except (ConfigError, StoreError) as error:
        found.skip(f"{error}")
    except OSError as error:
        found.skip(f"{path}: cannot be read: {error.strerror or error}; mend or remove it")


def _take(path: Path, found: Material) -> bool:
    """Read a file, if it is of a kind that a report shows; whether it is."""
    names = read_columns(path) if path.suffix.lower() in SHEETS else ()
    columns = {*names}
    if path.name.endswith(details.SUFFIX):
        _add_details(path, found)
    elif path.name == SET:
        _take_set(path.parent, found)
    elif path.name == METRICS and "step" in columns:
        found.trainings[str(path.parent)] = read_training(path)
    elif names == FIGURES:
        raise ConfigError(
            f"{path}: expected a results file of micu-eval, got the paper's figures; the report "
            "has them by itself"
        )
    elif columns >= NEEDED or resembles_results(columns):
        found.results.extend(read_results(path))
        _take_beside(path, found)
    elif columns | {"protocol"} == set(codebook.COLUMNS):
        found.codebooks[str(path)] = read_codebook(path)
    else:
        return False
    return True


def _take_beside(path: Path, found: Material) -> None:
    """What belongs to a results file."""
    if str(path) in found.sources:
        return
    found.sources.append(str(path))
    try:
        commands = read_commands(path.with_suffix(COMMANDS_SUFFIX))
    except ConfigError as error:
        commands = []
        found.skip(f"{error}")
    found.commands.extend(command for command in commands if command not in found.commands)
    folder = path.with_name(f"{path.stem}-details")
    for inner in sorted(folder.glob(f"*{details.SUFFIX}")):
        _add_details(inner, found)


def _add_details(path: Path, found: Material) -> None:
    if path.resolve() not in found.details:
        found.details[path.resolve()] = read_details(path)


def _take_set(folder: Path, found: Material) -> None:
    found.sets[str(folder)] = read_set(folder)[0]
    failures = list(read_ledger(folder).values())
    if failures:
        found.failures[str(folder)] = failures


def read_training(path: Path) -> dict[str, list[float]]:
    """Columns of a `metrics.csv`; a last line that a kill cut off is not one.

    Raises:
        ConfigError: A value is not a number.
    """
    sheet = read_sheet(path, whole=False)
    columns: dict[str, list[float]] = {name: [] for name in sheet.columns} if sheet.rows else {}
    for line, row in sheet.rows:
        for name, text in row.items():
            try:
                columns[name].append(sheet.number(text) if text else math.nan)
            except ValueError as error:
                raise ConfigError(f"{path}: line {line}: {name}: {error}") from error
    if not all(map(math.isfinite, columns.get("step", ()))):
        raise ConfigError(f"{path}: step: expected a number in every row; delete the file")
    return columns
