"""The commands of `micu-extract` about manifests, and about features that others released."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from micu.base.command_line import ToolCommand
from micu.base.devices import count_cores
from micu.base.errors import ConfigError, ManifestError
from micu.base.files import file_sha256, write_atomically
from micu.base.process import FiniteRange
from micu.base.table import write_csv
from micu.store.manifest import (
    Clip,
    Manifest,
    manifest_stem,
    read_manifest,
    write_manifest,
)
from micu.store.overlap import find_shared
from micu_extract.datasets import DATASETS
from micu_extract.datasets.base import name_some
from micu_extract.datasets.drawing import draw_known, draw_splits
from micu_extract.datasets.folder import (
    AMBIGUOUS,
    BY_VIDEO,
    MISSING,
    SPLITS,
    Located,
    locate_media,
)
from micu_extract.datasets.published import have_lists, published
from micu_extract.imports import RELEASED, ImportOrder, import_features
from micu_extract.pipeline.probe import describe_probes, probe_media, probe_path, write_probes

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


# --- manifests -------------------------------------------------------------------------------


@click.command(
    "manifest",
    cls=ToolCommand,
    example="micu-extract manifest folder --annotations clips --split 70,15,15 -o my.csv",
)
@click.argument("dataset", type=click.Choice(sorted(DATASETS)))
@click.option(
    "--annotations",
    multiple=True,
    metavar="[ROLE=]PATH",
    help="An official annotation file, or a folder of them; may be repeated [default: fetched from "
    "where they are published, once]. For `folder`: the folder of the media, or a CSV file.",
)
@click.option(
    "--media-root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the media: their real places are looked up there and written as `path`.",
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The manifest to write, for example manifests/vggsound.csv.",
)
@click.option(
    "--found-only",
    is_flag=True,
    help="Leave out the rows whose file is not below --media-root.",
)
@click.option(
    "--split",
    "shares",
    metavar="TRAIN,VAL,TEST",
    help="Draw the splits, 70,15,15 for example: class by class, and all rows about one file or "
    "video alike.",
)
@click.option(
    "--known-classes",
    type=click.IntRange(min=1),
    help="Draw so many classes, and write them to known.csv beside the manifest.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Of --split and --known-classes [default: 0]."
)
@click.option(
    "--text",
    "text_from",
    type=click.Choice(["label"]),
    help="What a clip without a sentence gets for one.",
)
@click.option(
    "--probe",
    is_flag=True,
    help="Also open every media file, and write what is missing, short or lacks a stream to "
    "NAME.probe.csv beside the manifest.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes of --probe [default: one per core].",
)
def make_manifest(
    *,
    dataset: str,
    annotations: tuple[str, ...],
    media_root: Path | None,
    out: Path,
    found_only: bool,
    shares: str | None,
    known_classes: int | None,
    seed: int | None,
    text_from: str | None,
    probe: bool,
    workers: int | None,
) -> None:
    """Make the manifest of a data set from its official annotation files, or of own clips."""
    if found_only and media_root is None:
        raise click.UsageError("--found-only: expected --media-root too, where the media are")
    if workers is not None and not probe:
        raise click.UsageError("--workers: expected --probe too; nothing else runs in parallel")
    if seed is not None and shares is None and known_classes is None:
        raise click.UsageError("--seed: expected --split or --known-classes too; nothing is drawn")
    clips = _rows(dataset, annotations, out)
    located = None
    if media_root is not None:
        located = locate_media(clips, media_root, is_own_list=dataset == "folder")
        clips = located.found() if found_only else list(located.clips)
        if not clips:
            raise ManifestError(
                f"{media_root}: expected media of {dataset}, got none; {out} is not written"
            )
    if shares is not None:
        clips = draw_splits(clips, shares, seed or 0)
    if text_from is not None:
        clips = [
            clip if clip.text else replace(clip, text=clip.label.replace("_", " "))
            for clip in clips
        ]
    known_path = out.with_name("known.csv")
    known = b""
    if known_classes is not None:
        known = draw_known(clips, known_classes, seed or 0)
        if known_path.exists() and known_path.read_bytes() != known:
            raise ConfigError(
                f"{known_path}: expected no file, or these classes, got others, which are left as "
                f"they are; remove it, or leave out --known-classes. {out} is not written"
            )
    manifest = _publish(out, clips)
    if known:
        write_atomically(known_path, known)
    if located is not None:
        told = out.with_name(f"{manifest_stem(out)}.media.csv")
        _tell_located(located, told, f"{media_root}", left_out=found_only)
    root = media_root or _root_of(dataset, annotations) or out.parent
    if probe:
        probes = probe_media(manifest.clips, root, workers or count_cores())
        write_probes(probe_path(out), probes)
        click.echo(f"{probe_path(out)}: {describe_probes(probes)}", err=True)
    click.echo(f"{out}: {len(manifest.clips)} clips, sha256 {manifest.sha256[:12]}")
    if shares is not None:
        counts = Counter(clip.split for clip in clips)
        click.echo(", ".join(f"{counts[name]} {name}" for name in SPLITS), err=True)
    if known:
        click.echo(f"{known_path}: {', '.join(known.decode().splitlines()[1:])}", err=True)
    if root.resolve() != out.parent.resolve():
        click.echo(f"extract with --media-root {root}", err=True)


def _rows(dataset: str, annotations: Sequence[str], out: Path) -> list[Clip]:
    """The rows of a data set, of the official files as they are published if none are typed."""
    try:
        if not annotations:
            files = have_lists(dataset)
            annotations = [f"{file.role}={path}" for file, path in files]
            for file, path in files:
                where = f"github.com/{file.repository}, commit {file.commit[:12]}, {file.path}"
                click.echo(f"{file.role}: {path} from {where}; {file.licence}", err=True)
                if not file.digest:
                    told = f"no hash of it is published; this one's sha256 is {file_sha256(path)}"
                    click.echo(f"{file.role}: {told}", err=True)
        return DATASETS[dataset].rows(annotations)
    except ManifestError as error:
        raise ManifestError(f"{error}\n{out} is not written") from error


def have_manifest(path: Path | None, *, fetch: bool) -> None:
    """Make a manifest that is not there and has the name of a data set whose lists are published.

    Raises:
        ManifestError: It was not asked for, or cannot be made.
    """
    if path is None or path.exists():
        return
    packed = path.with_name(f"{path.name}.gz")
    if packed.is_file():
        raise ManifestError(f"{path}: no such manifest, but there is {packed}; type that")
    name = manifest_stem(path)
    if name not in published():
        return
    if not fetch:
        raise ManifestError(
            f"{path}: no such manifest; to make it from the published lists type: micu-extract "
            f"manifest {name} -o {shlex.quote(str(path))}; or the same command as now with --fetch"
        )
    _publish(path, _rows(name, (), path))


def _tell_located(located: Located, path: Path, root: str, *, left_out: bool) -> None:
    """Say how media were found; list by name, in a CSV file, what is not certain or not there."""
    of = {
        state: [doubt.clip_id for doubt in located.doubts if doubt.state == state]
        for state in (BY_VIDEO, AMBIGUOUS, MISSING)
    }
    lines = [
        f"{root}: {located.moved} files under other names than expected, {len(of[MISSING])} not "
        f"found{' and left out' * left_out}; {path} lists these and what follows"
    ]
    for state, told in (
        (BY_VIDEO, "were found by their YouTube video alone, for the name says no start"),
        (AMBIGUOUS, "have no file that is theirs alone, and count as not there"),
    ):
        if of[state]:
            lines.append(f"{len(of[state])} clips {told}{name_some(of[state])}")
    if of_video := sum(doubt.state == MISSING and bool(doubt.files) for doubt in located.doubts):
        lines.append(
            f"{of_video} of those not found have files of their video with another start, or with "
            "one that the list does not say: where a data set takes it, type starts=vggsound.csv"
        )
    rows = ((doubt.clip_id, doubt.state, " ".join(doubt.files)) for doubt in located.doubts)
    write_atomically(path, write_csv([("clip_id", "state", "files"), *rows]))
    click.echo("\n".join(lines), err=True)


def _root_of(dataset: str, annotations: Sequence[str]) -> Path | None:
    """The folder that a folder's manifest is about."""
    folders = [Path(text.removeprefix("media=")) for text in annotations]
    if dataset != "folder":
        return None
    return folders[0] if folders[0].is_dir() else folders[0].parent


