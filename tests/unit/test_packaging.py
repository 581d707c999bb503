"""What pyproject.toml says of dependencies holds, and can be tried at its lower end."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import PROJECT, PYTHONPATH

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


def test_a_demo_that_lies_beside_the_code_is_not_installed(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    find = settings["packages"]["find"]
    finder = setuptools.find_namespace_packages
    if not find.get("namespaces", True):
        finder = setuptools.find_packages
    for name in ("micu/base", "extract/micu_extract", "micu-demo/runs", "microbes"):
        (tmp_path / name).mkdir(parents=True)
        if "-" not in name:
            (tmp_path / name / "__init__.py").touch()
    (tmp_path / "micu/__init__.py").touch()

    found = {
        name
        for where in find["where"]
        for name in finder(str(tmp_path / where), include=find["include"])
    }

    assert found == {"micu", "micu.base", "micu_extract"}


def test_micu_runs_without_torchaudio() -> None:
    code = (
        "import sys; sys.modules['torchaudio'] = None\n"
        "from micu_extract.backbones import find_backbone\n"
        "from micu_extract.backbones.base import Run\n"
        "find_backbone('htsat-demo')(weights='random', run=Run())"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=PROJECT, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14", "3.15"])
@pytest.mark.parametrize(
    ("system", "machine", "has_it"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("linux", "ppc64le", False),
        ("darwin", "arm64", True),
        ("darwin", "x86_64", False),
        ("win32", "AMD64", True),
        ("win32", "ARM64", False),
    ],
)
def test_decord_is_installed_once_where_it_has_a_wheel(
    python: str, system: str, machine: str, has_it: bool
) -> None:
    place = {"python_version": python, "sys_platform": system, "platform_machine": machine}
    wanted = [
        requirement.name
        for requirement in REQUIREMENTS
        if requirement.name.startswith("decord")
        and requirement.marker is not None
        and requirement.marker.evaluate(place)
    ]
    if python == "3.15":  # decord's own wheels are for any Python, on two systems
        has_it = has_it and machine in ("x86_64", "AMD64")
    assert len(wanted) == has_it
    assert "decord" in DECLARED["optional-dependencies"]


def test_what_is_imported_is_declared() -> None:
    """Else it is there only as long as another package happens to bring it."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for package in ("extract", "micu")
        for path in (PROJECT / package).rglob("*.py")
    ]
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module))
    imported = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    called = {"cv2": "opencv-contrib-python-headless", "PIL": "pillow", "decord": "decord2"}
    called |= {
        "pi_heif": "pi-heif",
        "rich_click": "rich-click",
        "huggingface_hub": "transformers",
        "tokenizers": "transformers",
    }
    extras = {"distributed", "sklearn", "tensorboard"}
    declared = {requirement.name for requirement in REQUIREMENTS}

    ours = {"micu_extract", "micu"}
    assert {called.get(name, name) for name in imported - extras - ours} <= declared


def test_a_folder_of_the_user_s_called_extract_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "extract").mkdir()
    (tmp_path / "extract/__init__.py").write_text("raise ImportError('not what was asked for')")
    # As a shell does that starts Python in the folder: what is there comes first.
    code = "import sys; sys.path.insert(0, ''); from micu_extract.cli import cli; cli(['list'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "swinv2" in done.stdout


def test_an_image_gets_what_an_installation_needs() -> None:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()

    assert lines[0] == "**"
    needed = {"pyproject.toml", DECLARED["readme"], *DECLARED["license-files"]}
    assert needed | {"micu", "extract"} == {line[1:] for line in lines if line.startswith("!")}
    assert 'ENTRYPOINT ["micu"]' in (PROJECT / "Dockerfile").read_text()
    assert "micu" in DECLARED["scripts"]
