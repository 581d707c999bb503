"""What only a GPU can show: a step, a resumed run and two processes there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from micu.config.sections import TrainConfig
from micu.train.checkpoint import Position, restore_, save_checkpoint
from micu.train.processes.world import World
from micu.train.state import TrainState
from micu.train.step import build_state, train_step
from tests.processes import CASES, run_case, run_case_in_two
from tests.unit.test_precision import SPECS
from tests.unit.test_step import CONFIG, SHAPES, batch, snapshot

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CALM = replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=0.0))


def fresh(precision: str = "fp32", config: TrainConfig = CALM) -> TrainState:
    optimizer = replace(config.optimizer, precision=precision)  # type: ignore[arg-type]
    return build_state(replace(config, optimizer=optimizer), SHAPES, DEVICE)


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.05)])
def test_a_step_on_a_gpu_has_the_losses_of_the_processor(precision: str, near: float) -> None:
    expected = train_step(build_state(CALM, SHAPES, "cpu"), batch())
    state = fresh(precision)
    found = train_step(state, batch().to(DEVICE, torch.float32))
    assert found.terms == pytest.approx(expected.terms, rel=near)
    assert {value.device.type for value in state.model.state_dict().values()} == {DEVICE}


def test_a_resumed_run_on_a_gpu_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    whole, resumed = fresh(config=CONFIG), fresh(config=CONFIG)
    path = tmp_path / "step-000002.pt"
    for number in range(4):
        train_step(whole, batch(number).to(DEVICE, torch.float32))
        if whole.step == 2:
            save_checkpoint(whole, path, specs=SPECS, position=Position(0, 2), extra={})
    restore_(resumed, path)
    for number in range(2, 4):
        train_step(resumed, batch(number).to(DEVICE, torch.float32))
    expected = snapshot(whole)
    for key, value in snapshot(resumed).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_equal_one(tmp_path: Path) -> None:
    name = "draws by row and feature"
    run_case_in_two(tmp_path, name, DEVICE)
    one = run_case(CASES[name], World(device=DEVICE)).state
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for key, value in one.items():
        assert torch.equal(states[0][key], states[1][key])
        if not key.endswith("attention_in.bias"):
            torch.testing.assert_close(states[0][key], value, rtol=1e-9, atol=1e-9)
