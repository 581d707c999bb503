"""Results files as spreadsheets give them back, cut ones, and cells that look like formulas."""

import csv
import io
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from micu.base.errors import ConfigError
from micu.evaluate.codebook import CodebookUse, read_codebook, write_codebook
from micu.evaluate.report import COLUMNS, Row, read_results, read_rows, write_rows
from micu.evaluate.sheets import HEAD, inert, read_columns, read_sheet, render_sheet, restore
from micu.report.compare import compare, render_csv
from micu.report.read import gather, read_training
from tests.unit.test_compare import RESULT
from tests.unit.test_report import ROW

ROWS = [
    replace(ROW, value=0.25, note="first; with a semicolon"),
    replace(ROW, value=1234.5, metric="seconds_per_step", note='says "why",\nin two lines'),
    replace(ROW, value=math.nan, metric="auroc", n_lacking=3, test_sha256="cc"),
    replace(ROW, value=-1.5e-05, metric="threshold", seed=2, known_classes=8, class_list="="),
]


def same(found: list[Row], wanted: list[Row]) -> bool:
    """Equal, NaN included."""
    return list(map(repr, found)) == list(map(repr, wanted))


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


def saved(
    path: Path,
    *,
    separator: str = ",",
    end: str = "\n",
    quote: int = csv.QUOTE_MINIMAL,
    encoding: str = "utf-8",
    order: Callable[[list[str]], list[str]] = list,
    extra: dict[str, str] | None = None,
    decimal: str = ".",
    before: str = "",
    after: str = "",
) -> None:
    """Save a results file again as a spreadsheet with these habits."""
    header, rows = table(path)
    values = [dict(zip(header, row, strict=True)) | (extra or {}) for row in rows]
    for row in values:
        row["value"] = row["value"].replace(".", decimal)
    names = order([*header, *(extra or {})])
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quote)  # type: ignore[arg-type]
    writer.writerow(names)
    writer.writerows([row[name] for name in names] for row in values)
    path.write_bytes((before + text.getvalue() + after).encode(encoding))


HABITS = {
    "a byte order mark": {"encoding": "utf-8-sig"},
    "semicolons": {"separator": ";"},
    "tabs": {"separator": "\t"},
    "bars": {"separator": "|"},
    "carriage returns": {"end": "\r\n"},
    "old line ends": {"end": "\r"},
    "another order": {"order": lambda names: names[::-1]},
    "sorted columns": {"order": sorted},
    "quotes everywhere": {"quote": csv.QUOTE_ALL},
    "UTF-16": {"encoding": "utf-16"},
    "UTF-16 without a mark": {"encoding": "utf-16-le"},
    "UTF-16, the other way": {"encoding": "utf-16-be"},
    "UTF-32": {"encoding": "utf-32"},
    "decimal commas": {"separator": ";", "decimal": ","},
    "decimal commas in quotes": {"decimal": ","},
    "a separator that is told": {"separator": ";", "before": "sep=;\r\n"},
    "empty rows": {"before": "\n", "after": "," * (len(COLUMNS) - 1) + "\n\n"},
    "Excel in German": {"encoding": "utf-8-sig", "separator": ";", "decimal": ",", "end": "\r\n"},
    "Unicode text": {"encoding": "utf-16", "separator": "\t", "end": "\r\n"},
}


@pytest.mark.parametrize("habit", HABITS)
def test_what_a_spreadsheet_saved_is_read_and_added_to_in_our_own_form(
    tmp_path: Path, habit: str
) -> None:
    path, clean = tmp_path / "r.csv", tmp_path / "clean.csv"
    for each in (path, clean):
        write_rows(ROWS, each)
    saved(path, **HABITS[habit])  # type: ignore[arg-type]
    assert same(read_rows(path), ROWS)
    assert [row.value for row in read_results(path)][:2] == [0.25, 1234.5]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "Results.CSV").write_bytes(path.read_bytes())
    assert len(gather([tmp_path / "folder"]).results) == len(ROWS)
    for each in (path, clean):
        write_rows([replace(ROW, seed=9)], each)
    assert path.read_bytes() == clean.read_bytes()


