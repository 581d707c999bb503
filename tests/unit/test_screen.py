"""What goes to the screen: nothing steers it, and a reader who leaves is no error."""

import io
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from micu.base.errors import ConfigError, show_unseen
from micu.base.process import ProgressLine, fold, guard_screen, run_command
from micu.store.ledger import Failure, write_ledger
from micu.store.manifest import read_manifest
from micu_extract.cli import cli
from micu_extract.pipeline.progress import DevicesLine, Progress
from micu_extract.pipeline.writer import Summary
from tests.conftest import PYTHONPATH
from tests.feature_sets import make_clips, write_features

STEERING = ["\x1b[2J", "\x9b31m", "\r", "\x7f", "\x00", "\x08", "\u202e", "\u2066", "\u2028"]
ERASED = "\r\x1b[2K"
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONIOENCODING": "utf-8"}


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_a_terminal_is_shown(text: str) -> None:
    shown = show_unseen(f"a{text}b")
    assert text[0] not in shown
    assert shown == f"a\\u{ord(text[0]):04x}{text[1:]}b"


@pytest.mark.parametrize(
    "text", ["\t", "\n", " ", "~", "\xa0", "é", "日本", "👩‍🔬", "\u2027", "\u202f"]
)
def test_what_can_be_seen_stays(text: str) -> None:
    assert show_unseen(text) == text


def test_bytes_that_are_no_text_are_shown() -> None:
    assert show_unseen("caf\udce9") == "caf\\udce9"


def test_json_that_is_printed_stays_json() -> None:
    text = json.dumps({"name": "".join(STEERING)})
    assert json.loads(show_unseen(text)) == json.loads(text)


def test_every_way_out_is_guarded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What click itself takes away where it sees no terminal is not there to be shown.
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *words: False)
    hostile = "".join(STEERING)

    @click.command()
    def tool() -> None:
        click.echo(f"table {hostile}")
        handler = logging.StreamHandler()
        handler.emit(logging.LogRecord("x", 30, "", 0, "log %s", (hostile,), None))
        raise ConfigError(f"error {hostile}")

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as caught:
        run_command(tool, hint="")
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    told = show_unseen(hostile)
    assert out == f"table {told}\n"
    assert err == f"log {told}\nerror: error {told}\n"


def test_usage_errors_are_guarded_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["micu-extract", "status", "--\x9b2Jx"])
    with pytest.raises(SystemExit):
        run_command(cli, hint="")
    err = capsys.readouterr().err
    assert "\x9b" not in err
    assert "9b2Jx" in err


@pytest.mark.parametrize("columns", [20, 120])
def test_progress_is_one_line_as_wide_as_the_screen_and_gives_way_to_what_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("micu.base.process.REDRAW_EVERY_S", 0.0)
    guard_screen()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(3)
    progress.show(Summary(folder="x", clips=3, done_before=0, failed_before=0, failed=1))
    click.echo("done", err=True)
    progress.close()

    line, after = capsys.readouterr().err.removeprefix(ERASED).split(ERASED)
    assert after == "done\n"
    told = "1/3 clips, 1 failed, "
    assert line.startswith(told[: columns - 2])
    assert (
        (len(line) == columns - 1 and line.endswith("…")) if columns < 40 else len(line) < columns
    )


def test_a_line_that_is_drawn_shows_what_steers_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    guard_screen()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = ProgressLine(60, lambda line: click.echo(line, err=True))
    line.show("a\rb\x1b[2J [red]c")
    line.close()
    line.close()
    assert capsys.readouterr().err == f"{ERASED}a\\u000db\\u001b[2J [red]c{ERASED}"
    line.show("stays", stays=True)
    assert capsys.readouterr().err == "stays\n"


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_what_is_no_terminal_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    guard_screen()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: term == "dumb")
    line = ProgressLine(60, lambda line: click.echo(line, err=True))
    assert line.is_due()
    line.show("one")
    assert not line.is_due()
    line.shown_s -= 60
    assert line.is_due()
    assert capsys.readouterr().err == "one\n"


def test_lines_are_folded_at_blanks_and_no_path_is_cut() -> None:
    text = "  aa bb cc\nd/e/f/g/h/i/j"
    assert fold(text, None) == text
    assert fold(text, 10) == text
    assert fold(text, 9) == "  aa bb\n      cc\nd/e/f/g/h/i/j"
    assert fold("a-b-c-d x", 8) == "a-b-c-d\n    x"


def test_guarding_twice_is_guarding_once(capsys: pytest.CaptureFixture[str]) -> None:
    guard_screen()
    once = sys.stdout
    guard_screen()
    assert sys.stdout is once


def test_a_screen_that_cannot_show_a_character_spells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    guard_screen()
    click.echo("a → é")
    assert raw.getvalue().replace(b"\r", b"") == b"a \\u2192 \xe9\n"


def test_a_closed_standard_stream_is_no_error() -> None:
    code = "import sys; from micu_extract.cli import main; sys.argv[0] = 'micu-extract'; main()"
    words = [sys.executable, "-c", code, "list"]
    line = f"exec {shlex.join(words)} >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], env=ENVIRONMENT, timeout=300).returncode == 0


