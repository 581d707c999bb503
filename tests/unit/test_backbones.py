import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import pytest
import torch

from micu.base.errors import ConfigError, RegistryError, WeightsError
from micu_extract.backbones import BACKBONES, build_backbone, find_backbone
from micu_extract.backbones.base import (
    Backbone,
    FlowInput,
    FrameInput,
    Media,
    Precision,
    Run,
    WaveformInput,
)
from micu_extract.backbones.slowonly_network import SlowOnlyNetwork
from micu_extract.backbones.timm_image import frame_input

CPU = Run(device="cpu")
PUBLIC = [
    n for n, kind in BACKBONES.items() if kind.__module__.startswith("micu_extract.backbones.")
]
"""Not those of tests, which register some of their own."""
DEMOS = [name for name in PUBLIC if name.endswith("-demo")]
REAL = [name for name in PUBLIC if not name.endswith("-demo")]
SECONDS = 3


def make_media(backbone: Backbone | type[Backbone]) -> Media:
    """Three seconds of noise, cut up as the backbone wants it."""
    rng, wants, steps = np.random.default_rng(5), backbone.wants, SECONDS
    if isinstance(wants, FrameInput):
        count = steps * wants.fps
        frames = rng.integers(0, 256, (count, wants.crop, wants.crop, 3), dtype=np.uint8)
        return Media(frames, (np.arange(count) + 0.5) / wants.fps, steps, steps)
    if isinstance(wants, FlowInput):
        shape = (steps, wants.clip_len, wants.crop, wants.crop, 2)
        return Media(
            rng.integers(0, 256, shape, dtype=np.uint8), np.arange(steps) + 0.5, steps, steps
        )
    if isinstance(wants, WaveformInput):
        window = rng.normal(0, 0.1, steps * wants.sample_rate).astype(np.float32)
        return Media([window], np.array([steps / 2]), steps, steps)
    return Media(["a dog barks at the passing car"], np.zeros(0), 0.0, 1)


def two_units(backbone: Backbone) -> list[Any]:
    """Two units of noise, or two sentences."""
    rng, wants = np.random.default_rng(5), backbone.wants
    if isinstance(wants, FrameInput):
        return list(rng.integers(0, 256, (2, wants.crop, wants.crop, 3), dtype=np.uint8))
    if isinstance(wants, FlowInput):
        shape = (2, wants.clip_len, wants.crop, wants.crop, 2)
        return list(rng.integers(0, 256, shape, dtype=np.uint8))
    if isinstance(wants, WaveformInput):
        size = round(wants.window_s * wants.sample_rate)
        return list(rng.normal(0, 0.1, (2, size)).astype(np.float32))
    return ["a dog barks at the passing car", "rain"]


