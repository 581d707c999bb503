"""One extraction, from what was typed to the exit code: one backbone, or several in one pass."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from micu.base.command_line import typed_command
from micu.base.errors import ConfigError, DecodeError, StoreError
from micu.base.files import check_held, check_room, hold_folder
from micu.base.process import EXIT_FAILURES, StopFlag
from micu.store.ledger import Failure, read_failures
from micu.store.manifest import NEEDED_COLUMN, Clip, Manifest, read_manifest
from micu.store.sets import FeatureStore, shard_files
from micu.store.shard import FeatureRow
from micu.store.source import ManifestSource, find_source, record_source
from micu_extract.backbones import build_backbone, find_backbone
from micu_extract.backbones.base import (
    Backbone,
    InputSpec,
    Media,
    Run,
    TextInput,
    describe_input,
    describe_shape,
)
from micu_extract.cluster.dask.engine import check_dask, extract_on_cluster
from micu_extract.cluster.dask.worker import parts_of_input
from micu_extract.cluster.devices import extract_on_devices
from micu_extract.flow.methods import FlowSettings
from micu_extract.media.decoding import Trouble
from micu_extract.media.media_file import find_media
from micu_extract.media.pictures import check_decoder
from micu_extract.media.readers import describe_reading, read_several
from micu_extract.media.source import Reading
from micu_extract.media.workers import Decoders, check_system, leave_import
from micu_extract.pipeline.decode_ahead import (
    ALL_FAILED,
    TOO_MANY_FAILED,
    Target,
    Work,
    decode_ahead,
    decoding_for,
    extract_several,
)
from micu_extract.pipeline.encode import ClipEncoder
from micu_extract.pipeline.failures import Limit
from micu_extract.pipeline.plan import Job, Plan, plan_extraction, usual_rows
from micu_extract.pipeline.progress import LOG_EVERY_S, TOLD_EVERY_S, Bar, Progress
from micu_extract.pipeline.writer import Summary
from micu_extract.sets.shares import FROM_INPUT

GPU_WORKERS = 2
"""Workers at most where flow is computed on a GPU: each holds a context and a network there."""

Options = Mapping[str, int | str | bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One backbone, as it was typed."""

    backbone: str
    weights: str
    options: Options = field(default_factory=dict)
    conventions: Mapping[str, Any] = field(default_factory=dict)
    """Fields to replace in what the backbone wants."""

    @property
    def modality(self) -> str:
        """Of its features."""
        return find_backbone(self.backbone).gives.modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything else that was typed."""

    manifest: Path | None
    media_root: Path | None
    out: Path
    run: Run
    job: Mapping[str, Any]
    """Fields of `Job`: limit, shard_rows, overwrite, retry_failed, …"""
    workers: int
    clip_timeout_s: float | None
    dry_run: bool
    as_json: bool
    decoder: str = "pyav"
    flow: FlowSettings = field(default_factory=FlowSettings)
    flow_cache: Path | None = None
    worker_bytes: int | None = None
    max_failures: Limit | None = None
    check_clips: int = 3
    """Clips that are extracted again where a set was made with other versions of libraries."""
    dask: str | None = None
    """Address of the Dask scheduler whose workers run the shards; None is this process."""
    is_call: bool = False
    """Called from Python: nothing is printed but a bar, in terminals and notebooks."""
    devices: tuple[str, ...] = ()
    """Devices that run the shards, a process for each; empty is `run.device`, in this process."""

    @property
    def shared_by(self) -> str:
        """The option by which others run the shards; empty if this process does."""
        return "--dask" if self.dask else "--devices" if self.devices else ""


@dataclass(frozen=True, slots=True)
class ReadFor:
    """Decodes a clip for the backbones of some names; sent to worker processes."""

    wants: Mapping[str, InputSpec]
    reading: Reading

    def __call__(self, clip: Clip, names: Sequence[str]) -> Mapping[str, Any]:
        """Media, or the error, by name; media with the size and time of their file before."""
        wants = {name: self.wants[name] for name in names}
        facts: dict[str, int] = {}
        if not all(isinstance(each, TextInput) for each in wants.values()):
            with suppress(DecodeError, OSError):
                file = find_media(clip.path, self.reading.media_root).stat()
                facts = {"media_bytes": file.st_size, "media_mtime_ns": file.st_mtime_ns}
        return {
            name: replace(media, notes={**media.notes, **facts})
            if isinstance(media, Media) and not isinstance(wants[name], TextInput)
            else media
            for name, media in read_several(clip, wants, self.reading).items()
        }


@dataclass(frozen=True, slots=True)
class _Ready:
    """What the parts of one extraction have in common."""

    job: Job
    source: ManifestSource
    read: ReadFor
    networks: Mapping[str, Backbone]


def run_extraction(orders: Sequence[Order], settings: Settings) -> None:
    """Extract, report, and end the process with its exit code.

    Raises:
        MicuError: What was typed cannot be done.
    """
    if settings.job["part"] == FROM_INPUT:
        return _extract_in_turn(orders, settings)
    summaries, plans = extract(orders, settings)
    if not settings.dry_run:
        end_run(summaries, plans, settings.as_json)
    return None


def _extract_in_turn(orders: Sequence[Order], settings: Settings) -> None:
    """Extract parts as they come, with networks and decoders that stay; tell of each as JSON."""
    ready = _make_ready(orders, settings)
    with ExitStack() as stay:
        decoders = None
        for part in parts_of_input():
            if part is None:
                stay.close()
                decoders = None
                continue
            if decoders is None:
                workers = _count_workers(ready, settings)
                limits = settings.clip_timeout_s, settings.worker_bytes
                decoders = stay.enter_context(decoding_for(ready.read, workers, *limits))
            job = replace(ready.job, part=part if part.count > 1 else None)
            summaries, plans = _extract_part(replace(ready, job=job), settings, decoders)
            if summaries[0].stopped_by.startswith("SIG"):
                end_run(summaries, plans, as_json=False)
            click.echo(json.dumps([asdict(summary) for summary in summaries]))


def extract(
    orders: Sequence[Order], settings: Settings
) -> tuple[Sequence[Summary], Sequence[Plan]]:
    """Extract, and tell what became of each order, and what its plan was.

    Nothing becomes of a dry run, which prints the plans.

    Raises:
        MicuError: What was typed cannot be done.
    """
    return _extract_part(_make_ready(orders, settings), settings)


def _make_ready(orders: Sequence[Order], settings: Settings) -> _Ready:
    leave_import()
    check_system()
    source = find_source(settings.out, settings.manifest)
    media_root = settings.media_root or source.media_root
    job = Job(
        manifest=_read_rows(source.manifest, orders),
        media_root=media_root,
        out=settings.out,
        command=typed_command(source.manifest, media_root),
        **settings.job,
    )
    if settings.dask:
        check_dask()
    check_decoder(settings.decoder)
    reading = Reading(
        media_root=job.media_root,
        decoder=settings.decoder,
        flow=settings.flow,
        flow_cache=settings.flow_cache,
    )
    networks = {
        order.backbone: build_backbone(order.backbone, order.weights, settings.run, **order.options)
        for order in orders
    }
    # One number for all, so that a part of each set is a part of the same clips.
    rows = min(usual_rows(job.manifest, network.spec) for network in networks.values())
    modules = tuple(type(network).__module__ for network in networks.values())
    wants = {
        order.backbone: replace(networks[order.backbone].wants, **order.conventions)
        for order in orders
    }
    return _Ready(
        replace(job, modules=modules, usual_rows=rows),
        ManifestSource(source.manifest, media_root),
        ReadFor(wants, reading),
        networks,
    )


def _extract_part(
    ready: _Ready, settings: Settings, decoders: Decoders | None = None
) -> tuple[Sequence[Summary], Sequence[Plan]]:
    job, read = ready.job, ready.read
    targets = {}
    for name, network in ready.networks.items():
        plan = _plan(job, network, read.wants[name], read.reading)
        targets[name] = Target(plan, network)
        if not settings.is_call and decoders is None:
            announce(plan, job.media_root, wants=read.wants[name])
    plans = [target.plan for target in targets.values()]
    if settings.dry_run:
        described = [_plan_json(plan) for plan in plans]
        click.echo(json.dumps(described[0] if len(described) == 1 else described, indent=1))
        return [], plans
    _check_shard_rows(plans, shared=job.part is not None or bool(settings.shared_by))
    if settings.max_failures is None or not settings.max_failures.bears_all:
        _check_media_root(plans, job)
    check_room(settings.out, sum(plan.bytes_needed for plan in plans))
    for name, target in targets.items():
        plan = target.plan
        doubted = {*plan.other_versions, *([plan.folder] if plan.moved_from else [])}
        for folder in sorted(doubted) if settings.check_clips else ():
            compare_versions(name, target, folder, read, job.manifest, settings)
    record_source(settings.out, ready.source)
    if settings.dask:
        summaries = extract_on_cluster(settings.dask, job, plans, settings.max_failures)
    elif settings.devices:
        summaries = extract_on_devices(
            settings.devices, settings.workers, job, plans, settings.max_failures
        )
    else:
        summaries = _extract_here(targets, ready, settings, decoders)
    return summaries, plans


def _count_workers(ready: _Ready, settings: Settings) -> int:
    has_flow = any(network.spec.modality == "flow" for network in ready.networks.values())
    most = GPU_WORKERS if has_flow and settings.flow.is_on_gpu else settings.workers
    return min(settings.workers, most)


def _extract_here(
    targets: Mapping[str, Target], ready: _Ready, settings: Settings, decoders: Decoders | None
) -> list[Summary]:
    todo = sum(target.plan.todo for target in targets.values())
    if settings.is_call:
        progress: Progress | Bar = Bar(todo)
    else:
        progress = Progress(todo, LOG_EVERY_S if decoders is None else TOLD_EVERY_S)
    if settings.flow_cache is not None:
        hold_folder(settings.flow_cache)
    summaries = extract_several(
        targets,
        ready.read,
        _count_workers(ready, settings),
        progress.show,
        settings.clip_timeout_s,
        worker_bytes=settings.worker_bytes,
        max_failures=settings.max_failures,
        decoders=decoders,
    )
    progress.close()
    if settings.flow_cache is not None:
        check_held(settings.flow_cache)
    return summaries


def compare_versions(
    name: str, target: Target, folder: Path, read: ReadFor, manifest: Manifest, settings: Settings
) -> None:
    """Extract a few clips that a set stores again, with the libraries that are here, and compare.

    Raises:
        StoreError: They differ by more than the backbone's tolerance, or none can be extracted.
    """
    plan, backbone = target.plan, target.backbone
    store = FeatureStore(folder, manifest)
    stored = {source for entry in store.shards.values() for source in entry.sources}
    there = [
        clip
        for clip in manifest.clips
        if clip.clip_id in store and store.source_of(clip.clip_id) in stored
    ]
    work = [Work(clip, (name,)) for clip in _spread(there, settings.check_clips)]
    decoding = decoding_for(read, 1, settings.clip_timeout_s, settings.worker_bytes)
    encoder = ClipEncoder(backbone)
    with decoding as decoders:
        for item, outcome in decode_ahead(work, decoders, 2, StopFlag()):
            if not isinstance(media := outcome.media[name], Trouble):
                encoder.add(item.clip, media)
    while encoder.waiting:
        encoder.encode_batch()
    found = {
        done.clip.clip_id: _difference(store.read(done.clip.clip_id), done.row)
        for done in encoder.pop_whole()
    }
    store.close()
    then = " or ".join(map(_tell_versions, plan.other_versions.get(folder, ())))
    told = f"{folder}: made with {then}, here is {_tell_versions(plan.header.spec.versions)}"
    remedy = "Install the versions that made it, or extract"
    if not then:
        told = (
            f"{folder}: made from files in {plan.moved_from}, now they are in {plan.run.media_root}"
        )
        remedy = "Type the --media-root of before, or extract"
    worst = max(found, key=lambda clip_id: found[clip_id], default="")
    most = backbone.gives.tolerance
    if not found or not found[worst] <= most:
        what = (
            f"{len(found)} stored clips, extracted again, differ by up to {found[worst]:.2g} of "
            f"the largest value (clip {worst!r}), expected at most {most:g}"
            if found
            else f"none of {len(work)} stored clips could be extracted again to compare"
        )
        raise StoreError(
            f"{told}; {what}. {remedy} to another --out; to mix them all the same, type "
            "--check-clips 0"
        )
    click.echo(
        f"{told}; {len(found)} stored clips, extracted again, differ by at most {found[worst]:.2g} "
        "of the largest value",
        err=True,
    )


def _difference(stored: FeatureRow, now: FeatureRow | Failure) -> float:
    """The largest difference of two rows' real steps, of the largest value."""
    if isinstance(now, Failure):
        return math.inf
    one, other = stored.values[stored.mask], now.values[now.mask]
    if one.shape != other.shape:
        return math.inf
    return float(
        np.abs(one - other).max() / max(float(np.abs(one).max()), np.finfo(np.float32).tiny)
    )


