"""HTS-AT on ten second windows of sound: one vector per second.

Source: Chen et al., HTS-AT, ICASSP 2022, as the audio tower of LAION-CLAP (Wu et al., ICASSP 2023),
through transformers' `ClapAudioModel`, which is the same network. Its last layer has 32 tokens in
time, which are read before they are pooled for the whole window; a second's feature is their mean,
weighted by how much of each lies in the second. Attention looks at the whole window, so that a
second knows its surroundings. This policy is ours.

Differs from LAION-CLAP: samples are not rounded to 16 bits on the way, and nothing is cropped at
random.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from extract.backbones.base import (
    BACKBONES,
    BATCH_SIZE,
    MIN_STEP_S,
    Gives,
    InputSpec,
    Media,
    Option,
    WaveformInput,
    step_centres,
)
from extract.backbones.inference import encode_batches
from extract.backbones.spec import build_spec
from extract.backbones.weights import (
    Request,
    Weights,
    load_strictly,
    load_transformer,
    parse_demo_request,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
    without,
)
from micu.devices import resolve_device
from micu.errors import WeightsError
from micu.store import Steps

if TYPE_CHECKING:
    from torch import Tensor

HUB = "laion/clap-htsat-unfused"
TOWER = "audio_model."
OTHER_TOWER = ("text_model.", "text_projection.", "audio_projection.", "logit_scale")
"""Parts of a CLAP checkpoint that are not the audio network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMel:
    """The front end: a power mel spectrogram with slaney bands, in dB, with no dynamic limit."""

    sample_rate: int
    """Hz."""
    n_fft: int
    hop: int
    """Samples from one frame to the next."""
    mels: int
    low_hz: float
    high_hz: float


FRONT_END = LogMel(sample_rate=48000, n_fft=1024, hop=480, mels=64, low_hz=50.0, high_hz=14000.0)
DEMO_FRONT_END = LogMel(sample_rate=16000, n_fft=512, hop=160, mels=32, low_hz=50.0, high_hz=8000.0)


@BACKBONES.register("htsat")
class HTSAT:
    """HTS-AT of LAION-CLAP (unfused, 48 kHz, 10 s windows), (T, 768).

    Args:
        weights: `pretrained`, a path (a directory of transformers, or a file with the tensors of a
            `ClapModel` or `ClapAudioModel`), `random` or `random:SEED`.
        device: `auto`, or what `torch.device` takes.
        batch_size: Windows per forward pass.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME: ClassVar[str] = "htsat"
    LOG_MEL: ClassVar[LogMel] = FRONT_END
    CONFIG: ClassVar[Mapping[str, Any]] = {}
    """What differs from `ClapAudioConfig`, whose defaults are the published network."""
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "batch_size": Option(type=int, default=4, help=BATCH_SIZE)
    }
    wants: InputSpec = WaveformInput(sample_rate=48000, window_s=10.0)
    gives: Gives = Gives(modality="audio", shape=(768,), weights=f"hf:{HUB}, Apache-2.0")

    def __init__(self, weights: str, device: str, *, batch_size: int = 4) -> None:  # noqa: D107
        assert isinstance(self.wants, WaveformInput)
        self._window_s = self.wants.window_s
        network, source = self._load(self._parse(weights))
        self._check(network.config, source)
        self._device = resolve_device(device)
        self._network = network.to(self._device).eval()
        self._front_end = build_front_end(self.LOG_MEL).to(self._device)
        self._batch_size = batch_size
        # The tokens share all frames, of which a window has one more than it has hops.
        self._span_s = self._window_s + self.LOG_MEL.hop / self.LOG_MEL.sample_rate
        self.gives = replace(self.gives, shape=(int(network.audio_encoder.num_features),))
        loaded = Weights(source, tensors_sha256(network))
        self.spec = build_spec(
            self.NAME,
            self,
            loaded,
            {
                "log_mel": {**asdict(self.LOG_MEL), "norm": "slaney", "scale": "slaney"},
                "short_window": "whole repeats, then zeros",
                "int16_round_trip": False,
                "step": "mean over frequency, then of the second's tokens by overlap",
            },
            "torch",
            "torchaudio",
            "transformers",
            "av",
        )

    def _parse(self, weights: str) -> Request:
        return parse_request(weights, self.NAME)

    def _load(self, request: Request) -> tuple[Any, str]:
        from transformers import ClapAudioModel

        network: Any
        if request.kind == "pretrained":
            return load_transformer(ClapAudioModel, HUB, OTHER_TOWER, TOWER), f"hf:{HUB}"
        if request.kind == "local" and request.path.is_dir():
            network = load_transformer(ClapAudioModel, request.path, OTHER_TOWER, TOWER)
            return network, request.source
        network = seeded(self._draw, request.seed)
        if request.kind == "local":
            state = without(read_state(request.path), OTHER_TOWER)
            body = {name.removeprefix(TOWER): tensor for name, tensor in state.items()}
            load_strictly(network, body, f"{self.NAME} {request.path}")
        return network, request.source

    def _draw(self) -> Any:
        from transformers import ClapAudioConfig, ClapAudioModel

        return ClapAudioModel(ClapAudioConfig(**self.CONFIG))

    def _check(self, config: Any, source: str) -> None:
        if config.enable_fusion or config.num_mel_bins != self.LOG_MEL.mels:
            raise WeightsError(
                f"{self.NAME} {source}: expected an unfused network for {self.LOG_MEL.mels} mel "
                f"bands, got enable_fusion={config.enable_fusion}, {config.num_mel_bins} bands"
            )

    def encode(self, units: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Tokens of each window, before they are pooled.

        Args:
            units: Windows, U of (S,), at most `wants.window_s` long, in [-1, 1].

        Returns:
            U of (tokens, D), in the order of time; 32 tokens in ten seconds.
        """
        return encode_batches(units, self._batch_size, self._forward)

    def _forward(self, windows: Sequence[NDArray[np.float32]]) -> "Tensor":
        import torch

        length = round(self._window_s * self.LOG_MEL.sample_rate)
        batch = np.stack([repeat_to_length(window, length) for window in windows])
        x = self._front_end(torch.from_numpy(batch).to(self._device))  # (B, mels, frames)
        x = x.transpose(1, 2).unsqueeze(1)  # (B, 1, frames, mels)
        # (B, D, frequency bins, tokens)
        tokens: Tensor = self._network(input_features=x, is_longer=None).last_hidden_state
        return tokens.mean(dim=2).transpose(1, 2)

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """Mean of each second's tokens, (T, D); a second without sound is not real."""
        return pool_tokens(outputs, media, self._window_s, self._span_s)


