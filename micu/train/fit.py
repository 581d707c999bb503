"""Pretraining: the whole run, from the first batch to the last checkpoint.

A run's folder holds `config.json`, `metrics.jsonl` and `metrics.csv` (one row per step),
`step-NNNNNN.pt` (checkpoints) and `last.pt` (the newest of them).
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from micu.base.errors import ConfigError
from micu.base.files import (
    MAX_JSON_BYTES,
    check_held,
    hold_folders,
    read_bounded,
    remove_stale_temporaries,
    write_atomically,
)
from micu.base.process import StopFlag, stop_signals
from micu.config.overrides import config_differences, from_json, to_json
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.data.loader import iterate
from micu.store.shard import FeatureSpec
from micu.train.checkpoint import LAST, Position, Record, mark_last, save_checkpoint
from micu.train.logs import METRICS, EpochProgress, MetricsLog, Row, metrics_row
from micu.train.state import TrainState
from micu.train.step import train_step

logger = logging.getLogger(__name__)

CONFIG = "config.json"
MAY_CHANGE = ("optimizer.epochs", "optimizer.max_steps", "optimizer.skip_nonfinite")
"""Settings that no finished step depends on: a resumed run may have others."""

LoaderFactory = Callable[[int, int], DataLoader[Batch]]
"""(epoch, first batch) → what this process has of the batches of that epoch from there on."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run does beside its steps."""

    specs: Mapping[str, FeatureSpec]
    """What the features of each modality are; noted in every checkpoint."""
    extra: Record
    """Noted in every checkpoint."""
    save_every: int = 200
    """Steps between two checkpoints; 0 saves at the end only."""
    keep: int = 2
    """How many of the newest checkpoints stay; 0 is all."""
    tensorboard: bool = False


@dataclass(frozen=True, slots=True)
class FitSummary:
    """What a run did."""

    steps: int
    """Steps since the first start of the run."""
    position: Position
    checkpoint: Path
    seconds: float
    stopped: StopFlag
    """Names the signal that ended it early, if one did."""
    metrics: Row
    """The last step's; empty if there was none."""
    skipped: int = 0
    """Steps among them that changed nothing; known to the first process."""


def fit(
    state: TrainState,
    load: LoaderFactory,
    out: Path,
    options: RunOptions,
    position: Position | None = None,
) -> FitSummary:
    """Train until the configured end, or until a signal asks to stop.

    TERM, USR1, HUP and Ctrl-C let the step finish and then save; a second Ctrl-C does not wait.
    Of several processes each calls this. A signal to one stops all of them after the same step; the
    first one writes the files.

    Args:
        state: The run, fresh or restored.
        load: Makes the batches of one epoch.
        out: The run's folder.
        options: Checkpoints and logs.
        position: The batch to go on with; None is the first.

    Returns:
        What was done, and where the last checkpoint is.

    Raises:
        TrainError: A loss or a gradient is not finite.
        OSError: The disk refused, or the run's folder has gone.
    """
    began = time.perf_counter()
    # A finished run that is resumed keeps its checkpoint, and with it the hash that results name.
    is_kept = position is not None and (out / LAST).is_file()
    saved_at = state.world.largest(state.step if is_kept else -1)
    position = position or Position()
    row: Row = {}
    with hold_folders(), stop_signals() as flag, _open_log(state, out, options) as log:
        stop = _agree(flag, state)
        for batch, progress in () if stop.name else _batches(state, load, position):
            report = train_step(state, batch)
            stop = _agree(flag, state)
            before, position = position, position.after_batch(progress.batches)
            if log is not None:
                row = metrics_row(state, report, before, log.seconds())
                log.write(row)
                progress.show(row, log.skipped, stop.name)
            if options.save_every and state.step % options.save_every == 0:
                _save(state, out, options, position)
                saved_at = state.step
            if stop.name:
                break
        if saved_at != state.step:
            _save(state, out, options, position)
        check_held(out)
    skipped = log.skipped if log is not None else 0
    seconds = time.perf_counter() - began
    return FitSummary(state.step, position, out / LAST, seconds, stop, row, skipped)