def _tell_versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "none"


def _read_rows(path: Path, orders: Sequence[Order]) -> Manifest:
    """The rows of the manifest that every backbone is to look at."""
    modalities = dict.fromkeys(order.modality for order in orders)
    manifest = read_manifest(path, tuple(dict.fromkeys(NEEDED_COLUMN[m] for m in modalities)))
    views = [manifest.for_modality(modality) for modality in modalities]
    if any(len(view.clips) != len(views[0].clips) for view in views):
        raise ConfigError(
            f"{path}: has rows that are only a further sentence of another row, which text alone "
            "looks at; extract text in a run of its own: micu-extract text"
        )
    return views[0]


def _plan(job: Job, network: Backbone, wants: InputSpec, reading: Reading) -> Plan:
    described, versions = describe_reading(wants, reading)
    spec = replace(
        network.spec,
        preprocessing={**network.spec.preprocessing, **described},
        versions={**network.spec.versions, **versions},
    )
    return plan_extraction(job, spec)


def _check_shard_rows(plans: Sequence[Plan], *, shared: bool) -> None:
    """Refuse to share out sets that were begun with different numbers of rows per shard."""
    rows = sorted({plan.header.shard_rows for plan in plans})
    if shared and len(rows) > 1:
        raise ConfigError(
            "--part, --dask or --devices with several backbones: expected sets of one number of "
            f"rows per shard, got {rows} there; a part would have other clips of each set. Extract "
            "them one by one, or to a new --out"
        )


