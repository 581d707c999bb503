"""The command line tools `micu-train`, `micu-eval` and `micu`; heavy imports wait until needed."""

import sys
from importlib import import_module

import click

from micu.base.command_line import ToolGroup
from micu.base.process import EXIT_USAGE, guard_screen

TOOLS = {
    "extract": ("micu_extract.cli", "Turn raw video, audio and text into features."),
    "train": ("micu.cli.train", "Train MICU on features."),
    "eval": ("micu.cli.evaluate", "Evaluate a checkpoint, search with it, or make a report."),
    "demo": ("micu_extract.demo.tour", "Show everything once, on media that it makes itself."),
}
"""What `micu` has a word for, in the order in which it is used: `micu train` is `micu-train`."""


@click.group(cls=ToolGroup, example="micu train --help")
@click.version_option(package_name="micu")
def umbrella() -> None:
    """From raw media to representations that generalise to other modalities and new classes.

    Each command is also one of its own: micu train is micu-train.
    """


for _name, (_, _told) in TOOLS.items():
    umbrella.command(_name, help=_told, example=f"micu {_name} --help")(lambda: None)


def main() -> None:
    """Entry point of `micu`: the tool that its first word names takes the other words."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    guard_screen()
    if name not in TOOLS:
        umbrella(prog_name="micu")
        return
    try:
        tool = import_module(TOOLS[name][0])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("micu_extract", "av"):
            raise
        click.echo(f"micu {name}: expected micu with its decoders, got {error}", err=True)
        sys.exit(EXIT_USAGE)
    sys.argv[:2] = [f"micu-{name}"]
    tool.main()


def train_main() -> None:
    """Entry point of `micu-train`."""
    from micu.cli.train import main as train

    guard_screen()
    train()


def eval_main() -> None:
    """Entry point of `micu-eval`."""
    from micu.cli.evaluate import main as evaluate

    guard_screen()
    evaluate()
