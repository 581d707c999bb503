"""The codebook that all modalities share (section 3.3); its commitment is in equation 7.

`UnifiedQuantizer.quantize` reads it. `move_` writes it, `begin_with_` at the end of a warm start;
the directions of a `DirectionQuantizer` are moved by the optimiser.
Source: Huang et al., ICCV 2025, and the published code (3b31fa0).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from micu.base.errors import ShapeError, check_shape
from micu.config.sections import QuantizerConfig

INIT_BOUND = 1 / 400
"""Codes start uniform in ±1/400, whatever the size of the codebook."""
RESET_NOISE = 1 / 1024
"""Distance per coordinate at which a dead code restarts beside an active one."""
ENTROPY_FLOOR = 1e-10


@dataclass(frozen=True, slots=True)
class Quantized:
    """One modality, quantised."""

    semantic: Tensor
    """z before quantisation, (B, T, D)."""
    quantized: Tensor
    """Embedded codes, (B, T, D); the gradient passes straight through to `semantic`."""
    codes: Tensor
    """(B, T) int64."""
    commitment_loss: Tensor
    """()."""
    perplexity: Tensor
    """exp of the entropy of the codes used at real steps, (), in [1, K]."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a batch says about the codebook: sums over steps, so that batches add up."""

    modalities: tuple[str, ...]
    """In the order in which the averages are updated."""
    counts: Tensor
    """Steps per modality and code, (M, K)."""
    sums: Tensor
    """Blended features per modality and code, (M, K, D)."""


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Assign each vector to its closest code in squared Euclidean distance.

    Args:
        x: Vectors, (..., D), any float type; compared in at least float32.
        codebook: Codes, (K, D).

    Returns:
        Code of each vector, (...), int64. Ties go to the lowest code.

    Raises:
        ShapeError: The last dimension of `x` is not D.

    Reference: section 3.3. Differs: |x|^2 is left out (argmin is unchanged).
    """
    check_shape(x.shape[-1:], "D", "vectors to quantise", D=codebook.shape[1])
    dtype = torch.promote_types(torch.promote_types(x.dtype, codebook.dtype), torch.float32)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        codes = codebook.to(dtype)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        # |x - e|^2 without |x|^2, which is the same for every code: |e|^2 - 2 x e.
        distances = torch.addmm(codes.square().sum(1), flat, codes.T, alpha=-2)
        return distances.argmin(1).view(x.shape[:-1])


class UnifiedQuantizer(nn.Module):
    """Nearest-code lookup in a codebook that follows the features by moving averages.

    Buffers: `codebook` (K, D); `ema_count` (K,) and `ema_weight` (K, D), whose quotient is the
    codebook after each update; `unused` (K,), updates since a code's last use, -1 before the first.

    Args:
        embed_dim: D.
        config: Settings.
    """

    codebook: Tensor
    ema_count: Tensor
    ema_weight: Tensor
    unused: Tensor

    def __init__(self, embed_dim: int, config: QuantizerConfig) -> None:  # noqa: D107
        super().__init__()
        self.config = config
        size = config.codebook_size
        codebook = torch.empty(size, embed_dim).uniform_(-INIT_BOUND, INIT_BOUND)
        self.register_buffer("codebook", codebook)
        start = 1.0 if config.ema_init == "one" else 0.0
        self.register_buffer("ema_count", torch.full((size,), start))
        self.register_buffer("ema_weight", codebook.clone())
        self.register_buffer("unused", torch.full((size,), -1, dtype=torch.int64))

    def forward(
        self, semantic: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> dict[str, Quantized]:
        """`quantize`, for hooks and tools that call modules."""
        return self.quantize(semantic, mask)

    def quantize(
        self, semantic: Mapping[str, Tensor], mask: Tensor | None = None, *, null_code: bool = False
    ) -> dict[str, Quantized]:
        """Look up the nearest codes; writes nothing.

        Args:
            semantic: By modality, (B, T, D).
            mask: (B, T) bool, True = real step; others are looked up but not counted.
            null_code: Take code 0 for the zero vector, as the published evaluation does. Differs:
                the codebook itself stays as it is.

        Returns:
            By modality. The commitment loss pulls a modality to its own codes and, with less
            weight, to those of the others: own * MSE + cross / (n - 1) * (other MSEs).

        Raises:
            ShapeError: Modalities differ in shape, or the width is not the codebook's.
        """
        stacked = self._stack(semantic, mask)  # (M, B, T, D)
        codebook = self.codebook.detach()
        if null_code:
            codebook = codebook.clone()
            codebook[0] = 0.0
        codes = nearest_code(stacked, codebook)
        embedded = codebook[codes].to(stacked.dtype)
        real = _weights(codes[0], mask, stacked.dtype)
        commitment = self._commitment(stacked, embedded, real)
        # Straight-through: the value of the code, the gradient of the feature.
        through = stacked + (embedded - stacked).detach()
        perplexity = code_perplexity(_add_up(codes, real, len(codebook)))
        return {
            name: Quantized(stacked[i], through[i], codes[i], commitment[i], perplexity[i])
            for i, name in enumerate(semantic)
        }

    def _stack(self, semantic: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        """Modalities as one tensor, (M, B, T, D), after a check of their shapes."""
        batch, steps = next(iter(semantic.values())).shape[:2]
        width = self.codebook.shape[1]
        for name, x in semantic.items():
            check_shape(x.shape, "B T D", f"{name} to quantise", B=batch, T=steps, D=width)
        if mask is not None:
            check_shape(mask.shape, "B T", "mask", B=batch, T=steps)
            if mask.dtype != torch.bool:
                raise ShapeError(f"mask: expected bool, got {mask.dtype}")
        return torch.stack(list(semantic.values()))

    def _commitment(self, z: Tensor, embedded: Tensor, real: Tensor) -> Tensor:
        """Commitment loss of every modality, (M,)."""
        n, dim = len(z), z.shape[-1]
        # |z(m) - sg(e(n))|^2 of every modality m to the codes of every modality n.
        errors = (z[:, None] - embedded[None]).square().sum(-1)  # (M of z, M of codes, B, T)
        mse = (errors * real).sum((2, 3)) / (real.sum().clamp(min=1) * dim)
        share = self.config.commitment_cross / (n - 1) if n > 1 else 0.0
        # Equation 7 has the own codes alone, the diagonal; the published code the others too.
        weights = torch.full_like(mse, share).fill_diagonal_(self.config.commitment_own)
        return (mse * weights).sum(1)

    @torch.no_grad()
    def assign(
        self,
        semantic: Mapping[str, Tensor],
        mask: Tensor | None = None,
        codes: Mapping[str, Tensor] | None = None,
    ) -> Assignment:
        """Sums over real steps of what the averages need, in at least float32; writes nothing.

        A modality's codes average its own features and, at the same sample and step, those of the
        others: own * f + (1 - own) / (n - 1) * (sum of the others).

        Args:
            semantic: By modality, in the order in which the averages are updated, (B, T, D).
            mask: (B, T) bool, True = real; other steps move nothing and use no code.
            codes: The codes that `quantize` gave these features, if the codebook was not moved
                since: (B, T) int64 by modality. Looked up if None.

        Returns:
            What this batch says; those of batches that make one are added up before `move_`.

        Raises:
            ShapeError: Modalities differ in shape, or the width is not the codebook's.
        """
        stacked = self._stack(semantic, mask)
        if codes is None:
            chosen = nearest_code(stacked, self.codebook)
        else:
            chosen = torch.stack([codes[name] for name in semantic])
            modalities, batch, steps, _ = stacked.shape
            check_shape(chosen.shape, "M B T", "codes", M=modalities, B=batch, T=steps)
        n = len(stacked)
        features = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
        own = self.config.ema_own if n > 1 else 1.0
        share = (1 - own) / (n - 1) if n > 1 else 0.0
        mixing = torch.full((n, n), share, dtype=features.dtype, device=features.device)
        # What codes of m average: own f(m) + (1 - own) / (n - 1) sum of f(n) over n != m.
        blended = torch.tensordot(mixing.fill_diagonal_(own), features, 1)
        real = _weights(chosen[0], mask, features.dtype)
        size = len(self.codebook)
        counts = _add_up(chosen, real, size)
        return Assignment(tuple(semantic), counts, _add_up(chosen, blended * real[..., None], size))

    @torch.no_grad()
    def move_(
        self,
        found: Assignment,
        *,
        generator: torch.Generator | None = None,
        picks: Tensor | None = None,
    ) -> None:
        """Move the codebook towards the features and restart dead codes.

        A batch without a real step changes nothing.

        Args:
            found: What the whole batch says; every decision about a code is taken from it.
            generator: Source of the draws for dead codes; None is torch's global one.
            picks: Instead of a draw, each dead code's position among the active codes, both in
                ascending order, int64.
        """
        if not bool(found.counts.any()):
            return
        self._average_(found)
        # The published bookkeeping does not look at what text uses.
        counted = [
            i
            for i, name in enumerate(found.modalities)
            if not (self.config.reset == "reference" and name == "text")
        ]
        self.unused.add_(1)
        self.unused.masked_fill_(found.counts[counted].sum(0) > 0, 0)
        if self.config.reset != "off":
            self._restart_dead_(generator, picks)

    @torch.no_grad()
    def begin_with_(self, centres: Tensor, counts: Tensor) -> None:
        """Put the codebook where something else has found its codes.

        Args:
            centres: (K, D).
            counts: Steps that each code stands for in one modality of one batch, (K,), > 0.
        """
        self.codebook.copy_(centres)
        self.ema_count.copy_(counts)
        self.ema_weight.copy_(centres * counts[:, None])
        self.unused.fill_(-1)

    def _average_(self, found: Assignment) -> None:
        """Moving averages, one modality after the other, then the codebook from them."""
        decay, epsilon = self.config.ema_decay, self.config.ema_epsilon
        dtype = torch.promote_types(found.sums.dtype, self.codebook.dtype)
        count, weight = self.ema_count.to(dtype), self.ema_weight.to(dtype)
        for counts, sums in zip(found.counts, found.sums, strict=True):
            # N <- gamma N + (1 - gamma) n, by code.
            count = decay * count + (1 - decay) * counts
            total = count.sum()
            # Laplace smoothing, so that no N is 0: the sum over codes stays.
            count = (count + epsilon) / (total + len(count) * epsilon) * total
            # W <- gamma W + (1 - gamma) sum of the blended features of the code.
            weight = decay * weight + (1 - decay) * sums
        self.ema_count.copy_(count)
        self.ema_weight.copy_(weight)
        # e = W / N.
        self.codebook.copy_(weight / count[:, None])

    def _restart_dead_(self, generator: torch.Generator | None, picks: Tensor | None) -> None:
        """Put every dead code beside an active one."""
        dead = (self.unused > self.config.dead_after).nonzero()[:, 0]
        active = ((self.unused >= 0) & (self.unused < self.config.active_within)).nonzero()[:, 0]
        if not len(dead) or not len(active):
            return
        device = self.codebook.device if generator is None else generator.device
        if picks is None:
            picks = torch.randint(len(active), (len(dead),), generator=generator, device=device)
        source = self.codebook[active[picks.to(active.device)]]
        self.unused[dead] = 0
        if self.config.reset == "reference":
            self.codebook[dead] = source - RESET_NOISE
            return
        noise = torch.rand(source.shape, generator=generator, device=device, dtype=source.dtype)
        restarted = source + ((2 * noise - 1) * RESET_NOISE).to(source.device)
        # With N = 1 and W = e the next average does not throw the code back.
        self.codebook[dead] = restarted
        self.ema_weight[dead] = restarted
        self.ema_count[dead] = 1.0


class DirectionQuantizer(UnifiedQuantizer):
    """CODIS's codebook: directions, a parameter; the nearest code is that of the largest cosine.

    Features and codes are scaled to length sqrt(D): of two such vectors the squared distance is
    2 D (1 - cosine), so that `UnifiedQuantizer`'s lookup and commitment hold as they are.

    The parameter itself has unit length at the start and after every step. Adam's step has a length
    of about rate * sqrt(D), whatever the gradient's, so that it turns a code by that divided by the
    parameter's length: one drawn with length sqrt(D) would turn by no more than the rate, in
    radians, and stay about where it was drawn.

    Args:
        embed_dim: D.
        config: Settings; those of the moving averages and of dead codes are not used.

    Source: section 3 of Duan et al., *Multi-modal alignment using representation codebook*, CVPR
    2022; unit length as the prototypes of Caron et al., *SwAV*, NeurIPS 2020, and its published
    code.

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


