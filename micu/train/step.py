"""One optimisation step: the story of training, from a batch to a moved model."""

import copy
import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from micu.base.errors import TrainError
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses import Draws, Loss, Losses, compute_terms, derive_seed, draw, weigh
from micu.losses.terms import not_finite
from micu.model.micu import MICU
from micu.model.precision import LEAST_SCALE, build_scaler, set_tf32_
from micu.model.quantizer import code_counts, code_perplexity
from micu.train.processes.micro_batches import check_spreadable, run_in_parts
from micu.train.processes.world import ALONE, World
from micu.train.state import CodebookInput, Passes, TrainState, losses_by_pass, update_codebook_


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

    Its rate is constant: the published schedule first halves it at epoch 10, of 5.

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
    torch.manual_seed(derive_seed(state.config.seed, state.step, "forward"))  # of dropout
    state.model.train()
    state.losses.train()
    state.optimizer.zero_grad(set_to_none=True)
    before = _remember(state)
    run = run_in_parts if state.is_in_parts(batch) else _run_whole  # processes, micro-batches
    passes = run(state, batch, draws)  # forward, estimators, losses, backward
    norms: dict[str, Tensor] = {}
    overflowed = skipped = False
    try:
        _refuse(passes.loss.nonfinite(), state, batch)  # before any weight moves
        overflowed = unscale_(state.optimizer, state.scaler)
        norms = gradient_norms(state.optimizer)
        _refuse(nonfinite_gradients(norms), state, batch)
        clip_(state, norms)
        state.optimizer.step()
        update_codebook_(state, passes.seen, passes.number)  # by what the last pass saw
        if passes.output is not None:
            state.losses.after_step_(state.model, passes.output, batch, passes.draws)
    except TrainError:
        _put_back_(state, before)
        if state.nonfinite >= state.config.optimizer.skip_nonfinite and not overflowed:
            raise
        skipped = True
    state.nonfinite = state.nonfinite + int(not overflowed) if skipped else 0
    state.step += 1
    return _report(state, passes, norms, batch.mask, skipped)


def _run_whole(state: TrainState, batch: Batch, draws: Draws | None) -> Passes:
    """All losses and their gradients from the batch as a whole.

    With `double_forward` it is the published script's step: contrastive and jigsaw losses come from
    a first pass; a second one, with a dropout of its own, sees the codebook that the first has
    moved, and gives the others.
    """
    config, (clips, length) = state.config, batch.mask.shape
    if draws is None:
        device = batch.mask.device
        draws = draw(config, clips, length, seed=config.seed, step=state.step, device=device)
    terms: dict[str, Tensor] = {}
    by_pass = losses_by_pass(state)
    for number, names in enumerate(by_pass):
        is_last = number == len(by_pass) - 1
        is_continuous = state.losses.is_continuous(state.step)
        output = state.model(batch, reconstruct=is_last, continuous=is_continuous)
        if is_last:
            state.losses.fit_estimators_(output, batch, draws)
        terms |= compute_terms(output, batch, state.losses, draws, names)
        seen = CodebookInput.of(output, batch.mask)
        if not is_last:
            update_codebook_(state, seen, number)
    loss = weigh(terms, config.weights)
    state.scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
    return Passes(loss, seen, number, clips, draws, output)


def _remember(state: TrainState) -> dict[torch.nn.Module, dict[str, Any]]:
    """What a step moves before all its numbers are known to be finite, to undo a skipped one.

    That is the codebook, by a first pass of two, and the losses that train something before
    `compute`.
    """
    moved = [state.model.quantizer] + [
        loss
        for loss in state.losses.all().values()
        if type(loss).fit_estimators_ is not Loss.fit_estimators_
    ]
    return {module: copy.deepcopy(module.state_dict()) for module in moved}


def _put_back_(state: TrainState, before: Mapping[torch.nn.Module, dict[str, Any]]) -> None:
    """Undo what a step has moved, and drop its gradients."""
    for module, entries in before.items():
        module.load_state_dict(entries)
    state.optimizer.zero_grad(set_to_none=True)


def _refuse(bad: list[str], state: TrainState, batch: Batch) -> None:
    """Stop the step if something is not finite, naming the clips of all processes."""
    if bad:
        clip_ids = state.world.gather_texts(batch.clip_ids)
        raise TrainError(not_finite(state.step, bad, clip_ids))


def unscale_(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Divide gradients by the scale of the loss, and adapt it; whether it was too large."""
    before = scaler.get_scale()
    scaler.unscale_(optimizer)
    scaler.update()
    return before > LEAST_SCALE and scaler.get_scale() < before


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """L2 norm of each group's gradient, (), by the group's name."""
    norms = {}
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        none = group["params"][0].new_zeros(())  # a loss of weight 0 leaves its classifier without
        norms[group["name"]] = get_total_norm(gradients) if gradients else none
    return norms


def nonfinite_gradients(norms: dict[str, Tensor]) -> list[str]:
    """What to say about each norm that is not finite."""
    values = torch.stack(list(norms.values())).tolist()
    return [
        f"gradient of {name!r} is {value}"
        for name, value in zip(norms, values, strict=True)
        if not math.isfinite(value)
    ]


def clip_(state: TrainState, norms: dict[str, Tensor]) -> None:
    """Scale each group's gradient to at most the configured norm."""
    settings = state.config.optimizer
    for group in state.optimizer.param_groups:
        if group["name"] in ("loss_jigsaw", "loss_mmjp") and not settings.clip_jigsaw:
            continue
        clip_grads_with_norm_(group["params"], settings.grad_clip, norms[group["name"]])


def _report(
    state: TrainState, passes: Passes, norms: dict[str, Tensor], mask: Tensor, skipped: bool
) -> StepReport:
    """Numbers of the step just taken, of all processes, read from the device at once."""
    total = passes.loss.total
    codes = passes.seen.codes
    size = state.config.quantizer.codebook_size
    # Without pooled means; of clips, where it is these that have codes.
    real = passes.seen.mask[:, : mask.shape[1]]
    of_steps = torch.stack([*codes.values()])[:, :, : mask.shape[1]]
    counts = code_counts(of_steps, real, size, total.dtype)
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
        learning_rate=state.config.optimizer.learning_rate,
        clips=passes.clips,
        skipped=skipped,
    )
