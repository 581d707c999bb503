"""Open-set cross-modal generalisation: known classes in one modality, all classes in another.

One training of the probe is read with thresholds of several origins:

- `source-val`, the headline: epoch and threshold come from held-out clips of the source modality
  and of known classes. Nothing of the test set is looked at.
- `paired-quantile`: the same, carried to the scale of the target modality by unlabelled pairs.
- `left-out-classes`: as `source-val`, but the threshold that would tell each known class best from
  the others, were it unknown.
- `oracle`, comparable with the paper: the best HOS over ten thresholds and all epochs, chosen on
  the test set itself, as the published scripts do.
- `oracle-at-source-epoch`, to tell threshold from epoch: the best of ten thresholds on the test set
  at the epoch of `source-val`.

Source: sections 3.1 and 4.1 of the MICU paper.
Differs: the paper does not say where its threshold is from, and reports what `oracle` computes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from micu.base.errors import ConfigError, ManifestError
from micu.evaluate import feature_scores  # noqa: F401 - registers its scores
from micu.evaluate.code_scores import CODE_SCORES, QUANTIZATION, no_codes
from micu.evaluate.details import ClipMap, Details, map_clips
from micu.evaluate.encoders import FeatureEncoder, check_same_space
from micu.evaluate.metrics import (
    Floats,
    Ints,
    OpenSetMetrics,
    harmonic_mean,
    open_set_metrics,
)
from micu.evaluate.probe import ClipFeatures, Predicted, Probe, ProbeConfig, predict
from micu.evaluate.scores import SCORES, Evidence, Fitting
from micu.evaluate.splits import HELD_OUT, VALIDATION, OpenSetSplit
from micu.evaluate.thresholds import (
    FEWEST_PAIRS,
    LEFT_OUT,
    ON_TEST,
    ORACLE,
    ORACLE_AT_SOURCE_EPOCH,
    PAIRED_QUANTILE,
    REJECTED,
    SOURCE_VAL,
    Choice,
    choose_on_test,
    choose_on_validation,
    leave_classes_out,
    transfer_threshold,
)

MSP = "msp"
"""The one score of which a class can be left out."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one probe, which is one epoch's, says; by set of clips."""

    logits: Mapping[str, Floats]
    """`validation` and `test` → (n, C)"""
    scores: Mapping[str, Mapping[str, Floats]]
    """Score → set of clips → (n,)"""


@dataclass(frozen=True, slots=True)
class OpenSetResult:
    """What one score says at one threshold."""

    score: str
    threshold_source: str
    """One of `THRESHOLDS` or `ON_TEST`."""
    note: str
    """How epoch and threshold were chosen, in words."""
    epoch: int
    """Which of the candidate probes, counted from 0."""
    metrics: OpenSetMetrics
    n_clips: int
    """Test clips."""
    val_acc: float
    """Closed-set accuracy of the probe on the validation clips: source modality, known classes; NaN
    without any."""
    n_validation: int
    """Validation clips."""
    details: Details
    """Clip by clip."""


