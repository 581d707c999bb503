"""What the command line tools share: exit codes, errors as messages, signals.

Exit codes: 0 all good, 2 usage or an error with a message, 3 finished with failures, 71 no memory
left, here or on the device, 74 input or output error, 75 stopped but resumable, 130 Ctrl-C.
"""

import io
import logging
import math
import os
import shutil
import signal
import stat
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

import click

from micu.base.errors import DeviceError, MicuError, no_memory, shorten, show_unseen
from micu.base.files import hold_folders

EXIT_USAGE, EXIT_FAILURES, EXIT_DEVICE = 2, 3, 71
EXIT_IO, EXIT_STOPPED, EXIT_INTERRUPTED = 74, 75, 130
REDRAW_EVERY_S = 0.2
LAST_SEED = 2**63 - 1
"""Up to which all generators of random numbers take a seed."""


class _Screen(io.TextIOBase):
    """A standard stream that shows what steers a terminal, and minds no reader who has left.

    Names, ids, columns and messages come from files of others; all of them leave through here. What
    nobody reads any more (`| head`) is dropped: the work and its exit code are not the reader's.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._is_drawn = stream, False

    def write(self, text: str) -> int:
        shown = show_unseen(text)
        if shown:  # click tries streams with nothing, and minds no error then
            self.draw("")
            self._try(lambda: self._stream.write(shown))
        return len(text)

    def draw(self, line: str) -> None:
        """Draw a line; the next one, or whatever is written, takes its place."""
        if not line and not self._is_drawn:
            return
        from rich.console import Console
        from rich.control import Control
        from rich.segment import ControlType

        begin = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
        # In its last column a screen may begin another line.
        width = shutil.get_terminal_size().columns - 1
        screen = Console(file=self._stream, force_terminal=True, no_color=True, width=width)
        shown, self._is_drawn = show_unseen(line), bool(line)
        self._try(lambda: screen.control(begin))
        self._try(
            lambda: screen.print(
                *(shown,), end="", no_wrap=True, overflow="ellipsis", markup=False, highlight=False
            )
        )

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self._drop_the_rest()
            if not isinstance(error, BrokenPipeError):
                raise

    def _drop_the_rest(self) -> None:
        """Lead the stream nowhere: Python writes what is left in it at its end, too."""
        with suppress(OSError):  # no file at all, as in tests
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True


def screen_width(stream: TextIO | None = None) -> int | None:
    """Columns of the screen that a stream, or standard output, is; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else None


def fold(text: str, width: int | None) -> str:
    """Lines as narrow as a screen; what goes on is indented by four more. None leaves all as it is.

    A word that is wider, a path for example, stays whole.
    """
    if width is None:
        return text
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * (len(line) - len(line.lstrip()) + 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )


def say(text: str) -> None:
    """Print on standard error, as narrow as the screen."""
    click.echo(fold(text, screen_width(sys.stderr)), err=True)


class ProgressLine:
    """Where a command is: one line that is drawn again on a terminal, elsewhere one now and then.

    Args:
        every_s: Least time between two lines that stay, s.
        tell: Takes these.
    """

    def __init__(self, every_s: float, tell: Callable[[str], object]) -> None:  # noqa: D107
        screen = sys.stderr
        redraws = isinstance(screen, _Screen) and screen.isatty()
        redraws = redraws and os.environ.get("TERM") not in ("dumb", "unknown")
        self._screen = cast(_Screen, screen) if redraws else None
        self._every_s, self._tell = (REDRAW_EVERY_S if redraws else every_s), tell
        self.shown_s = -math.inf
        """When the last line was shown."""

    def is_due(self) -> bool:
        """Whether the last line is old enough for another one."""
        return time.monotonic() - self.shown_s >= self._every_s

    def show(self, line: str, *, stays: bool = False) -> None:
        """Show a line, on a terminal too where it stays."""
        self.shown_s = time.monotonic()
        if self._screen is None or stays:
            self._tell(line)
        else:
            self._screen.draw(line)

    def close(self) -> None:
        """Take away the line that is drawn."""
        if self._screen is not None:
            self._screen.draw("")


