"""The losses of equation 8 and of the baselines: `LOSSES` by name, and their weighted sum."""

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses import (  # noqa: F401
    autoencoder,
    club,
    code_matching,
    contrastive,
    cpc,
    jigsaw,
    mmjp,
    self_cross,
    transport,
)
from micu.losses.terms import (
    LOSSES,
    ClipsLoss,
    Draws,
    Loss,
    LossTerms,
    derive_seed,
    draw,
    loss_weight,
    weigh,
)
from micu.model.micu import MICU, MICUOutput

__all__ = [
    "LOSSES",
    "ClipsLoss",
    "Draws",
    "Loss",
    "LossTerms",
    "Losses",
    "compute_losses",
    "compute_terms",
    "derive_seed",
    "draw",
    "weigh",
]


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


def compute_losses(output: MICUOutput, batch: Batch, losses: Losses, draws: Draws) -> LossTerms:
    """The step's loss: every term, and their weighted sum.

    Args:
        output: The forward pass.
        batch: Its batch.
        losses: The run's losses.
        draws: The step's randomness.

    Returns:
        Total and terms.

    Reference: equation 8.
    """
    return weigh(compute_terms(output, batch, losses, draws), losses.config.weights)
