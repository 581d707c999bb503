"""Where results go is tried before anything is trained, and nothing of others is written over."""

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.base.errors import ConfigError
from micu.cli.evaluate import main
from micu.cli.outputs import TRIED, refuse_shared, try_file, try_folder
from micu.evaluate.report import read_rows, write_rows
from tests.e2e.test_evaluate import evaluate, run  # noqa: F401 - a fixture
from tests.unit.test_report import ROW

PAIR = ("--pairs", "v:a", "--probe-epochs", "1")


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("micu.cli.outputs.tempfile.NamedTemporaryFile", fail)


@pytest.mark.parametrize("option", ["--out", "--html", "--codebook-out", "--details"])
@pytest.mark.parametrize("taken", ["a folder", "a file", "below a file", "a pipe", "results"])
def test_a_place_that_is_taken_is_told_before_the_first_probe(
    run: Path,  # noqa: F811
    tmp_path: Path,
    option: str,
    taken: str,
) -> None:
    place = tmp_path / "place"
    if taken == "a folder":
        place.mkdir()
    elif taken == "a pipe":
        os.mkfifo(place)
    elif taken == "results":
        write_rows([ROW], place)
    else:
        place.write_text("mine\n1\n")
    given = place / "r.csv" if taken == "below a file" else place
    before = sorted(tmp_path.rglob("*"))
    fits = (taken, option) in (
        *(("a folder", "--details"), ("results", "--out")),
        *(("a file", "--html"), ("a file", "--codebook-out")),
    )
    if fits:
        try_folder(option, given) if option == "--details" else try_file(option, given)
        assert sorted(tmp_path.rglob("*")) == before
        return
    task = ("codebook",) if option == "--codebook-out" else PAIR
    other = () if option == "--out" else (option, given)
    result = evaluate(run, *task, *other, out=given if option == "--out" else tmp_path / "r.csv")
    assert result.exit_code == 2, result.output
    assert str(place) in result.stderr
    assert "Traceback" not in result.stderr
    assert "seed 43" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--out", "--html", "--details"])
