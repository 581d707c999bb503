"""Tensors from a file that nobody vouches for: is what they claim there, and does a model fit?"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from micu.errors import CheckpointError

RELEASED_SECTIONS = ("Encoder_parameters", "Text_ar_lstm_parameters")
"""State dicts of the authors' checkpoint: the encoders with the codebook, and the text LSTM."""


def check_tensors(content: object, size: int) -> None:
    """Refuse tensors that claim more than the file holds, or that are not plain arrays.

    A tensor may be a view of a storage as small as one number; copying it would take what it
    claims, whatever the size of the file.

    Args:
        content: What was read: dictionaries, lists and tuples, however deep.
        size: Size of the file, bytes.

    Raises:
        CheckpointError: One tensor claims more than its storage, or all together more than the
            file; or one is sparse, quantised or without data.
    """
    claimed = 0
    for tensor in _walk(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError("holds a tensor that is not a plain array; refused")
        needed = tensor.numel() * tensor.element_size()
        claimed += needed
        if needed > tensor.untyped_storage().nbytes() or claimed > size:
            raise CheckpointError(
                f"holds tensors that claim more than is there, one of shape {tuple(tensor.shape)}; "
                "refused"
            )


def _walk(content: object) -> Iterator[Tensor]:
    """Every tensor in nested containers, each container once."""
    pending, seen = [content], set[int]()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, Mapping) else value)


def check_fits(module: nn.Module, state: Mapping[str, Any], *, partial: bool = False) -> None:
    """Refuse a state that the module cannot take as it is; takes no memory for a module on `meta`.

    Args:
        module: What is to be loaded into.
        state: Tensors by key.
        partial: Keys of the module may be missing.

    Raises:
        CheckpointError: Keys are missing or unknown, or shapes or types differ: all in one message.
    """
    expected = module.state_dict()
    problems = [f"unknown {key!r}" for key in state if key not in expected]
    if not partial:
        problems += [f"missing {key!r}" for key in expected if key not in state]
    for key, want in expected.items():
        got = state.get(key)
        if key in state and not isinstance(got, Tensor):
            problems.append(f"{key!r} is no tensor")
        elif isinstance(got, Tensor) and (got.shape, got.dtype) != (want.shape, want.dtype):
            problems.append(
                f"{key!r}: expected {tuple(want.shape)} {want.dtype}, "
                f"got {tuple(got.shape)} {got.dtype}"
            )
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError("\n  ".join(["state:", *problems[:10]]) + more)
