"""Where clips are decoded: in this process, or in worker processes that can be killed.

Media are hostile and decoders are written in C: a file can make one hang, crash, or eat all memory.
A worker that does not come back in time is killed, one that dies costs the clip it was at, and the
others go on. Arrays come back through shared memory, not through a pipe.
"""

import functools
import itertools
import mmap
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool

from micu.base.errors import ClipError, ConfigError, DecodeError, DeviceError, MicuError, StoreError
from micu.base.files import hold_folders
from micu.base.process import known_signals
from micu.store.manifest import Clip
from micu_extract.backbones.base import Media
from micu_extract.media.blocks import block_folder, write_block
from micu_extract.media.script import check_script, leave_import
from micu_extract.media.source import IO_ERROR
from micu_extract.media.watch import Watch

Reader = Callable[[Clip, Sequence[str]], Mapping[str, Media | DecodeError]]
"""Decodes a clip for the backbones of those names."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a clip was not decoded."""

    code: str
    message: str
    trace: str = ""
    """Of an error that nobody foresaw."""
    may_pass: bool = False
    """It may have been chance: the clip deserves another try."""
    wait_s: float = 0.0
    """How long to wait before that, s."""
    is_guilty: bool = True
    """Whether it may be the clip's fault, so that it is tried a limited number of times."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one clip."""

    media: Mapping[str, Media | Trouble]
    """By the name of the backbone that it is for."""
    read_s: float
    """How long it took, s."""


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


def decode_clip(read: Reader, clip: Clip, names: Sequence[str]) -> Outcome:
    """Read a clip; whatever its media cause becomes a value.

    Raises:
        MicuError: A mistake of the whole run, not of the clip.
        OSError: The disk refused what a reader keeps, such as computed flow.
    """
    started = time.monotonic()
    media: dict[str, Media | Trouble]
    try:
        media = {
            name: _trouble(found) if isinstance(found, ClipError) else found
            for name, found in read(clip, names).items()
        }
    except ClipError as error:
        media = dict.fromkeys(names, _trouble(error))
    except StoreError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        # Only now: readers take an error of the system for one of the media.
        raise OSError(str(error)) from error
    except MicuError:
        raise
    except Exception as error:  # one clip must not end a run of days
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
            raise DeviceError(
                f"the device has no memory left to compute flow ({error}); {_LESS}"
            ) from error
        told = Trouble("unexpected", " ".join(repr(error).split()), traceback.format_exc())
        media = dict.fromkeys(names, told)
    return Outcome(media, time.monotonic() - started)


IO_WAIT_S = 2.0
"""How long a file system that did not answer is left alone, s."""
_LESS = "type fewer --workers, or --device cpu"


def _trouble(error: ClipError) -> Trouble:
    may_pass = error.code == IO_ERROR
    wait_s = IO_WAIT_S if may_pass else 0.0
    return Trouble(error.code, " ".join(str(error).split()), may_pass=may_pass, wait_s=wait_s)


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
        decode: "Callable[..., Parcel]",
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


def _begin(read: Reader, blocks: Path, number: int, clip: Clip, names: Sequence[str]) -> "Parcel":
    """Read a clip in a worker, and say when that begins and ends."""
    assert _reports is not None
    _reports.send((number, os.getpid()))
    try:
        return _decode_to_block(read, blocks, clip, names)
    finally:  # while a worker that hangs is killed, the others wait to hand over what they have
        _reports.send((number, 0))


@dataclass(frozen=True, slots=True)
class _Arrays:
    """The units of one `Media`, which lie in a block."""

    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    is_one: bool
    """Whether they are one array, not a list."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """An outcome on its way out of a worker; large arrays lie in a block of shared memory."""

    outcome: Outcome | None
    fatal: str = ""
    """Message of a mistake of the whole run."""
    block: str = ""
    """File of the block; empty if nothing is outside."""
    arrays: Mapping[str, _Arrays] = field(default_factory=dict)
    """By name, in the order of the block."""

    def open(self) -> Outcome:
        """The outcome with its arrays, which map the block; its file goes at once."""
        assert self.outcome is not None
        if not self.block:
            return self.outcome
        path = Path(self.block)
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        path.unlink()
        media, start = dict(self.outcome.media), 0
        for name, described in self.arrays.items():
            units: list[NDArray[Any]] = []
            for shape in described.shapes:
                flat = np.frombuffer(memory, described.dtype, int(np.prod(shape)), start)
                units.append(flat.reshape(shape))
                start += flat.nbytes
            bare = media[name]
            assert isinstance(bare, Media)
            media[name] = replace(bare, units=units[0] if described.is_one else units)
        return replace(self.outcome, media=media)


def _decode_to_block(read: Reader, blocks: Path, clip: Clip, names: Sequence[str]) -> Parcel:
    """Read a clip in a worker."""
    try:
        outcome = decode_clip(read, clip, names)
    except DeviceError:
        raise
    except MicuError as error:
        return Parcel(None, fatal=str(error))
    media = dict(outcome.media)
    arrays: list[NDArray[Any]] = []
    described: dict[str, _Arrays] = {}
    for name, found in outcome.media.items():
        units: Any = found.units if isinstance(found, Media) else ()
        is_one = isinstance(units, np.ndarray)
        parts = [units] if is_one else list(units)
        if isinstance(found, Media) and parts and isinstance(parts[0], np.ndarray):
            arrays += parts
            shapes = tuple(part.shape for part in parts)
            described[name] = _Arrays(parts[0].dtype.str, shapes, is_one)
            media[name] = replace(found, units=())
    block = write_block(arrays, blocks)
    if not block:
        return Parcel(outcome)
    return Parcel(replace(outcome, media=media), block=block, arrays=described)
