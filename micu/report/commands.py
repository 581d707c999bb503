"""The commands that made results, in a file beside them: `results.csv`, `results.commands.jsonl`.

Each line is one command as it was typed, with the versions that it ran with; a command that is
typed again with the same versions is not noted twice.
"""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from micu.base.errors import ConfigError
from micu.base.files import append_durably, parse_json, read_bounded
from micu.evaluate.report import locked

SUFFIX = ".commands.jsonl"
MAX_BYTES = 64 * 2**20
"""Largest file of commands that is read: about a hundred thousand of them."""
PACKAGES = ("micu", "torch", "numpy")


@dataclass(frozen=True, slots=True)
class Command:
    """A command that was typed."""

    line: str
    versions: dict[str, str]


def commands_path(results: Path) -> Path:
    """Where the commands that made a results file are."""
    return results.with_suffix(SUFFIX)


def record_command(results: Path, line: str) -> None:
    """Note a command beside the results file that it added to."""
    path, command = commands_path(results), Command(line, installed_versions())
    with locked(path.parent):
        if command not in read_commands(path):
            append_durably(path, f"{json.dumps(asdict(command))}\n".encode())


def read_commands(path: Path) -> list[Command]:
    """Commands in the order of their first time; a line that a kill cut off is not one.

    Raises:
        ConfigError: There is something else under that name, or it is far too large.
    """
    if not path.exists():
        return []
    try:
        lines = read_bounded(path, MAX_BYTES).splitlines()
    except ValueError as error:
        raise ConfigError(
            f"{path}: expected the commands of a results file, got something else: {error}; remove "
            "it, or give it another name"
        ) from error
    found: list[Command] = []
    for line in lines:
        try:
            record = parse_json(line)
            versions = {str(key): str(value) for key, value in record["versions"].items()}
            found.append(Command(str(record["line"]), versions))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def installed_versions() -> dict[str, str]:
    """Versions of Python and of what numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
