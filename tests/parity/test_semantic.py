"""Encoders and the code lookup against the published code's outputs (semantic*.npz)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from micu.model.micu import MICU
from micu.model.networks import SemanticEncoder, SpecificEncoder, WordReader
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.omitted import best_two_gap, club_head
from tests.parity.recipe import assert_close, checksum
from tests.parity.reference import (
    build_reference,
    encoder_shapes,
    standard_inputs,
    step_shapes,
)

MODALITIES = ("audio", "video", "text")
DTYPES = {"float64": torch.float64, "float32": torch.float32}
TOLERANCE = {"float64": recipe.FLOAT64_TOLERANCE, "float32": recipe.FLOAT32_ACTIVATIONS}
VIDEO_FLOAT32 = 5e-5
"""A grid's sum is up to 24, and sharp attention amplifies its rounding: torch's own encoder layer
differs from float64 by 2.3e-5 there, depending on the processor's matrix product."""

Run = tuple[str, MICU, dict[str, Tensor], Mapping[str, Any]]


@pytest.fixture(scope="module", params=DTYPES)
def run(
    request: pytest.FixtureRequest,
    golden: Golden,
    base: int,
    grid_width: int,
    checkpoint_listing: Path,
) -> Run:
    """The model in evaluation mode, its inputs and the expected values."""
    name, expected = request.param, golden("semantic")
    model = build_reference(checkpoint_listing, base, grid_width, DTYPES[name]).eval()
    batch_size, steps = expected["sem_audio"].shape[:2]
    inputs = standard_inputs(checkpoint_listing, base, batch_size, steps, DTYPES[name])
    return name, model, inputs, expected


def assert_checksum(got: Tensor, expected: np.ndarray, name: str) -> None:
    """Sums over many elements: single precision errors add up with the number of elements."""
    ours = checksum(got.detach().numpy())
    if name == "float64":
        assert_close(ours, expected)
    else:
        assert np.abs(ours - expected).max() <= recipe.FLOAT32_ACTIVATIONS * max(1.0, expected[1])


@torch.no_grad()
def test_the_word_reader_gives_the_published_values(run: Run) -> None:
    name, model, inputs, expected = run
    words = cast(WordReader, model.word_readers["text"]).read(inputs["text"])
    assert_close(words, expected["lstm_out"], TOLERANCE[name])


@torch.no_grad()
def test_grid_pooling_gives_the_published_values(run: Run) -> None:
    name, model, inputs, expected = run
    pool = cast(SemanticEncoder, model.semantic_encoders["video"]).pool
    assert pool is not None
    pooled = pool.pool(inputs["video"])
    head = expected["video_pooled_head"]
    assert_close(pooled[..., : head.shape[-1]], head, TOLERANCE[name])
    assert_checksum(pooled, expected["video_pooled_chk"], name)


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_semantic_embeddings_have_the_published_values(run: Run, modality: str) -> None:
    name, model, inputs, expected = run
    quantized = model.encode({modality: inputs[modality]})[modality]
    tolerance = VIDEO_FLOAT32 if (name, modality) == ("float32", "video") else TOLERANCE[name]
    assert_close(quantized.semantic, expected[f"sem_{modality}"], tolerance)


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("path", ["plain", "eval"])
def test_codes_are_the_published_ones(run: Run, modality: str, path: str) -> None:
    name, model, inputs, expected = run
    semantic = model.encode({modality: inputs[modality]})[modality].semantic
    got = model.quantizer.quantize({modality: semantic}, null_code=path == "eval")[modality]
    assert np.array_equal(got.codes.numpy(), expected[f"{path}_idx_{modality}"])
    assert_checksum(got.quantized, expected[f"{path}_vq_chk_{modality}"], name)
    if (path, modality) == ("eval", "video"):
        head = expected["eval_vq_video_head"]
        assert_close(got.quantized[..., : head.shape[-1]], head, TOLERANCE[name])


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("path", ["plain", "eval"])
def test_margins_between_codes_are_the_published_ones(run: Run, modality: str, path: str) -> None:
    name, model, inputs, expected = run
    semantic = model.encode({modality: inputs[modality]})[modality].semantic
    codebook = model.quantizer.codebook.clone()
    if path == "eval":
        codebook[0] = 0
    tolerance = VIDEO_FLOAT32 if name == "float32" else TOLERANCE[name]
    assert_close(best_two_gap(semantic, codebook), expected[f"{path}_margin_{modality}"], tolerance)


@torch.no_grad()
def test_encode_follows_the_preset_and_leaves_code_zero_alone(run: Run) -> None:
    _, model, inputs, expected = run
    before = model.quantizer.codebook.clone()
    got = model.encode(inputs)
    for modality in MODALITIES:
        assert np.array_equal(got[modality].codes.numpy(), expected[f"eval_idx_{modality}"])
    assert torch.equal(before, model.quantizer.codebook)


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_specific_encodings_have_the_published_values(run: Run, modality: str) -> None:
    name, model, inputs, expected = run
    content = inputs[modality]
    if modality == "text":
        content = torch.from_numpy(expected["lstm_out"]).to(content.dtype)
    specific = cast(SpecificEncoder, model.specific_encoders[modality]).encode(content)
    head = expected[f"{modality}_enc_head"]
    assert_close(specific[..., : head.shape[-1]], head, TOLERANCE[name])
    assert_checksum(specific, expected[f"{modality}_enc_chk"], name)


@torch.no_grad()
def test_the_unused_video_head_on_our_encoding_has_the_published_values(
    run: Run, base: int, grid_width: int, checkpoint_listing: Path
) -> None:
    name, model, inputs, expected = run
    specific = cast(SpecificEncoder, model.specific_encoders["video"]).encode(inputs["video"])
    got = club_head(specific, encoder_shapes(checkpoint_listing, grid_width), base)
    head = expected["video_club_head"]
    assert_close(got[..., : head.shape[-1]], head, TOLERANCE[name])


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_the_simple_sine_fill_gives_the_published_values(
    golden: Golden, grid_width: int, checkpoint_listing: Path, modality: str
) -> None:
    expected = golden("semantic_literal_sin")
    model = build_reference(
        checkpoint_listing, 0, grid_width, fill=lambda shapes, _: recipe.sine_state(shapes)
    ).eval()
    head = expected[f"sem_head_{modality}"]
    shape = (*head.shape[:2], *step_shapes(checkpoint_listing)[modality])
    offset = {"audio": 0.3, "video": 0.7, "text": 1.1}[modality]
    wave = torch.sin(0.11 * torch.arange(np.prod(shape), dtype=torch.float64) + offset)
    semantic = model.encode({modality: wave.view(shape)})[modality].semantic
    assert_close(semantic[..., : head.shape[-1]], head)
    assert_close(checksum(semantic), expected[f"sem_chk_{modality}"])
    codes = model.quantizer.quantize({modality: semantic})[modality].codes
    assert np.array_equal(codes.numpy(), expected[f"idx_{modality}"])
