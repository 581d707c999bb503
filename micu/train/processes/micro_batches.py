"""A step's losses and gradients over parts of its batch: micro-batches, and other processes.

The loss of the whole batch comes out of its parts if each term is added up rightly:

- A mean over steps or clips is the sum of the parts' means, each weighed by the part's share of the
  steps or clips that all processes have.
- A loss that compares clips with each other (`ClipsLoss`) needs a summary of every clip. All parts
  are embedded first and the summaries of all processes gathered; every process computes that loss
  over the whole batch, and its gradient with respect to the summaries of its own clips. The parts
  are run again, and the gradient flows on from their summaries. The sum over the parts is the
  gradient of the whole batch, negatives included: gathering with gradient, written out. Nothing has
  to be exchanged on the way back, since each process has the whole of that loss: (M * B)^2 products
  of width D, for B = 80 a hundred thousandth of a step.

A process with a single part does not run it twice: its graph waits while summaries are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from micu.base.errors import ConfigError
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses import ClipsLoss, Draws, Loss, Losses, compute_terms, derive_seed, draw, weigh
from micu.losses.terms import loss_weight
from micu.model.micu import MICU, MICUOutput
from micu.train.processes.world import World
from micu.train.state import CodebookInput, Passes, TrainState, losses_by_pass, update_codebook_


@dataclass(frozen=True, slots=True)
class Share:
    """What a process has of a step's batch, and how much there is in all."""

    rows: slice
    """Its clips among those of the whole batch."""
    clips: int
    """Rows of the whole batch."""
    totals: Mapping[str, int]
    """What losses are means over, in the whole batch: real `steps`, and `clips` that have one."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Clips that pass through the networks together."""

    batch: Batch
    draws: Draws
    seed: int
    """Of dropout: the part drops the same when it is run again."""

    def run(self, model: MICU, reconstruct: bool) -> MICUOutput:
        """The forward pass."""
        torch.manual_seed(self.seed)
        output: MICUOutput = model(self.batch, reconstruct=reconstruct)
        return output


def run_in_parts(state: TrainState, batch: Batch, draws: Draws | None) -> Passes:
    """A step's forward passes, one or two, and the gradients of all its parts, added up.

    The sums are those of one process with the whole batch, up to rounding. They are the same bits
    in every process, so that whatever is decided from them is decided alike.
    """
    config, world = state.config, state.world
    share = measure_share(world, batch.mask)
    if draws is None:
        steps, device = batch.mask.shape[1], batch.mask.device
        draws = draw(config, share.clips, steps, seed=config.seed, step=state.step, device=device)
    terms: dict[str, Tensor] = {}
    by_pass = losses_by_pass(state)
    for number, names in enumerate(by_pass):
        parted = cut_batch(batch, draws, share, world, config, f"forward {state.step}/{number}")
        is_last = number == len(by_pass) - 1
        spread = parted.run(state.model, state.losses, names, is_last, state.scaler)
        terms |= spread.terms
        if not is_last:
            update_codebook_(state, spread.seen, number)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    whole = add_up(world, terms, parameters)
    return Passes(weigh(whole, config.weights), spread.seen, number, share.clips, draws)


def measure_share(world: World, mask: Tensor) -> Share:
    """Count what the processes have of a batch.

    Args:
        world: The processes; each calls this at the same time.
        mask: Of this process's clips, (B, T) bool.
    """
    counts = _counts(mask)
    rows = torch.tensor(len(mask), device=mask.device)
    found = world.gather(torch.stack([rows, *counts.values()])[None])  # (processes, 3)
    first = int(found[: world.rank, 0].sum())
    clips, *totals = found.sum(0).tolist()
    by_name = dict(zip(counts, totals, strict=True))
    return Share(slice(first, first + len(mask)), clips, by_name)


def _counts(mask: Tensor) -> dict[str, Tensor]:
    """How much of it there is, by what losses call what they are means over."""
    return {"steps": mask.sum(), "clips": mask.any(-1).sum()}


