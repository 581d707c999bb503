"""Two processes that train one model, and what one process makes of the same: for the tests."""

import json
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from micu.base.errors import ConfigError, MicuError, TrainError
from micu.cli.train import main
from micu.config.overrides import with_overrides
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.model.quantizer import Assignment, UnifiedQuantizer
from micu.train.processes.micro_batches import PartedBatch, Share, measure_share
from micu.train.processes.place import Place
from micu.train.processes.world import ALONE, World, join
from micu.train.state import TrainState
from micu.train.step import StepReport, build_state, train_step
from tests.feature_sets import SHAPES, SMALL

T = 5
STEPS = 20
NO_DROPOUT = "encoder.dropout=0"
DOUBLE = "optimizer.dtype=float64"


@dataclass(frozen=True)
class Case:
    """A run: its settings beside `SMALL`, and the clips of its batches, over and over."""

    settings: tuple[str, ...]
    sizes: tuple[int, ...] = (6, 6, 3)
    padded: bool = False
    steps: int = 6
    alone: tuple[str, ...] = ("optimizer.micro_batch=0",)
    """Settings of the one process that the two are compared with."""

    @property
    def config(self) -> TrainConfig:
        return with_overrides(TrainConfig(), [*SMALL, *self.settings])


VAT = "modalities=audio,video,text"
CASES = {
    "v,a,t": Case((VAT, NO_DROPOUT, DOUBLE), steps=STEPS),
    "v,a,t in float32": Case((VAT, NO_DROPOUT), steps=STEPS),
    "four modalities": Case(("modalities=audio,video,flow,text", NO_DROPOUT, DOUBLE), steps=STEPS),
    "padding, and fewer clips than processes": Case(
        ("modalities=audio,video", NO_DROPOUT, DOUBLE, "data.padding=mask"), (4, 3, 1), padded=True
    ),
    "dead codes": Case(
        (VAT, NO_DROPOUT, DOUBLE, "quantizer.dead_after=2", "quantizer.active_within=2")
    ),
    "the published step": Case(
        (
            *(VAT, NO_DROPOUT, DOUBLE, "optimizer.double_forward=true", "quantizer.ema_init=zero"),
            *("quantizer.reset=reference", "quantizer.dead_after=2", "quantizer.active_within=2"),
            *("optimizer.clip_jigsaw=false", "reconstruction.text_target_grad=true"),
        )
    ),
    "draws by row and feature": Case(
        (VAT, NO_DROPOUT, DOUBLE, "jigsaw.block_draw=row", "contrastive.mask_axis=feature")
    ),
    "masks of their own, MMJP and TURN's contrast": Case(
        (
            *(VAT, NO_DROPOUT, DOUBLE, "contrastive.mask_share=independent", "mmjp.permutations=6"),
            *("weights.mmjp=1", "weights.one_way=0.5", "weights.coarse=none", "mmjp.hidden_dim=8"),
        )
    ),
    "weights of 0": Case((VAT, NO_DROPOUT, DOUBLE, "weights.coarse=0", "weights.jigsaw=0")),
    "micro-batches": Case((VAT, NO_DROPOUT, DOUBLE, "optimizer.micro_batch=2")),
    "fp16, and a first process without clips": Case(
        (VAT, NO_DROPOUT, "optimizer.precision=fp16"), sizes=(1,), steps=5
    ),
    "dropout, of batches that are cut alike": Case(
        (VAT, DOUBLE, "optimizer.micro_batch=3"), (6,), alone=()
    ),
}


@dataclass(frozen=True)
class Run:
    """What came out of a run."""

    state: dict[str, Tensor]
    reports: list[StepReport]


