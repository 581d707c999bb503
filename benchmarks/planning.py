"""How long a restart takes to find out what is left, without opening any media or any shard.

A finished set is simulated: its manifest, index and ledger are real, its shards are empty files of
the size that the index states, so that opening one would fail. Every hundredth clip is in the
ledger, and a label was mended since. Opening a shard or reading media raises. Prints

    figure: plan_200k_s VALUE          restart over 200,000 finished clips (manifest + plan), s
    figure: plan_200k_cpu_s VALUE      the same in processor time, which neighbours do not change
    figure: plan_large_s VALUE         the same over --large rows, s
    figure: index_bytes_per_row VALUE
    figure: verify_200k_s VALUE        `verify` of as many rows in real shards of short rows, s

and for --large the manifest's reading time, index size, files in the folder, and memory.

Run: python -m benchmarks.planning [--large 2000000]
"""

import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import click
import numpy as np

from micu.store.ledger import Failure, extend_layout, shard_name, write_layout, write_ledger
from micu.store.manifest import read_manifest, row_sources
from micu.store.sets import RunRecord, publish_shard, rows_per_shard, set_folder, write_set
from micu.store.shard import FeatureRow, FeatureSpec, Header, Shard
from micu_extract.media.readers import read
from micu_extract.pipeline.plan import Job, plan_extraction
from micu_extract.sets.status import read_status
from micu_extract.sets.verify import verify_set

ROWS = 200_000
LIMIT_S = 5.0
STEPS = 10
VERIFIED_ROWS = 1024
"""Rows of a shard that `verify` is shown."""
SPEC = FeatureSpec(
    backbone="benchmark",
    modality="video",
    shape=(1536,),
    hop_s=1.0,
    weights="none",
    weights_sha256="0" * 64,
)


def clip_id(row: int) -> str:
    """An id as long as those of VGGSound: a video's name and a start."""
    return f"{row:011x}_{row % 600:06d}"


def write_manifest_of(path: Path, rows: int) -> None:
    """A manifest of ten-second clips."""
    with path.open("w") as file:
        file.write("clip_id,path,start_s,end_s,label,split,text\n")
        for row in range(rows):
            name = clip_id(row)
            file.write(f"{name},video/{name}.mp4,0,10,playing harp,train,\n")


def simulate(root: Path, manifest_path: Path, rows: int) -> Path:
    """A finished set whose shards are holes."""
    folder = set_folder(root, manifest_path.stem, SPEC.modality, SPEC.backbone)
    folder.mkdir(parents=True)
    shard_rows = rows_per_shard(SPEC.shape, STEPS)
    header = Header(spec=SPEC, shard_rows=shard_rows)
    record = RunRecord(manifest_path=str(manifest_path), media_root=str(root), rows=rows)
    write_set(folder, header, record)
    sources = row_sources(read_manifest(manifest_path).clips, SPEC.made_of)
    write_layout(folder, extend_layout({}, sources, shard_rows))
    size = shard_rows * STEPS * 4 * 1536
    with (folder / "index.jsonl").open("w") as index:
        for number, start in enumerate(range(0, rows, shard_rows)):
            name = shard_name(number)
            with (folder / name).open("wb") as file:
                file.truncate(size)
            there = [i for i in range(start, min(start + shard_rows, rows)) if i % 100]
            line = {"shard": name, "sha256": "0" * 64, "size": size, "damaged": {}}
            line |= {"clip_ids": [clip_id(i) for i in there], "making": SPEC.making}
            line |= {
                name: [10**18 + i for i in there] for name in ("media_bytes", "media_mtime_ns")
            }
            index.write(json.dumps({**line, "sources": [sources[i] for i in there]}) + "\n")
    failed = range(0, rows, 100)
    reason = ("decode", "unreadable", "no such file")
    write_ledger(folder, (Failure(clip_id(i), *reason, sources[i]) for i in failed))
    return folder