def encode(backbone: Backbone, media: Media) -> Any:
    return backbone.to_steps(backbone.encode(media.units), media)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """Distance over length."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module", params=DEMOS)
def demo(request: pytest.FixtureRequest) -> Backbone:
    return build_backbone(request.param, "random", CPU)


# --- every backbone --------------------------------------------------------------------------


def test_listing_backbones_does_not_load_torch_or_timm() -> None:
    code = (
        "import sys, micu_extract.backbones as b\n"
        "rows = [(n, c.wants, c.gives, dict(c.OPTIONS)) for n, c in b.BACKBONES.items()]\n"
        "assert rows and not {'torch', 'timm', 'transformers', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_steps_have_the_shape_that_the_class_announces(demo: Backbone) -> None:
    steps = encode(demo, make_media(demo))

    count = len(steps.values)
    assert count == (SECONDS if demo.gives.hop_s else 7)
    assert steps.values.shape[1:] == type(demo).gives.shape == demo.spec.shape
    assert steps.values.dtype == np.float32
    assert steps.mask.dtype == np.bool_
    assert steps.mask.all()
    centres = np.arange(count) + 0.5 if demo.gives.hop_s else np.full(count, np.nan)
    np.testing.assert_array_equal(steps.times_s, centres)


def test_encoding_twice_gives_the_same_bits(demo: Backbone) -> None:
    media = make_media(demo)

    first, second = encode(demo, media), encode(demo, media)

    assert first.values.tobytes() == second.values.tobytes()


def test_an_output_does_not_depend_on_what_is_encoded_with_it(demo: Backbone) -> None:
    """Bit for bit: alone, in a batch, in another place of it, beside other units."""
    media = make_media(demo)
    units = [*media.units, *media.units[::-1]]

    together = demo.encode(units)

    alone = [demo.encode([unit])[0] for unit in units]
    moved = demo.encode([units[-1], *units])[1:]
    for output, by_itself, elsewhere in zip(together, alone, moved, strict=True):
        assert output.tobytes() == by_itself.tobytes() == elsewhere.tobytes()


@pytest.mark.parametrize("name", REAL)
def test_an_output_of_a_whole_network_does_not_depend_on_its_batch(name: str) -> None:
    """Bit for bit, full size, random weights."""
    backbone = build_backbone(name, "random", Run(device="cpu", batch_size=2))
    first, second = two_units(backbone)

    # A batch, and one that is not full: the second unit is in another place, beside another one.
    other, together, alone = backbone.encode([first, second, second])

    assert together.tobytes() == alone.tobytes() != other.tobytes()


def test_the_size_of_the_batch_changes_no_feature(demo: Backbone) -> None:
    """Largest relative difference met: 3e-7."""
    media = make_media(demo)
    other = build_backbone(demo.spec.backbone, "random", Run(device="cpu", batch_size=3))

    expected, got = encode(demo, media).values, encode(other, media).values

    assert other.batch_size == 3 != demo.batch_size
    assert other.spec == demo.spec
    assert relative(got, expected) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_says_so(demo: Backbone, precision: Precision) -> None:
    media = make_media(demo)
    half = build_backbone(demo.spec.backbone, "random", Run(device="cpu", precision=precision))

    expected, got = encode(demo, media).values, encode(half, media).values

    assert half.spec.preprocessing["precision"] == precision
    assert half.spec.weights_sha256 == demo.spec.weights_sha256
    assert 0 < relative(got, expected) < 0.1
    assert got.dtype == np.float32


def test_a_seed_names_the_weights(demo: Backbone) -> None:
    name = demo.spec.backbone
    state = torch.random.get_rng_state()

    same = build_backbone(name, "random:0", CPU)
    other = build_backbone(name, "random:1", CPU)

    assert same.spec == demo.spec
    assert demo.spec.weights == "random:0"
    assert other.spec.weights == "random:1"
    assert other.spec.weights_sha256 != demo.spec.weights_sha256
    assert torch.equal(torch.random.get_rng_state(), state)
    media = make_media(demo)
    assert encode(same, media).values.tobytes() == encode(demo, media).values.tobytes()


def test_the_spec_says_what_made_the_features(demo: Backbone) -> None:
    spec = demo.spec

    assert (spec.modality, spec.hop_s) == (demo.gives.modality, demo.gives.hop_s)
    assert spec.preprocessing["input"]["kind"] == demo.wants.kind
    assert spec.preprocessing["precision"] == "float32"
    assert "batch_size" not in spec.preprocessing
    assert spec.versions["torch"]


def test_the_class_and_the_instance_agree(demo: Backbone) -> None:
    assert demo.wants == type(demo).wants
    assert demo.gives == type(demo).gives


def test_a_demo_backbone_refuses_weights_that_do_not_exist(demo: Backbone) -> None:
    with pytest.raises(WeightsError, match="--weights random"):
        build_backbone(demo.spec.backbone, "pretrained", CPU)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_default_of_every_option_is_a_value_that_it_takes(name: str) -> None:
    for option in find_backbone(name).OPTIONS.values():
        assert type(option.default) is option.type
        assert not option.choices or option.default in option.choices


def test_an_unknown_backbone_is_answered_with_the_closest_name() -> None:
    with pytest.raises(RegistryError, match="did you mean 'swinv2'"):
        build_backbone("swin_v2", "random", CPU)
    with pytest.raises(RegistryError, match="did you mean 'resnet18'"):
        build_backbone("timm:resnet_18", "random", CPU)


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_an_unknown_tag_of_timm_is_answered_with_the_tags_of_its_model(weights: str) -> None:
    with pytest.raises(RegistryError) as caught:
        build_backbone("timm:resnet18.nosuch", weights, CPU)

    message = str(caught.value)
    assert message.startswith("unknown weights 'nosuch' of timm model 'resnet18'; known: a1_in1k, ")
    assert "tv_in1k" in message
    assert message.endswith("timm:resnet18 takes timm's default")


def test_a_backbones_file_can_go_without_taking_other_backbones_along() -> None:
    """An empty module stands for the file that its import line names."""
    code = (
        "import sys, types\n"
        "sys.modules['micu_extract.backbones.swin_v2'] = types.ModuleType('swin_v2')\n"
        "import micu_extract.cli, micu_extract.backbones as b\n"
        "assert 'timm:NAME' in micu_extract.cli.backbone_table()\n"
        "assert b.find_backbone('timm:x') and 'swinv2' not in b.BACKBONES"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone("bert-demo", "random", CPU, max_word=3, max_words="2")

    assert "did you mean 'max_words'" in str(caught.value)
    assert "max_words: expected int, got '2'" in str(caught.value)
    with pytest.raises(ConfigError, match="max_words: expected at least 1, got 0"):
        build_backbone("bert-demo", "random", CPU, max_words=0)


def test_an_option_that_is_none_is_left_at_its_default() -> None:
    assert (
        build_backbone("bert-demo", "random", CPU, max_words=None).spec.preprocessing["max_words"]
        == 10
    )


def test_a_device_that_is_not_there_is_an_error() -> None:
    for name in DEMOS:
        with pytest.raises(ConfigError, match="--device: expected auto, cpu, cuda, cuda:N or mps"):
            build_backbone(name, "random", Run(device="gpu"))


# --- video -----------------------------------------------------------------------------------


def test_frames_per_second_reach_the_decoder() -> None:
    backbone = build_backbone("swinv2-demo", "random", CPU, frames_per_second=5)

    assert isinstance(backbone.wants, FrameInput)
    assert backbone.wants.fps == 5
    assert backbone.spec.preprocessing["input"]["fps"] == 5


def test_a_second_is_the_mean_of_its_frames() -> None:
    backbone = build_backbone("swinv2-demo", "random", CPU)
    media = make_media(backbone)

    outputs = backbone.encode(media.units)

    expected = (outputs[2].astype(np.float64) + outputs[3]) / 2
    np.testing.assert_allclose(backbone.to_steps(outputs, media).values[1], expected, rtol=1e-6)


def test_squashing_transforms_ask_for_an_exact_size() -> None:
    transform = {
        "input_size": (3, 224, 224),
        "crop_pct": 0.95,
        "crop_mode": "squash",
        "interpolation": "bilinear",
    }

    assert frame_input("x", transform, 2) == FrameInput(
        fps=2, resize=(235, 235), crop=224, interpolation="bilinear"
    )
    with pytest.raises(ConfigError, match="square centre crop"):
        frame_input("x", {**transform, "crop_mode": "border"}, 2)


# --- flow ------------------------------------------------------------------------------------


def test_the_header_of_flow_features_names_the_opencv_that_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Either package: they hold the same code, one with windows and one without."""
    found = {"torch": "1", "opencv-contrib-python": "2", "pillow": "3"}

    def version(package: str) -> str:
        if package not in found:
            raise PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr("micu_extract.backbones.base.version", version)
    for name in ("slowonly-demo", "vgg19"):
        spec = build_backbone(name, "random", CPU).spec
        assert spec.versions == {"torch": "1", "opencv-contrib-python": "2"}


def test_slowonly_r50_has_the_published_tensors() -> None:
    with torch.device("meta"):
        state = SlowOnlyNetwork().state_dict()

    assert state["conv1.conv.weight"].shape == (64, 2, 1, 7, 7)
    assert state["layer2.0.conv1.conv.weight"].shape == (128, 256, 1, 1, 1)
    assert state["layer3.5.conv1.conv.weight"].shape == (256, 1024, 3, 1, 1)
    assert state["layer4.0.downsample.conv.weight"].shape == (2048, 1024, 1, 1, 1)
    assert state["layer4.2.conv3.bn.running_var"].shape == (2048,)

    # torchvision's ResNet-50 without classifier, one input channel less, and two more temporal
    # taps in each first convolution of the last two stages.
    taps = 2 * (256 * (512 + 5 * 1024) + 512 * (1024 + 2 * 2048))
    buffers = sum(value.numel() for name, value in state.items() if "running" in name)
    counters = sum("num_batches" in name for name in state)
    total = sum(value.numel() for value in state.values())
    assert total - buffers - counters == 25_557_032 - 2_049_000 - 64 * 49 + taps
