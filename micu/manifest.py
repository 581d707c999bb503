"""Manifests: which clips there are, where their media lie, what is known about them.

A manifest is a CSV file with a header. Its columns are `clip_id, path, start_s, end_s, label,
split, text, group, events`; only `clip_id` and what a modality needs are required. `path` is
relative to the media root.

Ids are data: they are never used as file names or HDF5 names, so `a/b` or `../x` are good ids.
"""

import csv
import hashlib
import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from micu.errors import ManifestError
from micu.files import write_atomically
from micu.registry import suggest

logger = logging.getLogger(__name__)

MODALITIES = ("audio", "video", "flow", "text")
"""Every modality, in the order in which the codebook is updated (the published code's)."""

NEEDED_COLUMN = {"video": "path", "audio": "path", "flow": "path", "text": "text"}
"""The column that the extraction of a modality cannot do without."""

Row = TypeVar("Row")

_YOUTUBE_ID = re.compile(
    r"([A-Za-z0-9_-]{10}[AEIMQUYcgkosw048])(?:_[0-9]{6}|_[0-9.]+_[0-9.]+)?(?:#[0-9]+)?"
)
"""64 bits in base64, so that the last of eleven characters has two bits of zero."""

_WORDS = re.compile(r"[a-z]{3,}[0-9]?(_[a-z]{3,}[0-9]?)+|[A-Z][a-z]{2,}(_[A-Z][a-z]{2,})+")
"""Words, such as a class, joined by underscores: as good as never an id that was drawn."""


