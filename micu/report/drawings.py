"""Kinds of drawings, by matplotlib: curves, bars, shares, squares, points.

A drawing is painted when it is asked for: inline into a page, where it takes the page's ink and so
reads in light and in dark, or as SVG, PDF or PNG for a paper. Text of others is text: matplotlib's
signs for formulas mean nothing in it.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from micu.base.files import write_atomically

if TYPE_CHECKING:  # a tenth of a second, and a report without a page draws nothing
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.5, 2.5
"""Inches of a drawing: a column of a paper, and a phone."""
PIXELS = 1.4
"""Of a page for each point of a drawing: its smallest text has 11 of them."""
NARROW = 360
"""Pixels of a drawing that a phone shows whole; a wider one is moved under a thumb, not shrunk."""
ROW = 0.2
"""Inches of a line of text."""
INK = "#1b1f24"
"""Of text and axes; in a page the page's own."""
GREY = "#7d868f"
COLOURS = ("#2f7fd6", "#c9660a", "#2b9249", "#9a6fd8", GREY)
"""Have a contrast of 3:1 and more to both papers of a page, white and #0d1117."""
DASHES = ("-", "--", ":", "-.")
FARTHEST = 1e300
"""Where axes end at most: beyond it differences leave float64."""
NAME = 48
"""Characters of a name that is drawn."""
TOLD = 2000
"""Characters of what is said of a drawing."""
FORMATS = ("pdf", "png", "svg")
"""What `render` makes."""
STYLE = {
    "font.size": 8,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "grid.alpha": 0.35,
    "grid.color": GREY,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "micu",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing, which is painted when it is rendered."""

    caption: str
    told: str
    """What it says, for those who do not see it."""
    paint: "Callable[[Figure], None]"


@contextmanager
def styled() -> Iterator[None]:
    """Draw in our own style, whatever matplotlib's settings of the user are; they stay theirs."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A page has the fonts of who reads it; PDF and PNG have a box for a sign without a shape.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def paint(drawing: Drawing) -> "Figure":
    """The drawing as a figure of matplotlib; within `styled`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    drawing.paint(figure)
    return figure


def render(drawing: Drawing, kind: str) -> bytes:
    """The drawing as a file of one of `FORMATS`, the same bytes each time."""
    undated = {
        "pdf": {"CreationDate": None},
        "svg": {"Date": None, "Title": plain(drawing.caption, TOLD)},
    }
    file = io.BytesIO()
    with styled():
        paint(drawing).savefig(
            file,
            format=kind,
            metadata=undated.get(kind),
            facecolor="white" if kind == "png" else "none",
        )
    return file.getvalue()


def embed(drawing: Drawing, number: int) -> str:
    """The drawing as markup within a page, in the page's ink.

    Args:
        drawing: What is drawn.
        number: Of the drawing in its page: names within it are told apart by it.
    """
    import matplotlib

    file = io.StringIO()
    with styled():
        matplotlib.rcParams["svg.hashsalt"] = f"micu {number}"
        paint(drawing).savefig(file, format="svg")
    size, body = re.search(  # type: ignore[union-attr]  # matplotlib's own frame
        r'<svg [^>]*viewBox="0 0 ([^"]*)"[^>]*>.*?</metadata>\s*<defs>.*?</defs>(.*)</svg>',
        file.getvalue(),
        re.DOTALL,
    ).groups()
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace(INK, "currentColor")
    title, told = (html.escape(plain(text, TOLD)) for text in (drawing.caption, drawing.told))
    width = PIXELS * float(size.split()[0])
    markup = (
        f'<svg class="chart" width="{width:.0f}" viewBox="0 0 {size}" role="img" '
        f'aria-label="{title}"><title>{title}</title><desc>{told}</desc>{body}</svg>'
    )
    if width <= NARROW:
        return markup
    return f'<div class="wide" tabindex="0" role="group" aria-label="{title}">{markup}</div>'


def write_drawings(drawings: Iterable[Drawing], folder: Path) -> int:
    """Write each drawing in each of `FORMATS`, as `07-roc-with-the-area-under-it.pdf`.

    Returns:
        How many drawings there are.
    """
    number = 0
    folder.mkdir(parents=True, exist_ok=True)
    for number, drawing in enumerate(drawings, 1):
        words = re.findall(r"[a-z0-9]+", drawing.caption.lower())
        name = f"{number:02d}-{'-'.join(words)[:NAME].rstrip('-')}"
        for kind in FORMATS:
            write_atomically(folder / f"{name}.{kind}", render(drawing, kind))
    return number


def plain(text: str, most: int) -> str:
    """At most so much of a text, without what XML and terminals do not have."""
    seen = "".join(sign if sign.isprintable() else "�" for sign in text[: most + 1])
    return seen if len(seen) <= most else f"{seen[: most - 1]}…"


# --- kinds of drawings -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points; NaN breaks it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def draw_curves(
    caption: str,
    told: str,
    curves: Sequence[Curve],
    x: tuple[str, float, float],
    y: tuple[str, float, float],
    *,
    percent: str = "",
    mark: tuple[float, str] | None = None,
    chance: bool = False,
    keyed: bool = True,
) -> Drawing:
    """Lines over two axes.

    Args:
        caption: What it shows.
        told: What it says, for those who do not see it.
        curves: In the order of the colours.
        x: Label and ends of the axis to the right.
        y: Likewise upwards.
        percent: Axes whose numbers are shares, and are shown in percent: `y`, `xy`.
        mark: A place on the x axis, with a word for it: an upright line.
        chance: Draw the line of chance from corner to corner.
        keyed: Whether a legend names the curves.
    """

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        axes = figure.add_subplot()
        for name, axis, (label, low, high) in (("x", axes.xaxis, x), ("y", axes.yaxis, y)):
            share = name in percent
            axes.set(**{f"{name}label": plain(label, NAME) + ", %" * share})
            axes.set(**{f"{name}lim": _ends(low, high)})
            axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
            if share:
                axis.set_major_formatter(PercentFormatter(1, symbol=""))
        axes.grid(visible=True)
        if chance:
            axes.plot((0, 1), (0, 1), color=GREY, linestyle=":", linewidth=1)
        if mark:
            place, word = mark
            right = place > (x[1] + x[2]) / 2
            axes.axvline(place, color=INK, linestyle="--", linewidth=1)
            axes.annotate(
                plain(word, NAME),
                (place, 0.03),
                xycoords=("data", "axes fraction"),
                xytext=(-3 if right else 3, 0),
                textcoords="offset points",
                ha="right" if right else "left",
            )
        lines = [
            axes.plot(
                curve.x,
                curve.y,
                color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)],
            )[0]
            for number, curve in enumerate(curves)
        ]
        if keyed:
            _key(figure, lines, [curve.name for curve in curves])

    return Drawing(caption, told, paint)


def _ends(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis that is neither empty nor longer than a float can tell."""
    low, high = (min(max(end, -FARTHEST), FARTHEST) for end in (low, high))
    margin = max(1.0, abs(low) * 1e-3)
    return (low, high) if high - low > abs(low) * 1e-9 else (low - margin, low + margin)


def _key(figure: "Figure", handles: "Sequence[Artist]", names: Sequence[str]) -> None:
    """A legend below the drawing, which grows by it."""
    shown = [plain(name, NAME) for name in names]
    across = 1 if max(map(len, shown), default=0) > NAME // 2 else 2
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + ROW * math.ceil(len(shown) / across))
    # A name that begins with an underscore would be left out.
    legend = figure.legend(handles, ["" for _ in shown], loc="outside lower center", ncols=across)
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_text(name)


