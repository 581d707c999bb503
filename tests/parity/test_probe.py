"""Probes are those of the published downstream scripts, step by step."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from micu.evaluate.localization import fit_localizer
from micu.evaluate.probe import (
    ClassificationProbe,
    ClipFeatures,
    LocalizationProbe,
    ProbeConfig,
    fit_probe,
    localization_losses,
    predict,
)
from tests.parity.recipe import (
    LOCALISER,
    PROBE,
    assert_close,
    checksum,
    fill_state,
    tensor,
)

Arrays = Mapping[str, Any]
PUBLISHED = {
    "event_classifier.bias": "classify.bias",
    "event_classifier.weight": "classify.weight",
    "linear.bias": "project.bias",
    "linear.weight": "project.weight",
}


@pytest.fixture(scope="module")
def arrays(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("probe")


@pytest.fixture
def codes(arrays: Arrays, golden: Callable[[str], Arrays], base: int) -> torch.Tensor:
    clips, width = arrays["pooled"].shape
    steps = golden("semantic")["lstm_out"].shape[1]
    return torch.from_numpy(tensor((clips, steps, width), 100 * base + 501))


def fill_(probe: torch.nn.Module, module: int, base: int) -> None:
    shapes = {theirs: probe.get_parameter(ours).shape for theirs, ours in PUBLISHED.items()}
    probe.double()
    for name, value in fill_state(shapes, module, base).items():
        probe.get_parameter(PUBLISHED[name]).data.copy_(torch.from_numpy(value))


def as_features(codes: torch.Tensor) -> ClipFeatures:
    ids = tuple(map(str, range(len(codes))))
    return ClipFeatures("audio", ids, codes, torch.ones(codes.shape[:2], dtype=torch.bool))


def test_the_classification_probe_is_the_published_one(
    arrays: Arrays, codes: torch.Tensor, base: int
) -> None:
    probe = ClassificationProbe(codes.shape[-1], int(arrays["C"]))
    fill_(probe, PROBE, base)
    assert_close(probe.pool(codes).detach(), arrays["pooled"])
    assert_close(probe.logits(codes).detach(), arrays["logits"])


def test_training_the_probe_takes_the_published_steps(
    arrays: Arrays, codes: torch.Tensor, base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, norms = [], []
    real_loss, real_clip = functional.cross_entropy, clip_grad_norm_

    def recorded_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses.append(real_loss(logits, target))
        return losses[-1]

    monkeypatch.setattr("micu.evaluate.probe.functional.cross_entropy", recorded_loss)
    monkeypatch.setattr(
        "micu.evaluate.probe.clip_grad_norm_",
        lambda *given: norms.append(real_clip(*given)),
    )

    class Filled(ClassificationProbe):
        def __init__(self, embed_dim: int, classes: int) -> None:
            super().__init__(embed_dim, classes)
            fill_(self, PROBE, base)

    monkeypatch.setattr("micu.evaluate.probe.ClassificationProbe", Filled)
    features = as_features(codes)
    steps = len(arrays["train_losses"])
    labels = torch.from_numpy(arrays["labels"])
    config = ProbeConfig(epochs=steps, batch_size=len(codes), milestones=())
    *_, probe = fit_probe(features, labels, int(arrays["C"]), config, seed=0)
    assert_close([loss.detach() for loss in losses], arrays["train_losses"])
    assert_close(norms, arrays["train_gradnorm"], 1e-6)
    final = [checksum(probe.get_parameter(PUBLISHED[name]).detach()) for name in sorted(PUBLISHED)]
    assert_close(final, arrays["final_chk"])
    assert predict(probe, features).logits.shape == arrays["logits"].shape


def test_the_localisation_probe_trains_as_published(
    arrays: Arrays, codes: torch.Tensor, base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = arrays["loc_logits_head"].shape[-1]
    probe = LocalizationProbe(codes.shape[-1], classes)
    fill_(probe, LOCALISER, base)
    probe.alpha.data = torch.full((classes,), 0.1)  # float32, and not clipped, when published
    flat = probe.logits(codes).detach().flatten(0, 1)
    assert_close(flat[: len(arrays["loc_logits_head"])], arrays["loc_logits_head"])
    labels = tensor((*codes.shape[:2], classes), int(arrays["loc_label_seed"])) > 0.8
    history: list[list[float]] = []

    def recorded(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        history.append([loss.item() for loss in localization_losses(*given)])
        return localization_losses(*given)

    class Filled(LocalizationProbe):
        def __init__(self, embed_dim: int, classes: int) -> None:
            super().__init__(embed_dim, classes)
            fill_(self, LOCALISER, base)
            self.alpha.data = torch.full((classes,), 0.1)

        def to(self, *given: object) -> "Filled":
            return self

    monkeypatch.setattr("micu.evaluate.localization.LocalizationProbe", Filled)
    monkeypatch.setattr("micu.evaluate.localization.localization_losses", recorded)
    steps = len(arrays["loc_losses"])
    config = ProbeConfig(epochs=steps, batch_size=len(codes), milestones=())
    *_, trained = fit_localizer(as_features(codes), labels, config, seed=0)
    expected = arrays["loc_losses"]
    # The published script computes the binary term in float32.
    assert_close([row[0] for row in history], expected[:, 0], 1e-6)
    assert_close([row[1] for row in history], expected[:, 1])
    assert_close(trained.alpha.mean().item(), arrays["loc_alpha_mean_after3"])
