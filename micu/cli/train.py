"""`micu-train`: features in, checkpoints out. Safe to interrupt and to type again with `--resume`.

Under torchrun or srun one model is trained by all their processes (`micu.train.processes.place`).

Exit codes: 0 all good, 2 usage or an error with a message, 3 no step moved anything (of a sweep:
some runs failed), 71 no memory left, 74 input/output error, 75 stopped but resumable, 130 Ctrl-C.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from micu.base.command_line import ToolCommand, typed_words
from micu.base.devices import resolve_device
from micu.base.errors import CheckpointError, ConfigError
from micu.base.files import lock_folder, read_bounded, write_atomically
from micu.base.process import EXIT_FAILURES, exit_codes, show_log
from micu.cli.features import find_feature_sets, parse_modalities, refuse_idle_features
from micu.cli.sweep import OWN, is_sweep, run_sweep
from micu.cli.train_options import train_options
from micu.config.overrides import idle_settings, to_json, with_overrides
from micu.config.presets import PRESETS
from micu.config.sections import TrainConfig
from micu.store.manifest import MODALITIES
from micu.store.overlap import items_sha256
from micu.train.processes.launch import train_on
from micu.train.processes.place import LAUNCHER, Place, find_place

if TYPE_CHECKING:  # torch takes seconds to import, and --help does not need it
    from torch.utils.data import DataLoader

    from micu.data.dataset import Batch, FeatureDataset
    from micu.train.checkpoint import Position, Record
    from micu.train.cost import RunCost
    from micu.train.fit import FitSummary
    from micu.train.processes.world import World
    from micu.train.state import TrainState

SHORTCUTS = {"seed": "seed", "precision": "optimizer.precision", "tf32": "optimizer.tf32"}
"""Options that set a setting, by their names, and the setting."""

HINT = (
    "a run that has begun keeps its last checkpoint; the same command with --resume goes on from it"
)

FEW_STEPS = 300
"""Steps below which a run has learned next to nothing, as the demo's clips show."""

