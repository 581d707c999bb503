"""Rows over different test clips are never averaged, nor laid side by side without a word."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from micu.base.files import file_sha256
from micu.cli.sweep_table import collect, render_sweep, write_table
from micu.evaluate.report import Row, read_results, read_rows, write_rows
from micu.evaluate.scores import rank_scores
from micu.evaluate.selection import choose_checkpoint
from micu.evaluate.splits import SplitRules, clips_sha256, split_clips
from micu.report.build import build_report
from micu.report.compare import compare, name_clips, render_csv, render_table, tabulate_lines
from micu.report.open_set import open_set_section
from micu.report.read import Material
from micu.store.manifest import Clip
from tests.unit.test_compare import RESULT
from tests.unit.test_details import make_details
from tests.unit.test_report import ROW
from tests.unit.test_report_drawings import drawn
from tests.unit.test_splits import make_clips
from tests.unit.test_summary import EIGHT, back, table_of
from tests.unit.test_sweep import plan

ALL, FEWER = "a" * 64, "b" * 64
TESTED = replace(EIGHT, n_clips=20, test_sha256=ALL, n_lacking=0)
OTHERS = replace(TESTED, n_clips=19, test_sha256=FEWER, n_lacking=1, seed=2, value=0.9)


def lines_of(table: str) -> list[dict[str, str]]:
    """A Markdown table, a line each."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


# --- the split -------------------------------------------------------------------------------


def test_test_clips_without_features_are_counted_and_no_others() -> None:
    clips = make_clips(6, "train") + make_clips(3, "test") + [Clip(clip_id="free", split="test")]
    ids = {clip.clip_id for clip in clips}
    gone = {"test/a/0", "test/c/1", "train/a/0", "train/c/0", "free"}
    for closed, lacking in ((False, 2), (True, 1)):
        rules = SplitRules(closed=closed)
        options = {"seed": 0, "rules": rules, "source_ids": ids - gone, "target_ids": ids - gone}
        split = split_clips(clips, ("a", "b"), **options)  # type: ignore[arg-type]
        assert split.lacking == {"training": 1, "test": lacking}
        assert split.test_sha256 == clips_sha256(split.test)
    seen = frozenset({"test/c/1"})
    for protocol, lacking in (("clean", 1), ("paper", 2)):
        rules = SplitRules(protocol=protocol, seen=seen)
        options = {"seed": 0, "rules": rules, "source_ids": ids, "target_ids": ids - gone}
        assert split_clips(clips, "ab", **options).lacking["test"] == lacking  # type: ignore[arg-type]


def test_the_digest_is_of_the_ids_in_any_order() -> None:
    clips = make_clips(3, "test")
    assert clips_sha256(clips) == clips_sha256(clips[::-1])
    assert clips_sha256(clips) != clips_sha256(clips[1:])
    joined = [Clip(clip_id="ab"), Clip(clip_id="c")]
    assert clips_sha256(joined) != clips_sha256([Clip(clip_id="a"), Clip(clip_id="bc")])


# --- results files and the table of an evaluation --------------------------------------------


def test_a_row_says_how_many_clips_lack_features_and_an_older_file_is_silent(
    tmp_path: Path,
) -> None:
    rows = [replace(ROW, n_lacking=0, test_sha256=ALL), replace(ROW, seed=2, n_lacking=3)]
    write_rows(rows, tmp_path / "r.csv")
    assert read_rows(tmp_path / "r.csv") == rows
    assert [row.n_lacking for row in read_results(tmp_path / "r.csv")] == [0, 3]
    write_rows([replace(ROW, value=0.9, n_lacking=1, test_sha256=FEWER)], tmp_path / "r.csv")
    assert [row.value for row in read_rows(tmp_path / "r.csv")] == [0.9, ROW.value]
    (tmp_path / "old.csv").write_text("task,method,metric,value\na,b,c,1\n")
    assert read_results(tmp_path / "old.csv")[0].n_lacking is None


