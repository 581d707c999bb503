"""The CLUB bound and what estimates it, on numbers that can be followed by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from micu.config.sections import EncoderConfig, LossWeights, ReconstructionConfig, TrainConfig
from micu.data.dataset import Batch
from micu.losses.club import ClubLoss, Estimator, club_bound, log_likelihood
from micu.model.micu import MICU, MICUOutput


def test_the_likelihood_is_the_mean_over_real_steps() -> None:
    mean, log_variance = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
    y = torch.tensor([[[3.0, 2.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, False]])
    assert log_likelihood(mean, log_variance, y, mask).item() == -2.0
    assert log_likelihood(mean, log_variance, y, ~mask).item() == -81.0
    assert log_likelihood(mean, log_variance, y, mask | ~mask).item() == -41.5
    assert log_likelihood(mean, log_variance, y, mask & ~mask).item() == 0.0
    wide = torch.full_like(log_variance, 2.0).log()
    expected = -(4.0 / 2 + 2 * torch.log(torch.tensor(2.0))) / 2
    assert log_likelihood(mean, wide, y, mask).item() == pytest.approx(expected.item())


def test_the_bound_is_the_mean_over_clips_that_share_a_step_with_their_partner() -> None:
    mean = torch.zeros(3, 2, 1)
    log_variance = torch.tensor([2.0, 2.0, 2.0]).log()[:, None, None].expand(3, 2, 1)
    y = torch.tensor([[[1.0], [2.0]], [[3.0], [5.0]], [[7.0], [11.0]]])
    other = torch.tensor([1, 2, 0])
    whole = torch.ones(3, 2, dtype=torch.bool)
    squares = [(1 + 4) / 2, (9 + 25) / 2, (49 + 121) / 2]
    each = [(squares[j] - squares[i]) / 2 / 2 for i, j in enumerate(other.tolist())]
    assert club_bound(mean, log_variance, y, other, whole).item() == pytest.approx(sum(each) / 3)
    # the first and second share one step, the others none
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    found = club_bound(mean, log_variance, y, other, mask)
    assert found.item() == pytest.approx((9 - 1) / 2 / 2)
    swapped = club_bound(mean[:2], log_variance[:2], y[:2], torch.tensor([1, 0]), mask[:2])
    assert swapped.item() == pytest.approx(0.0)
    two = torch.tensor([[True, False], [True, False], [False, False]])
    whole_first = club_bound(mean, log_variance, y, torch.tensor([1, 1, 0]), two)
    assert whole_first.item() == pytest.approx((9 - 1) / 2 / 2 / 2)
    none = torch.zeros(3, 2, dtype=torch.bool)
    assert club_bound(mean, log_variance, y, other, none).item() == 0.0


def test_an_estimator_has_three_hidden_layers_and_a_bounded_log_variance() -> None:
    estimator = Estimator(4, 2, 8)
    for network in (estimator.mean, estimator.log_variance[0]):
        assert isinstance(network, nn.Sequential)
        shapes = [tuple(part.weight.shape) for part in network if isinstance(part, nn.Linear)]
        assert shapes == [(8, 4), (8, 8), (8, 8), (2, 8)]
        assert len(network) == 7
    assert not any(parameter.requires_grad for parameter in estimator.parameters())
    _, log_variance = estimator.predict(1e6 * torch.ones(1, 4))
    assert log_variance.abs().max() <= 1


@pytest.mark.parametrize(("width", "middle", "out"), [(8, 4, 2), (6, 3, 1), (2, 1, 1)])
def test_the_head_of_a_grid_halves_its_width_twice(width: int, middle: int, out: int) -> None:
    small = TrainConfig(
        modalities=("video", "audio"),
        encoder=EncoderConfig(embed_dim=8, heads=2, feedforward_dim=8),
        reconstruction=ReconstructionConfig(grid_width=width, vector_width=5),
    )
    config = replace(small, weights=LossWeights(club=1.0))
    loss = ClubLoss(config)
    loss.start_(MICU(config, {"video": (7, 7, 3), "audio": (4,)}), steps=10)
    assert list(loss.heads) == ["video"]
    head = [part for part in loss.heads["video"] if isinstance(part, nn.Linear)]  # type: ignore[union-attr]
    assert [tuple(part.weight.shape) for part in head] == [(middle, width), (out, middle)]
    widths = {name: estimator.mean[-1].out_features for name, estimator in loss.estimators.items()}  # type: ignore[index, union-attr]
    assert widths == {"video": out, "audio": 5}
    grid, vector = torch.rand(2, 3, 4, 5, width), torch.rand(2, 3, 5)
    output = MICUOutput({}, {}, {}, {"video": grid, "audio": vector})
    output.embeddings.update(dict.fromkeys(("video", "audio"), torch.rand(2, 3, 8)))
    pairs = loss._pairs(output, Batch({}, torch.ones(2, 3, dtype=torch.bool), ("a", "b"), ("", "")))
    cells = grid.reshape(2, 3, 20, width).mean(2)
    assert torch.allclose(pairs["video"][1], loss.heads["video"](cells), atol=1e-6)
    assert pairs["audio"][1] is vector


def test_estimators_are_trained_in_their_own_steps_alone() -> None:
    config = replace(
        TrainConfig(modalities=("video", "audio")),
        encoder=EncoderConfig(embed_dim=8, heads=2, feedforward_dim=8),
        weights=LossWeights(club=1.0),
    )
    loss = ClubLoss(config)
    loss.start_(MICU(config, {"video": (4,), "audio": (4,)}), steps=10)
    before = [parameter.clone() for parameter in loss.estimators.parameters()]
    width = config.reconstruction.vector_width
    specific = {name: torch.rand(2, 3, width) for name in config.modalities}
    codes = {name: torch.rand(2, 3, 8) for name in config.modalities}
    output = MICUOutput({}, {}, {}, specific, embeddings=codes)
    batch: Any = SimpleNamespace(mask=torch.ones(2, 3, dtype=torch.bool))
    draws: Any = None
    loss.fit_estimators_(output, batch, draws)
    after = list(loss.estimators.parameters())
    assert not any(parameter.requires_grad for parameter in after)
    assert all(parameter.grad is None for parameter in after)
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert sum(moved) > len(moved) / 2


def test_the_bound_measures_how_far_a_clip_and_its_partner_are_from_what_is_expected() -> None:
    mean, y = torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[[2.0]], [[7.0]]])
    mask = torch.ones(2, 1, dtype=torch.bool)
    found = club_bound(mean, torch.zeros(2, 1, 1), y, torch.tensor([1, 0]), mask)
    apart, together = (1 - 7) ** 2 + (3 - 2) ** 2, (1 - 2) ** 2 + (3 - 7) ** 2
    assert found.item() == pytest.approx((apart - together) / 2 / 2)


def test_errors_and_log_variance_are_averaged_over_steps_before_they_are_divided() -> None:
    mean, log_variance, y = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = club_bound(mean, log_variance, y, torch.tensor([1, 0]), mask)
    total = 0.0
    for clip, other in ((0, 1), (1, 0)):
        for i in range(4):
            apart = sum(float(mean[clip, t, i] - y[other, t, i]) ** 2 for t in (0, 1)) / 2
            together = sum(float(mean[clip, t, i] - y[clip, t, i]) ** 2 for t in (0, 1)) / 2
            variance = math.exp(float(log_variance[clip, :2, i].mean()))
            total += (apart - together) / variance / 2
    assert found.item() == pytest.approx(total / 2, rel=1e-5)
