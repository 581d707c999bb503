from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ClapAudioConfig, ClapAudioModel

from micu.base.errors import ConfigError, WeightsError
from micu_extract.backbones import Run, build_backbone
from micu_extract.backbones.base import Media, WaveformInput
from micu_extract.backbones.htsat import (
    DEMO_LOG_MEL,
    HTSAT,
    HTSATClap,
    HTSATDemo,
    load_original,
    original_name,
)
from micu_extract.backbones.sound import (
    fill_window,
    mel_filters,
    overlap_weights,
    pool_tokens,
    round_to_int16,
)

CPU = Run(device="cpu")
State = dict[str, torch.Tensor]


# --- windows ---------------------------------------------------------------------------------


def test_tokens_count_by_how_much_of_them_lies_in_the_second() -> None:
    np.testing.assert_allclose(overlap_weights(4, 0.0, 1.0, 4.0), [1, 0, 0, 0])
    np.testing.assert_allclose(overlap_weights(4, 0.5, 2.0, 4.0), [1 / 3, 2 / 3, 0, 0])
    np.testing.assert_allclose(overlap_weights(3, 0.0, 2.0, 6.0), [1, 0, 0])


@pytest.mark.parametrize(
    ("length", "repeated", "padded"),
    [
        (8, [1, 2, 3, 1, 2, 3, 0, 0], [1, 2, 3, 0, 0, 0, 0, 0]),
        (6, [1, 2, 3, 1, 2, 3], [1, 2, 3, 0, 0, 0]),
        (5, [1, 2, 3, 0, 0], [1, 2, 3, 0, 0]),
        (2, [1, 2], [1, 2]),
    ],
)
def test_a_short_window_is_filled_with_zeros_after_whole_repeats_where_they_are_wanted(
    length: int, repeated: list[float], padded: list[float]
) -> None:
    window = np.array([1, 2, 3], np.float32)

    np.testing.assert_array_equal(fill_window(window, length, repeat=True), repeated)
    np.testing.assert_array_equal(fill_window(window, length, repeat=False), padded)


def test_under_five_seconds_audiosets_network_sees_silence_and_claps_a_repeat() -> None:
    backbone = build_backbone("htsat-demo", "random", CPU)  # of four seconds, as htsat of ten
    sound = np.concatenate(seconds_of_noise(2))
    quiet = np.concatenate([sound, np.zeros_like(sound)])

    short, padded, repeated = backbone.encode([sound, quiet, np.tile(sound, 2)])

    assert short.tobytes() == padded.tobytes() != repeated.tobytes()
    assert backbone.spec.preprocessing["short_window"] == "zeros"
    assert (HTSAT.REPEATS, HTSATClap.REPEATS) == (False, True)


def test_samples_are_rounded_to_16_bits_towards_zero_where_that_is_asked_for() -> None:
    samples = np.array([1.5, 1.0, 0.9999, 1e-5, -1e-5, -4e-5, -2.0], np.float32)
    levels = np.array([32767, 32767, 32763, 0, 0, -1, -32767])

    np.testing.assert_array_equal(round_to_int16(samples), (levels / 32767).astype(np.float32))
    plain = build_backbone("htsat-demo", "random", CPU)
    rounding = build_backbone("htsat-demo", "random", CPU, int16=True)
    window = seconds_of_noise(1)[0]
    [rounded], [other] = rounding.encode([window]), plain.encode([round_to_int16(window)])
    assert rounded.tobytes() == other.tobytes() != plain.encode([window])[0].tobytes()
    assert rounding.spec.preprocessing["int16_round_trip"] is True
    assert plain.spec.preprocessing["int16_round_trip"] is False


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


# --- context ---------------------------------------------------------------------------------


def seconds_of_noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, 16_000).astype(np.float32) for _ in range(count)]