def _batches(
    state: TrainState, load: LoaderFactory, position: Position
) -> Iterator[tuple[Batch, EpochProgress]]:
    """The batches from a position to the end of the run, where and as the model takes them."""
    limits = state.config.optimizer
    device, dtype = next(state.model.parameters()).device, getattr(torch, limits.dtype)
    while position.epoch < limits.epochs and not _is_finished(state):
        loader = load(position.epoch, position.batch)
        progress = EpochProgress(state, len(loader) + position.batch)
        for batch in iterate(loader):
            yield batch.to(device, dtype), progress
            if _is_finished(state):
                return
        position = Position(position.epoch + 1)


def _open_log(
    state: TrainState, out: Path, options: RunOptions
) -> AbstractContextManager[MetricsLog | None]:
    """Make the folder ready, in the first process; the others log nothing."""
    if not state.world.is_first:
        return nullcontext()
    write_atomically(out / CONFIG, to_json(state.config).encode())
    remove_stale_temporaries(out)
    return MetricsLog(out, state.step, options.tensorboard)


def _agree(flag: StopFlag, state: TrainState) -> StopFlag:
    """The signal that one process or another was sent, the same for all."""
    number = state.world.largest(signal.Signals[flag.name].value if flag.name else 0)
    return StopFlag(signal.Signals(number).name if number else "")


def _is_finished(state: TrainState) -> bool:
    return 0 < state.config.optimizer.max_steps <= state.step


def _save(state: TrainState, out: Path, options: RunOptions, position: Position) -> None:
    path = out / f"step-{state.step:06d}.pt"
    save_checkpoint(state, path, specs=options.specs, position=position, extra=options.extra)
    if not state.world.is_first:
        return
    mark_last(path)
    if options.keep:
        # A run that went back to an earlier checkpoint has later ones still: they are not newer.
        numbered = sorted(out.glob("step-*.pt"), key=_step_of)
        known = [other for other in numbered if 0 <= _step_of(other) <= state.step]
        for old in known[: -options.keep]:
            old.unlink()


# --- the run's folder ------------------------------------------------------------------------


def find_resumable(out: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> Path | None:
    """Look whether a folder can take this run; changes nothing.

    Args:
        out: The run's folder.
        config: The run.
        resume: Go on with the run that is there, if there is one.
        overwrite: Replace the run that is there.

    Returns:
        The checkpoint to go on from; None starts at the beginning.

    Raises:
        ConfigError: Another run is there, or one that was not to be touched.
    """
    path = out / CONFIG
    if overwrite:
        return None
    newest = _newest_checkpoint(out)
    if not path.is_file():
        if newest is None:
            return None
        raise ConfigError(
            f"{out}: holds {newest.name} but no {CONFIG}, so it cannot be told of which run it is; "
            "name another --out. --overwrite would delete its checkpoints"
        )
    try:
        text = read_bounded(path, MAX_JSON_BYTES).decode("utf-8", "replace")
    except ValueError as error:
        raise ConfigError(
            f"{path}: not the configuration of a run: {error}; name another --out. --overwrite "
            "would delete its checkpoints"
        ) from error
    there = from_json(text, str(path))
    differences = {
        key: values
        for key, values in config_differences(there, config).items()
        if key not in MAY_CHANGE
    }
    if differences:
        lines = "\n".join(
            f"  {k}: there {old}, here {new}" for k, (old, new) in differences.items()
        )
        raise ConfigError(
            f"{out}: holds a run with another configuration{_how_far(newest)}; type its settings, "
            f"or name another --out. --overwrite would delete it\n{lines}"
        )
    if not resume:
        raise ConfigError(
            f"{out}: holds a run already; go on with it by --resume, or name another --out. "
            f"--overwrite would delete it{_how_far(newest)}"
        )
    if newest is not None and newest.name != LAST:
        logger.warning("%s: no %s; going on from %s", out, LAST, newest.name)
    return newest


def _how_far(newest: Path | None) -> str:
    """What a run would lose, for a message."""
    return "" if newest is None else f" (its newest checkpoint is {newest.name})"


def _newest_checkpoint(out: Path) -> Path | None:
    """The checkpoint to go on from: the marked one, else the one of the latest step."""
    if (out / LAST).is_file():
        return out / LAST
    return max(out.glob("step-*.pt"), key=_step_of, default=None)


def _step_of(path: Path) -> int:
    """The step in a checkpoint's name; -1 if the name has none."""
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def clear_run(out: Path) -> None:
    """Remove what an earlier run wrote into a folder; other files stay."""
    for path in [
        out / CONFIG,
        out / LAST,
        *(out / name for name in METRICS),
        *out.glob("step-*.pt"),
    ]:
        path.unlink(missing_ok=True)
