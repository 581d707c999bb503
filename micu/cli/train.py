"""`micu-train`: features in, checkpoints out. Safe to interrupt and to type again with `--resume`.

Exit codes: 0 all good, 2 usage or an error with a message, 74 input/output error, 75 stopped but
resumable, 130 Ctrl-C.
"""

import functools
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from micu.cli.features import FeatureSets, find_feature_sets, parse_modalities
from micu.cli.sweep import OWN, is_sweep, run_sweep, sweep_options
from micu.commands import exit_codes
from micu.config import TrainConfig
from micu.devices import resolve_device
from micu.errors import ConfigError
from micu.files import lock_folder
from micu.manifest import MODALITIES
from micu.overrides import to_json, with_overrides
from micu.presets import PRESETS, list_presets

if TYPE_CHECKING:  # torch takes seconds to import, and --help does not need it
    from torch.utils.data import DataLoader

    from micu.checkpoint import Position, Record
    from micu.data import FeatureDataset, Sample
    from micu.step import TrainState
    from micu.store import FeatureSpec
    from micu.train import FitSummary, LoaderFactory

HINT = (
    "a run that has begun keeps its last checkpoint; the same command with --resume goes on from it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What was typed, beside the configuration."""

    features: Path
    manifest: Path | None
    chosen: dict[str, str]
    """Backbone by modality."""
    preset: str
    out: Path
    device: str
    workers: int
    resume: bool
    overwrite: bool
    save_every: int
    keep: int
    tensorboard: bool
    dry_run: bool
    as_json: bool


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `micu-train`, in the order in which help shows them."""
    folder = click.Path(path_type=Path, file_okay=False)
    options = [
        click.option(
            "--modalities",
            help="Two or more of v,a,f,t (video, audio, flow, text) [default: the preset's].",
        ),
        click.option(
            "--features",
            type=folder,
            default=Path("features"),
            show_default=True,
            help="Root of the feature sets.",
        ),
        click.option(
            "--manifest",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Manifest of the clips [default: $MICU_MANIFEST, else the last extraction's].",
        ),
        *(
            click.option(
                f"--{name}-features", metavar="BACKBONE", help=f"Which {name} features, if several."
            )
            for name in MODALITIES
        ),
        click.option(
            "--preset",
            type=click.Choice(sorted(PRESETS)),
            default="micu",
            show_default=True,
            metavar="NAME",
            help="Settings to start from; --list-presets says which there are.",
        ),
        click.option(
            "--list-presets",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_list_presets,
            help="List the presets and stop.",
        ),
        click.option(
            "--set",
            "assignments",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change a setting, for example quantizer.codebook_size=512; repeatable.",
        ),
        click.option("--seed", type=int, help="Short for --set seed=N."),
        click.option(
            "--exclude-manifest",
            "exclude_manifests",
            metavar="FILE",
            multiple=True,
            help="Leave out the clips of this manifest, and all others of the same YouTube videos; "
            "repeatable. Short for --set data.exclude_manifests=FILE,FILE.",
        ),
        click.option("--print-config", is_flag=True, help="Print all settings as JSON and stop."),
        click.option(
            "--out", type=folder, help="Folder of the run [default: runs/PRESET-MODALITIES-SEED]."
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N, mps."),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Processes that read features; 0 reads in the training process.",
        ),
        click.option(
            "--resume", is_flag=True, help="Go on with the run in --out, if there is one."
        ),
        click.option("--overwrite", is_flag=True, help="Replace the run in --out."),
        click.option(
            "--save-every",
            type=click.IntRange(min=0),
            default=200,
            show_default=True,
            help="Steps between two checkpoints; 0 saves at the end only.",
        ),
        click.option(
            "--keep",
            type=click.IntRange(min=0),
            default=2,
            show_default=True,
            help="How many of the newest checkpoints stay; 0 is all.",
        ),
        click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too."),
        click.option(
            "--dry-run", is_flag=True, help="Measure two steps, print what the run takes, and stop."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
        *sweep_options(),
    ]
    return functools.reduce(lambda made, option: option(made), reversed(options), command)


def _list_presets(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(list_presets())
        context.exit()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="micu")
@_options
def main(
    *,
    modalities: str | None,
    assignments: tuple[str, ...],
    seed: int | None,
    exclude_manifests: tuple[str, ...],
    print_config: bool,
    preset: str,
    out: Path | None,
    **arguments: Any,
) -> None:
    """Train MICU on extracted features."""
    with exit_codes(HINT):
        if is_sweep(click.get_current_context()):

            def build(name: str, swept: Sequence[str]) -> TrainConfig:
                typed = (*assignments, *swept)
                return build_config(name, modalities, seed, typed, exclude_manifests)

            sys.exit(run_sweep(click.get_current_context(), build))
        config = build_config(preset, modalities, seed, assignments, exclude_manifests)
        if print_config:
            click.echo(to_json(config))
            return
        letters = "".join(name[0] for name in config.modalities)
        chosen = {name: arguments.pop(f"{name}_features") or "" for name in MODALITIES}
        typed = Arguments(
            chosen=chosen,
            preset=preset,
            out=out or Path("runs") / f"{preset}-{letters}-{config.seed}",
            **{name: value for name, value in arguments.items() if name not in OWN},
        )
        if typed.resume and typed.overwrite:
            raise ConfigError("--resume and --overwrite: expected one of them, got both")
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        code = run(config, typed)
    sys.exit(code)


def build_config(
    preset: str,
    modalities: str | None,
    seed: int | None,
    assignments: Sequence[str],
    exclude_manifests: tuple[str, ...] = (),
) -> TrainConfig:
    """The configuration that the options ask for.

    Raises:
        ConfigError: Unknown or bad values, all in one message.
    """
    typed = [] if seed is None else [f"seed={seed}"]
    if modalities is not None:
        typed.append(f"modalities={','.join(parse_modalities(modalities))}")
    # All at once: what a preset has for three modalities may not fit two before it is changed.
    config = with_overrides(PRESETS[preset](), [*typed, *assignments])
    named = (*config.data.exclude_manifests, *exclude_manifests)
    return replace(config, data=replace(config.data, exclude_manifests=named))


def count_steps(config: TrainConfig, batches: int) -> int:
    """Steps of a whole run whose epochs have so many batches."""
    whole = batches * config.optimizer.epochs
    return min(whole, config.optimizer.max_steps or whole)


def run(config: TrainConfig, typed: Arguments) -> int:
    """Train as asked, tell about it, and return the exit code."""
    from micu.data import FeatureDataset, make_loader, select_clips
    from micu.logs import import_tensorboard
    from micu.step import build_state
    from micu.train import find_resumable

    device = resolve_device(typed.device)
    if not typed.dry_run:
        find_resumable(typed.out, config, resume=typed.resume, overwrite=typed.overwrite)
    if typed.tensorboard:
        import_tensorboard()
    sets = find_feature_sets(typed.features, config.modalities, typed.manifest, typed.chosen)
    clips = select_clips(sets.manifest.clips, config.data)
    dataset = FeatureDataset(sets.stores, clips, config.data)

    def load(epoch: int, start: int) -> "DataLoader[Sample]":
        return make_loader(
            dataset,
            config.optimizer.batch_size,
            seed=config.seed,
            epoch=epoch,
            start=start,
            workers=typed.workers,
        )

    state = build_state(config, dataset.shapes, device, count_steps(config, len(load(0, 0))))
    if typed.dry_run:
        _tell_cost(typed, state, dataset, load)
        return 0
    everything = replace(config.data, exclude_ids="", exclude_manifests=())
    excluded = len(select_clips(sets.manifest.clips, everything)) - len(clips)
    record = {**describe_run(typed.preset, sets, dataset), "excluded_clips": excluded}
    specs = {name: store.spec for name, store in sets.stores.items()}
    with lock_folder(typed.out):
        summary = _fit(state, load, specs, record, typed)
    _report(summary, typed, len(dataset))
    return summary.stopped.exit_code if summary.stopped.name else 0


def _fit(
    state: "TrainState",
    load: "LoaderFactory",
    specs: "Mapping[str, FeatureSpec]",
    record: "Record",
    typed: Arguments,
) -> "FitSummary":
    """Train in a folder that no other process is at work in."""
    from micu.train import Plan, clear_run, find_resumable, fit

    # Looked at before the features were read too: another run may have ended here meanwhile.
    resumable = find_resumable(
        typed.out, state.config, resume=typed.resume, overwrite=typed.overwrite
    )
    position = None
    if resumable is not None:
        position = resume_(state, resumable, record)
    elif typed.overwrite:
        clear_run(typed.out)
    plan = Plan(specs, record, typed.save_every, typed.keep, typed.tensorboard)
    return fit(state, load, typed.out, plan, position)


def describe_run(
    preset: str, sets: FeatureSets, dataset: "FeatureDataset"
) -> dict[str, str | int | float]:
    """What every checkpoint of a run notes beside its state."""
    return {
        "preset": preset,
        "manifest": str(sets.manifest.path),
        "manifest_sha256": sets.manifest.sha256,
        "data_sha256": dataset.sha256,
        "clips": len(dataset),
    }


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
    from micu.checkpoint import restore_
    from micu.errors import CheckpointError

    position, before = restore_(state, path)
    if before.get("data_sha256") != record["data_sha256"]:
        raise CheckpointError(
            f"{path}: trained on {before.get('clips')} clips of {before.get('manifest')}, here are "
            f"{record['clips']} of {record['manifest']}, or the features were made otherwise; "
            "the run cannot go on with them: name another --out, or replace it with --overwrite"
        )
    return position


def _tell_cost(
    typed: Arguments, state: "TrainState", dataset: "FeatureDataset", load: "LoaderFactory"
) -> None:
    from micu.train import measure_step

    cost = measure_step(state, load)
    batches = len(load(0, 0))
    steps = count_steps(state.config, batches)
    facts = {
        "clips": len(dataset),
        "shapes": {name: list(shape) for name, shape in dataset.shapes.items()},
        "steps_per_epoch": batches,
        "steps": steps,
        "parameters": sum(p.numel() for p in state.model.parameters())
        + sum(p.numel() for p in state.losses.parameters()),
        "step_s": round(cost.seconds, 4),
        "run_s": round(cost.seconds * steps, 1),
        "memory_bytes": cost.memory_bytes,
    }
    if typed.as_json:
        click.echo(json.dumps(facts))
        return
    shapes = ", ".join(f"{name} {shape}" for name, shape in dataset.shapes.items())
    click.echo(
        f"{facts['clips']} clips: {shapes}\n"
        f"{batches} steps per epoch, {steps} steps, {facts['parameters']:,} parameters\n"
        f"{cost.seconds:.3f} s per step (measured, without reading features), "
        f"{cost.seconds * steps / 60:.1f} min for the run\n"
        f"{cost.memory_bytes / 2**20:.0f} MiB at most"
    )


def _report(summary: "FitSummary", typed: Arguments, clips: int) -> None:
    stopped_by = summary.stopped.name
    if typed.as_json:
        facts = {
            "out": str(typed.out),
            "checkpoint": str(summary.checkpoint),
            "clips": clips,
            "steps": summary.steps,
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
        click.echo(f"{summary.steps} steps; model in {summary.checkpoint}", err=True)


if __name__ == "__main__":
    main()
