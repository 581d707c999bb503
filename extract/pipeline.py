"""From a manifest to feature shards: decode ahead, fill batches, run the backbone, publish.

Shard k holds rows k*R to (k+1)*R of the manifest, whatever happened on the way: a run that was
stopped, or typed again to retry failures, reads the rows that a shard already has and adds the
missing ones. The final bytes are those of an uninterrupted run.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from extract.backbones.base import Backbone, Media
from extract.batches import ClipEncoder, Decoded, Encoded, encode_clips
from extract.plan import Plan, ShardPlan
from extract.workers import (
    Decoders,
    Outcome,
    Reader,
    Trouble,
    decode_in_processes,
    decode_in_threads,
)
from micu.commands import StopFlag, stop_signals
from micu.errors import StoreError
from micu.files import remove_stale_temporaries
from micu.manifest import Clip
from micu.shard import Shard
from micu.store import (
    Failure,
    FeatureRow,
    append_index,
    append_ledger,
    describe_difference,
    publish_shard,
    shard_name,
    write_ledger,
    write_set,
)

logger = logging.getLogger(__name__)

FLUSH_S = 120.0
"""How often an unfinished shard is published with the rows it has, s: what a kill can cost."""
RETRIES = 2
"""How often a clip that took its worker along is tried again."""
STOP_POLL_S = 0.2
"""How often a wait for a decoder looks whether the run was asked to stop, s."""


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


def extract_manifest(
    plan: Plan,
    backbone: Backbone,
    read: Reader,
    workers: int = 1,
    on_clip: Callable[[Summary], None] = lambda summary: None,
    clip_timeout_s: float | None = None,
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
        clip_timeout_s: Decode in worker processes, and kill one that takes longer over a clip, s.
            None decodes in threads of this process, where nothing can be killed.

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
    encoder = ClipEncoder(backbone)
    decoding = (
        decode_in_threads(read, workers)
        if clip_timeout_s is None
        else decode_in_processes(read, workers, clip_timeout_s)
    )
    with stop_signals() as stop, decoding as decoders:
        decoded = _decode_ahead(todo, decoders, 2 * workers + 1, summary, stop)
        encoded = encode_clips(decoded, encoder, stop)
        for shard in plan.shards:
            rows = itertools.islice(encoded, len(shard.todo))
            _fill_shard(plan, shard, rows, summary, on_clip)
            if stop.name:
                break
    summary.stopped_by = stop.name
    summary.left = plan.todo - summary.extracted - summary.failed
    summary.infer_s = encoder.infer_s
    summary.wall_s = time.monotonic() - started
    return summary


def _fill_shard(
    plan: Plan,
    shard: ShardPlan,
    encoded: Iterable[Encoded],
    summary: Summary,
    on_clip: Callable[[Summary], None],
) -> None:
    """Take the missing rows of one shard and publish it with the rows it had."""
    rows = {row.clip_id: row for row in _rows_on_disk(plan, shard)}
    fresh: list[Failure] = []
    unpublished, flushed = 0, time.monotonic()
    try:
        for clip in encoded:
            if isinstance(clip.row, Failure):
                fresh.append(clip.row)
                summary.failed += 1
                summary.codes[clip.row.code] = summary.codes.get(clip.row.code, 0) + 1
            else:
                rows[clip.row.clip_id] = clip.row
                unpublished += 1
                summary.extracted += 1
            on_clip(summary)
            if time.monotonic() - flushed > FLUSH_S:
                _publish(plan, shard, rows, fresh, summary)
                fresh, unpublished, flushed = [], 0, time.monotonic()
    finally:  # an error on the way must not cost what is whole
        if fresh or unpublished:
            _publish(plan, shard, rows, fresh, summary)


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


def _decode_ahead(
    clips: Sequence[Clip], decoders: Decoders, ahead: int, summary: Summary, stop: StopFlag
) -> Iterator[Decoded]:
    """Decode clips in order, at most `ahead` of them before they are wanted: memory is bounded.

    A run that was asked to stop does not wait for decoders that are still at work.
    """
    pending: deque[tuple[Clip, Future[Outcome]]] = deque()
    coming = iter(clips)
    while not stop.name:
        for clip in itertools.islice(coming, ahead - len(pending)):
            pending.append((clip, decoders.submit(clip)))
        if not pending:
            return
        clip, future = pending.popleft()
        outcome = _settle(clip, future, decoders, stop)
        if outcome is None:
            return
        summary.read_s += outcome.read_s
        yield Decoded(clip, _judge(clip, outcome.media, summary))


def _settle(
    clip: Clip, future: "Future[Outcome]", decoders: Decoders, stop: StopFlag
) -> Outcome | None:
    """Wait for a clip, and for further tries; None if the run was asked to stop before."""
    for attempt in range(1 + RETRIES):
        while not stop.name and not wait([future], STOP_POLL_S).done:
            pass
        if not future.done():
            return None
        outcome = decoders.settle(future)
        if not isinstance(outcome.media, Trouble) or not outcome.media.may_pass:
            break
        logger.warning("clip %r: %s", clip.clip_id, outcome.media.message)
        if attempt < RETRIES:
            future = decoders.submit(clip)
    return outcome


def _judge(clip: Clip, media: Media | Trouble, summary: Summary) -> Media | Failure:
    """A clip's media, or the ledger row that says why there are none."""
    if isinstance(media, Trouble):
        if media.trace:
            logger.warning(
                "clip %r: unexpected error while decoding\n%s", clip.clip_id, media.trace
            )
        return Failure(clip.clip_id, "decode", media.code, media.message)
    if media.notes.get("corrupt_frames"):
        summary.damaged += 1
        logger.warning("clip %r: %s corrupt frames", clip.clip_id, media.notes["corrupt_frames"])
    return media


def _remove_set(folder: Path) -> None:
    for pattern in ("shard-*.h5", "index.jsonl", "failures.csv", "set.json"):
        for path in folder.glob(pattern):
            path.unlink()
