"""Known scores beside each other, the best first."""

import math
import statistics
from collections.abc import Sequence

from micu.evaluate.markdown import TextTable
from micu.evaluate.report import Row
from micu.evaluate.thresholds import ON_TEST

RANKED_BY = ("auroc", "oscr", "fpr_unk_at_95tpr_known", "hos")
"""The first one decides; it needs no threshold."""


def rank_scores(rows: Sequence[Row]) -> TextTable:
    """Scores by mean AUROC over pairs and seeds, one ranking per method, in percent.

    What is not defined, for want of clips of unknown classes, is a dash, and so is its rank. A
    score that could not be had for every pair is over fewer clips: it stands last, without a rank,
    and says over how many pairs it is. Rows whose threshold or epoch was chosen on the test set are
    left out, unless there are no others.
    """
    rows = [row for row in rows if row.task == "oscmg" and row.score]
    honest = [row for row in rows if row.threshold_source not in ON_TEST]
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    jobs: dict[tuple[str, str, str], set[tuple[str, str, int | None]]] = {}
    for row in honest or rows:
        if row.metric in RANKED_BY:
            job = (row.train_modality, row.test_modality, row.seed)
            jobs.setdefault((row.method, row.threshold_source, row.score), set()).add(job)
            group = values.setdefault((row.method, row.threshold_source, row.score), {})
            group.setdefault(row.metric, []).append(row.value)
    means = {
        key: [statistics.fmean(group[metric]) for metric in RANKED_BY]
        for key, group in values.items()
    }
    methods = {method: place for place, method in enumerate(dict.fromkeys(k[0] for k in means))}

    most = {
        (method, threshold): max(len(jobs[key]) for key in jobs if key[:2] == (method, threshold))
        for method, threshold, _ in jobs
    }

    def lacks(key: tuple[str, str, str]) -> bool:
        return len(jobs[key]) < most[key[:2]]

    def place(item: tuple[tuple[str, str, str], list[float]]) -> tuple[object, ...]:
        (method, threshold, _), found = item
        return methods[method], threshold, lacks(item[0]), math.isnan(found[0]), -found[0]

    ordered = sorted(means.items(), key=place)
    lines: list[tuple[str, ...]] = []
    previous: tuple[str, str] | None = None
    rank = 0
    for (method, threshold, score), found in ordered:
        rank = rank + 1 if (method, threshold) == previous else 1
        previous = (method, threshold)
        own, every = len(jobs[method, threshold, score]), most[method, threshold]
        told = str(rank) if own == every and not math.isnan(found[0]) else "–"
        name = score if own == every else f"{score} ({own} of {every} pairs and seeds)"
        lines.append((told, name, method, threshold, *map(_percent, found)))
    header = ("rank", "score", "method", "threshold", "AUROC", "OSCR", "FPR unk@95 known", "HOS")
    return TextTable((header, *lines))


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"