def test_a_link_that_leads_nowhere_is_told_before_the_first_probe(
    run: Path,  # noqa: F811
    tmp_path: Path,
    option: str,
) -> None:
    (tmp_path / "link").symlink_to("gone/there")
    given = tmp_path / "link" / "r.csv" if option == "--out" else tmp_path / "link"
    other = () if option == "--out" else (option, given)
    result = evaluate(run, *PAIR, *other, out=given if not other else tmp_path / "r.csv")
    assert result.exit_code == 2, result.output
    told = f"{tmp_path}/link: expected a file or a folder, got a link to {tmp_path}/gone/there"
    assert f"{option} {given}: {told}, which is not there" in result.stderr
    assert "seed 43" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_or_one_that_may_not_be_written_ends_the_run_before_the_first_probe(
    run: Path,  # noqa: F811
    tmp_path: Path,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_to_write(monkeypatch, code)
    result = evaluate(run, *PAIR, out=tmp_path / "new" / "r.csv")
    assert result.exit_code == 74
    assert "--out" in result.stderr
    assert os.strerror(code) in result.stderr
    assert "seed 43" not in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_results_file_that_was_cut_off_is_refused_before_the_first_probe(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "r.csv"
    write_rows([ROW], out)
    out.write_bytes(out.read_bytes()[:-3])
    result = evaluate(run, *PAIR, out=out)
    assert result.exit_code == 2
    assert "last line has no end" in result.stderr
    assert "seed 43" not in result.stderr


def test_a_results_file_that_a_spreadsheet_saved_is_added_to(
    run: Path,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "r.csv"
    write_rows([ROW], out)
    text = out.read_text().replace(",", ";").replace(f";{ROW.value};", ";0,75;")
    out.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    result = evaluate(run, *PAIR, out=out)
    assert result.exit_code == 0, result.output
    rows = read_rows(out)
    assert (rows[0].value, rows[0].preset) == (0.75, ROW.preset)
    assert len(rows) > 10
    assert "saved by another program, with a byte order mark, ; between values" in caplog.text
    assert b"\r" not in out.read_bytes()
    assert out.read_bytes().startswith(b"task,")


def test_a_link_to_a_results_file_stays_one_and_what_it_names_has_the_rows(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    write_rows([ROW], tmp_path / "there" / "r.csv")
    (tmp_path / "r.csv").symlink_to(tmp_path / "there" / "r.csv")
    write_rows([ROW.__class__(**{**ROW.values(), "seed": 7})], tmp_path / "r.csv")  # type: ignore[arg-type]
    assert (tmp_path / "r.csv").is_symlink()
    assert [row.seed for row in read_rows(tmp_path / "there" / "r.csv")] == [1, 7]


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--html", "r.csv", "is what --out names, too"),
        ("--codebook-out", "r.csv", "is what --out names, too"),
        ("--html", "r.commands.jsonl", "is what --html names, too"),
        ("--out", "known.csv", "is read by this command"),
        ("--html", "last.pt", "is read by this command"),
    ],
)
def test_one_file_for_two_things_is_refused(
    run: Path,  # noqa: F811
    tmp_path: Path,
    option: str,
    name: str,
    message: str,
) -> None:
    given = tmp_path / name if name.startswith("r.") else run / name
    before = given.read_bytes() if given.exists() else None
    task = ("codebook",) if option == "--codebook-out" else PAIR
    other = () if option == "--out" else (option, given)
    result = evaluate(run, *task, *other, out=given if option == "--out" else tmp_path / "r.csv")
    assert result.exit_code == 2
    assert message in result.stderr
    assert (given.read_bytes() if given.exists() else None) == before


def report(*words: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, words)], catch_exceptions=False)


@pytest.mark.parametrize("again", ["r.csv", "there/r.csv", "other.csv", "metrics.csv"])
def test_a_report_is_written_over_no_results(tmp_path: Path, again: str) -> None:
    write_rows([ROW], tmp_path / "r.csv")
    write_rows([ROW], tmp_path / "other.csv")
    (tmp_path / "metrics.csv").write_text("step,total\n1,2\n")
    (tmp_path / "there").symlink_to(tmp_path)
    before = (tmp_path / again).read_bytes()
    result = report(tmp_path / "r.csv", tmp_path / "metrics.csv", "-o", tmp_path / again)
    assert result.exit_code == 2
    assert "-o" in result.stderr
    assert (tmp_path / again).read_bytes() == before


def test_a_report_that_cannot_be_written_is_told_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows([ROW], tmp_path / "r.csv")
    (tmp_path / "folder.html").mkdir()
    result = report(tmp_path / "r.csv", "-o", tmp_path / "folder.html")
    assert (result.exit_code, "expected a file, got a folder" in result.stderr) == (2, True)
    monkeypatch.setattr("micu.report.read.gather", None)
    refuse_to_write(monkeypatch, errno.ENOSPC)
    result = report(tmp_path / "r.csv", "-o", tmp_path / "report.html")
    assert result.exit_code == 74
    assert "No space left on device" in result.stderr


def test_trying_a_place_writes_so_much_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: written.append(os.fstat(handle).st_size))
    try_file("--out", tmp_path / "a" / "b" / "r.csv")
    try_folder("--details", tmp_path)
    assert written == [TRIED, TRIED]
    assert list(tmp_path.iterdir()) == []
    refuse_shared({"--out": tmp_path / "r.csv", "--html": None}, [None, tmp_path / "m.csv"])
    with pytest.raises(ConfigError, match=r"--html .*r.csv: is what --out names, too"):
        refuse_shared({"--out": tmp_path / "r.csv", "--html": tmp_path / "x/../r.csv"}, ())
