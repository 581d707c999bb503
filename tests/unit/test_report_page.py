"""The report as a page and as Markdown: whole, safe, and in need of nothing else."""

import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from micu.base.errors import ConfigError
from micu.evaluate.codebook import CodebookUse, read_codebook, write_codebook
from micu.evaluate.markdown import TextTable
from micu.evaluate.report import Row
from micu.report.build import BLIND, ON_TEST, build_report, title_of
from micu.report.commands import Command, commands_path, read_commands, record_command
from micu.report.page import (
    GLOSSARY,
    Code,
    Drawings,
    Fold,
    Section,
    Title,
    drawings_of,
    render_html,
    render_report_markdown,
)
from micu.report.paper import read_printed
from micu.report.read import Material
from micu.store.shard import Header
from tests.conftest import PROJECT
from tests.unit.test_compare import RESULT
from tests.unit.test_details import make_details
from tests.unit.test_report_drawings import painted

SCRIPT = "<script>alert(1)</script>"
VOID = ("meta",)


class Reader(HTMLParser):
    """Collects tags, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(page: str) -> None:
    """Whole, without script and without anything from elsewhere."""
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.seen)
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|src=|srcset", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def without_links(page: str) -> str:
    """The page's text, terms not linked."""
    return re.sub(r'<a class="term"[^>]*>([^<]*)</a>', r"\1", page)


def material() -> Material:
    """A little of everything, with labels that are markup."""
    rows = [replace(RESULT, metric=name, value=0.5) for name in ("hos", "os_star", "unk", "auroc")]
    rows.append(replace(RESULT, setting="", preset=f"micu with {SCRIPT}=1", note=SCRIPT))
    rows.append(Row(task="codebook", method="checkpoint", metric="perplexity", value=3.5))
    keys = {"method": "checkpoint", "setting": SCRIPT, "train_modality": "video"}
    found = Material(results=rows)
    found.details[Path("a")] = replace(make_details(), keys=keys)
    found.details[Path("b")] = replace(make_details(), keys={**keys, "threshold_source": "oracle"})
    found.codebooks[SCRIPT] = CodebookUse({SCRIPT: np.array([3, 0]), "audio": np.array([1, 1])})
    found.trainings[SCRIPT] = {"step": [1.0, 2.0], "total": [2.0, 1.0], SCRIPT: [1.0, 1.0]}
    found.commands.append(Command(f"micu-eval last.pt {SCRIPT}", {"micu": SCRIPT}))
    found.sources.append(f"{SCRIPT}.csv")
    return found


def test_a_report_of_everything_is_whole_and_escapes_every_label() -> None:
    page = render_html("Title & <more>", build_report(material(), "pca"))
    check_page(page)
    assert "Title &amp; &lt;more&gt;" in page
    assert "54.39" in page
    assert "−4.39" in page
    assert "Maps place clips by PCA" in page
    assert "<p>Thresholds, confusion and map: checkpoint.</p>" in page
    assert page.count("<svg") > 8


def test_what_rests_on_a_leak_is_folded_and_named() -> None:
    page = render_html("T", build_report(material(), "pca"))
    folded = re.findall(r"<details><summary>(.*?)</summary>", page)
    assert any("oracle" in summary for summary in folded)
    assert not any("source-val" in summary for summary in folded)
    assert "best on the test set" in page


def test_the_mean_over_all_columns_is_there_though_sets_have_probes_of_their_own() -> None:
    letters = {"V": "video", "A": "audio"}
    columns = [
        replace(
            RESULT,
            setting=figure.setting,
            train_modality=letters[figure.direction[0]],
            test_modality=letters[figure.direction[-1]],
            value=figure.number / 100 + 0.01,
            probe=f"epochs={16 if 'ucf' in figure.setting else 25}",
        )
        for figure in read_printed()
        if (figure.table, figure.method, figure.metric) == (2, "MICU", "hos")
    ]
    page = render_html("T", build_report(Material(results=columns)))
    assert len(columns) == 12
    assert "Mean over all 12 columns, micu, source-val: ours" in without_links(page)
    assert "(+1.00)" in page
    others = [replace(row, score="energy", protocol="clean") for row in columns]
    page = render_html("T", build_report(Material(results=[*columns, *others])))
    assert "Mean over all 12 columns, micu, clean source-val energy: ours" in without_links(page)
    page = render_html("T", build_report(Material(results=columns[1:])))
    assert "Mean over all" not in page


