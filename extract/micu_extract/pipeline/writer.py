"""One feature set while it is made: decoded clips go in, shards and ledger rows come out."""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from micu.base.errors import StoreError
from micu.base.files import check_held, file_sha256, remove_stale_temporaries
from micu.base.process import StopFlag
from micu.store.ledger import (
    Failure,
    append_index,
    append_ledger,
    read_failures,
    read_layout,
    shard_name,
    write_layout,
    write_ledger,
)
from micu.store.manifest import Clip
from micu.store.sets import publish_shard, read_set, remove_set, shard_files, write_set
from micu.store.shard import FeatureRow, Header, Shard, describe_difference, join_versions
from micu_extract.backbones.base import Backbone, Media
from micu_extract.media.decoding import Trouble
from micu_extract.pipeline.encode import ClipEncoder, Encoded
from micu_extract.pipeline.failures import JUDGED_FIRST, Limit, describe_shared
from micu_extract.pipeline.plan import Plan, ShardPlan, padded_bytes
from micu_extract.sets.shares import STALE_S, join_folder

logger = logging.getLogger(__name__)

FLUSH_S = 120.0
"""How often an unfinished shard is published with the rows it has, s: what a kill can cost."""
MAX_SHARD_BYTES = 2 * 2**30
"""Largest shard that one clip may ask for, by its length, to which all are padded; bytes."""


@dataclass(slots=True)
class Summary:
    """What a run did for one feature set."""

    folder: str
    clips: int
    done_before: int
    failed_before: int
    """Those that are still missing too."""
    extracted: int = 0
    failed: int = 0
    left: int = 0
    damaged: int = 0
    """Clips that were extracted though some of their frames were corrupt."""
    read_s: float = 0.0
    """Seconds that decoding took, summed over workers, for all sets of the run together."""
    infer_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    stopped_by: str = ""
    codes: dict[str, int] = field(default_factory=dict)
    """Failures of this run by code."""
    shared: str = ""
    """What the first failures have in common, where the set holds no clip at all."""


