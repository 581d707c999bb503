"""One optimisation step, and the state that it moves."""

import copy
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from micu.base.distributed import ALONE, World
from micu.base.errors import TrainError
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses import Draws, Loss, Losses, LossTerms, compute_terms, derive_seed, draw, weigh
from micu.losses.terms import not_finite
from micu.model.micu import MICU, MICUOutput
from micu.model.precision import build_scaler, set_tf32_
from micu.model.quantizer import code_counts, code_perplexity
from micu.train.gradients import clip_, gradient_norms, nonfinite_gradients, unscale_
from micu.train.processes.micro_batches import (
    Encoded,
    Share,
    add_up,
    check_spreadable,
    cut_batch,
    measure_share,
)

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


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did.

    Attributes:
        step: Its number, from 0.
        total: Weighted sum of the losses.
        terms: Losses before weighting.
        grad_norms: L2 norm before clipping, by group of parameters.
        perplexity: exp of the entropy of the codes used, by modality, in [1, K].
        active_codes: How many codes this batch's real steps use.
        shared_codes: The share of these that every modality uses, [0, 1].
        learning_rate: Rate of this step.
        clips: Clips of the batch.
        skipped: A loss or gradient was not finite, so nothing moved; numbers above may be nan.
    """

    step: int
    total: float
    terms: dict[str, float]
    grad_norms: dict[str, float]
    perplexity: dict[str, float]
    active_codes: int
    shared_codes: float
    learning_rate: float
    clips: int
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class _Passes:
    """The step's loss, and what its forward passes did to the codebook."""

    loss: LossTerms
    encoded: Encoded
    """Of the last pass."""
    number: int
    """Of the last pass, from 0."""
    output: MICUOutput | None = None
    """Of the last pass; None where there are several, of parts."""


def build_state(
    config: TrainConfig,
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device | str,
    steps: int = 0,
    world: World = ALONE,
) -> TrainState:
    """Everything a run starts with, a pure function of the configuration.

    Args:
        config: The run.
        shapes: Step shape of each modality's features.
        device: Where to train.
        steps: Steps that the run is to have; the schedules of some losses need it.
        world: The processes that train together.

    Returns:
        The state before step 0; weights are drawn from `config.seed`.

    Raises:
        ConfigError: The configuration does not fit the shapes or the device, needs `steps`, or has
            a part that cannot be spread over processes or micro-batches that were asked for.
    """
    set_tf32_(config, device)
    torch.manual_seed(config.seed)
    # Nothing here draws from these two; what code under a run draws is to be the same again.
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # noqa: NPY002
    dtype = getattr(torch, config.optimizer.dtype)
    model = MICU(config, shapes).to(device, dtype)
    losses = Losses(config)
    if world.size > 1 or config.optimizer.micro_batch:
        check_spreadable(losses)
    losses.start_(model, steps)
    losses.to(device, dtype)
    optimizer, scaler = build_optimizer(model, losses, config), build_scaler(config, device)
    return TrainState(model, losses, optimizer, config, world=world, scaler=scaler)


