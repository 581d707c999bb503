"""The arguments and options of the extraction commands; backbones add theirs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from micu.base.command_line import Decorator, device_option, in_order, panel, plugin_option
from micu.base.devices import count_cores
from micu.base.errors import ConfigError
from micu.base.process import FiniteRange
from micu.base.registry import suggest
from micu_extract.backbones import BACKBONES, PREFIXED, find_backbone
from micu_extract.backbones.base import Option, Precision, Run
from micu_extract.cluster.commands import (
    dask_option,
    devices_option,
    max_failures_option,
    part_option,
)
from micu_extract.flow.options import FLOW_DECORATORS
from micu_extract.media.readers import DECODERS
from micu_extract.run import Settings

DEFAULT_BACKBONE = {"video": "swinv2", "audio": "htsat", "flow": "slowonly", "text": "bert"}

JOB = ("limit", "shard_rows", "overwrite", "retry_failed", "part")
"""Those that are fields of `Job`."""
SETTINGS = (
    *("manifest", "media_root", "out", "device", "batch_size", "precision", "compiled"),
    *(*JOB, "workers", "dry_run", "as_json"),
    *("clip_timeout_s", "worker_bytes", "max_failures", "check_clips", "decoder"),
    *("flow", "flow_cache", "dask", "devices"),
)
"""Names of what `gather_settings` takes; other arguments of a command are options of backbones."""

_DECODER = click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    default=DECODERS[0],
    show_default=True,
    help="decord decodes once more what PyAV has decoded, in twice the time: it shows the same "
    "pictures or the clip fails. It never opens a file itself.",
)
_WEIGHTS = "pretrained, a local file or folder, or random (by name only; shards say so)."


def _one_options(modality: str) -> list[Decorator]:
    return [
        click.option(
            "--backbone",
            default=DEFAULT_BACKBONE[modality],
            show_default=True,
            help="See `micu-extract list`.",
        ),
        click.option("--weights", default="pretrained", show_default=True, help=_WEIGHTS),
    ]


_ALL: tuple[Decorator, ...] = (
    click.option("--backbones", required=True, metavar="NAME,…", help="See `micu-extract list`."),
    click.option(
        "--weights",
        multiple=True,
        default=["pretrained"],
        show_default=True,
        metavar="[NAME=]VALUE",
        help=f"{_WEIGHTS} Of every backbone, or of the one named; may be repeated.",
    ),
    click.option(
        "--set",
        "set_options",
        multiple=True,
        metavar="NAME.OPTION=VALUE",
        help="An option of one backbone, for example swinv2.frames-per-second=4.",
    ),
)


_RUN = (
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("features"),
        show_default=True,
        help="Root of the feature sets.",
    ),
    click.option(
        "--limit", type=click.IntRange(min=1), help="Only the first N rows of the manifest."
    ),
    click.option(
        "--shard-rows",
        type=click.IntRange(min=1),
        help="Rows per shard [default: about 64 MiB, 64 to 1024 rows].",
    ),
    max_failures_option,
    click.option(
        "--check-clips",
        type=click.IntRange(min=0),
        default=3,
        show_default=True,
        help="Where a set was made with other versions of libraries: so many of its clips are "
        "extracted again and compared before the run goes on; 0 compares nothing.",
    ),
    click.option("--retry-failed", is_flag=True, help="Try the clips in the ledger again."),
    click.option(
        "--overwrite", is_flag=True, help="Replace features that were made with other settings."
    ),
    click.option(
        "--fetch",
        is_flag=True,
        help="Make a MANIFEST that is not there, if it is named as a data set whose lists are "
        "published: manifests/vggsound.csv.",
    ),
    click.option("--dry-run", is_flag=True, help="Print the plan as JSON and stop."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
    plugin_option,
)


_NETWORK = (
    device_option,
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Units (frames, windows, flow clips, sentences) in one forward pass; batches go "
        "across clips [default: the backbone's].",
    ),
    click.option(
        "--precision",
        type=click.Choice(get_args(Precision)),
        default="float32",
        show_default=True,
        help="Of the network; bf16 and fp16 change features, and are fast on GPUs.",
    ),
    click.option(
        "--compile",
        "compiled",
        is_flag=True,
        help="Compile the network with torch.compile first, which takes minutes.",
    ),
)


def extraction_options(modality: str) -> Decorator:
    """Decorator that gives a command its arguments, in the order in which help shows them."""
    return in_order(
        click.argument("manifest", required=False, type=click.Path(path_type=Path)),
        panel("Backbone", *(_ALL if modality == "all" else _one_options(modality))),
        *([panel("Media", *_media_options(modality))] if modality != "text" else []),
        panel("Run", *_RUN),
        panel("Network", *_NETWORK),
        panel("Parts", part_option, devices_option, dask_option),
        *([panel("Flow", *FLOW_DECORATORS)] if modality in ("flow", "all") else []),
        *([panel("Options of backbones", *found)] if (found := _own_options(modality)) else []),
    )


def _media_options(modality: str) -> list[Decorator]:
    return [
        click.option(
            "--media-root",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            help="Folder that the manifest's paths start from [default: the manifest's folder, or "
            "the one used last where MANIFEST is left out].",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            default=count_cores,
            show_default="one per core",
            help="Clips decoded at the same time, in processes of their own.",
        ),
        click.option(
            "--clip-timeout",
            "clip_timeout_s",
            type=FiniteRange(min=0, min_open=True),
            default=600.0,
            show_default=True,
            help="Seconds after which the worker that decodes a clip, and computes its flow, is "
            "killed.",
        ),
        click.option(
            "--worker-memory",
            "worker_bytes",
            metavar="GIB",
            type=FiniteRange(min=0, min_open=True, max=2**30),
            callback=lambda context, option, value: value and int(value * 2**30),
            help="Memory that each worker may take; a clip that needs more fails alone "
            "[default: what there is].",
        ),
        *([_DECODER] if modality in ("video", "flow") else []),
    ]


def _own_options(modality: str) -> list[Decorator]:
    """One option per name that any backbone of the modality takes, with each one's default."""
    users: dict[str, dict[str, object]] = {}
    options: dict[str, Option] = {}
    kinds = dict(BACKBONES.items())
    kinds |= {typed: kind for typed, (kind, _) in PREFIXED.items()}
    for backbone, kind in kinds.items():
        if kind.gives.modality == modality:
            for name, option in kind.OPTIONS.items():
                known = options.setdefault(name, option)
                choices = dict.fromkeys((*known.choices, *option.choices))
                options[name] = replace(known, choices=tuple(choices))
                users.setdefault(name, {})[backbone] = option.default
    return [_backbone_option(name, option, users[name]) for name, option in options.items()]


