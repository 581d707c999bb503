"""The benchmarks of training run, in small, and count what they say they count."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from micu.config.presets import BASELINES, PRESETS
from micu.model.grids import GridConv, GridConvTranspose

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return __import__(name)

    yield load
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and BENCHMARKS.samefile(
            Path(str(sys.modules[name].__file__)).parent
        ):
            del sys.modules[name]


def figures(output: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"figure: (\w+) (\S+)", output)}


def test_the_step_is_measured_with_its_peer_and_other_forms(benchmark) -> None:
    small = ["--batch-size", "2", "--grid-width", "8", "--rounds", "1"]
    small += ["--labels", "sampled", "--peak-size", "64"]
    result = CliRunner().invoke(benchmark("train_step").main, [*small, "--candidates"])

    assert result.exit_code == 0, result.output
    found = figures(result.stdout)
    assert found["share_of_peak_fp32"] > 0
    assert found["executed_share_of_peak_fp32"] > 0
    assert found["speedup_over_lean"] > 0
    assert found["peak_memory_gib"] > 0
    assert 0 < found["share_of_3x3_convolutions"] < 1 - found["share_of_1x1_convolutions"] < 1
    assert "specific_encoders.video.net.0" in result.stdout
    assert "a product per cell and tap" in result.stdout


def test_batches_are_measured_against_the_published_format(benchmark) -> None:
    small = ["--clips", "4", "--batch-size", "2", "--rounds", "1", "--grid-width", "8"]
    result = CliRunner().invoke(benchmark("loader").main, small)

    assert result.exit_code == 0, result.output
    assert {"loader_ratio", "cached_ratio", "loader_share_of_step"} <= figures(result.stdout).keys()


def test_any_preset_is_measured_against_micu(benchmark) -> None:
    small = ["--batch-size", "2", "--rounds", "1", "--modalities", "a,v"]
    presets = ["skeleton", "coarse", "reference"]  # the last in float64
    only = [word for name in presets for word in ("--only", name)]
    methods = benchmark("methods")
    result = CliRunner().invoke(methods.main, [*small, *only])

    assert result.exit_code == 0, result.output
    found = figures(result.stdout)
    assert found.keys() == {f"step_of_{name}_over_micu" for name in presets}
    assert found["step_of_skeleton_over_micu"] > 0
    assert {*BASELINES, "coarse", "fig3-mmjp"} == {*methods.METHODS} <= {*PRESETS}


@pytest.mark.parametrize("name", ["train_step", "loader"])
def test_a_benchmark_is_for_the_device_that_is_named(benchmark, name, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    result = CliRunner().invoke(benchmark(name).main, ["--device", "cuda:1"])

    assert "--device cuda:1: this machine has 0 cuda devices" in str(result.exception)


def test_the_share_of_a_kind_of_layer_is_of_what_all_need(benchmark) -> None:
    operations = benchmark("operations")
    assert operations.layer_kind(GridConvTranspose(4, 6, 3)) == "3x3 convolution"
    rows = [operations.Row("", 2, 4, operations.layer_kind(GridConv(4, 6, 3)))]
    rows += [operations.Row("", 1, 1, "Linear"), operations.Row("lookup", 2, 0)]
    assert operations.share_of("3x3 convolution", rows) == 0.6


@pytest.mark.parametrize(
    ("layer", "grid", "met"),
    [
        (GridConv(4, 6, 3), 7, 15 * 15),
        (GridConv(4, 6, 3, padding=1), 3, 7 * 7),
        (GridConv(4, 6, 3, padding=1), 5, 13 * 13),
        (GridConv(4, 6, 1), 3, 3 * 3),
        (GridConvTranspose(4, 6, 3), 3, 9 * 9),
    ],
)
def test_a_convolution_needs_what_its_cells_and_taps_that_meet_multiply(
    benchmark, layer: torch.nn.Module, grid: int, met: int
) -> None:
    count = benchmark("operations").layer_operations(layer, torch.zeros(2, 4, grid, grid))

    assert count == 2 * 2 * met * 4 * 6


def test_a_step_carries_out_what_torch_counts_for_its_own_layers(benchmark) -> None:
    train_step, operations = benchmark("train_step"), benchmark("operations")
    plain, x = torch.nn.Linear(8, 4), torch.randn(3, 8)
    with FlopCounterMode(display=False) as counter:
        plain(x)
    with operations.carried_out() as count, train_step.torch_products():
        train_step.products.linear(x, plain.weight)
    with operations.carried_out() as ours:
        train_step.products.linear(x, plain.weight)

    assert count() == ours() == counter.get_total_flops() == 2 * 3 * 8 * 4


@pytest.mark.parametrize(
    "layer", [GridConv(4, 6, 3), GridConv(4, 6, 3, padding=1), GridConvTranspose(4, 6, 3)]
)
def test_the_direct_form_is_a_convolution_too(benchmark, layer, monkeypatch) -> None:
    x = torch.randn(2, 4, 5, 4)
    expected = layer(x)
    direct = benchmark("train_step").direct_algorithm
    monkeypatch.setattr("micu.model.grids.grid_algorithm", direct)

    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_two_records_differ_where_a_cell_a_step_or_a_key_does(benchmark, tmp_path) -> None:
    recording = benchmark("recording")
    log = tmp_path / "metrics.csv"
    log.write_text("step,total,clips_per_s\n1,0.5,10\n2,0.25,11\n")
    rows = recording.read_rows(log)
    assert rows == [{"step": "1", "total": "0.5"}, {"step": "2", "total": "0.25"}]

    before = {"losses": {"micu": rows}, "shards": {"a": "1", "b": "2"}}
    after = {"losses": {"micu": [rows[0], {**rows[1], "total": "0.5"}]}, "shards": {"a": "1"}}
    assert list(recording.differences(before, before)) == []
    assert list(recording.differences(before, after)) == [
        'losses/micu/2/total: before "0.25", after "0.5"',
        'shards/b: before "2", after null',
    ]
    shorter = {**before, "losses": {"micu": rows[:1]}}
    assert len(list(recording.differences(before, shorter))) == 1
