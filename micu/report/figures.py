"""Drawings of one outcome, of a codebook and of a training."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from micu.evaluate.codebook import SHARE, CodebookUse
from micu.evaluate.details import Details, thin_out
from micu.evaluate.metrics import (
    UNKNOWN,
    Floats,
    Ints,
    accept_rates,
    auroc,
    harmonic_mean,
    oscr,
)
from micu.report.clip_map import place_clips
from micu.report.svg import (
    SHARES,
    Axis,
    Curve,
    class_colour,
    draw_cells,
    draw_curves,
    draw_points,
    draw_shares,
    figure,
    legend,
    series_legend,
)

POINTS = 200
"""Points of a curve, at most."""

MAPPED = 500
"""Clips of each modality that a map shows, at most."""

REJECTED, UNKNOWN_CLASSES = "×", "(unknown classes)"


def threshold_curves(details: Details) -> list[Curve]:
    """OS*, UNK and HOS against the threshold, over all of the scores."""
    scores = details.known_score.astype(np.float64)
    levels = np.unique(scores)
    levels = levels[thin_out(len(levels), POINTS)]
    rates = [accept_rates(details.logits, details.labels, scores, float(t)) for t in levels]
    os_star, unk = ([pair[i] for pair in rates] for i in range(2))
    hos = [harmonic_mean(*pair) for pair in rates]
    x = levels.tolist()
    return [Curve("OS*", x, os_star), Curve("UNK", x, unk), Curve("HOS", x, hos)]


def roc_curve(details: Details, name: str) -> Curve:
    """Known clips accepted against unknown ones accepted, at every threshold."""
    known = details.labels != UNKNOWN
    return _acceptance(name, details.known_score[known], int(known.sum()), details)


def oscr_curve(details: Details, name: str) -> Curve:
    """Known clips accepted and given their class against unknown ones accepted."""
    known = details.labels != UNKNOWN
    right = known & (details.logits.argmax(-1) == details.labels)
    return _acceptance(name, details.known_score[right], int(known.sum()), details)


def _acceptance(name: str, counted: Floats, total: int, details: Details) -> Curve:
    """Share of `total` that is counted and accepted, against unknown clips accepted."""
    unknown = details.known_score[details.labels == UNKNOWN]
    if not total or not len(unknown):
        return Curve(name, (), ())
    levels = np.unique(details.known_score)[::-1]
    x = np.concatenate([[0.0], _at_or_above(unknown, levels) / len(unknown)])
    y = np.concatenate([[0.0], _at_or_above(counted, levels) / total])
    kept = np.unique([*thin_out(len(x), POINTS), len(x) - 1])
    return Curve(name, x[kept].tolist(), y[kept].tolist())


def _at_or_above(scores: Floats, levels: Floats) -> Ints:
    result: Ints = len(scores) - np.searchsorted(np.sort(scores), levels, "left")
    return result


def confusion(details: Details) -> NDArray[np.float64]:
    """Shares of each true class, (C + 1, C + 1): rows known classes and then all unknown clips,
    columns the classes that were named and then what was rejected; NaN where a class has no clip.
    """  # noqa: D205
    size = len(details.classes)
    accepted = details.known_score >= details.threshold
    said = np.where(accepted, details.logits.argmax(-1), size)
    true = np.where(details.labels == UNKNOWN, size, details.labels)
    counts = np.zeros((size + 1, size + 1))
    np.add.at(counts, (true, said), 1)
    totals = counts.sum(1, keepdims=True)
    result: NDArray[np.float64] = np.divide(
        counts, totals, out=np.full_like(counts, np.nan), where=totals > 0
    )
    return result


def draw_thresholds(details: Details) -> str:
    """OS*, UNK and HOS against the threshold, with the threshold that was used."""
    curves = threshold_curves(details)
    scores = details.known_score
    at = f"{details.threshold:.4g}"
    best = max(curves[2].y, default=0.0)
    drawing = draw_curves(
        "OS*, UNK and HOS against the threshold",
        f"The threshold used is {at}; the highest HOS over all thresholds is {100 * best:.1f} %.",
        curves,
        Axis(f"threshold ({details.keys.get('score') or 'score'})", scores.min(), scores.max()),
        Axis("rate", 0, 1, percent=True),
        marks=[(min(max(details.threshold, scores.min()), scores.max()), f"used: {at}")],
    )
    return figure(drawing, "OS*, UNK and HOS against the threshold", series_legend(curves))


def draw_acceptance(jobs: Mapping[str, Details]) -> str:
    """ROC and OSCR curves of several methods, one beside the other."""
    drawings = []
    for title, what, draw, area in (
        ("ROC", "known accepted", roc_curve, _area_of_roc),
        ("OSCR", "known accepted, class right", oscr_curve, _area_of_oscr),
    ):
        curves = [draw(details, f"{name}: {area(details):.3f}") for name, details in jobs.items()]
        drawing = draw_curves(
            f"{title} curves",
            f"Areas under the curves, from 0 to 1: {', '.join(curve.name for curve in curves)}.",
            curves,
            Axis("unknown accepted", 0, 1, percent=True),
            Axis(what, 0, 1, percent=True),
            diagonal=title == "ROC",
        )
        drawings.append(figure(drawing, f"{title}, with the area under it", series_legend(curves)))
    return "".join(drawings)


def _area_of_roc(details: Details) -> float:
    known = details.labels != UNKNOWN
    return auroc(details.known_score[known], details.known_score[~known])


def _area_of_oscr(details: Details) -> float:
    known = details.labels != UNKNOWN
    right = known & (details.logits.argmax(-1) == details.labels)
    return oscr(details.known_score[right], int(known.sum()), details.known_score[~known])


def draw_confusion(details: Details) -> str:
    """Which class was named for which, and what was rejected."""
    size = len(details.classes)
    rows = [f"{name} {i + 1}" for i, name in enumerate(details.classes)]
    columns = [*(str(i + 1) for i in range(size)), REJECTED]
    table = confusion(details)
    right = float(np.nanmean(np.diag(table)[:size])) if size else math.nan
    drawing = draw_shares(
        "Confusion among known classes",
        f"Rows are true classes, columns what was said. On average over classes, {100 * right:.1f} "
        f"% of known clips got their class; {100 * table[size, size]:.1f} % of unknown clips were "
        "rejected.",
        table,
        [*rows, UNKNOWN_CLASSES],
        columns,
    )
    return figure(drawing, "Confusion: true class (row), what was said (column), × is rejected")


def draw_map(details: Details, method: str) -> tuple[str, str]:
    """The clips in the plane, by modality and by class; and the method that placed them."""
    mapped = details.mapped
    names = np.array(mapped.modalities)
    modalities = list(dict.fromkeys(mapped.modalities))
    picks = [np.flatnonzero(names == name) for name in modalities]
    rows = np.concatenate([pick[thin_out(len(pick), MAPPED)] for pick in picks])
    points, used = place_clips(mapped.embedding[rows], method)
    shown, classes = names[rows], np.array(mapped.classes)[rows]
    by_modality = {
        name: (f"var(--s{i})", i % 2 == 1, np.flatnonzero(shown == name))
        for i, name in enumerate(modalities)
    }
    known = [name for name in details.classes if name in classes]
    colours = {name: class_colour(i, len(known)) for i, name in enumerate(known)}
    by_class = {
        f"{name or UNKNOWN_CLASSES}, {modality}": (
            colours.get(name, "var(--s4)"),
            number % 2 == 1,
            np.flatnonzero((classes == name if name else ~np.isin(classes, known)) & there),
        )
        for number, modality in enumerate(modalities)
        for there in [shown == modality]
        for name in ["", *known]
    }
    told = f"{len(rows)} clips placed by {used}."
    drawings = (
        figure(
            draw_points("Clips by modality", told, points, by_modality),
            f"Clips by modality, {used}",
            legend((name, look[0], -1) for name, look in by_modality.items()),
        ),
        figure(
            draw_points("Clips by class", told, points, by_class),
            f"The same by class: discs are {modalities[0]}"
            + (f", squares {modalities[1]}" if len(modalities) > 1 else ""),
            legend([*((n, colours[n], -1) for n in known), (UNKNOWN_CLASSES, "var(--s4)", -1)]),
        ),
    )
    return "".join(drawings), used


def draw_codebook(use: CodebookUse) -> str:
    """Each code as a square, coloured by how many modalities take part in it; and usage curves."""
    takers = use.takers()
    table = np.stack(list(use.counts.values()))
    order = np.lexsort((-table.sum(0), -takers))
    names = list(use.counts)
    cells = [
        (
            SHARES[min(int(takers[code]), len(SHARES) - 1)],
            f"code {code}: "
            + ", ".join(f"{n} {c}" for n, c in zip(names, table[:, code], strict=True)),
        )
        for code in order
    ]
    counts = np.bincount(takers, minlength=len(names) + 1)
    words = ("unused", "one modality", "two", "three", "four")
    told = ", ".join(f"{words[n]}: {counts[n]}" for n in reversed(range(len(names) + 1)))
    caption = f"Codes by how many modalities take part, each with {SHARE:.0%} or more of its uses"
    drawing = draw_cells(caption, f"{told}.", cells)
    entries = [
        (f"{words[n]} ({counts[n]})", SHARES[n] or "var(--line)", -1)
        for n in reversed(range(len(names) + 1))
    ]
    return figure(drawing, caption, legend(entries)) + _draw_usage(use)


def _draw_usage(use: CodebookUse) -> str:
    """Share of steps that the most used codes hold, per modality."""
    curves = []
    for name, counts in use.counts.items():
        falling = np.sort(counts)[::-1].cumsum() / max(int(counts.sum()), 1)
        kept = np.unique([*thin_out(len(falling), POINTS), len(falling) - 1])
        curves.append(Curve(name, (kept + 1).tolist(), falling[kept].tolist()))
    told = ", ".join(
        f"{name}: {use.active(name)} codes, perplexity {use.perplexity(name):.1f}"
        for name in use.counts
    )
    drawing = draw_curves(
        "Share of steps in the most used codes",
        f"{told}.",
        curves,
        Axis("codes, the most used first", 1, len(next(iter(use.counts.values())))),
        Axis("share of steps", 0, 1, percent=True),
    )
    return figure(drawing, "Share of steps in the most used codes", series_legend(curves))


def draw_training(columns: Mapping[str, Sequence[float]], terms: Sequence[str]) -> str:
    """One small chart for each loss, and one for the perplexities."""
    steps = columns["step"]
    kept = thin_out(len(steps), POINTS)
    x = [steps[i] for i in kept]
    drawings = []
    for name in terms:
        y = [columns[name][i] for i in kept]
        drawings.append(_draw_run(f"Loss {name}", x, [Curve(name, x, y)], keyed=False))
    perplexities = [
        Curve(name.removeprefix("perplexity_"), x, [values[i] for i in kept])
        for name, values in columns.items()
        if name.startswith("perplexity_")
    ]
    if perplexities:
        drawings.append(_draw_run("Perplexity of the codes", x, perplexities, keyed=True))
    return "".join(drawings)


def _draw_run(title: str, x: Sequence[float], curves: Sequence[Curve], *, keyed: bool) -> str:
    finite = [value for curve in curves for value in curve.y if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    low = 0.0 if 0 <= low < high / 3 else low
    ends = [next((v for v in reversed(c.y) if math.isfinite(v)), math.nan) for c in curves]
    told = ", ".join(f"{c.name} {end:.4g}" for c, end in zip(curves, ends, strict=True))
    drawing = draw_curves(
        title,
        f"Ends at: {told}.",
        curves,
        Axis("step", min(x), max(x)),
        Axis("", low, high),
    )
    return figure(drawing, title, series_legend(curves) if keyed else "")
