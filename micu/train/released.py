"""The authors' checkpoints (`MICU.pt`, DCID's of the same layout, `FCID.pt`) as a model of ours.

Layout: `Encoder_parameters` and `Text_ar_lstm_parameters` (state dicts), `epoch`, `total_step`.
FCID has no LSTM, and another codebook's name. The files hold no reconstruction module, so that part
of the model stays as initialised.
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
from micu.model.clips import SENSES, WORDS
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


FCID_CODEBOOK = "Cross_quantizer_coarse."
"""What the names of FCID's codebook start with, and no other file's."""
FCID_UNUSED = frozenset(
    [key.replace("video_semantic_encoder", "v_gen_encoder") for key in DEAD_KEYS if "affine" in key]
    + [f"v_gen_encoder.ave_v_att.{leaf}" for leaf in ("weight", "bias")]
    + [f"v_spe_encoder.feed_forward.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")]
    + [f"{name[0]}_self_att.encoder_layer.{leaf}" for name in MODALITIES for leaf in _LAYER_KEYS]
)
"""Entries of FCID's published encoder that no code depends on: dead ones, and the head of CLUB."""


def encoder_keys(layers: int = 2) -> dict[str, str]:
    """Keys of the published encoder to ours, dead ones left out."""
    keys = {f"Cross_quantizer.{old}": f"quantizer.{new}" for old, new in _QUANTIZER_KEYS.items()}
    for name in MODALITIES:
        keys |= _transformer_keys(f"{name}_self_att", name, layers)
    keys |= _video_keys("video_semantic_encoder", "Video_encoder")
    keys |= _linear_keys("Audio_encoder.audio_linear", "specific_encoders.audio.net")
    keys |= _linear_keys("Text_encoder.text_linear", "specific_encoders.text.net")
    return keys


def fcid_keys() -> dict[str, str]:
    """Keys of FCID's published encoder to ours, `FCID_UNUSED` left out."""
    keys = {f"{FCID_CODEBOOK}{old}": f"quantizer.{new}" for old, new in _QUANTIZER_KEYS.items()}
    for name in MODALITIES:
        keys |= _transformer_keys(f"{name[0]}_self_att", name, 1)
    keys |= _video_keys("v_gen_encoder", "v_spe_encoder")
    keys |= _linear_keys("a_spe_encoder.audio_linear", "specific_encoders.audio.net")
    for theirs, ours in (("va", SENSES), ("t", WORDS)):
        keys |= _linear_keys(f"{theirs}2vat.linear", f"clips.contents.{ours}")
        keys |= _linear_keys(f"{theirs}_gen_encoder.input_linear", f"clips.generals.{ours}")
        own = f"clips.specific_encoders.{ours}.net"
        keys |= _linear_keys(f"{theirs}_spe_encoder.input_linear", own)
    return keys


def _linear_keys(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in ("weight", "bias")}


def _transformer_keys(theirs: str, modality: str, layers: int) -> dict[str, str]:
    ours = f"semantic_encoders.{modality}"
    keys = _linear_keys(f"{theirs}.affine_matrix", f"{ours}.project")
    for layer in range(layers):
        for old, new in _LAYER_KEYS.items():
            keys[f"{theirs}.encoder.layers.{layer}.{old}"] = f"{ours}.layers.{layer}.{new}"
    return keys


def _video_keys(semantic: str, specific: str) -> dict[str, str]:
    """The gate before the transformer, and the convolutions."""
    gate, stack, ours = f"{semantic}.se_layer", f"{specific}.conv_stack", "specific_encoders.video"
    keys = {
        f"{gate}.0.weight": "semantic_encoders.video.pool.squeeze.weight",
        f"{gate}.2.weight": "semantic_encoders.video.pool.excite.weight",
        f"{stack}.5.stack.0.res_block.1.weight": f"{ours}.net.5.inner.weight",
        f"{stack}.5.stack.0.res_block.3.weight": f"{ours}.net.5.outer.weight",
    }
    for i in (0, 2, 4):
        keys |= _linear_keys(f"{stack}.{i}", f"{ours}.net.{i}")
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
    preset `reference`, or `fcid` for `FCID.pt`, with those sizes.

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
    encoder = contents.get(ENCODER_SECTION)
    if isinstance(encoder, Mapping) and any(str(k).startswith(FCID_CODEBOOK) for k in encoder):
        sections = {ENCODER_SECTION: (fcid_keys(), FCID_UNUSED)}
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
    unsaved = ("reconstructors.", "clips.reconstructors.")
    assert all(key.startswith(unsaved) for key in missing), "the key map has holes"
    return model.eval()


def _sizes(state: Mapping[str, Tensor]) -> tuple[TrainConfig, dict[str, tuple[int, ...]]]:
    """The run and the step shapes that a checkpoint's tensors stand for."""
    size, embed_dim = state["quantizer.codebook"].shape
    encoder, conv = "semantic_encoders.audio", "specific_encoders.video.net"
    lstm = "word_readers.text.lstm.weight"
    has_lstm = f"{lstm}_ih_l0" in state
    words = f"{lstm}_ih_l0" if has_lstm else "semantic_encoders.text.project.weight"
    base = PRESETS["reference" if has_lstm else "fcid"]()
    double = state["quantizer.codebook"].dtype == torch.float64
    config = replace(
        base,
        encoder=replace(
            base.encoder,
            embed_dim=embed_dim,
            feedforward_dim=state[f"{encoder}.layers.0.feedforward_in.weight"].shape[0],
            text_hidden_dim=state[f"{lstm}_hh_l0"].shape[1]
            if has_lstm
            else base.encoder.text_hidden_dim,
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
        "text": (state[words].shape[1],),
    }
    return config, shapes
