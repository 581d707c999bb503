"""`micu-train --sweep`: many runs, each in a process and a folder of its own, and one table.

Typing the command again goes on: runs that are finished are not repeated, others resume. A run that
fails does not stop the rest. Exit codes: 0 all runs are finished, 3 some failed.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from micu.base.command_line import (
    ArrayJob,
    array_script,
    option_words,
    typed_options,
)
from micu.base.errors import ConfigError
from micu.base.files import hold_folder
from micu.base.process import EXIT_FAILURES, exit_codes, stop_signals
from micu.cli.outputs import try_file
from micu.sweep.conduct import CHECKPOINT, RunCommands, conduct, launcher, share_cores, share_gpus
from micu.sweep.plan import PRESET, Build, SweepRun, choose_part, parse_axes, plan_runs

RESULTS = "results.csv"
TABLE = "sweep.csv"
OWN = ("sweep", "seeds", "jobs", "part", "then", "sweep_print")
"""Names of the options of a sweep."""
REPLACED = ("preset", "seed", "out")
"""Options that a sweep says to each of its runs itself."""
REFUSED = ("resume", "overwrite", "dry_run", "print_config", "as_json")
MOST_SEEDS = 10_000
"""Runs of one setting that a sweep takes."""
SHARED = ("features", "manifest", "device")
"""Options of the training that its evaluation takes over."""


SWEEP_OPTIONS = (
    click.option(
        "--sweep",
        metavar="KEY=VALUE,…",
        multiple=True,
        help="Do a run for each value of a setting, or of `preset`; several make a grid. "
        "Finished runs are not repeated, others resume.",
    ),
    click.option(
        "--seeds",
        type=click.IntRange(1, MOST_SEEDS),
        help="Runs per setting of a sweep, from --seed on [default: 1]; alone, a sweep too.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Runs of a sweep at a time; they take the GPUs in turn.",
    ),
    click.option(
        "--part", metavar="I/N", help="Only the I-th of N shares of a sweep's runs; no table."
    ),
    click.option(
        "--then",
        metavar="OPTIONS",
        help="Evaluate each finished run of a sweep: options of micu-eval, in quotes.",
    ),
    click.option(
        "--sweep-print",
        type=click.Choice(["slurm"]),
        help="Print a job script for the sweep, one array task per run, and stop.",
    ),
)
"""In the order in which help shows them."""


def is_sweep(context: click.Context) -> bool:
    """Whether the command line of `micu-train` asks for a sweep.

    Raises:
        ConfigError: It does not, but has options that only a sweep reads.
    """
    if context.params["sweep"] or context.params["seeds"]:
        return True
    if idle := ", ".join(typed_options(context, OWN)):
        raise ConfigError(f"{idle}: only a sweep reads it; add --sweep or --seeds")
    return False


def run_sweep(context: click.Context, build: Build) -> int:
    """Do the sweep that was typed, or print its job script; returns the exit code.

    Args:
        context: Of `micu-train`.
        build: Makes a run's configuration.

    Raises:
        ConfigError: It cannot be done as typed; nothing was begun.
    """
    given = context.params
    runs = _plan(context, build)
    out: Path = given["out"] or Path("runs") / f"{given['preset']}-sweep"
    evaluation = _evaluation(context)
    if given["sweep_print"] is not None:
        if idle := ", ".join(typed_options(context, ["part", "jobs"])):
            raise ConfigError(f"{idle}: a job script has a part, and one run, in each task")
        click.echo(_job_script(context, out, len(runs)), nl=False)
        return 0
    chosen = choose_part(runs, given["part"])
    if given["part"] is None:
        try_file("--out, its table", out / TABLE)
    typed = option_words(context, leave_out=(*OWN, *REPLACED))
    jobs = [_job(run, out / run.name, typed, evaluation) for run in chosen]
    cores = share_cores(given["jobs"], os.environ)
    gpus = _gpus(given["jobs"], [given["device"], *(evaluation or ())])
    hold_folder(out)
    with exit_codes(), stop_signals() as stop, launcher(stop, cores, gpus) as launch:
        ended = conduct(jobs, given["jobs"], launch, stop, lambda line: click.echo(line, err=True))
    if given["part"] is None:
        _tell_table([e.job.run for e in ended if e.state == "finished"], out)
    failed = [e for e in ended if e.state == "failed"]
    for each in failed:
        click.echo(f"failed: {each.job.folder}: {each.why}", err=True)
    if stop.name:
        click.echo(f"stopped by {stop.name}; type the same command to go on", err=True)
        return stop.exit_code
    return EXIT_FAILURES if failed else 0


def _plan(context: click.Context, build: Build) -> list[SweepRun]:
    """The runs of the sweep that was typed."""
    given = context.params
    if refused := ", ".join(typed_options(context, REFUSED)):
        raise ConfigError(
            f"{refused}: a sweep does not take it. Finished runs are not repeated and others "
            "resume; to begin again, delete their folders or name another --out"
        )
    axes = parse_axes(given["sweep"])
    fixed = {text.partition("=")[0].strip() for text in given["assignments"]}
    fixed |= {name for name in (PRESET, "modalities") if typed_options(context, [name])}
    if fixed & axes.keys():
        raise ConfigError(
            f"--sweep {', '.join(sorted(fixed & axes.keys()))}: has one value by another option, "
            "too; leave one of them out"
        )
    return plan_runs(given["preset"], axes, given["seeds"] or 1, build)


def _gpus(at_a_time: int, words: Sequence[str]) -> list[str]:
    """The GPU of each run at a time; empty if words of the command lines name one themselves."""
    if at_a_time == 1 or any("cuda:" in word for word in words):
        return []
    import torch

    return share_gpus(at_a_time, os.environ, torch.cuda.device_count())


def _job(
    run: SweepRun, folder: Path, typed: Sequence[str], evaluation: Sequence[str] | None
) -> RunCommands:
    """The command lines of one run."""
    settings = (*run.assignments, f"seed={run.config.seed}")
    own = [word for text in settings for word in ("--set", text)]
    evaluate = None
    if evaluation is not None:
        task, *words = evaluation
        evaluate = [task, str(folder / CHECKPOINT), *words, "--out", str(folder / RESULTS)]
    return RunCommands(
        run=run,
        folder=folder,
        train=["--preset", run.preset, *typed, *own, "--out", str(folder)],
        evaluate=evaluate,
    )


def _tell_table(finished: Sequence[SweepRun], out: Path) -> None:
    from micu.cli.sweep_table import collect, render_sweep, write_table

    if finished:
        rows = collect(finished, out)
        write_table(rows, finished, out / TABLE)
        click.echo(render_sweep(rows))
        click.echo(f"{len(finished)} runs in {out / TABLE}", err=True)


def _job_script(context: click.Context, out: Path, tasks: int) -> str:
    """A script for `sbatch`: the same sweep, of which each task does its part."""
    given = context.params
    words = ["micu-train", *option_words(context, leave_out=("out", "part", "jobs", "sweep_print"))]
    own = shlex.join([*words, "--out", str(out)])
    return array_script(
        ArrayJob(
            name="micu-sweep",
            what="training",
            tasks=tasks,
            command=f'{own} --part "$SLURM_ARRAY_TASK_ID/{tasks}"',
            notes=(
                f"{tasks} runs of one sweep. Submit with: sbatch THIS_FILE",
                "Options of sbatch go before those above: sbatch --time=24:00:00 THIS_FILE",
                "A run that is stopped (time limit, preemption) saves and is queued again.",
                "For the table, or to see which runs are missing, when all are through:",
                f"  {own}",
            ),
            cpus=1 + given["workers"],
            gpus=0 if given["device"] == "cpu" else 1,
        )
    )


# --- what was typed --------------------------------------------------------------------------


def _evaluation(context: click.Context) -> list[str] | None:
    """Options of `micu-eval` for every run; None without `--then`.

    Raises:
        ConfigError: `micu-eval` would not understand them.
    """
    from micu.cli.eval_options import OPTIONS
    from micu.cli.evaluate import main, task_first

    if context.params["then"] is None:
        return None
    try:
        task, *words = task_first(shlex.split(context.params["then"]), OPTIONS)
        typed = main.commands[task].make_context(task, ["last.pt", *words])
    except (click.UsageError, ValueError) as error:
        told = error.format_message() if isinstance(error, click.UsageError) else str(error)
        raise ConfigError(f"--then: {told}") from error
    if typed_options(typed, ["out"]) or len(typed.params["checkpoints"]) > 1:
        raise ConfigError("--then: the sweep says itself which checkpoint, and where its rows go")
    shared = [name for name in SHARED if not typed_options(typed, [name])]
    return [task, *option_words(context, shared), *words]
