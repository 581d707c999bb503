"""SlowOnly beside pytorchvideo's network, with random weights in the layout of mmaction2 0.x."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from micu.base.errors import WeightsError
from micu_extract.backbones import build_backbone
from micu_extract.backbones import torch_backbone as module
from micu_extract.backbones.base import Media, Run
from micu_extract.backbones.slowonly import SlowOnly, SlowOnlyDemo
from micu_extract.backbones.slowonly_network import SlowOnlyNetwork

CPU = Run(device="cpu")
DEPTHS = (3, 4, 6, 3)
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


# --- the published layout --------------------------------------------------------------------


def published_convolutions(width: int = 64) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every convolution of the checkpoint, without `backbone.`."""
    yield "conv1", (width, 2, 1, 7, 7)
    inputs = width
    for stage, depth in enumerate(DEPTHS):
        narrow = width * 2**stage
        time = 1 if stage < 2 else 3
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            yield f"{name}.conv1", (narrow, inputs, time, 1, 1)
            yield f"{name}.conv2", (narrow, narrow, 1, 3, 3)
            yield f"{name}.conv3", (4 * narrow, narrow, 1, 1, 1)
            if block == 0:
                yield f"{name}.downsample", (4 * narrow, inputs, 1, 1, 1)
            inputs = 4 * narrow


def published_shapes(width: int = 64) -> dict[str, tuple[int, ...]]:
    """Every tensor of `slowonly_r50_8x8x1_256e_kinetics400_flow`, with its shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, kernel in published_convolutions(width):
        shapes[f"backbone.{name}.conv.weight"] = kernel
        for leaf in NORM:
            shape = () if leaf == "num_batches_tracked" else kernel[:1]
            shapes[f"backbone.{name}.bn.{leaf}"] = shape
    shapes["cls_head.fc_cls.weight"] = (400, 32 * width)
    shapes["cls_head.fc_cls.bias"] = (400,)
    return shapes


def draw_checkpoint(width: int = 64) -> dict[str, torch.Tensor]:
    """Every tensor of the file, drawn so that each of them shows and the output is about one."""
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if name.endswith(("bn.weight", "running_var")):
            # Each block adds to its input.
            scale = 0.3 if name.endswith("conv3.bn.weight") else 1.0
            return scale * (torch.rand(shape, generator=generator) + 0.5)
        drawn = torch.randn(shape, generator=generator)
        return drawn * ((2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1)

    return {name: draw(name, shape) for name, shape in published_shapes(width).items()}


def test_the_network_has_the_tensors_of_the_published_file() -> None:
    """318 in the backbone; the two of the classifier are left out."""
    with torch.device("meta"):
        own = {f"backbone.{n}": tuple(t.shape) for n, t in SlowOnlyNetwork().state_dict().items()}

    published = published_shapes()
    classifier = {name for name in published if name.startswith("cls_head.")}
    assert own == {name: shape for name, shape in published.items() if name not in classifier}
    assert len(own) == 53 * (1 + len(NORM)) == 318


# --- the network -----------------------------------------------------------------------------


def build_pytorchvideo() -> torch.nn.Module:
    """SlowOnly-R50 on two channels, without its head."""
    with warnings.catch_warnings():
        # fvcore, which pytorchvideo imports, still uses torch.jit.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        from pytorchvideo.models.resnet import create_resnet
    return create_resnet(
        input_channel=2,
        model_depth=50,
        stem_dim_out=64,
        stem_conv_kernel_size=(1, 7, 7),
        stem_conv_stride=(1, 2, 2),
        stem_pool_kernel_size=(1, 3, 3),
        stem_pool_stride=(1, 2, 2),
        stage1_pool=None,
        stage_conv_a_kernel_size=((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1)),
        stage_conv_b_kernel_size=((1, 3, 3),) * 4,
        stage_spatial_h_stride=(1, 2, 2, 2),
        stage_spatial_w_stride=(1, 2, 2, 2),
        stage_temporal_stride=(1, 1, 1, 1),
        head=None,
    )


def name_in_pytorchvideo(name: str) -> str:
    """From a name of mmaction2, without `backbone.`."""
    where, part, leaf = name.rsplit(".", 2)
    if where == "conv1":
        return f"blocks.0.{'conv' if part == 'conv' else 'norm'}.{leaf}"
    layer, block, unit = where.split(".")
    home = f"blocks.{layer.removeprefix('layer')}.res_blocks.{block}"
    if unit == "downsample":
        return f"{home}.branch1_{'conv' if part == 'conv' else 'norm'}.{leaf}"
    letter = {"conv1": "a", "conv2": "b", "conv3": "c"}[unit]
    return f"{home}.branch2.{'conv' if part == 'conv' else 'norm'}_{letter}.{leaf}"


def test_a_published_file_gives_the_output_of_pytorchvideo(tmp_path: Path) -> None:
    """At full width, two clips of 8 fields. Largest difference: 6.7e-6 of at most 21."""
    state = draw_checkpoint()
    torch.save({"meta": {"epoch": 256}, "state_dict": state}, tmp_path / "slowonly.pth")
    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 64, 64, 2), dtype=np.uint8)

    ours = build_backbone("slowonly", str(tmp_path / "slowonly.pth"), CPU)
    output = np.stack(ours.encode(clips))

    theirs = build_pytorchvideo().eval()
    names = {n: n.removeprefix("backbone.") for n in state if n.startswith("backbone.")}
    theirs.load_state_dict({name_in_pytorchvideo(names[n]): state[n] for n in names})
    # Normalised as the recogniser's pipeline does, in its order of axes: channels, time, space.
    x = (torch.from_numpy(clips).double().movedim(4, 1) - 128) / 128
    with torch.inference_mode():
        maps = theirs(x.float())
    assert maps.shape == (2, 2048, 8, 2, 2)
    expected = maps.mean(dim=(2, 3, 4)).numpy()
    np.testing.assert_allclose(output, expected, atol=1e-4)
    assert np.abs(expected).mean() > 0.1
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_x_comes_before_y() -> None:
    """The first channel of the clip meets the first channel of the kernels."""
    backbone: Any = build_backbone("slowonly-demo", "random", CPU)
    backbone._run.network.conv1.conv.weight.data[:, 1] = 0
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (2, 32, 32, 2), dtype=np.uint8)
    other_y, other_x = clip.copy(), clip.copy()
    other_y[..., 1] = rng.integers(0, 256, (2, 32, 32), dtype=np.uint8)
    other_x[..., 0] = rng.integers(0, 256, (2, 32, 32), dtype=np.uint8)

    first, with_other_y, with_other_x = backbone.encode([clip, other_y, other_x])

    np.testing.assert_array_equal(first, with_other_y)
    assert np.abs(first - with_other_x).max() > 1e-3


def test_a_still_field_is_zero_to_the_network() -> None:
    backbone: Any = build_backbone("slowonly-demo", "random", CPU)

    still = backbone.encode([np.full((2, 48, 48, 2), 128, np.uint8)])[0]

    with torch.inference_mode():
        expected = backbone._run.network(torch.zeros(1, 2, 2, 48, 48))[0].numpy()
    np.testing.assert_allclose(still, expected, atol=1e-6)


def test_each_second_has_the_clip_around_it() -> None:
    backbone = build_backbone("slowonly-demo", "random", CPU)
    outputs = [np.full(128, value, np.float32) for value in (1, 2, 3)]
    media = Media(np.zeros(0, np.uint8), np.array([0.5, 1.5, 2.5]), 3.0, 3)

    steps = backbone.to_steps(outputs, media)

    np.testing.assert_array_equal(steps.values[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(steps.times_s, [0.5, 1.5, 2.5])


# --- what is refused -------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A checkpoint with every name of the published one, and few numbers."""
    network = SlowOnlyNetwork(width=2)
    monkeypatch.setattr(SlowOnly, "_draw", lambda self: network)
    return draw_checkpoint(width=2)