LOOKED_AT = 32
"""Clips at most by which a media root is judged."""


def _check_media_root(plans: Sequence[Plan], job: Job) -> None:
    """Refuse a media root that holds none of the files, before every clip fails one by one.

    Raises:
        ConfigError: None of some clips, taken from all over what is to be extracted, is there; of
            a set that is begun, none of those that are stored either.
    """
    for plan in plans:
        if plan.header.spec.modality == "text":
            continue
        todo = [row.clip for shard in plan.shards for row in shard.todo]
        if plan.done:  # what was missing before may well be so now
            todo = [clip for clip in todo if clip.clip_id not in plan.again]
        looked_at = _spread([clip for clip in todo if clip.path])
        absent = [_why_absent(clip, job.media_root) for clip in looked_at]
        if not absent or not all(absent):
            continue
        if plan.done:
            others = _spread(job.manifest.clips[: plan.run.rows])
            if not all(_why_absent(clip, job.media_root) for clip in others):
                continue
        what_to_type = "type --media-root"
        if "outside_root" in absent:
            what_to_type += (
                "; links lead out of this root: name a folder above both the links and the media"
            )
        raise ConfigError(
            f"media root {job.media_root}: expected the manifest's files there, got none of "
            f"{len(looked_at)} that were looked for, such as {looked_at[0].path!r}; "
            f"{what_to_type}, or, to go on without them, --max-failures 100%"
        )


