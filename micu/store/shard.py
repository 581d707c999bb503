"""One shard of features: its header, its bytes, and opening one that may be hostile.

The only file that knows the HDF5 layout, which docs/format.md describes. A shard holds `features`
(n, T, ...) float32, `mask` (n, T) bool (True = the step is real), `times_s` (n, T) float64 (centre
of each step; NaN where steps are not seconds), `steps` (n,) (how many of the T are the row's own),
`clip_id` (n,) UTF-8, `source` (n,) (the digest of what each row was made of), and the header as a
JSON attribute. Chunks are exactly one clip and nothing is compressed, because training reads random
clips. Strings have a fixed length: libhdf5 may walk a damaged heap of strings for ever.

Shards are data from others: opening one refuses links, external and virtual storage, filters, and
shapes that its bytes cannot fill.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from micu.base.errors import FeatureError, ShapeError, StoreError, check_shape, shorten
from micu.base.files import parse_json
from micu.store.hdf5 import check_data_sets, damage_named, open_file
from micu.store.manifest import MODALITIES, SOURCE, SOURCE_CHARACTERS

FORMAT = 2
MAX_ROWS = 10**8
"""Most rows of a manifest that a set can be about."""
MAX_STEP = 2**28
"""Most numbers in one step."""
MAX_HEADER_BYTES = 64 * 2**10
"""Longest header of a shard; HDF5 keeps no longer attribute in one piece."""
_ADVICE = "; delete it and type the extraction command again"
_DATASETS = ("clip_id", "source", "steps", "features", "mask", "times_s")


class Expected(NamedTuple):
    """What an entry of a description must be."""

    told: str
    is_met: Callable[[Any], bool]


def check_types(values: Mapping[str, Any], expected: Mapping[str, Expected]) -> None:
    """Check entries that others may have written, by type and range.

    Raises:
        ValueError: One is not as expected.
    """
    for name, (told, is_met) in expected.items():
        if not is_met(values[name]):
            raise ValueError(f"{name}: expected {told}, got {shorten(repr(values[name]), 80)}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_shape(value: object) -> bool:
    """Whether it is the shape of a step that memory can hold."""
    if not isinstance(value, list | tuple) or len(value) > 8:
        return False
    sizes = [size for size in value if type(size) is int and 0 < size <= MAX_STEP]
    return len(sizes) == len(value) and math.prod(sizes) <= MAX_STEP


def _is_hop(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return False
    return value is None or 0.0 < value < math.inf


_TEXT = Expected("printable text", _is_text)
_MAPPING = Expected("a mapping", lambda value: isinstance(value, Mapping))
_SPEC = {
    "backbone": _TEXT,
    "modality": Expected(f"one of {', '.join(MODALITIES)}", lambda value: value in MODALITIES),
    "shape": Expected("the shape of a step", _is_shape),
    "hop_s": Expected("seconds or null", _is_hop),
    "weights": Expected("a text", lambda value: isinstance(value, str)),
    "weights_sha256": _TEXT,
    "preprocessing": _MAPPING,
    "versions": _MAPPING,
}
_HEADER = {
    "shard_rows": Expected(
        f"a number from 1 to {MAX_ROWS}",
        lambda value: type(value) is int and 1 <= value <= MAX_ROWS,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """What features are and what made them."""

    backbone: str
    modality: str
    shape: tuple[int, ...]
    """Shape of one step, without T: (1536,) for a vector, (7, 7, 512) for a grid, channel last."""
    hop_s: float | None
    """Seconds from one step to the next; None where steps are not seconds (words)."""
    weights: str
    """Where the weights came from: a hub name, a file, or `random:SEED`."""
    weights_sha256: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries that made them: noted, and no part of what features are."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "FeatureSpec":
        """The spec that `dataclasses.asdict` and JSON made `value` from.

        Raises:
            ValueError: It is none: an entry is missing, or of another type or range.
        """
        try:
            spec = cls(**value)
        except TypeError as error:
            raise ValueError(str(error)) from error
        check_types(asdict(spec), _SPEC)
        return replace(spec, shape=tuple(spec.shape))

    @property
    def traits(self) -> dict[str, Any]:
        """What two rows must have in common to be of one kind, by name.

        Where the weights were read from and which versions were installed may differ.
        """
        return {
            "backbone": self.backbone,
            "modality": self.modality,
            "weights_sha256": self.weights_sha256,
            "shape": list(self.shape),
            "hop_s": self.hop_s,
            **{f"preprocessing.{name}": value for name, value in self.preprocessing.items()},
        }

    @property
    def making(self) -> str:
        """SHA-256 over the traits: rows of equal source and making are the same."""
        return _sha256_of(self.traits)

    @property
    def made_of(self) -> str:
        """What a row is made of: `text`, `media`, or the `id` that a release knows it by."""
        if "release" in self.preprocessing:
            return "id"
        return "text" if self.modality == "text" else "media"


def join_versions(*made_with: Mapping[str, str]) -> dict[str, str]:
    """Versions that made one shard, one after the other: several of a library stand in a list."""
    joined: dict[str, dict[str, None]] = {}
    for versions in made_with:
        for name, value in versions.items():
            joined.setdefault(name, {}).update(dict.fromkeys(value.split(", ")))
    return {name: ", ".join(values) for name, values in joined.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What shards of one set agree on, and the versions that one was made with."""

    spec: FeatureSpec
    shard_rows: int

    def to_json(self) -> dict[str, Any]:
        """JSON form, with the fingerprint of all of it."""
        body = {"format": FORMAT, **asdict(self)}
        return {**body, "fingerprint": _sha256_of(body)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: Path) -> "Header":
        """Read a header back.

        Raises:
            StoreError: It is of another format, or its fingerprint does not match its content.
        """
        try:
            body = {key: item for key, item in value.items() if key != "fingerprint"}
            if body.pop("format") != FORMAT:
                raise StoreError(
                    f"{where}: expected feature store format {FORMAT}, got "
                    f"{shorten(repr(value['format']), 80)}: another version of micu made it; "
                    "type the extraction command again with another --out"
                )
            header = cls(**{**body, "spec": FeatureSpec.from_json(body["spec"])})
            check_types({name: getattr(header, name) for name in _HEADER}, _HEADER)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{where}: the header is not one of a feature set: {shorten(repr(error), 200)}; "
                "extract again with another --out"
            ) from error
        if header.to_json()["fingerprint"] != value.get("fingerprint"):
            raise StoreError(f"{where}: the header was changed after it was written")
        return header

    def is_like(self, other: "Header") -> bool:
        """Whether shards with these headers may be of one set."""
        return (self.spec.making, self.shard_rows) == (other.spec.making, other.shard_rows)


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """Features of one clip."""

    clip_id: str
    values: NDArray[np.float32]
    """(T, ...)"""
    mask: NDArray[np.bool_]
    """(T,), True = real step"""
    times_s: NDArray[np.float64]
    """(T,), centre of each step from the start of the clip, s; NaN where steps are not seconds"""
    source: str = ""
    """Digest of what it was made of; see `micu.store.manifest.row_sources`."""

    @classmethod
    def of(cls, clip_id: str, steps: "Steps") -> "FeatureRow":
        """The row that holds a backbone's output."""
        return cls(clip_id, steps.values, steps.mask, steps.times_s)


