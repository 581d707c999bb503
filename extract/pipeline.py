"""From a manifest to feature shards: plan, decode ahead, run the backbone, publish; and the proof.

Shard k holds rows k*R to (k+1)*R of the manifest, whatever happened on the way: a run that was
stopped, or typed again to retry failures, reads the rows that a shard already has and adds the
missing ones. The final bytes are those of an uninterrupted run.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from extract.backbones.base import Backbone, Media, count_steps
from micu.commands import StopFlag, stop_signals
from micu.errors import ClipError, StoreError
from micu.files import remove_stale_temporaries
from micu.manifest import Clip, Manifest
from micu.store import (
    Failure,
    FeatureRow,
    FeatureSpec,
    FeatureStore,
    Header,
    RunRecord,
    check_row,
    describe_difference,
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
DEFAULT_STEPS = 10
"""Steps that shards are sized for where the manifest does not say how long clips are."""

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
    workers: int = 1
    """Clips that are decoded at the same time."""
    overwrite: bool = False
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
    shards: tuple[ShardPlan, ...]
    """Only those with rows to extract."""
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
    header = Header(
        spec=spec,
        manifest=job.manifest.name,
        manifest_sha256=job.manifest.sha256,
        shard_rows=shard_rows,
    )
    wanted = min(job.limit or len(clips), len(clips))
    rows_before = 0
    if job.overwrite:
        _remove_set(folder)
    elif (folder / "set.json").is_file():
        before, run_before = read_set(folder)
        rows_before = run_before.rows
        if before.fingerprint != header.fingerprint:
            raise StoreError(
                f"{folder}: {describe_difference(header, before)}\n"
                "mixing them would blend two kinds of features; extract to another --out, or "
                "replace these with --overwrite"
            )
    index = read_index(folder) if folder.is_dir() else {}
    stored = {clip_id for entry in index.values() for clip_id in entry.clip_ids}
    ledger = {key: row for key, row in read_ledger(folder).items() if key not in stored}
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
        shards=tuple(shards),
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
    remove_stale_temporaries(plan.folder)
    write_set(plan.folder, plan.header, plan.run)
    write_ledger(plan.folder, plan.failures.values())
    todo = [clip for shard in plan.shards for clip in shard.todo]
    with stop_signals() as stop, _decode_ahead(todo, read, workers, summary) as decoded:
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
    before, flushed = len(rows), time.monotonic()
    ledger_before = len(plan.failures)
    for clip, media in itertools.islice(decoded, len(shard.todo)):
        outcome = _extract_clip(clip, media, backbone, summary)
        if isinstance(outcome, Failure):
            plan.failures[clip.clip_id] = outcome
            summary.failed += 1
            summary.codes[outcome.code] = summary.codes.get(outcome.code, 0) + 1
        else:
            rows[clip.clip_id] = outcome
            summary.extracted += 1
        on_clip(summary)
        if stop.name:
            break
        if time.monotonic() - flushed > FLUSH_S:
            _publish(plan, shard, rows, summary)
            flushed = time.monotonic()
    if len(rows) > before or len(plan.failures) > ledger_before:
        _publish(plan, shard, rows, summary)


def _extract_clip(
    clip: Clip, media: "Future[Media]", backbone: Backbone, summary: Summary
) -> FeatureRow | Failure:
    """Features of one clip, or why there are none."""
    try:
        decoded = media.result()
    except ClipError as error:
        return Failure(clip.clip_id, "decode", error.code, " ".join(str(error).split()))
    except Exception as error:  # one clip's media must not end a run of days
        logger.warning("clip %r: unexpected error while decoding", clip.clip_id, exc_info=True)
        return Failure(clip.clip_id, "decode", "unexpected", " ".join(repr(error).split()))
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


def _publish(plan: Plan, shard: ShardPlan, rows: dict[str, FeatureRow], summary: Summary) -> None:
    """Write the ledger, then the shard; a clip in both counts as stored when planning."""
    started = time.monotonic()
    write_ledger(plan.folder, plan.failures.values())
    ordered = [rows[clip.clip_id] for clip in shard.rows if clip.clip_id in rows]
    if ordered:
        publish_shard(plan.folder, shard.number, plan.header, ordered)
    summary.write_s += time.monotonic() - started


def _rows_on_disk(plan: Plan, shard: ShardPlan) -> list[FeatureRow]:
    """The rows that a shard already holds."""
    if not (plan.folder / shard_name(shard.number)).is_file():
        return []
    store = FeatureStore(plan.folder)
    rows = [store.read(clip.clip_id) for clip in shard.rows if clip.clip_id in store]
    store.close()
    return rows


@contextmanager
def _decode_ahead(
    clips: Sequence[Clip], read: Reader, workers: int, summary: Summary
) -> "Iterator[Iterator[tuple[Clip, Future[Media]]]]":
    """Decode clips in order, at most two per worker ahead of the caller: memory stays bounded."""

    def timed_read(clip: Clip) -> Media:
        started = time.monotonic()
        try:
            return read(clip)
        finally:
            summary.read_s += time.monotonic() - started

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
        pool.shutdown(cancel_futures=True)


def _longest_clip(clips: Sequence[Clip]) -> int:
    lengths = [clip.end_s - (clip.start_s or 0.0) for clip in clips if clip.end_s is not None]
    return count_steps(max(lengths)) if lengths else DEFAULT_STEPS


def _remove_set(folder: Path) -> None:
    for pattern in ("shard-*.h5", "index.jsonl", "failures.csv", "set.json"):
        for path in folder.glob(pattern):
            path.unlink()
