"""Which methods the benchmark can tell apart: several draws, paired, and corrected.

A draw deals clips, splits and known classes anew and is trained anew; within it all methods see
the same clips, so that differences are paired by draw. Two methods are told apart by a t-test over
draws whose variance is enlarged for draws that share most of their clips (Nadeau and Bengio,
Machine Learning 2003), with Holm's correction over all pairs of methods. Intervals are of a
bootstrap over draws, seeds and test clips.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from benchmarks.real_answers import Answers
from benchmarks.real_pairs import SHARES
from micu.evaluate.markdown import TextTable, render_markdown
from micu.evaluate.metrics import (
    UNKNOWN,
    Floats,
    Ints,
    accept_rates,
    auroc,
    harmonic_mean,
    softmax,
)
from micu.evaluate.thresholds import pick_threshold
from micu.report.drawings import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {"hos": "HOS", "auroc": "AUROC", "acc": "accuracy of known classes"}
RESAMPLES = 1000
LEVEL = 0.05

Key = tuple[str, str, int]
"""Source, target, known classes."""
Results = Mapping[str, Sequence[Sequence[Mapping[Key, Answers]]]]
"""Method → draw → seed → the answers to each key; draws and seeds in one order for all."""


def measure(answers: Answers, metric: str, rows: Ints | None = None) -> float:
    """A metric of the test clips, or of some of them, at the threshold of source validation."""
    chosen = slice(None) if rows is None else rows
    logits, labels = answers.test[chosen], answers.test_labels[chosen]
    scores = softmax(logits).max(-1)
    known = labels != UNKNOWN
    if metric == "auroc":
        return auroc(scores[known], scores[~known])
    if metric == "acc":
        return float((logits.argmax(-1) == labels)[known].mean())
    threshold = pick_threshold(softmax(answers.validation).max(-1))
    return harmonic_mean(*accept_rates(logits, labels, scores, threshold))


def means_of_draws(results: Results, metric: str) -> dict[str, list[float]]:
    """Method → the mean of each draw over its seeds, pairs of modalities and class splits."""
    return {
        method: [
            statistics.fmean(measure(a, metric) for seed in draw for a in seed.values())
            for draw in draws
        ]
        for method, draws in results.items()
    }


def bootstrap(results: Results, metric: str, resamples: int = RESAMPLES) -> dict[str, Floats]:
    """Method → its mean under each resampling of draws, seeds and test clips, (resamples,).

    All methods have the same draws, seeds and clips in one resampling, so that differences pair.
    """
    shape = [len(draw) for draw in next(iter(results.values()))]
    generator = np.random.default_rng(0)
    draws = generator.integers(len(shape), size=(resamples, len(shape)))
    seeds = [generator.integers(count, size=(resamples, count)) for count in shape]
    found = {}
    for method, table in results.items():
        by_seed = [
            [_resampled(seed, metric, d, resamples) for seed in t] for d, t in enumerate(table)
        ]
        by_draw = np.stack(
            [
                np.take_along_axis(np.stack(one, 1), seeds[d], 1).mean(1)
                for d, one in enumerate(by_seed)
            ],
            1,
        )
        found[method] = np.take_along_axis(by_draw, draws, 1).mean(1)
    return found


def _resampled(answers: Mapping[Key, Answers], metric: str, draw: int, resamples: int) -> Floats:
    """The mean over keys under each resampling of a draw's clips, (resamples,)."""
    values = np.zeros(resamples)
    for number, key in enumerate(sorted(answers)):
        generator = np.random.default_rng((1, draw, number))
        is_known = answers[key].test_labels != UNKNOWN
        sides = [np.flatnonzero(is_known), np.flatnonzero(~is_known)]
        for i in range(resamples):
            rows = np.concatenate([generator.choice(side, len(side)) for side in sides])
            values[i] += measure(answers[key], metric, rows)
    return values / len(answers)


