"""CSV tables of ours as spreadsheets give them back, and text that no spreadsheet calculates.

A spreadsheet may write a byte order mark or UTF-16, `;` or tabs between values, decimal commas,
quotes, other line ends, columns in another order, more of them, and empty rows at the end. All of
that is read. What cannot be told for sure is refused with its line, and so is what was cut off.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from micu.base.errors import ConfigError
from micu.base.files import read_bounded

LARGEST = 1 << 28
"""Bytes of a table that is read."""
HEAD = 1 << 16
"""Bytes in which the names of the columns are looked for."""
SEPARATORS = (",", ";", "\t", "|")
FIRST_LINES = 10
"""In which names of columns are looked for that are not where they should be."""
SHOWN = 80
"""Characters of a value that a message shows."""

_ACTIVE = re.compile(r"'*[=+\-@\t\r＝＋－＠]")
"""Begins a text that a spreadsheet may calculate, or one of those that `inert` has made safe."""
_GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")
"""A decimal comma, or one between thousands."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)")
_EMPTY_ROWS = re.compile(r"([ ,;|\t\"\r\n]*[\r\n])?")
_COUNT = re.compile(r"([+-]?[0-9]{1,20})([.,]0*)?")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as text."""

    path: Path
    columns: tuple[str, ...]
    """Each once, none of them empty."""
    rows: tuple[tuple[int, dict[str, str]], ...]
    """Line in the file, and text by column."""
    separator: str
    changed: str
    """In what the file is not as we write it, in words; empty where it is."""

    def number(self, text: str) -> float:
        """The number that a value of this table stands for; NaN and infinity are numbers.

        Raises:
            ValueError: It stands for none, or for one of two.
        """
        plain = text.strip()
        if "," in plain:
            if self.separator == "," and _GROUPED.fullmatch(plain):
                raise ValueError(
                    f"{show(text)} may be a decimal or a thousand; save the table with decimal "
                    "points and without separators between thousands"
                )
            plain = plain.replace(",", ".")
        elif "." in plain and "decimal commas" in self.changed:
            raise ValueError(
                f"{show(text)} has a point where others have a decimal comma; save the table with "
                "one kind of number"
            )
        if not _NUMBER.fullmatch(plain.lower()):
            raise ValueError(f"expected a number, got {show(text)}")
        return float(plain)


def count(text: str) -> int:
    """The whole number that a value stands for; `43.0` is one, too.

    Raises:
        ValueError: It stands for none.
    """
    found = _COUNT.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected a whole number, got {show(text)}")
    return int(found[1])


def show(text: str) -> str:
    """The start of a value, for a message."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def read_sheet(
    path: Path,
    number_columns: Sequence[str] = (),
    *,
    what: str = "a table",
    whole: bool = True,
) -> Sheet:
    """Read a table, however it was saved.

    Args:
        path: CSV file.
        number_columns: Where decimal commas are looked for.
        what: What it is, for messages.
        whole: Whether the last line must have an end. If not, a last line that was cut off, or has
            values missing, is left out.

    Raises:
        ConfigError: It is no table, too large, or was cut off; the message names the line.
    """
    try:
        return _read_sheet(path, number_columns, whole)
    except ValueError as error:
        raise ConfigError(
            f"{path}: not {what} that is whole: {error}; make it anew, or mend it in an editor"
        ) from error


def _read_sheet(path: Path, number_columns: Sequence[str], whole: bool) -> Sheet:
    text, changed = _decode(read_bounded(path, LARGEST))
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"line {line} holds bytes of 0")
    if not whole:
        text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1]
    elif text.strip() and text[-1] not in "\n\r":
        raise ValueError(
            "its last line has no end, as if it was cut off there; Google Sheets writes none: if "
            "the file is whole, add an empty line"
        )
    start, separator = _find_separator(text)
    if separator != ",":
        changed.append({"\t": "tabs"}.get(separator, separator) + " between values")
    lines = _split(text[start:], separator, text[:start].count("\n"))
    columns, body = _take_columns(lines, whole=whole)
    named = [place for place, name in enumerate(columns) if name]
    if any(cell.strip() for _, row in body for cell in _without(row, named)):
        raise ValueError(
            f"column {columns.index('') + 1} has values but no name (pandas: index=False)"
        )
    rows = tuple((line, {columns[i]: restore(row[i]) for i in named}) for line, row in body)
    if any("," in row.get(name, "") for _, row in rows for name in number_columns):
        changed.append("decimal commas")
    return Sheet(path, tuple(columns[i] for i in named), rows, separator, ", ".join(changed))


def read_columns(path: Path) -> tuple[str, ...]:
    """Names of a table's columns, from its first line; none if that is not one.

    Raises:
        ConfigError: It is no file.
        OSError: It cannot be read.
    """
    head = _read_head(path)
    text = head.decode(_encoding(head) or "latin-1", "replace")
    start, separator = _find_separator(text)
    try:
        found = next(csv.reader(io.StringIO(text[start:], newline=""), delimiter=separator), [])
    except csv.Error:
        return ()
    return tuple(name.strip() for name in found)