def _backbone_option(name: str, option: Option, users: Mapping[str, object]) -> Decorator:
    """An option that is None unless it is typed, so that it can be refused where it is unknown."""
    typed = f"--{name.replace('_', '-')}"
    if option.type is bool:
        takers = ", ".join(users)
        return click.option(typed, is_flag=True, default=None, help=f"{option.help} [{takers}].")
    defaults = ", ".join(f"{backbone}: {default}" for backbone, default in users.items())
    kind = click.Choice(option.choices) if option.choices else option.type
    return click.option(typed, type=kind, help=f"{option.help} [{defaults}].")


# --- what was typed --------------------------------------------------------------------------


def gather_settings(
    *,
    device: str,
    batch_size: int | None,
    precision: Precision,
    compiled: bool,
    dask: str | None,
    devices: tuple[str, ...] = (),
    **settings: Any,
) -> Settings:
    """The settings of a run, from what a command was typed with.

    Args:
        device: Where networks run.
        batch_size: Of every backbone; None is its own.
        precision: Of every network.
        compiled: Whether networks are compiled.
        dask: See `Settings`.
        devices: Likewise.
        **settings: Those of `Job` in `JOB`, and the other fields of `Settings`.

    Raises:
        ConfigError: Options that exclude each other.
    """
    if devices and (dask or device != "auto"):
        other = "--dask" if dask else f"--device {device}"
        raise ConfigError(f"--devices and {other}: expected one of them, got both; leave one out")
    device = planning_device(device, dask, devices)
    return Settings(
        run=Run(device=device, batch_size=batch_size, precision=precision, compile=compiled),
        dask=dask,
        devices=devices if len(devices) > 1 else (),
        job={name: settings.pop(name) for name in JOB},
        **settings,
    )


def planning_device(device: str, dask: str | None, devices: Sequence[str]) -> str:
    """Where this process loads networks: one that only plans what others do needs no GPU."""
    if len(devices) == 1:
        return devices[0]
    return "cpu" if dask or devices else device


def split_names(backbones: str) -> list[str]:
    """Names from a list with commas.

    Raises:
        UsageError: There is none, or one twice.
        RegistryError: One is unknown.
    """
    names = [name.strip() for name in backbones.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise click.UsageError(f"--backbones: expected different names, got {backbones!r}")
    for name in names:
        find_backbone(name)
    return names


def split_weights(weights: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What `--weights` says of each backbone: VALUE of all, NAME=VALUE of one.

    Raises:
        UsageError: A name that is not in `--backbones`.
    """
    chosen = dict.fromkeys(names, "pretrained")
    for entry in sorted(weights, key=lambda entry: "=" in entry):
        name, equals, value = entry.partition("=")
        if equals and name not in names:
            raise click.UsageError(f"--weights {entry}: {name!r} is not one of --backbones")
        chosen |= {name: value} if equals else dict.fromkeys(names, entry)
    return chosen


def split_options(entries: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `--set NAME.OPTION=VALUE` says of each backbone; a flag takes true or false.

    Raises:
        UsageError: No such backbone or option, or a value of another type.
    """
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for entry in entries:
        place, _, value = entry.partition("=")
        name, _, key = place.rpartition(".")
        key = key.replace("-", "_")
        if name not in chosen:
            raise click.UsageError(f"--set {entry}: {name!r} is not one of --backbones")
        options = find_backbone(name).OPTIONS
        if key not in options:
            raise click.UsageError(f"--set {entry}: {suggest(key, options)}")
        kind = (
            click.BOOL if options[key].type is bool else click.types.convert_type(options[key].type)
        )
        try:
            chosen[name][key] = kind.convert(value, None, None)
        except click.BadParameter as error:
            raise click.UsageError(f"--set {entry}: {error.message}") from error
    return chosen
