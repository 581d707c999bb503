"""Write the pages that are made from the code: commands.md and settings.md.

`python docs/reference.py` writes them; a test fails when they differ from the code.
"""

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click

from micu.cli.evaluate import main as eval_command
from micu.cli.train import main as train_command
from micu.config import sections
from micu_extract.cli import cli as extract_command
from micu_extract.demo.tour import cli as demo_command

DOCS = Path(__file__).parent
COMMANDS = {
    "micu-extract": extract_command,
    "micu-train": train_command,
    "micu-eval": eval_command,
    "micu-demo": demo_command,
}
MADE = "Made from the code by `python docs/reference.py`; change it there.\n"


def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and those below it, by what is typed."""
    yield name, command
    if isinstance(command, click.Group):
        for part, below in command.commands.items():
            if not below.hidden:
                yield from walk(f"{name} {part}", below)


def in_table(text: str) -> str:
    """A cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def describe_options(command: click.Command, context: click.Context) -> Iterator[str]:
    """Lines of a table: what is typed, and what it does."""
    for parameter in command.get_params(context):
        told = parameter.get_help_record(context)
        if told is not None:
            yield f"| `{in_table(told[0])}` | {in_table(told[1])} |"


def commands_page() -> str:
    """Every command with its arguments and options."""
    lines = ["# Commands", "", MADE]
    for program, top in COMMANDS.items():
        for name, command in walk(program, top):
            context = click.Context(command, info_name=name, help_option_names=["-h", "--help"])
            usage = " ".join([name, *command.collect_usage_pieces(context)])
            lines += [f"{'##' if name == program else '###'} {name}", ""]
            lines += [f"`{usage}`", ""]
            told = inspect.cleandoc(command.help or "").partition("\f")[0].replace("\b\n", "")
            lines += [told, ""] if told else []
            options = list(describe_options(command, context))
            lines += ["| option | what it does |", "|---|---|", *options, ""] if options else []
    return "\n".join(lines).rstrip() + "\n"


def told_of_fields() -> dict[str, dict[str, str]]:
    """The docstrings beneath the fields of each class of `micu.config.sections`."""
    told: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sections)).body:
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            told[node.name] = {
                field.target.id: inspect.cleandoc(str(text.value.value))
                for field, text in pairs
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            }
    return told


def setting_rows(config: Any, prefix: str, told: dict[str, dict[str, str]]) -> Iterator[str]:
    """Lines of a table: name, default and meaning of each setting that `--set` takes."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from setting_rows(value, f"{prefix}{field.name}.", told)
        else:
            default = json.dumps(value)
            meaning = in_table(told[type(config).__name__].get(field.name, ""))
            yield f"| `{prefix}{field.name}` | `{default}` | {meaning} |"


def settings_page() -> str:
    """Every setting of training with its default."""
    rows = setting_rows(sections.TrainConfig(), "", told_of_fields())
    head = ["# Settings", "", MADE]
    about = "`micu-train --set NAME=VALUE` changes one; the defaults are those of preset `micu`."
    table = ["| setting | default | meaning |", "|---|---|---|", *rows]
    return "\n".join([*head, about, "", *table]) + "\n"


PAGES = {"commands.md": commands_page, "settings.md": settings_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
