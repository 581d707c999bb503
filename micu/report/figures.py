"""What is drawn: clips in the plane, one outcome, a codebook, a training.

The plane is t-SNE's where scikit-learn is installed, else exact PCA's; the report says which. PCA
keeps the two directions in which the vectors differ most, so distances are never larger than they
were. t-SNE keeps neighbourhoods and bends the rest.
"""

import colorsys
import importlib.util
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ExtraError
from micu.evaluate.codebook import SHARE, CodebookUse
from micu.evaluate.details import Details, thin_out
from micu.evaluate.metrics import (
    UNKNOWN,
    accept_rates,
    at_or_above,
    harmonic_mean,
    oscr,
)
from micu.report.drawings import (
    COLOURS,
    GREY,
    NAME,
    Curve,
    Drawing,
    Group,
    draw_curves,
    draw_points,
    draw_shares,
    draw_squares,
    plain,
)

POINTS = 200
"""Points of a curve, at most."""

MAPPED = 500
"""Clips of each modality that a map shows, at most."""

REJECTED, UNKNOWN_CLASSES = "×", "(unknown classes)"

TAKERS = ("", "#0a93a4", "#c9660a", "#8b5cf6", "#d6336c")
"""Colour of a code by how many modalities take part in it."""

GAMMA, WEIGHTS, BRIGHTNESS = 2.2, (0.2126, 0.7152, 0.0722), 0.2
"""Of a screen's red, green and blue; 0.2 is 4.2:1 to white, and 4.5:1 to the dark page."""

# --- one outcome -----------------------------------------------------------------------------


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


def acceptance_curve(details: Details, name: str, counted: NDArray[np.bool_]) -> Curve:
    """Share of the known clips that is counted and accepted, against unknown clips accepted.

    Args:
        details: Of a job.
        name: The area under the curve is added to it.
        counted: Which clips, (n,), all of them known.
    """
    scores, known = details.known_score, details.labels != UNKNOWN
    total, unknown = int(known.sum()), scores[~known]
    told = f"{name}: {oscr(scores[counted], total, unknown):.3f}"
    if not total or not len(unknown):
        return Curve(told, (), ())
    levels = np.unique(scores)[::-1]
    x = np.concatenate([[0.0], at_or_above(unknown, levels) / len(unknown)])
    y = np.concatenate([[0.0], at_or_above(scores[counted], levels) / total])
    kept = np.unique([*thin_out(len(x), POINTS), len(x) - 1])
    return Curve(told, x[kept].tolist(), y[kept].tolist())


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


def draw_thresholds(details: Details) -> Drawing:
    """OS*, UNK and HOS against the threshold, with the threshold that was used."""
    curves = threshold_curves(details)
    low, high = float(details.known_score.min()), float(details.known_score.max())
    at = f"{details.threshold:.4g}"
    best = max(curves[2].y, default=0.0)
    return draw_curves(
        "OS*, UNK and HOS against the threshold",
        f"The threshold used is {at}; the highest HOS over all thresholds is {100 * best:.1f} %.",
        curves,
        (f"threshold ({plain(details.keys.get('score') or 'score', NAME)})", low, high),
        ("rate", 0, 1),
        percent="y",
        mark=(min(max(details.threshold, low), high), f"used: {at}"),
    )


def draw_acceptance(jobs: Mapping[str, Details]) -> list[Drawing]:
    """ROC and OSCR curves of several methods, one beside the other."""
    drawings = []
    for title, what in (("ROC", "known accepted"), ("OSCR", "known accepted, class right")):
        curves = []
        for name, details in jobs.items():
            right = details.logits.argmax(-1) == details.labels
            counted = (details.labels != UNKNOWN) & (right | (title == "ROC"))
            curves.append(acceptance_curve(details, plain(name, NAME - 8), counted))
        drawings.append(
            draw_curves(
                f"{title}, with the area under it",
                f"Areas under the curves, from 0 to 1: {', '.join(c.name for c in curves)}.",
                curves,
                ("unknown accepted", 0, 1),
                (what, 0, 1),
                percent="xy",
                chance=title == "ROC",
            )
        )
    return drawings