def make_batch(case: Case, step: int) -> Batch:
    """The whole batch of a step."""
    config, size = case.config, case.sizes[step % len(case.sizes)]
    generator = torch.Generator().manual_seed(step)
    dtype = getattr(torch, config.optimizer.dtype)
    features = {
        name: torch.randn(size, T, *SHAPES[name], generator=generator).to(dtype)
        for name in config.modalities
    }
    lengths = torch.randint(1, T + 1, (size, 1), generator=generator) if case.padded else T
    mask = torch.arange(T).expand(size, T) < lengths
    return Batch(features, mask, tuple(f"clip{step}.{i}" for i in range(size)), ("",) * size)


def run_case(case: Case, world: World = ALONE) -> Run:
    """Take the steps of a case on the world's device, or this process's part in them."""
    config = case.config
    shapes = {name: SHAPES[name] for name in config.modalities}
    state = build_state(config, shapes, world.device, world=world)
    dtype, reports = getattr(torch, config.optimizer.dtype), []
    for step in range(case.steps):
        batch = make_batch(case, step)
        rows = world.rows(len(batch.clip_ids))
        reports.append(train_step(state, batch.part(rows).to(world.device, dtype)))
    found = dict(state.model.state_dict(prefix="model."))
    found |= state.losses.state_dict(prefix="losses.")
    for i, entry in enumerate(state.optimizer.state_dict()["state"].values()):
        found |= {f"optimizer.{i}.{key}": value for key, value in entry.items()}
    return Run({key: value.cpu().clone() for key, value in found.items()}, reports)


