"""Doing the runs of a sweep: each stage of a run is a process, and is noted when it ended well.

A process of its own for every run: one that crashes, or that the system kills for its memory, takes
nothing else with it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from joblib import Parallel, delayed

from micu.base.devices import count_cores
from micu.base.files import check_held, hold_folder, read_json, write_atomically
from micu.base.process import EXIT_INTERRUPTED, EXIT_STOPPED, StopFlag
from micu.config.overrides import to_json
from micu.sweep.plan import SweepRun

FINISHED = "finished.json"
"""In a run's folder: what its finished stages were done with."""
LOG = "log.txt"
"""In a run's folder: what its processes printed."""
CHECKPOINT = "last.pt"
"""In a run's folder: what it ended with. A finished run without one is done again."""
TAIL = 1 << 16
"""Bytes of a log in which its last line is looked for."""
POLL_S = 0.2
"""How long a signal may wait before it is passed on, s."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

Launch = Callable[[str, Sequence[str], Path], int]
"""(module, words of its command line, log) → exit code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommands:
    """A run, and the command lines of its stages."""

    run: SweepRun
    folder: Path
    train: Sequence[str]
    """Words for `micu-train`."""
    evaluate: Sequence[str] | None
    """Words for `micu-eval` once the run is trained; None does not evaluate."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    job: RunCommands
    state: Literal["finished", "failed", "stopped"]
    why: str = ""
    """Of a run that failed, the last line of its log."""


def conduct(
    jobs: Sequence[RunCommands],
    at_a_time: int,
    launch: Launch,
    stop: StopFlag,
    tell: Callable[[str], None],
) -> list[Ended]:
    """Do every run that is not finished, in order, so many at a time.

    Args:
        jobs: The runs.
        at_a_time: How many of them.
        launch: Runs a process to its end.
        stop: Once it has a name, no further process is begun.
        tell: Takes a line about progress.

    Returns:
        How each run ended, in order.
    """

    def do(number: int, job: RunCommands) -> Ended:
        ended = _do(job, launch, stop)
        why = f": {ended.why}" if ended.why else ""
        tell(f"[{number}/{len(jobs)}] {job.run.name}: {ended.state}{why}")
        return ended

    tasks = (delayed(do)(number, job) for number, job in enumerate(jobs, 1))
    # Threads: each only waits for its process.
    return list(Parallel(n_jobs=at_a_time, prefer="threads", batch_size=1)(tasks))


def _do(job: RunCommands, launch: Launch, stop: StopFlag) -> Ended:
    wanted = {"config": json.loads(to_json(job.run.config)), "train": list(job.train)}
    found = _read_note(job.folder)
    trained = {key: found.get(key) for key in wanted} == wanted
    trained = trained and (job.folder / CHECKPOINT).is_file()
    stages: list[tuple[str, list[str], dict[str, Any]]] = []
    if not trained:
        stages.append(("micu.cli.train", [*job.train, "--resume"], wanted))
    if job.evaluate is not None and not (trained and found.get("evaluate") == list(job.evaluate)):
        note = {**wanted, "evaluate": list(job.evaluate)}
        stages.append(("micu.cli.evaluate", list(job.evaluate), note))
    for module, words, note in stages:
        if stop.name:
            return Ended(job, "stopped")
        hold_folder(job.folder)
        code = launch(module, words, job.folder / LOG)
        if gone := _why_gone(job.folder):
            return Ended(job, "failed", gone)
        if code in (EXIT_STOPPED, EXIT_INTERRUPTED) or (code and stop.name):
            return Ended(job, "stopped")
        if code != 0:
            return Ended(job, "failed", f"exit code {code}, {_last_line(job.folder / LOG)}")
        write_atomically(job.folder / FINISHED, json.dumps(note, indent=1).encode())
    return Ended(job, "finished", "" if stages else "not repeated")


def _why_gone(folder: Path) -> str:
    """Why nothing more is written into a run's folder; empty if it is there.

    Raises:
        OSError: The sweep's own has gone.
    """
    check_held(folder.parent)
    try:
        check_held(folder)
    except OSError as error:
        return str(error)
    return ""


def _read_note(folder: Path) -> dict[str, Any]:
    """What the finished stages of a run were done with; empty if that cannot be told."""
    try:
        note = read_json(folder / FINISHED)
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _last_line(log: Path) -> str:
    lines: list[str] = []
    if log.is_file():
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read(TAIL).decode(errors="replace").splitlines()
    return f"{lines[-1] if lines else 'no word said'} ({log})"


@contextmanager
def launcher(
    stop: StopFlag, environment: Mapping[str, str], gpus: Sequence[str] = ()
) -> Iterator[Launch]:
    """Starts processes that a terminal's Ctrl-C does not reach, and passes a stop on to them.

    What still runs when the block is left, as after a second Ctrl-C, is asked to stop, too.

    Args:
        stop: Once it has a name, running processes are asked to stop, and are waited for.
        environment: Set for them beside this process's own.
        gpus: What each of the processes at a time may see; empty leaves it to them.
    """
    begun: list[subprocess.Popen[bytes]] = []
    free: SimpleQueue[str] = SimpleQueue()
    for gpu in gpus:
        free.put(gpu)

    def launch(module: str, words: Sequence[str], log: Path) -> int:
        own = {VISIBLE: free.get()} if gpus else {}
        try:
            with log.open("ab") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment, **own},
                    start_new_session=True,
                )
            begun.append(process)
            told = False
            while True:
                try:
                    return process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    if stop.name and not told:
                        process.terminate()
                        told = True
        finally:
            for gpu in own.values():
                free.put(gpu)

    try:
        yield launch
    finally:
        for process in begun:
            if process.poll() is None:
                process.terminate()


def share_cores(at_a_time: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that give each of several processes at a time its share of the cores."""
    if at_a_time == 1 or "OMP_NUM_THREADS" in environment:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, count_cores() // at_a_time))}


def share_gpus(at_a_time: int, environment: Mapping[str, str], count: int) -> list[str]:
    """The GPU of each of several processes at a time, in turn; empty if there is nothing to share.

    Args:
        at_a_time: How many processes.
        environment: May name the GPUs to be used.
        count: GPUs that this process sees.

    Returns:
        Values of `CUDA_VISIBLE_DEVICES`.
    """
    named = environment.get(VISIBLE)
    seen = [str(i) for i in range(count)] if named is None else named.split(",")[:count]
    return [seen[i % count] for i in range(at_a_time)] if at_a_time > 1 and count else []
