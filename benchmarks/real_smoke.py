"""Drawn features in place of real ones, so that the whole real-data benchmark runs in seconds."""

from pathlib import Path

import numpy as np

from benchmarks.real_methods import DataSet
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import RunRecord, publish_shard, set_folder, write_set
from micu.store.shard import FeatureRow, FeatureSpec, Header

COUNTS = {"train": 8, "val": 3, "test": 3}
"""Clips of each class."""
WIDTH = 8

SMALL = (
    "encoder.embed_dim=16",
    "encoder.heads=2",
    "encoder.layers=1",
    "encoder.feedforward_dim=16",
    "encoder.text_hidden_dim=4",
    "quantizer.codebook_size=12",
    "quantizer.dead_after=10",
    "reconstruction.vector_width=8",
    "jigsaw.splits=4",
    "jigsaw.permutations=6",
    "jigsaw.hidden_dim=8",
    "optimizer.batch_size=32",
)
"""A model that steps in milliseconds."""


def write_drawn(root: Path, data: DataSet) -> None:
    """A manifest, and features that are a pattern of the class and noise."""
    classes = [f"class{number:02d}" for number in range(max(data.known) + 2)]
    clips = [
        Clip(clip_id=f"{split}-{label}-{i}", path="", label=label, split=split, text=label)
        for split, count in COUNTS.items()
        for label in classes
        for i in range(count)
    ]
    root.mkdir(parents=True, exist_ok=True)
    manifest = root / f"{data.manifest}.csv"
    write_manifest(manifest, clips)
    items = [f"{clip.clip_id},p/{clip.clip_id},s/{clip.clip_id}," for clip in clips]
    listed = "\n".join(["clip_id,picture,sound,sound_origin", *items])
    (root / f"{data.manifest}.items.csv").write_text(f"{listed}\n")
    known = read_manifest(manifest)
    for number, modality in enumerate(data.modalities):
        spec = FeatureSpec(
            backbone="drawn",
            modality=modality,
            shape=(WIDTH,),
            hop_s=1.0,
            weights="none",
            weights_sha256="",
        )
        header = Header(spec=spec, shard_rows=len(clips))
        sources = known.sources(modality, spec.made_of)
        folder = set_folder(root / "features", known.name, modality, spec.backbone)
        folder.mkdir(parents=True, exist_ok=True)
        record = RunRecord(manifest_path=str(manifest), media_root="", rows=len(clips))
        write_set(folder, header, record)
        generator = np.random.default_rng(number)
        patterns = dict(zip(classes, generator.normal(size=(len(classes), WIDTH)), strict=True))
        noise = generator.normal(size=(len(clips), data.steps, WIDTH))
        mask, times_s = np.ones(data.steps, np.bool_), np.arange(data.steps) + 0.5
        rows = [
            FeatureRow(
                clip.clip_id,
                (patterns[clip.label] + drawn).astype(np.float32),
                mask,
                times_s,
                sources[clip.clip_id],
            )
            for clip, drawn in zip(clips, noise, strict=True)
        ]
        publish_shard(folder, 0, header, rows)
