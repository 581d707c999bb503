"""Tables and foreign text in Markdown, where foreign text is nothing but text.

Names of classes, files, presets and columns may be anybody's. None of them makes a link, a picture,
a heading, HTML or code, neither by Markdown's own signs nor by GitHub's: bare addresses, mentions,
formulas.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from micu.base.errors import show_unseen

_SIGNS = re.compile(r"[\\`\[\]|~$]")
"""Get a backslash: they may begin or end a link, a picture, code, a cell, a formula."""

_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_ADDRESSES = (
    (re.compile(r":(?=//)|(?<=mailto):|(?<=xmpp):", re.IGNORECASE), "&#58;"),
    (re.compile(r"(?<=www)\.", re.IGNORECASE), "&#46;"),
    # Of a mail address or a mention; the blank that follows has no width.
    (re.compile(r"(?<=[\w.+-])@(?=[\w-]+\.\w)|(?<!\w)@(?=\w)"), "@&#8203;"),
)
_EDGES = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")
"""Underscores that are not within a word."""
_BEGIN = re.compile(r"^(?=[#+=-])|^(\d{1,9})(?=[.)])")
"""Begins a paragraph that would be a heading, a list or a line."""


def neutral(text: str) -> str:
    """A text on one line in which nothing is markup, as part of a paragraph or a cell.

    Stars stay: one alone is no markup, and marks presets that were changed.
    """
    plain = show_unseen(" ".join(text.split()))
    for sign, entity in _MARKUP.items():
        plain = plain.replace(sign, entity)
    plain = _SIGNS.sub(lambda found: f"\\{found[0]}", plain)
    plain = _EDGES.sub(lambda found: "\\_" * len(found[0]), plain)
    if plain.count("*") > 1:
        plain = plain.replace("*", "\\*")
    for address, written in _ADDRESSES:
        plain = address.sub(written, plain)
    return plain


def paragraph(text: str) -> str:
    """The same as a paragraph or a heading of its own, stars included."""
    plain = neutral(text)
    plain = plain if "\\*" in plain else plain.replace("*", "\\*")
    return _BEGIN.sub(lambda found: f"{found[1] or ''}\\", plain)


@dataclass(frozen=True, slots=True)
class TextTable:
    """Text in rows and columns; the first row is the header."""

    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    """What a reader who sees nothing else has to know; reports show it."""

    def without_empty_columns(self) -> "TextTable":
        """The columns that have a text below their title."""
        columns = [column for column in zip(*self.rows, strict=True) if any(column[1:])]
        return replace(self, rows=tuple(zip(*columns, strict=True)))


def render_markdown(content: TextTable, *, own_titles: bool = False) -> str:
    """A table as Markdown, its columns aligned; nothing in a cell is markup.

    With `own_titles` the first row is Markdown already.
    """
    titles, *body = content.rows
    table = [titles if own_titles else [*map(neutral, titles)]]
    table += [[*map(neutral, row)] for row in body]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def render_columns(content: TextTable, width: int | None = None, first: Sequence[str] = ()) -> str:
    """A table for a screen: the columns that its width has room for, in their order.

    Args:
        content: The table.
        width: Of the screen, in characters; None has room for all.
        first: Titles of the columns that matter most, in this order; the others follow as they are.
    """
    columns = {column[0]: column for column in zip(*content.rows, strict=True)}
    wide = {title: max(map(len, column)) for title, column in columns.items()}
    left = sum(wide.values()) + 2 * len(wide) if width is None else width + 2
    chosen = set()
    for title in dict.fromkeys((*(name for name in first if name in columns), *columns)):
        if wide[title] + 2 <= left:
            left -= wide[title] + 2
            chosen.add(title)
    shown = [
        [text.ljust(wide[title]) for text in column]
        for title, column in columns.items()
        if title in chosen
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*shown, strict=True))
