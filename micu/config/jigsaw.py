"""Settings of the jigsaw puzzles: CUJP, and MMJP in its place."""

import math
from dataclasses import dataclass
from typing import Literal

from micu.base.errors import check_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class JigsawConfig:
    """CUJP: the cross-modal unified jigsaw puzzle (section 3.4)."""

    splits: int = 8
    """O, blocks that a code is cut into along its channels. The published code runs 2. With 0 there
    is no jigsaw and no classifier, as with `weights.jigsaw=none`."""
    permutations: int = 256
    """P, permutations to tell apart. Not stated in the paper; the published code runs 2."""
    hidden_dim: int = 512
    block_draw: Literal["batch", "row"] = "batch"
    """Draw each block's modality once per batch (published code) or once per row."""
    labels: Literal["exact", "sampled"] = "exact"
    """Put every row in all P permutations (published code), or in one that is drawn anew for each
    row and step: the same loss on average, for P times less work."""

    def __post_init__(self) -> None:  # noqa: D105
        count = permutation_count(self.splits)
        check_settings(
            "jigsaw",
            {
                f"splits: expected 0 or at least 2, got {self.splits}": (
                    self.splits != 0 and self.splits < 2
                ),
                f"permutations: expected 1 to {self.splits}! = {count}, got {self.permutations}": (
                    self.splits != 0 and not 1 <= self.permutations <= count
                ),
                f"permutations: expected at least 1, got {self.permutations}": (
                    self.splits == 0 and self.permutations < 1
                ),
                f"hidden_dim: expected at least 1, got {self.hidden_dim}": self.hidden_dim < 1,
            },
        )


def permutation_count(parts: int) -> int:
    """How many orders some parts have; from 20 parts on, those of 20, more than any table holds."""
    return math.factorial(min(max(parts, 0), 20))


@dataclass(frozen=True, kw_only=True, slots=True)
class MmjpConfig:
    """MMJP, the multi-modal jigsaw puzzle of MOOSA (ECCV 2024), in place of CUJP (figure 3)."""

    splits: int | None = None
    """Parts that each modality's code is cut into along its channels. None is what MOOSA has for so
    many modalities: 4 for two, and 2 for three, `MMJP6`; with four, which it does not have, 2."""
    permutations: int = 128
    """P, as in MOOSA; the MICU paper does not state its own."""
    hidden_dim: int = 512

    def __post_init__(self) -> None:  # noqa: D105
        check_settings(
            "mmjp",
            {
                f"splits: expected none or at least 1, got {self.splits}": (
                    self.splits is not None and self.splits < 1
                ),
                f"permutations: expected at least 1, got {self.permutations}": (
                    self.permutations < 1
                ),
                f"hidden_dim: expected at least 1, got {self.hidden_dim}": self.hidden_dim < 1,
            },
        )

    def parts_each(self, modalities: int) -> int:
        """How many parts each of so many modalities is cut into."""
        if self.splits is not None:
            return self.splits
        return 4 if modalities == 2 else 2