def _spread(clips: Sequence[Clip], most: int = LOOKED_AT) -> list[Clip]:
    """Some of the clips, at equal distances from the first one on."""
    count = min(len(clips), most)
    return [clips[i * len(clips) // count] for i in range(count)]


def _why_absent(clip: Clip, media_root: Path) -> str:
    """The code of a clip that another media root may have; empty where this one has something."""
    try:
        find_media(clip.path, media_root)
    except DecodeError as error:
        return error.code if error.code in ("missing", "outside_root") else ""
    return ""


def end_run(summaries: Sequence[Summary], plans: Sequence[Plan], as_json: bool) -> None:
    """Say what became of it, and end the process."""
    for summary, plan in zip(summaries, plans, strict=True):
        _report(summary, plan)
    if as_json:
        told = [asdict(summary) for summary in summaries]
        click.echo(json.dumps(told[0] if len(told) == 1 else told))
    stopped_by = summaries[0].stopped_by
    if stopped_by == ALL_FAILED:
        click.echo(
            f"stopped: the first {max(summary.failed for summary in summaries)} clips all failed, "
            "and nothing is stored. They are not in failures.csv: when the cause is mended, type "
            "the same command, which tries them again. To go on all the same, add "
            "--max-failures 100%",
            err=True,
        )
    elif stopped_by == TOO_MANY_FAILED:
        click.echo(
            "stopped: more clips failed than --max-failures allows; look at failures.csv, then "
            "type the same command with --retry-failed to go on",
            err=True,
        )
    elif stopped_by:
        click.echo(f"stopped by {stopped_by}; type the same command to go on", err=True)
        # Decoders still at work are left behind: they would hold the process up for minutes.
        sys.stdout.flush()
        os._exit(StopFlag(stopped_by).exit_code)
    failed = any(summary.failed or summary.failed_before for summary in summaries)
    sys.exit(EXIT_FAILURES if failed else 0)


def announce(plan: Plan, *media: Path, wants: InputSpec | None = None) -> None:
    """Tell what a run is going to do; what it wants in full is in `set.json`, and in --dry-run."""
    spec = plan.header.spec
    click.echo(
        f"{spec.backbone}: {spec.modality} features of shape {describe_shape(spec)} from weights "
        f"{spec.weights} "
        f"(sha256 {spec.weights_sha256[:12]})",
        err=True,
    )
    if wants is not None:
        click.echo(f"input: {describe_input(wants)}", err=True)
    if spec.modality != "text":
        click.echo(f"media root {', '.join(map(str, media))}", err=True)
    part = f", part {plan.part}" if plan.part else ""
    shared = f" ({plan.shared} of them in other manifests' sets)" if plan.shared else ""
    if plan.replaces:
        shards = len(shard_files(plan.folder))
        click.echo(
            f"{plan.folder}: removes {shards} shards that were made with other settings", err=True
        )
    click.echo(
        f"{plan.folder}{part}: {plan.todo} clips to extract"
        f"{f' ({len(plan.again)} of them were missing)' if plan.again else ''}, "
        f"{plan.done} done{shared}, {plan.failed} failed earlier",
        err=True,
    )


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "folder": str(plan.folder),
        "part": str(plan.part) if plan.part else None,
        "todo": plan.todo,
        "done": plan.done,
        "shared": plan.shared,
        "failed": plan.failed,
        "replaces": plan.replaces,
        "bytes_needed": plan.bytes_needed,
        "shards": [shard.number for shard in plan.shards],
        "shard_rows": plan.header.shard_rows,
        "header": plan.header.to_json(),
    }


def _report(summary: Summary, plan: Plan) -> None:
    codes = ", ".join(f"{count} {code}" for code, count in sorted(summary.codes.items()))
    click.echo(
        f"extracted {summary.extracted}, failed {summary.failed}{f' ({codes})' if codes else ''}, "
        f"left {summary.left}, damaged {summary.damaged}; read {summary.read_s:.1f} s, "
        f"infer {summary.infer_s:.1f} s, write {summary.write_s:.1f} s, "
        f"wall {summary.wall_s:.1f} s",
        err=True,
    )
    if summary.shared:
        click.echo(
            f"{plan.folder}: nothing is stored: all {_tried(summary, plan)} clips that were tried "
            f"failed. What they share: {summary.shared}",
            err=True,
        )
    if (summary.failed or summary.failed_before) and summary.stopped_by != ALL_FAILED:
        # Shares of a part have ledgers of their own.
        has_own = bool(read_failures(plan.folder, [plan.label]))
        listed = plan.ledger_path if has_own else plan.folder / "failures*.csv"
        click.echo(
            f"failures are listed in {listed}; to try them again, add --retry-failed "
            "(files that were missing are looked for again without it)",
            err=True,
        )


def _tried(summary: Summary, plan: Plan) -> int:
    """Clips of a run that are through, well or not."""
    return summary.extracted + summary.failed + summary.failed_before - plan.failed
