"""What stands behind the rows of one open-set job, for curves and maps: one `.npz` per outcome.

A file holds arrays of numbers alone, and one of UTF-8 bytes with all text as JSON; nothing in it is
a pickle. Reading one takes nothing for granted: sizes are checked before memory is taken, shapes
against each other, numbers for being finite.

    logits         (n, C) float32     of the test clips, over the known classes
    labels         (n,) int64         class, or -1 for an unknown one
    known_score    (n,) float64       higher = more known
    threshold      () float64         below it a clip was called unknown
    embedding      (m, D) float32     mean over the real steps of clips of both modalities
    text           (k,) uint8         JSON: `keys` (the rows' columns), `classes` (C), `clip_ids`
                                      and `clip_classes` (n), `map_ids`, `map_classes` and
                                      `map_modalities` (m)
"""

import hashlib
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from micu.base.errors import ConfigError, MicuError, check_shape
from micu.base.files import write_atomically
from micu.evaluate.metrics import check_open_set
from micu.evaluate.report import ADDED
from micu.store.manifest import Clip

if TYPE_CHECKING:  # torch takes seconds to import, and reading needs none
    from micu.evaluate.probe import ClipFeatures

SUFFIX = ".details.npz"
LARGEST = 1 << 30
"""Bytes that a file may unpack to."""

MAPPED = 1000
"""Clips of each modality whose embedding is kept, evenly spaced over all."""

_SHAPES = {
    "logits": ("n C", "f"),
    "labels": ("n", "i"),
    "known_score": ("n", "f"),
    "threshold": ("", "f"),
    "embedding": ("m D", "f"),
    "text": ("k", "u"),
}
"""Dimensions and kind of number of each array."""

_TEXTS = {
    "classes": "C",
    "clip_ids": "n",
    "clip_classes": "n",
    "map_ids": "m",
    "map_classes": "m",
    "map_modalities": "m",
}


@dataclass(frozen=True, slots=True)
class ClipMap:
    """Clips as single vectors, m of them, each in one modality."""

    embedding: NDArray[np.float32]
    """(m, D), mean over the real steps"""
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    """True class of each by name."""
    modalities: tuple[str, ...]


def map_clips(parts: Sequence[tuple[Sequence[Clip], "ClipFeatures"]]) -> ClipMap:
    """At most `MAPPED` clips of each part, evenly spaced, each as one vector."""
    kept = [(clips, features, thin_out(len(clips))) for clips, features in parts]
    vectors = [
        pool_steps(features.values[rows].cpu().numpy(), features.mask[rows].cpu().numpy())
        for _, features, rows in kept
    ]
    return ClipMap(
        np.concatenate(vectors),
        tuple(clips[row].clip_id for clips, _, rows in kept for row in rows),
        tuple(clips[row].label for clips, _, rows in kept for row in rows),
        tuple(features.modality for _, features, rows in kept for _ in rows),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """One probe on one test set, clip by clip."""

    logits: NDArray[np.floating]
    """(n, C)"""
    labels: NDArray[np.integer]
    """(n,), class or -1"""
    known_score: NDArray[np.floating]
    """(n,), higher = more known"""
    threshold: float
    classes: tuple[str, ...]
    """Names of the C known classes."""
    clip_ids: tuple[str, ...]
    """Of the n test clips."""
    clip_classes: tuple[str, ...]
    """True class of each test clip by name, known or not."""
    mapped: ClipMap
    """Clips that the probe learned from, and test clips."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """The columns by which the rows of this job are known, `metric` left out."""


def pool_steps(values: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean over the real steps, (n, D), from (n, T, D) and (n, T); 0 without a real step."""
    real = mask[..., None]
    total = np.where(real, values, 0).sum(1, dtype=np.float64)
    result: NDArray[np.float32] = (total / np.maximum(real.sum(1), 1)).astype(np.float32)
    return result


def thin_out(count: int, limit: int = MAPPED) -> NDArray[np.int64]:
    """At most `limit` places in [0, count), evenly spaced, the first among them."""
    kept = np.arange(count) if count <= limit else np.arange(limit) * count // limit
    result: NDArray[np.int64] = kept.astype(np.int64)
    return result


# --- writing ---------------------------------------------------------------------------------


def write_details(folder: Path, details: Details, keys: Mapping[str, object]) -> Path:
    """Write one job's file; the same job writes the same name again.

    Args:
        folder: Made if there is none.
        details: Of the job.
        keys: The columns of the job's rows but `metric`, `value`, `n_clips` and `note`.

    Returns:
        The file.
    """
    named = replace(details, keys={name: str(value) for name, value in keys.items()})
    text = {
        "keys": named.keys,
        "classes": named.classes,
        "clip_ids": named.clip_ids,
        "clip_classes": named.clip_classes,
        "map_ids": named.mapped.ids,
        "map_classes": named.mapped.classes,
        "map_modalities": named.mapped.modalities,
    }
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        logits=np.asarray(named.logits, np.float32),
        labels=np.asarray(named.labels, np.int64),
        known_score=np.asarray(named.known_score, np.float64),
        threshold=np.float64(named.threshold),
        embedding=np.asarray(named.mapped.embedding, np.float32),
        text=np.frombuffer(json.dumps(text).encode(), np.uint8),
    )
    path = folder / _file_name(named.keys)
    write_atomically(path, packed.getvalue())
    return path


