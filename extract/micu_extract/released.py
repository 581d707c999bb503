"""The authors' released features to shards: HDF5 files of AVE, one zipped pickle per clip else.

The only file that reads pickles. A pickle is a program; this one runs in a world where nothing can
be called but stand-ins for what numpy's arrays are pickled with, by Python 2 and 3 in every
protocol; they only note what they are given. The array is built from the notes afterwards, so that
not even numpy's own code sees what a hostile file says. The program may have no step that an array
does not need, and few of those. All of it happens in worker processes with a limit on memory and
time.

Layouts (published code of MICU, DCID): `avadataset` (N, 10, 7, 7, 512) and (N, 10, 128), row i for
line i of `Annotations.txt`; or `<video id>.zip` with one `.pkl` of (t, 7, 7, 512) or (t, 128). Ten
steps are kept; a shorter clip repeats its last one, which the mask denies.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import h5py
import numpy as np
from numpy.typing import NDArray

from micu.base.errors import DecodeError, StoreError, shorten
from micu.store.hdf5 import open_plain
from micu.store.manifest import Clip, youtube_id, youtube_start
from micu_extract.backbones.base import Media
from micu_extract.media.media_file import MediaFile

MAX_BYTES = 128 * 2**20
"""Largest file, and largest content of one, that is read: 400 s of float64 grids."""
MAX_DIMS = 8
DTYPES = ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")


# --- pickles -----------------------------------------------------------------------------------


class _Ndarray:
    """Stands for `numpy.ndarray`. Like all stand-ins it has no attributes that a pickle could set.

    An instance, not the class, is what pickles get: a class could be changed for all later clips.
    """

    __slots__ = ()


class _Dtype:
    """What a pickled `numpy.dtype` says."""

    __slots__ = ("name", "order", "plain")

    def __init__(self, name: object) -> None:
        self.name, self.order, self.plain = name, "<", False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags)
        self.order, self.plain = state[1], state[2:5] == (None, None, None)


class _DtypeMaker:
    __slots__ = ()

    def __call__(self, name: object, *flags: object) -> _Dtype:
        return _Dtype(name)


class _Array:
    """What a pickled array says."""

    __slots__ = ("axes", "state")

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()
        self.axes: object = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _ArrayMaker:
    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> _Array:
        if not isinstance(kind, _Ndarray):
            raise pickle.UnpicklingError("expected an array of no subclass")
        return _Array()


class _ViewMaker:
    """Stands for numpy's `_frombuffer`, with which protocol 5 makes arrays."""

    __slots__ = ()

    def __call__(
        self, data: object, dtype: object, shape: object, order: object, axes: object = None
    ) -> _Array:
        made = _Array()
        made.state = (1, shape, dtype, order == "F", data)
        made.axes = axes
        return made


class _Encoder:
    """Stands for `_codecs.encode`: as Latin-1, how protocols 0 to 2 of Python 3 spell bytes."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise pickle.UnpicklingError("expected bytes as Latin-1")
        return text.encode("latin1")


class _NoBytes:
    """Stands for `bytes`, which those protocols call for empty bytes."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


_STAND_INS: Mapping[tuple[str, str], object] = {
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _ArrayMaker()),
            ("numeric", "_frombuffer", _ViewMaker()),
        )
    },
    ("numpy", "ndarray"): _Ndarray(),
    ("numpy", "dtype"): _DtypeMaker(),
    ("_codecs", "encode"): _Encoder(),
    ("builtins", "bytes"): _NoBytes(),
    ("__builtin__", "bytes"): _NoBytes(),
}


class _Refused(Exception):
    """A pickle asks for something that is no part of an array."""


