"""CODIS: transport against POT, and the loss, the teacher and the queue against loops."""

import itertools
import math
from dataclasses import replace
from typing import cast

import numpy as np
import ot
import pytest
import torch
from torch import Tensor, nn

from micu.config.presets import BASELINES
from micu.config.sections import (
    BaselinesConfig,
    EncoderConfig,
    QuantizerConfig,
    TrainConfig,
    TransportConfig,
)
from micu.data.dataset import Batch
from micu.losses import Draws, Losses
from micu.losses.transport import TransportLoss, assignment_loss, sinkhorn
from micu.model.micu import MICU
from micu.model.quantizer import DirectionQuantizer

B, T, D, K, Q = 4, 5, 8, 6, 7
NAMES = ("audio", "video", "flow")
SETTINGS = TransportConfig(momentum=0.75, queue_size=Q, iterations=40, contrast_weight=0.5)
ALL = torch.ones(B, dtype=torch.bool)
NO_DRAWS = Draws(torch.zeros(0), torch.zeros(0))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def configured() -> TrainConfig:
    config = replace(BASELINES["codis"](), modalities=NAMES)
    return replace(
        config,
        encoder=EncoderConfig(embed_dim=D, heads=2, feedforward_dim=8, dropout=0.3),
        quantizer=replace(config.quantizer, codebook_size=K),
        baselines=BaselinesConfig(transport=SETTINGS),
    )


def batch_of(seed: int, ids: str = "abcd") -> Batch:
    features = {name: numbers(B, T, D, seed=seed + i) for i, name in enumerate(NAMES)}
    mask = torch.arange(T) < torch.tensor([5, 3, 4, 5])[:, None]
    return Batch(features, mask, tuple(ids), ("",) * B)


def built() -> tuple[MICU, TransportLoss]:
    torch.manual_seed(0)
    config = configured()
    model = MICU(config, dict.fromkeys(NAMES, (D,))).double()
    losses = Losses(config)
    losses.start_(model, 10)
    return model, cast(TransportLoss, losses.double().transport)


def directions(encoders: nn.ModuleDict, batch: Batch) -> Tensor:
    """What the teacher says of a batch, clip by clip."""
    found = []
    encoders.eval()
    for name, b in itertools.product(NAMES, range(B)):
        length = int(batch.mask[b].sum())
        steps = encoders[name].encode(batch.features[name][b : b + 1, :length])[0]  # type: ignore[operator]
        mean = (steps / steps.norm(dim=1, keepdim=True)).mean(0)
        found.append(mean / mean.norm())
    return torch.stack(found).view(len(NAMES), B, D).detach()


def test_the_plan_is_that_of_pot() -> None:
    cost = numbers(2, 9, 5).abs()
    mass = numbers(9, seed=1).abs()
    mass /= mass.sum()
    plans = sinkhorn(cost, mass, 0.1, 500)
    columns = np.full(5, 1 / 5)
    for plan, costs in zip(plans, cost, strict=True):
        expected = ot.bregman.sinkhorn(
            mass.numpy(),
            columns,
            costs.numpy(),
            0.1,
            method="sinkhorn_log",
            numItermax=5000,
            stopThr=1e-14,
        )
        np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-7, atol=1e-12)


def test_few_iterations_are_those_of_the_textbook() -> None:
    cost, mass = numbers(6, 4).abs(), torch.full((6,), 1 / 6, dtype=torch.float64)
    kernel, v = torch.exp(-cost / 0.2), torch.ones(4, dtype=torch.float64)
    for _ in range(3):
        u = mass / (kernel @ v)
        v = torch.full_like(v, 1 / 4) / (kernel.T @ u)
    expected = u[:, None] * kernel * v
    torch.testing.assert_close(sinkhorn(cost, mass, 0.2, 3), expected)


@pytest.mark.parametrize("iterations", [50, 200, 1000])  # in 200 a scaling leaves float32
def test_costs_that_would_underflow_without_logarithms_have_a_plan(iterations: int) -> None:
    cost, mass = 1000 * numbers(6, 4).abs().float(), torch.full((6,), 1 / 6)
    plan = sinkhorn(cost, mass, 0.05, iterations)
    assert plan.isfinite().all()
    expected = sinkhorn_by_logarithms(cost.double(), mass.double(), 0.05, iterations)
    torch.testing.assert_close(plan.double(), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 1 / 4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.01, 1e-4])
