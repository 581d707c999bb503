"""DCID: information between codes and specific encodings is lowered, between modalities raised.

Source: Xia et al., *Achieving cross modal generalization with multimodal unified representation*,
NeurIPS 2023, and its published code. L = reconstruction + commitment + CLUB + Cross-CPC + CMCM,
all of weight 1, CMCM's pairs of 1/2; EMA of 1/2 own and 1/2 others; commitment of 1/2 own and 1/4
others, which is twice equation 8, as published.

Differs from the paper as the published code does: the moving average takes the other modalities'
embeddings at the same step, without attention; CMCM is part of the loss. Differs from that code:
more or fewer modalities than it has classes for, the others' weights shared among them; restarted
codes keep their place (`quantizer.reset`); CMCM's index is the paper's
(`baselines.code_matching.index`); 5 epochs, as for MICU. What differs within the losses is said in
`micu.losses.club`, `micu.losses.cpc` and `micu.losses.code_matching`.
"""

from micu.config.baselines.base import BASELINES
from micu.config.sections import LossWeights, TrainConfig


@BASELINES.register("dcid")
def dcid() -> TrainConfig:
    """DCID: everything that its published code adds up."""
    return TrainConfig(
        weights=LossWeights(
            fine=None, coarse=None, jigsaw=None, club=1.0, cpc=1.0, code_matching=0.5
        )
    )
