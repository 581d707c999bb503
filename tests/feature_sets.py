"""Feature sets made by hand, for tests that must not extract: small shapes, classes that differ."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import RunRecord, publish_shard, set_folder, write_set
from micu.store.shard import FeatureRow, FeatureSpec, Header

SHAPES = {"audio": (6,), "video": (5, 5, 4), "flow": (8,), "text": (7,)}
BACKBONES = {"audio": "toy_audio", "video": "toy_grid", "flow": "toy_flow", "text": "toy_words"}
STEPS = 10
CLASSES = ("drum", "engine", "violin")


def make_clips(count: int = 24, splits: Sequence[str] = ("train",)) -> list[Clip]:
    """Clips whose classes and splits alternate."""
    return [
        Clip(
            clip_id=f"clip/{i}",
            path=f"{i}.mp4",
            label=CLASSES[i % len(CLASSES)],
            split=splits[i // len(CLASSES) % len(splits)],
            text=f"a {CLASSES[i % len(CLASSES)]} sounds",
        )
        for i in range(count)
    ]


def make_row(clip: Clip, modality: str, shape: tuple[int, ...], steps: int) -> FeatureRow:
    """Features of one clip: a pattern of its class, and noise that is the clip's own."""
    number = int(clip.clip_id.split("/")[-1])
    kind = CLASSES.index(clip.label)
    pattern = np.random.default_rng((kind, len(modality))).normal(size=shape)
    noise = np.random.default_rng((number, len(modality), 7)).normal(size=(steps, *shape))
    is_text = modality == "text"
    times_s = np.full(steps, np.nan) if is_text else np.arange(steps) + 0.5
    values = (pattern + 0.5 * noise).astype(np.float32)
    return FeatureRow(clip.clip_id, values, np.ones(steps, np.bool_), times_s)


def write_features(
    root: Path,
    clips: Sequence[Clip],
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    *,
    name: str = "toy",
    backbones: Mapping[str, str] = BACKBONES,
    steps: int = STEPS,
    make: Callable[[Clip, str, tuple[int, ...], int], FeatureRow] = make_row,
    has: Callable[[Clip, str], bool] = lambda clip, modality: True,
) -> Path:
    """Write a manifest and one feature set per modality, as an extraction would.

    `has` says which clips have features of a modality.

    Returns:
        The manifest; `root` is the folder to give to `--features`.
    """
    manifest = root.parent / f"{name}.csv"
    write_manifest(manifest, clips)
    known = read_manifest(manifest)
    for modality, shape in shapes.items():
        words = modality == "text"
        spec = FeatureSpec(
            backbone=backbones[modality],
            modality=modality,
            shape=shape,
            hop_s=None if words else 1.0,
            weights="random:0",
            weights_sha256="0" * 64,
        )
        header = Header(spec=spec, shard_rows=16)
        folder = set_folder(root, known.name, modality, spec.backbone)
        folder.mkdir(parents=True)
        run = RunRecord(manifest_path=str(manifest), media_root=str(root.parent), rows=len(clips))
        write_set(folder, header, run)
        length = 4 if words else steps
        sources = known.sources(modality, spec.made_of)
        there = [clip for clip in clips if has(clip, modality) and clip.clip_id in sources]
        for number, start in enumerate(range(0, len(there), 16)):
            rows = [
                replace(make(clip, modality, shape, length), source=sources[clip.clip_id])
                for clip in there[start : start + 16]
            ]
            publish_shard(folder, number, header, rows)
    record = {"manifest": str(manifest), "media_root": str(root.parent)}
    (root / "last.json").write_text(json.dumps(record))
    return manifest


SMALL = (
    "encoder.embed_dim=16",
    "encoder.heads=2",
    "encoder.layers=1",
    "encoder.feedforward_dim=16",
    "encoder.text_hidden_dim=4",
    "quantizer.codebook_size=12",
    "reconstruction.grid_width=4",
    "reconstruction.vector_width=8",
    "jigsaw.splits=4",
    "jigsaw.permutations=6",
    "jigsaw.hidden_dim=8",
    "optimizer.batch_size=8",
)
"""Overrides of a model that steps in milliseconds."""
