"""SlowOnly-R50 on TV-L1 optical flow: one vector per second.

Source: the recogniser `slowonly_r50_8x8x1_256e_kinetics400_flow` of mmaction2 0.x (Kinetics-400,
65.76 % top-1), its validation pipeline and global average pooling: flow is computed on frames that
are only ever made smaller, then its 8-bit form is resized to a short side of 256, up as well as
down. Each second's clip is centred on it and longer than it, so that neighbouring clips overlap:
this policy is ours.

Differs: the weights saw the TV-L1 of OpenCV's CUDA code (300 iterations, no median filter), where
ours is that of its CPU code.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu_extract.backbones.base import BACKBONES, OPENCV, FlowInput, Gives, InputSpec
from micu_extract.backbones.torch_backbone import TorchBackbone
from micu_extract.backbones.weights import without

if TYPE_CHECKING:
    from torch import Tensor

URL = (
    "https://download.openmmlab.com/mmaction/recognition/slowonly/"
    "slowonly_r50_8x8x1_256e_kinetics400_flow/"
    "slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth"
)
BACKBONE = "backbone."
"""What the recogniser's file has before the names of the network's tensors."""
CLASSIFIER = ("cls_head.fc_cls.weight", "cls_head.fc_cls.bias")
STILL = 128.0
"""Level of no motion; also what the network's input is divided by."""


TOLERANCE = 5e-3
"""A last bit of a field turns its 8-bit image by a level of 255, here and there. OpenCV 5 makes
other fields than OpenCV 4, with its own TV-L1 and with ours: by more than this."""


@BACKBONES.register("slowonly")
class SlowOnly(TorchBackbone):
    """SlowOnly-R50 8x8 on 8-bit TV-L1 flow of two channels, (T, 2048).

    Args:
        weights: `pretrained`, a path to a checkpoint in the layout of mmaction2 0.x, `random` or
            `random:SEED`.
        run: Where and how the network runs.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME = "slowonly"
    URL = URL
    WIDTH: ClassVar[int] = 64
    DEPTHS: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)
    BATCH_SIZE = 2
    PACKAGES = ("torch", "av", *OPENCV)
    wants: InputSpec = FlowInput(
        clip_len=8, interval=8, resize=256, field_side=256, crop=256, bound=20.0
    )
    gives: Gives = Gives(
        modality="flow",
        shape=(2048,),
        weights="download.openmmlab.com: slowonly_r50_8x8x1_256e_kinetics400_flow",
        licence="Apache-2.0",
        tolerance=TOLERANCE,
    )

    def _draw(self) -> Any:
        import torch

        from micu_extract.backbones.slowonly_network import SlowOnlyNetwork

        network = SlowOnlyNetwork(self.WIDTH, self.DEPTHS)
        # Channels last is 1.3 times as fast on a CPU.
        return network.to(memory_format=torch.channels_last_3d)

    def _rename(self, network: Any, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        body = without(state, CLASSIFIER)
        if all(name.startswith(BACKBONE) for name in body):
            body = {name.removeprefix(BACKBONE): tensor for name, tensor in body.items()}
        return body

    def _describe(self) -> dict[str, Any]:
        return {
            "scale": f"(x - {STILL:g}) / {STILL:g}",
            "step": "mean over time and space of the clip centred on the second",
        }

    def _forward(self, clips: Sequence[NDArray[np.uint8]]) -> "Tensor":
        """From clips of flow (L, H, W, 2), x then y, 128 = still, to (B, D)."""
        x = self._stack(clips).permute(0, 4, 1, 2, 3).float()  # channels last in memory
        pooled: Tensor = self._run((x - STILL) / STILL)  # of (B, 2, L, H, W)
        return pooled


@BACKBONES.register("slowonly-demo")
class SlowOnlyDemo(SlowOnly):
    """A narrow, short SlowOnly on two small fields per second, random weights, (T, 128)."""

    NAME = "slowonly-demo"
    DEMO_OF = SlowOnly.NAME
    WIDTH = 8
    DEPTHS = (1, 1, 1)
    BATCH_SIZE = 16
    wants: InputSpec = FlowInput(
        clip_len=2, interval=3, resize=32, field_side=32, crop=32, bound=2.5
    )
    gives = Gives(
        modality="flow",
        shape=(128,),
        weights="none; --weights random only",
        licence="none",
        tolerance=TOLERANCE,
    )

    def _draw(self) -> Any:
        network = super()._draw()
        # Small things move in a still picture, so that the mean over space is small; without
        # biases, this gain is a gain of the output.
        network.conv1.bn.weight.data.fill_(16.0)
        return network