def _local_negatives(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare clips with those of the same process only."""
    compare = PartedBatch._compare

    def locally(self: PartedBatch, *rest: Any) -> Any:
        own = replace(self.share, rows=slice(0, len(self.mask)))
        terms, gradients = compare(replace(self, world=ALONE, share=own), *rest)
        part = len(self.mask) / self.share.clips
        return terms, {name: gradient * part for name, gradient in gradients.items()}

    monkeypatch.setattr(PartedBatch, "_compare", locally)


def _divided_gradient(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 1/W of the contrastive gradient through, as gathering without gradient does."""
    compare = PartedBatch._compare

    def divided(self: PartedBatch, *rest: Any) -> Any:
        terms, gradients = compare(self, *rest)
        return terms, {name: gradient / world.size for name, gradient in gradients.items()}

    monkeypatch.setattr(PartedBatch, "_compare", divided)


def _own_statistics(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move each process's codebook by its own clips."""
    assign, move, own = UnifiedQuantizer.assign, UnifiedQuantizer.move_, list[Assignment]()

    def remember(self: UnifiedQuantizer, *features: Any) -> Assignment:
        found = assign(self, *features)
        own.append(replace(found, counts=found.counts.clone(), sums=found.sums.clone()))
        return found

    def alone(self: UnifiedQuantizer, found: Assignment, **rest: Any) -> None:
        move(self, own.pop(), **rest)

    monkeypatch.setattr(UnifiedQuantizer, "assign", remember)
    monkeypatch.setattr(UnifiedQuantizer, "move_", alone)


def _mean_of_means(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Average the processes' means, whatever they are means over."""

    def measured(world: World, mask: Tensor) -> Share:
        share = measure_share(world, mask)
        own = {"steps": int(mask.sum()), "clips": int(mask.any(-1).sum())}
        return replace(share, totals={name: count * world.size for name, count in own.items()})

    monkeypatch.setattr("micu.train.processes.micro_batches.measure_share", measured)


TRAPS = {
    "local negatives": _local_negatives,
    "divided gradient": _divided_gradient,
    "own statistics": _own_statistics,
    "mean of means": _mean_of_means,
}
"""Ways to be wrong with several processes, each of which the comparison must notice."""
TRAPPED = replace(CASES["v,a,t"], sizes=(5,), steps=4)


def poisoned_steps(world: World) -> list[str]:
    """Three steps whose loss is not finite in the second process alone."""
    config = with_overrides(TrainConfig(), [*SMALL, VAT, "optimizer.skip_nonfinite=2"])
    state = build_state(
        config, {name: SHAPES[name] for name in config.modalities}, "cpu", world=world
    )
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    told = []
    for step in range(3):
        batch = make_batch(Case((VAT,)), step)
        batch = batch.part(slice(0, 3))
        batch.features["audio"][-1, 0, 0] = torch.nan
        try:
            report = train_step(state, batch.part(world.rows(3)))
            told.append(f"skipped {report.skipped}")
        except TrainError as error:
            told.append(str(error))
    after = state.model.state_dict()
    told.append(f"still {all(torch.equal(after[key], value) for key, value in before.items())}")
    return told


def run_everything(world: World, folder: Path) -> None:
    """Every case and every trap, to `folder/RANK.pt`."""
    found = {name: run_case(case, world) for name, case in CASES.items()}
    for name, trap in TRAPS.items():
        with pytest.MonkeyPatch.context() as monkeypatch:
            trap(world, monkeypatch)
            found[name] = run_case(TRAPPED, world)
    runs = {name: [run.state, [asdict(r) for r in run.reports]] for name, run in found.items()}
    texts = {
        "poisoned": poisoned_steps(world),
        "texts": world.gather_texts([f"{world.rank}", "ü\n"] * world.rank),
        "largest": [str(world.largest(world.rank * 3))],
        "decided": [world.decide(lambda: "first")],
        "errors": [_error(lambda: world.decide(_refuse)), _error(lambda: _differ(world))],
    }
    torch.save({"runs": runs, "texts": texts}, folder / f"{world.rank}.pt")


def _refuse() -> str:
    raise ConfigError("no")


def _differ(world: World) -> None:
    world.check_same("number", "one")
    world.check_same("rank", str(world.rank))


def _error(work: Callable[[], object]) -> str:
    try:
        work()
    except MicuError as error:
        return str(error)
    return "none"


def run_commands(rank: int, commands: Sequence[Sequence[str]], folder: Path) -> None:
    """`micu-train` again and again as torchrun would start it, what it said to `folder/RANK.json`.

    An error ends the processes, which are then still joined: only the last command may have one. A
    command that begins with a signal's name gets it in the second process, before step 1.
    """
    told = []
    for number, (name, *arguments) in enumerate(commands):
        port = (folder / f"port{number}").read_text()
        variables = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "MASTER_PORT": port}

        def struck(state: TrainState, batch: Batch, name: str = name) -> StepReport:
            if name and (state.world.rank, state.step) == (1, 1):
                signal.raise_signal(getattr(signal, name))
            return train_step(state, batch)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("micu.train.fit.train_step", struck)
            for key, value in {**variables, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
                monkeypatch.setenv(key, value)
            result = CliRunner().invoke(main, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        told.append([result.exit_code, result.stdout, result.stderr])
    (folder / f"{rank}.json").write_text(json.dumps(told))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_two(folder: Path, commands: Sequence[Sequence[str]]) -> None:
    """Run every case and trap, then the commands, in two processes."""
    for number in range(len(commands)):
        (folder / f"port{number}").write_text(str(free_port()))
    torch.multiprocessing.spawn(_enter, (free_port(), folder, commands), nprocs=2)


def run_case_in_two(folder: Path, name: str, device: str) -> None:
    """Run one case in two processes, each on its device of this kind, to `folder/RANK.pt`."""
    torch.multiprocessing.spawn(_enter_case, (free_port(), folder, name, device), nprocs=2)


def _enter_case(rank: int, port: int, folder: Path, name: str, device: str) -> None:
    place = Place(rank, 2, rank, f"tcp://127.0.0.1:{port}")
    with join(place, device if device == "cpu" else f"{device}:{rank}") as world:
        torch.save(run_case(CASES[name], world).state, folder / f"{rank}.pt")


def _enter(rank: int, port: int, folder: Path, commands: Sequence[Sequence[str]]) -> None:
    torch.set_num_threads(1)
    with join(Place(rank, 2, rank, f"tcp://127.0.0.1:{port}"), "cpu") as world:
        run_everything(world, folder)
    run_commands(rank, commands, folder)
