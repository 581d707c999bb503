"""`micu-demo`: writes real media, then types the public commands in turn and shows them.

Everything after the media is a command that a user could type in the demo's folder; nothing here
calls the modules behind them. Offline, on the CPU, a few minutes on two cores.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

import micu
import micu_extract
from micu.base.command_line import ToolCommand
from micu.base.devices import count_cores
from micu.base.errors import ConfigError, MicuError
from micu.base.files import write_atomically
from micu.base.process import ProgressLine, fold, run_command, screen_width
from micu_extract.demo.media import DURATION_S, EVENTS, SPLITS, write_media
from micu_extract.media.workers import check_system

if TYPE_CHECKING:
    from pandas import DataFrame

TOOLS = {
    "micu-extract": "micu_extract.cli:main",
    "micu-train": "micu.cli:train_main",
    "micu-eval": "micu.cli:eval_main",
}
"""What stands behind each command, as in `[project.scripts]`."""

BACKBONES = {
    "video": "swinv2-demo",
    "audio": "htsat-demo",
    "flow": "slowonly-demo",
    "text": "bert-demo",
}
PAIRS = ("v:a", "a:v", "v:f", "a:f")
FIRST_SEED, SEEDS = 1, 3
MARKER = "demo.json"
"""Written first, so that a folder of the demo can be told from one that is not."""
LOG = "demo.log"
"""All that the commands print."""
SHOWN = 20
"""Lines of a command that failed which are shown."""
WIDTH = 80
"""Of what is shown where there is no screen."""
RESULTS = (LOG, "results.csv", "results.commands.jsonl", "codebook.csv", "report.html")
INPUTS = ("manifest.csv", "known.csv")
FOLDERS = ("media", "features", "runs")
"""With the two above: what the demo writes, and may remove."""

FINISHED_WITH_FAILURES = 3
"""Exit code of an extraction whose ledger is not empty: the demo has three broken files."""

KILL_AFTER_S = 300.0
"""How long to wait for the first shard of the extraction that is killed."""

SETTINGS = ("data.steps=4",)
"""What the demo changes in the preset `small`: a clip has four seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much the demo makes of everything."""

    clips: Mapping[str, int] = field(default_factory=lambda: dict(SPLITS))
    """Of each class, by split."""
    shard_rows: int = 64
    """Of the extraction that is killed: small enough that a shard is whole before it ends."""
    settings: tuple[str, ...] = SETTINGS


METHODS = {
    "checkpoint": "MICU",
    "untrained": "untrained",
    "ceiling": "trained on target",
    "chance": "guessing",
}
"""Values of the results' column `method`, as the closing words call them."""

HEADLINE = "source-val"
"""Threshold and probe chosen on held-out clips of the source modality."""

QUICK = Size(
    clips={"train": 2, "val": 1, "test": 1},
    shard_rows=16,
    settings=(*SETTINGS, "optimizer.max_steps=4"),
)
"""Every command once, in a minute; too little to learn anything from."""


class DemoError(MicuError):
    """A command of the demo did not do what it should."""


