"""CLUB, Cross-CPC and code matching against loops written from their equations."""

import itertools
from dataclasses import replace
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor

from micu.config.presets import BASELINES
from micu.config.sections import (
    BaselinesConfig,
    ClubConfig,
    CodeMatchingConfig,
    CpcConfig,
    EncoderConfig,
    TrainConfig,
)
from micu.data.dataset import Batch
from micu.losses import Draws, Losses
from micu.losses.club import ClubLoss, Estimator, club_bound, log_likelihood
from micu.losses.code_matching import code_distributions, matching_loss
from micu.losses.cpc import CpcLoss, predictive_pairs
from micu.model.micu import MICU, MICUOutput
from micu.model.quantizer import Quantized
from tests.parity.omitted import matching_loss as published_matching

B, T, D, K, Y = 4, 6, 8, 5, 3
NAMES = ("audio", "video", "text")
FULL = torch.ones(B, T, dtype=torch.bool)
PADDED = torch.arange(T) < torch.tensor([6, 4, 5, 3])[:, None]
GAP = PADDED.clone()
GAP[0, 0] = GAP[2, 1] = False


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def configured(names: tuple[str, ...] = NAMES, **sections: Any) -> TrainConfig:
    config = replace(BASELINES["dcid"](), modalities=names)
    small = EncoderConfig(embed_dim=D, heads=2, feedforward_dim=8, dropout=0.0, text_hidden_dim=4)
    widths = replace(config.reconstruction, vector_width=Y)
    return replace(
        config, encoder=small, reconstruction=widths, baselines=BaselinesConfig(**sections)
    )


def output_of(names: tuple[str, ...] = NAMES) -> MICUOutput:
    """A forward pass with embeddings, codes and specific encodings that are unrelated."""

    def entry(seed: int) -> Quantized:
        none = torch.zeros(())
        codes = torch.zeros(B, T, dtype=torch.int64)
        return Quantized(
            numbers(B, T, D, seed=seed), numbers(B, T, D, seed=seed + 9), codes, none, none
        )

    quantized = {name: entry(i) for i, name in enumerate(names)}
    specific = {name: numbers(B, T, Y, seed=50 + i) for i, name in enumerate(names)}
    return MICUOutput(quantized, {}, {}, specific, codebook=numbers(K, D, seed=99))


def batch_of(mask: Tensor) -> Batch:
    return Batch({}, mask, tuple("abcd"), ("",) * B)


def draws_of(step: int = 3) -> Draws:
    nothing = torch.zeros(0)
    return Draws(nothing, nothing, seed=11, step=step)


def losses_of(config: TrainConfig, **grids: tuple[int, ...]) -> Losses:
    torch.manual_seed(0)
    losses = Losses(config)
    losses.start_(MICU(config, dict.fromkeys(config.modalities, (D,)) | grids), 10)
    return losses.double()


# --- CLUB ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [FULL, PADDED], ids=["full", "padded"])
def test_the_likelihood_of_the_estimators_is_that_of_a_gaussian_without_constants(
    mask: Tensor,
) -> None:
    mean, log_variance, y = numbers(B, T, Y), numbers(B, T, Y, seed=1), numbers(B, T, Y, seed=2)
    total, count = 0.0, 0
    for b, t in itertools.product(range(B), range(T)):
        if not mask[b, t]:
            continue
        count += 1
        for d in range(Y):
            error = (mean[b, t, d] - y[b, t, d]) ** 2
            total += 0.5 * float(-error / log_variance[b, t, d].exp() - log_variance[b, t, d])
    got = log_likelihood(mean, log_variance, y, mask)
    assert got.item() == pytest.approx(total / count, rel=1e-12)


@pytest.mark.parametrize("mask", [FULL, PADDED], ids=["full", "padded"])
def test_the_bound_is_how_much_likelier_a_clip_is_than_another_where_both_have_steps(
    mask: Tensor,
) -> None:
    mean, log_variance, y = numbers(B, T, Y), numbers(B, T, Y, seed=1), numbers(B, T, Y, seed=2)
    lengths, other = mask.sum(1).tolist(), [2, 1, 3, 0]
    gains = []
    for b, c in enumerate(other):
        n = min(lengths[b], lengths[c])
        spread = (log_variance[b, :n].mean(0) / 2).exp()
        gaussian = torch.distributions.Normal(mean[b, :n], spread)
        gain = gaussian.log_prob(y[b, :n]) - gaussian.log_prob(y[c, :n])
        gains.append(float(gain.sum()) / n)
    got = club_bound(mean, log_variance, y, torch.tensor(other), mask)
    assert got.item() == pytest.approx(sum(gains) / B, rel=1e-12)


