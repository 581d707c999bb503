"""A report as one HTML page that needs nothing but itself, or as Markdown without the drawings."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from micu.base.errors import show_unseen
from micu.evaluate.markdown import TextTable, paragraph, render_markdown
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
    """Commands as they were typed."""

    lines: str


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are shown when asked for, and when printed."""

    summary: str
    blocks: "Sequence[Block]"


Block = str | Title | TextTable | Drawings | Code | Fold
"""A text is a paragraph."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report; one without blocks is left out."""

    heading: str
    blocks: Sequence[Block]


LONG, LONGER = 22, 60
"""Characters from which a cell is wrapped, and from which it is wide besides."""


def render_html(title: str, sections: Sequence[Section]) -> str:
    """One HTML page, by `page.html.j2`."""
    from jinja2 import Environment, StrictUndefined

    numbers = itertools.count()
    pages = Environment(autoescape=True, undefined=StrictUndefined, finalize=_seen)
    return pages.from_string(
        files("micu.report").joinpath("page.html.j2").read_text("utf-8")
    ).render(
        title=title,
        sections=[section for section in sections if section.blocks],
        embed=lambda drawing: embed(drawing, next(numbers)),
        looks_of=_looks_of,
        zip=zip,
    )


def _seen(value: object) -> object:
    """Text without the characters that HTML does not have; markup as it is."""
    if type(value) is not str:
        return value
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in value)


def _looks_of(table: TextTable) -> list[list[str]]:
    """The class of each cell: columns of numbers are set to the right, long texts are wrapped."""
    columns = list(zip(*table.rows, strict=True))
    numeric = [len(column) > 1 and all(map(_is_number, column[1:])) for column in columns]
    return [
        [
            "number" if number else "longer" * (len(text) > LONGER) or "long" * (len(text) > LONG)
            for text, number in zip(row, numeric, strict=True)
        ]
        for row in table.rows
    ]


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
            case TextTable():
                parts.append(render_markdown(block))
            case Code():
                parts.append("\n".join(f"    {show_unseen(x)}" for x in block.lines.splitlines()))
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