def check_spreadable(losses: Losses) -> None:
    """Refuse what cannot be added up over parts of a batch.

    Raises:
        ConfigError: A loss is neither a mean over something nor a `ClipsLoss`, or has hooks within
            a step; or the codebook is not that of `UnifiedQuantizer` over the steps alone.
    """
    unknown = [
        f"weights.{name}"
        for name, loss in losses.all().items()
        if (not isinstance(loss, ClipsLoss) and loss.mean_over is None) or loss.has_hooks()
    ]
    quantizer = losses.config.quantizer
    unknown += ["quantizer.learning=gradient"] if quantizer.learning == "gradient" else []
    unknown += ["quantizer.pool"] if quantizer.pool else []
    unknown += ["encoder.unify=clips"] if losses.config.encoder.unify == "clips" else []
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: cannot be added up over processes or micro-batches; train in "
            "one process, with optimizer.micro_batch=0"
        )


def add_up(
    world: World, terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]
) -> dict[str, Tensor]:
    """Add up what the processes' parts have made, to the same bits in each process.

    Args:
        world: The processes; each calls this at the same time.
        terms: This process's share of each loss, ().
        parameters: Their gradients become those of the whole batch; one that has none in any
            process stays without.

    Returns:
        The losses of the whole batch.
    """
    values = torch.stack([*terms.values()])
    has_gradient = values.new_tensor([p.grad is not None for p in parameters])
    world.sum_([values, has_gradient])
    gradients = []
    for parameter, count in zip(parameters, has_gradient.tolist(), strict=True):
        if count and parameter.grad is None:  # a process without clips
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    world.sum_(gradients)
    return dict(zip(terms, values, strict=True))


@dataclass(frozen=True, slots=True)
class Spread:
    """What the parts of one process made of some losses."""

    terms: dict[str, Tensor]
    """This process's share of each, (): their sum over the processes is the term."""
    seen: CodebookInput


