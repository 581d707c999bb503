"""CMCM: modalities must use codes alike.

Source: Liu et al., *Cross-modal discrete representation learning*, ACL 2022; no code of the authors
is public, the loss is in DCID's. L = reconstruction + commitment + 1/2 CMCM over pairs; EMA and
commitment of each modality alone.

Adapted: encoders, codebook and reconstruction are MICU's, where the authors have 1,024 codes and a
retrieval loss over clips. The warm start takes the first 3 of 8 epochs: MICU's paper gives CMCM 8
where the others have 5, and does not say how they are split. What differs within the loss and its
warm start is said in `micu.losses.code_matching`.
"""

from micu.config.baselines.base import BASELINES, own_codes
from micu.config.methods import BaselinesConfig, CodeMatchingConfig
from micu.config.sections import LossWeights, OptimizerConfig, TrainConfig


@BASELINES.register("cmcm")
def cmcm() -> TrainConfig:
    """CMCM: code matching after a warm start without codes."""
    return TrainConfig(
        quantizer=own_codes(),
        weights=LossWeights(fine=None, coarse=None, jigsaw=None, code_matching=0.5),
        optimizer=OptimizerConfig(epochs=8),
        baselines=BaselinesConfig(code_matching=CodeMatchingConfig(warmup=3 / 8)),
    )
