"""TV-L1 optical flow: its engines by name, and its parameters."""

import math
from dataclasses import asdict, dataclass

from micu.base.errors import ConfigError

ENGINES = ("numba", "opencv", "torch")
"""`numba` is the fast one on a CPU, `torch` the one for a GPU, `opencv` the reference."""

SMALLEST_LEVEL_PX = 16
"""A level of the pyramid with a shorter side than this is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TVL1:
    """Parameters of TV-L1 flow; the defaults are OpenCV's on the CPU.

    OpenCV's CUDA variant has no median filter and other iterations, so its fields are not these.

    Raises:
        ConfigError: A value is out of range; all problems are listed.

    Reference: Zach, Pock and Bischof, A duality based approach for realtime TV-L1 optical flow,
    DAGM 2007.
    """

    tau: float = 0.25
    """Time step of the dual variables, > 0."""

    lambda_: float = 0.15
    """Weight of the brightness term, > 0; smaller gives smoother fields."""

    theta: float = 0.3
    """How tightly the two halves of the problem are coupled, > 0; smaller is tighter."""

    scales: int = 5
    """Levels of the pyramid, at least 1; less where a picture is too small."""

    scale_step: float = 0.8
    """Size of a level over that of the next finer one, (0, 1)."""

    warps: int = 5
    """Warpings of the second picture per level, at least 1."""

    epsilon: float = 0.01
    """Root mean square change of an iteration that ends a warping, px, >= 0."""

    inner_iterations: int = 30
    """Iterations between two median filters, at least 1."""

    outer_iterations: int = 10
    """Rounds of a median filter and its iterations per warping, at least 1."""

    median: int = 5
    """Side of the median filter on the field, px: 3 or 5; 0 or 1 is no filter."""

    def __post_init__(self) -> None:  # noqa: D105
        values = self.describe()
        problems = [
            f"tvl1 {name}: expected a finite number > 0, got {values[name]}"
            for name in ("tau", "lambda", "theta")
            if not 0 < values[name] < math.inf
        ]
        problems += [
            f"tvl1 {name}: expected at least 1, got {values[name]}"
            for name in ("scales", "warps", "inner_iterations", "outer_iterations")
            if values[name] < 1
        ]
        if not 0 < self.scale_step < 1:
            problems.append(f"tvl1 scale_step: expected (0, 1), got {self.scale_step}")
        if not 0 <= self.epsilon < math.inf:
            problems.append(f"tvl1 epsilon: expected a finite number >= 0, got {self.epsilon}")
        if self.median not in (0, 1, 3, 5):
            problems.append(f"tvl1 median: expected 0, 1, 3 or 5, got {self.median}")
        if problems:
            raise ConfigError("\n".join(problems))

    def describe(self) -> dict[str, float | int]:
        """Every parameter by its name, for the header of a feature set."""
        return {name.rstrip("_"): value for name, value in asdict(self).items()}
