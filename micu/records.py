"""The text files of a feature set: its index, its ledger, and those of parts.

Processes that share the work (`--part 2/4`) note what they do in files of their own, so that no two
ever write one file: `index-2of4.jsonl`, `failures-2of4.csv`. Readers read all of them. A part is
named by its label, here `2of4`, or `5-8of200` for four parts in one; the empty label names the
files of a run without parts.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

from micu.errors import StoreError
from micu.files import append_durably, write_atomically

LEDGER_COLUMNS = ("clip_id", "stage", "code", "message")
MISSING = "missing"
"""Code of a clip of which there is no file: the one failure that says nothing of a file."""
_LABEL = r"(\d+(?:-\d+)?of\d+)"
_PART_FILE = re.compile(rf"(?:index-{_LABEL}\.jsonl|failures-{_LABEL}\.csv)")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a clip is not in any shard."""

    clip_id: str
    stage: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What the index says about one shard."""

    sha256: str
    size: int
    clip_ids: tuple[str, ...]
    damaged: Mapping[str, int] = field(default_factory=dict)
    """Corrupt frames of those clips that were stored in spite of some."""


def index_name(label: str = "") -> str:
    """File name of the index, or of that of one part, for example `2of4`."""
    return f"index-{label}.jsonl" if label else "index.jsonl"


def ledger_name(label: str = "") -> str:
    """File name of the ledger, or of that of one part."""
    return f"failures-{label}.csv" if label else "failures.csv"


def part_labels(folder: Path) -> tuple[str, ...]:
    """The parts that have files of their own in `folder`, in order."""
    found = (_PART_FILE.fullmatch(path.name) for path in folder.glob("*-*of*.*"))
    labels = {match[1] or match[2] for match in found if match}
    return tuple(sorted(labels, key=_label_order))


def _label_order(label: str) -> tuple[int, ...]:
    *numbers, count = map(int, re.findall(r"\d+", label))
    return (count, *numbers)


# --- writing ---------------------------------------------------------------------------------


def append_index(folder: Path, entries: Mapping[str, ShardEntry], label: str = "") -> None:
    """Add lines to the index; a later line about a shard replaces an earlier one."""
    # A line that a killed writer cut off must not swallow this one.
    append_durably(folder / index_name(label), b"\n" + _index_lines(entries))


def write_index(folder: Path, entries: Mapping[str, ShardEntry], label: str = "") -> None:
    """Replace the index."""
    write_atomically(folder / index_name(label), _index_lines(entries))


def _index_lines(entries: Mapping[str, ShardEntry]) -> bytes:
    lines = (json.dumps({"shard": name, **asdict(entry)}) for name, entry in entries.items())
    return "".join(f"{line}\n" for line in lines).encode()


def write_ledger(folder: Path, failures: Iterable[Failure], label: str = "") -> None:
    """Replace the failure ledger."""
    rows = [LEDGER_COLUMNS, *map(astuple, failures)]
    write_atomically(folder / ledger_name(label), _csv(rows))


def append_ledger(folder: Path, failures: Sequence[Failure], label: str = "") -> None:
    """Add rows to the failure ledger."""
    if not failures:
        return
    path = folder / ledger_name(label)
    # A ledger that was merged away in the meantime begins anew.
    begin = [] if file_size(path) > 0 else [LEDGER_COLUMNS]
    append_durably(path, _csv([*begin, *map(astuple, failures)]))


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue().encode("utf-8", "backslashreplace")


# --- reading ---------------------------------------------------------------------------------


def read_ledger(folder: Path, labels: Sequence[str] | None = None) -> dict[str, Failure]:
    """The failure ledger by clip id; empty where there is none.

    Args:
        folder: A feature set.
        labels: Parts whose ledgers are read, "" for the one without a part; None reads all. The
            last that knows a clip counts, which is that of a part: it is the younger.

    Raises:
        StoreError: It is not a ledger.
    """
    failures: dict[str, Failure] = {}
    for label in ("", *part_labels(folder)) if labels is None else labels:
        failures |= _read_one_ledger(folder / ledger_name(label))
    return failures


def _read_one_ledger(path: Path) -> dict[str, Failure]:
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    # What follows the last line end is a row that a killed writer cut off.
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    header, *rows = list(csv.reader(whole)) or [[]]
    if tuple(header) != LEDGER_COLUMNS or any(len(row) != len(header) for row in rows):
        raise StoreError(f"{path}: expected rows of {', '.join(LEDGER_COLUMNS)}")
    return {row[0]: Failure(*row) for row in rows}


def indexed_shards(folder: Path, labels: Sequence[str] | None = None) -> dict[str, ShardEntry]:
    """What the index says, by shard name; lines that a kill cut off are passed over.

    Args:
        folder: A feature set.
        labels: Parts whose indexes are read, "" for the one without a part; None reads all. Of two
            that differ about a shard, the one counts that knows its size.
    """
    noted: dict[str, ShardEntry] = {}
    for label in ("", *part_labels(folder)) if labels is None else labels:
        for name, entry in _read_one_index(folder / index_name(label)).items():
            if noted.setdefault(name, entry) != entry and file_size(folder / name) == entry.size:
                noted[name] = entry
    return noted


def _read_one_index(path: Path) -> dict[str, ShardEntry]:
    noted: dict[str, ShardEntry] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            value = json.loads(line)
            entry = ShardEntry(
                value["sha256"],
                value["size"],
                tuple(value["clip_ids"]),
                {clip_id: int(count) for clip_id, count in value.get("damaged", {}).items()},
            )
            noted[value["shard"]] = entry
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return noted


def file_size(path: Path) -> int:
    """Size of a file in bytes; -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1
