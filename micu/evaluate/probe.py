"""Linear probes on a frozen encoder, and the features that they are trained on.

The encoder runs once per clip, in evaluation mode; the probe trains on the tensors that come out.

Source: sections 4.1 and 4.2 of the MICU paper and its published downstream scripts.
Differs: the scripts leave the encoder's dropout on while the probe trains, and encode anew in every
epoch; `ProbeConfig.encoder_dropout` does so too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from micu.base.errors import ConfigError, StoreError, check_shape
from micu.data.dataset import Batch
from micu.model.micu import MICU, mean_over_steps
from micu.model.onednn import Linear

FEW_STEPS = 100
"""Steps below which a probe at the published rate is hardly more than its first weights."""
RAISED_RATE = 2e-3
"""Learning rate for so few steps."""

PREDICTED_AT_ONCE = 1024
"""Clips whose logits are computed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """How a probe is trained; defaults as the published scripts."""

    epochs: int = 25
    """25 for AVE and UCF↔VGGSound open-set, 16 for UCF; closed-set 30, UCF↔VGGSound 40."""
    epoch_offset: int = 0
    """Epochs of these that are not done: the published scripts count on from the checkpoint, so
    that one of epoch e, from 0, takes away e + 1. The milestones stay where they are."""
    encoder_dropout: bool = False
    """Encode the training clips anew for every epoch, with the encoder's dropout on, as the
    published scripts do."""
    learning_rate: float = 4e-4
    batch_size: int = 80
    grad_clip: float = 0.5
    """L2 norm."""
    milestones: tuple[int, ...] = (10, 20, 30)
    """Epochs after which the learning rate is multiplied by `gamma`."""
    gamma: float = 0.5

    def __post_init__(self) -> None:  # noqa: D105
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"probe.{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"probe.learning_rate: expected a number above 0, got {self.learning_rate}"
            )
        if not 0 <= self.epoch_offset < self.epochs:
            raise ConfigError(
                f"probe.epoch_offset: expected 0 to {self.epochs - 1}, less than the epochs, "
                f"got {self.epoch_offset}"
            )

    def describe(self) -> str:
        """Every setting, as one line; probes trained differently are described differently."""
        return " ".join(
            f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in asdict(self).items()
        )


@dataclass(frozen=True, slots=True)
class ClipFeatures:
    """What an encoder says about some clips, in one modality."""

    modality: str
    clip_ids: tuple[str, ...]
    values: Tensor
    """(n, T, D)"""
    mask: Tensor
    """(n, T) bool, True = real step"""
    codes: Tensor | None = None
    """(n, T) int64, code of each step; None for raw features"""
    errors: Tensor | None = None
    """(n, T), squared distance of each step to its code; None for raw features"""

    def select(self, clip_ids: Sequence[str]) -> "ClipFeatures":
        """The same for some of the clips, in the order asked for.

        Raises:
            KeyError: A clip is not among them.
        """
        place = {clip_id: row for row, clip_id in enumerate(self.clip_ids)}
        rows = torch.tensor([place[clip_id] for clip_id in clip_ids], dtype=torch.int64)
        codes, errors = (None if x is None else x[rows] for x in (self.codes, self.errors))
        return ClipFeatures(
            self.modality, tuple(clip_ids), self.values[rows], self.mask[rows], codes, errors
        )

    def to(self, device: torch.device | str) -> "ClipFeatures":
        """The same elsewhere."""
        codes, errors = (None if x is None else x.to(device) for x in (self.codes, self.errors))
        values, mask = self.values.to(device), self.mask.to(device)
        return replace(self, values=values, mask=mask, codes=codes, errors=errors)

    def mean(self) -> Tensor:
        """Mean over the real steps of each clip, (n, D)."""
        return mean_over_steps(self.values, self.mask)


