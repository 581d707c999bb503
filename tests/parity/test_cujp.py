"""The jigsaw's loss, answers and gradients against the published code's values (cujp.npz)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from micu.losses.jigsaw import (
    draw_permutations,
    jigsaw_loss,
    mix_blocks,
    permuted_logits,
    placements,
    unrank_permutation,
)
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.recipe import assert_close, checksum

MODALITIES = 3
CLASSIFIER = ("enc_net.0.weight", "enc_net.0.bias", "enc_net.2.weight", "enc_net.2.bias")
HIDDEN_DIM = 512


def splits_in(expected: Any) -> list[int]:
    """The numbers of blocks that the file has cases of."""
    return sorted(int(key[1:-2]) for key in expected if key.endswith("_P"))


def classifier(base: int, dim: int, count: int) -> list[Tensor]:
    """The published classifier's parameters from the recipe."""
    shapes = dict(
        zip(
            CLASSIFIER,
            [(HIDDEN_DIM, dim), (HIDDEN_DIM,), (count, HIDDEN_DIM), (count,)],
            strict=True,
        )
    )
    state = recipe.fill_state(shapes, recipe.JIGSAW, base)
    return [torch.from_numpy(state[key]).requires_grad_() for key in CLASSIFIER]


def codes(base: int, shape: tuple[int, ...]) -> Tensor:
    """Codes of the three modalities, (M, B * T, D)."""
    seeds = [100 * base + 300 + 1 + i for i in range(MODALITIES)]
    stacked = np.stack([recipe.tensor(shape, seed) for seed in seeds])
    return torch.from_numpy(stacked).flatten(1, 2).requires_grad_()


@pytest.fixture
def shape(golden: Golden) -> tuple[int, int, int]:
    """(B, T, D) of the codes, as in the other files."""
    batch_size, steps, dim = golden("semantic")["sem_audio"].shape
    return batch_size, steps, dim


def test_the_jigsaw_has_the_published_loss_answers_and_gradients(
    golden: Golden, base: int, shape: tuple[int, int, int]
) -> None:
    expected = golden("cujp")
    assert splits_in(expected)
    for splits in splits_in(expected):
        case = {
            key.removeprefix(f"s{splits}_"): value
            for key, value in expected.items()
            if key.startswith(f"s{splits}_")
        }
        stacked, parameters = codes(base, shape), classifier(base, shape[2], int(case["P"]))
        blocks = mix_blocks(stacked, torch.from_numpy(case["select"]))
        permutations = torch.from_numpy(case["perms"])

        placed = placements(permutations, blocks.dtype)
        logits = permuted_logits(blocks, placed, parameters).transpose(0, 1).flatten(0, 1)
        head = case["logits_head"]
        assert_close(logits[: len(head)].detach(), head)
        assert_close(checksum(logits.detach()), case["logits_chk"])

        loss = jigsaw_loss(blocks, permutations, parameters)
        assert_close(loss.detach(), case["loss"])
        of_codes, *of_classifier = torch.autograd.grad(loss, [stacked, *parameters])
        assert_close(np.stack([checksum(part) for part in of_codes]), case["grad_code_chk"])
        assert_close(torch.stack([g.norm() for g in of_classifier]), case["grad_cls_norm"])


def test_permutations_are_the_published_ones_of_their_ranks(golden: Golden) -> None:
    expected = golden("cujp")
    for splits in splits_in(expected):
        ranks, permutations = expected[f"s{splits}_perm_index"], expected[f"s{splits}_perms"]
        assert [unrank_permutation(int(r), splits) for r in ranks] == [*map(tuple, permutations)]


@pytest.mark.parametrize(
    ("splits", "count", "ranks"),
    [(2, 2, [0, 1]), (4, 24, [1, 11, 18, 19]), (8, 256, [2789, 24101, 38645])],
)
def test_the_published_seed_draws_the_published_permutations(
    splits: int, count: int, ranks: list[int]
) -> None:
    table = draw_permutations(splits, count, seed=57)
    expected = [list(unrank_permutation(rank, splits)) for rank in ranks]
    assert table[: len(ranks)].tolist() == expected
