"""Exit codes of the tools, and what they tell."""

import os
import sys
from pathlib import Path

import click
import pytest

import extract.cli
import extract.demo
from micu.commands import exit_codes, run_command
from micu.errors import ConfigError, DeviceError


def tool(action):
    @click.group()
    def group():
        pass

    @group.command()
    @click.option("--count", type=int)
    def act(count):
        action()

    return group


def raises(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("action", "arguments", "code", "message"),
    [
        (lambda: None, ["act"], 0, ""),
        (lambda: sys.exit(3), ["act"], 3, ""),
        (lambda: click.get_current_context().exit(75), ["act"], 75, ""),
        (raises(ConfigError("no such thing")), ["act"], 2, "error: no such thing"),
        (raises(click.UsageError("type more")), ["act"], 2, "type more"),
        (raises(DeviceError("no memory")), ["act"], 71, "error: no memory"),
        (raises(OSError("disk full")), ["act"], 74, "error: disk full\ntype it again"),
        (raises(KeyboardInterrupt()), ["act"], 130, "interrupted; type it again"),
        (raises(click.Abort()), ["act"], 130, "interrupted; type it again"),
        (lambda: None, ["--help"], 0, ""),
        (lambda: None, ["act", "--count", "x"], 2, "'x' is not a valid integer"),
        (lambda: None, ["nothing"], 2, "No such command"),
    ],
)
def test_a_tool_ends_with_its_exit_code(monkeypatch, capsys, action, arguments, code, message):
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])

    with pytest.raises(SystemExit) as caught:
        run_command(tool(action), hint="type it again")

    assert caught.value.code == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "inside", "arguments"),
    [
        (extract.cli.main, "extract.cli.sets_below", ["verify", "."]),
        (extract.demo.main, "extract.demo.run_demo", []),
    ],
    ids=["micu-extract", "micu-demo"],
)
def test_ctrl_c_ends_every_tool_with_130(monkeypatch, capsys, main, inside, arguments):
    def interrupted(*values, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(inside, interrupted)
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])

    with pytest.raises(SystemExit) as caught:
        main()

    assert caught.value.code == 130
    assert "to go on" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), exit_codes():
        raise ZeroDivisionError


@pytest.mark.parametrize("words", [["audio", "m.csv"], ["import", "ave", "m.csv"]])
def test_a_job_with_some_of_the_cores_has_a_worker_for_each_of_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.csv").touch()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7, 9}, raising=False)
    with extract.cli.cli.commands[words[0]].make_context(words[0], words[1:]) as context:
        assert context.params["workers"] == 3
