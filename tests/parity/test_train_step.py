"""One optimisation step against the published script's (train_step.npz)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from micu.config import TrainConfig
from micu.data import Batch
from micu.losses import Draws, Losses, compute_losses
from micu.losses.autoencoder import masked_mse
from micu.losses.terms import LOSSES
from micu.model.micu import MICU, MICUOutput
from micu.step import StepReport, TrainState, build_optimizer, train_step
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.recipe import assert_close, checksum
from tests.parity.reference import (
    build_reference,
    encoder_shapes,
    parameter_names,
    reference_config,
    standard_inputs,
)

ORDER = ("audio", "video", "text")
JIGSAW_KEYS = {
    "enc_net.0.weight": "classifier.hidden.weight",
    "enc_net.0.bias": "classifier.hidden.bias",
    "enc_net.2.weight": "classifier.answer.weight",
    "enc_net.2.bias": "classifier.answer.bias",
}
MADE_IN_FLOAT32 = 1e-6
NO_CLIP = 1e30

Expected = Mapping[str, Any]


class Step:
    """The published script's step with the recipe's inputs and parameters."""

    def __init__(self, listing: Path, base: int, grid_width: int, expected: Expected) -> None:
        self.listing, self.base, self.grid_width = listing, base, grid_width
        self.expected = expected

    def config(self, *, double_forward: bool = True, grad_clip: float = 0.5) -> TrainConfig:
        base = reference_config(encoder_shapes(self.listing, self.grid_width), self.grid_width)
        splits, count = int(self.expected["splits"]), int(self.expected["P"])
        return replace(
            base,
            jigsaw=replace(base.jigsaw, splits=splits, permutations=count),
            optimizer=replace(base.optimizer, double_forward=double_forward, grad_clip=grad_clip),
        )

    def state(self, config: TrainConfig) -> TrainState:
        model = build_reference(self.listing, self.base, self.grid_width)
        losses = Losses(config).double()
        parameters = dict(losses.jigsaw.named_parameters())
        shapes = {old: tuple(parameters[new].shape) for old, new in JIGSAW_KEYS.items()}
        values = recipe.fill_state(shapes, recipe.JIGSAW, self.base)
        filled = {new: torch.from_numpy(values[old]) for old, new in JIGSAW_KEYS.items()}
        filled["permutations"] = torch.from_numpy(self.expected["perms"])
        losses.jigsaw.load_state_dict(filled, strict=True)
        return TrainState(model, losses, build_optimizer(model, losses, config), config)

    def batch(self) -> Batch:
        shape = self.expected["mask"].shape
        features = standard_inputs(self.listing, self.base, *shape)
        ids = tuple(map(str, range(shape[0])))
        return Batch(features, torch.ones(shape, dtype=torch.bool), ids, ("",) * shape[0])

    def draws(self) -> Draws:
        keep = torch.from_numpy(self.expected["mask"] > 0)
        return Draws(keep, torch.from_numpy(self.expected["select"]))

    def take(self, **settings: Any) -> tuple[TrainState, StepReport]:
        state = self.state(self.config(**settings))
        return state, train_step(state, self.batch(), self.draws())


@pytest.fixture(scope="module")
def step(golden: Golden, base: int, grid_width: int, checkpoint_listing: Path) -> Step:
    return Step(checkpoint_listing, base, grid_width, golden("train_step"))


@pytest.fixture(scope="module")
def taken(step: Step) -> tuple[TrainState, StepReport]:
    """The step as published: two forward passes, gradients clipped."""
    return step.take()


@pytest.fixture(scope="module")
def published(step: Step) -> dict[str, float]:
    expected = step.expected
    return dict(zip(expected["loss_names"].tolist(), expected["loss_values"].tolist(), strict=True))


def by_modality(published: dict[str, float], suffix: str) -> list[float]:
    return [published[f"{name}_{suffix}"] for name in ORDER]


def test_the_losses_and_their_sum_are_the_published_ones(
    taken: tuple[TrainState, StepReport], step: Step, published: dict[str, float]
) -> None:
    terms = taken[1].terms
    assert set(terms) == set(LOSSES)
    assert_close(terms["fine"], step.expected["fine_float64"])
    assert_close(terms["fine"], published["infonce_fine_loss"], MADE_IN_FLOAT32)
    assert_close(terms["coarse"], step.expected["coarse_float64"])
    assert_close(terms["coarse"], published["infonce_coarse_loss"])
    assert_close(terms["jigsaw"], published["jigsaw_loss"])
    assert_close(terms["reconstruction"], sum(by_modality(published, "recon_loss")))
    assert_close(terms["commitment"], sum(by_modality(published, "embed_loss")))
    assert_close(taken[1].total, step.expected["total_loss"], MADE_IN_FLOAT32)


@torch.no_grad()
def test_each_modality_is_rebuilt_and_committed_as_published_in_the_second_pass(
    step: Step, published: dict[str, float]
) -> None:
    state, batch = step.state(step.config()), step.batch()
    state.model.quantizer.update_(state.model(batch).semantic(), batch.mask)
    recon, commit = per_modality(state.model, batch)
    assert_close(recon, by_modality(published, "recon_loss"))
    assert_close(commit, by_modality(published, "embed_loss"))


def per_modality(model: MICU, batch: Batch) -> tuple[list[float], list[float]]:
    """Reconstruction and commitment losses in the golden files' order."""
    output: MICUOutput = model(batch)
    recon = [
        masked_mse(output.reconstruction[name], output.target[name], batch.mask).item()
        for name in ORDER
    ]
    return recon, [output.quantized[name].commitment_loss.item() for name in ORDER]