@contextmanager
def nothing_is_opened() -> Iterator[None]:
    """Make opening a shard or a media file an error."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError(f"opened: {arguments} {named}")

    with (
        mock.patch.object(Shard, "open", refuse),
        mock.patch("av.open", refuse),
        mock.patch(f"{read.__module__}.read", refuse),
    ):
        yield


def measure(rows: int) -> dict[str, float]:
    """Times and sizes for one number of rows."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        path = root / "clips.csv"
        write_manifest_of(path, rows)
        folder = simulate(root, path, rows)
        path.write_text(path.read_text().replace("playing harp", "playing the harp", 1))
        with nothing_is_opened():
            started, cpu_started = time.perf_counter(), time.process_time()
            manifest = read_manifest(path)
            read_s = time.perf_counter() - started
            started = time.perf_counter()
            plan = plan_extraction(Job(manifest=manifest, media_root=root, out=root), SPEC)
            plan_s = time.perf_counter() - started
            cpu_s = time.process_time() - cpu_started
            started = time.perf_counter()
            (status,) = read_status([folder])
            status_s = time.perf_counter() - started
        failed = -(-rows // 100)
        assert (plan.todo, plan.done, plan.failed) == (0, rows - failed, failed), plan
        assert (status.left, status.shards_partial, status.shards_missing) == (0, 0, 0), status
        return {
            "rows": rows,
            "manifest_s": read_s,
            "plan_s": plan_s,
            "restart_s": read_s + plan_s,
            "restart_cpu_s": cpu_s,
            "status_s": status_s,
            "index_mb": (folder / "index.jsonl").stat().st_size / 1e6,
            "files": len(list(folder.iterdir())),
            "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }


def measure_verify(rows: int) -> tuple[float, float]:
    """Seconds that `verify` takes for a whole set, and of the processor; its shards are real."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        path = root / "clips.csv"
        write_manifest_of(path, rows)
        spec = replace(SPEC, shape=(4,))
        folder = set_folder(root, path.stem, spec.modality, spec.backbone)
        folder.mkdir(parents=True)
        header = Header(spec=spec, shard_rows=VERIFIED_ROWS)
        record = RunRecord(manifest_path=str(path), media_root=str(root), rows=rows)
        write_set(folder, header, record)
        sources = row_sources(read_manifest(path).clips, spec.made_of)
        write_layout(folder, extend_layout({}, sources, VERIFIED_ROWS))
        step = (np.zeros((STEPS, 4), np.float32), np.ones(STEPS, np.bool_), np.arange(STEPS) + 0.5)
        for number, start in enumerate(range(0, rows, VERIFIED_ROWS)):
            ids = range(start, min(start + VERIFIED_ROWS, rows))
            found = [FeatureRow(clip_id(i), *step, source=sources[i]) for i in ids]
            publish_shard(folder, number, header, found)
        path.write_text(path.read_text().replace("playing harp", "playing the harp", 1))
        started, cpu_started = time.perf_counter(), time.process_time()
        report = verify_set(folder)
        assert (report.problems, report.stored) == ((), rows), report
        return time.perf_counter() - started, time.process_time() - cpu_started


@click.command()
@click.option("--large", default=2_000_000, show_default=True, help="Rows of the large set.")
def main(large: int) -> None:
    """Measure and print."""
    best = min((measure(ROWS) for _ in range(3)), key=lambda facts: facts["restart_s"])
    print(json.dumps(best))
    print(f"figure: plan_200k_s {best['restart_s']:.2f}")
    print(f"figure: plan_200k_cpu_s {best['restart_cpu_s']:.2f}")
    seconds, cpu_s = measure_verify(ROWS)
    print(f"figure: verify_200k_s {seconds:.2f}, of the processor {cpu_s:.2f}")
    print(f"figure: index_bytes_per_row {best['index_mb'] * 1e6 / ROWS:.1f}")
    assert best["restart_cpu_s"] < LIMIT_S
    if large:
        facts = measure(large)
        print(json.dumps(facts))
        print(f"figure: plan_large_s {facts['restart_s']:.1f}")
        scale = 10_000_000 / large
        for name in ("restart_s", "restart_cpu_s", "index_mb", "files", "memory_gb"):
            kind = "measured" if scale == 1 else f"extrapolated from {large} rows"
            print(f"ten million rows, {kind}: {name} {facts[name] * scale:.4g}")


if __name__ == "__main__":
    main()
