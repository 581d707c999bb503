"""One optimisation step: what it moves, in which order, and what it refuses to move."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from micu.base.errors import TrainError
from micu.config.sections import (
    EncoderConfig,
    JigsawConfig,
    OptimizerConfig,
    QuantizerConfig,
    ReconstructionConfig,
    TrainConfig,
)
from micu.data.dataset import Batch
from micu.losses import draw
from micu.model.quantizer import Assignment, UnifiedQuantizer, nearest_code
from micu.train.state import TrainState
from micu.train.step import StepReport, build_state, train_step

B, T = 4, 5
SHAPES: dict[str, tuple[int, ...]] = {"audio": (6,), "video": (5, 5, 4), "text": (7,)}
CONFIG = TrainConfig(
    encoder=EncoderConfig(
        embed_dim=16, heads=2, layers=1, feedforward_dim=16, dropout=0.3, text_hidden_dim=5
    ),
    quantizer=QuantizerConfig(codebook_size=12),
    reconstruction=ReconstructionConfig(grid_width=8, vector_width=8),
    jigsaw=JigsawConfig(splits=4, permutations=5, hidden_dim=8),
    optimizer=OptimizerConfig(learning_rate=1e-3),
)
TWICE = replace(CONFIG, optimizer=replace(CONFIG.optimizer, double_forward=True))
BOTH = pytest.mark.parametrize("config", [CONFIG, TWICE], ids=["one pass", "two passes"])


def batch(seed: int = 0, lengths: tuple[int, ...] = (T,) * B) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    features = {
        name: torch.randn((len(lengths), T, *shape), generator=generator)
        for name, shape in SHAPES.items()
    }
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    ids = tuple(f"clip{i}" for i in range(len(lengths)))
    return Batch(features, mask, ids, ("",) * len(lengths))


def poisoned(seed: int = 0) -> Batch:
    bad = batch(seed)
    bad.features["audio"][1, 2, 3] = torch.nan
    return bad


def fresh(config: TrainConfig = CONFIG) -> TrainState:
    return build_state(config, SHAPES, "cpu")


def snapshot(state: TrainState) -> dict[str, Tensor]:
    """Everything that a step may move."""
    parts = {"model": state.model.state_dict(), "losses": state.losses.state_dict()}
    found = {f"{part}.{k}": v.clone() for part, values in parts.items() for k, v in values.items()}
    for i, entry in enumerate(state.optimizer.state_dict()["state"].values()):
        found |= {f"optimizer.{i}.{key}": value.clone() for key, value in entry.items()}
    return found


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    differing = [key for key in first if not torch.equal(first[key], second[key])]
    assert not differing


def reports_equal(first: StepReport, second: StepReport) -> bool:
    return repr(first) == repr(second)


@BOTH
def test_equal_states_take_equal_steps_whatever_else_drew_numbers(config: TrainConfig) -> None:
    one, two = fresh(config), fresh(config)
    for seed in range(3):
        first = train_step(one, batch(seed))
        torch.rand(seed + 1)
        assert reports_equal(train_step(two, batch(seed)), first)
    assert_same(snapshot(one), snapshot(two))


def test_another_step_has_another_dropout() -> None:
    state, later = fresh(), fresh()
    later.step = 1
    drawn = draw(CONFIG, B, T, seed=0, step=0, device="cpu")
    first, second = train_step(state, batch(), drawn), train_step(later, batch(), drawn)
    assert first.terms["reconstruction"] != second.terms["reconstruction"]


def test_the_second_pass_has_a_dropout_of_its_own() -> None:
    one, two = train_step(fresh(CONFIG), batch()), train_step(fresh(TWICE), batch())
    assert one.terms["fine"] == two.terms["fine"]
    assert one.terms["reconstruction"] != two.terms["reconstruction"]


def test_every_parameter_is_optimised_in_exactly_one_group() -> None:
    state = fresh()
    grouped = [p for group in state.optimizer.param_groups for p in group["params"]]
    expected = [*state.model.parameters(), *state.losses.parameters()]
    assert len(grouped) == len(expected)
    assert {id(p) for p in grouped} == {id(p) for p in expected}
    names = [group["name"] for group in state.optimizer.param_groups]
    assert names == ["encoder", "text_lstm", "reconstruction", "loss_jigsaw"]


@BOTH
def test_a_step_moves_weights_classifier_and_codebook(config: TrainConfig) -> None:
    state = fresh(config)
    before = snapshot(state)
    train_step(state, batch())
    after = snapshot(state)
    still = [key for key in before if torch.equal(before[key], after[key])]
    assert still == ["losses.jigsaw.permutations"]
    assert state.step == 1


def test_the_codebook_follows_the_features_of_before_the_step() -> None:
    state = fresh()
    train_step(state, batch())
    frozen = replace(CONFIG, optimizer=replace(CONFIG.optimizer, learning_rate=1e-30))
    other = fresh(frozen)
    train_step(other, batch())
    assert torch.equal(state.model.quantizer.codebook, other.model.quantizer.codebook)


@pytest.mark.parametrize(("config", "passes"), [(CONFIG, 1), (TWICE, 2)])
def test_every_pass_looks_its_codes_up_once(
    config: TrainConfig, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, calls = fresh(config), []

    def counted(x: Tensor, codebook: Tensor) -> Tensor:
        calls.append(len(x))
        return nearest_code(x, codebook)

    monkeypatch.setattr("micu.model.quantizer.nearest_code", counted)
    train_step(state, batch())
    assert len(calls) == passes


@BOTH
def test_codes_of_the_pass_move_the_codebook_as_those_looked_up_again(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, other = fresh(config), fresh(config)
    assign = UnifiedQuantizer.assign
    train_step(state, batch(lengths=(T, 2) + (T,) * (B - 2)))

    def afresh(self: UnifiedQuantizer, semantic: Any, mask: Any, codes: Any) -> Assignment:
        given.append(codes)
        return assign(self, semantic, mask)

    given: list[Any] = []
    monkeypatch.setattr(UnifiedQuantizer, "assign", afresh)
    train_step(other, batch(lengths=(T, 2) + (T,) * (B - 2)))
    assert all(codes is not None for codes in given)
    assert_same(snapshot(state), snapshot(other))


def test_two_passes_update_the_codebook_twice() -> None:
    state = fresh(TWICE)
    train_step(state, batch())
    decay, modalities = CONFIG.quantizer.ema_decay, len(SHAPES)
    kept = decay ** (2 * modalities)
    expected = CONFIG.quantizer.codebook_size * kept + B * T * (1 - kept)
    assert state.model.quantizer.ema_count.sum().item() == pytest.approx(expected, rel=1e-4)


@BOTH
def test_a_bad_batch_stops_the_run_and_moves_nothing(config: TrainConfig) -> None:
    state = fresh(config)
    train_step(state, batch())
    before = snapshot(state)
    with pytest.raises(TrainError, match=r"step 1: loss 'fine' is nan.*clip0, clip1, clip2, clip3"):
        train_step(state, poisoned())
    assert_same(before, snapshot(state))
    assert state.step == 1
    assert all(p.grad is None for p in state.model.parameters())


@BOTH
def test_bad_steps_are_skipped_as_long_as_they_are_few_in_a_row(config: TrainConfig) -> None:
    state = fresh(replace(config, optimizer=replace(config.optimizer, skip_nonfinite=2)))
    before = snapshot(state)
    for _ in range(2):
        assert train_step(state, poisoned()).skipped
    assert_same(before, snapshot(state))
    assert not train_step(state, batch()).skipped
    assert (state.step, state.nonfinite) == (3, 0)
    for _ in range(2):
        train_step(state, poisoned())
    with pytest.raises(TrainError, match="step 5"):
        train_step(state, poisoned())


def test_a_gradient_that_is_not_finite_stops_the_run_and_moves_nothing() -> None:
    state = fresh()
    next(state.model.reconstructors.parameters()).register_hook(lambda grad: grad * torch.inf)
    before = snapshot(state)
    with pytest.raises(TrainError, match=r"gradient of 'reconstruction' is (nan|inf)"):
        train_step(state, batch())
    assert_same(before, snapshot(state))


@pytest.mark.parametrize("clip_jigsaw", [True, False])
def test_groups_are_clipped_apart_and_the_jigsaws_if_wanted(clip_jigsaw: bool) -> None:
    settings = replace(CONFIG.optimizer, grad_clip=1e-3, clip_jigsaw=clip_jigsaw)
    both = replace(CONFIG.weights, mmjp=1.0)
    state = fresh(replace(CONFIG, optimizer=settings, weights=both))
    report = train_step(state, batch())
    for group in state.optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        before = report.grad_norms[group["name"]]
        is_clipped = clip_jigsaw or group["name"] not in ("loss_jigsaw", "loss_mmjp")
        assert before > 1e-3
        assert norm == pytest.approx(1e-3 if is_clipped else before, rel=1e-2)


def test_a_loss_of_weight_zero_trains_nothing_of_its_own() -> None:
    state = fresh(replace(CONFIG, weights=replace(CONFIG.weights, jigsaw=0.0)))
    before = {name: p.detach().clone() for name, p in state.losses.named_parameters()}
    report = train_step(state, batch())
    assert report.terms["jigsaw"] > 0
    assert report.grad_norms["loss_jigsaw"] == 0
    for name, parameter in state.losses.named_parameters():
        assert torch.equal(before[name], parameter)


def test_padded_steps_change_nothing() -> None:
    lengths, wild = (5, 3, 2, 1), batch(seed=1)
    calm = batch(lengths=lengths)
    mixed = {
        name: torch.where(calm.mask.view(B, T, *[1] * len(SHAPES[name])), x, wild.features[name])
        for name, x in calm.features.items()
    }
    no_dropout = replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=0.0))
    one, two = fresh(no_dropout), fresh(no_dropout)
    first, second = train_step(one, calm), train_step(two, replace(calm, features=mixed))
    assert second.total == pytest.approx(first.total, rel=1e-5)
    for key, value in snapshot(one).items():
        torch.testing.assert_close(snapshot(two)[key], value, rtol=1e-3, atol=1e-5)


def test_the_report_counts_the_codes_that_real_steps_use() -> None:
    state = fresh(replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=0.0)))
    padded = batch(lengths=(5, 3, 2, 1))
    with torch.no_grad():
        quantized = state.model.train()(padded).quantized
    used = [set(q.codes[padded.mask].tolist()) for q in quantized.values()]
    report = train_step(state, padded)
    assert report.active_codes == len(set.union(*used))
    assert report.shared_codes == len(set.intersection(*used)) / len(set.union(*used))
    for name, entry in quantized.items():
        assert report.perplexity[name] == pytest.approx(entry.perplexity.item(), rel=1e-5)
    assert (report.step, report.learning_rate) == (0, 1e-3)


def test_the_reported_total_is_the_weighted_sum_of_the_reported_terms() -> None:
    report = train_step(fresh(), batch())
    weights = CONFIG.weights
    expected = sum(getattr(weights, name) * term for name, term in report.terms.items())
    assert report.total == pytest.approx(expected, rel=1e-5)


def test_thirty_steps_on_one_batch_lower_every_trained_loss() -> None:
    state = fresh(replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=0.0)))
    drawn = draw(CONFIG, B, T, seed=0, step=0, device="cpu")
    reports = [train_step(state, batch(), drawn) for _ in range(30)]
    for name in ("fine", "coarse", "reconstruction", "jigsaw"):
        assert reports[-1].terms[name] < reports[0].terms[name], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_is_built_in_its_dtype_and_from_its_seed(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    config = replace(CONFIG, optimizer=replace(CONFIG.optimizer, dtype=name))
    one, two = fresh(config), fresh(config)
    assert {p.dtype for p in [*one.model.parameters(), *one.losses.parameters()]} == {dtype}
    assert_same(snapshot(one), snapshot(two))
    report = train_step(one, batch().to("cpu", dtype))
    assert report.total > 0
    other = fresh(replace(config, seed=7))
    assert any(not torch.equal(snapshot(two)[k], v) for k, v in snapshot(other).items())


def test_the_learning_rate_is_constant_and_reaches_the_optimiser() -> None:
    state = fresh()
    for _ in range(3):
        assert train_step(state, batch()).learning_rate == 1e-3
    assert {group["lr"] for group in state.optimizer.param_groups} == {1e-3}


def test_an_evaluation_between_steps_does_not_switch_dropout_off() -> None:
    one, two = fresh(), fresh()
    two.model.eval()
    assert reports_equal(train_step(one, batch()), train_step(two, batch()))
    assert two.model.training
