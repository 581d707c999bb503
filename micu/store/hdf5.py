"""The one guard for HDF5 files, all of which others may have made.

Nothing leads out of a file that it lets through, and nothing in it grows beyond reason.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from micu.base.errors import StoreError, shorten

FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
"""Filters that packed data may have; others are plugins, which are code."""
MAX_CHUNK_BYTES = 256 * 2**20
"""Largest packed chunk, which is unpacked whole however little of it is read."""
MAX_NAMES = 100
"""Most data sets of a file; a released one has one."""
MAX_RATIO = 1000
"""How many times its size a packed file may declare."""


@contextmanager
def damage_named(path: Path, advice: str = "") -> Iterator[None]:
    """Whatever h5py raises about a damaged file becomes one `StoreError` about `path`.

    Args:
        path: The file.
        advice: What to do about damage; for the end of the sentence.
    """
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        # The operating system's own refusals, which have a number, say nothing about the file.
        if isinstance(error, OSError) and error.errno:
            advice = ""
        raise StoreError(f"{path}: cannot be read as HDF5 ({error}){advice}") from error


def open_file(path: Path, advice: str = "") -> h5py.File:
    """Open a file for reading; what is in it is still to be checked.

    Raises:
        StoreError: It is no file, or not HDF5.
    """
    if not path.is_file():  # opening a pipe would wait for its writer
        raise StoreError(f"{path}: not a file{advice}")
    with damage_named(path, advice):
        return h5py.File(path, "r", locking=False, rdcc_nbytes=0)


@contextmanager
def open_plain(path: Path) -> Iterator[h5py.File]:
    """Open a file whose data sets hold their own plain numbers, which may be packed.

    Raises:
        StoreError: It is not HDF5, is damaged, or has links, external or virtual storage, groups,
            unknown filters, or data that are no plain numbers.
    """
    with open_file(path) as file, damage_named(path):
        if len(file) > MAX_NAMES:
            raise StoreError(f"{path}: has {len(file)} data sets; expected at most {MAX_NAMES}")
        check_data_sets(file, tuple(file), path, packed=True)
        for name in file:
            if file[name].dtype.kind not in "fiub":
                told = f"{shorten(name, 80)} holds {file[name].dtype}"
                raise StoreError(f"{path}: {told}, expected plain numbers")
        yield file


def check_data_sets(
    file: h5py.File, names: Collection[str], path: Path, *, packed: bool = False
) -> None:
    """Refuse data sets that do not hold their own data, or that the file's bytes cannot fill.

    Args:
        file: The open file.
        names: Of the data sets that are to be read.
        path: Of the file.
        packed: Whether they may be packed, by `FILTERS`.

    Raises:
        StoreError: One is a link or a group, lies elsewhere, or is filtered or declared larger than
            it may be.
    """
    declared = 0.0
    for name in names:
        link, told = file.get(name, getlink=True), shorten(name, 80)
        if not isinstance(link, h5py.HardLink):
            raise StoreError(f"{path}: {told} is a {type(link).__name__}; expected no links")
        data = file[name]
        if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
            raise StoreError(f"{path}: {told} does not hold its own data")
        if data.shape is None:
            raise StoreError(f"{path}: {told} has no shape")
        settings = data.id.get_create_plist()
        used = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
        if unknown := [number for number in used if not packed or number not in FILTERS]:
            expected = "deflate at most" if packed else "none"
            raise StoreError(f"{path}: {told} is packed by filters {unknown}; expected {expected}")
        chunk_bytes = math.prod(data.chunks or ()) * data.dtype.itemsize
        if used and chunk_bytes > MAX_CHUNK_BYTES:
            raise StoreError(f"{path}: {told} has chunks of {chunk_bytes} bytes")
        declared += math.prod(data.shape) * data.dtype.itemsize / (MAX_RATIO if used else 1)
    size = path.stat().st_size
    if declared > size:
        ratio = f", 1 for {MAX_RATIO} that are packed," if packed else ""
        raise StoreError(
            f"{path}: declares {declared:.0f} bytes of data{ratio} in a file of {size}"
        )
