"""From a manifest to feature shards: decode ahead, fill batches, run the backbones, publish.

Shard k holds rows k*R to (k+1)*R of the manifest that a set began with, whatever happened on the
way: a run that was stopped, or typed again to retry failures, reads the rows that a shard already
has and adds the missing ones. The final bytes are those of an uninterrupted run. Rows that a
manifest has more are put into shards after those.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

from micu.base.files import hold_folders
from micu.base.process import StopFlag, stop_signals
from micu.store.manifest import Clip
from micu_extract.backbones.base import Backbone
from micu_extract.media.decoding import Outcome, Reader, Trouble
from micu_extract.media.workers import (
    Decoders,
    decode_in_processes,
    decode_in_threads,
    leave_import,
)
from micu_extract.pipeline.failures import JUDGED_FIRST, Limit
from micu_extract.pipeline.plan import Plan
from micu_extract.pipeline.writer import SetWriter, Summary

logger = logging.getLogger(__name__)

RETRIES = 2
"""How often a clip that took its worker along is tried again."""
TOO_MANY_FAILED = "too many failures"
"""What stops a run that has more of them than it may."""
ALL_FAILED = "clips that all failed"
"""What stops a run whose first clips fail one and all."""
STOP_POLL_S = 0.2
"""How often a wait for a decoder looks whether the run was asked to stop, s."""


@dataclass(frozen=True, slots=True)
class Target:
    """One feature set to make, and the backbone that makes it."""

    plan: Plan
    backbone: Backbone


@dataclass(frozen=True, slots=True)
class Work:
    """A clip, and the feature sets that lack it, by name."""

    clip: Clip
    names: tuple[str, ...]


def extract_several(
    targets: Mapping[str, Target],
    read: Reader,
    workers: int = 1,
    on_clip: Callable[[Summary], None] = lambda summary: None,
    clip_timeout_s: float | None = None,
    *,
    worker_bytes: int | None = None,
    max_failures: Limit | None = None,
    decoders: Decoders | None = None,
) -> list[Summary]:
    """Make several feature sets of one manifest in one pass; safe to interrupt, and to type again.

    A clip is decoded once for all the sets that lack it, and ends in a shard or in the ledger of
    each. A signal to stop publishes what is whole and returns with `stopped_by` set. At most
    2 * workers + 1 decoded clips wait, and for each set the units of one batch and the rows of two
    shards, one of which is being written: memory does not grow with the manifest.

    Args:
        targets: What to make, by a name that `read` knows; plans of one manifest.
        read: Decodes one clip for the backbones of those names.
        workers: Clips decoded at the same time.
        on_clip: Called after every clip of every set, for progress.
        clip_timeout_s: Decode in worker processes, and kill one that takes longer over a clip, s.
            None decodes in threads of this process, where nothing can be killed.
        worker_bytes: Memory that a worker process may take; None is what there is.
        decoders: Those to use, which are there for further runs; None starts and ends its own.
        max_failures: More of them in one set stop the run, with `stopped_by` `TOO_MANY_FAILED`.
            Unless it bears that every clip fails, a run whose first 32 clips do, in every set, and
            of whose sets none holds a clip, is stopped by `ALL_FAILED`. Those 32 are not filed: the
            same command tries them again.

    Raises:
        OSError: The disk refused a shard, the ledger or the flow cache; earlier shards are whole.
            Or the folder of a set went away.
    """
    leave_import()
    with hold_folders():
        decoding = (
            decoding_for(read, workers, clip_timeout_s, worker_bytes)
            if decoders is None
            else nullcontext(decoders)
        )
        return _extract(targets, decoding, workers, on_clip, max_failures)


def decoding_for(
    read: Reader, workers: int, clip_timeout_s: float | None, worker_bytes: int | None
) -> AbstractContextManager[Decoders]:
    """Decoders as `extract_several` starts them."""
    if clip_timeout_s is None:
        return decode_in_threads(read, workers)
    return decode_in_processes(read, workers, clip_timeout_s, worker_bytes)


def _extract(
    targets: Mapping[str, Target],
    decoding: AbstractContextManager[Decoders],
    workers: int,
    on_clip: Callable[[Summary], None],
    max_failures: Limit | None,
) -> list[Summary]:
    """`extract_several`, while folders are held."""
    started = time.monotonic()
    doubts = max_failures is None or not max_failures.bears_all
    writers = {
        name: SetWriter(target.plan, target.backbone, on_clip, is_doubtful=doubts)
        for name, target in targets.items()
    }
    work = merge_work({name: target.plan for name, target in targets.items()})
    read_s = 0.0
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signals())  # first: a second signal must not cut `close`
        for writer in writers.values():
            stack.callback(writer.close)
        decoders = stack.enter_context(decoding)
        for item, outcome in decode_ahead(work, decoders, 2 * workers + 1, stop):
            read_s += outcome.read_s
            for name in item.names:
                writers[name].add(item.clip, outcome.media[name], stop)
                _stop_at(max_failures, writers[name], stop)
            if doubts and _have_all_failed(writers.values()):
                stop.name = stop.name or ALL_FAILED
        for writer in writers.values():
            writer.finish(stop)
            _stop_at(max_failures, writer, stop)
            if not stop.name:
                writer.trust()
    summaries = [writer.summary for writer in writers.values()]
    for summary in summaries:
        summary.stopped_by, summary.read_s = stop.name, read_s
        summary.wall_s = time.monotonic() - started
    return summaries


def _stop_at(limit: Limit | None, writer: SetWriter, stop: StopFlag) -> None:
    """Stop the run if more clips of a set failed than it may have."""
    if limit is not None and writer.has_failed(limit):
        stop.name = stop.name or TOO_MANY_FAILED
        writer.trust()


def _have_all_failed(writers: Collection[SetWriter]) -> bool:
    """Whether the first clips failed in every set, so that the rest would; else ends the doubt."""
    working = [writer for writer in writers if writer.todo]
    if not all(writer.is_doubtful for writer in working):
        for writer in working:
            writer.trust()
        return False
    return all(writer.first_failed for writer in working) and any(
        JUDGED_FIRST <= writer.summary.failed < writer.todo for writer in working
    )


def merge_work(plans: Mapping[str, Plan]) -> list[Work]:
    """The clips that any plan lacks, with the names that lack it; for each in the plan's order.

    That is the order of the manifest, but where rows were added: sets that were extended otherwise
    have them elsewhere, and then a clip comes once for each.
    """
    coming = {
        name: [row for shard in plan.shards for row in shard.todo] for name, plan in plans.items()
    }
    for rows in coming.values():
        rows.reverse()
    work = []
    while coming := {name: rows for name, rows in coming.items() if rows}:
        line = min(rows[-1].line for rows in coming.values())
        names = tuple(name for name, rows in coming.items() if rows[-1].line == line)
        clips = [coming[name].pop().clip for name in names]
        work.append(Work(clips[0], names))
    return work


def decode_ahead(
    work: Sequence[Work], decoders: Decoders, ahead: int, stop: StopFlag
) -> Iterator[tuple[Work, Outcome]]:
    """Decode clips in order, at most `ahead` of them before they are wanted: memory is bounded.

    A run that was asked to stop does not wait for decoders that are still at work. What may have
    been chance is tried again.
    """
    pending: deque[tuple[Work, Future[Outcome]]] = deque()
    coming = iter(work)
    while not stop.name:
        for item in itertools.islice(coming, ahead - len(pending)):
            pending.append((item, decoders.submit(item.clip, item.names)))
        if not pending:
            return
        item, future = pending.popleft()
        outcome = _settle(item, future, decoders, stop)
        if outcome is None:
            return
        yield item, outcome


def _settle(
    item: Work, future: "Future[Outcome]", decoders: Decoders, stop: StopFlag
) -> Outcome | None:
    """Wait for a clip, and for further tries; None if the run was asked to stop before."""
    tries = 0
    while True:
        while not stop.name and not wait([future], STOP_POLL_S).done:
            pass
        if not future.done():
            return None
        outcome = decoders.settle(future, item.names)
        troubles = [each for each in outcome.media.values() if isinstance(each, Trouble)]
        trouble = next((each for each in troubles if each.may_pass), None)
        if trouble is None:
            break
        logger.warning("clip %r: %s", item.clip.clip_id, trouble.message)
        tries += trouble.is_guilty
        if tries > RETRIES:
            break
        time.sleep(trouble.wait_s)
        future = decoders.submit(item.clip, item.names)
    for trouble in troubles:
        if trouble.trace:
            clip_id = item.clip.clip_id
            logger.warning("clip %r: unexpected error while decoding\n%s", clip_id, trouble.trace)
            break
    return outcome
