"""The demo's shell and its folder: it stops at surprises and removes only what is its own."""

import sys
import time
from pathlib import Path

import pytest

from micu.base.errors import ConfigError
from micu_extract.demo import tour as demo
from micu_extract.demo.tour import MARKER, DemoError, Shell, prepare_folder

TOOL = """
import pathlib, sys, time

def main():
    print("said", *sys.argv[1:])
    if sys.argv[1] == "wait":
        pathlib.Path("sign").touch()
        time.sleep(600)
        pathlib.Path("end").touch()
    sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    (tmp_path / "toy_tool.py").write_text(TOOL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(demo, "TOOLS", {"toy": "toy_tool:main"})
    (tmp_path / "work").mkdir()
    return Shell(tmp_path / "work")


def test_a_command_is_shown_as_a_user_would_type_it(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run("toy", "two words", "0")

    shown = capsys.readouterr().out
    assert "$ toy 'two words' 0" in shown
    assert "said" not in shown
    assert sys.executable not in shown
    assert (shell.folder / "demo.log").read_text() == "\n$ toy 'two words' 0\nsaid two words 0\n"


def test_an_exit_code_that_was_not_expected_stops_the_demo(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run("toy", "fine", "3", expect=(0, 3))
    with pytest.raises(DemoError, match="expected exit code 0, got 3"):
        shell.run("toy", "bad", "3")
    assert "said bad 3" in capsys.readouterr().out


def test_a_long_command_can_be_copied_from_a_narrow_screen(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"word{n}" for n in range(30)]
    shell.run("toy", "0", "0", *words)

    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.replace("\\\n", "").split() == [
        "$",
        "toy",
        "0",
        "0",
        *(f"word{n}" for n in range(30)),
    ]


def test_a_command_is_killed_once_its_sign_is_there(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    shell.kill_once("toy", "wait", "0", sign="sign")

    assert time.monotonic() - started < 300
    assert "kill -9: killed on purpose" in capsys.readouterr().out
    assert not (shell.folder / "end").exists()


def test_a_command_that_ends_before_it_can_be_killed_is_said_to(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.kill_once("toy", "quick", "0", sign="never")

    assert "kill -9: had finished before it was killed" in capsys.readouterr().out


def test_commands_beside_each_other_end_with_the_first_that_fails(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "count_cores", lambda: 2)
    shell.run_beside([("toy", "a", "0"), ("toy", "b", "0"), ("toy", "c", "0")])
    log = (shell.folder / "demo.log").read_text()
    assert all(f"said {name} 0" in log for name in "abc")
    started = time.monotonic()
    with pytest.raises(DemoError, match="bad"):
        shell.run_beside([("toy", "bad", "3"), ("toy", "wait", "0")])
    assert time.monotonic() - started < 300
    assert not shell.at_work
    assert not (shell.folder / "end").exists()


def test_models_have_one_thread_and_extraction_has_all(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (shell.folder.parent / "toy_tool.py").write_text(
        "import os\ndef main(): print('threads', os.environ.get('OMP_NUM_THREADS'))"
    )
    monkeypatch.setattr(demo, "TOOLS", dict.fromkeys(("micu-extract", "toy"), "toy_tool:main"))
    shell.run("micu-extract")
    shell.run("toy")
    log = (shell.folder / "demo.log").read_text()
    assert log.index("threads None") < log.index("threads 1")


def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media/mine.mp4").write_text("mine")

    with pytest.raises(ConfigError, match="nothing was touched"):
        prepare_folder(tmp_path, keep=False)
    assert (tmp_path / "media/mine.mp4").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["media"]


@pytest.mark.parametrize("keep", [False, True])
def test_an_earlier_demo_is_removed_unless_it_is_kept(tmp_path: Path, *, keep: bool) -> None:
    prepare_folder(tmp_path, keep=False)
    for name in ("media/a.mp4", "features/x/set.json", "runs/seed-1/last.pt", "notes/own.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name in ("manifest.csv", "known.csv", "results.csv"):
        (tmp_path / name).touch()

    prepare_folder(tmp_path, keep=keep)

    found = {path.name for path in tmp_path.iterdir()}
    made = {"media", "features", "runs", "manifest.csv", "known.csv"}
    assert found == {MARKER, "notes", *(made if keep else ())}


def test_every_tool_stands_behind_a_script_of_the_project() -> None:
    import tomllib

    project = Path(__file__).parents[2] / "pyproject.toml"
    scripts = tomllib.loads(project.read_text())["project"]["scripts"]
    assert {name: scripts[name] for name in demo.TOOLS} == demo.TOOLS
