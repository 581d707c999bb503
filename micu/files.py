"""Writing a file so that its final name never holds half of it, hashing one, locking a folder."""

import errno
import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from micu.errors import ConfigError

TEMPORARY_SUFFIX = ".partial"
LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without locks answer."""


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` under `path`, whole or not at all, and durable when this returns.

    Written to a unique temporary name in the same folder, flushed to disk, renamed over `path`,
    and the folder flushed as well. Two writers never meet: the last rename wins whole.

    Raises:
        OSError: The disk refused; no temporary file is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        with _create_locked(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left behind in `folder`.

    A file that is being written is locked by its writer, and stays.
    """
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:  # in use, gone already, or nobody can tell
            continue


def _create_locked(path: Path) -> BinaryIO:
    """A new file that `remove_stale_temporaries` leaves alone as long as it is open."""
    while True:
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            return file
        if path.exists():  # else it was taken for stale before it was locked
            return file
        file.close()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep every other process that asks for the same out of `folder` while the block runs.

    The lock ends with the process, however that ends; the file `.lock` stays and means nothing by
    itself. On a file system without locks nobody is kept out.

    Raises:
        ConfigError: Another process is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(200).decode(errors="replace") or "unknown"
            raise ConfigError(
                f"{folder}: another process is at work there ({owner}); wait for its end, or name "
                "another folder with --out"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
