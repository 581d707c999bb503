"""The jigsaw against loops written from its description, and permutations without enumeration."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from micu.losses import jigsaw
from micu.losses.jigsaw import (
    JigsawClassifier,
    draw_permutations,
    jigsaw_loss,
    mix_blocks,
    sampled_jigsaw_loss,
    unrank_permutation,
)

M, N, D, O, P, H = 3, 5, 8, 4, 6, 7  # noqa: E741


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def parameters() -> list[Tensor]:
    shapes = [(H, D), (H,), (P, H), (P,)]
    return [numbers(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def loop_loss(
    blocks: Tensor, permutations: Tensor, weights: list[Tensor], rows: list[int]
) -> Tensor:
    """Put the blocks in order, ask the classifier, compare with the permutation's number."""
    losses = []
    for row in rows:
        for label, permutation in enumerate(permutations.tolist()):
            puzzle = torch.cat([blocks[row, block] for block in permutation])
            hidden = torch.relu(weights[0] @ puzzle + weights[1])
            losses.append(-functional.log_softmax(weights[2] @ hidden + weights[3], 0)[label])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("splits", range(1, 7))
def test_ranks_are_places_in_lexicographic_order(splits: int) -> None:
    for rank, permutation in enumerate(itertools.permutations(range(splits))):
        assert unrank_permutation(rank, splits) == permutation


def test_the_last_of_very_many_permutations_has_its_rank() -> None:
    backwards = tuple(reversed(range(40)))
    assert unrank_permutation(math.factorial(40) - 1, 40) == backwards


@pytest.mark.parametrize(("splits", "count"), [(2, 2), (3, 6), (8, 256), (12, 128), (32, 64)])
def test_drawn_permutations_differ_and_are_permutations(splits: int, count: int) -> None:
    table = draw_permutations(splits, count, seed=3)
    assert (table.shape, table.dtype) == ((count, splits), torch.int64)
    assert len(set(map(tuple, table.tolist()))) == count
    assert torch.equal(table.sort(1).values, torch.arange(splits).expand(count, splits))


@pytest.mark.parametrize("splits", [8, 32])
def test_permutations_are_a_pure_function_of_the_seed(splits: int) -> None:
    assert torch.equal(draw_permutations(splits, 9, 5), draw_permutations(splits, 9, 5))
    assert not torch.equal(draw_permutations(splits, 9, 5), draw_permutations(splits, 9, 6))


def test_blocks_come_from_the_drawn_modality_for_the_batch_or_for_each_row() -> None:
    codes = numbers(M, N, D)
    for_batch = torch.tensor([2, 0, 1, 0])
    for_rows = (numbers(N, O).abs() * 7).long() % M
    width = D // O
    for drawn in (for_batch, for_rows):
        blocks = mix_blocks(codes, drawn)
        for row, block in itertools.product(range(N), range(O)):
            modality = int(drawn.expand(N, O)[row, block])
            cut = codes[modality, row, block * width : (block + 1) * width]
            assert torch.equal(blocks[row, block], cut)


