"""A report as one HTML page that needs nothing but itself, or as Markdown without the drawings."""

import html
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from micu.base.errors import show_unseen
from micu.evaluate.markdown import paragraph
from micu.evaluate.report import Table, render_markdown
from micu.report.drawings import Drawing, embed


@dataclass(frozen=True, slots=True)
class Title:
    """What the blocks after it are about."""

    text: str


@dataclass(frozen=True, slots=True)
class Drawings:
    """Some drawings; Markdown leaves them out, with what is said of them."""

    drawn: Sequence[Drawing]
    told: str = ""
    """A paragraph above it."""


@dataclass(frozen=True, slots=True)
class Code:
    """Text as it was typed."""

    text: str


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are shown when asked for, and when printed."""

    summary: str
    blocks: "Sequence[Block]"


Block = str | Title | Table | Drawings | Code | Fold
"""A text is a paragraph."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report; one without blocks is left out."""

    heading: str
    blocks: Sequence[Block]


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de;
  --band: #f6f8fa; --link: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d;
  --band: #161b22; --link: #58a6ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem;
  border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { max-width: 48rem; margin: .6rem 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; list-style: none; }
a { color: var(--link); }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem;
  overflow-wrap: normal; margin: .6rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left;
  white-space: nowrap; }
th { background: var(--band); white-space: normal; vertical-align: bottom; }
td.number, th.number { text-align: right; }
td.long { white-space: normal; min-width: 8.5rem; }
td.longer { white-space: normal; min-width: 16rem; max-width: 34rem; }
pre { border: 1px solid var(--line); background: var(--band); padding: .7rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; align-items: flex-start; }
figure { margin: .4rem 0; width: 22rem; max-width: 100%; flex: none; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .3rem; max-width: 22rem; }
svg.chart { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
@page { size: landscape; margin: 1cm; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; }
  table { font-size: 8px; } th, td { padding: .1rem .2rem; }
  td:not(.number) { white-space: normal; }
  .wide { overflow: visible; } figure { width: 19rem; } figure, tr { break-inside: avoid; }
  h2, h3, h3 + p { break-after: avoid; } td.long, td.longer { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""

LONG, LONGER = 22, 60
"""Characters from which a cell is wrapped, and from which it is wide besides."""


def escape(text: str) -> str:
    """Text as markup; characters that XML does not have are replaced."""
    return html.escape("".join(c if c.isprintable() else "�" for c in text))


def render_html(title: str, sections: Sequence[Section]) -> str:
    """One HTML page: no network, no script; light and dark, for phones and for paper."""
    numbers = itertools.count()
    shown = [section for section in sections if section.blocks]
    links = "".join(
        f'<li><a href="#part{i}">{escape(part.heading)}</a></li>' for i, part in enumerate(shown)
    )
    body = "\n".join(
        f'<section><h2 id="part{i}">{escape(part.heading)}</h2>'
        f"{_render_blocks(part.blocks, numbers)}</section>"
        for i, part in enumerate(shown)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1>\n<nav aria-label="Parts"><ul>{links}</ul></nav>\n'
        f"{body}\n</body></html>\n"
    )


def _render_blocks(blocks: Sequence[Block], numbers: Iterator[int]) -> str:
    parts: list[str] = []
    for block in blocks:
        match block:
            case str():
                parts.append(f"<p>{escape(block)}</p>")
            case Title():
                parts.append(f"<h3>{escape(block.text)}</h3>")
            case Table():
                parts.append(_render_table(block))
            case Drawings():
                parts.append(f"<p>{escape(block.told)}</p>" if block.told else "")
                drawn = "".join(
                    f"<figure><figcaption>{escape(one.caption)}</figcaption>"
                    f"{embed(one, next(numbers))}</figure>"
                    for one in block.drawn
                )
                parts.append(f'<div class="figures">{drawn}</div>' if drawn else "")
            case Code():
                lines = "\n".join(escape(line) for line in block.text.splitlines())
                parts.append(f"<pre>{lines}</pre>")
            case Fold():
                inner = _render_blocks(block.blocks, numbers)
                parts.append(
                    f"<details><summary>{escape(block.summary)}</summary>{inner}</details>"
                )
    return "".join(parts)


def _render_table(table: Table) -> str:
    header, *rows = table.rows
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    lines = [_render_row("th", header, numeric), *(_render_row("td", row, numeric) for row in rows)]
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="table">'
        f"<table>{''.join(lines)}</table></div>"
    )


def _render_row(tag: str, row: Sequence[str], numeric: Sequence[bool]) -> str:
    cells = []
    for text, number in zip(row, numeric, strict=True):
        wrapped = "longer" if len(text) > LONGER else "long" if len(text) > LONG else ""
        kind = "number" if number else wrapped
        look = f' class="{kind}"' if kind else ""
        scope = ' scope="col"' if tag == "th" else ""
        cells.append(f"<{tag}{scope}{look}>{escape(text)}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"


def _is_number(text: str) -> bool:
    return not text.strip("0123456789.,+−-±–* ")


def drawings_of(sections: Sequence[Section]) -> Iterator[Drawing]:
    """Every drawing of a report, in the order of the page."""
    return (drawing for section in sections for drawing in _drawings_in(section.blocks))


def _drawings_in(blocks: Sequence[Block]) -> Iterator[Drawing]:
    for block in blocks:
        match block:
            case Drawings():
                yield from block.drawn
            case Fold():
                yield from _drawings_in(block.blocks)
            case _:
                continue


def render_report_markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown: everything but the drawings."""
    parts = [f"# {paragraph(title)}"]
    for section in sections:
        blocks = _markdown_blocks(section.blocks)
        if blocks:
            parts += [f"## {paragraph(section.heading)}", *blocks]
    return "\n\n".join(parts) + "\n"


def _markdown_blocks(blocks: Sequence[Block]) -> list[str]:
    parts: list[str] = []
    for block in blocks:
        match block:
            case str():
                parts.append(paragraph(block))
            case Title():
                parts.append(f"### {paragraph(block.text)}")
            case Table():
                parts.append(render_markdown(block))
            case Code():
                parts.append("\n".join(f"    {show_unseen(x)}" for x in block.text.splitlines()))
            case Fold():
                inner = _markdown_blocks(block.blocks)
                parts += [f"**{paragraph(block.summary)}**", *inner] if inner else []
            case Drawings():
                continue
    return _without_bare_titles(parts)


def _without_bare_titles(parts: Sequence[str]) -> list[str]:
    """Titles of drawings alone are left out with these."""
    following = [*parts[1:], "### "]
    return [
        part
        for part, after in zip(parts, following, strict=False)
        if not (part.startswith("### ") and after.startswith("### "))
    ]