def draw_confusion(details: Details) -> Drawing:
    """Which class was named for which, and what was rejected."""
    size = len(details.classes)
    table = confusion(details)
    right = float(np.nanmean(np.diag(table)[:size])) if size else math.nan
    return draw_shares(
        "Confusion: true class (row), what was said (column), × is rejected",
        f"Rows are true classes, columns what was said. On average over classes, {100 * right:.1f} "
        f"% of known clips got their class; {100 * table[size, size]:.1f} % of unknown clips were "
        "rejected.",
        table,
        [*(f"{name} {i + 1}" for i, name in enumerate(details.classes)), UNKNOWN_CLASSES],
        [*(str(i + 1) for i in range(size)), REJECTED],
    )


def draw_map(details: Details, method: str) -> tuple[list[Drawing], str]:
    """The clips in the plane, by modality and by class; and the method that placed them."""
    mapped = details.mapped
    names = np.array(mapped.modalities)
    modalities = list(dict.fromkeys(mapped.modalities))
    picks = [np.flatnonzero(names == name) for name in modalities]
    rows = np.concatenate([pick[thin_out(len(pick), MAPPED)] for pick in picks])
    points, used = place_clips(mapped.embedding[rows], method)
    shown, classes = names[rows], np.array(mapped.classes)[rows]
    by_modality = {
        name: Group(COLOURS[i % len(COLOURS)], i % 2 == 1, np.flatnonzero(shown == name))
        for i, name in enumerate(modalities)
    }
    known = [name for name in details.classes if name in classes]
    colours = {name: class_colour(i, len(known)) for i, name in enumerate(known)}
    by_class = [
        Group(
            colours.get(name, GREY),
            number % 2 == 1,
            np.flatnonzero((classes == name if name else ~np.isin(classes, known)) & there),
        )
        for number, modality in enumerate(modalities)
        for there in [shown == modality]
        for name in ["", *known]
    ]
    told = f"{len(rows)} clips placed by {used}."
    looks = f"The same by class: discs are {modalities[0]}"
    looks += f", squares {modalities[1]}" if len(modalities) > 1 else ""
    key = {name: group.colour for name, group in by_modality.items()}
    drawings = [
        draw_points(f"Clips by modality, {used}", told, points, [*by_modality.values()], key),
        draw_points(looks, told, points, by_class, {**colours, UNKNOWN_CLASSES: GREY}),
    ]
    return drawings, used


def class_colour(number: int, count: int) -> str:
    """A hue of its own for each of `count` classes, as bright as reads on white and on black."""
    light = np.array(colorsys.hls_to_rgb(number / max(count, 1), 0.5, 0.65)) ** GAMMA
    light = np.minimum(light * BRIGHTNESS / (light @ WEIGHTS), 1)
    return "#" + "".join(f"{round(255 * share):02x}" for share in light ** (1 / GAMMA))


# --- clips in the plane ----------------------------------------------------------------------

METHODS = ("auto", "tsne", "pca")
"""What places clips: `micu-eval report --map`."""
FEW = 8
PERPLEXITY = 30.0
"""About how many neighbours t-SNE keeps near."""


def place_clips(
    vectors: NDArray[np.floating], method: str = "auto"
) -> tuple[NDArray[np.float64], str]:
    """Coordinates of each vector in the plane, (m, 2), and the method's name.

    Args:
        vectors: (m, D), m of 1 or more.
        method: `tsne`, `pca`, or `auto`: t-SNE if scikit-learn is installed. Fewer than 8 vectors,
            and vectors that are all the same, are placed by PCA in any case.

    Raises:
        ExtraError: t-SNE was asked for by name, and scikit-learn is not installed.
    """
    if method == "tsne" and not has_tsne():
        raise ExtraError("scikit-learn", "report")
    plane = principal_plane(vectors)
    spread = float(plane[:, 0].std())
    if method == "pca" or not has_tsne() or len(vectors) < FEW or spread == 0:
        return plane, "PCA"
    return _tsne(vectors, plane / spread * 1e-4), "t-SNE"


