"""What every loss shares: its interface, its random draws, and the sum of all of a run."""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from micu.base.errors import ConfigError
from micu.base.registry import Registry
from micu.config.sections import LossWeights, TrainConfig
from micu.data.dataset import Batch
from micu.model.micu import MICU, MICUOutput

SHOWN_CLIPS = 256


def derive_seed(seed: int, step: int, purpose: str) -> int:
    """One seed per (run, step, purpose), so that no stream continues or repeats another.

    Args:
        seed: The run's seed.
        step: Optimisation step, from 0.
        purpose: What the randomness is for, for example `"losses"`.

    Returns:
        A seed in [0, 2**32), all that the generator on the CPU makes use of.
    """
    name = f"{seed}/{step}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "little")


@dataclass(frozen=True, slots=True)
class Draws:
    """All randomness of one step's losses, made before the forward pass.

    Attributes:
        keep: True = kept; (B, T) if `mask_axis` is `"time"`, (B, D) if it is `"feature"`; with
            `mask_share` `"independent"` (M, B, T) or (M, B, D).
        block_modality: Index into `config.modalities` of each jigsaw block, int64; (O,) if
            `block_draw` is `"batch"`, (B * T, O) if it is `"row"`. Without a jigsaw O is 0.
        labels: Permutation that each row is put in, (B * T,) int64, if `jigsaw.labels` is
            `"sampled"` and there is a jigsaw.
        seed: The run's seed.
        step: Optimisation step, from 0.
    """

    keep: Tensor
    block_modality: Tensor
    labels: Tensor | None = None
    seed: int = 0
    step: int = 0

    def generator(self, purpose: str) -> torch.Generator:
        """A source on the CPU for further draws, of its own per run, step and purpose."""
        seed = derive_seed(self.seed, self.step, purpose)
        return torch.Generator("cpu").manual_seed(seed)

    def part(self, rows: slice, steps: int) -> "Draws":
        """The draws of some of the batch's clips, so that they draw what they do in the whole.

        Args:
            rows: Which clips.
            steps: T.
        """
        keep, blocks = self.keep[..., rows, :], self.block_modality
        if blocks.ndim == 2:
            clips = blocks.view(len(blocks) // steps, steps, blocks.shape[1])
            blocks = clips[rows].flatten(0, 1)
        labels = None if self.labels is None else self.labels.view(-1, steps)[rows].flatten()
        return replace(self, keep=keep, block_modality=blocks, labels=labels)


def draw(
    config: TrainConfig,
    batch_size: int,
    steps: int,
    *,
    seed: int,
    step: int,
    device: torch.device | str,
) -> Draws:
    """Draw one step's randomness, a pure function of its arguments on every device.

    Args:
        config: The run.
        batch_size: B.
        steps: T.
        seed: The run's seed.
        step: Optimisation step, from 0.
        device: Where the result goes; the numbers are drawn on the CPU.

    Returns:
        The step's draws.

    Reference: sections 3.2 and 3.3. The same mask serves every modality, unless `mask_share` says
    otherwise; r > `mask_ratio` keeps.
    """
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, step, "losses"))
    by_time = config.contrastive.mask_axis == "time"
    width = steps if by_time else config.encoder.embed_dim
    masks = [len(config.modalities)] if config.contrastive.mask_share == "independent" else []
    noise = torch.rand((*masks, batch_size, width), generator=generator, dtype=torch.float32)
    has_jigsaw = "jigsaw" in config.terms()
    blocks = config.jigsaw.splits if has_jigsaw else 0
    shape = (blocks,) if config.jigsaw.block_draw == "batch" else (batch_size * steps, blocks)
    block_modality = torch.randint(len(config.modalities), shape, generator=generator)
    labels = None
    if has_jigsaw and config.jigsaw.labels == "sampled":
        source = torch.Generator("cpu").manual_seed(derive_seed(seed, step, "labels"))
        count = config.jigsaw.permutations
        labels = torch.randint(count, (batch_size * steps,), generator=source).to(device)
    keep = noise > config.contrastive.mask_ratio
    return Draws(keep.to(device), block_modality.to(device), labels, seed, step)


