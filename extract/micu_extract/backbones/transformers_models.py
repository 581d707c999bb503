"""Any encoder of transformers, by its own processor: pictures, clips, sounds or sentences.

Units go through the processor that the model's repository has, and its pooled output is the
feature; where it has none, the mean over its tokens. This policy is ours, the numbers are theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError, WeightsError
from micu.store.shard import Steps
from micu_extract.backbones.base import (
    ClipInput,
    FrameInput,
    Gives,
    InputSpec,
    Media,
    Option,
    TextInput,
    WaveformInput,
    frames_option,
    step_centres,
)
from micu_extract.backbones.hubs import from_transformers, load_transformer
from micu_extract.backbones.torch_backbone import TorchBackbone, repeatable
from micu_extract.backbones.weights import Request, first_line, seeded

if TYPE_CHECKING:
    from torch import Tensor

HF_PREFIX = "hf:"
LARGEST_PICTURE, LARGEST_CLIP = 512, 256
"""Short side, px, above which pictures are reduced before the processor has them."""
MAX_TOKENS = 128
"""Of a sentence; all are padded to it, or to the tokenizer's own limit, so that none depends on
another."""
CLIP_FRAMES = ("num_frames", "frames_per_clip")
"""What configurations of networks for clips call the frames of one."""


_ODD = (AttributeError, AssertionError)
"""What networks raise besides, given what they do not take."""


class TransformersModel(TorchBackbone):
    """What encoders of transformers have in common.

    Args:
        weights: `pretrained`, a directory of the Hub's layout, `random` or `random:SEED`.
        run: Where and how the network runs.
        model: Its name on the Hub, or a directory of that layout.

    Raises:
        WeightsError: Model or processor cannot be had, or do not fit.
        ConfigError: The model has no encoder of this modality.
    """

    PACKAGES = ("torch", "transformers", "torchvision", "pillow", "av")
    VERBS: ClassVar[tuple[str, ...]]
    """What the network's methods for the modality are called, where it has several towers."""
    PROCESSORS: ClassVar[tuple[str, ...]]
    """Classes of transformers that know the repository's own; the first that does is taken."""

    def _prepare(self) -> None:
        self._model = model = self._options["model"]
        label = Path(model).resolve().name if Path(model).is_dir() else model
        tail = "" if self.gives.modality == "video" else f"@{self.gives.modality}"
        self.NAME = f"{HF_PREFIX}{label}{tail}"

    def _load(self, request: Request) -> tuple[Any, str]:
        import torch
        from transformers import AutoConfig, AutoModel

        if request.kind == "local" and not request.path.is_dir():
            raise WeightsError(
                f"weights of {self.NAME}: expected a directory of the Hub's layout, got the file "
                f"{request.path}"
            )
        home = request.path if request.kind == "local" else self._model
        self._processor = self._find_processor(home)
        if request.kind == "random":
            config = from_transformers(AutoConfig, home)
            config.dtype = torch.float32
            network = seeded(lambda: AutoModel.from_config(config), request.seed)
            return network, request.source
        network = load_transformer(AutoModel, home, ("pooler.",), leave_out=True)
        return network, request.source if request.kind == "local" else self.NAME

    def _find_processor(self, home: str | Path) -> Any:
        import transformers

        problems = []
        for name in self.PROCESSORS:
            try:
                return from_transformers(getattr(transformers, name), home)
            except WeightsError as error:
                problems.append(str(error))
        raise WeightsError(f"{self.NAME}: no processor for {self.gives.modality}: {problems[0]}")

    def _describe(self) -> dict[str, Any]:
        import torch

        network: Any = self._run.network
        verbs = [verb for verb in self.VERBS if hasattr(network, verb)]
        self._verb = verbs[0] if verbs else ""
        if self._verb and self._run.is_compiled:
            raise ConfigError(
                f"{self.NAME}: --compile: expected a network that is called as a whole, got one of "
                "several encoders; leave it out"
            )
        self._settle(network.config)
        try:
            with repeatable(), torch.inference_mode():
                blank = self._forward(self._blank())
        except (ValueError, TypeError, RuntimeError, LookupError, *_ODD) as error:
            raise ConfigError(
                f"{self.NAME}: expected an encoder of {self.gives.modality}, got "
                f"{network.config.model_type}, which does not take it: {first_line(error)}"
            ) from error
        self.gives = replace(self.gives, shape=tuple(blank.shape[1:]))
        return {
            "processor": self._processor.to_dict() if hasattr(self._processor, "to_dict") else {},
            "output": self._verb or "pooled, or the mean of its tokens",
        }

    def _settle(self, config: Any) -> None:
        """Set what is wanted, by the configurations of network and processor."""

    def _blank(self) -> Sequence[Any]:
        """One unit in which nothing is seen or heard."""
        raise NotImplementedError

    def _run_on(self, inputs: Mapping[str, Any]) -> "Tensor":
        """Pooled outputs, (B, D), for what the processor gives; its main input is the first."""
        import torch

        network: Any = self._run.network
        half = self._run.half
        there = {name: x.to(self._run.device) for name, x in inputs.items() if hasattr(x, "to")}
        if self._verb:
            main, *rest = there
            with torch.autocast(self._run.device.type, half, enabled=half is not None):
                output = self._apply(there[main], **{name: there[name] for name in rest})
        else:
            output = self._run(**there)
        if hasattr(output, "shape"):
            pooled: Any = output
        elif getattr(output, "pooler_output", None) is not None and (
            self._verb or getattr(network, "pooler", True) is not None
        ):
            pooled = output.pooler_output
        else:
            pooled = output.last_hidden_state
        flat: Tensor = pooled if pooled.ndim == 2 else pooled.flatten(1, -2).mean(1)
        return flat

    def _apply(self, *inputs: Any, **named: Any) -> Any:
        """What the network's own verb gives."""
        return getattr(self._run.network, self._verb)(*inputs, **named)


