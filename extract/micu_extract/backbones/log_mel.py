"""Log-mel spectrograms: the bands and the frames that the sound backbones share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMel:
    """Constants of a front end."""

    sample_rate: int
    """Hz."""
    window: int
    """Samples in a frame, under a periodic Hann window."""
    n_fft: int
    """Samples in a Fourier transform; those beyond the window are zero."""
    hop: int
    """Samples from one frame to the next."""
    mels: int
    low_hz: float
    high_hz: float
    scale: Literal["slaney", "htk"]
    """`slaney`: triangles over hertz, of area one; `htk`: triangles over mel, of height one."""


def mel_filters(log_mel: LogMel) -> NDArray[np.float32]:
    """Weight of each frequency in each band, (n_fft // 2 + 1, mels).

    Reference: `slaney` is Slaney's Auditory Toolbox (1998), as librosa, transformers and torchaudio
    have it; `htk` is the HTK Book's scale with the triangles of VGGish, which no library has:
    theirs are straight over hertz.
    """
    low, high = log_mel.low_hz, log_mel.high_hz
    count = log_mel.n_fft // 2 + 1
    if log_mel.scale == "slaney":
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            count, log_mel.mels, low, high, log_mel.sample_rate, norm="slaney", mel_scale="slaney"
        )
        return np.asarray(filters, np.float32)
    place = _htk_mel(np.linspace(0.0, log_mel.sample_rate / 2, count))
    first, last = _htk_mel(np.array([low, high]))
    edges = np.linspace(first, last, log_mel.mels + 2)
    rising = (place[:, None] - edges[:-2]) / np.diff(edges[:-1])
    falling = (edges[2:] - place[:, None]) / np.diff(edges[1:])
    weights: NDArray[np.float32] = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    return weights


def spectra(samples: "Tensor", log_mel: LogMel) -> "Tensor":
    """Fourier transforms of the frames that lie wholly in the samples.

    Args:
        samples: (..., S), float32.
        log_mel: Its bands are not used.

    Returns:
        (..., 1 + (S - window) // hop, n_fft // 2 + 1), complex.
    """
    import torch

    hann = torch.hann_window(log_mel.window, device=samples.device)
    frames = samples.unfold(-1, log_mel.window, log_mel.hop) * hann
    transforms: Tensor = torch.fft.rfft(frames, log_mel.n_fft)
    return transforms


def _htk_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    mel: NDArray[np.float64] = 1127.0 * np.log1p(hz / 700.0)
    return mel
