"""Finding a clip's media file and opening it: a regular file below the media root, and no other.

A path is checked, and then opened; between the two a link can be swapped for another. So the file
is opened without following any link, is checked once it is open, and every decoder is given the
open file, by a path that leads to it whatever becomes of its name.
"""

import errno
import os
import stat
import unicodedata
from contextlib import suppress
from pathlib import Path, PurePath

import av

from micu.base.errors import DecodeError

IO_ERROR = "io_error"
_MAY_PASS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE}
"""What network file systems answer for a moment, and systems with too many open files."""
_READ_BYTES = 2**20

_SWAPPED = {errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EMLINK}
"""What opening without links says of a path that had none when it was resolved."""
_TRIES = 10
"""How often a path that changes under our hands is resolved again."""


def may_pass(error: Exception, path: Path | None = None) -> bool:
    """Whether an error says nothing of the file, and another try may find it in order.

    FFmpeg says EIO of files that are cut off, too: then the system is asked to read the file.

    Args:
        error: What went wrong.
        path: The file that FFmpeg read; None where it read none.
    """
    if not isinstance(error, OSError) or error.errno not in _MAY_PASS:
        return False
    is_vague = isinstance(error, av.error.FFmpegError) and error.errno == errno.EIO
    return not is_vague or (path is not None and not _can_be_read(path))


def _can_be_read(path: Path) -> bool:
    """Whether the system gives all bytes of a file."""
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError:
        return False
    return True


def find_media(path: str, media_root: Path) -> Path:
    """Resolve a manifest's path to a regular file below the media root.

    A name that is not there is looked for in the other forms of Unicode, too: macOS and Linux
    write the same accented letter as one character or as two.

    Raises:
        DecodeError: `missing`, `outside_root`, `not_a_file`, `permission`, `empty` or `io_error`.
    """
    if not path or "\0" in path:
        raise DecodeError("missing", f"{path!r}: expected the path of a media file in the manifest")
    try:
        root = media_root.resolve()
        others = dict.fromkeys(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
        spelled = next((root / name for name in (path, *others) if (root / name).exists()), path)
        real = (root / spelled).resolve()
        if not real.is_relative_to(root):
            raise DecodeError("outside_root", f"{path!r} leads to {str(real)!r}, out of {root}")
        status = real.stat()
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        raise _cannot_open(path, media_root, error) from error
    _check_kind(path, status)
    return real


def _check_kind(path: str, status: os.stat_result) -> None:
    """Refuse what is no regular file, or an empty one.

    Raises:
        DecodeError: `not_a_file` or `empty`.
    """
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("not_a_file", f"{path!r}: expected a regular file")
    if status.st_size == 0:
        raise DecodeError("empty", f"{path!r}: the file holds no bytes")


def _cannot_open(path: str, media_root: Path, error: Exception) -> DecodeError:
    if isinstance(error, PermissionError):
        return DecodeError("permission", f"{path!r}: {error.strerror}")
    if may_pass(error):
        return DecodeError(IO_ERROR, f"{path!r}: {error}")
    return DecodeError("missing", f"{path!r}: no such file below {media_root}")


class MediaFile:
    """A regular file below the media root, open for reading.

    Args:
        path: As the manifest has it; links below the root are followed.
        media_root: Folder that it is relative to.

    Raises:
        DecodeError: `missing`, `outside_root`, `not_a_file`, `permission`, `empty` or `io_error`.
    """

    def __init__(self, path: str, media_root: Path) -> None:  # noqa: D107
        self._handle = _open_checked(path, media_root)
        self.size = os.fstat(self._handle).st_size
        """Bytes."""

    @property
    def path(self) -> Path:
        """A path that leads to this very file, whatever its name leads to by now.

        On macOS all who open it share one place in the file: it is the beginning again when this
        is asked for, and only one may read at a time.
        """
        os.lseek(self._handle, 0, os.SEEK_SET)
        return Path(f"/dev/fd/{self._handle}")

    def read_at(self, place: int, size: int) -> bytes:
        """Up to `size` bytes from a place on; fewer, or none, at the end of the file."""
        with suppress(OSError, OverflowError):  # opening it for decoding will say what is wrong
            return os.pread(self._handle, size, place)
        return b""

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def __enter__(self) -> "MediaFile":  # noqa: D105
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self.close()


def _open_checked(path: str, media_root: Path) -> int:
    """Open a file below the media root; a link that is swapped meanwhile changes nothing.

    Raises:
        DecodeError: As for `MediaFile`.
    """
    for _ in range(_TRIES):
        real = find_media(path, media_root)
        root = media_root.resolve()
        if not real.is_relative_to(root):  # the root itself was a link that changed
            continue
        try:
            handle = _open_without_links(root, real.relative_to(root))
        except OSError as error:
            if error.errno in _SWAPPED:
                continue
            raise _cannot_open(path, media_root, error) from error
        try:
            _check_kind(path, os.fstat(handle))
        except BaseException:
            os.close(handle)
            raise
        return handle
    raise DecodeError("outside_root", f"{path!r}: its links change while the file is opened")


def _open_without_links(root: Path, inside: PurePath) -> int:
    """Open a file, going down from `root` folder by folder; whatever is a link is refused.

    A folder need not be readable, and a pipe that was put there does not hold us up.

    Raises:
        OSError: A part of the path is a link by now, or cannot be opened.
    """
    folder = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY
    here = os.open(root, folder)
    try:
        for name in inside.parts[:-1]:
            below = os.open(name, folder | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        return os.open(inside.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)
