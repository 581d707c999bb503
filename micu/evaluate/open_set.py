"""Open-set cross-modal generalisation: known classes in one modality, all classes in another.

Two protocols come out of one training of the probe, side by side:

- `source-val`, the headline: epoch and threshold come from held-out clips of the source modality
  and of known classes. Nothing of the test set is looked at.
- `oracle`, comparable with the paper: the best HOS over ten thresholds and all epochs, chosen on
  the test set itself, as the published scripts do.

Source: sections 3.1 and 4.1 of the MICU paper.
Differs: the paper does not say where its threshold is from, and reports what `oracle` computes.
"""

import logging
import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from micu.errors import ManifestError
from micu.evaluate.encoders import ClipEncoder
from micu.evaluate.metrics import (
    UNKNOWN,
    Floats,
    Ints,
    OpenSetMetrics,
    accept_rates,
    harmonic_mean,
    open_set_metrics,
    oracle_thresholds,
    softmax,
)
from micu.evaluate.probe import ProbeConfig, predict_logits
from micu.manifest import Clip
from micu.registry import Registry, suggest

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = "train", "val", "test"
"""Values of the manifest's `split` that the task reads."""

HELD_OUT = 0.15
"""Share of each class's training clips that is held out where the manifest has no `val` split."""

REJECTED = 0.05
"""Share of the validation clips that the `source-val` threshold may reject."""

SCORES: Registry[Callable[[Floats], Floats]] = Registry("score")
"""Known scores by name: logits (n, C) → (n,), higher = more known."""


@SCORES.register("msp")
def max_softmax(logits: Floats) -> Floats:
    """The largest softmax probability, as the paper."""
    result: Floats = softmax(logits).max(-1)
    return result


@SCORES.register("max_logit")
def max_logit(logits: Floats) -> Floats:
    """The largest logit. Source: Vaze et al., ICLR 2022."""
    result: Floats = logits.max(-1).astype(np.float64)
    return result


@SCORES.register("energy")
def energy(logits: Floats) -> Floats:
    """Log-sum-exp of the logits, at temperature 1. Source: Liu et al., NeurIPS 2020."""
    exact = logits.astype(np.float64)
    peak = exact.max(-1)
    result: Floats = peak + np.log(np.exp(exact - peak[:, None]).sum(-1))
    return result


@SCORES.register("entropy")
def negative_entropy(logits: Floats) -> Floats:
    """Minus the entropy of the softmax, nats."""
    chances = softmax(logits)
    result: Floats = (chances * np.log(np.maximum(chances, 1e-300))).sum(-1)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSetSplit:
    """Which clips an open-set task uses, and what is known."""

    train: tuple[Clip, ...]
    """Known classes, source modality."""
    validation: tuple[Clip, ...]
    """Known classes, source modality; none of them in `train`."""
    test: tuple[Clip, ...]
    """All classes, target modality."""
    known: tuple[str, ...]
    """Names of the C known classes; their order is the order of the logits."""
    held_out: bool
    """Whether `validation` was cut from the training clips, for want of a `val` split."""

    def labels(self, clips: Sequence[Clip]) -> NDArray[np.int64]:
        """Class of each clip, or `UNKNOWN`, (n,)."""
        index = {name: number for number, name in enumerate(self.known)}
        return np.array([index.get(clip.label, UNKNOWN) for clip in clips], np.int64)


