"""Known scores that look at the probe's pooled features: neighbours, distances, residuals."""

import numpy as np

from micu.evaluate.metrics import Floats, Ints
from micu.evaluate.scores import SCORES, Evidence, Fitting, Scorer, energy

NEIGHBOURS = 10
"""Which neighbour's distance counts, as MultiOOD; the last one where there are fewer."""

PRINCIPAL = 4
"""ViM keeps D divided by this many directions: 64 of 256."""

AT_ONCE = 1024
"""Clips whose distances are computed at once."""


@SCORES.register("knn")
def fit_knn(fitting: Fitting) -> Scorer:
    """Minus the squared distance to the tenth nearest training clip, features of length one.

    Source: Sun et al., ICML 2022.
    """
    known = _unit(fitting.train.pooled)
    place = min(NEIGHBOURS, len(known)) - 1

    def score(clips: Evidence) -> Floats:
        rows = _unit(clips.pooled)
        found = [
            # |a - b|^2 = 2 - 2 a b of vectors of length one.
            np.partition(2 - 2 * rows[i : i + AT_ONCE] @ known.T, place, axis=1)[:, place]
            for i in range(0, len(rows), AT_ONCE)
        ]
        result: Floats = -np.concatenate(found)
        return result

    return score


@SCORES.register("mahalanobis")
def fit_mahalanobis(fitting: Fitting) -> Scorer:
    """Minus the Mahalanobis distance to the nearest class mean, one covariance for all classes.

    Source: Lee et al., NeurIPS 2018. Differs: the covariance is shrunk after Ledoit and Wolf, for
    classes may have fewer clips than the features have dimensions.
    """
    pooled = fitting.train.pooled.astype(np.float64)
    means = class_means(pooled, fitting.labels)
    present, place = np.unique(fitting.labels, return_inverse=True)
    assert len(present) == len(means)
    precision = np.linalg.pinv(shrunk_covariance(pooled - means[place]), hermitian=True)
    return lambda clips: -_distances(clips.pooled, means, precision).min(1)


@SCORES.register("relative_mahalanobis")
def fit_relative_mahalanobis(fitting: Fitting) -> Scorer:
    """The Mahalanobis score minus that to the mean of all training clips, with their covariance.

    Source: Ren et al., arXiv 2106.09022.
    """
    to_class = fit_mahalanobis(fitting)
    pooled = fitting.train.pooled.astype(np.float64)
    mean = pooled.mean(0, keepdims=True)
    precision = np.linalg.pinv(shrunk_covariance(pooled - mean), hermitian=True)
    return lambda clips: to_class(clips) + _distances(clips.pooled, mean, precision)[:, 0]


@SCORES.register("vim")
def fit_vim(fitting: Fitting) -> Scorer:
    """Energy minus the scaled length of what the principal directions do not explain.

    Source: Wang et al., CVPR 2022. A quarter of the directions is kept.
    """
    weight, bias = fitting.weight.astype(np.float64), fitting.bias.astype(np.float64)
    # The point whose logits are 0: W o + b = 0.
    origin = -np.linalg.pinv(weight) @ bias
    centred = fitting.train.pooled.astype(np.float64) - origin
    _, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    # eigh sorts upwards, so the principal directions are the last ones.
    rest = directions[:, : centred.shape[1] - max(1, centred.shape[1] // PRINCIPAL)]
    # alpha makes the residual as large as the largest logit, on average over training clips.
    residual = np.linalg.norm(centred @ rest, axis=1).mean()
    scale = fitting.train.logits.max(1).mean() / residual if residual > 0 else 0.0

    def score(clips: Evidence) -> Floats:
        unexplained = np.linalg.norm((clips.pooled.astype(np.float64) - origin) @ rest, axis=1)
        result: Floats = energy(clips.logits) - scale * unexplained
        return result

    return score


def class_means(pooled: Floats, labels: Ints) -> Floats:
    """Mean of each class that has clips, (classes present, D), in the order of the labels."""
    return np.stack([pooled[labels == label].mean(0) for label in np.unique(labels)])


def shrunk_covariance(centred: Floats) -> Floats:
    """Covariance (D, D) of centred rows (n, D), drawn towards a multiple of the identity.

    Source: Ledoit and Wolf, J. Multivariate Analysis 88 (2004).
    """
    count, width = centred.shape
    covariance = centred.T @ centred / count
    # m = tr(S) / D, d^2 = |S - m I|^2 / D, b^2 = mean_i |x_i x_i' - S|^2 / (n D).
    level = np.trace(covariance) / width
    squares = centred**2
    spread = (np.square(covariance).sum() - width * level**2) / width
    noise = ((squares.T @ squares).sum() / count - np.square(covariance).sum()) / (count * width)
    # S* = (1 - b^2 / d^2) S + b^2 / d^2 m I.
    share = 0.0 if spread <= 0 else min(max(noise, 0.0), spread) / spread
    result: Floats = (1 - share) * covariance + share * level * np.eye(width)
    return result


def _distances(rows: Floats, means: Floats, precision: Floats) -> Floats:
    """Squared Mahalanobis distance of each row to each mean, (n, means)."""
    exact = rows.astype(np.float64)
    columns = []
    for mean in means:
        offset = exact - mean
        # (x - mu)' P (x - mu)
        columns.append(((offset @ precision) * offset).sum(1))
    return np.stack(columns, 1)


def _unit(rows: Floats) -> Floats:
    exact = rows.astype(np.float64)
    result: Floats = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    return result
