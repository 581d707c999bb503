import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from extract.backbones import BACKBONES, build_backbone, find_backbone
from extract.backbones.base import Backbone, FlowInput, FrameInput, Media, WaveformInput
from extract.backbones.htsat import overlap_weights, pool_tokens, repeat_to_length
from extract.backbones.slowonly_network import SlowOnly as SlowOnlyNetwork
from extract.backbones.swin_v2 import frame_input
from extract.backbones.text import (
    HUB,
    average_pieces,
    group_by_word,
    name_features,
    spelling_tokenizer,
)
from micu.errors import ConfigError, DecodeError, RegistryError, WeightsError

PUBLIC = [n for n, kind in BACKBONES.items() if kind.__module__.startswith("extract.backbones.")]
"""Not those of tests, which register some of their own."""
DEMOS = [name for name in PUBLIC if name.endswith("-demo")]
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


def encode(backbone: Backbone, media: Media) -> Any:
    return backbone.to_steps(backbone.encode(media.units), media)


@pytest.fixture(scope="module", params=DEMOS)
def demo(request: pytest.FixtureRequest) -> Backbone:
    return build_backbone(request.param, "random", "cpu")


# --- every backbone --------------------------------------------------------------------------


def test_listing_backbones_does_not_load_torch_or_timm() -> None:
    code = (
        "import sys, extract.backbones as b\n"
        "rows = [(n, c.wants, c.gives, dict(c.OPTIONS)) for n, c in b.BACKBONES.items()]\n"
        "assert rows and not {'torch', 'timm', 'transformers', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_registered_names_are_the_public_ones() -> None:
    assert [
        *("htsat", "htsat-demo", "slowonly", "slowonly-demo"),
        *("swinv2", "swinv2-demo", "bert", "bert-demo"),
    ] == PUBLIC


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


def test_encoding_does_not_depend_on_the_batch(demo: Backbone) -> None:
    media = make_media(demo)
    units = [*media.units, *media.units[::-1]]

    together = demo.encode(units)

    for unit, output in zip(units, together, strict=True):
        np.testing.assert_allclose(demo.encode([unit])[0], output, atol=2e-5)


def test_a_seed_names_the_weights(demo: Backbone) -> None:
    name = demo.spec.backbone
    state = torch.random.get_rng_state()

    same = build_backbone(name, "random:0", "cpu")
    other = build_backbone(name, "random:1", "cpu")

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
        build_backbone(demo.spec.backbone, "pretrained", "cpu")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_option_has_the_default_that_its_constructor_has(name: str) -> None:
    backbone = find_backbone(name)
    defaults = backbone.__init__.__kwdefaults__

    assert {key: option.default for key, option in backbone.OPTIONS.items()} == {
        key: value for key, value in defaults.items() if key in backbone.OPTIONS
    }
    # A clip has one sentence, so that a batch of them would be an option without effect.
    assert ("batch_size" in backbone.OPTIONS) == (backbone.gives.modality != "text")


def test_an_unknown_backbone_is_answered_with_the_closest_name() -> None:
    with pytest.raises(RegistryError, match="did you mean 'swinv2'"):
        build_backbone("swin_v2", "random", "cpu")
    with pytest.raises(RegistryError, match="did you mean 'resnet18'"):
        build_backbone("timm:resnet_18", "random", "cpu")


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone("htsat-demo", "random", "cpu", batch_sizes=3, batch_size="2")

    assert "did you mean 'batch_size'" in str(caught.value)
    assert "batch_size: expected int, got '2'" in str(caught.value)
    with pytest.raises(ConfigError, match="max_words: expected at least 1, got 0"):
        build_backbone("bert-demo", "random", "cpu", max_words=0)


def test_an_option_that_is_none_is_left_at_its_default() -> None:
    assert (
        build_backbone("bert-demo", "random", "cpu", max_words=None).spec.preprocessing["max_words"]
        == 10
    )


def test_a_device_that_is_not_there_is_an_error() -> None:
    for name in DEMOS:
        with pytest.raises(ConfigError, match="--device: expected auto, cpu, cuda, cuda:N or mps"):
            build_backbone(name, "random", "gpu")


# --- video -----------------------------------------------------------------------------------


def test_frames_per_second_reach_the_decoder() -> None:
    backbone = build_backbone("swinv2-demo", "random", "cpu", frames_per_second=5)

    assert isinstance(backbone.wants, FrameInput)
    assert backbone.wants.fps == 5
    assert backbone.spec.preprocessing["input"]["fps"] == 5


def test_a_second_is_the_mean_of_its_frames() -> None:
    backbone = build_backbone("swinv2-demo", "random", "cpu")
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


# --- audio -----------------------------------------------------------------------------------


def test_tokens_count_by_how_much_of_them_lies_in_the_second() -> None:
    np.testing.assert_allclose(overlap_weights(4, 0.0, 1.0, 4.0), [1, 0, 0, 0])
    np.testing.assert_allclose(overlap_weights(4, 0.5, 2.0, 4.0), [1 / 3, 2 / 3, 0, 0])
    np.testing.assert_allclose(overlap_weights(3, 0.0, 2.0, 6.0), [1, 0, 0])


def test_a_short_window_is_filled_with_whole_repeats_and_zeros() -> None:
    window = np.array([1, 2, 3], np.float32)

    np.testing.assert_array_equal(repeat_to_length(window, 8), [1, 2, 3, 1, 2, 3, 0, 0])
    np.testing.assert_array_equal(repeat_to_length(window, 2), [1, 2])


def test_the_steps_of_a_long_clip_come_from_their_own_windows() -> None:
    first, second = np.full((32, 2), 1.0, np.float32), np.full((32, 2), 2.0, np.float32)
    media = Media([], np.array([5.0, 11.2]), 12.4, 15)

    steps = pool_tokens([first, second], media, 10.0, 10.01)

    np.testing.assert_allclose(steps.values[:10], 1.0)
    np.testing.assert_allclose(steps.values[10:13], 2.0)
    np.testing.assert_array_equal(steps.mask, [True] * 13 + [False] * 2)
    assert not steps.values[13:].any()


def test_a_second_that_ends_early_takes_only_the_tokens_it_has() -> None:
    tokens = np.arange(40, dtype=np.float32)[:, None]  # a quarter of a second each

    steps = pool_tokens([tokens], Media([], np.array([0.75]), 1.5, 2), 10.0, 10.0)

    np.testing.assert_allclose(steps.values[:, 0], [1.5, 4.5])


@pytest.mark.parametrize(("duration_s", "real"), [(2.05, [True, True, False]), (0.04, [True])])
def test_a_remainder_of_less_than_a_tenth_is_no_step(duration_s: float, real: list[bool]) -> None:
    tokens = np.ones((40, 1), np.float32)
    media = Media([], np.array([0.5]), duration_s, len(real))

    assert pool_tokens([tokens], media, 10.0, 10.0).mask.tolist() == real


# --- flow ------------------------------------------------------------------------------------


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


# --- text ------------------------------------------------------------------------------------


def test_words_are_the_means_of_their_pieces_without_the_special_tokens() -> None:
    words = group_by_word([None, 0, 1, 1, 2, None, None])
    hidden = np.arange(7, dtype=np.float32)[:, None]

    assert words == [[1], [2, 3], [4]]
    np.testing.assert_array_equal(average_pieces(hidden, words)[:, 0], [1, 2.5, 4])


def test_only_the_first_words_are_kept() -> None:
    backbone = build_backbone("bert-demo", "random", "cpu", max_words=3)

    few, many = backbone.encode(["One two", "one two three four five"])

    assert (len(few), len(many)) == (2, 3)


def test_a_word_does_not_depend_on_longer_sentences_in_its_batch() -> None:
    backbone = build_backbone("bert-demo", "random", "cpu")

    alone = backbone.encode(["a cat"])[0]
    beside = backbone.encode(["a cat", "a very much longer sentence about many cats"])[0]

    np.testing.assert_allclose(alone, beside, atol=1e-5)


def test_a_sentence_without_words_is_a_failure_of_its_own_clip() -> None:
    backbone = build_backbone("bert-demo", "random", "cpu")
    media = Media(["\u200b"], np.zeros(0), 0.0, 1)

    with pytest.raises(DecodeError, match="no word") as caught:
        encode(backbone, media)

    assert caught.value.code == "no_text"


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A text encoder of transformers, as a directory."""
    folder = tmp_path / "my-encoder"
    settings = dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size"), 8)
    config = BertConfig(vocab_size=256, num_hidden_layers=1, **settings)
    BertModel(config).save_pretrained(folder)
    spelling_tokenizer().save_pretrained(folder)
    return folder


def test_features_of_another_text_encoder_have_a_name_of_their_own(encoder_folder: Path) -> None:
    backbone = build_backbone("bert", "pretrained", "cpu", model=f"{encoder_folder}/")

    assert backbone.spec.backbone == "bert:my-encoder"
    assert encode(backbone, make_media(backbone)).values.shape == (7, 8)
    assert name_features("bert", "FacebookAI/roberta-base") == "bert:FacebookAI/roberta-base"
    assert name_features("bert", HUB) == "bert"


def test_an_encoder_without_a_vocabulary_is_refused(encoder_folder: Path) -> None:
    for path in encoder_folder.glob("tokenizer*"):
        path.unlink()

    with pytest.raises(WeightsError, match="no vocabulary"):
        build_backbone("bert", "pretrained", "cpu", model=str(encoder_folder))


def test_the_spelling_tokenizer_has_a_piece_for_every_character() -> None:
    tokenizer = spelling_tokenizer()

    assert tokenizer.tokenize("Dog, 2!") == ["d", "##o", "##g", ",", "2", "!"]
    assert tokenizer.tokenize("犬") == ["[UNK]"]
    assert tokenizer("a").input_ids[0] == tokenizer.cls_token_id