class _Unpickler(pickle.Unpickler):
    """Gives a pickle nothing but the stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _Refused(f"{module}.{name}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise _Refused("an object outside of it")


MAX_STEPS = 256
"""Most steps of a pickle; an array takes 70."""
MAX_CALLS = 16
"""Most calls; an array takes 6, and each may copy all of its bytes."""
MAX_REPEATS = 16
"""How often what is there may be named again; an array takes 4. Forty tuples that each hold the one
before twice would take for ever to compare."""
MAX_PLACE = 1024
"""Highest place to remember something at, for which memory is taken."""
MAX_BITS = 160
"""Of the longest number."""


def _disarm(data: bytes, name: str) -> bytes:
    """A pickle whose first step beyond what an array needs is struck out: its reading ends there.

    Nothing is run or made here: the steps are only read.

    Raises:
        DecodeError: `too_large`: it wants memory for nothing.
    """
    place = calls = repeats = 0
    with suppress(ValueError):  # cut off or damaged: it is struck out, too
        for count, (step, argument, at) in enumerate(pickletools.genops(data)):
            place = at or 0
            calls += step.name in ("REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX")
            repeats += step.name in ("DUP", "GET", "BINGET", "LONG_BINGET")
            number = argument if isinstance(argument, int) else 0
            if step.name in ("PUT", "LONG_BINPUT") and number > MAX_PLACE:
                raise DecodeError("too_large", f"{name}: unpacking it needs more memory")
            too_long = count == MAX_STEPS or number.bit_length() > MAX_BITS
            if too_long or calls > MAX_CALLS or repeats > MAX_REPEATS:
                break
            if step.name == "STOP":
                return data
    return b"".join((data[:place], b"\0", data[place + 1 :]))  # \0 is no step


_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
)
"""What unpickling a damaged file raises."""


def read_pickled_array(data: bytes, name: str) -> NDArray[np.float32]:
    """The array of floats that a pickle holds, as float32; nothing in the pickle is run.

    Args:
        data: The pickle.
        name: Of the file, for messages.

    Raises:
        DecodeError: `unsafe_pickle`, `unreadable`, `bad_array` or `too_large`.
    """
    try:
        found = _Unpickler(io.BytesIO(_disarm(data, name)), encoding="latin1").load()
        return _build(found, name)
    except _Refused as error:
        raise DecodeError(
            "unsafe_pickle",
            f"{name}: the pickle asks for {error}; expected a numpy array and nothing else. "
            "Nothing of it was run",
        ) from error
    except MemoryError as error:
        raise DecodeError("too_large", f"{name}: unpacking it needs more memory") from error
    except _BROKEN as error:
        raise DecodeError("unreadable", f"{name}: not a pickled array: {error!r}") from error


def _build(found: object, name: str) -> NDArray[np.float32]:
    """The array that the notes describe."""
    if not isinstance(found, _Array) or len(found.state) != 5:
        kind = "half of one" if isinstance(found, _Array) else type(found).__name__
        raise DecodeError("bad_array", f"{name}: expected a pickled numpy array, got {kind}")
    _, shape, dtype, in_columns, data = found.state
    spelled = ""
    if isinstance(dtype, _Dtype) and dtype.plain:
        parts = [part for part in (dtype.order, dtype.name) if isinstance(part, str)]
        spelled = "".join(parts)[:10]
    if spelled not in DTYPES:
        raise DecodeError("bad_array", f"{name}: expected plain floats, got dtype {spelled!r}")
    content = data.encode("latin1") if isinstance(data, str) else data  # str: of Python 2
    if not isinstance(content, bytes | bytearray) or not _are_counts(shape):
        raise DecodeError("bad_array", f"{name}: expected the bytes of an array of floats")
    flat = np.frombuffer(content, np.dtype(spelled))
    if math.prod(shape) != flat.size:
        raise DecodeError("bad_array", f"{name}: {flat.size} numbers do not make {shape}")
    values = flat.reshape(shape, order="F" if in_columns else "C")
    if found.axes is not None:
        if not _are_counts(found.axes):
            raise DecodeError("bad_array", f"{name}: expected the order of its axes")
        values = values.transpose(found.axes)
    return to_float32(values)


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    """Whether it is a few numbers that an array may have for its shape."""
    if type(value) is not tuple or len(value) > MAX_DIMS:
        return False
    return all(type(n) is int and 0 <= n <= MAX_BYTES for n in value)


def to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values as float32; what is too large becomes infinite, which no shard takes."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def read_zipped_array(path: Path, name: str) -> NDArray[np.float32]:
    """The array in a zip file that holds one pickle.

    Raises:
        DecodeError: `bad_archive`, `too_large`, or as for `read_pickled_array`.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DecodeError("too_large", f"{name}: {size} bytes; expected at most {MAX_BYTES}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) != 1 or not members[0].filename.endswith(".pkl"):
                names = ", ".join(member.filename for member in members[:3])
                raise DecodeError(
                    "bad_archive",
                    f"{name}: expected one .pkl file in it, got {len(members)}: {names}",
                )
            return read_pickled_array(_unpack(archive, members[0], name), name)
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError),
        *(ValueError, TypeError, LookupError, ArithmeticError),
    ) as error:
        raise DecodeError("bad_archive", f"{name}: not a readable zip file: {error}") from error
    except MemoryError as error:
        raise DecodeError("too_large", f"{name}: unpacking it needs more memory") from error


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> bytes:
    """Bytes of a member, as many as it declares and never more than is allowed."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DecodeError("bad_archive", f"{name}: packed by another method than deflate")
    if member.file_size > MAX_BYTES:
        raise DecodeError(
            "too_large", f"{name}: declares {member.file_size} bytes; expected at most {MAX_BYTES}"
        )
    with archive.open(member) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) != member.file_size:
        raise DecodeError(
            "bad_archive", f"{name}: declares {member.file_size} bytes, holds {len(data)}"
        )
    return data


# --- HDF5 --------------------------------------------------------------------------------------

DATA = "avadataset"
"""Name of the one data set in each of AVE's files."""


