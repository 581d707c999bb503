"""What the command line tools share: exit codes, errors as messages, signals, the manifest in use.

Exit codes: 0 all good, 2 usage or an error with a message, 3 finished with failures, 71 no memory
left on the device, 74 input or output error, 75 stopped but resumable, 130 Ctrl-C.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from micu.errors import DeviceError, ManifestError, MicuError
from micu.files import write_atomically

EXIT_USAGE, EXIT_FAILURES, EXIT_DEVICE = 2, 3, 71
EXIT_IO, EXIT_STOPPED, EXIT_INTERRUPTED = 74, 75, 130
MANIFEST_VARIABLE = "MICU_MANIFEST"


@contextmanager
def exit_codes(hint: str = "type the same command again") -> Iterator[None]:
    """Turn errors that a user can act on, and Ctrl-C, into a message and an exit code.

    2 for a `MicuError`, of which 71 for a `DeviceError`, 74 for a disk or file system that refuses,
    130 for Ctrl-C. Anything else is a bug and keeps its traceback.

    Args:
        hint: How to go on after Ctrl-C or a disk that refused, for the message.
    """
    try:
        yield
    except MicuError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_DEVICE if isinstance(error, DeviceError) else EXIT_USAGE)
    except OSError as error:
        click.echo(f"error: {error}\n{hint}", err=True)
        sys.exit(EXIT_IO)
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"interrupted; {hint}", err=True)
        sys.exit(EXIT_INTERRUPTED)


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


@dataclass(slots=True)
class StopFlag:
    """The signal that asked the run to stop, by name; empty while none has."""

    name: str = ""

    @property
    def exit_code(self) -> int:
        """What a run that was stopped ends with."""
        return EXIT_INTERRUPTED if self.name == "SIGINT" else EXIT_STOPPED


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Turn TERM, USR1 and INT into a flag while the block runs; a second INT is Ctrl-C as usual.

    In a thread other than the main one, where Python takes no handlers, nothing is caught.
    """
    flag = StopFlag()

    def note(number: int, frame: FrameType | None) -> None:
        if flag.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.name = signal.Signals(number).name

    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in handled}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Source:
    """A manifest, and where its media lie."""

    manifest: Path
    media_root: Path


def record_source(features: Path, source: Source) -> None:
    """Note in a feature folder what it was last extracted with."""
    absolute = {key: str(path.resolve()) for key, path in asdict(source).items()}
    write_atomically(features / "last.json", json.dumps(absolute, indent=1).encode())


def find_source(features: Path, typed: Path | None) -> Source:
    """The manifest to use: what was typed, else `$MICU_MANIFEST`, else the last extraction's.

    The media root is the manifest's folder, or the one that was recorded with the manifest.

    Raises:
        ManifestError: None of the three says, or the record cannot be read.
    """
    variable = os.environ.get(MANIFEST_VARIABLE)
    named = typed or (Path(variable) if variable else None)
    if named is not None:
        return Source(named, named.parent)
    recorded = _read_source(features / "last.json")
    if recorded is None:
        raise ManifestError(
            f"no manifest: none was typed, ${MANIFEST_VARIABLE} is not set, and {features} records "
            "no extraction. Type the manifest, for example: "
            "micu-extract flow --tvl1 manifests/vggsound.csv"
        )
    return recorded


def _read_source(path: Path) -> Source | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        return Source(Path(record["manifest"]), Path(record["media_root"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{path}: expected the paths of a manifest and its media, got {error!r}; delete it"
        ) from error
