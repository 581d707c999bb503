"""Results files and tables."""

import csv
import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from micu.base.errors import ConfigError
from micu.evaluate.report import ADDED, COLUMNS, Row, read_rows, write_rows
from micu.report.compare import render_table

ROW = Row(
    task="oscmg",
    method="checkpoint",
    train_modality="video",
    test_modality="audio",
    preset="micu with data.steps=4",
    seed=1,
    threshold_source="source-val",
    metric="hos",
    value=0.1 + 0.2,
    n_clips=20,
    checkpoint_sha256="aa",
    manifest_sha256="bb",
    note='says "why", in words',
)


def test_rows_come_back_bit_by_bit(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, metric="unk", value=1 / 3)]
    write_rows(rows, tmp_path / "new" / "results.csv")
    assert read_rows(tmp_path / "new" / "results.csv") == rows


def test_an_undefined_number_comes_back_as_nan(tmp_path: Path) -> None:
    write_rows([replace(ROW, value=math.nan)], tmp_path / "r.csv")
    assert math.isnan(read_rows(tmp_path / "r.csv")[0].value)


def test_rows_are_added_and_a_repeated_evaluation_replaces_its_own(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write_rows([ROW, replace(ROW, seed=2)], path)
    write_rows([replace(ROW, value=0.9, note="again"), replace(ROW, method="untrained")], path)
    found = {(row.method, row.seed): row.value for row in read_rows(path)}
    assert found == {
        ("checkpoint", 1): 0.9,
        ("checkpoint", 2): ROW.value,
        ("untrained", 1): ROW.value,
    }


@pytest.mark.parametrize("column", ["probe", "features"])
def test_another_probe_or_other_features_do_not_replace_a_number(
    tmp_path: Path, column: str
) -> None:
    path = tmp_path / "r.csv"
    rows = [ROW, replace(ROW, value=0.9, **{column: "another"})]
    for row in rows:
        write_rows([row], path)
    assert read_rows(path) == rows
    assert len(render_table(rows).splitlines()) == 2 + 2


def test_a_file_from_before_is_read_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write_rows([replace(ROW, classes_sha256="cc")], path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        older = [name for name in COLUMNS if name not in ADDED]
        writer = csv.DictWriter(file, older, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert read_rows(path) == [replace(ROW, classes_sha256="cc")]
    named = replace(ROW, classes_sha256="cc", known_classes=8, class_list="eight")
    write_rows([named, replace(named, seed=2)], path)
    assert read_rows(path) == [named, replace(named, seed=2)]  # the same number, now with a name


def test_a_table_says_how_many_classes_are_known_and_averages_no_two_lists() -> None:
    eight = replace(ROW, known_classes=8, class_list="a", classes_sha256="aa")
    twelve = replace(ROW, known_classes=12, class_list="b", classes_sha256="bb", seed=2)
    header, _, *lines = render_table([eight, twelve]).splitlines()
    column = header.split("|").index(" known classes ")
    assert [line.split("|")[column].strip() for line in lines] == ["8", "12"]
    assert "known classes" not in render_table([ROW])


def test_two_evaluations_at_once_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    writers = [
        threading.Thread(target=write_rows, args=([replace(ROW, seed=seed)], path))
        for seed in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(row.seed for row in read_rows(path)) == list(range(8))


def test_a_file_that_holds_no_results_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("mine\n1\n")
    with pytest.raises(ConfigError, match="not a results file"):
        write_rows([ROW], path)
    assert path.read_text() == "mine\n1\n"


def test_a_damaged_number_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write_rows([ROW], path)
    path.write_text(path.read_text().replace(repr(ROW.value), "many"))
    with pytest.raises(ConfigError, match=r"line 2.*many"):
        read_rows(path)


def test_a_table_shows_rates_in_percent_and_other_numbers_as_they_are() -> None:
    table = render_table(
        [replace(ROW, value=0.5), replace(ROW, metric="perplexity", value=12.5)],
        ("hos", "perplexity"),
    )
    header, line, row = table.splitlines()
    assert "HOS" in header
    assert set(line) <= set("|-")
    assert "| 50.00" in row
    assert "| 12.50" in row
    assert "V → A" in row
    assert "source-val" in row
    assert "micu*" in row


def test_seeds_become_mean_and_sample_deviation() -> None:
    rows = [replace(ROW, seed=seed, value=value) for seed, value in ((1, 0.2), (2, 0.4))]
    assert "30.00 ± 14.14" in render_table(rows)


def test_checkpoints_that_share_a_seed_are_no_repetitions_of_one_another() -> None:
    rows = [ROW, replace(ROW, seed=2), replace(ROW, checkpoint_sha256="cc", value=0.9)]
    table = render_table(rows)
    assert "30.00 ± 0.00" in table
    assert "90.00" in table
    assert "| checkpoint |" in table
    assert "| cc " in table
    apart = render_table([ROW, replace(ROW, checkpoint_sha256="cc", seed=2, value=0.5)])
    assert "40.00 ± 14.14" in apart
    assert "| cc " not in apart


def test_protocols_and_methods_are_never_averaged_together() -> None:
    rows = [ROW, replace(ROW, threshold_source="oracle"), replace(ROW, method="untrained")]
    assert len(render_table(rows).splitlines()) == 2 + 3


def test_an_undefined_number_is_a_dash_and_does_not_vanish_into_a_mean() -> None:
    table = render_table([ROW, replace(ROW, seed=2, value=math.nan)])
    assert "–" in table
    assert "nan" not in table
