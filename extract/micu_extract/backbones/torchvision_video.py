"""Networks of torchvision for clips: one vector per second, from a window of frames around it.

Weights and transforms are torchvision's; the feature is what the network's last layer reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import RegistryError
from micu.base.registry import suggest
from micu_extract.backbones.base import ClipInput, Gives, InputSpec, Option, frames_option
from micu_extract.backbones.torch_backbone import TorchBackbone, repeatable
from micu_extract.backbones.weights import without

if TYPE_CHECKING:
    from torch import Tensor

TV_PREFIX = "tv:"
HEADS = ("fc", "head", "classifier")
"""What torchvision calls the last layer."""
FRAMES = {"swin3d": 32}
"""Frames of a clip, by how the network's name begins; 16 for the others."""
LARGEST = 256
"""Short side, px, above which pictures are reduced before the transform has them."""


class TorchvisionVideo(TorchBackbone):
    """Any network for clips of torchvision, as `--backbone tv:NAME`.

    Args:
        weights: `pretrained`, a path, `random` or `random:SEED`.
        run: Where and how the network runs.
        model: Name in torchvision.
        frames_per_second: Frames that are sampled in each second.

    Raises:
        RegistryError: torchvision has no such network.
        WeightsError: The weights cannot be had or do not fit.
    """

    BATCH_SIZE = 4
    PACKAGES = ("torch", "torchvision", "av", "pillow")
    OPTIONS: ClassVar[Mapping[str, Option]] = frames_option(16, "sampled")
    wants: InputSpec = ClipInput(fps=16, resize=LARGEST, crop=None, frames=16)
    gives: Gives = Gives(
        modality="video",
        shape=(),
        weights="torchvision's, on Kinetics-400",
        licence="see torchvision",
    )

    def _prepare(self) -> None:
        from torchvision.models import get_model_weights, list_models, video

        model, known = self._options["model"], list_models(module=video)
        if model not in known:
            raise RegistryError(f"unknown torchvision network {model!r}; {suggest(model, known)}")
        self.NAME = TV_PREFIX + model
        weights = get_model_weights(model).DEFAULT
        self._model, self.URL, self._transform = model, weights.url, weights.transforms()
        frames = next((n for name, n in FRAMES.items() if model.startswith(name)), 16)
        fps = self._options["frames_per_second"]
        self.wants = ClipInput(fps=fps, resize=LARGEST, crop=None, frames=frames)

    def _draw(self) -> Any:
        import torch
        from torchvision.models import get_model

        network = get_model(self._model, weights=None)
        for head in HEADS:
            if hasattr(network, head):
                setattr(network, head, torch.nn.Identity())
        return network

    def _rename(self, network: Any, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
        return without(state, tuple(f"{head}." for head in HEADS))

    def _describe(self) -> dict[str, Any]:
        assert isinstance(self.wants, ClipInput)
        blank = np.zeros((self.wants.frames, 64, 64, 3), np.uint8)
        with repeatable():
            shape = tuple(self._forward([blank]).shape[1:])
        self.gives = replace(self.gives, shape=shape)
        return {
            "transform": " ".join(repr(self._transform).split()),
            "output": "what the last layer reads",
            "step": "the window centred on the second",
        }

    def _forward(self, clips: Sequence[NDArray[np.uint8]]) -> "Tensor":
        """From windows (L, H, W, 3) to (B, D)."""
        import torch

        prepared = [self._transform(torch.from_numpy(c.copy()).permute(0, 3, 1, 2)) for c in clips]
        output: Tensor = self._run(torch.stack(prepared).to(self._run.device)).flatten(1)
        return output
