import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.base.command_line import ArrayJob, array_script
from micu.base.errors import ConfigError
from micu_extract.cluster.commands import slurm
from tests.conftest import PROJECT

GOLDEN = PROJECT / "tests" / "golden" / "slurm.sh"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(slurm, arguments)


def test_the_script_is_the_one_that_was_read_over() -> None:
    done = invoke(
        *("video", "--parts", "8", "--gpus", "1", "--time", "24:00:00", "--partition", "long"),
        *("--", "my list.csv", "--backbone", "swinv2", "--out", "/data/it's"),
    )
    assert done.exit_code == 0, done.output
    assert done.output == GOLDEN.read_text()


def test_bash_understands_the_script() -> None:
    done = subprocess.run(["bash", "-n", GOLDEN], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_that_were_typed_stay() -> None:
    typed = invoke("text", "--parts", "2", "--", "m.csv", "--workers=3").output
    assert "--workers=3 --part" in typed
    assert (
        "micu-extract text m.csv --workers 4 --part"
        in invoke("text", "--parts", "2", "m.csv").output
    )


@pytest.mark.parametrize("option", ["--part=1/2", "--overwrite", "--retry-failed", "--dask"])
def test_what_parts_cannot_do_is_refused(option: str) -> None:
    done = invoke("text", "--parts", "2", "--", "m.csv", option)
    assert isinstance(done.exception, ConfigError)
    assert f"expected arguments without {option}: " in str(done.exception)


# --- what the script does, with stand-ins for Slurm's commands ---------------------------------


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm_environment(tmp_path: Path) -> dict[str, str]:
    program(tmp_path / "srun", 'shift; exec "$@"')
    program(tmp_path / "scontrol", f'echo "$@" >> {tmp_path}/scontrol.log')
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "2",
    }


def start(tmp_path: Path, environment: dict[str, str], extract: str) -> "subprocess.Popen[str]":
    program(tmp_path / "micu-extract", extract)
    script = invoke("text", "--parts", "3", "--cpus", "1", "a b.csv").output
    (tmp_path / "job.sh").write_text(script)
    return subprocess.Popen(
        ["bash", tmp_path / "job.sh"], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (2, False), (3, False), (75, True), (137, False)]
)
def test_a_task_that_was_stopped_goes_back_into_the_queue(
    tmp_path: Path, slurm_environment: dict[str, str], code: int, requeued: bool
) -> None:
    with start(tmp_path, slurm_environment, f'echo "$*"; exit {code}') as job:
        output, _ = job.communicate(timeout=600)
    assert job.returncode == code
    assert output == "text a b.csv --workers 1 --part 2/3\n"
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 77\n" if requeued else "")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_end_is_waited_for(
    tmp_path: Path, slurm_environment: dict[str, str], number: signal.Signals
) -> None:
    extract = "trap 'sleep 0.5; echo drained; exit 75' USR1\necho go\nwhile :; do sleep 0.05; done"
    with start(tmp_path, slurm_environment, extract) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "go\n"
        job.send_signal(number)
        time.sleep(0.1)
        job.send_signal(number)  # Slurm may say it twice
        output, _ = job.communicate(timeout=600)
    assert output == "drained\n"
    assert job.returncode == 75
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"


# --- what a script must not hold ---------------------------------------------------------------


@pytest.mark.parametrize(
    "char", ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x9b", "\u202e", "\udcff"]
)
@pytest.mark.parametrize("place", ["argument", "out", "time", "partition"])
def test_a_script_holds_no_control_characters(char: str, place: str) -> None:
    text = f"x{char}touch owned"
    asked = [
        word for name in ("time", "partition") if place == name for word in (f"--{name}", text)
    ]
    words = ["m.csv", "--out", text if place == "out" else "f"]
    done = invoke("text", "--parts", "2", *asked, "--", *words, *[text] * (place == "argument"))
    told = str(done.exception)
    assert isinstance(done.exception, ConfigError)
    assert "expected arguments of printable text, got " in told
    assert repr(char) in told
    assert char not in told
    assert len(told) < 400


def test_the_script_of_a_sweep_holds_none_either() -> None:
    job = ArrayJob(name="x", what="x", tasks=1, command="true", notes=["fine", "x\nrm"], cpus=1)
    with pytest.raises(ConfigError, match="printable text"):
        array_script(job)


def test_what_a_shell_would_understand_is_quoted(tmp_path: Path) -> None:
    hostile = "a 'b' \"c\" $(touch owned) `touch owned` \\ ; & 日本"
    script = tmp_path / "job.sh"
    script.write_text(invoke("text", "--parts", "2", "--", "m.csv", "--out", hostile).output)
    program(tmp_path / "srun", 'shift 2; printf "%s\\n" "$@"')
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert hostile in done.stdout.splitlines()
    assert not (tmp_path / "owned").exists()