def test_seeds_over_other_clips_stand_on_lines_of_their_own_and_are_named() -> None:
    rows = [
        replace(ROW, seed=1, n_clips=20, n_lacking=0, test_sha256=ALL, value=0.2),
        replace(ROW, seed=2, n_clips=20, n_lacking=0, test_sha256=ALL, value=0.4),
        replace(ROW, seed=3, n_clips=19, n_lacking=1, test_sha256=FEWER, value=0.9),
    ]
    val = [replace(row, metric="val_acc", n_clips=7) for row in rows]
    first, other = lines_of(render_table([*rows, *val]))
    assert (first["HOS"], first["runs"], first["test clips"]) == (
        "30.00 ± 14.14",
        "2",
        "20 (aaaaaaaa)",
    )
    assert (other["HOS"], other["test clips"], other["lacking features"]) == (
        *("90.00", "19 (bbbbbbbb)", "1"),
    )
    (alone,) = lines_of(render_table(rows[:2]))
    assert not {"test clips", "lacking features"} & alone.keys()


def test_methods_over_other_clips_are_named_and_other_tests_are_not() -> None:
    own = replace(ROW, n_clips=20, test_sha256=ALL)
    beside = replace(own, method="untrained", n_clips=19, test_sha256=FEWER)
    assert [line["test clips"] for line in lines_of(render_table([own, beside]))] == [
        *("20 (aaaaaaaa)", "19 (bbbbbbbb)"),
    ]
    for change in ({"protocol": "paper"}, {"test_modality": "flow"}, {"classes_sha256": "dd"}):
        elsewhere = replace(beside, **change)  # type: ignore[arg-type]
        assert "test clips" not in render_table([own, elsewhere])
    older = replace(beside, test_sha256="")
    assert lines_of(render_table([own, older]))[1]["test clips"] == "19 (?)"


def test_rows_of_an_older_file_that_count_other_clips_are_named() -> None:
    old = [replace(ROW, n_clips=20), replace(ROW, seed=2, n_clips=19)]
    assert lines_of(render_table(old))[0]["test clips"] == "19 to 20 (?)"
    assert [*name_clips(compare(old)).values()] == ["19 to 20 (?)"]
    assert name_clips(compare([old[0], replace(old[1], metric="val_acc")])) == {}


# --- the report ------------------------------------------------------------------------------


def test_a_report_averages_no_seeds_over_other_clips_and_names_them() -> None:
    lines = compare([TESTED, OTHERS, replace(TESTED, seed=3, value=0.1)])
    assert sorted((line.runs, line.cells["hos"].mean) for line in lines) == [(1, 0.9), (2, 0.3)]
    header, *rows = tabulate_lines(lines, ["hos"]).rows
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["test clips"] for row in found] == ["20 (aaaaaaaa)", "19 (bbbbbbbb)"]
    assert [row["lacking features"] for row in found] == ["", "1"]
    written = list(csv.DictReader(render_csv(lines).splitlines()))
    assert [row["test_sha256"] for row in written] == [ALL, FEWER]
    assert [row["n_lacking"] for row in written] == ["0", "1"]
    header = tabulate_lines(lines[:1], ["hos"]).rows[0]
    assert not {"test clips", "lacking features"} & {*header}


def test_older_rows_that_count_other_clips_are_named_in_a_report() -> None:
    old = [replace(EIGHT, n_clips=20), replace(EIGHT, n_clips=19, seed=2)]
    header, row = tabulate_lines(compare(old), ["hos"]).rows
    assert row[header.index("test clips")] == "19 to 20 (?)"
    same = [replace(row, n_clips=20) for row in old]
    assert "test clips" not in tabulate_lines(compare(same), ["hos"]).rows[0]


def test_the_summary_averages_no_seeds_over_other_clips() -> None:
    there = [TESTED, replace(TESTED, seed=3, value=0.1), OTHERS]
    rows = [row for each in there for row in (each, back(replace(each, test_sha256=ALL), 0.5))]
    found = table_of(*rows)
    assert [(line["clean source-val: HOS"], line["seeds"]) for line in found] == [
        *(("40.00 ± 14.14", "2"), ("70.00", "1")),
    ]
    assert [line["lacking features"] for line in found] == ["", "1"]
    assert len({line["test clips"] for line in found}) == 2
    assert "test clips" not in table_of(*rows[:4])[0]


