import subprocess
import sys

import numpy as np
import pytest

from extract.flow import STILL, TVL1_PARAMETERS, quantize_flow, tvl1_flow
from micu.errors import MicuError, ShapeError


def blob(left: float, top: float, size: int = 48) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (255 * np.exp(-((x - left) ** 2 + (y - top) ** 2) / 60)).astype(np.uint8)


def test_flow_points_to_where_things_went_with_x_first():
    flow = tvl1_flow(blob(22, 24), blob(24, 23))
    assert flow.shape == (48, 48, 2)
    assert flow.dtype == np.float32
    np.testing.assert_allclose(flow[20:28, 20:28].mean((0, 1)), [2, -1], atol=0.3)


def test_flow_of_a_pair_does_not_depend_on_pairs_computed_before():
    alone = tvl1_flow(blob(22, 24), blob(24, 23))
    tvl1_flow(blob(8, 8, 16), blob(9, 8, 16))
    np.testing.assert_array_equal(tvl1_flow(blob(22, 24), blob(24, 23)), alone)


def test_pictures_whose_rows_are_not_contiguous_are_accepted():
    wide = np.stack([blob(22, 24), blob(22, 24)], -1)
    np.testing.assert_array_equal(
        tvl1_flow(wide[..., 0], blob(24, 23)), tvl1_flow(blob(22, 24), blob(24, 23))
    )


def test_pictures_of_two_sizes_have_no_flow():
    with pytest.raises(ShapeError, match="second picture"):
        tvl1_flow(blob(1, 1, 16), blob(1, 1, 24))


def test_the_parameters_in_the_header_are_those_of_the_solver():
    import cv2

    solver = cv2.optflow.DualTVL1OpticalFlow_create()
    names = {
        "tau": "Tau",
        "lambda": "Lambda",
        "theta": "Theta",
        "scales": "ScalesNumber",
        "warps": "WarpingsNumber",
        "epsilon": "Epsilon",
        "inner_iterations": "InnerIterations",
        "outer_iterations": "OuterIterations",
        "scale_step": "ScaleStep",
        "gamma": "Gamma",
        "median_filtering": "MedianFiltering",
    }
    actual = {name: getattr(solver, f"get{getter}")() for name, getter in names.items()}
    stated = {name: TVL1_PARAMETERS[name] for name in names}
    assert stated == actual


def test_quantising_rounds_and_zero_becomes_128():
    flow = np.array([-99, -20, -0.05, 0, 0.05, 10, 20, 99], np.float32)
    levels = [0, 0, 127, 128, 128, 191, 255, 255]
    assert quantize_flow(flow, 20.0).tolist() == levels
    assert quantize_flow(np.zeros(1, np.float32), 7.5)[0] == STILL


def test_an_opencv_without_tvl1_is_named_with_its_repair(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2.optflow, "DualTVL1OpticalFlow_create")
    with pytest.raises(MicuError, match="opencv-contrib-python-headless"):
        tvl1_flow(blob(1, 1, 16), blob(1, 1, 16))


def test_importing_the_readers_does_not_import_opencv_or_torch():
    code = (
        "import sys, extract.decode; print(sorted({'cv2', 'torch', 'decord'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert output.stdout.strip() == "[]"