def test_half_the_digits_give_the_plan_of_all(epsilon: float) -> None:
    cost, mass = numbers(2, 40, 7).abs().clamp(max=2), numbers(40, seed=1).abs()
    mass /= mass.sum()
    plan = sinkhorn(cost.float(), mass.float(), epsilon, 20)
    expected = sinkhorn_by_logarithms(cost.float().double(), mass, epsilon, 20)
    torch.testing.assert_close(plan.double(), expected, rtol=0, atol=1e-3 / 40 / 7)


def sinkhorn_by_logarithms(cost: Tensor, mass: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Potentials f and g, each from the other, as the textbook has them."""
    g = torch.zeros_like(cost[..., 0, :])
    for _ in range(iterations):
        f = epsilon * (mass.log() - ((g[..., None, :] - cost) / epsilon).logsumexp(-1))
        each = math.log(cost.shape[-1])
        g = epsilon * (-each - ((f[..., None] - cost) / epsilon).logsumexp(-2))
    return ((f[..., None] + g[..., None, :] - cost) / epsilon).exp()


def test_a_row_without_mass_changes_no_other_one() -> None:
    cost = numbers(6, 4).abs()
    mass = torch.tensor([0.25, 0.25, 0, 0.25, 0.25, 0], dtype=torch.float64)
    some = mass > 0
    plan = sinkhorn(cost, mass, 0.1, 20)
    torch.testing.assert_close(plan[some], sinkhorn(cost[some], mass[some], 0.1, 20))
    assert not plan[~some].any()


def test_each_modality_predicts_the_plans_of_the_others_and_pays_for_its_own() -> None:
    unit = nn.functional.normalize
    student, teacher = (unit(numbers(3, B, D, seed=s), dim=-1) for s in (0, 1))
    codes, plan = unit(numbers(K, D, seed=2), dim=-1), numbers(3, B, K, seed=3).softmax(-1)
    swapped, paid = 0.0, 0.0
    for m, i in itertools.product(range(3), range(B)):
        for k in range(K):
            paid += float(plan[m, i, k] * (1 - teacher[m, i] @ codes[k])) / (3 * B)
        for n in range(3):
            if n != m:
                chances = torch.log_softmax(
                    torch.stack([student[n, i] @ c for c in codes]) / 0.1, 0
                )
                swapped -= float(plan[m, i] @ chances) / (6 * B)
    got = assignment_loss(student, codes, teacher, plan, ALL, 0.1)
    assert got.item() == pytest.approx(swapped + paid, rel=1e-12)


def test_the_loss_is_assignment_over_batch_and_queue_and_contrast_with_both() -> None:
    model, loss = built()
    model.train()
    loss.teacher.push_(
        directions(loss.teacher.semantic_encoders, batch_of(40, "efgh")), batch_of(40, "efgh")
    )
    batch = batch_of(7, "abce")  # clip e is in the queue, and no negative of itself
    output = model(batch)
    got = loss.compute(output, batch, NO_DRAWS)

    queued = loss.teacher.queue[:, 1:4]
    teacher = directions(loss.teacher.semantic_encoders, batch)
    known = torch.cat([teacher, queued], 1)
    codes = output.codebook.detach() / output.codebook.detach().norm(dim=1, keepdim=True)
    mass = torch.full((7,), 1 / 7, dtype=torch.float64)
    plan = sinkhorn(1 - known @ codes.T, mass, 0.05, 40)[:, :B]
    plan = plan / plan.sum(-1, keepdim=True)
    student = []
    for name, b in itertools.product(NAMES, range(B)):
        mean = output.quantized[name].semantic[b, batch.mask[b]].mean(0)
        student.append(mean / mean.norm())
    clips = torch.stack(student).view(3, B, D)
    contrast = 0.0
    for m, n, i in itertools.product(range(3), range(3), range(B)):
        scores = torch.stack([clips[m, i] @ key for key in known[n]]) / 0.07
        contrast -= float(scores.log_softmax(0)[i].detach()) / (9 * B)
    expected = assignment_loss(clips, codes, teacher, plan, ALL, 0.1).item() + 0.5 * contrast
    assert got.item() == pytest.approx(expected, rel=1e-9)


def test_clips_without_a_real_step_change_nothing() -> None:
    model, loss = built()
    batch = batch_of(7)
    batch.mask[2:] = False
    some = Batch(
        {name: x[:2] for name, x in batch.features.items()}, batch.mask[:2], ("a", "b"), ("", "")
    )
    model.eval()
    got, wanted = (loss.compute(model(part), part, NO_DRAWS) for part in (batch, some))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("queued", [False, True])
def test_a_batch_without_a_real_step_costs_nothing_and_moves_nothing(queued: bool) -> None:
    model, loss = built()
    if queued:
        seen = batch_of(40, "efgh")
        loss.teacher.push_(directions(loss.teacher.semantic_encoders, seen), seen)
    batch = batch_of(7)
    batch.mask[:] = False
    value = loss.compute(model(batch), batch, NO_DRAWS)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


def test_codes_get_their_gradient_from_the_loss_and_the_teacher_none() -> None:
    model, loss = built()
    batch = batch_of(7)
    output = model(batch)
    loss.compute(output, batch, NO_DRAWS).backward()  # type: ignore[no-untyped-call]
    quantizer = cast(DirectionQuantizer, model.quantizer)
    assert quantizer.directions.grad is not None
    assert quantizer.directions.grad.abs().max() > 0
    assert all(p.grad is None for p in loss.teacher.parameters())
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for p in model.semantic_encoders["flow"].layers.parameters()  # type: ignore[union-attr]
        if p.ndim > 1
    )


def test_the_teacher_is_a_moving_average_of_the_student_whose_momentum_rises() -> None:
    model, loss = built()
    mine, theirs = (
        next(iter(encoders.parameters()))
        for encoders in (loss.teacher.semantic_encoders, model.semantic_encoders)
    )
    expected = theirs.detach().clone()
    for step, kept in (
        (0, 1 / 10),
        (1, 2 / 11),
        (2, 3 / 12),
        (25, 26 / 35),
        (27, 0.75),
        (90, 0.75),
    ):
        with torch.no_grad():
            theirs.add_(numbers(*theirs.shape, seed=step))
        batch = batch_of(step)
        loss.after_step_(model, model(batch), batch, replace(NO_DRAWS, step=step))
        expected = kept * expected + (1 - kept) * theirs.detach()
        torch.testing.assert_close(mine.detach(), expected)
    assert mine is not theirs


def test_the_queue_keeps_the_newest_clips_of_the_teacher() -> None:
    model, loss = built()
    kept: list[Tensor] = []
    for step, ids in enumerate(("abcd", "efgh", "ijkl")):
        batch = batch_of(step, ids)
        batch.mask[1] = step != 1  # clip f has no step
        loss.after_step_(model, model(batch), batch, NO_DRAWS)
        batch.mask[1] = True
        found = directions(loss.teacher.semantic_encoders, replace(batch, mask=batch.mask))
        kept += [found[:, i] for i in range(B) if not (step == 1 and i == 1)]
    newest = torch.stack(kept[-Q:], 1)
    queue = loss.teacher.queue
    for vector in newest.unbind(1):
        assert any(torch.allclose(vector, queue[:, place]) for place in range(Q))
    assert int(loss.teacher.pushed) == 11
    others = loss.teacher.others(batch_of(0, "ijxy"))
    assert others.sum() == Q - 2


def test_steps_take_the_code_of_the_largest_cosine_and_all_have_one_length() -> None:
    quantizer = DirectionQuantizer(
        D, QuantizerConfig(codebook_size=K, learning="gradient", reset="off")
    )
    semantic = numbers(2, 3, D).float()
    found = quantizer.quantize({"audio": semantic})["audio"]
    for b, t in itertools.product(range(2), range(3)):
        cosines = [
            float(torch.cosine_similarity(semantic[b, t], code, dim=0))
            for code in quantizer.directions.detach()
        ]
        best = int(np.argmax(cosines))
        assert found.codes[b, t] == best
    lengths = torch.stack([found.semantic, found.quantized]).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, D**0.5))


def test_commitment_moves_the_features_and_not_the_codes() -> None:
    quantizer = DirectionQuantizer(
        D, QuantizerConfig(codebook_size=K, learning="gradient", reset="off")
    )
    semantic = numbers(2, 3, D).float().requires_grad_()
    found = quantizer.quantize({"audio": semantic})["audio"]
    (found.commitment_loss + found.quantized.sum()).backward()  # type: ignore[no-untyped-call]
    assert semantic.grad is not None
    assert quantizer.directions.grad is None
