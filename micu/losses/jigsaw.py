"""CUJP, the cross-modal unified jigsaw puzzle, and permutations by their lexicographic rank.

A row (one step's code) is cut along its channels into O blocks, each block is taken from a randomly
drawn modality, the blocks are put in the order of each of P fixed permutations, and a classifier f
must tell which permutation it was. Over N rows, x_n,p being row n in permutation p,

    L = 1 / (N P) sum_n sum_p -log softmax_p f(x_n,p)

Blocks are of embedded codes, whose gradient passes straight through to the embeddings. Source:
section 3.3 of Huang et al., ICCV 2025, equation 6.
"""

import math
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses.terms import LOSSES, Draws, Loss
from micu.model.micu import MICUOutput
from micu.model.onednn import linear
from micu.model.precision import autocast

CHUNK_ELEMENTS = 2**21
"""Largest activation that exists at once. Small enough for the processor's cache, where a step is
1.4 times as fast as with everything at once, and large enough to keep a GPU busy."""


def unrank_permutation(rank: int, splits: int) -> tuple[int, ...]:
    """The permutation of 0..O-1 at a place in lexicographic order, without listing the others.

    Args:
        rank: In [0, O!).
        splits: O.

    Returns:
        The permutation.
    """
    remaining, permutation = list(range(splits)), []
    for left in range(splits, 0, -1):
        place, rank = divmod(rank, math.factorial(left - 1))
        permutation.append(remaining.pop(place))
    return tuple(permutation)


def draw_permutations(splits: int, count: int, seed: int) -> Tensor:
    """Draw different permutations, for any O.

    Args:
        splits: O.
        count: P, at most O!.
        seed: The draw is a pure function of it.

    Returns:
        (P, O) int64; position j of permutation p holds block `[p, j]`.

    Reference: section 3.3. Up to O = 20 these are the published code's for the same seed.
    """
    source, total = random.Random(seed), math.factorial(splits)
    if total <= sys.maxsize:
        ranks = source.sample(range(total), count)
    else:
        drawn: dict[int, None] = {}
        while len(drawn) < count:
            drawn[source.randrange(total)] = None
        ranks = list(drawn)
    return torch.tensor([unrank_permutation(rank, splits) for rank in ranks])


