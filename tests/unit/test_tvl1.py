import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numba
import numpy as np
import pytest
import torch

from micu.base.errors import ConfigError
from micu_extract.flow import tvl1_numba, tvl1_torch
from micu_extract.flow.tvl1 import create_solver, tvl1_pairs
from micu_extract.flow.tvl1_parameters import ENGINES, TVL1

QUICK = TVL1(scales=2, warps=2, outer_iterations=2)


def blob(left: float, top: float, size: int = 48) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (255 * np.exp(-((x - left) ** 2 + (y - top) ** 2) / 60)).astype(np.uint8)


def noise(*shape: int) -> np.ndarray:
    coarse = np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)
    return np.stack([cv2.GaussianBlur(image, (5, 5), 1) for image in coarse])


def tvl1_flow(frames: np.ndarray, *rest: TVL1, **engine: str) -> np.ndarray:
    """From each picture of a sequence to the next one."""
    return tvl1_pairs(frames[:-1], frames[1:], *rest, **engine)


# --- what goes in and comes out ---------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_flow_points_to_where_things_went_with_x_first(engine: str) -> None:
    frames = np.stack([blob(22, 24), blob(24, 23), blob(24, 25)])

    flow = tvl1_flow(frames, engine=engine)

    assert flow.shape == (2, 48, 48, 2)
    assert flow.dtype == np.float32
    np.testing.assert_allclose(flow[0, 20:28, 20:28].mean((0, 1)), [2, -1], atol=0.3)
    np.testing.assert_allclose(flow[1, 20:28, 20:28].mean((0, 1)), [0, 2], atol=0.3)


@pytest.mark.parametrize("engine", ENGINES)
def test_arrays_that_are_not_contiguous_are_accepted(engine: str) -> None:
    wide = np.stack([noise(2, 20, 24)] * 2, -1)
    first, second = wide[:1, ::2, ::-1, 0], wide[1:, ::2, ::-1, 1]

    got = tvl1_pairs(first, second, QUICK, engine=engine)

    np.testing.assert_array_equal(
        got, tvl1_pairs(first.copy(), second.copy(), QUICK, engine=engine)
    )
    assert np.abs(got).max() > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (15, 15), (16, 16), (17, 90)])
def test_every_size_has_a_finite_field(engine: str, size: tuple[int, int]) -> None:
    flow = tvl1_flow(noise(2, *size), QUICK, engine=engine)

    assert flow.shape == (1, *size, 2)
    assert np.isfinite(flow).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("levels", [(0, 0), (255, 255), (0, 255), (90, 91)])
def test_plain_pictures_do_not_move(engine: str, levels: tuple[int, int]) -> None:
    first, second = (np.full((1, 24, 30), level, np.uint8) for level in levels)

    flow = tvl1_pairs(first, second, QUICK, engine=engine)[0, 2:-2, 2:-2]

    np.testing.assert_allclose(flow, 0, atol=1e-3)


# --- parameters and engines -------------------------------------------------------------------


def test_the_parameters_in_the_header_are_those_of_the_solver() -> None:
    solver = cv2.optflow.DualTVL1OpticalFlow_create()
    names = {
        "tau": "Tau",
        "lambda": "Lambda",
        "theta": "Theta",
        "scales": "ScalesNumber",
        "scale_step": "ScaleStep",
        "warps": "WarpingsNumber",
        "epsilon": "Epsilon",
        "inner_iterations": "InnerIterations",
        "outer_iterations": "OuterIterations",
        "median": "MedianFiltering",
    }

    def values(solver: object) -> dict[str, float]:
        return {name: getattr(solver, f"get{getter}")() for name, getter in names.items()}

    other = TVL1(
        tau=0.1,
        lambda_=0.2,
        theta=0.4,
        scales=3,
        scale_step=0.5,
        warps=2,
        epsilon=0.02,
        inner_iterations=7,
        outer_iterations=4,
        median=3,
    )
    assert TVL1().describe() == values(solver)
    assert other.describe() == values(create_solver(other))