def scores_for(
    encoder: FeatureEncoder, split: OpenSetSplit, source: str, target: str, asked: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The scores that a name stands for, and why the others are left out.

    `all` is every score that these features and clips allow; what they do not allow in principle
    (codes, of features that have none) is left out without a word.

    Raises:
        ConfigError: The one that was asked for cannot be.
        RegistryError: There is no such score.
    """
    if asked != "all":
        SCORES[asked]
        if asked in CODE_SCORES and not encoder.codebook_size:
            raise no_codes(asked)
        if asked == QUANTIZATION and _lacks_pairs(split, source, target):
            raise _cannot_standardise(target)
        return (asked,), ()
    names = [name for name in SCORES if encoder.codebook_size or name not in CODE_SCORES]
    if QUANTIZATION in names and _lacks_pairs(split, source, target):
        names.remove(QUANTIZATION)
        return tuple(names), (str(_cannot_standardise(target)),)
    return tuple(names), ()


def thresholds_for(
    split: OpenSetSplit,
    source: str,
    target: str,
    asked: Sequence[str],
    scores: Sequence[str] = (MSP,),
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the thresholds asked for that can be, and why the others cannot.

    Raises:
        ManifestError: None can be.
    """
    problems: dict[str, ManifestError] = {}
    if PAIRED_QUANTILE in asked and len(split.pairs) < FEWEST_PAIRS:
        problems[PAIRED_QUANTILE] = _few_pairs(split, source, target)
    classes = len({clip.label for clip in split.validation})
    if LEFT_OUT in asked and (MSP not in scores or min(classes, len(split.known) - 1) < 2):
        problems[LEFT_OUT] = ManifestError(
            f"--threshold {LEFT_OUT}: expected --score {MSP}, three known classes or more and "
            f"validation clips of two, got {','.join(scores)}, {len(split.known)} and "
            f"{classes}; use --threshold {SOURCE_VAL}"
        )
    left = tuple(name for name in asked if name not in problems)
    if not left:
        raise next(iter(problems.values()))
    return left, tuple(map(str, problems.values()))


def run_oscmg(
    encoder: FeatureEncoder,
    split: OpenSetSplit,
    source: str,
    target: str,
    *,
    config: ProbeConfig,
    seed: int,
    scores: Sequence[str] = ("msp",),
    thresholds: Sequence[str] = (SOURCE_VAL, ORACLE),
    target_encoder: FeatureEncoder | None = None,
) -> list[OpenSetResult]:
    """Train one probe, and evaluate it with every score and threshold.

    Args:
        encoder: Of the source manifest's clips.
        split: Which clips; without validation clips only `oracle` is possible.
        source: Modality that the probe is trained on.
        target: Modality that it is tested on.
        config: Of the probe.
        seed: Of the probe.
        scores: Names of known scores.
        thresholds: Where thresholds come from.
        target_encoder: Of the target manifest's clips; None if that is the source manifest.

    Raises:
        ConfigError: No probe can be carried from the source to the target modality, or there are
            not the clips that a score needs.
        ManifestError: There are not the clips that a threshold needs.
    """
    target_encoder = target_encoder or encoder
    check_same_space(encoder, source, target_encoder, target)
    wanted = {
        "train": (encoder, source, [clip.clip_id for clip in split.train]),
        "validation": (encoder, source, [clip.clip_id for clip in split.validation]),
        "test": (target_encoder, target, [clip.clip_id for clip in split.test]),
    }
    if PAIRED_QUANTILE in thresholds:
        if len(split.pairs) < FEWEST_PAIRS:
            raise _few_pairs(split, source, target)
        wanted |= {
            "pairs in the source": (encoder, source, list(split.pairs)),
            "pairs in the target": (encoder, target, list(split.pairs)),
        }
    features = {
        part: reader.encode(modality, ids).to(encoder.device)
        for part, (reader, modality, ids) in wanted.items()
        if ids
    }
    errors = _training_errors(encoder, split, features["train"], target, scores)
    train_labels = split.labels(split.train)
    labels = torch.from_numpy(train_labels)
    candidates = [
        _judge(probe, features, train_labels, scores, encoder.codebook_size, errors)
        for probe in encoder.train_probe(features["train"], labels, len(split.known), config, seed)
    ]
    mapped = map_clips(((split.train, features["train"]), (split.test, features["test"])))
    return [
        _conclude(candidates, split, mapped, score, threshold)
        for score in scores
        for threshold in thresholds
        if threshold != LEFT_OUT or score == MSP
    ]


def _judge(
    probe: Probe,
    features: Mapping[str, ClipFeatures],
    labels: Ints,
    scores: Sequence[str],
    codebook_size: int,
    errors: dict[str, Floats],
) -> Candidate:
    """Logits and scores of one candidate probe; scores are fitted on its training clips."""
    found = {part: _evidence(clips, predict(probe, clips)) for part, clips in features.items()}
    fitting = Fitting(
        train=found.pop("train"),
        labels=labels,
        weight=probe.classify.weight.detach().cpu().numpy(),
        bias=probe.classify.bias.detach().cpu().numpy(),
        codebook_size=codebook_size,
        errors=errors,
    )
    fitted = {name: SCORES[name](fitting) for name in scores}
    scored = {
        name: {part: score(clips) for part, clips in found.items()}
        for name, score in fitted.items()
    }
    for name, parts in scored.items():
        for part, values in parts.items():
            if not np.isfinite(values).all():
                raise ConfigError(
                    f"--score {name}: expected finite scores of the {part} clips, got NaN or "
                    "infinity; use another score, or look at these features"
                )
    return Candidate({part: clips.logits for part, clips in found.items()}, scored)


def _evidence(clips: ClipFeatures, predicted: Predicted) -> Evidence:
    return Evidence(
        modality=clips.modality,
        logits=predicted.logits,
        pooled=predicted.pooled,
        mask=clips.mask.cpu().numpy(),
        codes=None if clips.codes is None else clips.codes.cpu().numpy(),
        errors=None if clips.errors is None else clips.errors.cpu().numpy(),
    )


def _training_errors(
    encoder: FeatureEncoder,
    split: OpenSetSplit,
    train: ClipFeatures,
    target: str,
    scores: Sequence[str],
) -> dict[str, Floats]:
    """Quantisation errors of training clips in both modalities, where a score needs them."""
    if QUANTIZATION not in scores or train.errors is None:
        return {}
    found = {train.modality: train}
    if target != train.modality:
        if _lacks_pairs(split, train.modality, target):
            raise _cannot_standardise(target)
        found[target] = encoder.encode(target, split.paired)
    return {
        name: clips.errors[clips.mask].cpu().double().numpy()
        for name, clips in found.items()
        if clips.errors is not None
    }


def _lacks_pairs(split: OpenSetSplit, source: str, target: str) -> bool:
    return source != target and not split.paired


def _cannot_standardise(target: str) -> ConfigError:
    return ConfigError(
        f"--score {QUANTIZATION}: no training clip has {target} features, by which it is "
        "standardised; extract them, or use another score"
    )


def _few_pairs(split: OpenSetSplit, source: str, target: str) -> ManifestError:
    return ManifestError(
        f"--threshold {PAIRED_QUANTILE}: expected {FEWEST_PAIRS} or more clips with {source} "
        f"and {target} features that are neither trained nor tested on, got "
        f"{len(split.pairs)}; use --threshold {SOURCE_VAL}"
    )


def _conclude(
    candidates: Sequence[Candidate],
    split: OpenSetSplit,
    mapped: ClipMap,
    score: str,
    threshold_source: str,
) -> OpenSetResult:
    """One score at one threshold."""
    test_labels = split.labels(split.test)

    def of(part: str) -> tuple[list[Floats], list[Floats]]:
        return [c.logits[part] for c in candidates], [c.scores[score][part] for c in candidates]

    if threshold_source == ORACLE:
        logits, scores = of("test")
        chosen = choose_on_test(logits, test_labels, scores)
    else:
        logits, scores = of("validation")
        chosen = choose_on_validation(logits, split.labels(split.validation), scores)
    if threshold_source == ORACLE_AT_SOURCE_EPOCH:
        logits, scores = ([part[chosen.epoch]] for part in of("test"))
        chosen = Choice(chosen.epoch, choose_on_test(logits, test_labels, scores).threshold)
    if threshold_source == PAIRED_QUANTILE:
        found = candidates[chosen.epoch].scores[score]
        carried = transfer_threshold(
            chosen.threshold, found["pairs in the source"], found["pairs in the target"]
        )
        chosen = Choice(chosen.epoch, carried)
    best = candidates[chosen.epoch]
    if threshold_source == LEFT_OUT:
        known = split.labels(split.validation)
        chosen = Choice(chosen.epoch, leave_classes_out(best.logits["validation"], known))
    right = math.nan
    if split.validation:
        right = (best.logits["validation"].argmax(-1) == split.labels(split.validation)).mean()
    tested, known_score = best.logits["test"], best.scores[score]["test"]
    return OpenSetResult(
        score,
        threshold_source,
        _tell_choice(split, threshold_source, chosen, len(candidates)),
        chosen.epoch,
        open_set_metrics(tested, test_labels, chosen.threshold, known_score),
        len(split.test),
        float(right),
        len(split.validation),
        Details(
            logits=tested,
            labels=test_labels,
            known_score=known_score,
            threshold=chosen.threshold,
            classes=split.known,
            clip_ids=tuple(clip.clip_id for clip in split.test),
            clip_classes=tuple(clip.label for clip in split.test),
            mapped=mapped,
        ),
    )


def _tell_choice(split: OpenSetSplit, threshold_source: str, chosen: Choice, probes: int) -> str:
    """How epoch and threshold were chosen, in words."""
    if split.held_out:
        origin = f"{HELD_OUT:.0%} of the training clips, held out"
        differs = (
            f"; not the paper's protocol: its probe learns from all training clips, this one "
            f"without the {HELD_OUT:.0%} held out for source-val"
        )
    else:
        origin, differs = f"split {VALIDATION!r} of the manifest", ""
    if threshold_source in ON_TEST and len({clip.label in split.known for clip in split.test}) < 2:
        first = "first" if threshold_source == ORACLE else "most accurate"
        return (
            "no HOS without test clips of known and of unknown classes: the lowest score of the "
            f"{first} of {probes} probes{differs}"
        )
    if threshold_source == ORACLE:
        return (
            f"best HOS on the test set over 10 thresholds and {probes} probes; "
            f"probe {chosen.epoch + 1}{differs}"
        )
    by_accuracy = f"probe {chosen.epoch + 1} of {probes} by their accuracy"
    if threshold_source == ORACLE_AT_SOURCE_EPOCH:
        chosen_by = "best HOS on the test set over 10 thresholds, its epoch by"
    elif threshold_source == LEFT_OUT:
        chosen_by = "best HOS, were each class in turn unknown, of"
    else:
        chosen_by = f"accepts {1 - REJECTED:.0%} or more of"
    told = f"{chosen_by} {len(split.validation)} known source clips ({origin}); {by_accuracy}"
    if threshold_source == PAIRED_QUANTILE:
        told += (
            f"; carried to the target modality by {len(split.pairs)} unlabelled pairs, none of "
            f"them trained or tested on: {split.pairs_of_known} of known classes, "
            f"{len(split.pairs) - split.pairs_of_known} of others or without a class"
        )
    return f"{told}; {split.note}" if split.note else told


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
