"""Which of several checkpoints of a run to evaluate.

The published work tests every checkpoint on AVE and takes the best for all tasks, so that what it
reports was chosen on a test set. Here that is `oracle`; `source-val` looks at held-out clips of the
source modality and of known classes alone.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from micu.base.errors import ConfigError
from micu.evaluate.report import Row

CRITERIA = {"source-val": "val_acc", "oracle": "hos"}
"""Protocol → its metric that decides; the higher the better."""


def choose_checkpoint(candidates: Mapping[Path, Sequence[Row]], protocol: str) -> tuple[Path, str]:
    """The checkpoint with the highest mean over pairs of modalities and seeds.

    Args:
        candidates: Rows of each checkpoint's own codes.
        protocol: One of `CRITERIA`.

    Returns:
        The checkpoint, the first of equals, and how it was chosen, in words.

    Raises:
        ConfigError: The criterion is nowhere defined.
    """
    merits = {path: merit(rows, protocol) for path, rows in candidates.items()}
    defined = {path: value for path, value in merits.items() if not math.isnan(value)}
    if not defined:
        raise ConfigError(f"--select-on {protocol}: {CRITERIA[protocol]} is not defined here")
    best = max(defined, key=lambda path: defined[path])
    seen = "on the test set" if protocol == "oracle" else "on held-out source clips"
    told = f"{best.name} is the best of {len(merits)} checkpoints by {CRITERIA[protocol]} {seen}"
    judged = [{*map(_judged_on, _deciding(rows, protocol))} for rows in candidates.values()]
    if any(clips != judged[0] for clips in judged):
        told += "; not all of them were judged on the same clips"
    return best, told


def merit(rows: Sequence[Row], protocol: str) -> float:
    """Mean of the protocol's criterion, NaN where a part of it is."""
    values = [row.value for row in _deciding(rows, protocol)]
    return statistics.fmean(values) if values else math.nan


def _deciding(rows: Sequence[Row], protocol: str) -> list[Row]:
    return [
        row for row in rows if row.threshold_source == protocol and row.metric == CRITERIA[protocol]
    ]


def _judged_on(row: Row) -> tuple[object, ...]:
    """Pair, seed and clips of a row."""
    pair = (row.train_modality, row.test_modality)
    return (*pair, row.seed, row.n_clips, row.test_sha256)
