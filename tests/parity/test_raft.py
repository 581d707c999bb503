"""RAFT beside the code that it stands for, called directly."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional

from micu.base.errors import WeightsError
from micu_extract.flow import raft as raft_module
from micu_extract.flow.methods import FlowSettings, estimate_flow


def textures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures that drift, (count, H, W, 3)."""
    noise = np.random.default_rng(seed).normal(size=(height + 40, width + 40, 3))
    large = cv2.GaussianBlur(noise, (0, 0), 3)
    large = (127 + 100 * large / np.abs(large).max()).astype(np.uint8)
    return np.stack([large[i : i + height, 2 * i : 2 * i + width] for i in range(count)])


@pytest.fixture(scope="module")
def raft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in torchvision's layout; norms drawn too, so that a swapped one shows."""
    torch.manual_seed(5)
    network = torchvision.models.optical_flow.raft_small(weights=None)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    path = tmp_path_factory.mktemp("raft") / "raft_small.pth"
    torch.save(network.state_dict(), path)
    return path


def flow_of_torchvision(
    network: torch.nn.Module, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    transform = torchvision.models.optical_flow.Raft_Small_Weights.DEFAULT.transforms()
    tensors = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in (first, second)]
    # Theirs is fed whole cells of 8 px, 16 of them at least: as much before as after, or one less.
    height, width = first.shape[1:3]
    down, across = (max(-(-side // 8) * 8, 128) - side for side in (height, width))
    pads = (across // 2, across - across // 2, down // 2, down - down // 2)
    padded = [functional.pad(x.float(), pads, mode="replicate").to(torch.uint8) for x in tensors]
    with torch.inference_mode():
        flows = network(*transform(*padded))
    cut = flows[-1][..., pads[2] : pads[2] + height, pads[0] : pads[0] + width]
    return cut.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [(128, 136), (100, 141)])
def test_raft_is_torchvisions_with_its_own_transform(
    raft_file: Path, size: tuple[int, int]
) -> None:
    """The largest difference is 0 px where pairs come one by one, as ours do on a CPU."""
    frames = textures(3, *size)
    settings = FlowSettings(method="raft", raft="small", weights=str(raft_file))
    network = torchvision.models.optical_flow.raft_small(weights=None).eval()
    network.load_state_dict(torch.load(raft_file, weights_only=True))

    ours = estimate_flow(frames[:-1], frames[1:], settings)

    for i in range(2):
        theirs = flow_of_torchvision(network, frames[i : i + 1], frames[i + 1 : i + 2])
        np.testing.assert_allclose(ours[i], theirs[0], rtol=0, atol=1e-4)
    assert np.abs(ours).max() > 1


def test_random_large_raft_is_torchvisions_drawn_from_the_same_seed() -> None:
    """The largest difference is 0 px."""
    frames = textures(2, 128, 128)
    torch.manual_seed(7)
    network = torchvision.models.optical_flow.raft_large(weights=None).eval()

    settings = FlowSettings(method="raft", weights="random:7")
    ours = estimate_flow(frames[:1], frames[1:], settings)

    theirs = flow_of_torchvision(network, frames[:1], frames[1:])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.abs(ours).max() > 1
    assert settings.describe()["implementation"] == "torchvision raft_large"


@pytest.mark.parametrize("size", ["large", "small"])
def test_raft_weights_come_from_where_torchvision_has_them(size: str) -> None:
    weights = getattr(torchvision.models.optical_flow, f"Raft_{size.title()}_Weights").DEFAULT
    assert raft_module.URLS[size] == weights.url


def test_raft_refuses_weights_that_are_not_all_of_its_own(raft_file: Path, tmp_path: Path) -> None:
    state = torch.load(raft_file, weights_only=True)
    name = next(iter(state))
    broken = {
        "missing": {key: value for key, value in state.items() if key != name},
        "not expected": {**state, "head.weight": torch.zeros(1)},
        "of another shape": {**state, name: torch.zeros(3, 2)},
    }
    for words, tensors in broken.items():
        path = tmp_path / "raft.pth"
        torch.save(tensors, path)
        settings = FlowSettings(method="raft", raft="small", weights=str(path))
        with pytest.raises(WeightsError, match=words):
            settings.describe()
    large = FlowSettings(method="raft", raft="large", weights=str(raft_file))
    with pytest.raises(WeightsError, match="raft_large"):
        large.describe()
