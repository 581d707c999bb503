"""What the sound backbones share: spectrograms in mel bands, windows, and seconds of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from micu.store.shard import Steps
from micu_extract.backbones.base import MIN_STEP_S, Media, step_centres

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


# --- windows and seconds ---------------------------------------------------------------------


def fill_window(
    window: NDArray[np.float32], length: int, *, repeat: bool = False
) -> NDArray[np.float32]:
    """Fill a window with zeros, as AudioSet's loaders do.

    Args:
        window: Samples, (S,), at least one.
        length: Samples wanted; more are cut off.
        repeat: Whether whole repeats come before the zeros, as in LAION-CLAP's `repeatpad`.

    Returns:
        (length,)
    """
    times = max(1, length // len(window)) if repeat else 1
    repeated = np.tile(window, times)[:length]
    return np.pad(repeated, (0, length - len(repeated)))


def round_to_int16(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """To 16 bits and back, as HTS-AT's and LAION-CLAP's loaders do: towards zero, 32767 = 1."""
    levels = (np.clip(samples, -1.0, 1.0) * np.float32(32767.0)).astype(np.int16)
    rounded: NDArray[np.float32] = (levels / 32767.0).astype(np.float32)
    return rounded


def overlap_weights(
    tokens: int, start_s: float, end_s: float, span_s: float
) -> NDArray[np.float64]:
    """How much of the time from `start_s` to `end_s` each token of a window covers.

    Args:
        tokens: Tokens, of equal length, that share the span.
        start_s: Where the time begins, s from the start of the window.
        end_s: Where it ends, s.
        span_s: Length that the tokens share, s.

    Returns:
        (tokens,), sums to 1.
    """
    edges = np.linspace(0.0, span_s, tokens + 1)
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


def one_window_per_second(outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
    """Turn the outputs of a clip's windows of one second, of (D,), into its steps."""
    return pool_tokens([output[None] for output in outputs], media, 1.0, 1.0)
