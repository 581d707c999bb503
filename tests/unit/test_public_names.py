"""The names that users type or that files hold, against one checked-in listing."""

import ast
import importlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from micu.base.registry import Registry
from micu.cli import umbrella
from micu.cli.evaluate import main as eval_command
from micu.cli.train import main as train_command
from micu.config.presets import PRESETS
from micu.evaluate.scores import SCORES
from micu.evaluate.tasks import TASKS
from micu.losses.terms import LOSSES
from micu.store.ledger import LEDGER_COLUMNS
from micu.store.manifest import MODALITIES
from micu_extract.backbones import BACKBONES
from micu_extract.cli import cli as extract_command
from micu_extract.datasets import DATASETS
from micu_extract.demo.tour import cli as demo_command
from micu_extract.media.readers import DECODERS

PROJECT = Path(__file__).parents[2]
LISTING = PROJECT / "tests" / "public_names.json"
COMMANDS: dict[str, click.Command] = {
    "micu": umbrella,
    "micu-extract": extract_command,
    "micu-demo": demo_command,
    "micu-train": train_command,
    "micu-eval": eval_command,
}


def public_names() -> dict[str, Any]:
    """Every public name, as the listing holds them."""
    return {
        "commands": {
            name: options
            for entry, command in COMMANDS.items()
            for name, options in sorted(describe_command(entry, command).items())
        },
        "backbones": own_names(BACKBONES),
        "data_sets": own_names(DATASETS),
        "decoders": sorted(DECODERS),
        "presets": own_names(PRESETS),
        "losses": own_names(LOSSES),
        "tasks": own_names(TASKS),
        "scores": own_names(SCORES),
        "modalities": list(MODALITIES),
        "ledger_columns": list(LEDGER_COLUMNS),
        "failure_codes": sorted(failure_codes([PROJECT / "extract", PROJECT / "micu"])),
    }


def own_names(registry: Registry[Any]) -> list[str]:
    """Names of what the project registers; tests register some of their own."""
    return sorted(
        name
        for name, entry in registry.items()
        if entry.__module__.split(".")[0] in ("micu_extract", "micu")
    )


def describe_command(name: str, command: click.Command) -> dict[str, list[str]]:
    """Arguments and options of a command and of those below it, with their choices."""
    if isinstance(command, click.Group):
        below = [describe_command(f"{name} {n}", c) for n, c in command.commands.items()]
        return {path: options for found in below for path, options in found.items()}
    return {name: sorted(describe_parameter(parameter) for parameter in command.params)}


def describe_parameter(parameter: click.Parameter) -> str:
    """For example `--json` or `--decoder pyav|decord`."""
    is_option = isinstance(parameter, click.Option)
    spelled = " ".join(parameter.opts) if is_option else str(parameter.name).upper()
    kind = parameter.type
    return f"{spelled} {'|'.join(kind.choices)}" if isinstance(kind, click.Choice) else spelled


def failure_codes(folders: Iterable[Path]) -> set[str]:
    """Codes of the ledger that stand in the source; `{}` stands for what is put in."""
    codes = {"unexpected"}
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_raised = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_raised and node.func.id in ("DecodeError", "FeatureError", "Trouble"):
                codes.add(spell(node.args[0]))
    return codes


def spell(code: ast.expr) -> str:
    """A code as it stands in the source."""
    if isinstance(code, ast.JoinedStr):
        return "".join(spell(v) if isinstance(v, ast.Constant) else "{}" for v in code.values)
    return str(code.value) if isinstance(code, ast.Constant) else f"<{ast.unparse(code)}>"


def differences(old: object, new: object, where: str = "") -> list[str]:
    """One line per name that came or went."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key, []), new.get(key, []), f"{where} {key}".strip())
        ]
    gone = [f"{where}: {name!r} is gone" for name in old if name not in new]  # type: ignore[attr-defined, operator]
    return gone + [f"{where}: {name!r} is new" for name in new if name not in old]  # type: ignore[attr-defined, operator]


def test_public_names_change_on_purpose_only() -> None:
    listed, found = json.loads(LISTING.read_text()), public_names()

    assert listed == found, "\n".join(
        [
            "public names differ from tests/public_names.json:",
            *differences(listed, found),
            "A name that is gone breaks what users type and have on disk. If that is meant, say so "
            "in CHANGELOG.md, then type: python -m tests.unit.test_public_names",
        ]
    )


def test_the_listing_misses_no_command() -> None:
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]

    assert scripts.keys() == COMMANDS.keys()
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_a_name_that_came_or_went_is_pointed_at() -> None:
    old = {"commands": {"a": ["--x", "--y"]}, "scores": ["msp"]}
    new = {"commands": {"a": ["--x"], "b": ["--z"]}, "scores": ["msp", "energy"]}

    assert differences(old, new) == [
        "commands a: '--y' is gone",
        "commands b: '--z' is new",
        "scores: 'energy' is new",
    ]


if __name__ == "__main__":
    LISTING.write_text(json.dumps(public_names(), indent=1) + "\n")
