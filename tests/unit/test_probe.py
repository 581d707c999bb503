"""Probes, and the features that they are trained on."""

import numpy as np
import pytest
import torch

from micu.errors import ConfigError, ShapeError
from micu.evaluate.probe import (
    RIDGE,
    ClassificationProbe,
    ClipFeatures,
    ProbeConfig,
    fit_linear,
    fit_probe,
    predict_logits,
)

LABELS = torch.arange(24) % 3


@pytest.fixture
def features() -> ClipFeatures:
    """Three classes that a linear probe can tell apart; the last of four steps is padding."""
    noise = torch.Generator().manual_seed(0)
    values = torch.randn(24, 4, 5, generator=noise) * 0.2
    values[torch.arange(24), :, LABELS] += 2
    mask = torch.ones(24, 4, dtype=torch.bool)
    mask[:, -1] = False
    values[:, -1] = 1e3
    return ClipFeatures("audio", tuple(f"c{i}" for i in range(24)), values, mask)


def accuracy(logits: np.ndarray) -> float:
    return float((logits.argmax(-1) == LABELS.numpy()).mean())


def test_padded_steps_do_not_reach_the_logits(features: ClipFeatures) -> None:
    probe = ClassificationProbe(5, 3)
    padded = probe.logits(features.values, features.mask)
    cut = probe.logits(features.values[:, :-1])
    assert torch.allclose(padded, cut)
    for candidate in fit_linear(features, LABELS, 3):
        cut_mask = features.mask[:, :-1]
        assert torch.allclose(
            candidate.logits(features.values, features.mask),
            candidate.logits(features.values[:, :-1], cut_mask),
        )


def test_the_probe_learns_and_is_yielded_after_every_epoch(features: ClipFeatures) -> None:
    config = ProbeConfig(epochs=6, learning_rate=1e-2, batch_size=8)
    scores = [
        accuracy(predict_logits(p, features)) for p in fit_probe(features, LABELS, 3, config, 0)
    ]
    assert len(scores) == 6
    assert scores[-1] == 1.0


def test_the_same_seed_gives_the_same_probe_and_another_another(features: ClipFeatures) -> None:
    def final(seed: int) -> np.ndarray:
        torch.manual_seed(seed + 100)  # the surrounding generator must not matter
        *_, probe = fit_probe(features, LABELS, 3, ProbeConfig(epochs=2, batch_size=7), seed)
        return predict_logits(probe, features)

    assert np.array_equal(final(1), final(1))
    assert not np.array_equal(final(1), final(2))


def test_training_leaves_the_global_generator_alone(features: ClipFeatures) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(fit_probe(features, LABELS, 3, ProbeConfig(epochs=1), 0))
    assert torch.equal(torch.rand(1), expected)


def test_the_learning_rate_falls_at_the_milestones(
    features: ClipFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    real = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *given: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    config = ProbeConfig(epochs=5, batch_size=24, milestones=(2, 4), learning_rate=0.4)
    list(fit_probe(features, LABELS, 3, config, 0))
    assert rates == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1])


def test_logistic_regression_is_fitted_for_every_penalty(features: ClipFeatures) -> None:
    weights = []
    for candidate in fit_linear(features, LABELS, 3):
        assert accuracy(predict_logits(candidate, features)) == 1.0
        weights.append(float(candidate.classify.weight.detach().norm()))
    assert len(weights) == len(RIDGE)
    assert weights == sorted(weights, reverse=True)


def test_logistic_regression_does_not_mind_the_scale_of_a_feature(features: ClipFeatures) -> None:
    scaled = ClipFeatures(
        "audio",
        features.clip_ids,
        features.values * torch.tensor([1e4, 1, 1e-4, 1, 1]),
        features.mask,
    )
    first, second = (next(iter(fit_linear(f, LABELS, 3))) for f in (features, scaled))
    ours, theirs = predict_logits(first, features), predict_logits(second, scaled)
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(ours).max()


def test_selecting_clips_keeps_the_order_asked_for(features: ClipFeatures) -> None:
    picked = features.select(["c5", "c2"])
    assert picked.clip_ids == ("c5", "c2")
    assert torch.equal(picked.values, features.values[[5, 2]])
    assert torch.equal(picked.mask, features.mask[[5, 2]])


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ShapeError, match="probe input"):
        ClassificationProbe(5, 3).logits(torch.zeros(2, 4, 6))


def test_a_probe_needs_an_epoch() -> None:
    with pytest.raises(ConfigError, match=r"probe.epochs: expected at least 1, got 0"):
        ProbeConfig(epochs=0)
