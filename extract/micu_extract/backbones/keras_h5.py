"""Convolutions from an HDF5 file that Keras wrote.

Three layouts hold the same tensors. Keras 1 and 2 have a group per layer at the root, with the data
sets `NAME_W_1:0` and `NAME_b_1:0`, or `NAME/kernel:0` and `NAME/bias:0`; a whole model that was
saved has them below `model_weights`; and a `.weights.h5` of Keras 3 counts layers by their class,
`layers/conv2d_3/vars/0` being the kernel of the fourth convolution and `vars/1` its bias.

A file is hostile until shown otherwise: no link is followed, no data outside of the file is read,
and nothing is read at all before every name, type and shape is what it should be.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from micu.base.errors import WeightsError
from micu_extract.backbones.weights import refuse_misfits

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".h5", ".hdf5")
MAX_OBJECTS = 1000
"""Groups and data sets; a VGG19 with its classifier and optimizer has about two hundred."""
_PARTS = {
    "kernel": "weight",
    "W": "weight",
    "0": "weight",
    "bias": "bias",
    "b": "bias",
    "1": "bias",
}


def read_keras_convolutions(
    path: Path, kernels: Mapping[str, tuple[int, int, int, int]], unused: tuple[str, ...]
) -> "dict[str, Tensor]":
    """Read the kernels and biases of convolutions, every one of them and nothing beside.

    Args:
        path: HDF5 file.
        kernels: Shape of each kernel, (kh, kw, in, out), by the name of its layer, in the order of
            the network.
        unused: Names of layers that may be in the file and are left there.

    Returns:
        `NAME.weight`, (out, in, kh, kw), and `NAME.bias`, (out,), by layer, float32.

    Raises:
        WeightsError: The file cannot be read, or does not hold just these tensors.
    """
    import h5py

    if path.suffix not in SUFFIXES or not path.is_file():
        got = "a directory" if path.is_dir() else repr(path.suffix or path.name)
        raise WeightsError(
            f"{path}: expected a file of Keras weights, {' or '.join(SUFFIXES)}, got {got}"
        )
    try:
        with h5py.File(path, "r", locking=False, rdcc_nbytes=0) as file:
            found = _find(file, path, list(kernels), unused)
            _check(found, path, kernels)
            return {name: _to_torch(np.asarray(data[()])) for name, data in found.items()}
    # h5py raises all of these about a damaged file, and UnicodeError, a ValueError, about names
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: cannot be read as HDF5 ({error})") from error


def _find(file: Any, path: Path, layers: list[str], unused: tuple[str, ...]) -> dict[str, Any]:
    """Data sets of the file by the name of the tensor that each holds."""
    found: dict[str, Any] = {}
    for place, data in _walk(file, path):
        name = _name_tensor(place, layers)
        if name.split(".")[0] in unused:
            continue
        found[place if name in found else name] = data
    return found


def _walk(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Every data set of a file and its place; what only training needs is passed over."""
    import h5py

    waiting = [("", file)]
    seen = 0
    while waiting:
        place, group = waiting.pop()
        for key in group:
            inner = f"{place}/{key}".lstrip("/")
            seen += 1
            if inner in ("optimizer_weights", "optimizer"):
                continue
            if seen > MAX_OBJECTS:  # one that holds itself never ends
                raise WeightsError(
                    f"{path}: not Keras weights: more than {MAX_OBJECTS} groups and data sets"
                )
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise WeightsError(f"{path}: {inner} is a {type(link).__name__}; links are refused")
            held = group[key]
            if isinstance(held, h5py.Group):
                waiting.append((inner, held))
            else:
                yield inner, held


def _name_tensor(place: str, layers: list[str]) -> str:
    """The tensor that a data set holds, `LAYER.weight` or `LAYER.bias`; else the place itself."""
    parts = place.removeprefix("model_weights/").split("/")
    if parts[0] == "layers" and len(parts) == 4 and parts[2] == "vars":
        layer, leaf = _name_counted(parts[1], layers), parts[3]
    elif len(parts) > 1:
        layer, leaf = parts[0], parts[-1].removesuffix(":0")
        leaf = re.sub(rf"^{re.escape(layer)}_([Wb])(_\d+)?$", r"\1", leaf)
    else:
        return place
    return f"{layer}.{_PARTS[leaf]}" if leaf in _PARTS else place


def _name_counted(counted: str, layers: list[str]) -> str:
    """The layer behind a name as Keras 3 stores it: `conv2d_3` is the fourth of `layers`."""
    match = re.fullmatch(r"conv2d(?:_([1-9]\d{0,3}))?", counted)
    if match is None:
        return counted
    place = int(match[1] or 0)
    return layers[place] if place < len(layers) else counted


def _check(
    found: Mapping[str, Any], path: Path, kernels: Mapping[str, tuple[int, int, int, int]]
) -> None:
    """Refuse what is not exactly the tensors that are wanted, before any is read."""
    import h5py

    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": s for name, s in kernels.items()}
    shapes |= {f"{name}.bias": shape[-1:] for name, shape in kernels.items()}
    got = {name: getattr(data, "shape", None) for name, data in found.items() if name in shapes}
    wrong = [
        f"{name} {shape} instead of {shapes[name]}"
        for name, shape in got.items()
        if shape != shapes[name]
    ]
    refuse_misfits(str(path), shapes.keys() - found.keys(), found.keys() - shapes.keys(), wrong)
    for name, data in found.items():
        plain = isinstance(data, h5py.Dataset) and data.chunks is None
        if not plain or data.is_virtual or data.external:
            raise WeightsError(f"{path}: {name} is not plain data of its own file; refused")
        if data.dtype.kind != "f":
            raise WeightsError(f"{path}: {name}: expected floating point numbers, got {data.dtype}")
        if data.id.get_storage_size() != data.nbytes:  # else what is not there is read as zeros
            raise WeightsError(f"{path}: {name} has not the numbers that it declares; refused")


def _to_torch(array: "np.ndarray[Any, Any]") -> "Tensor":
    """A tensor as torch has it: (kh, kw, in, out) becomes (out, in, kh, kw)."""
    import torch

    turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return torch.from_numpy(np.ascontiguousarray(turned, np.float32))