class TransformersPictures(TransformersModel):
    """Pictures or clips by transformers, as `--backbone hf:NAME`: one vector per second.

    A network for pictures sees some of each second, whose outputs are averaged; one for clips a
    window of frames centred on it.

    Args:
        weights: As of the base.
        run: Likewise.
        model: Likewise.
        frames_per_second: Frames that are sampled in each second.
    """

    BATCH_SIZE = 8
    VERBS = ("get_image_features", "get_video_features", "get_video_embeds", "get_vision_features")
    PROCESSORS = ("AutoVideoProcessor", "AutoImageProcessor")
    OPTIONS: ClassVar[Mapping[str, Option]] = frames_option(8, "sampled")
    wants: InputSpec = FrameInput(fps=8, resize=LARGEST_PICTURE, crop=None)
    gives: Gives = Gives(
        modality="video",
        shape=(),
        weights="the Hub's",
        licence="see the model's card",
    )

    def _find_processor(self, home: str | Path) -> Any:
        from transformers import AutoConfig, AutoImageProcessor

        self._frames = _count_frames(from_transformers(AutoConfig, home))
        if not self._frames:
            return from_transformers(AutoImageProcessor, home)
        return super()._find_processor(home)

    def _settle(self, config: Any) -> None:
        fps = self._options["frames_per_second"]
        self.wants = (
            ClipInput(fps=fps, resize=LARGEST_CLIP, crop=None, frames=self._frames)
            if self._frames
            else FrameInput(fps=fps, resize=LARGEST_PICTURE, crop=None)
        )

    def _blank(self) -> Sequence[NDArray[np.uint8]]:
        return [np.zeros((*([self._frames] if self._frames else []), 64, 64, 3), np.uint8)]

    def _forward(self, units: Sequence[NDArray[np.uint8]]) -> "Tensor":
        """From frames (H, W, 3), or windows of them (L, H, W, 3), to (B, D)."""
        if not self._frames:
            inputs = self._processor(images=list(units), return_tensors="pt")
        elif type(self._processor).__name__.endswith("VideoProcessor"):
            videos = [window.transpose(0, 3, 1, 2) for window in units]
            inputs = self._processor(videos=videos, do_sample_frames=False, return_tensors="pt")
        else:  # an older one, which takes a list of frames
            inputs = self._processor([list(window) for window in units], return_tensors="pt")
        main = next(name for name in inputs if name.startswith("pixel_values"))
        takes = main if self._verb else str(self._run.network.main_input_name)
        return self._run_on({takes: inputs[main]})

    def _apply(self, *inputs: Any, **named: Any) -> Any:
        tower: Any = getattr(self._run.network, "video_model", self._run.network)
        if hasattr(tower, "video_head"):  # of PE, whose verb calls a method that is not there
            return tower.video_head(tower.video_encoder(*inputs, **named).pooler_output)
        return super()._apply(*inputs, **named)


