"""Runs of `micu-extract` in processes of their own, so that they can be killed, and a backbone for
them: real media, real worker processes, and no torch to load."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.store.manifest import Clip, write_manifest
from micu.store.shard import FeatureSpec, Steps
from micu_extract.backbones.base import BACKBONES, Gives, Media, Run, WaveformInput
from tests.conftest import PYTHONPATH
from tests.media_files import tone, write_media

DELAY = "MICU_TEST_DELAY_S"
"""Environment variable: how long the backbone takes over a batch, s."""
VERSION, SHIFT = "MICU_TEST_VERSION", "MICU_TEST_SHIFT"
"""Environment variables: the version of what the toy is made with, and what it adds to values."""
RUN_S = 900.0
"""No run here takes longer, s."""


@BACKBONES.register("toy-sound")
class ToySound:
    """Mean, spread and peak of each second of sound."""

    gives = Gives(modality="audio", shape=(3,), hop_s=1.0, weights="none", licence="none")
    wants = WaveformInput(sample_rate=8000, window_s=1.0)
    OPTIONS: ClassVar[dict[str, object]] = {}
    batch_size = 3

    def __init__(self, weights: str = "random", run: Run | None = None) -> None:
        self.delay_s = float(os.environ.get(DELAY, "0"))
        self.spec = FeatureSpec(
            backbone="toy-sound",
            modality="audio",
            shape=(3,),
            hop_s=1.0,
            weights=weights,
            weights_sha256=hashlib.sha256(weights.encode()).hexdigest(),
            versions={"toylib": os.environ.get(VERSION, "1")},
        )

    def encode(self, units: Sequence[NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        time.sleep(self.delay_s)
        shift = float(os.environ.get(SHIFT, "0"))
        found = [np.array([unit.mean(), unit.std(), unit.max()], np.float32) for unit in units]
        return [values + np.float32(shift) for values in found]

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        steps = len(outputs)
        return Steps(np.stack(outputs), np.ones(steps, bool), np.arange(float(steps)) + 0.5)


def write_sounds(folder: Path, count: int) -> None:
    """A manifest `m.csv` of `count` clips, cut from four files; the third clip has no file."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(4):
        write_media(folder / f"{i}.wav", sound=tone(3, 8000, 220 + i), sound_codec="pcm_s16le")
    clips = [
        Clip(
            clip_id=f"clip {i}",
            path="missing.wav" if i == 2 else f"{i % 4}.wav",
            start_s=i % 2,
            end_s=1 + i % 2 + i % 3 / 2,
        )
        for i in range(count)
    ]
    write_manifest(folder / "m.csv", clips)


SOUNDS = ("audio", "m.csv", "--backbone", "toy-sound", "--workers", "2", "--shard-rows", "2")
"""Arguments of a run over `write_sounds`."""


def start(
    folder: Path,
    *words: str,
    before: str = "",
    delay_s: float = 0.0,
    terminal: int | None = None,
    site: Path | None = None,
) -> "Process":
    """Begin `micu-extract WORDS` in `folder`; its weights are random, its device the CPU.

    Args:
        folder: Working directory.
        words: Arguments.
        before: Code that runs before it, in the same process.
        delay_s: What a toy's network takes over a batch, s.
        site: Folder whose `sitecustomize.py` every process reads first.
        terminal: Handle of one that the run belongs to and writes to; None gives it a pipe.
    """
    if terminal is not None:
        before = f"import fcntl, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0)\n{before}"
    script = f"import tests.runs, tests.toy\nfrom micu_extract.cli import main\n{before}\nmain()\n"
    options = ("--weights", "random") if words[0] in MODALITIES else ()
    options += ("--device", "cpu") if options and "--devices" not in words else ()
    python_path = PYTHONPATH if site is None else f"{site}:{PYTHONPATH}"
    return subprocess.Popen(
        [sys.executable, "-c", script, *words, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": python_path, DELAY: str(delay_s)},
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


MODALITIES = ("video", "audio", "flow", "text")
Process = subprocess.Popen[str]


def finish(process: Process) -> tuple[int, str]:
    """Exit code and what was printed, once a run has ended."""
    output, _ = process.communicate(timeout=RUN_S)
    return process.returncode, output


def run(folder: Path, *words: str, before: str = "") -> tuple[int, str]:
    """A run from start to end; see `start`."""
    return finish(start(folder, *words, before=before))


def wait_for_announcement(process: Process) -> None:
    """Return once a run is past its imports and its plan, and begins."""
    assert process.stdout is not None
    lines = []
    while "clips to extract" not in (line := process.stdout.readline()):
        lines.append(line)
        assert line, "".join(lines)


def wait_for_shard(process: Process, folder: Path) -> None:
    """Return once a run has published its first shard."""
    while not list(folder.rglob("shard-*.h5")):
        assert process.poll() is None, finish(process)
        time.sleep(0.01)


def processes_of(session: int) -> set[int]:
    """Processes of a session that are alive."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if entry.name.isdigit() and fields[0] != "Z" and int(fields[3]) == session:
            found.add(int(entry.name))
    return found


def left_over(session: int, patience_s: float = 120.0) -> set[int]:
    """Processes that a run which has ended leaves behind; they are killed."""
    deadline = time.monotonic() + patience_s
    while processes_of(session) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = processes_of(session)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return left


def set_bytes(folder: Path) -> dict[str, bytes]:
    """Bytes of every shard and ledger below a folder, by name."""
    paths = [*folder.rglob("shard-*.h5"), *folder.rglob("failures.csv")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def half_files(folder: Path) -> list[Path]:
    """Temporary files below a folder."""
    return list(folder.rglob(".*.partial"))
