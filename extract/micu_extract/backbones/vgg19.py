"""VGG19 up to its last pooling, on RGB frames: a grid of 7 x 7 vectors per second.

Source: Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015, configuration E.

Two sets of weights go by that name, trained by others in other ways, and each has its own backbone.
`vgg19` is what the AVE data set's features were made with (Tian et al., ECCV 2018), and those of
the work that builds on it: the original Caffe weights in Keras's file, Keras's preprocessing, 16
frames a second chosen by their number, and their mean. `vgg19-tv` has torchvision's weights and
transform, and chooses frames by time.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import StoreError, WeightsError
from micu_extract.backbones.base import (
    BACKBONES,
    OPENCV,
    FrameInput,
    Gives,
    InputSpec,
    Option,
    frames_option,
)
from micu_extract.backbones.hubs import url_file
from micu_extract.backbones.torch_backbone import TorchBackbone, normalize
from micu_extract.backbones.weights import KNOWN, Request, read_state, without

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Width and number of the convolutions of each block, which ends in a pooling."""
KERAS_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
KERAS_MD5 = "253f8cb515780f3b799900260a226db6"
"""Of the file, as Keras's own source has it."""
KERAS_SUFFIXES = (".h5", ".hdf5")
KERAS_MEAN = (103.939, 116.779, 123.68)
"""Of blue, green and red, in [0, 255]."""
TORCHVISION_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
TORCHVISION_MEAN = (0.485, 0.456, 0.406)
"""Of red, green and blue, in [0, 1]; the deviations below as well."""
TORCHVISION_STD = (0.229, 0.224, 0.225)


