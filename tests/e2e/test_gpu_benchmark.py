"""The script for machines with a GPU runs in small, loses no row to a fault, and its networks move.

What only a GPU can show is in `test_cuda.py`.
"""

import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from micu_extract.backbones import BACKBONES, Run, build_backbone
from tests.e2e.test_benchmarks import benchmark as benchmark
from tests.e2e.test_benchmarks import figures

SECTIONS = ("products", "steps", "flow", "copies", "networks", "choices", "decoding", "several")
DEMOS = [
    name
    for name, kind in BACKBONES.items()
    if name.endswith("-demo") and kind.gives.modality != "text"  # looks at its mask's values
]


def test_everything_is_measured_at_toy_size(benchmark, tmp_path: Path) -> None:
    gpu, threads = benchmark("gpu"), torch.get_num_threads()
    try:
        result = CliRunner().invoke(
            gpu.main, ["--toy", "--device", "cpu", "--out", str(tmp_path / "found")]
        )
    finally:
        torch.set_num_threads(threads)

    assert result.exit_code == 0, result.output
    assert figures(result.stdout)["gpu_seconds"] >= 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = [row for section in SECTIONS for row in found[section]]
    assert [row for row in rows if "error" in row] == []
    assert not found["left_out"]
    assert {row["near"] for row in found["networks"] + found["steps"]} == {True}
    assert {row["what"] for row in found["decoding"]} == {"swinv2-demo", "slowonly-demo"}
    for row in found["networks"]:
        assert min(row["bare_per_s"], row["whole_per_s"], row["gflop"], row["share_of_peak"]) > 0
    table = (tmp_path / "found.md").read_text()
    assert all(f"### {section}" in table for section in ("machine", *SECTIONS))


def test_a_row_that_fails_says_why_and_one_that_is_late_is_named(benchmark, tmp_path: Path) -> None:
    gpu = benchmark("gpu")
    report = gpu.Report(tmp_path / "gpu", time.monotonic() + 60, {"name": "none"})

    def fail() -> dict[str, float]:
        raise RuntimeError("CUDA error:\nno kernel | at all")

    report.add("products", "bf16", fail)
    report.add("products", "float32", lambda: {"tflops": 1.5})
    report.deadline = 0.0
    report.add("products", "tf32", fail)

    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["products"] == [
        {"what": "bf16", "error": "RuntimeError: CUDA error: no kernel | at all"},
        {"what": "float32", "tflops": 1.5},
    ]
    assert found["left_out"] == ["products: tf32"]
    assert (
        "| bf16 | RuntimeError: CUDA error: no kernel / at all |  |"
        in (tmp_path / "gpu.md").read_text()
    )


@pytest.mark.parametrize("name", DEMOS)
def test_a_network_that_moves_leaves_nothing_on_the_processor(benchmark, name: str) -> None:
    """On the meta device too, adding or scaling by a tensor of another device is an error."""
    gpu = benchmark("gpu")
    backbone = build_backbone(name, "random", Run(device="cpu", batch_size=2))
    inputs, named = gpu.prepared_inputs(backbone, gpu.draw_units(backbone.wants, 2))
    network = backbone._run.network
    expected = network(*inputs, **named)
    moved = network.to("meta")(
        *(x.to("meta") for x in inputs),
        **{key: x.to("meta") if isinstance(x, torch.Tensor) else x for key, x in named.items()},
    )
    shapes = [
        [(x.device.type, tuple(x.shape)) for x in tensors(output)] for output in (expected, moved)
    ]
    assert [("meta", shape) for _, shape in shapes[0]] == shapes[1]


def tensors(output: object) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [x for x in values if isinstance(x, torch.Tensor)]
