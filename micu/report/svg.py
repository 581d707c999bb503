"""Drawings as inline SVG: curves, bars, a grid of shares, a grid of cells, a map of points.

Every drawing has a title and a description for those who do not see it, takes its colours from the
page's variables so that it reads in light and in dark, and is drawn at the size of a phone: text
keeps its size when the drawing does. All text is escaped here.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 340, 240  # px of a chart, which is as wide as a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 10, 38
DASHES = ("", "7 3", "2 3", "9 3 2 3")
COLOURS = 5
"""Colours of the page, `--s0` and so on."""

SHARES = ("", "var(--one)", "var(--two)", "var(--three)", "var(--four)")
"""Colour of a code by how many modalities take part in it."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points; NaN breaks it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a chart."""

    label: str
    low: float
    high: float
    percent: bool = False
    """Numbers are shares, shown in percent."""

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value is drawn, px."""
        span = self.high - self.low
        return start + (end - start) * ((value - self.low) / span if span else 0.5)

    def show(self, value: float) -> str:
        """A tick's text."""
        return f"{100 * value:.0f}" if self.percent else f"{value:.4g}"

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label}, %" if self.percent else self.label


def escape(text: str) -> str:
    """Text as markup; characters that XML does not have are replaced."""
    return html.escape("".join(c if c.isprintable() else "�" for c in text))


def figure(drawing: str, caption: str, legend: str = "") -> str:
    """A drawing with its caption and legend; wide ones scroll by themselves."""
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><div class="wide">{drawing}</div>'
        f"{legend}</figure>"
    )


def legend(entries: Iterable[tuple[str, str, int]]) -> str:
    """A list of (name, CSS colour, dash number); a negative dash number is a filled square."""
    keys = []
    for name, colour, dash in entries:
        shape = (
            f'<rect width="11" height="11" fill="{colour}"/>'
            if dash < 0
            else f'<path d="M0 6h24" stroke="{colour}" stroke-width="2.5"'
            f' stroke-dasharray="{DASHES[dash % len(DASHES)]}"/>'
        )
        width = 11 if dash < 0 else 24
        keys.append(
            f'<li><svg class="key" width="{width}" height="12" aria-hidden="true">{shape}</svg> '
            f"{escape(name)}</li>"
        )
    return f'<ul class="legend">{"".join(keys)}</ul>'


def series_legend(curves: Sequence[Curve]) -> str:
    """The legend of a chart of curves."""
    return legend((curve.name, _colour(i), i) for i, curve in enumerate(curves))


def draw_curves(
    title: str,
    description: str,
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    marks: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
) -> str:
    """Lines over two axes.

    Args:
        title: What it shows.
        description: What it says, for those who do not see it.
        curves: In the order of the colours.
        x: The axis to the right.
        y: The axis upwards.
        marks: Places on the x axis, with a word for each: upright lines.
        diagonal: Draw the line of chance from corner to corner.
    """
    right, low = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [_axes(x, y)]
    if diagonal:
        parts.append(f'<path class="faint" d="M{LEFT} {low}L{right} {TOP}"/>')
    for place, word in marks:
        at = x.place(place, LEFT, right)
        side, gap = ("end", -4) if at > (LEFT + right) / 2 else ("start", 4)
        parts.append(
            f'<path class="mark" d="M{_px(at)} {TOP}V{low}"/>'
            f'<text x="{_px(at + gap)}" y="{TOP + 12}" text-anchor="{side}">{escape(word)}</text>'
        )
    for number, curve in enumerate(curves):
        dash = DASHES[number % len(DASHES)]
        parts.append(
            f'<path class="curve" stroke="{_colour(number)}" stroke-dasharray="{dash}" '
            f'd="{_trace(curve, x, y)}"/>'
        )
    return _svg(WIDTH, HEIGHT, title, description, parts)


def _axes(x: Axis, y: Axis) -> str:
    right, low = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(y.low, y.high):
        at = y.place(value, low, TOP)
        parts.append(
            f'<path class="grid" d="M{LEFT} {_px(at)}H{right}"/>'
            f'<text x="{LEFT - 5}" y="{_px(at + 4)}" text-anchor="end">{y.show(value)}</text>'
        )
    for value in ticks(x.low, x.high, 4):
        at = x.place(value, LEFT, right)
        parts.append(
            f'<path class="grid" d="M{_px(at)} {low}v4"/>'
            f'<text x="{_px(at)}" y="{low + 17}" text-anchor="middle">{x.show(value)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(
        f'<path class="axis" d="M{LEFT} {TOP}V{low}H{right}"/>'
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.title)}</text>'
    )
    if y.title:
        parts.append(
            f'<text transform="translate(11 {(TOP + low) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(y.title)}</text>'
        )
    return "".join(parts)


