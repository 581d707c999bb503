import pickle
import subprocess
import sys

import numpy as np
import pytest

from micu.base.errors import ConfigError, MicuError, ShapeError, WeightsError
from micu_extract.flow.methods import FLOW_METHODS, FlowSettings, estimate_flow
from micu_extract.flow.tvl1_parameters import TVL1
from micu_extract.media.flow import STILL, quantize_flow, still_level

FAST = {
    "tvl1": FlowSettings(engine="opencv", tvl1=TVL1(warps=2, outer_iterations=3)),
    "raft": FlowSettings(method="raft", raft="small", weights="random"),
}
UNTRAINED = {"raft"}


def blob(left: float, top: float, size: int = 48) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (255 * np.exp(-((x - left) ** 2 + (y - top) ** 2) / 60)).astype(np.uint8)


def pictures_of(settings: FlowSettings, *grays: np.ndarray) -> np.ndarray:
    stacked = np.stack(grays)
    return stacked if settings.pictures == "gray" else np.stack([stacked] * 3, -1)


# --- 8 bits ----------------------------------------------------------------------------------


def test_quantising_rounds_and_zero_becomes_128():
    flow = np.array([-99, -20, -0.05, 0, 0.05, 10, 20, 99], np.float32)
    levels = [0, 0, 127, 128, 128, 191, 255, 255]
    assert quantize_flow(flow, 20.0).tolist() == levels
    assert quantize_flow(np.zeros(1, np.float32), 7.5)[0] == STILL == still_level("nearest")


def test_quantising_to_the_nearest_is_its_formula_value_by_value():
    flow = np.random.default_rng(0).uniform(-25, 25, 2000).astype(np.float32)
    for bound in (20.0, 2.5):
        slow = []
        for value in flow.tolist():
            level = 255 * (min(max(value, -bound), bound) + bound) / (2 * bound)
            slow.append(min(range(256), key=lambda whole, level=level: abs(whole - level)))
        assert quantize_flow(flow, bound).tolist() == slow


def test_truncating_is_the_single_precision_arithmetic_of_mmaction2():
    flow = np.random.default_rng(0).uniform(-25, 25, 2000).astype(np.float32)
    flow[:3] = 0, 20, -20
    slow = []
    for value in flow:
        level = np.float32(min(max(value, np.float32(-20)), np.float32(20))) + np.float32(20)
        slow.append(int(np.float32(level * np.float32(6.375))))
    before = flow.copy()
    levels = quantize_flow(flow, 20.0, "truncate")
    assert levels.tolist() == slow
    assert levels[:3].tolist() == [still_level("truncate"), 255, 0]
    assert still_level("truncate") == 127
    np.testing.assert_array_equal(flow, before)


# --- every method ----------------------------------------------------------------------------


def test_the_methods_are_the_two_of_the_command_line():
    assert FLOW_METHODS == ("tvl1", "raft")
    assert FAST.keys() == set(FLOW_METHODS)


@pytest.mark.parametrize("method", sorted(FAST.keys() - UNTRAINED))
def test_flow_points_to_where_things_went_with_x_first(method):
    flow = estimate_flow(blob(22, 24)[None], blob(24, 23)[None], FAST[method])
    assert flow.shape == (1, 48, 48, 2)
    assert flow.dtype == np.float32
    np.testing.assert_allclose(flow[0, 20:28, 20:28].mean((0, 1)), [2, -1], atol=0.5)


@pytest.mark.parametrize("method", FAST)
def test_a_pair_has_the_same_flow_alone_and_after_others(method):
    settings = FAST[method]
    previous = pictures_of(settings, blob(22, 24), blob(9, 9), blob(30, 30))
    following = pictures_of(settings, blob(24, 23), blob(9, 12), blob(28, 28))
    together = estimate_flow(previous, following, settings)
    for i in (2, 0, 1):
        alone = estimate_flow(previous[i : i + 1], following[i : i + 1], settings)
        np.testing.assert_array_equal(alone[0], together[i])
    assert (together[0] != together[1]).any()


@pytest.mark.parametrize("method", FAST)
def test_pictures_whose_rows_are_not_contiguous_are_accepted(method):
    settings = FAST[method]
    wide = pictures_of(settings, blob(22, 24, 64), blob(24, 23, 64))
    views = wide[:1, 3:51, 5:53], wide[1:, 3:51, 5:53]
    copies = [np.ascontiguousarray(view) for view in views]
    np.testing.assert_array_equal(estimate_flow(*views, settings), estimate_flow(*copies, settings))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (12, 11), (17, 33)])
