"""Probes, and the features that they are trained on."""

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from micu.base.errors import ConfigError, ShapeError
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.config.sections import DataConfig
from micu.data.dataset import Batch
from micu.evaluate.encoders import ClipCache, CodeEncoder, InputEncoder, pool_inputs
from micu.evaluate.models import untrained_model
from micu.evaluate.probe import (
    RIDGE,
    ClassificationProbe,
    ClipFeatures,
    ProbeConfig,
    encode_clips,
    encode_with_dropout,
    fit_linear,
    fit_probe,
    predict,
)
from micu.model.micu import MICU
from micu.store.sets import FeatureStore, find_sets
from tests.feature_sets import SHAPES, SMALL, make_clips, write_features

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
    assert torch.allclose(padded, cut, atol=1e-6)
    for candidate in fit_linear(features, LABELS, 3):
        cut_mask = features.mask[:, :-1]
        assert torch.allclose(
            candidate.logits(features.values, features.mask),
            candidate.logits(features.values[:, :-1], cut_mask),
        )


def test_the_probe_learns_and_is_yielded_after_every_epoch(features: ClipFeatures) -> None:
    config = ProbeConfig(epochs=6, learning_rate=1e-2, batch_size=8)
    scores = [
        accuracy(predict(p, features).logits) for p in fit_probe(features, LABELS, 3, config, 0)
    ]
    assert len(scores) == 6
    assert scores[-1] == 1.0


def test_the_same_seed_gives_the_same_probe_and_another_another(features: ClipFeatures) -> None:
    def final(seed: int) -> np.ndarray:
        torch.manual_seed(seed + 100)  # the surrounding generator must not matter
        *_, probe = fit_probe(features, LABELS, 3, ProbeConfig(epochs=2, batch_size=7), seed)
        return predict(probe, features).logits

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
        assert accuracy(predict(candidate, features).logits) == 1.0
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
    ours, theirs = predict(first, features).logits, predict(second, scaled).logits
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


def test_an_offset_leaves_out_the_last_epochs(features: ClipFeatures) -> None:
    def logits(**settings: int) -> list[np.ndarray]:
        config = ProbeConfig(learning_rate=1e-2, batch_size=8, **settings)  # type: ignore[arg-type]
        return [predict(p, features).logits for p in fit_probe(features, LABELS, 3, config, 0)]

    whole, less = logits(epochs=5), logits(epochs=5, epoch_offset=2)
    assert len(less) == 3
    assert all(map(np.array_equal, whole, less))
    with pytest.raises(ConfigError, match=r"probe.epoch_offset: expected 0 to 4, .* got 5"):
        ProbeConfig(epochs=5, epoch_offset=5)


def test_features_made_anew_are_those_of_their_epoch(features: ClipFeatures) -> None:
    asked: list[int] = []

    def renew(epoch: int) -> torch.Tensor:
        asked.append(epoch)
        return features.values * (epoch > 0)  # nothing can be learned from the first epoch's

    config = ProbeConfig(epochs=3, learning_rate=1e-2, batch_size=8)
    probes = fit_probe(features, LABELS, 3, config, 0, renew)
    first, *_, last = (accuracy(predict(probe, features).logits) for probe in probes)
    assert asked == [0, 1, 2]
    assert last > first