def test_a_column_more_stays_and_its_rows_are_not_replaced_or_averaged(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write_rows(ROWS[:2], path)
    saved(path, extra={"remark": "mine", "blank": ""})
    marked = [replace(row, more=(("remark", "mine"),)) for row in ROWS[:2]]
    assert read_rows(path) == marked
    write_rows([replace(ROWS[0], value=0.75)], path)
    assert read_rows(path) == [*marked, replace(ROWS[0], value=0.75)]
    header, rows = table(path)
    assert header == [*COLUMNS, "remark"]
    assert [row[-1] for row in rows] == ["mine", "mine", ""]
    assert [row.more for row in read_results(path)] == [(("remark", "mine"),)] * 2 + [()]
    write_rows([replace(ROWS[0], value=0.5)], path)
    assert read_rows(path) == [*marked, replace(ROWS[0], value=0.5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "last line has no end"),
        (lambda data: data[:-30], "last line has no end"),
        (lambda data: data[: data.rindex(b",", 0, -9)] + b"\n", "line 6: expected 26 values, got"),
        (lambda data: data + bytes(512), "line 7 holds bytes of 0"),
        (lambda data: data.replace(b"first", b"fi\xe9rst"), "line 2 is not UTF-8"),
        (lambda data: data.replace(b"first", b"a comma, first"), "more values than columns"),
        (lambda data: data.replace(b"task,", b",", 1), "not a results file of this version"),
        (lambda data: data.replace(b"task,method", b"task,task", 1), "not a results file"),
        (lambda data: data.replace(b"note,", b"task,", 1), "not a results file"),
        (lambda data: data.replace(b'"says', b"says"), "line 3"),
        (lambda data: data.replace(b",1,", b",one,", 1), "line 2.*whole number, got 'one'"),
        (lambda data: data.replace(b",0.25,", b",,", 1), "line 2.*expected a number, got ''"),
        (lambda data: data.replace(b",0.25,", b",25%,", 1), "line 2.*expected a number, got '25%'"),
        (lambda data: data.replace(b",0.25,", b",1_0,", 1), "line 2.*expected a number"),
        (lambda data: data.replace(b",0.25,", b",inf,", 1), "line 2.*finite"),
        (lambda data: data.replace(b",0.25,", b',"1,234",', 1), "line 2.*decimal or a thousand"),
        (lambda data: data.replace(b",0.25,", b',"1.234,5",', 1), "line 2.*expected a number"),
        (lambda data: data.replace(b",0.25,", b',"0,25",', 1), "line 4.*point where others"),
        (lambda _: b"", "an empty file"),
    ],
)
def test_what_is_cut_off_or_may_mean_two_things_is_refused_by_its_line_and_left_alone(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "r.csv"
    write_rows(ROWS, path)
    damaged = change(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=f"r.csv.*{message}"):
        read_rows(path)
    with pytest.raises(ConfigError):
        write_rows([replace(ROW, seed=9)], path)
    assert path.read_bytes() == damaged


def test_a_count_that_became_a_decimal_number_is_the_count(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write_rows(ROWS[3:], path)
    text = path.read_text()
    for name in ("2.0", "2,0"):
        path.write_text(text.replace(",2,source", f',"{name}",source'))
        assert [row.seed for row in read_rows(path)] == [2]
        assert [row.seed for row in read_results(path)] == [2]
    path.write_text(text.replace(",2,source", ",2.5,source"))
    with pytest.raises(ConfigError, match=r"whole number, got '2\.5'"):
        read_results(path)


def test_a_thousand_with_a_comma_is_a_decimal_number_where_semicolons_separate(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.csv"
    path.write_text("task;method;metric;value\na;b;c;1,234\na;b;d;0,5\n")
    assert [row.value for row in read_results(path)] == [1.234, 0.5]
    path.write_text("task;method;metric;value\na;b;c;1.234\na;b;d;0,5\n")
    with pytest.raises(ConfigError, match=r"line 2.*point where others have a decimal comma"):
        read_results(path)


# --- folders ---------------------------------------------------------------------------------


def test_a_damaged_results_file_in_a_folder_is_named_whatever_is_wrong_with_it(
    tmp_path: Path,
) -> None:
    write_rows(ROWS, tmp_path / "whole.csv")
    data = (tmp_path / "whole.csv").read_bytes()
    (tmp_path / "cut.csv").write_bytes(data[:-9])
    (tmp_path / "latin.tsv").write_bytes(data.replace(b"first", b"\xe9"))
    (tmp_path / "without.csv").write_bytes(data.replace(b"method,", b"how,"))
    (tmp_path / "book.xlsx").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("nothing,here")
    found = gather([tmp_path])
    assert len(found.results) == len(ROWS)
    told = "\n".join(found.skipped)
    for name in ("cut.csv", "latin.tsv", "without.csv", "book.xlsx"):
        assert told.count(f"{tmp_path / name}:") == 1, name
    assert "notes.txt" not in told
    (tmp_path / "whole.csv").unlink()
    with pytest.raises(ConfigError, match=r"no results in it(.|\n)*not read: .*cut.csv"):
        gather([tmp_path])


def test_links_in_a_folder_are_followed_once_and_those_that_lead_nowhere_are_named(
    tmp_path: Path,
) -> None:
    there, folder = tmp_path / "there", tmp_path / "runs"
    (there / "run").mkdir(parents=True)
    (folder / "a").mkdir(parents=True)
    write_rows(ROWS[:1], there / "run" / "r.csv")
    write_rows(ROWS[1:2], there / "one.csv")
    for name, target in (
        *(("run", there / "run"), ("latest", there / "run"), ("one.csv", there / "one.csv")),
        *(("a/up", folder), ("lost", tmp_path / "gone"), ("a/round", folder / "a" / "round")),
    ):
        (folder / name).symlink_to(target)
    found = gather([folder])
    assert sorted(row.metric for row in found.results) == ["hos", "seconds_per_step"]
    assert len(found.sources) == 2
    told = "\n".join(found.skipped)
    for name in ("a/up", "lost", "a/round"):
        assert f"{folder / name}: " in told, name
    assert len(found.skipped) == 3


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(ROWS, tmp_path / "a.csv")
    write_rows(ROWS, tmp_path / "b.csv")
    opened = Path.open

    def refuse(path: Path, *given: object, **named: object) -> object:
        if path.name == "a.csv":
            raise PermissionError(13, os.strerror(13))
        return opened(path, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)
    found = gather([tmp_path])
    assert found.skipped == [
        f"{tmp_path / 'a.csv'}: cannot be read: Permission denied; mend or remove it"
    ]
    assert len(found.results) == len(ROWS)


def test_the_paper_s_figures_are_no_results(tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    path.write_text(
        "table,task,setting,method,direction,metric,value,note\n2,oscmg,ave-14,MICU,V->A,hos,54,\n"
    )
    with pytest.raises(ConfigError, match="the paper's figures"):
        gather([path])
    write_rows(ROWS, tmp_path / "r.csv")
    found = gather([tmp_path])
    assert len(found.results) == len(ROWS)
    assert "paper.csv" in found.skipped[0]


# --- other tables ----------------------------------------------------------------------------


def test_a_training_s_numbers_are_read_up_to_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,total\n1,0.5\n2,0.25")
    assert read_training(path) == {"step": [1.0], "total": [0.5]}
    path.write_bytes("step;total\r\n1;0,5\r\n2;\r\n".encode("utf-8-sig"))
    found = read_training(path)
    assert found["total"][0] == 0.5
    assert math.isnan(found["total"][1])
    for text, message in (("1,a\n", "line 2: total: expected a number"), ("nan,1\n", "step")):
        path.write_text(f"step,total\n{text}")
        with pytest.raises(ConfigError, match=message):
            read_training(path)
    path.write_bytes(b"step,total\n1,\xff\n")
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        read_training(path)


def test_a_codebook_s_counts_are_read_from_a_spreadsheet_and_refused_twice(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    write_codebook(CodebookUse({"video": np.array([3, 0]), "audio": np.array([1, 2])}), path)
    saved_as = path.read_text().replace(",", ";").replace("\n", "\r\n")
    path.write_bytes(saved_as.encode("utf-16"))
    found = read_codebook(path)
    assert {name: counts.tolist() for name, counts in found.counts.items()} == {
        "video": [3, 0],
        "audio": [1, 2],
    }
    path.write_text(saved_as.replace("1;audio;2", "0;audio;2"))
    with pytest.raises(ConfigError, match="repeats code 0 of 'audio'"):
        read_codebook(path)


def test_a_table_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micu.evaluate.sheets.LARGEST", 1 << 20)
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n" + b"\n" * ((1 << 20) - 4))
    assert read_sheet(path).columns == ("a", "b")
    path.write_bytes(b"a,b\n" + b"\n" * ((1 << 20) - 3))
    with pytest.raises(ConfigError, match="it has more than 1048576 bytes"):
        read_sheet(path)


def test_names_of_columns_are_looked_for_at_the_start_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n" + b'"' * (2 * HEAD))
    assert read_columns(path) == ("a", "b")
    path.write_bytes(b"")
    assert read_columns(path) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,,b\n1,2,3\n", "column 2 has values but no name"),
        ("a,a\n1,2\n", "more than once: 'a'"),
        ('a,b\n"1,2\n', "unexpected end of data"),
    ],
)
def test_columns_without_a_name_or_with_one_twice_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sheet(path)
    path.write_text("a,,b,\n1,,3,\n")
    assert read_sheet(path).rows == ((2, {"a": "1", "b": "3"}),)


# --- formulas --------------------------------------------------------------------------------

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "'=1", "''=1", "＝1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_calculate_is_no_formula_and_comes_back(
    tmp_path: Path, text: str
) -> None:
    assert str(inert(text))[0] == "'"
    assert restore(str(inert(text))) == text
    row = replace(ROW, preset=text, class_list=text, note=text)
    write_rows([row], tmp_path / "r.csv")
    assert read_rows(tmp_path / "r.csv") == [row]
    lines = compare([replace(RESULT, preset=text, more=((text, text),))])
    for written in ((tmp_path / "r.csv").read_text(), render_csv(lines)):
        cells = [cell for line in csv.reader(io.StringIO(written, newline="")) for cell in line]
        assert not [cell for cell in cells if cell[:1] in "=+-@\t\r＝" and "1" in cell[1:2]], cells


def test_numbers_and_plain_words_are_written_as_they_are() -> None:
    for value in (-0.5, 3, "-0.5", "-1e-05", "+3", "plain", "'quoted'", "", "a=1", "−1"):
        assert inert(value) == value
        assert restore(str(value)) == str(value)
    assert render_sheet(("a", "b"), [(-0.5, None)]) == "a,b\n-0.5,\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: f"My results of May,,,\r\n{text}",
        lambda text: text.replace("value", "VALUE", 1).replace("task", "Task", 1),
        lambda text: text.replace("value", "value (percent)", 1),
    ],
    ids=["a title above", "names in capitals", "a name that was changed"],
)
def test_results_whose_columns_bear_no_names_of_ours_are_named(
    tmp_path: Path, change: Callable[[str], str]
) -> None:
    write_rows([ROW], tmp_path / "good.csv")
    (tmp_path / "odd.csv").write_text(change((tmp_path / "good.csv").read_text()))

    found = gather([tmp_path])

    assert len(found.results) == 1
    (told,) = found.skipped
    assert "odd.csv: looks like results of micu-eval, but its first line does not name" in told


