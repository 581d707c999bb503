"""One of several training processes dies: torchrun starts them again, and the run ends the same."""

import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.feature_sets import make_clips, write_features
from tests.training import arguments, assert_same_run

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.mark.slow
def test_a_run_whose_process_is_killed_ends_as_one_that_was_left_alone(tmp_path):
    features = tmp_path / "features"
    write_features(features, make_clips(21))
    settings = ("--set", "optimizer.max_steps=5", "--save-every", "2")

    def run(out, *launcher, misfortune):
        typed = arguments(features, tmp_path / out, *settings, modalities="v,a,t")
        return subprocess.run(
            [*TORCHRUN, *launcher, "-m", "tests.misfortune", *typed],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MISFORTUNE": misfortune},
            capture_output=True,
            text=True,
            timeout=1200,
        )

    whole = run("whole", misfortune=f"SIGKILL 5 0 {tmp_path / 'never'}")
    killed = run("killed", "--max-restarts", "2", misfortune=f"SIGKILL 1 3 {tmp_path / 'once'}")

    assert whole.returncode == 0, whole.stderr
    assert killed.returncode == 0, killed.stderr
    assert (tmp_path / "once").exists()
    assert "exitcode: -9" in killed.stderr
    assert "another process of the run has ended" in killed.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
