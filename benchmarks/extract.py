"""What the pipeline costs: against the decoder alone, and against the network alone.

Decode-bound: a backbone that costs nothing takes frames from media through the whole pipeline, from
worker processes to shards; the peer decodes the same frames in the same number of processes and
throws them away. Model-bound: Swin-V2-L with random weights against its own forward pass over a
batch that is kept in memory, as `benchmarks/backbones.py` has it. Runs alternate, and the figure is
the median of their ratios; starting the workers counts.

Run: python benchmarks/extract.py [--rounds 3] [--clips 48]
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
from backbones import CASES, make_manifest, measure, write_media
from numpy.typing import NDArray

from micu.store.manifest import Clip, Manifest
from micu.store.shard import FeatureSpec, Steps
from micu_extract.backbones.base import FrameInput, Gives, Media, mean_by_step
from micu_extract.media.readers import read
from micu_extract.media.source import Reading
from micu_extract.pipeline.decode_ahead import Target, extract_several
from micu_extract.pipeline.plan import Job, plan_extraction
from micu_extract.run import ReadFor

WANTS = FrameInput(fps=8, resize=256, crop=224)
SECONDS = 10.0


class Means:
    """A backbone that costs nothing: the mean of each channel of a frame's first row."""

    OPTIONS: ClassVar[dict[str, Any]] = {}
    gives = Gives(modality="video", shape=(3,), weights="none", licence="none")
    wants = WANTS
    batch_size = 8
    spec = FeatureSpec(
        backbone="means",
        modality="video",
        shape=(3,),
        hop_s=1.0,
        weights="none",
        weights_sha256="",
    )

    def encode(self, units: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Three numbers per frame."""
        return [unit[0].mean(axis=0, dtype=np.float32) for unit in units]

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """Mean of each second."""
        return mean_by_step(outputs, media)


def decode_and_drop(clips: Sequence[Clip], root: Path) -> int:
    """Decode clips one after another; how many frames there were."""
    return sum(len(read(clip, WANTS, Reading(media_root=root)).units) for clip in clips)


def decoder_rate(manifest: Manifest, root: Path, workers: int) -> float:
    """Frames per second of the decoder alone, in as many processes."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    parts = [manifest.clips[i::workers] for i in range(workers)]
    started = time.perf_counter()
    with ProcessPoolExecutor(workers, get_context("forkserver")) as pool:
        frames = sum(pool.map(partial(decode_and_drop, root=root), parts))
    return frames / (time.perf_counter() - started)


def pipeline_rate(manifest: Manifest, root: Path, out: Path, workers: int) -> float:
    """Frames per second from media to shards."""
    backbone: Any = Means()
    job = Job(manifest=manifest, media_root=root, out=out)
    reader = ReadFor({"means": WANTS}, Reading(media_root=root))
    started = time.perf_counter()
    targets = {"means": Target(plan_extraction(job, backbone.spec), backbone)}
    (summary,) = extract_several(targets, reader, workers, clip_timeout_s=600)
    seconds = time.perf_counter() - started
    assert summary.extracted == len(manifest.clips), summary
    return summary.extracted * SECONDS * WANTS.fps / seconds


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--clips", default=48, show_default=True, help="Of ten seconds, decode-bound.")
@click.option("--workers", default=2, show_default=True, help="Decoding processes.")
@click.option("--decode-only", is_flag=True, help="Leave out Swin-V2-L.")
def main(rounds: int, clips: int, workers: int, decode_only: bool) -> None:
    """Measure both shares."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sources = ["a.mp4", "b.mp4"]
        for seed, source in enumerate(sources):
            write_media(folder / source, SECONDS, seed)
        manifest = make_manifest(folder, clips, SECONDS, sources)
        shares = []
        for attempt in range(rounds):
            alone = decoder_rate(manifest, folder, workers)
            whole = pipeline_rate(manifest, folder, folder / f"f{attempt}", workers)
            again = decoder_rate(manifest, folder, workers)
            shares.append(whole / statistics.mean([alone, again]))
            print(f"decoder alone {alone:.0f} and {again:.0f} frames/s, pipeline {whole:.0f}")
        print(f"figure: decode_bound_share {statistics.median(shares):.3f}", flush=True)
        if not decode_only:
            share = measure("swinv2", CASES["swinv2"], (folder, sources), folder, (rounds, workers))
            print(f"figure: model_bound_share {share:.3f}")


if __name__ == "__main__":
    main()
