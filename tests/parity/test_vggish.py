"""VGGish beside torchvggish, and its front end beside its formula."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvggish.torchvggish as reference
from torchvggish import mel_features, vggish_input, vggish_params

from micu_extract.backbones import Run, build_backbone, vggish
from micu_extract.backbones.sound import fill_window, mel_filters

CPU = Run(device="cpu")


def sounds(count: int) -> list[np.ndarray]:
    """Seconds of noise under a tone, each louder than the last."""
    rng = np.random.default_rng(0)
    tone = np.sin(np.arange(16_000) * 0.3)
    return [
        ((0.02 + 0.1 * i) * (rng.normal(size=16_000) + tone)).clip(-1, 1).astype(np.float32)
        for i in range(count)
    ]


def front_end(samples: np.ndarray) -> torch.Tensor:
    filters = torch.from_numpy(mel_filters(vggish.LOG_MEL))
    return vggish.log_mel(torch.from_numpy(samples)[None], filters)[0]


# --- front end -------------------------------------------------------------------------------


def test_the_constants_are_the_published_ones() -> None:
    ours = vggish.LOG_MEL

    assert ours.sample_rate == vggish_params.SAMPLE_RATE
    assert ours.window == round(vggish_params.STFT_WINDOW_LENGTH_SECONDS * ours.sample_rate)
    assert ours.hop == round(vggish_params.STFT_HOP_LENGTH_SECONDS * ours.sample_rate)
    assert (ours.low_hz, ours.high_hz) == (vggish_params.MEL_MIN_HZ, vggish_params.MEL_MAX_HZ)
    assert vggish.LOG_OFFSET == vggish_params.LOG_OFFSET
    assert (vggish.FRAMES, ours.mels) == (vggish_params.NUM_FRAMES, vggish_params.NUM_BANDS)


def test_the_bands_are_those_of_torchvggish() -> None:
    """Largest difference 3.0e-8."""
    theirs = mel_features.spectrogram_to_mel_matrix(
        num_mel_bins=64,
        num_spectrogram_bins=257,
        audio_sample_rate=16_000,
        lower_edge_hertz=125,
        upper_edge_hertz=7500,
    )

    np.testing.assert_allclose(mel_filters(vggish.LOG_MEL), theirs, atol=1e-7)


def test_the_patch_of_a_second_is_that_of_torchvggish() -> None:
    """Largest difference 2.6e-6 in the logarithm."""
    for sound in sounds(4):
        theirs = vggish_input.waveform_to_examples(sound, 16_000).detach()

        ours = front_end(fill_window(sound, vggish.SAMPLES))

        assert theirs.shape == (1, 1, 96, 64)
        torch.testing.assert_close(ours, theirs[0, 0], atol=5e-5, rtol=0)


def test_the_front_end_is_its_formula() -> None:
    """Largest difference 6.7e-7 in the logarithm."""
    sound = sounds(2)[1][:1000]

    ours = front_end(sound)

    n = np.arange(400)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / 400)
    mel = 1127 * np.log(1 + np.arange(257) * 16_000 / 512 / 700)
    low, high = (1127 * np.log(1 + hz / 700) for hz in (125, 7500))
    width = (high - low) / 65
    assert ours.shape == (4, 64)
    for frame in range(4):
        part = sound[160 * frame : 160 * frame + 400].astype(np.float64) * hann
        size = np.array([abs(np.sum(part * np.exp(-2j * np.pi * k * n / 512))) for k in range(257)])
        for band in range(64):
            centre = low + (band + 1) * width
            triangle = np.maximum(0, 1 - np.abs(mel - centre) / width)
            expected = np.log(triangle @ size + 0.01)
            assert ours[frame, band] == pytest.approx(expected, abs=2e-5)


# --- network ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The network of torchvggish at full size, with weights that keep what it hears."""
    network = reference._vgg().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
        else:
            tensor.normal_(0, 0.1, generator=generator)
    return network


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its checkpoint as released, and the PCA file, which holds NumPy arrays."""
    folder = tmp_path_factory.mktemp("vggish")
    torch.save(theirs.state_dict(), folder / "vggish-10086976.pth")
    rng = np.random.default_rng(0)
    pca = {"pca_eigen_vectors": rng.normal(0, 0.03, (128, 128)), "pca_means": rng.normal(size=128)}
    path = folder / "vggish_pca_params-970ea276.pth"
    torch.save(pca, path, _use_new_zipfile_serialization=False)
    return folder


def examples(count: int) -> torch.Tensor:
    parts = [vggish_input.waveform_to_examples(sound, 16_000) for sound in sounds(count)]
    return torch.cat(parts).detach()


def test_embeddings_are_those_of_torchvggish_from_the_waveform_on(theirs: Any, folder: Any) -> None:
    """Largest difference 1.9e-5, of values up to 10.6."""
    backbone = build_backbone("vggish", str(folder / "vggish-10086976.pth"), CPU)

    ours = np.stack(backbone.encode(sounds(3)))

    expected = theirs(examples(3)).numpy()
    assert ours.shape == (3, 128)
    assert 0.2 < (expected > 0).mean() < 0.8
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_without_the_last_relu_the_embedding_is_the_linear_layer_s(
    theirs: Any, folder: Any
) -> None:
    """Largest difference 2.1e-5, of values up to 12.7."""
    backbone = build_backbone("vggish", str(folder), CPU, no_relu=True)

    ours = np.stack(backbone.encode(sounds(3)))

    flat = theirs.features(examples(3)).permute(0, 2, 3, 1).flatten(1)
    np.testing.assert_allclose(ours, theirs.embeddings[:-1](flat).numpy(), atol=1e-4)
    assert (ours < 0).any()


@pytest.mark.parametrize("no_relu", [False, True], ids=["torchvggish", "tensorflow"])
def test_levels_are_those_of_torchvggish_s_postprocessor(
    theirs: Any, folder: Any, no_relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured equal; rounding may move a value that lies between two levels."""
    path = folder / "vggish_pca_params-970ea276.pth"
    monkeypatch.setattr(
        reference.hub,
        "load_state_dict_from_url",
        lambda url: torch.load(path, weights_only=False),
    )
    backbone = build_backbone("vggish", str(folder), CPU, no_relu=no_relu, pca=True)

    levels = np.stack(backbone.encode(sounds(3)))

    flat = theirs.features(examples(3)).permute(0, 2, 3, 1).flatten(1)
    embeddings = theirs.embeddings[: 5 if no_relu else 6](flat)
    expected = reference.Postprocessor().postprocess(embeddings).numpy()
    assert np.abs(levels - expected).max() <= 1.0
    assert (levels == expected).mean() > 0.99
    assert len(np.unique(levels)) > 50
    assert backbone.spec.weights == "vggish-10086976.pth + vggish_pca_params-970ea276.pth"
