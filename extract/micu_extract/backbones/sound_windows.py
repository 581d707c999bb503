"""Windows of sound: filling up a short one, and turning what windows give into seconds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from micu.store.sets import Steps
from micu_extract.backbones.base import MIN_STEP_S, Media, step_centres


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
