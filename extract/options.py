"""The arguments and options of the extraction commands; backbones add theirs."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import click

from extract.backbones import BACKBONES
from extract.backbones.base import Option
from extract.decode import DECODERS

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
        click.option(
            "--limit", type=click.IntRange(min=1), help="Only the first N rows of the manifest."
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            default=os.cpu_count() or 1,
            show_default="one per core",
            help="Clips decoded at the same time.",
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
        *([_decoder_option()] if modality in ("video", "flow") else []),
        *_backbone_options(modality),
    ]

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda made, option: option(made), reversed(options), command)

    return decorate


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
                options.setdefault(name, option)
                users.setdefault(name, {})[backbone] = option.default
    return [
        click.option(
            f"--{name.replace('_', '-')}",
            type=option.type,
            help=f"{option.help} [{', '.join(f'{b}: {d}' for b, d in users[name].items())}].",
        )
        for name, option in options.items()
    ]
