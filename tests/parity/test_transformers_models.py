"""`hf:NAME` gives what transformers' own processor and network give, for each family."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray

from micu.base.errors import ConfigError, RegistryError, WeightsError
from micu_extract.backbones import build_backbone, find_backbone, find_name, name_for
from micu_extract.backbones.base import ClipInput, FrameInput, Media, Run
from micu_extract.backbones.text import spelling_tokenizer

RUN = Run(device="cpu", batch_size=3)
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
PATCHES = {"image_size": 32, "patch_size": 16}
TEXT = {**SMALL, "vocab_size": 300, "max_position_embeddings": 40}
AUDIO = {
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "spec_size": 64,
    "num_mel_bins": 16,
    "window_size": 4,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "enable_fusion": False,
}


def crop(kind: Any, **more: Any) -> Any:
    sizes = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    return kind(**sizes, do_center_crop=True, **more)


def squash(kind: Any, **more: Any) -> Any:
    return kind(size={"height": 32, "width": 32}, do_resize=True, **more)


def pictures(network: Any, processor: Any, frames: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    inputs = processor(images=list(frames), return_tensors="pt")
    if hasattr(network, "get_image_features"):
        return network.get_image_features(**inputs).pooler_output
    return network(**inputs).pooler_output


def videos(network: Any, processor: Any, clips: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    x = processor(
        videos=[torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips],
        do_sample_frames=False,
        return_tensors="pt",
    )
    x = x["pixel_values_videos"] if "pixel_values_videos" in x else x["pixel_values"]
    if hasattr(network, "get_video_features"):
        return network.get_video_features(x).pooler_output
    if hasattr(network, "get_vision_features"):
        return network.get_vision_features(x).mean(1)
    if hasattr(network, "get_video_embeds"):  # as its forward has it, which wants sentences, too
        tower = network.video_model
        return tower(torch.ones(len(x), 1, dtype=torch.int64), x).video_embeds
    return network(x).last_hidden_state.mean(1)


def sounds(network: Any, processor: Any, units: Sequence[NDArray[np.float32]]) -> torch.Tensor:
    inputs = processor(list(units), sampling_rate=processor.sampling_rate, return_tensors="pt")
    inputs = {name: x for name, x in inputs.items() if not name.endswith("mask")}
    if hasattr(network, "get_audio_embeds"):
        return network.get_audio_embeds(**inputs)
    if hasattr(network, "get_audio_features"):
        return network.get_audio_features(**inputs).pooler_output
    output = network(**inputs)
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state.mean(1) if pooled is None else pooled


def sentences(network: Any, processor: Any, units: Sequence[str]) -> torch.Tensor:
    rows = []
    for unit in units:  # alone, and so without padding
        inputs = processor([unit], return_tensors="pt")
        if hasattr(network, "get_text_features"):
            rows.append(network.get_text_features(**inputs).pooler_output)
        elif hasattr(network, "get_text_audio_video_embeds"):
            rows.append(network.get_text_audio_video_embeds(**inputs))
        else:
            rows.append(network(**inputs).last_hidden_state.mean(1))
    return torch.cat(rows)


def vit_config() -> Any:
    return hf.ViTConfig(**SMALL, **PATCHES)


def dino_config() -> Any:
    return hf.Dinov2Config(**SMALL, **PATCHES)


def clip_config() -> Any:
    return hf.CLIPConfig(
        text_config={**TEXT, "eos_token_id": 3, "pad_token_id": 0},
        vision_config={**SMALL, **PATCHES},
        projection_dim=12,
    )


def xclip_config() -> Any:
    vision = {**SMALL, **PATCHES, "num_frames": 4, "mit_hidden_size": 16,
              "mit_intermediate_size": 24, "mit_num_hidden_layers": 1,
              "mit_num_attention_heads": 2}  # fmt: skip
    return hf.XCLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=16)


def siglip_config() -> Any:
    return hf.SiglipConfig(text_config=TEXT, vision_config={**SMALL, **PATCHES})


def clap_config() -> Any:
    return hf.ClapConfig(text_config=TEXT, audio_config=AUDIO, projection_dim=12)


def ast_config() -> Any:
    return hf.ASTConfig(
        **SMALL, patch_size=4, num_mel_bins=16, max_length=32, frequency_stride=4, time_stride=4
    )


def wav2vec_config() -> Any:
    return hf.Wav2Vec2Config(**SMALL, vocab_size=12, conv_dim=[8, 8], conv_stride=[5, 4],
        conv_kernel=[10, 8], num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2)  # fmt: skip


def videomae_config() -> Any:
    return hf.VideoMAEConfig(**SMALL, **PATCHES, num_frames=4, tubelet_size=2)


def vjepa_config() -> Any:
    return hf.VJEPA2Config(patch_size=16, crop_size=32, frames_per_clip=4, tubelet_size=2,
        hidden_size=18, num_attention_heads=3, num_hidden_layers=2, pred_hidden_size=18,
        pred_num_attention_heads=3, pred_num_hidden_layers=1)  # fmt: skip


def pe_config() -> Any:
    small = {**SMALL, "num_hidden_layers": 1, "head_dim": 8, "num_key_value_heads": 2}
    dac = {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 16,
           "hidden_size": 16, "codebook_dim": 4, "sampling_rate": 8000}  # fmt: skip
    tower = {"img_size": [32, 32], "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 16}
    vision = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_tiny_patch16_384",
              "num_classes": 16, "global_pool": "map", "model_args": tower}  # fmt: skip
    special = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "eos_token_id": 3,
               "sep_token_id": 3}  # fmt: skip
    return hf.PeAudioVideoConfig(
        text_config={"model_type": "modernbert", **SMALL, "vocab_size": 300, **special},
        audio_video_config=hf.PeAudioVideoEncoderConfig(
            **small,
            audio_config={"model_type": "pe_audio_encoder", **small, "dac_config": dac},
            video_config={"model_type": "pe_video_encoder", **small, "vision_config": vision},
        ),
    )


def mel(kind: Any) -> Any:
    if kind is hf.PeAudioFeatureExtractor:
        return kind(sampling_rate=8000, hop_length=8)
    if kind is hf.ClapFeatureExtractor:
        return kind(feature_size=16, sampling_rate=8000, hop_length=160, max_length_s=1,
                    fft_window_size=256, frequency_min=50, frequency_max=3900,
                    truncation="rand_trunc", padding="repeatpad")  # fmt: skip
    if kind is hf.ASTFeatureExtractor:
        return kind(sampling_rate=16000, num_mel_bins=16, max_length=32)
    return kind(sampling_rate=8000)


def spelling(_: Any) -> Any:
    return spelling_tokenizer()


Family = tuple[str, Callable[[], Any], Callable[[Any], Any], Any, Callable[..., torch.Tensor]]
FAMILIES: dict[str, Family] = {
    "vit": ("video", vit_config, squash, hf.ViTImageProcessor, pictures),
    "dino": ("video", dino_config, crop, hf.BitImageProcessor, pictures),
    "clip": ("video", clip_config, crop, hf.CLIPImageProcessor, pictures),
    "siglip": ("video", siglip_config, squash, hf.SiglipImageProcessor, pictures),
    "videomae": ("video", videomae_config, crop, hf.VideoMAEVideoProcessor, videos),
    "vjepa": ("video", vjepa_config, crop, hf.VJEPA2VideoProcessor, videos),
    "xclip": ("video", xclip_config, crop, hf.VideoMAEVideoProcessor, videos),
    "pe": ("video", pe_config, squash, hf.PeVideoVideoProcessor, videos),
    "pe-sound": ("audio", pe_config, mel, hf.PeAudioFeatureExtractor, sounds),
    "pe-text": ("text", pe_config, spelling, None, sentences),
    "ast": ("audio", ast_config, mel, hf.ASTFeatureExtractor, sounds),
    "wav2vec": ("audio", wav2vec_config, mel, hf.Wav2Vec2FeatureExtractor, sounds),
    "clap": ("audio", clap_config, mel, hf.ClapFeatureExtractor, sounds),
    "clip-text": ("text", clip_config, spelling, None, sentences),
    "bert": ("text", lambda: hf.BertConfig(**TEXT), spelling, None, sentences),
}  # fmt: skip


def write_model(folder: Path, family: str) -> Path:
    """A tiny random model and its processor, as a repository of the Hub has them."""
    _, configure, process, kind, _ = FAMILIES[family]
    torch.manual_seed(3)
    network = hf.AutoModel.from_config(configure())
    network.save_pretrained(folder)
    process(kind).save_pretrained(folder)
    return folder


def units_of(backbone: Any, count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    match backbone.gives.modality:
        case "text":
            return ["a dog barks", "rain", "two birds sing in a tree", "a"][:count]
        case "audio":
            length = int(backbone.wants.sample_rate * backbone.wants.window_s)
            return [rng.uniform(-0.5, 0.5, length).astype(np.float32) for _ in range(count)]
        case _:
            clip = backbone.wants
            shape = (clip.frames, 48, 64, 3) if isinstance(clip, ClipInput) else (48, 64, 3)
            return [rng.integers(0, 256, shape, np.uint8) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    modality, _, _, kind, reference = FAMILIES[family]
    folder = write_model(tmp_path / "tiny", family)
    backbone = build_backbone(
        f"hf:{folder}@{modality}" if modality != "video" else f"hf:{folder}", "pretrained", RUN
    )
    units = units_of(backbone, 4)
    found = np.stack(backbone.encode(units))

    network = hf.AutoModel.from_pretrained(folder).eval()
    loader = kind or hf.AutoTokenizer
    with torch.inference_mode():
        expected = reference(network, loader.from_pretrained(folder), units).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert len(np.unique(found, axis=0)) == 4  # units are told apart
    assert backbone.spec.shape == found.shape[1:]
    assert backbone.spec.modality == modality
    json.dumps(backbone.spec.preprocessing)
    # Neither a unit's neighbours nor how many there are change it.
    assert np.array_equal(np.stack(backbone.encode(units[2:])), found[2:])
    again = build_backbone(name_for(f"hf:{folder}", modality), "random:3", RUN)
    assert again.spec.weights == "random:3"
    assert again.spec.shape == backbone.spec.shape


def test_a_name_says_the_modality() -> None:
    for name, modality in (("hf:a/b", "video"), ("hf:a/b@audio", "audio"), ("hf:a@text", "text")):
        assert find_backbone(name).gives.modality == modality
        assert find_name(name) == name
        assert name_for(name, modality) == name
    assert name_for("hf:a/b", "audio") == "hf:a/b@audio"
    assert name_for("hf:a/b", "flow") == "hf:a/b"
    assert name_for("htsat", "audio") == "htsat"


def test_what_a_model_has_not_is_told(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bert", "bert")
    with pytest.raises(WeightsError, match="bert: not a directory that AutoImageProcessor can"):
        build_backbone(f"hf:{folder}", "pretrained", RUN)
    squash(hf.ViTImageProcessor).save_pretrained(folder)
    with pytest.raises(ConfigError, match="expected an encoder of video, got bert"):
        build_backbone(f"hf:{folder}", "pretrained", RUN)
    with pytest.raises(
        WeightsError, match="expected a directory of the Hub's layout, got the file"
    ):
        build_backbone(f"hf:{folder}@text", str(folder / "model.safetensors"), RUN)
    torch.save({}, tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    (folder / "x.py").write_text("raise SystemExit('code of the repository was run')")
    assert build_backbone(f"hf:{folder}@text", "pretrained", RUN).spec.shape == (16,)


def test_heads_are_left_out_and_a_pooler_that_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "vit", "vit")
    torch.manual_seed(0)
    hf.ViTForImageClassification(hf.ViTConfig(**SMALL, **PATCHES)).save_pretrained(folder)
    backbone = build_backbone(f"hf:{folder}", "pretrained", RUN)
    unit = units_of(backbone, 1)
    network = hf.ViTForImageClassification.from_pretrained(folder).eval().vit
    pixels = hf.ViTImageProcessor.from_pretrained(folder)(unit, return_tensors="pt")
    with torch.inference_mode():
        expected = network(**pixels).last_hidden_state.mean(1).numpy()
    np.testing.assert_allclose(np.stack(backbone.encode(unit)), expected, atol=1e-5)
    again = build_backbone(f"hf:{folder}", "pretrained", RUN)
    assert again.spec.weights_sha256 == backbone.spec.weights_sha256


def test_every_second_of_a_window_of_sound_has_its_vector(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "w", "wav2vec")
    backbone = build_backbone(f"hf:{folder}@audio", "pretrained", RUN, window_seconds=2)
    long, short = units_of(backbone, 2)
    outputs = backbone.encode([long, short[:5000]])
    assert np.array_equal(outputs[1], backbone.encode([np.pad(short[:5000], (0, 11000))])[0])
    steps = backbone.to_steps(outputs, Media((), np.empty(0), 3.0, 3))
    assert steps.mask.tolist() == [True, True, True]
    assert np.array_equal(steps.values, np.stack([outputs[0], outputs[0], outputs[1]]))
    longer = backbone.to_steps(outputs, Media((), np.empty(0), 5.0, 5))
    assert longer.mask.tolist() == [True, True, True, True, False]
    assert longer.times_s.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]


# --- torchvision -----------------------------------------------------------------------------


def test_networks_of_torchvision_give_what_their_last_layer_reads(tmp_path: Path) -> None:
    from torchvision.models.video import R3D_18_Weights, r3d_18

    torch.manual_seed(1)
    network = r3d_18().eval()
    torch.save(network.state_dict(), tmp_path / "r3d.pt")
    backbone = build_backbone("tv:r3d_18", str(tmp_path / "r3d.pt"), RUN)
    assert isinstance(backbone.wants, ClipInput)
    assert isinstance(backbone.wants, FrameInput)
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (4, 48, 64, 3), np.uint8) for _ in range(2)]
    found = np.stack(backbone.encode(clips))
    assert found.shape == (2, 512) == (2, *backbone.spec.shape)
    prepare = R3D_18_Weights.DEFAULT.transforms()
    x = torch.stack([prepare(torch.from_numpy(clip).permute(0, 3, 1, 2)) for clip in clips])
    with torch.inference_mode():
        expected = network(x)
        ours = network.fc(torch.from_numpy(found))
    np.testing.assert_allclose(ours.numpy(), expected.numpy(), atol=1e-5)
    with pytest.raises(RegistryError, match="unknown torchvision network 'r3d_19'; did you mean"):
        build_backbone("tv:r3d_19", "random", RUN)
    torch.save({"stem.0.weight": torch.zeros(1)}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match="missing"):
        build_backbone("tv:r3d_18", str(tmp_path / "bad.pt"), RUN)


def test_an_encoder_among_several_is_not_compiled(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "clip", "clip")
    with pytest.raises(ConfigError, match=r"hf:clip: --compile: .* leave it out"):
        build_backbone(f"hf:{folder}", "pretrained", Run(device="cpu", compile=True))
