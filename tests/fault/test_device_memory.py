"""A network that needs more memory than its device has."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from micu.base.errors import DeviceError
from micu_extract.backbones.base import Run
from micu_extract.backbones.torch_backbone import Runner

NO_MEMORY: dict[str, Callable[[], None]] = {}


def raiser(kind: type[Exception], message: str) -> Callable[[], None]:
    def refuse() -> None:
        raise kind(message)

    return refuse


NO_MEMORY["torch"] = raiser(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB")
NO_MEMORY["cuda"] = raiser(RuntimeError, "CUDA error: out of memory")
NO_MEMORY["cublas"] = raiser(RuntimeError, "CUBLAS_STATUS_ALLOC_FAILED when calling create")
NO_MEMORY["mps"] = raiser(RuntimeError, "MPS backend out of memory (MPS allocated: 9 GB)")
NO_MEMORY["cpu"] = lambda: torch.empty(2**50) and None  # what the allocator itself says
NO_MEMORY["numpy"] = lambda: np.empty(2**50) and None


class Small:
    """A network on a device with room for `room` units; notes the size of every batch."""

    def __init__(self, room: int, batch_size: int = 8, refuse: str = "torch") -> None:
        self.runner = Runner(torch.nn.Identity(), Run(device="cpu"), batch_size)
        self.room = room
        self.refuse = NO_MEMORY[refuse]
        self.batches: list[int] = []

    def encode(self, units: Sequence[float]) -> list[float]:
        return [float(output[0]) for output in self.runner.encode(units, self.forward)]

    def forward(self, units: Sequence[float]) -> torch.Tensor:
        self.batches.append(len(units))
        if len(units) > self.room:
            self.refuse()
        output: torch.Tensor = self.runner(2 * torch.tensor(units)[:, None])
        return output


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    small = Small(room=2, refuse=kind)
    units = [float(i) for i in range(11)]

    assert small.encode(units) == [2 * unit for unit in units]
    assert small.batches == [8, 4, 2, 2, 2, 2, 2, 2]
    assert small.runner.batch_size == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "a batch of 4 units does not fit in memory; going on with 2" in caplog.text
    assert "--batch-size 2" in caplog.text


def test_what_was_halved_stays_halved_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    small = Small(room=5)
    small.encode([1.0] * 8)
    told = len(caplog.records)
    small.encode([1.0] * 8)
    assert small.batches == [8, 4, 4, 4, 4]
    assert (told, len(caplog.records)) == (1, 1)


def test_memory_that_runs_out_late_costs_no_unit_and_repeats_none() -> None:
    small = Small(room=8)
    units = [float(i) for i in range(20)]
    forward = small.forward

    def tighter(batch: Sequence[float]) -> torch.Tensor:
        if len(small.batches) == 1:
            small.room = 3
        return forward(batch)

    outputs = small.runner.encode(units, tighter)
    assert [float(output[0]) for output in outputs] == [2 * unit for unit in units]
    assert small.batches == [8, 8, 4, 2, 2, 2, 2, 2, 2]


def test_an_odd_batch_is_halved_down_to_one() -> None:
    small = Small(room=1, batch_size=3)
    assert small.encode([1.0, 2.0]) == [2.0, 4.0]
    assert small.batches == [3, 1, 1]


def test_one_unit_that_does_not_fit_ends_the_run_with_what_to_type() -> None:
    small = Small(room=0)
    with pytest.raises(
        DeviceError, match=r"cpu: expected memory for a batch of one .*--device cpu"
    ):
        small.encode([1.0])
    assert small.batches == [8, 4, 2, 1]


def test_other_errors_of_a_network_are_not_taken_for_a_lack_of_memory() -> None:
    small = Small(room=0)
    small.refuse = raiser(RuntimeError, "shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        small.encode([1.0])
    assert small.batches == [8]


class Held:
    """Something large that a forward pass holds."""

    alive = 0

    def __init__(self) -> None:
        Held.alive += 1

    def __del__(self) -> None:
        Held.alive -= 1


def test_the_memory_of_a_batch_that_did_not_fit_is_free_before_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = Small(room=1, batch_size=2)
    alive: list[int] = []
    emptied: list[int] = []

    def forward(units: Sequence[float]) -> torch.Tensor:
        alive.append(Held.alive)
        held = Held()  # an error would keep this frame, and what is in it
        output = small.forward(units)
        del held
        return output

    # On a GPU, what is free still belongs to torch until it is given back.
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(Held.alive))
    monkeypatch.setattr(Runner, "__call__", lambda runner, x: x)
    small.runner.device = torch.device("cuda")
    small.runner.encode([1.0], forward)
    assert alive == [0, 0]
    assert emptied == [0]
