"""The methods that MICU is compared with, each a preset of `micu-train`.

A method is a configuration: which losses it has and with which weight (`LossWeights`), how its
codebook moves (`QuantizerConfig`), and the settings of its losses (`BaselinesConfig`). What it does
in a step beside its loss is in the hooks of its losses (`micu.losses.terms.Loss`); there is one
training loop. Encoders, decoders, optimiser and data are MICU's for every method.
"""

from micu.config.baselines import (
    cmcm,  # noqa: F401
    codis,  # noqa: F401
    dcid,  # noqa: F401
    skeleton,  # noqa: F401
    turn,  # noqa: F401
)
from micu.config.baselines.base import BASELINES

__all__ = ["BASELINES"]
