"""What a backbone is: what it wants, what it gives, and how its weights are had.

A backbone declares the media it wants (`InputSpec`), from which the pipeline derives the decoding,
and what it gives (`Gives`), from which the shard header is made. Its two verbs work on *units* (a
frame, a ten second window, a flow clip, a sentence): `encode` runs the network over units of any
clips, `to_steps` turns the outputs of one clip's units into its T steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError
from micu.base.registry import Registry
from micu.store.shard import FeatureSpec, Steps

OPENCV = ("opencv-contrib-python-headless", "opencv-contrib-python")
"""Packages that OpenCV comes in; one of them is installed."""

Interpolation = Literal["bicubic", "bilinear", "opencv-linear"]
Rounding = Literal["nearest", "truncate"]
MIN_STEP_S = 0.1
"""A last step that would hold less than this is not made: a 10.02 s clip has ten steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameInput:
    """Frames sampled from each second, resized and cropped while decoding.

    `sampling` is `time`: the frames on screen at (i + 1/2) / fps of each second; or `count`, the
    convention of the AVE data set: with n = frames // T, the frames l n + i n / fps of second l,
    rounded down, whatever their times.
    """

    kind: Literal["frames"] = "frames"
    fps: int
    """Frames per second that are sampled."""
    resize: int | tuple[int, int]
    """Short side, px, with the aspect kept; or (height, width), px, without."""
    crop: int | None
    """Side of the centre crop, px; None keeps the whole picture, and resizes larger ones only."""
    interpolation: Interpolation = "bicubic"
    """The first two antialias, as Pillow does; the last is `cv2.resize`, which does not."""
    sampling: Literal["time", "count"] = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipInput(FrameInput):
    """Windows of frames, one for each second: `frames` of those sampled, as its middle has them.

    At the ends of the media a window holds the first frame, or the last, again.
    """

    kind: Literal["clips"] = "clips"  # type: ignore[assignment]
    frames: int
    """Of a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowInput:
    """Clips of optical flow, one centred on each second, quantised to 8 bits.

    Only the pairs of frames that a clip holds are computed. Without a time step, `interval` counts
    frames of the file's own rate, and a displacement is that of one frame to the next; with one,
    both are in units of it, whatever the rate.

    Raises:
        ConfigError: A value is out of range; all problems are listed.
    """

    kind: Literal["flow"] = "flow"
    clip_len: int = 8
    """Flow fields per clip."""
    interval: int = 8
    """Frames, or time steps, from one field to the next."""
    resize: int = 256
    """Short side of the frames, px, before flow is computed; larger frames only are resized."""
    field_side: int | None = None
    """Short side, px, that the 8-bit flow is resized to, up as well as down, before it is cropped,
    its displacements as they were; None leaves it as large as the frames."""
    crop: int = 256
    """Side of the centre crop of the flow, px; what is smaller is padded with stillness."""
    bound: float = 20.0
    """Displacement, px, that maps to 0 and 255."""
    rounding: Rounding = "nearest"
    """To 8 bits: `nearest`, still is 128; or `truncate`, still is 127."""
    gray: Literal["before", "after"] = "before"
    """Whether frames become gray before they are resized, or after; says nothing where flow is
    computed in colour."""
    dt_s: float | None = None
    """Time step, s: from the first frame of a field to the second, and the unit of time of the
    displacement. None is from each frame of the file to the next."""

    def __post_init__(self) -> None:  # noqa: D105
        counts = {n: getattr(self, n) for n in ("clip_len", "interval", "resize", "crop")}
        if self.field_side is not None:
            counts["field_side"] = self.field_side
        problems = [f"{n}: expected at least 1, got {v}" for n, v in counts.items() if v < 1]
        spans = {"bound": self.bound, "dt_s": 1.0 if self.dt_s is None else self.dt_s}
        problems += [
            f"{n}: expected a finite number > 0, got {v}"
            for n, v in spans.items()
            if not 0 < v < np.inf
        ]
        for name, known in (("rounding", get_args(Rounding)), ("gray", ("before", "after"))):
            if getattr(self, name) not in known:
                got = getattr(self, name)
                problems.append(f"{name}: expected one of {', '.join(known)}, got {got!r}")
        if problems:
            raise ConfigError("\n".join(f"flow input {problem}" for problem in problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveformInput:
    """Mono sound, cut into windows of fixed length; the last one may be shorter."""

    kind: Literal["waveform"] = "waveform"
    sample_rate: int
    """Hz."""
    window_s: float
    """Length of a window, s, a whole number of seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInput:
    """One sentence."""

    kind: Literal["text"] = "text"


