"""What a TV-L1 field costs: our engines against OpenCV's solver, on the same pairs in one run.

Engines take turns pair by pair, so that whatever else the machine does slows all of them. With one
thread each, the thread's own CPU time counts; otherwise the time on the wall, the best of a few
turns. Compilation is not counted.

Prints `figure: tvl1_speedup_over_opencv VALUE` (one thread each, 340x256, median over pairs), the
same at 224x224 (`..._224`), the gain of a second worker process, as extraction has them
(`tvl1_two_workers`), the torch engine's speed over OpenCV's on one thread
(`tvl1_torch_cpu_speedup`) and the mean endpoint difference of the numba engine to OpenCV over all
pairs (`tvl1_epe_px`). Drawn pictures are easier than real ones: the tables say which they are of.

Run: python benchmarks/flow.py [--media DIR] [--pairs 12] [--turns 1]
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.pool import Pool, ThreadPool
from pathlib import Path
from statistics import median

import av
import click
import cv2
import numpy as np
import torch

from micu_extract.flow.tvl1 import create_solver, tvl1_pairs
from micu_extract.flow.tvl1_parameters import TVL1

SIZES = ((340, 256), (224, 224))
"""Width and height, px: mmaction2's short side of 256, and the crop of most networks."""

VIDEOS = (".avi", ".mkv", ".mp4", ".webm")
FIRST = 20
TORCH_PAIRS = 2


@dataclass(frozen=True)
class Pair:
    """Two neighbouring pictures, gray, (1, H, W) each."""

    name: str
    previous: np.ndarray
    following: np.ndarray


@dataclass(frozen=True)
class Cost:
    """One pair's costs, ms, and how far the numba engine is from OpenCV, px."""

    name: str
    opencv: float
    numba: float
    opencv_wall: float
    opencv_all_wall: float
    numba_wall: float
    epe: float


