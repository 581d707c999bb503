"""HTS-AT beside the original's code, its layout, LAION-CLAP and plain loops."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
)
from transformers.audio_utils import mel_filter_bank

from micu.base.errors import WeightsError
from micu_extract.backbones import Run, build_backbone, htsat
from micu_extract.backbones.base import Media
from micu_extract.backbones.htsat import HTSAT, HTSATClap, HTSATDemo, decibels, original_name
from micu_extract.backbones.sound import LogMel, mel_filters

CPU = Run(device="cpu")
GOLDEN = Path(__file__).parent.parent / "golden" / "htsat.npz"


def front_end(samples: np.ndarray, log_mel: LogMel) -> torch.Tensor:
    filters = torch.from_numpy(mel_filters(log_mel))
    return decibels(torch.from_numpy(samples)[None], filters, log_mel)[0]


# --- front end -------------------------------------------------------------------------------


@pytest.mark.parametrize("log_mel", [htsat.LOG_MEL, htsat.CLAP_LOG_MEL, htsat.DEMO_LOG_MEL])
def test_the_bands_are_those_of_the_slaney_scale(log_mel: LogMel) -> None:
    """Against transformers' own bands; largest difference 2.1e-8, of values up to 0.03."""
    theirs = mel_filter_bank(
        num_frequency_bins=log_mel.n_fft // 2 + 1,
        num_mel_filters=log_mel.mels,
        min_frequency=log_mel.low_hz,
        max_frequency=log_mel.high_hz,
        sampling_rate=log_mel.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )

    np.testing.assert_allclose(mel_filters(log_mel), theirs, atol=5e-8, rtol=0)


@pytest.mark.parametrize("log_mel", [htsat.LOG_MEL, htsat.CLAP_LOG_MEL], ids=["32k", "48k"])
def test_the_front_end_is_that_of_laion_clap(log_mel: LogMel) -> None:
    """Largest difference 3.9e-5 dB."""
    rng = np.random.default_rng(0)
    rate = log_mel.sample_rate
    sound = (0.2 * rng.normal(size=10 * rate)).astype(np.float32)
    sound[2 * rate : 4 * rate] += np.sin(np.arange(2 * rate) * 0.06).astype(np.float32)
    extractor = ClapFeatureExtractor(
        truncation="rand_trunc", frequency_min=50, sampling_rate=rate, hop_length=log_mel.hop
    )

    theirs = extractor(sound, sampling_rate=rate, return_tensors="pt").input_features[0, 0]
    ours = front_end(sound, log_mel)

    assert ours.shape == theirs.shape == (1001, 64)
    torch.testing.assert_close(ours, theirs.float(), atol=5e-4, rtol=0)


def test_the_front_end_is_its_formula() -> None:
    """Largest difference 2.8e-6 dB."""
    log_mel = htsat.LOG_MEL
    sound = np.random.default_rng(0).normal(0, 0.1, 3200).astype(np.float32)

    ours = front_end(sound, log_mel)

    mirrored = np.concatenate([sound[512:0:-1], sound, sound[-2:-514:-1]]).astype(np.float64)
    n = np.arange(1024)
    hann = 0.5 * (1 - np.cos(2 * np.pi * n / 1024))
    bands = mel_filters(log_mel).astype(np.float64)
    assert len(ours) == 11
    for frame in range(11):
        part = mirrored[320 * frame : 320 * frame + 1024] * hann
        power = [abs(np.sum(part * np.exp(-2j * np.pi * k * n / 1024))) ** 2 for k in range(513)]
        expected = 10 * np.log10(np.maximum(bands.T @ power, 1e-10))
        np.testing.assert_allclose(ours[frame], expected, atol=2e-4)


def test_silence_is_the_least_power() -> None:
    assert (front_end(np.zeros(3200, np.float32), htsat.LOG_MEL) == -100.0).all()


# --- the original ----------------------------------------------------------------------------

