"""A task: `micu-eval example-coverage CHECKPOINT --pairs v:a --set at_least=2`."""

from dataclasses import dataclass

from micu.evaluate.evaluation import Evaluation, make_row
from micu.evaluate.report import Row


@dataclass(frozen=True)
class Coverage:
    """Share of the manifest's clips that have features of both modalities of each pair.

    Its fields are what `--set` takes, and stand in its rows. A task without any may be a function.
    """

    at_least: int = 1
    """Steps that a clip must have."""

    def __call__(self, evaluation: Evaluation) -> list[Row]:
        """The rows of one seed."""
        return [self.count(evaluation, *pair) for pair in evaluation.pairs]

    def count(self, evaluation: Evaluation, first: str, second: str) -> Row:
        """The row of one pair."""
        side = evaluation.source
        stores = [side.stores[first], side.stores[second]]
        both = [
            clip
            for clip in side.clips
            if all(clip.clip_id in store for store in stores)
            and all(store.read(clip.clip_id).mask.sum() >= self.at_least for store in stores)
        ]
        return make_row(
            evaluation,
            task="example-coverage",
            method="checkpoint",
            train=first,
            test=second,
            threshold_source="none",
            metric="covered",
            value=len(both) / len(side.clips),
            n_clips=len(side.clips),
            features=(first, second),
        )


coverage = Coverage()
