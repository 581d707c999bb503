"""Writing a file so that its final name never holds half of it, hashing one, locking a folder.

File systems of clusters fail now and then for a moment; what is written here is tried three times.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import lock_descriptor

from micu.base.errors import ConfigError

TEMPORARY_SUFFIX = ".partial"
LOCK = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without locks answer."""
_MOVES_OPEN = sys.platform != "win32"
"""Whether a file that is open can be renamed and removed. Where not, its being open protects it."""
_MAY_PASS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""What network file systems answer while a server is away."""
SHOWN_NAME = 40
"""Characters of a file's name in that of its temporary file."""
WAITS_S = (0.5, 2.0)
"""Before the second and the third try, s."""

logger = logging.getLogger(__name__)


# --- folders that are written into ------------------------------------------------------------

_held: list[dict[Path, tuple[int, int, int]]] = []
"""Device and number of each folder that was written into, and a handle or -1; while it is held."""


@contextmanager
def hold_folders() -> Iterator[None]:
    """While the block runs, make no folder again that was written into, and write to no other.

    A run whose folder is deleted, renamed or replaced then ends with the error of `check_held`,
    where it would make the folder anew with the half of its files that was still to come.
    """
    if _held:  # the outer block has more to lose
        yield
        return
    _held.append({})
    try:
        yield
    finally:
        for *_, handle in _held.pop().values():
            if handle >= 0:
                os.close(handle)


def hold_folder(folder: Path, *, make: bool = True) -> None:
    """Hold a folder until the end of `hold_folders`; without such a block it is made at most.

    Args:
        folder: Whose place nothing else may take.
        make: Make it if it is not there; else the nearest of its parents is held that is.

    Raises:
        ConfigError: A link on the way to it leads nowhere.
        OSError: It cannot be made, or is not what was held before.
    """
    check_held(folder)
    if make:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # it says that a link to nothing exists
            refuse_lost_link(folder)
            raise
    place = folder.absolute()
    place = next(parent for parent in (place, *place.parents) if parent.is_dir())
    if _held and place not in _held[0]:
        # Open: the number of a folder that is deleted is given to the next one that is made.
        handle = -1
        with contextlib.suppress(OSError):  # Windows opens no folder
            handle = os.open(place, os.O_RDONLY)
        status = place.stat() if handle < 0 else os.fstat(handle)
        _held[0][place] = (status.st_dev, status.st_ino, handle)


def refuse_lost_link(path: Path, *, may_be_made: bool = False) -> None:
    """Refuse a place that is a link that leads nowhere, or lies behind one.

    Args:
        path: Need not be there.
        may_be_made: Take a link to a file that is not there yet, if its folder is.

    Raises:
        ConfigError: There is such a link.
    """
    place = path.absolute()
    for link in (*reversed(place.parents), place):
        if not link.is_symlink() or link.exists():
            continue
        target = Path(os.path.realpath(link))
        leads_on = not os.path.lexists(target)  # else round to itself
        if may_be_made and link == place and leads_on and target.parent.is_dir():
            return
        told = f"to {target}, which is not there" if leads_on else "that leads to itself"
        raise ConfigError(
            f"{link}: expected a file or a folder, got a link {told}; make what it leads to, mend "
            "or remove the link, or name another place"
        )


def check_held(path: Path) -> None:
    """Refuse to go on where a folder that is held, and that `path` is or lies in, is not there.

    Raises:
        OSError: It was deleted, renamed or replaced.
    """
    place = path.absolute()
    for held, (device, number, _) in list(_held[0].items()) if _held else ():
        if held != place and held not in place.parents:
            continue
        try:
            status = held.stat()
        except (FileNotFoundError, NotADirectoryError):
            status = None
        if status is None or (status.st_dev, status.st_ino) != (device, number):
            raise OSError(
                f"{held}: the folder was deleted, renamed or replaced while it was written to; "
                "nothing was made in its place. Put it back, or begin anew in another folder"
            )


