"""Any image model of timm, on RGB frames: one vector per second.

Weights and transforms are timm's. A second's feature is the mean over its frames of timm's pooled
output, or of the grid that it is pooled from; this policy is ours.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError, RegistryError, WeightsError
from micu_extract.backbones.base import FrameInput, Gives, InputSpec, Option, frames_option
from micu_extract.backbones.hubs import hub_file, url_state
from micu_extract.backbones.torch_backbone import TorchBackbone, normalize, repeatable
from micu_extract.backbones.weights import (
    USUAL_NAMES,
    Request,
    read_state,
    without,
)

if TYPE_CHECKING:
    from torch import Tensor

TIMM_PREFIX = "timm:"
GRID = Option(
    type=bool, default=False, help="do not pool over the picture: rows, columns, channels"
)


class TimmImage(TorchBackbone):
    """Any image model of timm, as `--backbone timm:NAME`; NAME may carry a weights tag.

    The input size, resize, mean and std are those of the model's own pretrained configuration.

    Args:
        weights: `pretrained`, a path, `random` or `random:SEED`.
        run: Where and how the network runs.
        model: Name in timm; empty for a class that has its own.
        frames_per_second: Frames averaged in each second.
        grid: Give what the model's head would pool, (T, H, W, D) with rows, columns, channels. In
            some models the last norm is part of the head. Adds `-grid` to the features' name.

    Raises:
        RegistryError: timm has no such model.
        ConfigError: Its transform is not a square centre crop, or it has no grid to give.
        WeightsError: The weights cannot be had or do not fit.
    """

    MODEL: ClassVar[str] = ""
    BATCH_SIZE = 8
    PACKAGES = ("torch", "timm", "av", "pillow")
    OPTIONS: ClassVar[Mapping[str, Option]] = {**frames_option(16), "grid": GRID}
    wants: InputSpec = FrameInput(fps=16, resize=256, crop=224)
    gives: Gives = Gives(
        modality="video",
        shape=(),
        weights="the hub's, as timm names them",
        licence="see the model's card",
    )

    def _prepare(self) -> None:
        self._model = self._options.get("model", self.MODEL)
        if self._model != self.MODEL:
            self.NAME = TIMM_PREFIX + self._model
        if self._model:
            self._config = _find_config(self._model)

    def _draw(self) -> Any:
        import timm

        return timm.create_model(self._model, pretrained=False, num_classes=0)

    def _read(self, request: Request) -> "tuple[dict[str, Tensor], str]":
        config = self._config
        if request.kind == "local":
            return read_state(request.path), request.source
        if config.hf_hub_id:
            names = (config.hf_hub_filename,) if config.hf_hub_filename else USUAL_NAMES
            return read_state(hub_file(config.hf_hub_id, names)), f"hf:{config.hf_hub_id}"
        if not config.url:
            raise WeightsError(
                f"{TIMM_PREFIX}{config.architecture}: timm knows of no published weights; type "
                "--weights PATH or --weights random"
            )
        return url_state(str(config.url)), str(config.url)

    def _rename(self, network: Any, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """Tensors by timm's present names, without the classifier.

        timm renames what older files hold with a function beside the model, which it does not reach
        through any public call.
        """
        convert = getattr(import_module(type(network).__module__), "checkpoint_filter_fn", None)
        if convert is not None:
            state = convert(state, network)
        found = self._config.classifier or ()
        heads = (found,) if isinstance(found, str) else tuple(found)
        return without(state, tuple(f"{head}." for head in heads))

    def _find_transform(self) -> Mapping[str, Any]:
        """How pictures are prepared, in the words of timm's data configuration."""
        import timm

        found: Mapping[str, Any] = timm.data.resolve_model_data_config(self._run.network)
        return found

    def _describe(self) -> dict[str, Any]:
        transform = self._transform = self._find_transform()
        self.wants = frame_input(self.NAME, transform, self._options["frames_per_second"])
        self._channels_first = False
        if self._options["grid"]:
            self._keep_grid(int(transform["input_size"][1]))
        else:
            network: Any = self._run.network
            width = getattr(network, "head_hidden_size", None) or network.num_features
            self.gives = replace(self.gives, shape=(int(width),))
        return {
            "crop_pct": transform["crop_pct"],
            "scale": "x / 255, then (x - mean) / std",
            "mean": list(transform["mean"]),
            "std": list(transform["std"]),
            "output": "before pooling: rows, columns, channels"
            if self._options["grid"]
            else "pooled",
            "step": "mean of the second's frames",
        }

    def _name_features(self) -> str:
        return f"{self.NAME}-grid" if self._options["grid"] else self.NAME

    def _keep_grid(self, side: int) -> None:
        """Leave the head out; what a blank picture gives tells the layout."""
        import torch

        network: Any = self._run.network
        network.forward = network.forward_features
        with repeatable():
            maps = network(torch.zeros(1, 3, side, side, device=self._run.device))
        width = network.num_features
        if maps.ndim != 4 or width not in (maps.shape[1], maps.shape[3]):
            raise ConfigError(
                f"{self.NAME}: --grid: expected maps of {width} channels with rows and columns, "
                f"got {tuple(maps.shape[1:])}; leave --grid out or take another model"
            )
        self._channels_first = maps.shape[1] == width
        shape = (maps.movedim(1, 3) if self._channels_first else maps).shape[1:]
        self.gives = replace(self.gives, shape=tuple(shape))

    def _forward(self, frames: Sequence[NDArray[np.uint8]]) -> "Tensor":
        """From frames (H, W, 3), RGB, to (B, D), or to (B, rows, columns, D) for grids."""
        output: Tensor = self._run(self._normalize(frames))
        return output.movedim(1, 3) if self._channels_first else output

    def _normalize(self, frames: Sequence[NDArray[np.uint8]]) -> "Tensor":
        return normalize(self._pictures(frames), self._transform["mean"], self._transform["std"])


def _find_config(model: str) -> Any:
    """The weights configuration that timm has of a model.

    Raises:
        RegistryError: timm has no such model, or the model has no such weights.
    """
    import timm

    if not timm.is_model(model):
        raise RegistryError(f"unknown timm model {model!r}; {_suggest_timm(model)}")
    config = None
    with suppress(RuntimeError):  # it has no such tag
        config = timm.get_pretrained_cfg(model, allow_unregistered=False)
    if config is None:
        raise RegistryError(_describe_tags(model))
    return config


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
