"""What a probe is trained on: a model's codes, an untrained model's, or the features themselves."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from micu.base.errors import ConfigError
from micu.config.sections import DataConfig
from micu.data.align import align_steps
from micu.data.dataset import Batch, FeatureDataset
from micu.data.loader import iterate, make_loader
from micu.evaluate.probe import (
    RIDGE,
    ClipFeatures,
    Probe,
    ProbeConfig,
    Renew,
    encode_clips,
    encode_with_dropout,
    fit_linear,
    fit_probe,
    join_clips,
)
from micu.evaluate.toc import ChannelChoice
from micu.losses import derive_seed
from micu.model.micu import MICU
from micu.store.manifest import Clip
from micu.store.sets import FeatureStore
from micu.store.shard import FeatureRow

BATCH_SIZE = 80
"""Clips that are encoded at once."""


class FeatureEncoder(Protocol):
    """Turns clips into features, and knows which probe suits them."""

    name: str
    """Value of the results' column `method`."""
    device: torch.device
    """Where its probes are trained."""

    def encode(self, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
        """Features of the clips in one modality."""
        ...

    def real_steps(self, modality: str, clip_ids: Sequence[str]) -> Tensor:
        """Which steps of the clips were extracted, (n, T) bool; see `encode_real`."""
        ...

    codebook_size: int
    """K; 0 for features without codes."""

    def width(self, modality: str) -> int:
        """Numbers per step of its features, D."""
        ...

    def train_probe(
        self, features: ClipFeatures, labels: Tensor, classes: int, config: ProbeConfig, seed: int
    ) -> Iterator[Probe]:
        """Candidates, one after the other; use each before asking for the next."""
        ...

    def renewer(self, features: ClipFeatures, config: ProbeConfig, seed: int) -> Renew | None:
        """What encodes training clips anew for every epoch; None where they stay as they are."""
        ...

    def describe_probe(self, config: ProbeConfig) -> str:
        """Value of the results' column `probe`: everything that its probes depend on."""
        ...


class ClipCache:
    """Encoded clips by modality: each is read when it is first asked for, and only then.

    Args:
        stores: By modality.
        clips: Every clip that may be asked for.
        data: Number of steps and padding.
        encode: Batches of some clips, and which modality to encode → their features.
    """

    def __init__(  # noqa: D107
        self,
        stores: Mapping[str, FeatureStore],
        clips: Sequence[Clip],
        data: DataConfig,
        encode: Callable[[Iterable[Batch], str], ClipFeatures],
    ) -> None:
        self.stores = stores
        self._clips = {clip.clip_id: clip for clip in clips}
        self._data = data
        self._encode = encode
        self._kept: dict[str, ClipFeatures] = {}

    def get(self, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
        """Features of the clips in one modality, in the order asked for, on the CPU."""
        kept = self._kept.get(modality)
        known = frozenset(kept.clip_ids if kept else ())
        missing = [self._clips[name] for name in dict.fromkeys(clip_ids) if name not in known]
        if missing or kept is None:
            read = self._encode(self._read(modality, missing), modality)
            kept = read if kept is None else join_clips([kept, read])
            self._kept[modality] = kept
        return kept.select(clip_ids)

    def read(self, modality: str, clip_ids: Sequence[str]) -> Iterator[Batch]:
        """Batches of the clips as they were extracted, in the order asked for; nothing is kept."""
        return self._read(modality, [self._clips[name] for name in clip_ids])

    def real_steps(self, modality: str, clip_ids: Sequence[str]) -> Tensor:
        """Which steps of the clips hold something that was extracted, (n, T) bool."""
        found = []
        for clip_id in clip_ids:
            mask, times_s = self.stores[modality].steps_of(clip_id)
            row = FeatureRow(clip_id, np.zeros(len(mask), np.float32), mask, times_s)
            found.append(torch.from_numpy(align_steps(row, self._data.steps)[1].copy()))
        return torch.stack(found)

    def _read(self, modality: str, clips: Sequence[Clip]) -> Iterator[Batch]:
        dataset = FeatureDataset({modality: self.stores[modality]}, clips, self._data)
        return iterate(make_loader(dataset, BATCH_SIZE, seed=0, epoch=0, shuffle=False))


class CodeEncoder:
    """The codes of a frozen model. Each clip and modality is encoded once.

    Args:
        name: For the results.
        model: In evaluation mode.
        stores: By modality.
        clips: Every clip that may be asked for.
        choice: Which of the codes' channels a probe reads; all if None.
    """

    def __init__(  # noqa: D107
        self,
        name: str,
        model: MICU,
        stores: Mapping[str, FeatureStore],
        clips: Sequence[Clip],
        choice: ChannelChoice | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self._channels = None if choice is None else choice.choose(model.quantizer.codebook).cpu()
        self.device = next(model.parameters()).device
        self.codebook_size = model.config.quantizer.codebook_size
        self._cache = ClipCache(stores, clips, model.config.data, partial(encode_clips, model))

    def encode(self, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
        """Codes of the clips in one modality."""
        found = self._cache.get(modality, clip_ids)
        return replace(found, values=self._choose(found.values))

    def _choose(self, codes: Tensor) -> Tensor:
        return codes if self._channels is None else codes[..., self._channels]

    def real_steps(self, modality: str, clip_ids: Sequence[str]) -> Tensor:
        """Which steps of the clips were extracted."""
        return self._cache.real_steps(modality, clip_ids)

    def width(self, modality: str) -> int:
        """Channels of the codes that are read, which all modalities share."""
        if self._channels is not None:
            return len(self._channels)
        return self.model.config.encoder.embed_dim

    def train_probe(
        self, features: ClipFeatures, labels: Tensor, classes: int, config: ProbeConfig, seed: int
    ) -> Iterator[Probe]:
        """The paper's probe after each epoch."""
        renew = self.renewer(features, config, seed)
        return fit_probe(features, labels, classes, config, seed, renew)

    def renewer(self, features: ClipFeatures, config: ProbeConfig, seed: int) -> Renew | None:
        """The codes with the encoder's dropout on, if the probe is to be trained on these."""

        def renew(epoch: int) -> Tensor:
            batches = self._cache.read(features.modality, features.clip_ids)
            drawn = derive_seed(seed, epoch, "probe dropout")
            encoded = encode_with_dropout(self.model, batches, features.modality, drawn)
            return self._choose(encoded.values)

        return renew if config.encoder_dropout else None

    def describe_probe(self, config: ProbeConfig) -> str:
        """The settings of the paper's probe."""
        return config.describe()


def pool_inputs(batches: Iterable[Batch], modality: str) -> ClipFeatures:
    """The features as they were extracted, (n, T, D) float32; grids are averaged over cells."""
    ids: list[str] = []
    values, masks = [], []
    for batch in batches:
        steps = batch.features[modality].float()  # probes are fitted in it, whatever data.dtype is
        values.append(steps if steps.ndim == 3 else steps.flatten(2, -2).mean(2))
        masks.append(batch.mask)
        ids.extend(batch.clip_ids)
    return ClipFeatures(modality, tuple(ids), torch.cat(values), torch.cat(masks))


class InputEncoder:
    """The features as they were extracted; grids are averaged over their cells.

    Args:
        name: For the results.
        cache: Encodes with `pool_inputs`; several encoders may share it.
        device: Where the probe is trained.
    """

    def __init__(self, name: str, cache: ClipCache, device: torch.device | str) -> None:  # noqa: D107
        self.name = name
        self.device = torch.device(device)
        self.codebook_size = 0
        self._cache = cache

    def encode(self, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
        """Features of the clips in one modality, (n, T, D)."""
        return self._cache.get(modality, clip_ids)

    def real_steps(self, modality: str, clip_ids: Sequence[str]) -> Tensor:
        """Which steps of the clips were extracted."""
        return self._cache.real_steps(modality, clip_ids)

    def width(self, modality: str) -> int:
        """Channels of the features as they were extracted."""
        return self._cache.stores[modality].spec.shape[-1]

    def train_probe(
        self, features: ClipFeatures, labels: Tensor, classes: int, config: ProbeConfig, seed: int
    ) -> Iterator[Probe]:
        """Logistic regression, one candidate per penalty; neither `config` nor `seed` matters."""
        return fit_linear(features, labels, classes)

    def renewer(self, features: ClipFeatures, config: ProbeConfig, seed: int) -> None:
        """Features have no dropout."""

    def describe_probe(self, config: ProbeConfig) -> str:
        """The penalties that are tried; `config` does not matter."""
        return f"logistic regression ridge={','.join(map(str, RIDGE))}"


def encode_real(encoder: FeatureEncoder, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
    """As `encode`, but the mask is that of what was extracted.

    Neither words that are not there, which are zeros, nor seconds that `data.padding=repeat`
    repeats are real then. A clip whose steps all lie outside of T keeps the encoder's mask.
    """
    features = encoder.encode(modality, clip_ids)
    real = encoder.real_steps(modality, clip_ids).to(features.mask.device) & features.mask
    return replace(features, mask=torch.where(real.any(1, keepdim=True), real, features.mask))


def check_same_space(
    encoder: FeatureEncoder, source: str, target_encoder: FeatureEncoder, target: str
) -> None:
    """Refuse two modalities between which no probe can be carried over.

    Raises:
        ConfigError: Their features have not the same width.
    """
    widths = encoder.width(source), target_encoder.width(target)
    if widths[0] != widths[1]:
        raise ConfigError(
            f"--encoder {encoder.name}: {source} features have {widths[0]} numbers per step and "
            f"{target} features {widths[1]}, so no probe fits both; --ceiling trains one "
            "on the target modality"
        )
