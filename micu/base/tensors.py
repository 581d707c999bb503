"""Tensors from a file that nobody vouches for: is what they claim there, and does a model fit?"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from micu.base.errors import CheckpointError, brief

RELEASED_SECTIONS = ("Encoder_parameters", "Text_ar_lstm_parameters")
"""State dicts of the authors' checkpoint: the encoders with the codebook, and the text LSTM."""


def check_finite(content: object) -> None:
    """Refuse NaN and infinity in any tensor of what a file held.

    Args:
        content: Dictionaries, lists and tuples, however deep.

    Raises:
        CheckpointError: A tensor of floating point numbers has one; it is named.
    """
    for name, tensor in _walk(content):
        if not is_finite(tensor):
            raise CheckpointError(
                f"{brief(name)}: expected finite numbers, got NaN or infinity; its training had "
                "failed, or the file was changed: use another checkpoint"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite; integers never are."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # torch compares no numbers of eight bits
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def _walk(content: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers and its name, each container once."""
    pending, seen = [("", content)], set[int]()
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            held = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending.extend((f"{name}.{brief(key)}".lstrip("."), item) for key, item in held)


def check_fits(module: nn.Module, state: Mapping[str, Any], *, partial: bool = False) -> None:
    """Refuse a state that the module cannot take as it is; takes no memory for a module on `meta`.

    Args:
        module: What is to be loaded into.
        state: Tensors by key.
        partial: Keys of the module may be missing.

    Raises:
        CheckpointError: Keys are missing or unknown, or shapes or types differ: all in one message.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"state: expected tensors by name, got {type(state).__name__}")
    expected = module.state_dict()
    problems = [f"unknown {brief(repr(key))}" for key in state if key not in expected]
    if not partial:
        problems += [f"missing {key!r}" for key in expected if key not in state]
    for key, want in expected.items():
        got = state.get(key)
        if not isinstance(want, Tensor):  # what a module keeps beside its tensors
            continue
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


def load_adam_(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Put back the averages that an Adam kept; its settings stay as they are.

    Args:
        optimizer: Of the same parameters, in the same groups.
        state: What its `state_dict` gave.

    Raises:
        CheckpointError: It is of other parameters, or its tensors are not theirs.
    """
    own = optimizer.state_dict()
    groups = [group["params"] for group in own["param_groups"]]
    if not isinstance(state, Mapping) or groups != [g["params"] for g in state["param_groups"]]:
        raise CheckpointError("optimizer: expected the state of these parameters, got of others")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    by_number = dict(zip([i for group in groups for i in group], parameters, strict=True))
    for number, entries in state["state"].items():
        parameter = by_number[number]
        shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        got = {key: tuple(entry.shape) for key, entry in entries.items()}
        if got != {key: tuple(shape) for key, shape in shapes.items()} or not all(
            entry.is_floating_point() for entry in entries.values()
        ):
            raise CheckpointError(
                f"optimizer: state {number}: expected {_describe(shapes)}, got {brief(got)}"
            )
    optimizer.load_state_dict({"state": state["state"], "param_groups": own["param_groups"]})


def _describe(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {tuple(shape)}" for key, shape in shapes.items())
