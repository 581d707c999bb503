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
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from micu.base.errors import StoreError, shorten, show_unseen
from micu.base.files import append_durably, parse_json, read_bounded, write_atomically
from micu.store.manifest import SOURCE

LEDGER_COLUMNS = ("clip_id", "stage", "code", "message", "source")
MISSING = "missing"
"""Code of a clip of which there is no file: the one failure that says nothing of a file."""
SHARD_FILE = re.compile(r"shard-([0-9]{5,})\.h5")
MAX_RECORD_BYTES = 2**30
"""Largest index or ledger that is read: about ten million clips."""
MAX_SHARD_BYTES = 2**50
_LABEL = r"(\d+(?:-\d+)?of\d+)"
_PART_FILE = re.compile(rf"(?:index-{_LABEL}\.jsonl|failures-{_LABEL}\.csv)")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a clip is not in any shard."""

    clip_id: str
    stage: str
    code: str
    message: str
    """Shortened, and without control characters: it may quote what is in a file of others, and a
    carriage return would end its row."""
    source: str = ""
    """Digest of what its row is made of: another file or window under its id has not failed yet."""

    def __post_init__(self) -> None:  # noqa: D105
        object.__setattr__(self, "message", shorten(show_unseen(self.message)))


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What the index says about one shard."""

    sha256: str
    size: int
    clip_ids: tuple[str, ...]
    damaged: Mapping[str, int]
    """Corrupt frames of those clips that were stored in spite of some."""
    making: str
    """SHA-256 of what makes the shard's rows what they are; see `FeatureSpec.making`."""
    sources: tuple[str, ...] = ()
    """What each row was made of; see `micu.store.manifest.row_sources`."""
    media_bytes: Sequence[int] = field(default_factory=lambda: array("q"))
    """Size of each row's media file when it was decoded; -1, or nothing for all, if not known."""
    media_mtime_ns: Sequence[int] = field(default_factory=lambda: array("q"))
    """When each row's media file had last been written to then, ns since 1970; likewise."""

    @property
    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of each row's media file, by source, where they are known."""
        facts = zip(self.sources, self.media_bytes, self.media_mtime_ns, strict=False)
        return {source: (size, time) for source, size, time in facts if size >= 0}

    def is_about(self, size: int, making: str | None) -> bool:
        """Whether a shard of that size and making is the one that was noted; None is any making."""
        return self.size == size and making in (None, self.making)


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


LAYOUT = "rows.jsonl"
"""Which row has its place in which shard, by source; only ever made longer, but by `compact`."""

Layout = Mapping[str, tuple[str, ...]]
"""Sources by shard name, in order."""


def extend_layout(layout: Layout, sources: Sequence[str], shard_rows: int) -> Layout:
    """Give rows that have no place yet one in new shards, in their order.

    It depends on nothing that an extraction does, so that every part of it finds the same.
    """
    known = set().union(*layout.values())
    new = [source for source in sources if source not in known]
    numbers = [int(found[1]) for name in layout if (found := SHARD_FILE.fullmatch(name))]
    first = max(numbers, default=-1) + 1
    added = {
        shard_name(first + i): tuple(new[start : start + shard_rows])
        for i, start in enumerate(range(0, len(new), shard_rows))
    }
    return {**layout, **added}


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.h5"


# --- writing ---------------------------------------------------------------------------------


def append_index(folder: Path, entries: Mapping[str, ShardEntry], label: str = "") -> None:
    """Add lines to the index; a later line about a shard replaces an earlier one."""
    # A line that a killed writer cut off must not swallow this one.
    append_durably(folder / index_name(label), b"\n" + _index_lines(entries))


def write_index(folder: Path, entries: Mapping[str, ShardEntry], label: str = "") -> None:
    """Replace the index."""
    write_atomically(folder / index_name(label), _index_lines(entries))


def _index_lines(entries: Mapping[str, ShardEntry]) -> bytes:
    lines = (
        json.dumps({"shard": name, **asdict(entry)}, default=list)
        for name, entry in entries.items()
    )
    return "".join(f"{line}\n" for line in lines).encode()


def write_layout(folder: Path, layout: Layout) -> None:
    """Replace the layout."""
    lines = (json.dumps({"shard": name, "sources": found}) for name, found in layout.items())
    write_atomically(folder / LAYOUT, "".join(f"{line}\n" for line in lines).encode())


def write_ledger(folder: Path, failures: Iterable[Failure], label: str = "") -> None:
    """Replace the failure ledger."""
    rows = [LEDGER_COLUMNS, *map(astuple, failures)]
    write_atomically(folder / ledger_name(label), _csv(rows))


def append_ledger(folder: Path, failures: Sequence[Failure], label: str = "") -> None:
    """Add rows to the failure ledger."""
    if not failures:
        return
    path = folder / ledger_name(label)
    _cut_back(path)
    # A ledger that was merged away in the meantime begins anew.
    begin = [] if file_size(path) > 0 else [LEDGER_COLUMNS]
    append_durably(path, _csv([*begin, *map(astuple, failures)]))


def _cut_back(path: Path) -> None:
    """Take away the row that a killed writer cut off, so that it does not swallow the next one."""
    if file_size(path) <= 0:
        return
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        if file.read() == b"\n":
            return
    data = _read_record(path, "ledger", "")
    write_atomically(path, data[: data.rfind(b"\n") + 1])


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue().encode("utf-8", "backslashreplace")


# --- reading ---------------------------------------------------------------------------------


def read_ledger(folder: Path) -> dict[str, Failure]:
    """The failure ledger by clip id; see `read_failures`."""
    return {row.clip_id: row for row in read_failures(folder).values()}


