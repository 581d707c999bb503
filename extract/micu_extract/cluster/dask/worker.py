"""What a Dask worker does for `micu-extract --dask`: look around, run a share, stop.

A device of `--devices` has its shares run and watched by the same code.

A share is a run of shards. It is the typed command with `--part`, in a process of its own: what
ends that process does not end the Dask worker; it may start decoding processes, which Dask's
daemonic workers may not; and its bytes are those of any other run. It listens to a pipe that the
worker holds: when that closes, on purpose or because the worker has died, it publishes what is
whole and ends.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from micu.base.files import file_sha256
from micu.store.source import MANIFEST_VARIABLE
from micu_extract.cluster.dask.making import ask_for_making, tell_differences

RESOURCE = "GPU"
"""What a worker has to offer one of, so as to be given a share."""
POLL_S = 0.5
"""How often a share at work looks whether it is still wanted, s."""
GRACE_S = 120.0
"""How long a share that was told to stop may take to publish what is whole, s."""
UNLIKE = 1000
"""In place of the exit code of a share that was not begun: the machine has another micu by now."""
TOLD_CHARACTERS = 4000
"""Of what a share said, its end is kept."""

_CHILD = (
    "from micu_extract.cluster.dask.worker import end_with_input; end_with_input({}); "
    "from micu_extract.cli import main; main()"
)
_stopped: set[str] = set()
"""Runs that were told to stop, in this Dask worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What the workers are told about a run; paths are absolute."""

    run: str
    """A name that no other run has."""
    words: tuple[str, ...]
    """Arguments of `micu-extract`, without `--part`."""
    folder: str
    """Where they were typed."""
    manifest: str
    manifest_sha256: str
    media_root: str
    token: str
    """A file that has just been made among the features: who sees it writes to the same disk."""
    making: Mapping[str, str]
    """What makes features where the run was typed; see `micu_extract.cluster.dask.making`."""
    modules: tuple[str, ...] = ()
    """Those in `making` that are not our own."""

    def ask(self) -> dict[str, str]:
        """What this machine would make features with."""
        modules = {f"module {module}" for module in self.modules}
        libraries = [name for name in self.making if name != "micu" and name not in modules]
        return ask_for_making(libraries, self.modules)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a worker has and sees."""

    offers: float
    """How many of `RESOURCE`."""
    problems: tuple[str, ...]
    making: Mapping[str, str] = field(default_factory=dict)
    """What its shares would make features with; nothing if it cannot say."""


@dataclass(frozen=True, slots=True)
class ShareEnd:
    """How the process of a share ended."""

    code: int
    """Its exit code; minus the signal that ended it."""
    printed: str
    """Its summaries, as JSON."""
    told: str
    """The end of what it said on standard error."""

    @property
    def last_words(self) -> str:
        """Its error message, or the last line that it said."""
        message = re.search(r"^error: (.*)", self.told, re.MULTILINE | re.DOTALL)
        return message[1].strip() if message else "".join(self.told.strip().splitlines()[-1:])

    @property
    def ending(self) -> str:
        """For example `signal SIGKILL`, or `exit code 1 (MemoryError)`."""
        if self.code < 0:
            return f"signal {signal.Signals(-self.code).name}"
        return f"exit code {self.code} ({' '.join(self.last_words.split())})"


# --- in the Dask worker ------------------------------------------------------------------------


def look_around(errand: Errand, dask_worker: Any) -> Sight:
    """What this worker offers, and which of the run's files it does not see.

    Args:
        errand: The run.
        dask_worker: The worker, from Dask.
    """
    problems = [
        f"does not see the folder {folder}"
        for folder in dict.fromkeys((errand.folder, errand.media_root))
        if not Path(folder).is_dir()
    ]
    if not Path(errand.token).is_file():
        out = Path(errand.token).parent
        problems.append(f"does not see {out} as it is here, where features are to be written")
    manifest = Path(errand.manifest)
    if not manifest.is_file():
        problems.append(f"does not see the manifest {manifest}")
    elif file_sha256(manifest) != errand.manifest_sha256:
        problems.append(f"sees another manifest at {manifest}")
    offers = dask_worker.state.total_resources.get(RESOURCE, 0)
    return Sight(offers, tuple(problems), errand.ask() if offers >= 1 else {})


def run_share(errand: Errand, part: str) -> ShareEnd:
    """Run one share to its end; the task of a Dask future."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        """Whether nobody stopped the run, and its client is still there to take the result."""
        task = worker.state.tasks.get(key)
        return not was_stopped(errand.run) and task is not None and task.state == "executing"

    differences = tell_differences(errand.making, errand.ask())
    if differences:  # changed since it was looked at
        return ShareEnd(UNLIKE, "", "; ".join(differences))
    return watch_share(errand, part, is_wanted)


def watch_share(
    errand: Errand,
    part: str,
    is_wanted: Callable[[], bool],
    tell: Callable[[str], object] = lambda line: None,
    cores: Collection[int] = (),
) -> ShareEnd:
    """Run a share in a process of its own, and stop it when it is not wanted any more.

    Args:
        errand: The run.
        part: The share.
        is_wanted: Asked again and again.
        tell: Takes each line that the share says on standard error, from another thread.
        cores: Where it may run, for those systems that let it; empty is everywhere.
    """
    listens, holds = os.pipe()
    command, *others = errand.words
    words = [command, "--part", part, "--json", *others]
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD.format(sorted(cores)), *words],
            cwd=errand.folder,
            env={**os.environ, MANIFEST_VARIABLE: errand.manifest},
            stdin=listens,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            process_group=0,  # Ctrl-C is for the run, which tells its shares
        )
    except BaseException:
        os.close(holds)
        raise
    finally:
        os.close(listens)
    assert process.stdout is not None
    assert process.stderr is not None
    with os.fdopen(holds, "wb") as pipe, process, ThreadPoolExecutor(2) as readers:
        printed = readers.submit(process.stdout.read)
        told = readers.submit(_listen, process.stderr, tell)
        while True:
            try:
                process.wait(timeout=POLL_S)
                return ShareEnd(process.returncode, printed.result(), told.result())
            except subprocess.TimeoutExpired:
                if not is_wanted():
                    pipe.close()


def _listen(stream: IO[str], tell: Callable[[str], object]) -> str:
    """Pass lines on as they come; the end of them all."""
    told = ""
    for line in stream:
        tell(line.rstrip("\n"))
        told = (told + line)[-TOLD_CHARACTERS:]
    return told


def was_stopped(run: str) -> bool:
    """Whether the shares of a run were told to stop, in this process."""
    return run in _stopped


def stop_shares(run: str) -> None:
    """Tell the shares of a run in this worker to publish what is whole and end."""
    _stopped.add(run)


# --- in the process of a share -----------------------------------------------------------------


def end_with_input(cores: Collection[int] = ()) -> None:
    """Have this process end as after SIGTERM when its standard input closes.

    Args:
        cores: Where it, and what it starts, may run; empty is everywhere.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
