"""What an extraction will do, decided from the index and the ledger alone: no media is opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extract.backbones.base import count_steps
from micu.errors import StoreError
from micu.manifest import Clip, Manifest
from micu.store import (
    Failure,
    FeatureSpec,
    Header,
    RunRecord,
    ShardEntry,
    describe_difference,
    indexed_shards,
    read_index,
    read_ledger,
    read_set,
    rows_per_shard,
    set_folder,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a user asked for."""

    manifest: Manifest
    media_root: Path
    out: Path
    limit: int | None = None
    """Extract the first rows of the manifest only."""
    shard_rows: int | None = None
    """Rows per shard; None sizes shards to about 64 MiB."""
    overwrite: bool = False
    """Replace features that were made with other settings."""
    retry_failed: bool = False


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The rows of one shard, and those of them that are still to be extracted."""

    number: int
    rows: tuple[Clip, ...]
    todo: tuple[Clip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do; made without opening any media."""

    folder: Path
    header: Header
    run: RunRecord
    replaces: bool
    """Features of another making are in the folder, and go before the first shard is written."""
    shards: tuple[ShardPlan, ...]
    """Only those with rows to extract."""
    unlisted: dict[str, ShardEntry]
    """Shards that a killed run published without noting them in the index."""
    failures: dict[str, Failure]
    """The ledger as it stands."""
    done: int
    """Clips of the run that are already in a shard."""
    failed: int
    """Clips of the run that are in the ledger and are left there."""

    @property
    def todo(self) -> int:
        """Clips to extract."""
        return sum(len(shard.todo) for shard in self.shards)


def plan_extraction(job: Job, spec: FeatureSpec) -> Plan:
    """Decide what is left to extract, from the index and the ledger alone.

    Raises:
        StoreError: The folder holds features that were made otherwise, and `overwrite` is not set.
    """
    folder = set_folder(job.out, job.manifest.name, spec.modality, spec.backbone)
    clips = job.manifest.clips
    shard_rows = job.shard_rows or rows_per_shard(spec.shape, _longest_clip(clips))
    replaces = False
    header = Header(
        spec=spec,
        manifest=job.manifest.name,
        manifest_sha256=job.manifest.sha256,
        shard_rows=shard_rows,
    )
    wanted = min(job.limit or len(clips), len(clips))
    rows_before = 0
    if (folder / "set.json").is_file():
        before, run_before = read_set(folder)
        replaces = before.fingerprint != header.fingerprint
        rows_before = 0 if replaces else run_before.rows
        if replaces and not job.overwrite:
            raise StoreError(
                f"{folder}: {describe_difference(header, before)}\n"
                "mixing them would blend two kinds of features; extract to another --out, or "
                "replace these with --overwrite"
            )
    keeps = folder.is_dir() and not replaces
    index = read_index(folder) if keeps else {}
    noted = indexed_shards(folder) if keeps else {}
    stored = {clip_id for entry in index.values() for clip_id in entry.clip_ids}
    failures = read_ledger(folder) if keeps else {}
    ledger = {key: row for key, row in failures.items() if key not in stored}
    ids = {clip.clip_id for clip in clips[:wanted]}
    if job.retry_failed:
        ledger = {key: row for key, row in ledger.items() if key not in ids}
    shards = []
    for number, start in enumerate(range(0, wanted, shard_rows)):
        rows = clips[start : start + shard_rows]
        todo = tuple(
            clip
            for clip in rows[: wanted - start]
            if clip.clip_id not in stored and clip.clip_id not in ledger
        )
        if todo:
            shards.append(ShardPlan(number, rows, todo))
    return Plan(
        folder=folder,
        header=header,
        run=RunRecord(
            manifest_path=str(job.manifest.path.resolve()),
            media_root=str(job.media_root.resolve()),
            rows=max(rows_before, wanted),
        ),
        replaces=replaces,
        shards=tuple(shards),
        unlisted={name: entry for name, entry in index.items() if noted.get(name) != entry},
        failures=ledger,
        done=len(ids & stored),
        failed=len(ids & ledger.keys()),
    )


def _longest_clip(clips: Sequence[Clip]) -> int | None:
    """Steps of the longest clip; None where the manifest does not say how long every clip is."""
    lengths = [clip.end_s - (clip.start_s or 0.0) for clip in clips if clip.end_s is not None]
    return count_steps(max(lengths)) if len(lengths) == len(clips) else None
