"""How far an extraction is: a line that is redrawn in terminals, and one now and then in logs."""

import re
import time
from collections.abc import Iterable
from importlib.util import find_spec

import click

from micu.base.process import ProgressLine
from micu_extract.pipeline.writer import Summary

_PROGRESS = re.compile(r"([0-9]+/[0-9]+ clips), [0-9]+ failed, ([0-9.]+ clips/s), [0-9:]+ left")
"""A line of `Progress`."""
LOG_EVERY_S = 30.0
TOLD_EVERY_S = 1.0
"""How often a device's process says how far it is, s."""


class Progress:
    """Clips done and failed, clips per second and the time left, on standard error.

    One line that is redrawn; where that is no terminal, one now and then.

    Args:
        todo: Clips of this run, counted for every set.
        every_s: How often a line comes where it is not redrawn, s.
    """

    def __init__(self, todo: int, every_s: float = LOG_EVERY_S) -> None:  # noqa: D107
        self._todo, self._done = todo, 0
        self._failed: dict[str, int] = {}
        self._line = ProgressLine(every_s, lambda line: click.echo(line, err=True))
        self._started = self._line.shown_s = time.monotonic()

    def show(self, summary: Summary) -> None:
        """Count a clip of one set, and draw if it is time to."""
        self._done += 1
        self._failed[summary.folder] = summary.failed
        if not self._line.is_due():
            return
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        left_s = int((self._todo - self._done) / max(rate, 1e-9))
        failed = sum(self._failed.values())
        self._line.show(
            f"{self._done}/{self._todo} clips, {failed} failed, {rate:.2f} clips/s, "
            f"{left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
        )

    def close(self) -> None:
        """Take the line away."""
        self._line.close()


class Bar:
    """Clips done, and the time left, as rich shows them in a terminal or a notebook.

    Args:
        todo: Clips of this run, counted for every set.
    """

    def __init__(self, todo: int) -> None:  # noqa: D107
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        shows = find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
        self._bar = RichProgress(console=console, transient=True, disable=not shows)
        self._task = self._bar.add_task("extracting", total=todo)
        self._bar.start()

    def show(self, summary: Summary) -> None:
        """Count a clip of one set."""
        self._bar.advance(self._task)

    def close(self) -> None:
        """Take it away."""
        self._bar.stop()


class DevicesLine:
    """How far each of several devices is with its share, in one line that is shown as another is.

    Args:
        devices: Their names.
    """

    def __init__(self, devices: Iterable[str]) -> None:  # noqa: D107
        self._at = dict.fromkeys(devices, "starts")
        self._line = ProgressLine(LOG_EVERY_S, lambda line: click.echo(line, err=True))
        self.close = self._line.close

    def show(self, device: str, line: str) -> None:
        """Take a line that a device said; other threads may, too."""
        if found := _PROGRESS.fullmatch(line):
            self._at[device] = f"{found[1]}, {found[2]}"
            if self._line.is_due():
                self._line.show("; ".join(f"{name}: {at}" for name, at in self._at.items()))
        elif line.startswith("WARNING: "):
            click.echo(f"{device}: {line}", err=True)
