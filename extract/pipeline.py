"""From a manifest to feature shards: plan, decode ahead, run the backbone, publish.

Shard k holds rows k*R to (k+1)*R of the manifest, whatever happened on the way: a run that was
stopped, or typed again to retry failures, reads the rows that a shard already has and adds the
missing ones. The final bytes are those of an uninterrupted run.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from extract.backbones.base import Backbone, Media, count_steps
from micu.commands import StopFlag, stop_signals
from micu.errors import ClipError, MicuError, StoreError
from micu.files import remove_stale_temporaries
from micu.manifest import Clip, Manifest
from micu.shard import Shard
from micu.store import (
    Failure,
    FeatureRow,
    FeatureSpec,
    Header,
    RunRecord,
    ShardEntry,
    append_index,
    append_ledger,
    check_row,
    describe_difference,
    indexed_shards,
    publish_shard,
    read_index,
    read_ledger,
    read_set,
    rows_per_shard,
    set_folder,
    shard_name,
    write_ledger,
    write_set,
)

logger = logging.getLogger(__name__)

FLUSH_S = 120.0
"""How often an unfinished shard is published with the rows it has, s: what a kill can cost."""
STOP_POLL_S = 0.2
"""How often a wait for a decoder looks whether the run was asked to stop, s."""

Reader = Callable[[Clip], Media]


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


@dataclass(slots=True)
class Summary:
    """What a run did."""

    folder: str
    clips: int
    done_before: int
    failed_before: int
    extracted: int = 0
    failed: int = 0
    left: int = 0
    damaged: int = 0
    """Clips that were extracted though some of their frames were corrupt."""
    read_s: float = 0.0
    """Seconds that decoding took, summed over workers."""
    infer_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    stopped_by: str = ""
    codes: dict[str, int] = field(default_factory=dict)
    """Failures of this run by code."""


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


def extract_manifest(
    plan: Plan,
    backbone: Backbone,
    read: Reader,
    workers: int = 1,
    on_clip: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Extract every clip of the plan; safe to interrupt, and to type again.

    Each clip ends in a shard or in the ledger. A signal to stop (TERM, USR1, INT) publishes what is
    whole and returns with `stopped_by` set.

    Args:
        plan: From `plan_extraction`.
        backbone: The network.
        read: Decodes one clip; raises `DecodeError`.
        workers: Clips decoded at the same time.
        on_clip: Called after every clip, for progress.

    Raises:
        OSError: The disk refused a shard or the ledger; earlier shards are whole.
    """
    started = time.monotonic()
    summary = Summary(
        folder=str(plan.folder),
        clips=plan.done + plan.failed + plan.todo,
        done_before=plan.done,
        failed_before=plan.failed,
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    if plan.replaces:
        _remove_set(plan.folder)
    remove_stale_temporaries(plan.folder)
    write_set(plan.folder, plan.header, plan.run)
    write_ledger(plan.folder, plan.failures.values())
    if plan.unlisted:
        append_index(plan.folder, plan.unlisted)
    todo = [clip for shard in plan.shards for clip in shard.todo]
    with stop_signals() as stop, _decode_ahead(todo, read, workers, summary, stop) as decoded:
        for shard in plan.shards:
            _extract_shard(plan, shard, backbone, decoded, summary, stop, on_clip)
            if stop.name:
                break
    summary.stopped_by = stop.name
    summary.left = plan.todo - summary.extracted - summary.failed
    summary.wall_s = time.monotonic() - started
    return summary


def _extract_shard(
    plan: Plan,
    shard: ShardPlan,
    backbone: Backbone,
    decoded: "Iterator[tuple[Clip, Future[Media]]]",
    summary: Summary,
    stop: StopFlag,
    on_clip: Callable[[Summary], None],
) -> None:
    """Extract the missing rows of one shard and publish it with the rows it had."""
    rows = {row.clip_id: row for row in _rows_on_disk(plan, shard)}
    fresh: list[Failure] = []
    unpublished, flushed = 0, time.monotonic()
    try:
        for clip, media in itertools.islice(decoded, len(shard.todo)):
            if not _wait(media, stop):
                break
            outcome = _extract_clip(clip, media, backbone, summary)
            if isinstance(outcome, Failure):
                fresh.append(outcome)
                summary.failed += 1
                summary.codes[outcome.code] = summary.codes.get(outcome.code, 0) + 1
            else:
                rows[clip.clip_id] = outcome
                unpublished += 1
                summary.extracted += 1
            on_clip(summary)
            if stop.name:
                break
            if time.monotonic() - flushed > FLUSH_S:
                _publish(plan, shard, rows, fresh, summary)
                fresh, unpublished, flushed = [], 0, time.monotonic()
    finally:  # an error on the way must not cost what is whole
        if fresh or unpublished:
            _publish(plan, shard, rows, fresh, summary)


def _wait(media: "Future[Media]", stop: StopFlag) -> bool:
    """Wait for a decoder; whether it finished before the run was asked to stop."""
    while not stop.name and not wait([media], STOP_POLL_S).done:
        pass
    return media.done()


def _extract_clip(
    clip: Clip, media: "Future[Media]", backbone: Backbone, summary: Summary
) -> FeatureRow | Failure:
    """Features of one clip, or why there are none."""
    try:
        decoded = media.result()
    except ClipError as error:
        return Failure(clip.clip_id, "decode", error.code, " ".join(str(error).split()))
    except MicuError:  # a mistake of the whole run, not of the clip
        raise
    except Exception as error:  # one clip's media must not end a run of days
        logger.warning("clip %r: unexpected error while decoding", clip.clip_id, exc_info=True)
        return Failure(clip.clip_id, "decode", "unexpected", " ".join(repr(error).split()))
    if decoded.notes.get("corrupt_frames"):
        summary.damaged += 1
        logger.warning("clip %r: %s corrupt frames", clip.clip_id, decoded.notes["corrupt_frames"])
    started = time.monotonic()
    try:
        steps = backbone.to_steps(backbone.encode(decoded.units), decoded)
        row = FeatureRow.of(clip.clip_id, steps)
        check_row(row, backbone.spec)
    except ClipError as error:
        return Failure(clip.clip_id, "encode", error.code, " ".join(str(error).split()))
    finally:
        summary.infer_s += time.monotonic() - started
    return row


def _publish(
    plan: Plan,
    shard: ShardPlan,
    rows: dict[str, FeatureRow],
    fresh: Sequence[Failure],
    summary: Summary,
) -> None:
    """Write the ledger, then the shard; a clip in both counts as stored when planning."""
    started = time.monotonic()
    append_ledger(plan.folder, fresh)
    ordered = [rows[clip.clip_id] for clip in shard.rows if clip.clip_id in rows]
    if ordered:
        publish_shard(plan.folder, shard.number, plan.header, ordered)
    summary.write_s += time.monotonic() - started


def _rows_on_disk(plan: Plan, shard: ShardPlan) -> list[FeatureRow]:
    """The rows that a shard already holds."""
    path = plan.folder / shard_name(shard.number)
    if not path.is_file():
        return []
    with Shard.open(path) as file:
        if file.header.fingerprint != plan.header.fingerprint:
            raise StoreError(f"{path}: {describe_difference(plan.header, file.header)}")
        return [file.read(row) for row in range(len(file.clip_ids))]


@contextmanager
def _decode_ahead(
    clips: Sequence[Clip], read: Reader, workers: int, summary: Summary, stop: StopFlag
) -> "Iterator[Iterator[tuple[Clip, Future[Media]]]]":
    """Decode clips in order, at most two per worker ahead of the caller: memory stays bounded.

    A run that was asked to stop does not wait for decoders that are still at work.
    """
    seconds: list[float] = []

    def timed_read(clip: Clip) -> Media:
        started = time.monotonic()
        try:
            return read(clip)
        finally:
            seconds.append(time.monotonic() - started)

    def ahead() -> "Iterator[tuple[Clip, Future[Media]]]":
        pending: deque[tuple[Clip, Future[Media]]] = deque()
        for clip in clips:
            pending.append((clip, pool.submit(timed_read, clip)))
            if len(pending) > 2 * workers:
                yield pending.popleft()
        while pending:
            yield pending.popleft()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        yield ahead()
    finally:
        pool.shutdown(wait=not stop.name, cancel_futures=True)
        summary.read_s = sum(seconds)


def _longest_clip(clips: Sequence[Clip]) -> int | None:
    """Steps of the longest clip; None where the manifest does not say how long every clip is."""
    lengths = [clip.end_s - (clip.start_s or 0.0) for clip in clips if clip.end_s is not None]
    return count_steps(max(lengths)) if len(lengths) == len(clips) else None


def _remove_set(folder: Path) -> None:
    for pattern in ("shard-*.h5", "index.jsonl", "failures.csv", "set.json"):
        for path in folder.glob(pattern):
            path.unlink()
