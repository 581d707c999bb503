"""One optimisation step against the published script's (train_step.npz)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses import Draws, Losses
from micu.losses.autoencoder import masked_mse
from micu.losses.jigsaw import JigsawLoss, unrank_permutation
from micu.model.micu import MICUOutput
from micu.train.state import TrainState
from micu.train.step import StepReport, build_optimizer, train_step
from tests.models import update_
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.omitted import best_two_gap, matching_loss, most_frequent_agree
from tests.parity.recipe import assert_close, checksum
from tests.parity.reference import (
    build_reference,
    decoder_shapes,
    encoder_shapes,
    parameter_names,
    reference_config,
    standard_inputs,
    text_lstm_shapes,
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


def jigsaw_of(losses: Losses) -> JigsawLoss:
    """The jigsaw's loss, which owns the classifier and the permutations."""
    return cast(JigsawLoss, losses.jigsaw)


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
        jigsaw = jigsaw_of(losses)
        parameters = dict(jigsaw.named_parameters())
        shapes = {old: tuple(parameters[new].shape) for old, new in JIGSAW_KEYS.items()}
        values = recipe.fill_state(shapes, recipe.JIGSAW, self.base)
        filled = {new: torch.from_numpy(values[old]) for old, new in JIGSAW_KEYS.items()}
        filled["permutations"] = torch.from_numpy(self.expected["perms"])
        jigsaw.load_state_dict(filled, strict=True)
        return TrainState(model, losses, build_optimizer(model, losses, config), config)

    def published_parameters(self) -> set[str]:
        """Every parameter of the published modules, dead ones included."""
        encoder = encoder_shapes(self.listing, self.grid_width)
        parts = {
            "encoder": [key for key in encoder if not key.startswith("Cross_quantizer.")],
            "text_lstm": text_lstm_shapes(self.listing),
            "decoder": decoder_shapes(self.listing, self.grid_width),
            "jigsaw": JIGSAW_KEYS,
        }
        return {f"{part}.{key}" for part, keys in parts.items() for key in keys}

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
    assert set(terms) == set(TrainConfig().terms())
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
    update_(state.model.quantizer, state.model(batch).update_semantic(), batch.mask)
    output = state.model(batch)
    recon, commit = per_modality(output, batch)
    assert_close(recon, by_modality(published, "recon_loss"))
    assert_close(commit, by_modality(published, "embed_loss"))
    matching = matching_loss(output.update_semantic(), state.model.quantizer.codebook)
    assert_close(matching, published["cmcm_loss"])


def per_modality(output: MICUOutput, batch: Batch) -> tuple[list[float], list[float]]:
    """Reconstruction and commitment losses in the golden files' order."""
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
    jigsaw = dict(jigsaw_of(state.losses).named_parameters())
    got |= {f"jigsaw.{old}": jigsaw[new].grad for old, new in JIGSAW_KEYS.items()}
    assert len(names) == len(ours), "every parameter of ours is one of theirs"
    assert all(gradient is not None for gradient in got.values())
    norms = [gradient.norm() for gradient in got.values() if gradient is not None]
    assert_close(norms, [expected[name] for name in got], MADE_IN_FLOAT32)
    absent = [norm for name, norm in expected.items() if name not in got]
    assert not np.any(absent), "what we leave out has no gradient there"
    others = step.published_parameters() - set(expected)
    assert set(step.expected["no_grad_names"]) == others
    assert not others & set(got)


def test_total_norms_before_clipping_are_the_published_ones(
    taken: tuple[TrainState, StepReport], step: Step
) -> None:
    norms = taken[1].grad_norms
    contrastive, encoder, lstm, *club, decoder = step.expected["clip_totals"]
    assert not np.any([contrastive, *club]), "what we leave out has no gradient there"
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
    expected = step.expected
    state, report = step.take(double_forward=False)
    assert_close(report.terms["fine"], expected["fine_float64"])
    assert_close(report.terms["coarse"], expected["coarse_float64"])
    assert_close(report.terms["reconstruction"], expected["sf_recon"].sum())
    assert_close(report.terms["commitment"], expected["sf_commit"].sum())
    assert_close(state.model.quantizer.ema_count, expected["sf_ema_count"])
    assert_close(checksum(state.model.quantizer.codebook), expected["sf_embedding_chk"])


@torch.no_grad()
def test_one_forward_pass_gives_each_modality_the_published_losses_and_codes(step: Step) -> None:
    expected, batch = step.expected, step.batch()
    model = step.state(step.config(double_forward=False)).model
    output = model(batch)
    recon, commit = per_modality(output, batch)
    assert_close(recon, expected["sf_recon"])
    assert_close(commit, expected["sf_commit"])
    codes = np.stack([output.quantized[name].codes.numpy() for name in ORDER])
    assert np.array_equal(codes, expected["sf_idx"])
    assert most_frequent_agree(output.quantized) == expected["sf_equal"]
    semantic, codebook = output.update_semantic(), model.quantizer.codebook
    assert_close(matching_loss(semantic, codebook), expected["sf_cmcm"])
    gaps = [best_two_gap(x, codebook).min() for x in semantic.values()]
    assert_close(min(gaps), expected["sf_margin_min"])


def test_the_permutations_are_those_of_the_published_ranks(step: Step) -> None:
    permutations = step.expected["perms"].tolist()
    ranks = step.expected["perm_index"].tolist()
    splits = len(permutations[0])
    assert [list(unrank_permutation(rank, splits)) for rank in ranks] == permutations