@pytest.mark.parametrize("before", ["", "\ufeff", "sep=,\r\n", "\n\n"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_results_that_are_cut_within_their_header_are_named(
    tmp_path: Path, before: str, quote: str
) -> None:
    write_rows([ROW], tmp_path / "good.csv")
    header = (tmp_path / "good.csv").read_text().partition("\n")[0]
    header = quote + header.replace(",", f"{quote},{quote}") + quote
    for length in range(1 + len(quote), len(header) + 1):
        (tmp_path / "cut.csv").write_text(before + header[:length], encoding="utf-8", newline="")
        found = gather([tmp_path])
        assert len(found.results) == 1
        (told,) = found.skipped
        assert told.startswith(f"{tmp_path / 'cut.csv'}: "), header[:length]
        with pytest.raises(ConfigError, match=r"cut\.csv"):
            gather([tmp_path / "cut.csv"])
        with pytest.raises(ConfigError, match=r"cut\.csv: not a results file"):
            read_rows(tmp_path / "cut.csv")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_results_of_a_spreadsheet_that_are_cut_within_their_header_are_named(
    tmp_path: Path, separator: str
) -> None:
    write_rows([ROW], tmp_path / "good.csv")
    saved(tmp_path / "good.csv", separator=separator, order=sorted)
    header = (tmp_path / "good.csv").read_text().partition("\n")[0]
    for length in range(1, len(header) + 1):
        (tmp_path / "cut.csv").write_text(header[:length])
        assert "cut.csv: " in "".join(gather([tmp_path]).skipped), header[:length]


def test_an_empty_table_is_named_and_other_short_files_are_not(tmp_path: Path) -> None:
    write_rows([ROW], tmp_path / "good.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    for name, text in (
        *(("other.csv", "x,task,y"), ("half.csv", "x,task,y,metr"), ("short.csv", "zz")),
        *(("whole.csv", "task\n"), ("metrics.csv", ""), ("empty.txt", ""), ("n.md", "task,me")),
    ):
        (tmp_path / name).write_text(text)
    (told,) = gather([tmp_path]).skipped
    assert told == f"{tmp_path / 'empty.csv'}: is empty; if it held results, make it anew, " + (
        "or remove it"
    )


def test_a_report_s_table_is_not_taken_for_results(tmp_path: Path) -> None:
    write_rows([ROW], tmp_path / "good.csv")
    (tmp_path / "report.csv").write_text(render_csv(compare([RESULT])))
    assert gather([tmp_path]).skipped == []


@pytest.mark.parametrize("before", [",,,,\r\n", ";;;\n\n", "\n"])
def test_empty_rows_before_the_names_are_none(tmp_path: Path, before: str) -> None:
    path = tmp_path / "results.csv"
    write_rows(ROWS, path)
    path.write_text(before + path.read_text(), newline="")
    assert same(read_rows(path), ROWS)


@pytest.mark.parametrize("metric", ["hos", "r1"])
@pytest.mark.parametrize(("value", "is_rate"), [(0.0, True), (1.0, True), (512.0, False)])
def test_a_rate_whose_point_was_taken_for_one_of_thousands_is_refused(
    tmp_path: Path, metric: str, value: float, is_rate: bool
) -> None:
    path = tmp_path / "results.csv"
    write_rows([replace(ROW, metric=metric, value=value)], path)
    if is_rate:
        assert read_rows(path)[0].value == read_results(path)[0].value == value
        return
    for read in (read_rows, read_results):
        with pytest.raises(
            ConfigError, match=f"line 2: {metric}: expected a rate from 0 to 1, got"
        ):
            read(path)


@pytest.mark.parametrize("value", [-0.001, 1.001])
def test_a_rate_ends_at_0_and_1(tmp_path: Path, value: float) -> None:
    path = tmp_path / "results.csv"
    write_rows([replace(ROW, metric="acc", value=value)], path)
    with pytest.raises(ConfigError, match="acc: expected a rate from 0 to 1"):
        read_rows(path)


@pytest.mark.parametrize("name", ["task", "method", "metric"])
def test_a_row_of_sums_below_the_results_is_refused_by_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "results.csv"
    write_rows([ROW, replace(ROW, seed=ROW.seed + 1, **{name: ""})], path)
    for read in (read_rows, read_results):
        with pytest.raises(ConfigError, match=f"line 3: {name}: expected one, got nothing"):
            read(path)
