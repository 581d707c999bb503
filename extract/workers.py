"""Where clips are decoded: in this process, or in worker processes that can be killed.

Media are hostile and decoders are written in C: a file can make one hang, crash, or eat all memory.
A worker that does not come back in time is killed, one that dies costs the clip it was at, and the
others go on. Arrays come back through shared memory, not through a pipe.
"""

import contextlib
import fcntl
import functools
import mmap
import multiprocessing
import os
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool

from extract.backbones.base import Media
from micu.errors import ClipError, MicuError
from micu.manifest import Clip

Reader = Callable[[Clip], Media]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a clip was not decoded."""

    code: str
    message: str
    trace: str = ""
    """Of an error that nobody foresaw."""
    may_pass: bool = False
    """It may have been chance: the clip deserves another try."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one clip."""

    media: Media | Trouble
    read_s: float
    """How long it took, s."""


class Decoders(Protocol):
    """Something that decodes clips side by side."""

    def submit(self, clip: Clip) -> "Future[Outcome]":
        """Begin with a clip, now or when there is room."""
        ...

    def settle(self, future: "Future[Outcome]") -> Outcome:
        """The outcome of a future that is done.

        Raises:
            MicuError: A mistake of the whole run, not of the clip.
        """
        ...


def decode_clip(read: Reader, clip: Clip) -> Outcome:
    """Read a clip; whatever its media cause becomes a value.

    Raises:
        MicuError: A mistake of the whole run, not of the clip.
    """
    started = time.monotonic()
    try:
        media: Media | Trouble = read(clip)
    except ClipError as error:
        media = Trouble(error.code, " ".join(str(error).split()))
    except MicuError:
        raise
    except Exception as error:  # noqa: BLE001 - one clip must not end a run of days
        media = Trouble("unexpected", " ".join(repr(error).split()), traceback.format_exc())
    return Outcome(media, time.monotonic() - started)


# --- in this process ---------------------------------------------------------------------------


class _Threads:
    def __init__(self, read: Reader, workers: int) -> None:
        self._read = read
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def submit(self, clip: Clip) -> "Future[Outcome]":
        return self.pool.submit(decode_clip, self._read, clip)

    def settle(self, future: "Future[Outcome]") -> Outcome:
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


# --- in processes that can be killed -----------------------------------------------------------


@contextmanager
def decode_in_processes(read: Reader, workers: int, clip_timeout_s: float) -> Iterator[Decoders]:
    """Decode in worker processes.

    Args:
        read: Decodes one clip; sent to the workers, so that it can be pickled.
        workers: Processes.
        clip_timeout_s: A worker that takes longer over one clip is killed, s.
    """
    _remove_stale_blocks()
    # Children of a process with threads that is forked can hang; those of the server cannot.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["extract.decode"])
    pool = ProcessPool(workers, initializer=_start_worker, context=context)
    try:
        yield _Processes(pool, functools.partial(_decode_to_block, read), clip_timeout_s)
    finally:
        pool.stop()
        pool.join()
        _remove_stale_blocks(os.getpid())


class _Processes:
    def __init__(
        self, pool: ProcessPool, decode: "Callable[[Clip, int], Parcel]", clip_timeout_s: float
    ) -> None:
        self._pool = pool
        self._decode = decode
        self._clip_timeout_s = clip_timeout_s

    def submit(self, clip: Clip) -> "Future[Outcome]":
        future: Future[Any] = self._pool.schedule(
            self._decode, args=(clip, os.getpid()), timeout=self._clip_timeout_s
        )
        return future

    def settle(self, future: "Future[Any]") -> Outcome:
        try:
            parcel: Parcel = future.result()
        except TimeoutError:
            limit = f"decoding took longer than --clip-timeout {self._clip_timeout_s:g} s"
            return Outcome(Trouble("timeout", limit), self._clip_timeout_s)
        except ProcessExpired as error:
            return Outcome(Trouble("worker_died", _how_it_died(error), may_pass=True), 0.0)
        if parcel.fatal:
            raise MicuError(parcel.fatal)
        return parcel.open()


