"""Rows of results in the rows and columns of the paper's tables, with numbers that are known."""

import math
from dataclasses import replace

import pytest

from micu.evaluate.markdown import TextTable
from micu.evaluate.report import Row
from micu.report.as_printed import (
    LAYOUTS,
    Layout,
    as_printed_sections,
    collect,
    preset_of,
    summed_up,
    with_frozen,
)
from micu.report.page import Drawings
from micu.report.paper import read_printed

ROW = Row(
    task="oscmg",
    method="checkpoint",
    train_modality="video",
    test_modality="audio",
    preset="micu",
    seed=1,
    threshold_source="oracle",
    metric="hos",
    value=0.5,
    setting="ave-14",
    protocol="paper",
    score="msp",
)


def all_rows(layout: Layout, value: float = 0.25) -> list[Row]:
    """A row for every printed figure of a table."""
    letters = {"V": "video", "A": "audio", "F": "flow", "T": "text"}
    methods = {method.filed: method.preset for method in layout.methods}
    rows = []
    for figure in read_printed():
        if figure.table != layout.number:
            continue
        ends = figure.direction.replace("<", "").split("->")
        ways = [ends, ends[::-1]] if "<" in figure.direction else [ends]
        for one, other in ways:
            rows.append(
                replace(
                    ROW,
                    task=figure.task,
                    preset=methods[figure.method],
                    train_modality=letters[one],
                    test_modality=letters[other],
                    metric=figure.metric,
                    setting=figure.setting,
                    threshold_source="oracle" if figure.task == "oscmg" else "none",
                    score="msp" if figure.task == "oscmg" else "",
                    value=value,
                )
            )
    return rows


def tables_of(layout: Layout, rows: list[Row], part: int = 0) -> list[TextTable]:
    blocks = as_printed_sections(layout, rows, {})[part].blocks
    return [block for block in blocks if isinstance(block, TextTable)]


@pytest.mark.parametrize("number", range(2, 9))
def test_every_printed_figure_stands_beside_ours_once(number: int) -> None:
    layout = LAYOUTS["table", number]
    *tables, means = tables_of(layout, all_rows(layout))
    cells = [cell for table in tables for row in table.rows[1:] for cell in row[1:]]
    printed = [figure for figure in read_printed() if figure.table == number]
    assert len(cells) == len(printed)
    assert sorted(c.partition("(")[2].rstrip("*)") for c in cells) == sorted(
        figure.value for figure in printed
    )
    assert {cell.partition(" ")[0] for cell in cells} == {"25.00"}
    assert [row[0] for row in means.rows[1:]] == [method.title for method in layout.methods]
    lines = tables_of(layout, all_rows(layout), part=1)
    assert {c for t in lines for row in t.rows[1:] for c in row[1:]} == {"–"}, "nothing is clean"


def test_the_means_are_those_of_the_paper() -> None:
    means = tables_of(LAYOUTS["table", 2], all_rows(LAYOUTS["table", 2]))[-1]
    assert means.rows[0] == ("method", "OS*", "UNK", "HOS")
    assert means.rows[-1] == ("MICU", "25.00 (44.91)", "25.00 (73.49)", "25.00 (54.29)")
    enhanced = tables_of(LAYOUTS["table", 5], all_rows(LAYOUTS["table", 5]))[-1]
    assert enhanced.rows[0] == ("method", "HOS", "enhanced HOS")
    assert enhanced.rows[-1] == ("MICU", "25.00 (54.29)", "25.00 (57.37)")
    flow = tables_of(LAYOUTS["table", 6], all_rows(LAYOUTS["table", 6]))[-1]
    assert flow.rows[-1] == ("MICU", "25.00 (56.58)")


def test_a_mean_lacks_a_column_that_is_not_there() -> None:
    layout = LAYOUTS["table", 2]
    rows = [r for r in all_rows(layout) if (r.preset, r.setting) != ("micu", "ucf-17")]
    *tables, means = tables_of(layout, rows)
    assert means.rows[-1][1].startswith("– (")
    assert means.rows[-2][1].startswith("25.00 (")
    assert sum(c.startswith("–") for t in tables for row in t.rows for c in row) == 6


def test_seeds_are_averaged_and_their_deviation_stands_there() -> None:
    layout = LAYOUTS["table", 2]
    rows = [ROW, replace(ROW, seed=2, value=0.7)]
    first = tables_of(layout, rows)[0]
    assert first.rows[0][:4] == ("method", "V→A OS*", "V→A UNK", "V→A HOS")
    assert first.rows[-1][3].startswith("60.00 ± 14.14 (")


@pytest.mark.parametrize(
    "other",
    [
        {"method": "untrained"},
        {"method": "ceiling"},
        {"protocol": "clean"},
        {"threshold_source": "source-val"},
        {"score": "energy"},
        {"splits": "test=val"},
    ],
)
def test_rows_of_something_else_do_not_count(other: dict[str, str]) -> None:
    assert collect([ROW], "paper")
    assert not collect([replace(ROW, **other)], "paper")  # type: ignore[arg-type]