def _publish(out: Path, clips: Sequence[Clip]) -> Manifest:
    """Write a manifest under its final name once it has been read back."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".draft.{out.name}")
    try:
        write_manifest(draft, clips)
        manifest = read_manifest(draft)
        draft.replace(out)
    except ManifestError as error:
        told = str(error).replace(str(draft), f"{out}, as it would be written")
        raise ManifestError(told) from error
    finally:
        draft.unlink(missing_ok=True)
    return replace(manifest, path=out)


# --- overlap ---------------------------------------------------------------------------------


@click.command(cls=ToolCommand, example="micu-extract overlap vggsound.csv ave.csv")
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the shared clips of FIRST as CSV: clip_id, by, others.",
)
def overlap(*, first: Path, second: Path, out: Path | None) -> None:
    """Count the clips of FIRST that SECOND has too, by id and by YouTube video.

    `micu-train --exclude-manifest SECOND` leaves exactly these out.
    """
    clips, others = read_manifest(first).clips, read_manifest(second).clips
    shared = find_shared(clips, others)
    by_id = sum(found.by == "id" for found in shared)
    click.echo(
        f"{len(shared)} of {len(clips)} clips of {first} are in {second} too: {by_id} by id, "
        f"{len(shared) - by_id} by YouTube video"
    )
    if out is not None:
        rows = ((found.clip.clip_id, found.by, " ".join(found.others)) for found in shared)
        write_atomically(out, write_csv([("clip_id", "by", "others"), *rows]))
        click.echo(f"listed in {out}", err=True)


# --- released features -----------------------------------------------------------------------


@click.command(
    "import",
    cls=ToolCommand,
    example="micu-extract import ucf ucf101.csv --video visual --audio audio",
)
@click.argument("release", type=click.Choice(sorted(RELEASED)))
@click.argument("manifest", type=_FILE)
@click.option(
    "--video",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="The released video features: visual_feature.h5, a folder of zip files, or both; may be "
    "repeated.",
)
@click.option(
    "--audio",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="The released audio features: audio_feature.h5, a folder of zip files, or both; may be "
    "repeated.",
)
@click.option(
    "--rows",
    type=_FILE,
    help="Manifest whose row i is row i of the HDF5 files [default: MANIFEST].",
)
@click.option(
    "--labels",
    type=_FILE,
    help="labels.h5 of AVE, to prove that these rows are those of the features.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("features"),
    show_default=True,
    help="Root of the feature sets.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows of the manifest.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=count_cores,
    show_default="one per core",
    help="Processes that unpack.",
)
@click.option(
    "--clip-timeout",
    "clip_timeout_s",
    type=FiniteRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds after which the process that unpacks a clip is killed.",
)
@click.option("--retry-failed", is_flag=True, help="Try the clips in the ledger again.")
@click.option("--overwrite", is_flag=True, help="Replace features that were made otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def import_released(
    *,
    release: str,
    manifest: Path,
    video: tuple[Path, ...],
    audio: tuple[Path, ...],
    **options: Any,
) -> None:
    """Turn features that the authors released into shards, without running anything in them."""
    given = {name: paths for name, paths in (("video", video), ("audio", audio)) if paths}
    if not given:
        raise click.UsageError("expected --video PATH, --audio PATH or both")
    import_features(ImportOrder(release=release, manifest=manifest, sources=given, **options))
