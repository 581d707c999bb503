"""`micu-extract import`: released features through the pipeline, as if a backbone had made them."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
from numpy.typing import NDArray

from micu.base.command_line import typed_command
from micu.base.errors import ConfigError, ManifestError, shorten
from micu.base.files import check_room
from micu.store.hdf5 import open_plain
from micu.store.manifest import Clip, read_manifest, youtube_start
from micu.store.shard import FeatureSpec, Steps
from micu.store.source import ManifestSource, record_source
from micu_extract.backbones.base import Gives, InputSpec, Media, Option, TextInput, step_centres
from micu_extract.pipeline.decode_ahead import Target, extract_several
from micu_extract.pipeline.plan import Job, plan_extraction
from micu_extract.pipeline.progress import Progress
from micu_extract.released import DATA, ReadReleased, archive_stem, videos_of_several
from micu_extract.run import announce, end_run

STEPS = 10
"""T of the published code: longer clips are cut, shorter ones repeat their last step."""
SHAPES: dict[str, tuple[int, ...]] = {"video": (7, 7, 512), "audio": (128,)}
"""One step of the released features: VGG-19's pool5 grid, VGGish's vector."""
WORKER_BYTES = 2 * 2**30
"""Memory that a process which unpacks may take."""
BACKBONE = "released"
PROVENANCE = "released by the authors"

TABLE = "HDF5 files, row i for line i of Annotations.txt"
ZIPS = "a zip file per clip, by YouTube id, else by name"
RELEASED: dict[str, tuple[str, ...]] = {
    "ave": (TABLE,),
    "vggsound-avel": (ZIPS,),
    "ucf": (ZIPS,),
    "avvp": (ZIPS,),
    "ave-avvp": (TABLE, ZIPS),
}
"""Releases by name, with their layouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """What was typed."""

    release: str
    manifest: Path
    sources: Mapping[str, Sequence[Path]]
    """By modality: HDF5 files, folders of zip files, or both."""
    rows: Path | None
    """Manifest whose row i is row i of the HDF5 files; None is `manifest`."""
    labels: Path | None
    out: Path
    limit: int | None
    workers: int
    clip_timeout_s: float
    retry_failed: bool
    overwrite: bool
    as_json: bool


