"""Manifests: which clips there are, where their media lie, what is known about them.

A manifest is a CSV file with a header, which gzip may have packed (`my.csv.gz`). Its columns are
`clip_id, path, start_s, end_s, label, split, text, group, events`; only `clip_id` and what a
modality needs are required. `path` is relative to the media root.

Ids are data: they are never used as file names or HDF5 names, so `a/b` or `../x` are good ids.
"""

import csv
import gzip
import hashlib
import io
import json
import logging
import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath

from micu.base.errors import ManifestError
from micu.base.files import write_atomically
from micu.base.registry import suggest
from micu.base.table import BLANKS, Table, parse_seconds, read_bytes

logger = logging.getLogger(__name__)

MODALITIES = ("audio", "video", "flow", "text")
"""Every modality, in the order in which the codebook is updated (the published code's)."""

NEEDED_COLUMN = {"video": "path", "audio": "path", "flow": "path", "text": "text"}
"""The column that the extraction of a modality cannot do without."""

MAX_NAME_BYTES = 255

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


TIMES = ("start_s", "end_s")
COLUMNS = tuple(field.name for field in fields(Clip))


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest file, read: its clips in file order and the hash of its bytes, unpacked."""

    path: Path
    clips: tuple[Clip, ...]
    sha256: str

    @property
    def name(self) -> str:
        """Folder name of its feature sets."""
        return safe_name(manifest_stem(self.path))

    def for_modality(self, modality: str) -> "Manifest":
        """The manifest without the rows that a modality is not extracted from: captions."""
        column = NEEDED_COLUMN[modality]
        kept = tuple(clip for clip in self.clips if clip.has_column(column))
        return replace(self, clips=kept)

    def sources(self, modality: str, made_of: str) -> dict[str, str]:
        """What the features of a modality are made of, by clip id; see `row_sources`."""
        clips = self.for_modality(modality).clips
        return {
            clip.clip_id: source
            for clip, source in zip(clips, row_sources(clips, made_of), strict=True)
        }


SOURCE_CHARACTERS = 32
SOURCE = re.compile(rf"[0-9a-f]{{{SOURCE_CHARACTERS}}}|")
"""What a source looks like; empty where a row has none."""


def row_sources(clips: Iterable[Clip], made_of: str) -> tuple[str, ...]:
    """Digests of what rows are made of: the same bytes of the same file, or the same sentence.

    `./a.mp4` is `a.mp4`, and times count to the microsecond: a spreadsheet keeps 15 digits. How the
    lines of a sentence end makes no difference, nor what else a manifest says of a clip, its id
    too, nor other rows. Of rows that are made of one thing, each has its own: they are numbered.

    Args:
        clips: Rows, in order.
        made_of: `media` (path below the media root, start, end), `text`, or `id`.

    Returns:
        By row the first 32 hexadecimal digits of a SHA-256.
    """
    numbers: Counter[str] = Counter()  # of what several rows are made of, beside the first
    found: dict[str, None] = {}
    for clip in clips:
        match made_of:
            case "text":
                parts: tuple[object, ...] = (clip.text.replace("\r\n", "\n"),)
            case "id":
                parts = (clip.clip_id,)
            case _:
                path = clip.path
                if "./" in path or "//" in path:
                    path = str(PurePosixPath(path))
                end_s = None if clip.end_s is None else round(float(clip.end_s), 6)
                parts = (path, round(float(clip.start_s or 0.0), 6), end_s)
        source = _digest(parts, 1)
        if source in found:
            numbers[source] += 1
            source = _digest(parts, 1 + numbers[source])
        found[source] = None
    return tuple(found)


def _digest(parts: tuple[object, ...], number: int) -> str:
    told = json.dumps([*parts, number]).encode()
    return hashlib.sha256(told).hexdigest()[:SOURCE_CHARACTERS]


def is_table(path: str | Path) -> bool:
    """Whether a file is named as a table of clips is: `my.csv`, `my.csv.gz`."""
    return str(path).lower().endswith((".csv", ".csv.gz"))


def manifest_stem(path: Path) -> str:
    """A manifest's name without its ending: `my` of `my.csv` and of `my.csv.gz`."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
"""What Windows takes for a device, whatever follows the point."""


