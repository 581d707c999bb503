"""TURN: each modality's masked steps are rebuilt from the pooled code of every modality.

Source: Zhao et al., *Towards effective multi-modal interchanges in zero-resource sounding object
localization*, NeurIPS 2022, and its published code (weights, temperature, mask ratio).
L = reconstruction + commitment of steps and of clips + 0.1 self-cross + 0.1 InfoNCE in one
direction, temperature 0.1; EMA and commitment of each modality alone, steps and clips both.

Adapted: encoders, codebook and optimiser are MICU's, where TURN has BERTs of six layers, two groups
of 256 codes and AdamW; codes are per step as well, since what is evaluated is; the mask ratio rises
over the run, where TURN's does over 30 epochs; its localisation losses have no place here.
"""

from dataclasses import replace

from micu.baselines.base import BASELINES, own_codes
from micu.config import LossWeights, TrainConfig


@BASELINES.register("turn")
def turn() -> TrainConfig:
    """TURN: self-cross reconstruction from pooled codes."""
    return TrainConfig(
        quantizer=replace(own_codes(), pool=True),
        weights=LossWeights(fine=None, coarse=None, jigsaw=None, self_cross=0.1, one_way=0.1),
    )
