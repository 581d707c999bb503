"""The codebook's lookup, averages and resets against the published code's (quantizer.npz)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from micu.config.sections import QuantizerConfig
from micu.model.quantizer import UnifiedQuantizer
from tests.models import update_
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.omitted import matching_loss, most_frequent_agree
from tests.parity.recipe import assert_close, checksum

MODALITIES = ("audio", "video", "text")
UPDATES = (1, 2, 3)
DTYPES = {"float64": torch.float64, "float32": torch.float32}
ACTIVATIONS = {"float64": recipe.FLOAT64_TOLERANCE, "float32": recipe.FLOAT32_ACTIVATIONS}
LOSSES = {"float64": recipe.FLOAT64_TOLERANCE, "float32": recipe.FLOAT32_LOSSES}


def published(size: int) -> QuantizerConfig:
    return QuantizerConfig(codebook_size=size, ema_init="zero", reset="reference")


def quantizer_of(
    embedding: recipe.Array, count: recipe.Array, weight: recipe.Array, unused: recipe.Array
) -> UnifiedQuantizer:
    """A quantiser in the given state, float64."""
    size, dim = embedding.shape
    quantizer = UnifiedQuantizer(dim, published(size)).double()
    state = {"codebook": embedding, "ema_count": count, "ema_weight": weight, "unused": unused}
    quantizer.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    return quantizer


def start(case: str, base: int, size: int, dim: int) -> UnifiedQuantizer:
    """The state before the first update."""
    if case == "A":
        embedding = recipe.tensor((size, dim), 100 * base + 50, 1 / 400)
        return quantizer_of(embedding, np.zeros(size), embedding, np.full(size, -1.0))
    embedding = recipe.tensor((size, dim), 100 * base + 51, 0.8)
    count = recipe.tensor((size,), 100 * base + 52, 0.5, 1.5)
    return quantizer_of(embedding, count, embedding * count[:, None], np.zeros(size))


def inputs(base: int, update: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    first = 100 * base + 10 * update
    return {
        name: torch.from_numpy(recipe.tensor(shape, first + i))
        for i, name in enumerate(MODALITIES, 1)
    }


def rows_counted(before: recipe.Array, after: recipe.Array) -> int:
    """B * T of an update's inputs: smoothing moves the codes' counts and keeps their sum."""
    decay = QuantizerConfig().ema_decay
    added = after.sum() - before.sum() * decay ** len(MODALITIES)
    return round(float(added) / ((1 - decay) * sum(decay**i for i in range(len(MODALITIES)))))


def input_shape(expected: Mapping[str, Any], base: int) -> tuple[int, int, int]:
    """(B, T, D). No array has the axes B and T: they are the cut of B * T rows that gives `cmcm`.

    Only `cmcm` and `equal` depend on the cut, and are checked on the other updates.
    """
    size, dim = int(expected["M"]), int(expected["D"])
    codebook = start("A", base, size, dim).codebook
    rows = rows_counted(np.zeros(size), expected["A1_ema_count"])
    for steps in range(1, rows + 1):
        shape = (rows // steps, steps, dim)
        if rows % steps == 0:
            got = matching_loss(inputs(base, 1, shape), codebook)
            if np.isclose(got, expected["A1_cmcm"], rtol=0, atol=recipe.FLOAT64_TOLERANCE):
                return shape
    raise AssertionError(f"A1_cmcm: no cut of {rows} rows into samples gives it")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["A", "B"])
def test_three_updates_give_the_published_values(
    golden: Golden, base: int, case: str, dtype: str
) -> None:
    expected = golden("quantizer")
    size, dim = int(expected["M"]), int(expected["D"])
    quantizer = start(case, base, size, dim).to(DTYPES[dtype])
    shape = input_shape(expected, base)
    for update in UPDATES:
        key = f"{case}{update}"
        semantic = {
            name: x.to(DTYPES[dtype]).requires_grad_()
            for name, x in inputs(base, update, shape).items()
        }
        quantized = quantizer.quantize(semantic)
        losses = torch.stack([entry.commitment_loss for entry in quantized.values()])
        losses.sum().backward()  # type: ignore[no-untyped-call]
        perplexity = [float(entry.perplexity) for entry in quantized.values()]
        assert_close(losses.detach(), expected[f"{key}_loss"], LOSSES[dtype])
        assert_close(perplexity, expected[f"{key}_perplexity"], ACTIVATIONS[dtype])
        assert most_frequent_agree(quantized) == expected[f"{key}_equal"]
        if dtype == "float64":
            grads = [checksum(z.grad) for z in semantic.values()]
            sums = [checksum(entry.quantized.detach()) for entry in quantized.values()]
            assert_close(grads, expected[f"{key}_grad_chk"])
            assert_close(sums, expected[f"{key}_vq_chk"])
            matching = matching_loss(semantic, quantizer.codebook).detach()
            assert_close(matching, expected[f"{key}_cmcm"])
        update_(quantizer, semantic)
        assert_close(quantizer.ema_count, expected[f"{key}_ema_count"], ACTIVATIONS[dtype])
        assert np.array_equal(quantizer.unused.numpy(), expected[f"{key}_unactivated"])
        if f"{key}_embedding" in expected:
            tolerance = ACTIVATIONS[dtype]
            assert_close(quantizer.ema_weight, expected[f"{key}_ema_weight"], tolerance)
            assert_close(quantizer.codebook, expected[f"{key}_embedding"], tolerance)


def dead_code_inputs(base: int, rows: int, dim: int) -> dict[str, Tensor]:
    """One sample of all rows: nothing that is checked depends on how they are cut."""
    return {
        name: torch.from_numpy(recipe.tensor((1, rows, dim), 100 * base + 70 + i))
        for i, name in enumerate(MODALITIES, 1)
    }


def test_dead_codes_restart_as_published(golden: Golden, base: int) -> None:
    expected = golden("quantizer")
    before = expected["C_unact_before"]
    size, dim = len(before), golden("semantic")["sem_audio"].shape[-1]
    embedding = recipe.tensor((size, dim), 100 * base + 61, 0.8)
    count = recipe.tensor((size,), 100 * base + 62, 0.5, 1.5)
    quantizer = quantizer_of(embedding, count, embedding * count[:, None], before)
    picks = torch.from_numpy(expected["C_picks"])
    rows = rows_counted(count, expected["C_ema_count"])
    update_(quantizer, dead_code_inputs(base, rows, dim), picks=picks[:, 0])

    dead = torch.from_numpy(expected["C_dead"])
    source = torch.from_numpy(expected["C_source_rows"])
    head = expected["C_dead_rows_head"]
    assert np.array_equal(quantizer.unused.numpy(), expected["C_unact_after"])
    assert torch.equal(quantizer.codebook[dead], quantizer.codebook[source] - 1 / 1024)
    assert_close(quantizer.codebook[dead, : head.shape[1]], head)
    assert_close(quantizer.ema_count, expected["C_ema_count"])
    assert_close(checksum(quantizer.ema_weight), expected["C_ema_weight_chk"])
    assert_close(checksum(quantizer.codebook), expected["C_emb_chk"])


def test_the_published_draw_is_over_the_active_codes(golden: Golden, base: int) -> None:
    """`C_picks` holds the chosen position and the last one: their number is the list's length."""
    expected = golden("quantizer")
    after, dead = expected["C_unact_after"], expected["C_dead"]
    config = published(len(after))
    active = [i for i, age in enumerate(after) if 0 <= age < config.active_within and i not in dead]
    assert set(expected["C_picks"][:, 1]) == {len(active) - 1}
    assert [active[i] for i in expected["C_picks"][:, 0]] == list(expected["C_source_rows"])
