"""Any image model of timm, on RGB frames: one vector per second.

Weights and transforms are timm's. A second's feature is the mean over its frames of timm's pooled
output, or of the grid that it is pooled from; this policy is ours.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError, RegistryError, WeightsError
from micu.store.sets import Steps
from micu_extract.backbones.base import (
    FrameInput,
    Gives,
    InputSpec,
    Media,
    Option,
    Run,
    mean_by_step,
)
from micu_extract.backbones.hubs import hub_state, url_state
from micu_extract.backbones.inference import Runner, repeatable
from micu_extract.backbones.spec import build_spec
from micu_extract.backbones.weights import (
    USUAL_NAMES,
    Request,
    Weights,
    load_strictly,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
    without,
)

if TYPE_CHECKING:
    from torch import Tensor

TIMM_PREFIX = "timm:"
GRID = Option(
    type=bool, default=False, help="do not pool over the picture: rows, columns, channels"
)


class TimmImage:
    """Any image model of timm, as `--backbone timm:NAME`; NAME may carry a weights tag.

    The input size, resize, mean and std are those of the model's own pretrained configuration.

    Args:
        weights: `pretrained`, a path, `random` or `random:SEED`.
        run: Where and how the network runs.
        model: Name in timm.
        frames_per_second: Frames averaged in each second.
        grid: Give what the model's head would pool, (T, H, W, D) with rows, columns, channels. In
            some models the last norm is part of the head. Adds `-grid` to the features' name.

    Raises:
        RegistryError: timm has no such model.
        ConfigError: Its transform is not a square centre crop, or it has no grid to give.
        WeightsError: The weights cannot be had or do not fit.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "frames_per_second": Option(
            type=int, default=16, help="frames that are averaged in each second"
        ),
        "grid": GRID,
    }
    wants: InputSpec = FrameInput(fps=16, resize=256, crop=224)
    gives: Gives = Gives(
        modality="video",
        shape=(),
        weights="the hub's, as timm names them",
        licence="see the model's card",
    )

    def __init__(  # noqa: D107
        self,
        weights: str,
        run: Run,
        *,
        model: str,
        frames_per_second: int = 16,
        grid: bool = False,
    ) -> None:
        name = TIMM_PREFIX + model
        self._build_from_timm(name, model, parse_request(weights, name))
        self._finish(name, run, frames_per_second, grid)

    def _build_from_timm(self, name: str, model: str, request: Request) -> None:
        import timm

        if not timm.is_model(model):
            raise RegistryError(f"unknown timm model {model!r}; {_suggest_timm(model)}")
        try:
            config = timm.get_pretrained_cfg(model, allow_unregistered=False)
        except RuntimeError as error:  # it has no such tag
            raise RegistryError(_describe_tags(model)) from error
        if config is None:
            raise RegistryError(_describe_tags(model))

        def build() -> Any:
            return timm.create_model(model, pretrained=False, num_classes=0)

        if request.kind == "random":
            network, source = seeded(build, request.seed), request.source
        else:
            state, source = _published_state(config, request)
            network = build()
            load_strictly(network, _as_timm(network, state, config.classifier), f"{name} {source}")
        self._network = network
        self._weights = Weights(source, tensors_sha256(network))
        self.gives = replace(self.gives, shape=(_width(network),))
        self._transform = timm.data.resolve_model_data_config(network)

    def _finish(self, name: str, run: Run, frames_per_second: int, grid: bool) -> None:
        self.wants = frame_input(name, self._transform, frames_per_second)
        self._channels_first = False
        if grid:
            self._keep_grid(name, run, self.wants.crop)
        else:
            self._run = Runner(self._network, run, batch_size=8)
        mean, std = self._transform["mean"], self._transform["std"]
        self.spec = build_spec(
            f"{name}-grid" if grid else name,
            self,
            self._weights,
            run,
            {
                "crop_pct": self._transform["crop_pct"],
                "scale": "x / 255, then (x - mean) / std",
                "mean": list(mean),
                "std": list(std),
                "output": "before pooling: rows, columns, channels" if grid else "pooled",
                "step": "mean of the second's frames",
            },
            "torch",
            "timm",
            "av",
            "pillow",
        )

    def _keep_grid(self, name: str, run: Run, side: int) -> None:
        """Leave the head out; what a blank picture gives tells the layout."""
        import torch

        from micu_extract.backbones.feature_maps import FeatureMaps

        network = FeatureMaps(self._network)
        self._run = Runner(network, run, batch_size=8)
        with repeatable():
            maps = network(torch.zeros(1, 3, side, side, device=self._run.device))
        self._channels_first = network.find_channels(name, maps) == 1
        shape = (maps.movedim(1, 3) if self._channels_first else maps).shape[1:]
        self.gives = replace(self.gives, shape=tuple(shape))

    @property
    def batch_size(self) -> int:
        """Frames per forward pass."""
        return self._run.batch_size

    def encode(
        self, units: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
    ) -> list[NDArray[np.float32]]:
        """The network's output per frame.

        Args:
            units: Frames, U of (H, W, 3), RGB in [0, 255].

        Returns:
            U of (D,), or of (rows, columns, D) for grids.
        """
        return self._run.encode(units, self._forward)

    def _forward(self, frames: Sequence[NDArray[np.uint8]]) -> "Tensor":
        output: Tensor = self._run(self._normalize(frames))
        return output.movedim(1, 3) if self._channels_first else output

    def _normalize(self, frames: Sequence[NDArray[np.uint8]]) -> "Tensor":
        import torch

        x = torch.from_numpy(np.stack(frames)).to(self._run.device)
        x = x.permute(0, 3, 1, 2).float().div(255)  # (B, 3, H, W)
        mean, std = (x.new_tensor(self._transform[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        return (x - mean) / std

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """Mean of each second's frames, (T, D) or (T, rows, columns, D)."""
        return mean_by_step(outputs, media)


def frame_input(name: str, transform: Mapping[str, Any], frames_per_second: int) -> FrameInput:
    """The frames that a timm data configuration asks for.

    Args:
        name: Of the backbone, for the error.
        transform: As `timm.data.resolve_model_data_config` returns it.
        frames_per_second: Frames averaged in each second.

    Raises:
        ConfigError: The transform cannot be done while decoding.
    """
    _, height, width = transform["input_size"]
    mode, interpolation = transform["crop_mode"] or "center", transform["interpolation"]
    if height != width or mode not in ("center", "squash"):
        raise ConfigError(f"{name}: expected a square centre crop, got {height}x{width}, {mode}")
    if interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(f"{name}: expected bicubic or bilinear, got {interpolation}")
    size = math.floor(height / transform["crop_pct"])
    return FrameInput(
        fps=frames_per_second,
        resize=(size, size) if mode == "squash" else size,
        crop=height,
        interpolation=interpolation,
    )


def _published_state(config: Any, request: Request) -> "tuple[dict[str, Tensor], str]":
    """The tensors that were asked for, and their source, from a timm weights configuration."""
    if request.kind == "local":
        return read_state(request.path), request.source
    if config.hf_hub_id:
        names = (config.hf_hub_filename,) if config.hf_hub_filename else USUAL_NAMES
        return hub_state(config.hf_hub_id, names), f"hf:{config.hf_hub_id}"
    if not config.url:
        raise WeightsError(
            f"{TIMM_PREFIX}{config.architecture}: timm knows of no published weights; type "
            "--weights PATH or --weights random"
        )
    return url_state(str(config.url)), str(config.url)


def _as_timm(
    network: Any,
    state: "Mapping[str, Tensor]",
    classifier: str | Sequence[str] | None,
) -> "dict[str, Tensor]":
    """A published state in timm's present names, without the classifier.

    timm renames what older files hold with a function beside the model, which it does not reach
    through any public call.
    """
    convert = getattr(import_module(type(network).__module__), "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert(dict(state), network)
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return without(state, tuple(f"{head}." for head in heads))


def _width(network: Any) -> int:
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def _suggest_timm(model: str) -> str:
    import timm

    near = difflib.get_close_matches(model, timm.list_models(), n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "see timm.list_models()"


def _describe_tags(model: str) -> str:
    import timm

    architecture, _, tag = model.partition(".")
    found = timm.list_models(f"{architecture}.*", pretrained=True)
    known = ", ".join(name.partition(".")[2] for name in found) or "none"
    return (
        f"unknown weights {tag!r} of timm model {architecture!r}; known: {known}; "
        f"{TIMM_PREFIX}{architecture} takes timm's default"
    )
