"""FCID's level of clips: what a clip shares with its other modalities, and what is its own.

Source: section 3 of Huang et al., *Enhancing Multimodal Unified Representations for Cross Modal
Generalization* (FCID), ACL 2025 Findings, and its published code (haihuangcode/CMG, 3b31fa0).
Modalities of a kind have the same heads: those whose steps are seconds, and words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from micu.config.sections import TrainConfig
from micu.model.networks import FRONTS, Reconstructor, SpecificEncoder
from micu.model.onednn import Linear

SENSES, WORDS = "senses", "words"
"""Kinds of modalities."""


def kind_of(modality: str) -> str:
    """Which heads a modality has."""
    return WORDS if FRONTS[modality] == "words" else SENSES


@dataclass(frozen=True, slots=True)
class Clips:
    """The clips of a batch, by modality, (B, 1, ...): one step each."""

    content: dict[str, Tensor]
    """c, the mean of a clip's embeddings after a linear map, (B, 1, D)."""
    general: dict[str, Tensor]
    """g, what is quantised, (B, 1, D)."""
    specific: dict[str, Tensor]
    """p, what is the modality's own, (B, 1, W); empty where nothing is rebuilt."""
    reconstruction: dict[str, Tensor]
    """Of c, from the code of g and p, (B, 1, D); likewise."""


class ClipLevel(nn.Module):
    """From embeddings to what is quantised, and from codes back to clips.

    Args:
        config: The run.
    """

    def __init__(self, config: TrainConfig) -> None:  # noqa: D107
        super().__init__()
        dim, sizes = config.encoder.embed_dim, config.reconstruction
        kinds = list(dict.fromkeys(kind_of(name) for name in config.modalities))
        self.contents = nn.ModuleDict({kind: Linear(dim, dim) for kind in kinds})
        self.generals = nn.ModuleDict({kind: Linear(dim, dim) for kind in kinds})
        self.specific_encoders = nn.ModuleDict()
        self.reconstructors = nn.ModuleDict()
        if "reconstruction" in config.terms():
            self.specific_encoders.update({k: SpecificEncoder((dim,), sizes) for k in kinds})
            self.reconstructors.update(
                {name: Reconstructor((dim,), dim, sizes) for name in config.modalities}
            )

    def share(self, semantic: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """C and g of embeddings (B, T, D), by modality: of the steps themselves, or of means."""
        content = {name: self.contents[kind_of(name)](x) for name, x in semantic.items()}
        general = {name: F.relu(self.generals[kind_of(name)](x)) for name, x in content.items()}
        return content, general

    def rebuild(
        self, content: Mapping[str, Tensor], codes: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """P of each clip, and c rebuilt from it and the embedded code of g, (B, 1, D)."""
        specific = {
            name: cast(SpecificEncoder, self.specific_encoders[kind_of(name)]).encode(x)
            for name, x in content.items()
        }
        rebuilt = {
            name: cast(Reconstructor, self.reconstructors[name]).reconstruct(codes[name], x)
            for name, x in specific.items()
        }
        return specific, rebuilt