def safe_name(name: str) -> str:
    """A name as that of one folder, on every system: itself, unless it is none.

    `_` stands for characters that no folder has on some system, and for points and blanks at the
    end: `..` is a folder above.
    """
    safe = "".join("_" if char in '<>:"/\\|?*' or not char.isprintable() else char for char in name)
    kept = safe.rstrip(". ")
    safe = kept + "_" * (len(safe) - len(kept))
    while len(safe.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        safe = safe[:-1]
    return f"_{safe}" if not safe or _DEVICES.fullmatch(safe) else safe


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
    if path.is_dir():
        raise ManifestError(
            f"{path}: expected a manifest, which is a CSV file, got a folder; type the manifest, "
            f"and, if the media are there, --media-root {path}. To make a manifest of it: "
            f"micu-extract manifest folder --annotations {path} -o my.csv"
        )
    if not path.is_file():  # a pipe or a device may never end
        raise ManifestError(
            f"{path}: no such manifest; expected a CSV file with the columns "
            f"{', '.join(field.name for field in fields(Clip))}. "
            "docs/manifests.md describes it; "
            "`micu-extract manifest --help` makes one from a data set's official files"
        )
    data = read_bytes(path)
    seen: dict[str, int] = {}  # place among `clips`, which with `lines` has no row twice
    clips, lines = list[Clip](), array("Q")
    repeats: list[int] = []
    times: dict[float | None, float | None] = {}  # of a large manifest few differ

    def share(time_s: float | None) -> float | None:
        return times.setdefault(time_s, time_s) if time_s else time_s

    def parse(row: dict[str, str], line: int) -> Clip:
        clip = Clip(
            clip_id=_clip_id(row),
            path=row.get("path", ""),
            start_s=share(_seconds(row, "start_s")),
            end_s=share(_seconds(row, "end_s")),
            label=sys.intern(row.get("label", "").strip()),  # few are many rows'
            split=sys.intern(row.get("split", "").strip()),
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
            first = seen[clip.clip_id]
            if clips[first] != clip:
                raise ValueError(f"repeats the id of line {lines[first]} with other content")
            repeats.append(line)
        else:
            seen[clip.clip_id] = len(clips)
            clips.append(clip)
            lines.append(line)
        return clip

    table = Table(path, data, ("clip_id", *need), COLUMNS)
    rows = table.parse(parse, numbers=TIMES)
    if repeats:
        logger.warning("%s: lines %s repeat earlier rows; each is used once", path, repeats[:20])
    if not rows:
        raise ManifestError(f"{path}: expected at least one clip, got a header and no rows")
    if "path" in need:
        _check_groups(path, clips)
    return Manifest(path=path, clips=tuple(clips), sha256=hashlib.sha256(data).hexdigest())


def _check_groups(path: Path, clips: Sequence[Clip]) -> None:
    """Refuse captions of media that no row has."""
    captions = [clip for clip in clips if clip.is_caption]
    known = {clip.clip_id for clip in clips} if captions else set()
    lost = [clip for clip in captions if clip.group not in known]
    if lost:
        raise ManifestError(
            f"{path}: {len(lost)} rows without a path name a group that is no clip_id, first "
            f"clip {lost[0].clip_id!r} of group {lost[0].group!r}; give them a path, or the group "
            "a row that has one"
        )


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as a manifest, atomically; reading it back gives the same clips.

    It is packed by gzip where the name ends in `.gz`. The columns `group` and `events` are there if
    some clip has something in them.
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
    plain, quoted = (
        csv.DictWriter(table, names, extrasaction="ignore", lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    plain.writeheader()
    for row in rows:
        (quoted if _wants_quotes(row.values()) else plain).writerow(row)
    data = table.getvalue().encode("utf-8", "surrogateescape")
    is_packed = path.suffix.lower() == ".gz"
    write_atomically(path, gzip.compress(data, mtime=0) if is_packed else data)


def _wants_quotes(values: Iterable[object]) -> bool:
    """Whether a field has blanks around it, or a carriage return, which would be a line's end."""
    return any(
        isinstance(value, str) and (value != value.strip(BLANKS) or "\r" in value)
        for value in values
    )


def youtube_id(clip_id: str) -> str | None:
    """The eleven characters of a YouTube video that an id begins with; None if it does not.

    Data sets write `ID`, `ID_000030` (start, s), `ID_30_40` or `ID_30.000_40.000` (start and end);
    `#2` after it numbers further rows about the same clip. What merely looks so, `dog_barking_7` or
    `Dog_barking_000007`, is none: another tail, a last character that no video has, or words.
    """
    found = _YOUTUBE_ID.fullmatch(clip_id)
    return found[1] if found and not _WORDS.fullmatch(found[1]) else None


def youtube_start(clip_id: str) -> float | None:
    """The start (s) after a YouTube id: 30 in `ID_000030`, `ID_30_40` and `ID_30.000_40.000#2`.

    None if there is no such id, or none follows; no number, which equals no other, if it is none.
    """
    told = clip_id.partition("#")[0].removeprefix(youtube_id(clip_id) or clip_id)
    if not told.startswith("_"):
        return None
    try:
        return float(told.split("_")[1])
    except ValueError:
        return math.nan


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

    table = Table(path, read_bytes(path), ("label",), ("label",))
    if "clip_id" in table.header:
        raise ManifestError(
            f"{path}: expected a list of known classes, each once in the column label, got a "
            "manifest; micu-extract manifest --known-classes draws such a list"
        )
    classes = tuple(table.parse(parse))
    if not classes:
        raise ManifestError(f"{path}: expected at least one class, got none")
    return classes


def read_id_list(path: Path) -> tuple[str, ...]:
    """The ids in a CSV file with the column `clip_id`, as `micu-extract overlap` writes one.

    Raises:
        ManifestError: The column is missing, or the file cannot be read.
    """
    table = Table(path, read_bytes(path), ("clip_id",), ("clip_id", "by", "others"))
    return tuple(table.parse(lambda row, line: row["clip_id"]))


def read_table(path: Path, required: Sequence[str]) -> "Table":
    """A CSV file that may have the columns of a manifest, `required` among them.

    Raises:
        ManifestError: It has not, or cannot be read.
    """
    return Table(path, read_bytes(path), required, COLUMNS)


def _clip_id(row: dict[str, str]) -> str:
    clip_id = row["clip_id"]
    if not clip_id.strip():
        raise ValueError("clip_id is empty")
    if not clip_id.isprintable():
        raise ValueError(f"clip_id {clip_id!r} holds control characters; ids are printable text")
    return clip_id


def _seconds(row: dict[str, str], column: str) -> float | None:
    try:
        return parse_seconds(row.get(column, ""))
    except ValueError as error:
        raise ValueError(f"{column}: {error}") from error
