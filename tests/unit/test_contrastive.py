"""Masked contrastive losses against loops written from the formula, and their edges."""

import math

import pytest
import torch
from torch import Tensor

from micu.losses.contrastive import fine_pairs, hide, unit_rows
from tests.models import coarse_pairs

M, B, T, D = 3, 4, 5, 6
PAIRS = {"fine": fine_pairs, "coarse": coarse_pairs}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def padding_mask(lengths: list[int], steps: int = T) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths)[:, None]


def loop_nce(queries: list[Tensor], keys: list[Tensor], tau: float, normalize: bool) -> float:
    """Mean over i of -log softmax_j(q_i . k_j / tau) at j = i."""
    if normalize:
        queries = [q / max(q.norm().item(), 1e-12) for q in queries]
        keys = [k / max(k.norm().item(), 1e-12) for k in keys]
    losses = []
    for i, query in enumerate(queries):
        scores = [float(query @ key) / tau for key in keys]
        losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[i])
    return sum(losses) / len(losses)


def loop_fine(masked: Tensor, z: Tensor, mask: Tensor, m: int, n: int, *setting: float) -> float:
    samples = []
    for b in range(len(mask)):
        real = [t for t in range(mask.shape[1]) if mask[b, t]]
        if real:
            queries, keys = [masked[m, b, t] for t in real], [z[n, b, t] for t in real]
            samples.append(loop_nce(queries, keys, setting[0], bool(setting[1])))
    return sum(samples) / len(samples)


def loop_coarse(masked: Tensor, z: Tensor, mask: Tensor, m: int, n: int, *setting: float) -> float:
    rows = [b for b in range(len(mask)) if mask[b].any()]
    queries = [masked[m, b][mask[b]].sum(0) / int(mask[b].sum()) for b in rows]
    keys = [z[n, b][mask[b]].sum(0) / int(mask[b].sum()) for b in rows]
    return loop_nce(queries, keys, setting[0], bool(setting[1]))


LOOPS = {"fine": loop_fine, "coarse": loop_coarse}


@pytest.mark.parametrize("level", PAIRS)
@pytest.mark.parametrize("axis", ["time", "feature"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lengths", [[T, T, T, T], [5, 2, 0, 1]])
def test_pairs_equal_a_loop_over_samples_and_pairs(
    level: str, axis: str, normalize: bool, lengths: list[int]
) -> None:
    z, mask, tau = numbers(M, B, T, D), padding_mask(lengths), 0.4
    keep = numbers(B, T if axis == "time" else D, seed=1) > -0.4
    assert not keep.all()
    masked = hide(z, keep, axis)
    got = PAIRS[level](masked, z, mask, tau=tau, normalize=normalize)
    for m in range(M):
        for n in range(M):
            expected = LOOPS[level](masked, z, mask, m, n, tau, normalize)
            assert got[m, n].item() == pytest.approx(expected, rel=1e-12), (m, n)


@pytest.mark.parametrize("axis", ["time", "feature"])
def test_hiding_zeroes_the_same_places_in_every_modality(axis: str) -> None:
    z = numbers(M, B, T, D)
    keep = numbers(B, T if axis == "time" else D, seed=2) > 0
    masked = hide(z, keep, axis)
    for b in range(B):
        for t in range(T):
            for d in range(D):
                kept = keep[b, t] if axis == "time" else keep[b, d]
                assert torch.equal(masked[:, b, t, d], z[:, b, t, d] * kept)


@pytest.mark.parametrize("axis", ["time", "feature"])
def test_a_mask_for_each_modality_hides_its_own_places(axis: str) -> None:
    z = numbers(M, B, T, D)
    keep = numbers(M, B, T if axis == "time" else D, seed=2) > 0
    masked = hide(z, keep, axis)
    for m in range(M):
        assert torch.equal(masked[m], hide(z[m : m + 1], keep[m], axis)[0])


@pytest.mark.parametrize("level", PAIRS)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_are_those_of_finite_differences(level: str, normalize: bool) -> None:
    z = numbers(2, 3, 3, 4).requires_grad_()
    keep, mask = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 1]]) > 0, padding_mask([3, 2, 1], 3)

    def loss(x: Tensor) -> Tensor:
        return PAIRS[level](hide(x, keep, "time"), x, mask, tau=0.5, normalize=normalize)

    assert torch.autograd.gradcheck(loss, (z,))


@pytest.mark.parametrize("level", PAIRS)
def test_an_all_true_mask_changes_nothing(level: str) -> None:
    z = numbers(M, B, T, D)
    whole = PAIRS[level](z, z, None, tau=0.1)
    masked = PAIRS[level](z, z, torch.ones(B, T, dtype=torch.bool), tau=0.1)
    torch.testing.assert_close(masked, whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize("level", PAIRS)
def test_what_stands_at_padded_steps_has_no_effect(level: str) -> None:
    z, mask = numbers(M, B, T, D).requires_grad_(), padding_mask([5, 3, 2, 0])
    wild = torch.where(mask[..., None], z, 1e3 * numbers(M, B, T, D, seed=3))
    calm = PAIRS[level](z, z, mask, tau=0.2)
    torch.testing.assert_close(PAIRS[level](wild, wild, mask, tau=0.2), calm, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(calm.sum(), z)
    assert gradient.isfinite().all()
    assert not gradient[:, ~mask].any()


def test_padding_equals_leaving_the_steps_out() -> None:
    z = numbers(M, B, T, D)
    mask = padding_mask([3] * B)
    for pairs in PAIRS.values():
        short = pairs(z[:, :, :3], z[:, :, :3], None, tau=0.1)
        torch.testing.assert_close(pairs(z, z, mask, tau=0.1), short, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_query_costs_the_log_of_the_candidates_and_moves_nothing(dtype: torch.dtype) -> None:
    z = numbers(1, 1, T, D).to(dtype).requires_grad_()
    loss = fine_pairs(z * 0, z, padding_mask([T]), tau=0.1)
    assert loss.item() == pytest.approx(math.log(T), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.equal(gradient, torch.zeros_like(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_vector_stays_zero_and_gets_no_gradient(dtype: torch.dtype) -> None:
    x = torch.stack([torch.zeros(D), torch.ones(D)]).to(dtype).requires_grad_()
    scaled = unit_rows(x)
    assert not scaled[0].any()
    assert scaled[1].norm().item() == pytest.approx(1)
    (gradient,) = torch.autograd.grad((scaled * numbers(2, D).to(dtype)).sum(), x)
    assert not gradient[0].any()
    assert gradient[1].any()


def test_a_batch_without_real_steps_costs_nothing() -> None:
    z = numbers(M, B, T, D).requires_grad_()
    for pairs in PAIRS.values():
        loss = pairs(z, z, padding_mask([0] * B), tau=0.1).sum()
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, z)[0].any()
