"""TV-L1 optical flow of two pictures, and its 8-bit form.

The method is that of Zach, Pock and Bischof (DAGM 2007) as OpenCV's contrib module computes it on
the CPU. Flow networks of the two-stream family were trained on fields that were clipped to ±20
pixels and stored as 8-bit images; both conventions of that storage are restated here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from micu.errors import MicuError, check_shape

STILL = 128
"""Level of a displacement of zero."""

TVL1_PARAMETERS: dict[str, Any] = {
    "implementation": "opencv DualTVL1OpticalFlow, cpu",
    "tau": 0.25,
    "lambda": 0.15,
    "theta": 0.3,
    "scales": 5,
    "warps": 5,
    "epsilon": 0.01,
    "inner_iterations": 30,
    "outer_iterations": 10,
    "scale_step": 0.8,
    "gamma": 0.0,
    "median_filtering": 5,
}
"""What `tvl1_flow` computes with, for the header of a feature set: OpenCV's defaults on the CPU.
The CUDA variant has no median filter and other iterations, so its fields are not these."""


def tvl1_flow(previous: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Displacement that carries each pixel of one picture to its place in the next.

    Args:
        previous: Gray picture, (H, W).
        following: The next one, (H, W).

    Returns:
        Displacement, (H, W, 2) float32: x to the right, then y downwards, px.

    Raises:
        ShapeError: The pictures are not gray, or not of one size.
        MicuError: The installed OpenCV has no TV-L1.
    """
    size = check_shape(previous.shape, "H W", "first picture of a flow pair")
    height, width = size["H"], size["W"]
    check_shape(following.shape, "H W", "second picture of a flow pair", H=height, W=width)
    # The object keeps the pyramid of its last pair, and gives other fields when it is used again.
    solver = _create_solver()
    flow: NDArray[np.float32] = solver.calc(
        np.ascontiguousarray(previous), np.ascontiguousarray(following), None
    )
    return flow


def quantize_flow(flow: NDArray[np.float32], bound: float) -> NDArray[np.uint8]:
    """Store displacements in 8 bits: round(255 (v + bound) / (2 bound)), clipped to ±bound.

    Args:
        flow: Displacements, any shape, px.
        bound: Displacement that maps to 0 and 255, px.

    Returns:
        Levels of the same shape; a displacement of zero, 127.5, becomes 128.

    Differs: mmaction2's Python script truncates, so that zero becomes 127; the networks were
    trained on denseflow's rounded images.
    """
    clipped = np.clip(flow, -bound, bound).astype(np.float64)
    scaled = 255.0 * (clipped + bound) / (2.0 * bound)
    return np.floor(scaled + 0.5).astype(np.uint8)


def _create_solver() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MicuError(f"optical flow needs OpenCV ({error}); {_REPAIR}") from error
    # cv2.optflow stays importable when opencv-python was installed over the contrib build.
    create = getattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create", None)
    if create is None:
        raise MicuError(f"the installed OpenCV {cv2.__version__} has no TV-L1; {_REPAIR}")
    cv2.setNumThreads(1)  # clips are computed side by side
    return create()


_REPAIR = (
    "type: pip uninstall -y opencv-python opencv-python-headless opencv-contrib-python "
    "opencv-contrib-python-headless && pip install opencv-contrib-python-headless"
)
