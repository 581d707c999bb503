"""Batches that cross clip borders: units go in clip by clip, rows come out clip by clip.

A clip of ten windows, or one sentence, does not fill a batch alone. Its units wait for those of the
next clips, and every clip comes out, in the order of coming in, once its last unit is through.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ClipError
from micu.store.ledger import Failure
from micu.store.manifest import Clip
from micu.store.shard import FeatureRow, Steps, check_row
from micu_extract.backbones.base import Backbone, Media


@dataclass(frozen=True, slots=True)
class Encoded:
    """A clip's row, or why there is none."""

    clip: Clip
    row: FeatureRow | Failure


@dataclass(slots=True)
class _Open:
    """A clip on its way."""

    clip: Clip
    media: Media
    failure: Failure | None = None
    outputs: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Units that are still to be encoded."""
        return 0 if self.failure else len(self.media.units) - len(self.outputs)

    def next_units(self, count: int) -> list[Any]:
        """The first `count` of them."""
        start = len(self.outputs)
        return list(self.media.units[start : start + min(count, self.waiting)])


class ClipEncoder:
    """Encodes the units of clips in full batches.

    Args:
        backbone: The network.
    """

    infer_s: float
    """Seconds that encoding took so far."""

    def __init__(self, backbone: Backbone) -> None:  # noqa: D107
        self.infer_s = 0.0
        self._backbone = backbone
        self._queue: deque[_Open] = deque()

    @property
    def waiting(self) -> int:
        """Units that are still to be encoded."""
        return sum(entry.waiting for entry in self._queue)

    @property
    def is_full(self) -> bool:
        """Whether the waiting units fill a batch."""
        return self.waiting >= self._backbone.batch_size

    def add(self, clip: Clip, media: Media | Failure) -> None:
        """Take in a clip, decoded, or why it could not be: it keeps its place in the order."""
        if isinstance(media, Failure):
            self._queue.append(_Open(clip, Media((), np.empty(0), 0.0, 0), media))
        else:
            self._queue.append(_Open(clip, media))

    def encode_batch(self) -> None:
        """Run the network over the oldest waiting units, at most a batch of them."""
        room = self._backbone.batch_size
        parts: list[tuple[_Open, list[Any]]] = []
        for entry in self._queue:
            units = entry.next_units(room)
            if units:
                parts.append((entry, units))
                room -= len(units)
        started = time.monotonic()
        try:
            outputs = iter(self._backbone.encode([unit for _, units in parts for unit in units]))
            for entry, units in parts:
                entry.outputs += [next(outputs) for _ in units]
        except ClipError:
            for entry, units in parts:  # the culprit must not take the others along
                self._encode_alone(entry, units)
        finally:
            self.infer_s += time.monotonic() - started

    def _encode_alone(self, entry: _Open, units: list[Any]) -> None:
        try:
            entry.outputs += self._backbone.encode(units)
        except ClipError as error:
            entry.failure = _failure(entry.clip, error)

    def pop_whole(self) -> Iterator[Encoded]:
        """The oldest clips of which no unit is waiting."""
        while self._queue and not self._queue[0].waiting:
            entry = self._queue.popleft()
            yield Encoded(entry.clip, entry.failure or self._finish(entry))

    def _finish(self, entry: _Open) -> FeatureRow | Failure:
        try:
            steps = self._backbone.to_steps(entry.outputs, entry.media)
            row = FeatureRow.of(entry.clip.clip_id, mask_out(steps, entry.media.real))
            check_row(row, self._backbone.spec)
        except ClipError as error:
            return _failure(entry.clip, error)
        return row


def mask_out(steps: Steps, real: NDArray[np.bool_] | None) -> Steps:
    """Steps in seconds that are not real become zeros that the mask denies.

    Args:
        steps: Of one clip, in seconds or parts of them.
        real: By second; None if all are.
    """
    if real is None or real.all():
        return steps
    second = np.clip(np.floor(steps.times_s), 0, len(real) - 1).astype(np.int64)
    mask = steps.mask & real[second]
    values = np.where(mask.reshape(-1, *(1,) * (steps.values.ndim - 1)), steps.values, 0)
    return Steps(values.astype(np.float32), mask, steps.times_s)


def _failure(clip: Clip, error: ClipError) -> Failure:
    return Failure(clip.clip_id, "encode", error.code, " ".join(str(error).split()))
