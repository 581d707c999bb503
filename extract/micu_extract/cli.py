"""`micu-extract`: features of video, audio, flow and text; the list of backbones; the proof.

Every command is safe to interrupt and to type again: what is done is not done twice. Its exit codes
are those of `micu.base.process`.
"""

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from micu.base.command_line import ToolGroup, plugin_option
from micu.base.devices import resolve_device
from micu.base.errors import StoreError
from micu.base.process import EXIT_FAILURES, fold, guard_screen, run_command, screen_width
from micu_extract.backbones import BACKBONES, PREFIXED, name_for
from micu_extract.backbones.base import describe_input, describe_shape
from micu_extract.cluster.commands import (
    compact,
    describe_unread,
    echo_problems,
    merge,
    repair_option,
    repair_sets,
    sets_below,
    slurm,
    status,
)
from micu_extract.flow.methods import FlowSettings
from micu_extract.flow.options import FLOW_OPTIONS, flow_settings
from micu_extract.manifest_cli import have_manifest, import_released, make_manifest, overlap
from micu_extract.options import (
    SETTINGS,
    extraction_options,
    gather_settings,
    planning_device,
    split_names,
    split_options,
    split_weights,
)
from micu_extract.run import Order, run_extraction
from micu_extract.sets.repair import drop_replaced
from micu_extract.sets.verify import SetReport, verify_set


@click.group(cls=ToolGroup)
@click.version_option(package_name="micu")
def cli() -> None:
    """Turn raw video, audio and text into feature shards."""
    guard_screen()


def main() -> None:
    """Entry point: errors that a user can act on become one message and an exit code."""
    guard_screen()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run_command(cli, hint="nothing half-made was left; type the same command to go on")


# --- extraction ------------------------------------------------------------------------------


@cli.command(example="micu-extract video my.csv --media-root media")
@extraction_options("video")
def video(**arguments: Any) -> None:
    """Features of the pictures of every clip in MANIFEST."""
    _extract("video", **arguments)


@cli.command(example="micu-extract audio my.csv --workers 8")
@extraction_options("audio")
def audio(**arguments: Any) -> None:
    """Features of the sound of every clip in MANIFEST."""
    _extract("audio", **arguments)


@cli.command(example="micu-extract flow --tvl1 my.csv")
@extraction_options("flow")
def flow(*, device: str, **arguments: Any) -> None:
    """Features of the optical flow of every clip in MANIFEST."""
    settings, conventions = _take_flow(device, arguments)
    _extract("flow", device=device, flow=settings, conventions=conventions, **arguments)


@cli.command(example="micu-extract text my.csv")
@extraction_options("text")
def text(**arguments: Any) -> None:
    """Features of the sentence of every clip in MANIFEST."""
    _extract("text", media_root=None, workers=1, clip_timeout_s=None, **arguments)


@cli.command("all", example="micu-extract all my.csv --backbones swinv2,htsat")
@extraction_options("all")
def extract_all(
    *,
    device: str,
    backbones: str,
    weights: tuple[str, ...],
    set_options: tuple[str, ...],
    fetch: bool,
    **arguments: Any,
) -> None:
    """Features of every clip in MANIFEST by several backbones, decoding each clip once."""
    names = split_names(backbones)
    chosen, options = split_weights(weights, names), split_options(set_options, names)
    orders = [Order(backbone=name, weights=chosen[name], options=options[name]) for name in names]
    if any(order.modality == "flow" for order in orders):
        arguments["flow"], conventions = _take_flow(device, arguments)
        orders = [
            replace(order, conventions=conventions) if order.modality == "flow" else order
            for order in orders
        ]
    elif any(arguments.pop(name) not in (None, False) for name in FLOW_OPTIONS):
        raise click.UsageError("flow options were typed, and no backbone of --backbones takes flow")
    have_manifest(arguments["manifest"], fetch=fetch)
    run_extraction(orders, gather_settings(device=device, **arguments))


def _take_flow(device: str, arguments: dict[str, Any]) -> tuple[FlowSettings, Mapping[str, Any]]:
    """How flow is computed, and the conventions of its input, taken out of what was typed."""
    typed = {name: arguments.pop(name) for name in FLOW_OPTIONS}
    local = resolve_device(planning_device(device, arguments["dask"], arguments["devices"]))
    return flow_settings(device=local, **typed)


