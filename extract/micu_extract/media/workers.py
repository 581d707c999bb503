"""Where clips are decoded: in this process, or in worker processes that can be killed.

Media are hostile and decoders are written in C: a file can make one hang, crash, or eat all memory.
A worker that does not come back in time is killed, one that dies costs the clip it was at, and the
others go on. Arrays come back through shared memory, not through a pipe.
"""

import functools
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver, resource_tracker, spawn
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol

import click
from pebble import ProcessExpired, ProcessPool

from micu.base.errors import ConfigError, MicuError
from micu.base.files import hold_folders
from micu.base.process import EXIT_USAGE, known_signals
from micu.store.manifest import Clip
from micu_extract.media.decoding import (
    Outcome,
    Parcel,
    Reader,
    Trouble,
    block_folder,
    decode_clip,
    decode_to_block,
)
from micu_extract.media.watch import Watch


class Decoders(Protocol):
    """Something that decodes clips side by side."""

    def submit(self, clip: Clip, names: Sequence[str]) -> "Future[Outcome]":
        """Begin with a clip, for the backbones of those names, now or when there is room."""
        ...

    def settle(self, future: "Future[Outcome]", names: Sequence[str]) -> Outcome:
        """The outcome of a future that is done.

        Raises:
            MicuError: A mistake of the whole run, not of the clip.
            OSError: The disk refused what a reader keeps.
        """
        ...


# --- in this process ---------------------------------------------------------------------------


class _Threads:
    def __init__(self, read: Reader, workers: int) -> None:
        self._read = read
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def submit(self, clip: Clip, names: Sequence[str]) -> "Future[Outcome]":
        return self.pool.submit(decode_clip, self._read, clip, names)

    def settle(self, future: "Future[Outcome]", names: Sequence[str]) -> Outcome:
        return future.result()


@contextmanager
def decode_in_threads(read: Reader, workers: int) -> Iterator[Decoders]:
    """Decode in threads of this process: for sentences, and for tests.

    Args:
        read: Decodes one clip.
        workers: Clips at the same time.
    """
    threads = _Threads(read, workers)
    try:
        yield threads
    finally:
        threads.pool.shutdown(wait=False, cancel_futures=True)


def check_system() -> None:
    """Refuse a system on which workers cannot be started and killed.

    Raises:
        ConfigError: It is Windows.
    """
    try:
        import fcntl  # noqa: F401
        import resource  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"extraction: expected Linux or macOS, got a system without the module {error.name}; "
            "extract on one of them (WSL counts as Linux): features are read, trained on and "
            "evaluated everywhere"
        ) from error


# --- scripts that start an extraction ----------------------------------------------------------


def leave_import() -> None:
    """End this process, without a word, if it is a worker that imports the script of the run."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(EXIT_USAGE)


def check_script(context: BaseContext) -> None:
    """End the run with a sentence and exit code 2 if workers cannot import the script that runs.

    One that starts the extraction while it is imported would start it again in every worker.

    Args:
        context: What starts the workers.
    """
    data = spawn.get_preparation_data("")
    main = data.get("init_main_from_path") or data.get("init_main_from_name")
    if main is None:
        return
    if "init_main_from_path" in data and not Path(main).exists():
        click.echo(
            f"error: {main}: expected an extraction that is started from a file, which every "
            "worker process imports, got a script that is none; save it as a file, and type: "
            "python FILE",
            err=True,
        )
        sys.exit(EXIT_USAGE)
    # Only an import tells for certain: there are many ways to write a guard.
    trial = context.Process(target=_nothing)  # type: ignore[attr-defined]
    trial.start()
    trial.join()
    if trial.exitcode == EXIT_USAGE:
        click.echo(
            f"error: {main}: expected the extraction to start under if __name__ == '__main__', "
            "got it while the script is imported, which every worker process does; write: "
            "if __name__ == '__main__': and indent what starts it",
            err=True,
        )
        sys.exit(EXIT_USAGE)


def _nothing() -> None:
    """What a trial does once it has imported the script."""


# --- in processes that can be killed -----------------------------------------------------------


@contextmanager
def decode_in_processes(
    read: Reader, workers: int, clip_timeout_s: float, worker_bytes: int | None = None
) -> Iterator[Decoders]:
    """Decode in worker processes.

    Args:
        read: Decodes one clip; sent to the workers, so that it can be pickled.
        workers: Processes.
        clip_timeout_s: A worker that decodes one clip for longer is killed, s; see
            `micu_extract.media.watch`.
        worker_bytes: Memory that a worker may take beside libraries and shared blocks; None is
            what there is.
    """
    check_system()
    leave_import()
    # Children of a process with threads that is forked can hang; those of the server cannot.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["micu_extract.media.worker_server"])
    _start_servers()
    check_script(context)

    reader, writer = context.Pipe(duplex=False)

    def build_pool() -> ProcessPool:
        return ProcessPool(
            workers, initializer=_start_worker, initargs=(worker_bytes, writer), context=context
        )

    with block_folder() as blocks, reader, writer:
        decode = functools.partial(_begin, read, blocks)
        processes = _Processes(build_pool, decode, Watch(reader, clip_timeout_s))
        try:
            yield processes
        finally:
            processes.close()


_TO_THE_RUN = known_signals("SIGUSR1", "SIGHUP")
"""Signals to stop that pebble leaves to us, and that are for the run alone."""


def _start_servers() -> None:
    """Start what workers are forked from, and what clears up after it, deaf to a signal to stop.

    Schedulers send it to all processes of a run, which then stops by itself. Blocked signals are
    inherited; one that comes meanwhile is not lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_THE_RUN)
    try:
        resource_tracker.ensure_running()
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


