"""Prints the oldest versions that pyproject.toml allows: constraints for `pip install -c`."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parent.parent


def oldest_versions(pyproject: Path) -> list[str]:
    """`name==version` for each dependency that is used here, extras for tests included.

    Raises:
        ValueError: A dependency of the package has no lower bound.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    typed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    lines = []
    for requirement in map(Requirement, typed):
        if requirement.name == project["name"]:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        lower = [one.version for one in requirement.specifier if one.operator in (">=", "==")]
        if not lower:
            raise ValueError(f"{pyproject}: {requirement} has no lower bound")
        lines.append(f"{requirement.name}=={lower[0]}")
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join(oldest_versions(PROJECT / "pyproject.toml")) + "\n")
