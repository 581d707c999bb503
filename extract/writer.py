"""One feature set while it is made: decoded clips go in, shards and ledger rows come out."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from extract.backbones.base import Backbone, Media
from extract.batches import ClipEncoder, Decoded, Encoded
from extract.parts import STALE_S
from extract.plan import Limit, Plan, ShardPlan
from extract.workers import Trouble
from micu.commands import StopFlag
from micu.errors import StoreError
from micu.files import file_sha256, remove_stale_temporaries
from micu.manifest import Clip
from micu.shard import Shard
from micu.store import (
    Failure,
    FeatureRow,
    append_index,
    append_ledger,
    describe_difference,
    publish_shard,
    read_ledger,
    remove_set,
    shard_name,
    write_ledger,
    write_set,
)

logger = logging.getLogger(__name__)

FLUSH_S = 120.0
"""How often an unfinished shard is published with the rows it has, s: what a kill can cost."""


@dataclass(slots=True)
class Summary:
    """What a run did for one feature set."""

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
    """Seconds that decoding took, summed over workers, for all sets of the run together."""
    infer_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    stopped_by: str = ""
    codes: dict[str, int] = field(default_factory=dict)
    """Failures of this run by code."""


class SetWriter:
    """Encodes the clips of one feature set and publishes its shards, one open at a time.

    Clips come in the order of the plan. What was published before a fault stays.

    Args:
        plan: What is to be made; its folder is made ready.
        backbone: The network.
        on_clip: Called after every clip, for progress.
    """

    def __init__(  # noqa: D107
        self, plan: Plan, backbone: Backbone, on_clip: Callable[[Summary], None]
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
        self._rows: dict[str, FeatureRow] = {}
        self._fresh: list[Failure] = []
        self._unpublished, self._flushed = 0, time.monotonic()
        prepare_folder(plan)

    def add(self, clip: Clip, media: Media | Trouble, stop: StopFlag) -> None:
        """Take a decoded clip in, and run the batches that it fills, unless asked to stop."""
        self._encoder.add(Decoded(clip, self._judge(clip, media)))
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
        return limit.reached(summary.failed, done, at_end=done == self._plan.todo)

    def close(self) -> None:
        """Publish what is whole: an error on the way must not cost it."""
        if self._fresh or self._unpublished:
            self._publish()
        self.summary.infer_s = self._encoder.infer_s
        self.summary.left = self._plan.todo - self.summary.extracted - self.summary.failed

    def _judge(self, clip: Clip, media: Media | Trouble) -> Media | Failure:
        """A clip's media, or the ledger row that says why there are none."""
        if isinstance(media, Trouble):
            return Failure(clip.clip_id, "decode", media.code, media.message)
        if media.notes.get("corrupt_frames"):
            self.summary.damaged += 1
            count = media.notes["corrupt_frames"]
            logger.warning("clip %r: %s corrupt frames", clip.clip_id, count)
        return media

    def _store(self, encoded: Iterable[Encoded]) -> None:
        for clip in encoded:
            if not self._missing:
                self._open_shard()
            self._missing -= 1
            summary = self.summary
            if isinstance(clip.row, Failure):
                self._fresh.append(clip.row)
                summary.failed += 1
                summary.codes[clip.row.code] = summary.codes.get(clip.row.code, 0) + 1
            else:
                self._rows[clip.row.clip_id] = clip.row
                self._unpublished += 1
                summary.extracted += 1
            self._on_clip(summary)
            if not self._missing or time.monotonic() - self._flushed > FLUSH_S:
                self._publish()

    def _open_shard(self) -> None:
        self._shard = self._coming.popleft()
        self._missing = len(self._shard.todo)
        self._rows = {row.clip_id: row for row in _rows_on_disk(self._plan, self._shard)}
        self._flushed = time.monotonic()

    def _publish(self) -> None:
        """Write the ledger, then the shard; a clip in both counts as stored when planning."""
        assert self._shard is not None
        started = time.monotonic()
        append_ledger(self._plan.folder, self._fresh, self._plan.label)
        rows = [self._rows[clip.clip_id] for clip in self._shard.rows if clip.clip_id in self._rows]
        if rows and self._unpublished:
            publish_shard(
                self._plan.folder, self._shard.number, self._plan.header, rows, self._plan.label
            )
        self._fresh, self._unpublished = [], 0
        self._flushed = time.monotonic()
        self.summary.write_s += self._flushed - started


def prepare_folder(plan: Plan) -> None:
    """Make the folder of a set ready for a run, and remove what the run replaces."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    if plan.replaces:
        remove_set(plan.folder)
    remove_stale_temporaries(plan.folder, STALE_S if plan.part else 0.0)
    write_set(plan.folder, plan.header, plan.run)
    # As it is now, not as it was planned with: another run may be at work in the same folder.
    ledger = read_ledger(plan.folder, [plan.label])
    kept = [row for clip_id, row in ledger.items() if clip_id not in plan.dropped]
    write_ledger(plan.folder, kept, plan.label)
    if plan.unlisted:
        append_index(plan.folder, plan.unlisted, plan.label)


def _rows_on_disk(plan: Plan, shard: ShardPlan) -> list[FeatureRow]:
    """The rows that a shard already holds."""
    path = plan.folder / shard_name(shard.number)
    if not path.is_file():
        return []
    if shard.sha256 and file_sha256(path) != shard.sha256:
        # Written again with new rows, the damage would get a checksum of its own.
        raise StoreError(
            f"{path}: its bytes are not those that were written (sha256 differs); type: "
            f"micu-extract verify {plan.folder} --data --repair"
        )
    with Shard.open(path) as file:
        if file.header.fingerprint != plan.header.fingerprint:
            raise StoreError(f"{path}: {describe_difference(plan.header, file.header)}")
        return [file.read(row) for row in range(len(file.clip_ids))]
