"""Batches from shards against the published format, and against the step that takes them.

Both hold the same arrays of three modalities and give the same clips in the same order, in this
process, from a warm cache. The published format is one zip with one pickled array per clip and
modality, read and stacked as its loader does. Rounds alternate; figures are medians.

Prints `figure: loader_ratio VALUE`, clips per second of `make_loader` over those of the zips;
`cached_ratio`, the same with `--cache float16`; and `loader_share_of_step`, the time to make a
batch over that of a step of the preset `micu` with it, both in this process. `_cpu` after a name is
processor time instead of the clock's.

Run: python benchmarks/loader.py [--clips 320] [--batch-size 80] [--rounds 3]
"""

import io
import pickle
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch

from micu.base.devices import resolve_device
from micu.config.presets import PRESETS
from micu.config.sections import DataConfig
from micu.data.cache import CachedDataset
from micu.data.dataset import Batch, FeatureDataset
from micu.data.loader import batch_order, iterate, make_loader
from micu.store.manifest import Clip
from micu.store.sets import FeatureStore, RunRecord, publish_shard, rows_per_shard, write_set
from micu.store.shard import FeatureRow, FeatureSpec, Header
from micu.train.step import StepReport, build_state, train_step

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
        header = Header(spec=spec, shard_rows=rows)
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


@dataclass(frozen=True, slots=True)
class Cost:
    """Time of a batch, s."""

    wall: float
    cpu: float


def timed(batches: Iterable[object]) -> Cost:
    """Mean time to make a batch."""
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    for _ in batches:
        count += 1
    return Cost((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)


def take_steps(
    batches: Iterable[Batch], grid_width: int, device: torch.device
) -> Iterator[StepReport]:
    """Steps with some batches; each reads its report from the device, and so waits for it."""
    config = PRESETS["micu"]()
    config = replace(config, reconstruction=replace(config.reconstruction, grid_width=grid_width))
    state = build_state(config, SHAPES, device)
    for batch in batches:
        yield train_step(state, batch.to(device, torch.float32))


def show(name: str, costs: Sequence[tuple[Cost, Cost]]) -> None:
    """Print the median of the ratios of costs, by the clock and by the processor."""
    print(f"figure: {name} {statistics.median(a.wall / b.wall for a, b in costs):.4g}")
    print(f"figure: {name}_cpu {statistics.median(a.cpu / b.cpu for a, b in costs):.4g}")


@click.command()
@click.option("--clips", default=320, show_default=True)
@click.option("--batch-size", default=80, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--grid-width", default=2048, show_default=True, help="Of the step.")
@click.option("--device", default="auto", show_default=True, help="Of the step.")
def main(clips: int, batch_size: int, rounds: int, grid_width: int, device: str) -> None:
    """Measure both formats, and a step."""
    place = torch.device(resolve_device(device))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_both(root, clips)
        stores = {name: FeatureStore(root / "shards" / name) for name in SHAPES}
        rows = tuple(Clip(clip_id=f"c{i}") for i in range(clips))
        dataset = FeatureDataset(stores, rows, DataConfig())
        halves = FeatureDataset(stores, rows, DataConfig(dtype="float16"))
        cached = CachedDataset(halves, shared=False)
        shards, memory = [], []
        for epoch in range(rounds):
            order = batch_order(clips, batch_size, seed=0, epoch=epoch, shuffle=True)
            zips = timed(zip_batches(root, order))
            plain, kept = (
                timed(iterate(make_loader(data, batch_size, seed=0, epoch=epoch)))
                for data in (dataset, cached)
            )
            shards.append((zips, plain))
            memory.append((zips, kept))
            each = {"zips": zips, "shards": plain, "memory": kept}
            print(
                "; ".join(f"{name} {batch_size / c.wall:.0f} clips/s" for name, c in each.items())
            )
        show("loader_ratio", shards)
        show("cached_ratio", memory)
        loader = iterate(make_loader(dataset, batch_size, seed=0, epoch=0))
        steps = take_steps([next(loader), next(loader)], grid_width, place)
        next(steps)  # warms up
        step = timed(steps)
        show("loader_share_of_step", [(cost, step) for _, cost in shards])


if __name__ == "__main__":
    main()
