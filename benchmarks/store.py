"""How fast random clips are read from shards, against the published format of one zip per clip.

Both hold the same arrays and are read in the same order, in this process, from a warm cache. Prints
`figure: read_ratio_<shape> VALUE`: clips per second from shards over clips per second from zips.

Run: python benchmarks/store.py [--clips 256] [--reads 1024]
"""

import io
import pickle
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from micu.store.sets import FeatureStore, RunRecord, publish_shard, rows_per_shard, write_set
from micu.store.shard import FeatureRow, FeatureSpec, Header

SHAPES = {"vector_1536": (1536,), "grid_7x7x512": (7, 7, 512)}
STEPS = 10


def make_values(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Features that compress like real ones: rectified, about three quarters zeros for a grid."""
    values = np.random.default_rng(seed).standard_normal((STEPS, *shape), np.float32)
    return np.maximum(values - 0.7, 0) if len(shape) > 1 else values


def write_shards(folder: Path, shape: tuple[int, ...], clips: int) -> None:
    """One feature set in shards of the usual size."""
    spec = FeatureSpec(
        backbone="benchmark",
        modality="video",
        shape=shape,
        hop_s=1.0,
        weights="none",
        weights_sha256="",
    )
    header = Header(spec=spec, shard_rows=rows_per_shard(shape, STEPS))
    write_set(folder, header, RunRecord(manifest_path="", media_root="", rows=clips))
    times_s, mask = np.arange(STEPS) + 0.5, np.ones(STEPS, bool)
    for number, start in enumerate(range(0, clips, header.shard_rows)):
        ids = range(start, min(start + header.shard_rows, clips))
        rows = [FeatureRow(f"c{i}", make_values(shape, i), mask, times_s) for i in ids]
        publish_shard(folder, number, header, rows)


def write_zips(folder: Path, shape: tuple[int, ...], clips: int) -> None:
    """The published layout: `<id>.zip`, deflated, holding one pickled array."""
    for i in range(clips):
        with zipfile.ZipFile(folder / f"c{i}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"c{i}.pkl", pickle.dumps(make_values(shape, i)))


def read_zip(path: Path) -> np.ndarray:
    """What the published loader does for every clip; our own file, so the pickle is safe."""
    with zipfile.ZipFile(path) as archive:
        return pickle.load(io.BytesIO(archive.read(archive.namelist()[0])))


def rate(read: Callable[[int], object], order: np.ndarray) -> float:
    """Clips per second, best of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for i in order:
            read(int(i))
        seconds.append(time.perf_counter() - started)
    return len(order) / min(seconds)


@click.command()
@click.option("--clips", default=256, show_default=True)
@click.option("--reads", default=1024, show_default=True)
def main(clips: int, reads: int) -> None:
    """Measure both layouts for vectors and for grids."""
    order = np.random.default_rng(0).integers(0, clips, reads)
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            shards, zips = Path(folder) / "shards", Path(folder) / "zips"
            shards.mkdir()
            zips.mkdir()
            write_shards(shards, shape, clips)
            write_zips(zips, shape, clips)
            store = FeatureStore(shards)
            ours = rate(lambda i, store=store: store.read(f"c{i}"), order)
            theirs = rate(lambda i, zips=zips: read_zip(zips / f"c{i}.zip"), order)
            print(f"{name}: shards {ours:.0f} clips/s, zip and pickle {theirs:.0f} clips/s")
            print(f"figure: read_ratio_{name} {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
