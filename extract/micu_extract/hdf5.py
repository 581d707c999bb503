"""Opening HDF5 files of others: nothing leads out of the file, nothing grows beyond reason."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from micu.base.errors import StoreError, shorten

FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
"""Filters that are read; others are plugins, which are code."""
MAX_CHUNK_BYTES = 256 * 2**20
"""Largest chunk, which is unpacked whole however little of it is read."""
MAX_NAMES = 100
"""Most data sets of a file; a released one has one."""
MAX_RATIO = 1000
"""How many times its size a packed file may declare."""


@contextmanager
def open_plain(path: Path) -> Iterator[h5py.File]:
    """Open a file whose data sets hold their own plain numbers.

    Raises:
        StoreError: It is not HDF5, is damaged, or has links, external or virtual storage, groups,
            unknown filters, or data that are no plain numbers.
    """
    if not path.is_file():
        raise StoreError(f"{path}: not a file")
    try:
        with h5py.File(path, "r", locking=False) as file:
            if len(file) > MAX_NAMES:
                raise StoreError(f"{path}: has {len(file)} data sets; expected at most {MAX_NAMES}")
            for name in file:
                _refuse_hostile(file, name, path)
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read as HDF5 ({error})") from error


def _refuse_hostile(file: h5py.File, name: str, path: Path) -> None:
    link, told = file.get(name, getlink=True), shorten(name, 80)
    if not isinstance(link, h5py.HardLink):
        raise StoreError(f"{path}: {told} is a {type(link).__name__}; expected no links")
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        raise StoreError(f"{path}: {told} does not hold its own data")
    if data.dtype.kind not in "fiub" or data.shape is None:
        raise StoreError(f"{path}: {told} holds {data.dtype}, expected plain numbers")
    settings = data.id.get_create_plist()
    used = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    if unknown := [number for number in used if number not in FILTERS]:
        raise StoreError(f"{path}: {told} is packed by filters {unknown}; expected deflate at most")
    chunk_bytes = math.prod(data.chunks or ()) * data.dtype.itemsize
    if chunk_bytes > MAX_CHUNK_BYTES:
        raise StoreError(f"{path}: {told} has chunks of {chunk_bytes} bytes")
    declared = math.prod(data.shape) * data.dtype.itemsize
    size = path.stat().st_size
    if declared > size * (MAX_RATIO if used else 1):
        raise StoreError(f"{path}: {told} declares {declared} bytes in a file of {size}")