@pytest.mark.parametrize("lengths", [(10, 3), (3, 10), (10, 10), (1, 7), (10, 0), (0, 0)])
def test_the_bound_of_what_is_alike_in_all_clips_is_0_however_long_they_are(
    lengths: tuple[int, int],
) -> None:
    mask = torch.arange(10) < torch.tensor(lengths)[:, None]
    y = torch.arange(1.0, 11.0, dtype=torch.float64)[None, :, None].expand(2, 10, Y)
    zero, log_variance = torch.zeros_like(y), numbers(2, 10, Y)
    for other in ([1, 0], [0, 1], [1, 1]):
        assert club_bound(zero, log_variance, y, torch.tensor(other), mask).item() == 0


def test_a_pair_of_clips_without_a_common_step_does_not_count_towards_the_bound() -> None:
    mean, log_variance, y = numbers(B, T, Y), numbers(B, T, Y, seed=1), numbers(B, T, Y, seed=2)
    mask, other = FULL.clone(), torch.tensor([1, 0, 3, 2])
    mask[3] = False
    got = club_bound(mean, log_variance, y, other, mask)
    torch.testing.assert_close(
        got, club_bound(mean[:2], log_variance[:2], y[:2], other[:2], mask[:2])
    )


def test_the_estimators_take_five_steps_of_their_own_adam_on_detached_values() -> None:
    config = configured()
    loss = cast(ClubLoss, losses_of(config).club)
    twin = cast(ClubLoss, losses_of(config).club)
    output = output_of()
    for entry in output.quantized.values():
        entry.quantized.requires_grad_()
    loss.fit_estimators_(output, batch_of(PADDED), draws_of())

    for name in NAMES:
        estimator = twin.estimators[name].requires_grad_()
        optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-3)
        x, y = output.quantized[name].quantized.detach(), output.specific[name]
        for _ in range(5):
            optimizer.zero_grad()
            mean, log_variance = estimator.mean(x), estimator.log_variance(x)  # type: ignore[operator]
            errors = -(mean - y).square() / log_variance.exp() - log_variance
            (-errors[PADDED].sum(-1).mean() / 2).backward()
            optimizer.step()
        for got, expected in zip(
            loss.estimators[name].parameters(), estimator.parameters(), strict=True
        ):
            torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-9, atol=1e-12)
    assert all(entry.quantized.grad is None for entry in output.quantized.values())


def test_the_bounds_of_all_modalities_are_added_up_each_with_pairs_of_its_own_draw() -> None:
    config = configured()
    config = replace(config, reconstruction=replace(config.reconstruction, grid_width=8))
    loss = cast(ClubLoss, losses_of(config, video=(7, 7, 4)).club)
    output, draws = output_of(), draws_of()
    grid = numbers(B, T, 2, 3, 8, seed=60)
    output.specific["video"] = grid
    got = loss.compute(output, batch_of(FULL), draws)

    source, total, pairings = draws.generator("club"), 0.0, []
    for name in NAMES:
        other = torch.randperm(B, generator=source).tolist()
        pairings.append(other)
        estimator, y = cast(Estimator, loss.estimators[name]), output.specific[name]
        if name == "video":
            cells = [grid[:, :, i, j] for i, j in itertools.product(range(2), range(3))]
            y = loss.heads[name](sum(cells) / 6)
            assert y.shape == (B, T, 2)  # a quarter of the grid's width
        for b in range(B):
            x = output.quantized[name].quantized[b]
            mean, log_variance = estimator.mean(x), estimator.log_variance(x)
            apart = (mean - y[other[b]]).square().mean(0)
            together = (mean - y[b]).square().mean(0)
            total += float(((apart - together) / log_variance.mean(0).exp()).sum().detach()) / 2 / B
    assert got.item() == pytest.approx(total, rel=1e-12)
    assert [1, 2, 3, 0] not in pairings
    assert len({tuple(other) for other in pairings}) == len(NAMES)


def test_the_estimators_learn_what_codes_say_and_get_no_gradient_from_the_bound() -> None:
    club = ClubConfig(learning_rate=1e-2)
    loss, output = cast(ClubLoss, losses_of(configured(club=club)).club), output_of()
    for entry in output.quantized.values():
        entry.quantized.requires_grad_()
    for step in range(20):
        loss.fit_estimators_(output, batch_of(FULL), draws_of(step))
    bound = loss.compute(output, batch_of(FULL), draws_of())
    before = cast(ClubLoss, losses_of(configured()).club).compute(
        output, batch_of(FULL), draws_of()
    )
    assert bound > before + 1
    bound.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None and not p.requires_grad for p in loss.estimators.parameters())
    assert all(entry.quantized.grad is not None for entry in output.quantized.values())


