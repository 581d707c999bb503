"""What pyproject.toml says of dependencies holds, and can be tried at its lower end."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(line) for line in DECLARED["dependencies"]]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_dependency_has_an_oldest_version_and_ends_before_a_new_interface(
    requirement: Requirement,
) -> None:
    assert sorted(one.operator for one in requirement.specifier) == ["<", ">="]


def test_the_oldest_versions_are_listed_for_pip() -> None:
    script = PROJECT / ".ci/oldest.py"
    listed = subprocess.run(
        [sys.executable, script], capture_output=True, check=True, text=True
    ).stdout.splitlines()

    lower = {
        requirement.name: one.version
        for requirement in REQUIREMENTS
        if requirement.marker is None or requirement.marker.evaluate()
        for one in requirement.specifier
        if one.operator == ">="
    }
    assert set(listed) >= {f"{name}=={version}" for name, version in lower.items()}
    assert any(line.startswith("pytest==") for line in listed)
    assert not any(line.startswith("micu") for line in listed)


def test_micu_runs_without_torchaudio() -> None:
    code = (
        "import sys; sys.modules['torchaudio'] = None\n"
        "from extract.backbones import find_backbone\n"
        "from extract.backbones.base import Run\n"
        "find_backbone('htsat-demo')(weights='random', run=Run())"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=PROJECT, text=True)

    assert done.returncode == 0, done.stderr
