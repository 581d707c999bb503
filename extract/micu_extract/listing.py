"""`micu-extract list`: what each backbone takes, what it gives, and where its weights are."""

from dataclasses import asdict
from typing import Any

from micu_extract.backbones import BACKBONES, TIMM_PREFIX
from micu_extract.backbones.base import Backbone, FlowInput, FrameInput, InputSpec, WaveformInput
from micu_extract.backbones.timm_image import TimmImage


def describe_input(wants: InputSpec) -> str:
    """What a backbone looks at, in a few words."""
    match wants:
        case FrameInput():
            where = "at even times" if wants.sampling == "time" else "counted off evenly"
            size = (
                f"short side {wants.resize} px"
                if isinstance(wants.resize, int)
                else f"{wants.resize[0]}x{wants.resize[1]} px whatever the aspect"
            )
            return (
                f"{wants.fps} frames a second {where}, {wants.interpolation} to {size}, "
                f"centre {wants.crop} px"
            )
        case FlowInput():
            return (
                f"{wants.clip_len} flow fields, {wants.interval} frames apart, centred on each "
                f"second; short side {wants.resize} px, centre {wants.crop} px, bound "
                f"{wants.bound:g} px"
            )
        case WaveformInput():
            return f"mono, {wants.sample_rate} Hz, windows of {wants.window_s:g} s"
        case _:
            return "one sentence"


def describe_shape(kind: type[Backbone]) -> str:
    """Shape of a clip's features: T seconds, or L words."""
    first = "T" if kind.gives.hop_s else "L"
    return f"({', '.join([first, *map(str, kind.gives.shape)])})"


def backbone_rows() -> list[dict[str, Any]]:
    """Everything that is known of each backbone without loading it, as JSON."""
    return [
        {"name": name, **asdict(kind.gives), "wants": asdict(kind.wants)}
        for name, kind in BACKBONES.items()
    ]


def backbone_table() -> str:
    """The same for people."""
    lines = []
    for name, kind in BACKBONES.items():
        gives = kind.gives
        lines += [
            f"{name:<14} {gives.modality:<6} {describe_shape(kind)}",
            f"    input    {describe_input(kind.wants)}",
            f"    weights  {gives.weights}; licence: {gives.licence}",
        ]
    gives = TimmImage.gives
    lines += [
        f"{TIMM_PREFIX + 'NAME':<14} {gives.modality:<6} (T, D)",
        "    input    any image model of timm, with its own transform",
        f"    weights  {gives.weights}; licence: {gives.licence}",
    ]
    return "\n".join(lines)
