"""Our rows beside the paper's figures: the join, means, and files of other versions."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from micu.base.errors import ConfigError
from micu.evaluate.report import Row, read_results
from micu.report.compare import compare, render_csv, tabulate_lines
from micu.report.paper import read_printed
from micu.report.read import gather

RESULT = Row(
    task="oscmg",
    method="checkpoint",
    metric="hos",
    value=0.5,
    train_modality="video",
    test_modality="audio",
    preset="micu",
    seed=1,
    threshold_source="source-val",
    setting="ave-14",
    checkpoint_sha256="aa",
)


def test_seeds_are_averaged_and_stand_beside_the_paper_s_figure() -> None:
    (line,) = compare([RESULT, replace(RESULT, seed=2, value=0.6, checkpoint_sha256="bb")])
    cell = line.cells["hos"]
    assert line.runs == 2
    assert cell.mean == pytest.approx(0.55)
    assert cell.deviation == pytest.approx(0.0707107, rel=1e-5)
    assert cell.printed is not None
    assert cell.printed.value == "54.39"
    assert cell.difference == pytest.approx(55 - 54.39)
    table = tabulate_lines([line], ["hos"]).rows
    assert table[0][-3:] == ("HOS", "HOS paper", "HOS Δ")
    assert table[1][-3:] == ("55.00 ± 7.07", "54.39", "+0.61")


def test_checkpoints_that_share_a_seed_stand_on_lines_of_their_own() -> None:
    there = replace(RESULT, setting="ave-14-vaf")
    back = replace(there, train_modality="audio", test_modality="video")
    rows = [replace(row, checkpoint_sha256=sha) for row in (there, back) for sha in ("aa", "bb")]
    rows.append(replace(there, seed=2))
    lines = compare(rows)
    assert sorted((line.direction, line.of.checkpoint_sha256, line.runs) for line in lines) == [
        *(("A->V", "aa", 1), ("A->V", "bb", 1), ("V->A", "aa", 2), ("V->A", "bb", 1)),
        *(("V<->A", "aa", 1), ("V<->A", "bb", 1)),
    ]
    table = tabulate_lines(lines, ["hos"]).rows
    assert [row[table[0].index("checkpoint")] for row in table[1:3]] == ["aa", "bb"]
    found = csv.DictReader(render_csv(lines).splitlines())
    assert {row["checkpoint_sha256"] for row in found} == {"aa", "bb"}


@pytest.mark.parametrize(
    "change",
    [{"setting": ""}, {"method": "untrained"}, {"metric": "auroc"}, {"test_modality": "text"}],
)
def test_what_the_paper_does_not_print_has_no_figure_of_it(change: dict[str, str]) -> None:
    (line,) = compare([replace(RESULT, **change)])  # type: ignore[arg-type]
    (cell,) = line.cells.values()
    assert cell.printed is None
    assert math.isnan(cell.difference)
    assert line.table == 0


def test_a_baseline_and_an_ablation_have_figures_of_their_own() -> None:
    lines = compare([replace(RESULT, preset=p) for p in ("cmcm", "micu with weights.coarse=0.0")])
    printed = [line.cells["hos"].printed for line in lines]
    assert [(p.table, p.method, p.value) for p in printed if p] == [
        (2, "CMCM", "45.17"),
        (7, "MICU[fine+cujp]", "41.34"),
    ]
    assert tabulate_lines(lines[1:], ["hos"]).rows[1][-2] == "41.34*"


def test_protocols_leaks_scores_and_unknown_columns_are_never_averaged_together() -> None:
    rows = [
        RESULT,
        replace(RESULT, protocol="clean"),
        replace(RESULT, score="energy"),
        replace(RESULT, leaks="epoch:test"),
        replace(RESULT, more=(("temperature", "2"),)),
    ]
    lines = compare(rows)
    assert [line.runs for line in lines] == [1] * 5
    header = tabulate_lines(lines, ["hos"]).rows[0]
    assert {"protocol", "score", "rests on", "temperature"} <= set(header)


def test_features_are_shown_only_where_lines_look_the_same_without() -> None:
    pair = [replace(RESULT, features=f"audio:{name}") for name in ("vggish", "htsat")]
    assert "features" in tabulate_lines(compare(pair), ["hos"]).rows[0]
    apart = [pair[0], replace(pair[1], method="untrained")]
    assert "features" not in tabulate_lines(compare(apart), ["hos"]).rows[0]


def test_means_of_both_directions_are_per_seed_and_only_of_what_has_both() -> None:
    there = replace(RESULT, setting="ave-14-vaf", features="video:a audio:b")
    back = replace(
        there,
        train_modality="audio",
        test_modality="video",
        features="audio:b video:a",
        value=0.3,
    )
    alone = replace(there, seed=2, value=0.9)
    lines = compare([there, back, alone])
    (mean,) = [line for line in lines if line.direction == "V<->A"]
    assert mean.cells["hos"].values == (pytest.approx(0.4),)
    assert mean.table == 6
    assert all(line.table == 0 for line in lines if line is not mean)
    assert len(compare([RESULT, replace(back, setting="ave-14")])) == 2


def test_the_mean_of_both_directions_joins_what_each_rests_on() -> None:
    there = replace(
        RESULT,
        setting="ucf-vgg-8-vaf",
        features="video:a@1 audio:b@1",
        manifest_sha256="m1",
        leaks="threshold:test;pretraining-overlap:12",
        n_clips=12,
    )
    back = replace(
        there,
        train_modality="audio",
        test_modality="video",
        features="audio:b@2 video:a@2",
        manifest_sha256="m2",
        leaks="threshold:test;epoch:test",
        n_clips=30,
        value=0.3,
    )
    (mean,) = [line for line in compare([there, back]) if line.direction == "V<->A"]
    assert mean.cells["hos"].mean == pytest.approx(0.4)
    assert mean.of.leaks == "threshold:test;pretraining-overlap:12;epoch:test"
    assert mean.of.manifest_sha256 == "m1 m2"
    assert mean.of.features == "video:a@1 audio:b@1 audio:b@2 video:a@2"
    other = replace(there, manifest_sha256="m3")
    unclear = compare([there, other, back])
    assert not [line for line in unclear if line.direction == "V<->A"]
    alike = replace(other, train_modality="audio", test_modality="video", value=0.1)
    (mean,) = [line for line in compare([there, other, alike]) if line.direction == "V<->A"]
    assert mean.of.manifest_sha256 == "m3"
    assert mean.cells["hos"].values == (pytest.approx(0.3),)


def test_retrieval_is_compared_as_the_mean_of_both_directions() -> None:
    there = replace(RESULT, task="retrieval", setting="clotho", metric="r1", value=0.02)
    there = replace(there, train_modality="audio", test_modality="text")
    back = replace(there, train_modality="text", test_modality="audio", value=0.04)
    mean = compare([there, back])[-1]
    printed = mean.cells["r1"].printed
    assert printed is not None
    assert (mean.direction, mean.table, printed.value) == ("A<->T", 4, "2.44")
    assert mean.cells["r1"].difference == pytest.approx(3 - 2.44)


def test_small_numbers_that_are_no_rates_keep_their_digits() -> None:
    (line,) = compare([replace(RESULT, metric="threshold", value=0.01234)])
    assert tabulate_lines([line], ["threshold"]).rows[1][-1] == "0.0123"
    (line,) = compare([replace(RESULT, metric="active_codes", value=1234.0)])
    assert tabulate_lines([line], ["active_codes"]).rows[1][-1] == "1,234"


def test_an_undefined_figure_is_a_dash_and_hides_no_seed() -> None:
    (line,) = compare([RESULT, replace(RESULT, seed=2, value=math.nan)])
    assert tabulate_lines([line], ["hos"]).rows[1][-2:] == ("–", "54.39")


def test_the_csv_says_over_how_many_clips_each_metric_is() -> None:
    there = replace(RESULT, setting="ave-14-vaf", n_clips=30)
    back = replace(there, train_modality="audio", test_modality="video", n_clips=12)
    rows = [there, replace(there, metric="val_acc", n_clips=20), back]
    rows.append(replace(back, seed=2, n_clips=14))
    found = csv.DictReader(render_csv(compare(rows)).splitlines())
    assert {(row["direction"], row["metric"]): row["n_clips"] for row in found} == {
        ("V->A", "hos"): "30",
        ("V->A", "val_acc"): "20",
        ("A->V", "hos"): "12 to 14",
        ("V<->A", "hos"): "42",
    }


def test_the_csv_has_every_metric_with_its_figure() -> None:
    rows = [RESULT, replace(RESULT, metric="auroc", value=0.7, more=())]
    found = list(csv.DictReader(render_csv(compare(rows)).splitlines()))
    assert [(row["metric"], row["ours"], row["paper"]) for row in found] == [
        ("hos", "50.0000", "54.39"),
        ("auroc", "70.0000", ""),
    ]
    assert found[0]["difference"] == "-4.3900"
    assert found[0]["paper_table"] == "2"


# --- files of other versions -----------------------------------------------------------------


def test_older_files_have_empty_columns_and_newer_ones_keep_theirs(tmp_path: Path) -> None:
    older, newer = tmp_path / "older.csv", tmp_path / "newer.csv"
    older.write_text("task,method,metric,value\noscmg,checkpoint,hos,0.5\n")
    newer.write_text(
        "task,method,metric,value,leaks,epoch\noscmg,checkpoint,hos,0.5,epoch:test,3\n"
    )
    (old,), (new,) = read_results(older), read_results(newer)
    assert (old.setting, old.leaks, old.more) == ("", "", ())
    assert (new.leaks, new.more) == ("epoch:test", (("epoch", "3"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine\n1\n", "expected a results file"),
        ("task,method,metric,value\na,b,c,many\n", "line 2.*many"),
        ("task,method,metric,value\na,b,c,inf\n", "line 2.*finite"),
        ("task,method,metric,value\na,b,c,1,2\n", "more values than columns"),
        ("task,method,metric,value\na,b,c\n", "line 2"),
        ('task,method,metric,value\n"a', "not a results file"),
        ("", "expected a results file"),
    ],
)
def test_a_file_that_is_damaged_or_no_results_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_results(path)


def test_a_number_in_two_files_counts_once(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("task,method,metric,value\noscmg,checkpoint,hos,0.5\n")
    (tmp_path / "notes.csv").write_text("x\n1\n")
    assert len(gather([tmp_path, tmp_path / "a.csv"]).results) == 1


def test_runs_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no results in it"):
        gather([tmp_path])
    with pytest.raises(ConfigError, match="no such results file"):
        gather([tmp_path / "nothing"])


def test_the_paper_s_own_table_is_reproduced_by_rows_that_say_what_it_says() -> None:
    names = {"V": "video", "A": "audio"}
    rows = [
        replace(
            RESULT,
            task=figure.task,
            setting=figure.setting,
            train_modality=names[figure.direction[0]],
            test_modality=names[figure.direction[-1]],
            metric=figure.metric,
            value=figure.number / 100,
        )
        for figure in read_printed()
        if figure.table == 3 and figure.method == "MICU"
    ]
    lines = compare(rows)
    assert {line.table for line in lines} == {3}
    assert all(abs(c.difference) < 1e-9 for line in lines for c in line.cells.values())
