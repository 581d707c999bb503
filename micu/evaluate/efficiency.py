"""Task `efficiency`: parameters, memory and time (table 9 of the paper).

Measured here and now: another machine, thread count or batch size gives other seconds.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from micu.base.devices import peak_memory, wait_for
from micu.data.dataset import Batch, FeatureDataset
from micu.data.loader import iterate, make_loader
from micu.evaluate.evaluation import TASKS, Evaluation, make_row
from micu.evaluate.report import Row
from micu.model.micu import MICU
from micu.train.step import build_state, train_step

MIB = 2**20
UNUSED = {"specific_encoders", "reconstructors"}
"""Parts of the model that no downstream task runs."""


@TASKS.register("efficiency")
def evaluate_efficiency(evaluation: Evaluation) -> list[Row]:
    """Parameters, peak memory, seconds per training step and per clip at inference, epochs set.

    The training step is that of the checkpoint's configuration, after any warm start, from new
    weights; inference is the checkpoint's encoders and codebook. Features are those given, else
    random numbers.
    """
    loaded = evaluation.loaded
    device = next(loaded.model.parameters()).device
    dtype = getattr(torch, loaded.config.optimizer.dtype)
    batch, origin = _batch(evaluation)
    batch = batch.to(device, dtype)
    count = len(batch.clip_ids)
    evaluation.tell(f"{evaluation.steps} steps of {count} clips on {device}")

    def infer() -> None:
        with torch.inference_mode():
            loaded.model.encode(batch.features, batch.mask)

    inference_s = _measure(infer, evaluation.steps, device)
    inference_memory = _memory_mib(device)
    state = build_state(loaded.config, loaded.model.shapes, str(device), steps=1)
    state.step = 1  # after a warm start, and at the end of schedules
    training_s = _measure(lambda: train_step(state, batch), evaluation.steps, device)
    values = {
        "parameters": float(_trained(loaded.model, state.losses)),
        "parameters_downstream": float(_downstream(loaded.model)),
        "training_memory_mib": _memory_mib(device),
        "inference_memory_mib": inference_memory,
        "seconds_per_step": training_s,
        "seconds_per_clip": inference_s / count,
        "epochs": float(loaded.config.optimizer.epochs),
    }
    place = _name(device).replace(" ", "-")
    measured_with = f"batch:{count} device:{place} threads:{torch.get_num_threads()}"
    memory = "device" if device.type == "cuda" else "process, libraries included"
    if math.isnan(inference_memory):
        memory += " (this system does not say)"
    note = (
        f"{_name(device)}, {torch.get_num_threads()} threads, {dtype}, batches of {count} clips "
        f"({origin}); median of {evaluation.steps} steps after one to warm up; peak memory of the "
        f"{memory}"
    )
    return [
        make_row(
            evaluation,
            task="efficiency",
            method="checkpoint",
            train="",
            test="",
            threshold_source="none",
            metric=metric,
            value=value,
            n_clips=count,
            features=tuple(evaluation.source.stores),
            measured_with=measured_with,
            note=note,
        )
        for metric, value in values.items()
    ]


def _batch(evaluation: Evaluation) -> tuple[Batch, str]:
    """Clips to measure with, and where they are from."""
    loaded, size = evaluation.loaded, evaluation.batch_size
    if evaluation.source.stores:
        data = replace(loaded.config.data, splits=(), exclude_ids="")
        dataset = FeatureDataset(evaluation.source.stores, evaluation.source.clips, data)
        loader = make_loader(dataset, min(size, len(dataset)), seed=0, epoch=0, shuffle=False)
        return next(iterate(loader)), "given features"
    draw = torch.Generator().manual_seed(evaluation.seed)
    steps = loaded.config.data.steps
    features = {
        name: torch.rand(size, steps, *shape, generator=draw)
        for name, shape in loaded.model.shapes.items()
    }
    names = tuple(str(number) for number in range(size))
    mask = torch.ones(size, steps, dtype=torch.bool)
    return Batch(features, mask, names, ("",) * size), "random features"


def _memory_mib(device: torch.device) -> float:
    memory = peak_memory(device)
    return math.nan if memory is None else memory / MIB


def _measure(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median seconds of `work`, after one run that warms up; resets the device's peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _trained(model: MICU, losses: nn.Module) -> int:
    """Parameters of all that is trained, and the codebook, which may be a buffer."""
    trained: dict[int, Tensor] = {id(p): p for p in (*model.parameters(), *losses.parameters())}
    trained[id(model.quantizer.codebook)] = model.quantizer.codebook
    return sum(p.numel() for p in trained.values())


def _downstream(model: MICU) -> int:
    """Parameters of what `encode` runs, and the codebook, which may be a buffer."""
    named = [*model.named_parameters(), ("quantizer", model.quantizer.codebook)]
    used = {id(p): p for name, p in named if not {*name.split(".")} & UNUSED}
    return sum(p.numel() for p in used.values())


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
