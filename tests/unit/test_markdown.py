"""Names of others in reports: no link, no picture and no other markup, in Markdown and HTML."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from micu.cli.evaluate import main
from micu.cli.sweep_table import render_sweep
from micu.evaluate.codebook import CodebookUse
from micu.evaluate.markdown import TextTable, neutral, paragraph, render_columns, render_markdown
from micu.evaluate.report import read_rows, write_rows
from micu.report.build import build_report
from micu.report.commands import Command
from micu.report.compare import render_table
from micu.report.page import render_html, render_report_markdown
from micu.report.read import Material
from micu.store.ledger import Failure
from tests.unit.test_compare import RESULT
from tests.unit.test_details import make_details
from tests.unit.test_report import ROW

HOSTILE = {
    "a link": "[x](http://evil.example/a)",
    "a picture": "![p](https://evil.example/p.png)",
    "a picture in HTML": '<img src="//evil.example/p.png" onerror=alert(1)>',
    "a script": "javascript:alert(1)",
    "a link to a script": "[x](javascript:alert(1))",
    "a backslash before it": "\\[x](http://evil.example)",
    "two of them": "\\\\[x](http://evil.example)",
    "a link by name": "[x]: http://evil.example",
    "a note": "[^1]",
    "an entity": "&#91;x](http://evil.example) &lt;b&gt;",
    "an address": "http://evil.example https://evil.example ftp://evil.example",
    "capitals": "HTTPS://EVIL.EXAMPLE WWW.EVIL.EXAMPLE",
    "an address without a scheme": "www.evil.example",
    "in angles": "<https://evil.example> <a@evil.example>",
    "mail": "me@evil.example mailto:me@evil.example",
    "a mention": "@everyone",
    "a cell": "a | b",
    "code": "`a` ``b``",
    "a code block": "x\n```\ny",
    "lines": "x\n\n# heading\r\n- item",
    "odd lines": "x\x85y\u2028# z\x0b# w",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~",
    "a formula": "$x$",
    "terminal": "\x1b[31mred\x07",
    "backwards": "\u202eabc",
    "a comment": "<!-- hidden -->",
}


DRAWN = ("a picture in HTML", "an entity", "a formula", "terminal", "backwards")
"""Those whose drawings are made, which takes seconds."""


def tokens(text: str) -> set[str]:
    """Kinds of markup in a text, as a renderer finds them."""
    renderer = (
        pytest.importorskip("markdown_it")
        .MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
    )
    found = renderer.parse(text)
    return {each.type for token in found for each in [token, *(token.children or ())]}


PLAIN = {"inline", "text", "text_special", "softbreak", "paragraph_open", "paragraph_close"}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_text_is_markup(kind: str) -> None:
    for write in (neutral, paragraph):
        text = write(HOSTILE[kind])
        assert "\n" not in text
        assert "\x1b" not in text
        assert not re.search(r"(?<!\\)[\[\]`]|<|>|://|(?i:www\.)|mailto:", text), text
        assert not re.search(r"\w@\w+\.|^@\w", text)
    assert tokens(paragraph(HOSTILE[kind])) <= PLAIN


@given(st.text(alphabet="[]()!<>&#;\\`*_~$|:/.@ \n\t-+=1ahtpw", max_size=40))
@settings(deadline=None, max_examples=300)
def test_any_text_is_one_paragraph_or_one_cell_and_nothing_else(text: str) -> None:
    assert tokens(paragraph(text)) <= PLAIN
    table = render_markdown(TextTable((("a", "b"), (text, "c"), ("d", text))))
    lines = table.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
    assert not {"link_open", "image", "html_inline", "html_block", "code_inline"} & tokens(table)


def test_plain_words_stay_as_they_are() -> None:
    for word in ("os_star", "micu*", "V→A", "audio:swinv2@0123456789ab", "50.00 ± 1.00", "a:b"):
        assert neutral(word) == word
    assert paragraph("micu* is the preset") == "micu\\* is the preset"
    for text, written in (
        *(("# x", "\\# x"), ("1. x", "1\\. x"), ("12) x", "12\\) x"), ("- x", "\\- x")),
        *(("+ x", "\\+ x"), ("=", "\\="), ("-1.5 x", "\\-1.5 x"), ("1234567890. x", None)),
    ):
        assert paragraph(text) == (text if written is None else written)
        assert neutral(text) == text
    assert neutral("a _b_ __c__ d_e") == "a \\_b\\_ \\_\\_c\\_\\_ d_e"
    assert neutral("a  b\n c") == "a b c"


def hostile_material(text: str) -> Material:
    """Everything that a report shows, called like this."""
    rows = [
        replace(RESULT, preset=text, setting="", note=text, class_list=text, known_classes=2),
        replace(RESULT, preset=f"micu with {text}", leaks=text, splits=text, probe=text),
        replace(RESULT, task=text, method=text, setting=text, features=text, protocol=text),
        replace(RESULT, train_modality=text, test_modality=text, score=text, seed=text),
        replace(RESULT, more=((text, text),), metric=text, manifest_sha256=text),
    ]
    found = Material(results=rows)
    keys = {"method": text, "preset": text, "setting": text, "train_modality": text}
    details = replace(make_details(), keys=keys)
    names = tuple(f"{text}{i}" for i in range(len(details.classes)))
    found.details[Path("a")] = replace(details, classes=names)
    found.codebooks[text] = CodebookUse({text: np.array([3, 0]), "audio": np.array([1, 1])})
    found.trainings[text] = {"step": [1.0, 2.0], "total": [2.0, 1.0], text: [1.0, 1.0]}
    found.failures[text] = [Failure(text, text, text, text)]
    found.commands.append(Command(f"micu-eval {text}", {"micu": text}))
    found.sources.append(text)
    found.skip(text)
    return found


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        for name, value in attrs:
            assert name != "href" or (value or "").startswith(("#part", "#term-")), value


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_report_has_no_markup_of_a_foreign_name(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind not in DRAWN:
        monkeypatch.setattr("micu.report.page.embed", lambda *_: "<svg></svg>")
    found = hostile_material(HOSTILE[kind])
    sections = build_report(found, "pca")
    page = render_html(HOSTILE[kind], sections)
    seen = Tags()
    seen.feed(page)
    assert not {"img", "script", "iframe", "base", "form", "b"} & seen.tags
    assert not [name for name in seen.attributes if name.startswith("on") or name == "src"]
    assert "\x1b" not in page
    assert "\u202e" not in page

    text = render_report_markdown(HOSTILE[kind], sections)
    assert "\x1b" not in text
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]`]|<|://|(?i:www\.)", shown), shown
    kinds = tokens(text)
    assert not {"link_open", "image", "html_inline", "html_block", "code_inline", "fence"} & kinds
    for line in shown.splitlines():
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
            assert cells > 2


@pytest.mark.parametrize("kind", HOSTILE)
def test_tables_of_an_evaluation_and_a_sweep_have_no_markup_of_a_foreign_name(kind: str) -> None:
    text = HOSTILE[kind]
    row = replace(ROW, preset=text, class_list=text, score=text, protocol=text, known_classes=2)
    logged = replace(row, task="training, last epoch", metric=text)
    for table in (render_table([row]), render_sweep([row, logged])):
        assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]`]|<|://|(?i:www\.)|\x1b", table), table
    assert len(render_table([row]).splitlines()) == 3


def test_a_report_of_hostile_results_is_made_from_the_command_line(tmp_path: Path) -> None:
    rows = [
        replace(ROW, preset=text, class_list=text, note=text, seed=number)
        for number, text in enumerate(HOSTILE.values())
    ]
    write_rows(rows, tmp_path / "r.csv")
    assert read_rows(tmp_path / "r.csv") == rows
    outputs = [tmp_path / f"report.{name}" for name in ("html", "md", "csv")]
    words = [word for path in outputs for word in ("-o", str(path))]
    result = CliRunner().invoke(main, ["report", str(tmp_path / "r.csv"), *words])
    assert result.exit_code == 0, result.output
    assert html.escape(HOSTILE["a link"]) in outputs[0].read_text()
    assert neutral(HOSTILE["a link"]) in outputs[1].read_text()


NARROW = TextTable((("a", "bcd", "ef"), ("1234", "5", "67")))
"""Widths 4, 3 and 2, and two blanks between two columns."""


@pytest.mark.parametrize(
    ("width", "first", "header"),
    [
        (None, (), "a     bcd  ef"),
        (13, (), "a     bcd  ef"),
        (12, (), "a     bcd"),
        (9, (), "a     bcd"),
        (8, (), "a     ef"),
        (12, ("ef", "none", "bcd"), "bcd  ef"),
        (3, (), "bcd"),
    ],
)
def test_a_screen_gets_the_columns_it_has_room_for(
    width: int | None, first: tuple[str, ...], header: str
) -> None:
    assert render_columns(NARROW, width, first).splitlines()[0] == header
