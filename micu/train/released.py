"""The authors' checkpoint (`MICU.pt`, and DCID's of the same layout) as a model of ours.

Layout: `Encoder_parameters` and `Text_ar_lstm_parameters` (state dicts), `epoch`, `total_step`. The
file holds no reconstruction module, so that part of the model stays as initialised.
"""

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from micu.base.errors import CheckpointError, MicuError, brief
from micu.base.registry import suggest
from micu.base.tensor_files import DamagedError, load_tensor_file
from micu.base.tensors import RELEASED_SECTIONS, check_fits, is_finite
from micu.config.presets import PRESETS
from micu.config.sections import TrainConfig
from micu.model.micu import MICU

ENCODER_SECTION, TEXT_LSTM_SECTION = RELEASED_SECTIONS
MODALITIES = ("audio", "video", "text")
GRID = (7, 7)
"""H, W of the published video feature, VGG-19 pool5; the file does not hold it."""

_LAYER_KEYS = {
    "self_attn.in_proj_weight": "attention_in.weight",
    "self_attn.in_proj_bias": "attention_in.bias",
    "self_attn.out_proj.weight": "attention_out.weight",
    "self_attn.out_proj.bias": "attention_out.bias",
    "linear1.weight": "feedforward_in.weight",
    "linear1.bias": "feedforward_in.bias",
    "linear2.weight": "feedforward_out.weight",
    "linear2.bias": "feedforward_out.bias",
    "norm1.weight": "attention_norm.weight",
    "norm1.bias": "attention_norm.bias",
    "norm2.weight": "feedforward_norm.weight",
    "norm2.bias": "feedforward_norm.bias",
}
_QUANTIZER_KEYS = {
    "embedding": "codebook",
    "ema_count": "ema_count",
    "ema_weight": "ema_weight",
    "unactivated_count": "unused",
}
_DEAD_LINEARS = (
    # A softmax over an axis of length one hides the spatial attention from the output.
    "video_semantic_encoder.affine_video_ave",
    "video_semantic_encoder.affine_video_self",
    "video_semantic_encoder.ave_v_att",
    # The head of a mutual-information term that is never added to the loss.
    "Video_encoder.feed_forward.0",
    "Video_encoder.feed_forward.2",
)
DEAD_KEYS = frozenset(
    [f"{name}.{leaf}" for name in _DEAD_LINEARS for leaf in ("weight", "bias")]
    # The layers that the transformers' layers are copies of.
    + [f"{name}_self_att.encoder_layer.{leaf}" for name in MODALITIES for leaf in _LAYER_KEYS]
)
"""Entries of the published encoder that no output depends on."""


def encoder_keys(layers: int = 2) -> dict[str, str]:
    """Keys of the published encoder to ours, dead ones left out."""
    keys = {f"Cross_quantizer.{old}": f"quantizer.{new}" for old, new in _QUANTIZER_KEYS.items()}
    for name in MODALITIES:
        ours = f"semantic_encoders.{name}"
        for leaf in ("weight", "bias"):
            keys[f"{name}_self_att.affine_matrix.{leaf}"] = f"{ours}.project.{leaf}"
        for layer in range(layers):
            for old, new in _LAYER_KEYS.items():
                keys[f"{name}_self_att.encoder.layers.{layer}.{old}"] = (
                    f"{ours}.layers.{layer}.{new}"
                )
    gate = "video_semantic_encoder.se_layer"
    keys[f"{gate}.0.weight"] = "semantic_encoders.video.pool.squeeze.weight"
    keys[f"{gate}.2.weight"] = "semantic_encoders.video.pool.excite.weight"
    stack, ours = "Video_encoder.conv_stack", "specific_encoders.video.net"
    for leaf in ("weight", "bias"):
        keys[f"Audio_encoder.audio_linear.{leaf}"] = f"specific_encoders.audio.net.{leaf}"
        keys[f"Text_encoder.text_linear.{leaf}"] = f"specific_encoders.text.net.{leaf}"
        for i in (0, 2, 4):
            keys[f"{stack}.{i}.{leaf}"] = f"{ours}.{i}.{leaf}"
    keys[f"{stack}.5.stack.0.res_block.1.weight"] = f"{ours}.5.inner.weight"
    keys[f"{stack}.5.stack.0.res_block.3.weight"] = f"{ours}.5.outer.weight"
    return keys


def text_lstm_keys() -> dict[str, str]:
    """Keys of the published text LSTM to ours."""
    return {
        f"{kind}_l{layer}{direction}": f"word_readers.text.lstm.{kind}_l{layer}{direction}"
        for layer in (0, 1)
        for direction in ("", "_reverse")
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }


