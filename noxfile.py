"""Everything that a change must pass, on every Python that is here: `nox`.

`nox -s suite` is the whole suite on the Python that runs nox. `elsewhere-3.12` and its like install
micu as the README says on another Python of this machine, show the demo, and run the tests of
decoding, the store and the commands. `oldest` does so with the oldest versions that pyproject.toml
allows.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

PROJECT = Path(__file__).parent
MINORS = range(11, 15)
"""Of Python 3 that are supported."""
TESTS = (
    *(f"tests/e2e/test_{name}.py" for name in ("extract_cli", "evaluate", "import", "readme")),
    *(
        f"tests/fault/test_{name}.py"
        for name in ("odd_media", "runs", "vanished_folders", "workers")
    ),
    *(f"tests/unit/test_{name}.py" for name in ("decode", "decord", "flow_reader", "formats")),
    *(f"tests/unit/test_{name}.py" for name in ("late_media", "seeks", "sound", "stills")),
    *(f"tests/unit/test_{name}.py" for name in ("datasets", "manifest", "packaging", "pipeline")),
    *(f"tests/unit/test_{name}.py" for name in ("public_names", "store", "table", "writer")),
)
"""Decoding, the store, and the commands: what another Python or library version breaks first."""


def find_python(minor: int) -> str | None:
    """A Python of that version which starts, from the path or among those that pyenv keeps."""
    name = f"python3.{minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = sorted(pyenv.glob(f"versions/3.{minor}.*/bin/{name}"))
    for found in filter(None, (shutil.which(name), *map(str, reversed(kept)))):
        if subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


OTHERS = {
    f"elsewhere-3.{minor}": found
    for minor in MINORS
    if minor != sys.version_info.minor and (found := find_python(minor))
}
"""Sessions on other Pythons, with the path of each."""

nox.options.sessions = ["checks", "suite", *OTHERS, "oldest"]


def try_as_a_stranger(session: nox.Session, *constraints: str) -> None:
    """Install as the README says, show the demo, and test what breaks first.

    Args:
        session: On the Python to try.
        *constraints: Options of pip that hold versions back.
    """
    # Bytecode is compiled as it is needed: a minute less for each environment.
    session.install("--no-compile", *constraints, ".")
    demo = Path(session.create_tmp()) / "demo"
    session.run("micu-demo", "--quick", "--out", str(demo))
    session.install("--no-compile", *constraints, ".[test]")
    # Old libraries warn of what newer ones have changed since.
    quiet = ("-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning")
    session.run("pytest", *(quiet if constraints else ()), *(session.posargs or TESTS))


@nox.session(python=False)
def checks(session: nox.Session) -> None:
    """Format, lint, types, layers, and the documentation's links."""
    for command in ("ruff format --check .", "ruff check .", "mypy", "lint-imports"):
        session.run(*command.split())
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(python=False)
def suite(session: nox.Session) -> None:
    """Every test, in the environment that runs nox."""
    session.run("pytest", *session.posargs)


def elsewhere(session: nox.Session) -> None:
    """Another Python, with the newest versions of everything."""
    # Whatever pip is told to hold back here, a user elsewhere gets the newest.
    session.env["PIP_CONSTRAINT"] = os.devnull
    try_as_a_stranger(session)


for name, python in OTHERS.items():
    nox.session(elsewhere, name=name, python=python, venv_backend="venv")


@nox.session(venv_backend="venv")
def oldest(session: nox.Session) -> None:
    """The oldest versions that pyproject.toml allows."""
    constraints = Path(session.create_tmp()) / "oldest.txt"
    listed = subprocess.run(
        [sys.executable, PROJECT / ".ci/oldest.py"], capture_output=True, check=True
    )
    constraints.write_bytes(listed.stdout)
    try_as_a_stranger(session, "-c", str(constraints))
