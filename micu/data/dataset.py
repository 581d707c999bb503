"""Feature stores in, clips out: which clips, and which second of each modality.

Row t of every modality is second t of the clip. Words are not seconds: row t is word t.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from micu.base.errors import ConfigError, ManifestError, StoreError
from micu.config.sections import DataConfig
from micu.data.align import align_steps, repeat_real_steps, starts_on_grid
from micu.store.manifest import Clip, read_id_list, read_manifest
from micu.store.overlap import find_shared
from micu.store.sets import FeatureStore

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
