"""Blocks of shared memory in which worker processes hand decoded arrays to their run.

Every run has a folder of its own among the machine's shared memory, and holds a lock on it as long
as it lives. The lock ends with the process, however that ends, so that the next run can tell what a
killed one has left, in other containers too, where processes cannot be seen but files can.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from micu.base.files import try_lock

PREFIX = "micu-blocks-"
"""How the names of the folders begin."""
_LOCK = ".lock"


def shared_memory() -> Path:
    """Where blocks lie: files in memory where the system has that, else temporary ones."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


@contextmanager
def block_folder() -> Iterator[Path]:
    """A folder for the blocks of one run, which goes with it; those of dead runs go first."""
    remove_abandoned()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=shared_memory()))
        lock = (folder / _LOCK).open("wb")
        # Between the two lines, another run may have taken the folder for abandoned.
        if try_lock(lock) is None or (folder / _LOCK).exists():
            break
        lock.close()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def remove_abandoned() -> None:
    """Remove the folders of runs that are dead."""
    for folder in shared_memory().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open("ab") as lock:
                if try_lock(lock):
                    shutil.rmtree(folder, ignore_errors=True)


def write_block(arrays: Sequence[NDArray[Any]], folder: Path) -> str:
    """Put arrays end to end into a file of shared memory.

    Args:
        arrays: Of any shapes and types.
        folder: From `block_folder`.

    Returns:
        The file's name; nothing if there is nothing to write, or no room.
    """
    size = sum(array.nbytes for array in arrays)
    if not size or not hasattr(os, "posix_fallocate"):  # the latter: not Linux
        return ""
    handle, name = tempfile.mkstemp(dir=folder)
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
