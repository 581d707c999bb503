"""How much of a network's own speed is left when it works through media, from decoding to shard.

For each backbone, with random weights: one batch is prepared and kept; the bare network runs over
it again and again; then the same network extracts a manifest, through `extract_several`, in the
same process. The share is units per second of the second over units per second of the first, the
median of several rounds that alternate. Beside it, the floating point operations per second of the
bare forward, as a share of what a large matrix product of the same type reaches in this process.

Media are real files, by default written here (640 x 360, 25 frames/s, H.264 and AAC), or those of
`--manifest`. For `slowonly`, `slowonly-cached` is a second run that reads its flow from
`--flow-cache`; `slowonly` computes it.

Heavy imports are inside functions, since worker processes import this file anew.

Run: python benchmarks/backbones.py [--only htsat] [--rounds 3]
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np

from micu.store.manifest import Clip, Manifest, read_manifest, write_manifest
from micu_extract.backbones import Backbone, Run, build_backbone
from micu_extract.backbones.torch_backbone import repeatable
from micu_extract.media.readers import read
from micu_extract.media.source import Reading
from micu_extract.pipeline.decode_ahead import Target, extract_several
from micu_extract.pipeline.plan import Job, plan_extraction
from micu_extract.run import ReadFor

TEXT = "a small brown dog barks at a passing car while it rains"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A backbone, and how much of the media it gets."""

    backbone: str
    clips: int
    seconds: float
    cached: bool = False


CASES = {
    "swinv2": Case(backbone="swinv2", clips=2, seconds=1),
    "vgg19": Case(backbone="vgg19", clips=4, seconds=2),
    "htsat": Case(backbone="htsat", clips=72, seconds=10),
    "htsat-clap": Case(backbone="htsat-clap", clips=72, seconds=10),
    "vggish": Case(backbone="vggish", clips=72, seconds=10),
    "slowonly": Case(backbone="slowonly", clips=2, seconds=4),
    "slowonly-cached": Case(backbone="slowonly", clips=2, seconds=10, cached=True),
    "bert": Case(backbone="bert", clips=32, seconds=10),
}


def write_media(path: Path, seconds: float, seed: int) -> None:
    """A textured scene that pans and shakes, with a noisy chord."""
    rng = np.random.default_rng(seed)
    height, width, fps, rate = 360, 640, 25, 44_100
    texture = rng.normal(0, 1, (height // 4, width // 2)).repeat(8, 0).repeat(4, 1)
    texture = np.clip(128 + 40 * texture, 0, 255).astype(np.uint8)
    times = np.arange(round(seconds * rate)) / rate
    chord = sum(np.sin(2 * np.pi * hz * times) for hz in rng.uniform(100, 4000, 4))
    sound = (0.15 * chord + rng.normal(0, 0.02, (2, len(times)))).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "23"})
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="stereo")
        for i in range(round(seconds * fps)):
            left, top = 2 * i, 40 + round(20 * np.sin(i / 3))
            gray = np.roll(texture, -left, axis=1)[top : top + height, :width]
            picture = np.ascontiguousarray(gray[..., None].repeat(3, 2))
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        block.sample_rate, block.time_base, block.pts = rate, Fraction(1, rate), 0
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))


def make_manifest(folder: Path, count: int, seconds: float, sources: Sequence[str]) -> Manifest:
    """A manifest of `count` clips, which go round the media."""
    path = folder / "clips.csv"
    clips = [
        Clip(
            clip_id=f"c{i}",
            path=sources[i % len(sources)],
            start_s=0.0,
            end_s=seconds,
            text=TEXT,
        )
        for i in range(count)
    ]
    write_manifest(path, clips)
    return read_manifest(path)


