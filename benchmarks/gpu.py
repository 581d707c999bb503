"""What a GPU does with everything that runs on one: type it once, on any CUDA device.

    python benchmarks/gpu.py

takes under ten minutes and downloads nothing: networks have random weights, media are drawn. It
writes `gpu.json`, to send in, and `gpu.md`, the same as tables. Both are written after every row. A
row that fails says why and costs nothing else; rows that the time did not suffice for are named.

- `products`: floating point operations per second of a large matrix product, by type. Shares below
  are of these.
- `networks`: units (frames, windows, flow clips, sentences) per second of every backbone, bare and
  with what leads to it (arrays in, arrays out), by precision, size of batch, and compiled; its
  memory; and how far its features are from those of the CPU in float32, as a share of the largest.
  `near` says whether that is within `TOLERANCES`.
- `decoding`: units per second that one core decodes (for flow: computes), and the cores that keep
  up with the fastest row of each precision.
- `choices`: the same network with a default the other way round; see docs/gpu.md.
- `copies`: a batch to the device, from memory as it is and from pinned memory.
- `flow`: pairs per second of TV-L1 by torch on the device, and by numba on all cores.
- `steps`: a training step of the preset `micu`, by precision; its memory; and its loss against the
  CPU's, without dropout.
- `several`: where there are more GPUs, what each does while all work, against one alone.

`--toy` does the same with small networks and sizes, on whatever device: it shows that the script
runs, and no figure of it says anything.
"""

import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from backbones import TEXT, prepared_inputs, write_media
from flow import drawn_pairs
from torch.utils.flop_counter import FlopCounterMode
from train_step import channels_last, make_batch, timed

from micu.base.devices import count_cores, peak_memory, resolve_device, wait_for
from micu.config.presets import PRESETS
from micu.config.sections import TrainConfig
from micu.store.manifest import Clip
from micu.train.step import build_state, train_step
from micu_extract.backbones import Run, build_backbone
from micu_extract.backbones.base import FlowInput, FrameInput, TextInput, WaveformInput
from micu_extract.backbones.torch_backbone import repeatable
from micu_extract.flow.tvl1 import tvl1_pairs
from micu_extract.media.readers import read
from micu_extract.media.source import Reading

TOLERANCES = {
    "float32": 1e-3,
    "bf16": 5e-2,
    "loss fp32": 1e-4,
    "loss tf32": 2e-3,
    "loss bf16": 5e-2,
}
"""How far results may be from those of the CPU in float32, as a share of the largest value."""
GRIDS: dict[str, tuple[int, ...]] = {"audio": (128,), "video": (7, 7, 512), "text": (768,)}
VECTORS: dict[str, tuple[int, ...]] = {"audio": (768,), "video": (1536,), "text": (768,)}
TYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
COMPARED = 2
"""Units that are run on the CPU too."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    networks: tuple[str, ...] = ("swinv2", "vgg19", "slowonly", "htsat", "vggish", "bert")
    batches: tuple[int | None, ...] = (None, 64)
    """Units of a pass; None is the backbone's own number."""
    compiles: bool = True
    least_s: float = 1.5
    """For which a rate is measured."""
    repeats: int = 5
    matrix: int = 8192
    preset: str = "micu"
    clips: int = 80
    grid_width: int = 2048
    compared_clips: int = 4
    media_s: float = 4.0
    pairs: tuple[int, ...] = (16, 64)
    frame: tuple[int, int] = (340, 256)


TOY = Size(
    networks=("swinv2-demo", "slowonly-demo", "bert-demo"),
    batches=(4,),
    compiles=False,
    least_s=0.01,
    repeats=1,
    matrix=64,
    preset="skeleton",
    clips=4,
    grid_width=8,
    compared_clips=2,
    media_s=1.0,
    pairs=(2,),
    frame=(32, 24),
)


