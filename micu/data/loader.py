"""The batches of an epoch: which clips make each, and the processes that read them ahead."""

import atexit
import functools
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import cast
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from micu.base.errors import MicuError, ProcessError
from micu.base.files import most_handles
from micu.base.process import STOP_SIGNALS
from micu.data.dataset import Batch, FeatureDataset
from micu.store.sets import OTHER_HANDLES

logger = logging.getLogger(__name__)


def batch_order(
    clips: int, batch_size: int, *, seed: int, epoch: int, shuffle: bool
) -> list[list[int]]:
    """Which clips make each batch of an epoch: a pure function of its arguments."""
    order = np.arange(clips)
    if shuffle:
        order = np.random.default_rng((seed, epoch)).permutation(clips)
    return [order[i : i + batch_size].tolist() for i in range(0, clips, batch_size)]


@dataclass(frozen=True, slots=True)
class Piped:
    """A batch on its way out of a reading process that had no shared memory to put it in."""

    features: dict[str, NDArray[np.generic]]
    mask: NDArray[np.bool_]
    clip_ids: tuple[str, ...]
    labels: tuple[str, ...]
    why: str

    def open(self) -> Batch:
        """The batch itself; the first one of a process says that it came the slow way."""
        _tell_of_pipe(self.why)
        features = {name: torch.from_numpy(values) for name, values in self.features.items()}
        return Batch(features, torch.from_numpy(self.mask), self.clip_ids, self.labels)

    def pin_memory(self) -> Batch:
        """As `Batch.pin_memory`."""
        return self.open().pin_memory()


@functools.cache
def _tell_of_pipe(why: str) -> None:
    logger.warning(
        "shared memory: no room for a batch (%s); going on without, which reads more slowly. %s, "
        "or type fewer --workers",
        why,
        "Type ulimit -n 1024"
        if why.startswith("ulimit")
        else "Give /dev/shm more room (docker run --shm-size=2g)",
    )


def share_batch(batch: Batch) -> Batch | Piped:
    """Put a batch where another process sees it, as far as there is room.

    Torch would do so later, in a thread whose errors nobody hears: the batch would never come.
    """
    try:
        for values in (*batch.features.values(), batch.mask):
            values.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        return _pipe(batch, " ".join(str(error).split()).rpartition(": ")[2][:200])
    return batch


def _pipe(batch: Batch, why: str) -> Piped:
    features = {name: values.numpy().copy() for name, values in batch.features.items()}
    return Piped(features, batch.mask.numpy().copy(), batch.clip_ids, batch.labels, why)


HANDLES = 10
"""Files that a process has open for each of its reading processes."""


def affordable_workers(workers: int) -> int:
    """As many reading processes as `ulimit -n` has handles for; fewer with a warning."""
    most = max(0, (most_handles() - OTHER_HANDLES) // HANDLES)
    if workers > most:
        _tell_of_workers(workers, most)
    return min(workers, most)


@functools.cache
def _tell_of_workers(workers: int, most: int) -> None:
    logger.warning(
        "--workers %d: ulimit -n %d has handles for %d; going on with so many. Type ulimit -n 1024",
        workers,
        most_handles(),
        most,
    )


class _Batches(Dataset["Batch | Piped | MicuError"]):
    """Chosen clips of a data set, batch by batch; from another process, errors as values."""

    def __init__(
        self, dataset: FeatureDataset, batches: Sequence[Sequence[int]], why_piped: str = ""
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.why_piped = why_piped

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> "Batch | Piped | MicuError":
        if get_worker_info() is None:
            return self.dataset.read_batch(self.batches[index])
        try:
            batch = self.dataset.read_batch(self.batches[index])
            return _pipe(batch, self.why_piped) if self.why_piped else share_batch(batch)
        except MicuError as error:  # raised there, it would come with two tracebacks in its message
            return error


def make_loader(
    dataset: FeatureDataset,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    shuffle: bool = True,
    workers: int = 0,
    own_rows: Callable[[int], slice] = slice,
    device: str = "cpu",
) -> DataLoader[Batch]:
    """Batches of one epoch, or one process's clips of each.

    Args:
        dataset: Where the samples come from.
        batch_size: B, of all processes together; the last batch may be smaller.
        seed: Of the order, with `epoch`.
        epoch: Counted from 0.
        start: First batch, to go on inside an epoch.
        shuffle: In random order; else in the data set's.
        workers: Processes that read; 0 reads in this one. The batches are the same.
        own_rows: Which clips of a batch are read here, by how many it has; all of them, unless
            others train on the rest.
        device: Where the batches go. For a GPU of NVIDIA those of `workers` come page-locked, which
            a thread does beside the steps.

    Returns:
        A loader whose items are `Batch`, and whose length is the number of batches left.
    """
    batches = batch_order(len(dataset), batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
    own = [batch[own_rows(len(batch))] for batch in batches[start:]]
    workers = affordable_workers(workers)
    # Two batches of each process wait; every tensor of them is an open file while it lives.
    shared = 2 * workers * (len(dataset.stores) + 1)
    lacks = workers and OTHER_HANDLES + HANDLES * workers + shared > most_handles()
    why_piped = f"ulimit -n {most_handles()}" if lacks else ""
    start_methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in start_methods else "spawn"
    return DataLoader(
        cast("Dataset[Batch]", _Batches(dataset, own, why_piped)),  # which `iterate` makes true
        batch_size=None,
        num_workers=workers,
        pin_memory=workers > 0 and torch.device(device).type == "cuda",
        multiprocessing_context=method if workers else None,
        # Without a generator of its own, iterating would draw from torch's global one.
        generator=torch.Generator().manual_seed(seed),
    )


def iterate(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches of a loader, read by processes that the signals of a gentle stop do not reach.

    Raises:
        StoreError: As from `FeatureDataset.read_batch`.
        ProcessError: A reading process has ended.
    """
    before = {*multiprocessing.active_children()}
    with _signals_held() if loader.num_workers else nullcontext():
        batches: Iterator[Batch | Piped | MicuError] = iter(loader)
    _readers.update(p for p in {*multiprocessing.active_children()} - before if p.daemon)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not loader.num_workers or "worker" not in str(error):
                raise
            raise ProcessError(
                f"--workers {loader.num_workers}: a process that reads features has ended "
                f"({str(error).splitlines()[0][:200]}); is there memory for so many? type fewer"
            ) from error
        if isinstance(batch, MicuError):
            raise batch
        yield batch.open() if isinstance(batch, Piped) else batch


_readers: WeakSet[BaseProcess] = WeakSet()
"""Processes that read batches."""


@atexit.register
def _end_readers() -> None:
    """End the reading processes of a run that failed.

    Python would send them TERM, which `_signals_held` has blocked, and wait for their end for ever.
    """
    for process in _readers:
        process.kill()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Block the signals that stop a run gently: processes that start meanwhile keep them blocked.

    A terminal or a cluster sends them to every process, and a reader that died of one would end
    the step that is to be finished. Here they are delivered afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which sends them to nobody
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # Starting the tracker, which the first reader would do, ends by unblocking signals.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