def test_bars_say_what_they_are_of_and_whether_anything_was_chosen_on_the_test_set() -> None:
    clean = replace(RESULT, protocol="clean", score="msp")
    rows = [
        clean,
        replace(clean, score="energy"),  # of the scores of one job, the paper's
        replace(clean, checkpoint_sha256="bb", preset="dcid", leaks="checkpoint:test"),
        replace(clean, threshold_source="paired-quantile"),
        replace(
            clean,
            protocol="paper",
            threshold_source="oracle",
            score="energy",
            leaks="threshold:test;epoch:test",
        ),
        replace(clean, test_modality="video", train_modality="audio"),
        replace(clean, test_modality="video", train_modality="audio", checkpoint_sha256="bb"),
    ]
    sections = build_report(Material(results=rows))
    lead, chart = drawings_of(sections)
    assert lead.caption == "HOS, %"
    axes = painted(chart)
    labels = [text.get_text() for text in axes.texts if "\n" in text.get_text()]
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert dict(zip(labels, colours, strict=True)) == {
        "V→A micu\nclean source-val": BLIND,
        "V→A dcid\nclean source-val": ON_TEST,
        "V→A micu\nclean paired-quantile": BLIND,
        "V→A micu\npaper oracle energy": ON_TEST,
        "A→V micu\nclean source-val aa": BLIND,
        "A→V micu\nclean source-val bb": BLIND,
    }
    page = render_html("T", sections)
    assert "HOS, ave-14: ours (bar)" in page
    assert "threshold, epoch or checkpoint chosen on it" in page


def test_the_leaks_that_are_named_are_explained_and_no_others() -> None:
    rows = [replace(RESULT, leaks="epoch:test;pretraining-overlap:12;new-kind:3")]
    page = render_html("T", build_report(Material(results=rows)))
    assert "epoch:test; pretraining-overlap:12; new-kind:3" in page
    assert "media that the model was pretrained on" in page
    assert "threshold was chosen on the test set" not in page


def test_markdown_has_the_tables_and_no_markup_of_the_labels() -> None:
    text = render_report_markdown("T", build_report(material(), "pca"))
    assert "## Table 2: Open-set cross-modal generalisation" in text
    assert "| 54.39 " in text
    assert "<script" not in "\n".join(x for x in text.splitlines() if not x.startswith("    "))
    assert "<svg" not in text
    assert "2 steps" not in text  # the title of a training, which is drawings alone
    assert "Behind the open-set figures" not in text
    assert not re.search("confusion|source-val ·|Maps", text)


def test_parts_without_content_are_left_out_and_linked_ones_are_there() -> None:
    page = render_html("T", [Section("Empty", []), Section("Full", ["text"])])
    assert "Empty" not in page
    assert re.findall(r'href="#(\w+)"', page) == re.findall(r'<h2 id="(\w+)"', page)


def test_tables_scroll_by_themselves_and_numbers_are_set_to_the_right() -> None:
    table = TextTable((("name", "n"), ("a", "1.50 ± 0.20"), ("b|c", "–")))
    blocks = [Title("t"), table, Code("$ x\n$ y"), Fold("more", ["inside"]), Drawings(())]
    page = render_html("T", [Section("S", blocks)])
    assert page.count('<td class="number">') == 2
    assert '<div class="wide" tabindex="0"' in page
    assert "<pre>$ x\n$ y</pre>" in page
    assert "b\\|c" in render_report_markdown("T", [Section("S", blocks)])


