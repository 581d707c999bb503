"""`micu-train --devices`: one command, several processes, the exit codes and signals of one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from micu.cli.train import main
from micu.train.processes import launch
from micu.train.processes.launch import train_on
from tests.conftest import PROJECT
from tests.feature_sets import make_clips, write_features
from tests.training import arguments, contents, metrics

CALM = ("--set", "encoder.dropout=0")


def start(tmp_path, *more):
    typed = arguments(tmp_path / "features", tmp_path / "two", *more, modalities="v,a")
    place = typed.index("--device")
    typed[place : place + 2] = ["--devices", "cpu:2"]
    return subprocess.Popen(
        [sys.executable, "-m", "micu.cli.train", *typed],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks(process):
    """Processes that it has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in children.read_text().split()]


@pytest.fixture
def features(tmp_path):
    write_features(tmp_path / "features", make_clips(21))
    return tmp_path / "features"


def test_two_processes_of_one_command_train_what_one_does(tmp_path, features):
    settings = ("--set", "optimizer.max_steps=3", *CALM)
    alone = CliRunner().invoke(main, arguments(features, tmp_path / "one", *settings))
    assert alone.exit_code == 0, alone.output

    process = start(tmp_path, *settings, "--json")
    printed, told = process.communicate(timeout=600)

    assert process.returncode == 0, told
    assert printed.count("\n") == 1
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert two["total"] == pytest.approx(one["total"], rel=1e-4)
    assert contents(tmp_path / "two/last.pt")["step"] == 3


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_signal_stops_all_and_a_process_that_is_killed_takes_the_others_along(tmp_path, features):
    process = start(tmp_path, "--save-every", "1", "--set", "optimizer.epochs=100000")
    wait_for_steps(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 75, told
    assert "stopped by SIGTERM after step" in told

    process = start(tmp_path, "--resume", "--save-every", "1", "--set", "optimizer.epochs=100000")
    wait_for_steps(process, tmp_path)
    _, second = ranks(process)
    os.kill(second, signal.SIGKILL)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 75, told
    assert re.search(r"^process 1 of the training ended with SIGKILL; .*--resume", told, re.M)


def wait_for_steps(process, tmp_path):
    before = set(tmp_path.glob("two/step-*"))
    while len(set(tmp_path.glob("two/step-*")) - before) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 0), 0), ((0, 3), 3), ((2, 71), 2), ((2, -9), 75), ((-15, 0), 75)]
)
def test_a_run_ends_with_the_code_of_the_process_that_had_trouble(codes, code):
    assert launch._join_codes(codes) == code


def test_processes_see_the_gpus_that_were_named_among_those_there_are(monkeypatch):
    begun = []

    class Done:
        returncode = 0

        def __init__(self, command, env, **options):
            begun.append((command[-2:], env))

        def poll(self):
            return 0

        def wait(self):
            return 0

        def kill(self):
            pass

    monkeypatch.setattr("subprocess.Popen", Done)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(launch, "count_cores", lambda: 5)
    assert train_on(("cuda:1", "cuda:3"), ["--seed", "3"]) == 0
    assert [command for command, _ in begun] == [["--device", "cuda"]] * 2
    keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    found = [[environment[key] for key in keys] for _, environment in begun]
    assert found == [["0", "0", "2", "5,7", "2"], ["1", "1", "2", "5,7", "2"]]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    train_on(("cuda:0",), [])
    assert begun[-1][1]["CUDA_VISIBLE_DEVICES"] == "0"
    train_on(("cpu",) * 9, [])
    assert begun[-1][0] == ["--device", "cpu"]
    assert begun[-1][1]["OMP_NUM_THREADS"] == "1"


def test_devices_are_refused_beside_what_says_otherwise(tmp_path):
    typed = arguments(tmp_path, tmp_path / "out", "--devices", "cpu:2")
    told = CliRunner().invoke(main, typed).output
    assert "--devices: expected nothing else that says where to train, got --device cpu" in told
    sweep = CliRunner().invoke(main, ["--devices", "cpu:2", "--seeds", "3"])
    assert (
        "--sweep and --seeds: expected one process for each run, got 2; type --jobs" in sweep.output
    )
