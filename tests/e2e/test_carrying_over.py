"""What the methods are for: a class learnt in one modality's codes is known in the other's."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from micu.config.overrides import with_overrides
from micu.config.presets import BASELINES, PRESETS
from micu.data.dataset import Batch
from micu.train.step import build_state, train_step
from tests.feature_sets import SMALL

CLASSES, STEPS, T = 4, 60, 3
SHAPES = {"audio": (10,), "video": (12,)}
SETTINGS = ["data.steps=3", "optimizer.learning_rate=3e-3", "quantizer.ema_decay=0.9"]
CODIS = ["baselines.transport.queue_size=120", "baselines.transport.momentum=0.9"]


def draw(seed: int, count: int) -> tuple[Batch, Tensor]:
    """Clips of four classes, each a direction of its own in each modality, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (count,), generator=generator)
    features = {}
    for name, shape in SHAPES.items():
        centres = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(len(shape)))
        noise = torch.randn(count, T, *shape, generator=generator)
        features[name] = 2 * centres[classes][:, None] + 0.5 * noise
    ids = tuple(f"{seed}/{i}" for i in range(count))
    return Batch(features, torch.ones(count, T, dtype=torch.bool), ids, ("",) * count), classes


def transfer(name: str) -> float:
    """Accuracy on audio of the class means of video's codes, after a short training."""
    more = CODIS if name == "codis" else []
    config = with_overrides(PRESETS[name](), [*SMALL, *SETTINGS, *more])
    config = replace(config, modalities=("audio", "video"))
    state = build_state(config, SHAPES, "cpu", STEPS)
    for step in range(STEPS):
        train_step(state, draw(step, 32)[0])
    (train, classes), (test, expected) = draw(10**6, 200), draw(10**6 + 1, 200)
    model = state.model.eval()
    with torch.no_grad():
        seen = model.encode({"video": train.features["video"]})["video"].quantized.mean(1)
        new = model.encode({"audio": test.features["audio"]})["audio"].quantized.mean(1)
    means = torch.stack([seen[classes == c].mean(0) for c in range(CLASSES)])
    return float((torch.cdist(new, means).argmin(1) == expected).float().mean())


@pytest.mark.parametrize("name", ["micu", *(n for n in BASELINES if n != "skeleton")])
def test_a_method_carries_classes_from_one_modality_to_the_other(name: str) -> None:
    assert transfer(name) > 0.5


def test_without_alignment_nothing_carries_over() -> None:
    assert transfer("skeleton") < 0.5
