"""Sharing one extraction among processes that know nothing of each other.

Shard k belongs to part (k mod n) + 1: every process works out its own share from the manifest, so
that nothing is locked and nobody is asked. Parts i to j of n can be done as one, `i-j/n`; with as
many parts as shards that is any run of shards. A part writes shards, and notes them in files of its
own (see `micu.store.ledger`), which `micu_extract.sets.merge` folds into one.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from micu.base.errors import ConfigError
from micu.base.files import LOCK, NO_LOCKS, hold_folder
from micu.store.ledger import part_labels

STALE_S = 3600.0
"""Age from which a temporary file is taken for that of a dead writer, s: the locks of writers on
other machines may not be seen, and no write takes that long."""


@dataclass(frozen=True, slots=True)
class Part:
    """One share of a set's shards."""

    number: int
    """From 1 to `count`."""
    count: int
    last: int = 0
    """The last of several parts that are done as one; 0 is `number` alone."""

    @property
    def label(self) -> str:
        """How its files are named, for example `2of4` or `5-8of200`."""
        return f"{self._numbers}of{self.count}"

    def owns(self, shard: int) -> bool:
        """Whether shard number `shard` is in this share."""
        return self.number <= shard % self.count + 1 <= (self.last or self.number)

    def labels_in(self, folder: Path) -> tuple[str, ...]:
        """What speaks of its shards in a set: files without a part, its own, those of its parts."""
        others = [
            label
            for label in part_labels(folder)
            if (numbers := _goes_with(label, self)) and numbers[1] != self.count
            if (numbers[0] - self.number) % min(numbers[1], self.count) == 0
        ]
        return ("", *others, self.label)

    @property
    def _numbers(self) -> str:
        return f"{self.number}-{self.last}" if self.last else str(self.number)

    def __str__(self) -> str:  # noqa: D105
        return f"{self._numbers}/{self.count}"


FROM_INPUT = Part(0, 0)
"""Parts come from standard input, a line each."""


def parse_part(text: str) -> Part:
    """The part that `2/4`, or several that `5-8/200`, names.

    Raises:
        ConfigError: It names none.
    """
    found = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?/([0-9]+)", text.strip())
    part = Part(int(found[1]), int(found[3]), int(found[2] or 0)) if found else None
    if part is None or not 1 <= part.number <= (part.last or part.number) <= part.count:
        raise ConfigError(
            f"--part: expected i/n with i from 1 to n, got {text!r}; "
            "type --part 2/4 for the second of four parts"
        )
    return part


def choose_part(typed: str | None, environment: Mapping[str, str]) -> Part | None:
    """The part to extract: what was typed, else the place in a Slurm array, else None for all.

    `1/1` is all too, which is how to do everything in one task of an array; `-` is `FROM_INPUT`.

    Raises:
        ConfigError: What was typed is no part, or the array's ids leave gaps.
    """
    if typed == "-":
        return FROM_INPUT
    part = parse_part(typed) if typed else part_of_array(environment)
    return None if part is None or part.count == 1 else part


def part_of_array(environment: Mapping[str, str]) -> Part | None:
    """The part that a task of a Slurm array is by its index; None outside of arrays.

    Raises:
        ConfigError: The array's ids leave gaps, so that its tasks would not make a whole.
    """
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")]
    if names[0] not in environment:
        return None
    try:
        number, first, last, count = (int(environment[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"Slurm array: expected numbers in {', '.join(names)}, got {error}; type --part i/n"
        ) from error
    if last - first + 1 != count:
        raise ConfigError(
            f"Slurm array: expected ids one after another, got {count} ids from {first} to {last}; "
            "type --part i/n, for example --part $SLURM_ARRAY_TASK_ID/8"
        )
    return Part(number - first + 1, count)


def refuse_other_partitions(folder: Path, part: Part) -> None:
    """Refuse to work on a set that is shared out otherwise: two parts might own one shard.

    Part 2/3 and parts 2/6 and 5/6 go together: what shares a part out, on several devices, makes
    parts of it, one by one.

    Raises:
        ConfigError: There are files of parts of another number.
    """
    others = [label for label in part_labels(folder) if not _goes_with(label, part)]
    if others:
        raise ConfigError(
            f"{folder}: expected files of {part.count} parts, got some of part {others[0]}; when "
            f"no part is at work, type: micu-extract merge --incomplete {folder}"
        )


def _goes_with(label: str, part: Part) -> tuple[int, int] | None:
    """Number and count of a part that may be made beside another; None if it may not."""
    other = parse_part(label.replace("of", "/"))
    few, many = sorted((other.count, part.count))
    if few == many or not (part.last or other.last or many % few):
        return other.number, other.count
    return None


# --- who is at work --------------------------------------------------------------------------


@contextmanager
def join_folder(folder: Path, *, alone: bool) -> Iterator[Callable[[], None]]:
    """Be at work in the folder of a set, which is made if need be, while the block runs.

    Any number of processes may be, unless one is there alone. The locks end with the processes. On
    a file system without locks nobody is kept out.

    Args:
        folder: Of the set.
        alone: Keep out every other process, until the function that is given is called.

    Raises:
        ConfigError: Another process is at work there, and this one is to be alone.
    """
    import fcntl  # what only reads features runs where there is none

    hold_folder(folder)
    path = folder / LOCK
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError as error:
            file.close()
            raise ConfigError(
                f"{folder}: expected nobody to be at work there, got another run, which would lose "
                "what it makes; wait for its end, or name another folder with --out"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()  # the last one to leave took it along

    def let_others_in() -> None:
        with contextlib.suppress(OSError):  # there are no locks
            fcntl.flock(file, fcntl.LOCK_SH)

    with file:
        try:
            yield let_others_in
        finally:
            with contextlib.suppress(OSError):  # others are there, or the folder is not
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
