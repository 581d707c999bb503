"""Small files of the layouts in which the authors released features, honest and hostile."""

import os
import pickle
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from micu.store.manifest import Clip, Event, write_manifest

GRID, VECTOR = (7, 7, 512), (128,)


def features(steps: int, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float64]:
    """Features as they are released: float64, not negative."""
    return np.abs(np.random.default_rng(seed).normal(size=(steps, *shape)))


def zip_pickle(path: Path, data: bytes, member: str = "x.pkl") -> None:
    """A zip file that holds one member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)


def zip_array(path: Path, array: NDArray[Any], protocol: int = 3) -> None:
    """One clip as it is released."""
    zip_pickle(path, pickle.dumps(array, protocol=protocol))


class Runs:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def shell(marker: Path) -> bytes:
    """A pickle that would touch a file."""
    return pickle.dumps(Runs(os.system, f"touch {marker}"))


def hidden_in_array(marker: Path) -> bytes:
    """The same inside of an array of objects."""
    return pickle.dumps(np.array([Runs(os.system, f"touch {marker}")], dtype=object))


def lie_about_size(path: Path, declared: int) -> None:
    """Change the size that the one member of a zip file declares."""
    data = bytearray(path.read_bytes())
    central = data.rfind(b"PK\x01\x02")
    for place in (central + 24, data.find(b"PK\x03\x04") + 22):
        data[place : place + 4] = struct.pack("<I", declared)
    path.write_bytes(data)


def claiming(array: NDArray[Any], shape: tuple[int, ...]) -> bytes:
    """A pickled array that claims another shape than its bytes have."""
    rebuild, arguments, state = array.__reduce__()  # type: ignore[misc]
    return pickle.dumps(Rebuilt(rebuild, arguments, (state[0], shape, *state[2:])), protocol=3)


HUNGRY = b"\x80\x04Nr" + struct.pack("<I", 2**31 - 1) + b"."
"""A pickle of eight bytes that makes its reader take 34 GB."""


class Rebuilt:
    """Pickles as what it is told."""

    def __init__(self, function: Any, arguments: Any, state: Any) -> None:
        self.told = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.told


# --- AVE -------------------------------------------------------------------------------------


def write_ave(folder: Path, labels: Sequence[str] = ("Bell", "Bark", "Bell")) -> Path:
    """AVE's files for a few lines, and their manifest `ave.csv`; event i is from i to i + 2 s."""
    clips = [
        Clip(clip_id=f"clip {i}", path="x.mp4", label=name, events=(Event(name, i, i + 2),))
        for i, name in enumerate(labels)
    ]
    classes = list(dict.fromkeys(labels))
    write_manifest(folder / "ave.csv", clips)
    marks = np.zeros((len(labels), 10, len(classes) + 1))
    marks[..., -1] = 1
    for i, name in enumerate(labels):
        marks[i, i : i + 2, classes.index(name)] = 1
        marks[i, i : i + 2, -1] = 0
    arrays = {"labels": marks}
    for name, shape in (("visual_feature", GRID), ("audio_feature", VECTOR)):
        arrays[name] = np.stack([features(10, shape, i) for i in range(len(labels))])
    for name, array in arrays.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["avadataset"] = array
    return folder / "ave.csv"
