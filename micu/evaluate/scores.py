"""Known scores: how much a clip looks like the classes that a probe was trained on; a ranking.

A score is fitted on training clips of known classes, source modality, and then laid on any clips;
higher = more known. What it may read of a clip are the probe's logits, the pooled features that
these are made of, and the codes.

Source: the papers named beside each. Registered in `micu.evaluate.feature_scores` and
`micu.evaluate.code_scores`, too.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from micu.base.registry import Registry
from micu.evaluate.markdown import TextTable
from micu.evaluate.metrics import Floats, Ints, softmax
from micu.evaluate.report import COLUMNS, Row
from micu.evaluate.thresholds import ON_TEST

RANKED_BY = ("auroc", "oscr", "fpr_unk_at_95tpr_known", "hos")
"""The first one decides; it needs no threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known about n clips of one modality."""

    modality: str
    logits: Floats
    """(n, C)"""
    pooled: Floats
    """(n, D), what the probe's last layer reads."""
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    """(n, T), True = real step"""
    codes: Ints | None = None
    """(n, T)"""
    errors: Floats | None = None
    """(n, T), squared distance of each step to its code"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """What a score may be fitted on: clips that the probe was trained on, and the probe."""

    train: Evidence
    """Known classes, source modality."""
    labels: Ints
    """Class of each, (n,)."""
    weight: Floats
    """(C, D), of the probe's last layer."""
    bias: Floats
    """(C,)"""
    codebook_size: int
    """K; 0 where there are no codes."""
    errors: dict[str, Floats] = field(default_factory=dict)
    """Modality → quantisation errors of training clips at real steps, (m,); see `code_scores`."""


Scorer = Callable[[Evidence], Floats]
"""Evidence about n clips → known scores, (n,)."""

SCORES: Registry[Callable[[Fitting], Scorer]] = Registry("score")
"""By name: from what a score is fitted on to the fitted score."""


def _of_logits(name: str) -> Callable[[Callable[[Floats], Floats]], Callable[[Floats], Floats]]:
    """Register a score of the logits alone, (n, C) → (n,): nothing is fitted."""

    def add(score: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
        SCORES.register(name)(lambda fitting: lambda clips: score(clips.logits))
        return score

    return add


@_of_logits("msp")
def max_softmax(logits: Floats) -> Floats:
    """The largest softmax probability, as the paper; (n, C) → (n,)."""
    result: Floats = softmax(logits).max(-1)
    return result


@_of_logits("max_logit")
def max_logit(logits: Floats) -> Floats:
    """The largest logit. Source: Vaze et al., ICLR 2022."""
    result: Floats = logits.max(-1).astype(np.float64)
    return result


@_of_logits("energy")
def energy(logits: Floats) -> Floats:
    """Log-sum-exp of the logits, at temperature 1. Source: Liu et al., NeurIPS 2020."""
    exact = logits.astype(np.float64)
    peak = exact.max(-1)
    result: Floats = peak + np.log(np.exp(exact - peak[:, None]).sum(-1))
    return result


@_of_logits("entropy")
def negative_entropy(logits: Floats) -> Floats:
    """Minus the entropy of the softmax, nats."""
    chances = softmax(logits)
    result: Floats = (chances * np.log(np.maximum(chances, 1e-300))).sum(-1)
    return result


# --- scores beside each other, the best first ----------------------------------------------------


def rank_scores(rows: Sequence[Row]) -> TextTable:
    """Scores by mean AUROC over pairs and seeds, one ranking per method, in percent.

    What is not defined, for want of clips of unknown classes, is a dash, and so is its rank. A
    score that could not be had for every pair is over fewer clips: it stands last, without a rank,
    and says over how many pairs it is. Rows whose threshold or epoch was chosen on the test set are
    left out, unless there are no others.
    """
    import pandas as pd

    rows = [row for row in rows if row.task == "oscmg" and row.score and row.metric in RANKED_BY]
    honest = [row for row in rows if row.threshold_source not in ON_TEST]
    frame = pd.DataFrame([row.values() for row in honest or rows], columns=COLUMNS)
    job = ["method", "threshold_source", "score"]
    frame["pair"] = list(zip(frame.train_modality, frame.test_modality, frame.seed, strict=True))
    means = frame.groupby([*job, "metric"]).value.agg(statistics.fmean).unstack()
    scores = pd.MultiIndex.from_frame(frame[job].drop_duplicates())
    means = means.reindex(scores).reindex(columns=RANKED_BY)
    means["own"] = frame.groupby(job).pair.nunique()
    means = means.reset_index()
    means["all"] = means.groupby(job[:2]).own.transform("max")
    means["lacks"] = means.own < means["all"]
    means["place"] = pd.factorize(means.method)[0]
    order = ["place", "threshold_source", "lacks", RANKED_BY[0]]
    means = means.sort_values(order, ascending=[True, True, True, False])
    means["rank"] = means.groupby(job[:2]).cumcount() + 1
    lines = [
        (
            "–" if line.lacks or math.isnan(line.auroc) else str(line.rank),
            line.score + f" ({line.own} of {line.all} pairs and seeds)" * line.lacks,
            line.method,
            line.threshold_source,
            *(_percent(getattr(line, name)) for name in RANKED_BY),
        )
        for line in means.itertuples()
    ]
    header = ("rank", "score", "method", "threshold", "AUROC", "OSCR", "FPR unk@95 known", "HOS")
    return TextTable((header, *lines))


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"
