"""What makes features on a machine: micu's code, a user's own, and the versions of libraries.

Two machines that differ in it make different features, and no header tells: code is only known by
its digest. A share is a process of its own, and so is what says with what it would run.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

OWN = ("micu_extract", "micu")
"""Packages whose code counts, all of it."""
CODE = (".py", ".so", ".pyd")
NONE = "none"
PROGRAM = ("-P", "-c", "from micu_extract.cluster.dask.making import main; main()")
"""Arguments of the Python that runs shares, with which it runs `main`."""
TELLS_WITHIN_S = 45.0
_DIGITS = 12
_SHOWN = 60
"""Characters that are told of what another machine says."""


def describe_making(libraries: Collection[str], modules: Collection[str]) -> dict[str, str]:
    """What this Python makes features with.

    Args:
        libraries: Distributions whose version counts.
        modules: Modules, other than our own, whose code counts.

    Returns:
        By name: version, digest of the code, or `none`.
    """
    return {
        "micu": _digest(file for package in OWN for file in _sources(package)),
        **{f"module {module}": _digest(_sources(module)) for module in modules},
        **{library: _version(library) for library in libraries},
    }


def ask_for_making(libraries: Collection[str], modules: Collection[str]) -> dict[str, str]:
    """What a new process of this Python, as shares are, would make features with.

    Returns:
        As `describe_making`; nothing if it cannot say.
    """
    question = json.dumps([list(libraries), list(modules)])
    try:
        asked = subprocess.run(
            [sys.executable, *PROGRAM],
            input=question,
            capture_output=True,
            text=True,
            timeout=TELLS_WITHIN_S,
            check=True,
        )
        told: dict[str, str] = json.loads(asked.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
    return told


def tell_differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What of `here` another machine has otherwise, for example `torch 2.13 (here 2.14)`."""
    return [
        f"{name} {there.get(name, NONE)[:_SHOWN]} (here {ours})"
        for name, ours in here.items()
        if there.get(name, NONE) != ours
    ]


def main() -> None:
    """Answer a question on standard input."""
    libraries, modules = json.loads(sys.stdin.read())
    sys.stdout.write(json.dumps(describe_making(libraries, modules)) + "\n")


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return NONE


def _sources(module: str) -> Iterator[tuple[str, Path]]:
    """Files of code of a module or package, with the names that they have in it."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return
    if spec.submodule_search_locations is None:
        yield module, Path(spec.origin)
        return
    for folder in map(Path, spec.submodule_search_locations):
        for file in sorted(folder.rglob("*")):
            if file.suffix in CODE and file.is_file():
                yield f"{module}/{file.relative_to(folder).as_posix()}", file


def _digest(files: Iterator[tuple[str, Path]]) -> str:
    """The beginning of a digest of the names and bytes of files; `none` of none."""
    digest, is_empty = hashlib.sha256(), True
    for name, file in files:
        is_empty = False
        digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return NONE if is_empty else f"code {digest.hexdigest()[:_DIGITS]}"