def load_released(path: Path, device: torch.device | str = "cpu") -> MICU:
    """Read the authors' checkpoint as a model for audio, video and text, in evaluation mode.

    Sizes come from the file, and so does the dtype (float32 or float64). The configuration is the
    preset `reference` with those sizes.

    Args:
        path: The file.
        device: Where the model is put.

    Raises:
        CheckpointError: The file cannot be read safely, has entries that are missing, unknown or of
            another shape, or mixes dtypes.
    """
    contents = _read(path)
    sections = {
        ENCODER_SECTION: (encoder_keys(), DEAD_KEYS),
        TEXT_LSTM_SECTION: (text_lstm_keys(), frozenset[str]()),
    }
    problems: list[str] = []
    state: dict[str, Tensor] = {}
    for section, (keys, dead) in sections.items():
        entries = contents.get(section)
        if not isinstance(entries, Mapping):
            raise CheckpointError(f"{path}: no {section!r}; is it the authors' checkpoint?")
        problems += [f"{section}: missing {key!r}" for key in keys if key not in entries]
        known = {*keys, *dead}
        problems += [
            f"{section}: unknown {key!r}; {suggest(key, known)[:120]}"
            for key in (brief(key) for key in entries if key not in known)
        ]
        problems += [
            f"{section}: {key!r} is no tensor"
            for key in keys
            if key in entries and not isinstance(entries[key], Tensor)
        ]
        state |= {ours: entries[key] for key, ours in keys.items() if key in entries}
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise CheckpointError(
            f"{path}: not the published layout\n  " + "\n  ".join([*problems[:10], *more])
        )
    for section, (keys, _) in sections.items():
        for key in keys:
            if not is_finite(contents[section][key]):
                raise CheckpointError(
                    f"{path}: {section}: {key!r}: expected finite numbers, got NaN or infinity; "
                    "the file was changed: fetch it again"
                )
    return _build(path, state).to(device)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        contents, _ = load_tensor_file(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint: it holds objects that are not tensors or "
            "numbers; refused, because loading them would run code from the file"
        ) from error
    except (OSError, DamagedError) as error:
        why = brief(str(error).removeprefix(f"{path}: "), 300)
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {why}") from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path}: expected a dictionary, got {type(contents).__name__}")
    return contents


def _build(path: Path, state: dict[str, Tensor]) -> MICU:
    dtypes = {x.dtype for x in state.values()}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        names = ", ".join(sorted(map(str, dtypes)))
        raise CheckpointError(f"{path}: expected all float32 or all float64, got {names}")
    dtype = dtypes.pop()
    state["quantizer.unused"] = state["quantizer.unused"].to(torch.int64)
    try:
        config, shapes = _sizes(state)
        with torch.device("meta"):  # a file of a few bytes may speak of gigabytes
            outline = MICU(config, shapes)
        check_fits(outline.to(dtype), state, partial=True)
        model = MICU(config, shapes).to(dtype)
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (MicuError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: shapes do not fit together: {error}") from error
    assert not unexpected, "a key of the map is none of the model's"
    assert all(key.startswith("reconstructors.") for key in missing), "the key map has holes"
    return model.eval()


def _sizes(state: Mapping[str, Tensor]) -> tuple[TrainConfig, dict[str, tuple[int, ...]]]:
    """The run and the step shapes that a checkpoint's tensors stand for."""
    size, embed_dim = state["quantizer.codebook"].shape
    encoder, conv = "semantic_encoders.audio", "specific_encoders.video.net"
    lstm = "word_readers.text.lstm.weight"
    base = PRESETS["reference"]()
    double = state["quantizer.codebook"].dtype == torch.float64
    config = replace(
        base,
        encoder=replace(
            base.encoder,
            embed_dim=embed_dim,
            feedforward_dim=state[f"{encoder}.layers.0.feedforward_in.weight"].shape[0],
            text_hidden_dim=state[f"{lstm}_hh_l0"].shape[1],
        ),
        quantizer=replace(base.quantizer, codebook_size=size),
        reconstruction=replace(
            base.reconstruction,
            grid_width=state[f"{conv}.4.weight"].shape[0],
            vector_width=state["specific_encoders.audio.net.weight"].shape[0],
        ),
        optimizer=replace(base.optimizer, dtype="float64" if double else "float32"),
    )
    shapes = {
        "audio": (state[f"{encoder}.project.weight"].shape[1],),
        "video": (*GRID, state["semantic_encoders.video.project.weight"].shape[1]),
        "text": (state[f"{lstm}_ih_l0"].shape[1],),
    }
    return config, shapes