def build_optimizer(model: MICU, losses: Losses, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam with a named group for each part whose gradient is clipped on its own.

    Args:
        model: On its device.
        losses: Likewise; each one that has parameters is a group, `loss_<name>`. What needs no
            gradient, such as estimators with an optimiser of their own, is left out.
        config: The run.

    Returns:
        The optimiser; the name stands beside the parameters in `param_groups`.
    """
    parameters = model.parameter_groups()
    for name, loss in losses.named_children():
        parameters[f"loss_{name}"] = [p for p in loss.parameters() if p.requires_grad]
    groups = [{"name": name, "params": group} for name, group in parameters.items() if group]
    return torch.optim.Adam(groups, lr=config.optimizer.learning_rate, fused=True)


def weights_digest(state: TrainState) -> str:
    """SHA-256 of all that training moves: weights, codebook, and what the losses keep.

    Two equal ones of the same run, before and after, say that no step moved anything.
    """
    digest = hashlib.sha256()
    for part in (state.model, state.losses):
        for name, value in part.state_dict().items():
            if isinstance(value, Tensor):
                flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(name.encode() + flat.numpy().tobytes())
    return digest.hexdigest()


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step.

    Args:
        config: The run.
        step: From 0.

    Returns:
        The configured rate, constant: the published schedule first halves it at epoch 10, of 5.
    """
    return config.optimizer.learning_rate


def train_step(state: TrainState, batch: Batch, draws: Draws | None = None) -> StepReport:
    """One update of the losses' estimators, the model, the losses' parameters and the codebook.

    In that order, and then of what else the losses keep, such as a teacher.

    All randomness is a pure function of the run's seed and the step: torch's global generator is
    seeded here. Only dropout depends on how the batch is cut, too. Every process calls this, with
    its own clips of the batch, and all take the same step.
    In fp16 a step whose scaled gradient overflows is skipped, and the scale halved.

    Args:
        state: Moved in place.
        batch: On the model's device, in its dtype.
        draws: The losses' randomness for all clips of the batch; drawn from seed and step if None.

    Returns:
        What happened.

    Raises:
        TrainError: More than `skip_nonfinite` steps in a row have a loss or gradient that is not
            finite, overflows of fp16 aside. Weights, codebook and step are as they were before this
            step.
        ProcessError: Another process is gone.
    """
    config, step = state.config, state.step
    torch.manual_seed(derive_seed(config.seed, step, "forward"))
    clips, length = batch.mask.shape
    share = None
    if state.world.size > 1 or 0 < config.optimizer.micro_batch < clips:
        share = measure_share(state.world, batch.mask)
        clips = share.clips
    if draws is None:
        draws = draw(config, clips, length, seed=config.seed, step=step, device=batch.mask.device)
    state.model.train()
    state.losses.train()
    quantizer = state.model.quantizer
    codebook = {name: buffer.clone() for name, buffer in quantizer.state_dict().items()}
    estimators = _estimators(state)
    state.optimizer.zero_grad(set_to_none=True)
    if share is not None:
        passes = _passes_in_parts(state, batch, draws, share)
    elif config.optimizer.double_forward:
        passes = _two_passes(state, batch, draws)
    else:
        passes = _one_pass(state, batch, draws)
    norms: dict[str, Tensor] = {}
    overflowed = False
    try:
        _refuse(passes.loss.nonfinite(), state, batch)
        if share is None:
            state.scaler.scale(passes.loss.total).backward()  # type: ignore[no-untyped-call]
        overflowed = unscale_(state.optimizer, state.scaler)
        norms = gradient_norms(state.optimizer)
        _refuse(nonfinite_gradients(norms), state, batch)
        clip_(state.optimizer, norms, config.optimizer)
        _set_learning_rate_(state)
        state.optimizer.step()
        _update_codebook_(state, passes.encoded, passes.number)
        if passes.output is not None:
            state.losses.after_step_(state.model, passes.output, batch, draws)
        state.nonfinite, skipped = 0, False
    except TrainError:
        quantizer.load_state_dict(codebook)
        for name, entries in estimators.items():
            state.losses.get_submodule(name).load_state_dict(entries)
        state.optimizer.zero_grad(set_to_none=True)
        if state.nonfinite >= config.optimizer.skip_nonfinite and not overflowed:
            raise
        state.nonfinite += not overflowed
        skipped = True
    state.step += 1
    return replace(_report(state, passes, norms, batch.mask, clips), skipped=skipped)


def _estimators(state: TrainState) -> dict[str, dict[str, Any]]:
    """A copy of the losses that train something before `compute`, to undo a skipped step."""
    return {
        name: copy.deepcopy(loss.state_dict())
        for name, loss in state.losses.all().items()
        if type(loss).fit_estimators_ is not Loss.fit_estimators_
    }


def _one_pass(state: TrainState, batch: Batch, draws: Draws) -> _Passes:
    """All losses from one forward pass."""
    output = state.model(batch, continuous=state.losses.is_continuous(state.step))
    state.losses.fit_estimators_(output, batch, draws)
    terms = compute_terms(output, batch, state.losses, draws)
    return _Passes(weigh(terms, state.config.weights), Encoded.of(output, batch.mask), 0, output)


def _two_passes(state: TrainState, batch: Batch, draws: Draws) -> _Passes:
    """The published script's step: codes of the second pass see the first one's codebook update.

    Contrastive and jigsaw losses come from the first pass, the others from the second, which has a
    dropout of its own.
    """
    first = state.model(batch, reconstruct=False)
    first_names, rest = _by_pass(state)
    terms = compute_terms(first, batch, state.losses, draws, first_names)
    _update_codebook_(state, Encoded.of(first, batch.mask), 0)
    second = state.model(batch)
    terms |= compute_terms(second, batch, state.losses, draws, rest)
    return _Passes(weigh(terms, state.config.weights), Encoded.of(second, batch.mask), 1, second)


def _by_pass(state: TrainState) -> list[list[str]]:
    """Names of the losses, by the forward pass that they come from."""
    names = [name for name, _ in state.losses.named_children()]
    if not state.config.optimizer.double_forward:
        return [names]
    return [
        [name for name in names if name in FIRST_PASS],
        [name for name in names if name not in FIRST_PASS],
    ]


def _passes_in_parts(state: TrainState, batch: Batch, draws: Draws, share: Share) -> _Passes:
    """The step over micro-batches and processes, one pass or two; gradients of all are added up.

    The sums are those of one process with the whole batch, up to rounding. They are the same bits
    in every process, so that whatever is decided from them is decided alike.
    """
    terms: dict[str, Tensor] = {}
    passes = _by_pass(state)
    for number, names in enumerate(passes):
        seed = f"forward {state.step}/{number}"
        parted = cut_batch(batch, draws, share, state.world, state.config, seed)
        is_last = number == len(passes) - 1
        spread = parted.run(state.model, state.losses, names, is_last, state.scaler)
        terms |= spread.terms
        if not is_last:
            _update_codebook_(state, spread.encoded, number)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    whole = add_up(state.world, terms, parameters)
    return _Passes(weigh(whole, state.config.weights), spread.encoded, number)


def _update_codebook_(state: TrainState, encoded: Encoded, number: int) -> None:
    """Move the codebook towards the features of the step's pass `number`, from 0.

    Its codes are those of the pass: nothing has moved the codebook in between. Before the end of a
    warm start nothing is quantised, and the codebook waits.
    """
    if state.losses.is_continuous(state.step):
        return
    seed = derive_seed(state.config.seed, state.step, f"codebook {number}")
    generator = torch.Generator("cpu").manual_seed(seed)
    state.model.quantizer.update_(
        encoded.semantic,
        encoded.mask,
        generator=generator,
        codes=encoded.codes,
        world=state.world,
    )


def _refuse(bad: list[str], state: TrainState, batch: Batch) -> None:
    """Stop the step if something is not finite, naming the clips of all processes."""
    if bad:
        clip_ids = state.world.gather_texts(batch.clip_ids)
        raise TrainError(not_finite(state.step, bad, clip_ids))


def _set_learning_rate_(state: TrainState) -> None:
    """Give every group the rate of this step."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.config, state.step)


def _report(
    state: TrainState, passes: _Passes, norms: dict[str, Tensor], mask: Tensor, clips: int
) -> StepReport:
    """Numbers of the step just taken, of all processes, read from the device at once."""
    total = passes.loss.total
    codes = passes.encoded.codes
    size = state.config.quantizer.codebook_size
    of_steps = torch.stack([*codes.values()])[:, :, : mask.shape[1]]  # without pooled means
    counts = code_counts(of_steps, mask, size, total.dtype)
    state.world.sum_([counts])
    used = counts > 0
    parts = {
        "loss": {"total": total},
        "terms": passes.loss.terms,
        "grad_norms": norms,
        "perplexity": dict(zip(codes, code_perplexity(counts), strict=True)),
        "codes": {"any": used.any(0).sum(), "all": used.all(0).sum()},
    }
    flat = [value.detach().to(total.dtype) for part in parts.values() for value in part.values()]
    values = torch.stack(flat)
    numbers = iter(values.tolist())
    read = {key: {name: next(numbers) for name in part} for key, part in parts.items()}
    return StepReport(
        step=state.step - 1,
        total=read["loss"]["total"],
        terms=read["terms"],
        grad_norms=read["grad_norms"],
        perplexity=read["perplexity"],
        active_codes=int(read["codes"]["any"]),
        shared_codes=read["codes"]["all"] / max(1.0, read["codes"]["any"]),
        learning_rate=learning_rate(state.config, state.step - 1),
        clips=clips,
    )