MAX_MARK_BYTES = 4096
"""Largest note of who began a run: it is a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOrder:
    """What was typed, beside the configuration."""

    features: Path
    manifest: Path | None
    chosen: dict[str, str]
    """Backbone by modality."""
    preset: str
    out: Path
    device: str
    workers: int
    cache: str | None = None
    resume: bool
    overwrite: bool
    save_every: int = 200
    keep: int = 2
    tensorboard: bool = False
    dry_run: bool = False
    as_json: bool = False


@click.command(
    cls=ToolCommand,
    example="micu-train --modalities v,a,f --manifest vggsound.csv --out runs/first",
)
@click.version_option(package_name="micu")
@train_options
def main(
    *,
    modalities: str | None,
    assignments: tuple[str, ...],
    exclude_manifests: tuple[str, ...],
    print_config: bool,
    preset: str,
    out: Path | None,
    devices: tuple[str, ...],
    **arguments: Any,
) -> None:
    """Train MICU on extracted features."""
    with exit_codes(HINT):
        place = find_place(os.environ)
        named = {key: arguments.pop(option) for option, key in SHORTCUTS.items()}
        named["data.dtype"] = arguments["cache"]
        if is_sweep(click.get_current_context()):
            if place.size > 1 or devices:
                raise ConfigError(
                    "--sweep and --seeds: expected one process for each run, got "
                    f"{len(devices) or place.size}; type --jobs for several runs at a time, or "
                    "print the runs with --sweep-print, and start each with torchrun or srun"
                )

            def build(name: str, swept: Sequence[str]) -> TrainConfig:
                typed = (*assignments, *swept)
                return build_config(name, modalities, named, typed, exclude_manifests)

            sys.exit(run_sweep(click.get_current_context(), build))
        config = build_config(preset, modalities, named, assignments, exclude_manifests)
        if devices and not print_config:
            sys.exit(_train_on(devices, arguments["device"], place))
        if print_config:
            if place.rank == 0:
                click.echo(to_json(config))
            return
        letters = "".join(name[0] for name in config.modalities)
        chosen = {name: arguments.pop(f"{name}_features") or "" for name in MODALITIES}
        typed = TrainingOrder(
            chosen=chosen,
            preset=preset,
            out=out or Path("runs") / f"{preset}-{letters}-{config.seed}",
            **{name: value for name, value in arguments.items() if name not in OWN},
        )
        if typed.resume and typed.overwrite:
            raise ConfigError("--resume and --overwrite: expected one of them, got both")
        show_log(logging.INFO if place.rank == 0 else logging.ERROR)
        # No error: the runs of a sweep have their --set in common.
        for told in idle_settings(config, [text.partition("=")[0].strip() for text in assignments]):
            logging.getLogger(__name__).warning("--set %s", told)
        code = run(config, typed, place)
    sys.exit(code)


def _train_on(devices: tuple[str, ...], device: str, place: Place) -> int:
    """The run that was typed, in a process for each device."""
    if device != "auto" or place.size > 1:
        other = f"--device {device}" if device != "auto" else f"one of {place.size} processes"
        raise ConfigError(f"--devices: expected nothing else that says where to train, got {other}")
    return train_on(devices, typed_words(("--devices",))[1:])


def build_config(
    preset: str,
    modalities: str | None,
    named: Mapping[str, object],
    assignments: Sequence[str],
    exclude_manifests: tuple[str, ...] = (),
) -> TrainConfig:
    """The configuration that the options ask for.

    Args:
        preset: Where to start from.
        modalities: What was typed, if it was.
        named: Settings that have an option of their own; None or False if it was not typed.
        assignments: What was typed after `--set`: these come last.
        exclude_manifests: What was typed after `--exclude-manifest`.

    Raises:
        ConfigError: Unknown or bad values, all in one message.
    """
    # By identity, since 0 is a seed and equals False.
    chosen = {
        key: value for key, value in named.items() if value is not None and value is not False
    }
    typed = [f"{key}={value}" for key, value in chosen.items()]
    if modalities is not None:
        typed.append(f"modalities={','.join(parse_modalities(modalities))}")
    # All at once: what a preset has for three modalities may not fit two before it is changed.
    config = with_overrides(PRESETS[preset](), [*typed, *assignments])
    excluded = (*config.data.exclude_manifests, *exclude_manifests)
    return replace(config, data=replace(config.data, exclude_manifests=excluded))


def run(config: TrainConfig, typed: TrainingOrder, place: Place) -> int:
    """Train as asked, tell about it, and return the exit code."""
    import torch

    from micu.train.processes.world import join

    device = resolve_device(place.device_name(typed.device, torch.cuda.device_count()))
    with join(place, device) as world:
        return _run(config, typed, place, device, world)


def _run(
    config: TrainConfig, typed: TrainingOrder, place: Place, device: str, world: "World"
) -> int:
    """`run`, for one process among those that have met."""
    from micu.data.cache import CachedDataset
    from micu.data.dataset import FeatureDataset, select_clips
    from micu.data.loader import make_loader
    from micu.losses import LOSSES
    from micu.train.cost import count_training_steps, measure_cost
    from micu.train.fit import RunOptions, fit
    from micu.train.logs import import_tensorboard
    from micu.train.step import build_state, weights_digest

    folder = RunFolder(typed.out, typed.resume, typed.overwrite, place)
    if not typed.dry_run:
        world.decide(lambda: folder.try_out() or folder.find_begun(config))
    if typed.tensorboard:
        import_tensorboard()
    refuse_idle_features(typed.chosen, config.modalities)
    sets = find_feature_sets(typed.features, config.modalities, typed.manifest, typed.chosen)
    clips = select_clips(sets.manifest.clips, config.data)
    dataset = FeatureDataset(sets.stores, clips, config.data)
    if typed.cache:
        dataset = CachedDataset(dataset, shared=typed.workers > 0, ask_all=world.gather_texts)

    def load(epoch: int, start: int) -> "DataLoader[Batch]":
        return make_loader(
            dataset,
            config.optimizer.batch_size,
            seed=config.seed,
            epoch=epoch,
            start=start,
            workers=typed.workers,
            own_rows=world.rows,
            device=device,
        )

    steps = count_training_steps(config, len(load(0, 0)))
    state = build_state(config, dataset.shapes, device, steps, world)
    if typed.dry_run:
        cost = measure_cost(state, load, typed.workers)
        if world.is_first:
            tell_cost(cost, state, dataset, as_json=typed.as_json)
        return 0
    if world.is_first:
        tell_steps(steps, len(dataset), config)
    world.check_same("configuration and features", to_json(config) + dataset.sha256)
    everything = replace(config.data, exclude_ids="", exclude_manifests=())
    excluded = len(select_clips(sets.manifest.clips, everything)) - len(clips)
    record: Record = {
        "preset": typed.preset,
        "manifest": str(sets.manifest.path),
        "manifest_sha256": sets.manifest.sha256,
        **{f"loss {n}": " ".join(LOSSES.makers[n]) for n in config.terms() if n in LOSSES.makers},
        "items_sha256": items_sha256(clips),
        "data_sha256": dataset.sha256,
        "clips": len(dataset),
        "excluded_clips": excluded,
    }
    specs = {name: store.spec for name, store in sets.stores.items()}
    drawn = weights_digest(state)
    options = RunOptions(specs, record, typed.save_every, typed.keep, typed.tensorboard)
    with ExitStack() as stack:
        begun = world.decide(lambda: folder.enter(config, stack))
        position = resume_(state, Path(begun), record) if begun else None
        summary = fit(state, load, typed.out, options, position)
    has_moved = weights_digest(state) != drawn
    if world.is_first:
        _report(summary, typed, len(dataset), has_moved=has_moved)
    if summary.stopped.name:
        return summary.stopped.exit_code
    return 0 if has_moved else EXIT_FAILURES


# --- the run's folder ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run is to be, and what may be done with a run that is there."""

    out: Path
    resume: bool
    overwrite: bool
    place: Place
    """This process among those of the run."""

    def try_out(self) -> str:
        """Refuse a place that cannot be written to, before anything is read or begun; "" if it can.

        Raises:
            ConfigError: The folder cannot be there.
            OSError: The disk is full, or the rights are missing.
        """
        from micu.cli.outputs import try_folder

        try_folder("--out", self.out)
        return ""

    def find_begun(self, config: TrainConfig) -> str:
        """The checkpoint to go on from, "" for none; changes nothing.

        Processes that torchrun has started again go on with the run that this torchrun began,
        whatever was typed. Any other run in the folder is treated as at the first start.

        Raises:
            ConfigError: The folder holds a run that is not to be touched.
        """
        from micu.train.fit import find_resumable

        mark = self.out / LAUNCHER
        launcher = _read_mark(mark)
        again = launcher != "" and launcher == self.place.launcher
        found = find_resumable(
            self.out,
            config,
            resume=self.resume or again,
            overwrite=self.overwrite and not again,
        )
        return "" if found is None else str(found)

    def enter(self, config: TrainConfig, stack: ExitStack) -> str:
        """Keep other runs out of the folder while `stack` is open, and make it ready.

        Returns:
            As `find_begun`.

        Raises:
            ConfigError: Another run is at work there, or one is not to be touched.
        """
        from micu.train.fit import clear_run

        stack.enter_context(lock_folder(self.out))
        # Looked at before the features were read too: another run may have ended here meanwhile.
        begun = self.find_begun(config)
        if self.overwrite and not begun:
            clear_run(self.out)
        if self.place.launcher:
            write_atomically(self.out / LAUNCHER, self.place.launcher.encode())
        return begun