@dataclass(frozen=True, slots=True)
class Event:
    """One labelled segment of a clip, for localisation.

    In a manifest's column `events` it is `label:onset_s:offset_s`, or
    `label:onset_s:offset_s:modality`; a `;` stands between two. An event of no length fills no
    second: official lists have such lines, and the clip counts as annotated all the same.

    Raises:
        ManifestError: A label that the column cannot hold, times out of order, no such modality.
    """

    label: str
    onset_s: float
    """From the start of the clip, s."""
    offset_s: float
    modality: str = ""
    """Where it can be perceived; empty where the label does not say, which is everywhere."""

    def __post_init__(self) -> None:  # noqa: D105
        if not self.label or self.label != self.label.strip() or set(self.label) & {";", ":"}:
            raise ManifestError(f"event label {self.label!r}: expected text without ; and :")
        if not 0.0 <= self.onset_s <= self.offset_s < math.inf:
            raise ManifestError(
                f"event {self.label!r}: offset_s {self.offset_s} is before onset_s "
                f"{self.onset_s}, or one is no time"
            )
        if self.modality and self.modality not in MODALITIES:
            raise ManifestError(
                f"event {self.label!r}: unknown modality {self.modality!r}; "
                f"{suggest(self.modality, MODALITIES)}"
            )

    @classmethod
    def parse(cls, text: str) -> "Event":
        """The event that one entry of the column stands for.

        Raises:
            ManifestError: It stands for none.
        """
        fields = [field.strip() for field in text.split(":")]
        try:
            label, onset, offset, *modality = fields
            if len(modality) > 1:
                raise ValueError
            return cls(label, float(onset), float(offset), *modality)
        except ValueError as error:
            raise ManifestError(
                f"events: expected label:onset_s:offset_s or label:onset_s:offset_s:modality, "
                f"got {text.strip()!r}"
            ) from error

    def __str__(self) -> str:  # noqa: D105
        tail = f":{self.modality}" if self.modality else ""
        return f"{self.label}:{self.onset_s}:{self.offset_s}{tail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One row of a manifest."""

    clip_id: str
    path: str = ""
    """Media file, relative to the media root; bytes that are not UTF-8 are surrogate-escaped."""
    start_s: float | None = None
    """Start of the clip in its file, s; None is the start of the file."""
    end_s: float | None = None
    """End of the clip in its file, s; None is the end of the file."""
    label: str = ""
    split: str = ""
    text: str = ""
    group: str = ""
    """Which item the row is about: rows of one group are one sound or picture with several
    sentences. Left empty it is the clip's own id, so that it never is empty."""
    events: tuple[Event, ...] = ()
    """Segment labels, in file order."""

    def __post_init__(self) -> None:  # noqa: D105
        if not self.group:
            object.__setattr__(self, "group", self.clip_id)

    @property
    def is_caption(self) -> bool:
        """Whether the row is a further sentence about another row, and has no media of its own."""
        return not self.path and self.group != self.clip_id

    def has_column(self, column: str) -> bool:
        """Whether the row is one that fills a column: captions have no `path`, on purpose."""
        return column != "path" or not self.is_caption

    def events_in(self, modality: str) -> tuple[Event, ...]:
        """The events that can be perceived in a modality."""
        return tuple(event for event in self.events if event.modality in ("", modality))


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest file, read: its clips in file order and the hash of its bytes."""

    path: Path
    clips: tuple[Clip, ...]
    sha256: str

    @property
    def name(self) -> str:
        """Folder name of its feature sets."""
        return self.path.stem

    def for_modality(self, modality: str) -> "Manifest":
        """The manifest without the rows that a modality is not extracted from: captions."""
        column = NEEDED_COLUMN[modality]
        kept = tuple(clip for clip in self.clips if clip.has_column(column))
        return replace(self, clips=kept)


def read_manifest(path: Path, need: Sequence[str] = ()) -> Manifest:
    """Read a manifest.

    Args:
        path: CSV file.
        need: Columns beside `clip_id` that every row must fill.

    Returns:
        The manifest. A row that is repeated exactly is kept once, with a warning.

    Raises:
        ManifestError: The file is missing or has bad rows; all of them are named in one message,
            with their line numbers.
    """
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such manifest; expected a CSV file with the columns "
            f"{', '.join(field.name for field in fields(Clip))}. "
            "README.md, section Formats, describes it; "
            "`micu-extract manifest --help` makes one from a data set's official files"
        )
    data = path.read_bytes()
    seen: dict[str, tuple[int, Clip]] = {}
    repeats: list[int] = []

    def parse(row: dict[str, str], line: int) -> Clip:
        clip = Clip(
            clip_id=_clip_id(row),
            path=row.get("path", ""),
            start_s=_seconds(row, "start_s"),
            end_s=_seconds(row, "end_s"),
            label=row.get("label", "").strip(),
            split=row.get("split", "").strip(),
            text=row.get("text", "").strip(),
            group=row.get("group", ""),
            events=tuple(map(Event.parse, filter(str.strip, row.get("events", "").split(";")))),
        )
        for column in need:
            if clip.has_column(column) and not getattr(clip, column):
                raise ValueError(f"{column} is empty")
        if clip.end_s is not None and clip.end_s <= (clip.start_s or 0.0):
            raise ValueError(f"end_s {clip.end_s} is not after start_s {clip.start_s or 0.0}")
        if clip.clip_id in seen:
            first_line, first = seen[clip.clip_id]
            if first != clip:
                raise ValueError(f"repeats the id of line {first_line} with other content")
            repeats.append(line)
        else:
            seen[clip.clip_id] = (line, clip)
        return clip

    rows = _read_rows(path, data, ("clip_id", *need), [field.name for field in fields(Clip)], parse)
    if repeats:
        logger.warning("%s: lines %s repeat earlier rows; each is used once", path, repeats[:20])
    if not rows:
        raise ManifestError(f"{path}: expected at least one clip, got a header and no rows")
    clips = tuple(clip for _, clip in seen.values())
    if "path" in need:
        _check_groups(path, clips)
    return Manifest(path=path, clips=clips, sha256=hashlib.sha256(data).hexdigest())


def _check_groups(path: Path, clips: Sequence[Clip]) -> None:
    """Refuse captions of media that no row has."""
    known = {clip.clip_id for clip in clips}
    lost = [clip for clip in clips if clip.is_caption and clip.group not in known]
    if lost:
        raise ManifestError(
            f"{path}: {len(lost)} rows without a path name a group that is no clip_id, first "
            f"clip {lost[0].clip_id!r} of group {lost[0].group!r}; give them a path, or the group "
            "a row that has one"
        )


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as a manifest, atomically; reading it back gives the same clips.

    The columns `group` and `events` are there if some clip has something in them.
    """
    rows = []
    for clip in clips:
        values = {field.name: getattr(clip, field.name) for field in fields(Clip)}
        values["group"] = clip.group if clip.group != clip.clip_id else ""
        values["events"] = ";".join(map(str, clip.events))
        rows.append({name: "" if value is None else value for name, value in values.items()})
    unused = {name for name in ("group", "events") if not any(row[name] for row in rows)}
    names = [field.name for field in fields(Clip) if field.name not in unused]
    table = io.StringIO()
    writer = csv.DictWriter(table, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, table.getvalue().encode("utf-8", "surrogateescape"))