@BACKBONES.register("vgg19")
class VGG19(TorchBackbone):
    """VGG19 pool5 as the AVE data set has it: Keras's weights and preprocessing, (T, 7, 7, 512).

    Differs from the AVE scripts: T need not be ten, and seconds that the media do not reach are
    marked as not real, where the scripts spread what there is over ten seconds. A file that is a
    little longer than ten seconds has ten steps, but one of eleven seconds has eleven: put 0 and 10
    in the manifest for the clips of that data set.

    Args:
        weights: `pretrained`, a path to an HDF5 file in the layout of the published one, with the
            classifier or without it, or to a file of tensors by the names of Keras's layers,
            `random` or `random:SEED`.
        run: Where and how the network runs.
        frames_per_second: Frames averaged in each second; the AVE scripts have 16, or 8 in a copy.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME = "vgg19"
    KERAS_NAMES: ClassVar[bool] = True
    BATCH_SIZE = 8
    PACKAGES: ClassVar[tuple[str, ...]] = ("torch", "av", *OPENCV)
    OPTIONS: ClassVar[Mapping[str, Option]] = frames_option(16)
    wants: InputSpec = FrameInput(
        fps=16, resize=(224, 224), crop=224, interpolation="opencv-linear", sampling="count"
    )
    gives: Gives = Gives(
        modality="video",
        shape=(7, 7, 512),
        weights="storage.googleapis.com: keras-applications/vgg19, notop",
        licence="CC-BY-4.0",
    )

    def _prepare(self) -> None:
        assert isinstance(self.wants, FrameInput)
        self.wants = replace(self.wants, fps=self._options["frames_per_second"])

    def _draw(self) -> "nn.Module":
        return build_network(keras_names=self.KERAS_NAMES)

    def _read(self, request: Request) -> "tuple[dict[str, Tensor], str]":
        if request.kind == "pretrained":
            path = url_file(KERAS_URL, md5=KERAS_MD5)
            return read_keras(path), path.name
        path = request.path
        if path.suffix in KERAS_SUFFIXES and not path.is_dir():
            return read_keras(path), request.source
        if path.suffix not in KNOWN or path.is_dir():
            got = "a directory" if path.is_dir() else repr(path.suffix or path.name)
            known = " or ".join((*KERAS_SUFFIXES, KNOWN[0]))
            raise WeightsError(f"{path}: expected a file of Keras's weights, {known}, got {got}")
        state = read_state(path)
        if any(name.startswith("features.") for name in state):
            raise WeightsError(
                f"{path}: expected tensors by the names of Keras's layers, got torchvision's; take "
                f"--backbone {VGG19Torchvision.NAME}"
            )
        return state, request.source

    def _describe(self) -> dict[str, Any]:
        return {
            "scale": "RGB to BGR, then x - mean",
            "mean": list(KERAS_MEAN),
            "step": "mean of the second's frames",
        }

    def _normalize(self, x: "Tensor") -> "Tensor":
        """From (B, 3, H, W), RGB in [0, 255], to what the network was trained on."""
        return x.flip(1) - x.new_tensor(KERAS_MEAN).view(1, 3, 1, 1)

    def _forward(self, frames: Sequence[NDArray[np.uint8]]) -> "Tensor":
        """From frames (H, W, 3), RGB, to (B, H / 32, W / 32, 512): rows, columns, channels."""
        maps: Tensor = self._run(self._normalize(self._pictures(frames)))
        return maps.permute(0, 2, 3, 1)


@BACKBONES.register("vgg19-tv")
class VGG19Torchvision(VGG19):
    """VGG19 pool5 with torchvision's weights and transform, (T, 7, 7, 512).

    Args:
        weights: `pretrained`, a path to a checkpoint of torchvision's `vgg19`, with the classifier
            or without it, `random` or `random:SEED`.
        run: Where and how the network runs.
        frames_per_second: Frames averaged in each second.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME = "vgg19-tv"
    KERAS_NAMES = False
    URL = TORCHVISION_URL
    PACKAGES = ("torch", "av", "pillow")
    wants: InputSpec = FrameInput(fps=16, resize=256, crop=224, interpolation="bilinear")
    gives = Gives(
        modality="video",
        shape=(7, 7, 512),
        weights="download.pytorch.org: vgg19-dcbb9e9d.pth",
        licence="BSD-3-Clause",
    )

    def _read(self, request: Request) -> "tuple[dict[str, Tensor], str]":
        if request.path.suffix in KERAS_SUFFIXES:
            raise WeightsError(
                f"{request.path}: expected a checkpoint of torchvision; for Keras's weights take "
                f"--backbone {VGG19.NAME}"
            )
        return TorchBackbone._read(self, request)

    def _rename(self, network: Any, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        return without(state, ("classifier.",))

    def _describe(self) -> dict[str, Any]:
        return {
            "scale": "x / 255, then (x - mean) / std",
            "mean": list(TORCHVISION_MEAN),
            "std": list(TORCHVISION_STD),
            "step": "mean of the second's frames",
        }

    def _normalize(self, x: "Tensor") -> "Tensor":
        return normalize(x, TORCHVISION_MEAN, TORCHVISION_STD)


def build_network(*, keras_names: bool) -> "nn.Module":
    """The convolutions and poolings of VGG19 with He's random weights, which keep the scale.

    Args:
        keras_names: Name layers as Keras does, `block1_conv1`, or as torchvision, `features.0`.

    Returns:
        From (B, 3, H, W) to (B, 512, H / 32, W / 32).
    """
    import torch
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block, (width, convolutions) in enumerate(BLOCKS, 1):
        for place in range(1, convolutions + 1):
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers[f"block{block}_conv{place}"] = convolution
            layers[f"block{block}_relu{place}"] = nn.ReLU(inplace=True)
            channels = width
        layers[f"block{block}_pool"] = nn.MaxPool2d(2, 2)
    network = nn.Sequential(layers)
    if not keras_names:
        network = nn.Sequential(OrderedDict(features=nn.Sequential(*layers.values())))
    # Channels last is 1.2 times as fast on a CPU.
    return network.to(memory_format=torch.channels_last)


def read_keras(path: Path) -> "dict[str, Tensor]":
    """The convolutions of an HDF5 file in the layout of the published one.

    That is a group per layer at the root, with the data sets `LAYER_W_1:0`, (kh, kw, in, out), and
    `LAYER_b_1:0`. What else the file holds is not looked at.

    Returns:
        `LAYER.weight`, (out, in, kh, kw), and `LAYER.bias`, (out,), of all layers.

    Raises:
        WeightsError: The file cannot be read, or is of another layout.
    """
    import h5py
    import torch

    from micu.store.hdf5 import check_data_sets, damage_named, open_file

    places = dict(_keras_places())
    try:
        with open_file(path) as file, damage_named(path):
            # A group that is a link could lead to another file, and is none of the layout.
            groups = {place.partition("/")[0] for place in places.values()}
            plain = {name for name in groups if type(file.get(name, getlink=True)) is h5py.HardLink}
            missing = [
                place
                for place in places.values()
                if place.partition("/")[0] not in plain or place not in file
            ]
            if missing:
                raise WeightsError(
                    f"{path}: expected the layout of Keras's published file, got one without "
                    f"{missing[0]}; other files of Keras are converted first: see VGG-19 in the "
                    "docs/backbones.md"
                )
            check_data_sets(file, list(places.values()), path)
            state = {}
            for name, place in places.items():
                data, shape = file[place], _keras_shape(name)
                if data.shape != shape or data.dtype.kind != "f":
                    raise WeightsError(
                        f"{path}: {place}: expected numbers of shape {shape}, got "
                        f"{data.dtype} of shape {data.shape}"
                    )
                if data.id.get_storage_size() != data.nbytes:  # the rest reads as zeros
                    raise WeightsError(f"{path}: {place} has not the numbers that it declares")
                array = np.asarray(data[()])
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
                state[name] = torch.from_numpy(np.ascontiguousarray(array, np.float32))
            return state
    except StoreError as error:
        raise WeightsError(str(error)) from error


def _keras_shape(name: str) -> tuple[int, ...]:
    """The shape of a tensor in the published file: kernels are (height, width, in, out)."""
    block = int(name.removeprefix("block")[0])
    width = BLOCKS[block - 1][0]
    if name.endswith(".bias"):
        return (width,)
    is_first = "_conv1." in name
    into = (3 if block == 1 else BLOCKS[block - 2][0]) if is_first else width
    return (3, 3, into, width)


def _keras_places() -> Iterator[tuple[str, str]]:
    """Each tensor's name, and where it lies in the published file."""
    for block, (_, convolutions) in enumerate(BLOCKS, 1):
        for place in range(1, convolutions + 1):
            layer = f"block{block}_conv{place}"
            yield f"{layer}.weight", f"{layer}/{layer}_W_1:0"
            yield f"{layer}.bias", f"{layer}/{layer}_b_1:0"
