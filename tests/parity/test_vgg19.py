"""VGG19 beside torchvision's, Keras's and the arithmetic written as loops, with random weights."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import h5py
import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from micu.base.errors import WeightsError
from micu.store.manifest import Clip
from micu_extract.backbones import build_backbone
from micu_extract.backbones.base import FrameInput, Run
from micu_extract.backbones.vgg19 import VGG19, VGG19Torchvision, build_network
from micu_extract.media.pictures import center_crop, resize
from micu_extract.media.readers import read
from micu_extract.media.source import Reading

Array = NDArray[Any]
CPU = Run(device="cpu", batch_size=2)
KERAS_CONVOLUTIONS = [
    *("block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"),
    *("block3_conv1", "block3_conv2", "block3_conv3", "block3_conv4"),
    *("block4_conv1", "block4_conv2", "block4_conv3", "block4_conv4"),
    *("block5_conv1", "block5_conv2", "block5_conv3", "block5_conv4"),
]


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """torchvision's convolutions, with weights that keep the scale and biases that are not zero."""
    torch.manual_seed(1)
    features = torchvision.models.vgg19(init_weights=False).features.eval().requires_grad_(False)
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            torch.nn.init.normal_(layer.bias, std=0.1)
    assert isinstance(features, torch.nn.Module)
    return features


def random_frames(count: int, *size: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def largest_difference(ours: Any, theirs: Any) -> float:
    """Relative to the largest value."""
    expected = np.asarray(theirs)
    return float(np.abs(np.stack(ours) - expected).max() / np.abs(expected).max())


# --- torchvision -----------------------------------------------------------------------------


def test_vgg19_tv_gives_the_output_of_torchvision(theirs: torch.nn.Module, tmp_path: Path) -> None:
    """Largest difference 2.8e-6 of the largest value: other kernels for channels last."""
    state = {f"features.{name}": tensor for name, tensor in theirs.state_dict().items()}
    shapes = {"0": (4096, 25088), "3": (4096, 4096), "6": (1000, 4096)}
    for place, shape in shapes.items():
        state[f"classifier.{place}.weight"] = torch.zeros(1).expand(shape)  # takes no room
        state[f"classifier.{place}.bias"] = torch.zeros(1).expand(shape[0])
    torch.save(state, tmp_path / "vgg19.pth")
    frames = random_frames(2, 224, 224)
    transform = torchvision.models.VGG19_Weights.IMAGENET1K_V1.transforms()
    pictures = [Image.fromarray(frame).resize((256, 256)) for frame in frames]
    assert isinstance(VGG19Torchvision.wants, FrameInput)
    cut = [center_crop(np.asarray(picture), 224) for picture in pictures]

    outputs = build_backbone("vgg19-tv", str(tmp_path / "vgg19.pth"), CPU).encode(cut)

    expected = theirs(torch.stack([transform(picture) for picture in pictures]))
    assert largest_difference(outputs, expected.permute(0, 2, 3, 1)) < 1e-5


def test_the_names_of_torchvision_are_those_of_its_whole_network() -> None:
    with torch.device("meta"):
        names = torchvision.models.vgg19(init_weights=False).state_dict()
        ours = build_network(keras_names=False).state_dict()

    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in names.items() if name.startswith("features.")
    }


@pytest.mark.parametrize("size", [(300, 400), (333, 290), (256, 341), (180, 240)])
def test_frames_are_prepared_as_torchvision_prepares_a_picture(size: tuple[int, int]) -> None:
    """No difference of the network's input; the bound allows for one rounding."""
    frame = random_frames(1, *size)[0]
    wants = VGG19Torchvision.wants
    assert isinstance(wants, FrameInput)
    cut = center_crop(resize(frame, wants.resize, wants.interpolation, "x"), wants.crop)
    transform = torchvision.models.VGG19_Weights.IMAGENET1K_V1.transforms()

    channels_first = torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None].float()
    ours = VGG19Torchvision._normalize(None, channels_first)[0]  # type: ignore[arg-type]

    torch.testing.assert_close(ours, transform(Image.fromarray(frame)), rtol=0, atol=1e-6)


