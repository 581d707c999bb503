"""Words that were typed, with and without some of them, and the task in front."""

import click
import pytest
from click.testing import CliRunner

from micu.base.command_line import (
    ToolCommand,
    drop_options,
    option_words,
    panel,
    typed_options,
    typed_value,
    typed_words,
)
from micu.cli.evaluate import main, task_first


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["a", "--out", "x", "b"], ["a", "b"]),
        (["--out=x", "b"], ["b"]),
        (["--flag", "b"], ["b"]),
        (["--flag=1", "b"], ["b"]),
        (["a", "--out"], ["a"]),
        (["--output", "x"], ["--output", "x"]),
        ([], []),
    ],
)
def test_options_are_dropped_with_their_values(words: list[str], left: list[str]) -> None:
    assert drop_options(words, ("--out", "--flag"), {"--flag"}) == left


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--out", "x"], "x"),
        (["--out=x=y"], "x=y"),
        (["--out", "x", "--out=z"], "z"),
        (["--out"], ""),
        (["--output", "x"], None),
        ([], None),
    ],
)
def test_a_value_is_found_however_it_is_typed(words: list[str], value: str | None) -> None:
    assert typed_value(words, "--out") == value


def test_a_command_knows_what_it_was_typed_with() -> None:
    found: list[object] = []

    @click.command(cls=ToolCommand)
    @click.argument("name")
    @panel("A", click.option("--many", multiple=True), click.option("--flag", is_flag=True))
    @panel("B", click.option("--part"), click.option("--idle", default="x"))
    def tool(**values: object) -> None:
        context = click.get_current_context()
        found.extend((typed_words(), typed_options(context), typed_options(context, ["part"])))
        found.extend(
            (option_words(context, ["many", "flag"]), option_words(context, None, ["name"]))
        )
        found.append(option_words(context, ["name", "flag"]))

    words = ["n", "--part", "1/2", "--flag", "--many=a b", "--many", "c"]
    assert CliRunner().invoke(tool, words, prog_name="tool").exit_code == 0
    many = ["--many", "a b", "--many", "c", "--flag"]
    assert found == [
        ["tool", "n", "--flag", "--many=a b", "--many", "c"],
        ["name", "--many", "--flag", "--part"],
        ["--part"],
        many,
        [*many, "--part", "1/2"],
        ["n", "--flag"],
    ]
    assert [getattr(p, "panel", "") for p in tool.params] == ["", "A", "A", "B", "B"]
    assert typed_words() == []


@pytest.mark.parametrize(
    ("words", "today"),
    [
        (["cmg", "a.pt"], ["cmg", "a.pt"]),
        (["report", "a"], ["report", "a"]),
        (["a.pt"], ["oscmg", "a.pt"]),
        ([], ["oscmg"]),
        (["a.pt", "--task", "codebook", "--json"], ["codebook", "a.pt", "--json"]),
        (["--task=cmg", "a.pt", "--localise"], ["localise", "a.pt"]),
        (["cmg", "--localise", "a.pt"], ["localise", "a.pt"]),
        (["a.pt", "--localise"], ["oscmg", "a.pt", "--localise"]),
    ],
)
def test_the_task_comes_first(words: list[str], today: list[str]) -> None:
    assert task_first(words, main.commands) == today


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(click.UsageError, match=r"unknown task 'cmgg'; did you mean 'cmg'"):
        task_first(["a.pt", "--task", "cmgg"], main.commands)


@pytest.mark.parametrize("words", [["--task", "report"], ["--task=paper"], ["--task"], ["--task="]])
def test_what_is_no_task_is_refused_in_the_older_form(words: list[str]) -> None:
    with pytest.raises(click.UsageError, match=r"unknown task '(report|paper|)'; "):
        task_first(["a.pt", *words], main.commands)