def _key_colours(figure: "Figure", colours: Mapping[str, str]) -> None:
    """A legend of colours by name; an empty one is an outline."""
    from matplotlib.patches import Patch

    patches = [Patch(fc=colour or "none", ec=colour or GREY) for colour in colours.values()]
    _key(figure, patches, list(colours))


Bar = tuple[str, float, float, str]
"""A label; a share and another share, NaN for none; a colour."""


def draw_bars(
    caption: str, told: str, bars: Sequence[Bar], mark: str, colours: Mapping[str, str]
) -> Drawing:
    """Horizontal bars; the other share is a mark across the bar.

    Args:
        caption: What it shows.
        told: What it says.
        bars: From above.
        mark: What the mark stands for, for the text behind each; empty for no such text.
        colours: Name → colour, for the legend.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        lines = max((label.count("\n") for label, *_ in bars), default=0) + 1
        figure.set_size_inches(WIDTH, 0.4 + len(bars) * ROW * (lines + 1.2))
        for place, (label, value, other, colour) in enumerate(bars):
            words = "–" if math.isnan(value) else f"{100 * value:.1f}" if mark else ""
            if not math.isnan(value):
                axes.barh(place, value, height=0.4, color=colour)
            if not math.isnan(other):
                axes.plot((other, other), (place - 0.3, place + 0.3), color=INK, linewidth=2.5)
                words += f" ({mark} {100 * other:.1f})"
            axes.annotate(plain(words, NAME), (1.02, place), va="center", annotation_clip=False)
            name = "\n".join(plain(part, 2 * NAME) for part in label.split("\n"))
            axes.annotate(name, (0, place - 0.25), va="bottom", annotation_clip=False)
        axes.set(xlim=(0, 1), ylim=(len(bars) - 0.5, -1.0))
        axes.set_axis_off()
        if colours:
            _key_colours(figure, colours)

    return Drawing(caption, told, paint)


def draw_shares(
    caption: str,
    told: str,
    table: NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Drawing:
    """A grid of shares in [0, 1], the darker the larger; columns are numbered as the rows are.

    Args:
        caption: What it shows.
        told: What it says.
        table: (rows, columns); NaN for a row without samples.
        rows: A name for each.
        columns: A short name for each.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        cell = max(0.18, min(0.3, (WIDTH - 1.6) / len(columns)))
        figure.set_size_inches(1.7 + cell * len(columns), 0.4 + cell * len(rows))
        shares = np.argwhere(table > 0).tolist()
        squares = [(i, j, COLOURS[0], 0.1 + 0.9 * float(table[i, j])) for i, j in shares]
        _paint_squares(axes, table.shape, squares)
        axes.set_xticks(np.arange(len(columns)) + 0.5, [plain(name, 4) for name in columns])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [plain(name, NAME // 2) for name in rows])
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(True)

    return Drawing(caption, told, paint)


Square = tuple[int, int, str, float]
"""Row, column, colour (empty for an outline) and opacity."""


def _paint_squares(axes: "Axes", shape: tuple[int, ...], squares: Sequence[Square]) -> None:
    """Squares on a grid of (rows, columns), the first row above."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    axes.add_collection(
        PatchCollection(
            [Rectangle((column + 0.08, row + 0.08), 0.84, 0.84) for row, column, *_ in squares],
            facecolors=[to_rgba(shade, alpha) if shade else "none" for *_, shade, alpha in squares],
            edgecolors=[colour or GREY for *_, colour, _ in squares],
            linewidths=0.5,
        )
    )
    axes.set(xlim=(0, shape[1]), ylim=(shape[0], 0), aspect="equal")


ACROSS = 32
"""Squares in a row."""


def draw_squares(
    caption: str, told: str, colours: Sequence[str], key: Mapping[str, str]
) -> Drawing:
    """Small squares, row by row; one without a colour is an outline.

    Args:
        caption: What it shows.
        told: What it says.
        colours: One for each square.
        key: Name → colour, for the legend.
    """

    def paint(figure: "Figure") -> None:
        down = math.ceil(len(colours) / ACROSS)
        figure.set_size_inches(WIDTH, 0.1 + down * WIDTH / ACROSS)
        axes = figure.add_subplot()
        squares = [(*divmod(place, ACROSS), colour, 1.0) for place, colour in enumerate(colours)]
        _paint_squares(axes, (down, ACROSS), squares)
        axes.set_axis_off()
        _key_colours(figure, key)

    return Drawing(caption, told, paint)


@dataclass(frozen=True, slots=True)
class Group:
    """Points of one look."""

    colour: str
    square: bool
    """Else discs."""
    rows: NDArray[np.integer]
    """Which of all points."""


def draw_points(
    caption: str,
    told: str,
    points: NDArray[np.floating],
    groups: Sequence[Group],
    key: Mapping[str, str],
) -> Drawing:
    """A map of points.

    Args:
        caption: What it shows.
        told: What it says.
        points: (m, 2), in any units; both axes have one scale.
        groups: Those drawn later cover the others.
        key: Name → colour, for the legend.
    """

    def paint(figure: "Figure") -> None:
        figure.set_size_inches(WIDTH, WIDTH)
        axes = figure.add_subplot(aspect="equal", xticks=(), yticks=(), adjustable="datalim")
        axes.spines[:].set_visible(True)
        for group in groups:
            axes.plot(
                *points[group.rows].T,
                color=group.colour,
                linestyle="",
                marker="s" if group.square else "o",
                markersize=3,
                markeredgewidth=0,
            )
        _key_colours(figure, key)

    return Drawing(caption, told, paint)
