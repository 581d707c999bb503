"""Open-set, localisation and retrieval metrics: pure numpy, natural sign, in [0, 1].

Known samples carry the index of their class, unknown ones `UNKNOWN`. A `known_score` is higher for
samples that look more known; a sample is called unknown if its score is below the threshold.

Source: section 4.1 of the MICU paper for OS*, UNK and HOS; Dhamija et al., NeurIPS 2018, for OSCR.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import MicuError, check_shape

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

UNKNOWN = -1
"""Label of a sample of a class that the probe has not seen."""

TPR = 0.95
"""Rate of true positives at which false positives are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSetMetrics:
    """One classifier on one test set, at one threshold. A metric that cannot be had is NaN."""

    os_star: float
    """Share of known samples that are accepted and get their class (over samples, as the paper)."""
    os_star_class_mean: float
    """The same, averaged over the known classes present, as the open-set adaptation literature."""
    unk: float
    """Share of unknown samples that are rejected."""
    hos: float
    """Harmonic mean of `os_star` and `unk`."""
    hos_class_mean: float
    """Harmonic mean of `os_star_class_mean` and `unk`."""
    acc: float
    """Closed-set accuracy: over known samples, with nothing rejected."""
    auroc: float
    """Probability that a known sample scores above an unknown one; a tie counts half."""
    ap_known: float
    """Average precision (step sum) with known samples as positives."""
    ap_unknown: float
    """Average precision (step sum) with unknown samples as positives."""
    oscr: float
    """Area under correct classification rate against false positive rate; ties count half."""
    fpr_unk_at_95tpr_known: float
    """Share of unknown samples accepted where 95 % of the known ones are (the classic FPR95)."""
    fpr_known_at_95tpr_unk: float
    """Share of known samples rejected where 95 % of the unknown ones are (OpenOOD, MultiOOD)."""
    threshold: float
    """Below it a sample is called unknown; in units of the score."""
    undefined: dict[str, str] = field(default_factory=dict)
    """Why a metric is NaN, by its name."""

    def values(self) -> dict[str, float]:
        """Every metric by name, the threshold among them."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "undefined"}


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis, in float64."""
    exact = logits.astype(np.float64)
    powers = np.exp(exact - exact.max(-1, keepdims=True))
    result: Floats = powers / powers.sum(-1, keepdims=True)
    return result


def open_set_metrics(
    logits: Floats, labels: Ints, threshold: float, known_score: Floats | None = None
) -> OpenSetMetrics:
    """Every open-set metric at one threshold.

    Args:
        logits: (n, C), over the known classes.
        labels: (n,), class in [0, C) or `UNKNOWN`.
        threshold: A sample is called unknown if its score is below it.
        known_score: (n,), higher = more known. Default: the largest softmax probability.

    Returns:
        The metrics. Without known, or without unknown samples, those that need them are NaN and
        `undefined` says why.

    Raises:
        ShapeError: The shapes do not fit.
        MicuError: A label is out of range, or a logit or score is not finite.
    """
    scores = softmax(logits).max(-1) if known_score is None else known_score
    check_open_set(logits, labels, scores)
    known = labels != UNKNOWN
    correct = known & (logits.argmax(-1) == labels)
    inside, outside = scores[known], scores[~known]
    os_star, unk = accept_rates(logits, labels, scores, threshold)
    by_class = class_mean((correct & (scores >= threshold))[known], labels[known])
    metrics = OpenSetMetrics(
        os_star=os_star,
        os_star_class_mean=by_class,
        unk=unk,
        hos=harmonic_mean(os_star, unk),
        hos_class_mean=harmonic_mean(by_class, unk),
        acc=_mean(correct[known]),
        auroc=auroc(inside, outside),
        ap_known=average_precision(inside, outside),
        ap_unknown=average_precision(-outside, -inside),
        oscr=oscr(scores[correct], len(inside), outside),
        fpr_unk_at_95tpr_known=fpr_at_tpr(inside, outside),
        fpr_known_at_95tpr_unk=fpr_at_tpr(-outside, -inside),
        threshold=float(threshold),
    )
    missing = [side for side, any_ in (("known", known), ("unknown", ~known)) if not any_.any()]
    reason = f"no {' and no '.join(missing)} test sample"
    for name, value in metrics.values().items():
        if math.isnan(value):
            metrics.undefined[name] = reason
    return metrics


def check_open_set(logits: Floats, labels: Ints, scores: Floats) -> None:
    """Refuse what no open-set metric can be made of.

    Raises:
        ShapeError: The shapes do not fit.
        MicuError: A label is out of range, or a logit or score is not finite.
    """
    size = check_shape(logits.shape, "n C", "logits")
    check_shape(labels.shape, "n", "labels", n=size["n"])
    check_shape(scores.shape, "n", "known scores", n=size["n"])
    if not size["n"]:
        return
    if labels.min() < UNKNOWN or labels.max() >= size["C"]:
        raise MicuError(
            f"labels: expected {UNKNOWN} for unknown or a class below {size['C']}, "
            f"got {labels.min()} to {labels.max()}"
        )
    if not (np.isfinite(logits).all() and np.isfinite(scores).all()):
        raise MicuError("logits or known scores: expected finite values, got NaN or infinity")


