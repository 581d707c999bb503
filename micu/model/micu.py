"""MICU: encoders, the shared codebook and reconstruction, wired as in the paper's figure 2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from micu.config import TrainConfig
from micu.data import Batch
from micu.errors import ConfigError, check_shape
from micu.model.networks import (
    FRONTS,
    Reconstructor,
    SemanticEncoder,
    SpecificEncoder,
    WordReader,
    check_step_shape,
)
from micu.model.quantizer import Quantized, UnifiedQuantizer
from micu.precision import autocast
from micu.registry import suggest


@dataclass(frozen=True, slots=True)
class MICUOutput:
    """What the losses are made of, by modality."""

    quantized: dict[str, Quantized]
    reconstruction: dict[str, Tensor]
    """(B, T, *step shape); for text (B, T, 2 * text_hidden_dim), unless its target is the input."""
    target: dict[str, Tensor]
    """What `reconstruction` is to equal: the features, and for text the LSTM's output or, with
    `text_target` `"input"`, the features too."""

    def semantic(self) -> dict[str, Tensor]:
        """What the codebook is updated with: (B, T, D) by modality, without gradient."""
        return {name: entry.semantic.detach() for name, entry in self.quantized.items()}


class MICU(nn.Module):
    """The model of Huang et al., ICCV 2025, for any two or more modalities.

    Submodules, each by modality: `word_readers` (text alone), `semantic_encoders`,
    `specific_encoders`, `reconstructors` (none if the reconstruction loss is left out); and the
    `quantizer` that all share.

    Args:
        config: The run.
        shapes: Step shape of each modality's features, (C,) or (H, W, C); its keys are
            `config.modalities`.

    Raises:
        ConfigError: The modalities of `shapes` are not those of the configuration.
        ShapeError: A step shape that the modality's networks cannot read.
    """

    def __init__(self, config: TrainConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:  # noqa: D107
        super().__init__()
        if set(shapes) != set(config.modalities):
            raise ConfigError(
                f"shapes: expected {', '.join(config.modalities)}, got {', '.join(shapes)}"
            )
        self.config = config
        self.modalities = config.modalities
        self.shapes = {name: tuple(shapes[name]) for name in self.modalities}
        self.word_readers = nn.ModuleDict()
        self.semantic_encoders = nn.ModuleDict()
        self.specific_encoders = nn.ModuleDict()
        self.reconstructors = nn.ModuleDict()
        for name, shape in self.shapes.items():
            check_step_shape(name, shape)
            if FRONTS[name] == "words":
                hidden_dim = config.encoder.text_hidden_dim
                self.word_readers[name] = WordReader(shape[0], hidden_dim)
                shape = (2 * hidden_dim,)
            gated = FRONTS[name] == "gate"
            self.semantic_encoders[name] = SemanticEncoder(shape, gated, config.encoder)
            if "reconstruction" not in config.terms():
                continue
            self.specific_encoders[name] = SpecificEncoder(shape, config.reconstruction)
            if config.reconstruction.text_target == "input":
                shape = self.shapes[name]
            self.reconstructors[name] = Reconstructor(
                shape, config.encoder.embed_dim, config.reconstruction
            )
        self.quantizer = UnifiedQuantizer(config.encoder.embed_dim, config.quantizer)

    def forward(self, batch: Batch, *, reconstruct: bool = True) -> MICUOutput:
        """Encode, quantise and rebuild a batch; writes nothing.

        All but the LSTM and the quantizer run in `optimizer.precision`.

        Args:
            batch: Features of every modality of the model, and their mask.
            reconstruct: Without, `reconstruction` and `target` are empty: rebuilding grids is most
                of the cost. They are empty too if the reconstruction loss is left out.
        """
        missing = [name for name in self.modalities if name not in batch.features]
        if missing:
            raise ConfigError(f"batch: no features of {', '.join(missing)}")
        mask = _needed(batch.mask)
        dtype, device = self.quantizer.codebook.dtype, batch.mask.device
        content = self._read({name: batch.features[name] for name in self.modalities}, mask)
        with autocast(self.config, device):
            semantic = self._embed(content, mask)
        semantic = {name: z.to(dtype) for name, z in semantic.items()}
        quantized = self.quantizer.quantize(semantic, mask)
        if not (reconstruct and self.reconstructors):
            return MICUOutput(quantized, {}, {})
        # A term of weight 0 is logged only; the graph of its convolutions would fill the memory.
        wanted = torch.is_grad_enabled() and self.config.weights.reconstruction != 0
        with torch.set_grad_enabled(wanted), autocast(self.config, device):
            reconstruction = {
                name: self._rebuild(name, content[name], quantized[name].quantized)
                for name in self.modalities
            }
        settings = self.config.reconstruction
        targets = batch.features if settings.text_target == "input" else content
        keeps = settings.text_target_grad
        target = {
            name: targets[name].detach() if name in self.word_readers and not keeps else x
            for name, x in content.items()
        }
        return MICUOutput(quantized, reconstruction, target)

    def encode(
        self, features: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> dict[str, Quantized]:
        """Semantic embeddings and codes of any of the model's modalities; writes nothing.

        The plain nearest code, or with `quantizer.null_code` that of a codebook whose code 0 is
        zero. Call `eval()` first for embeddings without dropout.

        Args:
            features: By modality, (B, T, *step shape), in the model's dtype and on its device.
            mask: (B, T) bool, True = real step.

        Raises:
            ConfigError: A modality that the model does not have, or none at all.
            ShapeError: Features of another step shape.
        """
        if not features:
            raise ConfigError("encode: expected features of one modality or more, got none")
        mask = _needed(mask)
        semantic = self._embed(self._read(features, mask), mask)
        null_code = self.config.quantizer.null_code
        return self.quantizer.quantize(semantic, mask, null_code=null_code)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the part whose gradient norm is clipped on its own, as published.

        The specific encoders belong to the encoders there. A group without parameters is left out.
        """
        groups = {
            "encoder": [self.semantic_encoders, self.specific_encoders],
            "text_lstm": [self.word_readers],
            "reconstruction": [self.reconstructors],
        }
        found = {
            name: [p for module in modules for p in module.parameters()]
            for name, modules in groups.items()
        }
        return {name: parameters for name, parameters in found.items() if parameters}

    def _read(self, features: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        """Features as the encoders take them: words become contextual words."""
        content: dict[str, Tensor] = {}
        for name, x in features.items():
            if name not in self.shapes:
                raise ConfigError(
                    f"the model has no modality {name!r}; {suggest(name, self.modalities)}"
                )
            dims = " ".join(["B T", *map(str, self.shapes[name])])
            check_shape(x.shape, dims, f"{name} features", "are they of another backbone?")
            if name in self.word_readers:
                x = cast(WordReader, self.word_readers[name]).read(x, mask)
            content[name] = x
        return content

    def _embed(self, content: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        return {
            name: cast(SemanticEncoder, self.semantic_encoders[name]).encode(x, mask)
            for name, x in content.items()
        }

    def _rebuild(self, name: str, content: Tensor, quantized: Tensor) -> Tensor:
        specific = cast(SpecificEncoder, self.specific_encoders[name]).encode(content)
        return cast(Reconstructor, self.reconstructors[name]).reconstruct(quantized, specific)


def _needed(mask: Tensor | None) -> Tensor | None:
    """None for a mask that hides nothing: attention and the LSTM are faster without one."""
    return None if mask is None or bool(mask.all()) else mask
