"""The options of `micu-train`."""

from pathlib import Path

import click

from micu.base.command_line import device_option, in_order, panel, plugin_option
from micu.base.devices import parse_devices
from micu.cli.features import FEATURE_OPTIONS
from micu.cli.sweep import SWEEP_OPTIONS
from micu.config.presets import PRESETS, list_presets

_FOLDER = click.Path(path_type=Path, file_okay=False)


def _list_presets(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(list_presets())
        context.exit()


_DATA = (
    click.option(
        "--modalities",
        help="Two or more of v,a,f,t (video, audio, flow, text) [default: the preset's].",
    ),
    *FEATURE_OPTIONS,
)


_SETTINGS = (
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
    plugin_option,
    click.option("--seed", type=int, help="Short for --set seed=N."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        help="Short for --set optimizer.precision=NAME.",
    ),
    click.option("--tf32", is_flag=True, help="Short for --set optimizer.tf32=true."),
    click.option(
        "--exclude-manifest",
        "exclude_manifests",
        metavar="FILE",
        multiple=True,
        help="Leave out the clips of this manifest, and all others of the same YouTube videos; "
        "repeatable. Short for --set data.exclude_manifests=FILE,FILE.",
    ),
)


_RUN = (
    click.option("--print-config", is_flag=True, help="Print all settings as JSON and stop."),
    click.option(
        "--out", type=_FOLDER, help="Folder of the run [default: runs/PRESET-MODALITIES-SEED]."
    ),
    device_option,
    click.option(
        "--devices",
        metavar="all|0,1,…|cpu:N",
        callback=lambda context, option, typed: parse_devices(typed) if typed else (),
        help="Train one model in a process for each of several devices of this machine, as "
        "torchrun does: all GPUs, those of some numbers, or N processes of the CPU.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Processes that read features; 0 reads in the training process.",
    ),
    click.option(
        "--cache",
        type=click.Choice(["float32", "float16"]),
        help="Keep all features in memory; float16 is short for --set data.dtype=float16 too.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in --out, if there is one."),
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
        "--dry-run",
        is_flag=True,
        help="Measure a few steps, print what the run takes, and stop.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
)

train_options = in_order(
    panel("Data", *_DATA),
    panel("Settings", *_SETTINGS),
    panel("Run", *_RUN),
    panel("Sweep", *SWEEP_OPTIONS),
)
"""Gives a command its options, in the order in which help shows them."""