def accept_rates(
    logits: Floats, labels: Ints, scores: Floats, threshold: float
) -> tuple[float, float]:
    """OS* and UNK alone, for a search over thresholds; NaN where there is no such sample."""
    known, accepted = labels != UNKNOWN, scores >= threshold
    # OS*: a known sample must be accepted and get its class. UNK: an unknown one be rejected.
    right = accepted & (logits.argmax(-1) == labels)
    return _mean(right[known]), _mean(~accepted[~known])


def harmonic_mean(first: float, second: float) -> float:
    """Harmonic mean of two rates; 0 if both are 0."""
    return 0.0 if first + second == 0 else 2 * first * second / (first + second)


def oracle_thresholds(scores: Floats, count: int = 10) -> Floats:
    """Thresholds spaced evenly from the lowest to the highest score of the test set, (count,).

    They look at the test set: whatever is chosen among them is an oracle's choice. The first one
    accepts every sample, the last one only those with the highest score.
    """
    return np.linspace(scores.min(), scores.max(), count)


def auroc(positives: Floats, negatives: Floats) -> float:
    """Probability that a positive scores above a negative, ties counted half; NaN without pairs."""
    if not len(positives) or not len(negatives):
        return math.nan
    return _wins(positives, negatives) / (len(positives) * len(negatives))


def oscr(correct_scores: Floats, known: int, unknown_scores: Floats) -> float:
    """Area under the open-set classification rate curve, in closed form and aware of ties.

    Args:
        correct_scores: Scores of the known samples whose class is right, (k,).
        known: How many known samples there are, right or wrong.
        unknown_scores: Scores of the unknown samples, (u,).

    Returns:
        Accuracy times the AUROC of the correct known against the unknown samples; NaN without known
        or without unknown samples.
    """
    if not known or not len(unknown_scores):
        return math.nan
    return _wins(correct_scores, unknown_scores) / (known * len(unknown_scores))


def fpr_at_tpr(positives: Floats, negatives: Floats) -> float:
    """Share of negatives accepted at the first ROC point that accepts `TPR` of the positives."""
    if not len(positives) or not len(negatives):
        return math.nan
    # The highest threshold that still accepts the rate of positives.
    falling = np.sort(positives)[::-1]
    reached = np.arange(1, len(falling) + 1) / len(falling) >= TPR
    return float(np.mean(negatives >= falling[reached.argmax()]))


def average_precision(positives: Floats, negatives: Floats) -> float:
    """Area under the precision-recall curve as a step sum, as scikit-learn has it."""
    if not len(positives) or not len(negatives):
        return math.nan
    levels = np.unique(positives)[::-1]
    caught = at_or_above(positives, levels)
    precision = caught / (caught + at_or_above(negatives, levels))
    # sum over levels of (recall - recall before) * precision
    return float(np.sum(np.diff(caught, prepend=0) / len(positives) * precision))


def _wins(above: Floats, below: Floats) -> float:
    """Number of pairs in which the first scores higher, a tie counted half."""
    ranks = np.sort(below)
    # left counts those strictly below, right those at or below.
    left, right = (np.searchsorted(ranks, above, side).sum() for side in ("left", "right"))
    return float(left + right) / 2


def at_or_above(scores: Floats, levels: Floats) -> Ints:
    """How many scores are at each level or above it, (levels,)."""
    result: Ints = len(scores) - np.searchsorted(np.sort(scores), levels, "left")
    return result