def test_the_summary_keeps_a_run_that_was_tested_twice_apart() -> None:
    again = replace(OTHERS, seed=TESTED.seed)
    found = table_of(TESTED, again)
    assert sorted(line["clean source-val: HOS"] for line in found) == ["50.00", "90.00"]
    assert len({line["test clips"] for line in found}) == 2


def test_the_summary_names_directions_and_methods_over_other_clips() -> None:
    other_way = replace(back(TESTED, 0.4), test_sha256=FEWER, n_clips=18)
    (line,) = table_of(TESTED, other_way)
    assert line["test clips"] == "18 to 20"
    beside = replace(OTHERS, method="untrained", seed=1)
    found = table_of(TESTED, beside)
    assert found[0]["test clips"].startswith("20 (")
    assert found[1]["test clips"].startswith("19 (")
    assert found[0]["test clips"][3:] != found[1]["test clips"][3:]
    twelve = replace(beside, known_classes=12, classes_sha256="1212")
    assert "test clips" not in table_of(TESTED, twelve)[0]


def test_the_mean_of_both_directions_names_the_clips_of_both() -> None:
    there = replace(TESTED, setting="ave-14-vaf", preset="micu")
    other_way = replace(back(there, 0.3), test_sha256=FEWER, n_clips=19, n_lacking=1)
    (mean,) = [line for line in compare([there, other_way]) if line.direction == "V<->A"]
    assert mean.of.test_sha256 == f"{ALL} {FEWER}"
    assert (mean.of.n_lacking, mean.cells["hos"].n_clips) == (1, "39")
    again = replace(there, test_sha256=FEWER, n_clips=19, value=0.9)
    (mean,) = [line for line in compare([there, again, other_way]) if "<->" in line.direction]
    assert mean.of.test_sha256 == FEWER
    assert mean.cells["hos"].values == (pytest.approx(0.6),)
    unclear = replace(again, test_sha256="c" * 64)
    lines = compare([there, unclear, other_way])
    assert not [line for line in lines if "<->" in line.direction]


def test_bars_over_other_clips_say_so() -> None:
    rows = [replace(row, setting="ave-14", preset="micu", seed=1) for row in (TESTED, OTHERS)]
    chart = drawn(build_report(Material(results=rows), "pca"))
    assert "clips aaaaaaaa" in chart
    assert "clips bbbbbbbb" in chart


def test_curves_over_other_clips_are_not_laid_over_each_other_without_a_word() -> None:
    details = make_details()
    keys = {"method": "checkpoint", "preset": "micu", "threshold_source": "source-val"}
    other = replace(details, clip_ids=tuple(f"other {name}" for name in details.clip_ids))
    own = replace(details, keys=keys)
    for method, titles in (("untrained", 2), ("ceiling", 1)):
        beside = replace(other, keys={**keys, "method": method})
        section = open_set_section([own, beside], "pca")
        text = drawn([section])
        assert sum(hasattr(block, "text") for block in section.blocks) == titles
        told = f"ceiling (on {len(details.clip_ids)} other clips)"
        assert (told in text) == (method == "ceiling")
    shuffled = replace(details, clip_ids=details.clip_ids[::-1], keys={**keys, "method": "ceiling"})
    section = open_set_section([own, shuffled], "pca")
    assert "other clips" not in drawn([section])


# --- scores, checkpoints, sweeps -------------------------------------------------------------


def test_a_score_over_fewer_pairs_has_no_rank() -> None:
    rows = [
        replace(ROW, metric=metric, score=score, test_modality=target, value=value)
        for metric in ("auroc", "oscr", "fpr_unk_at_95tpr_known", "hos")
        for score, target, value in (
            *(("msp", "audio", 0.5), ("msp", "flow", 0.7), ("energy", "audio", 0.9)),
            *(("energy", "flow", 0.2), ("quantization_error", "audio", 0.99)),
        )
    ]
    found = [row[:2] for row in rank_scores(rows).rows[1:]]
    assert found == [
        ("1", "msp"),
        ("2", "energy"),
        ("–", "quantization_error (1 of 2 pairs and seeds)"),
    ]


