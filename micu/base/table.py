"""CSV files with a header, as people and spreadsheets write them.

Fields may be separated by `;` or tabs, as the header shows, and then numbers may have a decimal
comma. Blanks around a field that is not quoted are no part of it, case does not matter in the names
of columns that are known, and empty columns at the end and empty rows are none.
"""

import csv
import gzip
import io
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from micu.base.errors import ManifestError, shorten
from micu.base.files import read_bounded

logger = logging.getLogger(__name__)

Row = TypeVar("Row")

MAX_BYTES = 2**31
"""Largest file that is read: about ten million rows."""
PACKED = b"\x1f\x8b"
"""How a file begins that gzip has packed, whatever its name."""
MAX_RATIO = 200
"""What gzip may make of a byte; of a manifest it makes ten to fifty."""
SMALL_BYTES = 2**20
"""What a packed file may always hold."""
BLANKS = " \t"
MAX_HEADER = 2**20
SEPARATORS = ",;\t"
"""Between fields; the first that makes a header of the first line is taken."""


def read_bytes(path: Path, kind: str = "CSV") -> bytes:
    """The bytes of a file of others that is read whole; of one that gzip packed, what it holds.

    Args:
        path: The file.
        kind: What it is to be, for the message.

    Raises:
        ManifestError: It is no regular file, far too large, or badly packed.
    """
    try:
        data = read_bounded(path, MAX_BYTES)
        return _unpack(data) if data.startswith(PACKED) else data
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(f"{path}: cannot be read: {error}; expected a {kind} file") from error


def _unpack(data: bytes) -> bytes:
    """What gzip packed, of which there is never more in memory than a file may hold."""
    most_bytes = min(MAX_BYTES, SMALL_BYTES + MAX_RATIO * len(data))
    unpacked = bytearray()
    with gzip.open(io.BytesIO(data)) as file:
        while part := file.read(SMALL_BYTES):
            unpacked += part
            if len(unpacked) > most_bytes:
                raise ValueError(
                    f"{len(data)} bytes packed by gzip unpack to more than {most_bytes}; unpack it "
                    "by hand if it is meant"
                )
    return bytes(unpacked)


def write_csv(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as the bytes of a CSV file; names of files that are no UTF-8 keep their bytes."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue().encode("utf-8", "surrogateescape")


class Table:
    """A CSV file with a header, as people and spreadsheets write one.

    Args:
        path: Its name, for messages.
        data: Its bytes, UTF-8. Others than `path` may have no bytes that are none.
        required: Columns that must be there; by the first the separator is known.
        known: Columns that mean something.

    Attributes:
        header: Names of the columns.

    Raises:
        ManifestError: Its first line names no such columns.
    """

    def __init__(  # noqa: D107
        self, path: Path, data: bytes, required: Sequence[str], known: Sequence[str]
    ) -> None:
        self.path = path
        first = data[: data.find(b"\n") + 1 or len(data)]
        if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first:
            raise ManifestError(
                f"{path}: line 1 is not UTF-8; save the file as UTF-8 (it looks like UTF-16; a "
                "spreadsheet offers it as `CSV UTF-8`)"
            )
        self._is_clean = _is_decodable(data) and b"\0" not in data
        # Not a `StringIO`, which takes four bytes for each.
        self._lines = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "surrogateescape", newline="")
        text = data[: 4 * MAX_HEADER].decode("utf-8-sig", "surrogateescape")[:MAX_HEADER]
        self._before = 0
        told = re.match(r"sep=(.)\r?\n", text)  # Excel's own way
        if told:
            self._lines.readline()
            self._before = 1
        self._separator = told[1] if told else _find_separator(text, required, known)
        self._raw: list[str] = []
        self._reader = csv.reader(
            self._remember_lines(), delimiter=self._separator, skipinitialspace=True, strict=True
        )
        self.header = self._read_header(required, known)

    def parse(
        self, parse: Callable[[dict[str, str], int], Row], numbers: Sequence[str] = ()
    ) -> list[Row]:
        """Parse every row, and raise once for all rows that `parse` refuses.

        Args:
            parse: From fields by column, and the line, to what is wanted.
            numbers: Columns that may have a decimal comma where commas separate nothing.

        Raises:
            ManifestError: There are bad rows.
        """
        rows: list[Row] = []
        bad: list[str] = []
        for line, row in self.rows():
            try:
                if isinstance(row, csv.Error):
                    raise row
                if len(row) != len(self.header):
                    raise ValueError(f"expected {len(self.header)} fields")
                values = dict(zip(self.header, row, strict=True))
                if not self._is_clean:
                    _refuse_other_encodings(values)
                for name in numbers if self._separator != "," else ():
                    if name in values:
                        values[name] = with_point(values[name])
                rows.append(parse(values, line))
            except (ValueError, csv.Error, ManifestError) as error:
                bad.append(f"  line {line}: {shorten(str(error), 400)}")
        if bad:
            lines = "\n".join(bad)
            raise ManifestError(f"{self.path}: {len(bad)} bad row{'s' * (len(bad) > 1)}\n{lines}")
        return rows

    def rows(self) -> Iterator[tuple[int, list[str] | csv.Error]]:
        """Line and fields of every row that is not empty, or what makes it none."""
        while True:
            self._raw.clear()
            try:
                row = next(self._reader, None)
            except csv.Error as error:
                yield self._line, error
                continue
            if row is None:
                return
            if any(row):
                row = self._without_blanks(row)
            if any(row):
                extra = len(self.header)
                yield self._line, row if any(row[extra:]) else row[:extra]

    @property
    def _line(self) -> int:
        return self._before + self._reader.line_num

    def _remember_lines(self) -> Iterator[str]:
        for line in self._lines:
            self._raw.append(line)
            yield line

    def _without_blanks(self, row: list[str]) -> list[str]:
        """The fields without the blanks around them, where these are not quoted."""
        if all(field == field.strip(BLANKS) for field in row):
            return row
        raw = "".join(self._raw)

        def is_quoted(field: str) -> bool:
            spelled = field.replace('"', '""')
            return f'"{spelled}"' in raw

        return [field if is_quoted(field) else field.strip(BLANKS) for field in row]

    def _read_header(self, required: Sequence[str], known: Sequence[str]) -> list[str]:
        """Take the first line as the names of the columns."""
        path = self.path
        try:
            header = _column_names(_first_row(self._reader), known)
        except csv.Error as error:
            raise ManifestError(
                f"{path}: line 1 cannot be read as column names: {error}"
            ) from error
        if not _is_utf8("".join(header)):
            raise ManifestError(f"{path}: line 1 is not UTF-8; save the file as UTF-8")
        missing = [name for name in required if name not in header]
        if missing:
            plural, verb = "s" * (len(required) > 1), "is" if len(missing) == 1 else "are"
            raise ManifestError(
                f"{path}: expected the column{plural} {', '.join(required)}, got "
                f"{shorten(', '.join(header), 200) or 'an empty file'}; {', '.join(missing)} "
                f"{verb} missing: add {', '.join(missing)}"
            )
        if "" in header:
            raise ManifestError(
                f"{path}: column {header.index('') + 1} has no name; write the CSV without the "
                "index"
            )
        twice = sorted({name for name in known if header.count(name) > 1})
        if twice:
            raise ManifestError(
                f"{path}: columns that are there more than once: {', '.join(twice)}"
            )
        unknown = [name for name in header if name not in known]
        if unknown:
            told = shorten(", ".join(unknown), 200)
            logger.warning("%s: columns that mean nothing here: %s", path, told)
        return header


