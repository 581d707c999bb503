"""A folder of quantised flow fields, so that a second backbone or run need not compute them again.

One HDF5 file per clip lies under `FOLDER/<conventions>/<hash>/<hash of the clip>.h5`, where the
first name is a hash of all that changes a field. It holds `fields` (P, 2, H, W) uint8, x then y,
uncropped, deflated field by field (two planes are smaller and read faster than interleaved, and
than LZF); `pairs` (P, 2) int32, the pictures of each field; and `header`, JSON as bytes, with what
was decoded. It is no attribute because those end at 64 KiB, which the times of a long clip exceed.

A file is used if it is about the clip, and about media of the same size and time of change, and in
every way what our writer makes. Any other is as good as none, and is written anew.
"""

import hashlib
import io
import json
import logging
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from micu.base.errors import StoreError
from micu.base.files import hold_folder, remove_stale_temporaries, write_atomically
from micu.store.hdf5 import check_data_sets, open_file
from micu.store.manifest import Clip
from micu_extract.backbones.base import OPENCV, FlowInput, versions_of
from micu_extract.flow.methods import FlowSettings
from micu_extract.media.damage import fits_in_memory
from micu_extract.media.media_file import find_media
from micu_extract.media.source import MAX_PIXELS, Reading

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_HEADER_BYTES = 16 * 2**20
_DATASETS = ("fields", "header", "pairs")
_DEFLATE_LEVEL = 1

Pair = tuple[int, int]
"""Indices of the two pictures of a field, counted within the manifest's window."""
Fields = Mapping[Pair, NDArray[np.uint8]]
Notes = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Film:
    """What decoding a clip found, without its pictures."""

    starts: tuple[Fraction, ...]
    """Time of each picture from the start of the clip, s, rising; at least two."""
    covered_s: Fraction
    """How much of the clip they cover, s."""
    notes: Notes


@dataclass(frozen=True, slots=True)
class CachedFlow:
    """The fields of one clip that a file holds."""

    film: Film
    fields: Fields
    """(H, W, 2) by pair."""


class FlowCache:
    """The cached fields of one clip.

    Args:
        folder: Root of the cache.
        clip: Whose fields.
        wants: Conventions of the fields.
        reading: With what the fields are made.

    Raises:
        DecodeError: The clip's media file is not there.
    """

    def __init__(self, folder: Path, clip: Clip, wants: FlowInput, reading: Reading) -> None:  # noqa: D107
        # Before the media are opened: what is replaced while it is decoded must not be trusted.
        status = find_media(clip.path, reading.media_root).stat()
        conventions = _describe_conventions(_conventions_of(wants), reading.decoder, reading.flow)
        which = [clip.clip_id, clip.path, clip.start_s, clip.end_s]
        if clip.group != clip.clip_id.partition("#")[0]:  # it says more: whose file it is
            which.append(clip.group)
        name = hashlib.sha256(json.dumps(which).encode()).hexdigest()
        fingerprint = hashlib.sha256(conventions.encode()).hexdigest()[:16]
        self._folder = folder
        self.path = folder / fingerprint / name[:2] / f"{name}.h5"
        self._facts = {
            "format": FORMAT,
            "conventions": json.loads(conventions),
            "clip": which,
            "media": [status.st_size, status.st_mtime_ns],
        }

    def load(self) -> CachedFlow | None:
        """The clip's fields; None if there is no file that can be trusted."""
        if not self.path.is_file():  # opening a pipe would wait for its writer
            return None
        try:
            with open_file(self.path) as file:
                return _read(file, self.path, self._facts)
        except (
            StoreError,
            OSError,
            LookupError,
            RuntimeError,  # RecursionError is one
            ValueError,
            TypeError,
            AttributeError,
            ArithmeticError,
            zlib.error,
        ) as error:
            logger.warning("%s: computed anew: %s", self.path, error)
            return None

    def save(self, film: Film, fields: Fields) -> None:
        """Write the clip's fields, in place of whatever was there.

        Raises:
            StoreError: The disk refused.
        """
        try:
            hold_folder(self._folder)
            hold_folder(self.path.parent)
            remove_stale_temporaries(self.path.parent)
            write_atomically(self.path, _encode(self._facts, film, fields))
        except OSError as error:
            raise StoreError(
                f"{self.path}: the flow cache cannot be written ({error}); make room, name another "
                "folder with --flow-cache, or leave it out"
            ) from error


def _conventions_of(wants: FlowInput) -> tuple[tuple[str, Any], ...]:
    """What of the input changes a field, rather than which fields there are or their crop."""
    names = ("resize", "gray", "dt_s", "bound", "rounding")
    return tuple((name, getattr(wants, name)) for name in names)


@lru_cache(maxsize=16)
def _describe_conventions(
    wants: tuple[tuple[str, Any], ...], decoder: str, settings: FlowSettings
) -> str:
    """JSON of all that changes a field."""
    content = {
        "input": dict(wants),
        "decoder": decoder,
        "flow": settings.describe(),
        "versions": versions_of("av", "decord", "decord2", *OPENCV),
    }
    return json.dumps(content, sort_keys=True)


