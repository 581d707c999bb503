"""Feature stores in, batches out: which clips, which second of each modality, in which order.

Row t of every modality is second t of the clip. Words are not seconds: row t is word t.
"""

import csv
import hashlib
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from micu.config import DataConfig
from micu.errors import ConfigError, ManifestError, StoreError
from micu.manifest import Clip, read_manifest
from micu.overlap import find_shared
from micu.store import FeatureRow, FeatureStore

logger = logging.getLogger(__name__)

WORDS = "text"
"""The modality whose steps are words: padded with zeros, and no judge of which seconds are real."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Features of one clip, aligned."""

    features: dict[str, Tensor]
    """modality → (T, ...), float32"""
    mask: Tensor
    """(T,) bool, True = real step"""
    clip_id: str
    label: str


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
            name: values.to(device, dtype, non_blocking=True)
            for name, values in self.features.items()
        }
        mask = self.mask.to(device, non_blocking=True)
        return Batch(features, mask, self.clip_ids, self.labels)


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
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "clip_id" not in (reader.fieldnames or ()):
            raise ManifestError(f"{path}: expected the column clip_id, got {reader.fieldnames}")
        return frozenset(row["clip_id"] for row in reader)


class FeatureDataset(Dataset[Sample]):
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
        """What an order of batches depends on: the clips and what made their features."""
        digest = hashlib.sha256()
        for name, store in self.stores.items():
            digest.update(f"{name}\0{store.header.fingerprint}\0".encode())
        for clip in self.clips:
            digest.update(f"{clip.clip_id}\0".encode())
        return digest.hexdigest()

    def __len__(self) -> int:  # noqa: D105
        return len(self.clips)

    def __getitem__(self, index: int) -> Sample:  # noqa: D105
        clip, steps = self.clips[index], self.config.steps
        features: dict[str, Tensor] = {}
        mask = np.ones(steps, np.bool_)
        for name, store in self.stores.items():
            row = store.read(clip.clip_id)
            values, real = align_steps(row, steps)
            if name != WORDS and self.config.padding == "repeat":
                values = repeat_real_steps(values, real, row)
            elif name != WORDS:
                mask &= real
            features[name] = torch.from_numpy(values)
        if not mask.any():
            raise StoreError(
                f"clip {clip.clip_id!r}: no second is real in every modality; use "
                "--set data.padding=repeat, or list the clip in --set data.exclude_ids=FILE"
            )
        return Sample(features, torch.from_numpy(mask), clip.clip_id, clip.label)


def align_steps(row: FeatureRow, steps: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Put the steps of one clip on the grid of seconds, or of words where they have no times.

    Args:
        row: Features of one clip; steps that the mask denies are not used.
        steps: T.

    Returns:
        Values (T, ...), the mean where several steps lie in one second and zero where none does,
        and mask (T,), True = some step lies there.
    """
    index = np.arange(len(row.values))
    second = np.where(np.isfinite(row.times_s), np.floor(row.times_s), index)
    if len(index) >= steps and row.mask[:steps].all() and (second[:steps] == index[:steps]).all():
        later = second[steps:]
        if not ((later >= 0) & (later < steps) & row.mask[steps:]).any():
            return row.values[:steps], row.mask[:steps]
    used = row.mask & (second >= 0) & (second < steps)
    where = second[used].astype(np.int64)
    counts = np.bincount(where, minlength=steps)
    sums = np.zeros((steps, *row.values.shape[1:]), np.float64)
    if counts.max() <= 1:
        sums[where] = row.values[used]
    else:
        np.add.at(sums, where, row.values[used])
    shape = (steps,) + (1,) * (row.values.ndim - 1)
    return (sums / np.maximum(counts, 1).reshape(shape)).astype(np.float32), counts > 0


def repeat_real_steps(
    values: NDArray[np.float32], real: NDArray[np.bool_], row: FeatureRow
) -> NDArray[np.float32]:
    """Fill steps that are not real with the last real one before, else with the first after.

    Args:
        values: (T, ...).
        real: (T,).
        row: Where the first real step is taken from if it comes after all of T.

    Returns:
        (T, ...), every step real or a repeated one.
    """
    if real.all():
        return values
    if not real.any():
        first = row.values[int(np.argmax(row.mask))]
        return np.broadcast_to(first, values.shape).copy()
    source = np.maximum.accumulate(np.where(real, np.arange(len(real)), -1))
    return values[np.where(source < 0, int(np.argmax(real)), source)]


def collate_clips(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch.

    Raises:
        StoreError: Their features differ in shape.
    """
    first = samples[0]
    for sample in samples:
        for name, values in sample.features.items():
            if values.shape != first.features[name].shape:
                raise StoreError(
                    f"{name} features of clip {sample.clip_id!r}: expected "
                    f"{tuple(first.features[name].shape)} as clip {first.clip_id!r} has, "
                    f"got {tuple(values.shape)}"
                )
    return Batch(
        {name: torch.stack([s.features[name] for s in samples]) for name in first.features},
        torch.stack([sample.mask for sample in samples]),
        tuple(sample.clip_id for sample in samples),
        tuple(sample.label for sample in samples),
    )


def batch_order(
    clips: int, batch_size: int, *, seed: int, epoch: int, shuffle: bool, drop_last: bool
) -> list[list[int]]:
    """Which clips make each batch of an epoch: a pure function of its arguments."""
    order = np.arange(clips)
    if shuffle:
        order = np.random.default_rng((seed, epoch)).permutation(clips)
    batches = [order[i : i + batch_size].tolist() for i in range(0, clips, batch_size)]
    return batches[:-1] if drop_last and len(batches[-1]) < batch_size else batches


def make_loader(
    dataset: FeatureDataset,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    workers: int = 0,
) -> DataLoader[Sample]:
    """Batches of one epoch.

    Args:
        dataset: Where the samples come from.
        batch_size: B; the last batch may be smaller.
        seed: Of the order, with `epoch`.
        epoch: Counted from 0.
        start: First batch, to go on inside an epoch.
        shuffle: In random order; else in the data set's.
        drop_last: Leave out a last batch that is smaller.
        workers: Processes that read; 0 reads in this one. The batches are the same.

    Returns:
        A loader whose items are `Batch`, and whose length is the number of batches left.

    Raises:
        ConfigError: No batch can be made.
    """
    batches = batch_order(
        len(dataset), batch_size, seed=seed, epoch=epoch, shuffle=shuffle, drop_last=drop_last
    )
    if not batches:
        raise ConfigError(
            f"optimizer.batch_size: expected at most the {len(dataset)} clips there are, "
            f"got {batch_size}"
        )
    start_methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in start_methods else "spawn"
    return DataLoader(
        dataset,
        batch_sampler=batches[start:],
        collate_fn=collate_clips,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        # Without a generator of its own, iterating would draw from torch's global one.
        generator=torch.Generator().manual_seed(seed),
    )


def iterate(loader: DataLoader[Sample]) -> Iterator[Batch]:
    """The batches of a loader, read by processes that the signals of a gentle stop do not reach."""
    with _signals_held() if loader.num_workers else nullcontext():
        batches = iter(loader)
    yield from batches


@contextmanager
def _signals_held() -> Iterator[None]:
    """Block the signals that stop a run gently: processes that start meanwhile keep them blocked.

    A terminal or a cluster sends them to every process, and a reader that died of one would end
    the step that is to be finished. Here they are delivered afterwards.
    """
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        # Starting the tracker, which the first reader would do, ends by unblocking signals.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
