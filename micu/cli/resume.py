"""The folder of a run: whether it may be used, and what is gone on with there."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from micu.base.files import lock_folder, read_bounded, write_atomically
from micu.config.sections import TrainConfig
from micu.train.processes.place import LAUNCHER, Place

if TYPE_CHECKING:
    from micu.train.checkpoint import Position, Record
    from micu.train.state import TrainState

MAX_MARK_BYTES = 4096
"""Largest note of who began a run: it is a name."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run is to be, and what may be done with a run that is there."""

    out: Path
    resume: bool
    overwrite: bool
    place: Place
    """This process among those of the run."""

    def find_begun(self, config: TrainConfig) -> str:
        """The checkpoint to go on from, "" for none; changes nothing.

        Processes that torchrun has started again go on with the run that this torchrun began,
        whatever was typed. Any other run in the folder is treated as at the first start.

        Raises:
            ConfigError: The folder holds a run that is not to be touched.
        """
        from micu.train.fit import find_resumable

        mark = self.out / LAUNCHER
        launcher = _read_mark(mark)
        again = launcher != "" and launcher == self.place.launcher
        found = find_resumable(
            self.out,
            config,
            resume=self.resume or again,
            overwrite=self.overwrite and not again,
        )
        return "" if found is None else str(found)

    def enter(self, config: TrainConfig, stack: ExitStack) -> str:
        """Keep other runs out of the folder while `stack` is open, and make it ready.

        Returns:
            As `find_begun`.

        Raises:
            ConfigError: Another run is at work there, or one is not to be touched.
        """
        from micu.train.fit import clear_run

        stack.enter_context(lock_folder(self.out))
        # Looked at before the features were read too: another run may have ended here meanwhile.
        begun = self.find_begun(config)
        if self.overwrite and not begun:
            clear_run(self.out)
        if self.place.launcher:
            write_atomically(self.out / LAUNCHER, self.place.launcher.encode())
        return begun


def _read_mark(mark: Path) -> str:
    """Who began a run, as it noted; empty where no launcher has."""
    try:
        return read_bounded(mark, MAX_MARK_BYTES).decode(errors="replace")
    except ValueError:  # there is none, or it is none of ours
        return ""


def resume_(state: "TrainState", path: Path, record: "Record") -> "Position":
    """Put a fresh run back to where a checkpoint was written.

    Args:
        state: The run.
        path: The checkpoint.
        record: What the run would note beside its state.

    Returns:
        The batch that comes next.

    Raises:
        CheckpointError: The checkpoint cannot be read, or was trained on other features.
    """
    from micu.base.errors import CheckpointError
    from micu.train.checkpoint import restore_

    position, before = restore_(state, path)
    if before.get("data_sha256") != record["data_sha256"]:
        raise CheckpointError(
            f"{path}: trained on {before.get('clips')} clips of {before.get('manifest')}, here are "
            f"{record['clips']} of {record['manifest']}, or the features were made otherwise; "
            "the run cannot go on with them: type the manifest and features of that run, or name "
            "another --out. --overwrite would delete it"
        )
    return position
