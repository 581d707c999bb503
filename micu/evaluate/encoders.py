"""What a probe is trained on: a model's codes, an untrained model's, or the features themselves."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from micu.config import DataConfig, TrainConfig
from micu.data import FeatureDataset, iterate, make_loader
from micu.errors import ConfigError, StoreError
from micu.evaluate.probe import (
    ClipFeatures,
    Probe,
    ProbeConfig,
    encode_clips,
    fit_linear,
    fit_probe,
)
from micu.manifest import Clip
from micu.model.micu import MICU
from micu.store import FeatureSpec, FeatureStore

BATCH_SIZE = 80
"""Clips that are encoded at once."""


class ClipEncoder(Protocol):
    """Turns clips into features, and knows which probe suits them."""

    name: str
    """Value of the results' column `method`."""

    def encode(self, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
        """Features of the clips in one modality."""
        ...

    def check_same_space(self, source: str, target: str) -> None:
        """Refuse two modalities between which no probe can be carried over.

        Raises:
            ConfigError: Their features have not the same width.
        """
        ...

    def train_probe(
        self, features: ClipFeatures, labels: Tensor, classes: int, config: ProbeConfig, seed: int
    ) -> Iterator[Probe]:
        """Candidates, one after the other; use each before asking for the next."""
        ...


class CodeEncoder:
    """The codes of a frozen model. Each modality is encoded once, when it is first asked for.

    Args:
        name: For the results.
        model: In evaluation mode.
        stores: By modality.
        clips: Every clip that may be asked for.
    """

    def __init__(  # noqa: D107
        self, name: str, model: MICU, stores: Mapping[str, FeatureStore], clips: Sequence[Clip]
    ) -> None:
        self.name = name
        self.model = model
        self.codebook_size = model.config.quantizer.codebook_size
        self._stores, self._clips = stores, clips
        self._encoded: dict[str, ClipFeatures] = {}

    def encode(self, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
        """Codes of the clips in one modality."""
        if modality not in self._encoded:
            dataset = _dataset(self._stores, self._clips, modality, self.model.config.data)
            loader = make_loader(dataset, BATCH_SIZE, seed=0, epoch=0, shuffle=False)
            self._encoded[modality] = encode_clips(self.model, iterate(loader), modality)
        return self._encoded[modality].select(clip_ids)

    def check_same_space(self, source: str, target: str) -> None:
        """Nothing to refuse: all modalities share one codebook."""

    def train_probe(
        self, features: ClipFeatures, labels: Tensor, classes: int, config: ProbeConfig, seed: int
    ) -> Iterator[Probe]:
        """The paper's probe after each epoch."""
        return fit_probe(features, labels, classes, config, seed)


class InputEncoder:
    """The features as they were extracted; grids are averaged over their cells.

    Args:
        name: For the results.
        stores: By modality.
        clips: Every clip that may be asked for.
        data: Number of steps and padding.
    """

    def __init__(  # noqa: D107
        self,
        name: str,
        stores: Mapping[str, FeatureStore],
        clips: Sequence[Clip],
        data: DataConfig,
    ) -> None:
        self.name = name
        self._stores, self._clips, self._data = stores, clips, data
        self._read: dict[str, ClipFeatures] = {}

    def encode(self, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
        """Features of the clips in one modality, (n, T, D)."""
        if modality not in self._read:
            dataset = _dataset(self._stores, self._clips, modality, self._data)
            loader = make_loader(dataset, BATCH_SIZE, seed=0, epoch=0, shuffle=False)
            ids: list[str] = []
            values, masks = [], []
            for batch in iterate(loader):
                steps = batch.features[modality]
                values.append(steps if steps.ndim == 3 else steps.flatten(2, -2).mean(2))
                masks.append(batch.mask)
                ids.extend(batch.clip_ids)
            self._read[modality] = ClipFeatures(
                modality, tuple(ids), torch.cat(values), torch.cat(masks)
            )
        return self._read[modality].select(clip_ids)

    def check_same_space(self, source: str, target: str) -> None:
        """Refuse modalities of different width.

        Raises:
            ConfigError: Their features have not the same width.
        """
        widths = {name: self._stores[name].spec.shape[-1] for name in (source, target)}
        if widths[source] != widths[target]:
            raise ConfigError(
                f"--encoder input: {source} features have {widths[source]} numbers per step and "
                f"{target} features {widths[target]}, so no probe fits both; --ceiling trains one "
                "on the target modality"
            )

    def train_probe(
        self, features: ClipFeatures, labels: Tensor, classes: int, config: ProbeConfig, seed: int
    ) -> Iterator[Probe]:
        """Logistic regression, one candidate per penalty; neither `config` nor `seed` matters."""
        return fit_linear(features, labels, classes)


def untrained_model(config: TrainConfig, shapes: Mapping[str, tuple[int, ...]], seed: int) -> MICU:
    """The same architecture with the weights that `seed` gives, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MICU(config, shapes)
    return model.to(getattr(torch, config.optimizer.dtype)).eval()


def check_specs(
    stores: Mapping[str, FeatureStore], trained_on: Mapping[str, Mapping[str, object]]
) -> None:
    """Refuse feature sets that are not of the kind that the checkpoint was trained on.

    Where the weights were read from and which versions were installed may differ.

    Raises:
        StoreError: Backbone, weights, shape or preprocessing differ; all differences are named.
    """
    problems: list[str] = []
    for modality, store in stores.items():
        if modality not in trained_on:
            known = ", ".join(trained_on)
            raise StoreError(f"the checkpoint was not trained on {modality}, only on {known}")
        expected, got = _traits(FeatureSpec.from_json(trained_on[modality])), _traits(store.spec)
        problems.extend(
            f"  {modality}: {name}: the checkpoint expects {expected.get(name)}, "
            f"{store.folder} has {got.get(name)}"
            for name in sorted({*expected, *got})
            if expected.get(name) != got.get(name)
        )
    if problems:
        raise StoreError(
            "the features are not of the kind that the checkpoint was trained on\n"
            + "\n".join(problems)
            + "\nchoose another set (--video-features NAME and so on), or extract again"
        )


def _traits(spec: FeatureSpec) -> dict[str, str]:
    """What must be equal, by name, as text."""
    same = {
        "backbone": spec.backbone,
        "weights_sha256": spec.weights_sha256,
        "shape": list(spec.shape),
        "hop_s": spec.hop_s,
        **{f"preprocessing.{name}": value for name, value in spec.preprocessing.items()},
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in same.items()}


def _dataset(
    stores: Mapping[str, FeatureStore], clips: Sequence[Clip], modality: str, data: DataConfig
) -> FeatureDataset:
    held = [clip for clip in clips if clip.clip_id in stores[modality]]
    return FeatureDataset(
        {modality: stores[modality]}, held, replace(data, splits=(), exclude_ids="")
    )