# --- writing -----------------------------------------------------------------------------------


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` under `path`, whole or not at all, and durable when this returns.

    Written to a unique temporary name in the same folder, flushed to disk, renamed over `path`,
    and the folder flushed as well. Two writers never meet: the last rename wins whole.

    Raises:
        OSError: The disk refused, three times where it may pass; no temporary file is left behind.
    """
    _try_again(lambda: _write_once(path, data), path)


def append_durably(path: Path, data: bytes) -> None:
    """Add `data` at the end of a file, made if need be, so that it is durable when this returns.

    What a write that failed has left of `data` is cut off again. For one writer at a time.

    Raises:
        OSError: The disk refused, three times where it may pass.
    """
    check_held(path)
    size = path.stat().st_size if path.is_file() else 0
    _try_again(lambda: _append_once(path, size, data), path)


def _try_again(write: Callable[[], None], path: Path) -> None:
    """Do something that leaves nothing behind where it fails, again if the failure may pass."""
    for wait_s in WAITS_S:
        try:
            return write()
        except OSError as error:
            if error.errno not in _MAY_PASS:
                raise
            logger.warning("%s: %s; trying again in %g s", path, error.strerror, wait_s)
        time.sleep(wait_s)
    return write()


def _write_once(path: Path, data: bytes | memoryview) -> None:
    hold_folder(path.parent)
    # A name that the file system just bears must not become one that it does not.
    temporary = path.with_name(
        f".{path.name[:SHOWN_NAME]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    )
    try:
        # A flush that failed may have dropped what it was to write: every try writes all of it.
        with _create_locked(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            written = os.fstat(file.fileno())
            if _MOVES_OPEN:
                _rename(temporary, path, written)
        if not _MOVES_OPEN:
            _rename(temporary, path, written)
    except BaseException:
        with contextlib.suppress(OSError):  # what the disk said first says more
            temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def _rename(temporary: Path, path: Path, written: os.stat_result) -> None:
    """Rename, unless a server that says there is no such file has done so already.

    A network file system asks again when an answer is lost, and is told of a file that has gone.
    """
    try:
        temporary.replace(path)
    except FileNotFoundError as error:
        if not (path.is_file() and os.path.samestat(path.stat(), written)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path)) from error


def _append_once(path: Path, size: int, data: bytes) -> None:
    # Without a buffer: closing one would write what has just been cut off.
    with path.open("ab", buffering=0) as file:
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise
    flush_folder(path.parent)


def check_room(folder: Path, bytes_needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: Where it is going to be written; need not be there yet.
        bytes_needed: How much.

    Raises:
        OSError: The file system of `folder` has less free than that.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < bytes_needed:
        raise OSError(
            f"{folder}: expected {bytes_needed / 1e9:.3g} GB free, got {free / 1e9:.3g} GB; make "
            "room, or name a folder on another disk with --out"
        )


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    if sys.platform == "win32":  # folders are no files there, and names are durable
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_temporaries(folder: Path, older_than_s: float = 0.0) -> None:
    """Remove what writers that were killed left behind in `folder`.

    A file that is being written is locked by its writer, and stays.

    Args:
        folder: Where to look.
        older_than_s: Leave younger files, s: locks of writers on other machines may not be seen.
    """
    oldest = time.time() - older_than_s
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        try:
            if older_than_s and path.stat().st_mtime > oldest:
                continue
            with path.open("rb") as file:
                is_left = try_lock(file)
                if is_left and _MOVES_OPEN:
                    path.unlink(missing_ok=True)
            if is_left and not _MOVES_OPEN:
                path.unlink(missing_ok=True)
        except OSError:  # in use, gone already, or nobody can tell
            continue


@contextmanager
def hold_file(path: Path) -> Iterator[None]:
    """An empty file while the block runs, which others see.

    Args:
        path: Named as a temporary file, `remove_stale_temporaries` takes what a kill leaves of it.
    """
    hold_folder(path.parent)
    with _create_locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _create_locked(path: Path) -> BinaryIO:
    """A new file that `remove_stale_temporaries` leaves alone as long as it is open."""
    while True:
        file = path.open("wb")
        try:
            has_locks = _lock(file, wait=True) is not None
        except BaseException:
            file.close()
            raise
        if not has_locks or path.exists():  # else it was taken for stale before it was locked
            return file
        file.close()


def try_lock(file: BinaryIO) -> bool | None:
    """Lock an open file against others that ask for the same, unless one of them has it.

    The lock ends when the file is closed, and with the process, however that ends.

    Returns:
        Whether it is locked now; None on a file system without locks.
    """
    return _lock(file, wait=False)


def _lock(file: BinaryIO, *, wait: bool) -> bool | None:
    try:
        return lock_descriptor(file.fileno(), blocking=wait)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made if need be and stays, while the block runs.

    As `lock_folder`, but others wait for their turn.
    """
    with path.open("ab") as file:
        _lock(file, wait=True)
        yield


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep every other process that asks for the same out of `folder` while the block runs.

    The lock ends with the process, however that ends; the file `.lock` stays and means nothing by
    itself. On a file system without locks nobody is kept out.

    Raises:
        ConfigError: Another process is at work in the folder.
    """
    hold_folder(folder)
    with (folder / LOCK).open("a+b") as file:
        if try_lock(file) is False:
            raise ConfigError(
                f"{folder}: another process is at work there ({_read_owner(file)}); wait for its "
                "end, or name another folder with --out"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield


def _read_owner(file: BinaryIO) -> str:
    """Who holds a lock, as it wrote into the file; Windows lets nobody read what is locked."""
    with contextlib.suppress(OSError):
        file.seek(0)
        return file.read(200).decode(errors="replace") or "unknown"
    return "unknown"


def most_handles() -> int:
    """How many files this process may have open at once (`ulimit -n`)."""
    try:
        import resource
    except ImportError:  # Windows, whose C library ends at 8192
        return 8192
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if limit in (resource.RLIM_INFINITY, -1) else limit


def user_cache(*parts: str) -> Path:
    """A place below the folder of this user that programs may fill and anyone may empty."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "micu", *parts)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


MAX_JSON_BYTES = 4 * 2**20
"""Largest JSON file that is read whole."""
MAX_DEPTH = 32
"""How deep JSON may be nested; none of ours is deeper than five."""


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file of others.

    Raises:
        ValueError: It is no regular file (reading a pipe or a device may never end), or larger.
    """
    if not path.is_file():
        raise ValueError("it is no file")
    with path.open("rb") as file:
        is_large = os.fstat(file.fileno()).st_size > most_bytes
        data = b"" if is_large else file.read(most_bytes + 1)
    if is_large or len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return data


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """What a JSON file of others says; its types are the caller's to check.

    Raises:
        ValueError: It is no file, too large, or no JSON.
    """
    return parse_json(read_bounded(path, most_bytes))


def parse_json(data: bytes) -> Any:
    """What JSON of others says, in UTF-8.

    Raises:
        ValueError: It is none, or nested deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(data.decode())
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}") from error
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        held = [item for item in level if isinstance(item, dict | list)]
        if not held:
            return value
        level = [
            part for item in held for part in (item.values() if isinstance(item, dict) else item)
        ]
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
