"""A small run, its checkpoint, and how to compare what is in two of them."""

import torch

from micu.cli.eval_options import OPTIONS
from micu.config.overrides import with_overrides
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.store.shard import FeatureSpec
from micu.train.checkpoint import Position, save_checkpoint
from micu.train.step import build_state, train_step
from tests.feature_sets import SMALL

SHAPES = {"audio": (6,), "video": (5,)}
CONFIG = with_overrides(TrainConfig(), [*SMALL, "modalities=audio,video"])
SPECS = {
    name: FeatureSpec(
        backbone=f"toy_{name}",
        modality=name,
        shape=shape,
        hop_s=1.0,
        weights="random:0",
        weights_sha256="0" * 64,
        preprocessing={"size": [1, 2]},
    )
    for name, shape in SHAPES.items()
}


def make_batch(number):
    generator = torch.Generator().manual_seed(number)
    features = {name: torch.randn(4, 3, *s, generator=generator) for name, s in SHAPES.items()}
    ids = tuple(f"c{i}" for i in range(4))
    return Batch(features, torch.ones(4, 3, dtype=torch.bool), ids, ("",) * 4)


def trained(steps=2, config=CONFIG):
    state = build_state(config, SHAPES, "cpu")
    for number in range(steps):
        train_step(state, make_batch(number))
    return state


def save(state, path, **extra):
    position = Position(1, 5)
    save_checkpoint(state, path, specs=SPECS, position=position, extra={"preset": "x"} | extra)
    return path


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def with_task(words):
    """Options of `micu-eval` after a task: `oscmg`, unless the first word is one already."""
    return words if words and words[0] in OPTIONS else ("oscmg", *words)
