"""A submission: one `results.csv`, checked for protocol, leaks, seeds and hashes; and the board."""

import re
import statistics
from collections.abc import Mapping, Sequence

from micu.evaluate.markdown import TextTable
from micu.evaluate.report import FROZEN, Row
from micu.evaluate.splits import CLEAN
from micu.evaluate.thresholds import ON_TEST
from micu.report.compare import MODEL, Cell, grouped, show_mean
from micu.report.paper import direction_of
from micu.report.summary import MAIN

SEEDS = 5
"""Fewest seeds of each figure."""
TOLD = ("pretraining-overlap:unknown", "pretraining-text:labels")
"""Leaks that stand on the board and do not end a submission: they are not of the tested clips."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def counted(rows: Sequence[Row]) -> list[Row]:
    """The rows that a board is made of: a method's main figures under `clean`."""
    return [
        row
        for row in rows
        if row.protocol == CLEAN
        and (row.method == MODEL or row.method.startswith(FROZEN))
        and row.metric in MAIN.get(row.task, ())
        and not row.other_split
    ]


def _job(row: Row) -> tuple[object, ...]:
    """What a figure is of; its seeds are those of one mean."""
    what = (row.task, row.metric, row.setting, row.manifest_sha256, *row.known_list())
    pair = direction_of(row.train_modality, row.test_modality)
    return (*what, pair, row.method, row.preset, row.threshold_source, row.score)


def find_problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with a submission, in words; empty if nothing is."""
    own = counted(rows)
    if not own:
        return ["no row of a method under protocol clean; evaluate with --protocol clean"]
    problems: dict[str, None] = {}
    for row in own:
        told = f"{row.task} {direction_of(row.train_modality, row.test_modality)} {row.metric}"
        told = f"{told}, seed {row.seed}"
        leaks = [leak for leak in row.leaks.split(";") if leak and leak not in TOLD]
        digests = {"manifest_sha256": row.manifest_sha256, "test_sha256": row.test_sha256}
        if row.method == MODEL:
            digests["checkpoint_sha256"] = row.checkpoint_sha256
        bad = [n for n, text in digests.items() if not all(map(_is_sha256, text.split() or [""]))]
        found = {
            f"rests on {', '.join(leaks)}": bool(leaks),
            f"its threshold is chosen on the test set ({row.threshold_source})": (
                row.threshold_source in ON_TEST
            ),
            f"{', '.join(bad)}: expected SHA-256, got something else": bool(bad),
            f"value: expected [0, 1], got {row.value}": not 0 <= row.value <= 1,
            "it has no seed": row.seed is None,
        }
        problems |= dict.fromkeys(f"{told}: {text}" for text, is_bad in found.items() if is_bad)
    for job, same in grouped(own, _job).items():
        seeds = {row.seed for row in same}
        if len(seeds) < SEEDS or len(same) > len(seeds):
            told = " ".join(str(part) for part in (job[0], job[-5], job[1]))
            problems[
                f"{told}: expected {SEEDS} seeds or more, one row each, got {len(same)} rows of "
                f"{len(seeds)} seeds; evaluate with --seeds {SEEDS}"
            ] = None
    return list(problems)


def _is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def tabulate_board(submissions: Mapping[str, Sequence[Row]]) -> TextTable:
    """Means over pairs, then over seeds, of each submission; the best of each task first.

    Only what was tested on the same clips is comparable: those have one digest.
    """
    lines = []
    for name, rows in submissions.items():
        jobs = grouped(counted(rows), lambda row: (_job(row)[:-5], _job(row)[-4:]))
        for same in jobs.values():
            first = same[0]
            pairs = {(row.train_modality, row.test_modality) for row in same}
            by_seed = grouped(same, lambda row: row.seed).values()
            cell = Cell(tuple(statistics.fmean(r.value for r in seed) for seed in by_seed))
            method = first.preset if first.method == MODEL else first.method
            tested = " ".join(sorted({row.test_sha256[:8] for row in same}))
            what = first.setting or " ".join(filter(None, first.known_list()[:2]))
            how = " ".join(filter(None, (first.threshold_source.replace("none", ""), first.score)))
            line = (
                name,
                method,
                first.task,
                what,
                first.metric,
                how,
                show_mean(cell, first.metric),
            )
            leaks = " ".join(sorted({leak for r in same for leak in r.leaks.split(";") if leak}))
            tail = (str(len(pairs)), str(len(cell.values)), tested, leaks)
            lines.append(((first.task, what, first.metric, -cell.mean), (*line, *tail)))
    header = ("submission", "method", "task", "setting", "metric", "by", "mean", "pairs")
    lines.sort(key=lambda line: line[0])
    return TextTable(((*header, "seeds", "tested clips", "rests on"), *(line for _, line in lines)))
