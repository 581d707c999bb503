"""A model that knows what it was trained on, as far as a test says."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.losses.contrastive import clip_pairs
from micu.model.micu import MICU, mean_over_steps
from micu.model.quantizer import UnifiedQuantizer
from micu.train.checkpoint import LoadedModel
from tests.feature_sets import SHAPES, SMALL


def loaded_model(**record: object) -> LoadedModel:
    """A small untrained model of audio, video and text."""
    config = with_overrides(PRESETS["micu"](), [*SMALL, "modalities=audio,video,text"])
    model = MICU(config, {name: SHAPES[name] for name in config.modalities}).eval()
    return LoadedModel(
        model=model, config=config, step=0, specs={}, sha256="a" * 64, record=dict(record)
    )


def update_(
    quantizer: UnifiedQuantizer,
    semantic: Mapping[str, Tensor],
    mask: Tensor | None = None,
    codes: Mapping[str, Tensor] | None = None,
    **drawn: torch.Generator | Tensor,
) -> None:
    """Move the codebook as a training step does with one batch."""
    quantizer.move_(quantizer.assign(semantic, mask, codes), **drawn)  # type: ignore[arg-type]


def coarse_pairs(masked: Tensor, semantic: Tensor, mask: Tensor | None, **rest: Any) -> Tensor:
    """The coarse loss of whole clips, as `CoarseLoss` makes it of their means, (M, M)."""
    queries, keys = (mean_over_steps(x, mask) for x in (masked, semantic))
    return clip_pairs(queries, keys, None if mask is None else mask.any(-1), **rest)