def test_clean_takes_the_thresholds_of_held_out_clips_and_its_own_f1() -> None:
    honest = replace(ROW, protocol="clean", threshold_source="source-val")
    assert collect([ROW, honest], "clean") == {("micu", "ave-14", "V->A", "hos"): (0.5,)}
    micro = replace(ROW, task="cmg", protocol="clean", metric="f1_micro", setting="avvp", score="")
    found = collect([replace(micro, threshold_source="none")], "clean")
    assert found["micu", "avvp", "V->A", "f1"] == (0.5,)


def test_both_directions_are_averaged_seed_by_seed_where_the_paper_prints_that() -> None:
    there = replace(ROW, setting="ave-14-vaf", test_modality="flow")
    back = replace(there, train_modality="flow", test_modality="video", value=0.7)
    rows = [there, back, replace(there, seed=2, value=0.1)]
    found = collect(rows, "paper")
    assert found["micu", "ave-14-vaf", "V<->F", "hos"] == (pytest.approx(0.6),)
    assert not any(
        "<" in key[2] for key in collect([replace(r, setting="ave-14") for r in rows], "paper")
    )


@pytest.mark.parametrize(
    ("preset", "found"),
    [
        ("micu", "micu"),
        ("micu with encoder.layers=1", "micu"),
        ("ablation-fine with data.steps=4", "ablation-fine"),
        ("micu with quantizer.codebook_size=512", "fig5-512"),
        ("micu with quantizer.codebook_size=400", "micu"),
        ("micu with quantizer.codebook_size=24", "micu"),
        ("micu with contrastive.mask_share=independent", "fig4-independent"),
        ("released MICU (features unchecked)", "micu"),
        ("released DCID (features unchecked)", "dcid"),
        ("released FCID (features unchecked)", "fcid"),
    ],
)
def test_a_row_belongs_to_the_preset_that_has_its_settings(preset: str, found: str) -> None:
    assert preset_of(replace(ROW, preset=preset)) == found
    assert preset_of(replace(ROW, preset=preset, method="frozen:x")) == "frozen:x"


def test_the_hours_of_an_epoch_are_those_of_its_steps() -> None:
    cost = replace(
        ROW, task="efficiency", train_modality="", test_modality="", threshold_source="none",
        setting="", protocol="", score="", n_clips=80,
    )  # fmt: skip
    rows = [
        replace(cost, metric="seconds_per_step", value=10.0),
        replace(cost, metric="training_memory_mib", value=3072.0),
        replace(cost, metric="parameters", value=80_300_000.0),
        replace(cost, metric="epochs", value=4.0),
    ]
    [table] = tables_of(LAYOUTS["table", 9], rows)
    assert [row[3] for row in table.rows] == ["epochs", "– (8)", *["– (5)"] * 3, "4 (5)"]
    hours = 511 * 10 / 3600  # 40,801 clips by 80
    assert table.rows[-1] == (
        "MICU (CUJP8)",
        "3.00 (13.30)",
        f"{hours:.3f} (2.22)",
        "4 (5)",
        "80.30",
        "– (54.29)",
        "– (57.20)",
    )


def test_a_figure_has_means_over_data_sets_and_cmg_in_two_parts() -> None:
    rows = []
    for number, key in ((2, "hos"), (3, "")):
        layout = LAYOUTS["table", number]
        rows += [
            r for r in all_rows(layout) if r.preset == "micu" and r.metric in (key, "acc", "f1")
        ]
    rows = [replace(r, value={"hos": 0.3, "acc": 0.5, "f1": 0.9}[r.metric]) for r in rows]
    found = summed_up("micu", collect(rows, "paper"))
    assert found == {
        "HOS": pytest.approx(0.3),
        "CMG": pytest.approx(0.7),
        "CMG classification": pytest.approx(0.5),
        "CMG localisation": pytest.approx(0.9),
    }
    assert all(map(math.isnan, summed_up("dcid", collect(rows, "paper")).values()))
    table = tables_of(LAYOUTS["figure", 3], rows)[0]
    assert table.rows[-1] == ("CUJP8", "30.00", "70.00", "50.00", "90.00")
    for number, count in ((3, 3), (4, 3), (5, 1)):
        sections = as_printed_sections(LAYOUTS["figure", number], rows, {})
        drawn = [b for b in sections[0].blocks if isinstance(b, Drawings)]
        assert [len(block.drawn) for block in drawn] == [count]


def test_frozen_encoders_are_lines_of_tables_alone() -> None:
    names = ["frozen:x", "micu", "frozen:x", "frozen:y"]
    layout = with_frozen(LAYOUTS["table", 3], names)
    assert [m.preset for m in layout.methods[-3:]] == ["micu", "frozen:x", "frozen:y"]
    assert with_frozen(layout, names) == layout
    for key in (("figure", 3), ("table", 9)):
        assert with_frozen(LAYOUTS[key], names) == LAYOUTS[key]
