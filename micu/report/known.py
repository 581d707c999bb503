"""Which list of known classes a row is about, where an older results file has its hash alone."""

import itertools
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from micu.base.errors import ManifestError
from micu.base.files import file_sha256
from micu.evaluate.report import Row
from micu.report.commands import Command
from micu.store.manifest import read_class_list

OPTION = "--known"
LARGEST = 1 << 20
"""Bytes of a list that is looked at."""


def complete_lists(results: Sequence[Row], commands: Iterable[Command]) -> list[Row]:
    """The results, each with the size and the name of its list, which its hash stands for.

    They come from a row of a newer file with the same hash, else from the file that a command
    names, if it is still there and has that hash.
    """
    told: dict[str, tuple[int, str]] = {}
    for row in results:
        if row.classes_sha256 and row.known_classes:
            told.setdefault(row.classes_sha256, (row.known_classes, row.class_list))
    wanted = {row.classes_sha256 for row in results} - {"", *told}
    for path in dict.fromkeys(_typed_lists(commands)) if wanted else ():
        found = _read(path, wanted)
        if found:
            told[found[0]] = (found[1], path.stem)
    return [
        replace(row, known_classes=named[0], class_list=named[1])
        if (named := told.get(row.classes_sha256))
        else row
        for row in results
    ]


def _typed_lists(commands: Iterable[Command]) -> Iterator[Path]:
    for command in commands:
        try:
            words = shlex.split(command.line)
        except ValueError:
            continue
        yield from (Path(b) for a, b in itertools.pairwise(words) if a == OPTION)


def _read(path: Path, wanted: set[str]) -> tuple[str, int] | None:
    """Hash and number of names of a list, if it is one that is wanted."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        digest = file_sha256(path)
        return (digest, len(read_class_list(path))) if digest in wanted else None
    except (OSError, ValueError, ManifestError):
        return None
