"""What several devices make of one command, against one: `micu-extract video --devices cpu:N`.

A device is a process on cores of its own, and the network is bound by arithmetic (ResNet-18 with
random weights, 16 pictures a second), so that N of them have N times what one has. One device is
the same command in a process that is confined to as many cores as each of N has. Both are timed
from typing to the end, start and libraries included, and take turns.

Prints `figure: devices_share VALUE`, the speed of N over N times that of one, the median of the
rounds; `figure: devices_start_s VALUE`, what a process takes before it begins, which one device has
once, and several twice, that of the run and then theirs; and `figure: devices_share_of_work VALUE`,
the same speed when these are left out: what a long run tends to.

The sets must be the same to the byte.

Run: python benchmarks/devices.py [--devices 2] [--clips 48] [--rounds 3]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click
from backbones import make_manifest, write_media

STARTS = 5
"""How often a start is timed."""


def extract(folder: Path, out: str, cores: set[int], words: list[str], backbone: str) -> float:
    """What one run takes from typing to the end, s."""
    command = [sys.executable, "-m", "micu_extract.cli", "video", "clips.csv"]
    command += ["--backbone", backbone, "--weights", "random", "--out", out, "--shard-rows", "1"]
    began = time.perf_counter()
    process = subprocess.run(
        [*command, "--json", *words],
        cwd=folder,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - began
    assert json.loads(process.stdout.splitlines()[-1])["left"] == 0, process.stderr
    return wall


def contents(folder: Path) -> dict[str, bytes]:
    """Shards, by name."""
    return {path.name: path.read_bytes() for path in folder.rglob("shard-*.h5")}


@click.command()
@click.option("--devices", default=2, show_default=True)
@click.option("--clips", default=48, show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Of a clip.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--backbone", default="timm:resnet18", show_default=True)
def main(devices: int, clips: int, seconds: float, rounds: int, backbone: str) -> None:
    """Measure one device and several, in turn."""
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // devices
    if not each:
        raise click.UsageError(f"--devices {devices}: expected at most {len(cores)}, one per core")
    several = ["--devices", f"cpu:{devices}", "--workers", str(each * devices)]
    shares, works = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_media(folder / "a.mp4", seconds, 0)
        make_manifest(folder, clips, seconds, ["a.mp4"])
        alone = ["--device", "cpu", "--workers", str(each)]
        extract(folder, "warm", set(cores[:each]), [*alone, "--limit", "1"], backbone)
        start = median(
            extract(folder, "warm", set(cores[:each]), [*alone, "--limit", "1"], backbone)
            for _ in range(STARTS)
        )
        for number in range(rounds):
            one = extract(folder, f"one{number}", set(cores[:each]), alone, backbone)
            many = extract(folder, f"many{number}", set(cores[: each * devices]), several, backbone)
            assert contents(folder / f"one{number}") == contents(folder / f"many{number}")
            shares.append(one / (devices * many))
            works.append((one - start) / (devices * (many - 2 * start)))
            print(f"one {one:.1f} s, {devices} {many:.1f} s", flush=True)
    print(f"figure: devices_share {median(shares):.3f}")
    print(f"figure: devices_start_s {start:.1f}")
    print(f"figure: devices_share_of_work {median(works):.3f}")


if __name__ == "__main__":
    main()
