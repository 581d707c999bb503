"""Our networks and front ends beside the ones they restate, with small random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from transformers import (
    BertConfig,
    BertModel,
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
)

from extract.backbones import build_backbone
from extract.backbones.base import FrameInput, Media
from extract.backbones.htsat import FRONT_END, HTSAT, HTSATDemo, build_front_end
from extract.backbones.slowonly import SlowOnly, SlowOnlyDemo
from extract.backbones.slowonly_network import SlowOnly as SlowOnlyNetwork
from extract.backbones.swin_v2 import SwinV2, frame_input
from extract.backbones.text import spelling_tokenizer
from micu.errors import WeightsError


def randomize(network: torch.nn.Module, seed: int = 0) -> None:
    """Draw norms too, so that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


# --- video -----------------------------------------------------------------------------------


def prepare_with_timm(frame: np.ndarray, transform: dict[str, Any]) -> torch.Tensor:
    tensor = timm.data.create_transform(**transform, is_training=False)(Image.fromarray(frame))
    assert isinstance(tensor, torch.Tensor)
    return tensor


def cut_like_the_decoder(frame: np.ndarray, wants: FrameInput) -> np.ndarray:
    mode = torchvision.transforms.InterpolationMode(wants.interpolation)
    image = torchvision.transforms.Resize(wants.resize, mode)(Image.fromarray(frame))
    return np.asarray(torchvision.transforms.CenterCrop(wants.crop)(image))


def test_swinv2_asks_for_the_frames_of_its_own_pretrained_configuration() -> None:
    config = timm.get_pretrained_cfg(SwinV2.MODEL)
    transform = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())

    assert frame_input("swinv2", transform, 16) == SwinV2.wants


@pytest.mark.parametrize("size", [(300, 400), (333, 290)])
def test_frames_are_prepared_as_timm_prepares_a_picture(size: tuple[int, int]) -> None:
    config = timm.get_pretrained_cfg(SwinV2.MODEL)
    transform = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    backbone: Any = build_backbone("timm:test_vit", "random", "cpu")
    backbone._mean = torch.tensor(transform["mean"]).view(1, 3, 1, 1)
    backbone._std = torch.tensor(transform["std"]).view(1, 3, 1, 1)
    assert isinstance(SwinV2.wants, FrameInput)

    ours = backbone._normalize([cut_like_the_decoder(frame, SwinV2.wants)])[0]

    torch.testing.assert_close(ours, prepare_with_timm(frame, transform))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_a_timm_model_gives_its_own_pooled_output(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model(name, pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    transform = timm.data.resolve_model_data_config(theirs)
    frame = np.random.default_rng(0).integers(0, 256, (180, 200, 3), dtype=np.uint8)

    ours = build_backbone(f"timm:{name}", str(tmp_path), "cpu", frames_per_second=2)
    assert isinstance(ours.wants, FrameInput)
    output = ours.encode([cut_like_the_decoder(frame, ours.wants)])[0]

    with torch.inference_mode():
        features = theirs.forward_features(prepare_with_timm(frame, transform)[None])
        expected = theirs.forward_head(features, pre_logits=True)[0]
    assert ours.spec.shape == output.shape
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-5, rtol=1e-4)


def test_every_format_of_the_same_weights_has_the_same_digest(tmp_path: Path) -> None:
    drawn: Any = build_backbone("timm:test_vit", "random:3", "cpu")
    state = drawn._network.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state}, tmp_path / "b.pth")

    loaded = [
        build_backbone("timm:test_vit", str(tmp_path / name), "cpu").spec
        for name in ("a.safetensors", "b.pth")
    ]

    assert {spec.weights_sha256 for spec in loaded} == {drawn.spec.weights_sha256}
    assert [spec.weights for spec in loaded] == ["a.safetensors", "b.pth"]


def test_weights_of_another_timm_model_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")

    with pytest.raises(WeightsError, match="missing"):
        build_backbone("timm:test_vit", str(tmp_path / "w.safetensors"), "cpu")


# --- audio -----------------------------------------------------------------------------------


def test_the_front_end_is_that_of_laion_clap() -> None:
    rng = np.random.default_rng(0)
    sound = (0.2 * rng.normal(size=480_000)).astype(np.float32)
    sound[100_000:200_000] += np.sin(np.arange(100_000) * 0.06).astype(np.float32)
    extractor = ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)

    theirs = extractor(sound, sampling_rate=48_000, return_tensors="pt").input_features[0, 0]
    ours = build_front_end(FRONT_END)(torch.from_numpy(sound)).T

    assert ours.shape == theirs.shape == (1001, 64)
    torch.testing.assert_close(ours, theirs.float(), atol=2e-3, rtol=0)


def test_tokens_are_the_network_s_own_and_in_the_order_of_time() -> None:
    backbone: Any = build_backbone("htsat-demo", "random", "cpu")
    window = np.random.default_rng(0).normal(0, 0.1, 64_000).astype(np.float32)
    late = window.copy()
    late[48_000:] = 0.0

    tokens, changed = backbone.encode([window, late])

    x = backbone._front_end(torch.from_numpy(window))[None, None].transpose(2, 3)
    with torch.inference_mode():
        pooled = backbone._network(input_features=x).pooler_output[0].numpy()
    np.testing.assert_allclose(tokens.mean(axis=0), pooled, atol=1e-5)
    moved = np.abs(changed - tokens).mean(axis=1)
    assert moved[24:].min() > 2 * moved[:20].max()


