"""Known scores beside each other, the best first."""

import math
import statistics
from collections.abc import Sequence

from micu.evaluate.markdown import TextTable
from micu.evaluate.report import COLUMNS, Row
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