def real_pairs(folder: Path, size: tuple[int, int], count: int) -> list[Pair]:
    """Two pictures of each video of a folder, from the 21st on, resized to width and height."""
    files = sorted(file for file in folder.iterdir() if file.suffix in VIDEOS)
    pairs = []
    for file in files:
        grays = list(read_grays(file, size))
        if len(grays) == 2:
            pairs.append(Pair(file.stem[:24], *(gray[None] for gray in grays)))
    return pairs[:: max(1, len(pairs) // count)][:count]


def read_grays(file: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Two gray pictures of a video, if it has them."""
    with av.open(str(file)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number >= FIRST:
                gray = cv2.cvtColor(frame.to_ndarray(format="rgb24"), cv2.COLOR_RGB2GRAY)
                yield cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
            if number == FIRST + 1:
                return


def drawn_pairs(size: tuple[int, int], count: int) -> list[Pair]:
    """Textures that are shifted and zoomed a little."""
    random = np.random.default_rng(0)
    width, height = size
    pairs = []
    for number in range(count):
        grain = random.standard_normal((height, width)).astype(np.float32)
        image = sum(cv2.GaussianBlur(grain, (0, 0), s) * s for s in (1.5, 4, 12))
        image = np.clip(127 + 45 * image / image.std(), 0, 255).astype(np.uint8)
        zoom, (x, y) = random.uniform(0.98, 1.02), random.uniform(-3, 3, 2)
        moved = cv2.warpAffine(
            image, np.array([[zoom, 0, x], [0, zoom, y]]), size, borderMode=cv2.BORDER_REFLECT
        )
        pairs.append(Pair(f"drawn {number}", image[None], moved[None]))
    return pairs


def timed(compute: Callable[[], np.ndarray], clock: Callable[[], float]) -> tuple[float, float]:
    """Time by `clock` and on the wall, ms."""
    started, wall = clock(), time.perf_counter()
    compute()
    return 1000 * (clock() - started), 1000 * (time.perf_counter() - wall)


def solve_opencv(pair: Pair, threads: int) -> np.ndarray:
    """One field from a fresh solver."""
    solver = create_solver(TVL1())
    cv2.setNumThreads(threads)
    field: np.ndarray = solver.calc(pair.previous[0], pair.following[0], None)
    cv2.setNumThreads(1)
    return field


def solve(pair: Pair, engine: str = "numba") -> np.ndarray:
    """One field from one of our engines."""
    return tvl1_pairs(pair.previous, pair.following, engine=engine)[0]


def measure(pair: Pair, turns: int) -> Cost:
    """Cost of a pair; the engines take turns and the best turn of each counts."""
    threads = os.cpu_count() or 1
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(turns):
        theirs.append(timed(lambda: solve_opencv(pair, 1), time.thread_time))
        # Ours is short: measured before and after theirs, so that a slow moment hits both.
        ours += [timed(lambda: solve(pair), time.thread_time) for _ in range(2)]
    everyone = timed(lambda: solve_opencv(pair, threads), time.thread_time)[1]
    apart = solve(pair) - solve_opencv(pair, 1)
    return Cost(
        name=pair.name,
        opencv=min(theirs)[0],
        numba=min(ours)[0],
        opencv_wall=min(wall for _, wall in theirs),
        opencv_all_wall=everyone,
        numba_wall=min(wall for _, wall in ours),
        epe=float(np.linalg.norm(apart, axis=-1).mean()),
    )


def two_workers(start: Callable[[int], Pool], pairs: list[Pair], turns: int) -> float:
    """Wall time of one worker over that of two, on the same pairs, best of a few turns each.

    Workers are started once, and the first turn of each is not counted.
    """
    walls: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        pools = {workers: stack.enter_context(start(workers)) for workers in walls}
        for pool in pools.values():
            pool.map(solve, pairs, chunksize=1)
        for _ in range(turns + 2):
            for workers, pool in pools.items():
                started = time.perf_counter()
                pool.map(solve, pairs * 2, chunksize=1)
                walls[workers].append(time.perf_counter() - started)
    return min(walls[1]) / min(walls[2])


def start_processes(workers: int) -> Pool:
    """Fresh processes, one thread each."""
    return get_context("spawn").Pool(workers, cv2.setNumThreads, (1,))


def torch_speedup(pairs: list[Pair], costs: list[Cost]) -> float:
    """OpenCV's cost over that of the torch engine, one thread each, median over a few pairs."""
    torch.set_num_threads(1)
    by_cost = sorted(zip(costs, pairs, strict=True), key=lambda both: both[0].opencv)
    middle = by_cost[len(by_cost) // 2 :][:TORCH_PAIRS]
    ratios = []
    for cost, pair in middle:
        ms, _ = timed(lambda pair=pair: solve(pair, "torch"), time.thread_time)
        print(f"torch, 1 thread, {cost.name}: {ms:.0f} ms, OpenCV {cost.opencv:.0f} ms")
        ratios.append(cost.opencv / ms)
    return median(ratios)


def print_costs(size: tuple[int, int], costs: list[Cost], pictures: str) -> None:
    """The table of one size."""
    print(f"\n{size[0]}x{size[1]}, {pictures}, ms per pair")
    print("one thread is CPU time, all threads is wall time")
    print(f"{'pair':26}{'OpenCV':>9}{'numba':>8}{'ratio':>7}{'OpenCV all':>12}{'EPE px':>9}")
    for cost in costs:
        print(
            f"{cost.name:26}{cost.opencv:9.0f}{cost.numba:8.0f}{cost.opencv / cost.numba:7.1f}"
            f"{cost.opencv_all_wall:12.0f}{cost.epe:9.4f}"
        )
    against_all = median(cost.opencv_all_wall / cost.numba_wall for cost in costs)
    print(
        f"median ratio {speedup(costs):.1f}; wall time of numba on one thread against OpenCV on "
        f"{os.cpu_count()}: {against_all:.1f}"
    )


def speedup(costs: list[Cost]) -> float:
    """OpenCV's cost over ours, one thread each, median over pairs."""
    return median(cost.opencv / cost.numba for cost in costs)


@click.command()
@click.option(
    "--media",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of videos to take real pictures from; without, they are drawn.",
)
@click.option("--pairs", "count", default=12, show_default=True, help="Pairs per size.")
@click.option("--turns", default=1, show_default=True, help="Repetitions per pair.")
def main(media: Path | None, count: int, turns: int) -> None:
    """Measure both sizes, two workers and torch."""
    av.logging.set_level(None)
    pictures = "real pictures" if media else "drawn pictures"
    found = {
        size: real_pairs(media, size, count) if media else drawn_pairs(size, count)
        for size in SIZES
    }
    if not all(found.values()):
        raise click.UsageError(f"--media {media}: no video of {FIRST + 2} frames or more in it")
    solve(drawn_pairs((32, 32), 1)[0])  # compiles
    costs = {size: [measure(pair, turns) for pair in pairs] for size, pairs in found.items()}
    for size in SIZES:
        print_costs(size, costs[size], pictures)
    large, small = SIZES
    workers = two_workers(start_processes, found[large], turns)
    threads = two_workers(ThreadPool, found[large], turns)
    print(f"\ntwo worker processes over one, {large[0]}x{large[1]}: {workers:.2f}")
    print(f"two threads over one, in one process: {threads:.2f}")
    on_torch = torch_speedup(found[small], costs[small])
    print(f"figure: tvl1_speedup_over_opencv {speedup(costs[large]):.1f}")
    print(f"figure: tvl1_speedup_over_opencv_224 {speedup(costs[small]):.1f}")
    print(f"figure: tvl1_two_workers {workers:.2f}")
    print(f"figure: tvl1_torch_cpu_speedup {on_torch:.2f}")
    print(f"figure: tvl1_epe_px {np.mean([c.epe for s in SIZES for c in costs[s]]):.4f}")


if __name__ == "__main__":
    main()
