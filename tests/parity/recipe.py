"""Inputs and parameters of the golden files: an exact integer hash, no library's random numbers.

Value i of seed s is `2 h / 2^32 - 1`, with h the 32-bit mix of `i * 0x9E3779B1 + mix(s)`. Every
step is exact, so that whoever made the expected values and this file agree to the last bit.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shapes = dict[str, tuple[int, ...]]

ENCODER, TEXT_LSTM, DECODER, JIGSAW, PROBE, LOCALISER = 1, 2, 3, 4, 5, 6
"""Numbers of the modules, part of a parameter's seed beside the base and its position."""

CHECK_SEED = 777
FLOAT64_TOLERANCE = 1e-9
FLOAT32_ACTIVATIONS = 1e-5
FLOAT32_LOSSES = 1e-6


def _mix(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        values = (values ^ (values >> np.uint32(shift))) * np.uint32(factor)
    return values ^ (values >> np.uint32(16))


def uniform(count: int, seed: int) -> Array:
    """`count` numbers in [-1, 1), (count,)."""
    start = _mix(np.array([seed % 2**32], np.uint32))
    hashes = _mix(np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + start)
    return hashes.astype(np.float64) * 2.0**-31 - 1.0


def tensor(shape: Sequence[int], seed: int, scale: float = 1.0, shift: float = 0.0) -> Array:
    """`shift + scale * uniform`, filled in C order."""
    return shift + scale * uniform(math.prod(shape), seed).reshape(tuple(shape))


def checksum(values: object) -> Array:
    """The sum, the sum of magnitudes and a pseudo-random projection, (3,)."""
    flat = np.asarray(values, np.float64).ravel()
    return np.array([flat.sum(), np.abs(flat).sum(), flat @ uniform(flat.size, CHECK_SEED)])


def fill_state(
    shapes: Mapping[str, Sequence[int]], module: int, base: int, codebook_scale: float = 0.55
) -> dict[str, Array]:
    """Every entry of a published module's state, by its key.

    The position of a key among all the module's sorted keys is part of its seed, so `shapes` must
    hold the dead ones too.
    """
    state: dict[str, Array] = {}
    for position, key in enumerate(sorted(shapes)):
        shape = tuple(shapes[key])
        seed = (base * 1000 + module) * 1000 + position
        leaf = key.rpartition(".")[2]
        if leaf == "ema_weight":
            continue
        if leaf == "unactivated_count":
            state[key] = np.zeros(shape)
            continue
        scale, shift = 0.1, 0.0
        if leaf == "embedding":
            scale = codebook_scale
        elif leaf == "ema_count":
            scale, shift = 0.5, 1.5
        elif len(shape) >= 2:
            scale = math.sqrt(3.0 / math.prod(shape[1:]))
        elif leaf == "weight" and ".norm" in key:
            scale, shift = 0.2, 1.0
        state[key] = tensor(shape, seed, scale, shift)
    for key in shapes:
        prefix, _, leaf = key.rpartition("ema_weight")
        if key.endswith("ema_weight") and not leaf:
            state[key] = state[f"{prefix}embedding"] * state[f"{prefix}ema_count"][:, None]
    return state


def sine_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """The fill of `semantic_literal_sin`: value i of entry k is 0.05 sin(0.37 i + 1.3 k + 0.1)."""
    state: dict[str, Array] = {}
    for position, key in enumerate(sorted(shapes)):
        size = math.prod(shapes[key])
        wave = np.sin(0.37 * np.arange(size) + 1.3 * position + 0.1)
        scale = 1.0 if key.endswith("embedding") else 0.05
        state[key] = (scale * wave).reshape(tuple(shapes[key]))
    return state


def emptied(shapes: Mapping[str, Sequence[int]], kept: Iterable[str]) -> Shapes:
    """The same keys, so that positions and seeds stay, but nothing to fill except for `kept`."""
    keep = set(kept)
    return {key: tuple(shape) if key in keep else (0,) for key, shape in shapes.items()}


def read_shapes(path: Path, section: str) -> Shapes:
    """Shapes of a section of the checkpoint listing, by key."""
    listing = json.loads(path.read_text(encoding="utf-8"))[section]
    return {entry["key"]: tuple(entry["shape"]) for entry in listing}


def with_grid_width(shapes: Mapping[str, Sequence[int]], width: int) -> Shapes:
    """The published encoder with a grid branch of `width` channels, as the golden files have."""
    prefix = "Video_encoder."
    official = shapes[f"{prefix}conv_stack.4.weight"][0]
    changed = {official: width, official // 2: width // 2}
    heads = (f"{prefix}feed_forward.0", f"{prefix}feed_forward.2")
    out: Shapes = {}
    for key, shape in shapes.items():
        if key.startswith(heads):
            out[key] = tuple(changed.get(n, n) for n in shape)
        elif key.startswith(prefix):
            # The first convolution reads the feature, whose width is not the branch's.
            kept = 1 if key == f"{prefix}conv_stack.0.weight" else len(shape)
            out[key] = tuple(n if i == kept else changed.get(n, n) for i, n in enumerate(shape))
        else:
            out[key] = tuple(shape)
    return out


def decoder_shapes(
    *, audio: int, video: int, text: int, code: int, grid_width: int, classes: int = 141
) -> Shapes:
    """Shapes of the published reconstruction module, dead classification heads included.

    The listing of the checkpoint does not hold them: that module is never saved.
    """
    shapes: Shapes = {}
    for name, width in (("Audio", audio), ("Text", text)):
        low = name.lower()
        shapes |= _linear(f"{name}_decoder.{low}_linear", code, code)
        shapes |= _linear(f"{name}_decoder.{low}_rec", 2 * code, width)
    video_decoder = "Video_decoder"
    block = f"{video_decoder}.inverse_conv_block"
    hidden = grid_width // 2
    shapes |= _linear(f"{video_decoder}.video_linear", code, code)
    shapes |= _transposed(f"{block}.0", code + grid_width, hidden, 3)
    shapes[f"{block}.1.stack.0.res_block.1.weight"] = (hidden, hidden, 3, 3)
    shapes[f"{block}.1.stack.0.res_block.3.weight"] = (hidden, hidden, 1, 1)
    shapes |= _transposed(f"{block}.2", hidden, video, 3)
    shapes |= _transposed(f"{block}.4", video, video, 1)
    for low in ("audio", "video", "text"):
        shapes |= _linear(f"{low}_semantic_decoder.linear", code, code)
        shapes |= _linear(f"{low}_semantic_decoder.event_classifier", code, classes)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _transposed(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (inputs, outputs, kernel, kernel), f"{name}.bias": (outputs,)}


def assert_close(got: object, expected: object, tolerance: float = FLOAT64_TOLERANCE) -> None:
    """Fail unless values agree relative to max(1, |expected|), the golden files' rule."""
    ours, theirs = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == theirs.shape, f"shape {ours.shape}, expected {theirs.shape}"
    assert np.isfinite(ours).all(), "not finite"
    worst = np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)), initial=0.0)
    assert worst <= tolerance, f"differs by {worst:.3g}, allowed {tolerance:.3g}"


def numpy_of(tensors: Iterable[object]) -> list[Array]:
    """Detached float64 copies."""
    return [np.asarray(t.detach().double().cpu().numpy()) for t in tensors]  # type: ignore[attr-defined]
