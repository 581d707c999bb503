"""VGG19 up to its last pooling, on RGB frames: a grid of 7 x 7 vectors per second.

Source: Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015, configuration E.

Two sets of weights go by that name, trained by others in other ways, and each has its own backbone.
`vgg19` is what the AVE data set's features were made with (Tian et al., ECCV 2018), and those of
the work that builds on it: the original Caffe weights in Keras's file, Keras's preprocessing, 16
frames a second chosen by their number, and their mean. `vgg19-tv` has torchvision's weights and
transform, and chooses frames by time.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import WeightsError
from micu.store.sets import Steps
from micu_extract.backbones.base import (
    BACKBONES,
    OPENCV,
    FrameInput,
    Gives,
    InputSpec,
    Media,
    Option,
    Run,
    mean_by_step,
)
from micu_extract.backbones.hubs import url_file, url_state
from micu_extract.backbones.inference import Runner
from micu_extract.backbones.keras_h5 import SUFFIXES, read_keras_convolutions
from micu_extract.backbones.spec import build_spec
from micu_extract.backbones.weights import (
    PICKLES,
    Request,
    Weights,
    load_strictly,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
    without,
)

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
KERAS_CLASSIFIER = ("fc1", "fc2", "predictions", "dense", "dense_1", "dense_2")
"""Layers of the whole network that come after the last pooling, in any of Keras's layouts."""
KERAS_MEAN = (103.939, 116.779, 123.68)
"""Of blue, green and red, in [0, 255]."""
TORCHVISION_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
TORCHVISION_MEAN = (0.485, 0.456, 0.406)
"""Of red, green and blue, in [0, 1]; the deviations below as well."""
TORCHVISION_STD = (0.229, 0.224, 0.225)


