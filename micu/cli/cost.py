"""What `micu-train --dry-run` prints."""

import json

import click

from micu.data.dataset import FeatureDataset
from micu.train.cost import RunCost
from micu.train.state import TrainState


def tell_cost(cost: RunCost, state: TrainState, dataset: FeatureDataset, *, as_json: bool) -> None:
    """Print what a run takes, as JSON or for people."""
    modules = (state.model, state.losses)
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    if as_json:
        facts = {
            "clips": len(dataset),
            "shapes": {name: list(shape) for name, shape in dataset.shapes.items()},
            "steps_per_epoch": cost.batches,
            "steps": cost.steps,
            "parameters": parameters,
            "step_s": round(cost.step_s, 4),
            "read_s": round(cost.read_s, 4),
            "limit": cost.limit,
            "epoch_s": round(cost.epoch_s, 1),
            "run_s": round(cost.run_s, 1),
            "memory_bytes": cost.memory_bytes,
        }
        click.echo(json.dumps(facts))
        return
    shapes = ", ".join(f"{name} {shape}" for name, shape in dataset.shapes.items())
    memory = "?" if cost.memory_bytes is None else f"{cost.memory_bytes / 2**20:.0f}"
    readers = f"{cost.workers} processes" if cost.workers else "the training process"
    click.echo(
        f"{len(dataset)} clips: {shapes}\n"
        f"{cost.batches} steps per epoch, {cost.steps} steps, {parameters:,} parameters\n"
        f"{cost.step_s:.3f} s per step, {cost.read_s:.3f} s to read a batch by {readers}: most of "
        f"the time goes to {cost.limit}\n"
        f"{cost.epoch_s / 60:.1f} min per epoch, {cost.run_s / 60:.1f} min for the run\n"
        f"{memory} MiB at most"
    )
