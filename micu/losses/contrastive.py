"""FCMI: masked contrastive learning between modalities, by steps (fine) and by clips (coarse).

With the embeddings z(m) of modality m, and z~(m) of which steps or numbers are hidden (set to 0),

    s_ij(m, n) = z~_i(m) . z_j(n) / tau
    L          = sum_{m,n} mean_i -log(exp s_ii(m, n) / sum_j exp s_ij(m, n))

where i and j are the steps of one sample in the fine loss (equation 4), and the samples of the
batch, by their means over steps, in the coarse one (equation 5). Queries are hidden in part, keys
are whole. Every ordered pair of modalities counts, a modality with itself included. Printed are a
dot product with tau = 1 and two modalities; the published code, and preset `micu`, take the cosine
and 0.1 (`contrastive.normalize`, `.tau`). All pairs are computed at once: no loop over samples or
pairs. Source: section 3.2 of Huang et al., ICCV 2025.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from micu.data.dataset import Batch
from micu.losses.terms import LOSSES, ClipsLoss, Draws, Loss
from micu.model.micu import MICUOutput, mean_over_steps


def unit_rows(x: Tensor) -> Tensor:
    """Scale vectors to length 1; a zero vector stays zero and gets no gradient.

    Args:
        x: Vectors, (..., D).

    Returns:
        (..., D).
    """
    is_zero = (x == 0).all(-1, keepdim=True)
    return torch.where(is_zero, torch.zeros_like(x), functional.normalize(x, dim=-1, eps=1e-12))


def info_nce_pairs(
    queries: Tensor,
    keys: Tensor,
    *,
    tau: float,
    normalize: bool = True,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """InfoNCE of every modality's queries against every modality's keys, within groups.

    A group holds the candidates for each other: the steps of one sample, or the samples of one
    batch. There may be more keys than queries, such as those of a queue.

    Args:
        queries: (M, G, N, D).
        keys: (M, G, S, D).
        tau: Temperature.
        normalize: Cosine if true, else dot product.
        query_mask: (G, N) bool, True = the query counts; all if None.
        key_mask: (G, S) bool, True = the key is a candidate; all if None.

    Returns:
        Mean over queries of a group, then over groups; row = modality of the queries, column = of
        the keys, (M, M). A zero query costs log(number of candidates).

    Reference: equations 4 and 5; differences stand at the top of this file.
    """
    modalities, groups, count, dim = queries.shape
    candidates = keys.shape[2]
    if normalize:
        queries, keys = unit_rows(queries), unit_rows(keys)
    left = queries.transpose(0, 1).reshape(groups, modalities * count, dim)
    right = keys.transpose(0, 1).reshape(groups, modalities * candidates, dim)
    # s_ij(m, n) = q_i(m) k_j(n) / tau, of all pairs of modalities at once.
    logits = torch.bmm(left, right.transpose(1, 2)) / tau
    logits = logits.view(groups, modalities, count, modalities, candidates)

    # Query i matches key i.
    index = torch.arange(count, device=queries.device).view(1, 1, count, 1, 1)
    positive = torch.take_along_dim(logits, index, dim=-1).squeeze(-1)  # (G, M, N, M)
    if key_mask is not None:
        # A group without any candidate keeps its logits: minus infinity alone has no gradient.
        dropped = ~key_mask & key_mask.any(-1, keepdim=True)
        logits = logits.masked_fill(dropped.view(groups, 1, 1, 1, candidates), -torch.inf)
    # -log(exp s_ii / sum_j exp s_ij) = log sum_j exp s_ij - s_ii.
    losses = torch.logsumexp(logits, dim=-1) - positive

    if query_mask is None:
        return losses.mean(dim=(0, 2))
    # The mean over the queries that count, then over the groups that have one.
    losses = losses * query_mask.view(groups, 1, count, 1)
    per_group = losses.sum(2) / query_mask.sum(-1).clamp(min=1).view(groups, 1, 1)  # (G, M, M)
    return per_group.sum(0) / query_mask.any(-1).sum().clamp(min=1)


def hide(semantic: Tensor, keep: Tensor, axis: Literal["time", "feature"]) -> Tensor:
    """Set what is not kept to zero.

    Args:
        semantic: (M, B, T, D).
        keep: (B, T) bool for axis `"time"`, (B, D) for `"feature"`, for all modalities alike; or
            one for each of them, (M, B, T) or (M, B, D).
        axis: What is masked: whole steps, or the same features at every step.

    Returns:
        (M, B, T, D).
    """
    spread = keep.unsqueeze(-1) if axis == "time" else keep.unsqueeze(-2)
    return semantic * spread


def fine_pairs(
    masked: Tensor, semantic: Tensor, mask: Tensor | None, *, tau: float, normalize: bool = True
) -> Tensor:
    """Fine InfoNCE: a step against the steps of the same sample.

    Args:
        masked: Queries, with hidden steps or numbers set to zero, (M, B, T, D).
        semantic: Keys, (M, B, T, D).
        mask: (B, T) bool, True = real step; padded steps are neither queries nor keys.
        tau: Temperature.
        normalize: Cosine if true, else dot product.

    Returns:
        Loss per ordered pair, (M, M).

    Reference: equation 4.
    """
    return info_nce_pairs(
        masked, semantic, tau=tau, normalize=normalize, query_mask=mask, key_mask=mask
    )


def clip_pairs(
    queries: Tensor,
    keys: Tensor,
    has_steps: Tensor | None,
    *,
    tau: float,
    normalize: bool = True,
) -> Tensor:
    """Coarse InfoNCE of samples that are averaged already.

    Args:
        queries: (M, B, D).
        keys: (M, B, D).
        has_steps: (B,) bool, True = the sample is query and key; all if None.
        tau: Temperature.
        normalize: Cosine if true, else dot product.

    Returns:
        Loss per ordered pair, (M, M).
    """
    counts = None if has_steps is None else has_steps.unsqueeze(0)  # (1, B)
    return info_nce_pairs(
        queries.unsqueeze(1),
        keys.unsqueeze(1),
        tau=tau,
        normalize=normalize,
        query_mask=counts,
        key_mask=counts,
    )


class _Contrastive(Loss):
    """What both levels have in common."""

    def views(self, output: MICUOutput, draws: Draws) -> tuple[Tensor, Tensor]:
        """Embeddings with parts hidden, and whole, (M, B, T, D) each."""
        semantic = self.stack({name: q.semantic for name, q in output.quantized.items()})
        return hide(semantic, draws.keep, self.config.contrastive.mask_axis), semantic

    def reduce(self, pairs: Tensor) -> Tensor:
        """One number, (), of a loss per ordered pair, (M, M)."""
        return pairs.sum() if self.config.contrastive.pair_reduction == "sum" else pairs.mean()


@LOSSES.register("fine")
class FineLoss(_Contrastive):
    """Masked InfoNCE over the steps of each sample: equation 4."""

    mean_over = "clips"

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Sum or mean over the ordered pairs, ()."""
        settings = self.config.contrastive
        masked, semantic = self.views(output, draws)
        return self.reduce(
            fine_pairs(masked, semantic, batch.mask, tau=settings.tau, normalize=settings.normalize)
        )


