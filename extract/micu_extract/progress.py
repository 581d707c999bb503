"""Progress of an extraction on standard error: one line that is redrawn, or one now and then."""

import shutil
import sys
import time

import click

from micu_extract.pipeline.writer import Summary

LOG_EVERY_S = 30.0
REDRAW_EVERY_S = 0.2


class Progress:
    """Shows clips done and failed, clips per second and the time left.

    Args:
        todo: Clips of this run, counted for every set.
    """

    def __init__(self, todo: int) -> None:  # noqa: D107
        self._todo, self._done = todo, 0
        self._failed: dict[str, int] = {}
        self._started = self._shown = time.monotonic()
        self._redraws = sys.stderr.isatty()

    def show(self, summary: Summary) -> None:
        """Count a clip of one set, and draw if it is time to."""
        self._done += 1
        self._failed[summary.folder] = summary.failed
        now = time.monotonic()
        if now - self._shown < (REDRAW_EVERY_S if self._redraws else LOG_EVERY_S):
            return
        self._shown = now
        rate = self._done / max(now - self._started, 1e-9)
        left_s = int((self._todo - self._done) / max(rate, 1e-9))
        failed = sum(self._failed.values())
        line = (
            f"{self._done}/{self._todo} clips, {failed} failed, {rate:.2f} clips/s, "
            f"{left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
        )
        if self._redraws:  # never wider than the screen, where it would become two lines
            width = shutil.get_terminal_size().columns - 1
            line = f"\r{line[:width]:<{width}}"
        click.echo(line, err=True, nl=not self._redraws)

    def close(self) -> None:
        """End the line."""
        if self._redraws:
            click.echo("", err=True)