@pytest.mark.parametrize("chunk", [1, 2 * P * H, 10**9])
@pytest.mark.parametrize("rows", [list(range(N)), [0, 3]])
def test_loss_and_gradients_equal_a_loop_whatever_the_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk: int, rows: list[int]
) -> None:
    monkeypatch.setattr(jigsaw, "CHUNK_ELEMENTS", chunk)
    blocks, weights = numbers(N, O, D // O, seed=9).requires_grad_(), parameters()
    permutations = draw_permutations(O, P, seed=1)
    mask = torch.zeros(N, dtype=torch.bool).index_fill(0, torch.tensor(rows), True)
    got = jigsaw_loss(blocks, permutations, weights, mask)
    expected = loop_loss(blocks, permutations, weights, rows)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    pairs = zip(
        torch.autograd.grad(3 * got, [blocks, *weights]),
        torch.autograd.grad(3 * expected, [blocks, *weights]),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_gradients_are_those_of_finite_differences() -> None:
    permutations = draw_permutations(O, P, seed=1)
    mask = torch.tensor([True, True, False])

    def loss(blocks: Tensor, *weights: Tensor) -> Tensor:
        return jigsaw_loss(blocks, permutations, weights, mask)

    assert torch.autograd.gradcheck(loss, (numbers(3, O, D // O).requires_grad_(), *parameters()))


def test_rows_that_do_not_count_have_no_effect() -> None:
    permutations, weights = draw_permutations(O, P, seed=1), parameters()
    mask = torch.tensor([True, False, True, False, False])
    blocks = numbers(N, O, D // O)
    wild = torch.where(mask[:, None, None], blocks, 1e3)
    assert torch.equal(
        jigsaw_loss(blocks, permutations, weights, mask),
        jigsaw_loss(wild, permutations, weights, mask),
    )
    assert jigsaw_loss(blocks, permutations, weights, mask & False).item() == 0


def test_no_activation_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jigsaw, "CHUNK_ELEMENTS", 2 * P * H)
    sizes: list[int] = []
    whole = jigsaw.permuted_logits

    def watched(blocks: Tensor, placed: Tensor, classifier: list[Tensor]) -> Tensor:
        sizes.append(len(blocks) * len(placed) * max(P, H))
        return whole(blocks, placed, classifier)

    monkeypatch.setattr(jigsaw, "permuted_logits", watched)
    blocks = numbers(N, O, D // O).requires_grad_()
    jigsaw_loss(blocks, draw_permutations(O, P, seed=1), parameters())
    assert sum(sizes) == N * P * max(P, H)
    assert max(sizes) <= 2 * P * H


def test_without_gradient_the_value_is_the_same() -> None:
    blocks, weights = numbers(N, O, D // O).requires_grad_(), parameters()
    permutations = draw_permutations(O, P, seed=1)
    with torch.no_grad():
        quiet = jigsaw_loss(blocks, permutations, weights)
    assert not quiet.requires_grad
    assert torch.equal(quiet, jigsaw_loss(blocks, permutations, weights).detach())


def test_the_classifier_offers_its_parameters_first_layer_first() -> None:
    classifier = JigsawClassifier(D, H, P)
    assert [tuple(x.shape) for x in classifier.tensors()] == [(H, D), (H,), (P, H), (P,)]
    assert len(list(classifier.parameters())) == 4


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True, True, False])])
def test_the_mean_over_all_labels_of_the_sampled_loss_is_the_exact_one(mask: Tensor | None) -> None:
    blocks, weights = numbers(N, O, D // O).requires_grad_(), parameters()
    permutations = draw_permutations(O, P, seed=1)
    leaves = [blocks, *weights]
    labels = torch.arange(P).expand(N, P).T  # every row has every label once
    sampled = [sampled_jigsaw_loss(blocks, permutations, row, weights, mask) for row in labels]
    mean = torch.stack(sampled).mean()
    exact = jigsaw_loss(blocks, permutations, weights, mask)
    torch.testing.assert_close(mean, exact, rtol=1e-12, atol=0)
    pairs = zip(torch.autograd.grad(mean, leaves), torch.autograd.grad(exact, leaves), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_a_row_is_put_in_the_permutation_of_its_label() -> None:
    blocks, weights = numbers(N, O, D // O), parameters()
    permutations = draw_permutations(O, P, seed=1)
    labels = torch.tensor([5, 0, 3, 3, 1])
    got = sampled_jigsaw_loss(blocks, permutations, labels, weights)
    losses = []
    for row, label in enumerate(labels.tolist()):
        puzzle = torch.cat([blocks[row, block] for block in permutations[label].tolist()])
        hidden = torch.relu(weights[0] @ puzzle + weights[1])
        losses.append(-functional.log_softmax(weights[2] @ hidden + weights[3], 0)[label])
    torch.testing.assert_close(got, torch.stack(losses).mean(), rtol=1e-12, atol=0)
