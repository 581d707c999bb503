"""The table of differences: every switch that it names is there to be thrown."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest

from micu.cli.evaluate import main as eval_command
from micu.config.presets import PRESETS
from micu.config.sections import TrainConfig
from micu_extract.cli import cli as extract_command

PAGE = (Path(__file__).parents[2] / "docs/differences.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| where")
]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        whole = prefix + key
        flat |= flatten(value, f"{whole}.") if isinstance(value, dict) else {whole: value}
    return flat


SETTINGS = flatten(asdict(TrainConfig()))
OPTIONS = {
    option
    for command in (*eval_command.commands.values(), extract_command.commands["text"])
    for parameter in command.params
    if isinstance(parameter, click.Option)
    for option in parameter.opts
}


def switches(cell: str) -> list[str]:
    """Names of settings and options in a cell; `.name` is in the section of the one before."""
    names: list[str] = []
    for text in re.findall(r"`([^`]+)`", cell):
        if text.startswith("."):
            text = names[-1].partition(".")[0] + text
        if " " not in text:  # else it is the command that an option is of
            names.append(text)
    return names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_switch_that_the_table_names_exists(row: list[str]) -> None:
    assert len(row) == 5
    names = switches(row[-1])
    unknown = [name for name in names if name not in SETTINGS and name not in OPTIONS]
    assert not unknown
    assert names or row[0] == "open-set threshold"


def test_all_that_the_presets_of_paper_and_code_change_is_in_the_table() -> None:
    told = {name for row in ROWS for name in switches(row[-1])}
    for preset in ("paper", "reference"):
        config = flatten(asdict(PRESETS[preset]()))
        changed = {name for name, value in config.items() if value != SETTINGS[name]}
        assert changed
        assert changed <= told
