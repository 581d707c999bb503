"""How optical flow is computed: the methods to choose from, and the settings of a run.

`tvl1` is what the two-stream networks were trained on. The others are faster, or newer, and give
other fields: features of one must not be mixed with those of another, so that each describes itself
for the shard's header. None ever stands in for another.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError, MicuError, check_shape
from micu.base.registry import Registry
from micu_extract.flow.tvl1 import ENGINES, TVL1, tvl1_pairs

OPENCV = ("opencv-contrib-python-headless", "opencv-contrib-python")
RAFT_SIZES = ("large", "small")

FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}
"""Parameters of `cv2.calcOpticalFlowFarneback`, which has no defaults: those of OpenCV's guide."""

DIS: dict[str, Any] = {
    "preset": "medium",
    "finest_scale": 1,
    "patch_size": 8,
    "patch_stride": 3,
    "gradient_descent_iterations": 25,
    "variational_refinement_iterations": 5,
}
"""What the preset of OpenCV's `DISOpticalFlow` sets."""

DIS_SMALLEST_PX = 16
"""Shortest side that DIS is given; smaller pictures are continued by their edges. It accepts sides
from 12 px on, and crashes on some of them: its patches of 8 px do not fit pictures of half size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """How optical flow is computed; the same for every clip of a run.

    Raises:
        RegistryError: No such method.
        ConfigError: No such engine or size of network.
    """

    method: str = "tvl1"
    """One of `FLOW_METHODS`."""
    engine: str = "numba"
    """What computes TV-L1: one of `micu_extract.flow.tvl1.ENGINES`."""
    tvl1: TVL1 = field(default_factory=TVL1)
    """Parameters of TV-L1."""
    raft: str = "large"
    """Size of RAFT's network: one of `RAFT_SIZES`."""
    weights: str = "pretrained"
    """Of RAFT: as `micu_extract.backbones.weights` takes them."""
    device: str = "cpu"
    """Where RAFT, and the torch engine of TV-L1, compute. Not in the header, as no device is."""

    def __post_init__(self) -> None:  # noqa: D105
        FLOW_METHODS[self.method]
        for what, value, known in (
            ("--flow-engine", self.engine, ENGINES),
            ("--raft-model", self.raft, RAFT_SIZES),
        ):
            if value not in known:
                raise ConfigError(f"{what}: expected one of {', '.join(known)}, got {value!r}")

    @property
    def pictures(self) -> Literal["gray", "RGB"]:
        """What the method looks at."""
        return FLOW_METHODS[self.method].pictures

    @property
    def is_on_gpu(self) -> bool:
        """Whether fields are computed on another device than the CPU."""
        on_device = self.method == "raft" or (self.method == "tvl1" and self.engine == "torch")
        return on_device and self.device != "cpu"

    def describe(self) -> dict[str, Any]:
        """Everything that can change a number, as JSON, for the shard's header.

        Raises:
            MicuError: What computes the flow is not installed.
            WeightsError: RAFT's weights cannot be had or do not fit.
        """
        from micu_extract.backbones.base import versions_of

        method = FLOW_METHODS[self.method]
        described = method.describe(self)
        return {
            "method": self.method,
            "pictures": method.pictures,
            **described,
            "versions": versions_of(*method.packages(self)),
        }