@BACKBONES.register("vgg19")
class VGG19:
    """VGG19 pool5 as the AVE data set has it: Keras's weights and preprocessing, (T, 7, 7, 512).

    Differs from the AVE scripts: T need not be ten, and seconds that the media do not reach are
    marked as not real, where the scripts spread what there is over ten seconds. A file that is a
    little longer than ten seconds has ten steps, but one of eleven seconds has eleven: put 0 and 10
    in the manifest for the clips of that data set.

    Args:
        weights: `pretrained`, a path to an HDF5 file of Keras, with the classifier or without it,
            `random` or `random:SEED`.
        run: Where and how the network runs.
        frames_per_second: Frames averaged in each second; the AVE scripts have 16, or 8 in a copy.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME: ClassVar[str] = "vgg19"
    PACKAGES: ClassVar[tuple[str, ...]] = ("torch", "av", *OPENCV)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "frames_per_second": Option(
            type=int, default=16, help="frames that are averaged in each second"
        ),
    }
    wants: InputSpec = FrameInput(
        fps=16, resize=(224, 224), crop=224, interpolation="opencv-linear", sampling="count"
    )
    gives: Gives = Gives(
        modality="video",
        shape=(7, 7, 512),
        weights="storage.googleapis.com: keras-applications/vgg19, notop",
        licence="CC-BY-4.0",
    )

    def __init__(self, weights: str, run: Run, *, frames_per_second: int = 16) -> None:  # noqa: D107
        import torch

        assert isinstance(self.wants, FrameInput)
        self.wants = replace(self.wants, fps=frames_per_second)
        network, source = self._load(parse_request(weights, self.NAME))
        # Channels last is 1.2 times as fast on a CPU.
        network = network.to(memory_format=torch.channels_last)
        self._run = Runner(network, run, batch_size=8)
        loaded = Weights(source, tensors_sha256(network))
        step = {"step": "mean of the second's frames"}
        preprocessing = {**self._describe(), **step}
        self.spec = build_spec(self.NAME, self, loaded, run, preprocessing, *self.PACKAGES)

    def _load(self, request: Request) -> "tuple[nn.Module, str]":
        network = seeded(self._draw, request.seed)
        if request.kind == "random":
            return network, request.source
        pretrained = request.kind == "pretrained"
        if request.path.suffix in (".safetensors", *PICKLES):
            raise WeightsError(
                f"{request.path}: expected a file of Keras weights, {' or '.join(SUFFIXES)}; for "
                f"torchvision's weights take --backbone {VGG19Torchvision.NAME}"
            )
        path = url_file(KERAS_URL, md5=KERAS_MD5) if pretrained else request.path
        source = path.name if pretrained else request.source
        state = read_keras_convolutions(path, _keras_kernels(), KERAS_CLASSIFIER)
        load_strictly(network, state, f"{self.NAME} {source}")
        return network, source

    def _draw(self) -> "nn.Module":
        return build_network(keras_names=True)

    def _describe(self) -> dict[str, Any]:
        return {"scale": "RGB to BGR, then x - mean", "mean": list(KERAS_MEAN)}

    def _normalize(self, x: "Tensor") -> "Tensor":
        """From (B, 3, H, W), RGB in [0, 255], to what the network was trained on."""
        return x.flip(1) - x.new_tensor(KERAS_MEAN).view(1, 3, 1, 1)

    @property
    def batch_size(self) -> int:
        """Frames per forward pass."""
        return self._run.batch_size

    def encode(
        self, units: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
    ) -> list[NDArray[np.float32]]:
        """Output of the last pooling per frame.

        Args:
            units: Frames, U of (H, W, 3), RGB in [0, 255].

        Returns:
            U of (H / 32, W / 32, 512): rows, columns, channels.
        """
        return self._run.encode(units, self._forward)

    def _forward(self, frames: Sequence[NDArray[np.uint8]]) -> "Tensor":
        import torch

        x = torch.from_numpy(np.stack(frames)).to(self._run.device)
        x = x.permute(0, 3, 1, 2).float()  # (B, 3, H, W), and channels last in memory
        maps: Tensor = self._run(self._normalize(x))
        return maps.permute(0, 2, 3, 1)

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """Mean of each second's frames, (T, 7, 7, 512)."""
        return mean_by_step(outputs, media)


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
    PACKAGES = ("torch", "av", "pillow")
    wants: InputSpec = FrameInput(fps=16, resize=256, crop=224, interpolation="bilinear")
    gives = Gives(
        modality="video",
        shape=(7, 7, 512),
        weights="download.pytorch.org: vgg19-dcbb9e9d.pth",
        licence="BSD-3-Clause",
    )

    def _load(self, request: Request) -> "tuple[nn.Module, str]":
        network = seeded(self._draw, request.seed)
        if request.kind == "random":
            return network, request.source
        pretrained = request.kind == "pretrained"
        if request.path.suffix in SUFFIXES:
            raise WeightsError(
                f"{request.path}: expected a checkpoint of torchvision; for Keras's weights take "
                f"--backbone {VGG19.NAME}"
            )
        source = TORCHVISION_URL.rsplit("/", 1)[-1] if pretrained else request.source
        state = url_state(TORCHVISION_URL) if pretrained else read_state(request.path)
        body = without(state, ("classifier.",))
        load_strictly(network, body, f"{self.NAME} {source}")
        return network, source

    def _draw(self) -> "nn.Module":
        return build_network(keras_names=False)

    def _describe(self) -> dict[str, Any]:
        return {
            "scale": "x / 255, then (x - mean) / std",
            "mean": list(TORCHVISION_MEAN),
            "std": list(TORCHVISION_STD),
        }

    def _normalize(self, x: "Tensor") -> "Tensor":
        mean, std = (
            x.new_tensor(value).view(1, 3, 1, 1) for value in (TORCHVISION_MEAN, TORCHVISION_STD)
        )
        return (x / 255 - mean) / std


def build_network(*, keras_names: bool) -> "nn.Module":
    """The convolutions and poolings of VGG19 with He's random weights, which keep the scale.

    Args:
        keras_names: Name layers as Keras does, `block1_conv1`, or as torchvision, `features.0`.

    Returns:
        From (B, 3, H, W) to (B, 512, H / 32, W / 32).
    """
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
    if keras_names:
        return nn.Sequential(layers)
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers.values())))


def _keras_kernels() -> dict[str, tuple[int, int, int, int]]:
    """Shape of each kernel as Keras has it, (kh, kw, in, out), in the order of the network."""
    kernels = {}
    channels = 3
    for block, (width, convolutions) in enumerate(BLOCKS, 1):
        for place in range(1, convolutions + 1):
            kernels[f"block{block}_conv{place}"] = (3, 3, channels, width)
            channels = width
    return kernels
