"""Progress of an extraction on standard error: one line that is redrawn, or one now and then."""

import sys
import time

import click

from extract.pipeline import Summary

LOG_EVERY_S = 30.0
REDRAW_EVERY_S = 0.2


class Progress:
    """Shows clips done and failed, clips per second and the time left.

    Args:
        todo: Clips of this run.
    """

    def __init__(self, todo: int) -> None:  # noqa: D107
        self._todo = todo
        self._started = self._shown = time.monotonic()
        self._redraws = sys.stderr.isatty()

    def show(self, summary: Summary) -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        if now - self._shown < (REDRAW_EVERY_S if self._redraws else LOG_EVERY_S):
            return
        self._shown = now
        done = summary.extracted + summary.failed
        rate = done / max(now - self._started, 1e-9)
        left_s = int((self._todo - done) / max(rate, 1e-9))
        line = (
            f"{done}/{self._todo} clips, {summary.failed} failed, {rate:.2f} clips/s, "
            f"{left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
        )
        click.echo(f"\r{line:<70}" if self._redraws else line, err=True, nl=not self._redraws)

    def close(self) -> None:
        """End the line."""
        if self._redraws:
            click.echo("", err=True)
