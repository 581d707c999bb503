"""TOC: which channels of the codes a probe reads, chosen by the codebook alone.

Source: Huang et al., *Enhancing Multimodal Unified Representations for Cross Modal Generalization*
(FCID and TOC), ACL 2025 Findings, and its published code. Nothing is trained and no clip is looked
at. The channels are dropped after the lookup, of all modalities alike: codes are found by all of
them.

Differs: the mean over pairs of codes is had from mean and variance, in double precision, where the
published loop adds M (M - 1) products up in float32; scores differ by 4e-6 at most.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from micu.base.errors import ConfigError

SIMILARITY, VARIANCE = 0.7, 0.3
"""Weights of the two parts of a channel's score."""


@dataclass(frozen=True, slots=True)
class ChannelChoice:
    """How many channels, and which.

    Raises:
        ConfigError: The numbers do not go together.
    """

    channels: int
    """K, how many are kept: as many of them as can be shared out, as published."""
    best: int = 1
    """Of `best + worst` channels that are kept, how many have the highest scores."""
    worst: int = 0
    """The same of the lowest scores."""
    with_variance: bool = True
    """Whether the score has the variance in it; some published scripts leave it out."""

    def __post_init__(self) -> None:  # noqa: D105
        parts = self.best + self.worst
        if min(self.best, self.worst) < 0 or not 1 <= parts <= self.channels:
            raise ConfigError(
                f"--toc {self}: expected a share of the best or the worst, and a channel at least "
                f"for each of them, got {self.channels} for {self.best} + {self.worst}; type for "
                "example --toc 128, or --toc 224:1:1"
            )

    @property
    def kept(self) -> int:
        """How many channels are left, at most `channels`."""
        parts = self.best + self.worst
        return self.channels // parts * parts

    def __str__(self) -> str:
        """As it is typed."""
        score = "" if self.with_variance else ":similarity"
        shares = f":{self.best}:{self.worst}" if (self.best, self.worst) != (1, 0) or score else ""
        return f"{self.channels}{shares}{score}"

    @staticmethod
    def parse(text: str) -> "ChannelChoice":
        """From `K`, `K:BEST:WORST` or `K:BEST:WORST:similarity`.

        Raises:
            ConfigError: It is none of these.
        """
        found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}):(\d{1,6})(:similarity)?)?", text, re.ASCII)
        if found is None:
            raise ConfigError(
                f"--toc: expected CHANNELS or CHANNELS:BEST:WORST[:similarity], got {text[:40]!r}; "
                "type for example --toc 128, or --toc 224:1:1"
            )
        channels, best, worst, alone = found.groups()
        return ChannelChoice(int(channels), int(best or 1), int(worst or 0), alone is None)

    def choose(self, codebook: Tensor) -> Tensor:
        """The channels of a codebook (M, D), (kept,) int64: from the best on, from the worst on.

        Raises:
            ConfigError: The codebook has fewer channels.
        """
        width = codebook.shape[1]
        if self.channels > width:
            raise ConfigError(
                f"--toc {self}: expected at most the codes' {width} channels, got {self.channels}; "
                "type fewer"
            )
        scores = score_channels(codebook, with_variance=self.with_variance)
        order = scores.argsort(descending=True, stable=True)
        each = self.channels // (self.best + self.worst)
        return torch.cat([order[: each * self.best], order.flip(0)[: each * self.worst]])


def score_channels(codebook: Tensor, *, with_variance: bool = True) -> Tensor:
    """How much each channel tells codes apart, (D,); higher is better.

        -0.7 mean over pairs i != j of e_ic e_jc + 0.3 variance of e_c

    Args:
        codebook: (M, D), two codes at least.
        with_variance: Whether the second part is there.
    """
    codes = codebook.detach().double()
    variance = codes.var(0)
    # mean over i != j of e_i e_j = ((sum e)^2 - sum e^2) / (M (M - 1)) = mean^2 - variance / M.
    similarity = codes.mean(0).square() - variance / len(codes)
    return -SIMILARITY * similarity + (VARIANCE * variance if with_variance else 0.0)