@LOSSES.register("coarse")
class CoarseLoss(_Contrastive, ClipsLoss):
    """Masked InfoNCE over the samples of the batch: equation 5."""

    @property
    def summary_shape(self) -> tuple[int, ...]:
        """(2, M, D): as a query, then as a key."""
        return (2, len(self.config.modalities), self.config.encoder.embed_dim)

    def summarize(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Means over the steps of every clip, (B, 2, M, D)."""
        means = [mean_over_steps(x, batch.mask) for x in self.views(output, draws)]
        return torch.stack(means).movedim(2, 0)

    def compare(self, summaries: Tensor, has_steps: Tensor) -> Tensor:
        """Sum or mean over the ordered pairs, ()."""
        settings = self.config.contrastive
        queries, keys = summaries.movedim(0, 2)
        return self.reduce(
            clip_pairs(queries, keys, has_steps, tau=settings.tau, normalize=settings.normalize)
        )


@LOSSES.register("one_way")
class OneWayLoss(ClipsLoss):
    """TURN's contrast: clips of one modality find their clip in another, in one direction.

    Over the clips i of a batch, whose embeddings' means over steps are z̄,

        s_ij(m, n) = cos(z̄_i(m), z̄_j(n)) / tau
        L          = sum_{m<n} mean_i -log(exp s_ii(m, n) / sum_j exp s_ij(m, n))

    Source: Zhao et al., *Towards effective multi-modal interchanges in zero-resource sounding
    object localization* (TURN), NeurIPS 2022, and its published code (AwalkZY/TURN, 3640ef9:
    `calc_overall_vq_loss` of `loss/__init__.py`).

    Differs: TURN has audio and text alone. Here each modality looks for those that stand after it
    in `config.modalities`; with `contrastive.one_way` `text` all others look for text alone, as
    FCID's do. TURN compares what a projector (1 x 1 convolution, batch normalisation)
    makes of the means; here it is the means, since codes are of them.
    """

    @property
    def summary_shape(self) -> tuple[int, ...]:
        """(M, D)."""
        return (len(self.config.modalities), self.config.encoder.embed_dim)

    def summarize(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Means over the steps of every clip, (B, M, D)."""
        semantic = self.stack({name: q.semantic for name, q in output.quantized.items()})
        return mean_over_steps(semantic, output.quantized_mask(batch.mask)).transpose(0, 1)

    def compare(self, summaries: Tensor, has_steps: Tensor) -> Tensor:
        """Sum over unordered pairs, ()."""
        clips, names = summaries.transpose(0, 1), self.config.modalities
        pairs = clip_pairs(clips, clips, has_steps, tau=self.config.contrastive.tau)
        if self.config.contrastive.one_way == "text" and "text" in names:
            return pairs[:, names.index("text")].sum() - pairs.diagonal()[names.index("text")]
        # Pairs m < n alone: one direction.
        return torch.triu(pairs, diagonal=1).sum()
