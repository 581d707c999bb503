"""Where threshold and epoch come from: held-out clips, unlabelled pairs, or the test itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from micu.evaluate.metrics import (
    Floats,
    Ints,
    accept_rates,
    at_or_above,
    harmonic_mean,
    oracle_thresholds,
    softmax,
)

REJECTED = 0.05
"""Share of the validation clips that the `source-val` threshold may reject."""

FEWEST_PAIRS = 20
"""Pairs that `paired-quantile` needs: one in twenty is what the threshold rejects."""

SOURCE_VAL, PAIRED_QUANTILE, ORACLE = "source-val", "paired-quantile", "oracle"
LEFT_OUT = "left-out-classes"
ORACLE_AT_SOURCE_EPOCH = "oracle-at-source-epoch"
"""The oracle's threshold at the epoch of `source-val`: what is left of the gap between these two is
the epoch's."""

THRESHOLDS = (SOURCE_VAL, PAIRED_QUANTILE, LEFT_OUT)
"""Where an honest threshold may come from."""

ON_TEST = (ORACLE, ORACLE_AT_SOURCE_EPOCH)
"""Those that look at the test set."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A probe and a threshold, chosen."""

    epoch: int
    """Which of the candidate probes, counted from 0."""
    threshold: float


def choose_on_validation(
    logits: Sequence[Floats], labels: Ints, scores: Sequence[Floats]
) -> Choice:
    """Epoch and threshold from validation clips of known classes alone.

    Args:
        logits: Of the validation clips, one (n, C) per epoch.
        labels: Of the validation clips, (n,).
        scores: Known scores of the validation clips, one (n,) per epoch.
    """
    best = choose_epoch(logits, labels)
    return Choice(best, pick_threshold(scores[best]))


def choose_epoch(logits: Sequence[Floats], labels: Ints) -> int:
    """The epoch with the highest closed-set accuracy, as `choose_on_validation`.

    Among equals the one with the lowest cross-entropy, and then the earliest.
    """

    def merit(epoch: int) -> tuple[float, float, int]:
        right = float((logits[epoch].argmax(-1) == labels).mean())
        chances = softmax(logits[epoch])[np.arange(len(labels)), labels]
        return right, float(np.log(np.maximum(chances, 1e-300)).mean()), -epoch

    return max(range(len(logits)), key=merit)


def pick_threshold(validation_scores: Floats) -> float:
    """The threshold that accepts at least 95 % of known validation clips.

    Args:
        validation_scores: Known scores of validation clips of known classes, (n,).

    Returns:
        One of the scores: the quantile `REJECTED`, not interpolated. Up to 20 clips it is the
        lowest.
    """
    return float(np.quantile(validation_scores, REJECTED, method="lower"))


def leave_classes_out(logits: Floats, labels: Ints) -> float:
    """The threshold with the best HOS if each known class in turn were unknown.

    Nothing is trained again: the logit of the class goes, its clips count as unknown ones, and the
    score is the largest probability of the others. What all classes say is put together.

    Args:
        logits: Of validation clips of known classes, (n, C), C at least 3.
        labels: Of the same clips, (n,), of two classes or more.

    Returns:
        One of the scores, the lowest of those that are equally good.
    """
    known, right, unknown = [], [], []
    for label in np.unique(labels):
        rest, own = np.delete(logits, label, axis=1), labels == label
        scores, named = softmax(rest).max(-1), rest.argmax(-1)
        known.append(scores[~own])
        right.append(scores[~own & (named + (named >= label) == labels)])
        unknown.append(scores[own])
    return best_threshold(*map(np.concatenate, (known, right, unknown)))


def best_threshold(known: Floats, right: Floats, unknown: Floats) -> float:
    """Of all scores the one with the highest HOS, among equals the lowest.

    Args:
        known: Scores of known clips, (k,).
        right: Of those among them that get their class.
        unknown: Scores of unknown clips, (u,).
    """
    levels = np.unique(np.concatenate([known, unknown]))
    os_star = at_or_above(right, levels) / len(known)
    unk = 1 - at_or_above(unknown, levels) / len(unknown)
    return float(levels[np.argmax(os_star * unk / np.maximum(os_star + unk, 1e-300))])


def transfer_threshold(threshold: float, source_scores: Floats, target_scores: Floats) -> float:
    """The threshold that rejects as much in the target modality as `threshold` does in the source.

    That holds as far as both modalities score the clips alike; which classes these are of matters
    less, as long as the clips are the same. Clips that the probe was fitted to do not belong here:
    it is surer of them than of clips that are new to it, as those are that the threshold is for.

    Args:
        threshold: In the source modality.
        source_scores: Of unlabelled clips in the source modality, (n,).
        target_scores: Of the same clips in the target modality, (n,).

    Returns:
        One of `target_scores`: as many of them are below, ties aside, as `source_scores` are below
        `threshold`, but for one where that is all.
    """
    rejected = int((source_scores < threshold).sum())
    return float(np.sort(target_scores)[min(rejected, len(target_scores) - 1)])


def choose_on_test(logits: Sequence[Floats], labels: Ints, scores: Sequence[Floats]) -> Choice:
    """The oracle: highest HOS over ten thresholds and all epochs, on the test set itself.

    Among equals the first. Where no HOS is above 0, the first threshold of the first epoch.

    Args:
        logits: Of the test clips, one (n, C) per epoch.
        labels: Of the test clips, (n,), class or `UNKNOWN`.
        scores: Known scores of the test clips, one (n,) per epoch.
    """
    best, best_hos = Choice(0, float(scores[0].min())), 0.0
    for epoch, (table, found) in enumerate(zip(logits, scores, strict=True)):
        for threshold in oracle_thresholds(found):
            hos = harmonic_mean(*accept_rates(table, labels, found, float(threshold)))
            if hos > best_hos:
                best, best_hos = Choice(epoch, float(threshold)), hos
    return best
