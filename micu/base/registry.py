"""A table of named things that knows how to suggest the right name."""

import difflib
import hashlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from micu.base.errors import ConfigError, RegistryError, brief

logger = logging.getLogger(__name__)

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

    Other packages add to it by entry points, which are loaded when a name is first asked for; one
    that breaks is left out, with a warning, and costs only its own names.

    Args:
        kind: What is registered, for the error message: "backbone", "loss".
        group: Of entry points: each names a module that registers, or the thing itself.
        needs: Attributes that a thing of other packages has at least.

    Attributes:
        makers: Package and version, or file and hash, by the names that are not of this project.
    """

    def __init__(self, kind: str, group: str = "", needs: Sequence[str] = ()) -> None:  # noqa: D107
        self.kind = kind
        self.makers: dict[str, tuple[str, str]] = {}
        self._entries: dict[str, T] = {}
        self._broken: dict[str, str] = {}
        self._needs, self._group, self._is_loaded = tuple(needs), group, not group
        if group:
            _open_to_others.append(self)

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
        known = self._known()
        if name not in known:
            if name in self._broken:
                raise RegistryError(self._broken[name])
            raise RegistryError(f"unknown {self.kind} {name!r}; {suggest(name, known)}")
        return known[name]

    def __contains__(self, name: object) -> bool:  # noqa: D105
        return name in self._known()

    def __iter__(self) -> Iterator[str]:  # noqa: D105
        return iter(self._known())

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and entries in the order of registration."""
        return iter(self._known().items())

    def _known(self) -> dict[str, T]:
        if not self._is_loaded:
            self._is_loaded = True
            for point in entry_points(group=self._group):
                self._load(point)
        return self._entries

    def _load(self, point: EntryPoint) -> None:
        before = set(self._entries)
        package = point.dist.name if point.dist else point.value
        maker = (package, point.dist.version if point.dist else "")
        try:
            found = point.load()
            if not isinstance(found, ModuleType):
                self.register(point.name)(found)
            self.note_makers(before, maker)
        except Exception as error:  # noqa: BLE001 - whatever a package of others raises
            for name in set(self._entries) - before:
                del self._entries[name]
            told = (
                f"{self.kind} {point.name!r} of the plug-in {' '.join(maker)}: expected a working "
                f"one, got {type(error).__name__}: {brief(error)}; mend it, or type: "
                f"pip uninstall {package}"
            )
            self._broken[point.name] = told
            logger.warning("%s. It is left out", told)

    def note_makers(self, before: Container[str], maker: tuple[str, str]) -> None:
        """Note who made the entries that were not there before.

        Raises:
            RegistryError: One lacks what a thing of this kind has.
        """
        for name, entry in self._entries.items():
            if name not in before:
                lacks = [need for need in self._needs if not hasattr(entry, need)]
                if lacks:
                    raise RegistryError(f"{self.kind} {name!r} has no {', '.join(lacks)}")
                self.makers[name] = maker


_open_to_others: list[Registry[Any]] = []


def load_plugin(text: str) -> None:
    """Import a file or a module that registers something.

    Raises:
        ConfigError: It cannot be imported, or registers nothing; the message says why.
    """
    before = [(registry, set(registry)) for registry in _open_to_others]
    path = Path(text)
    try:
        if path.suffix == ".py":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            maker = (path.name, f"sha256:{digest[:12]}")
            spec = importlib.util.spec_from_file_location(f"micu_plugin_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module.__name__] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(text)
            maker = (text, str(getattr(module, "__version__", "")))
        for registry, names in before:
            registry.note_makers(names, maker)
    except Exception as error:
        raise ConfigError(
            f"--plugin {text}: expected a file or a module of Python that registers something, got "
            f"{type(error).__name__}: {brief(error)}; mend it, or leave it out"
        ) from error
