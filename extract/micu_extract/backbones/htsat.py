"""HTS-AT on windows of sound: one vector per second.

Source: Chen et al., HTS-AT, ICASSP 2022 (github.com/RetroCirce/HTS-Audio-Transformer), trained on
AudioSet, through transformers' `ClapAudioModel`, which is the same network. Its last layer has 32
tokens in time, which are read before they are pooled for the whole window; a second's feature is
their mean, weighted by how much of each lies in the second. Attention looks at the whole window, so
that a second knows its surroundings, unless it is its own window. This policy is ours.

Differs: samples are not rounded to 16 bits on the way, and a window that is short is repeated, then
filled with zeros, where the data set's loader has only zeros and the inference mode stretches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import WeightsError
from micu.store.sets import Steps
from micu_extract.backbones.base import (
    BACKBONES,
    Gives,
    InputSpec,
    Media,
    Option,
    Run,
    WaveformInput,
)
from micu_extract.backbones.htsat_checkpoint import load_original
from micu_extract.backbones.inference import Runner
from micu_extract.backbones.log_mel import LogMel, mel_filters, spectra
from micu_extract.backbones.sound_windows import (
    one_window_per_second,
    pool_tokens,
    repeat_to_length,
)
from micu_extract.backbones.spec import build_spec
from micu_extract.backbones.weights import (
    Request,
    Weights,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
)

if TYPE_CHECKING:
    from torch import Tensor

FILE = "HTSAT_AudioSet_Saved_1.ckpt"
FOLDER = "https://drive.google.com/drive/folders/1f5VYMk0uos_YnuBshgmaTVioXbs7Kmz6"
REPOSITORY = "github.com/RetroCirce/HTS-Audio-Transformer"
LOG_MEL = LogMel(
    sample_rate=32000,
    window=1024,
    n_fft=1024,
    hop=320,
    mels=64,
    low_hz=50.0,
    high_hz=14000.0,
    scale="slaney",
)
MIN_POWER = 1e-10
"""Of a band; less is taken for it, which is -100 dB."""


@BACKBONES.register("htsat")
class HTSAT:
    """HTS-AT of the original authors (AudioSet, 32 kHz, 10 s windows), (T, 768).

    Args:
        weights: A path to a checkpoint of the original repository, `random` or `random:SEED`.
        run: Where and how the network runs.
        context: `clip`, a second is seen in its window of ten; `second`, it is seen alone, its
            frames repeated to fill the window as the original's inference mode does, and its
            feature is the mean of all tokens. In the header, not in the features' name.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME: ClassVar[str] = "htsat"
    LOG_MEL: ClassVar[LogMel] = LOG_MEL
    CONFIG: ClassVar[Mapping[str, Any]] = {}
    """What differs from `ClapAudioConfig`, whose defaults are the published network."""
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "context": Option(
            type=str,
            default="clip",
            help="What a second's feature knows: the window around it, or the second alone, "
            "which costs ten times as much.",
            choices=("clip", "second"),
        )
    }
    wants: InputSpec = WaveformInput(sample_rate=32000, window_s=10.0)
    gives: Gives = Gives(
        modality="audio", shape=(768,), weights=f"{REPOSITORY}: {FILE}", licence="MIT"
    )

    def __init__(self, weights: str, run: Run, *, context: str = "clip") -> None:  # noqa: D107
        import torch

        assert isinstance(self.wants, WaveformInput)
        self._alone = context == "second"
        if self._alone:
            self.wants = replace(self.wants, window_s=1.0)
        self._window_s = self.wants.window_s
        network, source = self._load(self._parse(weights))
        self._run = Runner(network, run, batch_size=4)
        self._filters = torch.from_numpy(mel_filters(self.LOG_MEL)).to(self._run.device)
        config = network.config
        self._stretched = config.spec_size * (config.spec_size // config.num_mel_bins)
        self.gives = replace(self.gives, shape=(int(network.audio_encoder.num_features),))
        self.spec = build_spec(
            self.NAME,
            self,
            Weights(source, tensors_sha256(network)),
            run,
            {
                "log_mel": asdict(self.LOG_MEL),
                "context": context,
                "short_window": "whole repeats, then zeros",
                "int16_round_trip": False,
                "step": "mean of all tokens of the second, its frames repeated to fill the window"
                if self._alone
                else "mean over frequency, then of the second's tokens by overlap",
            },
            "torch",
            "transformers",
            "av",
        )

    def _parse(self, weights: str) -> Request:
        return parse_request(weights, self.NAME)

    def _load(self, request: Request) -> tuple[Any, str]:
        if request.kind == "pretrained":
            raise WeightsError(
                f"weights of {self.NAME}: {FILE} is on Google Drive, which no program may fetch "
                f"from. Download it in a browser from {FOLDER} (the link of {REPOSITORY}, Model "
                "Checkpoints) and type --weights PATH. To try things out without it type "
                "--weights random; htsat-clap has weights that are fetched"
            )
        network = seeded(self._draw, request.seed)
        if request.kind == "local":
            where = f"{self.NAME} {request.path}"
            load_original(network, read_state(request.path), self.LOG_MEL, where)
        return network, request.source

    def _draw(self) -> Any:
        from transformers import ClapAudioConfig, ClapAudioModel

        return ClapAudioModel(ClapAudioConfig(**self.CONFIG))

    @property
    def batch_size(self) -> int:
        """Windows per forward pass."""
        return self._run.batch_size

    def encode(self, units: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Tokens of each window, before they are pooled.

        Args:
            units: Windows, U of (S,), at most `wants.window_s` long, in [-1, 1].

        Returns:
            U of (tokens, D), in the order of time; 32 tokens in ten seconds.
        """
        return self._run.encode(units, self._forward)

    def _forward(self, windows: Sequence[NDArray[np.float32]]) -> "Tensor":
        import torch

        length = round(self._window_s * self.LOG_MEL.sample_rate)
        batch = np.stack([repeat_to_length(window, length) for window in windows])
        samples = torch.from_numpy(batch).to(self._run.device)
        x = decibels(samples, self._filters, self.LOG_MEL)  # (B, frames, mels)
        # A whole window has more than half the frames and is not repeated.
        x = x.repeat(1, self._stretched // x.shape[1], 1).unsqueeze(1)  # (B, 1, frames, mels)
        # (B, D, frequency bins, tokens)
        tokens: Tensor = self._run(input_features=x, is_longer=None).last_hidden_state
        return tokens.mean(dim=2).transpose(1, 2)

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """Mean of each second's tokens, (T, D); a second without sound is not real."""
        if self._alone:
            return one_window_per_second([tokens.mean(axis=0) for tokens in outputs], media)
        # The network stretches frame k of the window's F, whose first and last keep their places,
        # to k (N - 1) / (F - 1), and shares N frames out among the tokens.
        span_s = self._window_s * self._stretched / (self._stretched - 1)
        return pool_tokens(outputs, media, self._window_s, span_s)


def decibels(samples: "Tensor", filters: "Tensor", log_mel: LogMel) -> "Tensor":
    """The front end: power in mel bands, in dB, with no dynamic limit.

    Args:
        samples: (B, S), in [-1, 1]; more than n_fft / 2 each.
        filters: Of `mel_filters`, (n_fft // 2 + 1, mels), on the same device.
        log_mel: Its window is as long as its Fourier transform.

    Returns:
        (B, 1 + S // hop, mels); frame k is centred on sample k hop, mirrored at both ends.
    """
    import torch

    half = log_mel.n_fft // 2
    mirrored = torch.nn.functional.pad(samples, (half, half), mode="reflect")
    parts = torch.view_as_real(spectra(mirrored, log_mel)).flatten(-2)
    # Real and imaginary parts side by side: the product with the bands sums their squares too,
    # which halves the time that this takes.
    power = parts.square_() @ filters.repeat_interleave(2, dim=0)
    return 10.0 * torch.log10(power.clamp_min(MIN_POWER))