@dataclass(frozen=True, slots=True)
class Choice:
    """A probe and a threshold, chosen."""

    epoch: int
    """Which of the candidate probes, counted from 0."""
    threshold: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one protocol says."""

    threshold_source: str
    """`source-val` or `oracle`."""
    note: str
    """How epoch and threshold were chosen, in words."""
    epoch: int
    """Which of the candidate probes, counted from 0."""
    metrics: OpenSetMetrics
    n_clips: int
    """Test clips."""
    val_acc: float
    """Closed-set accuracy of the probe on the validation clips: source modality, known classes."""
    n_validation: int
    """Validation clips."""


def split_clips(
    clips: Sequence[Clip],
    known: Sequence[str],
    *,
    source_ids: Container[str],
    target_ids: Container[str],
    seed: int,
) -> OpenSetSplit:
    """Cut a manifest into the three sets of the task.

    Validation is the manifest's `val` split if it has known classes there; else 15 % of each
    class's training clips, drawn by `seed`. Clips without a label are left out. A test clip whose
    class is not known counts as unknown, whatever it is.

    Args:
        clips: Of the manifest.
        known: Known classes.
        source_ids: Clips that have features of the source modality.
        target_ids: Clips that have features of the target modality.
        seed: For what is held out.

    Raises:
        ManifestError: One of the sets would be empty, or no clip is of a known class.
    """
    labelled = [clip for clip in clips if clip.label]
    wanted = set(known)
    _check_known(known, {clip.label for clip in labelled})
    sources = [clip for clip in labelled if clip.label in wanted and clip.clip_id in source_ids]
    train = tuple(clip for clip in sources if clip.split == TRAIN)
    validation = tuple(clip for clip in sources if clip.split == VALIDATION)
    held_out = not validation
    if held_out:
        train, validation = hold_out(train, seed)
    test = tuple(clip for clip in labelled if clip.split == TEST and clip.clip_id in target_ids)
    for name, chosen in (("training", train), ("validation", validation), ("test", test)):
        if not chosen:
            splits = ", ".join(sorted({repr(clip.split) for clip in labelled})) or "no label"
            raise ManifestError(
                f"oscmg: no {name} clip. It needs labelled clips whose split is {TRAIN!r} (known "
                f"classes, source modality) and {TEST!r} (all classes, target modality), with "
                f"features; the manifest's labelled rows have {splits}"
            )
    untrained = sorted(wanted - {clip.label for clip in train})
    if untrained:
        logger.warning("known classes without a training clip: %s", ", ".join(untrained))
    return OpenSetSplit(
        train=train,
        validation=validation,
        test=test,
        known=tuple(known),
        held_out=held_out,
    )


def _check_known(known: Sequence[str], labels: Collection[str]) -> None:
    """Refuse known classes that the manifest does not have: a name that was mistyped.

    Raises:
        ManifestError: There is one; all of them are named.
    """
    foreign = [name for name in known if name not in labels]
    if foreign:
        raise ManifestError(
            "--known: no clip of the manifest is of class\n"
            + "\n".join(f"  {name!r}; {suggest(name, labels)}" for name in foreign)
        )


def hold_out(
    clips: Sequence[Clip], seed: int, share: float = HELD_OUT
) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Split clips class by class: what stays, and what is held out.

    Of every class with two clips or more, at least one is held out and at least one stays.
    """
    random = np.random.default_rng(seed)
    members: dict[str, list[str]] = {}
    for clip in clips:
        members.setdefault(clip.label, []).append(clip.clip_id)
    held: set[str] = set()
    for _, unsorted in sorted(members.items()):
        ids = sorted(unsorted)
        count = min(max(1, round(share * len(ids))), len(ids) - 1)
        held.update(ids[i] for i in random.permutation(len(ids))[:count])
    stays = tuple(clip for clip in clips if clip.clip_id not in held)
    return stays, tuple(clip for clip in clips if clip.clip_id in held)


def choose_on_validation(
    logits: Sequence[Floats], labels: Ints, score: Callable[[Floats], Floats]
) -> Choice:
    """Epoch and threshold from validation clips of known classes alone.

    The epoch with the highest closed-set accuracy; among equals the one with the lowest
    cross-entropy, and then the earliest.

    Args:
        logits: Of the validation clips, one (n, C) per epoch.
        labels: Of the validation clips, (n,).
        score: Known score.
    """

    def merit(epoch: int) -> tuple[float, float, int]:
        right = float((logits[epoch].argmax(-1) == labels).mean())
        chances = softmax(logits[epoch])[np.arange(len(labels)), labels]
        return right, float(np.log(np.maximum(chances, 1e-300)).mean()), -epoch

    best = max(range(len(logits)), key=merit)
    return Choice(best, pick_threshold(score(logits[best])))


def pick_threshold(validation_scores: Floats, rejected: float = REJECTED) -> float:
    """The threshold that accepts at least 95 % of known validation clips.

    Args:
        validation_scores: Known scores of validation clips of known classes, (n,).
        rejected: Share of them that may fall below.

    Returns:
        One of the scores: the quantile `rejected`, not interpolated. Up to 20 clips it is the
        lowest.
    """
    return float(np.quantile(validation_scores, rejected, method="lower"))