def test_seconds_are_tokens_averaged_by_overlap_in_a_plain_loop() -> None:
    backbone = build_backbone("htsat-demo", "random", "cpu")
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(32, 128)).astype(np.float32) for _ in range(2)]
    media = Media([], np.array([2.0, 6.0]), 7.0, 7)

    steps = backbone.to_steps(tokens, media)

    # 401 frames of 10 ms are shared by 32 tokens: walk over them in steps of 0.1 ms.
    for second in range(7):
        window, start = divmod(second, 4)
        ticks = (np.arange(10_000) + 0.5) * 1e-4 + start
        owner = (ticks / 4.01 * 32).astype(int)
        expected = tokens[window][owner].mean(axis=0)
        np.testing.assert_allclose(steps.values[second], expected, atol=1e-3)


SMALL_CLAP = {**HTSATDemo.CONFIG, "num_mel_bins": 64, "spec_size": 256, "depths": [1, 1, 1]}


@pytest.fixture
def clap(tmp_path: Path) -> tuple[Path, ClapModel]:
    """A small CLAP, saved as a directory of transformers."""
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    torch.manual_seed(0)
    config = ClapConfig(
        text_config={**text, "intermediate_size": 8, "projection_hidden_act": "relu"},
        audio_config={**SMALL_CLAP, "projection_hidden_act": "relu"},
    )
    model = ClapModel(config).eval()
    model.save_pretrained(tmp_path / "clap")
    return tmp_path / "clap", model


def test_a_clap_directory_gives_its_audio_tower(clap: tuple[Path, ClapModel]) -> None:
    folder, model = clap
    window = np.random.default_rng(0).normal(0, 0.1, 480_000).astype(np.float32)

    backbone = build_backbone("htsat", str(folder), "cpu")
    tokens = backbone.encode([window])[0]

    mel = build_front_end(FRONT_END)(torch.from_numpy(window)).T[None, None]
    with torch.inference_mode():
        hidden = model.audio_model(input_features=mel).last_hidden_state[0]
    np.testing.assert_allclose(tokens, hidden.mean(dim=1).T, atol=1e-5)
    assert backbone.gives.shape == (128,)


