"""A codebook of directions that the optimiser moves, for CODIS; and which quantizer a run has.

Source: section 3 of Duan et al., *Multi-modal alignment using representation codebook*, CVPR 2022;
unit length as the prototypes of Caron et al., *SwAV*, NeurIPS 2020, and its published code.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from micu.config.sections import QuantizerConfig
from micu.model.quantizer import Quantized, UnifiedQuantizer


class DirectionQuantizer(UnifiedQuantizer):
    """Codes are directions, a parameter; the nearest code is that of the largest cosine.

    Features and codes are scaled to length sqrt(D): of two such vectors the squared distance is
    2 D (1 - cosine), so that `UnifiedQuantizer`'s lookup and commitment hold as they are.

    The parameter itself has unit length at the start and after every step. Adam's step has a length
    of about rate * sqrt(D), whatever the gradient's, so that it turns a code by that divided by the
    parameter's length: one drawn with length sqrt(D) would turn by no more than the rate, in
    radians, and stay about where it was drawn.

    Args:
        embed_dim: D.
        config: Settings; those of the moving averages and of dead codes are not used.

    Differs: CODIS has no quantised features. They have length sqrt(D), not 1, so that probes and
        decoders see numbers of the size that the other methods give them. SwAV restores unit length
        before every forward pass; here it is after every step, so that checkpoints have it.
    """

    def __init__(self, embed_dim: int, config: QuantizerConfig) -> None:  # noqa: D107
        nn.Module.__init__(self)
        self.config = config
        drawn = torch.randn(config.codebook_size, embed_dim)
        self.directions = nn.Parameter(functional.normalize(drawn, dim=-1))

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        """Codes, (K, D), with gradient."""
        return _scale(self.directions)

    def quantize(
        self, semantic: Mapping[str, Tensor], mask: Tensor | None = None, *, null_code: bool = False
    ) -> dict[str, Quantized]:
        """Look up the nearest codes; `semantic` comes back scaled. The codes get no gradient."""
        scaled = {name: _scale(x) for name, x in semantic.items()}
        return super().quantize(scaled, mask, null_code=null_code)

    @torch.no_grad()
    def move_(self, *_: Any, **__: Any) -> None:
        """Back to unit length; it is the optimiser that has moved the codes."""
        self.directions.copy_(functional.normalize(self.directions, dim=-1))


def build_quantizer(embed_dim: int, config: QuantizerConfig) -> UnifiedQuantizer:
    """The quantizer that `config.learning` asks for."""
    kind = DirectionQuantizer if config.learning == "gradient" else UnifiedQuantizer
    return kind(embed_dim, config)


def _scale(x: Tensor) -> Tensor:
    """Vectors of length sqrt(D); a zero vector stays zero."""
    return math.sqrt(x.shape[-1]) * functional.normalize(x, dim=-1)