def _mean(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else math.nan


def class_mean(hits: NDArray[np.bool_], labels: Ints) -> float:
    """Share of hits, averaged over the classes that are there; NaN without any."""
    rates = [hits[labels == label].mean() for label in np.unique(labels)]
    return float(np.mean(rates)) if rates else math.nan


# --- classes from segments, localisation -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Detection:
    """How well labelled segments were found."""

    precision: float
    recall: float
    f1: float


def batch_averaged_detection(
    logits: Floats, labels: NDArray[np.bool_], batch_sizes: Sequence[int]
) -> Detection:
    """Precision, recall and F1 as the published localisation scripts compute them.

    Precision and recall are taken over all segments and columns of a batch, background included,
    averaged over batches with the batch's size as weight, and F1 is made of the averages. They
    depend on how the test set is cut into batches.

    Args:
        logits: (n, T, C + 1); a class is predicted where its sigmoid is above 1/2.
        labels: (n, T, C + 1).
        batch_sizes: Clips per batch, in order; they sum to n.

    Returns:
        The metrics. A batch without a prediction, or without a label, counts as 0.
    """
    ends = np.cumsum(batch_sizes)
    check_shape(logits.shape, "n T C", "logits", n=int(ends[-1]))
    check_shape(labels.shape, "n T C", "labels", **dict(zip("nTC", logits.shape, strict=True)))
    parts = [
        detection(logits[end - size : end], labels[end - size : end], background=True)
        for size, end in zip(batch_sizes, ends, strict=True)
    ]
    precision = float(np.average([part.precision for part in parts], weights=batch_sizes))
    recall = float(np.average([part.recall for part in parts], weights=batch_sizes))
    return Detection(precision, recall, 2 * precision * recall / (precision + recall + 1e-10))


def detection(logits: Floats, labels: NDArray[np.bool_], *, background: bool) -> Detection:
    """Micro-averaged precision, recall and F1 over every segment and class of the test set.

    Args:
        logits: (..., C + 1), background last; a class is predicted where its logit is above 0.
        labels: (..., C + 1).
        background: Whether the background column counts.
    """
    columns = slice(None) if background else slice(None, -1)
    predicted, real = (logits > 0)[..., columns], labels[..., columns].astype(bool)
    hits = int((predicted & real).sum())
    precision, recall = hits / max(int(predicted.sum()), 1), hits / max(int(real.sum()), 1)
    return Detection(precision, recall, harmonic_mean(precision, recall))


# --- retrieval -------------------------------------------------------------------------------

QUERIES_AT_ONCE = 256
"""Queries that are compared with the whole gallery at once."""


def retrieval_recall(
    items: Floats, captions: Floats, owner: Ints, ranks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at K in both directions, by cosine similarity.

    Quantised embeddings tie often, and an order among ties would be an accident of the sorting. So
    each query counts with its chance of a hit if ties are broken at random: all embeddings equal
    gives the recall of guessing.

    Args:
        items: One embedding per item (video, sound), (n, D).
        captions: One embedding per caption, (m, D); an item may have several.
        owner: Item of each caption, (m,), in [0, n).
        ranks: The values of K.

    Returns:
        `r1_items_to_captions` and so on: the item's best ranked own caption counts; and
        `r1_captions_to_items` and so on.

    Raises:
        ShapeError: The shapes do not fit.
        MicuError: An embedding is not finite.
    """
    size = check_shape(items.shape, "n D", "items")
    rows = check_shape(captions.shape, "m D", "captions", D=size["D"])["m"]
    check_shape(owner.shape, "m", "owner", m=rows)
    if not (np.isfinite(items).all() and np.isfinite(captions).all()):
        raise MicuError("items or captions: expected finite values, got NaN or infinity")
    every_item = np.arange(size["n"])
    recall: dict[str, float] = {}
    for direction, queries, query_ids, gallery, gallery_ids in (
        ("items_to_captions", _unit(items), every_item, _unit(captions), owner),
        ("captions_to_items", _unit(captions), owner, _unit(items), every_item),
    ):
        chances = np.concatenate(
            [
                _chances_of_hit(
                    queries[i : i + QUERIES_AT_ONCE] @ gallery.T,
                    query_ids[i : i + QUERIES_AT_ONCE, None] == gallery_ids,
                    ranks,
                )
                for i in range(0, len(queries), QUERIES_AT_ONCE)
            ]
        )
        means = chances.mean(0)
        recall |= {f"r{k}_{direction}": float(x) for k, x in zip(ranks, means, strict=True)}
    return recall


def _chances_of_hit(similarity: Floats, own: NDArray[np.bool_], ranks: Sequence[int]) -> Floats:
    """Chance that a query's best own entry is among the first K, (queries, ranks).

    Args:
        similarity: (queries, gallery).
        own: Which entries are the query's, (queries, gallery).
        ranks: The values of K.
    """
    best = np.where(own, similarity, -np.inf).max(1, keepdims=True)
    tied = np.isclose(similarity, best, rtol=0, atol=1e-12)
    ahead = (~own & ~tied & (similarity > best)).sum(1)
    own_ties, other_ties = (own & tied).sum(1), (~own & tied).sum(1)
    return np.array(
        [
            [_chance_of_hit(rank - int(a), int(o), int(e)) for rank in ranks]
            for a, o, e in zip(ahead, own_ties, other_ties, strict=True)
        ]
    )


def _chance_of_hit(places: int, own: int, others: int) -> float:
    """Chance that one of `own` is among the first `places` of `own + others` in random order."""
    if places <= 0 or own == 0:
        return 0.0
    if places > others:
        return 1.0
    return 1.0 - math.comb(others, places) / math.comb(own + others, places)


def _unit(rows: Floats) -> Floats:
    exact = rows.astype(np.float64)
    result: Floats = exact / np.maximum(np.linalg.norm(exact, axis=-1, keepdims=True), 1e-12)
    return result