@dataclass(frozen=True, slots=True)
class Steps:
    """A backbone's output for one clip, before it has a name: see `FeatureRow` for the shapes."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    times_s: NDArray[np.float64]


def check_row(row: FeatureRow, spec: FeatureSpec) -> None:
    """Refuse a row that must not be stored.

    Raises:
        ShapeError: Its shapes are not those of the spec, or differ among themselves.
        FeatureError: It has no real step, or a value that is not finite.
    """
    steps = len(row.values)
    dims = " ".join(["T", *map(str, spec.shape)])
    check_shape(row.values.shape, dims, f"features of clip {row.clip_id!r}")
    check_shape(row.mask.shape, "T", f"mask of clip {row.clip_id!r}", T=steps)
    check_shape(row.times_s.shape, "T", f"times of clip {row.clip_id!r}", T=steps)
    if not row.mask.any():
        raise FeatureError("no_steps", "no step of the clip is real")
    if not np.isfinite(row.values).all():
        raise FeatureError("non_finite", "the features hold NaN or infinity")


def encode_shard(header: Header, rows: Sequence[FeatureRow]) -> bytes:
    """The bytes of a shard; a pure function of its arguments.

    Shorter clips are padded with zeros that the mask marks; their times go on at the hop.
    """
    longest = max(len(row.values) for row in rows)
    n, hop_s = len(rows), header.spec.hop_s
    features = np.zeros((n, longest, *header.spec.shape), np.float32)
    mask = np.zeros((n, longest), np.bool_)
    times_s = np.full((n, longest), np.nan)
    for i, row in enumerate(rows):
        steps = len(row.values)
        features[i, :steps] = row.values
        mask[i, :steps] = row.mask
        if hop_s is not None:
            times_s[i] = (np.arange(longest) + 0.5) * hop_s
        times_s[i, :steps] = row.times_s
    ids = [row.clip_id.encode() for row in rows]
    clip_id = np.array(ids, h5py.string_dtype("utf-8", max(map(len, ids))))
    source = np.array([row.source.encode() for row in rows], f"S{SOURCE_CHARACTERS}")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["header"] = np.bytes_(json.dumps(header.to_json(), sort_keys=True))
        own = np.array([len(row.values) for row in rows], np.int32)
        arrays = (clip_id, source, own, features, mask, times_s)
        for name, data in zip(_DATASETS, arrays, strict=True):
            chunks = (1, *data.shape[1:]) if name == "features" else None
            file.create_dataset(name, data=data, chunks=chunks)
    return buffer.getvalue()


class FileState(NamedTuple):
    """What the system tells of a file; as long as it is the same, so are the bytes."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, facts: os.stat_result) -> "FileState":
        """The state in a `stat`."""
        return cls(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)


