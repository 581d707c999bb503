"""The arguments and options of the extraction commands; backbones add theirs."""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click

from extract.backbones import BACKBONES
from extract.backbones.base import Option, Precision
from extract.decode import DECODERS
from extract.flow.options import flow_options

DEFAULT_BACKBONE = {"video": "swinv2", "audio": "htsat", "flow": "slowonly", "text": "bert"}

Command = Callable[..., None]


def extraction_options(modality: str) -> Callable[[Command], Command]:
    """Decorator that gives a command its arguments, in the order in which help shows them."""
    folder = click.Path(path_type=Path, file_okay=False)
    options: list[Callable[[Command], Command]] = [
        click.argument("manifest", required=False, type=click.Path(path_type=Path)),
        click.option(
            "--backbone",
            default=DEFAULT_BACKBONE[modality],
            show_default=True,
            help="See `micu-extract list`.",
        ),
        click.option(
            "--weights",
            default="pretrained",
            show_default=True,
            help="pretrained, a local file or folder, or random (by name only; shards say so).",
        ),
        click.option(
            "--media-root",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            help="Folder that the manifest's paths start from [default: the manifest's folder, or "
            "the one used last where MANIFEST is left out].",
        ),
        click.option(
            "--out",
            type=folder,
            default=Path("features"),
            show_default=True,
            help="Root of the feature sets.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N, mps."),
        *_run_options(),
        click.option(
            "--limit", type=click.IntRange(min=1), help="Only the first N rows of the manifest."
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            default=os.cpu_count() or 1,
            show_default="one per core",
            help="Clips decoded at the same time, in processes of their own.",
        ),
        click.option(
            "--shard-rows",
            type=click.IntRange(min=1),
            help="Rows per shard [default: about 64 MiB, 64 to 1024 rows].",
        ),
        click.option("--retry-failed", is_flag=True, help="Try the clips in the ledger again."),
        click.option(
            "--overwrite", is_flag=True, help="Replace features that were made with other settings."
        ),
        click.option("--dry-run", is_flag=True, help="Print the plan as JSON and stop."),
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
        *([_timeout_option()] if modality != "text" else []),
        *([_decoder_option()] if modality in ("video", "flow") else []),
        *(flow_options() if modality == "flow" else []),
        *_backbone_options(modality),
    ]

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda made, option: option(made), reversed(options), command)

    return decorate


def _run_options() -> list[Callable[[Command], Command]]:
    return [
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
    ]


def _timeout_option() -> Callable[[Command], Command]:
    return click.option(
        "--clip-timeout",
        "clip_timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=600.0,
        show_default=True,
        help="Seconds after which the worker that decodes a clip is killed.",
    )


def _decoder_option() -> Callable[[Command], Command]:
    return click.option(
        "--decoder",
        type=click.Choice(DECODERS),
        default=DECODERS[0],
        show_default=True,
        help="decord is for trusted media only: it cannot be locked to local files.",
    )


def _backbone_options(modality: str) -> list[Callable[[Command], Command]]:
    """One option per name that any backbone of the modality takes, with each one's default."""
    users: dict[str, dict[str, object]] = {}
    options: dict[str, Option] = {}
    for backbone, kind in BACKBONES.items():
        if kind.gives.modality == modality:
            for name, option in kind.OPTIONS.items():
                known = options.setdefault(name, option)
                choices = dict.fromkeys((*known.choices, *option.choices))
                options[name] = replace(known, choices=tuple(choices))
                users.setdefault(name, {})[backbone] = option.default
    return [_backbone_option(name, option, users[name]) for name, option in options.items()]


def _backbone_option(
    name: str, option: Option, users: Mapping[str, object]
) -> Callable[[Command], Command]:
    """An option that is None unless it is typed, so that it can be refused where it is unknown."""
    typed = f"--{name.replace('_', '-')}"
    if option.type is bool:
        takers = ", ".join(users)
        return click.option(typed, is_flag=True, default=None, help=f"{option.help} [{takers}].")
    defaults = ", ".join(f"{backbone}: {default}" for backbone, default in users.items())
    kind = click.Choice(option.choices) if option.choices else option.type
    return click.option(typed, type=kind, help=f"{option.help} [{defaults}].")