@dataclass(slots=True)
class Report:
    """What was found, by section; on disk after every row."""

    out: Path
    deadline: float
    machine: Row
    sections: dict[str, list[Row]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, section: str, what: str, measure: Callable[[], Row]) -> None:
        """Measure a row, unless the time is over; an error becomes its content."""
        if time.monotonic() > self.deadline:
            self.left_out.append(f"{section}: {what}")
        else:
            row: Row = {"what": what}
            try:
                row |= measure()
            except Exception as error:  # noqa: BLE001 - whatever it is, others are worth having
                row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self.sections.setdefault(section, []).append(row)
            print(f"{section}: {json.dumps(row)}", flush=True)
        self.write()

    def write(self) -> None:
        """Both files."""
        found = {"machine": self.machine, "left_out": self.left_out, **self.sections}
        self.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        parts = [markdown("machine", [self.machine])]
        parts += [markdown(name, rows) for name, rows in self.sections.items()]
        parts += ["Left out for lack of time: " + "; ".join(self.left_out)] * bool(self.left_out)
        self.out.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def markdown(title: str, rows: list[Row]) -> str:
    """A table with a column for each key of any row."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"### {title}", "", f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = [row.get(key, "") for key in keys]
        shown = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in shown)} |")
    return "\n".join(lines)


def describe_machine(device: torch.device) -> Row:
    """Device, processor and versions."""
    told: Row = {"device": str(device), "name": platform.processor() or platform.machine()}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        told |= {
            "name": found.name,
            "memory_gib": found.total_memory / 2**30,
            "capability": f"{found.major}.{found.minor}",
            "devices": torch.cuda.device_count(),
            "cuda": str(torch.version.cuda),
            "cudnn": torch.backends.cudnn.version(),
        }
    packages = ("micu", "torch", "timm", "transformers", "numba", "av")
    told |= {"cores": count_cores(), "python": platform.python_version()}
    return {**told, **{name: version(name) for name in packages}}


# --- products --------------------------------------------------------------------------------


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let products and convolutions of float32 round to TF32, or not."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def product_rate(kind: str, size: int, device: torch.device) -> Row:
    """Of a square matrix product, the best of some."""
    left, right = (torch.randn(size, size, device=device, dtype=TYPES[kind]) for _ in range(2))
    with tf32(kind == "tf32"):
        left @ right
        best = min(timed(lambda: left @ right, device).wall for _ in range(10))
    return {"tflops": 2 * size**3 / best / 1e12}


# --- networks --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run a network."""

    precision: Any = "float32"
    batch: int | None = None
    compiled: bool = False

    def __str__(self) -> str:  # noqa: D105
        batch = "own batch" if self.batch is None else f"batch {self.batch}"
        return f"{self.precision}, {batch}{', compiled' * self.compiled}"

    def build(self, name: str, device: str) -> Any:
        """The backbone, with weights that are the same every time."""
        run = Run(
            device=device, batch_size=self.batch, precision=self.precision, compile=self.compiled
        )
        return build_backbone(name, "random", run)