@dataclass(frozen=True, slots=True)
class PartedBatch:
    """A process's clips of one step, cut into parts."""

    parts: tuple[MicroBatch, ...]
    """None is empty; a process without clips has none."""
    mask: Tensor
    """Of all the process's clips, (B, T) bool."""
    share: Share
    world: World

    def run(
        self,
        model: MICU,
        losses: Losses,
        names: Sequence[str],
        reconstruct: bool,
        scaler: torch.amp.GradScaler,
    ) -> Spread:
        """Forward and backward; gradients are added to `Parameter.grad`.

        Args:
            model: In training mode.
            losses: The run's.
            names: Which of them.
            reconstruct: Rebuild the inputs, which some losses need.
            scaler: Scales the loss, and with it the gradients, in fp16.
        """
        chosen = {name: cast(Loss, losses.get_submodule(name)) for name in names}
        among = {name: loss for name, loss in chosen.items() if isinstance(loss, ClipsLoss)}
        zero = _zeros((), losses.config, self.mask)
        terms = dict.fromkeys(names, zero)
        gradients: dict[str, Tensor] = {}
        waiting: list[MICUOutput] = []
        if among:
            summaries = []
            for part in self.parts:
                # With a graph even where it is dropped: attention without one may choose another
                # kernel, and that another dropout.
                output = part.run(model, reconstruct and len(self.parts) == 1)
                found = _summarize(among, output, part)
                summaries.append({name: summary.detach() for name, summary in found.items()})
                waiting = [output] if len(self.parts) == 1 else []
                del output
            whole, gradients = self._compare(among, summaries, losses.config)
            terms |= whole if self.world.is_first else {}
        seen = []
        alone = [name for name in names if name not in among]
        start = 0
        for part in self.parts:
            output = waiting.pop() if waiting else part.run(model, reconstruct)
            shares = self._shares(part, output, losses, alone)
            total = weigh(shares, losses.config.weights).total if shares else zero
            rows = slice(start, start + len(part.batch.mask))
            for name, summary in _summarize(among, output, part).items():
                if name in gradients:
                    total = total + (summary * gradients[name][rows]).sum()
            if total.requires_grad:
                scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            terms |= {name: terms[name] + value.detach() for name, value in shares.items()}
            seen.append(CodebookInput.of(output, part.batch.mask))
            start = rows.stop
        return Spread(terms, self._join(seen, losses.config))

    def _compare(
        self,
        among: Mapping[str, ClipsLoss],
        summaries: Sequence[Mapping[str, Tensor]],
        config: TrainConfig,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses among all clips of the batch, and weighted gradients of the own summaries."""
        terms, gradients = {}, {}
        has_steps = self.world.gather(self.mask.any(-1).to(torch.uint8)).bool()
        for name, loss in among.items():
            none = _zeros((0, *loss.summary_shape), config, self.mask)
            everyone = self.world.gather(torch.cat([none, *(part[name] for part in summaries)]))
            weight = loss_weight(config.weights, name)
            value = loss.compare(everyone.requires_grad_(bool(weight)), has_steps)
            if weight:
                (gradient,) = torch.autograd.grad(weight * value, everyone)
                gradients[name] = gradient[self.share.rows]
            terms[name] = value.detach()
        return terms, gradients

    def _shares(
        self, part: MicroBatch, output: MICUOutput, losses: Losses, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """A part's share of the losses that are means over its steps or clips."""
        counts = _counts(part.batch.mask)
        shares = {}
        for name, value in compute_terms(output, part.batch, losses, part.draws, names).items():
            over = cast(Loss, losses.get_submodule(name)).mean_over or ""
            shares[name] = value * (counts[over].to(value.dtype) / max(1, self.share.totals[over]))
        return shares

    def _join(self, parts: Sequence[CodebookInput], config: TrainConfig) -> CodebookInput:
        """What all parts do to the codebook."""
        no_codes = self.mask.new_zeros((0, self.mask.shape[1]), dtype=torch.int64)
        none = _zeros((*no_codes.shape, config.encoder.embed_dim), config, self.mask)
        semantic = {
            n: torch.cat([none, *(p.semantic[n] for p in parts)]) for n in config.modalities
        }
        codes = {n: torch.cat([no_codes, *(p.codes[n] for p in parts)]) for n in config.modalities}
        return CodebookInput(semantic, codes, self.mask)


def cut_batch(
    batch: Batch, draws: Draws, share: Share, world: World, config: TrainConfig, seed: str
) -> PartedBatch:
    """Cut a process's clips into parts of `optimizer.micro_batch`.

    Args:
        batch: The process's clips.
        draws: Those of the whole batch.
        share: What the clips are of it.
        world: The processes.
        config: The run.
        seed: What dropout is for; with each part's first clip in the whole batch, its seed.
    """
    clips, steps = batch.mask.shape
    own = draws.part(share.rows, steps)
    size = config.optimizer.micro_batch or max(1, clips)
    parts = []
    for start in range(0, clips, size):
        rows = slice(start, start + size)
        number = derive_seed(config.seed, share.rows.start + start, seed)
        parts.append(MicroBatch(batch.part(rows), own.part(rows, steps), number))
    return PartedBatch(tuple(parts), batch.mask, share, world)


def _summarize(
    among: Mapping[str, ClipsLoss], output: MICUOutput, part: MicroBatch
) -> dict[str, Tensor]:
    return {name: loss.summarize(output, part.batch, part.draws) for name, loss in among.items()}


def _zeros(shape: Sequence[int], config: TrainConfig, like: Tensor) -> Tensor:
    """Zeros in the run's dtype, on the device of `like`."""
    return torch.zeros(shape, dtype=getattr(torch, config.optimizer.dtype), device=like.device)
