"""How long workers have been at their clips, without what the machine kept them from.

Decoding time is what a limit is about. The seconds in which a run is stopped (`kill -STOP`, a
suspended job, a laptop that sleeps), a step of the clock and the wait for a core on a busy machine
are none; those in which a decoder sleeps and does not come back are.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TICKS = 100
"""A limit is looked at so often before it is over."""
TICK_S = (0.05, 1.0)
"""The shortest and the longest time between two looks, s."""
_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0
LATE = 3
"""A look that comes after more ticks than this comes from a run that stood still."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has had of the machine so far."""

    cpu_s: float
    """Time on a core, of all its threads, s."""
    waited_s: float | None
    """Time in which threads were ready and had no core, of all of them, s; None: nobody counts."""
    is_ready: bool
    """Whether a thread is on a core or waits for one; else all of them sleep."""
    is_stopped: bool
    """By a signal, or by a debugger."""


@dataclass(slots=True)
class Effort:
    """What a process has spent on one thing."""

    usage: Usage | None = None
    """When it was looked at last; None where the system does not say."""
    passed_s: float = 0.0
    """In which it was not stopped, s."""
    waited_s: float = 0.0
    """Of these, without a core, as far as is known, s; of all its threads."""
    cpu_s: float = 0.0
    """Of these, on a core, s; threads side by side count once."""

    def add_(self, passed_s: float, now: Usage | None) -> None:
        """Take note of what a process has become after some more time.

        Args:
            passed_s: Since it was looked at last, s.
            now: The process; None where the system does not say.
        """
        before, self.usage = self.usage, now
        if now is not None and now.is_stopped:
            return
        self.passed_s += passed_s
        if before is None or now is None:
            return
        cpu_s = min(passed_s, max(0.0, now.cpu_s - before.cpu_s))
        self.cpu_s += cpu_s
        if now.waited_s is not None and before.waited_s is not None:
            self.waited_s += max(0.0, now.waited_s - before.waited_s)
        elif now.is_ready:
            self.waited_s += passed_s - cpu_s

    @property
    def spent_s(self) -> float:
        """Time at work, or asleep on its own account, s.

        Never less than the time on a core: threads that wait for one another's core, as those of a
        decoder that spins, go on as one. Linux counts a wait when it is over, so that of a process
        that is ready nothing else is known.
        """
        if self.usage is not None and self.usage.is_ready:
            return self.cpu_s
        return max(self.cpu_s, self.passed_s - self.waited_s)


# --- what the system says ----------------------------------------------------------------------


def usage_of(processes: Iterable[int]) -> Mapping[int, Usage]:
    """What the system says about processes; those that it says nothing about are left out."""
    wanted = tuple(processes)
    if Path("/proc/self/task").is_dir():
        found = {process: read_usage(Path("/proc") / str(process)) for process in wanted}
        return {process: usage for process, usage in found.items() if usage is not None}
    return ask_ps(wanted)


def read_usage(folder: Path) -> Usage | None:
    """What Linux says about a process.

    Args:
        folder: Of the process, `/proc/ID`.
    """
    cpu_s = waited_s = 0.0
    states: set[str] = set()
    counts = True
    try:
        threads = list((folder / "task").iterdir())
    except OSError:
        return None
    for thread in threads:
        try:
            fields = (thread / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        try:
            ran_ns, thread_waited_ns, _ = map(int, (thread / "schedstat").read_text().split())
        except (OSError, ValueError):  # a kernel that does not count
            counts = False
            ran_ns, thread_waited_ns = (int(fields[11]) + int(fields[12])) * _TICK_NS, 0
        states.add(fields[0])
        cpu_s += ran_ns / 1e9
        waited_s += thread_waited_ns / 1e9
    if not states:
        return None
    is_stopped = states <= {"T", "t"}
    return Usage(cpu_s, waited_s if counts else None, "R" in states, is_stopped)


def ask_ps(processes: Iterable[int]) -> Mapping[int, Usage]:
    """What `ps` says about processes, where there is no `/proc`."""
    names = ",".join(map(str, processes))
    command = ["ps", "-o", "pid=,state=,time=", "-p", names]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10.0).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for words in map(str.split, said.splitlines()):
        if len(words) == 3 and words[0].isdecimal():
            state = words[1][0]
            found[int(words[0])] = Usage(parse_time(words[2]), None, state == "R", state == "T")
    return found


def parse_time(text: str) -> float:
    """Seconds of a time as `ps` writes it: `[[days-]hours:]minutes:seconds`; 0 if it is none."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [int(days or 0), *(float(part) for part in clock.split(":"))]
    except ValueError:
        return 0.0
    seconds = 0.0
    for part, unit in zip(reversed(parts[1:]), (1, 60, 3600), strict=False):
        seconds += part * unit
    return parts[0] * 86400 + seconds


# --- watching ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Clip:
    """A clip that a worker may be at."""

    future: "Future[Any]"
    process: int = 0
    """That is at it; 0 before one is, and after it was."""
    effort: Effort = field(default_factory=Effort)


@dataclass(slots=True)
class Watch:
    """Cancels what takes its worker longer than the limit; see `start`."""

    reports: Connection
    """Where workers say (number of the clip, their process) when they begin with one, and (number
    of the clip, 0) when they have decoded it."""
    limit_s: float
    measure: Callable[[Iterable[int]], Mapping[int, Usage]] = usage_of
    _clips: dict[int, _Clip] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def tick_s(self) -> float:
        """Time between two looks, s."""
        return min(max(self.limit_s / TICKS, TICK_S[0]), TICK_S[1])

    def add(self, number: int, future: "Future[Any]") -> None:
        """Watch over a clip from the moment a worker begins with it until its future is done."""
        with self._lock:
            self._clips[number] = _Clip(future)

    def start(self) -> None:
        """Watch in a thread, until `stop`."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._is_over.wait(self.tick_s):
            now = time.monotonic()
            self.look(now - looked)
            looked = now

    def look(self, passed_s: float) -> None:
        """Take note of what has happened since the last look, and cancel what is overdue.

        Args:
            passed_s: Since then, s. More than a few ticks is a run that stood still.
        """
        passed_s = passed_s if passed_s <= LATE * self.tick_s else self.tick_s
        with self._lock:
            self._clips = {n: clip for n, clip in self._clips.items() if not clip.future.done()}
            clips = dict(self._clips)
        begun = {n: clip for n, clip in clips.items() if clip.process}
        usage = self.measure({clip.process for clip in begun.values()}) if begun else {}
        for clip in begun.values():
            clip.effort.add_(passed_s, usage.get(clip.process))
            if clip.effort.spent_s > self.limit_s:
                clip.future.cancel()
        self._hear(clips)

    def _hear(self, clips: Mapping[int, _Clip]) -> None:
        """Take note of who begins and ends with what; time counts from the next look on."""
        while self.reports.poll():
            number, process = self.reports.recv()
            if number in clips:
                clips[number].process = process
                if process:
                    clips[number].effort.usage = self.measure([process]).get(process)