def test_a_clap_file_is_loaded_like_its_directory(
    clap: tuple[Path, ClapModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = clap
    monkeypatch.setattr(HTSAT, "CONFIG", SMALL_CLAP)
    torch.save(model.state_dict(), folder.parent / "clap.pth")

    by_file = build_backbone("htsat", str(folder.parent / "clap.pth"), "cpu")

    by_folder = build_backbone("htsat", str(folder), "cpu")
    assert by_file.spec.weights_sha256 == by_folder.spec.weights_sha256


def test_a_clap_that_lacks_tensors_or_is_fused_is_refused(tmp_path: Path) -> None:
    model = ClapAudioModel(ClapAudioConfig(**SMALL_CLAP))
    state = model.state_dict()
    del state["audio_encoder.norm.weight"]
    model.save_pretrained(tmp_path, state_dict=state)

    with pytest.raises(WeightsError, match=r"audio_encoder\.norm\.weight missing"):
        build_backbone("htsat", str(tmp_path), "cpu")
    fused = ClapAudioModel(ClapAudioConfig(**SMALL_CLAP, enable_fusion=True))
    fused.save_pretrained(tmp_path / "fused")
    with pytest.raises(WeightsError, match="expected an unfused network"):
        build_backbone("htsat", str(tmp_path / "fused"), "cpu")


# --- flow ------------------------------------------------------------------------------------


def convolve(
    state: dict[str, torch.Tensor], name: str, x: torch.Tensor, stride: int = 1
) -> torch.Tensor:
    """Convolution and batch norm in evaluation, one after the other, from their definitions."""
    kernel = state[f"{name}.conv.weight"]
    padding = [size // 2 for size in kernel.shape[2:]]
    x = functional.conv3d(x, kernel, stride=(1, stride, stride), padding=padding)
    values = {
        key: state[f"{name}.bn.{key}"].view(1, -1, 1, 1, 1)
        for key in ("weight", "bias", "running_mean", "running_var")
    }
    scale = values["weight"] / torch.sqrt(values["running_var"] + 1e-5)
    return (x - values["running_mean"]) * scale + values["bias"]


def slow_slowonly(
    state: dict[str, torch.Tensor], x: torch.Tensor, depths: list[int]
) -> torch.Tensor:
    """The network by its tensor names alone."""
    x = functional.relu(convolve(state, "conv1", x, 2))
    x = torch.stack([functional.max_pool2d(field, 3, 2, 1) for field in x.unbind(dim=2)], dim=2)
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            stride = 2 if stage > 1 and block == 0 else 1
            name = f"layer{stage}.{block}"
            y = functional.relu(convolve(state, f"{name}.conv1", x))
            y = functional.relu(convolve(state, f"{name}.conv2", y, stride))
            y = convolve(state, f"{name}.conv3", y)
            if f"{name}.downsample.conv.weight" in state:
                x = convolve(state, f"{name}.downsample", x, stride)
            x = functional.relu(x + y)
    return x.mean(dim=(2, 3, 4))


def test_slowonly_is_the_network_that_its_tensor_names_describe() -> None:
    depths = [2, 1, 2, 1]
    network = SlowOnlyNetwork(4, depths).eval()
    randomize(network)
    x = torch.randn(2, 2, 5, 40, 40, generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        torch.testing.assert_close(
            network(x), slow_slowonly(network.state_dict(), x, depths), atol=1e-4, rtol=1e-4
        )


def test_a_checkpoint_of_mmaction2_loads_without_its_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlowOnly, "WIDTH", SlowOnlyDemo.WIDTH)
    monkeypatch.setattr(SlowOnly, "DEPTHS", SlowOnlyDemo.DEPTHS)
    network = SlowOnlyNetwork(SlowOnlyDemo.WIDTH, SlowOnlyDemo.DEPTHS).eval()
    randomize(network)
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    state["cls_head.fc_cls.weight"] = torch.zeros(400, 128)
    torch.save({"meta": {"epoch": 256}, "state_dict": state}, tmp_path / "slowonly.pth")
    clip = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 2), dtype=np.uint8)

    backbone = build_backbone("slowonly", str(tmp_path / "slowonly.pth"), "cpu")
    output = backbone.encode([clip])[0]

    x = (torch.from_numpy(clip).float().permute(3, 0, 1, 2)[None] - 128) / 128
    with torch.inference_mode():
        expected = network(x)[0].numpy()
    np.testing.assert_allclose(output, expected, atol=1e-5)
    del state["backbone.layer3.0.conv1.bn.running_mean"]
    torch.save({"state_dict": {**state, "backbone.pool2.x": torch.zeros(1)}}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"running_mean missing; pool2\.x not expected"):
        build_backbone("slowonly", str(tmp_path / "bad.pth"), "cpu")


def test_a_still_field_is_zero_to_the_network() -> None:
    network = SlowOnlyNetwork(4, [1]).eval()
    backbone: Any = build_backbone("slowonly-demo", "random", "cpu")

    still = backbone.encode([np.full((2, 48, 48, 2), 128, np.uint8)])[0]

    with torch.inference_mode():
        expected = backbone._network(torch.zeros(1, 2, 2, 48, 48))[0].numpy()
    np.testing.assert_allclose(still, expected, atol=1e-6)
    assert network.num_features == 16


# --- text ------------------------------------------------------------------------------------


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Path, BertModel]:
    """A small BERT with its tokenizer, saved as a directory of transformers."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=40,
    )  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "encoder")
    spelling_tokenizer().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder", model


@pytest.mark.parametrize("given_as", ["weights", "model"])
def test_a_directory_gives_the_last_layer_of_its_encoder(
    encoder: tuple[Path, BertModel], given_as: str
) -> None:
    folder, model = encoder
    if given_as == "weights":
        backbone = build_backbone("bert", str(folder), "cpu")
    else:
        backbone = build_backbone("bert", "pretrained", "cpu", model=str(folder))

    words = backbone.encode(["ab, c"])[0]

    ids = spelling_tokenizer()("ab, c", return_tensors="pt").input_ids
    with torch.inference_mode():
        hidden = model(input_ids=ids).last_hidden_state[0].numpy()  # [CLS] a ##b , c [SEP]
    expected = np.stack([(hidden[1] + hidden[2]) / 2, hidden[3], hidden[4]])
    np.testing.assert_allclose(words, expected, atol=1e-5)
    assert backbone.spec.shape == (16,)
    assert backbone.spec.weights == "encoder"


def test_at_most_twenty_five_tokens_are_read(encoder: tuple[Path, BertModel]) -> None:
    backbone = build_backbone("bert", str(encoder[0]), "cpu", max_words=40)

    assert len(backbone.encode(["a b c d e f g h i j k l m n o p q r s t u v w x y z"])[0]) == 23


def test_a_file_of_weights_takes_the_rest_from_the_model_option(
    encoder: tuple[Path, BertModel],
) -> None:
    folder, model = encoder
    path = folder.parent / "bert.safetensors"
    save_file({f"bert.{name}": t.clone() for name, t in model.state_dict().items()}, path)

    by_file = build_backbone("bert", str(path), "cpu", model=str(folder))

    by_folder = build_backbone("bert", str(folder), "cpu")
    assert by_file.spec.weights_sha256 == by_folder.spec.weights_sha256


def test_a_directory_with_a_hostile_pickle_is_refused(
    encoder: tuple[Path, BertModel],
) -> None:
    folder, _ = encoder
    (folder / "model.safetensors").unlink()
    torch.save({"x": Path("/")}, folder / "pytorch_model.bin")

    with pytest.raises(WeightsError, match="encoder"):
        build_backbone("bert", str(folder), "cpu")
