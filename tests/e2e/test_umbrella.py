"""`micu`: one command for all of them."""

import os
import subprocess
import sys

import pytest

from micu.cli import TOOLS
from tests.conftest import PYTHONPATH

RUN = """
import sys
{before}
from micu.cli import main
sys.argv[0] = "/usr/bin/micu"
try:
    main()
finally:
    print(*sorted({{"torch", "av", "numpy", "pandas", "micu_extract"}} & set(sys.modules)))
"""


def run(*words: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", RUN.format(before=before), *words],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_tool_and_loads_none() -> None:
    done = run("--help")

    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in TOOLS)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("name", TOOLS)
def test_each_word_is_the_command_with_a_hyphen(name: str) -> None:
    done = run(name, "--help")

    assert done.returncode == 0, done.stderr
    assert f"micu-{name}" in done.stdout


def test_words_are_handed_on_as_they_are_and_so_is_the_exit_code() -> None:
    done = run("train", "--set", "sed=1", "--print-config")

    assert done.returncode == 2
    assert "did you mean 'seed'?" in done.stderr
    done = run("extract", "verify", "--", "nowhere")
    assert "Usage: micu-extract verify" in done.stderr
    assert "nowhere" in done.stderr


def test_a_word_that_is_none_is_told_with_what_was_meant() -> None:
    done = run("trian")

    assert done.returncode == 2
    assert "No such command 'trian'" in done.stderr


def test_without_the_part_that_decodes_it_says_what_is_missing() -> None:
    done = run("extract", "list", before="sys.modules['micu_extract'] = None")

    assert done.returncode == 2
    assert "micu extract: expected micu with its decoders, got" in done.stderr
