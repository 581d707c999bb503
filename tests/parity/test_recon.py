"""The reconstructors against the published code's outputs (recon.npz)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from micu.model.micu import MICU
from micu.model.networks import Reconstructor
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.recipe import assert_close, checksum
from tests.parity.reference import build_reference, standard_inputs

MODALITIES = ("audio", "video", "text")
DTYPES = {"float64": torch.float64, "float32": torch.float32}

Run = tuple[str, MICU, dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], Mapping[str, Any]]


@pytest.fixture(scope="module", params=DTYPES)
def run(
    request: pytest.FixtureRequest,
    golden: Golden,
    base: int,
    grid_width: int,
    checkpoint_listing: Path,
) -> Run:
    """The model, the targets, and (code, specific encoding) by modality."""
    dtype = DTYPES[request.param]
    model = build_reference(checkpoint_listing, base, grid_width, dtype)
    batch_size, steps, height, width = golden("recon")["video_rec_head"].shape[:4]
    dim = model.config.encoder.embed_dim
    vector = model.config.reconstruction.vector_width
    first = 100 * base + 400

    def fill(seed: int, *shape: int) -> Tensor:
        return torch.from_numpy(recipe.tensor((batch_size, steps, *shape), first + seed)).to(dtype)

    targets = standard_inputs(checkpoint_listing, base, batch_size, steps, dtype)
    targets["text"] = fill(1, dim)
    pairs = {
        "audio": (fill(5, dim), fill(2, vector)),
        "video": (fill(6, dim), fill(3, height - 4, width - 4, grid_width)),
        "text": (fill(7, dim), fill(4, vector)),
    }
    return request.param, model, targets, pairs, golden("recon")


@torch.no_grad()
@pytest.mark.parametrize("modality", MODALITIES)
def test_reconstructions_have_the_published_values(run: Run, modality: str) -> None:
    name, model, targets, pairs, expected = run
    reconstructor = cast(Reconstructor, model.reconstructors[modality])
    rebuilt = reconstructor.reconstruct(*pairs[modality])
    exact = name == "float64"
    tolerance = recipe.FLOAT64_TOLERANCE if exact else recipe.FLOAT32_ACTIVATIONS
    if modality == "audio":
        assert_close(rebuilt, expected["audio_rec"], tolerance)
    else:
        head = expected[f"{modality}_rec_head"]
        assert_close(rebuilt[..., : head.shape[-1]], head, tolerance)
        if exact:
            assert_close(checksum(rebuilt), expected[f"{modality}_rec_chk"])
    loss = F.mse_loss(rebuilt, targets[modality])
    wanted = expected["loss"][MODALITIES.index(modality)]
    assert_close(loss, wanted, recipe.FLOAT64_TOLERANCE if exact else recipe.FLOAT32_LOSSES)