def _read_mark(mark: Path) -> str:
    """Who began a run, as it noted; empty where no launcher has."""
    try:
        return read_bounded(mark, MAX_MARK_BYTES).decode(errors="replace")
    except ValueError:  # there is none, or it is none of ours
        return ""


def resume_(state: "TrainState", path: Path, record: "Record") -> "Position":
    """Put a fresh run back to where a checkpoint was written.

    Args:
        state: The run.
        path: The checkpoint.
        record: What the run would note beside its state.

    Returns:
        The batch that comes next.

    Raises:
        CheckpointError: The checkpoint cannot be read, or was trained on other features.
    """
    from micu.train.checkpoint import restore_

    position, before = restore_(state, path)
    if before.get("data_sha256") != record["data_sha256"]:
        raise CheckpointError(
            f"{path}: trained on {before.get('clips')} clips of {before.get('manifest')}, here are "
            f"{record['clips']} of {record['manifest']}, or the features were made otherwise; "
            "the run cannot go on with them: type the manifest and features of that run, or name "
            "another --out. --overwrite would delete it"
        )
    return position


# --- what is told ----------------------------------------------------------------------------


def _report(summary: "FitSummary", typed: TrainingOrder, clips: int, *, has_moved: bool) -> None:
    stopped_by = summary.stopped.name
    if typed.as_json:
        facts = {
            "out": str(typed.out),
            "checkpoint": str(summary.checkpoint),
            "clips": clips,
            "steps": summary.steps,
            "skipped": summary.skipped,
            "has_moved": has_moved,
            "position": asdict(summary.position),
            "seconds": round(summary.seconds, 3),
            "stopped_by": stopped_by,
            "metrics": dict(summary.metrics),
        }
        click.echo(json.dumps(facts))
    if stopped_by:
        click.echo(
            f"stopped by {stopped_by} after step {summary.steps}; type the same command with "
            "--resume to go on",
            err=True,
        )
    elif not typed.as_json:
        skipped = f", {summary.skipped} of them skipped" if summary.skipped else ""
        click.echo(f"{summary.steps} steps{skipped}; model in {summary.checkpoint}", err=True)
    if not has_moved and not stopped_by:
        click.echo(
            f"{typed.out}: expected a trained model, got one as it was drawn: no step of "
            f"{summary.steps} moved anything, and {summary.skipped} were skipped for a loss or a "
            f"gradient that is not finite; look at {typed.out / 'metrics.csv'}, and do not "
            "evaluate it",
            err=True,
        )


def tell_steps(steps: int, clips: int, config: TrainConfig) -> None:
    """Say how long a run is before it begins, and what to type where it is too short by mistake."""
    limits = config.optimizer
    click.echo(f"{clips} clips, {steps} steps", err=True)
    if steps < FEW_STEPS and not limits.max_steps:
        epochs = math.ceil(FEW_STEPS * limits.epochs / steps)
        click.echo(
            f"{steps} steps are too few to learn from; type --preset small, or "
            f"--set optimizer.epochs={epochs} for {FEW_STEPS} of them",
            err=True,
        )


def tell_cost(
    cost: "RunCost", state: "TrainState", dataset: "FeatureDataset", *, as_json: bool
) -> None:
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


if __name__ == "__main__":
    main()
