"""Features that stay in memory: read once, then given out batch by batch."""

import logging
import socket
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from micu.base.devices import available_memory, shared_memory
from micu.base.errors import ConfigError
from micu.data.dataset import Batch, FeatureDataset

logger = logging.getLogger(__name__)

READ_AT_ONCE = 64
"""Clips per read while the cache is filled."""
SPARE = 0.9
"""Share of the available memory that features may take."""


class CachedDataset(FeatureDataset):
    """The same clips and batches as another data set, from memory.

    Args:
        dataset: What is read, all of it, before this returns; features keep its `config.dtype`.
        shared: Put them where loader processes see them, too, instead of a copy each.
        ask_all: From this process's answers to those of all that make such a copy at the same time;
            without others these are all.

    Raises:
        ConfigError: They would not fit in the memory that is available.
        StoreError: A clip cannot be read.
    """

    def __init__(  # noqa: D107
        self,
        dataset: FeatureDataset,
        *,
        shared: bool,
        ask_all: Callable[[list[str]], list[str]] = list,
    ) -> None:
        self.stores, self.config, self.clips = dataset.stores, dataset.config, dataset.clips
        dtype = getattr(torch, self.config.dtype)
        shapes = {
            name: (len(self.clips), self.config.steps, *shape)
            for name, shape in dataset.shapes.items()
        }
        size = sum(dtype.itemsize * torch.Size(shape).numel() for shape in shapes.values())
        machine = socket.gethostname()
        copies = ask_all([machine]).count(machine)
        # No process takes memory before all have looked.
        misfits = ask_all([_find_misfit(size, copies, self.config.dtype, shared)])
        if any(misfits):
            raise ConfigError(next(filter(None, misfits)))
        logger.info("reading %d clips into %.1f GiB of memory", len(self.clips), size / 2**30)
        self._features = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
        self._mask = torch.empty((len(self.clips), self.config.steps), dtype=torch.bool)
        if shared:
            for tensor in self._tensors():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        for start in range(0, len(self.clips), READ_AT_ONCE):
            rows = range(start, min(start + READ_AT_ONCE, len(self.clips)))
            batch = dataset.read_batch(rows)
            for name, values in batch.features.items():
                self._features[name][start : rows.stop] = values
            self._mask[start : rows.stop] = batch.mask
        for store in self.stores.values():
            store.close()

    def read_batch(self, indices: Sequence[int]) -> Batch:
        """Features of some clips; see `FeatureDataset.read_batch`."""
        index = torch.tensor(indices, dtype=torch.int64)
        clips = [self.clips[i] for i in indices]
        return Batch(
            {name: _gathered(values, index) for name, values in self._features.items()},
            self._mask[index],
            tuple(clip.clip_id for clip in clips),
            tuple(clip.label for clip in clips),
        )

    def _tensors(self) -> list[Tensor]:
        return [*self._features.values(), self._mask]


def _gathered(values: Tensor, index: Tensor) -> Tensor:
    """Some rows, in memory that NumPy asks for: in large pages, which come several times faster."""
    kind = np.float32 if values.dtype == torch.float32 else np.float16
    out = torch.from_numpy(np.empty((len(index), *values.shape[1:]), kind))
    return torch.index_select(values, 0, index, out=out)


def _find_misfit(size: int, copies: int, dtype: str, shared: bool) -> str:
    """Why memory, or the part of it that processes share, cannot take the features; else empty."""
    half = "use --cache float16, which takes half, or leave" if dtype == "float32" else "leave"
    whose = f" of {copies} processes of this machine" if copies > 1 else ""
    places = {"memory is available": available_memory()}
    if shared:
        places["is free in /dev/shm, which loader processes share"] = shared_memory()
    for place, free in places.items():
        if free is not None and copies * size > SPARE * free:
            return (
                f"--cache {dtype}: the features{whose} take {copies * size / 2**30:.2f} GiB, and "
                f"{free / 2**30:.2f} GiB {place}; {half} --cache out"
                + (", or --workers" if shared else "")
            )
    return ""
