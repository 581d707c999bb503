"""HTS-AT on windows of sound: one vector per second.

Source: Chen et al., HTS-AT, ICASSP 2022 (github.com/RetroCirce/HTS-Audio-Transformer), trained on
AudioSet, through transformers' `ClapAudioModel`, which is the same network. Its last layer has 32
tokens in time, which are read before they are pooled for the whole window; a second's feature is
their mean, weighted by how much of each lies in the second. Attention looks at the whole window, so
that a second knows its surroundings, unless it is its own window. This policy is ours.

`htsat-clap` is the same network as the audio tower of LAION-CLAP (Wu et al., ICASSP 2023,
`laion/clap-htsat-unfused`): the policy is the same, the sample rate and the weights are not.

A short window is filled as the data of each were: `htsat` with zeros, as AudioSet's loader does;
`htsat-clap` with whole repeats, then zeros.

Differs: samples are not rounded to 16 bits on the way, unless asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import WeightsError
from micu.store.shard import Steps
from micu_extract.backbones.base import (
    BACKBONES,
    Gives,
    InputSpec,
    Media,
    Option,
    WaveformInput,
)
from micu_extract.backbones.hubs import download, load_transformer
from micu_extract.backbones.sound import (
    LogMel,
    fill_window,
    mel_filters,
    one_window_per_second,
    pool_tokens,
    round_to_int16,
    spectra,
)
from micu_extract.backbones.torch_backbone import TorchBackbone
from micu_extract.backbones.weights import (
    Request,
    load_strictly,
    read_state,
    refuse_misfits,
    seeded,
    without,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

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
HUB = "laion/clap-htsat-unfused"
TOWER = "audio_model."
OTHER_TOWER = ("text_model.", "text_projection.", "audio_projection.", "logit_scale")
"""Parts of a CLAP checkpoint that are not the audio network."""
CLAP_LOG_MEL = replace(LOG_MEL, sample_rate=48000, hop=480)
DEMO_LOG_MEL = replace(
    LOG_MEL, sample_rate=16000, window=512, n_fft=512, hop=160, mels=32, high_hz=8000.0
)


@BACKBONES.register("htsat")
class HTSAT(TorchBackbone):
    """HTS-AT of the original authors (AudioSet, 32 kHz, 10 s windows), (T, 768).

    Args:
        weights: A path to a checkpoint of the original repository, `random` or `random:SEED`.
        run: Where and how the network runs.
        context: `clip`, a second is seen in its window of ten; `second`, it is seen alone, its
            frames repeated to fill the window as the original's inference mode does, and its
            feature is the mean of all tokens. In the header, not in the features' name.
        int16: Round samples to 16 bits, as the authors' loader does. In the header alone, too.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME = "htsat"
    BATCH_SIZE = 4
    PACKAGES = ("torch", "transformers", "av")
    LOG_MEL: ClassVar[LogMel] = LOG_MEL
    CONFIG: ClassVar[Mapping[str, Any]] = {}
    """What differs from `ClapAudioConfig`, whose defaults are the published network."""
    REPEATS: ClassVar[bool] = False
    """Whether a short window is filled with repeats of itself."""
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "context": Option(
            type=str,
            default="clip",
            help="What a second's feature knows: the window around it, or the second alone, "
            "which costs ten times as much.",
            choices=("clip", "second"),
        ),
        "int16": Option(
            type=bool,
            default=False,
            help="Round samples to 16 bits and back, as the authors' loader does.",
        ),
    }
    wants: InputSpec = WaveformInput(sample_rate=32000, window_s=10.0)
    gives: Gives = Gives(
        modality="audio", shape=(768,), weights=f"{REPOSITORY}: {FILE}", licence="MIT"
    )

    def _prepare(self) -> None:
        assert isinstance(self.wants, WaveformInput)
        self._alone = self._options["context"] == "second"
        if self._alone:
            self.wants = replace(self.wants, window_s=1.0)
        self._window_s = self.wants.window_s

    def _draw(self) -> Any:
        from transformers import ClapAudioConfig, ClapAudioModel

        return ClapAudioModel(ClapAudioConfig(**self.CONFIG))

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

    def _describe(self) -> dict[str, Any]:
        import torch

        network: Any = self._run.network
        self._filters = torch.from_numpy(mel_filters(self.LOG_MEL)).to(self._run.device)
        config = network.config
        self._stretched = config.spec_size * (config.spec_size // config.num_mel_bins)
        self.gives = replace(self.gives, shape=(int(network.audio_encoder.num_features),))
        return {
            "log_mel": asdict(self.LOG_MEL),
            "context": self._options["context"],
            "short_window": "whole repeats, then zeros" if self.REPEATS else "zeros",
            "int16_round_trip": self._options["int16"],
            "step": "mean of all tokens of the second, its frames repeated to fill the window"
            if self._alone
            else "mean over frequency, then of the second's tokens by overlap",
        }

    def _forward(self, windows: Sequence[NDArray[np.float32]]) -> "Tensor":
        """From windows, at most `wants.window_s` long, in [-1, 1], to (B, tokens, D).

        Tokens are in the order of time, and not pooled yet; 32 in ten seconds.
        """
        length = round(self._window_s * self.LOG_MEL.sample_rate)
        if self._options["int16"]:
            windows = [round_to_int16(window) for window in windows]
        filled = [fill_window(window, length, repeat=self.REPEATS) for window in windows]
        samples = self._stack(filled)
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


@BACKBONES.register("htsat-clap")
class HTSATClap(HTSAT):
    """HTS-AT of LAION-CLAP (unfused, 48 kHz, 10 s windows), (T, 768).

    Args:
        weights: `pretrained`, a path (a directory of transformers, or a file with the tensors of a
            `ClapModel` or `ClapAudioModel`), `random` or `random:SEED`.
        run: Where and how the network runs.
        context: As of `HTSAT`.
        int16: As of `HTSAT`.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME = "htsat-clap"
    REPEATS = True
    LOG_MEL = CLAP_LOG_MEL
    wants: InputSpec = WaveformInput(sample_rate=48000, window_s=10.0)
    gives: Gives = Gives(modality="audio", shape=(768,), weights=f"hf:{HUB}", licence="Apache-2.0")

    def _load(self, request: Request) -> tuple[Any, str]:
        network, source = self._load_tower(request)
        config = network.config
        if config.enable_fusion or config.num_mel_bins != self.LOG_MEL.mels:
            raise WeightsError(
                f"{self.NAME} {source}: expected an unfused network for {self.LOG_MEL.mels} mel "
                f"bands, got enable_fusion={config.enable_fusion}, {config.num_mel_bins} bands"
            )
        return network, source

    def _load_tower(self, request: Request) -> tuple[Any, str]:
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
            self._refuse_other_layouts(state, request.path)
            body = {name.removeprefix(TOWER): tensor for name, tensor in state.items()}
            load_strictly(network, body, f"{self.NAME} {request.path}")
        return network, request.source

    def _refuse_other_layouts(self, state: Mapping[str, Any], path: Path) -> None:
        if any(name.startswith(LAION_PREFIXES) for name in state):
            raise WeightsError(
                f"{path}: expected CLAP in the layout of transformers, got LAION's own; type "
                f"{download(HUB)}, and --weights DIR"
            )
        if any(name.startswith(PREFIX) for name in state):
            raise WeightsError(
                f"{path}: expected a checkpoint of CLAP, got one of HTS-AT on AudioSet; take "
                f"--backbone {HTSAT.NAME}"
            )


@BACKBONES.register("htsat-demo")
class HTSATDemo(HTSAT):
    """A small HTS-AT on four second windows at 16 kHz with random weights, (T, 128)."""

    NAME = "htsat-demo"
    DEMO_OF = HTSAT.NAME
    LOG_MEL = DEMO_LOG_MEL
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
    gives = Gives(
        modality="audio", shape=(128,), weights="none; --weights random only", licence="none"
    )

    def _draw(self) -> Any:
        network = super()._draw()
        # What the first norm learns from sound: without it the level's offset drowns the rest.
        network.audio_encoder.batch_norm.running_mean.fill_(-20.0)  # dB
        network.audio_encoder.batch_norm.running_var.fill_(20.0**2)
        return network


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


# --- the original's checkpoint -----------------------------------------------------------------

PREFIX = "sed_model."
LAION_PREFIXES = ("audio_branch.", "module.audio_branch.")
"""What names start with in a checkpoint of CLAP by LAION's own code."""
CLAP_PREFIXES = ("audio_model.", "audio_encoder.", *LAION_PREFIXES)
"""The same of any CLAP; the first two are those of transformers, whole and its sounds alone."""
FRONT_END = ("spectrogram_extractor.", "logmel_extractor.")
CLASSIFIER = ("tscam_conv.", "head.")
MASK = ".attn_mask"
TOLERANCE = 1e-3
"""Between a front end's matrix in the file and ours, as a share of its largest; half precision
is within it."""
QKV = {"query": 0, "key": 1, "value": 2}
"""Which third of the original's joint projection each is."""
NAMES = (
    *((f"attention.self.{part}", "attn.qkv") for part in QKV),
    ("attention.self.", "attn."),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("batch_norm", "bn0"),
    ("audio_encoder.", ""),
)
"""Parts of names, transformers' and the original's, in the order in which they are replaced."""


def original_name(name: str) -> str:
    """Name in the original checkpoint, without prefix, of a tensor of `ClapAudioModel`."""
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def load_original(
    network: "nn.Module", state: "Mapping[str, Tensor]", log_mel: LogMel, where: str
) -> None:
    """Load a checkpoint of the original HTS-AT into a `ClapAudioModel`.

    PyTorch Lightning saved it. Beside the network it holds the classifier, the front end's matrices
    and the masks of the shifted windows. Those that this project computes itself are compared, not
    used.

    Args:
        network: Written to.
        state: Tensors of the checkpoint, by name.
        log_mel: The front end that the network was trained with.
        where: Which file, for messages.

    Raises:
        WeightsError: A tensor of the network is missing, left over or of another shape, or the file
            holds the matrices of another front end.
    """
    import torch

    if any(name.startswith(CLAP_PREFIXES) for name in state):
        raise WeightsError(
            f"{where}: expected a checkpoint of HTS-AT on AudioSet, got one of CLAP; take "
            "--backbone htsat-clap"
        )
    everything = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    _check_front_end(everything, log_mel, where)
    body = {
        name: tensor
        for name, tensor in without(everything, (*FRONT_END, *CLASSIFIER)).items()
        if not name.endswith(MASK)
    }
    shapes = {original_name(name): _original_shape(name, t) for name, t in _tensors(network)}
    wrong = [
        f"{name} {tuple(body[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in body and tuple(body[name].shape) != shape
    ]
    refuse_misfits(where, shapes.keys() - body.keys(), body.keys() - shapes.keys(), wrong)
    converted = {name: _take(body[original_name(name)], name) for name, _ in _tensors(network)}
    for name, own in _tensors(network):
        if name.endswith("position_index") and not torch.equal(own, converted[name].to(own.dtype)):
            raise WeightsError(f"{where}: {original_name(name)} is not this network's own")
    load_strictly(network, converted, where, original_name)


def _tensors(network: "nn.Module") -> "list[tuple[str, Tensor]]":
    return list(network.state_dict().items())


def _part(name: str) -> int | None:
    """Which third of the joint projection a tensor of ours is, if any."""
    return QKV.get(name.rsplit(".", 2)[-2])


def _original_shape(name: str, tensor: "Tensor") -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    return shape if _part(name) is None else (3 * shape[0], *shape[1:])


def _take(tensor: "Tensor", name: str) -> "Tensor":
    part = _part(name)
    return tensor if part is None else tensor.chunk(3)[part]


def _check_front_end(state: "Mapping[str, Tensor]", log_mel: LogMel, where: str) -> None:
    """Refuse a file whose front end, where it holds one, is not ours."""
    ours = {"logmel_extractor.melW": mel_filters(log_mel)}
    sample = np.arange(log_mel.n_fft)
    turns = np.outer(sample[: log_mel.n_fft // 2 + 1], sample) / log_mel.n_fft
    waves = np.exp(-2j * np.pi * turns) * np.hanning(log_mel.n_fft + 1)[:-1]
    for part, wave in (("real", waves.real), ("imag", waves.imag)):
        name = f"spectrogram_extractor.stft.conv_{part}.weight"
        ours[name] = wave[:, None, :].astype(np.float32)
    for name in ours.keys() & state.keys():
        theirs = state[name].float().numpy()
        if theirs.shape != ours[name].shape or not np.allclose(
            theirs, ours[name], rtol=0, atol=TOLERANCE * ours[name].max()
        ):
            raise WeightsError(
                f"{where}: {name} is of another front end than {log_mel.sample_rate} Hz, "
                f"{log_mel.n_fft} samples, {log_mel.mels} bands from {log_mel.low_hz:g} to "
                f"{log_mel.high_hz:g} Hz; expected the checkpoint for AudioSet"
            )