@pytest.mark.parametrize("where", ["header", "ledger"])
def test_foreign_sets_do_not_steer_the_screen(tmp_path: Path, where: str) -> None:
    hostile = "\x1b]0;owned\x07\x9b2J\u202e"
    manifest = write_features(
        tmp_path / "f",
        make_clips(3),
        {"audio": (6,)},
        backbones={"audio": "toy"},
        has=lambda clip, modality: clip.clip_id != "clip/1",
    )
    source = read_manifest(manifest).sources("audio", "media")["clip/1"]
    (folder,) = (tmp_path / "f").glob("*/*/")
    if where == "ledger":
        write_ledger(folder, [Failure(f"x{hostile}", "decode", f"c{hostile}", hostile, source)])
    else:
        moved = folder.with_name(f"a{hostile}")
        folder.rename(moved)
    for command in (["status"], ["verify"]):
        result = CliRunner().invoke(cli, [*command, str(tmp_path / "f")])
        assert "audio" in result.output or where == "header"
        assert not set(result.output) & set("\x1b\x07\x9b\u202e")
        assert "9b2J" in result.output or (where, command) == ("ledger", ["verify"])


# --- readers that leave ----------------------------------------------------------------------

LONG = (
    "import sys, click, logging\n"
    "from micu.base.process import run_command\n"
    "@click.command()\n"
    "def tool():\n"
    "    for number in range(100_000):\n"
    "        click.echo(f'{number} ' * 10, err=number % 2 == 1)\n"
    "    open(sys.argv[1], 'w').write('through')\n"
    "    sys.exit(3)\n"
    "sys.argv[1:], name = [], sys.argv[1]\n"
    "sys.argv.append(name); tool.params = [click.Argument(['name'])]\n"
    "tool.callback = (lambda act: lambda name: act())(tool.callback)\n"
    "run_command(tool, hint='')\n"
)


def read_one_line(words: list[str], environment: dict[str, str] = ENVIRONMENT) -> tuple[int, str]:
    """Run a command whose reader takes a line and leaves; its exit code, and what it said then."""
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        return process.wait(timeout=300), said


def test_the_work_goes_on_when_the_reader_leaves(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LONG, str(tmp_path / "mark")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.stdout.close()
        code = process.wait(timeout=300)
    assert line.startswith("0 0")
    assert (code, (tmp_path / "mark").read_text()) == (3, "through")


TOOLS = {
    "micu-extract": "micu_extract.cli:main",
    "micu-train": "micu.cli:train_main",
    "micu-eval": "micu.cli:eval_main",
    "micu-demo": "micu_extract.demo.tour:main",
}


@pytest.mark.parametrize(
    "line",
    [
        "micu-extract list",
        "micu-extract list --json",
        "micu-extract --help",
        "micu-train --print-config --preset micu",
        "micu-train --list-presets",
        "micu-train --help",
        "micu-eval --help",
        "micu-demo --help",
    ],
)
@pytest.mark.parametrize("reads", [True, False], ids=["one line", "nothing"])
def test_a_pipe_that_closes_is_no_error(line: str, reads: bool) -> None:
    name, *arguments = line.split()
    module, function = TOOLS[name].split(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; {function}()"
    if reads:
        assert read_one_line(["-c", code, *arguments]) == (0, "")
        return
    reader, writer = os.pipe()
    os.close(reader)  # before a word was said
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
        timeout=300,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_that_takes_no_output_is_an_error() -> None:
    code = "import sys; from micu_extract.cli import main; sys.argv[0] = 'micu-extract'; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
            timeout=300,
        )
    assert done.returncode == 74
    assert done.stderr.startswith("error: [Errno 28]")
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


def test_ids_of_a_manifest_do_not_reach_the_screen_raw(tmp_path: Path) -> None:
    name = tmp_path / "a\x1b[31m\u202e.csv"
    name.write_text("clip_id,pa\x9bth,pa\rth\na,b,c\n")
    result = CliRunner().invoke(cli, ["overlap", str(name), str(name)])
    assert not set(result.output) & set("\x1b\x9b\u202e\r")


def test_the_log_is_our_own_and_the_warnings_of_libraries() -> None:
    code = (
        "import logging; from micu.base.process import show_log; show_log()\n"
        "ours, theirs = logging.getLogger('micu.train'), logging.getLogger('fontTools.subset')\n"
        "ours.info('a step'), theirs.info('a glyph'), theirs.warning('no glyph')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stderr == "a step\nno glyph\n"


def test_devices_share_a_line_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    line = DevicesLine(["cpu 1", "cpu 2"])
    line.show("cpu 2", "3/40 clips, 0 failed, 2.50 clips/s, 0:00:15 left")
    line.show("cpu 1", "5/40 clips, 1 failed, 2.50 clips/s, 0:00:14 left")  # too early
    line.show("cpu 1", "5/40 clips, \x1b[2J")
    line.show("cpu 1", "WARNING: the disk is slow")
    line.close()
    shown = "cpu 1: starts; cpu 2: 3/40 clips, 2.50 clips/s\ncpu 1: WARNING: the disk is slow\n"
    assert capsys.readouterr().err == shown