def test_logits_do_not_depend_on_how_many_clips_are_predicted_at_once(
    features: ClipFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(ClassificationProbe):
        def pool(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            assert len(values) <= 7
            return super().pool(values, mask)

    probe = Counting(5, 3)
    pooled = ClassificationProbe.pool(probe, features.values, features.mask)
    at_once = probe.classify(pooled)
    monkeypatch.setattr("micu.evaluate.probe.PREDICTED_AT_ONCE", 7)
    assert np.allclose(predict(probe, features).logits, at_once.detach(), atol=1e-5)


def test_probes_are_trained_where_their_features_are(features: ClipFeatures) -> None:
    elsewhere = features.to("meta")
    (probe,) = fit_probe(elsewhere, LABELS, 3, ProbeConfig(epochs=1), 0)
    assert {parameter.device.type for parameter in probe.parameters()} == {"meta"}


@pytest.mark.parametrize("name", [field.name for field in fields(ProbeConfig)])
def test_probes_trained_differently_are_described_differently(name: str) -> None:
    other = (1, 2) if name == "milestones" else 3
    assert replace(ProbeConfig(), **{name: other}).describe() != ProbeConfig().describe()


# --- encoders --------------------------------------------------------------------------------


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, FeatureStore]:
    write_features(tmp_path / "features", make_clips(20))
    opened = (FeatureStore(folder) for folder in find_sets(tmp_path / "features"))
    return {store.spec.modality: store for store in opened}


@pytest.fixture
def model() -> MICU:
    config = with_overrides(PRESETS["micu"](), [*SMALL, "modalities=audio,video"])
    return untrained_model(config, {name: SHAPES[name] for name in config.modalities}, seed=0)


class Reading:
    """`pool_inputs`, with a note of what was read."""

    def __init__(self) -> None:
        self.read: list[tuple[str, tuple[str, ...]]] = []

    def __call__(self, batches: Iterable[Batch], modality: str) -> ClipFeatures:
        found = pool_inputs(batches, modality)
        self.read.append((modality, found.clip_ids))
        return found


def test_padded_steps_are_kept_from_the_encoder_and_from_the_probe(model: MICU) -> None:
    values = torch.randn(2, 10, *SHAPES["audio"], generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[:, 6:] = False
    other = values.clone()
    other[:, 6:] = 50.0
    one, two = (
        encode_clips(model, [Batch({"audio": each}, mask, ("a", "b"), ("", ""))], "audio")
        for each in (values, other)
    )
    assert torch.equal(one.mask, mask)
    assert torch.equal(one.codes[:, :6], two.codes[:, :6])
    seen = model.encode({"audio": values})["audio"].semantic[:, :6]
    hidden = model.encode({"audio": values}, mask)["audio"].semantic[:, :6]
    assert not torch.allclose(seen, hidden), "this model would not notice a mask that is dropped"


def test_dropout_while_encoding_is_the_seed_s_and_leaves_no_trace(model: MICU) -> None:
    values = torch.randn(4, 10, *SHAPES["audio"], generator=torch.Generator().manual_seed(0))
    batch = Batch({"audio": values}, torch.ones(4, 10, dtype=torch.bool), tuple("abcd"), ("",) * 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (
        encode_with_dropout(model, [batch], "audio", seed).codes for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_model_is_told_the_mask(model: MICU, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[torch.Tensor | None] = []
    real = model.encode

    def encode(features: dict[str, torch.Tensor], mask: torch.Tensor | None = None) -> object:
        told.append(mask)
        return real(features, mask)

    monkeypatch.setattr(model, "encode", encode)
    mask = torch.arange(10)[None] < 6
    batch = Batch({"audio": torch.zeros(1, 10, *SHAPES["audio"])}, mask, ("a",), ("",))
    encode_clips(model, [batch], "audio")
    assert told[0] is not None
    assert torch.equal(told[0], mask)


def test_raw_grids_are_averaged_over_their_cells(stores: dict[str, FeatureStore]) -> None:
    cache = ClipCache(stores, make_clips(20), DataConfig(), pool_inputs)
    found = InputEncoder("input", cache, "cpu").encode("video", ["clip/3", "clip/1"])
    grid = torch.from_numpy(stores["video"].read("clip/3").values)
    assert torch.allclose(found.values[0], grid.mean((1, 2)), atol=1e-6)


def test_features_that_are_read_in_half_precision_are_probed_in_float32(
    stores: dict[str, FeatureStore],
) -> None:
    cache = ClipCache(stores, make_clips(20), DataConfig(dtype="float16"), pool_inputs)
    encoder = InputEncoder("ceiling", cache, "cpu")
    found = encoder.encode("audio", [f"clip/{number}" for number in range(8)])
    assert found.values.dtype is torch.float32
    labels = torch.arange(8) % 2
    *_, probe = encoder.train_probe(found, labels, 2, ProbeConfig(), 1)
    assert all(weight.isfinite().all() for weight in probe.parameters())


def test_only_the_clips_asked_for_are_read_and_each_once(stores: dict[str, FeatureStore]) -> None:
    reading = Reading()
    cache = ClipCache(stores, make_clips(20), DataConfig(), reading)
    one, two = (InputEncoder(name, cache, "cpu") for name in ("input", "ceiling"))
    one.encode("audio", ["clip/3", "clip/1"])
    found = two.encode("audio", ["clip/1", "clip/7", "clip/3"])
    one.encode("audio", ["clip/7"])
    assert reading.read == [("audio", ("clip/3", "clip/1")), ("audio", ("clip/7",))]
    assert found.clip_ids == ("clip/1", "clip/7", "clip/3")
    fresh = ClipCache(stores, make_clips(20), DataConfig(), pool_inputs)
    assert torch.equal(found.values, fresh.get("audio", found.clip_ids).values)


def test_codes_of_clips_asked_for_later_are_those_of_all_at_once(
    stores: dict[str, FeatureStore], model: MICU
) -> None:
    ids = [f"clip/{number}" for number in range(6)]
    at_once, bit_by_bit = (CodeEncoder("code", model, stores, make_clips(20)) for _ in range(2))
    bit_by_bit.encode("audio", ids[3:])
    assert at_once.device == torch.device("cpu")
    assert torch.equal(at_once.encode("audio", ids).codes, bit_by_bit.encode("audio", ids).codes)
