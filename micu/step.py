"""One optimisation step, and the state that it moves."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from micu.config import TrainConfig
from micu.data import Batch
from micu.errors import TrainError
from micu.losses import Draws, Loss, Losses, LossTerms, compute_terms, derive_seed, draw, weigh
from micu.losses.terms import not_finite
from micu.model.micu import MICU, MICUOutput

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
        nonfinite: Steps in a row, up to this one, that were skipped.
    """

    model: MICU
    losses: Losses
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    step: int = 0
    nonfinite: int = 0


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
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class _Passes:
    """The step's loss and the forward passes it came from, in order."""

    loss: LossTerms
    outputs: tuple[MICUOutput, ...]


def build_state(
    config: TrainConfig,
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device | str,
    steps: int = 0,
) -> TrainState:
    """Everything a run starts with, a pure function of the configuration.

    Args:
        config: The run.
        shapes: Step shape of each modality's features.
        device: Where to train.
        steps: Steps that the run is to have; the schedules of some losses need it.

    Returns:
        The state before step 0; weights are drawn from `config.seed`.

    Raises:
        ConfigError: The configuration does not fit the shapes, or needs `steps`.
    """
    torch.manual_seed(config.seed)
    dtype = getattr(torch, config.optimizer.dtype)
    model = MICU(config, shapes).to(device, dtype)
    losses = Losses(config)
    losses.start_(model, steps)
    losses.to(device, dtype)
    return TrainState(model, losses, build_optimizer(model, losses, config), config)


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

    All randomness, dropout included, is a pure function of the run's seed and the step: torch's
    global generator is seeded here.

    Args:
        state: Moved in place.
        batch: On the model's device, in its dtype.
        draws: The losses' randomness; drawn from seed and step if None.

    Returns:
        What happened.

    Raises:
        TrainError: More than `skip_nonfinite` steps in a row have a loss or gradient that is not
            finite. Weights, codebook and step are as they were before this step.
    """
    config, step = state.config, state.step
    torch.manual_seed(derive_seed(config.seed, step, "forward"))
    if draws is None:
        size, length = batch.mask.shape
        draws = draw(config, size, length, seed=config.seed, step=step, device=batch.mask.device)
    state.model.train()
    state.losses.train()
    quantizer = state.model.quantizer
    codebook = {name: buffer.clone() for name, buffer in quantizer.state_dict().items()}
    estimators = _estimators(state)
    state.optimizer.zero_grad(set_to_none=True)

    forward = _two_passes if config.optimizer.double_forward else _one_pass
    passes = forward(state, batch, draws)
    norms: dict[str, Tensor] = {}
    try:
        passes.loss.check_finite(step, batch.clip_ids)
        passes.loss.total.backward()  # type: ignore[no-untyped-call]
        norms = _gradient_norms(state)
        _check_gradients(norms, step, batch)
        _clip_(state, norms)
        _set_learning_rate_(state)
        state.optimizer.step()
        _update_codebook_(state, passes.outputs[-1], batch, len(passes.outputs) - 1)
        state.losses.after_step_(state.model, passes.outputs[-1], batch, draws)
        state.nonfinite = 0
    except TrainError:
        quantizer.load_state_dict(codebook)
        for name, entries in estimators.items():
            state.losses.get_submodule(name).load_state_dict(entries)
        state.optimizer.zero_grad(set_to_none=True)
        if state.nonfinite >= config.optimizer.skip_nonfinite:
            raise
        state.nonfinite += 1
    state.step += 1
    return _report(state, passes, norms, batch.mask)


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
    return _Passes(weigh(terms, state.config.weights), (output,))


def _two_passes(state: TrainState, batch: Batch, draws: Draws) -> _Passes:
    """The published script's step: codes of the second pass see the first one's codebook update.

    Contrastive and jigsaw losses come from the first pass, the others from the second, which has a
    dropout of its own.
    """
    first = state.model(batch, reconstruct=False)
    names = [name for name, _ in state.losses.named_children()]
    terms = compute_terms(first, batch, state.losses, draws, FIRST_PASS)
    _update_codebook_(state, first, batch, 0)
    second = state.model(batch)
    rest = [name for name in names if name not in FIRST_PASS]
    terms |= compute_terms(second, batch, state.losses, draws, rest)
    return _Passes(weigh(terms, state.config.weights), (first, second))


def _update_codebook_(state: TrainState, output: MICUOutput, batch: Batch, number: int) -> None:
    """Move the codebook towards the features of the step's pass `number`, from 0.

    Its codes are those of the pass: nothing has moved the codebook in between. Before the end of a
    warm start nothing is quantised, and the codebook waits.
    """
    if state.losses.is_continuous(state.step):
        return
    seed = derive_seed(state.config.seed, state.step, f"codebook {number}")
    generator = torch.Generator("cpu").manual_seed(seed)
    mask, codes = output.update_mask(batch.mask), output.codes()
    state.model.quantizer.update_(output.semantic(), mask, generator=generator, codes=codes)


def _gradient_norms(state: TrainState) -> dict[str, Tensor]:
    """L2 norm of each group's gradient, ()."""
    norms = {}
    for group in state.optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        none = group["params"][0].new_zeros(())  # a loss of weight 0 leaves its classifier without
        norms[group["name"]] = get_total_norm(gradients) if gradients else none
    return norms


def _check_gradients(norms: dict[str, Tensor], step: int, batch: Batch) -> None:
    """Refuse gradients that are not finite."""
    values = torch.stack(list(norms.values()))
    if bool(values.isfinite().all()):
        return
    bad = [
        f"gradient of {name!r} is {value}"
        for name, value in zip(norms, values.tolist(), strict=True)
        if not math.isfinite(value)
    ]
    raise TrainError(not_finite(step, bad, batch.clip_ids))


def _clip_(state: TrainState, norms: dict[str, Tensor]) -> None:
    """Scale each group's gradient to at most the configured norm."""
    settings = state.config.optimizer
    for group in state.optimizer.param_groups:
        if group["name"] in ("loss_jigsaw", "loss_mmjp") and not settings.clip_jigsaw:
            continue
        clip_grads_with_norm_(group["params"], settings.grad_clip, norms[group["name"]])


def _set_learning_rate_(state: TrainState) -> None:
    """Give every group the rate of this step."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.config, state.step)


def _report(
    state: TrainState, passes: _Passes, norms: dict[str, Tensor], mask: Tensor
) -> StepReport:
    """Numbers of the step just taken, read from the device at once."""
    output = passes.outputs[-1]
    used = _used_codes(output, mask, state.config.quantizer.codebook_size)
    total = passes.loss.total
    parts = {
        "loss": {"total": total},
        "terms": passes.loss.terms,
        "grad_norms": norms,
        "perplexity": {name: entry.perplexity for name, entry in output.quantized.items()},
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
        skipped=state.nonfinite > 0,
    )


def _used_codes(output: MICUOutput, mask: Tensor, codebook_size: int) -> Tensor:
    """Which codes each modality uses at real steps, (M, K) bool."""
    codes = torch.stack([entry.codes.flatten() for entry in output.quantized.values()])
    real = codes.where(mask.flatten(), codebook_size)  # (M, B * T); one more code for masked steps
    used = torch.zeros(len(codes), codebook_size + 1, dtype=torch.bool, device=codes.device)
    return used.scatter_(1, real, True)[:, :-1]