@BACKBONES.register("htsat-demo")
class HTSATDemo(HTSAT):
    """A small HTS-AT on four second windows at 16 kHz with random weights, (T, 128)."""

    NAME = "htsat-demo"
    LOG_MEL = DEMO_FRONT_END
    CONFIG: ClassVar[Mapping[str, Any]] = {
        "spec_size": 128,
        "num_mel_bins": 32,
        "patch_embeds_hidden_size": 32,
        "hidden_size": 128,
        "depths": [1, 1, 1],
        "num_attention_heads": [1, 2, 4],
        "mlp_ratio": 2.0,
    }
    wants: InputSpec = WaveformInput(sample_rate=16000, window_s=4.0)
    gives = Gives(modality="audio", shape=(128,), weights="none; --weights random only")

    def _parse(self, weights: str) -> Request:
        return parse_demo_request(weights, self.NAME, HTSAT.NAME)

    def _draw(self) -> Any:
        network = super()._draw()
        # What the first norm learns from sound: without it the level's offset drowns the rest.
        network.audio_encoder.batch_norm.running_mean.fill_(-20.0)  # dB
        network.audio_encoder.batch_norm.running_var.fill_(20.0**2)
        return network


def build_front_end(log_mel: LogMel) -> Any:
    """Module from samples, (B, S), to dB, (B, mels, 1 + S // hop)."""
    import torch
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    mel = MelSpectrogram(
        sample_rate=log_mel.sample_rate,
        n_fft=log_mel.n_fft,
        hop_length=log_mel.hop,
        n_mels=log_mel.mels,
        f_min=log_mel.low_hz,
        f_max=log_mel.high_hz,
        power=2.0,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.nn.Sequential(mel, AmplitudeToDB("power"))


def repeat_to_length(window: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Fill a window as LAION-CLAP's `repeatpad` does: whole repeats, then zeros.

    Args:
        window: Samples, (S,), at least one.
        length: Samples wanted; more are cut off.

    Returns:
        (length,)
    """
    repeated = np.tile(window, max(1, length // len(window)))[:length]
    return np.pad(repeated, (0, length - len(repeated)))


def overlap_weights(
    tokens: int, start_s: float, end_s: float, window_s: float
) -> NDArray[np.float64]:
    """How much of the span from `start_s` to `end_s` each token of a window covers.

    Args:
        tokens: Tokens, of equal length, that share the window.
        start_s: Where the span begins, s from the start of the window.
        end_s: Where it ends, s.
        window_s: Length that the tokens share, s.

    Returns:
        (tokens,), sums to 1.
    """
    edges = np.linspace(0.0, window_s, tokens + 1)
    overlap = np.minimum(edges[1:], end_s) - np.maximum(edges[:-1], start_s)
    overlap = np.maximum(overlap, 0.0)
    weights: NDArray[np.float64] = overlap / overlap.sum()
    return weights


def pool_tokens(
    outputs: Sequence[NDArray[np.float32]], media: Media, window_s: float, span_s: float
) -> Steps:
    """Turn the tokens of a clip's windows into one vector per second.

    Second s of a window is the mean of its tokens, weighted by how much of each lies in
    [s, s + 1), or in what there is of it where the sound ends. A second that holds less than 0.1 s
    of sound is not real, unless it is the first.

    Args:
        outputs: Tokens of each window, of (tokens, D).
        media: The clip.
        window_s: From the start of one window to the next, s, a whole number.
        span_s: Length that the tokens of one window share, s.
    """
    dim = outputs[0].shape[-1]
    values = np.zeros((media.steps, dim), np.float32)
    mask = np.zeros(media.steps, np.bool_)
    for step in range(media.steps):
        end_s = min(step + 1.0, media.duration_s)
        window = int(step // window_s)
        if window >= len(outputs) or (step > 0 and end_s - step < MIN_STEP_S):
            continue
        first_s = window * window_s
        weights = overlap_weights(len(outputs[window]), step - first_s, end_s - first_s, span_s)
        values[step] = weights @ outputs[window].astype(np.float64)
        mask[step] = True
    return Steps(values, mask, step_centres(media.steps))