Pictures = NDArray[np.uint8]
Estimate = Callable[[Pictures, Pictures, FlowSettings], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowMethod:
    """One way of computing optical flow."""

    estimate: Estimate
    """As `estimate_flow`, for at least one pair of checked and contiguous pictures."""
    describe: Callable[[FlowSettings], dict[str, Any]]
    """What it is and computes with, as JSON."""
    packages: Callable[[FlowSettings], tuple[str, ...]]
    """Those whose version can change a number."""
    pictures: Literal["gray", "RGB"] = "gray"


FLOW_METHODS: Registry[FlowMethod] = Registry("flow method")


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
    # DIS asserts on rows with gaps, and the numba kernels are compiled for none.
    first, second = np.ascontiguousarray(previous), np.ascontiguousarray(following)
    return FLOW_METHODS[settings.method].estimate(first, second, settings)


# --- the methods -----------------------------------------------------------------------------


def _estimate_tvl1(
    previous: Pictures, following: Pictures, settings: FlowSettings
) -> NDArray[np.float32]:
    _check_engine(settings)
    device = settings.device
    if settings.engine == "torch":
        from micu.base.devices import resolve_device

        device = resolve_device(device)
    return tvl1_pairs(previous, following, settings.tvl1, engine=settings.engine, device=device)


def _describe_tvl1(settings: FlowSettings) -> dict[str, Any]:
    _check_engine(settings)
    what = {
        "numba": "DualTVL1OpticalFlow restated, numba kernels, cpu",
        "opencv": "OpenCV DualTVL1OpticalFlow, cpu",
        "torch": "DualTVL1OpticalFlow restated, torch",
    }
    return {
        "implementation": what[settings.engine],
        "engine": settings.engine,
        "parameters": settings.tvl1.describe(),
    }


def _check_engine(settings: FlowSettings) -> None:
    if settings.engine == "numba" and find_spec("numba") is None:
        raise MicuError(
            "flow engine numba: numba is not installed; type: pip install numba, or choose the "
            "slow engine with --flow-engine opencv"
        )


def _tvl1_packages(settings: FlowSettings) -> tuple[str, ...]:
    return {"numba": ("numba", *OPENCV), "opencv": OPENCV, "torch": ("torch",)}[settings.engine]


def _estimate_farneback(
    previous: Pictures, following: Pictures, settings: FlowSettings
) -> NDArray[np.float32]:
    import cv2

    cv2.setNumThreads(1)  # clips are computed side by side
    pairs = zip(previous, following, strict=True)
    return np.stack([_farneback_pair(first, second) for first, second in pairs])


def _farneback_pair(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    import cv2

    flow: Any = cv2.calcOpticalFlowFarneback(first, second, None, **FARNEBACK)  # type: ignore[call-overload]
    return np.asarray(flow, np.float32)


def _estimate_dis(
    previous: Pictures, following: Pictures, settings: FlowSettings
) -> NDArray[np.float32]:
    import cv2

    cv2.setNumThreads(1)  # clips are computed side by side
    height, width = previous.shape[1:]
    margins = [(0, max(DIS_SMALLEST_PX - side, 0)) for side in (height, width)]
    first, second = (np.pad(x, ((0, 0), *margins), "edge") for x in (previous, following))
    solver = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [np.array(solver.calc(a, b, None)) for a, b in zip(first, second, strict=True)]
    return np.stack(flows).astype(np.float32, copy=False)[:, :height, :width]


def _estimate_raft(
    previous: Pictures, following: Pictures, settings: FlowSettings
) -> NDArray[np.float32]:
    from micu_extract.flow.raft import load_raft

    return load_raft(settings.raft, settings.weights, settings.device).estimate(previous, following)


def _describe_raft(settings: FlowSettings) -> dict[str, Any]:
    from micu_extract.flow.raft import load_raft

    return load_raft(settings.raft, settings.weights, settings.device).describe()


FLOW_METHODS.register("tvl1")(
    FlowMethod(estimate=_estimate_tvl1, describe=_describe_tvl1, packages=_tvl1_packages)
)
FLOW_METHODS.register("farneback")(
    FlowMethod(
        estimate=_estimate_farneback,
        describe=lambda _: {
            "implementation": "OpenCV calcOpticalFlowFarneback, cpu",
            "parameters": dict(FARNEBACK),
        },
        packages=lambda _: OPENCV,
    )
)
FLOW_METHODS.register("dis")(
    FlowMethod(
        estimate=_estimate_dis,
        describe=lambda _: {
            "implementation": "OpenCV DISOpticalFlow, cpu",
            "parameters": dict(DIS),
        },
        packages=lambda _: OPENCV,
    )
)
FLOW_METHODS.register("raft")(
    FlowMethod(
        estimate=_estimate_raft,
        describe=_describe_raft,
        packages=lambda _: ("torch", "torchvision"),
        pictures="RGB",
    )
)