def choose_on_test(
    logits: Sequence[Floats], labels: Ints, score: Callable[[Floats], Floats]
) -> Choice:
    """The oracle: highest HOS over ten thresholds and all epochs, on the test set itself.

    Among equals the first. Where no HOS is above 0, the first threshold of the first epoch.

    Args:
        logits: Of the test clips, one (n, C) per epoch.
        labels: Of the test clips, (n,), class or `UNKNOWN`.
        score: Known score.
    """
    best, best_hos = Choice(0, float(score(logits[0]).min())), 0.0
    for epoch, table in enumerate(logits):
        scores = score(table)
        for threshold in oracle_thresholds(scores):
            hos = harmonic_mean(*accept_rates(table, labels, scores, float(threshold)))
            if hos > best_hos:
                best, best_hos = Choice(epoch, float(threshold)), hos
    return best


def run_oscmg(
    encoder: ClipEncoder,
    split: OpenSetSplit,
    source: str,
    target: str,
    *,
    config: ProbeConfig,
    seed: int,
    score: str = "msp",
) -> list[Outcome]:
    """Train one probe, and evaluate it under both protocols, `source-val` first.

    Raises:
        ConfigError: No probe can be carried from the source to the target modality.
    """
    encoder.check_same_space(source, target)
    features = {
        part: encoder.encode(modality, [clip.clip_id for clip in clips]).to(encoder.device)
        for part, modality, clips in (
            ("train", source, split.train),
            ("validation", source, split.validation),
            ("test", target, split.test),
        )
    }
    labels = torch.from_numpy(split.labels(split.train))
    on_validation: list[Floats] = []
    on_test: list[Floats] = []
    for probe in encoder.train_probe(features["train"], labels, len(split.known), config, seed):
        on_validation.append(predict_logits(probe, features["validation"]))
        on_test.append(predict_logits(probe, features["test"]))
    test_labels, known_score = split.labels(split.test), SCORES[score]
    validation_labels = split.labels(split.validation)
    chosen = choose_on_validation(on_validation, validation_labels, known_score)
    oracle = choose_on_test(on_test, test_labels, known_score)
    told = _tell_choices(split, chosen, oracle, len(on_test))
    return [
        Outcome(
            name,
            told[name],
            choice.epoch,
            open_set_metrics(
                on_test[choice.epoch],
                test_labels,
                choice.threshold,
                known_score(on_test[choice.epoch]),
            ),
            len(split.test),
            float((on_validation[choice.epoch].argmax(-1) == validation_labels).mean()),
            len(validation_labels),
        )
        for name, choice in (("source-val", chosen), ("oracle", oracle))
    ]


def _tell_choices(
    split: OpenSetSplit, chosen: Choice, oracle: Choice, probes: int
) -> dict[str, str]:
    """How each protocol chose, in words, by `threshold_source`."""
    if split.held_out:
        origin = f"{HELD_OUT:.0%} of the training clips, held out"
        differs = (
            f"; not the paper's protocol: its probe learns from all training clips, this one "
            f"without the {HELD_OUT:.0%} held out for source-val"
        )
    else:
        origin, differs = f"split {VALIDATION!r} of the manifest", ""
    return {
        "source-val": f"accepts {1 - REJECTED:.0%} or more of {len(split.validation)} known source "
        f"clips ({origin}); probe {chosen.epoch + 1} of {probes} by their accuracy",
        "oracle": f"best HOS on the test set over 10 thresholds and {probes} probes; "
        f"probe {oracle.epoch + 1}{differs}",
    }


def chance(classes: int) -> Mapping[str, float]:
    """What a guess that ignores its input can reach, at its best.

    It calls a sample unknown with probability r and else names one of C classes with equal chance,
    so OS* = (1 - r) / C and UNK = r. HOS is highest at r = 1 / (1 + sqrt(C)), where it is
    2 / (1 + sqrt(C))². As r is chosen for the best HOS, this is generous: a bound for such guesses,
    not their average.

    Args:
        classes: C, known classes.
    """
    rejected = 1 / (1 + math.sqrt(classes))
    os_star = (1 - rejected) / classes
    return {
        "os_star": os_star,
        "os_star_class_mean": os_star,
        "unk": rejected,
        "hos": harmonic_mean(os_star, rejected),
        "hos_class_mean": harmonic_mean(os_star, rejected),
        "acc": 1 / classes,
        "auroc": 0.5,
        "oscr": 0.5 / classes,
    }