SMALL_LOG_MEL = LogMel(
    sample_rate=8000, window=256, n_fft=256, hop=80, mels=32, low_hz=50, high_hz=3500,
    scale="slaney",
)  # fmt: skip
SMALL = {
    "spec_size": 128, "num_mel_bins": 32, "patch_embeds_hidden_size": 8, "hidden_size": 16,
    "depths": [2, 2], "num_attention_heads": [2, 4],
}  # fmt: skip


class SmallHTSAT(HTSAT):
    """The original network's size in the golden file: 4 s windows at 8 kHz."""

    LOG_MEL = SMALL_LOG_MEL
    CONFIG = SMALL
    wants = htsat.WaveformInput(sample_rate=8000, window_s=4.0)


@pytest.fixture(scope="module")
def golden() -> Mapping[str, np.ndarray]:
    """A small network of the original's code with random weights, and what it gave.

    Made with `HTSAT_Swin_Transformer` of laion-clap 1.1.7, which is the original's in evaluation,
    and torchlibrosa 0.1.0, for `golden_sound`:

    - `sed_model.*`: its state, without the Fourier kernels
    - `log_mel`: every 20th of 401 frames before the first norm
    - `tokens`: every 32nd row of `fine_grained_embedding`, which repeats each token 32 times
    - `second`: `embedding` for the sound's second second alone, its frames repeated five times
      after the first norm, as the original's `infer_mode` does
    """
    with np.load(GOLDEN) as file:
        return dict(file)


def golden_sound() -> np.ndarray:
    t = np.arange(32000) / 8000
    chirp = 0.3 * np.sin(2 * np.pi * (200 * t + 150 * t * t))
    beeps = 0.1 * np.sin(2 * np.pi * 1900 * t) * (t % 1 < 0.3)
    hiss = 0.05 * (np.arange(32000) ** 2 * 0.6180339887 % 1 - 0.5)
    return (chirp + beeps + hiss).astype(np.float32)


@pytest.fixture
def golden_file(golden: Mapping[str, np.ndarray], tmp_path: Path) -> str:
    """The small network, as Lightning saves it."""
    state = {n: torch.from_numpy(v) for n, v in golden.items() if n.startswith("sed_model.")}
    torch.save({"epoch": 9, "state_dict": state}, tmp_path / "small.ckpt")
    return str(tmp_path / "small.ckpt")


def test_tokens_are_those_of_the_original_code(
    golden: Mapping[str, np.ndarray], golden_file: str
) -> None:
    """From the waveform on: log-mel within 5.8e-5 dB, tokens within 2.3e-6 of values around 1.

    The network of the published size, with random weights copied, was within 2.8e-6 for noise and
    2.0e-5 for a tone, beside which the original's front end rounds the quiet bands more.
    """
    backbone = SmallHTSAT(golden_file, CPU)

    tokens = backbone.encode([golden_sound()])[0]

    mel = front_end(golden_sound(), SMALL_LOG_MEL)[::20]
    np.testing.assert_allclose(mel, golden["log_mel"], atol=5e-4)
    assert tokens.shape == golden["tokens"].shape == (64, 16)
    np.testing.assert_allclose(tokens, golden["tokens"], atol=2e-5)


def test_a_second_alone_is_the_original_s_inference_mode(
    golden: Mapping[str, np.ndarray], golden_file: str
) -> None:
    """Largest difference 1.2e-7."""
    backbone = SmallHTSAT(golden_file, CPU, context="second")
    sound = golden_sound()
    seconds = [sound[i : i + 8000] for i in range(0, 32000, 8000)]

    steps = backbone.to_steps(backbone.encode(seconds), Media(seconds, np.arange(4) + 0.5, 4.0, 4))

    assert steps.values.shape == (4, 16)
    np.testing.assert_allclose(steps.values[1], golden["second"], atol=1e-5)


