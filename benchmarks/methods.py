"""What a training step of each method costs: seconds, and as a share of MICU's in the same run.

Every method takes its steps on the same drawn features with the paper's sizes (batches of 80 clips
of ten steps). Methods take turns step by step, so that whatever else the machine does slows all of
them; the figure is the median over rounds of the ratio to MICU's step of the same round, of seconds
on the processor, or on the clock where a GPU computes. The first step, which warms up, does not
count. `cmcm` is measured after its warm start, with codes.

Prints `figure: step_of_NAME_over_micu VALUE` for each.

Run: python benchmarks/methods.py [--modalities a,v,t] [--grid] [--rounds 5] [--only PRESET]
"""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence

import click
import torch

from micu.base.devices import resolve_device
from micu.cli.features import parse_modalities
from micu.config.overrides import with_overrides
from micu.config.presets import BASELINES, PRESETS
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.train.state import TrainState
from micu.train.step import build_state, train_step

SHAPES: dict[str, tuple[int, ...]] = {
    "video": (1536,),  # Swin-V2-L
    "audio": (768,),  # HTS-AT
    "flow": (2048,),  # SlowOnly
    "text": (768,),  # BERT
}
GRID = (7, 7, 512)
WARM_STEPS = 1
METHODS = (*BASELINES, "coarse", "fig3-mmjp")


def measured(config: TrainConfig, modalities: tuple[str, ...]) -> TrainConfig:
    """The same, without a warm start."""
    matching = dataclasses.replace(config.baselines.code_matching, warmup=0.0)
    baselines = dataclasses.replace(config.baselines, code_matching=matching)
    return dataclasses.replace(config, modalities=modalities, baselines=baselines)


def draw_batch(state: TrainState, device: torch.device) -> Batch:
    """Features drawn from the number of the step."""
    config = state.config
    size, steps = config.optimizer.batch_size, config.data.steps
    generator = torch.Generator().manual_seed(state.step)
    features = {
        name: torch.randn((size, steps, *shape), generator=generator)
        for name, shape in state.model.shapes.items()
    }
    ids = tuple(f"{state.step}/{i}" for i in range(size))
    mask = torch.ones(size, steps, dtype=torch.bool)
    return Batch(features, mask, ids, ("",) * size).to(
        device, getattr(torch, config.optimizer.dtype)
    )


def time_step(state: TrainState, device: torch.device) -> tuple[float, float]:
    """Seconds of a step on the clock and, on a CPU, of all its threads; features not counted."""
    batch = draw_batch(state, device)
    began, spent = time.perf_counter(), time.process_time()
    train_step(state, batch)  # reads its report from the device, and so waits for it
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    return seconds, spent if device.type == "cpu" else seconds


def take_turns(
    states: Mapping[str, TrainState], device: torch.device, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """What `time_step` says of each round, by the name of the state."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in states}
    for number in range(WARM_STEPS + rounds):
        for name, state in states.items():
            taken = time_step(state, device)
            if number >= WARM_STEPS:
                times[name].append(taken)
    return times


@click.command()
@click.option("--modalities", default="a,v,t", show_default=True, help="Some of v,a,f,t.")
@click.option("--grid", is_flag=True, help="Video as 7 x 7 grids of 512 (VGG-19), not vectors.")
@click.option("--batch-size", default=80, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(sorted(PRESETS)), help="Beside micu.")
@click.option("--device", default="auto", show_default=True)
def main(
    modalities: str, grid: bool, batch_size: int, rounds: int, only: Sequence[str], device: str
) -> None:
    """Time a step of every method."""
    place, names = torch.device(resolve_device(device)), parse_modalities(modalities)
    shapes = {name: GRID if grid and name == "video" else SHAPES[name] for name in names}
    size = [f"optimizer.batch_size={batch_size}"]
    states = {
        name: build_state(
            with_overrides(measured(PRESETS[name](), names), size), shapes, place, 1000
        )
        for name in ["micu", *(only or METHODS)]
    }
    times = take_turns(states, place, rounds)
    width = max(map(len, states))
    print(f"{'method':{width}} {'s/step':>8} {'of micu':>8} {'parameters':>12}")
    for name, state in states.items():
        ratio = statistics.median(
            mine[1] / base[1] for mine, base in zip(times[name], times["micu"], strict=True)
        )
        seconds = statistics.median(wall for wall, _ in times[name])
        count = sum(p.numel() for part in (state.model, state.losses) for p in part.parameters())
        print(f"{name:{width}} {seconds:8.3f} {ratio:8.2f} {count:12,}")
        if name != "micu":
            print(f"figure: step_of_{name}_over_micu {ratio:.3f}")


if __name__ == "__main__":
    main()