class SetWriter:
    """Encodes the clips of one feature set and publishes its shards, one open at a time.

    Clips come in the order of the plan. What was published before a fault stays.

    Args:
        plan: What is to be made; see `enter_folder`.
        backbone: The network.
        on_clip: Called after every clip, for progress.
        is_doubtful: File no failure until a clip is stored, or the run says `trust`.
    """

    def __init__(  # noqa: D107
        self,
        plan: Plan,
        backbone: Backbone,
        on_clip: Callable[[Summary], None],
        *,
        is_doubtful: bool = False,
    ) -> None:
        self.summary = Summary(
            folder=str(plan.folder),
            clips=plan.done + plan.failed + plan.todo,
            done_before=plan.done,
            failed_before=plan.failed,
        )
        self._plan, self._on_clip = plan, on_clip
        self._encoder = ClipEncoder(backbone)
        self._coming = deque(plan.shards)
        self._shard: ShardPlan | None = None
        self._missing = 0
        self._sources: dict[str, str] = {}
        self._rows: dict[str, FeatureRow] = {}
        self._header = plan.header
        self._made_of: dict[str, tuple[int, int]] = {}
        self._is_loaded = False
        self._fresh: list[Failure] = []
        self._first: list[tuple[Clip, Failure]] = []
        self._found: set[str] = set()
        self._changes_ledger = False
        self._is_doubtful = is_doubtful and not plan.done and plan.todo > 0
        self._damaged: dict[str, int] = {}
        self._files: dict[str, tuple[int, int]] = {}
        self._unpublished, self._flushed = 0, time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[Future[None]] = deque()
        self._stay = ExitStack()
        self._stay.enter_context(enter_folder(plan))

    def add(self, clip: Clip, media: Media | Trouble, stop: StopFlag) -> None:
        """Take a decoded clip in, and run the batches that it fills, unless asked to stop."""
        self._encoder.add(clip, self._judge(clip, media))
        while self._encoder.is_full and not stop.name:
            self._encoder.encode_batch()
        self._store(self._encoder.pop_whole())

    def finish(self, stop: StopFlag) -> None:
        """Run the last batch, which need not be full, unless asked to stop."""
        while self._encoder.waiting and not stop.name:
            self._encoder.encode_batch()
        self._store(self._encoder.pop_whole())

    def has_failed(self, limit: Limit) -> bool:
        """Whether more clips of this run failed than a limit allows."""
        summary = self.summary
        done = summary.extracted + summary.failed
        return limit.reached(summary.failed, done, at_end=not self._left)

    @property
    def _left(self) -> int:
        """Clips that are not through yet."""
        summary = self.summary
        still_missing = summary.failed_before - self._plan.failed
        return self._plan.todo - summary.extracted - summary.failed - still_missing

    @property
    def todo(self) -> int:
        """Clips that the run is to extract."""
        return self._plan.todo

    @property
    def is_doubtful(self) -> bool:
        """Whether the set may be about to fail as a whole, so that no failure was filed yet."""
        return self._is_doubtful

    @property
    def first_failed(self) -> bool:
        """Whether so many clips failed, and none was stored, that this is no chance."""
        least = min(JUDGED_FIRST, self._plan.todo)
        return self._is_doubtful and self.summary.failed >= least and not self._is_begun()

    def trust(self) -> None:
        """File failures from now on, those that were held back too."""
        self._is_doubtful = False

    def _is_begun(self) -> bool:
        """Whether somebody else, such as another part, has stored a clip."""
        return bool(shard_files(self._plan.folder))

    def close(self) -> None:
        """Publish what is whole: an error on the way must not cost it.

        Raises:
            OSError: The disk refused something, or the folder has gone.
        """
        try:
            if self._fresh or self._unpublished:
                self._begin_writing()
            self._settle(wait=True)
            if self._changes_ledger:
                _drop_stored(self._plan, self._found)
            check_held(self._plan.folder)
        finally:
            self._thread.shutdown()
            self._stay.close()
        summary = self.summary
        summary.infer_s = self._encoder.infer_s
        summary.left = self._left
        if not summary.extracted and not self._plan.done:
            summary.shared = describe_shared(self._first)

    def _judge(self, clip: Clip, media: Media | Trouble) -> Media | Failure:
        """A clip's media, or the ledger row that says why there are none."""
        if isinstance(media, Trouble):
            return Failure(clip.clip_id, "decode", media.code, media.message)
        if media.notes.get("corrupt_frames"):
            count = int(media.notes["corrupt_frames"])
            self._damaged[clip.clip_id] = count
            logger.warning("clip %r: %s corrupt frames", clip.clip_id, count)
        if "media_bytes" in media.notes:
            size, time_ns = media.notes["media_bytes"], media.notes["media_mtime_ns"]
            self._files[clip.clip_id] = (int(size), int(time_ns))
        return media

    def _store(self, encoded: Iterable[Encoded]) -> None:
        self._settle(wait=False)
        for clip in encoded:
            if not self._missing:
                self._open_shard()
            self._missing -= 1
            summary = self.summary
            source = self._sources[clip.clip.clip_id]
            row = self._fit(clip.row)
            if isinstance(row, Failure):
                self._fail(clip.clip, replace(row, source=source))
            else:
                self._load_rows()
                self._rows[source] = replace(row, source=source)
                if row.clip_id in self._files:
                    self._made_of[source] = self._files.pop(row.clip_id)
                if row.clip_id in self._plan.again:
                    self._found.add(source)
                    self._changes_ledger = True
                self._unpublished += 1
                summary.extracted += 1
                summary.damaged += row.clip_id in self._damaged
                self.trust()
            self._on_clip(summary)
            if not self._missing or time.monotonic() - self._flushed > FLUSH_S:
                self._publish()

    def _fail(self, clip: Clip, failure: Failure) -> None:
        summary = self.summary
        if len(self._first) < JUDGED_FIRST:
            self._first.append((clip, failure))
        if self._plan.again.get(clip.clip_id) == failure:  # which the ledger says already
            summary.failed_before += 1
            return
        self._fresh.append(failure)
        self._changes_ledger |= clip.clip_id in self._plan.again
        summary.failed += 1
        summary.codes[failure.code] = summary.codes.get(failure.code, 0) + 1

    def _fit(self, row: FeatureRow | Failure) -> FeatureRow | Failure:
        """The row, unless padding its whole shard to it would take too much memory."""
        assert self._shard is not None
        if isinstance(row, Failure):
            return row
        places = len(self._shard.sources)
        needed = padded_bytes(self._plan.header.spec, places, len(row.values))
        if needed <= MAX_SHARD_BYTES:
            return row
        message = (
            f"{len(row.values)} steps would pad the {places} rows of its shard to "
            f"{needed} bytes, expected at most {MAX_SHARD_BYTES}; set start_s and end_s in the "
            "manifest to cut it into shorter clips, or type a smaller --shard-rows and a new --out"
        )
        return Failure(row.clip_id, "encode", "too_large", message)

    def _open_shard(self) -> None:
        self._shard = self._coming.popleft()
        self._missing = len(self._shard.todo)
        self._sources = {row.clip.clip_id: row.source for row in self._shard.todo}
        self._rows, self._header, self._is_loaded = {}, self._plan.header, False
        self._made_of = dict(self._shard.files)
        self._flushed = time.monotonic()

    def _load_rows(self) -> None:
        """Read what the open shard has already, unless nothing new comes: it may be much."""
        assert self._shard is not None
        if not self._is_loaded:
            with _open_on_disk(self._plan, self._shard) as there:
                if there is not None:
                    rows = map(there.read_own, range(len(there.clip_ids)))
                    self._rows = {row.source: row for row in rows}
                    self._header = _made_with_both(there.header, self._plan.header)
            self._is_loaded = True

    def _publish(self) -> None:
        """Have a thread write what there is while the network goes on; at most one shard waits."""
        self._settle(wait=True)
        self._begin_writing()

    def _begin_writing(self) -> None:
        assert self._shard is not None
        # What is there stays, what has no place too: another manifest, or the next, may want it.
        places = dict.fromkeys((*self._shard.sources, *self._rows))
        rows = [self._rows[source] for source in places if source in self._rows]
        known = {**self._shard.damaged, **self._damaged}
        damaged = {row.clip_id: known[row.clip_id] for row in rows if row.clip_id in known}
        is_new = bool(rows and self._unpublished)
        failures = [] if self._is_doubtful else self._fresh
        made_of = dict(self._made_of)
        shard = (self._shard.number, self._header, rows if is_new else [], damaged, made_of)
        arguments = (*shard, failures)
        self._writing.append(self._thread.submit(self._write, *arguments))
        self._fresh, self._unpublished = self._fresh[len(failures) :], 0
        self._flushed = time.monotonic()

    def _write(
        self,
        number: int,
        header: Header,
        rows: list[FeatureRow],
        damaged: dict[str, int],
        files: dict[str, tuple[int, int]],
        failures: list[Failure],
    ) -> None:
        """Write the ledger, then the shard; a clip in both counts as stored when planning."""
        started, plan = time.monotonic(), self._plan
        append_ledger(plan.folder, failures, plan.label)
        if rows:
            publish_shard(plan.folder, number, header, rows, plan.label, damaged, files)
        self.summary.write_s += time.monotonic() - started

    def _settle(self, *, wait: bool) -> None:
        """Raise what went wrong in writing, of what is written, or of all after a wait."""
        while self._writing and (wait or self._writing[0].done()):
            self._writing.popleft().result()


