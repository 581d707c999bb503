"""`micu-train` in a process that something happens to: run by torchrun in the fault tests.

The environment variable `MISFORTUNE` says what: `SIGNAL RANK STEP FILE` sends the process of that
rank a signal before that step, once: the file tells that it has happened.
"""

import os
import signal
import sys
from pathlib import Path

import micu.train.fit
from micu.cli.train import main
from micu.data.dataset import Batch
from micu.train.state import TrainState
from micu.train.step import StepReport, train_step

NAME, RANK, STEP, FILE = os.environ["MISFORTUNE"].split()


def struck(state: TrainState, batch: Batch) -> StepReport:
    """A step that the signal may precede."""
    happened = Path(FILE)
    if (state.world.rank, state.step) == (int(RANK), int(STEP)) and not happened.exists():
        happened.touch()
        os.kill(os.getpid(), getattr(signal, NAME))
    return train_step(state, batch)


if __name__ == "__main__":
    micu.train.fit.train_step = struck
    sys.exit(main())
