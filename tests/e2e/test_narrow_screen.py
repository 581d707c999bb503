"""On a screen of 80 columns nothing that people read is wider."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PYTHONPATH
from tests.feature_sets import make_clips, write_features
from tests.oracle import write_checkpoint, write_sets

fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")

TYPE = """
import shlex, sys
from importlib import import_module
from micu.cli import TOOLS
for line in sys.argv[1:]:
    sys.argv = shlex.split(line)
    try:
        import_module(TOOLS[sys.argv[0].removeprefix("micu-")][0]).main()
    except SystemExit as end:
        if end.code:
            raise
"""
EVERY_HELP = """
import click
from importlib import import_module
from micu.base.process import guard_screen
from micu.cli import TOOLS, umbrella
guard_screen()

def show(name, command):
    print(command.get_help(command.make_context(name, [], resilient_parsing=True)))
    if isinstance(command, click.Group):
        for part, below in command.commands.items():
            show(f"{name} {part}", below)

show("micu", umbrella)
for name, (module, _) in TOOLS.items():
    module = import_module(module)
    show(f"micu-{name}", getattr(module, "cli", None) or module.main)
"""
CLASSES = ("drum", "engine", "violin")


def shown(code: str, *lines: str, folder: Path, columns: int = 80) -> list[str]:
    """What a process writes on a screen so wide, line by line."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    plain = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-c", code, *lines],
        cwd=folder,
        env={**plain, "PYTHONPATH": PYTHONPATH, "PYTHONIOENCODING": "utf-8", "TERM": "xterm"},
        stdin=its,
        stdout=its,
        stderr=its,
    ) as process:
        os.close(its)
        text = b""
        while True:
            try:
                got = os.read(ours, 65536)
            except OSError:  # Linux says so that nobody holds the other end any more
                break
            if not got:
                break
            text += got
    os.close(ours)
    assert process.returncode == 0, text.decode()
    return text.decode().replace("\r\n", "\n").split("\n")


def too_wide(lines: list[str], columns: int = 80) -> list[str]:
    return [line for line in lines if len(line.rpartition("\r")[2]) > columns]


def test_help_of_every_command_fits(tmp_path: Path) -> None:
    lines = shown(EVERY_HELP, folder=tmp_path)

    assert len(lines) > 300
    assert too_wide(lines) == []


def test_the_list_of_backbones_and_the_status_fit(tmp_path: Path) -> None:
    write_features(tmp_path / "features", make_clips())
    lines = shown(TYPE, "micu-extract list --all", "micu-extract status features", folder=tmp_path)

    assert any("rows = 24 stored" in line for line in lines)
    assert any(line.startswith("swinv2-demo") for line in lines)
    assert too_wide(lines) == []
    plain = shown(TYPE, "micu-extract list", folder=tmp_path)
    assert any(line.startswith("swinv2 ") for line in plain)
    assert not any("-demo" in line for line in plain)


def test_the_table_of_an_evaluation_fits_and_has_what_matters(tmp_path: Path) -> None:
    clips = make_clips(48, splits=("train", "test"))
    write_sets(tmp_path, "toy", clips, "avt", CLASSES)
    write_checkpoint(tmp_path / "last.pt", tmp_path / "features")
    (tmp_path / "known.csv").write_text("label\ndrum\nengine\n")
    line = "micu-eval oscmg last.pt --pairs v:a,a:v --known known.csv --score all --seeds 2"
    lines = shown(TYPE, f"{line} --chance", folder=tmp_path)

    assert too_wide(lines) == []
    (header,) = (text for text in lines if "from → to" in text)
    assert {"method", "HOS", "protocol", "threshold"} <= set(header.split())
    wide = shown(TYPE, line, folder=tmp_path, columns=250)
    (header,) = (text for text in wide if "from → to" in text)
    assert {"OS*", "UNK", "runs"} <= set(header.split())
