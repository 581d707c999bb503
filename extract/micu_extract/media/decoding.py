"""What decoding one clip gives, in whatever process, and how that comes back to the run.

Arrays come back through blocks of shared memory, not through a pipe. Every run has a folder of its
own for them, and holds a lock on it as long as it lives. The lock ends with the process, however
that ends, so that the next run can tell what a killed one has left, in other containers too, where
processes cannot be seen but files can.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ClipError, DecodeError, DeviceError, MicuError, StoreError
from micu.base.files import try_lock
from micu.store.manifest import Clip
from micu_extract.backbones.base import Media
from micu_extract.media.media_file import IO_ERROR

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


# --- blocks of shared memory --------------------------------------------------------------------

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


# --- on the way out of a worker -----------------------------------------------------------------


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


def decode_to_block(read: Reader, blocks: Path, clip: Clip, names: Sequence[str]) -> Parcel:
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
