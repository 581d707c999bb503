"""What an extraction will do, decided from the index and the ledger alone: no media is opened."""

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from micu.base.errors import ConfigError, StoreError
from micu.store.ledger import (
    MISSING,
    Failure,
    Layout,
    ShardEntry,
    extend_layout,
    file_size,
    indexed_shards,
    ledger_name,
    part_labels,
    read_failures,
    read_layout,
)
from micu.store.manifest import Clip, Manifest, row_sources
from micu.store.sets import (
    RunRecord,
    read_index,
    read_set,
    rows_beside,
    rows_per_shard,
    set_folder,
    shard_files,
    shard_number,
)
from micu.store.shard import FeatureSpec, Header, Shard, describe_difference
from micu_extract.backbones.base import count_steps
from micu_extract.sets.shares import Part, refuse_other_partitions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a user asked for."""

    manifest: Manifest
    media_root: Path
    out: Path
    limit: int | None = None
    """Extract the first rows of the manifest only."""
    shard_rows: int | None = None
    """Rows per shard; None takes what the set has, else `usual_rows`."""
    usual_rows: int | None = None
    """Rows per shard of a new set; None sizes shards to about 64 MiB."""
    overwrite: bool = False
    """Replace features that were made with other settings."""
    retry_failed: bool = False
    look_again: bool = True
    """Look once more for the files of clips that the ledger calls missing."""
    part: Part | None = None
    """Extract only this share of the shards; None is all."""
    command: str = ""
    """What was typed; noted in the set."""
    words: tuple[str, ...] = ()
    """What to type to `micu-extract` for the same, where nothing was typed."""
    modules: tuple[str, ...] = ()
    """Where the code of its backbones is."""


class Wanted(NamedTuple):
    """A row of a manifest that is to be extracted."""

    clip: Clip
    source: str
    """See `micu.store.manifest.row_sources`."""
    line: int
    """Its place in the manifest, from 0."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The rows of one shard, and those of them that are still to be extracted."""

    number: int
    sources: tuple[str, ...]
    """Of every row that has its place there, in order; the manifest need not have it any more."""
    rows: tuple[Clip, ...]
    """Those that the manifest has."""
    todo: tuple[Wanted, ...]
    sha256: str = ""
    """What the index says of the shard on disk, whose rows are kept; empty where there is none."""
    size: int = 0
    """Of the shard on disk, bytes."""
    damaged: Mapping[str, int] = field(default_factory=dict)
    """Corrupt frames of clips in the shard on disk, as the index says."""
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of the media of its rows, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do; made without opening any media."""

    folder: Path
    header: Header
    run: RunRecord
    replaces: bool
    """Features of another making are in the folder, and go before the first shard is written."""
    overwrite: bool
    """What is there may be replaced, so that no other run may be at work when this one begins."""
    layout: Layout
    """Every shard of the set, and which rows have their places there."""
    shards: tuple[ShardPlan, ...]
    """Only those with rows to extract."""
    unlisted: Mapping[str, ShardEntry]
    """Shards that a killed run published without noting them in the index."""
    dropped: frozenset[str]
    """Clips whose rows leave the ledger, of a part its own: they are stored, tried again, or not
    in the manifest as it is now."""
    again: Mapping[str, Failure]
    """Ledger rows of clips to extract whose files were missing; each stays until the clip is
    stored, or fails otherwise."""
    done: int
    """Clips of the run, or of its part, that are already in a shard."""
    shared: int
    """Those of them that are in a shard of another manifest's set."""
    failed: int
    """Clips of the run, or of its part, that are in a ledger and are left there."""
    other_versions: Mapping[Path, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    """By set whose rows are used, its own or one beside it: the versions of the libraries that made
    them, where this run's are not among those."""
    moved_from: str = ""
    """The media root that rows which are there were made from, where it is another now and some of
    its files have another time: whether they are the same can be told by extracting a few again."""
    part: Part | None = None
    """The share of the shards that the run is about."""
    row_bytes: float = 0.0
    """Of a row of the shards that are there, on average."""
    frees: int = 0
    """What the shards take that the run replaces, bytes."""

    @property
    def todo(self) -> int:
        """Clips to extract."""
        return sum(len(shard.todo) for shard in self.shards)

    @property
    def bytes_needed(self) -> int:
        """Most that its shards can take, beside what goes before them.

        Where the manifest does not say how long every clip of a shard is, its rows are taken for as
        large as those that are there; for nothing where there are none. Computed flow that is kept
        is not counted.

        A shard has a header besides its rows.
        """
        total = 0
        for shard in self.shards:
            steps = _most_steps(self.header.spec, shard.rows)
            if steps is None:
                total += max(0, int(len(shard.sources) * self.row_bytes) - shard.size)
            else:
                whole = padded_bytes(self.header.spec, len(shard.sources), steps) + 16 * 1024
                total += max(0, whole - shard.size)
        return max(0, total - self.frees)

    @property
    def label(self) -> str:
        """How the run's own index and ledger are named; see `micu.store.ledger`."""
        return self.part.label if self.part else ""

    @property
    def ledger_path(self) -> Path:
        """Where the run's failures are listed."""
        return self.folder / ledger_name(self.label)


@dataclass(frozen=True, slots=True)
class _Standing:
    """What a set holds already, as far as a run is concerned; rows are named by their source."""

    layout: Layout = field(default_factory=dict)
    stored: frozenset[str] = frozenset()
    failed: Mapping[str, Failure] = field(default_factory=dict)
    """Ledger rows of what is not stored."""
    own: Mapping[str, Failure] = field(default_factory=dict)
    """The run's own ledger, of a part its part's, stored rows too."""
    unlisted: Mapping[str, ShardEntry] = field(default_factory=dict)
    index: Mapping[str, ShardEntry] = field(default_factory=dict)

    @property
    def row_bytes(self) -> float:
        """Of a row in the shards, on average; 0 where there is none."""
        return sum(entry.size for entry in self.index.values()) / max(1, len(self.stored))


def plan_extraction(job: Job, spec: FeatureSpec) -> Plan:
    """Decide what is left to extract, from the index and the ledger alone.

    Raises:
        StoreError: The folder holds features that were made otherwise, and `overwrite` is not set.
        ConfigError: The part does not go with the options, or with the parts in the folder.
    """
    folder = set_folder(job.out, job.manifest.name, spec.modality, spec.backbone)
    _check_part(job, folder)
    clips = job.manifest.clips
    header = Header(
        spec=spec, shard_rows=job.shard_rows or job.usual_rows or usual_rows(job.manifest, spec)
    )
    header = header if job.shard_rows else _with_rows_there(folder, header)
    wanted = min(job.limit or len(clips), len(clips))
    before, replaces = _compare_with_set(job, folder, header)
    standing = _Standing() if replaces or not folder.is_dir() else _take_stock(job, folder, header)
    sources = row_sources(clips, spec.made_of)
    lines = {source: line for line, source in enumerate(sources)}
    run = _record_run(job, wanted, before)
    elsewhere = rows_beside(folder, header, run) if {*sources} - standing.stored else {}
    used: set[Path] = set()
    layout = extend_layout(standing.layout, sources, header.shard_rows)
    shards, done, shared, failed = [], 0, 0, 0
    left = set(standing.own)
    again: dict[str, Failure] = {}
    for name, places in layout.items():
        number = int(shard_number(name) or 0)
        if job.part is not None and not job.part.owns(number):
            continue
        there = [lines[source] for source in places if source in lines]
        todo = []
        for line in there:
            clip, source = clips[line], sources[line]
            if line >= wanted:
                left.discard(source)
            elif source in standing.stored:
                done += 1
                used.add(folder)
            elif source in elsewhere:
                done, shared = done + 1, shared + 1
                used.add(elsewhere[source])
            elif source not in standing.failed or job.retry_failed:
                todo.append(Wanted(clip, source, line))
            else:
                left.discard(source)
                failure = standing.failed[source]
                # Of parts that are not merged yet, only a part may change what is said of its own.
                is_mine = job.part is not None or source in standing.own
                if job.look_again and failure.code == MISSING and is_mine:
                    again[clip.clip_id] = failure
                    todo.append(Wanted(clip, source, line))
                else:
                    failed += 1
        if todo:
            known = standing.index.get(name, ShardEntry("", 0, (), {}, ""))
            rows = tuple(clips[line] for line in there)
            facts = (known.sha256, known.size, known.damaged, known.files)
            shards.append(ShardPlan(number, places, rows, tuple(todo), *facts))
    noted, other_versions = _note_versions(run, before, folder, used, spec.versions)
    return Plan(
        folder=folder,
        header=header,
        run=noted if shards else run,
        other_versions=other_versions if shards else {},
        moved_from=_look_for_others(job, folder, before, standing, lines),
        replaces=replaces,
        overwrite=job.overwrite,
        layout=layout,
        shards=tuple(shards),
        unlisted=standing.unlisted,
        dropped=frozenset(left),
        again=again,
        done=done,
        shared=shared,
        failed=failed,
        part=job.part,
        row_bytes=standing.row_bytes,
        frees=sum(file_size(path) for path in shard_files(folder)) if replaces else 0,
    )


def _look_for_others(
    job: Job,
    folder: Path,
    before: RunRecord | None,
    standing: _Standing,
    lines: Mapping[str, int],
) -> str:
    """What `Plan.moved_from` says; nothing is asked of files where the media root is the same.

    Raises:
        StoreError: A file below the media root of now is another than a row was made of.
    """
    if before is None or before.media_root in ("", str(job.media_root.resolve())):
        return ""
    moved = ""
    for entry in standing.index.values():
        for source, (size, time_ns) in entry.files.items():
            try:
                path = job.manifest.clips[lines[source]].path
                facts = (job.media_root / path).stat()
            except (KeyError, OSError):
                continue  # not asked for, or not there: nothing says that it is another
            if size >= 0 and facts.st_size != size:
                raise StoreError(
                    f"{folder}: was made from files in {before.media_root}, and those in "
                    f"{job.media_root} are others: {path!r} has {facts.st_size} "
                    f"bytes, expected {size}. Extract to another --out, or type the --media-root "
                    "of before"
                )
            moved = moved if facts.st_mtime_ns == time_ns else before.media_root
    return moved


def _note_versions(
    run: RunRecord,
    before: RunRecord | None,
    folder: Path,
    used: Collection[Path],
    here: Mapping[str, str],
) -> tuple[RunRecord, dict[Path, Sequence[Mapping[str, str]]]]:
    """Note the versions of libraries behind a set, once those that are new have been compared.

    Args:
        run: What the set notes of this run.
        before: What it notes of earlier runs, whose versions have been compared.
        folder: The set.
        used: Sets whose rows are used, this one or others beside it.
        here: Versions of this run.

    Returns:
        The note, and by set what made its rows, where this run's were not compared with those.
    """
    agreed = before.versions if before is not None and used else ()
    known = agreed if here in agreed else (here,)
    made_with = {path: read_set(path)[1].versions for path in sorted(used) if path != folder}
    if folder in used:
        made_with[folder] = agreed
    others = {
        path: versions
        for path, versions in made_with.items()
        if versions and not any(each in known for each in versions)
    }
    noted = [*agreed, *itertools.chain(*others.values()), here]
    distinct = (each for i, each in enumerate(noted) if each not in noted[:i])
    return replace(run, versions=tuple(distinct)), others


def _record_run(job: Job, wanted: int, before: RunRecord | None) -> RunRecord:
    """What the set notes of a run over its first `wanted` rows, and of the runs before it."""
    run = RunRecord(
        manifest_path=str(job.manifest.path.resolve()),
        media_root=str(job.media_root.resolve()),
        rows=wanted,
        command=job.command,
        manifest_sha256=job.manifest.sha256,
        versions=before.versions if before else (),
        is_limited=wanted < len(job.manifest.clips),
    )
    if (
        before
        and before.manifest_path != run.manifest_path
        and Path(before.manifest_path).is_file()
    ):
        logger.warning(
            "%s: was made for %s, which is there still; both manifests have this set now, and "
            "compact keeps what the last one asks for: rename one, or type another --out, to have "
            "a set for each",
            job.out / job.manifest.name,
            before.manifest_path,
        )
    # A command with a smaller --limit would not make every shard again.
    if before is not None and run.is_limited:
        most = before.rows_of(len(job.manifest.clips))
        if wanted < most:
            limited = most < len(job.manifest.clips)
            return replace(run, rows=most, command=before.command, is_limited=limited)
    return run


def usual_rows(manifest: Manifest, spec: FeatureSpec) -> int:
    """Rows that make a shard of about 64 MiB of such features of a manifest's clips."""
    return rows_per_shard(spec.shape, _longest_clip(manifest.clips))


def padded_bytes(spec: FeatureSpec, rows: int, steps: int) -> int:
    """Bytes of so many rows of so many steps: a step has its values, a mask and a time."""
    return rows * steps * (4 * int(np.prod(spec.shape)) + 9)


def _with_rows_there(folder: Path, header: Header) -> Header:
    """The header, with as many rows per shard as the set has, if it is of that making."""
    if (folder / "set.json").is_file():
        there, _ = read_set(folder)
        if there.spec.making == header.spec.making:
            return replace(header, shard_rows=there.shard_rows)
    return header


def _check_part(job: Job, folder: Path) -> None:
    """Refuse what several processes at once would spoil for each other."""
    if job.part is not None:
        if job.overwrite:
            raise ConfigError(
                "--overwrite: expected a run without --part, because each part would remove what "
                "the others have; extract to a new --out, or overwrite once without --part"
            )
        refuse_other_partitions(folder, job.part)
    elif job.retry_failed and part_labels(folder) and not job.overwrite:
        raise ConfigError(
            f"{folder}: --retry-failed: expected one ledger, got those of parts "
            f"{', '.join(part_labels(folder))}; type: micu-extract merge {folder}"
        )


def _compare_with_set(job: Job, folder: Path, header: Header) -> tuple[RunRecord | None, bool]:
    """What the set notes of earlier runs, and whether it is of another making and goes."""
    run_before = None
    if (folder / "set.json").is_file():
        before, run_before = read_set(folder)
    else:  # lost, or never written: the shards say what made them
        before = _header_of_shards(folder, header)
    if before.is_like(header):
        return run_before, False
    if not job.overwrite:
        stored = sum(len(entry.clip_ids) for entry in indexed_shards(folder).values())
        raise StoreError(
            f"{folder}: {describe_difference(header, before)}\n"
            "mixing them would blend two kinds of features; type what these were made with, or "
            f"extract to another --out. --overwrite would delete what is there, {stored} clips"
        )
    return None, True


def _header_of_shards(folder: Path, expected: Header) -> Header:
    """The header of a shard that is not of the set that is expected, else that one."""
    for path in shard_files(folder):
        with Shard.open(path) as shard:
            if not shard.header.is_like(expected):
                return shard.header
    return expected


def _take_stock(job: Job, folder: Path, header: Header) -> _Standing:
    """What the index and the ledger say; of a part, only what is said about its own shards."""
    part = job.part

    def concerns(name: str) -> bool:
        number = shard_number(name)
        return part is None or (number is not None and part.owns(number))

    layout = read_layout(folder)
    own_labels = None if part is None else part.labels_in(folder)
    labels = own_labels if layout else None
    noted = indexed_shards(folder, labels)
    if not layout:  # lost, or never written: the shards say what they have
        everything = read_index(folder, noted, header=header)
        layout = {name: entry.sources for name, entry in everything.items()}
    index = read_index(folder, noted, concerns, header)
    stored = frozenset(source for entry in index.values() for source in entry.sources)
    own = read_failures(folder, ["" if part is None else part.label])
    ledger = read_failures(folder, own_labels)
    return _Standing(
        layout=layout,
        stored=stored,
        failed={source: row for source, row in ledger.items() if source not in stored},
        own=own,
        unlisted={name: entry for name, entry in index.items() if noted.get(name) != entry},
        index=index,
    )


def _most_steps(spec: FeatureSpec, clips: Sequence[Clip]) -> int | None:
    """Most steps that a row can have; None where that is known from the media alone."""
    if spec.hop_s is not None:
        return _longest_clip(clips)
    # A text has no more words than characters; one that is taken as a whole is one step.
    longest = max(len(clip.text) for clip in clips)
    return min(longest, int(spec.preprocessing.get("max_words", 1)))


def _longest_clip(clips: Sequence[Clip]) -> int | None:
    """Steps of the longest clip; None where the manifest does not say how long every clip is."""
    lengths = [clip.end_s - (clip.start_s or 0.0) for clip in clips if clip.end_s is not None]
    return count_steps(max(lengths)) if len(lengths) == len(clips) else None
