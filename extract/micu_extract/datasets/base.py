"""What a data set is to us: which official files it takes, and a function from them to rows."""

import csv
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from micu.base.errors import ManifestError
from micu.base.registry import Registry
from micu.base.table import read_bytes
from micu.store.manifest import Clip, Event

logger = logging.getLogger(__name__)

Files = Mapping[str, Path]
"""Official files by role."""
Builder = Callable[[Files], list[Clip]]

CLIP_S = 10.0
"""Of the clips of most data sets, s."""
SHOWN = 20
"""Bad lines, or names, that a message shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One official file that a data set is made from."""

    role: str
    """What it is called where it is typed as ROLE=PATH."""
    pattern: str
    """Its name as its authors spell it, with `*`; case does not matter."""
    optional: bool = False
    may_be_folder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A data set by name."""

    name: str
    files: tuple[File, ...]
    build: Builder

    def describe(self) -> str:
        """Its files, for messages: `annotations=*annotations*.txt, [train=*train_order.h5]`."""
        spelled = [f"{file.role}={file.pattern}" for file in self.files]
        marks = [("[{}]" if file.optional else "{}") for file in self.files]
        return ", ".join(mark.format(text) for mark, text in zip(marks, spelled, strict=True))

    def rows(self, typed: Sequence[str]) -> list[Clip]:
        """Rows of the manifest.

        Args:
            typed: Paths of the official files or of folders that hold them, or ROLE=PATH.

        Raises:
            ManifestError: A file is missing, means nothing to the data set, or has bad lines.
        """
        files = self.assign(typed)
        clips = self.build(files)
        if not clips:
            told = ", ".join(map(str, files.values()))
            raise ManifestError(f"{self.name}: expected at least one clip in {told}, got none")
        return clips

    def assign(self, typed: Sequence[str]) -> dict[str, Path]:
        """Which file plays which role.

        Raises:
            ManifestError: As for `rows`.
        """
        found: dict[str, Path] = {}
        for text in typed:
            for role, path in self._roles_of(text):
                if found.setdefault(role, path) != path:
                    raise ManifestError(
                        f"{self.name}: two files for {role}: {found[role]} and {path}; type one"
                    )
        missing = [f.role for f in self.files if not f.optional and f.role not in found]
        if missing or not found:
            raise ManifestError(
                f"{self.name}: expected --annotations {self.describe()}; got no "
                f"{', '.join(missing) or 'file'}. A file of another name is typed as ROLE=PATH"
            )
        return found

    def _roles_of(self, text: str) -> list[tuple[str, Path]]:
        role, _, rest = text.partition("=")
        named = [file for file in self.files if rest and file.role == role]
        path = Path(rest if named else text)
        if not path.exists():
            raise ManifestError(
                f"{self.name}: {path}: no such file. Expected --annotations {self.describe()}"
            )
        known = named or (list(self.files) if len(self.files) == 1 else [])
        if known and (path.is_file() or known[0].may_be_folder):
            return [(known[0].role, path)]
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.is_file())
            return [(f.role, entry) for entry in inside for f in self.files if _fits(f, entry)]
        roles = [(file.role, path) for file in self.files if _fits(file, path)]
        if not roles:
            raise ManifestError(
                f"{path}: means nothing to {self.name}, which takes {self.describe()}; a file of "
                "another name is typed as ROLE=PATH"
            )
        return roles


DATASETS: Registry[DataSet] = Registry("data set", "micu.datasets", ("rows",))


def data_set(name: str, *files: File) -> Callable[[Builder], Builder]:
    """Decorator that registers a function from official files to rows as a data set."""

    def add(build: Builder) -> Builder:
        DATASETS.register(name)(DataSet(name=name, files=files, build=build))
        return build

    return add


def _fits(file: File, path: Path) -> bool:
    return fnmatch(path.name.lower(), file.pattern.lower())


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of an official CSV file that are not blank, with their line numbers from 1.

    Fields are separated by tabs if there are any in the first line.

    Raises:
        ManifestError: It is no CSV file, or far too large.
    """
    text = _read_text(path, "CSV")
    delimiter = "\t" if "\t" in re.split("[\r\n]", text, maxsplit=1)[0] else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [(reader.line_num, [field.strip() for field in row]) for row in reader if row]
    except csv.Error as error:
        raise ManifestError(f"{path}: line {reader.line_num}: no CSV: {error}") from error


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows of an official CSV file with a header, by column, with their line numbers.

    Raises:
        ManifestError: Columns are missing, or rows have another number of fields; all are named.
    """
    rows = read_rows(path)
    header = rows[0][1] if rows else []
    if missing := [name for name in columns if name not in header]:
        raise ManifestError(
            f"{path}: expected the columns {', '.join(columns)}, got "
            f"{', '.join(header) or 'an empty file'}; {', '.join(missing)} is missing"
        )
    lines = Lines(path)
    for line, row in rows[1:]:
        if len(row) != len(header):
            lines.bad(line, f"expected {len(header)} fields, got {len(row)}")
    lines.check()
    return [(line, dict(zip(header, row, strict=True))) for line, row in rows[1:]]


class Lines:
    """What was wrong with the lines of an official file: repaired, or refused in one error.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:  # noqa: D107
        self.path = path
        self._bad: list[str] = []

    def bad(self, line: int, message: str) -> None:
        """Note a line that cannot be used."""
        self._bad.append(f"  line {line}: {message}")

    def mended(self, line: int, message: str) -> None:
        """Tell of a line that is read as it was meant."""
        logger.warning("%s: line %d: %s", self.path, line, message)

    def check(self) -> None:
        """Raise for all bad lines at once.

        Raises:
            ManifestError: There are some.
        """
        if self._bad:
            shown = "\n".join(self._bad[:SHOWN])
            plural = "s" * (len(self._bad) > 1)
            raise ManifestError(f"{self.path}: {len(self._bad)} bad line{plural}\n{shown}")