def draw_units(wants: Any, count: int) -> list[Any]:
    """Units of the kind that a backbone wants."""
    rng = np.random.default_rng(0)
    match wants:
        case FrameInput():
            shape: tuple[int, ...] = (wants.crop, wants.crop, 3)
        case FlowInput():
            shape = (wants.clip_len, wants.crop, wants.crop, 2)
        case WaveformInput():
            samples = int(wants.sample_rate * wants.window_s)
            return [rng.normal(0, 0.1, samples).astype(np.float32) for _ in range(count)]
        case _:
            return [TEXT] * count
    return [rng.integers(0, 256, shape, np.uint8) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Known:
    """What networks on the device are measured by."""

    peaks: Mapping[str, float]
    """Operations per second of products, by type."""
    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Of `COMPARED` units on the CPU in float32, by backbone."""
    wants: dict[str, Any] = field(default_factory=dict)
    """What each backbone looks at."""


def measure_network(name: str, how: Variant, device: torch.device, size: Size, known: Known) -> Row:
    """One row of `networks`."""
    backbone = how.build(name, str(device))
    units = draw_units(backbone.wants, backbone.batch_size)
    inputs, named = prepared_inputs(backbone, units)  # compiles
    with FlopCounterMode(display=False) as counter, repeatable():
        backbone._run.network(*inputs, **named)
    operations = counter.get_total_flops() / backbone.batch_size
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    bare = synchronized_rate(backbone, inputs, named, size.least_s, device)
    passes, began = 0, time.perf_counter()
    while time.perf_counter() - began < size.least_s:
        backbone.encode(units)
        passes += 1
    whole = passes * backbone.batch_size / (time.perf_counter() - began)
    row: Row = {
        "batch": backbone.batch_size,
        "bare_per_s": bare,
        "whole_per_s": whole,
        "gflop": operations / 1e9,
        "memory_gib": (peak_memory(device) or 0) / 2**30,
    }
    if peak := known.peaks.get(how.precision):
        row["share_of_peak"] = operations * bare / peak
    if (expected := known.outputs.get(name)) is not None:
        found = backbone.encode(units[:COMPARED])
        apart = max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))
        row["apart"] = float(apart / max(np.abs(b).max() for b in expected))
        row["near"] = row["apart"] <= TOLERANCES[how.precision]
    return row


def synchronized_rate(
    backbone: Any, inputs: Any, named: Any, least_s: float, device: torch.device
) -> float:
    """Units per second of the network alone; the clock stops when the device has finished."""
    batches, began = 0, time.perf_counter()
    with repeatable():
        while time.perf_counter() - began < least_s:
            for _ in range(4):  # a queue that is never empty
                backbone._run(*inputs, **named)
            batches += 4
            wait_for(device)
    return batches * int(backbone.batch_size) / (time.perf_counter() - began)


def prepare_networks(report: Report, size: Size) -> Known:
    """Run every backbone on the CPU, in float32."""
    peaks = {row["what"]: 1e12 * row.get("tflops", 0) for row in report.sections["products"]}
    known = Known(peaks)

    def note(name: str) -> Row:
        backbone = Variant(batch=COMPARED).build(name, "cpu")
        known.wants[name] = backbone.wants
        began = time.perf_counter()
        known.outputs[name] = list(backbone.encode(draw_units(backbone.wants, COMPARED)))
        return {"seconds": time.perf_counter() - began, "units": COMPARED}

    for name in size.networks:
        report.add("on the CPU, to compare with", name, lambda name=name: note(name))
    return known


def measure_networks(
    report: Report, size: Size, device: torch.device, known: Known, *, compiled: bool
) -> None:
    """Every backbone in every variant; compiled, with the last size of batch only."""
    batches = size.batches[-1:] if compiled else size.batches
    for batch in batches:
        for precision in ("float32", "bf16"):
            how = Variant(precision=precision, batch=batch, compiled=compiled)
            for name in size.networks:
                report.add(
                    "networks",
                    f"{name}, {how}",
                    lambda name=name, how=how: measure_network(name, how, device, size, known),
                )


def measure_decoding(report: Report, name: str, wants: Any, media: Path, size: Size) -> Row:
    """Units per second that one core makes, and the cores that keep up with the device."""
    clip = Clip(clip_id="a", path=media.name, start_s=0.0, end_s=size.media_s, text=TEXT)
    reading = Reading(media_root=media.parent)
    read(clip, wants, reading)  # compiles, opens libraries
    began = time.process_time()
    units = len(read(clip, wants, reading).units)
    row: Row = {"units": units, "per_core_s": units / max(time.process_time() - began, 1e-9)}
    rows = report.sections.get("networks", [])
    for precision in ("float32", "bf16"):
        whole = [
            r["whole_per_s"]
            for r in rows
            if r["what"].startswith(f"{name}, {precision}") and "whole_per_s" in r
        ]
        row[f"cores_{precision}"] = max(whole, default=0.0) / row["per_core_s"]
    return row


# --- defaults the other way round ------------------------------------------------------------


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN try which kernel is fastest, and take ones that are not repeatable."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False):
        yield


def measure_choice(
    name: str, other: AbstractContextManager[None], layout: Any, device: torch.device, size: Size
) -> Row:
    """A network as it is, and with a default the other way round."""
    backbone = Variant(batch=size.batches[-1]).build(name, str(device))
    units = draw_units(backbone.wants, backbone.batch_size)
    inputs, named = prepared_inputs(backbone, units)
    before = synchronized_rate(backbone, inputs, named, size.least_s, device)
    if layout is not None:
        backbone._run.network.to(memory_format=layout)
        inputs = tuple(x.contiguous(memory_format=layout) for x in inputs)
    with torch.inference_mode(), other:
        batches = 0
        backbone._run(*inputs, **named)
        wait_for(device)
        began = time.perf_counter()
        while time.perf_counter() - began < size.least_s:
            backbone._run(*inputs, **named)
            batches += 1
            wait_for(device)
        after = batches * backbone.batch_size / (time.perf_counter() - began)
    return {"as_it_is_per_s": before, "otherwise_per_s": after, "gain": after / before}


def measure_choices(report: Report, size: Size, device: torch.device) -> None:
    """TF32, cuDNN's trials and the other memory layout, where a network has convolutions."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}
    for name in size.networks:
        picture = next((n for n in ("vgg19", "slowonly", "swinv2") if name.startswith(n)), "")
        cases: dict[str, tuple[Any, Any]] = {"TF32": (tf32(True), None)}
        if picture:
            cases["cuDNN benchmark"] = (cudnn_benchmark(), None)
        if picture in ("vgg19", "slowonly"):
            cases["channels first"] = (nullcontext(), torch.contiguous_format)
        elif picture:
            cases["channels last"] = (nullcontext(), last[4])
        for case, (other, layout) in cases.items():
            report.add(
                "choices",
                f"{name}: {case}",
                lambda name=name, other=other, layout=layout: measure_choice(
                    name, other, layout, device, size
                ),
            )


def measure_copy(pinned: bool, device: torch.device, size: Size) -> Row:
    """Bytes per second of a batch of frames on its way to the device."""
    frames = torch.zeros(64 if size is not TOY else 1, 256, 256, 3, dtype=torch.uint8)
    source = frames.pin_memory() if pinned else frames
    source.to(device)

    def copy() -> None:
        source.to(device, non_blocking=pinned)

    return {"gb_per_s": frames.nbytes / min(timed(copy, device).wall for _ in range(10)) / 1e9}


# --- flow ------------------------------------------------------------------------------------


def measure_flow(engine: str, count: int, device: torch.device, size: Size) -> Row:
    """Pairs per second of TV-L1, and the mean distance to numba's field, px."""
    pairs = drawn_pairs(size.frame, count)
    first = np.concatenate([pair.previous for pair in pairs])
    second = np.concatenate([pair.following for pair in pairs])

    def solve(part: slice) -> np.ndarray:
        return tvl1_pairs(first[part], second[part], engine=engine, device=str(device))

    threads = count_cores() if engine == "numba" else 1
    parts = [slice(i, i + 1) for i in range(count)] if engine == "numba" else [slice(0, count)]
    with ThreadPool(threads) as pool:
        pool.map(solve, parts[:1])
        began = time.perf_counter()
        field_ = np.concatenate(pool.map(solve, parts, chunksize=1))
        seconds = time.perf_counter() - began
    expected = tvl1_pairs(first[:2], second[:2])
    apart = float(np.linalg.norm(field_[:2] - expected, axis=-1).mean())
    return {"pairs_per_s": count / seconds, "threads": threads, "apart_px": apart}


# --- training --------------------------------------------------------------------------------


def configure(kind: str, dropout: float | None, size: Size) -> TrainConfig:
    """The preset, in a precision."""
    config = PRESETS[size.preset]()
    encoder = config.encoder
    return replace(
        config,
        encoder=encoder if dropout is None else replace(encoder, dropout=dropout),
        optimizer=replace(
            config.optimizer, precision="bf16" if kind == "bf16" else "fp32", tf32=kind == "tf32"
        ),
        reconstruction=replace(config.reconstruction, grid_width=size.grid_width),
    )


def measure_step(
    kind: str, shapes: Mapping[str, tuple[int, ...]], device: torch.device, size: Size
) -> Row:
    """Seconds and memory of a step, also with grids channel last; its loss against the CPU's."""
    row: Row = {}
    state = build_state(configure(kind, None, size), shapes, device)
    batch = make_batch(size.clips, shapes).to(device, torch.float32)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        train_step(state, batch)
    row["seconds"] = min(
        timed(lambda: train_step(state, batch), device).wall for _ in range(size.repeats)
    )
    if shapes is GRIDS:
        with channels_last():
            train_step(state, batch)
            costs = [timed(lambda: train_step(state, batch), device) for _ in range(size.repeats)]
        row["channels_last_seconds"] = min(cost.wall for cost in costs)
    row["clips_per_s"] = size.clips / row["seconds"]
    row["features_mb_per_s"] = sum(x.nbytes for x in batch.features.values()) / row["seconds"] / 1e6
    row["memory_gib"] = (peak_memory(device) or 0) / 2**30
    few = make_batch(size.compared_clips, shapes)
    losses = []
    for place, how in (("cpu", "fp32"), (device, kind)):
        small = build_state(configure(how, 0.0, size), shapes, place)
        losses.append(train_step(small, few.to(torch.device(place), torch.float32)).terms)
    expected, found = (sum(abs(float(value)) for value in terms.values()) for terms in losses)
    row["loss_apart"] = abs(found - expected) / expected
    row["near"] = row["loss_apart"] <= TOLERANCES[f"loss {kind}"]
    return row


# --- several ---------------------------------------------------------------------------------


def work_on(name: str, device: str, least_s: float, start: float) -> float:
    """Units per second of a backbone in a process of its own, from a common moment on."""
    backbone = Variant().build(name, device)
    units = draw_units(backbone.wants, backbone.batch_size)
    inputs, named = prepared_inputs(backbone, units)
    time.sleep(max(0.0, start - time.time()))
    return synchronized_rate(backbone, inputs, named, least_s, torch.device(device))


def measure_several(name: str, devices: list[str], size: Size) -> Row:
    """All devices at once, against the first alone."""
    with multiprocessing.get_context("spawn").Pool(len(devices)) as pool:
        warm = size.least_s if size is TOY else 60.0
        alone = pool.apply(work_on, (name, devices[0], size.least_s, 0.0))
        start = time.time() + warm
        rates = pool.starmap(
            work_on, [(name, device, 4 * size.least_s, start) for device in devices], chunksize=1
        )
    return {"alone": alone, "together": sum(rates), "share": sum(rates) / len(rates) / alone}


# --- all of it -------------------------------------------------------------------------------


def measure_all(report: Report, size: Size, device: torch.device) -> None:
    """Section after section: what tells most comes first."""
    is_gpu = device.type == "cuda"
    for kind in TYPES if is_gpu else ("float32", "bf16"):
        report.add("products", kind, lambda k=kind: product_rate(k, size.matrix, device))
    for shapes, what in ((GRIDS, "grids"), (VECTORS, "vectors")):
        for kind in ("fp32", "tf32", "bf16") if is_gpu else ("fp32", "bf16"):
            report.add(
                "steps",
                f"{what}, {kind}",
                lambda k=kind, s=shapes: measure_step(k, s, device, size),
            )
    for count in size.pairs:
        report.add(
            "flow", f"torch, {count} pairs", lambda n=count: measure_flow("torch", n, device, size)
        )
    report.add("flow", "numba", lambda: measure_flow("numba", size.pairs[-1], device, size))
    for pinned in (False, True) if is_gpu else (False,):
        report.add(
            "copies",
            "pinned" if pinned else "as it is",
            lambda p=pinned: measure_copy(p, device, size),
        )
    known = prepare_networks(report, size)
    measure_networks(report, size, device, known, compiled=False)
    measure_choices(report, size, device)
    with tempfile.TemporaryDirectory() as folder:
        media = Path(folder) / "a.mp4"
        write_media(media, size.media_s, 0)
        for name, wants in known.wants.items():
            if not isinstance(wants, TextInput):
                report.add(
                    "decoding",
                    name,
                    lambda n=name, w=wants: measure_decoding(report, n, w, media, size),
                )
    devices = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if is_gpu else ["cpu"] * 2
    if len(devices) > 1:
        name = size.networks[0]
        report.add("several", name, lambda: measure_several(name, devices, size))
    if size.compiles:  # last, since it takes longest
        measure_networks(report, size, device, known, compiled=True)


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:N, or any other.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("gpu"), show_default=True)
@click.option("--minutes", default=9.0, show_default=True, help="After which no row begins.")
@click.option("--toy", is_flag=True, help="Small networks: to see that the script runs.")
def main(device: str, out: Path, minutes: float, toy: bool) -> None:
    """Measure everything that runs on a GPU."""
    place = torch.device(resolve_device(device))
    if toy:
        torch.set_num_threads(1)
    began = time.monotonic()
    report = Report(out, began + 60 * minutes, describe_machine(place))
    measure_all(report, TOY if toy else Size(), place)
    print(f"{out.with_suffix('.md')} and {out.with_suffix('.json')}, to send in")
    print(f"figure: gpu_seconds {time.monotonic() - began:.0f}")


if __name__ == "__main__":
    main()
