"""How much of the machine's float32 speed a training step gets, and what its other forms cost.

The step of the preset `micu`: B = 80 clips of T = 10 steps, video 7x7x512, audio 128, text 10x768,
dropout on. The machine's peak is that of large matrix products of the same type in this process,
by torch.mm and by oneDNN, whichever is faster. Peak, step and peer alternate in rounds; figures are
medians over rounds, by the clock. `_cpu` after a name is by processor time, which other
processes on the machine disturb less; with one thread (`--threads 1`) it is exact.

The peer is the lean published arithmetic: one pass of the encoders, losses in batches, and the 3x3
convolutions through `nn.Conv2d` on channel-first grids.

Figures: `share_of_peak_fp32`, what the layers need (see `operations.py`) per second over the peak;
it may exceed 1, since the convolutions get by with fewer multiplications than their definition has.
`executed_share_of_peak_fp32`, the same of what was carried out. `speedup_over_lean`, the peer's
time over ours. `seconds_per_step`, `peak_memory_gib` (of two steps, before anything else ran; on a
GPU of NVIDIA, the GPU's). `share_of_3x3_convolutions`, `share_of_1x1_convolutions`: of what the
layers need.

`--candidates` measures other forms, one step each. Measured on one thread of an EPYC with AVX-512,
processor time as a multiple of the step as it is (18.5 s), with the prediction first:

- torch's convolutions, channel first, instead of few products (`micu.model.grids`): 3.6. 2.91; the
  products are kept. They are 0.44 times as many operations, and torch's gradients for weights run
  at a quarter of the peak on such small grids; evaluation and interpolation take a third of what
  that saves.
- Few products through torch.mm, which is MKL at half of oneDNN's speed here: 1.5. 1.61; oneDNN
  kept.
- Tiles of three cells instead of five, which round three times less: 1.15. 1.19; not kept, since
  4e-6 is far below what dropout does.
- A product for each pair of a cell and a tap (im2col without padding): 1.5. 2.77; not kept: the
  products are as fast, but up to 225 weight matrices are copied instead of 49.
- torch's convolutions, channel last: slower than channel first. 4.14; not kept.
- Jigsaw with one sampled label per row: 0.96. 0.95; an option (`jigsaw.labels=sampled`), since its
  gradient is noisier.
- Adam fused, which it was: foreach 1.02, by parameter 1.03. 1.04 and 1.08; fused stays.
- Encoders without a loop over modalities: at most all that they take, 0.97. 0.976 at the very
  best; not kept.
- Features from memory as float16: 1.00. 1.002 for making them whole; an option (`--cache float16`)
  that takes half of the memory.
- Huge pages for torch (THP_MEM_ALLOC_ENABLE=1): 0.9. None beyond the noise; not kept.

Run: python benchmarks/train_step.py [--rounds 3] [--candidates] [--precision bf16] [--device cuda]
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from unittest import mock

import click
import numpy as np
import torch
from operations import Row, carried_out, needed_operations, share_of

from micu.base.devices import peak_memory, resolve_device, wait_for
from micu.config.presets import PRESETS
from micu.data.dataset import Batch
from micu.model import grids, networks
from micu.model import onednn as products
from micu.train.state import TrainState
from micu.train.step import build_state, train_step

SHAPES = {"audio": (128,), "video": (7, 7, 512), "text": (768,)}
STEPS = 10


@dataclass(frozen=True, slots=True)
class Cost:
    """Time of something, s."""

    wall: float
    cpu: float


def timed(run: Callable[[], object], device: torch.device) -> Cost:
    """Run once and measure; on a GPU both times are the clock's."""
    wait_for(device)
    began, spent = time.perf_counter(), time.process_time()
    run()
    wait_for(device)
    wall, cpu = time.perf_counter() - began, time.process_time() - spent
    return Cost(wall, cpu if device.type == "cpu" else wall)


def matrix_peak(
    dtype: torch.dtype, size: int, device: torch.device, repeats: int = 5
) -> tuple[Cost, str]:
    """Time of one floating point operation in large products, and what computes them so fast."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    doors = {"torch.mm": torch.mm}
    if device.type == "cpu":
        doors["oneDNN"] = products.product
    found = {}
    for name, multiply in doors.items():
        multiply(left, right)
        costs = [
            timed(lambda multiply=multiply: multiply(left, right), device) for _ in range(repeats)
        ]
        count = 2 * size**3
        found[name] = Cost(min(c.wall for c in costs) / count, min(c.cpu for c in costs) / count)
    best = min(found, key=lambda name: found[name].cpu)
    return found[best], best


def make_batch(count: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Batch:
    """Random features; the grid as after a ReLU."""
    generator = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(count, STEPS, *shape, generator=generator)
        for name, shape in shapes.items()
    }
    features["video"] = (features["video"] - 0.7).relu()
    ids = tuple(f"c{i}" for i in range(count))
    return Batch(features, torch.ones(count, STEPS, dtype=torch.bool), ids, ("",) * count)


# --- other forms of the step -----------------------------------------------------------------


@contextmanager
def torch_convolutions() -> Iterator[None]:
    """The step as it was: convolutions by torch, channel first, and torch's products."""
    with ExitStack() as stack:
        for module in (grids, networks):
            stack.enter_context(mock.patch.object(module, "by_products", return_value=False))
        stack.enter_context(torch_products())
        yield


