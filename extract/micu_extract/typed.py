"""The command line that an extraction was typed with, kept so that it can be typed again."""

import shlex
from collections.abc import Container
from pathlib import Path

import click

_TYPED = "micu_extract.typed"
"""Where the context of a command keeps its words."""
_ONCE = (
    *("--part", "--retry-failed", "--overwrite", "--dry-run", "--json", "--dask"),
    "--max-failures",
)
"""Options that say how one run goes about it, not what it makes."""


class RememberingCommand(click.Command):
    """A command that keeps the words that it was typed with."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:  # noqa: D102
        ctx.meta[_TYPED] = tuple(args)
        return super().parse_args(ctx, args)


def typed_command(manifest: Path, media_root: Path) -> str:
    """The running command as a line for a shell; empty where none is running.

    Options of the single run, such as `--part` and `--overwrite`, are left out. Where the manifest
    was not typed, it stands there all the same, with its media root: the next run may be over
    another one.

    Args:
        manifest: That the command turned out to be about.
        media_root: Where its media are.
    """
    words = typed_words()
    if not words:
        return ""
    chosen = click.get_current_context().params
    if chosen.get("manifest") is None:
        words.insert(1, str(manifest.resolve()))
        if chosen.get("media_root", media_root) is None:
            words[2:2] = ["--media-root", str(media_root.resolve())]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(['micu-extract', *words])}"


def typed_words(leave_out: Container[str] = _ONCE) -> list[str]:
    """Name and words of the running command; nothing where none is running.

    Args:
        leave_out: Options that are left out, with their values.
    """
    context = click.get_current_context(silent=True)
    if context is None or _TYPED not in context.meta:
        return []
    flags = {
        name: isinstance(option, click.Option) and option.is_flag
        for option in context.command.params
        for name in option.opts
    }
    kept, coming = [context.info_name or ""], iter(context.meta[_TYPED])
    for word in coming:
        name, has_value, _ = word.partition("=")
        if name not in leave_out:
            kept.append(word)
        elif not has_value and not flags.get(name, True):
            next(coming, None)
    return kept
