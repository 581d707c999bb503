"""SlowOnly-R50 on TV-L1 optical flow: one vector per second.

Source: the recogniser `slowonly_r50_8x8x1_256e_kinetics400_flow` of mmaction2 0.x (Kinetics-400,
65.76 % top-1), its validation pipeline and global average pooling. Each second's clip is centred on
it and longer than it, so that neighbouring clips overlap: this policy is ours.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.store.sets import Steps
from micu_extract.backbones.base import (
    BACKBONES,
    OPENCV,
    FlowInput,
    Gives,
    InputSpec,
    Media,
    Option,
    Run,
    mean_by_step,
)
from micu_extract.backbones.hubs import url_state
from micu_extract.backbones.inference import Runner
from micu_extract.backbones.spec import build_spec
from micu_extract.backbones.weights import (
    Request,
    Weights,
    load_strictly,
    parse_demo_request,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
    without,
)

if TYPE_CHECKING:
    from torch import Tensor

    from micu_extract.backbones.slowonly_network import SlowOnly as Network

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


@BACKBONES.register("slowonly")
class SlowOnly:
    """SlowOnly-R50 8x8 on 8-bit TV-L1 flow of two channels, (T, 2048).

    Args:
        weights: `pretrained`, a path to a checkpoint in the layout of mmaction2 0.x, `random` or
            `random:SEED`.
        run: Where and how the network runs.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
    """

    NAME: ClassVar[str] = "slowonly"
    WIDTH: ClassVar[int] = 64
    DEPTHS: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)
    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    BATCH_SIZE: ClassVar[int] = 2
    wants: InputSpec = FlowInput(clip_len=8, interval=8, resize=256, crop=256, bound=20.0)
    gives: Gives = Gives(
        modality="flow",
        shape=(2048,),
        weights="download.openmmlab.com: slowonly_r50_8x8x1_256e_kinetics400_flow",
        licence="Apache-2.0",
    )

    def __init__(self, weights: str, run: Run) -> None:  # noqa: D107
        import torch

        request = self._parse(weights)
        network, source = self._load(request)
        # Channels last is 1.3 times as fast on a CPU.
        network = network.to(memory_format=torch.channels_last_3d)
        self._run = Runner(network, run, self.BATCH_SIZE)
        loaded = Weights(source, tensors_sha256(network))
        self.spec = build_spec(
            self.NAME,
            self,
            loaded,
            run,
            {
                "scale": f"(x - {STILL:g}) / {STILL:g}",
                "step": "mean over time and space of the clip centred on the second",
            },
            "torch",
            "av",
            *OPENCV,
        )

    def _parse(self, weights: str) -> Request:
        return parse_request(weights, self.NAME)

    def _load(self, request: Request) -> "tuple[Network, str]":
        network = seeded(self._draw, request.seed)
        if request.kind == "random":
            return network, request.source
        pretrained = request.kind == "pretrained"
        source = URL.rsplit("/", 1)[-1] if pretrained else request.source
        state = url_state(URL) if pretrained else read_state(request.path)
        body = without(state, CLASSIFIER)
        if all(name.startswith(BACKBONE) for name in body):
            body = {name.removeprefix(BACKBONE): tensor for name, tensor in body.items()}
        load_strictly(network, body, f"{self.NAME} {source}")
        return network, source

    def _draw(self) -> "Network":
        from micu_extract.backbones.slowonly_network import SlowOnly as Network

        return Network(self.WIDTH, self.DEPTHS)

    @property
    def batch_size(self) -> int:
        """Clips of flow per forward pass."""
        return self._run.batch_size

    def encode(
        self, units: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
    ) -> list[NDArray[np.float32]]:
        """Pooled output per clip of flow.

        Args:
            units: Clips, U of (L, H, W, 2), x then y, 128 = still.

        Returns:
            U of (D,).
        """
        return self._run.encode(units, self._forward)

    def _forward(self, clips: Sequence[NDArray[np.uint8]]) -> "Tensor":
        import torch

        x = torch.from_numpy(np.stack(clips)).to(self._run.device)
        x = x.permute(0, 4, 1, 2, 3).float()  # (B, 2, L, H, W), and channels last in memory
        pooled: Tensor = self._run((x - STILL) / STILL)
        return pooled

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The clip of each second, (T, D)."""
        return mean_by_step(outputs, media)


@BACKBONES.register("slowonly-demo")
class SlowOnlyDemo(SlowOnly):
    """A narrow, short SlowOnly on two small fields per second, random weights, (T, 128)."""

    NAME = "slowonly-demo"
    WIDTH = 8
    DEPTHS = (1, 1, 1)
    BATCH_SIZE = 16
    wants: InputSpec = FlowInput(clip_len=2, interval=3, resize=32, crop=32, bound=2.5)
    gives = Gives(
        modality="flow", shape=(128,), weights="none; --weights random only", licence="none"
    )

    def _parse(self, weights: str) -> Request:
        return parse_demo_request(weights, self.NAME, SlowOnly.NAME)

    def _draw(self) -> "Network":
        network = super()._draw()
        # Small things move in a still picture, so that the mean over space is small; without
        # biases, this gain is a gain of the output.
        network.conv1.bn.weight.data.fill_(16.0)
        return network
