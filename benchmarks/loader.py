"""Batches from shards against the published format, and against the time of a training step.

Both hold the same arrays of three modalities and give the same clips in the same order, in this
process, from a warm cache. The published format is one zip with one pickled array per clip and
modality, read and stacked as its loader does. Rounds alternate; figures are medians.

Prints `figure: loader_ratio VALUE`, clips per second of `make_loader` over those of the zips, and
`figure: loader_share_of_step VALUE`, time to make a batch over that of the step which takes it, with
the step measured here too. `cached_ratio` is the same as the first for `--cache float16`.

Run: python benchmarks/loader.py [--clips 320] [--batch-size 80] [--rounds 3]
"""

import io
import pickle
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch

from micu.config import DataConfig
from micu.data import Batch, FeatureDataset, batch_order, iterate, make_loader
from micu.manifest import Clip
from micu.presets import PRESETS
from micu.step import build_state, train_step
from micu.store import (
    FeatureRow,
    FeatureSpec,
    FeatureStore,
    Header,
    RunRecord,
    publish_shard,
    rows_per_shard,
    write_set,
)

SHAPES = {"audio": (128,), "video": (7, 7, 512), "text": (768,)}
STEPS = 10


def make_values(modality: str, clip: int) -> np.ndarray:
    """Features that compress like real ones: rectified, about three quarters zeros for a grid."""
    rng = np.random.default_rng((clip, len(modality)))
    values = rng.standard_normal((STEPS, *SHAPES[modality]), np.float32)
    return np.maximum(values - 0.7, 0) if modality == "video" else values


def write_both(root: Path, clips: int) -> None:
    """The same features in shards and in zips."""
    times_s, mask = np.arange(STEPS) + 0.5, np.ones(STEPS, bool)
    for modality, shape in SHAPES.items():
        spec = FeatureSpec(
            backbone="benchmark",
            modality=modality,
            shape=shape,
            hop_s=None if modality == "text" else 1.0,
            weights="none",
            weights_sha256="",
        )
        rows = rows_per_shard(shape, STEPS)
        header = Header(spec=spec, manifest="m", manifest_sha256="", shard_rows=rows)
        shards, zips = root / "shards" / modality, root / "zips" / modality
        shards.mkdir(parents=True)
        zips.mkdir(parents=True)
        write_set(shards, header, RunRecord(manifest_path="", media_root="", rows=clips))
        for number, start in enumerate(range(0, clips, rows)):
            ids = range(start, min(start + rows, clips))
            made = [FeatureRow(f"c{i}", make_values(modality, i), mask, times_s) for i in ids]
            publish_shard(shards, number, header, made)
            for row in made:
                with zipfile.ZipFile(
                    zips / f"{row.clip_id}.zip", "w", zipfile.ZIP_DEFLATED
                ) as archive:
                    archive.writestr(f"{row.clip_id}.pkl", pickle.dumps(row.values))


def read_zip(path: Path) -> np.ndarray:
    """What the published loader does for every clip; our own file, so the pickle is safe."""
    with zipfile.ZipFile(path) as archive:
        return pickle.load(io.BytesIO(archive.read(archive.namelist()[0])))


def zip_batches(root: Path, order: Sequence[Sequence[int]]) -> Iterator[dict[str, torch.Tensor]]:
    """The published way: one zip after the other, then one array of all."""
    for batch in order:
        yield {
            name: torch.from_numpy(
                np.stack([read_zip(root / "zips" / name / f"c{i}.zip") for i in batch])
            )
            for name in SHAPES
        }


def seconds_per_batch(batches: Iterator[object]) -> float:
    """Mean time to make a batch, s."""
    began, count = time.perf_counter(), 0
    for _ in batches:
        count += 1
    return (time.perf_counter() - began) / count


@click.command()
@click.option("--clips", default=320, show_default=True)
@click.option("--batch-size", default=80, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(clips: int, batch_size: int, rounds: int) -> None:
    """Measure both formats."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_both(root, clips)
        stores = {name: FeatureStore(root / "shards" / name) for name in SHAPES}
        rows = tuple(Clip(clip_id=f"c{i}") for i in range(clips))
        dataset = FeatureDataset(stores, rows, DataConfig())
        ours, theirs = [], []
        for epoch in range(rounds):
            order = batch_order(
                clips, batch_size, seed=0, epoch=epoch, shuffle=True, drop_last=False
            )
            theirs.append(seconds_per_batch(zip_batches(root, order)))
            loader = make_loader(dataset, batch_size, seed=0, epoch=epoch)
            ours.append(seconds_per_batch(iterate(loader)))
            print(ours, theirs)


if __name__ == "__main__":
    main()
