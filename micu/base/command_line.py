"""Help of the commands; what was typed, and typed again for a shell or in a script for Slurm."""

import re
import shlex
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from string import Template
from typing import Any

import click
from click.core import ParameterSource
from rich_click import RichCommand, RichGroup

from micu.base.errors import UNSEEN, ConfigError
from micu.base.process import EXIT_STOPPED
from micu.base.registry import load_plugin

_TYPED = "micu.typed"
"""Where the context of a command keeps its words."""
_ONCE = (
    *("--part", "--retry-failed", "--overwrite", "--dry-run", "--json", "--dask"),
    *("--devices", "--max-failures"),
)
"""Options that say how one run goes about it, not what it makes."""


Decorator = Callable[[Any], Any]
"""What gives a function an argument or options of a command."""


def in_order(*options: Decorator) -> Decorator:
    """Options that help shows in this order, as one decorator."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def panel(title: str, *options: Decorator) -> Decorator:
    """Options that stand together in help, in this order, as one decorator.

    Args:
        title: What they have in common.
        *options: What `click.option` returns.
    """

    def decorate(command: Any) -> Any:
        known = len(getattr(command, "__click_params__", ()))
        command = in_order(*options)(command)
        for parameter in command.__click_params__[known:]:
            parameter.panel = title
        return command

    return decorate


def _load_plugins(context: click.Context, parameter: click.Parameter, typed: Any) -> None:
    for text in typed:
        load_plugin(text)
    context.meta[f"micu.{parameter.name}"] = typed


plugin_option: Decorator = click.option(
    "--plugin",
    metavar="FILE|MODULE",
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_load_plugins,
    help="Python file or module that adds backbones, data sets, losses or tasks; it is run.",
)
"""For the commands that name what a plug-in can add."""


_HELP = {
    "help_option_names": ["-h", "--help"],
    "rich_help_config": {
        "theme": "nu",
        "enable_theme_env_var": False,
        "color_system": None,  # plain text everywhere: `guard_screen` shows what steers a terminal
        "text_markup": None,
        "text_paragraph_linebreaks": "\n\n",
        "max_width": 100,
        "padding_helptext_first_line": (0, 0, 1, 0),
        "show_arguments": False,
    },
}


device_option: Decorator = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda:N, mps."
)


class ToolCommand(RichCommand):
    """A command with help in groups, as wide as the screen, that keeps the words it is typed with.

    Args:
        *args: As click's.
        example: A line that shows how it is typed.
        **settings: As click's.
    """

    main = click.Command.main  # an error is a plain sentence, without a frame

    def __init__(self, *args: Any, example: str = "", **settings: Any) -> None:  # noqa: D107
        own = settings.get("context_settings") or {}
        settings["context_settings"] = {**_HELP, **own}
        if example:
            settings["epilog"] = f"Example: {example}"
        super().__init__(*args, **settings)

    def get_help(self, ctx: click.Context) -> str:  # noqa: D102
        text = "\n".join(line.rstrip() for line in super().get_help(ctx).splitlines())
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def get_usage(self, ctx: click.Context) -> str:  # noqa: D102
        return super().get_usage(ctx).strip()

    def format_usage(self, ctx: click.Context, formatter: Any) -> None:  # noqa: D102
        from rich.text import Text

        # click's own: rich-click lays the words of a narrow screen out in columns.
        usage = click.HelpFormatter(width=formatter.width)
        click.Command.format_usage(self, ctx, usage)
        formatter.write(Text(usage.getvalue()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:  # noqa: D102
        ctx.meta[_TYPED] = words = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" in error.message and (hint := _regrouped(words)):
                raise click.UsageError(f"{error.message.rstrip('.')}; {hint}", ctx) from error
            raise


def _regrouped(words: Sequence[str]) -> str:
    """What was meant by words that no option or argument takes; empty where nobody can tell.

    A list was typed with blanks, or the folder of the media before or after the manifest.
    """
    for option in ("--modalities", "--pairs", "--backbones"):
        if option in words:
            after = words[words.index(option) + 1 :]
            listed = list(takewhile(lambda word: not word.startswith("-"), after))
            if len(listed) > 1:
                return f"type {option} {','.join(word.strip(',') for word in listed)}"
    folders = [word for word in words if Path(word).is_dir()]
    manifests = [word for word in words if word.lower().endswith((".csv", ".csv.gz"))]
    if len(folders) == len(manifests) == 1:
        return f"type {manifests[0]} --media-root {folders[0]}"
    return ""


class ToolGroup(ToolCommand, RichGroup):  # type: ignore[misc]  # as RichGroup itself
    """Commands that belong together."""

    command_class = ToolCommand


def typed_words(leave_out: Container[str] = _ONCE) -> list[str]:
    """Name and words of the running command, as they were typed; nothing where none is running.

    Args:
        leave_out: Options that are left out, with their values.
    """
    context = click.get_current_context(silent=True)
    if context is None or _TYPED not in context.meta:
        return []
    flags = {
        name
        for option in context.command.params
        for name in option.opts
        if not isinstance(option, click.Option) or option.is_flag
    }
    return [context.info_name or "", *drop_options(context.meta[_TYPED], leave_out, flags)]


def drop_options(
    words: Iterable[str], dropped: Container[str], flags: Container[str] = ()
) -> list[str]:
    """Words of a command line without some options and their values.

    Args:
        words: As they were typed.
        dropped: Options that are left out.
        flags: Which options take no value.
    """
    kept, coming = [], iter(words)
    for word in coming:
        name, has_value, _ = word.partition("=")
        if name not in dropped:
            kept.append(word)
        elif not has_value and name not in flags:
            next(coming, None)
    return kept


def typed_command(manifest: Path, media_root: Path) -> str:
    """The running extraction as a line for a shell; empty where none is running.

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