def unfinished_columns(path: Path) -> tuple[str, ...]:
    """Names of a table's columns if the file ends within its first line; none if it goes on.

    Raises:
        ConfigError: It is no file.
        OSError: It cannot be read.
    """
    head = _read_head(path)
    text = head.decode(_encoding(head) or "latin-1", "replace")
    start, _ = _find_separator(text)
    names = () if re.search(r"[\r\n]", text[start:]) or len(head) == HEAD else read_columns(path)
    return names if any(names) else ()


def first_words(path: Path) -> list[frozenset[str]]:
    """The words in lower case of each of a table's first lines, whatever separates them.

    Raises:
        ConfigError: It is no file.
        OSError: It cannot be read.
    """
    head = _read_head(path)
    lines = head.decode(_encoding(head) or "latin-1", "replace").lower().splitlines()
    return [frozenset(re.findall(r"\w+", line)) for line in lines[:FIRST_LINES]]


def _read_head(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise ConfigError(f"{path}: expected a table, got a folder, a pipe or a device")
    with path.open("rb") as file:
        return file.read(HEAD)


def _encoding(data: bytes) -> str:
    """By the byte order mark, or by which bytes are 0; empty where neither says."""
    if data.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    high, low = (data[:HEAD][i::2] for i in range(2))
    for zeros, letters, name in ((low, high, "utf-16-le"), (high, low, "utf-16-be")):
        if len(zeros) > 1 and zeros.count(0) > 0.9 * len(zeros) and not letters.count(0):
            return name
    return ""


def _decode(data: bytes) -> tuple[str, list[str]]:
    """A file's text, and what its bytes have that ours have not."""
    encoding = _encoding(data)
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line} is not {encoding or 'UTF-8'}, in which it is to be saved"
        ) from error
    changed = [{"utf-8-sig": "a byte order mark"}.get(encoding, encoding)] if encoding else []
    return text, changed


def _find_separator(text: str) -> tuple[int, str]:
    """Where the names of the columns begin, and what stands between them.

    Spreadsheets may write a line `sep=;` before them.
    """
    told = re.match(r"\s*\"?sep=(.)\"?(\r\n|\r|\n)", text, re.IGNORECASE)
    if told:
        return told.end(), told[1]
    start = _EMPTY_ROWS.match(text).end()  # type: ignore[union-attr]  # it matches nothing, too
    first = re.split(r"[\r\n]", text[start : start + HEAD], maxsplit=1)[0]
    return start, max(SEPARATORS, key=first.count)


def _split(text: str, separator: str, before: int) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            yield reader.line_num + before, row
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num + before}: {error}") from error


def _take_columns(
    lines: Iterator[tuple[int, list[str]]], *, whole: bool
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names, and rows that have a value for each; rows without any value are no rows."""
    _, header = next(lines, (1, []))
    columns = [restore(name.strip()) for name in header]
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise ValueError(f"columns that are there more than once: {', '.join(map(show, twice))}")
    body: list[tuple[int, list[str]]] = []
    for line, row in lines:
        if not any(map(str.strip, row)):
            continue
        if len(row) > len(columns):
            raise ValueError(
                f"line {line}: more values than columns: expected {len(columns)}, got {len(row)}"
            )
        if len(row) < len(columns):
            if not whole:
                break
            raise ValueError(f"line {line}: expected {len(columns)} values, got {len(row)}")
        body.append((line, row))
    return columns, body


def _without(row: Sequence[str], places: Sequence[int]) -> list[str]:
    return [cell for place, cell in enumerate(row) if place not in places]


# --- writing ---------------------------------------------------------------------------------


def inert(value: object) -> object:
    """A value for a cell: text that a spreadsheet would calculate begins with an apostrophe.

    Numbers stay numbers. `restore` takes the apostrophe away again.
    """
    if not isinstance(value, str) or not _ACTIVE.match(value):
        return value
    return value if _NUMBER.fullmatch(value) else f"'{value}"


def restore(text: str) -> str:
    """The text that `inert` was given."""
    return text[1:] if text.startswith("'") and _ACTIVE.match(text) else text


def render_sheet(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in our own form: commas, LF, no text that a spreadsheet would calculate."""
    lines: list[str] = []
    for row in (columns, *rows):
        line = io.StringIO()
        # With this end of a line, either half of it is quoted where it is part of a text.
        csv.writer(line, lineterminator="\r\n").writerow([inert(value) for value in row])
        lines.append(line.getvalue().removesuffix("\r\n"))
    return "\n".join([*lines, ""])


def refuse_infinite(value: float) -> float:
    """The number, if it is not infinite.

    Raises:
        ValueError: It is.
    """
    if math.isinf(value):
        raise ValueError(f"expected a finite value, got {value}")
    return value
