"""CODIS: clips are aligned through their optimal transport to a shared codebook.

Source: Duan et al., *Multi-modal alignment using representation codebook*, CVPR 2022; no code of
the authors is public, and constants that its abstract does not give are from memory of the paper.
Over modalities m with embeddings z,

    L = sum_m (L_rec(m) + 1/4 MSE(z(m), its codes)) + L_assign + L_ica,

momentum 0.995, temperatures 0.1 and 0.07. The formulas of the last two, and what differs in them,
are in `micu.losses.transport`.

Adapted: encoders and reconstruction are MICU's; the codebook that clips are transported to is the
quantizer's own, learnt by gradient and kept at unit length as SwAV's prototypes are, and steps take
the code of the largest cosine (`DirectionQuantizer` says what differs there); the momentum rises to
its value, so that a short run has a teacher.
"""

from dataclasses import replace

from micu.config.baselines.base import BASELINES, own_codes
from micu.config.sections import LossWeights, TrainConfig


@BASELINES.register("codis")
def codis() -> TrainConfig:
    """CODIS: transport to codes that are learnt by gradient."""
    return TrainConfig(
        quantizer=replace(own_codes(), learning="gradient", reset="off"),
        weights=LossWeights(fine=None, coarse=None, jigsaw=None, transport=1.0),
    )
