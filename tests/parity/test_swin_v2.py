"""Image backbones beside timm's own transforms and models, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.models.swin_transformer_v2 import SwinTransformerV2

from micu.base.errors import ConfigError, WeightsError
from micu_extract.backbones import build_backbone
from micu_extract.backbones.base import FrameInput, Media, Run
from micu_extract.backbones.swin_v2 import SwinV2
from micu_extract.backbones.timm_image import frame_input

CPU = Run(device="cpu")


def prepare_with_timm(frame: np.ndarray, transform: dict[str, Any]) -> torch.Tensor:
    tensor = timm.data.create_transform(**transform, is_training=False)(Image.fromarray(frame))
    assert isinstance(tensor, torch.Tensor)
    return tensor


def cut_like_the_decoder(frame: np.ndarray, wants: FrameInput) -> np.ndarray:
    mode = torchvision.transforms.InterpolationMode(wants.interpolation)
    image = torchvision.transforms.Resize(wants.resize, mode)(Image.fromarray(frame))
    return np.asarray(torchvision.transforms.CenterCrop(wants.crop)(image))


def draw_frame(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def published_transform() -> dict[str, Any]:
    """Of Swin-V2-L."""
    config = timm.get_pretrained_cfg(SwinV2.MODEL)
    transform: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    return transform


# --- preprocessing ---------------------------------------------------------------------------


def test_swinv2_asks_for_the_frames_of_its_own_pretrained_configuration() -> None:
    assert frame_input("swinv2", published_transform(), 16) == SwinV2.wants


@pytest.mark.parametrize("size", [(300, 400), (333, 290)])
def test_frames_are_prepared_as_timm_prepares_a_picture(size: tuple[int, int]) -> None:
    """Largest difference: 0."""
    transform, frame = published_transform(), draw_frame(*size)
    backbone: Any = build_backbone("timm:test_vit", "random", CPU)
    backbone._transform = transform
    assert isinstance(SwinV2.wants, FrameInput)

    ours = backbone._normalize([cut_like_the_decoder(frame, SwinV2.wants)])[0]

    torch.testing.assert_close(ours, prepare_with_timm(frame, transform))


def test_the_spec_says_the_whole_transform() -> None:
    transform = timm.data.resolve_model_data_config(timm.create_model("test_resnet"))

    said = build_backbone("timm:test_resnet", "random", CPU).spec.preprocessing

    assert {key: said[key] for key in ("mean", "std", "crop_pct")} == {
        key: list(transform[key]) if key != "crop_pct" else transform[key]
        for key in ("mean", "std", "crop_pct")
    }
    assert said["input"]["interpolation"] == transform["interpolation"]
    assert said["input"]["crop"] == transform["input_size"][1]


# --- pooled ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_mambaout"])
def test_a_timm_model_gives_its_own_pooled_output(name: str, tmp_path: Path) -> None:
    """Largest difference: 1.4e-7 of at most 0.27."""
    torch.manual_seed(1)
    theirs = timm.create_model(name, pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    transform = timm.data.resolve_model_data_config(theirs)
    frame = draw_frame(180, 200)

    ours = build_backbone(f"timm:{name}", str(tmp_path), CPU, frames_per_second=2)
    assert isinstance(ours.wants, FrameInput)
    output = ours.encode([cut_like_the_decoder(frame, ours.wants)])[0]

    with torch.inference_mode():
        features = theirs.forward_features(prepare_with_timm(frame, transform)[None])
        expected = theirs.forward_head(features, pre_logits=True)[0]
    assert ours.spec.shape == output.shape
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-5, rtol=1e-4)


# --- grids -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channel_last"),
    [("test_resnet", False), ("test_efficientnet", False), ("test_mambaout", True)],
)
def test_a_grid_is_what_a_timm_model_has_before_its_head(
    name: str, channel_last: bool, tmp_path: Path
) -> None:
    """Whichever way the model has its axes. Largest difference: 7.2e-7 of at most 1.6."""
    torch.manual_seed(1)
    theirs = timm.create_model(name, pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    frame = draw_frame(160, 160)

    ours = build_backbone(f"timm:{name}", str(tmp_path), CPU, grid=True)
    output = ours.encode([frame])[0]

    transform = timm.data.resolve_model_data_config(theirs)
    x = timm.data.create_transform(**{**transform, "crop_pct": 1.0})(Image.fromarray(frame))
    with torch.inference_mode():
        expected = theirs.forward_features(x[None])[0]
    expected = expected if channel_last else expected.permute(1, 2, 0)
    assert ours.spec.shape == ours.gives.shape == output.shape == expected.shape
    assert output.shape[2] == theirs.num_features != output.shape[0]
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-5, rtol=1e-4)
    assert ours.spec.backbone == f"timm:{name}-grid"


def test_a_swin_is_pooled_by_the_mean_over_its_grid() -> None:
    """Largest difference: 4.8e-6 of at most 13."""
    grids = build_backbone("swinv2-demo", "random", CPU, grid=True)
    pooled = build_backbone("swinv2-demo", "random", CPU)
    frames = [draw_frame(64, 64), draw_frame(64, 64)[::-1]]

    got = grids.encode(frames)

    for grid, vector in zip(got, pooled.encode(frames), strict=True):
        assert grid.shape == grids.spec.shape == (16, 16, 64)
        np.testing.assert_allclose(grid.mean(axis=(0, 1)), vector, atol=1e-5)
    assert np.ptp(got[0], axis=(0, 1)).max() > 0.1
    assert grids.spec.weights_sha256 == pooled.spec.weights_sha256
    assert (grids.spec.backbone, pooled.spec.backbone) == ("swinv2-demo-grid", "swinv2-demo")


def test_rows_are_rows() -> None:
    """A spot in the upper right corner moves the upper right of the grid most."""
    backbone = build_backbone("swinv2-demo", "random", CPU, grid=True)
    blank = np.full((64, 64, 3), 120, np.uint8)
    spot = blank.copy()
    spot[4:12, 48:60] = draw_frame(8, 12)

    before, after = backbone.encode([blank, spot])

    moved = np.linalg.norm(after - before, axis=2)
    row, column = np.unravel_index(moved.argmax(), moved.shape)
    assert row in (1, 2)
    assert column in (12, 13, 14)


def test_a_second_of_grids_is_their_mean() -> None:
    backbone = build_backbone("swinv2-demo", "random", CPU, grid=True)
    grids = [np.full((16, 16, 64), value, np.float32) for value in (1, 3, 5, 9)]
    media = Media(np.zeros(0, np.uint8), np.array([0.2, 0.7, 1.2, 1.7]), 2.0, 2)

    steps = backbone.to_steps(grids, media)

    assert steps.values.shape == (2, 16, 16, 64)
    np.testing.assert_array_equal(steps.values[:, 3, 4, 5], [2, 7])


def test_a_model_of_tokens_has_no_grid() -> None:
    with pytest.raises(ConfigError, match="--grid: expected maps of 64 channels with rows"):
        build_backbone("timm:test_vit", "random", CPU, grid=True)


# --- weights ---------------------------------------------------------------------------------


def test_every_format_of_the_same_weights_has_the_same_digest(tmp_path: Path) -> None:
    drawn: Any = build_backbone("timm:test_vit", "random:3", CPU)
    state = drawn._run.network.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state}, tmp_path / "b.pth")

    loaded = [
        build_backbone("timm:test_vit", str(tmp_path / name), CPU).spec
        for name in ("a.safetensors", "b.pth")
    ]

    assert {spec.weights_sha256 for spec in loaded} == {drawn.spec.weights_sha256}
    assert [spec.weights for spec in loaded] == ["a.safetensors", "b.pth"]


def test_weights_of_another_timm_model_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")

    with pytest.raises(WeightsError, match="missing"):
        build_backbone("timm:test_vit", str(tmp_path / "w.safetensors"), CPU)


def test_any_missing_or_unknown_tensor_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    whole = timm.create_model("test_resnet").state_dict()
    names = [name for name in whole if not name.startswith("fc.")]

    for name in names:
        save_file({n: t for n, t in whole.items() if n != name}, path)
        with pytest.raises(WeightsError, match=f"{name} missing"):
            build_backbone("timm:test_resnet", str(path), CPU)
    save_file({**whole, "layer5.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"layer5\.weight not expected"):
        build_backbone("timm:test_resnet", str(path), CPU)


@pytest.mark.slow
def test_swinv2_at_full_size_is_timm_s_with_the_published_layout(tmp_path: Path) -> None:
    """Largest difference: 0 for the grid, 1.8e-7 of at most 0.81 for the pooled output."""
    torch.manual_seed(0)
    theirs: Any = timm.create_model(SwinV2.MODEL, pretrained=False).eval()
    assert isinstance(theirs, SwinTransformerV2)
    assert theirs.get_classifier().out_features == 1000
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    frame = draw_frame(256, 256)

    ours: Any = build_backbone("swinv2", str(tmp_path), Run(device="cpu", batch_size=1), grid=True)
    grid = ours.encode([frame])[0]

    x = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(published_transform()[key]) for key in ("mean", "std"))
    x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        expected = theirs.forward_features(x)
        pooled = theirs.forward_head(expected, pre_logits=True)[0]
    assert grid.shape == ours.spec.shape == (8, 8, 1536)
    torch.testing.assert_close(torch.from_numpy(grid), expected[0], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(grid.mean(axis=(0, 1)), pooled, atol=1e-4)
    assert type(ours).gives.shape == pooled.shape
