"""`micu-extract`: features of video, audio, flow and text; the list of backbones; the proof.

Every command is safe to interrupt and to type again: what is done is not done twice. Exit codes:
0 all good, 2 usage or manifest, 3 finished with failures, 74 input/output error, 75 stopped but
resumable, 130 Ctrl-C.
"""

import functools
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from extract.backbones import build_backbone, find_backbone
from extract.backbones.base import Precision, Run
from extract.datasets import DATASETS
from extract.decode import DECODERS, describe_reading, read
from extract.flow.methods import FlowSettings
from extract.flow.options import FLOW_OPTIONS, flow_settings
from extract.listing import backbone_rows, backbone_table
from extract.media import Reading
from extract.options import extraction_options
from extract.pictures import check_decoder
from extract.pipeline import Summary, extract_manifest
from extract.plan import Job, Plan, plan_extraction
from extract.progress import Progress
from extract.verify import verify_set
from micu.commands import (
    EXIT_FAILURES,
    Source,
    StopFlag,
    find_source,
    record_source,
    run_command,
)
from micu.devices import resolve_device
from micu.manifest import NEEDED_COLUMN, read_manifest, write_manifest
from micu.store import find_sets


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="micu")
def cli() -> None:
    """Turn raw video, audio and text into feature shards."""