def test_commands_are_noted_once_with_versions_and_read_back(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    for line in ("micu-eval a.pt", "micu-eval b.pt", "micu-eval a.pt"):
        record_command(results, line)
    with commands_path(results).open("a") as file:
        file.write('{"line": 3}\n{"line": "cut')
    found = read_commands(commands_path(results))
    assert [command.line for command in found] == ["micu-eval a.pt", "micu-eval b.pt"]
    assert {"python", "numpy", "torch"} <= found[0].versions.keys()


def test_codebook_counts_come_back_and_other_tables_are_refused(tmp_path: Path) -> None:
    use = CodebookUse({"video": np.array([3, 0, 1]), "audio": np.array([0, 0, 2])})
    write_codebook(use, tmp_path / "c.csv")
    found = read_codebook(tmp_path / "c.csv")
    assert {name: counts.tolist() for name, counts in found.counts.items()} == {
        "video": [3, 0, 1],
        "audio": [0, 0, 2],
    }
    for text in ("a,b\n1,2\n", "code,modality,count\n1,v,2\n", "code,modality,count\n0,v,-2\n"):
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(ConfigError, match="not a codebook file"):
            read_codebook(tmp_path / "x.csv")


def test_the_number_of_clips_is_no_loss() -> None:
    found = Material()
    found.trainings["run"] = {"step": [1.0, 2.0], "total": [2.0, 1.0], "clips": [3.0, 5.0]}
    with_clips = render_html("T", build_report(found, "pca"))
    del found.trainings["run"]["clips"]
    assert render_html("T", build_report(found, "pca")) == with_clips


def test_terms_are_linked_to_the_foot_of_the_page_in_the_words_of_the_glossary() -> None:
    told = "clean source-val: HOS and OS*; unclean, paper-like, the paper's, HOSE"
    page = render_html("T", [Section("S", [told])])
    linked = re.findall(r'<a class="term" href="#([^"]*)">([^<]*)</a>', page)
    assert [term for _, term in linked] == ["clean", "source-val", "HOS", "OS*"]
    assert {anchor for anchor, _ in linked} == {*re.findall(r'<dt id="([^"]*)"', page)}
    assert "<dl>" not in render_html("T", [Section("S", ["nothing"])])
    document = (PROJECT / "docs/glossary.md").read_text()
    document = " ".join(re.sub(r"[*`\\]", "", document).split())
    for term, told in GLOSSARY.items():
        assert told.replace("*", "") in document, term


def test_a_caption_stands_above_its_table_and_names_it_for_those_who_do_not_see_it() -> None:
    table = TextTable((("name",), ("a",)), "What it is.")
    page = render_html("T", [Section("S", [table])])
    assert '<p class="caption">What it is.</p>' in page
    assert 'aria-label="What it is."' in page
    assert "What it is.\n\n| name" in render_report_markdown("T", [Section("S", [table])])
    tables = [
        block
        for section in build_report(material(), "pca")
        for block in section.blocks
        if isinstance(block, TextTable)
    ]
    assert len(tables) > 4
    assert all(table.caption for table in tables)


def test_clean_codes_come_first() -> None:
    found = Material()
    row = Row(task="codebook", method="checkpoint", metric="used_by_all", value=0.5)
    found.results.extend(
        [replace(row, protocol="paper"), replace(row, protocol="clean", value=0.25)]
    )
    for name in ("paper", "clean"):
        found.codebooks[f"{name}.csv"] = CodebookUse({"video": np.array([1, 0])}, name)
    (part,) = [part for part in build_report(found) if part.heading == "Codebook"]
    (table,) = [block for block in part.blocks if isinstance(block, TextTable)]
    assert [line[-1] for line in table.rows[1:]] == ["25.00", "50.00"]
    titles = [block.text for block in part.blocks if isinstance(block, Title)]
    assert titles == ["clean.csv (protocol clean)", "paper.csv (protocol paper)"]


def test_own_results_stand_under_the_name_of_their_manifest_and_the_title_has_the_date(
    tmp_path: Path,
) -> None:
    found = Material(results=[replace(RESULT, setting="", preset="small with data.steps=4")])
    assert [part.heading for part in build_report(found)][:3] == [
        *("", "Summary", "Results on your data")
    ]
    (tmp_path / "r.csv").write_text("")
    os.utime(tmp_path / "r.csv", (1760875200, 1760875200))
    found.sources.append(str(tmp_path / "r.csv"))
    assert title_of(found) == "MICU, 2025-10-19"
    header = Header.__new__(Header)
    found.sets.update({f"features/{name}/video-x": header for name in "abca"})
    assert title_of(found) == "MICU on a, b and 1 more, 2025-10-19"
    found.results[:] = [replace(RESULT, preset="dcid")]
    assert title_of(found) == "DCID on AVE, 14 of 28 classes known, 2025-10-19"
    assert title_of(Material(sources=found.sources)) == "Results, 2025-10-19"