class ReleasedFeatures:
    """What stands for the network that nobody has: features come in, padded features go out.

    Args:
        release: Name of the release.
        modality: Of the features.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    gives = Gives(modality="video", shape=(), weights="unknown", licence="that of the release")
    wants: InputSpec = TextInput()
    batch_size = 1

    def __init__(self, release: str, modality: str) -> None:  # noqa: D107
        self.spec = FeatureSpec(
            backbone=BACKBONE,
            modality=modality,
            shape=SHAPES[modality],
            hop_s=1.0,
            weights=f"unknown ({PROVENANCE})",
            weights_sha256="unknown",
            preprocessing={
                "provenance": PROVENANCE,
                "release": release,
                "layout": "; ".join(RELEASED[release]),
                "steps": STEPS,
                "padding": "repeat the last step; the mask denies it",
            },
        )

    def encode(self, units: Sequence[NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        """The same."""
        return units

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """Ten steps of one clip."""
        return pad_steps(outputs[0])


def pad_steps(values: NDArray[np.float32]) -> Steps:
    """Cut to ten steps, or repeat the last one.

    Args:
        values: (t, ...).

    Returns:
        Steps (10, ...); the mask is true for what was there. Without any step all are zero.
    """
    real = np.arange(STEPS) < len(values)
    if not len(values):
        padded = np.zeros((STEPS, *values.shape[1:]), np.float32)
    else:
        padded = values[np.minimum(np.arange(STEPS), len(values) - 1)]
    return Steps(padded, real, step_centres(STEPS))


def import_features(order: ImportOrder) -> None:
    """Import, report, and end the process with its exit code.

    Raises:
        MicuError: What was typed cannot be done.
    """
    manifest = read_manifest(order.manifest)
    _check_sources(order)
    lines = read_manifest(order.rows).clips if order.rows else manifest.clips
    if order.labels is not None:
        check_labels(order.labels, lines)
    job = Job(
        manifest=manifest,
        media_root=order.manifest.parent,
        out=order.out,
        limit=order.limit,
        overwrite=order.overwrite,
        retry_failed=order.retry_failed,
        command=typed_command(order.manifest, order.manifest.parent),
    )
    targets = {}
    for modality in order.sources:
        features = ReleasedFeatures(order.release, modality)
        targets[modality] = Target(plan_extraction(job, features.spec), features)
        announce(targets[modality].plan, *order.sources[modality])
    plans = [target.plan for target in targets.values()]
    check_room(order.out, sum(plan.bytes_needed for plan in plans))
    record_source(order.out, ManifestSource(order.manifest, job.media_root))
    tables = {name: [p for p in paths if p.is_file()] for name, paths in order.sources.items()}
    rows = {clip.clip_id: row for row, clip in enumerate(lines)} if any(tables.values()) else {}
    zipped = [clip for clip in manifest.clips if clip.clip_id not in rows]
    several = videos_of_several(zipped)
    _tell_of_videos(zipped, several)
    read = ReadReleased(
        tables={name: paths[0] for name, paths in tables.items() if paths},
        folders={name: [p for p in ps if p.is_dir()] for name, ps in order.sources.items()},
        shapes=SHAPES,
        rows=rows,
        several=several,
    )
    progress = Progress(sum(plan.todo for plan in plans))
    summaries = extract_several(
        targets,
        read,
        order.workers,
        progress.show,
        order.clip_timeout_s,
        worker_bytes=WORKER_BYTES,
    )
    progress.close()
    end_run(summaries, plans, order.as_json)


def _tell_of_videos(clips: Sequence[Clip], several: Container[str]) -> None:
    """Say which clips have a start that the names of released files, which are videos, have not."""
    names = [
        clip.clip_id
        for clip in clips
        if youtube_start(clip.clip_id) is not None and archive_stem(clip.clip_id) not in several
    ]
    if names:
        told = shorten(", ".join(names), 500)
        click.echo(f"{len(names)} clips may take the file of their video: {told}", err=True)


def _check_sources(order: ImportOrder) -> None:
    layouts = RELEASED[order.release]
    for option, path in (("--labels", order.labels), ("--rows", order.rows)):
        if path is not None and TABLE not in layouts:
            raise ConfigError(f"{option}: expected a release with HDF5 files, got {order.release}")
    if len(layouts) > 1 and order.rows is None:
        raise ConfigError(
            f"{order.release}: expected --rows too, the manifest of all lines of Annotations.txt: "
            "micu-extract manifest ave"
        )
    for modality, paths in order.sources.items():
        tables = sum(path.is_file() for path in paths)
        if tables != (TABLE in layouts) or (len(paths) > tables) != (ZIPS in layouts):
            wanted = {TABLE: "one HDF5 file", ZIPS: "folders of zip files"}
            raise ConfigError(
                f"--{modality} {', '.join(map(str, paths))}: expected "
                f"{' and '.join(wanted[layout] for layout in layouts)}; {order.release} is "
                f"{'; '.join(layouts)}"
            )


def check_labels(path: Path, clips: Sequence[Clip]) -> None:
    """Prove that the rows of a manifest are those of the features, by the authors' labels.

    Args:
        path: `labels.h5`, (N, 10, C + 1): per second one class, the last column is background.
            Classes are numbered by their first appearance.
        clips: Rows of the manifest, whose events are the labels.

    Raises:
        ManifestError: A row says something else.
        StoreError: The file is not of that layout.
    """
    classes = {name: n for n, name in enumerate(dict.fromkeys(clip.label for clip in clips))}
    with open_plain(path) as file:
        data = file.get(DATA)
        shape = getattr(data, "shape", None)
        expected = (len(clips), STEPS, len(classes) + 1)
        if shape != expected:
            raise ManifestError(f"{path}: expected {DATA} of shape {expected}, got {shape}")
        found = np.asarray(data[:, :, :-1]) > 0
    wanted = np.zeros(found.shape, np.bool_)
    for row, clip in enumerate(clips):
        for event in clip.events:
            wanted[row, int(event.onset_s) : int(event.offset_s), classes[clip.label]] = True
    wrong: Any = np.flatnonzero((found != wanted).any(axis=(1, 2)))
    if len(wrong):
        row = int(wrong[0])
        raise ManifestError(
            f"{path}: {len(wrong)} of {len(clips)} rows differ from the manifest, first row {row} "
            f"(clip {clips[row].clip_id!r}); is the manifest made from the Annotations.txt of "
            "these features, in its order?"
        )