def code_counts(codes: Tensor, mask: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """How often each modality uses each code at real steps.

    Args:
        codes: (M, B, T) int64.
        mask: (B, T) bool, True = real step.
        size: K.
        dtype: Of the result.

    Returns:
        (M, K).
    """
    return _add_up(codes, mask.to(dtype), size)


def code_perplexity(counts: Tensor) -> Tensor:
    """Perplexity: exp of the entropy of the codes' use, in [1, K].

    Args:
        counts: How often each code is used, (M, K).

    Returns:
        (M,).
    """
    usage = counts / counts.sum(1, keepdim=True).clamp(min=1)
    # exp(-sum_k p_k log p_k)
    return torch.exp(-(usage * (usage + ENTROPY_FLOOR).log()).sum(1))


def _weights(like: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """1 at real steps and 0 at others, (B, T)."""
    return torch.ones_like(like, dtype=dtype) if mask is None else mask.to(dtype)


def _add_up(codes: Tensor, values: Tensor, size: int) -> Tensor:
    """Sum values by modality and code.

    Args:
        codes: (M, B, T) int64.
        values: (B, T), the same for every modality, or (M, B, T, D).
        size: K.

    Returns:
        (M, K) or (M, K, D).
    """
    n = len(codes)
    trailing = values.shape[3:]
    slots = codes.flatten(1) + size * torch.arange(n, device=codes.device)[:, None]
    spread = values.expand(n, *codes.shape[1:], *trailing).reshape(-1, *trailing)
    sums = values.new_zeros((n * size, *trailing)).index_add_(0, slots.flatten(), spread)
    return sums.view(n, size, *trailing)


def _scale(x: Tensor) -> Tensor:
    """Vectors of length sqrt(D); a zero vector stays zero."""
    return math.sqrt(x.shape[-1]) * functional.normalize(x, dim=-1)
