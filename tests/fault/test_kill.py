"""kill -9 at any moment, then the same command: the bytes of an uninterrupted run."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from micu.store.manifest import Clip, write_manifest
from micu_extract.sets.verify import verify_set
from tests.conftest import PROJECT
from tests.toy import Toy, extract_manifest, shard_bytes, toy_clips, toy_plan, toy_read

SCRIPT = """
import sys
from pathlib import Path
import micu_extract.pipeline.writer as writer
from tests.toy import Toy, extract_manifest, toy_plan, toy_read
writer.FLUSH_S = 0.02
plan = toy_plan(Path(sys.argv[1]), count=60)
print("go", flush=True)
extract_manifest(plan, Toy(delay_s=0.004), toy_read, workers=2)
"""


@pytest.mark.parametrize("seed", range(1))
def test_killed_runs_leave_the_bytes_of_an_uninterrupted_one(tmp_path: Path, seed: int) -> None:
    whole = extract_manifest(toy_plan(tmp_path / "whole", count=60), Toy(), toy_read)
    draw = random.Random(seed)
    folder = tmp_path / "killed"
    kills = 0
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder)], cwd=PROJECT, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert kills >= 1
    last = extract_manifest(toy_plan(folder, count=60), Toy(), toy_read)
    assert verify_set(Path(last.folder), data=True).problems == ()
    assert shard_bytes(Path(last.folder)) == shard_bytes(Path(whole.folder))


ADD = """
import sys
from pathlib import Path
import micu_extract.pipeline.writer as writer
from tests.toy import Toy, extract_manifest, toy_plan, toy_read
writer.FLUSH_S = 0.02
print("go", flush=True)
extract_manifest(toy_plan(Path(sys.argv[1])), Toy(delay_s=0.05), toy_read, workers=2)
"""


ADDED = 120
"""Rows that take longer than all runs together that are killed over them."""


def add_rows(folder: Path) -> None:
    """Add rows in front of, between and after those of a manifest, and change one."""
    clips = toy_clips(30)
    clips[4] = replace(clips[4], text="quite another sentence")
    new = [Clip(clip_id=f"new {i}", text=f"added number {i}") for i in range(ADDED)]
    new[7] = replace(new[7], text="bad")
    write_manifest(
        folder / "toys.csv", [*new[:20], *clips[:12], *new[20:40], *clips[12:], *new[40:]]
    )


def test_twenty_kills_while_rows_are_added_leave_the_bytes_of_an_uninterrupted_run(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        extract_manifest(toy_plan(folder, count=30), Toy(), toy_read)
        add_rows(folder)
    before = shard_bytes(toy_plan(folders[0]).folder)
    whole = extract_manifest(toy_plan(folders[0]), Toy(), toy_read)
    assert (whole.extracted, whole.failed) == (ADDED, 1)
    draw = random.Random(0)
    kills = 0
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", ADD, str(folders[1])], cwd=PROJECT, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert kills == 20
    last = toy_plan(folders[1])
    assert 0 < last.todo < ADDED + 1
    extract_manifest(last, Toy(), toy_read)
    assert verify_set(last.folder, data=True).problems == ()
    after = shard_bytes(last.folder)
    assert after == shard_bytes(Path(whole.folder))
    del before["failures.csv"]
    assert {name: after[name] for name in before} == before


def test_a_full_disk_leaves_no_half_shard_and_a_resumable_run(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\n"
        "from tests.toy import *\n"
        "plan = toy_plan(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "extract_manifest(plan, Toy(), toy_read)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True
    )
    assert "File too large" in done.stderr
    folder = tmp_path / "features" / "toys" / "text-toy"
    assert not list(folder.glob("*.h5"))
    assert not list(folder.glob(".*"))
    extract_manifest(toy_plan(tmp_path), Toy(), toy_read)
    assert verify_set(folder, data=True).problems == ()
