"""Our model with the parameters of the recipe, through the published modules' keys."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from micu.config.presets import PRESETS
from micu.config.sections import ReconstructionConfig, TrainConfig
from micu.model.micu import MICU
from micu.model.networks import SpecificEncoder
from micu.train.released import (
    ENCODER_SECTION,
    GRID,
    TEXT_LSTM_SECTION,
    encoder_keys,
    text_lstm_keys,
)
from tests.parity import recipe

CODE = "Cross_quantizer.embedding"
USUAL_GRID_WIDTH = 64
GRID_WIDTHS: tuple[int, ...] = (USUAL_GRID_WIDTH, *range(4, 257, 2), 512, 1024, 2048)


def reference_config(shapes: Mapping[str, tuple[int, ...]], grid_width: int) -> TrainConfig:
    """The preset `reference` without dropout, at the sizes of the golden files."""
    base = PRESETS["reference"]()
    size, embed_dim = shapes[CODE]
    return replace(
        base,
        encoder=replace(base.encoder, dropout=0.0, embed_dim=embed_dim),
        quantizer=replace(base.quantizer, codebook_size=size),
        reconstruction=replace(base.reconstruction, grid_width=grid_width),
    )


def decoder_keys() -> dict[str, str]:
    """Keys of the published reconstruction module to ours, its dead heads left out."""
    keys: dict[str, str] = {}
    block, ours = "Video_decoder.inverse_conv_block", "reconstructors.video"
    for leaf in ("weight", "bias"):
        for name in ("audio", "text"):
            theirs = f"{name.capitalize()}_decoder.{name}"
            keys[f"{theirs}_linear.{leaf}"] = f"reconstructors.{name}.code.{leaf}"
            keys[f"{theirs}_rec.{leaf}"] = f"reconstructors.{name}.net.{leaf}"
        keys[f"Video_decoder.video_linear.{leaf}"] = f"{ours}.code.{leaf}"
        for i in (0, 2, 4):
            keys[f"{block}.{i}.{leaf}"] = f"{ours}.net.{i}.{leaf}"
    keys[f"{block}.1.stack.0.res_block.1.weight"] = f"{ours}.net.1.inner.weight"
    keys[f"{block}.1.stack.0.res_block.3.weight"] = f"{ours}.net.1.outer.weight"
    return keys


def parameter_names() -> dict[str, str]:
    """Names in `train_step` (module, dot, published key) to ours; without the jigsaw classifier."""
    maps = {"encoder": encoder_keys(), "text_lstm": text_lstm_keys(), "decoder": decoder_keys()}
    return {f"{part}.{old}": new for part, keys in maps.items() for old, new in keys.items()}


def encoder_shapes(listing: Path, grid_width: int) -> recipe.Shapes:
    """Shapes of the published encoder at the golden files' grid width."""
    return recipe.with_grid_width(recipe.read_shapes(listing, ENCODER_SECTION), grid_width)


def text_lstm_shapes(listing: Path) -> recipe.Shapes:
    """Shapes of the published text LSTM."""
    return recipe.read_shapes(listing, TEXT_LSTM_SECTION)


def step_shapes(listing: Path) -> dict[str, tuple[int, ...]]:
    """Step shapes of the standard inputs."""
    encoder, lstm = encoder_shapes(listing, 2), text_lstm_shapes(listing)
    return {
        "audio": (encoder["audio_self_att.affine_matrix.weight"][1],),
        "video": (*GRID, encoder["video_self_att.affine_matrix.weight"][1]),
        "text": (lstm["weight_ih_l0"][1],),
    }


def decoder_shapes(listing: Path, grid_width: int) -> recipe.Shapes:
    """Shapes of the published reconstruction module at the golden files' grid width."""
    steps, lstm = step_shapes(listing), text_lstm_shapes(listing)
    return recipe.decoder_shapes(
        audio=steps["audio"][0],
        video=steps["video"][-1],
        text=2 * lstm["weight_hh_l0"][1],
        code=encoder_shapes(listing, grid_width)[CODE][1],
        grid_width=grid_width,
    )


def build_reference(
    listing: Path,
    base: int,
    grid_width: int,
    dtype: torch.dtype = torch.float64,
    fill: Callable[[recipe.Shapes, int], Mapping[str, recipe.Array]] | None = None,
) -> MICU:
    """The model of the golden files, in training mode without dropout.

    Args:
        listing: `reference_checkpoint_keys.json`.
        base: First part of every seed.
        grid_width: Channels of the grid branch.
        dtype: Of the parameters.
        fill: Makes a module's state from its shapes and its number; the recipe's by default.
    """
    fill = fill or (lambda shapes, module: recipe.fill_state(shapes, module, base))
    encoder = encoder_shapes(listing, grid_width)
    parts = (
        (encoder_keys(), encoder, recipe.ENCODER),
        (text_lstm_keys(), text_lstm_shapes(listing), recipe.TEXT_LSTM),
        (decoder_keys(), decoder_shapes(listing, grid_width), recipe.DECODER),
    )
    state: dict[str, Tensor] = {}
    for keys, shapes, module in parts:
        values = fill(shapes, module)
        state |= {ours: torch.from_numpy(values[key]) for key, ours in keys.items()}
    with torch.device("meta"):
        model = MICU(reference_config(encoder, grid_width), step_shapes(listing))
    model = model.to_empty(device="cpu").to(dtype)
    model.load_state_dict(state, strict=True)
    return model


@torch.no_grad()
def find_grid_width(listing: Path, base: int, head: recipe.Array) -> int:
    """The grid width whose video encoder gives some expected values.

    Args:
        listing: `reference_checkpoint_keys.json`.
        base: First part of every seed.
        head: First channels of the first step, (1, 1, H, W, channels).

    Returns:
        The usual width if none fits, so that every test says for itself what differs.
    """
    ours, prefix = "specific_encoders.video.", "Video_encoder.conv_stack."
    keys = {old: new for old, new in encoder_keys().items() if old.startswith(prefix)}
    video = standard_inputs(listing, base, 1, 1)["video"]
    for width in GRID_WIDTHS:
        shapes = recipe.emptied(encoder_shapes(listing, width), keys)
        values = recipe.fill_state(shapes, recipe.ENCODER, base)
        encoder = SpecificEncoder(video.shape[2:], ReconstructionConfig(grid_width=width)).double()
        encoder.load_state_dict(
            {new.removeprefix(ours): torch.from_numpy(values[old]) for old, new in keys.items()}
        )
        got = encoder.encode(video)[..., : head.shape[-1]].numpy()
        if got.shape == head.shape and np.allclose(got, head, rtol=0, atol=1e-6):
            return width
    return USUAL_GRID_WIDTH


def standard_inputs(
    listing: Path, base: int, batch_size: int, steps: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Audio, video and words of the golden files, by modality, (B, T, *step shape)."""
    seeds = {"audio": 10 * base + 1, "video": 10 * base + 2, "text": 10 * base + 3}
    return {
        name: torch.from_numpy(recipe.tensor((batch_size, steps, *shape), seeds[name])).to(dtype)
        for name, shape in step_shapes(listing).items()
    }
