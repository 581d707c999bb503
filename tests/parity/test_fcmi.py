"""Masked contrastive losses against the published code's values (fcmi.npz)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from micu.losses.contrastive import fine_pairs, hide
from tests.models import coarse_pairs
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.recipe import assert_close, checksum

MODALITIES = 3
PAIRS = {"fine": fine_pairs, "coarse": coarse_pairs}
DTYPES = {torch.float64: recipe.FLOAT64_TOLERANCE, torch.float32: recipe.FLOAT32_LOSSES}


@pytest.fixture
def dim(golden: Golden) -> int:
    """D of the embeddings, as in the other files."""
    return int(golden("semantic")["sem_audio"].shape[-1])


def temperatures(expected: Mapping[str, Any]) -> list[str]:
    """The temperatures that the file has cases of, as its keys write them."""
    prefix = "fine_tau"
    return [key.removeprefix(prefix) for key in expected if key.startswith(prefix)]


def semantic_vectors(expected: Mapping[str, Any], base: int, dim: int) -> Tensor:
    """(a, v, t) of the recipe, (M, B, T, D)."""
    shape = (*expected["mask"].shape, dim)
    seeds = [100 * base + 200 + 1 + i for i in range(MODALITIES)]
    return torch.from_numpy(np.stack([recipe.tensor(shape, seed) for seed in seeds]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", PAIRS)
@pytest.mark.parametrize("padding", [True, False])
def test_every_pair_of_modalities_has_the_published_loss(
    golden: Golden, base: int, dim: int, level: str, dtype: torch.dtype, padding: bool
) -> None:
    expected = golden("fcmi")
    semantic = semantic_vectors(expected, base, dim).to(dtype)
    keep = torch.from_numpy(expected["mask"] > 0)
    mask = torch.ones_like(keep) if padding else None
    masked = hide(semantic, keep, "time")
    assert temperatures(expected)
    for tau in temperatures(expected):
        pairs = PAIRS[level](masked, semantic, mask, tau=float(tau))
        assert_close(pairs, expected[f"{level}_pairs_tau{tau}"], DTYPES[dtype])
        assert_close(pairs.sum(), expected[f"{level}_tau{tau}"], DTYPES[dtype])


@pytest.mark.parametrize("level", PAIRS)
def test_gradients_of_the_summed_pairs_are_the_published_ones(
    golden: Golden, base: int, dim: int, level: str
) -> None:
    expected = golden("fcmi")
    semantic = semantic_vectors(expected, base, dim).requires_grad_()
    keep = torch.from_numpy(expected["mask"] > 0)
    masked = hide(semantic, keep, "time")
    assert temperatures(expected)
    for tau in temperatures(expected):
        loss = PAIRS[level](masked, semantic, torch.ones_like(keep), tau=float(tau)).sum()
        (gradient,) = torch.autograd.grad(loss, semantic, retain_graph=True)
        checks = np.stack([checksum(part) for part in gradient])
        assert_close(checks, expected[f"grad_{level}_chk_tau{tau}"])