def main() -> None:
    """Entry point: errors that a user can act on become one message and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run_command(cli, hint="nothing half-made was left; type the same command to go on")


# --- extraction ------------------------------------------------------------------------------


@cli.command()
@extraction_options("video")
def video(**arguments: Any) -> None:
    """Features of the pictures of every clip in MANIFEST."""
    _extract("video", **arguments)


@cli.command()
@extraction_options("audio")
def audio(**arguments: Any) -> None:
    """Features of the sound of every clip in MANIFEST."""
    _extract("audio", **arguments)


@cli.command()
@extraction_options("flow")
def flow(*, device: str, flow_cache: Path | None, **arguments: Any) -> None:
    """Features of the optical flow of every clip in MANIFEST."""
    typed = {name: arguments.pop(name) for name in FLOW_OPTIONS}
    settings, conventions = flow_settings(device=resolve_device(device), **typed)
    _extract(
        "flow",
        device=device,
        flow=settings,
        flow_cache=flow_cache,
        conventions=conventions,
        **arguments,
    )


@cli.command()
@extraction_options("text")
def text(**arguments: Any) -> None:
    """Features of the sentence of every clip in MANIFEST."""
    _extract("text", **arguments)


def _extract(
    modality: str,
    *,
    manifest: Path | None,
    backbone: str,
    weights: str,
    media_root: Path | None,
    out: Path,
    device: str,
    batch_size: int | None,
    precision: Precision,
    compiled: bool,
    limit: int | None,
    workers: int,
    shard_rows: int | None,
    retry_failed: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    decoder: str = DECODERS[0],
    clip_timeout_s: float | None = None,
    flow: FlowSettings | None = None,
    flow_cache: Path | None = None,
    conventions: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> None:
    """One extraction, from what was typed to the exit code."""
    source = find_source(out, manifest)
    job = Job(
        manifest=read_manifest(source.manifest, need=(NEEDED_COLUMN[modality],)),
        media_root=media_root or source.media_root,
        out=out,
        limit=limit,
        shard_rows=shard_rows,
        overwrite=overwrite,
        retry_failed=retry_failed,
    )
    check_decoder(decoder)
    found = find_backbone(backbone).gives.modality
    if found != modality:
        raise click.UsageError(
            f"--backbone {backbone} makes {found} features; "
            f"type: micu-extract {found} --backbone {backbone}"
        )
    run = Run(device=device, batch_size=batch_size, precision=precision, compile=compiled)
    network = build_backbone(backbone, weights, run, **options)
    wants = replace(network.wants, **conventions)
    reading = Reading(
        media_root=job.media_root,
        decoder=decoder,
        flow=flow or FlowSettings(),
        flow_cache=flow_cache,
    )
    spec = replace(
        network.spec,
        preprocessing={
            **network.spec.preprocessing,
            **describe_reading(wants, reading),
        },
    )
    plan = plan_extraction(job, spec)
    _announce(plan, job.media_root)
    if dry_run:
        click.echo(json.dumps(_plan_json(plan), indent=1))
        return
    record_source(out, Source(source.manifest, job.media_root))
    progress = Progress(plan.todo)
    summary = extract_manifest(
        plan,
        network,
        functools.partial(read, wants=wants, reading=reading),
        workers,
        progress.show,
        clip_timeout_s,
    )
    progress.close()
    _report(summary, plan, as_json)
    if summary.stopped_by:
        # Decoders still at work are left behind: they would hold the process up for minutes.
        sys.stdout.flush()
        os._exit(StopFlag(summary.stopped_by).exit_code)
    sys.exit(EXIT_FAILURES if summary.failed or summary.failed_before else 0)


def _announce(plan: Plan, media_root: Path) -> None:
    spec = plan.header.spec
    click.echo(
        f"{spec.backbone}: {spec.modality} features of shape (T, {', '.join(map(str, spec.shape))})"
        f" from weights {spec.weights} (sha256 {spec.weights_sha256[:12]})",
        err=True,
    )
    click.echo(f"wants {json.dumps(dict(spec.preprocessing))}", err=True)
    if spec.modality != "text":
        click.echo(f"media root {media_root}", err=True)
    click.echo(
        f"{plan.folder}: {plan.todo} clips to extract, {plan.done} done, "
        f"{plan.failed} failed earlier",
        err=True,
    )


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "folder": str(plan.folder),
        "todo": plan.todo,
        "done": plan.done,
        "failed": plan.failed,
        "shards": [shard.number for shard in plan.shards],
        "shard_rows": plan.header.shard_rows,
        "header": plan.header.to_json(),
    }


def _report(summary: Summary, plan: Plan, as_json: bool) -> None:
    codes = ", ".join(f"{count} {code}" for code, count in sorted(summary.codes.items()))
    click.echo(
        f"extracted {summary.extracted}, failed {summary.failed}{f' ({codes})' if codes else ''}, "
        f"left {summary.left}, damaged {summary.damaged}; read {summary.read_s:.1f} s, "
        f"infer {summary.infer_s:.1f} s, write {summary.write_s:.1f} s, "
        f"wall {summary.wall_s:.1f} s",
        err=True,
    )
    if summary.failed or plan.failed:
        click.echo(f"failures are listed in {plan.folder / 'failures.csv'}", err=True)
    if summary.stopped_by:
        click.echo(f"stopped by {summary.stopped_by}; type the same command to go on", err=True)
    if as_json:
        click.echo(json.dumps(asdict(summary)))


# --- manifests -------------------------------------------------------------------------------


@cli.command("manifest")
@click.argument("dataset", type=click.Choice(sorted(DATASETS)))
@click.option(
    "--annotations",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The data set's official annotation file.",
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The manifest to write, for example manifests/vggsound.csv.",
)
def make_manifest(*, dataset: str, annotations: Path, out: Path) -> None:
    """Make the manifest of a data set from its official annotation file."""
    clips = DATASETS[dataset](annotations)
    write_manifest(out, clips)
    manifest = read_manifest(out)
    click.echo(f"{out}: {len(manifest.clips)} clips, sha256 {manifest.sha256[:12]}")


# --- looking ---------------------------------------------------------------------------------


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_backbones(*, as_json: bool) -> None:
    """Show the backbones: what each wants, gives, and where its weights are."""
    click.echo(json.dumps(backbone_rows(), indent=1) if as_json else backbone_table())


@cli.command()
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(*, features: Path, manifest: Path | None, data: bool, as_json: bool) -> None:
    """Prove that every manifest row is in a shard or in the ledger, never both, never neither."""
    reports = [verify_set(folder, manifest, data=data) for folder in find_sets(features)]
    if not reports:
        raise click.UsageError(f"{features}: no feature set here")
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports], indent=1))
    for report in reports if not as_json else ():
        state = "bad " if report.problems else "good"
        only = f" of {report.manifest_rows}" if report.rows < report.manifest_rows else ""
        click.echo(
            f"{state} {report.folder}: {report.rows}{only} rows = {report.stored} stored "
            f"+ {report.failed} failed"
        )
        for problem in report.problems[:20]:
            click.echo(f"     {problem}")
        if len(report.problems) > 20:
            click.echo(f"     and {len(report.problems) - 20} more")
    sys.exit(EXIT_FAILURES if any(report.problems for report in reports) else 0)


if __name__ == "__main__":
    main()