def _extract(
    modality: str,
    *,
    backbone: str,
    weights: str,
    fetch: bool,
    conventions: Mapping[str, Any] = MappingProxyType({}),
    **arguments: Any,
) -> None:
    """Features by one backbone; what is not a setting of the run is an option of the backbone."""
    known = {name: arguments.pop(name) for name in SETTINGS if name in arguments}
    backbone = name_for(backbone, modality)
    order = Order(backbone=backbone, weights=weights, options=arguments, conventions=conventions)
    if order.modality != modality:
        raise click.UsageError(
            f"--backbone {backbone} makes {order.modality} features; "
            f"type: micu-extract {order.modality} --backbone {backbone}"
        )
    have_manifest(known["manifest"], fetch=fetch)
    run_extraction([order], gather_settings(**known))


# --- looking ---------------------------------------------------------------------------------


@cli.command("list", example="micu-extract list")
@click.option("--all", "is_all", is_flag=True, help="Show those of the demo, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all of them, and all of each.")
@plugin_option
def list_backbones(*, is_all: bool, as_json: bool) -> None:
    """Show the backbones: what each wants, gives, and where its weights are."""
    if as_json:
        click.echo(json.dumps(backbone_rows(), indent=1))
    else:
        click.echo(fold(backbone_table(is_all=is_all), screen_width()))


def backbone_rows() -> list[dict[str, Any]]:
    """Everything that is known of each backbone without loading it, as JSON."""
    return [
        {"name": name, **asdict(kind.gives), "wants": asdict(kind.wants)}
        for name, kind in BACKBONES.items()
    ]


def _maker(name: str) -> str:
    """Who made a backbone that is not of this project."""
    return f" of {' '.join(BACKBONES.makers[name])}" if name in BACKBONES.makers else ""


def backbone_table(*, is_all: bool = False) -> str:
    """The same for people, who need those of the demo if `is_all` only."""
    lines = []
    for name, kind in BACKBONES.items():
        if name.endswith("-demo") and not is_all:
            continue
        gives = kind.gives
        lines += [
            f"{name:<14} {gives.modality:<6} {describe_shape(gives)}{_maker(name)}",
            f"    input    {describe_input(kind.wants)}",
            f"    weights  {gives.weights}; licence: {gives.licence}",
        ]
    for typed, (kind, told) in PREFIXED.items():
        gives = kind.gives
        lines += [
            f"{typed:<14} {gives.modality:<6} {'(T, D)' if gives.hop_s else '(1, D)'}",
            f"    input    {told}",
            f"    weights  {gives.weights}; licence: {gives.licence}",
        ]
    return "\n".join(lines)


@cli.command(example="micu-extract verify features --data")
@click.argument(
    "features",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("features"),
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Where the manifest is now, if the features were moved.",
)
@click.option("--data", is_flag=True, help="Also hash every shard and look for NaN (reads it all).")
@click.option(
    "--media", is_flag=True, help="Also look whether media files were replaced (size, time)."
)
@repair_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    *, features: Path, manifest: Path | None, data: bool, media: bool, repair: bool, as_json: bool
) -> None:
    """Prove that every manifest row is in a shard or in the ledger, never both, never neither."""
    if repair and not (data or media):
        raise click.UsageError("--repair: expected --data too; type: verify --data --repair")
    sets = sets_below(features)
    if repair and data:
        repair_sets(sets.whole)
    if repair and media:
        repair_sets(sets.whole, lambda folder: drop_replaced(folder, manifest))
    reports = [_verify(folder, manifest, data=data, media=media) for folder in sets.whole]
    reports += [SetReport(folder, 0, 0, 0, 0, (told,)) for folder, told in sets.lost.items()]
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports], indent=1))
    for report in reports if not as_json else ():
        state = "bad " if report.problems else "good"
        only = f" of {report.manifest_rows}" if report.rows < report.manifest_rows else ""
        click.echo(
            f"{state} {report.folder}: {report.rows}{only} rows = {report.stored} stored "
            f"+ {report.failed} failed"
            + (f" + {report.shared} in other manifests' sets" if report.shared else "")
            + (f" ({report.damaged} of the stored have corrupt frames)" if report.damaged else "")
            + (f"; {report.unasked} more rows that it does not ask for" if report.unasked else "")
        )
        echo_problems(report.problems)
    sys.exit(EXIT_FAILURES if any(report.problems for report in reports) else 0)


def _verify(folder: Path, manifest: Path | None, *, data: bool, media: bool) -> SetReport:
    """The report of a set; one that cannot be read is bad, and does not keep others from theirs."""
    try:
        return verify_set(folder, manifest, data=data, media=media)
    except (StoreError, OSError) as error:
        return SetReport(str(folder), 0, 0, 0, 0, (describe_unread(folder, error),))


for command in (make_manifest, overlap, import_released, status, merge, compact, slurm):
    cli.add_command(command)


if __name__ == "__main__":
    main()