class _Folded(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return fold(super().format(record), screen_width(sys.stderr))


def show_log(level: int = logging.INFO) -> None:
    """Show on standard error what the project logs, and of libraries what is a warning at least.

    Args:
        level: Of the project's own lines, the least.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Folded("%(message)s"))
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler])
    logging.getLogger("micu").setLevel(level)


def guard_screen() -> None:
    """From now on, show what steers a terminal in all that goes to standard output and error.

    It stays until someone sets `sys.stdout` and `sys.stderr` anew; twice is once.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed, and the next file that is opened would take its place
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, _Screen):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Screen(stream))


@contextmanager
def exit_codes(hint: str = "type the same command again") -> Iterator[None]:
    """Turn errors that a user can act on, and Ctrl-C, into a message and an exit code.

    2 for a `MicuError`, 71 for a `DeviceError` and wherever memory has run out, 74 for a disk or
    file system that refuses and for a folder that goes away while it is written to, 130 for Ctrl-C.
    Anything else is a bug and keeps its traceback. What is printed goes through `guard_screen`.

    Args:
        hint: How to go on after Ctrl-C or a disk that refused, for the message.
    """
    guard_screen()
    try:
        try:
            with hold_folders():
                yield
        finally:
            sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"interrupted; {hint}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except (MicuError, MemoryError, RuntimeError, OSError) as error:
        _end_with(error, hint)


def _end_with(error: Exception, hint: str) -> NoReturn:
    """End the process as an error asks for; one that is a bug goes on."""
    lack = no_memory(error)
    if lack is not None and not isinstance(error, DeviceError):
        why = shorten(str(lack) or type(lack).__name__, 200)
        click.echo(
            f"error: memory has run out: {why}; end what else is running here, or ask for less: "
            f"another --device, a smaller model or batch, fewer --workers\n{hint}",
            err=True,
        )
        sys.exit(EXIT_DEVICE)
    if isinstance(error, MicuError):
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_DEVICE if isinstance(error, DeviceError) else EXIT_USAGE)
    if isinstance(error, OSError):
        click.echo(f"error: {error}\n{hint}", err=True)
        sys.exit(EXIT_IO)
    raise error


def run_command(command: click.Command, hint: str) -> None:
    """Run a tool with the exit codes above; click's own would make Ctrl-C a 1.

    Args:
        command: The tool; its arguments are the process's.
        hint: As in `exit_codes`.
    """
    with exit_codes(hint):
        try:
            code = command.main(standalone_mode=False)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


class FiniteRange(click.FloatRange):
    """A range of numbers; `nan` and `inf` are in none."""

    def convert(  # noqa: D102
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"expected a finite number, got {value!r}.", param, ctx)
        return found


@dataclass(slots=True)
class StopFlag:
    """What asked the run to stop: a signal by its name, or a limit in words; empty for nothing."""

    name: str = ""

    @property
    def exit_code(self) -> int:
        """What a run that was stopped ends with."""
        return EXIT_INTERRUPTED if self.name == "SIGINT" else EXIT_STOPPED


def known_signals(*names: str) -> tuple[signal.Signals, ...]:
    """The signals of these names that the system has: Windows lacks HUP and USR1."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


STOP_SIGNALS = known_signals("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
"""What asks a run to stop gently."""


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Turn the signals to stop into a flag while the block runs; a second INT is Ctrl-C as usual.

    HUP stays ignored where it is, as under `nohup`. In a thread other than the main one, where
    Python takes no handlers, nothing is caught.
    """
    flag = StopFlag()

    def note(number: int, frame: FrameType | None) -> None:
        if flag.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.name = signal.Signals(number).name
        if flag.name == "SIGHUP":
            _leave_terminal()

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            ignored = signal.getsignal(number) == signal.SIG_IGN
            if not (ignored and number.name == "SIGHUP"):
                before[number] = signal.signal(number, note)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Write to nobody where the terminal has gone: an error there would look like one of a disk."""
    for handle in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(handle).st_mode) and not os.isatty(handle):
                nobody = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nobody, handle)
                os.close(nobody)
