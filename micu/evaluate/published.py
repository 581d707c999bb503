"""How the published downstream scripts train and test in each setting of the paper.

Source: the published scripts, whose defaults the paper's tables 2 to 8 rest on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from micu.evaluate.probe import ProbeConfig
from micu.evaluate.splits import TEST, TRAIN


@dataclass(frozen=True, slots=True)
class Published:
    """What a script does that an evaluation may do otherwise."""

    epochs: int
    """Of the probe, counted on from the checkpoint's."""
    test_splits: tuple[str, ...] = (TEST,)
    """Values of the manifest's `split`."""

    def departures(self, probe: ProbeConfig, test_splits: Sequence[str] | None) -> tuple[str, ...]:
        """In what an evaluation under `paper` is not as published, in words."""
        found = []
        if probe.epochs != self.epochs:
            found.append(f"{self.epochs} epochs of the probe")
        if not probe.epoch_offset:
            found.append("epochs counted on from the checkpoint's (--probe-epoch-offset)")
        if not probe.encoder_dropout:
            found.append("the encoder's dropout on while the probe trains")
        if test_splits != self.test_splits:
            found.append(f"tested on split {','.join(self.test_splits)}")
        return tuple(found)


_CLOSED = {
    "ave": Published(30, (TRAIN,)),
    "avvp": Published(30),
    "ave-avvp": Published(30),
    "ucf-vgg": Published(40),
}


def find_published(task: str, setting: str) -> Published | None:
    """What the script of a task and setting does; None where none was published, or none is named.

    Args:
        task: `oscmg` or `cmg`; others train no probe.
        setting: A name of `micu.report.paper.SETTINGS`.
    """
    if task == "cmg":
        return _CLOSED.get(setting)
    if task != "oscmg" or not setting:
        return None
    is_ucf = setting.startswith("ucf-") and not setting.startswith("ucf-vgg")
    return Published(16 if is_ucf else 25)