def test_scores_are_ranked_by_auroc_and_by_what_saw_the_test_only_if_nothing_else_is_there() -> (
    None
):
    def rows_of(score: str, auroc: float, oscr: float, source: str = "source-val") -> list[Row]:
        values = {"auroc": auroc, "oscr": oscr, "fpr_unk_at_95tpr_known": 0.5, "hos": 0.5}
        shared = replace(ROW, score=score, threshold_source=source)
        return [replace(shared, metric=name, value=value) for name, value in values.items()]

    honest = [
        *rows_of("msp", 0.5, 0.9),
        *rows_of("energy", 0.7, 0.1),
        *rows_of("vim", math.nan, 0.2),
        *rows_of("knn", 0.6, math.nan),
    ]
    others = [*rows_of("msp", 0.99, 0.99, "oracle"), replace(ROW, score="", metric="auroc")]
    closed = [replace(row, task="cmg", score="other") for row in rows_of("msp", 1.0, 1.0)]
    found = [row[:2] for row in rank_scores([*others, *honest, *closed]).rows[1:]]
    assert found == [("1", "energy"), ("2", "knn"), ("3", "msp"), ("–", "vim")]
    alone = rank_scores([*others, *closed]).rows[1:]
    assert [row[:4] for row in alone] == [("1", "msp", "checkpoint", "oracle")]


def test_a_choice_among_checkpoints_that_were_judged_on_other_clips_says_so() -> None:
    row = replace(ROW, metric="val_acc", threshold_source="source-val", test_sha256=ALL)
    other = replace(row, value=0.9, test_sha256=FEWER)
    path, told = choose_checkpoint({Path("a"): [row], Path("b"): [other]}, "source-val")
    assert path == Path("b")
    assert told.endswith("; not all of them were judged on the same clips")
    _, told = choose_checkpoint({Path("a"): [row], Path("b"): [row]}, "source-val")
    assert "judged" not in told


def test_a_sweep_averages_neither_protocols_nor_seeds_over_other_clips(tmp_path: Path) -> None:
    runs = plan("quantizer.codebook_size=4", seeds=3)
    for number, run in enumerate(runs):
        folder = tmp_path / run.name
        folder.mkdir(parents=True)
        (folder / "last.pt").write_bytes(run.name.encode())
        row = replace(
            ROW,
            task="cmg",
            metric="acc",
            threshold_source="none",
            checkpoint_sha256=file_sha256(folder / "last.pt"),
            n_clips=20 - number // 2,
            test_sha256=(ALL, ALL, FEWER)[number],
        )
        paper = replace(row, protocol="paper", value=0.9, test_sha256="", n_clips=20)
        tested = replace(row, protocol="clean", value=(0.2, 0.4, 0.7)[number])
        write_rows([paper, tested], folder / "results.csv")
    rows = collect(runs, tmp_path)
    write_table(rows, runs, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        found = {
            (line["protocol"], line["test_sha256"]): (float(line["mean"]), line["runs"])
            for line in csv.DictReader(file)
        }
    assert found == {
        ("paper", ""): (pytest.approx(0.9), "3"),
        ("clean", ALL): (pytest.approx(0.3), "2"),
        ("clean", FEWER): (pytest.approx(0.7), "1"),
    }
    lines = csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines())
    assert {line["setting"] for line in lines} == {run.setting for run in runs}
    text = render_sweep(rows)
    assert "30.00 ± 14.14" in text
    assert "20 (aaaaaaaa)" in text
    assert "19 (bbbbbbbb)" in text


def test_unused_names_are_those_of_rows() -> None:
    assert {"n_lacking", "test_sha256"} <= {*Row.__slots__} & {*Row.__slots__}
    assert RESULT.group() != replace(RESULT, test_sha256=ALL).group()
    assert RESULT.group() == replace(RESULT, n_lacking=3).group()