def join_clips(parts: Sequence[ClipFeatures]) -> ClipFeatures:
    """Features of several sets of clips, of one modality and from one encoder, as one."""
    codes = [part.codes for part in parts if part.codes is not None]
    errors = [part.errors for part in parts if part.errors is not None]
    return ClipFeatures(
        parts[0].modality,
        tuple(clip_id for part in parts for clip_id in part.clip_ids),
        torch.cat([part.values for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat(codes) if codes else None,
        torch.cat(errors) if errors else None,
    )


def encode_clips(model: MICU, batches: Iterable[Batch], modality: str) -> ClipFeatures:
    """Codes of one modality for every clip of `batches`; the model is left as it was.

    Args:
        model: In evaluation mode; it encodes on its own device, and the result stays in memory.
        batches: In any order.
        modality: Which features of the batches to encode.

    Returns:
        The quantized vectors, on the CPU and in the model's dtype.
    """
    if model.training:
        raise ValueError("encode_clips: the model is in training mode; call model.eval() first")
    return _encode(model, batches, modality)


def encode_with_dropout(
    model: MICU, batches: Iterable[Batch], modality: str, seed: int
) -> ClipFeatures:
    """As `encode_clips`, but with the encoder's dropout on, drawn from `seed`.

    The model is in evaluation mode again afterwards, and torch's global generator as it was.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.train()
        try:
            return _encode(model, batches, modality)
        finally:
            model.eval()


def _encode(model: MICU, batches: Iterable[Batch], modality: str) -> ClipFeatures:
    weight = next(model.parameters())
    ids: list[str] = []
    values, masks, codes, errors = [], [], [], []
    with torch.inference_mode():
        for batch in batches:
            on_device = batch.to(weight.device, weight.dtype)
            encoded = model.encode({modality: on_device.features[modality]}, on_device.mask)
            ids.extend(batch.clip_ids)
            found = encoded[modality]
            real = on_device.mask[..., None]
            _check_encoded(found.semantic.where(real, 0), modality, batch.clip_ids)
            values.append(found.quantized.cpu())
            codes.append(found.codes.cpu())
            errors.append((found.semantic - found.quantized).square().sum(-1).cpu())
            masks.append(batch.mask.cpu())
    return ClipFeatures(
        modality,
        tuple(ids),
        torch.cat(values).clone(),
        torch.cat(masks),
        torch.cat(codes),
        torch.cat(errors).clone(),
    )


def _check_encoded(semantic: Tensor, modality: str, clip_ids: Sequence[str]) -> None:
    """Refuse what has no nearest code; it would get the first one.

    Raises:
        StoreError: The encoder gives NaN or infinity; the message names the clip.
    """
    finite = semantic.flatten(1).isfinite().all(1).tolist()
    if not all(finite):
        raise StoreError(
            f"{modality} features of clip {clip_ids[finite.index(False)]!r}: expected a finite "
            "encoding, got NaN or infinity: they are too large for the model, or the checkpoint "
            "is damaged; extract that set again, or name another checkpoint"
        )


class Probe(Protocol):
    """What turns the features of clips into logits over the known classes: `pool`, `classify`."""

    classify: Linear
    """(C, D): from what `pool` gives to logits."""

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        """One vector per clip, (B, D), from (B, T, D) and (B, T)."""
        ...

    def logits(self, values: Tensor, mask: Tensor) -> Tensor:
        """Logits of each clip, (B, C), from (B, T, D) and (B, T)."""
        ...


class ClassificationProbe(nn.Module):
    """Linear, maximum over the real steps, linear; nothing in between is nonlinear."""

    def __init__(self, embed_dim: int, classes: int) -> None:  # noqa: D107
        super().__init__()
        self.project = Linear(embed_dim, embed_dim)
        self.classify = Linear(embed_dim, classes)

    def pool(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project every step and take the maximum over time.

        Args:
            values: (B, T, D).
            mask: (B, T) bool, True = real step; None if all are. Each clip has a real step.

        Returns:
            (B, D).
        """
        check_shape(values.shape, "B T D", "probe input", D=self.project.in_features)
        projected = self.project(values)
        if mask is not None:
            projected = projected.masked_fill(~mask[..., None], -torch.inf)
        result: Tensor = projected.amax(1)
        return result

    def logits(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of each clip, (B, C); arguments as `pool`."""
        result: Tensor = self.classify(self.pool(values, mask))
        return result


class LocalizationProbe(nn.Module):
    """Two linear layers per step, with nothing nonlinear in between.

    `alpha` weighs the classes in `localization_losses`, and trains along; its gradient is not
    clipped.
    """

    def __init__(self, embed_dim: int, classes: int) -> None:  # noqa: D107
        super().__init__()
        self.project = Linear(embed_dim, embed_dim)
        self.classify = Linear(embed_dim, classes)
        self.alpha = nn.Parameter(torch.full((classes,), 0.1))

    def logits(self, values: Tensor) -> Tensor:
        """Logits of each step, (B, T, C), from (B, T, D)."""
        check_shape(values.shape, "B T D", "probe input", D=self.project.in_features)
        result: Tensor = self.classify(self.project(values))
        return result


def localization_losses(logits: Tensor, labels: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, and cross-entropy with learned class weights exp(-alpha).

    Nothing keeps `alpha` from growing, which lowers the second term: so does the published code.

    Args:
        logits: (..., C).
        labels: (..., C), 0 or 1; a step may have several classes.
        alpha: (C,).

    Returns:
        Two scalars, to be added.
    """
    target = labels.to(logits.dtype)
    binary = functional.binary_cross_entropy_with_logits(logits, target)
    weighted = target * logits.log_softmax(-1) * torch.exp(-alpha)
    return binary, -weighted.sum(-1).mean()


P = TypeVar("P", bound=nn.Module)
Renew = Callable[[int], Tensor]
"""Values of the training clips anew for an epoch, counted from 0."""


def fit_probe(
    features: ClipFeatures,
    labels: Tensor,
    classes: int,
    config: ProbeConfig,
    seed: int,
    renew: Renew | None = None,
) -> Iterator[ClassificationProbe]:
    """Train a classification probe, by `train_epochs`.

    Args:
        features: Training clips.
        labels: Class of each, (n,) int64 in [0, C).
        classes: C.
        config: Optimisation.
        seed: For first weights and order.
        renew: As of `train_epochs`.
    """
    check_shape(labels.shape, "n", "probe labels", n=len(features.clip_ids))
    target = labels.to(features.values.device)

    def loss_of(probe: ClassificationProbe, values: Tensor, rows: Tensor) -> Tensor:
        return functional.cross_entropy(probe.logits(values, features.mask[rows]), target[rows])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = ClassificationProbe(features.values.shape[-1], classes)
    return train_epochs(probe, features, loss_of, config, seed, renew)


def train_epochs(
    probe: P,
    features: ClipFeatures,
    loss_of: Callable[[P, Tensor, Tensor], Tensor],
    config: ProbeConfig,
    seed: int,
    renew: Renew | None,
) -> Iterator[P]:
    """Train a probe where the features are, and yield it after every epoch.

    The yielded module is one and the same, in training: use it before asking for the next epoch.
    The order of the clips is a pure function of `seed`.

    Args:
        probe: With its first weights; the gradient of its `alpha`, if it has one, is not clipped.
        features: Training clips.
        loss_of: From the probe, the values of a batch, (B, T, D), and its rows among the clips.
        config: Optimisation.
        seed: Of the order.
        renew: None where the values stay.
    """
    values = features.values
    probe.to(values.device, values.dtype)
    clipped = [weight for name, weight in probe.named_parameters() if name != "alpha"]
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(probe.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, list(config.milestones), config.gamma
    )
    for epoch in range(config.epochs - config.epoch_offset):
        if renew is not None:
            values = renew(epoch).to(values)
        shuffled = torch.randperm(len(values), generator=order)
        for rows in torch.split(shuffled, config.batch_size):
            loss = loss_of(probe, values[rows], rows)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            clip_grad_norm_(clipped, config.grad_clip)
            optimizer.step()
        schedule.step()
        yield probe


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a probe says about some clips; both in the dtype of the features."""

    logits: NDArray[np.floating]
    """(n, C)"""
    pooled: NDArray[np.floating]
    """(n, D), what the last linear layer reads."""


def predict(probe: Probe, features: ClipFeatures) -> Predicted:
    """Logits of every clip, and what they are made of."""
    pooled, logits = [], []
    with torch.inference_mode():
        for values, mask in zip(
            *(torch.split(x, PREDICTED_AT_ONCE) for x in (features.values, features.mask)),
            strict=True,
        ):
            pooled.append(probe.pool(values, mask))
            logits.append(probe.classify(pooled[-1]))
    found = (torch.cat(parts).cpu().numpy() for parts in (logits, pooled))
    predicted = Predicted(*found)
    check_finite(predicted.logits)
    return predicted


def check_finite(logits: NDArray[np.floating]) -> None:
    """Refuse what no class, score or metric can be made of.

    Raises:
        ConfigError: A logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise ConfigError(
            "the probe: expected finite logits, got NaN or infinity: its training diverged, or the "
            "features are too large; type a smaller --probe-learning-rate"
        )


RIDGE = (1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the L2 penalty that `fit_linear` tries."""


class LinearClassifier(nn.Module):
    """Multinomial logistic regression on a clip's mean and maximum over its real steps.

    For raw features, whose scale is anything: they are standardised by the training clips.
    """

    def __init__(self, features: ClipFeatures, classes: int) -> None:  # noqa: D107
        super().__init__()
        pooled = _mean_and_max(features.values, features.mask)
        self.shift, self.scale = pooled.mean(0), pooled.std(0, correction=0).clamp_min(1e-6)
        self.classify = Linear(pooled.shape[-1], classes).to(pooled.device, pooled.dtype)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        """Standardised mean and maximum of each clip, (B, 2 D), from (B, T, D) and (B, T)."""
        return (_mean_and_max(values, mask) - self.shift) / self.scale

    def logits(self, values: Tensor, mask: Tensor) -> Tensor:
        """Logits of each clip, (B, C), from (B, T, D) and (B, T)."""
        result: Tensor = self.classify(self.pool(values, mask))
        return result


def fit_linear(features: ClipFeatures, labels: Tensor, classes: int) -> Iterator[LinearClassifier]:
    """Fit `LinearClassifier` to convergence (L-BFGS), and yield it for every penalty of `RIDGE`."""
    labels = labels.to(features.values.device)
    for penalty in RIDGE:
        yield _fit_ridge(LinearClassifier(features, classes), features, labels, penalty)


def _fit_ridge(
    model: LinearClassifier, features: ClipFeatures, labels: Tensor, penalty: float
) -> LinearClassifier:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model.logits(features.values, features.mask), labels)
        loss = loss + penalty * model.classify.weight.square().sum() / 2
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return model


def _mean_and_max(values: Tensor, mask: Tensor) -> Tensor:
    """Mean and maximum over the real steps, (n, 2 D)."""
    largest = values.masked_fill(~mask[..., None], -torch.inf).amax(1)
    return torch.cat([mean_over_steps(values, mask), largest], -1)
