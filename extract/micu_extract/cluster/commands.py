"""The commands and options of `micu-extract` for extractions that run for days, in many parts."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from micu.base.command_line import ArrayJob, ToolCommand, array_script, typed_value
from micu.base.devices import parse_devices
from micu.base.errors import ConfigError, StoreError, shorten
from micu.base.process import EXIT_FAILURES, fold, screen_width
from micu.store.sets import find_lost_sets, find_sets
from micu_extract.pipeline.failures import parse_share
from micu_extract.sets.compact import compact_set
from micu_extract.sets.merge import MergeReport, merge_set
from micu_extract.sets.repair import Repair, repair_set
from micu_extract.sets.shares import choose_part, join_folder
from micu_extract.sets.status import describe_status, read_status

SHOWN_PROBLEMS = 20

_FEATURES = click.Path(path_type=Path, exists=True, file_okay=False)


# --- options ---------------------------------------------------------------------------------


part_option = click.option(
    "--part",
    metavar="I/N",
    callback=lambda context, option, typed: choose_part(typed, os.environ),
    help="Extract only the I-th of N shares of the shards, for example 2/4, or several of "
    "them, for example 5-8/200, or -, those that come from standard input, a line each "
    "[default: the place in a Slurm array, else everything].",
)
dask_option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Run the shards on the Dask cluster of this scheduler, for example tcp://node7:8786: "
    "one share of them at a time on each worker that was started with --resources GPU=1.",
)
devices_option = click.option(
    "--devices",
    metavar="all|0,1,…|cpu:N",
    callback=lambda context, option, typed: parse_devices(typed) if typed else (),
    help="Run the shards on several devices of this machine, a process for each: all GPUs, "
    "those of some numbers, or N processes of the CPU. --workers is of all together.",
)
max_failures_option = click.option(
    "--max-failures",
    metavar="N|P%",
    callback=lambda context, option, typed: None if typed is None else parse_share(typed),
    help="Stop when more clips failed: a number, or a share of those tried, for example 5% "
    "[default: when the first 32 all fail; 100% never].",
)
repair_option = click.option(
    "--repair",
    is_flag=True,
    help="With --data: delete the shards that are broken; with --media: the rows whose file was "
    "replaced; and say what to type to make them again. Nothing may be extracting meanwhile.",
)


def describe_unread(folder: Path, error: StoreError | OSError) -> str:
    """Why a set cannot be read, in a line that names it."""
    if isinstance(error, OSError):
        return f"{folder}: cannot be read: {shorten(str(error), 400)}; mend that and type it again"
    return str(error)


def repair_sets(folders: Sequence[Path], repair_one: Callable[[Path], Repair] = repair_set) -> None:
    """Repair feature sets, and print what was done and what to type next.

    One that cannot be read is named, and left as it is.
    """
    for folder in folders:
        try:
            repair = repair_one(folder)
        except StoreError as error:
            click.echo(f"not repaired: {error}", err=True)
            continue
        for line in repair.deleted:
            click.echo(f"deleted {line}", err=True)
        for line in repair.kept:
            click.echo(f"kept, see to it by hand: {line}", err=True)
        if repair.dropped:
            click.echo(
                f"{folder}: dropped {repair.dropped} ledger rows of clips that are stored", err=True
            )
        if repair.command:
            click.echo(
                f"to extract again what was deleted, and only that, type (with the options of the "
                f"first run, if there were more):\n  {repair.command}",
                err=True,
            )


# --- commands --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetsBelow:
    """The feature sets at or below a folder."""

    whole: list[Path]
    lost: dict[str, str]
    """What is wrong with those that have shards and no description, by folder."""


def sets_below(features: Path) -> SetsBelow:
    """The feature sets at or below a folder.

    Raises:
        ConfigError: There are none.
    """
    found = SetsBelow(
        find_sets(features),
        {
            str(folder): f"{folder}: has shards and no set.json, so that nothing can be said of "
            "it; type its extraction command again, which writes set.json and nothing twice, or "
            "move it elsewhere"
            for folder in find_lost_sets(features)
        },
    )
    if not found.whole and not found.lost:
        raise ConfigError(
            f"{features}: expected a feature set here or below, got none; "
            "name the folder that was given with --out"
        )
    return found


@click.command(cls=ToolCommand, example="micu-extract status features")
@click.argument("features", type=_FEATURES, default=Path("features"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(*, features: Path, as_json: bool) -> None:
    """Show how far every feature set is; opens no shard and no media, and disturbs no run."""
    sets = sets_below(features)
    unread: list[str] = []
    found = read_status(
        sets.whole, lambda folder, error: unread.append(describe_unread(folder, error))
    )
    for problem in (*sets.lost.values(), *unread):
        click.echo(f"bad  {problem}", err=True)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found], indent=1))
    for entry in found if not as_json else ():
        click.echo(fold(describe_status(entry), screen_width()))
    sys.exit(EXIT_FAILURES if unread else 0)


@click.command(cls=ToolCommand, example="micu-extract merge features")
@click.argument("features", type=_FEATURES, nargs=-1)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Where the manifest is now, if the features were moved.",
)
@click.option(
    "--incomplete", is_flag=True, help="Fold though rows are missing; no part may be at work."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def merge(
    *, features: tuple[Path, ...], manifest: Path | None, incomplete: bool, as_json: bool
) -> None:
    """Check that the parts of every feature set make a whole, and fold their files into one."""
    roots = features or (Path("features"),)
    found = [sets_below(root) for root in roots]
    reports = []
    for folder in (folder for sets in found for folder in sets.whole):
        with join_folder(folder, alone=True) if incomplete else nullcontext():
            reports.append(_merge(folder, manifest, incomplete=incomplete))
    reports += [
        MergeReport(folder, 0, 0, 0, 0, (), (problem,), folded=False)
        for sets in found
        for folder, problem in sets.lost.items()
    ]
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports], indent=1))
    for report in reports if not as_json else ():
        parts = f"{len(report.parts)} parts" if report.parts else "no parts to fold"
        click.echo(
            f"{'bad ' if report.problems else 'good'} {report.folder}: {report.rows} rows = "
            f"{report.stored} stored + {report.failed} failed + {report.left} left; "
            f"{f'folded {parts}' if report.folded else parts}"
        )
        echo_problems(report.problems)
    sys.exit(EXIT_FAILURES if any(report.problems for report in reports) else 0)


def _merge(folder: Path, manifest: Path | None, *, incomplete: bool) -> MergeReport:
    """The report of a set; one that cannot be read is bad, and does not keep others from theirs."""
    try:
        return merge_set(folder, manifest, incomplete=incomplete)
    except StoreError as error:
        return MergeReport(str(folder), 0, 0, 0, 0, (), (str(error),), folded=False)


@click.command(cls=ToolCommand, example="micu-extract compact features/vggsound")
@click.argument("features", type=_FEATURES, nargs=-1, required=True)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Where the manifest is now, if the features were moved.",
)
@click.option(
    "--copy", is_flag=True, help="Take in the rows that are read from sets of other manifests."
)
def compact(*, features: tuple[Path, ...], manifest: Path | None, copy: bool) -> None:
    """Remove rows that no manifest asks for; the rest is as one run over the manifest leaves it."""
    for folder in (folder for root in features for folder in sets_below(root).whole):
        done = compact_set(folder, manifest, copy=copy)
        click.echo(
            f"{done.folder}: {done.kept} rows kept, {done.removed} removed, {done.copied} copied "
            f"from other sets; {done.written} shards written anew"
        )


def echo_problems(problems: tuple[str, ...]) -> None:
    """Print the first problems, and how many more there are."""
    for problem in problems[:SHOWN_PROBLEMS]:
        click.echo(f"     {problem}")
    if len(problems) > SHOWN_PROBLEMS:
        click.echo(f"     and {len(problems) - SHOWN_PROBLEMS} more")


_NOT_IN_A_SCRIPT = {
    "--part": "the script adds it",
    "--dask": "the tasks share the work already; on a Dask cluster, type the command itself",
    "--overwrite": "each task would remove what the others have; overwrite once, before",
    "--retry-failed": "a task that goes back into the queue would begin with them again; type it "
    "once after `micu-extract merge`, without parts",
}
"""Options that the tasks of an array cannot have, and why."""


@click.command(cls=ToolCommand, example="micu-extract slurm video --parts 8 -- my.csv")
@click.argument("modality", type=click.Choice(["video", "audio", "flow", "text", "all"]))
@click.option("--parts", type=click.IntRange(min=1), required=True, help="Tasks of the array.")
@click.option("--cpus", type=click.IntRange(min=1), default=4, show_default=True, help="Per task.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="Per task.")
@click.option("--time", default="", help="Limit of one task, for example 24:00:00.")
@click.option("--partition", default="", help="Where to run [default: the cluster's].")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def slurm(
    *, modality: str, parts: int, cpus: int, arguments: tuple[str, ...], **asked: Any
) -> None:
    """Print a job script for sbatch that extracts in parts.

    After -- follow the ARGUMENTS of `micu-extract MODALITY`: the manifest and its options.
    """
    for word in arguments:
        why = _NOT_IN_A_SCRIPT.get(word.partition("=")[0])
        if why:
            raise ConfigError(f"micu-extract slurm: expected arguments without {word}: {why}")
    workers = [] if typed_value(arguments, "--workers") is not None else ["--workers", str(cpus)]
    own = shlex.join(["micu-extract", modality, *arguments, *workers])
    merge = shlex.join(["micu-extract", "merge", typed_value(arguments, "--out") or "features"])
    job = ArrayJob(
        name=f"micu-{modality}",
        what="extraction",
        tasks=parts,
        command=f'{own} --part "$SLURM_ARRAY_TASK_ID/{parts}"',
        notes=(
            f"{parts} parts of one extraction. Submit with: sbatch THIS_FILE",
            "A task that is stopped (time limit, preemption) publishes what is whole and goes "
            "back into the",
            "queue. To join the parts when all are through, or to see which are missing:",
            f"  sbatch --dependency=afterany:ARRAY_JOB_ID --wrap {shlex.quote(merge)}",
            "To run single parts again: sbatch --array=2,5 THIS_FILE",
        ),
        cpus=cpus,
        **asked,
    )
    click.echo(array_script(job), nl=False)