def youtube_id(clip_id: str) -> str | None:
    """The eleven characters of a YouTube video that an id begins with; None if it does not.

    Data sets write `ID`, `ID_000030` (start, s), `ID_30_40` or `ID_30.000_40.000` (start and end);
    `#2` after it numbers further rows about the same clip. What merely looks so, `dog_barking_7` or
    `Dog_barking_000007`, is none: another tail, a last character that no video has, or words.
    """
    found = _YOUTUBE_ID.fullmatch(clip_id)
    return found[1] if found and not _WORDS.fullmatch(found[1]) else None


def read_class_list(path: Path) -> tuple[str, ...]:
    """Read class names from a CSV file with the column `label`, in file order.

    Raises:
        ManifestError: The file is missing, empty, or names a class twice.
    """
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such class list; expected a CSV file with the column label"
        )
    seen: dict[str, int] = {}

    def parse(row: dict[str, str], line: int) -> str:
        label = row["label"].strip()
        if not label:
            raise ValueError("label is empty")
        if label in seen:
            raise ValueError(f"repeats the class of line {seen[label]}")
        seen[label] = line
        return label

    classes = tuple(_read_rows(path, path.read_bytes(), ("label",), ("label",), parse))
    if not classes:
        raise ManifestError(f"{path}: expected at least one class, got none")
    return classes


def _read_rows(
    path: Path,
    data: bytes,
    required: Sequence[str],
    known: Sequence[str],
    parse: Callable[[dict[str, str], int], Row],
) -> list[Row]:
    """Parse every row of a CSV file, and raise once for all rows that `parse` refuses."""
    text = data.decode("utf-8-sig", "surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    header = _read_header(path, reader, required, known)
    rows: list[Row] = []
    bad: list[str] = []
    clean = _is_utf8(text)
    while True:
        try:
            values = next(reader, None)
            if values is None:
                break
            if "" in values or None in values.values():
                raise ValueError(f"expected {len(header)} fields")
            if not clean:
                _refuse_other_encodings(values)
            rows.append(parse(values, reader.line_num))
        except (ValueError, csv.Error, ManifestError) as error:
            bad.append(f"  line {reader.line_num}: {error}")
    if bad:
        lines = "\n".join(bad)
        raise ManifestError(f"{path}: {len(bad)} bad row{'s' * (len(bad) > 1)}\n{lines}")
    return rows


def _read_header(
    path: Path, reader: "csv.DictReader[str]", required: Sequence[str], known: Sequence[str]
) -> list[str]:
    """Take the first line as the names of the columns."""
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise ManifestError(f"{path}: line 1 cannot be read as column names: {error}") from error
    if not _is_utf8("".join(header)):
        raise ManifestError(f"{path}: line 1 is not UTF-8; save the file as UTF-8")
    reader.fieldnames = header
    missing = [name for name in required if name not in header]
    if missing:
        raise ManifestError(
            f"{path}: expected the columns {', '.join(required)}, got "
            f"{', '.join(header) or 'an empty file'}; add {', '.join(missing)}"
        )
    if "" in header:
        raise ManifestError(
            f"{path}: column {header.index('') + 1} has no name; write the CSV without the index"
        )
    twice = sorted({name for name in known if header.count(name) > 1})
    if twice:
        raise ManifestError(f"{path}: columns that are there more than once: {', '.join(twice)}")
    unknown = [name for name in header if name not in known]
    if unknown:
        logger.warning("%s: columns that mean nothing here: %s", path, ", ".join(unknown))
    return header


def _refuse_other_encodings(values: dict[str, str]) -> None:
    """Only `path` may hold bytes that are not UTF-8: names of files are bytes."""
    for column, value in values.items():
        if column != "path" and not _is_utf8(value):
            shown = value.encode("utf-8", "surrogateescape")
            raise ValueError(f"{column} is not UTF-8: {shown!r}; save the file as UTF-8")


def _is_utf8(text: str) -> bool:
    """Whether decoding met no byte that it had to escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clip_id(row: dict[str, str]) -> str:
    clip_id = row["clip_id"]
    if not clip_id.strip():
        raise ValueError("clip_id is empty")
    if not clip_id.isprintable():
        raise ValueError(f"clip_id {clip_id!r} holds control characters; ids are printable text")
    return clip_id


def _seconds(row: dict[str, str], column: str) -> float | None:
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{column}: expected seconds, got {text!r}")
    return value