# --- Keras -----------------------------------------------------------------------------------


def write_published_layout(path: Path, weights: dict[str, Array]) -> None:
    """Groups, names and attributes of the published file with the classifier."""
    with h5py.File(path, "w") as file:
        layers = ["input_1", *KERAS_CONVOLUTIONS, *(f"block{i}_pool" for i in range(1, 6))]
        layers += ["flatten", "fc1", "fc2", "predictions"]
        file.attrs["layer_names"] = np.array(layers, "S")
        for layer in layers:
            file.create_group(layer).attrs["weight_names"] = np.array([], "S")
        for layer in KERAS_CONVOLUTIONS:
            names = [f"{layer}_W_1:0", f"{layer}_b_1:0"]
            file[layer].attrs["weight_names"] = np.array(names, "S")
            file[f"{layer}/{names[0]}"] = weights[f"{layer} kernel"]
            file[f"{layer}/{names[1]}"] = weights[f"{layer} bias"]
        for layer in ("fc1", "fc2", "predictions"):
            file[f"{layer}/{layer}_W_1:0"] = np.zeros((2, 2), np.float32)
            file[f"{layer}/{layer}_b_1:0"] = np.zeros(2, np.float32)


def keras_weights_of(network: torch.nn.Module) -> dict[str, Array]:
    """Kernels as Keras has them, (kh, kw, in, out), of a network of torchvision."""
    weights = {}
    convolutions = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]  # type: ignore[attr-defined]
    for name, layer in zip(KERAS_CONVOLUTIONS, convolutions, strict=True):
        weights[f"{name} kernel"] = layer.weight.numpy().transpose(2, 3, 1, 0)
        weights[f"{name} bias"] = layer.bias.numpy()
    return weights


def prepare_like_keras(frames: Array) -> Array:
    """Keras's `preprocess_input` in caffe mode, (U, H, W, 3): the formula, pixel by pixel."""
    prepared = np.empty(frames.shape, np.float32)
    prepared[..., 0] = frames[..., 2] - np.float32(103.939)  # blue
    prepared[..., 1] = frames[..., 1] - np.float32(116.779)
    prepared[..., 2] = frames[..., 0] - np.float32(123.68)  # red
    return prepared


def test_vgg19_from_a_keras_file_gives_the_output_of_the_network_in_it(
    theirs: torch.nn.Module, tmp_path: Path
) -> None:
    """No difference on one machine; the bound allows for other kernels."""
    write_published_layout(tmp_path / "vgg19.h5", keras_weights_of(theirs))
    frames = random_frames(2, 224, 224)

    outputs = build_backbone("vgg19", str(tmp_path / "vgg19.h5"), CPU).encode(frames)

    expected = theirs(torch.from_numpy(prepare_like_keras(frames).transpose(0, 3, 1, 2)))
    assert np.stack(outputs).shape == (2, 7, 7, 512)
    assert largest_difference(outputs, expected.permute(0, 2, 3, 1)) < 1e-5


