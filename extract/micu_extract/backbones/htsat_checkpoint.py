"""The checkpoint layout of the original HTS-AT, and how it maps to transformers' network.

Source: RetroCirce/HTS-Audio-Transformer, `model/htsat.py`, saved by PyTorch Lightning: names start
with `sed_model.`. Beside the network it holds the classifier, the front end's matrices and the
masks of the shifted windows. Those that this project computes itself are compared, not used.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from micu.base.errors import WeightsError
from micu_extract.backbones.log_mel import LogMel, mel_filters
from micu_extract.backbones.weights import load_strictly, refuse_misfits, without

if TYPE_CHECKING:
    from torch import Tensor, nn

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