# --- options, whatever their order -----------------------------------------------------------


def typed_options(context: click.Context, names: Container[str] | None = None) -> list[str]:
    """Options that were typed, whatever their value, as they are spelled.

    Args:
        context: Of the command.
        names: Parameters among which to look; None for all.
    """
    return [parameter.opts[0] for parameter in _typed(context, names)]


def option_words(
    context: click.Context, names: Container[str] | None = None, leave_out: Container[str] = ()
) -> list[str]:
    """What was typed, options with their values and arguments, in the command's own order.

    Args:
        context: Of the command.
        names: Parameters among which to look; None for all.
        leave_out: Parameters that are left out.
    """
    words: list[str] = []
    for parameter in _typed(context, names, leave_out):
        value = context.params.get(parameter.name or "", context.meta.get(f"micu.{parameter.name}"))
        name = parameter.opts[:1] if isinstance(parameter, click.Option) else []
        is_flag = isinstance(parameter, click.Option) and parameter.is_flag
        for each in value if isinstance(value, tuple) else (value,):
            words += name if is_flag else [*name, str(each)]
    return words


def _typed(
    context: click.Context, names: Container[str] | None, leave_out: Container[str] = ()
) -> list[click.Parameter]:
    return [
        parameter
        for parameter in context.command.params
        if (names is None or parameter.name in names)
        and parameter.name not in leave_out
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]


def typed_value(words: Sequence[str], option: str) -> str | None:
    """What stands after an option among words that no command has read; None if it is not there."""
    value = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == option:
            value = following
        elif word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
    return value


# --- Slurm -----------------------------------------------------------------------------------

NOTICE_S = 120
"""How long before the time limit Slurm says so, s: what a task finishes when stopped takes less."""

_SCRIPT = Template("""\
#!/bin/bash
$directives
$notes

run=
signalled=0
pass_on() {
  signalled=1
  [ -z "$$run" ] || kill -USR1 "$$run" 2>/dev/null
}
trap pass_on USR1 TERM

# In the background: bash runs a trap only after a command in the foreground has ended.
$command &
run=$$!

code=1
while :; do
  signalled=0
  wait "$$run"
  ended=$$?
  [ "$$ended" = 127 ] || code=$$ended  # 127: waited for already
  [ "$$signalled" = 1 ] || break      # a signal cut the waiting short: wait again
done

# Slurm does not requeue a task that ends by itself. $stopped: stopped, and can go on; 138 and 143:
# the same signals (USR1, TERM), but before the $what had begun.
case "$$code" in
  $stopped | 138 | 143) scontrol requeue "$$SLURM_JOB_ID" ;;
esac
exit "$$code"
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayJob:
    """What to run, and what to ask Slurm for."""

    name: str
    what: str
    """What a task does, one word."""
    tasks: int
    command: str
    """Of one task, for bash; it ends with `EXIT_STOPPED` when it was stopped and can go on."""
    notes: Sequence[str]
    """Lines that say how to use the script."""
    cpus: int
    gpus: int = 0
    time: str = ""
    """Limit of one task as Slurm writes it, for example `24:00:00`; empty takes the cluster's."""
    partition: str = ""


def array_script(job: ArrayJob) -> str:
    """The text of a script for `sbatch`.

    Raises:
        ConfigError: What was typed holds characters that a script must not: a line feed would end a
            comment, and what follows it would be run.
    """
    for text in (job.name, job.time, job.partition, job.command, *job.notes):
        for place, char in enumerate(text):
            if char in "\n\t" or UNSEEN.match(char):
                raise ConfigError(
                    "a script for Slurm: expected arguments of printable text, got "
                    f"{char!r} in {text[max(0, place - 40) : place + 20]!r}; rename that file or "
                    "folder, or type the argument without it"
                )
    options = {
        "job-name": job.name,
        "array": f"1-{job.tasks}",
        "ntasks": "1",
        "cpus-per-task": str(job.cpus),
        "gres": f"gpu:{job.gpus}" if job.gpus else "",
        "time": job.time,
        "partition": job.partition,
        "signal": f"B:USR1@{NOTICE_S}",
        "requeue": None,
        "open-mode": "append",
        "output": f"{job.name}-%A_%a.log",
    }
    directives = "".join(
        f"#SBATCH --{name}{'' if value is None else f'={shlex.quote(value)}'}\n"
        for name, value in options.items()
        if value != ""
    )
    return _SCRIPT.substitute(
        directives=directives,
        notes="\n".join(f"# {line}" for line in job.notes),
        # Signals reach what srun started, and srun passes them on; a bare command may get none.
        command=f"srun --cpus-per-task={job.cpus} {job.command}",
        what=job.what,
        stopped=EXIT_STOPPED,
    )
