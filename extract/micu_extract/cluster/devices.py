"""An extraction on several devices of one machine: `micu-extract … --devices all|0,1,3|cpu:2`.

A device has a process of its own for the whole run, which is handed one share of the shards after
the other, and is looked after as a worker of a Dask cluster is: see
`micu_extract.cluster.dask.dispatch`. What is decoded ahead is decoded by all of them together:
`--workers` is of the machine, and shared out.
"""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from micu.base.command_line import drop_options
from micu_extract.cluster.dask.engine import extract_shared
from micu_extract.cluster.dask.worker import (
    Errand,
    ShareEnd,
    ShareProcess,
    Sight,
    look_around,
    stop_shares,
    was_stopped,
)
from micu_extract.pipeline.failures import Limit
from micu_extract.pipeline.plan import Job, Plan
from micu_extract.pipeline.progress import DevicesLine
from micu_extract.pipeline.writer import Summary


def extract_on_devices(
    devices: Sequence[str],
    workers: int,
    job: Job,
    plans: Sequence[Plan],
    max_failures: Limit | None = None,
) -> list[Summary]:
    """Make feature sets of one manifest on devices of this machine; see `extract_shared`.

    Args:
        devices: As `--device` takes them; `cpu` as often as there are to be processes.
        workers: Decoding processes of all devices together; each has one at least.
        job: What was asked for.
        plans: Of the sets.
        max_failures: As of `extract_shared`.
    """
    machine = _Machine(devices, workers)
    return extract_shared(machine, "--devices", job, plans, max_failures)


class _Machine:
    """What a Dask client is for `Dispatcher`, with devices of this machine for workers."""

    def __init__(self, devices: Sequence[str], workers: int) -> None:
        cpus = devices.count("cpu")
        self._devices = {
            device if cpus < 2 else f"{device} {number}": device
            for number, device in enumerate(devices, 1)
        }
        self._workers = max(1, workers // len(devices))
        self._cores = _share_cores(cpus)
        self._threads = ThreadPoolExecutor(len(devices), thread_name_prefix="share")
        self._processes: dict[str, ShareProcess] = {}
        self._line = DevicesLine(self._devices)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown()
        for process in self._processes.values():
            process.close()
        self._line.close()

    def nthreads(self, **options: object) -> dict[str, int]:
        """Names of the devices."""
        return dict.fromkeys(self._devices, 1)

    def run(
        self, do: Callable[..., Any], what: Any, *, workers: Sequence[str], **options: object
    ) -> dict[str, Any]:
        """Look around for every device, or stop their shares."""
        if do is look_around:  # what is here is seen from here
            return {name: Sight(1, (), what.making) for name in workers}
        stop_shares(what)
        return {}

    def submit(
        self,
        do: Callable[..., Any],
        errand: Errand,
        part: str,
        *,
        workers: Sequence[str],
        **options: object,
    ) -> "Future[ShareEnd]":
        """Begin a share on a device."""
        (name,) = workers
        return self._threads.submit(self._run, name, errand, part)

    def _run(self, name: str, errand: Errand, part: str) -> ShareEnd:
        """Have the process of a device make a share; it is started if there is none."""
        command, *words = drop_options(errand.words, ("--device", "--workers"))
        words += ["--device", self._devices[name]]
        words += [] if command == "text" else ["--workers", str(self._workers)]
        errand = replace(errand, words=(command, *words))
        process = self._processes.get(name)
        if process is not None and process.words != errand.words:
            process.close()
            process = None
        if process is None:
            cores = self._cores[list(self._devices).index(name)] if self._cores else ()
            process = ShareProcess(errand, lambda line: self._line.show(name, line), cores)
            self._processes[name] = process
        end = process.run(part, lambda: not was_stopped(errand.run))
        if end.code:
            self._processes.pop(name).close()
        return end


def _share_cores(processes: int) -> list[Collection[int]]:
    """The cores of each process of the CPU, so that their threads are not in each other's way.

    Empty where the system does not confine processes, or there is one.
    """
    if processes < 2 or not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // processes)
    return [
        [cores[(number * each + i) % len(cores)] for i in range(each)]
        for number in range(processes)
    ]
