"""The losses of equation 8 and of the baselines; importing this fills `LOSSES`, one line each."""

from micu.losses import (  # noqa: F401
    autoencoder,
    club,
    code_matching,
    contrastive,
    cpc,
    jigsaw,
    mmjp,
    self_cross,
    transport,
)
from micu.losses.terms import (
    LOSSES,
    ClipsLoss,
    Draws,
    Loss,
    Losses,
    LossTerms,
    compute_terms,
    derive_seed,
    draw,
    weigh,
)

__all__ = [
    "LOSSES",
    "ClipsLoss",
    "Draws",
    "Loss",
    "LossTerms",
    "Losses",
    "compute_terms",
    "derive_seed",
    "draw",
    "weigh",
]
