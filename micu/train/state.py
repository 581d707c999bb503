"""The state that training moves, and what one step's forward passes leave behind."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses import Draws, Losses, LossTerms, derive_seed
from micu.model.micu import MICU, MICUOutput
from micu.train.processes.world import ALONE, World

FIRST_PASS = ("fine", "coarse", "jigsaw", "mmjp")
"""Losses that the published script takes from the first of its two forward passes; MMJP, which it
does not have, goes with the jigsaw that it stands for."""


@dataclass(slots=True)
class TrainState:
    """What training moves.

    Attributes:
        model: On its device, in the configured dtype.
        losses: Their parameters and buffers, likewise.
        optimizer: Adam over both; one parameter group per part that is clipped on its own.
        config: The run.
        step: Steps taken, skipped ones included.
        nonfinite: Steps in a row, up to this one, that were skipped; not those that overflowed.
        world: The processes that train together; what they move stays the same in all of them.
        scaler: Scales the loss in fp16; else it does nothing.
    """

    model: MICU
    losses: Losses
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    step: int = 0
    nonfinite: int = 0
    world: World = ALONE
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False)
    )

    def is_in_parts(self, batch: Batch) -> bool:
        """Whether a step goes over parts of the batch: micro-batches, or those of processes."""
        return self.world.size > 1 or 0 < self.config.optimizer.micro_batch < len(batch.mask)


@dataclass(frozen=True, slots=True)
class CodebookInput:
    """What a forward pass does to the codebook, by modality and without gradient."""

    semantic: dict[str, Tensor]
    """(B, T, D)"""
    codes: dict[str, Tensor]
    """(B, T) int64"""
    mask: Tensor
    """(B, T) bool, True = real step"""

    @classmethod
    def of(cls, output: MICUOutput, mask: Tensor) -> "CodebookInput":
        """That of one forward pass over a batch of this mask; pooled means are one more step."""
        return cls(output.update_semantic(), output.update_codes(), output.update_mask(mask))


@dataclass(frozen=True, slots=True)
class Passes:
    """What the forward passes of one step leave behind; their gradients are in the parameters."""

    loss: LossTerms
    """Of the whole batch."""
    seen: CodebookInput
    """Of the last pass, over this process's clips."""
    number: int
    """Of the last pass, from 0."""
    clips: int
    """Of the whole batch."""
    draws: Draws
    """Of the whole batch."""
    output: MICUOutput | None = None
    """Of the last pass; None where it went over parts of the batch."""


def losses_by_pass(state: TrainState) -> list[Sequence[str]]:
    """Names of the losses, by the forward pass of the step that they come from."""
    names = list(state.losses.all())
    if not state.config.optimizer.double_forward:
        return [names]
    return [
        [name for name in names if name in FIRST_PASS],
        [name for name in names if name not in FIRST_PASS],
    ]


def update_codebook_(state: TrainState, seen: CodebookInput, number: int) -> None:
    """Move the codebook towards the features of the step's pass `number`, from 0.

    Its codes are those of the pass: nothing has moved the codebook in between. Before the end of a
    warm start nothing is quantised, and the codebook waits.
    """
    if state.losses.is_continuous(state.step):
        return
    seed = derive_seed(state.config.seed, state.step, f"codebook {number}")
    generator = torch.Generator("cpu").manual_seed(seed)
    found = state.model.quantizer.assign(seen.semantic, seen.mask, seen.codes)
    state.world.sum_([found.counts, found.sums])
    state.model.quantizer.move_(found, generator=generator)