class Loss(nn.Module):
    """One term of equation 8, or of a baseline's loss, built from the run's configuration.

    To add one: write a subclass in its own file, register it in `LOSSES`, import the file in
    `micu/losses/__init__.py`, and give it a weight of the same name in `LossWeights`; or do so in
    a package of your own (docs/plugins.md), with a weight in `weights.plugins`. To train it
    in several processes or micro-batches, say what it is a mean over, or make it a `ClipsLoss`;
    one with hooks within a step is refused there.

    `compute` is all that most losses have. What else a method does in a step is in the hooks, which
    `build_state` and `train_step` call in this order: `start_`, then in each step
    `fit_estimators_`, `compute`, `after_step_`. State that they keep is in parameters, buffers or
    `get_extra_state`, and so in the checkpoint. Parameters that do not require a gradient are not
    the optimiser's.
    """

    mean_over: ClassVar[Literal["steps", "clips"] | None] = None
    """What the value is a mean over: real steps, or clips that have one. The value of a batch is
    then that of its parts, weighed by how many of these they have. None for neither."""

    def __init__(self, config: TrainConfig) -> None:  # noqa: D107
        super().__init__()
        self.config = config

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """The term's value before weighting, ()."""
        raise NotImplementedError

    def start_(self, model: MICU, steps: int) -> None:
        """Build what depends on the model, before the optimiser is made.

        Args:
            model: Before its first step.
            steps: Steps that the run is to have; 0 if that is not known.
        """

    def fit_estimators_(self, output: MICUOutput, batch: Batch, draws: Draws) -> None:
        """Train estimators of the loss's own on a forward pass, before `compute`."""

    def after_step_(self, model: MICU, output: MICUOutput, batch: Batch, draws: Draws) -> None:
        """Follow the model after the optimiser and the codebook; not after a skipped step."""

    def is_continuous(self, step: int) -> bool:
        """Whether nothing is to be quantised in a step yet."""
        return False

    def has_hooks(self) -> bool:
        """Whether it does more within a step than `compute`."""
        hooks = ("fit_estimators_", "after_step_", "is_continuous")
        return any(getattr(type(self), hook) is not getattr(Loss, hook) for hook in hooks)

    def stack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Modalities stacked in the order of `config.modalities`, whatever the mapping's order.

        Args:
            tensors: One per modality, all of one shape.

        Returns:
            (M, ...).
        """
        return torch.stack([tensors[modality] for modality in self.config.modalities])


class ClipsLoss(Loss):
    """A loss that compares the clips of a batch with each other, by a summary of each.

    The summaries are all that is needed of clips in other processes and micro-batches.
    """

    @property
    def summary_shape(self) -> tuple[int, ...]:
        """Shape of one clip's summary."""
        raise NotImplementedError

    def summarize(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """What is compared of each clip, (B, *summary_shape)."""
        raise NotImplementedError

    def compare(self, summaries: Tensor, has_steps: Tensor) -> Tensor:
        """The term's value before weighting, ().

        Args:
            summaries: Of all clips, (B, *summary_shape).
            has_steps: (B,) bool, True = some step of the clip is real; others do not count.
        """
        raise NotImplementedError

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """The term's value before weighting, ()."""
        return self.compare(self.summarize(output, batch, draws), batch.mask.any(-1))


def needed_steps(steps: int, what: str) -> int:
    """The length of a run, for a schedule over it.

    Raises:
        ConfigError: It is not known.
    """
    if steps < 1:
        raise ConfigError(f"{what}: expected the number of steps of the run, got {steps}")
    return steps


LOSSES: Registry[type[Loss]] = Registry("loss", "micu.losses", ("compute", "is_continuous"))


@dataclass(frozen=True, slots=True)
class LossTerms:
    """One step's loss.

    Attributes:
        total: Weighted sum, ().
        terms: Every term before weighting, (), by name.
    """

    total: Tensor
    terms: dict[str, Tensor]

    def nonfinite(self) -> list[str]:
        """What to say about each term that is nan or infinite, or about their sum."""
        named = {**self.terms, "total": self.total}
        values = torch.stack([value.detach() for value in named.values()]).tolist()
        bad = {k: v for k, v in zip(named, values, strict=True) if not math.isfinite(v)}
        if len(bad) > 1:
            bad.pop("total", None)  # the terms say more than their sum
        return [f"loss {name!r} is {value}" for name, value in bad.items()]


def not_finite(step: int, what: Sequence[str], clip_ids: Sequence[str]) -> str:
    """Message about a step whose loss or gradient is not finite."""
    shown = ", ".join(clip_ids[:SHOWN_CLIPS])
    more = len(clip_ids) - SHOWN_CLIPS
    tail = f" and {more} more" if more > 0 else ""
    return (
        f"step {step}: {', '.join(what)} (batch clips: {shown}{tail}); stopped before the "
        "optimizer step. Look for wild values in these clips' features, lower the rate with "
        "--set optimizer.learning_rate=..., or allow gaps with --set optimizer.skip_nonfinite=N"
    )


def loss_weight(weights: LossWeights, name: str) -> float | None:
    """The configured weight of a term; None if it is left out.

    Raises:
        ConfigError: A loss is registered that has no weight.
    """
    if name in LOSSES.makers or name in weights.of_plugins():
        return weights.of_plugins().get(name)
    if name not in {field.name for field in fields(weights)}:
        raise ConfigError(
            f"weights.{name}: expected a weight for the registered loss {name!r}, got none; "
            "add the field to LossWeights in micu/config/sections.py"
        )
    weight: float | None = getattr(weights, name)
    return weight


class Losses(nn.Module):
    """Every loss that has a weight, with what it owns, for example the jigsaw's classifier.

    They stand in the order of `LossWeights`, whatever the order of the imports. The methods ask
    each of them; `Loss` says what for.

    Args:
        config: The run.

    Raises:
        ConfigError: A registered loss has no weight.
    """

    def __init__(self, config: TrainConfig) -> None:  # noqa: D107
        super().__init__()
        self.config = config
        for name in LOSSES:
            loss_weight(config.weights, name)
        for name in config.terms():
            self.add_module(name, LOSSES[name](config))

    def all(self) -> dict[str, Loss]:
        """The losses by name."""
        return cast(dict[str, Loss], dict(self.named_children()))

    def start_(self, model: MICU, steps: int) -> None:
        """Build what depends on the model; `steps` is the run's length, 0 if not known."""
        for loss in self.all().values():
            loss.start_(model, steps)

    def fit_estimators_(self, output: MICUOutput, batch: Batch, draws: Draws) -> None:
        """Train the losses' own estimators on a forward pass."""
        for loss in self.all().values():
            loss.fit_estimators_(output, batch, draws)

    def after_step_(self, model: MICU, output: MICUOutput, batch: Batch, draws: Draws) -> None:
        """Let the losses' own copies, queues and stores follow the model."""
        for loss in self.all().values():
            loss.after_step_(model, output, batch, draws)

    def is_continuous(self, step: int) -> bool:
        """Whether nothing is to be quantised in a step yet."""
        return any(loss.is_continuous(step) for loss in self.all().values())


def weigh(terms: Mapping[str, Tensor], weights: LossWeights) -> LossTerms:
    """Sum terms by their weights; a term of weight 0 is logged and left out of the sum.

    Args:
        terms: Values before weighting, ().
        weights: Lambda of equation 8.

    Returns:
        Total and terms.
    """
    total = torch.zeros_like(next(iter(terms.values())))
    for name, term in terms.items():
        weight = loss_weight(weights, name)
        if weight:
            # L = sum of lambda_i L_i
            total = total + weight * term
    return LossTerms(total, dict(terms))


def compute_terms(
    output: MICUOutput,
    batch: Batch,
    losses: Losses,
    draws: Draws,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Compute losses before weighting; those of weight 0 without a graph.

    Args:
        output: The forward pass.
        batch: Its batch.
        losses: The run's losses.
        draws: The step's randomness.
        names: Which ones; all if None.

    Returns:
        Value of each, (), by name.
    """
    terms = {}
    for name, loss in losses.all().items():
        if names is not None and name not in names:
            continue
        has_weight = bool(loss_weight(losses.config.weights, name))
        with torch.set_grad_enabled(torch.is_grad_enabled() and has_weight):
            terms[name] = loss.compute(output, batch, draws)
    return terms
