"""The command line that an extraction was typed with, kept so that it can be typed again."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

_TYPED = "extract.typed"
"""Where the context of a command keeps its words."""
_ONCE = ("--part", "--retry-failed", "--overwrite", "--dry-run", "--json", "--dask")
"""Options that say how one run goes about it, not what it makes."""


class RememberingCommand(click.Command):
    """A command that keeps the words that it was typed with."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:  # noqa: D102
        ctx.meta[_TYPED] = tuple(args)
        return super().parse_args(ctx, args)


def typed_command() -> str:
    """The running command as a line for a shell; empty where none is running.

    Options of the single run, such as `--part` and `--overwrite`, are left out.
    """
    context = click.get_current_context(silent=True)
    if context is None or _TYPED not in context.meta:
        return ""
    words = _without_once(context.meta[_TYPED], context.command)
    command = shlex.join(["micu-extract", context.info_name or "", *words])
    return f"cd {shlex.quote(str(Path.cwd()))} && {command}"


def _without_once(words: Sequence[str], command: click.Command) -> list[str]:
    flags = {
        name: isinstance(option, click.Option) and option.is_flag
        for option in command.params
        for name in option.opts
    }
    kept, coming = [], iter(words)
    for word in coming:
        name, has_value, _ = word.partition("=")
        if name not in _ONCE:
            kept.append(word)
        elif not has_value and not flags.get(name, True):
            next(coming, None)
    return kept
