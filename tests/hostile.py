"""Readers that do to their worker what hostile media do to a decoder; importable by workers."""

import ctypes
import errno
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from micu.base.errors import ExtraError, StoreError
from micu.store.manifest import Clip
from micu_extract.backbones.base import Media
from micu_extract.pipeline.probe import ReadProbe
from tests.toy import toy_read


def hostile_read(clip: Clip) -> Media:
    """Read a toy clip; the first word of its text may be a deed."""
    deed, _, rest = clip.text.partition(" ")
    if deed == "hang":
        ctypes.CDLL(None).sleep(600)  # in C, where no Python signal handler runs
    if deed == "deaf":  # hangs, and does not end when it is asked to
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(600)
    if deed == "spin":
        while True:
            pass
    if deed == "work":  # needs so much of a core
        seconds, _, marker = rest.partition(" ")
        if marker:
            Path(marker).touch()
        started = time.process_time()
        while time.process_time() - started < float(seconds):
            pass
    if deed == "last":  # takes so long, asleep
        time.sleep(float(rest))
    if deed == "stop":  # stands still for so long, and goes on
        seconds = shlex.quote(rest)
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "segfault":
        ctypes.string_at(0)
    if deed == "exit":
        os._exit(7)
    if deed == "once":
        marker = Path(rest)
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if deed == "fatal":
        raise ExtraError("decord", "decord")
    if deed == "device":
        raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")  # torch's
    if deed == "full":
        raise StoreError("the cache: make room") from OSError(errno.ENOSPC, "no space")
    if deed == "slow":
        time.sleep(0.3)
    return toy_read(clip)


def read_hostile(clip: Clip, names: Sequence[str]) -> dict[str, Media]:
    """The same, for several backbones."""
    return dict.fromkeys(names, hostile_read(clip))


def array_read(clip: Clip, name: str) -> Media:
    """One large array, or a list of them; drawn from the clip's id and the name."""
    rng = np.random.default_rng([int(clip.clip_id), ord(name)])
    if clip.text == "one":
        return Media(rng.integers(0, 256, (3, 50, 40, 3), np.uint8), np.arange(3.0), 3.0, 3)
    windows = [rng.normal(size=size).astype(np.float32) for size in (8000, 8000, 123)]
    return Media(windows, np.arange(3.0), 3.0, 3)


def read_arrays(clip: Clip, names: Sequence[str]) -> dict[str, Media]:
    """Arrays for several backbones."""
    return {name: array_read(clip, name) for name in names}


def read_threads(clip: Clip, names: Sequence[str]) -> dict[str, Media]:
    """How many threads torch has here."""
    import torch

    media = Media(["x"], np.zeros(0), 0.0, 1, {"threads": torch.get_num_threads()})
    return dict.fromkeys(names, media)


def dying_start(most_bytes: int | None, reports: object) -> None:
    """End a worker before it has taken a clip."""
    os.kill(os.getpid(), signal.SIGKILL)


class HostileProbe:
    """A probe of files, some of which do to their worker what their name says."""

    def __init__(self, media_root: Path) -> None:
        self.media_root = media_root

    def __call__(self, clip: Clip, names: Sequence[str]) -> Mapping[str, Media]:
        hostile_read(Clip(clip_id="", text=Path(clip.path).stem))
        return ReadProbe(self.media_root)(clip, names)