@contextmanager
def enter_folder(plan: Plan) -> Iterator[None]:
    """Make the folder of a set ready for a run, remove what the run replaces, and stay there.

    Runs of one making may be at work in a folder together. One that may overwrite is let in only
    where nobody is; once it has removed what it replaces, others may join it.

    Raises:
        ConfigError: Another run is at work there, and this one may overwrite.
        StoreError: The set was replaced after the run was planned.
        OSError: The folder has gone since then, or the disk refused.
    """
    if plan.done > plan.shared and not plan.folder.is_dir():
        raise OSError(f"{plan.folder}: has gone since the run was planned; put it back")
    with join_folder(plan.folder, alone=plan.overwrite) as let_others_in:
        _check_making(plan)
        if plan.replaces:
            remove_set(plan.folder)
        remove_stale_temporaries(plan.folder, STALE_S if plan.part else 0.0)
        write_set(plan.folder, plan.header, plan.run)
        if read_layout(plan.folder) != plan.layout:
            write_layout(plan.folder, plan.layout)
        let_others_in()
        # As it is now, not as it was planned with: another run may be at work in the same folder.
        ledger = read_failures(plan.folder, [plan.label])
        kept = [row for source, row in ledger.items() if source not in plan.dropped]
        write_ledger(plan.folder, kept, plan.label)
        if plan.unlisted:
            append_index(plan.folder, plan.unlisted, plan.label)
        yield


def _check_making(plan: Plan) -> None:
    """Refuse a set that another run has replaced since this one was planned."""
    if plan.replaces or not (plan.folder / "set.json").is_file():
        return
    there, _ = read_set(plan.folder)
    if not there.is_like(plan.header):
        raise StoreError(
            f"{plan.folder}: another run has replaced it since this one began to plan: "
            f"{describe_difference(plan.header, there)}\nextract to another --out"
        )


def _drop_stored(plan: Plan, found: Collection[str]) -> None:
    """Take clips that were missing and are stored now out of the run's ledger.

    What else it said twice about a clip, it says once: the later words at the earlier place, so
    that the ledger is that of a run which looked once.
    """
    ledger = read_failures(plan.folder, [plan.label])
    write_ledger(
        plan.folder, [row for source, row in ledger.items() if source not in found], plan.label
    )


@contextmanager
def _open_on_disk(plan: Plan, shard: ShardPlan) -> Iterator[Shard | None]:
    """The shard that holds rows already; None where there is none."""
    path = plan.folder / shard_name(shard.number)
    if not path.is_file():
        yield None
        return
    if shard.sha256 and file_sha256(path) != shard.sha256:
        # Written again with new rows, the damage would get a checksum of its own.
        raise StoreError(
            f"{path}: its bytes are not those that were written (sha256 differs); type: "
            f"micu-extract verify {plan.folder} --data --repair"
        )
    with Shard.open(path) as file:
        if not file.header.is_like(plan.header):
            raise StoreError(f"{path}: {describe_difference(plan.header, file.header)}")
        yield file


def _made_with_both(first: Header, second: Header) -> Header:
    """The header of a shard that was begun with one and is finished with another."""
    versions = join_versions(first.spec.versions, second.spec.versions)
    return replace(second, spec=replace(second.spec, versions=versions))
