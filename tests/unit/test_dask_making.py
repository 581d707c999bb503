"""What makes features on a machine is told apart from what makes them on another."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import micu_extract.cluster.dask.making as making
from micu_extract.cluster.dask.making import (
    ask_for_making,
    describe_making,
    tell_differences,
)
from tests.conftest import PROJECT


def copy_code(folder: Path) -> Path:
    """Our packages, without what Python keeps beside them."""
    for package in ("extract", "micu"):
        shutil.copytree(
            PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def ask_in(folder: Path, *modules: str) -> dict[str, str]:
    """What a Python that finds code in a folder says."""
    done = subprocess.run(
        [sys.executable, *making.PROGRAM],
        input=json.dumps([["numpy"], list(modules)]),
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'extract'}"},
        capture_output=True,
        check=True,
        text=True,
    )
    told: dict[str, str] = json.loads(done.stdout)
    return told


def test_an_equal_copy_is_the_same_micu_and_an_edited_one_another(tmp_path: Path) -> None:
    copy = copy_code(tmp_path)
    here = describe_making(["numpy"], [])
    assert ask_in(copy) == here
    assert tell_differences(here, ask_in(copy)) == []

    (copy / "extract/micu_extract" / "__pycache__").mkdir(exist_ok=True)
    (copy / "extract/micu_extract" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    (copy / "micu" / "notes.txt").write_text("x")
    assert ask_in(copy) == here

    code = copy / "extract/micu_extract" / "backbones" / "vggish.py"
    code.write_text(code.read_text() + "# half as loud\n")
    (told,) = tell_differences(here, ask_in(copy))
    assert told.startswith("micu code ")
    assert told.endswith(f"(here {here['micu']})")


@pytest.mark.parametrize("change", ["rename", "add", "remove", "micu"])
def test_every_change_of_a_file_of_code_is_another_micu(tmp_path: Path, change: str) -> None:
    copy = copy_code(tmp_path)
    before = ask_in(copy)
    if change == "rename":
        (copy / "extract/micu_extract/demo/tour.py").rename(copy / "extract/micu_extract/demo2.py")
    if change == "add":
        (copy / "extract/micu_extract/backbones/extra.py").touch()
    if change == "remove":
        (copy / "extract/micu_extract/demo/tour.py").unlink()
    if change == "micu":
        (copy / "micu/store/manifest.py").write_text(
            (copy / "micu/store/manifest.py").read_text() + "#\n"
        )
    assert ask_in(copy)["micu"] != before["micu"]


def test_modules_of_a_users_own_count(tmp_path: Path) -> None:
    copy = copy_code(tmp_path)
    (copy / "mine.py").write_text("GAIN = 1\n")
    first = ask_in(copy, "mine", "gone")
    assert first["module mine"].startswith("code ")
    assert first["module gone"] == "none"
    (copy / "mine.py").write_text("GAIN = 2\n")
    (told,) = tell_differences(first, ask_in(copy, "mine", "gone"))
    assert told.startswith("module mine code ")
    (copy / "mine.py").unlink()
    assert ask_in(copy, "mine", "gone")["module mine"] == "none"


def test_what_is_asked_runs_as_shares_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(copy_code(tmp_path) / "extract"), prepend=os.pathsep)
    assert ask_for_making(["numpy", "no-such"], []) == describe_making(["numpy", "no-such"], [])
    monkeypatch.setattr(making, "PROGRAM", ("-c", "raise SystemExit(1)"))
    assert ask_for_making(["numpy"], []) == {}
    monkeypatch.setattr(making, "PROGRAM", ("-c", "print('no JSON')"))
    assert ask_for_making(["numpy"], []) == {}
    monkeypatch.setattr(making, "PROGRAM", ("-c", ""))
    assert ask_for_making(["numpy"], []) == {}


def test_what_another_machine_says_is_told_in_bounds() -> None:
    (told,) = tell_differences({"torch": "2"}, {"torch": "9" * 10_000})
    assert len(told) < 100
