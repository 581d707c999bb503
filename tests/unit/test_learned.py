"""Codes that the optimiser moves: how far they get, and that they keep their length."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from micu.config.overrides import with_overrides
from micu.config.presets import BASELINES
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.model.quantizer import DirectionQuantizer
from micu.train.state import TrainState
from micu.train.step import build_state, train_step
from tests.feature_sets import SMALL

B, T, D = 6, 3, 64
NAMES = ("audio", "flow")


def configured() -> TrainConfig:
    small = [*SMALL, f"encoder.embed_dim={D}", "baselines.transport.queue_size=14"]
    config = with_overrides(BASELINES["codis"](), [*small, "optimizer.learning_rate=0.002"])
    return replace(config, modalities=NAMES)


def fresh() -> TrainState:
    return build_state(configured(), dict.fromkeys(NAMES, (7,)), "cpu")


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    features = {name: torch.randn(B, T, 7, generator=generator) for name in NAMES}
    return Batch(features, torch.ones(B, T, dtype=torch.bool), tuple("abcdef"), ("",) * B)


def directions(state: TrainState) -> Tensor:
    return cast(DirectionQuantizer, state.model.quantizer).directions.detach()


def test_some_dozens_of_steps_turn_every_code_far_from_where_it_was_drawn() -> None:
    state = fresh()
    before = directions(state).clone()
    for _ in range(60):
        train_step(state, batch())
    cosines = torch.cosine_similarity(before, directions(state), dim=1)
    assert torch.rad2deg(cosines.clamp(-1, 1).acos()).min() > 15


def test_directions_have_unit_length_at_the_start_and_after_every_step() -> None:
    state = fresh()
    ones = torch.ones(state.config.quantizer.codebook_size)
    for _ in range(3):
        torch.testing.assert_close(directions(state).norm(dim=1), ones)
        train_step(state, batch())
    torch.testing.assert_close(directions(state).norm(dim=1), ones)
    codebook = state.model.quantizer.codebook.detach()
    torch.testing.assert_close(codebook.norm(dim=1), ones * D**0.5)