def prepared_inputs(backbone: Any, units: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What reaches the network for one full batch: tensors on its device, kept in memory."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    runner, forward = backbone._run, backbone._run._forward

    def keep(*inputs: Any, **named: Any) -> Any:
        seen.append((inputs, named))
        return forward(*inputs, **named)

    runner._forward = keep
    try:
        backbone.encode(list(units)[: backbone.batch_size])
    finally:
        runner._forward = forward
    return seen[0]


def bare_rate(
    backbone: Any, inputs: tuple[Any, ...], named: dict[str, Any], least_s: float
) -> float:
    """Units per second of the network alone."""
    batches, started = 0, time.perf_counter()
    with repeatable():
        while time.perf_counter() - started < least_s:
            backbone._run(*inputs, **named)
            batches += 1
    return batches * int(backbone.batch_size) / (time.perf_counter() - started)


def pipeline_rate(
    backbone: Backbone, job: Job, reading: Reading, units: int, workers: int
) -> float:
    """Units per second from media to shard."""
    started = time.perf_counter()
    targets = {"one": Target(plan_extraction(job, backbone.spec), backbone)}
    reader = ReadFor({"one": backbone.wants}, reading)
    (summary,) = extract_several(targets, reader, workers, clip_timeout_s=600)
    assert summary.extracted == len(job.manifest.clips), summary
    return units / (time.perf_counter() - started)


def matrix_peak(size: int = 3072, rounds: int = 5) -> float:
    """Floating point operations per second of a large float32 matrix product, best of some."""
    import torch

    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def measure(
    name: str, case: Case, media: tuple[Path, Sequence[str]], folder: Path, how: tuple[int, int]
) -> float:
    """Measure one backbone, and print its row and figures; the pipeline's share."""
    from torch.utils.flop_counter import FlopCounterMode

    backbone: Any = build_backbone(case.backbone, "random", Run())
    (root, sources), (rounds, workers) = media, how
    manifest = make_manifest(folder, case.clips, case.seconds, sources)
    job = Job(manifest=manifest, media_root=root, out=folder)
    reading = Reading(media_root=root)
    if case.cached:
        reading = replace(reading, flow_cache=folder / "flow-cache")
    decoded = [read(clip, backbone.wants, reading).units for clip in manifest.clips]
    units = sum(map(len, decoded))
    inputs, named = prepared_inputs(backbone, [unit for clip in decoded for unit in clip])
    del decoded
    with FlopCounterMode(display=False) as counter, repeatable():
        backbone._run(*inputs, **named)
    operations = counter.get_total_flops() / backbone.batch_size
    bare, whole, peaks = [], [], []
    for attempt in range(rounds):
        bare.append(bare_rate(backbone, inputs, named, 4.0))
        here = replace(job, out=folder / f"features{attempt}")
        whole.append(pipeline_rate(backbone, here, reading, units, workers))
        bare.append(bare_rate(backbone, inputs, named, 4.0))
        peaks.append(matrix_peak())
    share = statistics.median(
        rate / statistics.mean(bare[2 * i : 2 * i + 2]) for i, rate in enumerate(whole)
    )
    speed = operations * statistics.median(bare)
    print(
        f"{name:<16} {operations / 1e9:7.2f} GFLOP/unit  "
        f"bare {statistics.median(bare):8.2f} units/s  "
        f"pipeline {statistics.median(whole):8.2f} units/s  share {share:.3f}  "
        f"{speed / 1e9:6.1f} GFLOP/s, {speed / max(peaks):.2f} of {max(peaks) / 1e9:.0f}"
    )
    key = name.replace("-", "_")
    print(f"figure: pipeline_share_{key} {share:.3f}")
    print(f"figure: peak_share_{key} {speed / max(peaks):.2f}", flush=True)
    return share


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="These alone.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Decoding processes.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Take the media of this manifest, which must be ten seconds long.",
)
def main(only: tuple[str, ...], rounds: int, workers: int, manifest: Path | None) -> None:
    """Measure every backbone, or those of --only."""
    import torch

    print(f"{torch.get_num_threads()} threads of torch, {workers} decoding processes")
    for name, case in CASES.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if manifest is None:
                root, sources = folder, ["a.mp4", "b.mp4"]
                for seed, source in enumerate(sources):
                    write_media(folder / source, 10.0, seed)
            else:
                root = manifest.parent
                sources = [clip.path for clip in read_manifest(manifest).clips]
            measure(name, case, (root, sources), folder, (rounds, workers))


if __name__ == "__main__":
    main()
