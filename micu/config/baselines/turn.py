"""TURN: each modality's masked steps are rebuilt from the pooled code of every modality.

Source: Zhao et al., *Towards effective multi-modal interchanges in zero-resource sounding object
localization*, NeurIPS 2022, and its published code (AwalkZY/TURN, 3640ef9):
`calc_overall_vq_loss` of `loss/__init__.py`, `codebook/EMA_codebook.py`, `config/default.py`.
Over modalities m with embeddings z and their means z̄ over a clip's steps,

    L = sum_m (L_rec(m) + L_commit(z(m)) + L_commit(z̄(m))) + 0.1 L_self-cross + 0.1 L_InfoNCE,

L_commit(z) = 1/4 MSE(z, its codes); EMA of each modality alone, from steps and means both. The
formulas of the last two, and what differs in them, are in `micu.losses.self_cross` and
`micu.losses.contrastive`.

Adapted:
- Encoders, decoders, optimiser and batches are MICU's, where TURN has BERTs of six layers and AdamW
  with decay; clips are drawn alike, where TURN weighs them by files of its own (adaptive sampling).
- The codebook is MICU's: 400 codes of the whole width, a moving average without bias correction,
  dead codes restart. TURN has two groups of half the width and 256 codes, which share one codebook,
  and a bias-corrected average.
- There are codes per step as well, since what is evaluated is. TURN has those of clips alone.
- Words that pad a sentence are zeros, and steps like others here, as everywhere in MICU: they enter
  a clip's mean and are rebuilt. TURN's mean is over real words.
- L_rec is MICU's, and TURN has none beside the self-cross one. Its localisation losses have no
  place here.
"""

from dataclasses import replace

from micu.config.baselines.base import BASELINES, own_codes
from micu.config.sections import LossWeights, TrainConfig


@BASELINES.register("turn")
def turn() -> TrainConfig:
    """TURN: self-cross reconstruction from pooled codes."""
    return TrainConfig(
        quantizer=replace(own_codes(), pool=True),
        weights=LossWeights(fine=None, coarse=None, jigsaw=None, self_cross=0.1, one_way=0.1),
    )