def has_tsne() -> bool:
    """Whether scikit-learn is installed; it is not imported for that."""
    return importlib.util.find_spec("sklearn") is not None


def principal_plane(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Coordinates along the two first principal directions, (m, 2), from (m, D).

    The sign of a direction is chosen so that its largest entry is positive. Directions that the
    vectors do not have are 0.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((2, centred.shape[1]))
    plane[: min(2, len(directions))] = directions[:2]
    largest = plane[np.arange(2), np.abs(plane).argmax(1)]
    result: NDArray[np.float64] = centred @ (plane * np.where(largest < 0, -1, 1)[:, None]).T
    return result


def _tsne(vectors: NDArray[np.floating], start: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    model = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=0)
    result: NDArray[np.float64] = model.fit_transform(vectors).astype(np.float64)
    return result


# --- a codebook and a training ---------------------------------------------------------------


def draw_codebook(use: CodebookUse) -> list[Drawing]:
    """Each code as a square, coloured by how many modalities take part in it; and usage curves."""
    takers = use.takers()
    table = np.stack(list(use.counts.values()))
    order = np.lexsort((-table.sum(0), -takers))
    shades = [TAKERS[min(int(takers[code]), len(TAKERS) - 1)] for code in order]
    counts = np.bincount(takers, minlength=len(use.counts) + 1)
    words = ("unused", "one modality", "two", "three", "four")
    key = {f"{words[n]} ({counts[n]})": TAKERS[n] for n in reversed(range(len(use.counts) + 1))}

    cells = draw_squares(
        f"Codes by how many modalities take part, each with {SHARE:.0%} or more of its uses",
        f"{', '.join(key)}.",
        shades,
        key,
    )
    return [cells, _draw_usage(use)]


def _draw_usage(use: CodebookUse) -> Drawing:
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
    return draw_curves(
        "Share of steps in the most used codes",
        f"{told}.",
        curves,
        ("codes, the most used first", 1, len(next(iter(use.counts.values())))),
        ("share of steps", 0, 1),
        percent="y",
    )


def draw_training(columns: Mapping[str, Sequence[float]], terms: Sequence[str]) -> list[Drawing]:
    """One small chart for each loss, and one for the perplexities."""
    steps = columns["step"]
    kept = thin_out(len(steps), POINTS)
    x = [steps[i] for i in kept]
    drawings = [
        _draw_run(f"Loss {plain(name, NAME)}", [Curve(name, x, [columns[name][i] for i in kept])])
        for name in terms
    ]
    perplexities = [
        Curve(name.removeprefix("perplexity_"), x, [values[i] for i in kept])
        for name, values in columns.items()
        if name.startswith("perplexity_")
    ]
    if perplexities:
        drawings.append(_draw_run("Perplexity of the codes", perplexities, keyed=True))
    return drawings


def _draw_run(title: str, curves: Sequence[Curve], *, keyed: bool = False) -> Drawing:
    finite = [value for curve in curves for value in curve.y if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    low = 0.0 if 0 <= low < high / 3 else low
    ends = [next((v for v in reversed(c.y) if math.isfinite(v)), math.nan) for c in curves]
    told = ", ".join(f"{c.name} {end:.4g}" for c, end in zip(curves, ends, strict=True))
    x = curves[0].x
    return draw_curves(
        title,
        f"Ends at: {told}.",
        curves,
        ("step", min(x), max(x)),
        ("", low, high),
        keyed=keyed,
    )
