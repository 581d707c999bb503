"""What a run will cost here, from a few real steps and a few real batches.

Reading is measured while nothing else runs, and steps on batches that are read already, so that it
can be said which of the two a run waits for.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch

from micu.base.devices import peak_memory
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.data.loader import iterate
from micu.train.fit import LoaderFactory
from micu.train.state import TrainState
from micu.train.step import train_step

MEASURED_STEPS = 3
"""After one that warms up."""
MEASURED_READS = 4
"""Batches per reading process, after the first batch, whose reader starts up."""


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run takes."""

    step_s: float
    """Of one step, copying to the device included and reading not: the median of some."""
    read_s: float
    """From one batch to the next when nothing but reading goes on."""
    workers: int
    """Processes that read; with 0 they take turns, else the slower of both sets the pace."""
    memory_bytes: int | None
    """Peak of the device, or of this process on the CPU; other reading processes are not in it.
    None where the system does not say."""
    batches: int
    """Per epoch."""
    steps: int
    """Of the whole run."""

    @property
    def pace_s(self) -> float:
        """From one step to the next, s."""
        return self.step_s + self.read_s if self.workers == 0 else max(self.step_s, self.read_s)

    @property
    def epoch_s(self) -> float:
        """Of one epoch, s."""
        return self.pace_s * self.batches

    @property
    def run_s(self) -> float:
        """Of the whole run, s; without checkpoints."""
        return self.pace_s * self.steps

    @property
    def limit(self) -> Literal["steps", "reading"]:
        """What the run spends most of its time with."""
        return "steps" if self.step_s >= self.read_s else "reading"


def count_training_steps(config: TrainConfig, batches: int) -> int:
    """Steps of a whole run whose epochs have so many batches."""
    whole = batches * config.optimizer.epochs
    return min(whole, config.optimizer.max_steps or whole)


def measure_cost(state: TrainState, load: LoaderFactory, workers: int) -> RunCost:
    """Read some batches and do some steps with them.

    Args:
        state: A fresh run; it is moved.
        load: Makes the batches of one epoch.
        workers: Processes that read them.
    """
    loader = load(0, 0)
    limits, batches = state.config.optimizer, len(loader)
    reads = 1 + MEASURED_READS * max(1, workers)
    read, read_s = _read(islice(iterate(loader), reads), 1 + MEASURED_STEPS)
    device = next(state.model.parameters()).device
    dtype = getattr(torch, limits.dtype)
    seconds = []
    for number in range(1 + MEASURED_STEPS):
        began = time.perf_counter()
        batch = read[number % len(read)].to(device, dtype)
        train_step(state, batch)  # its report is read from the device: it has ended
        seconds.append(time.perf_counter() - began)
    return RunCost(
        step_s=statistics.median(seconds[1:]),
        read_s=read_s,
        workers=workers,
        memory_bytes=peak_memory(device),
        batches=batches,
        steps=count_training_steps(state.config, batches),
    )


def _read(batches: Iterator[Batch], kept: int) -> tuple[list[Batch], float]:
    """Read batches: the first ones, and the mean time per batch after the first, s."""
    began = time.perf_counter()
    found: list[Batch] = []
    times: list[float] = []
    for batch in batches:
        times.append(time.perf_counter() - began)
        if len(found) < kept:
            found.append(batch)
    later = len(times) - 1
    return found, (times[-1] - times[0]) / later if later else times[0]