def _how_it_died(error: ProcessExpired) -> str:
    code = error.exitcode or 0
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"decoding this clip ended its worker process with {how}"


def _start_worker() -> None:
    """Make a worker leave signals to its parent, die with it, and yield to the network."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # The kernel tells of the parent's end, so that code that hangs in C need not listen.
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
    # A network's threads wait for each other: one that shares its core holds up all of them.
    os.nice(19)


@dataclass(frozen=True, slots=True)
class _Array:
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parcel:
    """An outcome on its way out of a worker; large arrays lie in a block of shared memory."""

    outcome: Outcome | None
    fatal: str = ""
    """Message of a mistake of the whole run."""
    block: str = ""
    """File of the block; empty if nothing is outside."""
    arrays: tuple[_Array, ...] = ()
    is_one: bool = False
    """Whether the units are one array, not a list of them."""

    def open(self) -> Outcome:
        """The outcome with its arrays, which map the block; its file goes at once."""
        assert self.outcome is not None
        if not self.block:
            return self.outcome
        path = Path(self.block)
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        path.unlink()
        arrays, start = [], 0
        for array in self.arrays:
            count = int(np.prod(array.shape))
            flat = np.frombuffer(memory, array.dtype, count, start)
            arrays.append(flat.reshape(array.shape))
            start += flat.nbytes
        assert isinstance(self.outcome.media, Media)
        units: Any = arrays[0] if self.is_one else arrays
        return replace(self.outcome, media=replace(self.outcome.media, units=units))


def _decode_to_block(read: Reader, clip: Clip, owner: int) -> Parcel:
    """Read a clip in a worker."""
    try:
        outcome = decode_clip(read, clip)
    except MicuError as error:
        return Parcel(None, fatal=str(error))
    if not isinstance(outcome.media, Media):
        return Parcel(outcome)
    units: Any = outcome.media.units
    is_one = isinstance(units, np.ndarray)
    arrays = [units] if is_one else [unit for unit in units if isinstance(unit, np.ndarray)]
    block = _write_block(arrays, owner) if arrays and len(arrays) in (1, len(units)) else ""
    if not block:
        return Parcel(outcome)
    described = tuple(_Array(array.dtype.str, array.shape) for array in arrays)
    bare = replace(outcome, media=replace(outcome.media, units=()))
    return Parcel(bare, block=block, arrays=described, is_one=is_one)


_BLOCK_PREFIX = "micu-block-"


def _blocks_folder() -> Path:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _write_block(arrays: Sequence[NDArray[Any]], owner: int) -> str:
    """Put arrays end to end into a file of shared memory; its name, or nothing if it is full."""
    size = sum(array.nbytes for array in arrays)
    if not size:
        return ""
    handle, name = tempfile.mkstemp(prefix=f"{_BLOCK_PREFIX}{owner}-", dir=_blocks_folder())
    try:
        # Without room of its own, the first write to a page that does not fit is a crash.
        os.posix_fallocate(handle, 0, size)
        with mmap.mmap(handle, size) as memory:
            start = 0
            for array in arrays:
                place = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
                place[...] = array
                start += array.nbytes
                del place
    except OSError:
        Path(name).unlink()
        return ""
    finally:
        os.close(handle)
    return name


def _remove_stale_blocks(owner: int | None = None) -> None:
    """Remove the blocks of runs that are dead, or those that `owner` has left."""
    for path in _blocks_folder().glob(f"{_BLOCK_PREFIX}*"):
        found = re.match(rf"{_BLOCK_PREFIX}(\d+)-", path.name)
        if found is None:
            continue
        process = int(found[1])
        if process == owner or (owner is None and not Path(f"/proc/{process}").exists()):
            with contextlib.suppress(OSError):
                path.unlink()