def _file_name(keys: Mapping[str, str]) -> str:
    """Readable parts, then a digest of all keys."""
    parts = ("setting", "task", "method", "train_modality", "test_modality", "threshold_source")
    shown = [keys[name] for name in (*parts, "score", "seed") if keys.get(name)]
    words = "-".join(re.sub(r"[^\w.-]", "_", word)[:40] for word in shown)
    kept = sorted(item for item in keys.items() if item[0] not in ADDED)  # as Row.key
    digest = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    return f"{words}-{digest[:12]}{SUFFIX}"


# --- reading ---------------------------------------------------------------------------------


def read_details(path: Path) -> Details:
    """Read one job's file, which may be anybody's.

    Raises:
        ConfigError: It is not one, is cut off, contradicts itself or would fill the memory.
    """
    try:
        arrays = _read_arrays(path)
        sizes: dict[str, int] = {}
        for name, (dims, _) in _SHAPES.items():
            known = {dim: sizes[dim] for dim in dims.split() if dim in sizes}
            sizes |= check_shape(arrays[name].shape, dims, name, "", **known)
        details = _assemble(arrays, _read_text(arrays["text"], sizes))
        check_open_set(details.logits, details.labels, details.known_score)
        if not (math.isfinite(details.threshold) and np.isfinite(details.mapped.embedding).all()):
            raise ValueError("threshold or embedding: expected finite values")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; micu-eval … --details DIR writes some") from error
    except (
        *(ValueError, KeyError, TypeError, EOFError, RecursionError, NotImplementedError),
        *(MicuError, zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, zlib.error),
    ) as error:
        raise ConfigError(
            f"{path}: not a whole file of micu-eval --details: {error}; delete it and "
            "evaluate again"
        ) from error
    return details


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array, once the headers say that all of them fit."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.getinfo(f"{name}.npy") for name in _SHAPES}
        total = sum(member.file_size for member in members.values())
        if total > LARGEST:
            raise ValueError(f"it unpacks to {total} bytes, more than {LARGEST}")
        arrays: dict[str, NDArray[Any]] = {}
        for name, member in members.items():
            content = io.BytesIO(archive.open(member).read(member.file_size))
            _check_header(content, name, member.file_size)
            content.seek(0)
            arrays[name] = npy.read_array(content, allow_pickle=False)
    return arrays


def _check_header(content: io.BytesIO, name: str, size: int) -> None:
    """Refuse an array of another kind, or one that its bytes do not fill."""
    version = npy.read_magic(content)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name}: expected an array of format 1 or 2, got {version}")
    shape, _, dtype = readers[version](content)
    if dtype.kind != _SHAPES[name][1] or dtype.hasobject:
        raise ValueError(f"{name}: expected numbers of kind {_SHAPES[name][1]!r}, got {dtype}")
    if math.prod(shape) * dtype.itemsize != size - content.tell():
        raise ValueError(f"{name}: {shape} of {dtype} does not fit {size} bytes")


def _read_text(packed: NDArray[Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The names, each list as long as the arrays say."""
    text = json.loads(packed.tobytes().decode())
    if not isinstance(text, dict) or not isinstance(text.get("keys"), dict):
        raise TypeError("text: expected names")
    for name, dimension in _TEXTS.items():
        found = text[name]
        if not isinstance(found, list) or len(found) != sizes[dimension]:
            raise ValueError(f"{name}: expected {sizes[dimension]} names")
    words: Sequence[object] = [*text["keys"].values(), *(w for name in _TEXTS for w in text[name])]
    if not all(isinstance(word, str) for word in words):
        raise TypeError("text: expected names to be text")
    return text


def _assemble(arrays: Mapping[str, NDArray[Any]], text: Mapping[str, Any]) -> Details:
    return Details(
        logits=arrays["logits"].astype(np.float32, copy=False),
        labels=arrays["labels"].astype(np.int64, copy=False),
        known_score=arrays["known_score"].astype(np.float64, copy=False),
        threshold=float(arrays["threshold"]),
        classes=tuple(text["classes"]),
        clip_ids=tuple(text["clip_ids"]),
        clip_classes=tuple(text["clip_classes"]),
        mapped=ClipMap(
            arrays["embedding"].astype(np.float32, copy=False),
            *(tuple(text[f"map_{name}"]) for name in ("ids", "classes", "modalities")),
        ),
        keys=text["keys"],
    )
