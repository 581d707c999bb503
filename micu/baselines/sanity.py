"""Rows that show what the parts are worth: no alignment at all, and alignment of clips alone.

Source: `skeleton` is the *Baseline* of section 4.1 of Xia et al. (DCID), NeurIPS 2023, at chance
there; `coarse` is a row of table 7 of Huang et al., ICCV 2025.
"""

from micu.baselines.base import BASELINES, own_codes
from micu.config import LossWeights, TrainConfig


@BASELINES.register("skeleton")
def skeleton() -> TrainConfig:
    """Encoders, codebook and reconstruction: nothing tells modalities that they belong together."""
    return TrainConfig(
        quantizer=own_codes(), weights=LossWeights(fine=None, coarse=None, jigsaw=None)
    )


@BASELINES.register("coarse")
def coarse() -> TrainConfig:
    """MICU without fine contrast and jigsaw."""
    return TrainConfig(weights=LossWeights(fine=None, jigsaw=None))
