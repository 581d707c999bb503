"""A task, `micu-eval example-coverage CHECKPOINT --pairs v:a`, with the options of cmg."""

from micu.evaluate.evaluation import Evaluation, make_row
from micu.evaluate.report import Row


def count_covered(evaluation: Evaluation) -> list[Row]:
    """Share of the manifest's clips that have features of both modalities of each pair."""
    side = evaluation.source
    rows = []
    for first, second in evaluation.pairs:
        both = [c for c in side.clips if all(c.clip_id in side.stores[m] for m in (first, second))]
        rows.append(
            make_row(
                evaluation,
                task="example-coverage",
                protocol="",
                method="checkpoint",
                train=first,
                test=second,
                threshold_source="none",
                metric="covered",
                value=len(both) / len(side.clips),
                n_clips=len(side.clips),
                features=(first, second),
                note="",
            )
        )
    return rows