def test_all_problems_of_the_parameters_are_in_one_error() -> None:
    with pytest.raises(ConfigError) as caught:
        TVL1(
            tau=0,
            lambda_=-1,
            theta=float("nan"),
            scales=0,
            scale_step=1,
            warps=0,
            epsilon=-1,
            inner_iterations=0,
            outer_iterations=0,
            median=4,
        )
    lines = str(caught.value).splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == [
        "tau",
        "lambda",
        "theta",
        "scales",
        "warps",
        "inner_iterations",
        "outer_iterations",
        "scale_step",
        "epsilon",
        "median",
    ]
    assert all("expected" in line and "got" in line for line in lines)


def test_importing_the_flow_imports_no_heavy_library() -> None:
    code = (
        "import sys, micu_extract.flow.tvl1; "
        "print(sorted({'cv2', 'numba', 'torch', 'decord'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert output.stdout.strip() == "[]"


# --- repeatability ----------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "tolerance"), [("numba", 0), ("opencv", 0), ("torch", 1e-5)])
def test_a_pair_has_one_field_alone_or_among_others(engine: str, tolerance: float) -> None:
    frames = np.concatenate([noise(2, 40, 48), noise(2, 40, 48)[::-1] // 2])

    together = tvl1_flow(frames, QUICK, engine=engine)

    np.testing.assert_array_equal(tvl1_flow(frames, QUICK, engine=engine), together)
    alone = [tvl1_flow(frames[i : i + 2], QUICK, engine=engine)[0] for i in range(3)]
    np.testing.assert_allclose(np.stack(alone), together, rtol=0, atol=tolerance)


def test_two_threads_compute_what_one_computes() -> None:
    frames = noise(9, 40, 48)
    expected = tvl1_flow(frames, QUICK)

    with ThreadPoolExecutor(2) as pool:
        got = pool.map(lambda i: tvl1_flow(frames[i : i + 2], QUICK)[0], range(8))

    np.testing.assert_array_equal(np.stack(list(got)), expected)


def test_a_pair_that_has_converged_waits_unchanged_for_the_others_of_its_chunk() -> None:
    easy, hard = np.stack([blob(14, 16, 32), blob(14.4, 16.2, 32)]), noise(2, 32, 32)

    once = TVL1(scales=1, warps=1)
    together = tvl1_pairs(*np.stack([easy, hard], 1), once, engine="torch")

    alone = [tvl1_flow(frames, once, engine="torch")[0] for frames in (easy, hard)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=0, atol=1e-5)
    assert np.abs(together[0]).max() > 0.1


def test_the_size_of_a_block_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.stack([blob(22, 24), blob(22.7, 23.6)])
    once = TVL1(scales=1, warps=1)
    expected = tvl1_flow(frames, once)

    for rows in (1, 3, 47):
        monkeypatch.setattr(tvl1_numba, "BLOCK_PX", rows * 48)
        np.testing.assert_allclose(tvl1_flow(frames, once), expected, rtol=0, atol=1e-4)


def test_the_size_of_a_chunk_changes_nothing() -> None:
    frames = noise(6, 20, 24)

    fields = [
        tvl1_torch.solve_pairs(frames[:-1], frames[1:], QUICK, "cpu", pairs_at_once=size)
        for size in (1, 2, 5, 16)
    ]

    for field in fields[1:]:
        np.testing.assert_allclose(field, fields[0], rtol=0, atol=1e-5)


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])

    assert tvl1_numba._jit(lambda x: x + 1)(np.float32(2)) == 3


def test_the_torch_engine_stays_on_the_device_of_its_pictures() -> None:
    first, second = (torch.from_numpy(image).float()[None, None] for image in noise(2, 40, 48))
    expected = tvl1_torch.solve_chunk(first, second, QUICK)

    with torch.device("meta"):  # whatever is made on no device in particular is made here
        got = tvl1_torch.solve_chunk(first, second, QUICK)

    torch.testing.assert_close(got, expected, rtol=0, atol=0)
