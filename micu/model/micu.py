"""MICU: encoders, the shared codebook and reconstruction, wired as in the paper's figure 2."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from micu.base.errors import ConfigError, check_shape
from micu.base.registry import suggest
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.model.clips import WORDS, ClipLevel, Clips, kind_of
from micu.model.networks import (
    FRONTS,
    Reconstructor,
    SemanticEncoder,
    SpecificEncoder,
    WordReader,
    check_step_shape,
)
from micu.model.precision import autocast
from micu.model.quantizer import Quantized, build_quantizer


@dataclass(frozen=True, slots=True)
class MICUOutput:
    """What the losses are made of, by modality."""

    quantized: dict[str, Quantized]
    reconstruction: dict[str, Tensor]
    """(B, T, *step shape); for text (B, T, 2 * text_hidden_dim), unless its target is the input."""
    target: dict[str, Tensor]
    """What `reconstruction` is to equal: the features, and for text the LSTM's output or, with
    `text_target` `"input"`, the features too."""
    specific: dict[str, Tensor] = field(default_factory=dict)
    """What `SpecificEncoder.encode` returned; empty where nothing was rebuilt."""
    pooled: dict[str, Quantized] = field(default_factory=dict)
    """With `quantizer.pool`, the means of the clips' steps, quantised: T = 1."""
    codebook: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """(K, D); with gradient if codes are learnt by it."""
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    """With `encoder.unify` `clips`, embeddings of steps, (B, T, D); else those of `quantized`."""
    clips: Clips | None = None
    """With `encoder.unify` `clips`, what `quantized` is of, T = 1, and what is made of it."""

    def step_embeddings(self) -> dict[str, Tensor]:
        """Embeddings of steps, (B, T, D) by modality."""
        return self.embeddings or {name: entry.semantic for name, entry in self.quantized.items()}

    def rebuilt_from(self) -> dict[str, Tensor]:
        """What the features are rebuilt from beside `specific`: codes, or with clips embeddings."""
        return self.embeddings or {name: entry.quantized for name, entry in self.quantized.items()}

    def update_semantic(self) -> dict[str, Tensor]:
        """What the codebook is updated with: (B, T, D) by modality, without gradient.

        With pooled means, these are one more step: (B, T + 1, D).
        """
        return {name: x.detach() for name, x in self._rows("semantic").items()}

    def update_codes(self) -> dict[str, Tensor]:
        """The codes of `update_semantic()`: (B, T) or (B, T + 1) int64 by modality."""
        return self._rows("codes")

    def update_mask(self, mask: Tensor) -> Tensor:
        """The batch's mask for `update_semantic()`: a mean is real where any step is."""
        quantized = self.quantized_mask(mask)
        return torch.cat([mask, mask.any(1, keepdim=True)], 1) if self.pooled else quantized

    def quantized_mask(self, mask: Tensor) -> Tensor:
        """The batch's mask for `quantized`: (B, T), or (B, 1) where clips are quantised."""
        return mask if self.clips is None else mask.any(1, keepdim=True)

    def _rows(self, name: str) -> dict[str, Tensor]:
        steps = {modality: getattr(entry, name) for modality, entry in self.quantized.items()}
        return {
            modality: torch.cat([x, getattr(self.pooled[modality], name)], 1) if self.pooled else x
            for modality, x in steps.items()
        }


