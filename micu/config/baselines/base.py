"""`BASELINES`, and the settings that the prior methods have in common."""

from collections.abc import Callable

from micu.base.registry import Registry
from micu.config.sections import QuantizerConfig, TrainConfig

BASELINES: Registry[Callable[[], TrainConfig]] = Registry("baseline")

COMMITMENT = 0.25
"""Beta of a modality's distance to its own code."""


def own_codes(commitment: float = COMMITMENT) -> QuantizerConfig:
    """A codebook in which each modality moves and approaches its own codes alone."""
    return QuantizerConfig(ema_own=1.0, commitment_own=commitment, commitment_cross=0.0)