InputSpec = FrameInput | ClipInput | FlowInput | WaveformInput | TextInput


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
            kept = f"centre {wants.crop} px" if wants.crop else "whole, only larger ones resized"
            clips = f"windows of {wants.frames}, " if isinstance(wants, ClipInput) else ""
            return (
                f"{clips}{wants.fps} frames a second {where}, {wants.interpolation} to {size}, "
                f"{kept}"
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


@dataclass(frozen=True, slots=True)
class Media:
    """One clip, decoded to the units that a backbone wants.

    Units by kind: frames (U, H, W, 3) and clips (U, L, H, W, 3), uint8 RGB; flow (U, L, H, W, 2)
    uint8, x then y, 128 = still; waveform a list of U arrays (S,) float32 in [-1, 1]; text a list
    of one string.
    """

    units: NDArray[np.uint8] | Sequence[NDArray[np.float32]] | Sequence[str]
    times_s: NDArray[np.float64]
    """(U,), where each unit lies in the clip (frames: its instant; else its centre), s; empty for
    text"""
    duration_s: float
    """How much of the clip the media cover, from the clip's start, s; 0 for text"""
    steps: int
    """T, the steps the clip is asked for: from the manifest's window, else the media's length"""
    notes: Mapping[str, float | int | str] = field(default_factory=dict)
    """What decoding met: source fps, corrupt frames, …"""
    real: NDArray[np.bool_] | None = None
    """(steps,), False where units hold what is not of the media, such as silence before the sound;
    None if there is no such step"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gives:
    """What a backbone gives, known without loading it."""

    modality: str
    shape: tuple[int, ...]
    """Of one step, without T, channel last."""
    hop_s: float | None = 1.0
    weights: str
    """Where the published weights are."""
    licence: str
    """Of the published weights."""
    tolerance: float = 1e-3
    """Largest difference that other versions of libraries may make, of the largest value: a network
    in float32 adds in another order, and a picture or a sound is rounded otherwise when resized or
    resampled. Where less or more can happen, a backbone says so."""


def describe_shape(gives: Gives | FeatureSpec) -> str:
    """Shape of a clip's features: T seconds, or L words."""
    return f"({', '.join(['T' if gives.hop_s else 'L', *map(str, gives.shape)])})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting of a backbone, from which the command line makes an option of the same name.

    A setting that changes the shape of a row adds to the features' name. Any other is in the header
    alone: features that differ in one have the same name, and comparing them takes another `--out`.
    """

    type: type[int] | type[str] | type[bool]
    """`bool` is a flag."""
    default: int | str | bool
    help: str
    choices: tuple[str, ...] = ()
    """The only values that a `str` may take; empty for any."""


def frames_option(default: int, what: str = "averaged") -> dict[str, Option]:
    """The option of networks for pictures that see so many of each second."""
    told = f"frames that are {what} in each second"
    return {"frames_per_second": Option(type=int, default=default, help=told)}


Precision = Literal["float32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where a network runs, and how."""

    device: str = "auto"
    """As `micu.base.devices.resolve_device` takes it."""
    batch_size: int | None = None
    """Units in one forward pass; None is the backbone's own. Changes speed and memory alone."""
    precision: Precision = "float32"
    """Of matrix products and convolutions; half precision pays where the hardware has it."""
    compile: bool = False
    """Compile the network with `torch.compile` first, which takes minutes."""


class Backbone(Protocol):
    """A pretrained network that turns units of media into features.

    Constructed as `cls(weights, run, **options)`, which `micu_extract.backbones.build_backbone`
    does; see `micu_extract.backbones.weights` for `weights`. Heavy imports go inside the
    constructor, so that listing backbones stays quick.
    """

    OPTIONS: ClassVar[Mapping[str, Option]]
    """By name as the constructor takes it; `_` is `-` on the command line."""
    gives: Gives
    """Set on the class; an option may replace it on the instance."""
    wants: InputSpec
    """Set on the class; an option or the weights' own configuration may replace it."""
    spec: FeatureSpec
    """Set by the constructor."""

    def __init__(self, weights: str, run: Run) -> None: ...  # noqa: D107

    @property
    def batch_size(self) -> int:
        """Units that `encode` runs at once; the pipeline fills batches across clips."""
        ...

    def encode(self, units: Any) -> Sequence[NDArray[np.float32]]:
        """Run the network over units, of one clip or of many; one output array per unit.

        An output must not depend on the other units: neither on how many they are nor on which.

        Raises:
            ClipError: A unit is one that the network cannot take. It says nothing of the others:
                they are encoded again, clip by clip, and only the clip of that unit fails.
        """
        ...

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """Turn the outputs of one clip's units into its steps."""
        ...


BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone", "micu.backbones", ("OPTIONS", "gives", "wants", "encode", "to_steps")
)


def count_steps(duration_s: float) -> int:
    """T of a clip of `duration_s` seconds; the only place where seconds become steps.

    At least 1. A last part shorter than 0.1 s makes no step of its own.
    """
    return max(1, int(np.ceil(duration_s - MIN_STEP_S)))


def find_real_steps(
    parts: Sequence[tuple[int, int]] | Sequence[tuple[Fraction, Fraction]],
    steps: int,
    rate: int = 1,
) -> NDArray[np.bool_]:
    """Which seconds are real, (steps,): those of which media fill at least 0.1 s.

    Where none is filled as much, it is the first one of those filled most. None is real if the
    media come later.

    Args:
        parts: Begin and end of each part that the media fill, from 0 on, in 1 / rate seconds.
        steps: T.
        rate: Parts of a second that they are counted in.
    """
    filled: list[int | Fraction] = [0] * steps
    for begin, end in parts:
        for step in range(int(begin // rate), min(steps, int(-(-end // rate)))):
            start = step * rate
            filled[step] += min(end, start + rate) - max(begin, start)
    least = Fraction(str(MIN_STEP_S)) * rate
    real = np.array([share >= least for share in filled])
    if not real.any():
        real[filled.index(max(filled))] = max(filled) > 0
    return real


def step_centres(steps: int, hop_s: float = 1.0) -> NDArray[np.float64]:
    """Centre of each step, (T,), s."""
    return (np.arange(steps, dtype=np.float64) + 0.5) * np.float64(hop_s)


def mean_by_step(outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
    """Mean of the units that lie in each second; a second without units is not real."""
    values = np.stack(outputs)
    step = np.minimum(media.times_s.astype(np.int64), media.steps - 1)
    sums = np.zeros((media.steps, *values.shape[1:]), np.float64)
    np.add.at(sums, step, values)
    counts = np.bincount(step, minlength=media.steps)
    shape = (-1,) + (1,) * (values.ndim - 1)
    means = sums / np.maximum(counts, 1).reshape(shape)
    return Steps(means.astype(np.float32), counts > 0, step_centres(media.steps))


def versions_of(*packages: str) -> dict[str, str]:
    """Installed version of each package that made features; missing ones are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
