"""The proof of an extraction: every manifest row is in a shard or in the ledger, once."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from micu.base.errors import ManifestError, MicuError
from micu.base.files import file_sha256
from micu.store.ledger import (
    Failure,
    ShardEntry,
    indexed_shards,
    ledger_name,
    part_labels,
    read_failures,
)
from micu.store.manifest import read_manifest, row_sources
from micu.store.sets import find_sets_beside, read_index, read_set, rows_beside, shard_files
from micu.store.shard import Header, Shard, describe_difference


@dataclass(frozen=True, slots=True)
class SetReport:
    """What `verify_set` found."""

    folder: str
    rows: int
    """Rows of the manifest that were to be extracted."""
    manifest_rows: int
    stored: int
    failed: int
    problems: tuple[str, ...]
    damaged: int = 0
    """Stored clips some of whose frames were corrupt; the index names them."""
    unasked: int = 0
    """Rows in shards that the manifest does not ask for, or not any more."""
    shared: int = 0
    """Rows that are read from sets of other manifests."""


@dataclass(slots=True)
class ShardCheck:
    """What one shard holds, and what is wrong with it."""

    path: Path
    clip_ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    other_making: bool = False
    """Its header is not that of `set.json`."""
    refused: bool = False
    """The operating system would not open it, which says nothing about its bytes."""


@dataclass(slots=True)
class Contents:
    """What is where in a feature set; rows are named by their source."""

    header: Header
    rows: int
    """Rows of the manifest that were to be extracted."""
    known: dict[str, str]
    """Clip ids of every row of the manifest that the modality is extracted from, in order."""
    homes: dict[str, list[str]]
    """Names of the shards that hold a row."""
    others: int
    """Rows in shards that the manifest does not have."""
    shared: set[str]
    """Rows that only sets of other manifests have."""
    ledger: dict[str, Failure]
    """Of rows that the manifest has."""
    ledger_files: dict[str, str]
    """Name of the ledger that holds a row."""
    shard_problems: list[str]
    damaged: int
    """Stored clips some of whose frames were corrupt, as the index says."""
    has_parts: bool
    """Whether parts have files of their own there."""

    @property
    def sources(self) -> list[str]:
        """The rows that were to be extracted."""
        return list(self.known)[: self.rows]

    def missing(self) -> list[str]:
        """The rows that are in no shard and not in the ledger."""
        return [
            source
            for source in self.sources
            if not (source in self.homes or source in self.ledger or source in self.shared)
        ]

    def twice(self) -> list[str]:
        """Clips in two shards, one line each."""
        return [
            f"clip {self.known[source]!r} is in {' and '.join(homes)}"
            for source, homes in self.homes.items()
            if len(homes) > 1
        ]

    def mended(self) -> set[str]:
        """Rows that a part has stored, and that the ledger of the run before it still names.

        A part writes no file but its own: they leave that ledger at the merge.
        """
        return {
            source
            for source, name in self.ledger_files.items()
            if self.has_parts and name == ledger_name() and source in self.homes
        }

    def nothing_stored(self) -> list[str]:
        """One line if no clip is stored: that is no feature set, whatever the ledger explains."""
        if self.homes or self.shared:
            return []
        codes = Counter(failure.code for failure in self.ledger.values())
        why = ", ".join(f"{count} {code}" for code, count in codes.most_common())
        return [
            f"nothing is stored: of {self.rows} rows {len(self.ledger)} failed"
            f"{f' ({why})' if why else ''}; mend the cause and type the extraction command with "
            "--retry-failed"
        ]


def verify_set(
    folder: Path, manifest: Path | None = None, *, data: bool = False, media: bool = False
) -> SetReport:
    """Prove that every row of a set is in exactly one of a shard and the ledger.

    Args:
        folder: A feature set.
        manifest: Where its manifest is now; None takes the path noted by the extraction.
        data: Also hash every shard against the index, which must know it, and look for values that
            are not finite.
        media: Also look whether the media files are still those that were decoded.

    Returns:
        The report; problems are listed, not raised. A shard that cannot be opened is one, and its
        rows count as missing.

    Raises:
        StoreError: The folder is not a feature set.
    """
    try:
        contents = inspect_set(folder, manifest, data=data)
    except ManifestError as error:
        message = f"{error}; if the features were moved, name it with --manifest"
        return SetReport(str(folder), read_set(folder)[1].rows, 0, 0, 0, (message,))
    return SetReport(
        str(folder),
        contents.rows,
        len(contents.known),
        sum(map(len, contents.homes.values())),
        len(contents.ledger) - len(contents.mended()),
        (
            *contents.nothing_stored(),
            *contents.shard_problems,
            *_row_problems(contents),
            *(find_replaced(folder, manifest).values() if media else ()),
        ),
        contents.damaged,
        contents.others,
        len(contents.shared),
    )


def inspect_set(folder: Path, manifest: Path | None = None, *, data: bool = False) -> Contents:
    """Find out what is where in a set; the arguments are those of `verify_set`.

    Raises:
        StoreError: The folder is not a feature set.
        ManifestError: Its manifest cannot be read.
    """
    header, run = read_set(folder)
    whole = read_manifest(manifest or Path(run.manifest_path))
    known = whole.for_modality(header.spec.modality)
    sources = row_sources(known.clips, header.spec.made_of)
    asked = {source: clip.clip_id for source, clip in zip(sources, known.clips, strict=True)}
    problems: list[str] = []
    homes: dict[str, list[str]] = {}
    others = 0
    index = indexed_shards(folder)
    for check in check_shards(folder, header, index, data=data):
        problems += check.problems
        for source in check.sources:
            if source in asked:
                homes.setdefault(source, []).append(check.path.name)
            else:
                others += 1
    if data:
        problems += _unlisted_shards(folder, index)
    labels = part_labels(folder)
    files = {
        source: ledger_name(label)
        for label in ("", *labels)
        for source in read_failures(folder, [label])
    }
    ledger = {key: row for key, row in read_failures(folder).items() if key in asked}
    return Contents(
        header=header,
        rows=run.rows_of(len(asked)),
        known=asked,
        homes=homes,
        others=others,
        shared=(rows_beside(folder, header, run).keys() & asked.keys())
        - homes.keys()
        - ledger.keys(),
        ledger=ledger,
        ledger_files=files,
        shard_problems=problems,
        damaged=sum(len(entry.damaged) for entry in index.values()),
        has_parts=bool(labels),
    )


def find_replaced(folder: Path, manifest: Path | None = None) -> dict[str, str]:
    """Rows whose media file is not the one that was decoded, by source, each with what to say.

    Rows that are read from sets beside are among them. A file that is not there any more says
    nothing against what was made of it.

    Raises:
        StoreError: The folder is not a feature set.
        ManifestError: Its manifest cannot be read.
    """
    header, run = read_set(folder)
    if header.spec.made_of != "media":
        return {}
    root = Path(run.media_root)
    known = read_manifest(manifest or Path(run.manifest_path)).for_modality(header.spec.modality)
    clips = dict(zip(row_sources(known.clips, header.spec.made_of), known.clips, strict=True))
    now: dict[str, tuple[int, int] | None] = {}
    found: dict[str, str] = {}
    shards = [(folder, entry) for entry in read_index(folder).values()]
    own = {source for _, entry in shards for source in entry.sources}
    for other, its in find_sets_beside(folder, header, run).items():
        shards += [(other, entry) for entry in its.values()]
    for home, entry in shards:
        for source, then in entry.files.items():
            if (clip := clips.get(source)) is None or (home != folder and source in own):
                continue
            if clip.path not in now:
                now[clip.path] = _look_at(root / clip.path)
            if now[clip.path] not in (None, then):
                found[source] = (
                    f"clip {clip.clip_id!r}: its file {clip.path!r} was replaced after the "
                    f"extraction: expected {_tell_file(then)}, got {_tell_file(now[clip.path])}; "
                    f"type: micu-extract verify {home} --media --repair"
                )
    if now and not any(now.values()):
        found[""] = (
            f"none of its {len(now)} media files is in {root}, so that none was compared; make "
            "that folder readable, or leave --media out"
        )
    return found


def _look_at(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def _tell_file(facts: tuple[int, int] | None) -> str:
    size, time_ns = facts or (0, 0)
    when = datetime.fromtimestamp(time_ns / 1e9).isoformat(" ", "milliseconds")
    return f"{size} bytes of {when}"


def check_shards(
    folder: Path, header: Header, index: Mapping[str, ShardEntry], *, data: bool
) -> Iterator[ShardCheck]:
    """Open every shard of a set, in order; see `verify_set`."""
    for path in shard_files(folder):
        check = ShardCheck(path)
        try:
            _check_shard(check, header, index.get(path.name), data=data)
        except MicuError as error:
            cause = error.__cause__
            check.refused = isinstance(cause, OSError) and bool(cause.errno)
            check.problems.append(str(error))
        yield check


def _check_shard(
    check: ShardCheck, header: Header, noted: ShardEntry | None, *, data: bool
) -> None:
    """Fill in what a shard holds and what is wrong with it."""
    path = check.path
    with Shard.open(path) as shard:
        if not shard.header.is_like(header):
            check.other_making = True
            check.problems.append(f"{path}: {describe_difference(header, shard.header)}")
        bad = shard.nonfinite_rows() if data else []
        check.clip_ids, check.sources = shard.clip_ids, shard.sources
    if bad:
        check.problems.append(f"{path}: rows {bad[:10]} are not finite")
    listed = noted and (noted.clip_ids, noted.sources)
    if listed not in (None, (check.clip_ids, check.sources)):
        check.problems.append(f"{path}: its clips are not those that the index lists")
    if data and noted is not None and file_sha256(path) != noted.sha256:
        check.problems.append(f"{path}: its bytes are not those that were written (sha256 differs)")


def _unlisted_shards(folder: Path, index: Mapping[str, ShardEntry]) -> list[str]:
    """One line about the shards of which no index notes what was written."""
    unlisted = [path.name for path in shard_files(folder) if path.name not in index]
    if not unlisted:
        return []
    return [
        f"{folder}: {len(unlisted)} shards are in no index, so that their bytes cannot be compared "
        f"with what was written: {', '.join(unlisted[:10])}; type the extraction command again, "
        "which notes them as they are; to be sure of their bytes, extract to another --out"
    ]


def _row_problems(contents: Contents) -> list[str]:
    """Rows that are nowhere or in two places."""
    problems = []
    listed = contents.ledger.keys() - contents.mended()
    for source in contents.sources:
        places = list(contents.homes.get(source, ()))
        if source in listed:
            places.append(contents.ledger_files[source])
        if len(places) != 1 and source not in contents.shared:
            where = " and ".join(places) or "no shard and not in the ledger"
            problems.append(f"clip {contents.known[source]!r} is in {where}")
    return problems
