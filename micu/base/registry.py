"""A table of named things that knows how to suggest the right name."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from micu.base.errors import RegistryError

T = TypeVar("T")


LISTED = 30
"""Known names that an error lists."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the closest known one, then the known ones."""
    names = sorted(known)
    close = closest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{hint}known: {', '.join(names[:LISTED]) or 'none'}{more}"


def closest(name: str, known: Iterable[str]) -> str:
    """The known name that was most likely meant, whatever its case; empty for none."""
    folded = {other.casefold().strip(): other for other in known}
    close = difflib.get_close_matches(name.casefold().strip(), folded, n=1)
    return folded[close[0]] if close else ""


class Registry(Generic[T]):
    """Named things of one kind, registered by a decorator where they are written.

    Args:
        kind: What is registered, for the error message: "backbone", "loss".
    """

    def __init__(self, kind: str) -> None:  # noqa: D107
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a thing under `name`.

        Raises:
            RegistryError: The name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise RegistryError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:  # noqa: D105
        if name not in self._entries:
            raise RegistryError(f"unknown {self.kind} {name!r}; {suggest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:  # noqa: D105
        return name in self._entries

    def __iter__(self) -> Iterator[str]:  # noqa: D105
        return iter(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and entries in the order of registration."""
        return iter(self._entries.items())