def _encode(facts: Mapping[str, Any], film: Film, fields: Fields) -> bytes:
    """The bytes of a file."""
    pairs = np.array(sorted(fields), np.int32).reshape(-1, 2)
    content = {
        **facts,
        "starts": [time.as_integer_ratio() for time in film.starts],
        "covered_s": film.covered_s.as_integer_ratio(),
        "notes": film.notes,
    }
    header = json.dumps(content, sort_keys=True).encode()
    height, width = next(iter(fields.values())).shape[:2]
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["sha256"] = np.bytes_(_digest(header, pairs))
        file.create_dataset("header", data=np.frombuffer(header, np.uint8))
        file.create_dataset("pairs", data=pairs)
        stored = file.create_dataset(
            "fields",
            shape=(len(pairs), 2, height, width),
            dtype=np.uint8,
            chunks=(1, 2, height, width),
            compression="gzip",
            compression_opts=_DEFLATE_LEVEL,
        )
        for i, pair in enumerate(sorted(fields)):
            # Deflated here: other threads go on meanwhile, which HDF5's own lock would prevent.
            planes = fields[pair].transpose(2, 0, 1).tobytes()
            stored.id.write_direct_chunk((i, 0, 0, 0), zlib.compress(planes, _DEFLATE_LEVEL))
    return buffer.getvalue()


def _digest(header: bytes, pairs: NDArray[np.int32]) -> str:
    return hashlib.sha256(header + pairs.astype("<i4").tobytes()).hexdigest()


def _read(file: h5py.File, path: Path, facts: Mapping[str, Any]) -> CachedFlow | None:
    """The content of a file; None if it is about something else.

    Raises:
        ValueError: It is not what our writer makes. h5py raises others, as does a hostile header.
        StoreError: Likewise.
    """
    file_bytes = path.stat().st_size
    _refuse_hostile(file, path, file_bytes)
    header, pairs = file["header"][:].tobytes(), file["pairs"][:]
    if file.attrs.get_id("sha256").dtype != np.dtype("S64"):
        raise ValueError("its checksum is not one")
    if file.attrs["sha256"] != _digest(header, pairs).encode():
        raise ValueError("its checksum is of something else")
    content = json.loads(header)
    # Through JSON, so that a tuple is the list that it was written as.
    if any(content[name] != json.loads(json.dumps(fact)) for name, fact in facts.items()):
        return None
    film = Film(
        tuple(Fraction(*ratio) for ratio in _check_ratios(content["starts"])),
        Fraction(*_check_ratios([content["covered_s"]])[0]),
        _check_notes(content["notes"]),
    )
    if len(film.starts) < 2 or any(a >= b for a, b in pairwise(film.starts)):
        raise ValueError("its pictures are not in the order of time")
    wanted = [(int(i), int(j)) for i, j in pairs]
    if len(set(wanted)) < len(wanted) or any(not 0 <= i < j < len(film.starts) for i, j in wanted):
        raise ValueError("its pairs are not pairs of its pictures")
    return CachedFlow(
        film, dict(zip(wanted, _read_fields(file["fields"], file_bytes), strict=True))
    )


def _refuse_hostile(file: h5py.File, path: Path, file_bytes: int) -> None:
    """Check names, links, types, shapes and filters before any data are read."""
    if len(file) != len(_DATASETS) or sorted(file) != sorted(_DATASETS):
        raise ValueError(f"expected the data sets {', '.join(_DATASETS)}, got {len(file)} others")
    check_data_sets(file, _DATASETS, path, packed=True)
    for name, dtype, dims, limit in (
        ("header", np.dtype("u1"), 1, MAX_HEADER_BYTES),
        ("pairs", np.dtype("i4"), 2, file_bytes),
    ):
        data = file[name]
        if data.dtype != dtype or data.ndim != dims or data.id.get_create_plist().get_nfilters():
            raise ValueError(f"{name} is not of the form that is written")
        if math.prod(data.shape) * dtype.itemsize > min(limit, file_bytes):
            raise ValueError(f"{name} is larger than the file")
    fields, pairs = file["fields"], file["pairs"]
    if fields.dtype != np.uint8 or fields.ndim != 4 or pairs.shape != (fields.shape[0], 2):
        raise ValueError("the fields are not of the form that is written")
    count, planes, height, width = fields.shape
    if planes != 2 or not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"fields of {width} x {height} px in {planes} planes")
    if not fits_in_memory(count * height * width):
        raise ValueError(f"{count} fields do not fit in memory")
    plist = fields.id.get_create_plist()
    deflated = plist.get_nfilters() == 1 and plist.get_filter(0)[0] == h5py.h5z.FILTER_DEFLATE
    if not deflated or fields.chunks != (1, planes, height, width):
        raise ValueError("the fields are not deflated one by one")


def _read_fields(data: h5py.Dataset, file_bytes: int) -> Iterator[NDArray[np.uint8]]:
    """Inflate field by field, never beyond its size: HDF5's own filter would go on without end."""
    count, _, height, width = data.shape
    size = 2 * height * width
    for i in range(count):
        where = (i, 0, 0, 0)
        if data.id.get_chunk_info_by_coord(where).size > file_bytes:
            raise ValueError("a field is larger than the file")
        mask, packed = data.id.read_direct_chunk(where)
        inflate = zlib.decompressobj()
        planes = inflate.decompress(packed, size)
        # What is whole ends with the last byte; the checksum comes after it.
        rest = inflate.decompress(inflate.unconsumed_tail, 1)
        if mask or len(planes) != size or rest or not inflate.eof or inflate.unused_data:
            raise ValueError(f"field {i} is damaged")
        yield np.frombuffer(planes, np.uint8).reshape(2, height, width).transpose(1, 2, 0)


def _check_ratios(value: Any) -> list[list[int]]:
    """Times as [numerator, denominator]."""
    for ratio in value:
        if [type(part) for part in ratio] != [int, int] or ratio[1] < 1:
            raise ValueError("a time is not a fraction")
    return list(value)


def _check_notes(value: Any) -> Notes:
    if not isinstance(value, dict) or any(type(v) not in (float, int, str) for v in value.values()):
        raise ValueError("its notes are not notes")
    return value
