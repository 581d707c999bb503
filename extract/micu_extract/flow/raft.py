"""RAFT optical flow: torchvision's network, its weights and its own preparation of pictures.

Reference: Teed and Deng, RAFT: recurrent all-pairs field transforms for optical flow, ECCV 2020.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

URLS = {
    "large": "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    "small": "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth",
}
"""torchvision's default weights, BSD-3-Clause."""

UPDATES = 12
"""Refinements of the field; torchvision's default."""
MULTIPLE_PX = 8
SMALLEST_PX = 128
"""The coarsest of its four correlation levels needs two cells."""
GPU_BATCH = 4
"""Pairs per forward pass on a GPU; a CPU gains nothing from more than one."""

_loading = Lock()


class RAFT:
    """torchvision's RAFT with its weights, on its device.

    Args:
        size: `large` or `small`.
        weights: `pretrained`, a path to a checkpoint in torchvision's layout, `random` or
            `random:SEED`.
        device: As `micu.base.devices.resolve_device` takes it.

    Raises:
        WeightsError: The weights cannot be had or do not fit.
        ConfigError: The device is unknown or not there.
    """

    def __init__(self, size: str, weights: str, device: str) -> None:  # noqa: D107
        from torchvision.models import optical_flow

        from micu_extract.backbones.base import Run
        from micu_extract.backbones.hubs import by_hand, url_state
        from micu_extract.backbones.torch_backbone import Runner
        from micu_extract.backbones.weights import (
            load_strictly,
            parse_request,
            read_state,
            seeded,
            tensors_sha256,
        )

        self.size = size
        name = f"raft_{size}"
        request = parse_request(weights, f"{name} (--flow-weights)")
        network = seeded(lambda: getattr(optical_flow, name)(weights=None), request.seed)
        self.source = request.source
        if request.kind != "random":
            pretrained = request.kind == "pretrained"
            if pretrained:
                self.source = URLS[size].rsplit("/", 1)[-1]
            remedy = by_hand(f"curl -LO {URLS[size]}", option="--flow-weights")
            state = url_state(URLS[size], remedy=remedy) if pretrained else read_state(request.path)
            load_strictly(network, state, f"{name} {self.source}")
        self.sha256 = tensors_sha256(network)
        self._run = Runner(network, Run(device=device), 1)
        if self._run.device.type != "cpu":
            self._run.batch_size = GPU_BATCH
        self._turn = Lock()

    def describe(self) -> dict[str, Any]:
        """What it is and computes with, as JSON."""
        return {
            "implementation": f"torchvision raft_{self.size}",
            "weights": self.source,
            "weights_sha256": self.sha256,
            "parameters": {
                "updates": UPDATES,
                "scale": "(x / 255 - 0.5) / 0.5",
                "padding": f"edges, to a multiple of {MULTIPLE_PX} px, at least {SMALLEST_PX}",
            },
        }

    def estimate(
        self, previous: NDArray[np.uint8], following: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Displacement of each pair; see `micu_extract.flow.methods.estimate_flow`.

        Args:
            previous: (P, H, W, 3) RGB.
            following: (P, H, W, 3) RGB.

        Returns:
            (P, H, W, 2), px.
        """
        margins = [_margins(side) for side in previous.shape[1:3]]
        pads = ((0, 0), *margins, (0, 0))
        padded = [np.pad(pictures, pads, "edge") for pictures in (previous, following)]
        with self._turn:  # two clips at once would need twice the memory, and are no faster
            flows = self._run.encode(list(zip(*padded, strict=True)), self._forward)
        (top, _), (left, _) = margins
        height, width = previous.shape[1:3]
        return np.stack(flows)[:, top : top + height, left : left + width]

    def _forward(self, pairs: "Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]") -> "Tensor":
        first, second = (self._prepare(side) for side in zip(*pairs, strict=True))
        refined: list[Tensor] = self._run(first, second, num_flow_updates=UPDATES)
        return refined[-1].permute(0, 2, 3, 1)  # (B, H, W, 2)

    def _prepare(self, pictures: Sequence[NDArray[np.uint8]]) -> "Tensor":
        """(B, H, W, 3) RGB to (B, 3, H, W) in [-1, 1]."""
        import torch

        x = torch.from_numpy(np.stack(pictures)).to(self._run.device).permute(0, 3, 1, 2)
        # Channels last rounds otherwise, in the fifth digit of the flow.
        return (x.contiguous() / 255 - 0.5) / 0.5


def load_raft(size: str, weights: str, device: str) -> RAFT:
    """The network, loaded once per process; see `RAFT`."""
    with _loading:
        return _load_once(size, weights, device)


@lru_cache(maxsize=1)
def _load_once(size: str, weights: str, device: str) -> RAFT:
    return RAFT(size, weights, device)


def _margins(side: int) -> tuple[int, int]:
    """Padding before and after, px, that makes a side one that the network takes."""
    missing = max(math.ceil(side / MULTIPLE_PX) * MULTIPLE_PX, SMALLEST_PX) - side
    return missing // 2, missing - missing // 2
