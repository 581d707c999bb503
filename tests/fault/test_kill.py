"""kill -9 at any moment, then the same command: the bytes of an uninterrupted run."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from micu_extract.sets.verify import verify_set
from tests.conftest import PROJECT
from tests.toy import Toy, extract_manifest, shard_bytes, toy_plan, toy_read

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