def name_some(names: Sequence[str]) -> str:
    """The first names, for messages, and how many there are more."""
    shown = [ascii(name[:200]) for name in names[:SHOWN]]
    more = len(names) - len(shown)
    told = ", ".join(shown) + (f" and {more} more" if more else "")
    return f": {told}" if told else ""


def read_event(
    lines: Lines, line: int, label: str, onset_s: float, offset_s: float, modality: str = ""
) -> Event:
    """An event of an official list; one that ends before it begins, or then, has no length.

    Raises:
        ManifestError: The label or the times are none.
    """
    if onset_s >= offset_s:
        lines.mended(line, f"{label!r} from {onset_s:g} s to {offset_s:g} s: read as of no length")
        offset_s = onset_s
    return Event(label, onset_s, offset_s, modality)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1.

    Raises:
        ManifestError: It is no file, or far too large.
    """
    text = _read_text(path, "text").replace("\r\n", "\n").replace("\r", "\n")
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _read_text(path: Path, kind: str) -> str:
    return read_bytes(path, kind).decode("utf-8-sig", "surrogateescape")


def cut_clip(clip_id: str, path: str = "", **told: Any) -> Clip:
    """A row about a file that holds ten seconds, as most data sets have them cut.

    Args:
        clip_id: Its id.
        path: Its file; empty for one of MP4 that is called as the clip.
        **told: Other fields of `Clip`.
    """
    path = path or f"{clip_id}.mp4"
    return Clip(clip_id=clip_id, path=path, start_s=0.0, end_s=CLIP_S, **told)


def with_unique_ids(clips: Sequence[Clip]) -> list[Clip]:
    """Number clips that repeat an id: `x`, `x#2`, `x#3`, all of the group `x`."""
    seen: dict[str, int] = {}
    unique = []
    for clip in clips:
        count = seen[clip.clip_id] = seen.get(clip.clip_id, 0) + 1
        unique.append(numbered(clip, count))
    return unique


def numbered(clip: Clip, count: int, *, with_media: bool = True) -> Clip:
    """The `count`-th row about an item, from its first; without media it is a caption."""
    if count == 1:
        return clip
    path = clip.path if with_media else ""
    return replace(clip, clip_id=f"{clip.clip_id}#{count}", path=path, group=clip.group)


def captions(item: Clip, sentences: Sequence[str]) -> list[Clip]:
    """The rows of an item with several sentences: its media are in the first only."""
    rows = [replace(item, text=" ".join(sentence.split())) for sentence in sentences]
    return [numbered(row, count, with_media=False) for count, row in enumerate(rows, 1)]
