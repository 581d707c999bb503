"""How optical flow is computed: the two methods, and the settings of a run.

`tvl1` is what the two-stream networks were trained on. `raft` is a newer network, whose fields are
others: features of one must not be mixed with those of the other, so that each describes itself for
the shard's header, and neither stands in for the other.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from micu.base.devices import resolve_device
from micu.base.errors import ConfigError, MicuError, check_shape
from micu_extract.backbones.base import OPENCV, versions_of
from micu_extract.flow.tvl1 import tvl1_pairs
from micu_extract.flow.tvl1_parameters import ENGINES, TVL1

FLOW_METHODS = ("tvl1", "raft")
RAFT_SIZES = ("large", "small")

_IMPLEMENTATIONS = {
    "numba": "DualTVL1OpticalFlow restated, numba kernels, cpu",
    "opencv": "OpenCV DualTVL1OpticalFlow, cpu",
    "torch": "DualTVL1OpticalFlow restated, torch",
}
_TVL1_PACKAGES = {"numba": ("numba", *OPENCV), "opencv": OPENCV, "torch": ("torch",)}
"""Those whose version can change a number, by engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """How optical flow is computed; the same for every clip of a run.

    Raises:
        ConfigError: No such method, engine or size of network.
    """

    method: str = "tvl1"
    """One of `FLOW_METHODS`."""
    engine: str = "numba"
    """What computes TV-L1: one of `micu_extract.flow.tvl1_parameters.ENGINES`."""
    tvl1: TVL1 = field(default_factory=TVL1)
    """Parameters of TV-L1."""
    raft: str = "large"
    """Size of RAFT's network: one of `RAFT_SIZES`."""
    weights: str = "pretrained"
    """Of RAFT: as `micu_extract.backbones.weights` takes them."""
    device: str = "cpu"
    """Where RAFT, and the torch engine of TV-L1, compute. Not in the header, as no device is."""

    def __post_init__(self) -> None:  # noqa: D105
        for what, value, known in (
            ("--flow-method", self.method, FLOW_METHODS),
            ("--flow-engine", self.engine, ENGINES),
            ("--raft-model", self.raft, RAFT_SIZES),
        ):
            if value not in known:
                raise ConfigError(f"{what}: expected one of {', '.join(known)}, got {value!r}")

    @property
    def pictures(self) -> Literal["gray", "RGB"]:
        """What the method looks at."""
        return "gray" if self.method == "tvl1" else "RGB"

    @property
    def is_on_gpu(self) -> bool:
        """Whether fields are computed on another device than the CPU."""
        return (self.method == "raft" or self.engine == "torch") and self.device != "cpu"

    def describe(self) -> dict[str, Any]:
        """Everything that can change a number, as JSON, for the shard's header.

        Raises:
            MicuError: What computes the flow is not installed.
            WeightsError: RAFT's weights cannot be had or do not fit.
        """
        described: dict[str, Any] = {"method": self.method, "pictures": self.pictures}
        if self.method == "raft":
            from micu_extract.flow.raft import load_raft

            described |= load_raft(self.raft, self.weights, self.device).describe()
            return described | {"versions": versions_of("torch", "torchvision")}
        _check_engine(self.engine)
        return described | {
            "implementation": _IMPLEMENTATIONS[self.engine],
            "engine": self.engine,
            "parameters": self.tvl1.describe(),
            "versions": versions_of(*_TVL1_PACKAGES[self.engine]),
        }


def estimate_flow(
    previous: NDArray[np.uint8], following: NDArray[np.uint8], settings: FlowSettings
) -> NDArray[np.float32]:
    """Displacement that carries each pixel of a picture to its place in another one.

    Safe to call from several threads at once.

    Args:
        previous: First picture of each pair, (P, H, W) gray or (P, H, W, 3) RGB: see
            `settings.pictures`.
        following: Second picture of each pair, of the same shape.
        settings: The method and its parameters.

    Returns:
        Displacement, (P, H, W, 2): x to the right, then y downwards, px.

    Raises:
        ShapeError: The pictures are not what the method looks at, or not of one size.
        ConfigError: The pictures are not 8-bit.
        MicuError: What computes the flow is not installed.
        WeightsError: RAFT's weights cannot be had or do not fit.
    """
    dims = "P H W" if settings.pictures == "gray" else "P H W 3"
    what = f"pictures of the flow pairs for {settings.method}"
    check_shape(previous.shape, dims, f"first {what}")
    count, height, width = previous.shape[:3]
    check_shape(following.shape, dims, f"second {what}", P=count, H=height, W=width)
    for pictures in (previous, following):
        if pictures.dtype != np.uint8:
            raise ConfigError(f"{what}: expected uint8, got {pictures.dtype}")
    if not previous.size:
        return np.empty((count, height, width, 2), np.float32)
    if settings.method == "raft":
        from micu_extract.flow.raft import load_raft

        network = load_raft(settings.raft, settings.weights, settings.device)
        return network.estimate(previous, following)
    _check_engine(settings.engine)
    device = resolve_device(settings.device) if settings.engine == "torch" else settings.device
    return tvl1_pairs(previous, following, settings.tvl1, engine=settings.engine, device=device)


def _check_engine(engine: str) -> None:
    if engine == "numba" and find_spec("numba") is None:
        raise MicuError(
            "flow engine numba: numba is not installed; type: pip install numba, or choose the "
            "slow engine with --flow-engine opencv"
        )