def test_a_second_seen_alone_does_not_know_its_neighbours() -> None:
    backbone = build_backbone("htsat-demo", "random", CPU, context="second")
    seconds = seconds_of_noise(3)
    media = Media(seconds, np.arange(3) + 0.5, 3.0, 3)

    steps = backbone.to_steps(backbone.encode(seconds), media)
    other = backbone.to_steps(backbone.encode([-seconds[2], seconds[1], seconds[0]]), media)

    assert backbone.wants == WaveformInput(sample_rate=16_000, window_s=1.0)
    assert steps.mask.all()
    assert steps.values[1].tobytes() == other.values[1].tobytes()
    assert steps.values[0].tobytes() == other.values[2].tobytes()
    assert np.abs(steps.values[1] - steps.values[0]).max() > 1e-3


def test_a_second_seen_alone_is_another_feature_and_says_so() -> None:
    alone = build_backbone("htsat-demo", "random", CPU, context="second")
    among = build_backbone("htsat-demo", "random", CPU)

    assert alone.spec.preprocessing["context"] == "second"
    assert alone.spec.preprocessing["input"]["window_s"] == 1.0
    assert among.spec.preprocessing["context"] == "clip"
    assert alone.spec.shape == among.spec.shape
    with pytest.raises(ConfigError, match="context: expected one of clip, second"):
        build_backbone("htsat-demo", "random", CPU, context="window")


@pytest.mark.parametrize(("samples", "context"), [(200, "clip"), (200, "second")])
def test_a_moment_of_sound_is_enough(samples: int, context: str) -> None:
    backbone = build_backbone("htsat-demo", "random", CPU, context=context)
    moment = np.full(samples, 0.5, np.float32)

    steps = backbone.to_steps(backbone.encode([moment]), Media([moment], np.array([0]), 0.0125, 1))

    assert steps.mask.all()
    assert np.isfinite(steps.values).all()


@pytest.mark.parametrize("context", ["clip", "second"])
def test_tokens_do_not_depend_on_what_else_is_in_the_batch(context: str) -> None:
    backbone = build_backbone("htsat-demo", "random", CPU, context=context)
    windows = seconds_of_noise(6)

    together = backbone.encode(windows)

    for window, tokens in zip(windows, together, strict=True):
        assert backbone.encode([window])[0].tobytes() == tokens.tobytes()


# --- checkpoints -----------------------------------------------------------------------------


def test_the_error_for_pretrained_weights_says_which_file_from_where_and_what_to_type() -> None:
    with pytest.raises(WeightsError) as caught:
        build_backbone("htsat", "pretrained", CPU)

    for part in ("HTSAT_AudioSet_Saved_1.ckpt", "https://drive.google.com/", "--weights PATH"):
        assert part in str(caught.value)


@pytest.fixture(scope="module")
def small() -> ClapAudioModel:
    """The demo's network, as a small HTS-AT."""
    torch.manual_seed(0)
    return ClapAudioModel(ClapAudioConfig(**HTSATDemo.CONFIG))


@pytest.fixture
def checkpoint(small: ClapAudioModel) -> State:
    """Its tensors in the layout of the original."""
    parts: dict[str, list[torch.Tensor]] = {}
    for name, tensor in small.state_dict().items():
        parts.setdefault(f"sed_model.{original_name(name)}", []).append(tensor)
    state = {n: torch.cat(found) if "qkv" in n else found[0] for n, found in parts.items()}
    state["sed_model.logmel_extractor.melW"] = torch.from_numpy(mel_filters(DEMO_LOG_MEL))
    state["sed_model.head.bias"] = torch.zeros(527)
    state["sed_model.layers.0.blocks.1.attn_mask"] = torch.zeros(16, 64, 64)
    return state


def load(state: State) -> Any:
    network = ClapAudioModel(ClapAudioConfig(**HTSATDemo.CONFIG))
    load_original(network, state, DEMO_LOG_MEL, "x.ckpt")
    return network


def test_an_original_checkpoint_gives_back_every_tensor(
    small: ClapAudioModel, checkpoint: State
) -> None:
    loaded = load(checkpoint).state_dict()

    assert all(torch.equal(tensor, loaded[name]) for name, tensor in small.state_dict().items())