# --- Cross-CPC -------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True, True])])
@pytest.mark.parametrize("candidates", ["predictions", "targets"])
def test_pairs_are_contrasted_by_the_dot_product_over_predictions_or_targets(
    candidates: Literal["predictions", "targets"], mask: Tensor | None
) -> None:
    predicted, targets = numbers(2, B, D), numbers(2, B, D, seed=1)
    rows = [i for i in range(B) if mask is None or mask[i]]
    got = predictive_pairs(predicted, targets, candidates, mask)
    for m, n in itertools.product(range(2), range(2)):  # from m, of n
        total = 0.0
        for i in rows:
            if candidates == "predictions":
                scores = [targets[n, i] @ predicted[m, j] for j in rows]
            else:
                scores = [targets[n, j] @ predicted[m, i] for j in rows]
            total -= float(torch.stack(scores).log_softmax(0)[rows.index(i)])
        assert got[n, m].item() == pytest.approx(total / len(rows), rel=1e-12)


@pytest.mark.parametrize("mask", [FULL, PADDED, GAP], ids=["full", "padded", "gap"])
@pytest.mark.parametrize("names", [("audio", "video"), NAMES])
def test_the_next_step_is_predicted_from_the_past_by_each_modality_of_each(
    names: tuple[str, ...], mask: Tensor
) -> None:
    config = configured(names, cpc=CpcConfig(layers=2))
    loss, output = cast(CpcLoss, losses_of(config).cpc), output_of(names)
    got = loss.compute(output, batch_of(mask), draws_of())
    last = int(torch.randint(1, T - 1, (), generator=draws_of().generator("cpc")))
    rows = [b for b in range(B) if mask[b, last] and mask[b, last + 1]]
    total = 0.0
    for m, n in itertools.product(names, names):
        past = output.quantized[m].semantic[rows, : last + 1].clone()
        past[~mask[rows, : last + 1]] = 0  # what is not real is not read
        context = loss.readers[m](past)[0][:, last]
        scores = output.quantized[n].semantic[rows, last + 1] @ loss.predictors[m](context).T
        weight = 0.1 if m == n else 1.0
        total -= weight * float(scores.log_softmax(1).diagonal().mean().detach())
    assert got.item() == pytest.approx(total, rel=1e-12)


def test_the_past_has_two_to_all_but_one_steps() -> None:
    loss, read = cast(CpcLoss, losses_of(configured()).cpc), set()
    for reader in loss.readers.values():
        reader.register_forward_pre_hook(lambda _, given: read.add(given[0].shape[1]))
    for step in range(60):
        loss.compute(output_of(), batch_of(FULL), draws_of(step))
    assert read == set(range(2, T))


# --- code matching ---------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [FULL, PADDED], ids=["full", "padded"])
def test_a_clip_belongs_to_codes_by_the_distance_of_its_steps(mask: Tensor) -> None:
    semantic, codebook = numbers(1, B, T, D), numbers(K, D, seed=1)
    got = code_distributions(semantic, codebook, mask)
    for b in range(B):
        shares = []
        for t in range(T):
            if mask[b, t]:
                distances = [(semantic[0, b, t] - code).square().sum().sqrt() for code in codebook]
                shares.append(torch.softmax(-torch.stack(distances), 0))
        torch.testing.assert_close(got[0, b], torch.stack(shares).mean(0), rtol=1e-9, atol=1e-12)


def test_distances_to_codes_keep_their_precision_where_the_rest_is_in_bfloat16() -> None:
    semantic, codebook = numbers(1, B, T, D).float(), numbers(K, D, seed=1).float()
    expected = code_distributions(semantic, codebook, FULL)
    with torch.autocast("cpu", torch.bfloat16):
        got = code_distributions(semantic, codebook, FULL)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("index", ["paper", "reference"])
def test_clips_are_matched_by_the_symmetric_cross_entropy(
    index: Literal["paper", "reference"],
) -> None:
    one, other = numbers(B, K).softmax(-1), numbers(B, K, seed=1).softmax(-1)
    scores = torch.zeros(B, B, dtype=torch.float64)
    for i, j, k in itertools.product(range(B), range(B), range(K)):
        a, b = (i, j) if index == "paper" else (j, i)
        scores[i, j] += one[i, k] * (other[j, k] + 1e-10).log()
        scores[i, j] += other[b, k] * (one[a, k] + 1e-10).log()
    expected = -scores.log_softmax(1).diagonal().mean()
    got = matching_loss(one, other, index=index)
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_clip_without_steps_is_matched_with_none() -> None:
    one, other = numbers(B, K).softmax(-1), numbers(B, K, seed=1).softmax(-1)
    has_steps = torch.tensor([True, True, False, True])
    got = matching_loss(one, other, has_steps)
    assert got.item() == pytest.approx(
        matching_loss(one[has_steps], other[has_steps]).item(), rel=1e-12
    )


def test_with_the_published_index_the_loss_is_the_published_one() -> None:
    config = configured(code_matching=CodeMatchingConfig(index="reference"))
    output = output_of()
    got = 0.5 * losses_of(config).code_matching.compute(output, batch_of(FULL), draws_of())  # type: ignore[operator]
    expected = published_matching(output.update_semantic(), output.codebook)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)  # its sum has 1e-5 added