def read_failures(folder: Path, labels: Sequence[str] | None = None) -> dict[str, Failure]:
    """The failure ledger by source, or by the clip id where there is none; may be empty.

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
    remedy = "delete it and type the extraction command again, which tries its clips again"
    data = _read_record(path, "ledger", remedy)
    failures: dict[str, Failure] = {}
    header: list[str] = []
    try:
        # What follows the last line end is a row that a killed writer cut off.
        whole = io.StringIO(data[: data.rfind(b"\n") + 1].decode(), newline="")
        rows = csv.reader(whole)
        for row in filter(None, rows):
            if len(row) != len(LEDGER_COLUMNS) or (not header and tuple(row) != LEDGER_COLUMNS):
                raise ValueError(f"line {rows.line_num}: expected {','.join(LEDGER_COLUMNS)}")
            if header:
                failures[row[4] or row[0]] = Failure(*row)
            header = header or row
    except (ValueError, csv.Error) as error:
        raise _unreadable(path, "ledger", error, remedy) from error
    return failures


def _read_record(path: Path, kind: str, remedy: str) -> bytes:
    """The bytes of an index or a ledger; none where there is none.

    Raises:
        StoreError: It is no file, or far too large.
    """
    if not path.exists() and not path.is_symlink():
        return b""
    try:
        return read_bounded(path, MAX_RECORD_BYTES)
    except ValueError as error:
        raise _unreadable(path, kind, error, remedy) from error


def _unreadable(path: Path, kind: str, error: Exception, remedy: str) -> StoreError:
    why = str(error)
    if isinstance(error, UnicodeDecodeError):
        why = f"byte {error.start + 1} is no UTF-8"
    return StoreError(f"{path}: not the {kind} that was written: {shorten(why, 200)}; {remedy}")


def indexed_shards(folder: Path, labels: Sequence[str] | None = None) -> dict[str, ShardEntry]:
    """What the index says, by shard name; lines that a kill cut off are passed over.

    Args:
        folder: A feature set.
        labels: Parts whose indexes are read, "" for the one without a part; None reads all. Of two
            that differ about a shard, the one counts that knows its size.

    Raises:
        StoreError: An index has a line that nobody wrote.
    """
    noted: dict[str, ShardEntry] = {}
    for label in ("", *part_labels(folder)) if labels is None else labels:
        for name, entry in _read_one_index(folder / index_name(label)).items():
            if noted.setdefault(name, entry) != entry and file_size(folder / name) == entry.size:
                noted[name] = entry
    return noted


def _read_one_index(path: Path) -> dict[str, ShardEntry]:
    remedy = "delete it and type the extraction command again, which makes it anew from the shards"
    noted: dict[str, ShardEntry] = {}
    for number, line in enumerate(_read_record(path, "index", remedy).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
            entry = ShardEntry(
                _text(value["sha256"], _SHA256),
                _count(value["size"]),
                tuple(_text(clip_id) for clip_id in _of_kind(value["clip_ids"], list)),
                {
                    _text(clip_id): _count(count)
                    for clip_id, count in _of_kind(value["damaged"], dict).items()
                },
                _text(value["making"], _SHA256),
                _sources(value["sources"]),
                *(_numbers(value[name]) for name in ("media_bytes", "media_mtime_ns")),
            )
            if len(entry.sources) != len(entry.clip_ids):
                raise ValueError("expected a source for each clip id")
            if not {len(entry.media_bytes), len(entry.media_mtime_ns)} <= {0, len(entry.sources)}:
                raise ValueError("expected facts of the media for each source, or for none")
            noted[_text(value["shard"], SHARD_FILE)] = entry
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, json.JSONDecodeError) and _is_cut_off(error):
                continue
            told = ValueError(f"line {number}: {error}")
            raise _unreadable(path, "index", told, remedy) from error
    return noted


def read_layout(folder: Path) -> Layout:
    """Which row has its place in which shard; nothing where that was never noted.

    Raises:
        StoreError: It is not what we write.
    """
    path = folder / LAYOUT
    remedy = "delete it and type the extraction command again, which makes it anew from the shards"
    layout = {}
    try:
        for line in _read_record(path, "layout", remedy).splitlines():
            value = parse_json(line)
            layout[_text(value["shard"], SHARD_FILE)] = _sources(value["sources"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, "layout", error, remedy) from error
    return layout


def _sources(value: Any) -> tuple[str, ...]:
    # Those of the layout and of the index are the same texts, and may be millions.
    return tuple(sys.intern(_text(source, SOURCE)) for source in _of_kind(value, list))


def _numbers(value: Any) -> Sequence[int]:
    if not all(type(each) is int and -1 <= each < 2**63 for each in _of_kind(value, list)):
        raise ValueError("expected sizes and times of media files")
    return array("q", value)


_SHA256 = re.compile(r"[0-9a-f]{64}")
_BEGIN = '{"shard": "'


def _is_cut_off(error: json.JSONDecodeError) -> bool:
    """Whether a line is the begin of one that we write: what is wrong is that it ends."""
    line = error.doc
    if not line.isascii() or not line.startswith(_BEGIN[: len(line)]):
        return False
    in_escape = error.msg.startswith("Invalid") and len(line) - error.pos < len(r"\u0000")
    return error.pos >= len(line) or error.msg.startswith("Unterminated string") or in_escape


def _of_kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, got {value!r}")
    return value


def _text(value: Any, pattern: re.Pattern[str] = re.compile(r"(?s).*")) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"expected a text like {pattern.pattern}, got {value!r}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SHARD_BYTES:
        raise ValueError(f"expected a number of bytes or frames, got {value!r}")
    return value


def file_size(path: Path) -> int:
    """Size of a file in bytes; -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1