def test_gradient_norms_of_all_parameters_are_the_published_ones(step: Step) -> None:
    state, _ = step.take(grad_clip=NO_CLIP)
    expected = dict(zip(step.expected["grad_names"], step.expected["grad_norms"], strict=True))
    ours = dict(state.model.named_parameters())
    names = {old: new for old, new in parameter_names().items() if new in ours}
    got = {old: ours[new].grad for old, new in names.items()}
    jigsaw = dict(state.losses.jigsaw.named_parameters())
    got |= {f"jigsaw.{old}": jigsaw[new].grad for old, new in JIGSAW_KEYS.items()}
    assert len(names) == len(ours), "every parameter of ours is one of theirs"
    assert all(gradient is not None for gradient in got.values())
    norms = [gradient.norm() for gradient in got.values() if gradient is not None]
    assert_close(norms, [expected[name] for name in got], MADE_IN_FLOAT32)
    absent = [norm for name, norm in expected.items() if name not in got]
    assert not np.any(absent), "what we leave out has no gradient there"
    assert not set(got) & set(step.expected["no_grad_names"])


def test_total_norms_before_clipping_are_the_published_ones(
    taken: tuple[TrainState, StepReport], step: Step
) -> None:
    norms = taken[1].grad_norms
    _, encoder, lstm, *_, decoder = step.expected["clip_totals"]
    assert list(norms) == ["encoder", "text_lstm", "reconstruction", "loss_jigsaw"]
    got = [norms["encoder"], norms["text_lstm"], norms["reconstruction"]]
    assert_close(got, [encoder, lstm, decoder], MADE_IN_FLOAT32)


def test_the_codebook_and_the_weights_after_the_step_are_the_published_ones(
    taken: tuple[TrainState, StepReport], step: Step
) -> None:
    state, expected = taken[0], step.expected
    quantizer = state.model.quantizer
    assert_close(quantizer.ema_count, expected["ema_count"])
    assert_close(checksum(quantizer.ema_weight), expected["ema_weight_chk"])
    assert_close(checksum(quantizer.codebook), expected["embedding_chk"])
    assert np.array_equal(quantizer.unused.numpy(), expected["unactivated"])
    weight = dict(state.model.named_parameters())["semantic_encoders.audio.project.weight"]
    rows, columns = expected["after_audio_affine"].shape
    assert_close(weight.detach()[:rows, :columns], expected["after_audio_affine"])
    weight = dict(state.losses.named_parameters())["jigsaw.classifier.hidden.weight"]
    rows, columns = expected["after_jigsaw"].shape
    assert_close(weight.detach()[:rows, :columns], expected["after_jigsaw"])


def test_a_step_of_one_forward_pass_has_the_published_losses_and_codebook(step: Step) -> None:
    expected, batch = step.expected, step.batch()
    state, report = step.take(double_forward=False)
    assert_close(report.terms["fine"], expected["fine_float64"])
    assert_close(report.terms["coarse"], expected["coarse_float64"])
    assert_close(report.terms["reconstruction"], expected["sf_recon"].sum())
    assert_close(report.terms["commitment"], expected["sf_commit"].sum())
    assert_close(state.model.quantizer.ema_count, expected["sf_ema_count"])
    assert_close(checksum(state.model.quantizer.codebook), expected["sf_embedding_chk"])

    fresh = step.state(state.config)
    with torch.no_grad():
        recon, commit = per_modality(fresh.model, batch)
        output = fresh.model(batch)
    assert_close(recon, expected["sf_recon"])
    assert_close(commit, expected["sf_commit"])
    codes = np.stack([output.quantized[name].codes.numpy() for name in ORDER])
    assert np.array_equal(codes, expected["sf_idx"])


def test_compute_losses_gives_what_the_single_pass_step_reports(step: Step) -> None:
    state = step.state(step.config(double_forward=False))
    loss = compute_losses(state.model(step.batch()), step.batch(), state.losses, step.draws())
    report = train_step(state, step.batch(), step.draws())
    assert loss.detach().total.item() == pytest.approx(report.total, rel=1e-12)
