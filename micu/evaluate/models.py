"""Which model is evaluated: read from a file, or untrained; and whether features suit it."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from micu.base.errors import CheckpointError, StoreError
from micu.base.files import file_sha256
from micu.base.tensor_files import load_tensor_file
from micu.config.overrides import config_differences
from micu.config.presets import ALIASES, PRESETS
from micu.config.sections import (
    DataConfig,
    EncoderConfig,
    LossWeights,
    QuantizerConfig,
    TrainConfig,
)
from micu.evaluate.report import CHANGES, RELEASED
from micu.model.micu import MICU
from micu.store.manifest import MODALITIES
from micu.store.sets import FeatureStore
from micu.store.shard import FeatureSpec
from micu.train.checkpoint import (
    PRETRAINED_WEIGHTS,
    LoadedModel,
    load_checkpoint,
    load_pretrained,
)
from micu.train.released import ENCODER_SECTION, load_released


def load_model(path: Path, device: str) -> LoadedModel:
    """Read a checkpoint of `micu-train`, one of the authors, or the `model.safetensors` of a Hub.

    The authors' names neither its preset nor its training features: its file's name stands for it.

    Raises:
        CheckpointError: The file is missing, cut off, hostile or neither, or its run had no codes
            yet.
    """
    if path.name == PRETRAINED_WEIGHTS:
        return load_pretrained(path.parent, device)
    try:
        loaded = load_checkpoint(path, device)
    except CheckpointError:
        if not _is_released(path):
            raise
    else:
        if loaded.warm_start:
            raise CheckpointError(
                f"{path}: expected a checkpoint from after the warm start of "
                f"weights.{loaded.warm_start}, got one of step {loaded.step}, within: its codebook "
                "is still as it was drawn, and codes mean nothing. Name a later checkpoint, or go "
                "on with the run by --resume"
            )
        return loaded
    model = load_released(path, device)
    return LoadedModel(
        model=model,
        config=model.config,
        step=0,
        specs={},
        sha256=file_sha256(path),
        record={"preset": f"{RELEASED} {path.stem} (features unchecked)"},
    )


def _is_released(path: Path) -> bool:
    try:
        content, _ = load_tensor_file(path)
    except (OSError, CheckpointError, pickle.UnpicklingError):
        return False
    return isinstance(content, Mapping) and ENCODER_SECTION in content


def untrained_model(config: TrainConfig, shapes: Mapping[str, tuple[int, ...]], seed: int) -> MICU:
    """The same architecture with the weights that `seed` gives, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MICU(config, shapes)
    return model.to(getattr(torch, config.optimizer.dtype)).eval()


def describe_preset(loaded: LoadedModel) -> str:
    """The preset that a checkpoint was trained from, and every setting that was changed.

    Modalities and seed are left out: rows name them elsewhere.
    """
    name = str(loaded.record.get("preset", ""))
    if name not in PRESETS:
        return name or "unknown"
    differences = config_differences(PRESETS[name](), loaded.config)
    changes = [
        f"{key}={','.join(value) if isinstance(value, tuple) else value}"
        for key, (_, value) in differences.items()
        if key not in ("modalities", "seed")
    ]
    return ALIASES.get(name, name) + (CHANGES + " ".join(changes) if changes else "")


RELEASED_FEATURES = {(7, 7, 512): "vgg19", (128,): "vggish", (768,): "bert"}
"""Backbones of the authors' features by shape: their checkpoints do not name them."""


def frozen_encoders(device: str) -> LoadedModel:
    """What an evaluation of features alone needs of a model: steps, padding, seed and device.

    Nothing reads its weights. What the encoders of the features were trained on is not known, as
    of the authors' checkpoint.
    """
    config = TrainConfig(
        modalities=MODALITIES,
        encoder=EncoderConfig(embed_dim=1, heads=1, layers=1, feedforward_dim=1, text_hidden_dim=1),
        quantizer=QuantizerConfig(codebook_size=2),
        weights=LossWeights(jigsaw=None, reconstruction=None),
        data=DataConfig(splits=()),
    )
    model = untrained_model(config, dict.fromkeys(MODALITIES, (1,)), seed=0)
    return LoadedModel(
        model=model.to(device), config=config, step=0, specs={}, sha256="", record={}
    )


def fitting_backbones(loaded: LoadedModel) -> dict[str, str]:
    """The backbone that a model's features are of, by modality, as far as it is known."""
    if loaded.specs:
        specs = {name: FeatureSpec.from_json(text) for name, text in loaded.specs.items()}
        return {name: spec.backbone for name, spec in specs.items()}
    shapes = loaded.model.shapes.items()
    return {name: RELEASED_FEATURES[s] for name, s in shapes if s in RELEASED_FEATURES}


def check_features(stores: Mapping[str, FeatureStore], loaded: LoadedModel) -> None:
    """Refuse feature sets that are not of the kind that the model was trained on.

    Of a checkpoint that does not say what its features were, only the shapes can be compared.

    Raises:
        StoreError: Backbone, weights, shape or preprocessing differ; all differences are named.
    """
    problems: list[str] = []
    for modality, store in stores.items():
        if modality not in loaded.model.shapes:
            known = ", ".join(loaded.model.shapes)
            raise StoreError(
                f"the checkpoint was not trained on {modality}, only on {known}; evaluate these, "
                "or name a checkpoint of a run whose --modalities had it"
            )
        if loaded.specs:
            expected = _told(FeatureSpec.from_json(loaded.specs[modality]).traits)
        else:
            expected = {"shape": json.dumps(list(loaded.model.shapes[modality]))}
        got = _told(store.spec.traits)
        compared = sorted({*expected, *got} if loaded.specs else expected)
        problems.extend(
            f"  {modality}: {name}: the checkpoint expects {expected.get(name)}, "
            f"{store.folder} has {got.get(name)}"
            for name in compared
            if expected.get(name) != got.get(name)
        )
    if problems:
        raise StoreError(
            "the features are not of the kind that the checkpoint was trained on\n"
            + "\n".join(problems)
            + "\nchoose another set (--video-features NAME and so on), or extract again by what "
            f"fits: {', '.join(map(' '.join, fitting_backbones(loaded).items()))}"
        )


def _told(traits: Mapping[str, object]) -> dict[str, str]:
    """Traits as text."""
    return {name: json.dumps(value, sort_keys=True) for name, value in traits.items()}
