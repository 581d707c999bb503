"""What is held in memory at once, over as many rows as a large data set has."""

import csv
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore
from micu.store.shard import FeatureSpec, Steps
from micu_extract.backbones.base import Media
from micu_extract.pipeline.plan import Job, plan_extraction
from tests.toy import extract_manifest

UNITS, BATCH, WORKERS = 3, 8, 2


class Counting:
    """A backbone of two numbers per unit that takes batches of several clips."""

    batch_size = BATCH
    spec = FeatureSpec(
        backbone="counting",
        modality="audio",
        shape=(2,),
        hop_s=1.0,
        weights="none",
        weights_sha256="",
    )

    def encode(self, units: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        return [unit[:2].copy() for unit in units]

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        return Steps(np.stack(outputs), np.ones(UNITS, bool), np.arange(UNITS) + 0.5)


@pytest.mark.shared
def test_decoded_clips_in_memory_do_not_grow_with_the_manifest(
    shared: Path, tmp_path: Path
) -> None:
    """3,000 rows of 40,801: at most 2 * workers + 1 clips ahead, and what a batch is made of."""
    listed = shared / "annotations" / "vggsound-avel40k.csv"
    with listed.open(newline="", encoding="utf-8") as file:
        clips = [
            Clip(clip_id=f"{i}-{row['video_id']}", path=f"{i % 3}.wav", label=row["category"])
            for i, row in enumerate(csv.DictReader(file))
        ]
    assert len(clips) == 40_801
    clips = clips[:3000]
    write_manifest(tmp_path / "m.csv", clips)
    lock, alive, most = threading.RLock(), 0, 0

    def forget() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def read(clip: Clip) -> Media:
        nonlocal alive, most
        units = np.full((UNITS, 16), int(clip.path[0]), np.float32)
        weakref.finalize(units, forget)
        with lock:
            alive += 1
            most = max(most, alive)
        return Media(units, np.arange(UNITS) + 0.5, float(UNITS), UNITS)

    job = Job(
        manifest=read_manifest(tmp_path / "m.csv"), media_root=tmp_path, out=tmp_path, shard_rows=64
    )
    plan = plan_extraction(job, Counting.spec)
    summary = extract_manifest(plan, Counting(), read, WORKERS)  # type: ignore[arg-type]

    assert summary.extracted == len(FeatureStore(plan.folder)) == 3_000
    in_a_batch = BATCH // UNITS + 2
    assert most <= 2 * WORKERS + 1 + in_a_batch
    assert alive <= in_a_batch