@pytest.mark.parametrize("method", FAST)
def test_small_pictures_have_finite_flow_of_their_own_size(method, size):
    settings = FAST[method]
    noise = np.random.default_rng(0).integers(0, 256, (2, *size)).astype(np.uint8)
    pictures = pictures_of(settings, *noise)
    flow = estimate_flow(pictures[:1], pictures[1:], settings)
    assert flow.shape == (1, *size, 2)
    assert np.isfinite(flow).all()


@pytest.mark.parametrize("method", FAST)
def test_no_pairs_have_no_flow(method):
    none = pictures_of(FAST[method], blob(1, 1))[:0]
    assert estimate_flow(none, none, FAST[method]).shape == (0, 48, 48, 2)


@pytest.mark.parametrize("method", FAST)
def test_pictures_of_another_form_are_refused(method):
    settings = FAST[method]
    one = pictures_of(settings, blob(1, 1))
    for other in (one[:, :24], one[:, :, :24], np.concatenate([one, one])):
        with pytest.raises(ShapeError, match="second pictures"):
            estimate_flow(one, other, settings)
    with pytest.raises(ShapeError, match="first pictures"):
        estimate_flow(one[0], one[0], settings)
    with pytest.raises(ConfigError, match="uint8"):
        estimate_flow(one, one.astype(np.float32), settings)
    with pytest.raises(ConfigError, match="uint8"):
        estimate_flow(one.astype(np.float32), one, settings)


@pytest.mark.parametrize("method", FAST)
def test_settings_can_be_pickled_hashed_and_written_as_json(method):
    import json

    settings = FAST[method]
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(settings) == hash(pickle.loads(pickle.dumps(settings)))
    described = settings.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["method"] == method
    assert described["versions"]


# --- the methods' own ------------------------------------------------------------------------


def test_the_header_tells_engines_parameters_and_weights_apart_but_not_devices():
    described = [
        FlowSettings().describe(),
        FlowSettings(engine="opencv").describe(),
        FlowSettings(tvl1=TVL1(median=0)).describe(),
        FAST["raft"].describe(),
        FlowSettings(method="raft", raft="small", weights="random:1").describe(),
    ]
    assert all(described.count(one) == 1 for one in described)
    assert described[3]["weights_sha256"] != described[4]["weights_sha256"]
    assert FlowSettings(engine="torch", device="cuda").describe() == (
        FlowSettings(engine="torch").describe()
    )


def test_unknown_methods_engines_and_sizes_are_refused_by_name():
    for gone in ("dis", "farneback"):
        with pytest.raises(
            ConfigError, match=f"--flow-method: expected one of tvl1, raft, got '{gone}'"
        ):
            FlowSettings(method=gone)
    with pytest.raises(ConfigError, match="--flow-engine: expected one of numba, opencv, torch"):
        FlowSettings(engine="cuda")
    with pytest.raises(ConfigError, match="--raft-model: expected one of large, small"):
        FlowSettings(method="raft", raft="tiny")


def test_a_missing_numba_is_named_with_the_engine_to_type_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    one = blob(1, 1)[None]
    for ask in (FlowSettings().describe, lambda: estimate_flow(one, one, FlowSettings())):
        with pytest.raises(MicuError, match="--flow-engine opencv"):
            ask()


def test_an_opencv_without_tvl1_is_named_with_its_repair(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2.optflow, "DualTVL1OpticalFlow_create")
    with pytest.raises(MicuError, match="opencv-contrib-python-headless"):
        estimate_flow(blob(1, 1)[None], blob(1, 1)[None], FlowSettings(engine="opencv"))


def test_raft_weights_that_are_not_there_are_an_error_before_any_clip(tmp_path):
    with pytest.raises(WeightsError, match="--flow-weights"):
        FlowSettings(method="raft", weights=str(tmp_path / "no.pth")).describe()


def test_importing_the_readers_does_not_import_what_computes():
    code = (
        "import sys, micu_extract.media.readers, micu_extract.flow.options; "
        "print(sorted({'cv2', 'torch', 'numba', 'torchvision', 'decord'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert output.stdout.strip() == "[]"