@dataclass(frozen=True, slots=True)
class Difference:
    """One method against another."""

    better: str
    worse: str
    mean: float
    error: float
    """Standard error, corrected for clips that draws share."""
    p: float
    """Of both tails, after Holm's correction."""


def compare(means: Mapping[str, Sequence[float]]) -> list[Difference]:
    """Every pair of methods, by their means of each draw."""
    tests: list[Difference] = []
    for one, other in combinations(means, 2):
        gaps = np.subtract(means[one], means[other])
        first, second = (one, other) if gaps.mean() >= 0 else (other, one)
        error = corrected_error(gaps)
        p = math.nan
        if error > 0:
            p = float(2 * stats.t.sf(abs(gaps.mean()) / error, len(gaps) - 1))
        tests.append(Difference(first, second, abs(float(gaps.mean())), error, p))
    return [
        Difference(t.better, t.worse, t.mean, t.error, p)
        for t, p in zip(tests, holm([test.p for test in tests]), strict=True)
    ]


def corrected_error(gaps: Floats) -> float:
    """Standard error of the mean of paired differences over draws that share clips; NaN for one."""
    if len(gaps) < 2:
        return math.nan
    shared = SHARES["test"] / SHARES["train"]
    return float(np.sqrt(gaps.var(ddof=1) * (1 / len(gaps) + shared)))


def holm(values: Sequence[float]) -> list[float]:
    """Probabilities after Holm's step-down correction; NaN counts as 1."""
    exact = np.nan_to_num(np.asarray(values, float), nan=1.0)
    order = np.argsort(exact, kind="stable")
    raised = np.maximum.accumulate(exact[order] * np.arange(len(exact), 0, -1))
    corrected = np.empty(len(exact))
    corrected[order] = np.minimum(raised, 1.0)
    return corrected.tolist()


def power_table(results: Results, metric: str) -> tuple[str, Drawing]:
    """Methods, the best first: mean, interval, which ones it is told apart from; and as a drawing.

    Returns:
        Markdown, in percent; the drawing.
    """
    means, sampled = means_of_draws(results, metric), bootstrap(results, metric)
    differences = compare(means)
    order = sorted(means, key=lambda name: -statistics.fmean(means[name]))
    lines, bars = [], []
    for name in order:
        low, high = np.quantile(sampled[name], (LEVEL / 2, 1 - LEVEL / 2))
        beaten = [d.worse for d in differences if d.better == name and d.p < LEVEL]
        mean = statistics.fmean(means[name])
        bars.append((name, mean, float(low), float(high)))
        told = ", ".join(other for other in order if other in beaten)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append((name, f"{100 * mean:.1f}", interval, told or "none"))
    header = ("method", METRICS[metric], "95 % interval", "better than")
    reach = stats.t.ppf(1 - LEVEL / 2, len(means[order[0]]) - 1)
    errors = [100 * reach * d.error for d in differences]
    told = (
        f"Two methods alone are told apart from {statistics.median(errors):.1f} points on (median "
        f"over pairs; {min(errors):.1f} to {max(errors):.1f})."
    )
    text = f"{render_markdown(TextTable((header, *lines)), own_titles=True)}\n\n{told}"
    return text, draw_intervals(METRICS[metric], told, bars)


def draw_intervals(
    title: str, told: str, bars: Sequence[tuple[str, float, float, float]]
) -> Drawing:
    """Points with intervals (name, mean, low, high), one line each, from above."""

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        figure.set_size_inches(7, 0.7 + 0.32 * len(bars))
        for place, (_, mean, low, high) in enumerate(bars):
            axes.plot((low, high), (place, place), color="#4477aa", linewidth=2)
            axes.plot(mean, place, "o", color="#4477aa")
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
        axes.invert_yaxis()
        axes.set_xlabel(f"{title}, 95 % interval over draws, seeds and clips")

    return Drawing(title, told, paint)
