"""The file of VGGish's whitening: finding it, and reading what it may hold.

The published file, made in 2019, is a pickle of two NumPy arrays, which the loader of tensors
refuses. Here NumPy's own constructors are let through, and nothing else.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from micu.base.errors import CheckpointError, WeightsError
from micu.base.tensor_files import check_tensor_file
from micu_extract.backbones.weights import PICKLES, find_weights_file, first_line

if TYPE_CHECKING:
    from torch import Tensor

PCA_FILE = "vggish_pca_params-970ea276.pth"
PCA_START = "vggish_pca_params"
SHAPES = {"pca_eigen_vectors": (128, 128), "pca_means": (128,)}
MAX_BYTES = 2**20
"""The published file has 0.18 MB."""
RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
"""The name in a pickle of an array, before and since NumPy 2."""


def find_files(path: Path, *, pca: str, need: bool) -> tuple[Path, Path | None]:
    """The network's file at `path`, and the PCA file beside it where it is needed.

    Args:
        path: A file, or a directory with one file of a network.
        pca: Where the PCA file can be had, for the message.
        need: Whether the PCA file is.

    Raises:
        WeightsError: There is none, or more than one could be meant.
    """
    folder = path.absolute().parent
    if path.is_dir():
        folder = path
        known = (".safetensors", *PICKLES)
        files = [p for p in sorted(folder.iterdir()) if p.suffix in known and p.is_file()]
        networks = [p for p in files if not p.name.startswith(PCA_START)]
        path = networks[0] if len(networks) == 1 else find_weights_file(folder)
    if not need:
        return path, None
    found = sorted(folder.glob(f"{PCA_START}*"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise WeightsError(
            f"{folder}: expected {PCA_FILE} beside the network's weights, got {names}; --pca needs "
            f"it. On a machine with network type: curl -LO {pca}"
        )
    return path, found[0]


def read_pca(path: Path) -> "dict[str, Tensor]":
    """The whitening's tensors, named as in the network.

    Raises:
        WeightsError: The file does not hold the two matrices as arrays or tensors of numbers, or
            holds anything else.
    """
    import torch

    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f"{path}: expected at most {MAX_BYTES} bytes, got more; not {PCA_FILE}")
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(_array_constructors()):
            check_tensor_file(file, str(path), arrays=True)
            file.seek(0)
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.keys() != SHAPES.keys():
            raise ValueError(f"expected {' and '.join(SHAPES)} by name")
        arrays = {name: _numbers(content[name]) for name in SHAPES}
    except CheckpointError as error:
        why = str(error).removeprefix(f"{path}: ")
        raise WeightsError(f"{path}: cannot be read as VGGish's PCA: {why}") from error
    except Exception as error:  # a pickle that is not what it says can raise anything
        why = first_line(error) if isinstance(error, ValueError) else type(error).__name__
        raise WeightsError(f"{path}: cannot be read as VGGish's PCA: {why}") from error
    for name, shape in SHAPES.items():
        if arrays[name].size != np.prod(shape) or arrays[name].shape[0] != shape[0]:
            raise WeightsError(f"{path}: {name}: expected {shape}, got {arrays[name].shape}")
    return {
        f"pca.{name}": torch.from_numpy(arrays[name].reshape(shape).astype(np.float32))
        for name, shape in SHAPES.items()
    }


def _array_constructors() -> list[Any]:
    reconstruct = np.array(0.0).__reduce__()[0]
    types = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    return [*((reconstruct, name) for name in RECONSTRUCT), np.ndarray, np.dtype, *types]


def _numbers(value: Any) -> "np.ndarray[Any, np.dtype[Any]]":
    import torch

    array = value.numpy() if isinstance(value, torch.Tensor) else value
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise ValueError("expected arrays of numbers")
    return array
