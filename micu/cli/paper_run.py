"""`micu-eval paper-run`: a table or figure of the paper, from features to a page.

It plans every training and evaluation that the table needs, tells what is missing and how to get
it, does the rest, and writes a page in the table's own rows and columns. Typing it again goes on:
what was done with the same words, checkpoint and manifests is not repeated. Exit codes: 0 all of it
is there, 3 something is missing or failed.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from micu.base.command_line import ToolCommand, device_option, panel
from micu.base.errors import ConfigError
from micu.base.files import file_sha256, hold_folder, read_json, write_atomically
from micu.base.process import (
    EXIT_FAILURES,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    exit_codes,
    stop_signals,
)
from micu.cli.features import ROOT_OPTION, refuse_idle_features
from micu.cli.outputs import try_file
from micu.cli.paper_plan import (
    BACKBONES,
    ENHANCED,
    PaperOrder,
    PaperPlan,
    evaluations_of,
    make_plan,
    tell_plan,
    words_of,
)
from micu.config.presets import BASELINES, PRESETS
from micu.evaluate.order import is_frozen
from micu.evaluate.report import FROZEN
from micu.report.as_printed import LAYOUTS, as_printed_sections, with_frozen
from micu.report.compare import BOTH_WAYS
from micu.report.read import gather
from micu.store.manifest import MODALITIES
from micu.sweep.conduct import conduct, launcher

DONE = "done.json"
"""In the folder of results: what was done, and with what."""


# --- doing it ----------------------------------------------------------------------------------


def train(plan: PaperPlan) -> list[str]:
    """Do the trainings, each in a process of its own; returns what failed, in words.

    Raises:
        SystemExit: They were stopped.
    """
    jobs = list(plan.trainings.values())
    with stop_signals() as stop, launcher(stop, {}) as launch:
        ended = conduct(jobs, 1, launch, stop, lambda line: click.echo(f"train {line}", err=True))
    if stop.name:
        click.echo(f"stopped by {stop.name}; type the same command to go on", err=True)
        sys.exit(stop.exit_code)
    return [f"training {e.job.folder}: {e.why}" for e in ended if e.state == "failed"]


def evaluate(plan: PaperPlan, order: PaperOrder, tasks: click.Group) -> list[str]:
    """Do the evaluations that were not done; returns what failed, in words.

    Raises:
        SystemExit: One was stopped.
    """
    failed: list[str] = []
    hold_folder(order.out)
    note = order.out / DONE
    done = _read_done(note) if order.results.is_file() else {}
    for number, (each, path) in enumerate(plan.evaluations, 1):
        told = f"[{number}/{len(plan.evaluations)}] {each.told}"
        is_file = not is_frozen(path)
        if is_file and not path.is_file():
            failed.append(f"{told}: no checkpoint {path}")
            continue
        words = [each.task, str(path), *words_of(each, order)]
        lists = [order.manifests / f"{name}.csv" for name in each.manifests]
        basis = [file_sha256(file) for file in (*([path] * is_file), *lists)]
        key = shlex.join(words)
        if done.get(key) == basis:
            click.echo(f"{told}: not repeated", err=True)
            continue
        click.echo(f"{told}: micu-eval {key}", err=True)
        if code := _run(tasks, words):
            failed.append(f"{told}: exit code {code}")
            continue
        done[key] = basis
        write_atomically(note, json.dumps(done, indent=1).encode())
    return failed


def _run(tasks: click.Group, words: Sequence[str]) -> int:
    """The exit code of one call of `micu-eval`, in this process.

    Raises:
        SystemExit: It was stopped.
    """
    try:
        tasks.main(list(words), prog_name="micu-eval", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit as error:
        if error.code in (EXIT_INTERRUPTED, EXIT_STOPPED):
            raise
        return error.code if isinstance(error.code, int) else 1
    return 0


def _read_done(path: Path) -> dict[str, list[str]]:
    try:
        found = read_json(path) if path.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_page(order: PaperOrder) -> None:
    """The table or figure in its own form, as HTML, Markdown and drawings."""
    from micu.report.drawings import write_drawings
    from micu.report.page import drawings_of, render_html, render_report_markdown

    material = gather((order.out,))
    sections = as_printed_sections(order.layout, material.results, material.codebooks)
    title = f"{order.layout.kind.capitalize()} {order.layout.number}"
    write_atomically(order.out / "page.html", render_html(title, sections).encode())
    write_atomically(order.out / "page.md", render_report_markdown(title, sections).encode())
    drawn = list(drawings_of(sections))
    if drawn:
        write_drawings(drawn, order.out / "figures")
    click.echo(f"page in {order.out / 'page.html'} and page.md", err=True)


# --- the command -------------------------------------------------------------------------------

_FOLDER = click.Path(path_type=Path, file_okay=False)


def _parse_checkpoints(texts: Sequence[str]) -> dict[str, Path]:
    """Checkpoints by preset, from `FILE` or `PRESET=FILE`.

    Raises:
        ConfigError: Two for one preset, an unknown one, or a file that is not there.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.rpartition("=")
        path = Path(file)
        if not name:
            stem = path.stem.lower()
            name = stem if stem in BASELINES else "micu"
        preset = name.removesuffix(ENHANCED).removesuffix(BOTH_WAYS)
        problems = {
            f"no preset {name[:40]!r}": preset not in PRESETS,
            "a second file for it": name in found,
            "a file that is not there": not path.is_file(),
        }
        for problem, is_bad in problems.items():
            if is_bad:
                raise ConfigError(
                    f"--checkpoint {text}: expected one file for each preset, as FILE.pt or "
                    f"PRESET=FILE.pt (PRESET-enhanced=… for table 5), got {problem}; name another"
                )
        found[name] = path
    return found