QKV = "sed_model.layers.1.blocks.0.attn.qkv.weight"
INDEX = "sed_model.layers.1.blocks.0.attn.relative_position_index"
MEL = "sed_model.logmel_extractor.melW"
FOURIER = "sed_model.spectrogram_extractor.stft.conv_imag.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(QKV), r"x\.ckpt: .*: layers\.1\.blocks\.0\.attn\.qkv\.weight missing"),
        (lambda s: s.update({"sed_model.norms.weight": s[QKV]}), r"norms\.weight not expected"),
        (lambda s: s.update({QKV: s[QKV][1:]}), r"qkv\.weight \(191, 64\) instead of \(192, 64\)"),
        (lambda s: s.update({QKV: torch.tensor(1.0)}), r"qkv\.weight \(\) instead of"),
        (lambda s: s.update({INDEX: s[INDEX] + 999}), "relative_position_index is not"),
        (lambda s: s.update({MEL: s[MEL][:, :31]}), "melW is of another front end than 16000 Hz"),
        (lambda s: s.update({FOURIER: torch.zeros(257, 1, 512)}), r"conv_imag\.weight is of anoth"),
        (lambda s: s.update({"audio_branch.norm.weight": s[QKV]}), "one of CLAP"),
        (lambda s: s.update({"audio_encoder.norm.weight": s[QKV]}), "take --backbone htsat-clap"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(
    checkpoint: State, change: Callable[[State], Any], message: str
) -> None:
    change(checkpoint)

    with pytest.raises(WeightsError, match=message):
        load(checkpoint)


def test_a_checkpoint_for_another_sample_rate_is_an_error(checkpoint: State) -> None:
    network = ClapAudioModel(ClapAudioConfig(**HTSATDemo.CONFIG))
    for rate in (15_900, 32_000):
        other = replace(DEMO_LOG_MEL, sample_rate=rate)
        checkpoint[MEL] = torch.from_numpy(mel_filters(other))
        with pytest.raises(WeightsError, match="melW is of another front end"):
            load_original(network, checkpoint, DEMO_LOG_MEL, "x.ckpt")


def test_stored_fourier_kernels_that_are_ours_are_accepted(checkpoint: State) -> None:
    eye = np.eye(512)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    transform = np.fft.rfft(eye).T * hann  # (257, 512)
    for part, values in (("real", transform.real), ("imag", transform.imag)):
        name = f"sed_model.spectrogram_extractor.stft.conv_{part}.weight"
        checkpoint[name] = torch.from_numpy(values[:, None].astype(np.float32)).half()

    load(checkpoint)


def test_a_checkpoint_in_half_precision_is_loaded_in_single(
    small: ClapAudioModel, checkpoint: State
) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in checkpoint.items()}

    network = load(half)

    assert {t.dtype for t in network.parameters()} == {torch.float32}
    ours = network.audio_encoder.norm.weight
    torch.testing.assert_close(ours, small.audio_encoder.norm.weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "module.audio_branch.norm.weight",
            "got LAION's own; type hf download laion/clap-htsat-unfused --local-dir DIR, and "
            "--weights DIR$",
        ),
        ("sed_model.norm.weight", "got one of HTS-AT on AudioSet; take --backbone htsat$"),
    ],
)
def test_a_checkpoint_of_another_htsat_is_named_by_the_one_of_clap(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HTSATClap, "CONFIG", HTSATDemo.CONFIG)
    torch.save({name: torch.zeros(1)}, tmp_path / "x.pt")

    with pytest.raises(WeightsError, match=message):
        build_backbone("htsat-clap", str(tmp_path / "x.pt"), CPU)


def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"<html>Google Drive - Virus scan warning</html>")

    with pytest.raises(WeightsError, match=r"x\.ckpt: not a checkpoint: .* gave a web page$"):
        build_backbone("htsat", str(tmp_path / "x.ckpt"), CPU)