class MICU(nn.Module):
    """The model of Huang et al., ICCV 2025, for any two or more modalities.

    Submodules, each by modality: `word_readers` (text alone), `semantic_encoders`,
    `specific_encoders`, `reconstructors` (none if the reconstruction loss is left out); and the
    `quantizer` that all share. With `encoder.unify` `clips` it is FCID's: `clips` stands between
    embeddings and quantizer, and words have neither reader, specific encoder nor reconstructor.

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
        self.clips = ClipLevel(config) if config.encoder.unify == "clips" else None
        for name, shape in self.shapes.items():
            check_step_shape(name, shape)
            plain = FRONTS[name] == "words" and self.clips is not None
            if FRONTS[name] == "words" and not plain:
                hidden_dim = config.encoder.text_hidden_dim
                self.word_readers[name] = WordReader(shape[0], hidden_dim)
                shape = (2 * hidden_dim,)
            gated = FRONTS[name] == "gate"
            self.semantic_encoders[name] = SemanticEncoder(shape, gated, config.encoder)
            if "reconstruction" not in config.terms() or plain:
                continue
            self.specific_encoders[name] = SpecificEncoder(shape, config.reconstruction)
            if config.reconstruction.text_target == "input":
                shape = self.shapes[name]
            self.reconstructors[name] = Reconstructor(
                shape, config.encoder.embed_dim, config.reconstruction
            )
        self.quantizer = build_quantizer(config.encoder.embed_dim, config.quantizer)

    def forward(
        self, batch: Batch, *, reconstruct: bool = True, continuous: bool = False
    ) -> MICUOutput:
        """Encode, quantise and rebuild a batch; writes nothing.

        All but the LSTM and the quantizer run in `optimizer.precision`; what comes out is in the
        model's dtype.

        Args:
            batch: Features of every modality of the model, and their mask.
            reconstruct: Without, `reconstruction` and `target` are empty: rebuilding grids is most
                of the cost. They are empty too if the reconstruction loss is left out.
            continuous: Rebuild from the embeddings instead of their codes, and commit to nothing.
        """
        missing = [name for name in self.modalities if name not in batch.features]
        if missing:
            raise ConfigError(f"batch: no features of {', '.join(missing)}")
        mask = _needed(batch.mask)
        dtype, device = self.quantizer.codebook.dtype, batch.mask.device
        content = self._read({name: batch.features[name] for name in self.modalities}, mask)
        with autocast(self.config, device):
            semantic = embed(self.semantic_encoders, content, mask)
        if self.clips is not None:
            return self._quantize_clips(content, _cast(semantic, dtype), mask, reconstruct)
        # Codes of z(m), and their vectors e(m), which pass their gradient on to z(m).
        quantized = self.quantizer.quantize(_cast(semantic, dtype), mask)
        pooled = self._pool(quantized, mask) if self.config.quantizer.pool else {}
        if continuous:
            quantized, pooled = _unquantized(quantized), _unquantized(pooled)
        codebook = self.quantizer.codebook
        if not (reconstruct and self.reconstructors):
            return MICUOutput(quantized, {}, {}, pooled=pooled, codebook=codebook)
        shared = {name: entry.quantized for name, entry in quantized.items()}
        specific, reconstruction = self._rebuild(content, shared)
        settings = self.config.reconstruction
        targets = batch.features if settings.text_target == "input" else content
        keeps = settings.text_target_grad
        target = {
            name: targets[name].detach() if name in self.word_readers and not keeps else x
            for name, x in content.items()
        }
        return MICUOutput(quantized, reconstruction, target, specific, pooled, codebook)

    def _quantize_clips(
        self,
        content: Mapping[str, Tensor],
        semantic: Mapping[str, Tensor],
        mask: Tensor | None,
        reconstruct: bool,
    ) -> MICUOutput:
        """FCID's forward pass: clips are quantised, steps are rebuilt from their embeddings."""
        assert self.clips is not None
        timed = {name: x for name, x in semantic.items() if kind_of(name) != WORDS}
        means = {name: mean_over_steps(x, mask, keepdim=True) for name, x in semantic.items()}
        device, dtype = self.quantizer.codebook.device, self.quantizer.codebook.dtype
        with autocast(self.config, device):
            clip, general = (_cast(x, dtype) for x in self.clips.share(means))
        real = None if mask is None else mask.any(1, keepdim=True)
        quantized = self.quantizer.quantize(general, real)
        output = MICUOutput(
            quantized,
            {},
            {},
            codebook=self.quantizer.codebook,
            embeddings=timed,
            clips=Clips(clip, general, {}, {}),
        )
        if not (reconstruct and self.clips.reconstructors):
            return output
        specific, reconstruction = self._rebuild({name: content[name] for name in timed}, timed)
        with self._rebuilding():
            codes = {name: entry.quantized for name, entry in quantized.items()}
            own, rebuilt = (_cast(x, dtype) for x in self.clips.rebuild(clip, codes))
        return replace(
            output,
            reconstruction=reconstruction,
            target={name: content[name] for name in timed},
            specific=specific,
            clips=Clips(clip, general, own, rebuilt),
        )

    def _rebuild(
        self, content: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Specific encodings of features, and the features rebuilt from `shared` and them."""
        specific, reconstruction = {}, {}
        with self._rebuilding():
            for name, x in content.items():
                encoder = cast(SpecificEncoder, self.specific_encoders[name])
                decoder = cast(Reconstructor, self.reconstructors[name])
                # r(m) from what is shared, e(m), and from what is the modality's own.
                specific[name] = encoder.encode(x)
                reconstruction[name] = decoder.reconstruct(shared[name], specific[name])
        dtype = self.quantizer.codebook.dtype
        return _cast(specific, dtype), _cast(reconstruction, dtype)

    @contextmanager
    def _rebuilding(self) -> Iterator[None]:
        """No graph where terms of weight 0 are logged only: of convolutions it fills the memory."""
        weights = self.config.weights
        wanted = weights.reconstruction or weights.club or weights.clip_club
        grad = torch.is_grad_enabled() and bool(wanted)
        with torch.set_grad_enabled(grad), autocast(self.config, self.quantizer.codebook.device):
            yield

    def encode(
        self, features: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> dict[str, Quantized]:
        """Semantic embeddings and codes of any of the model's modalities; writes nothing.

        The plain nearest code, or with `quantizer.null_code` that of a codebook whose code 0 is
        zero. With `encoder.unify` `clips` a step is encoded as a clip of its own. Call `eval()`
        first for embeddings without dropout.

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
        semantic = embed(self.semantic_encoders, self._read(features, mask), mask)
        if self.clips is not None:
            semantic = self.clips.share(semantic)[1]
        null_code = self.config.quantizer.null_code
        return self.quantizer.quantize(semantic, mask, null_code=null_code)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the part whose gradient norm is clipped on its own, as published.

        The specific encoders belong to the encoders there. A group without parameters is left out.
        """
        groups: dict[str, list[nn.Module]] = {
            "encoder": [self.semantic_encoders, self.specific_encoders],
            "text_lstm": [self.word_readers],
            "reconstruction": [self.reconstructors],
            "codebook": [self.quantizer],
        }
        if self.clips is not None:
            level = self.clips
            groups["encoder"] += [level.contents, level.generals, level.specific_encoders]
            groups["reconstruction"].append(level.reconstructors)
        found = {
            name: [p for module in modules for p in module.parameters()]
            for name, modules in groups.items()
        }
        return {name: parameters for name, parameters in found.items() if parameters}

    def _read(self, features: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        """Features as the encoders take them: words become contextual words."""
        for name, x in features.items():
            if name not in self.shapes:
                raise ConfigError(
                    f"the model has no modality {name!r}; {suggest(name, self.modalities)}"
                )
            dims = " ".join(["B T", *map(str, self.shapes[name])])
            check_shape(x.shape, dims, f"{name} features", "are they of another backbone?")
        return read_words(self.word_readers, features, mask)

    def _pool(self, steps: Mapping[str, Quantized], mask: Tensor | None) -> dict[str, Quantized]:
        """The means of the clips' real steps, quantised as one step each."""
        means = {
            name: mean_over_steps(entry.semantic, mask, keepdim=True)
            for name, entry in steps.items()
        }
        return self.quantizer.quantize(means, None if mask is None else mask.any(1, keepdim=True))


def read_words(
    readers: nn.ModuleDict, features: Mapping[str, Tensor], mask: Tensor | None
) -> dict[str, Tensor]:
    """Words read by their `WordReader`, other features as they are, by modality."""
    return {
        name: cast(WordReader, readers[name]).read(x, mask) if name in readers else x
        for name, x in features.items()
    }


def embed(
    encoders: nn.ModuleDict, content: Mapping[str, Tensor], mask: Tensor | None
) -> dict[str, Tensor]:
    """Semantic embeddings of what `read_words` returned, (B, T, D) by modality."""
    return {
        name: cast(SemanticEncoder, encoders[name]).encode(x, mask) for name, x in content.items()
    }


def mean_over_steps(x: Tensor, mask: Tensor | None, *, keepdim: bool = False) -> Tensor:
    """Mean over real steps, zero where a clip has none.

    Args:
        x: (..., B, T, D).
        mask: (B, T) bool, True = real step.
        keepdim: Keep the mean as one step, (..., B, 1, D), instead of (..., B, D).
    """
    if mask is None:
        return x.mean(-2, keepdim=keepdim)
    real = mask[..., None]
    return (x * real).sum(-2, keepdim=keepdim) / real.sum(-2, keepdim=keepdim).clamp(min=1)


def _unquantized(quantized: Mapping[str, Quantized]) -> dict[str, Quantized]:
    """The embeddings in place of their codes."""
    return {
        name: replace(
            entry,
            quantized=entry.semantic,
            commitment_loss=torch.zeros_like(entry.commitment_loss),
        )
        for name, entry in quantized.items()
    }


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: x.to(dtype) for name, x in tensors.items()}


def _needed(mask: Tensor | None) -> Tensor | None:
    """None for a mask that hides nothing: attention and the LSTM are faster without one."""
    return None if mask is None or bool(mask.all()) else mask
