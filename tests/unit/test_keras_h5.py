"""Files of Keras weights: their layouts, and what is refused in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from micu.base.errors import WeightsError
from micu_extract.backbones.keras_h5 import read_keras_convolutions

TWO_LAYERS = {"block1_conv1": (3, 3, 3, 4), "block1_conv2": (3, 3, 4, 5)}


def two_layers() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {f"{name}/W": shape for name, shape in TWO_LAYERS.items()}
    shapes |= {f"{name}/b": shape[-1:] for name, shape in TWO_LAYERS.items()}
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def write_two_layers(path: Path) -> Path:
    """A small file in the layout of the published one."""
    with h5py.File(path, "w") as file:
        for name, array in two_layers().items():
            layer, kind = name.split("/")
            file[f"{layer}/{layer}_{kind}_1:0"] = array
        file.create_group("block1_pool")
        file["fc1/fc1_W_1:0"] = np.ones((2, 2), np.float32)
    return path


def read_two_layers(path: Path) -> dict[str, torch.Tensor]:
    return read_keras_convolutions(path, TWO_LAYERS, ("fc1", "dense_1"))


def test_kernels_are_turned_to_the_order_of_torch(tmp_path: Path) -> None:
    state, arrays = read_two_layers(write_two_layers(tmp_path / "a.h5")), two_layers()

    assert sorted(state) == [
        f"block1_conv{i}.{kind}" for i in (1, 2) for kind in ("bias", "weight")
    ]
    kernel = arrays["block1_conv2/W"]  # (kh, kw, in, out)
    for row, column, before, after in np.ndindex(kernel.shape):
        turned = state["block1_conv2.weight"][after, before, row, column].item()
        assert turned == kernel[row, column, before, after]
    assert state["block1_conv1.bias"].tolist() == arrays["block1_conv1/b"].tolist()


@pytest.mark.parametrize(
    "place",
    [
        "{layer}/{layer}/{long}:0",
        "{layer}/{layer}/{long}",
        "{layer}/{layer}_2/{long}:0",
        "model_weights/{layer}/{layer}/{long}:0",
        "layers/{counted}/vars/{number}",
    ],
)
def test_every_layout_of_keras_gives_the_same_tensors(place: str, tmp_path: Path) -> None:
    expected = read_two_layers(write_two_layers(tmp_path / "a.h5"))
    with h5py.File(tmp_path / "b.weights.h5", "w") as file:
        for name, array in two_layers().items():
            layer, kind = name.split("/")
            counted = {"block1_conv1": "conv2d", "block1_conv2": "conv2d_1"}[layer]
            long, number = {"W": ("kernel", 0), "b": ("bias", 1)}[kind]
            file[place.format(layer=layer, counted=counted, long=long, number=number)] = array
        file["optimizer_weights/Adam/iterations:0"] = 7
        file["optimizer/vars/0"] = 7
        file["layers/dense_1/vars/0"] = np.ones((2, 2), np.float32)

    state = read_two_layers(tmp_path / "b.weights.h5")

    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def _replace(file: h5py.File, value: Any, **storage: Any) -> None:
    place = "block1_conv1/block1_conv1_b_1:0"
    del file[place]
    if isinstance(value, np.ndarray):
        file.create_dataset(place, data=value, **storage)
    elif value is not None:
        file[place] = value


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    del file["block1_conv1/block1_conv1_b_1:0"]
    file.create_virtual_dataset("block1_conv1/block1_conv1_b_1:0", layout)


def _huge(file: h5py.File) -> None:
    """Declares a terabyte; none of it is stored."""
    del file["block1_conv1/block1_conv1_b_1:0"]
    file.create_dataset("block1_conv1/block1_conv1_b_1:0", (2**40,), np.uint8, chunks=(2**20,))


def _loop(file: h5py.File) -> None:
    file["block1_pool/again"] = file["block1_pool"]


def _many(file: h5py.File) -> None:
    for i in range(1001):
        file.create_group(f"group{i}")


FOUR = np.ones(4, np.float32)
BAD_FILES: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "missing": (lambda file: _replace(file, None), "block1_conv1.bias missing"),
    "misshapen": (lambda file: _replace(file, FOUR[:3]), r"bias \(3,\) instead of \(4,\)"),
    "a group": (
        lambda file: (_replace(file, None), file.create_group("block1_conv1/block1_conv1_b_1:0")),
        "block1_conv1.bias missing",
    ),
    "another layer": (
        lambda file: file.create_dataset("block9/kernel:0", data=FOUR),
        "block9.weight not expected",
    ),
    "twice": (
        lambda file: file.create_dataset("block1_conv1/bias:0", data=FOUR),
        "block1_conv1/b.* not expected",
    ),
    "a type": (
        lambda file: _replace(file, np.dtype("f4")),
        r"bias None instead of \(4,\)",
    ),
    "at the root": (lambda file: file.create_dataset("x", data=FOUR), "x not expected"),
    "integers": (lambda file: _replace(file, np.ones(4, np.int32)), "numbers, got int32"),
    "strings": (
        lambda file: _replace(file, np.array(["a"] * 4, dtype=h5py.string_dtype())),
        "numbers, got object",
    ),
    "soft link": (lambda file: _replace(file, h5py.SoftLink("/fc1")), "is a SoftLink; links are"),
    "external link": (
        lambda file: _replace(file, h5py.ExternalLink("/etc/hostname", "/x")),
        "is a ExternalLink; links are",
    ),
    "external data": (
        lambda file: _replace(file, FOUR, external=[("elsewhere", 0, 16)]),
        "is not plain data of its own file",
    ),
    "virtual": (_virtual, "is not plain data of its own file"),
    "compressed": (
        lambda file: _replace(file, FOUR, compression="gzip"),
        "is not plain data of its own file",
    ),
    "huge": (_huge, r"bias \(1099511627776,\) instead of \(4,\)"),
    "a loop": (_loop, "more than 1000 groups and data sets"),
    "many groups": (_many, "more than 1000 groups and data sets"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_keras_file_that_is_not_what_it_should_be_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where external data would be written
    change, message = BAD_FILES[case]
    path = write_two_layers(tmp_path / "a.h5")
    read_two_layers(path)
    with h5py.File(path, "r+") as file:
        change(file)

    with pytest.raises(WeightsError, match=message) as caught:
        read_two_layers(path)

    assert str(path) in str(caught.value)


def test_a_damaged_keras_file_is_an_error_about_the_file(tmp_path: Path) -> None:
    whole = write_two_layers(tmp_path / "a.h5").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.h5"
        cut.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"cut\.h5: cannot be read as HDF5"):
            read_two_layers(cut)
