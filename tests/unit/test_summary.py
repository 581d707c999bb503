"""The report's first table, what it names, and what it keeps apart."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from micu.evaluate.report import COLUMNS, Row, read_results
from micu.report.build import build_report
from micu.report.compare import compare, name_lists, render_csv, tabulate_lines
from micu.report.page import Drawings, Fold, Title, render_report_markdown
from micu.report.read import Material
from micu.report.remarks import tell_remarks
from micu.report.summary import lead_blocks, summarise, summary_blocks, tabulate
from tests.unit.test_compare import RESULT
from tests.unit.test_details import make_details
from tests.unit.test_report_drawings import drawn, painted

PRESET = "dcid with optimizer.epochs=6"
EIGHT = replace(
    RESULT,
    setting="",
    protocol="clean",
    preset=PRESET,
    known_classes=8,
    class_list="things-8",
    classes_sha256="8888",
)
TWELVE = replace(EIGHT, known_classes=12, class_list="things-12", classes_sha256="1212")


def back(row: Row, value: float) -> Row:
    return replace(row, train_modality="audio", test_modality="video", value=value)


def table_of(*rows: Row) -> list[dict[str, str]]:
    """The summary of one task, a line each."""
    header, *lines = tabulate(summarise(rows)).rows
    return [dict(zip(header, line, strict=True)) for line in lines]


def render(*rows: Row) -> str:
    return render_report_markdown("T", build_report(Material(results=list(rows)), "pca"))


def part(text: str, heading: str) -> str:
    """One section of a report in Markdown; empty if it is not there."""
    return next((s for s in text.split("\n## ") if s.startswith(heading)), "")


def test_means_are_over_pairs_within_a_seed_and_deviations_over_seeds() -> None:
    seeds = [(EIGHT, 0.2, 0.4), (replace(EIGHT, seed=2, checkpoint_sha256="bb"), 0.6, 0.4)]
    rows = [row for of, v, w in seeds for row in (replace(of, value=v), back(of, w))]
    (line,) = table_of(*rows)
    assert line["clean source-val: HOS"] == "40.00 ± 14.14"
    assert (line["preset"], line["seeds"], line["pairs"]) == ("dcid*", "2", "V→A, A→V")


def test_a_seed_that_lacks_a_pair_is_in_no_mean_and_told_of() -> None:
    alone = replace(EIGHT, seed=2, checkpoint_sha256="bb", value=0.9)
    rows = [EIGHT, back(EIGHT, 0.3), alone]
    (line,) = table_of(*rows)
    assert (line["clean source-val: HOS"], line["seeds"]) == ("40.00", "1")
    assert "Seeds left out for want of a pair: 1." in summary_blocks(rows)


def test_lists_of_known_classes_are_named_and_never_averaged_together() -> None:
    no_hash = [replace(row, classes_sha256="", class_list="") for row in (EIGHT, TWELVE)]
    for rows in ([EIGHT, TWELVE], no_hash):
        rows = [rows[0], replace(rows[1], seed=2, value=0.9)]
        found = [(line["known classes"], line["clean source-val: HOS"]) for line in table_of(*rows)]
        assert found == [("8", "50.00"), ("12", "90.00")]
        header, *lines = tabulate_lines(compare(rows), ["hos"]).rows
        assert [line[header.index("known classes")] for line in lines] == ["8", "12"]
        assert [line[-1] for line in lines] == ["50.00", "90.00"]
    (written,) = csv.DictReader(render_csv(compare([EIGHT])).splitlines())
    assert (written["known_classes"], written["class_list"]) == ("8", "things-8")


@pytest.mark.parametrize(
    ("lists", "names"),
    [
        ([("8", "a", "11"), ("12", "b", "22")], ["8", "12"]),
        ([("8", "a", "11"), ("8", "b", "22")], ["8 (a)", "8 (b)"]),
        ([("8", "a", "11"), ("8", "a", "22")], ["8 (11)", "8 (22)"]),
        ([("", "", "11"), ("", "", "22"), ("", "", "")], ["? (11)", "? (22)", ""]),
    ],
)
def test_lists_of_one_size_are_told_apart_by_file_or_hash(
    lists: list[tuple[str, str, str]], names: list[str]
) -> None:
    assert [name_lists(lists)[key] for key in lists] == names


def test_bars_of_one_setting_say_how_many_classes_are_known() -> None:
    rows = [replace(row, setting="ave-14", preset="micu") for row in (EIGHT, TWELVE)]
    sections = build_report(Material(results=rows), "pca")
    (overview,) = [section for section in sections if section.heading == "Overview"]
    chart = drawn([overview])
    assert "8 known" in chart
    assert "12 known" in chart
    assert "known" not in drawn(build_report(Material(results=rows[:1]), "pca"))


def test_clean_stands_first_paper_beside_it_and_auroc_once_for_each_epoch() -> None:
    paper = replace(EIGHT, protocol="paper", threshold_source="oracle", leaks="threshold:test")
    pair = replace(EIGHT, threshold_source="paired-quantile", value=0.6)
    at_epoch = replace(EIGHT, protocol="diagnostic", threshold_source="oracle-at-source-epoch")
    rows = [
        replace(row, metric=metric)
        for row in (paper, at_epoch, EIGHT, pair)
        for metric in ("hos", "auroc")
    ]
    guess = replace(EIGHT, method="chance", preset="", threshold_source="none", value=0.1)
    lines = table_of(*rows, guess)
    assert [name for name in lines[0] if ":" in name] == [
        *("clean source-val: HOS", "clean source-val: AUROC", "clean paired-quantile: HOS"),
        *("diagnostic oracle-at-source-epoch: HOS", "paper oracle: HOS", "paper oracle: AUROC"),
    ]
    assert lines[1]["preset"] == "chance"
    assert lines[1]["clean source-val: HOS"] == lines[1]["clean paired-quantile: HOS"] == "10.00"
    assert lines[1]["paper oracle: HOS"] == ""


def test_lines_that_look_alike_show_what_differs() -> None:
    other = replace(EIGHT, preset="dcid with optimizer.epochs=9", checkpoint_sha256="bb")
    lines = table_of(EIGHT, other, replace(EIGHT, checkpoint_sha256="cc", value=0.9))
    assert [line["preset"] for line in lines] == ["dcid*"] * 3
    assert len({(line["checkpoint"], line["clean source-val: HOS"]) for line in lines}) == 3
    several = [replace(EIGHT, features="video:a@1"), replace(EIGHT, features="video:a@2", seed=2)]
    assert [line["features"] for line in table_of(*several)] == ["video:a@1", "video:a@2"]
    assert "features" not in table_of(*several[:1])[0]
    trained = [EIGHT, replace(EIGHT, splits="train=all", value=0.9)]
    assert [line["splits"] for line in table_of(*trained)] == ["", "train=all"]


def test_two_manifests_have_a_column_and_stand_one_after_the_other() -> None:
    here, there = (
        [replace(row, manifest_sha256=sha) for row in (EIGHT, TWELVE)] for sha in ("aaaa", "bbbb")
    )
    there = [replace(row, train_modality="flow") for row in there]
    lines = table_of(here[0], there[0], here[1], there[1])
    assert [line["manifest"] for line in lines] == ["aaaa", "aaaa", "bbbb", "bbbb"]
    assert not any("manifest" in line for line in table_of(*here))


def test_what_a_clean_figure_rests_on_all_the_same_is_named() -> None:
    (line,) = table_of(replace(EIGHT, leaks="checkpoint:test;pretraining-overlap:3"))
    assert line["clean rests on"] == "checkpoint, pretraining-overlap"


def test_an_undefined_figure_is_a_dash() -> None:
    (line,) = table_of(EIGHT, back(EIGHT, math.nan))
    assert line["clean source-val: HOS"] == "–"


def test_the_summary_comes_first_and_explains_its_stars() -> None:
    text = render(EIGHT, back(EIGHT, 0.3))
    assert text.index("## Summary") < text.index("## Overview")
    assert f"dcid\\* is the preset {PRESET}." in part(text, "Summary")
    assert f"dcid\\* is the preset {PRESET}." in part(text, "Results on your data")
    assert "Summary" not in render(Row(task="codebook", method="m", metric="used", value=0.5))


@pytest.mark.parametrize(
    "marks",
    [
        {"leaks": "epoch:test;test-split:val", "protocol": "paper"},
        {"splits": "train=all test=val", "protocol": "clean"},
    ],
)
def test_validation_splits_have_a_part_of_their_own(marks: dict[str, str]) -> None:
    closed = replace(EIGHT, task="cmg", metric="acc", threshold_source="none")
    tuned = replace(closed, value=0.1234, seed=7, **marks)  # type: ignore[arg-type]
    text = render(closed, tuned)
    assert "12.34" in part(text, "Tested on another split than test")
    assert "tested on split val, not on test" in text
    assert text.count("12.34") == 1
    assert "50.00" in part(text, "Results on your data")
    assert "Tested on another" not in render(closed)
    paper = replace(EIGHT, setting="ave-14", preset="micu", **marks)  # type: ignore[arg-type]
    assert not part(render(paper), "Table 2")


def test_the_split_that_is_published_and_those_with_the_test_in_them_are_no_others() -> None:
    published = replace(EIGHT, task="cmg", setting="ave", splits="test=train")
    for row in (
        published,
        replace(EIGHT, splits="test=all"),
        replace(EIGHT, splits="test=val,test"),
    ):
        assert row.other_split == ""
    assert replace(published, setting="").other_split == "train"
    assert replace(published, splits="test=val").other_split == "val"


def test_no_list_and_an_older_file_look_the_same(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    shared = "cmg,checkpoint,acc,0.5"
    path.write_text(f"task,method,metric,value,known_classes,class_list\n{shared},0,\n")
    (new,) = read_results(path)
    path.write_text(f"task,method,metric,value\n{shared}\n")
    assert read_results(path) == [new]
    assert {"known_classes", "class_list"} <= set(COLUMNS)


def test_the_report_says_which_pairs_carried_a_threshold() -> None:
    note = "accepts 95% or more; carried to the target modality by 48 unlabelled pairs, none: 16"
    carried = replace(EIGHT, threshold_source="paired-quantile", note=f"{note}; more")
    (told,) = tell_remarks(compare([replace(carried, preset="dcid"), back(carried, 0.1)]))[-1:]
    assert "V->A, 8 known, A->V, 8 known: 48 unlabelled pairs, none: 16." in told
    assert "without them most pairs are of classes that are not known" in told
    assert not any("paired" in text for text in tell_remarks(compare([EIGHT])))


def test_what_is_drawn_of_a_job_says_how_many_classes_are_known_and_folds_what_saw_the_test() -> (
    None
):
    keys = {"method": "checkpoint", "train_modality": "video", "threshold_source": "source-val"}
    found = Material()
    found.details[Path("a")] = replace(make_details(), keys=keys)
    keys = {**keys, "threshold_source": "oracle-at-source-epoch"}
    found.details[Path("b")] = replace(make_details(), keys=keys)
    (section,) = [s for s in build_report(found, "pca") if s.heading.startswith("Behind")]
    titles = [block.text for block in section.blocks if isinstance(block, Title)]
    folded = [block.summary for block in section.blocks if isinstance(block, Fold)]
    known = f"{len(make_details().classes)} known"
    assert len(titles) == len(folded) == 1
    assert "source-val" in titles[0]
    assert "oracle-at-source-epoch" in folded[0]
    assert known in titles[0]


def seeds_of(row: Row, *values: float) -> list[Row]:
    """A row for each seed and both directions, whose mean is the value."""
    found = [
        replace(row, seed=seed, checkpoint_sha256=f"{seed}", value=value - 0.1)
        for seed, value in enumerate(values)
    ]
    return [*found, *(back(row, row.value + 0.2) for row in found)]


def test_a_report_begins_with_one_sentence_and_one_chart() -> None:
    paper = replace(EIGHT, protocol="paper", threshold_source="oracle")
    rows = [
        *seeds_of(replace(TWELVE, preset="micu"), 0.9),
        *seeds_of(replace(EIGHT, method="untrained"), 0.2, 0.2),
        *seeds_of(replace(EIGHT, method="chance", threshold_source="none"), 0.3),
        *seeds_of(replace(EIGHT, preset="small with data.steps=4"), 0.42, 0.5),
        *seeds_of(replace(paper, preset="small with data.steps=4"), 0.8, 0.8),
        replace(EIGHT, metric="auroc", value=1.0),
    ]
    sentence, told, chart = lead_blocks(rows)
    assert sentence == "HOS, %: MICU 46 ± 6, guessing 30, untrained 20 ± 0."
    assert told == (
        "Mean over V→A, A→V; ± over 2 seeds; protocol clean; threshold source-val; 8 known classes."
    )
    assert isinstance(chart, Drawings)
    assert [text.get_text() for text in painted(chart.drawn[0]).texts if text.get_text()] == [
        *("MICU  46 ± 6", "guessing  30", "untrained  20 ± 0")
    ]


def test_the_first_sentence_is_of_what_there_is() -> None:
    closed = replace(EIGHT, task="cmg", metric="acc", threshold_source="none", known_classes=0)
    sentence, told, _ = lead_blocks([replace(closed, preset="dcid")])
    assert sentence == "closed-set acc., %: DCID 50."
    assert told == "Mean over V→A; one seed, so without ±; protocol clean."
    assert lead_blocks([replace(EIGHT, value=math.nan)]) == []
    assert lead_blocks([replace(EIGHT, metric="auroc")]) == []
    assert lead_blocks([]) == []
