"""`micu-train --sweep` from the command line: real processes, job scripts, and refusals."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.cli.evaluate import main as evaluate
from micu.cli.train import main
from micu.sweep.conduct import Launch
from tests.feature_sets import SMALL, make_clips, write_features

SETTINGS = [word for text in (*SMALL, "optimizer.max_steps=2") for word in ("--set", text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    write_features(root / "features", make_clips(48, ("train", "train", "val", "test")))
    (root / "known.csv").write_text("label\ndrum\nengine\n")
    return root


def words(folder: Path, out: Path, *more: str, settings: list[str] = SETTINGS) -> list[str]:
    where = ["--features", str(folder / "features"), "--out", str(out), "--device", "cpu"]
    return [*where, "--modalities", "v,a", *settings, *more]


def sweep(folder: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(main, words(folder, out, *more), catch_exceptions=False)


@contextmanager
def in_this_process(*_: object) -> Iterator[Launch]:
    """Runs the tools as processes of their own do, without the seconds that those take to start."""
    tools = {"micu.cli.train": main, "micu.cli.evaluate": evaluate}

    def launch(module: str, given: Sequence[str], log: Path) -> int:
        result = CliRunner().invoke(tools[module], list(given))
        log.write_text(result.output)
        return result.exit_code

    yield launch


def test_runs_are_done_evaluated_collected_and_not_repeated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("micu.cli.sweep.launcher", in_this_process)
    out = tmp_path / "out"
    out.mkdir()
    then = f"--pairs v:a --probe-epochs 1 --known {folder / 'known.csv'}"
    command = ("--sweep", "weights.jigsaw=none,2", "--then", then)
    # Of one run the folder holds something that is not this run's: it fails, the other does not.
    foreign = out / "weights.jigsaw=2-43"
    foreign.mkdir()
    (foreign / "step-000009.pt").write_bytes(b"")

    first = sweep(folder, out, *command)

    assert first.exit_code == 3, first.output
    assert "[1/2] weights.jigsaw=none-43: finished" in first.stderr
    assert "failed" in first.stderr
    assert "holds step-000009.pt but no config.json" in first.stderr
    done = out / "weights.jigsaw=none-43"
    assert json.loads((done / "config.json").read_text())["weights"]["jigsaw"] is None
    lines = (done / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert "jigsaw" not in json.loads(lines[-1])

    (foreign / "step-000009.pt").unlink()
    before = (done / "last.pt").stat().st_mtime_ns
    second = sweep(folder, out, *command)

    assert second.exit_code == 0, second.output
    assert (done / "last.pt").stat().st_mtime_ns == before
    assert "weights.jigsaw=none-43: finished: not repeated" in second.stderr
    with (out / "sweep.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    logged = {(line["weights.jigsaw"], line["metric"]) for line in table if line["task"] != "oscmg"}
    assert ("none", "fine") in logged
    assert ("2", "jigsaw") in logged
    assert ("none", "jigsaw") not in logged
    assert {line["setting"] for line in table if line["metric"] == "hos"} == {
        "weights.jigsaw=none",
        "weights.jigsaw=2",
    }
    assert "| weights.jigsaw=none | 1 |" in " ".join(second.stdout.split())
    assert "HOS" in second.stdout


@pytest.mark.slow
def test_a_sweep_that_is_terminated_lets_its_runs_save(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    endless = [word for text in (*SMALL, "optimizer.epochs=9999") for word in ("--set", text)]
    given = words(folder, out, "--seeds", "2", settings=endless)
    process = subprocess.Popen(
        [sys.executable, "-m", "micu.cli.train", *given], stderr=subprocess.PIPE, text=True
    )
    metrics = out / "micu-43" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()

    assert process.returncode == 75, told
    assert "stopped by SIGTERM; type the same command to go on" in told
    assert (out / "micu-43" / "last.pt").is_file()
    assert not (out / "micu-44").exists()
    assert not (out / "micu-43" / "finished.json").exists()


def test_every_run_is_told_what_was_typed_and_its_own_part_of_the_grid(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []

    @contextmanager
    def launcher(*_: object) -> Iterator[Launch]:
        def launch(module: str, given: Sequence[str], log: Path) -> int:
            begun.append([module, *given])
            return 1

        yield launch

    monkeypatch.setattr("micu.cli.sweep.launcher", launcher)
    more = ("--sweep", "preset=micu,paper", "--set", "seed=7", "--seeds", "2", "--part", "2/2")
    result = sweep(folder, tmp_path, *more, "--workers", "1", "--tensorboard")

    assert result.exit_code == 3
    assert not (tmp_path / "sweep.csv").exists()
    assert [given[given.index("--preset") + 1] for given in begun] == ["micu", "paper"]
    for given in begun:
        assert given[0] == "micu.cli.train"
        assert given[given.index("--workers") + 1] == "1"
        assert {"--tensorboard", "--resume"} <= set(given)
        assert not {"--sweep", "--seeds", "--part", "--jobs"} & set(given)
        context = main.make_context("micu-train", given[1:])
        assert context.params["assignments"][-1] == "seed=8"
        assert context.params["out"].parent == tmp_path
        assert context.params["modalities"] == "v,a"


@pytest.mark.parametrize(
    ("more", "gpus"),
    [
        (["--device", "auto", "--then", "--pairs v:a"], ["0", "1", "0"]),
        (["--device", "cuda:1"], []),
        (["--device", "auto", "--then", "--pairs v:a --device=cuda:1"], []),
    ],
)
def test_runs_share_the_gpus_unless_one_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], gpus: list[str]
) -> None:
    given: list[object] = []

    @contextmanager
    def launcher(*arguments: object) -> Iterator[Launch]:
        given.append(arguments[2])
        yield lambda module, words, log: 1

    monkeypatch.setattr("micu.cli.sweep.launcher", launcher)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sweep(folder, tmp_path, "--seeds", "3", "--jobs", "3", *more)
    assert given == [gpus]


def test_a_job_script_gives_every_task_its_own_run(folder: Path, tmp_path: Path) -> None:
    more = ("--sweep", "quantizer.ema_decay=0.9,0.99", "--seeds", "2", "--sweep-print", "slurm")
    result = sweep(folder, tmp_path / "it's", *more)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "it's").exists()
    assert "#SBATCH --array=1-4\n" in result.stdout
    assert "--gres" not in result.stdout
    script = tmp_path / "job.sh"
    script.write_text(result.stdout)
    for name, text in {"srun": 'shift; exec "$@"', "micu-train": 'printf "%s\\n" "$@"'}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    done = subprocess.run(
        ["bash", str(script)], env=environment, capture_output=True, text=True, check=True
    )
    params = main.make_context("micu-train", done.stdout.splitlines()).params
    assert params["part"] == "3/4"
    assert params["sweep"] == ("quantizer.ema_decay=0.9,0.99",)
    assert (params["seeds"], params["sweep_print"]) == (2, None)
    assert params["out"] == tmp_path / "it's"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--then", "--pairs v:a"], "--then: only a sweep reads it"),
        (["--jobs", "2", "--part", "1/2"], "--jobs, --part: only a sweep reads it"),
        (["--seeds", "2", "--resume"], "--resume: a sweep does not take it"),
        (["--seeds", "2", "--overwrite", "--json"], "--overwrite, --json: a sweep does not take"),
        (["--sweep", "encoder.heads=1,2"], "--sweep encoder.heads: has one value by another"),
        (["--sweep", "preset=micu", "--preset", "paper"], "--sweep preset: has one value by"),
        (["--sweep", "modalities=audio,text;audio,video"], "--sweep modalities: has one value by"),
        (["--sweep", "mmjp.hidden_dim=0"], "mmjp.hidden_dim: expected at least 1, got 0"),
        (["--seeds", "2", "--then", "--pears v:a"], "--then: No such option"),
        (
            ["--seeds", "2", "--then", "report r.csv -o r.html"],
            "--then: -o: only micu-eval report",
        ),
        (["--seeds", "2", "--then", "--task report"], "--then: unknown task 'report'"),
        (["--seeds", "2", "--then", "'"], "--then: No closing quotation"),
        (["--seeds", "2", "--then", "--out x.csv"], "--then: the sweep says itself"),
        (["--seeds", "2", "--then", "other.pt"], "--then: the sweep says itself"),
        (["--seeds", "2", "--part", "3/2"], "--part: expected I/N"),
        (["--seeds", "2", "--jobs", "2", "--sweep-print", "slurm"], "--jobs: a job script has"),
    ],
)
def test_what_a_sweep_cannot_do_is_refused(
    folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = sweep(folder, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