@click.command(
    cls=ToolCommand,
    example="micu-eval paper-run --table 2 --features features --checkpoint MICU.pt --dry-run",
)
@panel(
    "What",
    click.option("--table", type=int, help="Of the paper, 2 to 9."),
    click.option("--figure", type=int, help="Of the paper, 3 to 6."),
    click.option("--dry-run", is_flag=True, help="Tell the plan and what is missing, and stop."),
)
@panel(
    "Data",
    ROOT_OPTION,
    click.option(
        "--manifests",
        type=_FOLDER,
        default=Path("manifests"),
        show_default=True,
        help="Folder of the manifests, by the names of data sets, and of classes/.",
    ),
    *(
        click.option(
            f"--{name}-features",
            metavar="BACKBONE",
            help=f"Which {name} features, in place of the paper's.",
        )
        for name in MODALITIES
    ),
)
@panel(
    "Methods",
    click.option(
        "--checkpoint",
        "checkpoints",
        metavar="[PRESET=]FILE",
        multiple=True,
        help="Of a method, such as MICU.pt or dcid=DCID.pt; repeatable.",
    ),
    click.option(
        "--frozen",
        metavar="BACKBONE",
        multiple=True,
        help="A line for a probe of the features of one encoder of all modalities; repeatable.",
    ),
    click.option("--train", is_flag=True, help="Train the methods that have no checkpoint."),
    click.option(
        "--runs",
        type=_FOLDER,
        default=Path("runs/paper"),
        show_default=True,
        help="Where runs of --train are, and go on.",
    ),
    click.option(
        "--set",
        "assignments",
        metavar="KEY=VALUE",
        multiple=True,
        help="A setting of --train, as of micu-train; repeatable.",
    ),
)
@panel(
    "Run",
    click.option(
        "--protocol",
        type=click.Choice(["both", "paper", "clean"]),
        default="both",
        show_default=True,
        help="As of micu-eval.",
    ),
    click.option(
        "--seeds",
        type=click.IntRange(1, 1000),
        default=1,
        show_default=True,
        help="Probes of each evaluation.",
    ),
    click.option(
        "--options",
        metavar="OPTIONS",
        default="",
        help="Further options of micu-eval for evaluations with a probe, in quotes.",
    ),
    click.option(
        "--out",
        type=_FOLDER,
        help="Folder for results and page [default: paper/table-2 and so on].",
    ),
    device_option,
)
def paper_run(
    table: int | None,
    figure: int | None,
    dry_run: bool,
    checkpoints: tuple[str, ...],
    frozen: tuple[str, ...],
    options: str,
    out: Path | None,
    **typed: object,
) -> None:
    """Make a table or figure of the paper: plan, train, evaluate, and a page in its own form.

    What is missing is told with the command that makes it, and the rest is done. Typed again it
    goes on where it was.
    """
    with exit_codes("type it again to go on"):
        known = {kind: [n for k, n in LAYOUTS if k == kind] for kind in ("table", "figure")}
        wanted = ("figure", figure) if table is None else ("table", table)
        if (table is None) == (figure is None) or wanted not in LAYOUTS:
            raise ConfigError(
                f"paper-run: expected --table of {known['table']} or --figure of "
                f"{known['figure']}, got {'both' if table and figure else wanted[1]}; type one"
            )
        kind, number = wanted
        chosen = {name: str(typed.pop(f"{name}_features") or "") for name in MODALITIES}
        order = PaperOrder(
            layout=with_frozen(LAYOUTS[kind, int(number or 0)], [f"{FROZEN}{x}" for x in frozen]),
            checkpoints=_parse_checkpoints(checkpoints),
            chosen=chosen,
            options=tuple(shlex.split(options)),
            out=out or Path("paper") / f"{kind}-{number}",
            **typed,  # type: ignore[arg-type]
        )
        _refuse_idle(order)
        if frozen and order.layout == LAYOUTS[wanted[0], int(wanted[1] or 0)]:
            raise ConfigError(f"--frozen: {kind} {number} compares settings of MICU; leave it out")
        plan = make_plan(order)
        tell_plan(plan, order)
        if dry_run:
            return
        try_file("--out, its page", order.out / "page.html")
        tasks = click.get_current_context().find_root().command
        assert isinstance(tasks, click.Group)
        failed = [*train(plan), *evaluate(plan, order, tasks)]
        write_page(order)
    for line in failed:
        click.echo(f"failed: {line}", err=True)
    if failed or plan.blocked:
        sys.exit(EXIT_FAILURES)


def _refuse_idle(order: PaperOrder) -> None:
    """Refuse options that this table does not read.

    Raises:
        ConfigError: There is one.
    """
    presets = [method.preset for method in order.layout.methods]
    kinds = {each.backbones for each in evaluations_of(order.layout)}
    fitting = {preset + kind for preset in presets for kind in ("", *kinds)}
    for name in order.checkpoints:
        if name not in fitting:
            raise ConfigError(
                f"--checkpoint {name}=…: {order.layout.kind} {order.layout.number} has "
                f"{', '.join(presets)}; leave it out"
            )
    if order.assignments and not order.train:
        raise ConfigError("--set: only --train reads it; add --train, or leave it out")
    used = dict.fromkeys(name for kind in kinds for name in BACKBONES[kind])
    refuse_idle_features(order.chosen, tuple(used))
