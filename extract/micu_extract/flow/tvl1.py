"""TV-L1 optical flow, by one of its engines.

The method is that of Zach, Pock and Bischof (DAGM 2007), discretised as OpenCV's contrib module
does on the CPU: linear pyramid, bicubic warping, a median filter before each round of iterations,
and an early stop.

Source: `DualTVL1OpticalFlow` of opencv_contrib; restated, not copied.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import MicuError
from micu_extract.flow.tvl1_parameters import TVL1

DEFAULTS = TVL1()


def tvl1_pairs(
    previous: NDArray[np.uint8],
    following: NDArray[np.uint8],
    parameters: TVL1 = DEFAULTS,
    *,
    engine: str = "numba",
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Displacement of each pair; `micu_extract.flow.methods.estimate_flow` checks what is given.

    Safe to call from several threads at once: the numba engine then runs on as many cores.

    Args:
        previous: First picture of each pair, gray, (P, H, W), none of them 0.
        following: Second picture of each pair, gray, (P, H, W).
        parameters: Parameters of the method.
        engine: One of `ENGINES`.
        device: Where the torch engine computes; the others compute on the CPU.

    Returns:
        Displacement, (P, H, W, 2): x to the right, then y downwards, px.

    Differs: OpenCV adds up the change of an iteration in one float32 and divides exactly; the
    numba and torch engines add in another order, so that their bits differ from OpenCV's.
    """
    previous, following = np.ascontiguousarray(previous), np.ascontiguousarray(following)
    if engine == "opencv":
        return _solve_with_opencv(previous, following, parameters)
    if engine == "torch":
        from micu_extract.flow.tvl1_torch import solve_pairs as solve_with_torch

        return solve_with_torch(previous, following, parameters, device)
    from micu_extract.flow.tvl1_numba import solve_pairs as solve_with_numba

    return solve_with_numba(previous, following, parameters)


def _solve_with_opencv(
    previous: NDArray[np.uint8], following: NDArray[np.uint8], parameters: TVL1
) -> NDArray[np.float32]:
    height, width = previous.shape[1:]
    # OpenCV reads beyond the end of a picture that has one row or one column.
    padding = ((0, 0), (0, int(height == 1)), (0, int(width == 1)))
    pairs = zip(np.pad(previous, padding, "edge"), np.pad(following, padding, "edge"), strict=True)
    # The object keeps the pyramid of its last pair, and gives other fields when it is used again.
    flows = [create_solver(parameters).calc(first, second, None) for first, second in pairs]
    return np.stack(flows)[:, :height, :width]


def create_solver(parameters: TVL1) -> Any:
    """OpenCV's own solver with these parameters, good for one pair.

    Raises:
        MicuError: The installed OpenCV has no TV-L1.
    """
    try:
        import cv2
    except ImportError as error:
        raise MicuError(f"optical flow needs OpenCV ({error}); {_REPAIR}") from error
    # cv2.optflow stays importable when opencv-python was installed over the contrib build.
    create = getattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create", None)
    if create is None:
        raise MicuError(f"the installed OpenCV {cv2.__version__} has no TV-L1; {_REPAIR}")
    cv2.setNumThreads(1)  # clips are computed side by side
    return create(
        tau=parameters.tau,
        lambda_=parameters.lambda_,
        theta=parameters.theta,
        nscales=parameters.scales,
        warps=parameters.warps,
        epsilon=parameters.epsilon,
        innnerIterations=parameters.inner_iterations,
        outerIterations=parameters.outer_iterations,
        scaleStep=parameters.scale_step,
        medianFiltering=parameters.median,
    )


_REPAIR = (
    "type: pip uninstall -y opencv-python opencv-python-headless opencv-contrib-python "
    "opencv-contrib-python-headless && pip install opencv-contrib-python-headless"
)