def read_h5_row(path: Path, row: int, rows: int) -> NDArray[np.float32]:
    """One row of a released HDF5 file, as float32.

    Args:
        path: The file.
        row: Which.
        rows: How many there must be.

    Raises:
        StoreError: The file is not of that layout, which is a mistake of the whole run.
        DecodeError: `unreadable`: the row is damaged.
    """
    with open_plain(path) as file:
        data = file.get(DATA)
        if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f" or data.ndim < 2:
            got = shorten(", ".join(file), 200)
            raise StoreError(f"{path}: expected a data set {DATA} of floats, got {got}")
        if len(data) != rows:
            raise StoreError(
                f"{path}: has {len(data)} rows, the manifest {rows}; expected as many, row i about "
                "line i of Annotations.txt: make the manifest with micu-extract manifest ave, and "
                "for a part of it name the whole with --rows"
            )
        if math.prod(data.shape[1:]) * data.dtype.itemsize > MAX_BYTES:
            raise StoreError(f"{path}: rows of shape {data.shape[1:]} are too large")
        try:
            return to_float32(data[row])
        except OSError as error:
            raise DecodeError("unreadable", f"row {row} of {path.name}: {error}") from error


# --- clips -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadReleased:
    """Reads the released features of a clip; sent to worker processes."""

    tables: Mapping[str, Path]
    """HDF5 file by modality."""
    folders: Mapping[str, Sequence[Path]]
    """Folders of zip files by modality."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of one step."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Row in the tables of each clip that is there; the others are in the folders."""
    several: frozenset[str] = frozenset()
    """YouTube videos of which there are several clips: a file that names none is nobody's."""

    def __call__(self, clip: Clip, names: Sequence[str]) -> dict[str, Media | DecodeError]:
        """One unit by modality, all steps of the clip, or why there is none."""
        found: dict[str, Media | DecodeError] = {}
        for name in names:
            try:
                values = self._read(clip, name)
            except DecodeError as error:
                found[name] = error
                continue
            seconds = float(len(values))
            found[name] = Media([values], np.array([seconds / 2]), seconds, len(values))
        return found

    def _read(self, clip: Clip, modality: str) -> NDArray[np.float32]:
        folders = self.folders.get(modality, ())
        if clip.clip_id in self.rows:
            row = self.rows[clip.clip_id]
            values = read_h5_row(self.tables[modality], row, len(self.rows))
        elif folders:
            folder, name = self._find(clip, folders)
            with MediaFile(name, folder) as file:
                values = read_zipped_array(file.path, name)
        else:
            raise DecodeError("missing", f"clip {clip.clip_id!r}: is no line of the HDF5 file")
        if values.shape[1:] != self.shapes[modality] or not values.ndim:
            wanted = ("t", *self.shapes[modality])
            raise DecodeError(
                "bad_array", f"clip {clip.clip_id!r}: expected {wanted}, got {values.shape}"
            )
        return values

    def _find(self, clip: Clip, folders: Sequence[Path]) -> tuple[Path, str]:
        """Where the zip file of a clip is: it is named as the clip, else as its video."""
        own, shared = clip.clip_id.partition("#")[0], archive_stem(clip.clip_id)
        for stem in dict.fromkeys((own, shared)):
            there = [folder for folder in folders if (folder / f"{stem}.zip").is_file()]
            if there and stem != own and shared in self.several:
                raise DecodeError(
                    "missing",
                    f"{stem}.zip may be of another clip, as the manifest has several of this "
                    f"video; name the file {own}.zip if it is of this one",
                )
            if there:
                return there[0], f"{stem}.zip"
        return folders[0], f"{shared}.zip"


def archive_stem(clip_id: str) -> str:
    """Name of a clip's zip file: its YouTube id where it has one, without times."""
    return youtube_id(clip_id) or clip_id.partition("#")[0]


def videos_of_several(clips: Iterable[Clip]) -> frozenset[str]:
    """YouTube videos from which clips with different starts are cut."""
    starts: dict[str, set[float | None]] = {}
    for clip in clips:
        if video := youtube_id(clip.clip_id):
            starts.setdefault(video, set()).add(youtube_start(clip.clip_id))
    return frozenset(video for video, found in starts.items() if len(found) > 1)
