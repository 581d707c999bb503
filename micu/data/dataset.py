"""Feature stores in, batches out: which clips, which second of each modality, in which order.

Row t of every modality is second t of the clip. Words are not seconds: row t is word t.
"""

import atexit
import functools
import hashlib
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from micu.base.errors import ConfigError, ManifestError, MicuError, ProcessError, StoreError
from micu.base.files import most_handles
from micu.base.process import STOP_SIGNALS
from micu.config.sections import DataConfig
from micu.data.align import align_steps, repeat_real_steps, starts_on_grid
from micu.store.manifest import Clip, read_id_list, read_manifest
from micu.store.overlap import find_shared
from micu.store.sets import OTHER_HANDLES, FeatureStore

logger = logging.getLogger(__name__)

TEXT = "text"
"""The modality whose steps are words: padded with zeros, and no judge of which seconds are real."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Features of B clips, aligned."""

    features: dict[str, Tensor]
    """modality → (B, T, ...); grids are channel-last, (B, T, H, W, C)"""
    mask: Tensor
    """(B, T) bool, True = real step"""
    clip_ids: tuple[str, ...]
    labels: tuple[str, ...]
    """Class name of each clip, "" where the manifest names none."""

    def to(self, device: str | torch.device, dtype: torch.dtype) -> "Batch":
        """The same batch elsewhere, its features as `dtype`."""
        features = {
            # Halves are made whole there: that moves half of the bytes.
            name: values.to(device, non_blocking=True).to(dtype)
            for name, values in self.features.items()
        }
        mask = self.mask.to(device, non_blocking=True)
        return Batch(features, mask, self.clip_ids, self.labels)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies while others work.

        Torch's loader calls this.
        """
        features = {name: values.pin_memory() for name, values in self.features.items()}
        return replace(self, features=features, mask=self.mask.pin_memory())

    def part(self, rows: slice) -> "Batch":
        """Some of its clips."""
        features = {name: values[rows] for name, values in self.features.items()}
        return Batch(features, self.mask[rows], self.clip_ids[rows], self.labels[rows])


def select_clips(clips: Sequence[Clip], config: DataConfig) -> tuple[Clip, ...]:
    """The clips of a manifest that may be trained on.

    Args:
        clips: All of them.
        config: `splits` (a manifest that names no split is used whole), `exclude_ids` and
            `exclude_manifests`.

    Returns:
        The clips that remain, in the same order.

    Raises:
        ConfigError: No clip is of one of the splits.
        ManifestError: None remains, or the list of excluded clips cannot be read.
    """
    splits = {clip.split for clip in clips}
    chosen = tuple(clips)
    if config.splits and splits != {""}:
        unknown = [name for name in config.splits if name not in splits]
        if unknown:
            raise ConfigError(
                f"data.splits: no clip is of {', '.join(unknown)}; the manifest has "
                f"{', '.join(sorted(splits - {''}))}; choose some with --set data.splits=NAME,NAME "
                "or all with --set data.splits="
            )
        chosen = tuple(clip for clip in clips if clip.split in config.splits)
    if config.exclude_ids:
        excluded = read_excluded_ids(Path(config.exclude_ids))
        kept = tuple(clip for clip in chosen if clip.clip_id not in excluded)
        logger.info("%s excludes %d clips", config.exclude_ids, len(chosen) - len(kept))
        chosen = kept
        if not chosen:
            raise ManifestError(f"{config.exclude_ids} excludes every clip; shorten it")
    for path in config.exclude_manifests:
        chosen = exclude_shared(chosen, Path(path))
    return chosen


def exclude_shared(clips: Sequence[Clip], path: Path) -> tuple[Clip, ...]:
    """The clips that a manifest does not have, neither by id nor by YouTube video.

    Raises:
        ManifestError: None remains, or the manifest cannot be read.
    """
    shared = find_shared(clips, read_manifest(path).clips)
    by_id = sum(found.by == "id" for found in shared)
    excluded = {found.clip.clip_id for found in shared}
    kept = tuple(clip for clip in clips if clip.clip_id not in excluded)
    logger.info(
        "%s excludes %d of %d clips: %d by id, %d by YouTube video",
        path,
        len(shared),
        len(clips),
        by_id,
        len(shared) - by_id,
    )
    if not kept:
        raise ManifestError(f"{path} excludes every clip; is it the manifest that is trained on?")
    return kept


def read_excluded_ids(path: Path) -> frozenset[str]:
    """The ids in a CSV file with the column `clip_id`.

    Raises:
        ManifestError: The file or the column is missing.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; data.exclude_ids names a CSV file")
    return frozenset(read_id_list(path))


