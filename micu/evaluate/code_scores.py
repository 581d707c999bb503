"""Known scores that look at a clip's codes: all modalities share them.

They are means over the real steps of a clip, so that long clips do not count as less known.
"""

import numpy as np

from micu.base.errors import ConfigError
from micu.evaluate.metrics import Floats, Ints
from micu.evaluate.scores import SCORES, Evidence, Fitting, Scorer

QUANTIZATION = "quantization_error"
CODE_SCORES = (QUANTIZATION, "code_likelihood", "class_code_likelihood")
"""Scores that need codes."""


@SCORES.register(QUANTIZATION)
def fit_quantization_error(fitting: Fitting) -> Scorer:
    """Minus the mean squared distance of a clip's steps to their codes, in standard deviations.

    How large the distances are differs by modality. So they are standardised by modality, on the
    training clips: in the target modality on the same clips as they are there, without labels.
    """
    if not fitting.errors:
        raise no_codes(QUANTIZATION)
    scales = {name: (x.mean(), max(x.std(), 1e-12)) for name, x in fitting.errors.items()}

    def score(clips: Evidence) -> Floats:
        assert clips.errors is not None
        mean, deviation = scales[clips.modality]
        result: Floats = -_mean_over_steps((clips.errors - mean) / deviation, clips.mask)
        return result

    return score


@SCORES.register("code_likelihood")
def fit_code_likelihood(fitting: Fitting) -> Scorer:
    """Mean log-probability of a clip's codes among those of the training clips (add-one)."""
    codes = _codes(fitting.train, "code_likelihood")
    counts = np.bincount(codes[fitting.train.mask], minlength=fitting.codebook_size)
    return _likelihood(_log_chances(counts[None]))


@SCORES.register("class_code_likelihood")
def fit_class_code_likelihood(fitting: Fitting) -> Scorer:
    """The same by class, and of the class that explains the clip best: naive Bayes over codes."""
    codes = _codes(fitting.train, "class_code_likelihood")
    counts = [
        np.bincount(codes[rows][fitting.train.mask[rows]], minlength=fitting.codebook_size)
        for rows in (fitting.labels == label for label in np.unique(fitting.labels))
    ]
    return _likelihood(_log_chances(np.stack(counts)))


def _log_chances(counts: Ints) -> Floats:
    """Log-probability of each code, (classes, K), one added to every count (Laplace)."""
    result: Floats = np.log((counts + 1) / (counts + 1).sum(1, keepdims=True))
    return result


def _likelihood(log_chances: Floats) -> Scorer:
    def score(clips: Evidence) -> Floats:
        codes = _codes(clips, "code_likelihood")
        by_class = [_mean_over_steps(table[codes], clips.mask) for table in log_chances]
        result: Floats = np.stack(by_class).max(0)
        return result

    return score


def _mean_over_steps(
    values: Floats, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> Floats:
    """Mean over real steps, (n,), of (n, T)."""
    result: Floats = (values * mask).sum(1) / mask.sum(1)
    return result


def _codes(clips: Evidence, name: str) -> Ints:
    if clips.codes is None:
        raise no_codes(name)
    return clips.codes


def no_codes(name: str) -> ConfigError:
    """What to say of a score of codes for features that have none."""
    return ConfigError(
        f"--score {name}: the encoder gives no codes; use --encoder checkpoint or untrained, "
        "without --ceiling, or another score"
    )
