"""Files that a command will write at its end, tried before it begins."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from micu.base.errors import ConfigError
from micu.base.files import TEMPORARY_SUFFIX, refuse_lost_link
from micu.evaluate.report import resembles_results
from micu.evaluate.sheets import read_columns

TRIED = 1 << 16
"""Bytes that are written to try a folder."""


def try_file(option: str, path: Path) -> None:
    """Refuse a file that could not be written, or replaced; nothing is left behind.

    Args:
        option: As it is typed, for the message.
        path: Need not be there, nor its folder.

    Raises:
        ConfigError: There is something else under its name, or where its folder is to be, or a
            link that leads nowhere.
        OSError: The disk is full, or the folder may not be written to.
    """
    _refuse_lost_link(option, path, may_be_made=True)
    if path.is_dir():
        raise ConfigError(
            f"{option} {path}: expected a file, got a folder; type a name in it, such as "
            f"{path / 'results.csv' if option == '--out' else path / 'name'}"
        )
    if path.exists() and not path.is_file():
        raise ConfigError(f"{option} {path}: expected a file, got a pipe or a device")
    if option != "--out" and path.is_file() and resembles_results(read_columns(path)):
        raise ConfigError(f"{option} {path}: holds results of micu-eval; name another file")
    _try_in(option, path, path.resolve().parent)


def try_folder(option: str, path: Path) -> None:
    """Refuse a folder that could not be made, or written to; as `try_file`."""
    _refuse_lost_link(option, path)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path}: expected a folder, got a file; name another one")
    _try_in(option, path, path.resolve())


def _refuse_lost_link(option: str, path: Path, *, may_be_made: bool = False) -> None:
    try:
        refuse_lost_link(path, may_be_made=may_be_made)
    except ConfigError as error:
        raise ConfigError(f"{option} {path}: {error}") from error


def _try_in(option: str, path: Path, folder: Path) -> None:
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(
            f"{option} {path}: {there} is no folder, so that nothing can lie in it; name another "
            "place"
        )
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".", suffix=TEMPORARY_SUFFIX) as file:
            file.write(bytes(TRIED))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"{option} {path}: cannot be written: {there}: {error.strerror or error}; make room or "
            "name another place"
        ) from error


def refuse_shared(outputs: Mapping[str, Path | None], inputs: Iterable[Path | None]) -> None:
    """Refuse one file for two outputs, and one that is read, too.

    Args:
        outputs: By option, as it is typed.
        inputs: Files that are read.

    Raises:
        ConfigError: There is one.
    """
    taken = {path.resolve(): "is read by this command" for path in inputs if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise ConfigError(f"{option} {path}: {taken[path.resolve()]}; name another file")
        taken[path.resolve()] = f"is what {option} names, too"