def mix_blocks(quantized: Tensor, block_modality: Tensor) -> Tensor:
    """Cut embedded codes into blocks and take each block from its modality.

    Args:
        quantized: Embedded codes, (M, N, D).
        block_modality: Index of the modality of each block, int64, (O,) or (N, O); O divides D.

    Returns:
        (N, O, D / O).
    """
    modalities, rows, dim = quantized.shape
    splits = block_modality.shape[-1]
    blocks = quantized.view(modalities, rows, splits, dim // splits)
    index = block_modality.expand(rows, splits).view(1, rows, splits, 1)
    return torch.take_along_dim(blocks, index, dim=0).squeeze(0)


class JigsawClassifier(nn.Module):
    """Linear, ReLU, Linear: which permutation were the blocks put in?"""

    def __init__(self, embed_dim: int, hidden_dim: int, permutations: int) -> None:  # noqa: D107
        super().__init__()
        self.hidden = nn.Linear(embed_dim, hidden_dim)
        self.answer = nn.Linear(hidden_dim, permutations)

    def tensors(self) -> list[Tensor]:
        """Weight and bias of the first layer, then of the second."""
        return [self.hidden.weight, self.hidden.bias, self.answer.weight, self.answer.bias]


def placements(permutations: Tensor, dtype: torch.dtype) -> Tensor:
    """Which block is where in each permutation, as zeros and ones.

    Args:
        permutations: (P, O) int64.
        dtype: Of the result.

    Returns:
        (P, O * O): 1 at `position * O + block`.
    """
    splits = permutations.shape[1]
    return functional.one_hot(permutations, splits).flatten(1).to(dtype)


def permuted_logits(blocks: Tensor, placed: Tensor, classifier: Sequence[Tensor]) -> Tensor:
    """The classifier's answer to every row in every permutation.

    The first layer is linear, so what a block adds at a position does not depend on the rest: it is
    computed once for each of the O * O cases and summed by permutation, instead of once for each of
    the P * O. That is cheaper while O * O < D.

    Args:
        blocks: (N, O, W), W = D / O.
        placed: Result of `placements`, (P, O * O).
        classifier: First weight (H, D) and bias (H,), second weight (P, H) and bias (P,).

    Returns:
        (N, P, P); `[n, p]` is the answer to row n in permutation p.
    """
    weight, bias, answer_weight, answer_bias = classifier
    splits, width = blocks.shape[1:]
    by_position = weight.view(-1, splits, width)
    # W_j x_b: what block b adds to the hidden layer at position j.
    cases = torch.einsum("nbw,hjw->njbh", blocks, by_position).flatten(1, 2)  # (N, O * O, H)
    # relu(sum_j W_j x_p(j) + bias), of every permutation p.
    hidden = torch.relu_(placed @ cases + bias)  # (N, P, H)
    return linear(hidden, answer_weight, answer_bias)


def _summed_losses(
    blocks: Tensor, row_weight: Tensor, placed: Tensor, classifier: Sequence[Tensor]
) -> Tensor:
    """Cross-entropy of all permutations of some rows, weighted by row and summed, ().

    Weights of about one keep the gradient within the range of fp16.
    """
    logits = permuted_logits(blocks, placed, classifier)
    # Equation 6: a row in permutation p has the label p.
    labels = torch.arange(len(placed), device=blocks.device).expand(len(blocks), -1)
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return torch.dot(losses.view(len(blocks), -1).sum(1), row_weight)


class _ChunkedLosses(torch.autograd.Function):
    """`_summed_losses` by chunks of rows, each one's gradient taken before the next one starts.

    Only the gradients outlive a chunk, so memory does not grow with N * P, and nothing is computed
    twice as it would be with activation checkpointing.
    """

    @staticmethod
    def forward(
        ctx: Any, blocks: Tensor, row_weight: Tensor, placed: Tensor, *classifier: Tensor
    ) -> Tensor:
        needs_grad = any(ctx.needs_input_grad)
        chunk = max(1, CHUNK_ELEMENTS // (len(placed) * max(len(placed), len(classifier[1]))))
        leaves = [tensor.detach().requires_grad_(needs_grad) for tensor in classifier]
        classifier_grads = [torch.zeros_like(tensor) for tensor in classifier]
        blocks_grads, total = [], blocks.new_zeros(())
        for part, weight in zip(
            torch.split(blocks, chunk), torch.split(row_weight, chunk), strict=True
        ):
            with torch.set_grad_enabled(needs_grad):
                leaf = part.detach().requires_grad_(needs_grad)
                loss = _summed_losses(leaf, weight, placed, leaves)
            total += loss.detach()
            if needs_grad:
                part_grad, *rest = torch.autograd.grad(loss, [leaf, *leaves])
                blocks_grads.append(part_grad)
                for summed, grad in zip(classifier_grads, rest, strict=True):
                    summed += grad
        if needs_grad:
            ctx.save_for_backward(torch.cat(blocks_grads), *classifier_grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        blocks_grad, *classifier_grads = (grad_outputs[0] * grad for grad in ctx.saved_tensors)
        return blocks_grad, None, None, *classifier_grads


def jigsaw_loss(
    blocks: Tensor,
    permutations: Tensor,
    classifier: Sequence[Tensor],
    row_mask: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of telling all P permutations apart, over rows and permutations.

    Measured for 800 rows, P = 256, O = 8 in float32 on one core, forward and backward: 2.7 s and
    0.1 GB; all rows at once 3.9 s and 1.5 GB; permuted rows put through the first layer, in chunks
    that are computed again for the gradient, 9.4 s.

    Args:
        blocks: Result of `mix_blocks`, (N, O, W).
        permutations: (P, O) int64.
        classifier: `JigsawClassifier.tensors()`.
        row_mask: (N,) bool, True = the row counts; all if None.

    Returns:
        ().

    Reference: equation 6. Labels run from 0; the paper prints 1 to P.
    """
    counts = torch.ones_like(blocks[:, 0, 0]) if row_mask is None else row_mask.to(blocks.dtype)
    placed = placements(permutations, blocks.dtype)
    total: Tensor = _ChunkedLosses.apply(blocks, counts.detach(), placed, *classifier)
    return total / (counts.sum().clamp(min=1) * len(permutations))


def sampled_jigsaw_loss(
    blocks: Tensor,
    permutations: Tensor,
    labels: Tensor,
    classifier: Sequence[Tensor],
    row_mask: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of telling one permutation per row, over rows.

    Over labels drawn uniformly its mean, and that of its gradient, are those of `jigsaw_loss`.

    Args:
        blocks: Result of `mix_blocks`, (N, O, W).
        permutations: (P, O) int64.
        labels: Which of them each row is put in, (N,) int64.
        classifier: `JigsawClassifier.tensors()`.
        row_mask: (N,) bool, True = the row counts; all if None.

    Returns:
        ().
    """
    weight, bias, answer_weight, answer_bias = classifier
    # Position j of a row holds block p(j), where p is the permutation that was drawn for it.
    rows = torch.take_along_dim(blocks, permutations[labels, :, None], dim=1).flatten(1)
    logits = linear(torch.relu(linear(rows, weight, bias)), answer_weight, answer_bias)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    if row_mask is None:
        return losses.mean()
    return (losses * row_mask).sum() / row_mask.sum().clamp(min=1)


@LOSSES.register("jigsaw")
class JigsawLoss(Loss):
    """Permutation classification on blocks of different modalities; owns classifier and table."""

    mean_over = "steps"

    permutations: Tensor

    def __init__(self, config: TrainConfig) -> None:  # noqa: D107
        super().__init__(config)
        jigsaw = config.jigsaw
        self.classifier = JigsawClassifier(
            config.encoder.embed_dim, jigsaw.hidden_dim, jigsaw.permutations
        )
        table = draw_permutations(jigsaw.splits, jigsaw.permutations, config.seed)
        self.register_buffer("permutations", table)

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Mean cross-entropy over real steps and permutations, all or one drawn for each, ()."""
        quantized = self.stack({name: q.quantized for name, q in output.quantized.items()})
        blocks = mix_blocks(quantized.flatten(1, 2), draws.block_modality)
        table, classifier, rows = self.permutations, self.classifier.tensors(), batch.mask.flatten()
        with autocast(self.config, blocks.device):
            if draws.labels is not None:
                return sampled_jigsaw_loss(blocks, table, draws.labels, classifier, rows)
            return jigsaw_loss(blocks, table, classifier, rows)
