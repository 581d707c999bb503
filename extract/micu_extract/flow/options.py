"""The options of the flow command, and the settings that are typed with them.

An option is None unless it is typed, so that one that would do nothing is refused instead, and so
that a backbone's own conventions hold until others are typed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from micu.base.command_line import Decorator
from micu_extract.flow.methods import FLOW_METHODS, RAFT_SIZES, FlowSettings
from micu_extract.flow.tvl1_parameters import ENGINES, TVL1

_DEFAULTS = FlowSettings()

TVL1_OPTIONS = {
    "tau": "TV-L1: time step of the dual variables.",
    "lambda_": "TV-L1: weight of the brightness term; smaller is smoother.",
    "theta": "TV-L1: coupling; smaller is tighter.",
    "scales": "TV-L1: levels of the pyramid.",
    "scale_step": "TV-L1: size of a level over the next finer one.",
    "warps": "TV-L1: warpings per level.",
    "epsilon": "TV-L1: change, px, that ends a warping.",
    "inner_iterations": "TV-L1: iterations between two median filters.",
    "outer_iterations": "TV-L1: median filters per warping.",
    "median": "TV-L1: side of the median filter, px; 3, 5, or 0 for none.",
}
"""Help by the name of the parameter in `TVL1`."""

CONVENTIONS = {
    "bound": "bound",
    "rounding": "rounding",
    "short_side": "resize",
    "gray": "gray",
    "dt": "dt_s",
}
"""Field of `FlowInput` that each of these options replaces."""

FLOW_OPTIONS = (
    "flow_method",
    *FLOW_METHODS,
    "flow_engine",
    "flow_weights",
    "raft_model",
    *TVL1_OPTIONS,
    *CONVENTIONS,
)
"""Names of the arguments of `flow_settings`; `flow_cache` is an option beside them."""


def _tvl1_option(name: str, text: str) -> Decorator:
    default = getattr(_DEFAULTS.tvl1, name)
    return click.option(_typed(name), name, type=type(default), help=f"{text} [default: {default}]")


def _typed(name: str) -> str:
    """How an argument is typed."""
    return "--" + name.rstrip("_").replace("_", "-")


_CONVENTIONS = (
    click.option(
        "--bound",
        type=float,
        help="Displacement, px, that the 8 bits of a field end at. [default: the backbone's; "
        "slowonly: 20]",
    ),
    click.option(
        "--rounding",
        type=click.Choice(("nearest", "truncate")),
        help="To 8 bits: nearest, as denseflow (still is 128); or truncate, as mmaction2's "
        "script (still is 127, and the backbone still subtracts 128). [default: nearest]",
    ),
    click.option(
        "--short-side",
        type=click.IntRange(min=1),
        help="Larger pictures are resized to this, px, before flow is computed; 320 is "
        "what SlowOnly's model card says. [default: the backbone's; slowonly: 256]",
    ),
    click.option(
        "--gray",
        type=click.Choice(("before", "after")),
        help="When pictures become gray: before they are resized, as denseflow, or after. "
        "[default: before]",
    ),
    click.option(
        "--dt",
        type=float,
        metavar="SECONDS",
        help="Time step of a field, so that displacements do not depend on the file's frame "
        "rate. [default: from each frame of the file to the next]",
    ),
)
FLOW_DECORATORS: tuple[Decorator, ...] = (
    click.option(
        "--flow-method",
        type=click.Choice(FLOW_METHODS),
        help="How flow is computed: tvl1, which two-stream networks were trained on; or raft, "
        "a network (torchvision's).",
    ),
    *(
        click.option(f"--{name}", is_flag=True, help=f"Short for --flow-method {name}.")
        for name in FLOW_METHODS
    ),
    *_CONVENTIONS,
    click.option(
        "--flow-cache",
        type=click.Path(path_type=Path, file_okay=False),
        help="Keep computed flow in this folder, and take it from there: a second run, or "
        "backbone, does not pay again.",
    ),
    click.option(
        "--flow-engine",
        type=click.Choice(ENGINES),
        help="What computes TV-L1: numba is fast on a CPU, torch is for GPUs, opencv is the "
        f"slow original. [default: {_DEFAULTS.engine}]",
    ),
    *(_tvl1_option(name, text) for name, text in TVL1_OPTIONS.items()),
    click.option(
        "--raft-model",
        type=click.Choice(RAFT_SIZES),
        help=f"Size of RAFT's network. [default: {_DEFAULTS.raft}]",
    ),
    click.option(
        "--flow-weights",
        help="Of RAFT: pretrained, a local file, or random (by name only; shards say so). "
        f"[default: {_DEFAULTS.weights}]",
    ),
)
"""Every option of flow, in the order in which help shows them."""


def flow_settings(*, device: str, **typed: Any) -> tuple[FlowSettings, dict[str, Any]]:
    """What was typed, as settings of a run and as fields to replace in the backbone's `FlowInput`.

    Args:
        device: What was typed after `--device`.
        **typed: Every name in `FLOW_OPTIONS`; None or False if it was not typed.

    Raises:
        UsageError: Not exactly one method was typed, or an option that would do nothing.
        ConfigError: A parameter is out of range.
    """
    methods = [name for name in FLOW_METHODS if typed[name] or typed["flow_method"] == name]
    choice = " or ".join(_typed(name) for name in FLOW_METHODS)
    if not methods:
        raise click.UsageError(f"choose how optical flow is computed: type {choice}")
    if len(methods) > 1:
        raise click.UsageError(f"expected one of {choice}, got both")
    method = methods[0]
    _refuse_idle(method, typed)
    parameters = {name: typed[name] for name in TVL1_OPTIONS if typed[name] is not None}
    named = {"engine": "flow_engine", "weights": "flow_weights", "raft": "raft_model"}
    chosen = {field: typed[name] for field, name in named.items() if typed[name] is not None}
    settings = FlowSettings(method=method, tvl1=TVL1(**parameters), device=device, **chosen)
    overrides = {
        field: typed[name] for name, field in CONVENTIONS.items() if typed[name] is not None
    }
    return settings, overrides


def _refuse_idle(method: str, typed: Mapping[str, Any]) -> None:
    """Refuse options that say nothing to a method.

    Raises:
        UsageError: There is one.
    """
    owners = dict.fromkeys((*TVL1_OPTIONS, "flow_engine"), "tvl1")
    owners |= dict.fromkeys(("flow_weights", "raft_model"), "raft")
    for name, owner in owners.items():
        if typed[name] is not None and owner != method:
            raise click.UsageError(
                f"{_typed(name)} is for --{owner}; leave it out, or type --{owner} instead of "
                f"--{method}"
            )
    if typed["gray"] is not None and method == "raft":
        raise click.UsageError(f"--gray: --{method} looks at colour pictures; leave it out")
