"""`micu-extract import`: released features through the pipeline, as if a backbone had made them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from extract.backbones.base import Gives, InputSpec, Media, Option, TextInput, step_centres
from extract.hdf5 import open_plain
from extract.pipeline import Target, extract_several
from extract.plan import Job, plan_extraction
from extract.progress import Progress
from extract.released import DATA, ReadReleased
from extract.run import announce, end_run
from micu.commands import Source, record_source
from micu.errors import ConfigError, ManifestError
from micu.files import check_room
from micu.manifest import Clip, read_manifest
from micu.store import FeatureSpec, Steps

STEPS = 10
"""T of the published code: longer clips are cut, shorter ones repeat their last step."""
SHAPES: dict[str, tuple[int, ...]] = {"video": (7, 7, 512), "audio": (128,)}
"""One step of the released features: VGG-19's pool5 grid, VGGish's vector."""
WORKER_BYTES = 2 * 2**30
"""Memory that a process which unpacks may take."""
BACKBONE = "released"
PROVENANCE = "released by the authors"

RELEASED = {
    "ave": "HDF5 files, row i for line i of Annotations.txt",
    "vggsound-avel": "a zip file per clip, by YouTube id",
    "ucf": "a zip file per clip, by name",
    "avvp": "a zip file per clip, by YouTube id",
}
"""Releases by name, with their layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """What was typed."""

    release: str
    manifest: Path
    sources: Mapping[str, Path]
    """By modality."""
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
                "layout": RELEASED[release],
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
    is_table = order.release == "ave"
    _check_sources(order, is_table)
    if order.labels is not None:
        check_labels(order.labels, manifest.clips)
    job = Job(
        manifest=manifest,
        media_root=order.manifest.parent,
        out=order.out,
        limit=order.limit,
        overwrite=order.overwrite,
        retry_failed=order.retry_failed,
    )
    targets = {}
    for modality in order.sources:
        features = ReleasedFeatures(order.release, modality)
        targets[modality] = Target(plan_extraction(job, features.spec), features)
        announce(targets[modality].plan, order.sources[modality])
    plans = [target.plan for target in targets.values()]
    check_room(order.out, sum(plan.bytes_needed for plan in plans))
    record_source(order.out, Source(order.manifest, job.media_root))
    rows = {clip.clip_id: row for row, clip in enumerate(manifest.clips)} if is_table else {}
    progress = Progress(sum(plan.todo for plan in plans))
    summaries = extract_several(
        targets,
        ReadReleased(order.sources, SHAPES, rows),
        order.workers,
        progress.show,
        order.clip_timeout_s,
        worker_bytes=WORKER_BYTES,
    )
    progress.close()
    end_run(summaries, plans, order.as_json)


def _check_sources(order: ImportOrder, is_table: bool) -> None:
    if order.labels is not None and not is_table:
        raise ConfigError(f"--labels: expected the release ave, got {order.release}")
    for modality, path in order.sources.items():
        if path.is_dir() == is_table:
            wanted = "an HDF5 file" if is_table else "the folder of the zip files"
            raise ConfigError(
                f"--{modality} {path}: {order.release} is {RELEASED[order.release]}; expected "
                f"{wanted}"
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
