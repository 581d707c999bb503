"""Exit codes of the tools, and what they tell."""

import os
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import micu_extract.cli
import micu_extract.demo.tour
from micu.base.errors import ConfigError, DeviceError, WeightsError, no_memory
from micu.base.process import FiniteRange, exit_codes, run_command
from tests.unit.test_public_names import COMMANDS


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


def wrapped(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("action", "arguments", "code", "message"),
    [
        (lambda: None, ["act"], 0, ""),
        (lambda: sys.exit(3), ["act"], 3, ""),
        (lambda: click.get_current_context().exit(75), ["act"], 75, ""),
        (raises(ConfigError("no such thing")), ["act"], 2, "error: no such thing"),
        (raises(click.UsageError("type more")), ["act"], 2, "type more"),
        (raises(DeviceError("no memory")), ["act"], 71, "error: no memory"),
        (raises(MemoryError()), ["act"], 71, "error: memory has run out: MemoryError; end what"),
        (raises(RuntimeError("DefaultCPUAllocator: can't")), ["act"], 71, "type it again"),
        (raises(OSError(12, "Cannot allocate memory")), ["act"], 71, "error: memory has run out"),
        (
            raises(wrapped(WeightsError("broken; delete it"), MemoryError("2 GiB"))),
            ["act"],
            71,
            "error: memory has run out: 2 GiB; end what else",
        ),
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
        (micu_extract.cli.main, "micu_extract.cli.sets_below", ["verify", "."]),
        (micu_extract.demo.tour.main, "micu_extract.demo.tour.run_demo", []),
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


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [40, 90])
def test_help_is_plain_text_in_groups_with_an_example_as_wide_as_the_screen(
    monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    entry = COMMANDS[name]
    below = [[word] for word in getattr(entry, "commands", {})]
    for words in [[], *below]:
        text = CliRunner().invoke(entry, [*words, "-h"], prog_name=name).output
        assert text.startswith(f"Usage: {' '.join([name, *words])}")
        assert all(char.isprintable() for char in text.replace("\n", ""))
        assert max(map(len, text.splitlines())) <= width
        if words or not below:
            assert f"\n Example: {name}" in text
    groups = ["Data", "Settings", "Run", "Sweep"] if name == "micu-train" else ["Options"]
    for title in groups:
        assert f"\n ═ {title} ═" in text


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
    with micu_extract.cli.cli.commands[words[0]].make_context(words[0], words[1:]) as context:
        assert context.params["workers"] == 3


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), RuntimeError("memory format"), ValueError("no")]
)
def test_an_error_that_memory_did_not_lead_to_stays_one(error):
    with pytest.raises(type(error)) as caught, exit_codes():
        raise error
    assert caught.value is error


def test_only_what_memory_led_to_is_called_so():
    assert no_memory(None) is None
    assert no_memory(OSError(28, "No space left on device")) is None
    assert no_memory(ConfigError("out of memory")) is None  # a sentence of ours, with its advice
    lack = RuntimeError("CUDA error: out of memory")
    assert no_memory(wrapped(ConfigError("a"), wrapped(ValueError("b"), lack))) is lack


@pytest.mark.parametrize("typed", ["nan", "inf", "-inf", "1e999"])
def test_numbers_that_are_none_are_refused(typed):
    kind = FiniteRange(min=0)
    with pytest.raises(click.BadParameter, match=r"finite number|range"):
        kind.convert(typed, None, None)
    assert kind.convert("0.5", None, None) == 0.5
