"""Known scores beside each other, the best first."""

import statistics
from collections.abc import Sequence

from micu.evaluate.report import Row, Table
from micu.evaluate.thresholds import ORACLE

RANKED_BY = ("auroc", "oscr", "fpr_unk_at_95tpr_known", "hos")
"""The first one decides; it needs no threshold."""


def rank_scores(rows: Sequence[Row]) -> Table:
    """Scores by mean AUROC over pairs and seeds, one ranking per method, in percent.

    Rows whose threshold or epoch was chosen on the test set are left out, unless there are no
    others.
    """
    rows = [row for row in rows if row.task == "oscmg" and row.score]
    honest = [row for row in rows if row.threshold_source != ORACLE]
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in honest or rows:
        if row.metric in RANKED_BY:
            group = values.setdefault((row.method, row.threshold_source, row.score), {})
            group.setdefault(row.metric, []).append(row.value)
    means = {
        key: [statistics.fmean(group[metric]) for metric in RANKED_BY]
        for key, group in values.items()
    }
    methods = {method: place for place, method in enumerate(dict.fromkeys(k[0] for k in means))}
    ordered = sorted(means.items(), key=lambda item: (methods[item[0][0]], item[0][1], -item[1][0]))
    lines: list[tuple[str, ...]] = []
    previous: tuple[str, str] | None = None
    rank = 0
    for (method, threshold, score), found in ordered:
        rank = rank + 1 if (method, threshold) == previous else 1
        previous = (method, threshold)
        lines.append((str(rank), score, method, threshold, *(f"{100 * x:.2f}" for x in found)))
    header = ("rank", "score", "method", "threshold", "AUROC", "OSCR", "FPR unk@95 known", "HOS")
    return Table((header, *lines))