BROKEN_POOLS = 3
"""Pools one after another that break before a clip is decoded: no worker can start."""


class _Processes:
    """A pool of workers, and another one when it breaks.

    Pebble survives a worker that dies at its clip, but not one that dies while all are idle.
    """

    def __init__(
        self,
        build_pool: Callable[[], ProcessPool],
        decode: Callable[..., Parcel],
        watch: Watch,
    ) -> None:
        self._build_pool = build_pool
        self._pool = build_pool()
        self._decode = decode
        self._watch = watch
        self._pools: dict[Future[Any], ProcessPool] = {}
        self._numbers = itertools.count()
        self._broken = 0
        watch.start()

    def submit(self, clip: Clip, names: Sequence[str]) -> "Future[Outcome]":
        number = next(self._numbers)
        try:
            if not self._pool.active:
                self._renew(self._pool)
            # Without pebble's own limit, which is one of the wall clock.
            future: Future[Any] = self._pool.schedule(self._decode, args=(number, clip, names))
        except BrokenProcessPool as error:
            raise MicuError(
                "decoding: expected worker processes, got a system that starts no more of them "
                f"({error.__cause__!r}); type fewer --workers, or first: ulimit -n 1024"
            ) from error
        self._watch.add(number, future)
        self._pools[future] = self._pool
        return future

    def settle(self, future: "Future[Any]", names: Sequence[str]) -> Outcome:
        pool = self._pools.pop(future)
        try:
            parcel: Parcel = future.result()
        except CancelledError:
            limit_s = self._watch.limit_s
            limit = f"decoding took longer than --clip-timeout {limit_s:g} s"
            return Outcome(dict.fromkeys(names, Trouble("timeout", limit)), limit_s)
        except ProcessExpired as error:
            died = Trouble("worker_died", _how_it_died(error), may_pass=True)
            return Outcome(dict.fromkeys(names, died), 0.0)
        except BrokenProcessPool:
            if pool is self._pool:
                self._renew(pool)
            # Which clip it was at, if any, is not known; `_renew` ends what goes on for ever.
            told = "a worker process ended before its clip was known"
            died = Trouble("worker_died", told, may_pass=True, is_guilty=False)
            return Outcome(dict.fromkeys(names, died), 0.0)
        self._broken = 0
        if parcel.fatal:
            raise MicuError(parcel.fatal)
        return parcel.open()

    def _renew(self, pool: ProcessPool) -> None:
        """Take another pool in place of one that is broken."""
        _end(pool)
        self._broken += 1
        if self._broken >= BROKEN_POOLS:
            raise MicuError(
                f"decoding: expected worker processes, got {self._broken} times none that lived "
                "until it had a clip; is there memory for --workers?"
            )
        self._pool = self._build_pool()

    def close(self) -> None:
        """End the workers, whatever they are at."""
        self._watch.stop()
        _end(self._pool)


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _how_it_died(error: ProcessExpired) -> str:
    code = error.exitcode or 0
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"decoding this clip ended its worker process with {how}"


NICENESS = 10
"""A network's threads wait for each other: one that shares its core holds up all of them. But
strangers at work on the machine must leave a worker more than the hundredth that 19 would get."""
_reports: Connection | None = None
"""Where a worker says with which clip it begins."""


def _start_worker(most_bytes: int | None, reports: Connection) -> None:
    """Make a worker leave signals to its parent, die with it, and yield to the network."""
    global _reports
    _reports = reports
    import fcntl
    import resource

    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    # Read by torch when flow is computed with it: the workers themselves are the threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    for number in (signal.SIGINT, *_TO_THE_RUN):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # The kernel tells of the parent's end, so that code that hangs in C need not listen.
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        if not parent.is_alive():  # it ended before, of which the kernel tells no more
            os._exit(1)
    os.nice(NICENESS)
    _for_life.enter_context(hold_folders())  # the flow cache


_for_life = ExitStack()
"""What a worker keeps to its end."""


def _begin(read: Reader, blocks: Path, number: int, clip: Clip, names: Sequence[str]) -> Parcel:
    """Read a clip in a worker, and say when that begins and ends."""
    assert _reports is not None
    _reports.send((number, os.getpid()))
    try:
        return decode_to_block(read, blocks, clip, names)
    finally:  # while a worker that hangs is killed, the others wait to hand over what they have
        _reports.send((number, 0))