class Shard:
    """A shard that is open for reading, after checking that it is what our writer makes.

    Built by `open`. What is small is in memory, features are read row by row.

    Attributes:
        path: The file.
        header: What made it.
        clip_ids: Ids of its clips, by row.
        sources: What each row was made of.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:  # noqa: D107
        self.path = path
        self.header = _read_header(file, path)
        self.clip_ids = _read_texts(file, "clip_id")
        self.sources = _read_texts(file, "source")
        if not all(map(SOURCE.fullmatch, self.sources)):
            raise StoreError(f"{path}: source: expected digests{_ADVICE}")
        self._file = file
        self._handle: int = file.id.get_vfd_handle()
        self._features = file["features"]
        self._row_shape: tuple[int, ...] = self._features.shape[1:]
        self._mask: NDArray[np.bool_] = file["mask"][:].view(np.uint8) != 0
        self._times_s: NDArray[np.float64] = file["times_s"][:]
        self._steps: NDArray[np.int32] = file["steps"][:]
        longest = self._row_shape[0]
        if not ((self._steps > 0) & (self._steps <= longest)).all():
            raise StoreError(f"{path}: steps: expected numbers from 1 to {longest}{_ADVICE}")
        if self._row_shape[1:] != self.header.spec.shape:
            raise ShapeError(
                f"{path}: features: the header says steps of shape {self.header.spec.shape}, "
                f"got {self._row_shape[1:]}"
            )

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a shard.

        Raises:
            StoreError: It is not a file, is cut off or damaged, or holds links, external or virtual
                storage, filters, unknown data sets, or shapes that its bytes cannot fill.
            ShapeError: Its data sets do not fit one another, or its header.
        """
        file = open_file(path, _ADVICE)
        try:
            with damage_named(path, _ADVICE):
                _check_layout(file, path)
                return cls(path, file)
        except BaseException:
            file.close()
            raise

    def read(self, row: int) -> FeatureRow:
        """Features of the clip in a row.

        Raises:
            StoreError: Its bytes cannot be read.
        """
        values = np.empty(self._row_shape, np.float32)
        self.read_into(row, values)
        return FeatureRow(self.clip_ids[row], values, *self.steps_of(row), self.sources[row])

    def read_own(self, row: int) -> FeatureRow:
        """Features of the clip in a row, without the padding that other rows of its shard ask for.

        Raises:
            StoreError: Its bytes cannot be read.
        """
        values = np.empty((int(self._steps[row]), *self._row_shape[1:]), np.float32)
        self.read_into(row, values)
        mask, times_s = self.steps_of(row)
        n = len(values)
        return FeatureRow(self.clip_ids[row], values, mask[:n], times_s[:n], self.sources[row])

    def steps_of(self, row: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Mask and times of the clip in a row, each (T,); nothing is read."""
        return self._mask[row], self._times_s[row]

    def read_into(self, row: int, out: NDArray[np.float32]) -> None:
        """The first steps of the clip in a row, as many as `out` takes.

        Args:
            row: From 0.
            out: (steps, ...) float32 in C order; steps is at most T.

        Raises:
            StoreError: Its bytes cannot be read.
        """
        with damage_named(self.path, _ADVICE):
            # h5py's own indexing takes longer than the reading.
            place = self._features.id.get_space()
            place.select_hyperslab((row,) + (0,) * out.ndim, (1, *out.shape))
            self._features.id.read(h5py.h5s.create_simple((1, *out.shape)), place, out)

    def is_still(self, known: FileState) -> bool:
        """Whether the open file is as it was known: neither written to nor cut.

        One whose name another file took keeps its bytes, though not the time of its last change.
        """
        # On Windows HDF5 may count its handles by itself; there no other can take an open name.
        facts = self.path.stat() if os.name == "nt" else os.fstat(self._handle)
        now = FileState.of(facts)
        if not facts.st_nlink:
            now = now._replace(ctime_ns=known.ctime_ns)
        return now == known

    def nonfinite_rows(self) -> list[int]:
        """Rows that hold NaN or infinity; reads the whole shard.

        Raises:
            StoreError: Its bytes cannot be read.
        """
        rows = range(len(self.clip_ids))
        return [row for row in rows if not np.isfinite(self.read(row).values).all()]

    def close(self) -> None:
        """Close the file; closing twice is closing once."""
        self._file.close()

    def __enter__(self) -> Self:  # noqa: D105
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self.close()


def _check_layout(file: h5py.File, path: Path) -> None:
    """Check everything of an open shard but its header; see `Shard.open`."""
    if len(file) != len(_DATASETS) or sorted(file) != sorted(_DATASETS):
        got = shorten(repr(tuple(file)[:8]), 200)
        raise StoreError(f"{path}: expected the data sets {_DATASETS}, got {len(file)}: {got}")
    check_data_sets(file, _DATASETS, path)
    kinds = {
        "features": np.dtype("f4"),
        "mask": np.dtype("?"),
        "times_s": np.dtype("f8"),
        "steps": np.dtype("i4"),
    }
    for name, kind in kinds.items():
        if file[name].dtype != kind:
            raise StoreError(f"{path}: {name} is {file[name].dtype}, expected {kind}")
    for name in ("clip_id", "source"):
        if file[name].dtype.kind != "S":
            raise StoreError(
                f"{path}: {name} is {file[name].dtype}, expected strings of a fixed length"
            )
    shapes: dict[str, tuple[int, ...]] = {name: file[name].shape for name in _DATASETS}
    n, steps = shapes["features"][:2] if len(shapes["features"]) >= 2 else (-1, -1)
    check_shape(shapes["mask"], "n T", f"{path}: mask", n=n, T=steps)
    check_shape(shapes["times_s"], "n T", f"{path}: times_s", n=n, T=steps)
    for name in ("clip_id", "source", "steps"):
        check_shape(shapes[name], "n", f"{path}: {name}", n=n)


def _read_header(file: h5py.File, path: Path) -> Header:
    """The header of an open shard.

    Raises:
        StoreError: It is missing or damaged.
    """
    try:
        header = file.attrs.get_id("header")
        if header.dtype.kind != "S" or header.shape or header.dtype.itemsize > MAX_HEADER_BYTES:
            raise TypeError(
                f"expected a string of at most {MAX_HEADER_BYTES} bytes, got "
                f"{header.dtype} of shape {header.shape}"
            )
        return Header.from_json(parse_json(bytes(file.attrs["header"])), path)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        told = shorten(repr(error), 200)
        raise StoreError(f"{path}: no readable header: {told}{_ADVICE}") from error


def _read_texts(file: h5py.File, name: str) -> tuple[str, ...]:
    """Ids or sources of the clips in an open shard, by row."""
    return tuple(raw.decode() for raw in file[name][:])


def describe_difference(expected: Header, got: Header) -> str:
    """One line per entry in which two headers differ, for an error."""
    old, new = (
        _flatten({**header.spec.traits, "shard_rows": header.shard_rows})
        for header in (expected, got)
    )
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    lines = [
        shorten(f"  {key}: expected {old.get(key)!r}, got {new.get(key)!r}") for key in keys[:50]
    ]
    return "made with other settings\n" + "\n".join(lines)


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {prefix.rstrip("."): value}
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}{key}.")
    return flat


def _sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
