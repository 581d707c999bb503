"""The skeleton that every method is built on: what the parts are worth without any alignment.

Source: the *Baseline* of section 4.1 of Xia et al. (DCID), NeurIPS 2023, which is at chance there.
"""

from micu.config.baselines.base import BASELINES, own_codes
from micu.config.sections import LossWeights, TrainConfig


@BASELINES.register("skeleton")
def skeleton() -> TrainConfig:
    """Encoders, codebook and reconstruction: nothing tells modalities that they belong together."""
    return TrainConfig(
        quantizer=own_codes(), weights=LossWeights(fine=None, coarse=None, jigsaw=None)
    )