def _trace(curve: Curve, x: Axis, y: Axis) -> str:
    words: list[str] = []
    broken = True
    for a, b in zip(curve.x, curve.y, strict=True):
        if math.isnan(a) or math.isnan(b):
            broken = True
            continue
        at = (x.place(a, LEFT, WIDTH - RIGHT), y.place(b, HEIGHT - BOTTOM, TOP))
        words.append(f"{'M' if broken else 'L'}{_px(at[0])} {_px(at[1])}")
        broken = False
    return "".join(words)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high], about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def draw_bars(
    title: str, description: str, bars: Sequence[tuple[str, float, float, str]], mark: str
) -> str:
    """Horizontal bars of (label, share, other share, colour); the other is a mark across the bar.

    Args:
        title: What it shows.
        description: What it says.
        bars: NaN draws neither bar nor mark; further lines of a label are small.
        mark: What the mark stands for, for the text behind each.
    """
    full, line = WIDTH - 118, 13
    more = max((label.count("\n") for label, *_ in bars), default=0)
    row = 38 + line * more
    parts = []
    for number, (label, value, other, colour) in enumerate(bars):
        y = number * row + line * more
        first, *others = label.split("\n")
        parts.append(f'<text x="0" y="{number * row + line}">{escape(first)}</text>')
        parts += [
            f'<text class="small" x="0" y="{number * row + line * place}">{escape(text)}</text>'
            for place, text in enumerate(others, 2)
        ]
        if not math.isnan(value):
            parts.append(
                f'<rect x="0" y="{y + 18}" width="{_px(full * _clip(value))}" height="12" '
                f'fill="{colour}"/>'
            )
        told = "–" if math.isnan(value) else f"{100 * value:.1f}"
        if not math.isnan(other):
            at = _px(full * _clip(other))
            parts.append(f'<path class="target" d="M{at} {y + 16}v16"/>')
            told += f" ({mark} {100 * other:.1f})"
        parts.append(f'<text x="{full + 6}" y="{y + 28}">{escape(told)}</text>')
    return _svg(WIDTH, max(1, len(bars)) * row, title, description, parts)


def draw_shares(
    title: str,
    description: str,
    table: NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
) -> str:
    """A grid of shares in [0, 1], the darker the larger; columns are numbered as the rows are.

    Args:
        title: What it shows.
        description: What it says.
        table: (rows, columns); NaN for a row without samples.
        rows: A name for each.
        columns: A short name for each.
    """
    left, top = 128, 18
    cell = min(max((WIDTH - left) // len(columns), 13), 18)
    parts = [
        f'<text class="small" x="{left + (number + 0.5) * cell:.1f}" y="12" text-anchor="middle">'
        f"{escape(name)}</text>"
        for number, name in enumerate(columns)
    ]
    for number, name in enumerate(rows):
        y = top + number * cell
        parts.append(
            f'<text x="{left - 6}" y="{_px(y + cell / 2 + 4)}" text-anchor="end">'
            f"{escape(shorten(name, 19))}</text>"
        )
        for column, value in enumerate(table[number]):
            if value > 0:
                parts.append(
                    f'<rect x="{left + column * cell}" y="{y}" width="{cell - 1}" '
                    f'height="{cell - 1}" fill="var(--s0)" fill-opacity="{0.1 + 0.9 * value:.2f}">'
                    f"<title>{escape(name)} → {escape(columns[column])}: {100 * value:.0f} %"
                    "</title></rect>"
                )
    width, height = left + cell * len(columns), top + cell * len(rows)
    parts.append(
        f'<rect class="frame" x="{left - 1}" y="{top - 1}" width="{cell * len(columns) + 1}" '
        f'height="{cell * len(rows) + 1}"/>'
    )
    return _svg(width + 2, height + 2, title, description, parts, fixed=True)


def draw_cells(title: str, description: str, cells: Sequence[tuple[str, str]]) -> str:
    """Small squares of (CSS colour, words), row by row; one without a colour is an outline."""
    across, size = 25, 13
    parts = []
    for number, (colour, words) in enumerate(cells):
        x, y = number % across * size, number // across * size
        look = f'fill="{colour}"' if colour else 'class="frame"'
        parts.append(
            f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{size - 2}" height="{size - 2}" {look}>'
            f"<title>{escape(words)}</title></rect>"
        )
    height = math.ceil(len(cells) / across) * size
    return _svg(across * size, max(height, 1), title, description, parts)


def draw_points(
    title: str,
    description: str,
    points: NDArray[np.floating],
    groups: Mapping[str, tuple[str, bool, NDArray[np.integer]]],
) -> str:
    """A map of points.

    Args:
        title: What it shows.
        description: What it says.
        points: (m, 2), in any units; both axes have one scale.
        groups: Name → CSS colour, whether squares (else discs), and which rows of `points`.
    """
    size, edge = WIDTH, 8
    middle = (points.max(0) + points.min(0)) / 2
    span = max(float((points.max(0) - points.min(0)).max()), 1e-12)
    places = size / 2 + (points - middle) / span * (size - 2 * edge) * np.array([1, -1])
    parts = [f'<rect class="frame" x="0.5" y="0.5" width="{size - 1}" height="{size - 1}"/>']
    for name, (colour, square, rows) in groups.items():
        # A line of no length at all is not printed everywhere.
        path = "".join(f"M{_px(x)} {_px(y)}h.1" for x, y in places[rows])
        cap = "square" if square else "round"
        parts.append(
            f'<path class="points" stroke="{colour}" stroke-linecap="{cap}" d="{path}">'
            f"<title>{escape(name)}</title></path>"
        )
    return _svg(size, size, title, description, parts)


def class_colour(number: int, count: int) -> str:
    """A hue of its own for each of `count` classes, as light as the page needs."""
    return f"hsl({360 * number / max(count, 1):.0f} 65% var(--class-light))"


def shorten(text: str, limit: int) -> str:
    """The start of a text that is too long for its place."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _svg(
    width: float,
    height: float,
    title: str,
    description: str,
    parts: Iterable[str],
    fixed: bool = False,
) -> str:
    size = f' style="width:{width}px"' if fixed else ""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img"{size}>'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def _colour(number: int) -> str:
    return f"var(--s{number % COLOURS})"


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
