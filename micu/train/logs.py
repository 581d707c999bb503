"""What a run writes down while it trains: its metrics, and a line of progress now and then."""

import csv
import io
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from micu.base.errors import ExtraError
from micu.base.files import check_held, parse_json, write_atomically
from micu.base.process import ProgressLine
from micu.train.checkpoint import Position
from micu.train.state import TrainState
from micu.train.step import StepReport

logger = logging.getLogger(__name__)

METRICS = ("metrics.jsonl", "metrics.csv")
MAX_ROW_BYTES = 1 << 20
"""Longest line of `metrics.jsonl` that is read."""
PROGRESS_S = 5.0
"""Least time between two lines of progress, s."""

Row = Mapping[str, float | int | None]
"""One step's numbers by name; None for one that is not finite, which JSON could not say."""


def metrics_row(state: TrainState, report: StepReport, position: Position, seconds: float) -> Row:
    """One step's row of the metrics: numbers by name, in the order of the columns."""
    row: dict[str, float | int] = {
        "step": state.step,
        "epoch": position.epoch,
        "batch": position.batch,
        "learning_rate": report.learning_rate,
        "total": report.total,
        **report.terms,
        **{f"grad_norm_{name}": value for name, value in report.grad_norms.items()},
        **{f"perplexity_{name}": value for name, value in report.perplexity.items()},
        "active_codes": report.active_codes,
        "shared_codes": report.shared_codes,
        "skipped": int(report.skipped),
        "clips": report.clips,
    }
    row["clips_per_s"] = round(report.clips / max(seconds, 1e-9), 3)
    return {key: value if math.isfinite(value) else None for key, value in row.items()}


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """The metrics of a run as JSON lines, as a CSV table and, if asked for, in TensorBoard.

    Rows after `step` are those of steps that a resumed run does again: they are dropped.

    Args:
        out: The run's folder.
        step: Steps that the run has done.
        tensorboard: Write TensorBoard's files too.

    Raises:
        ExtraError: TensorBoard is not installed.
    """

    def __init__(self, out: Path, step: int, tensorboard: bool = False) -> None:  # noqa: D107
        self._board = None
        if tensorboard:
            self._board = import_tensorboard()(out / "tensorboard", purge_step=step + 1)
        rows = [row for row in read_metrics(out / METRICS[0]) if row["step"] <= step]
        self._columns: Sequence[str] = list(rows[0]) if rows else []
        self.skipped = sum(bool(row.get("skipped")) for row in rows)
        """Steps of the run, from its first start on, that changed nothing."""
        lines = "".join(_json_line(row) for row in rows)
        table = "".join(_csv_line([row.get(key) for key in self._columns]) for row in rows)
        names = _csv_line(self._columns) if rows else ""
        self._json = _LogFile(out / METRICS[0], "", lines)
        self._csv = _LogFile(out / METRICS[1], names, table)
        self._since = time.perf_counter()

    def seconds(self) -> float:
        """Time since the last call, s."""
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def write(self, row: Row) -> None:
        """Add one step's row.

        Raises:
            OSError: The disk refused, or the run's folder has gone.
        """
        self.skipped += bool(row["skipped"])
        if not self._columns:
            self._columns = list(row)
            self._csv.head = _csv_line(self._columns)
        self._json.add(_json_line(row))
        self._csv.add(_csv_line([row.get(key) for key in self._columns]))
        if self._board is not None:
            for key, value in row.items():
                self._board.add_scalar(key, math.nan if value is None else value, row["step"])

    def __exit__(  # noqa: D105
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                for log in (self._json, self._csv):
                    log.check()
        finally:
            for file in (self._json, self._csv, self._board):
                if file is not None:
                    file.close()


class _LogFile:
    """A file that grows line by line, and is written again if it is taken away meanwhile.

    Args:
        path: The file; what is there is replaced.
        head: Its first line; "" for none, or none yet.
        lines: The lines that it has already.
    """

    def __init__(self, path: Path, head: str, lines: str) -> None:
        self.path, self.head = path, head
        self._write((head + lines).encode())

    def _write(self, content: bytes) -> None:
        write_atomically(self.path, content)
        self._file = self.path.open("a+b")
        self._size = len(content)

    def add(self, line: str) -> None:
        """Add a line.

        Raises:
            OSError: The disk refused, or the folder has gone.
        """
        self.check()
        data = (line if self._size else self.head + line).encode()
        self._file.write(data)
        self._file.flush()
        self._size += len(data)

    def check(self) -> None:
        """Write the file again, with a warning, if it was deleted, replaced or cut.

        All of it is there to be read as long as it is open, except what was cut.

        Raises:
            OSError: The disk refused, or the folder has gone.
        """
        check_held(self.path)
        ours = os.fstat(self._file.fileno())
        try:
            is_there = os.path.samestat(self.path.stat(), ours)
        except FileNotFoundError:
            is_there = False
        if is_there and ours.st_size >= self._size:
            return
        logger.warning(
            "%s: was deleted, replaced or cut while the run writes it; it is written again%s",
            self.path,
            "" if ours.st_size >= self._size else ", but what was cut is lost",
        )
        self._file.seek(0)
        content, head = self._file.read(), self.head.encode()
        content = content[: content.rfind(b"\n") + 1]
        self._file.close()
        self._write(content if content.startswith(head) else head + content)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a last line that a kill cut off is not one."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(MAX_ROW_BYTES), b""):
            try:
                row = parse_json(line)
            except ValueError:
                break
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                break
            rows.append(row)
    return rows


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def import_tensorboard() -> Any:  # SummaryWriter is not always installed
    """The class that writes TensorBoard's files.

    Raises:
        ExtraError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ExtraError("tensorboard", "tensorboard") from error
    return SummaryWriter


class EpochProgress:
    """A line on the screen that is drawn again, or on the log every few seconds."""

    def __init__(self, state: TrainState, batches: int) -> None:  # noqa: D107
        limits = state.config.optimizer
        self.batches = batches
        """Batches of a whole epoch."""
        self._epochs = limits.epochs
        ends = [batches * limits.epochs, *([limits.max_steps] if limits.max_steps else [])]
        self._last_step = min(ends)
        self._line = ProgressLine(PROGRESS_S, logger.info)

    def show(self, row: Row, skipped: int, stopping: str) -> None:
        """Tell about one step, unless the last line is too young.

        Args:
            row: Of the step.
            skipped: Steps of the run so far that were skipped.
            stopping: The signal that ends the run.
        """
        is_last = row["step"] == self._last_step or stopping != ""
        if not is_last and not self._line.is_due():
            return
        total = math.nan if row["total"] is None else row["total"]
        told = f"; {skipped} steps skipped" if skipped else ""
        told += f"; {stopping}: saving" if stopping else ""
        epoch = (row["epoch"] or 0) + 1
        self._line.show(
            f"epoch {epoch}/{self._epochs}, step {row['step']}/{self._last_step}: "
            f"total {total:.5g}, {row['active_codes']} active codes, {row['clips_per_s']:.4g} "
            f"clips/s{told}",
            stays=is_last,
        )
