"""What a Dask worker does for `micu-extract --dask`: look around, run a share, stop.

A device of `--devices` has its shares run and watched by the same code.

A share is a run of shards. It is made by the typed command with `--part -`, in a process of its
own: what ends that process does not end the Dask worker; it may start decoding processes, which
Dask's daemonic workers may not; and its bytes are those of any other run. It is told the share
through a pipe that the worker holds: when that closes, on purpose or because the worker has died,
it publishes what is whole and ends. A device's process is told one share after the other.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from micu.base.files import file_sha256
from micu.store.source import MANIFEST_VARIABLE
from micu_extract.cluster.dask.making import ask_for_making, tell_differences
from micu_extract.sets.shares import Part, parse_part

RESOURCE = "GPU"
"""What a worker has to offer one of, so as to be given a share."""
POLL_S = 0.5
"""How often a share at work looks whether it is still wanted, s."""
IDLE_S = 2.0
"""After which a process that was handed no further share lets its decoders go, s."""
GRACE_S = 120.0
"""How long a share that was told to stop may take to publish what is whole, s."""
UNLIKE = 1000
"""In place of the exit code of a share that was not begun: the machine has another micu by now."""
TOLD_CHARACTERS = 4000
"""Of what a share said, its end is kept."""

_CHILD = (
    "from micu_extract.cluster.dask.worker import confine; confine({}); "
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
    process = ShareProcess(errand)
    try:
        return process.run(part, is_wanted)
    finally:
        process.close()


class ShareProcess:
    """`micu-extract` in a process of its own, which makes the shares that it is handed, in turn.

    Args:
        errand: The run.
        tell: Takes each line that it says on standard error, from another thread.
        cores: Where it may run, for those systems that let it; empty is everywhere.
    """

    def __init__(  # noqa: D107
        self,
        errand: Errand,
        tell: Callable[[str], object] = lambda line: None,
        cores: Collection[int] = (),
    ) -> None:
        command, *others = errand.words
        words = [command, "--part", "-", "--json", *others]
        self.words = errand.words
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD.format(sorted(cores)), *words],
            cwd=errand.folder,
            env={**os.environ, MANIFEST_VARIABLE: errand.manifest},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            errors="backslashreplace",
            process_group=0,  # Ctrl-C is for the run, which tells its shares
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._readers = ThreadPoolExecutor(2)
        self._told = ""
        self._listening = self._readers.submit(self._listen, self._process.stderr, tell)

    def run(self, part: str, is_wanted: Callable[[], bool]) -> ShareEnd:
        """Have a share made; a process that ends over it makes no other.

        Args:
            part: The share.
            is_wanted: Asked again and again; the process is told to end when it is not.
        """
        with suppress(OSError):  # it has ended, which is seen below
            self._input.write(f"{part}\n")
        report = self._readers.submit(self._output.readline)
        while not wait([report], POLL_S).done:
            if not is_wanted():
                self._stop()
        if line := report.result():
            return ShareEnd(0, line, self._told)
        code = self._process.wait()
        self._listening.result()
        return ShareEnd(code, "", self._told)

    def close(self) -> None:
        """Have it end, and wait for that."""
        self._stop()
        self._process.wait()
        self._readers.shutdown()
        self._output.close()

    def _stop(self) -> None:
        with suppress(OSError):  # it has ended
            self._input.close()

    def _listen(self, stream: IO[str], tell: Callable[[str], object]) -> None:
        """Pass lines on as they come, and keep the end of them all."""
        with stream:
            for line in stream:
                tell(line.rstrip("\n"))
                self._told = (self._told + line)[-TOLD_CHARACTERS:]


def was_stopped(run: str) -> bool:
    """Whether the shares of a run were told to stop, in this process."""
    return run in _stopped


def stop_shares(run: str) -> None:
    """Tell the shares of a run in this worker to publish what is whole and end."""
    _stopped.add(run)


# --- in the process of a share -----------------------------------------------------------------


def confine(cores: Collection[int]) -> None:
    """Say where this process, and what it starts, may run; empty is everywhere."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def parts_of_input() -> Iterator[Part | None]:
    """Parts from standard input, a line each; None where none came for `IDLE_S`.

    The end of the input ends this process: as SIGTERM does if it is at a part.
    """
    lines: SimpleQueue[str] = SimpleQueue()
    is_at_work = threading.Event()
    threading.Thread(target=_read_input, args=(lines, is_at_work), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=IDLE_S)
        except Empty:
            yield None
            continue
        if not line:
            return
        is_at_work.set()
        yield parse_part(line)
        is_at_work.clear()


def _read_input(lines: "SimpleQueue[str]", is_at_work: threading.Event) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put("")
    if is_at_work.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)
