"""Half precision: what is computed in it, what is not, and what fp16's overflows do."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from micu.base.errors import CheckpointError, ConfigError, TrainError
from micu.config.sections import OptimizerConfig, TrainConfig
from micu.losses import draw
from micu.model import quantizer
from micu.store.shard import FeatureSpec
from micu.train.checkpoint import Position, restore_, save_checkpoint
from micu.train.state import TrainState
from micu.train.step import build_state, train_step, unscale_
from tests.unit.test_step import CONFIG, SHAPES, B, T, assert_same, batch, poisoned, snapshot

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
HALF = pytest.mark.parametrize("name", HALVES)
SPECS = {
    name: FeatureSpec(
        backbone="toy", modality=name, shape=shape, hop_s=1.0, weights="", weights_sha256=""
    )
    for name, shape in SHAPES.items()
}


def within(name: str, config: TrainConfig = CONFIG) -> TrainConfig:
    return replace(config, optimizer=replace(config.optimizer, precision=name))  # type: ignore[arg-type]


def fresh(name: str, config: TrainConfig = CONFIG) -> TrainState:
    return build_state(within(name, config), SHAPES, "cpu")


def scaled_by(scale: float) -> TrainState:
    """A run in fp16 whose loss is scaled by so much."""
    state = fresh("fp16")
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": scale})
    return state


@HALF
def test_networks_compute_in_half_and_hand_over_what_is_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    lookup = quantizer.nearest_code

    def watched(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        seen.extend((x.dtype, codebook.dtype))
        return lookup(x, codebook)

    monkeypatch.setattr("micu.model.quantizer.nearest_code", watched)
    model, made = fresh(name).model, {}
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(lambda _m, _x, out, key=key: made.update({key: out.dtype}))
    output = model(batch())
    assert set(made.values()) == {HALVES[name]}
    assert any("net" in key for key in made)
    assert set(seen) == {torch.float32}
    for modality in SHAPES:
        entry = output.quantized[modality]
        handed = [entry.semantic, entry.quantized, output.reconstruction[modality]]
        assert {x.dtype for x in handed} == {torch.float32}


@HALF
def test_what_a_step_moves_stays_whole(name: str) -> None:
    state = fresh(name)
    report = train_step(state, batch())
    parameters = [*state.model.parameters(), *state.losses.parameters()]
    tensors = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
    tensors += [x for x in state.model.quantizer.buffers() if x.is_floating_point()]
    assert {x.dtype for x in tensors} == {torch.float32}
    assert report.terms["jigsaw"] > 0


@HALF
def test_losses_and_gradients_are_close_to_those_in_whole(name: str) -> None:
    calm = replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=0.0))
    drawn = draw(calm, B, T, seed=0, step=0, device="cpu")
    whole = train_step(fresh("fp32", calm), batch(), drawn)
    state = fresh(name, calm)
    if name == "fp16":
        state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 256.0})
    half = train_step(state, batch(), drawn)
    for term, value in whole.terms.items():
        assert half.terms[term] == pytest.approx(value, rel=0.02), term
    for group, norm in whole.grad_norms.items():
        assert half.grad_norms[group] == pytest.approx(norm, rel=0.05), group


def test_an_evaluation_is_in_whole_precision() -> None:
    half, whole = fresh("bf16").model.eval(), fresh("fp32").model.eval()
    got, expected = half.encode(batch().features), whole.encode(batch().features)
    for modality in SHAPES:
        assert torch.equal(got[modality].semantic, expected[modality].semantic)


def test_a_step_that_overflows_in_fp16_is_skipped_and_the_scale_halved() -> None:
    state = scaled_by(2.0**60)
    before = snapshot(state)
    assert train_step(state, batch()).skipped
    assert_same(before, snapshot(state))
    assert state.scaler.get_scale() == 2.0**59
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 256.0})
    assert not train_step(state, batch()).skipped
    assert (state.step, state.nonfinite) == (2, 0)


def test_overflows_leave_the_steps_that_may_be_skipped_as_they_are() -> None:
    state = scaled_by(2.0**60)
    state.config = replace(
        state.config, optimizer=replace(state.config.optimizer, skip_nonfinite=1)
    )
    for number in range(2):
        assert train_step(state, batch(number)).skipped
    assert train_step(state, poisoned()).skipped
    assert train_step(state, batch()).skipped
    with pytest.raises(TrainError, match="step 4: loss 'fine' is nan"):
        train_step(state, poisoned())


def test_a_loss_that_is_not_finite_is_no_overflow() -> None:
    state = scaled_by(256.0)
    with pytest.raises(TrainError, match="loss 'fine' is nan"):
        train_step(state, poisoned())
    assert state.scaler.get_scale() == 256.0


def test_a_gradient_that_no_scale_mends_stops_the_run() -> None:
    state = scaled_by(4.0)
    next(state.model.reconstructors.parameters()).register_hook(lambda grad: grad * torch.inf)
    before = snapshot(state)
    assert [train_step(state, batch()).skipped for _ in range(2)] == [True, True]
    with pytest.raises(TrainError, match=r"step 2: gradient of 'reconstruction' is (nan|inf)"):
        train_step(state, batch())
    assert_same(before, snapshot(state))


def test_a_resumed_run_in_fp16_goes_on_with_its_scale(tmp_path: Path) -> None:
    whole, parts = scaled_by(2.0**60), scaled_by(2.0**60)
    for number in range(6):
        train_step(whole, batch(number))
    for number in range(3):
        train_step(parts, batch(number))
    path = tmp_path / "step-000003.pt"
    save_checkpoint(parts, path, specs=SPECS, position=Position(0, 3), extra={})
    resumed = fresh("fp16")
    restore_(resumed, path)
    assert resumed.scaler.get_scale() == 2.0**57
    for number in range(3, 6):
        train_step(resumed, batch(number))
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert_same(snapshot(resumed), snapshot(whole))


def test_a_process_without_clips_in_its_first_step_knows_the_scale(tmp_path: Path) -> None:
    path = tmp_path / "step-000002.pt"
    save_checkpoint(scaled_by(2.0**10), path, specs=SPECS, position=Position(0, 2), extra={})
    begun, resumed = fresh("fp16"), fresh("fp16")
    restore_(resumed, path)
    for state, scale in ((begun, 2.0**16), (resumed, 2.0**10)):
        for parameter in state.model.parameters():  # summed over the processes, none of its own
            parameter.grad = torch.full_like(parameter, scale)
        assert not unscale_(state.optimizer, state.scaler)
        assert {x.grad.unique().item() for x in state.model.parameters() if x.grad is not None} == {
            1
        }


def test_a_checkpoint_without_a_scale_does_not_resume_a_run_in_fp16(tmp_path: Path) -> None:
    path = tmp_path / "step-000000.pt"
    save_checkpoint(fresh("bf16"), path, specs=SPECS, position=Position(), extra={})
    with pytest.raises(CheckpointError, match="does not fit this run: 'scale'"):
        restore_(fresh("fp16"), path)


@pytest.fixture(scope="module")
def loss_curve() -> Callable[[str, int], torch.Tensor]:
    """Mean losses of 60 steps, by 10, of a precision and a seed; each is trained once."""

    @cache
    def curve(name: str, seed: int) -> torch.Tensor:
        state = fresh(name, replace(CONFIG, seed=seed))
        totals = [train_step(state, batch(number % 10)).total for number in range(60)]
        return torch.tensor(totals).view(-1, 10).mean(1)

    return curve


@pytest.mark.slow
@HALF
def test_the_loss_in_half_stays_within_the_spread_of_two_seeds(
    name: str, loss_curve: Callable[[str, int], torch.Tensor]
) -> None:
    half, whole = loss_curve(name, 0), loss_curve("fp32", 0)
    spread, off = (loss_curve("fp32", 1) - whole).abs(), (half - whole).abs()
    assert half[-1] < half[0]
    assert off.mean() < spread.mean()
    assert off.max() < spread.max()


def test_tf32_needs_a_gpu() -> None:
    config = replace(CONFIG, optimizer=replace(CONFIG.optimizer, tf32=True))
    with pytest.raises(ConfigError, match=r"optimizer\.tf32: expected a CUDA device, got cpu"):
        build_state(config, SHAPES, "cpu")


def test_half_precision_and_tf32_are_refused_in_float64() -> None:
    with pytest.raises(ConfigError) as caught:
        OptimizerConfig(dtype="float64", precision="bf16", tf32=True)
    assert "optimizer.precision: expected fp32 with dtype=float64, got bf16" in str(caught.value)
    assert "optimizer.tf32: expected false with dtype=float64" in str(caught.value)
