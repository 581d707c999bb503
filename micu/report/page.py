"""A report as one HTML page that needs nothing but itself, or as Markdown without the drawings."""

import html
import itertools
import re
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
    """A part of a report; one without blocks is left out, one without a heading leads the page."""

    heading: str
    blocks: Sequence[Block]


GLOSSARY = {
    "HOS": "Harmonic mean of OS* and UNK, 2 · OS* · UNK / (OS* + UNK): high only if both are.",
    "OS*": "Share of the clips of known classes that are accepted and put into the right class.",
    "UNK": "Share of the clips of unknown classes that are refused.",
    "AUROC": "Chance that a clip of a known class gets a higher known score than a clip of an "
    "unknown one. It needs no threshold: 50 % is guessing.",
    "OSCR": "Area under the curve of correctly classified known clips against accepted unknown "
    "ones, over all thresholds.",
    "clean": "The protocol that never looks at test clips to choose anything, leaves out test "
    "clips that the model was pretrained on, and tests each media item on one side only.",
    "paper": "What the published code does, leaks included, so that figures can be laid beside "
    "those of the paper.",
    "source-val": "The honest threshold: it accepts 95 % of held-out clips of known classes in "
    "the source modality.",
    "oracle": "The threshold and the epoch that are best on the test set.",
    "probe": "A linear classifier that is trained on frozen codes of one modality.",
    "perplexity": "How many codes are in even use: the exponential of the codes' entropy.",
    "rests on": "Something that a figure rests on and should not, such as test clips in training.",
}
"""Terms that a page links to its foot, in the words of docs/glossary.md."""

_TERM = re.compile(
    r"(?<![\w-])(HOS|OS\*|UNK|AUROC|OSCR|clean|paper(?= oracle| chose)|(?<=protocol )paper"
    r"|source-val|oracle|probe|perplexity|rests on)(?![\w-])"
)

LONG, LONGER = 22, 60
"""Characters from which a cell is wrapped, and from which it is wide besides."""


def render_html(title: str, sections: Sequence[Section]) -> str:
    """One HTML page, by `page.html.j2`."""
    from jinja2 import Environment, StrictUndefined

    numbers = itertools.count()
    pages = Environment(autoescape=True, undefined=StrictUndefined, finalize=_seen)
    named: set[str] = set()

    def linked(text: str) -> str:
        def link(found: re.Match[str]) -> str:
            named.add(found[0])
            return f'<a class="term" href="#{_anchor(found[0])}">{found[0]}</a>'

        return _TERM.sub(link, html.escape(str(_seen(text)), quote=False))

    pages.filters["linked"] = linked
    return pages.from_string(
        files("micu.report").joinpath("page.html.j2").read_text("utf-8")
    ).render(
        title=title,
        sections=[section for section in sections if section.blocks],
        embed=lambda drawing: embed(drawing, next(numbers)),
        looks_of=_looks_of,
        terms=lambda: [
            (_anchor(term), term, told) for term, told in GLOSSARY.items() if term in named
        ],
        zip=zip,
    )


def _anchor(term: str) -> str:
    return "term-" + re.sub(r"\W", "", term.lower())


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
            parts += [f"## {paragraph(section.heading)}"] if section.heading else []
            parts += blocks
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
                parts += [paragraph(block.caption)] if block.caption else []
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