def _find_separator(text: str, required: Sequence[str], known: Sequence[str]) -> str:
    """What separates the names in the first line; a comma where that is not clear."""
    for separator in SEPARATORS:
        lines = io.StringIO(text, newline="")
        try:
            names = _first_row(csv.reader(lines, delimiter=separator, skipinitialspace=True))
        except csv.Error:
            continue
        if all(name in _column_names(names, known) for name in required[:1]):
            return separator
    return ","


def _first_row(rows: Iterable[list[str]]) -> list[str]:
    """The first row that is not empty; none where there is no such row."""
    return next((row for row in rows if any(field.strip() for field in row)), [])


def _column_names(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names in a header: of known ones case does not matter, and empty ones at the end go."""
    header = [name.strip() for name in names]
    while header and not header[-1]:
        header.pop()
    lowered = (name.casefold() for name in header)
    return [
        low if low in known and low not in header else name
        for low, name in zip(lowered, header, strict=True)
    ]


def with_point(text: str) -> str:
    """A number with a point where it has a decimal comma; other texts as they are."""
    return text.replace(",", ".") if re.fullmatch(r"[0-9]*,[0-9]+", text.strip()) else text


def _refuse_other_encodings(values: dict[str, str]) -> None:
    """Only `path` may hold bytes that are not UTF-8: names of files are bytes."""
    for column, value in values.items():
        if column != "path" and "\0" in value:
            raise ValueError(f"{column} holds a NUL byte; save the file as text in UTF-8")
        if column != "path" and not _is_utf8(value):
            shown = value.encode("utf-8", "surrogateescape")
            raise ValueError(f"{column} is not UTF-8: {shown!r}; save the file as UTF-8")


def _is_decodable(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_utf8(text: str) -> bool:
    """Whether decoding met no byte that it had to escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_CLOCK = re.compile(r"(?:([0-9]{1,6}):)?([0-9]{1,6}):([0-9]{1,6}(?:[.,][0-9]{1,9})?)")


def parse_seconds(text: str) -> float | None:
    """The time that a field says, s; None where it is empty.

    Raises:
        ValueError: It says none.
    """
    text = text.strip()
    if not text:
        return None
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if 0.0 <= value < math.inf:
        return value
    meant = ""
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, rest = clock.groups()
        whole = 3600 * int(hours or 0) + 60 * int(minutes)
        meant = f"; write {whole + float(with_point(rest)):g}"
    elif with_point(text) != text:
        meant = f"; write {with_point(text)}"
    raise ValueError(f"expected seconds, got {shorten(repr(text), 80)}{meant}")