class FeatureDataset:
    """The clips that every store has, in manifest order.

    May be sent to loader processes: the stores open their shards on first use.

    Args:
        stores: One per modality; their order is the order of the modalities.
        clips: Which clips to look for.
        config: Number of steps and kind of padding.

    Raises:
        ManifestError: No clip is in every store.
    """

    def __init__(  # noqa: D107
        self, stores: Mapping[str, FeatureStore], clips: Sequence[Clip], config: DataConfig
    ) -> None:
        self.stores = dict(stores)
        self.config = config
        self.clips = tuple(
            clip for clip in clips if all(clip.clip_id in store for store in stores.values())
        )
        lacking = {
            name: sum(clip.clip_id not in store for clip in clips) for name, store in stores.items()
        }
        told = ", ".join(f"{count} have no {name}" for name, count in lacking.items() if count)
        if not self.clips:
            raise ManifestError(
                f"no clip has features of all of {', '.join(stores)}: of {len(clips)} clips, "
                f"{told}; extract what is missing with micu-extract, or name other --modalities"
            )
        if told:
            logger.warning(
                "%d of %d clips lack a modality and are left out: %s",
                len(clips) - len(self.clips),
                len(clips),
                told,
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one step by modality, without T."""
        return {name: store.spec.shape for name, store in self.stores.items()}

    @property
    def sha256(self) -> str:
        """What an order of batches depends on: the clips, what made their features and of what."""
        digest = hashlib.sha256()
        for name, store in self.stores.items():
            digest.update(f"{name}\0{store.spec.making}\0".encode())
        for clip in self.clips:
            sources = "\0".join(store.source_of(clip.clip_id) for store in self.stores.values())
            digest.update(f"{clip.clip_id}\0{sources}\0".encode())
        return digest.hexdigest()

    def __len__(self) -> int:  # noqa: D105
        return len(self.clips)

    def read_batch(self, indices: Sequence[int]) -> Batch:
        """Features of some clips, read to where the batch has them.

        Args:
            indices: Places in `clips`; none make a batch of none.

        Raises:
            StoreError: A clip cannot be read, has no real second, holds NaN or infinity, or a value
                that `data.dtype` cannot.
        """
        clips, steps = [self.clips[i] for i in indices], self.config.steps
        arrays = {
            name: np.empty((len(clips), steps, *shape), np.float32)
            for name, shape in self.shapes.items()
        }
        mask = np.ones((len(clips), steps), np.bool_)
        for i, clip in enumerate(clips):
            for name, values in arrays.items():
                real = self._read_into(values[i], name, clip.clip_id)
                if name != TEXT and self.config.padding == "mask":
                    mask[i] &= real
            if not mask[i].any():
                raise StoreError(
                    f"clip {clip.clip_id!r}: no second is real in every modality; use "
                    "--set data.padding=repeat, or list the clip in --set data.exclude_ids=FILE"
                )
        features = {name: torch.from_numpy(values) for name, values in arrays.items()}
        labels = tuple(clip.label for clip in clips)
        batch = Batch(features, torch.from_numpy(mask), tuple(c.clip_id for c in clips), labels)
        return batch if self.config.dtype == "float32" else halve(batch)

    def _read_into(
        self, out: NDArray[np.float32], modality: str, clip_id: str
    ) -> NDArray[np.bool_]:
        """One clip's steps of a modality, aligned and padded; which of them are real, (T,)."""
        store, steps = self.stores[modality], self.config.steps
        mask, times_s = store.steps_of(clip_id)
        if not mask.any():
            raise StoreError(
                f"{modality} features of clip {clip_id!r}: no step is real; extract the set again, "
                "or leave the clip out of the manifest or with --set data.exclude_ids=FILE"
            )
        if starts_on_grid(mask, times_s, steps):
            store.read_into(clip_id, out)
            real = mask[:steps]
        else:
            row = store.read(clip_id)
            values, real = align_steps(row, steps)
            fills = modality != TEXT and self.config.padding == "repeat"
            out[:] = repeat_real_steps(values, real, row) if fills else values
        if not _all_finite(out):
            raise StoreError(
                f"{modality} features of clip {clip_id!r}: expected finite values, got NaN or "
                f"infinity; type: micu-extract verify {store.folder} --data --repair, or leave the "
                "clip out with --set data.exclude_ids=FILE"
            )
        return real


def _all_finite(values: NDArray[np.float32]) -> bool:
    """Whether no value is NaN or infinite."""
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        # One pass without a copy. Only very large values make it infinite, too.
        total = np.dot(flat, flat)
    return bool(np.isfinite(total) or np.isfinite(flat).all())


def halve(batch: Batch) -> Batch:
    """The same batch with its features in float16.

    Raises:
        StoreError: A value is too large for it.
    """
    halves = {name: values.half() for name, values in batch.features.items()}
    for name, values in halves.items():
        if not values.isfinite().all():
            finite = values.flatten(1).isfinite().all(1).tolist()
            clip_id = batch.clip_ids[finite.index(False)]
            raise StoreError(
                f"{name} features of clip {clip_id!r}: expected values below 65504, which float16 "
                "ends at; use --set data.dtype=float32"
            )
    return replace(batch, features=halves)


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