def load(state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a file, which is read only once."""
    monkeypatch.setattr(module, "read_state", lambda path: state)
    build_backbone("slowonly", __file__, CPU)


def test_any_single_missing_tensor_is_an_error(
    narrow: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(narrow, monkeypatch)
    needed = [name for name in narrow if name.startswith("backbone.")]
    assert len(needed) == 318

    for name in needed:
        with pytest.raises(WeightsError, match=f"{name.removeprefix('backbone.')} missing"):
            load({n: t for n, t in narrow.items() if n != name}, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "backbone.pool2.weight",
        "backbone.layer5.0.conv1.conv.weight",
        "backbone.layer1.1.downsample.conv.weight",
        "backbone.conv1.conv.bias",
        "cls_head.fc_cls2.weight",
        "neck.weight",
        "conv1.conv.weight",
    ],
)
def test_any_further_tensor_is_an_error(
    name: str, narrow: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="not expected"):
        load({**narrow, name: torch.zeros(1)}, monkeypatch)


def test_a_network_for_pictures_is_refused(
    narrow: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has three channels."""
    with pytest.raises(WeightsError, match=r"conv1\.conv\.weight \(2, 3, 1, 7, 7\) instead of"):
        load({**narrow, "backbone.conv1.conv.weight": torch.zeros(2, 3, 1, 7, 7)}, monkeypatch)


def test_a_file_of_the_network_alone_is_the_same_weights(
    narrow: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    body = {n.removeprefix("backbone."): t for n, t in narrow.items() if n.startswith("backbone.")}
    torch.save({"state_dict": narrow}, tmp_path / "whole.pth")
    torch.save(body, tmp_path / "body.pth")

    whole, alone = (
        build_backbone("slowonly", str(tmp_path / name), CPU).spec
        for name in ("whole.pth", "body.pth")
    )

    assert whole.weights_sha256 == alone.weights_sha256
    assert whole.weights == "whole.pth"


def test_a_checkpoint_that_holds_objects_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": Path("/")}}, tmp_path / "bad.pth")

    with pytest.raises(WeightsError, match="loading it could run code"):
        build_backbone("slowonly", str(tmp_path / "bad.pth"), CPU)


def test_the_demo_is_the_same_network_made_small() -> None:
    with torch.device("meta"):
        small = SlowOnlyNetwork(SlowOnlyDemo.WIDTH, SlowOnlyDemo.DEPTHS).state_dict()
        whole = SlowOnlyNetwork().state_dict()

    assert small.keys() < whole.keys()