@contextmanager
def torch_products() -> Iterator[None]:
    """Products by torch.mm."""
    with mock.patch.object(products, "has_onednn", return_value=False):
        yield


@contextmanager
def channels_last() -> Iterator[None]:
    """Convolutions by torch, channel last."""

    def frames(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    with torch_convolutions(), mock.patch.object(networks, "to_frames", frames):
        yield


def direct_algorithm(
    kind: grids.Kind, height: int, width: int, dtype: torch.dtype
) -> grids.Algorithm:
    """One product for each pair of a cell and a tap that meet: im2col without the padding."""

    def row(cells: int) -> grids.Algorithm:
        first, out = {"valid": (0, cells - 2), "same": (-1, cells), "full": (-2, cells + 2)}[kind]
        flip = kind == "full"
        met = [
            (o + t + first, 2 - t if flip else t, o)
            for o in range(out)
            for t in range(3)
            if 0 <= o + t + first < cells
        ]
        cell, tap, place = np.array(met).T
        return grids.Algorithm(np.eye(cells)[cell], np.eye(3)[tap], np.eye(out)[place].T)

    both = zip(row(height), row(width), strict=True)
    return grids.Algorithm(*(torch.from_numpy(np.kron(*pair)).to(dtype) for pair in both))


@contextmanager
def small_tiles() -> Iterator[None]:
    """Tiles of three cells: rounding three times less, more products."""
    caches = (grids.row_algorithm, grids.grid_algorithm)
    for algorithm in caches:
        algorithm.cache_clear()
    with mock.patch.object(grids, "MAX_TILE", 3):
        yield
    for algorithm in caches:
        algorithm.cache_clear()


@contextmanager
def adam(state: TrainState, **how: bool) -> Iterator[None]:
    """Another implementation of the optimiser."""
    before = [dict(group) for group in state.optimizer.param_groups]
    for group in state.optimizer.param_groups:
        group.update({"fused": False, **how})
    yield
    for group, settings in zip(state.optimizer.param_groups, before, strict=True):
        group.update({key: settings[key] for key in ("fused", "foreach")})


@contextmanager
def sampled_labels(state: TrainState) -> Iterator[None]:
    """One permutation per row in the jigsaw."""
    config = state.config
    state.config = replace(config, jigsaw=replace(config.jigsaw, labels="sampled"))
    yield
    state.config = config


def candidates(state: TrainState) -> dict[str, Callable[[], object]]:
    """Contexts under which the step takes another form."""
    return {
        "as it is": nullcontext,
        "torch's convolutions, channel first": torch_convolutions,
        "torch's convolutions, channel last": channels_last,
        "a product per cell and tap": lambda: mock.patch.object(
            grids, "grid_algorithm", direct_algorithm
        ),
        "tiles of three cells": small_tiles,
        "products by torch.mm": torch_products,
        "jigsaw with sampled labels": lambda: sampled_labels(state),
        "Adam foreach": lambda: adam(state, foreach=True),
        "Adam parameter by parameter": lambda: adam(state, foreach=False),
    }


def measure_candidates(state: TrainState, batch: Batch) -> None:
    """Print what the step costs in each form."""
    base, device = None, batch.mask.device
    for name, form in candidates(state).items():
        with form():  # type: ignore[attr-defined]
            cost = timed(lambda: train_step(state, batch), device)
        base = base or cost
        print(
            f"{name:<38} {cost.wall:7.2f} s  {cost.cpu:7.2f} CPU s  {cost.cpu / base.cpu:5.2f}",
            flush=True,
        )
    halves = {name: values.half() for name, values in batch.features.items()}
    stored = replace(batch, features=halves)
    cost = timed(lambda: stored.to(device, torch.float32), device)
    print(f"{'a batch from float16 to float32':<38} {cost.wall:7.3f} s  {cost.cpu:7.3f} CPU s")
    cost = timed(lambda: embed(state, batch), device)
    print(f"{'the encoders, forward and backward':<38} {cost.wall:7.3f} s  {cost.cpu:7.3f} CPU s")


def embed(state: TrainState, batch: Batch) -> None:
    """What a form without a loop over modalities could speed up."""
    output = state.model(batch, reconstruct=False)
    torch.stack([entry.semantic.sum() for entry in output.quantized.values()]).sum().backward()
    state.optimizer.zero_grad(set_to_none=True)


# --- the figures -----------------------------------------------------------------------------


def print_table(rows: list[Row]) -> None:
    """What every layer needs."""
    print(f"{'needed by':<58} {'forward':>10} {'backward':>10}  GFLOP")
    for row in sorted(rows, key=lambda row: -row.total):
        if row.total > 1e7:
            print(f"{row.name:<58} {row.forward / 1e9:10.2f} {row.backward / 1e9:10.2f}")
    forward, backward = sum(r.forward for r in rows), sum(r.backward for r in rows)
    print(f"{'all':<58} {forward / 1e9:10.2f} {backward / 1e9:10.2f}")


@click.command()
@click.option("--batch-size", default=80, show_default=True)
@click.option("--grid-width", default=2048, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int, help="Of torch [default: torch's choice].")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32")
@click.option("--labels", type=click.Choice(["exact", "sampled"]), default="exact")
@click.option("--peak-size", default=2048, show_default=True, help="Rows of the peak's matrices.")
@click.option("--device", default="auto", show_default=True)
@click.option("--lean/--no-lean", default=True, help="Measure the peer too.")
@click.option("--candidates", "with_candidates", is_flag=True, help="Measure other forms too.")
def main(
    batch_size: int,
    grid_width: int,
    rounds: int,
    threads: int | None,
    precision: str,
    labels: str,
    peak_size: int,
    device: str,
    lean: bool,
    with_candidates: bool,
) -> None:
    """Measure the step."""
    if threads:
        torch.set_num_threads(threads)
    config = PRESETS["micu"]()
    config = replace(
        config,
        optimizer=replace(config.optimizer, precision=precision),
        reconstruction=replace(config.reconstruction, grid_width=grid_width),
        jigsaw=replace(config.jigsaw, labels=labels),
    )
    place = torch.device(resolve_device(device))
    state = build_state(config, SHAPES, place)
    batch = make_batch(batch_size).to(place, torch.float32)
    for _ in range(2):
        train_step(state, batch)
    memory = (peak_memory(place) or 0) / 2**30
    rows = needed_operations(state, batch)
    print_table(rows)
    print(f"figure: share_of_3x3_convolutions {share_of('3x3 convolution', rows):.3f}")
    print(f"figure: share_of_1x1_convolutions {share_of('1x1 convolution', rows):.3f}")
    needed = sum(row.total for row in rows)
    with carried_out() as count:
        train_step(state, batch)
    executed = count()
    print(f"carried out: {executed / 1e9:.2f} GFLOP, {executed / needed:.2f} of what is needed")
    print(f"{place}, {torch.get_num_threads()} threads, {precision}, peak memory {memory:.2f} GiB")
    measured = []
    for _ in range(rounds):
        before, door = matrix_peak(torch.float32, peak_size, place)
        ours = timed(lambda: train_step(state, batch), place)
        after, _ = matrix_peak(torch.float32, peak_size, place)
        peak = Cost((before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2)
        theirs = None
        if lean:
            with torch_convolutions():
                theirs = timed(lambda: train_step(state, batch), place)
        measured.append((ours, peak, theirs))
        print(
            f"step {ours.wall:.2f} s, {ours.cpu:.2f} CPU s; peak {1e-9 / peak.wall:.0f} GFLOP/s, "
            f"{1e-9 / peak.cpu:.0f} per CPU s ({door})"
            + (f"; lean {theirs.wall:.2f} s, {theirs.cpu:.2f} CPU s" if theirs else ""),
            flush=True,
        )
    report(measured, needed, executed, memory)
    if with_candidates:
        measure_candidates(state, batch)


def report(
    measured: list[tuple[Cost, Cost, Cost | None]], needed: int, executed: int, memory: float
) -> None:
    """Print the figures: medians over rounds."""

    def median(value: Callable[[Cost, Cost, Cost | None], float]) -> float:
        return statistics.median(value(*costs) for costs in measured)

    for name, operations in (("", needed), ("executed_", executed)):
        share = median(lambda ours, peak, _, n=operations: n * peak.wall / ours.wall)
        of_cpu = median(lambda ours, peak, _, n=operations: n * peak.cpu / ours.cpu)
        print(f"figure: {name}share_of_peak_fp32 {share:.2f}")
        print(f"figure: {name}share_of_peak_fp32_cpu {of_cpu:.2f}")
    print(f"figure: seconds_per_step {median(lambda ours, *_: ours.wall):.2f}")
    print(f"figure: cpu_seconds_per_step {median(lambda ours, *_: ours.cpu):.2f}")
    if measured[0][2] is not None:
        print(f"figure: speedup_over_lean {median(lambda o, _, t: t.wall / o.wall):.2f}")
        print(f"figure: speedup_over_lean_cpu {median(lambda o, _, t: t.cpu / o.cpu):.2f}")
    print(f"figure: peak_memory_gib {memory:.2f}")


if __name__ == "__main__":
    main()