def original_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of `HTSAT_AudioSet_Saved_1.ckpt`, from the original's constructor arguments."""
    shapes: dict[str, tuple[int, ...]] = {
        "spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
        "spectrogram_extractor.stft.conv_imag.weight": (513, 1, 1024),
        "logmel_extractor.melW": (513, 64),
        **{f"bn0.{key}": (64,) for key in ("weight", "bias", "running_mean", "running_var")},
        "bn0.num_batches_tracked": (),
        "patch_embed.proj.weight": (96, 1, 4, 4),
        **dict.fromkeys(("patch_embed.proj.bias", "patch_embed.norm.weight"), (96,)),
        "patch_embed.norm.bias": (96,),
        **dict.fromkeys(("norm.weight", "norm.bias"), (768,)),
        "tscam_conv.weight": (527, 768, 2, 3),
        "tscam_conv.bias": (527,),
        "head.weight": (527, 527),
        "head.bias": (527,),
    }
    for layer, (depth, heads) in enumerate(zip((2, 2, 6, 2), (4, 8, 16, 32), strict=True)):
        dim, side = 96 * 2**layer, 64 // 2**layer
        for block in range(depth):
            name = f"layers.{layer}.blocks.{block}"
            shapes |= {
                f"{name}.norm{i}.{key}": (dim,) for i in (1, 2) for key in ("weight", "bias")
            }
            shapes |= {
                f"{name}.attn.relative_position_bias_table": (15 * 15, heads),
                f"{name}.attn.relative_position_index": (64, 64),
                f"{name}.attn.qkv.weight": (3 * dim, dim),
                f"{name}.attn.qkv.bias": (3 * dim,),
                f"{name}.attn.proj.weight": (dim, dim),
                f"{name}.attn.proj.bias": (dim,),
                f"{name}.mlp.fc1.weight": (4 * dim, dim),
                f"{name}.mlp.fc1.bias": (4 * dim,),
                f"{name}.mlp.fc2.weight": (dim, 4 * dim),
                f"{name}.mlp.fc2.bias": (dim,),
            }
            if block % 2 and side > 8:  # shifted windows; the last layer is one window
                shapes[f"{name}.attn_mask"] = ((side // 8) ** 2, 64, 64)
        if layer < 3:
            shapes[f"layers.{layer}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            for key in ("weight", "bias"):
                shapes[f"layers.{layer}.downsample.norm.{key}"] = (4 * dim,)
    return {f"sed_model.{name}": shape for name, shape in shapes.items()}


def test_every_tensor_of_the_network_is_in_the_original_layout_and_none_is_left_over() -> None:
    with torch.device("meta"):
        ours = ClapAudioModel(ClapAudioConfig()).state_dict()

    theirs = {name.removeprefix("sed_model.") for name in original_shapes()}
    unused = ("spectrogram_extractor", "logmel_extractor", "tscam_conv", "head")
    body = {n for n in theirs if not n.startswith(unused) and not n.endswith("attn_mask")}
    assert (len(ours), len(theirs), len(body)) == (236, 200, 188)
    assert {original_name(name) for name in ours} == body


def test_a_full_checkpoint_of_the_original_loads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = original_shapes()
    state = {n: torch.randn(s, generator=generator) for n, s in shapes.items() if "stft" not in n}
    index = ClapAudioModel(ClapAudioConfig(**SMALL)).state_dict()[
        "audio_encoder.layers.0.blocks.0.attention.self.relative_position_index"
    ]
    state |= {name: index for name in state if name.endswith("relative_position_index")}
    state["sed_model.bn0.num_batches_tracked"] = torch.tensor(7)
    state["sed_model.logmel_extractor.melW"] = torch.from_numpy(mel_filters(htsat.LOG_MEL))
    torch.save({"state_dict": state}, tmp_path / "HTSAT_AudioSet_Saved_1.ckpt")

    backbone: Any = build_backbone("htsat", str(tmp_path), CPU)

    loaded = backbone._run.network.state_dict()
    block = "audio_encoder.layers.2.blocks.5.attention"
    joint = state["sed_model.layers.2.blocks.5.attn.qkv.weight"]
    for i, part in enumerate(("query", "key", "value")):
        assert torch.equal(loaded[f"{block}.self.{part}.weight"], joint[384 * i : 384 * (i + 1)])
    proj = state["sed_model.layers.2.blocks.5.attn.proj.weight"]
    assert torch.equal(loaded[f"{block}.output.dense.weight"], proj)
    assert backbone.spec.shape == (768,)


# --- tokens to seconds -----------------------------------------------------------------------


def test_tokens_are_the_network_s_own_and_in_the_order_of_time() -> None:
    backbone: Any = build_backbone("htsat-demo", "random", CPU)
    window = np.random.default_rng(0).normal(0, 0.1, 64_000).astype(np.float32)
    late = window.copy()
    late[48_000:] = 0.0

    tokens, changed = backbone.encode([window, late])

    x = front_end(window, htsat.DEMO_LOG_MEL)[None, None]
    with torch.inference_mode():
        pooled = backbone._run.network(input_features=x).pooler_output[0].numpy()
    np.testing.assert_allclose(tokens.mean(axis=0), pooled, atol=1e-5)
    moved = np.abs(changed - tokens).mean(axis=1)
    assert moved[24:].min() > 2 * moved[:20].max()


def test_seconds_are_stretched_frames_averaged_in_a_plain_loop() -> None:
    """Second s is frames 102.3 s to 102.3 (s + 1) of 1024, of which each token has 32."""
    backbone = build_backbone("htsat", "random", CPU)
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(32, 5)).astype(np.float32) for _ in range(2)]
    media = Media([], np.array([5.0, 15.0]), 17.0, 17)

    steps = backbone.to_steps(tokens, media)

    for second in range(17):
        window, start = divmod(second, 10)
        tenths = range(1023 * start, 1023 * (start + 1))  # of a frame
        expected = np.mean([tokens[window][tenth // 320] for tenth in tenths], axis=0, dtype=float)
        np.testing.assert_allclose(steps.values[second], expected, atol=1e-6)


# --- CLAP ------------------------------------------------------------------------------------

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
    """Largest difference 4.8e-7."""
    folder, model = clap
    window = np.random.default_rng(0).normal(0, 0.1, 480_000).astype(np.float32)

    backbone = build_backbone("htsat-clap", str(folder), CPU)
    tokens = backbone.encode([window])[0]

    mel = front_end(window, htsat.CLAP_LOG_MEL)[None, None]
    with torch.inference_mode():
        hidden = model.audio_model(input_features=mel).last_hidden_state[0]
    np.testing.assert_allclose(tokens, hidden.mean(dim=1).T, atol=1e-5)
    assert backbone.gives.shape == (128,)


def test_a_clap_file_is_loaded_like_its_directory(
    clap: tuple[Path, ClapModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = clap
    monkeypatch.setattr(HTSATClap, "CONFIG", SMALL_CLAP)
    torch.save(model.state_dict(), folder.parent / "clap.pth")

    by_file = build_backbone("htsat-clap", str(folder.parent / "clap.pth"), CPU)

    by_folder = build_backbone("htsat-clap", str(folder), CPU)
    assert by_file.spec.weights_sha256 == by_folder.spec.weights_sha256
    with pytest.raises(WeightsError, match="take --backbone htsat-clap"):
        build_backbone("htsat", str(folder), CPU)


def test_a_clap_that_lacks_tensors_or_is_fused_is_refused(tmp_path: Path) -> None:
    model = ClapAudioModel(ClapAudioConfig(**SMALL_CLAP))
    state = model.state_dict()
    del state["audio_encoder.norm.weight"]
    model.save_pretrained(tmp_path, state_dict=state)

    with pytest.raises(WeightsError, match=r"audio_encoder\.norm\.weight missing"):
        build_backbone("htsat-clap", str(tmp_path), CPU)
    fused = ClapAudioModel(ClapAudioConfig(**SMALL_CLAP, enable_fusion=True))
    fused.save_pretrained(tmp_path / "fused")
    with pytest.raises(WeightsError, match="expected an unfused network"):
        build_backbone("htsat-clap", str(tmp_path / "fused"), CPU)