def convolve_like_keras(picture: Array, kernel: Array, bias: Array) -> Array:
    """`Conv2D(padding="same", activation="relu")` written out: (H, W, in) to (H, W, out)."""
    height, width, _ = picture.shape
    padded = np.pad(picture.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    output = np.zeros((height, width, kernel.shape[-1]))
    for y in range(height):
        for x in range(width):
            output[y, x] = bias
            for row in range(3):
                for column in range(3):
                    output[y, x] += padded[y + row, x + column] @ kernel[row, column]
    return np.maximum(output, 0)


def test_the_first_block_equals_kerass_convolution_written_as_a_loop(
    theirs: torch.nn.Module, tmp_path: Path
) -> None:
    """Largest difference 2.7e-7 of the largest value, of a loop in double precision."""
    weights = keras_weights_of(theirs)
    write_published_layout(tmp_path / "vgg19.h5", weights)
    frames = random_frames(1, 8, 10)
    backbone: Any = build_backbone("vgg19", str(tmp_path / "vgg19.h5"), CPU)
    prepared = backbone._normalize(torch.from_numpy(frames).permute(0, 3, 1, 2).float())

    ours = backbone._run.network[:5](prepared)[0].permute(1, 2, 0).numpy()

    expected = prepare_like_keras(frames)[0]
    for layer in ("block1_conv1", "block1_conv2"):
        kernel, bias = weights[f"{layer} kernel"], weights[f"{layer} bias"]
        expected = convolve_like_keras(expected, kernel, bias)
    expected = expected.reshape(4, 2, 5, 2, 64).max(axis=(1, 3))  # block1_pool
    assert largest_difference([ours], expected[None]) < 1e-5


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keras 3 on torch, which is not needed for anything else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        return importlib.import_module("keras")


def documented_conversion() -> str:
    """What the documentation says to type for other files of Keras."""
    page = (Path(__file__).parents[2] / "docs/backbones.md").read_text(encoding="utf-8")
    (code,) = (part for part in page.split("```") if "layer.get_weights()" in part)
    return code.removeprefix("python\n")


# Keras's variables lack an argument of NumPy 2, and NumPy does without it.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
def test_vgg19_gives_the_output_of_keras_itself_once_its_model_is_converted(
    keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras 3.15 on torch: no difference, in the network's input or output."""
    applications = keras.applications.vgg19
    model = applications.VGG19(weights=None, include_top=False, input_shape=(224, 224, 3))
    rng = np.random.default_rng(0)
    for layer in (layer for layer in model.layers if layer.weights):
        kernel, bias = layer.get_weights()
        scale = np.sqrt(2 / kernel[..., 0].size)
        layer.set_weights([rng.normal(0, scale, kernel.shape), rng.normal(0, 0.1, bias.shape)])
    model.save(tmp_path / "model.h5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.models, "load_model", lambda path: model)
    exec(documented_conversion(), {"keras": keras})
    frames = random_frames(2, 224, 224)
    prepared = applications.preprocess_input(frames.astype(np.float32))
    expected = model.predict(prepared, verbose=0)

    np.testing.assert_array_equal(prepared, prepare_like_keras(frames))
    outputs = build_backbone("vgg19", "vgg19.safetensors", CPU).encode(frames)
    assert largest_difference(outputs, expected) < 1e-5
    with pytest.raises(WeightsError, match="other files of Keras are converted first"):
        build_backbone("vgg19", "model.h5", CPU)


# --- the AVE data set's frames ---------------------------------------------------------------


def decode_all(path: Path) -> list[Array]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["AVVP-ECCV20__BjCEufrlXm4.mp4", "mmaction2__test.avi"])
@pytest.mark.parametrize("per_second", [8, 16])
def test_frames_of_real_clips_are_those_of_the_ave_script(
    name: str, per_second: int, shared: Path
) -> None:
    """The published arithmetic on every frame of the file: the very same pixels."""
    pictures = decode_all(shared / "media" / "real" / name)
    clip = Clip(clip_id="c", path=name)
    assert isinstance(VGG19.wants, FrameInput)
    wants = replace(VGG19.wants, fps=per_second)

    media = read(clip, wants, Reading(media_root=shared / "media" / "real"))

    interval = int(len(pictures) / media.steps)
    expected = []
    for second in range(media.steps):
        for i in range(per_second):
            picture = pictures[int(second * interval + (i * 1.0 / per_second) * interval)]
            expected.append(cv2.resize(picture, (224, 224)))
    np.testing.assert_array_equal(media.units, expected)


def test_a_whole_frame_gives_the_same_bits_alone_and_in_any_place_of_a_batch() -> None:
    """No difference."""
    frames = random_frames(3, 224, 224)
    backbone = build_backbone("vgg19", "random", Run(device="cpu", batch_size=3))

    forward, backward = backbone.encode(frames), backbone.encode(frames[::-1])

    assert all(np.array_equal(*pair) for pair in zip(forward, backward[::-1], strict=True))
    assert np.array_equal(backbone.encode(frames[1:2])[0], forward[1])