def _count_frames(config: Any) -> int:
    """Frames of a clip that a network takes; 0 for one that takes pictures."""
    for part in (config, *(getattr(config, n, None) for n in ("vision_config", "video_config"))):
        for name in CLIP_FRAMES:
            if isinstance(found := getattr(part, name, None), int):
                return found
    return 16 if "video" in config.model_type else 0


class TransformersSound(TransformersModel):
    """Sounds by transformers, as `--backbone hf:NAME`: one vector per second.

    A window is heard whole, and every second of it has its vector; a last one that is shorter is
    filled with silence, so that none depends on the others of its batch.

    Args:
        weights: As of the base.
        run: Likewise.
        model: Likewise.
        window_seconds: Length of a window, s.
    """

    BATCH_SIZE = 8
    VERBS = ("get_audio_features", "get_audio_embeds")
    PROCESSORS = ("AutoFeatureExtractor",)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "window_seconds": Option(
            type=int, default=1, help="seconds that are heard together, and share a vector"
        )
    }
    wants: InputSpec = WaveformInput(sample_rate=16000, window_s=1)
    gives: Gives = replace(TransformersPictures.gives, modality="audio")

    def _settle(self, config: Any) -> None:
        self._window_s = self._options["window_seconds"]
        self._rate = int(self._processor.sampling_rate)
        self.wants = WaveformInput(sample_rate=self._rate, window_s=self._window_s)

    def _blank(self) -> Sequence[NDArray[np.float32]]:
        return [np.zeros(self._rate * self._window_s, np.float32)]

    def _forward(self, units: Sequence[NDArray[np.float32]]) -> "Tensor":
        """From windows (S,) in [-1, 1] to (B, D)."""
        length = self._rate * self._window_s
        whole = [np.pad(unit, (0, length - len(unit))) for unit in units]
        inputs = self._processor(whole, sampling_rate=self._rate, return_tensors="pt")
        kept = {name: x for name, x in inputs.items() if not name.endswith("mask")}
        return self._run_on(kept)

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The vector of each second's window, (T, D)."""
        values = np.repeat(np.stack(outputs), self._window_s, axis=0)[: media.steps]
        missing = media.steps - len(values)
        values = np.pad(values, ((0, missing), (0, 0)))
        mask = np.arange(media.steps) < media.steps - missing
        return Steps(values, mask, step_centres(media.steps))


class TransformersText(TransformersModel):
    """Sentences by transformers, as `--backbone hf:NAME`: one vector for each.

    Args:
        weights: As of the base.
        run: Likewise.
        model: Likewise.
    """

    BATCH_SIZE = 16
    VERBS = ("get_text_features", "get_text_audio_video_embeds", "get_text_audio_embeds")
    PROCESSORS = ("AutoTokenizer",)
    wants: InputSpec = TextInput()
    gives: Gives = replace(TransformersPictures.gives, modality="text", hop_s=None)

    def _settle(self, config: Any) -> None:
        inner = getattr(config, "text_config", config)
        most = getattr(inner, "max_position_embeddings", MAX_TOKENS)
        self._length = min(MAX_TOKENS, self._processor.model_max_length, most)

    def _describe(self) -> dict[str, Any]:
        described = super()._describe()
        return {**described, "processor": type(self._processor).__name__, "tokens": self._length}

    def _blank(self) -> Sequence[str]:
        return ["a"]

    def _forward(self, units: Sequence[str]) -> "Tensor":
        """From sentences to (B, D); the mean is that of tokens that are no padding."""
        inputs = self._processor(
            *(list(units),),
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        if self._verb:
            return self._run_on(inputs)
        there = {name: x.to(self._run.device) for name, x in inputs.items()}
        tokens = self._run(**there).last_hidden_state
        real = there["attention_mask"][..., None]
        mean: Tensor = (tokens * real).sum(1) / real.sum(1)
        return mean

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The sentence's vector, (1, D)."""
        return Steps(np.stack(outputs), np.ones(1, np.bool_), np.full(1, np.nan))


TRANSFORMERS: Mapping[str, type[TransformersModel]] = {
    kind.gives.modality: kind
    for kind in (TransformersPictures, TransformersSound, TransformersText)
}
"""By modality."""


def split_modality(name: str) -> tuple[str, str]:
    """Name on the Hub and modality, of `NAME` (video), `NAME@audio` or `NAME@text`."""
    for modality in TRANSFORMERS:
        if name.endswith(f"@{modality}"):
            return name.removesuffix(f"@{modality}"), modality
    return name, "video"