@dataclass(frozen=True, slots=True)
class Shell:
    """Types commands in one folder."""

    folder: Path
    at_work: set[subprocess.Popen[str]] = field(default_factory=set)

    def run_beside(self, commands: Sequence[Sequence[str]]) -> None:
        """Type commands that do not need each other, as many at once as there are cores.

        Raises:
            DemoError: One ended with another exit code than 0; the others are ended, too.
        """
        with ThreadPoolExecutor(count_cores()) as pool:
            jobs = [pool.submit(self.run, *command) for command in commands]
            try:
                for job in jobs:
                    job.result()
            except BaseException:  # Ctrl-C, too: nothing is left at work
                pool.shutdown(wait=False, cancel_futures=True)
                for process in tuple(self.at_work):
                    os.killpg(process.pid, signal.SIGKILL)
                raise

    def run(self, name: str, *arguments: str, expect: Sequence[int] = (0,)) -> None:
        """Type a command, and wait for it; what it prints goes to `LOG`, and past on a screen.

        Raises:
            DemoError: It ended with an exit code that was not expected.
        """
        last: deque[str] = deque(maxlen=SHOWN)
        shown = ProgressLine(0, lambda line: None)
        with self._start(name, arguments) as process, self._log() as log:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                last.append(line)
                shown.show(line.rstrip())
            code = process.wait()
        shown.close()
        if code not in expect:
            click.echo("".join(last))
            raise DemoError(
                f"{name} {shlex.join(arguments)}: expected exit code "
                f"{' or '.join(map(str, expect))}, got {code}; its last lines are above, all "
                f"are in {self.folder / LOG}"
            )

    def kill_once(self, name: str, *arguments: str, sign: str) -> None:
        """Type a command and kill it, without a chance to tidy up, as soon as `sign` is there.

        Args:
            name: Of the command.
            *arguments: Of the command.
            sign: A file that the command writes on its way, in the shell's folder.
        """
        started = time.monotonic()
        with self._start(name, arguments, quiet=True) as process:
            while process.poll() is None and not (self.folder / sign).exists():
                if time.monotonic() - started > KILL_AFTER_S:
                    break
                time.sleep(0.02)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        is_killed = code == -signal.SIGKILL
        told = "killed on purpose" if is_killed else "had finished before it was killed"
        click.echo(f"  kill -9: {told}")

    @contextmanager
    def _start(
        self, name: str, arguments: Sequence[str], *, quiet: bool = False
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a command in a process group of its own, which never outlives the block."""
        command = f"$ {name} {shlex.join(arguments)}"
        with self._log() as log:
            log.write(f"\n{command}\n")
        click.echo(fold(command, _width() - 2).replace("\n", " \\\n"))
        module, function = TOOLS[name].split(":")
        code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; {function}()"
        places = (place for package in (micu_extract, micu) for place in package.__path__)
        ours = dict.fromkeys(str(Path(place).parent) for place in places)
        path = os.pathsep.join(filter(None, (*ours, os.environ.get("PYTHONPATH"))))
        # Sums in another order would make another model; and several are trained at once.
        threads = {} if name == "micu-extract" else {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env={**threads, **os.environ, "PYTHONPATH": path, "MICU_MANIFEST": ""},
            stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.at_work.add(process)
        try:
            yield process
        finally:
            self.at_work.discard(process)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _log(self) -> TextIO:
        return (self.folder / LOG).open("a", encoding="utf-8")


def _width() -> int:
    return screen_width() or WIDTH


@click.command(cls=ToolCommand, example="micu-demo --quick")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("micu-demo"),
    show_default=True,
    help="Folder for media, features, runs and the report.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="How many models to train; the results are mean ± standard deviation. [default: 3; 1 of "
    "--quick]",
)
@click.option("--keep", is_flag=True, help="Go on in the folder of an earlier demo, not anew.")
@click.option(
    "--quick",
    is_flag=True,
    help="A few clips and steps, in a minute: whether all works here. Its figures mean nothing.",
)
def cli(*, out: Path, seeds: int | None, keep: bool, quick: bool) -> None:
    """Show everything once, from media files to open-set results, on toy media made on the spot."""
    seeds = seeds or (1 if quick else SEEDS)
    started = time.monotonic()
    run_demo(out, seeds, keep=keep, size=QUICK if quick else Size())
    took_s = time.monotonic() - started
    told = f"\n{tell_results(out / 'results.csv', seeds)}\n{took_s:.0f} s in all.\n\nNext:\n"
    click.echo(fold(told, _width()))
    click.echo(f"  the report              {out / 'report.html'}")
    click.echo(f"  what commands printed   {out / LOG}")
    click.echo("  your own clips          README.md, Your own clips")


def main() -> None:
    """Entry point: errors that a user can act on become one message and an exit code."""
    run_command(cli, hint="type the same command with --keep to go on")


def run_demo(out: Path, seeds: int, *, keep: bool = False, size: Size | None = None) -> None:
    """The whole demo, in the order in which a user would type it.

    Args:
        out: Folder for all that it makes.
        seeds: How many models to train.
        keep: Go on with what an earlier demo left there.
        size: How much of everything; None is the demo in full.

    Raises:
        ConfigError: `out` holds something that no demo made.
        DemoError: A command failed.
    """
    check_system()
    size = size or Size()
    prepare_folder(out, keep=keep)
    shell = Shell(out)
    show_media(out, size)
    extract_all(shell, size)
    train_and_evaluate(shell, range(FIRST_SEED, FIRST_SEED + seeds), size)
    shell.run(
        *("micu-eval", "report", "results.csv", "codebook.csv", "runs", "features"),
        *("-o", "report.html", "--title", f"MICU on a toy, {date.today()}"),
    )


def prepare_folder(out: Path, *, keep: bool) -> None:
    """Make an empty folder for the demo, or leave an earlier one's as it is.

    Raises:
        ConfigError: The folder holds something that no demo made.
    """
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise ConfigError(
                f"{out}: expected an empty folder or one of an earlier demo, got one with other "
                "content; nothing was touched. Choose another with --out"
            )
        for name in RESULTS if keep else (*RESULTS, *INPUTS):
            (out / name).unlink(missing_ok=True)
        for name in () if keep else FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
    write_atomically(out / MARKER, b"[]")


def show_media(out: Path, size: Size) -> None:
    """Write the media, unless an earlier demo already has, and say what they are."""
    if not (out / "manifest.csv").is_file():
        known = [name for name, event in EVENTS.items() if event.known]
        unknown = [name for name, event in EVENTS.items() if not event.known]
        files = len(EVENTS) * sum(size.clips.values())
        told = (
            f"This is a toy: {files} files of {DURATION_S:g} s, drawn and sounded here, and 3 "
            f"broken ones, in {out}\n"
            f"known classes: {', '.join(known)}\nnever named in training: {', '.join(unknown)}"
        )
        click.echo(fold(told, _width()))
        started = time.monotonic()
        write_media(out, splits=size.clips)
        click.echo(f"written in {time.monotonic() - started:.1f} s")


def extract_all(shell: Shell, size: Size) -> None:
    """Extract four modalities, one of them through a kill, and prove that nothing is missing."""
    expect = (0, FINISHED_WITH_FAILURES)
    for modality, backbone in BACKBONES.items():
        line = [modality, "manifest.csv", "--backbone", backbone, "--weights", "random"]
        if modality == "flow":
            line += ["--tvl1", "--shard-rows", str(size.shard_rows)]
            first = f"features/manifest/{modality}-{backbone}/shard-00000.h5"
            if not (shell.folder / first).exists():
                click.echo("The next command is killed as soon as its first shard is written …")
                shell.kill_once("micu-extract", *line, sign=first)
                click.echo("… and typed again:")
        shell.run("micu-extract", *line, expect=expect)
    shell.run("micu-extract", "verify", "features", "--data")


def train_and_evaluate(shell: Shell, seeds: Sequence[int], size: Size) -> None:
    """Train models without any label, then ask them for classes that no probe was told of."""
    changes = [part for setting in size.settings for part in ("--set", setting)]
    runs = {seed: f"runs/seed-{seed}" for seed in seeds}
    shell.run_beside(
        [
            ("micu-train", "--modalities", "v,a,f,t", "--preset", "small", "--seed", str(seed),
             *changes, "--out", run, *["--resume"] * (shell.folder / run).exists())
            for seed, run in runs.items()
        ]
    )  # fmt: skip
    shell.run_beside(
        [
            ("micu-eval", "oscmg", f"{run}/last.pt", "--known", "known.csv",
             "--pairs", ",".join(PAIRS), "--encoder", "checkpoint", "--encoder", "untrained",
             "--ceiling", "--chance", "--out", "results.csv")
            for run in runs.values()
        ]
    )  # fmt: skip
    shell.run(
        *("micu-eval", "codebook", f"{runs[seeds[0]]}/last.pt", "--out", "results.csv"),
        *("--codebook-out", "codebook.csv"),
    )


def tell_results(results: Path, seeds: int) -> str:
    """The closing words: HOS of each pair and method, in percent, and what it is."""
    found = read_hos(results)
    pairs = found.groupby(level="pair", sort=False)
    of_seeds = found.unstack("pair").T.groupby(level=0).agg(lambda one: one.mean(skipna=False)).T
    mean, spread = pairs.mean(), pairs.std()
    mean.loc["mean"], spread.loc["mean"] = of_seeds.mean(), of_seeds.std()
    trained, untrained = mean.loc["mean", ["checkpoint", "untrained"]]
    text = (100 * mean).map("{:.1f}".format).where(mean.notna(), "–")
    text += (100 * spread).map(" ± {:.1f}".format).where(spread.notna(), "")
    shown = text.rename(columns=METHODS).rename_axis(None).rename_axis(columns="HOS, %")
    reached = (
        f"{trained / untrained:.1f} times what its untrained twin reaches"
        if untrained > 0
        else f"{100 * trained:.1f} %, its untrained twin nothing"
    )
    runs = "one model" if seeds == 1 else f"mean ± standard deviation of {seeds} models"
    return (
        f"{shown.to_string()}\n"
        f"MICU reaches {reached}.\n"
        "untrained: the same network before its training. trained on target: a probe of the "
        "target modality itself. HOS is the harmonic mean of accuracy on known classes and of "
        "unknown clips found; "
        "threshold and probe chosen on held-out clips of the source modality; "
        f"{runs}. One model says little: training is chaotic, and one seed gave 52.6 or 17.5 by "
        "the number of threads, which is 1 here unless OMP_NUM_THREADS is set. A toy: the files "
        "were drawn for it, the backbones have random weights, and the numbers say nothing about "
        "real data."
    )


def read_hos(results: Path) -> "DataFrame":
    """HOS in [0, 1] of each method, a column each, by seed and pair of modalities; NaN for none.

    The ceiling is trained on the target modality alone, so it stands beside every pair with that
    target; guessing has no threshold.
    """
    import pandas as pd

    rows = pd.read_csv(results, keep_default_na=False)
    rows = rows[(rows.task == "oscmg") & (rows.metric == "hos")]
    rows = rows[rows.threshold_source.isin((HEADLINE, "none"))].astype({"value": float})
    rows["pair"] = rows.train_modality + " → " + rows.test_modality
    others = rows[rows.method != "ceiling"]
    table = others.pivot_table("value", ["seed", "pair"], "method", sort=False)
    targets = others.groupby(["seed", "pair"]).test_modality.first().reindex(table.index)
    ceilings = rows[rows.method == "ceiling"].groupby(["seed", "test_modality"]).value.mean()
    places = zip(targets.index.get_level_values("seed"), targets, strict=True)
    table["ceiling"] = [ceilings.get(place) for place in places]
    return table.reindex(columns=list(METHODS)).astype(float)


if __name__ == "__main__":
    main()
