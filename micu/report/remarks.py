"""What stands below a table of a report: its stars, and by which pairs thresholds were carried."""

from collections.abc import Iterable, Sequence

from micu.evaluate.report import CHANGES
from micu.report.compare import MODEL, Line, name_lists, short_preset
from micu.report.paper import metric_title

CARRIED = "carried to the target modality by "
"""Begins the part of a row's note that says by which pairs."""

PAIRED = (
    "paired-quantile carries the threshold to the target modality by clips that have both "
    "modalities and are neither trained nor tested on; their labels are not read. The probe is "
    "surer of clips that it was fitted to than of new ones; without them most pairs are of classes "
    "that are not known, where these have training clips too. "
)


def tell_remarks(lines: Sequence[Line]) -> list[str]:
    """What is wrong with figures that carry a star, and what stands behind a preset's star."""
    notes = {
        f"* {line.of.setting} {line.direction}, {metric_title(name)}: {cell.printed.note}"
        for line in lines
        for name, cell in line.cells.items()
        if cell.printed and cell.printed.note
    }
    return [*sorted(notes), *tell_presets(line.of.preset for line in lines), *_tell_pairs(lines)]


def tell_presets(presets: Iterable[str]) -> list[str]:
    """What the star behind a preset's name stands for, a line for each."""
    changed = sorted({preset for preset in presets if CHANGES in preset})
    return [f"{short_preset(preset)} is the preset {preset}." for preset in changed]


def _tell_pairs(lines: Sequence[Line]) -> list[str]:
    """By which pairs thresholds were carried over, from the notes of the model's own rows."""
    known = name_lists(line.of.known_list() for line in lines)
    told: dict[str, list[str]] = {}
    for line in lines:
        for part in line.of.note.split("; ") if line.of.method == MODEL else ():
            if part.startswith(CARRIED):
                job = f"{line.direction}, {known[line.of.known_list()] or 'all'} known"
                told.setdefault(part.removeprefix(CARRIED), []).append(job)
    parts = [f"{', '.join(dict.fromkeys(jobs))}: {pairs}" for pairs, jobs in told.items()]
    return [f"{PAIRED}{'; '.join(parts)}."] if parts else []
