"""Runs on a Dask cluster of two workers, some of which are killed."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

import micu_extract.cluster.dask.engine as engine
from micu.base.command_line import typed_words
from micu.base.files import file_sha256, hold_file
from micu.store.ledger import read_ledger
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore
from micu_extract.backbones import Run
from micu_extract.cli import cli
from micu_extract.cluster.dask.engine import CALLERS_OWN
from micu_extract.cluster.dask.making import describe_making
from micu_extract.cluster.dask.worker import Errand, ShareEnd, look_around
from micu_extract.options import gather_settings
from micu_extract.pipeline.plan import Job
from tests.conftest import PROJECT, PYTHONPATH
from tests.runs import (
    DELAY,
    SOUNDS,
    Process,
    finish,
    half_files,
    left_over,
    processes_of,
    run,
    set_bytes,
    start,
    write_sounds,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

CLUSTER = """
import sys
from distributed import LocalCluster
with LocalCluster(
    n_workers=2, threads_per_worker=1, resources={"GPU": 1}, dashboard_address=None, memory_limit=0
) as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""
IN_SHARES = """
import sys
if any("micu_extract.cluster.dask.worker" in word for word in sys.orig_argv):
    import tests.runs
    import tests.fault.test_dask as test_dask
    import tests.toy
    tests.toy.Toy.encode = test_dask.poisoned(tests.toy.Toy.encode)
"""
"""What Python does first in every process of the cluster: shares get the toys."""


def poisoned(encode: Callable[..., Any]) -> Callable[..., Any]:
    """A network that is slow, and ends its Dask worker at one text; once the neighbour's too."""

    def wrapped(self: object, units: list[str]) -> Any:
        time.sleep(0.1)
        if units[0] == "poison":
            if not Path("poisoned-before").exists():
                Path("poisoned-before").touch()
                kill_worker_of(other_share(os.getsid(0)))
            kill_worker_of(os.getpid())
        return encode(self, units)

    return wrapped


def shares(session: int) -> list[int]:
    """Processes that are at a share."""
    return [process for process in processes_of(session) if _is_share(process)]


def _is_share(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"-P" in words and any(b"micu_extract.cluster.dask.worker" in word for word in words)


def other_share(session: int) -> int:
    """A process that is at a share, other than this one."""
    while True:
        for process in shares(session):
            if process != os.getpid():
                return process
        time.sleep(0.01)


def kill_worker_of(share: int) -> None:
    """Kill a Dask worker and its share at once, as a node that is lost does."""
    status = Path(f"/proc/{share}/status").read_text()
    (worker,) = re.findall(r"^PPid:\t(\d+)", status, re.MULTILINE)
    os.kill(int(worker), signal.SIGKILL)
    os.kill(share, signal.SIGKILL)


@dataclass(frozen=True)
class Cluster:
    address: str
    session: int


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(IN_SHARES)
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={**os.environ, "PYTHONPATH": f"{folder}:{PYTHONPATH}", DELAY: "0.2"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield Cluster(process.stdout.readline().strip(), process.pid)
    finally:
        process.communicate(timeout=600)
        assert not left_over(process.pid)


TEXTS = ("text", "m.csv", "--backbone", "toy", "--shard-rows", "2")


def write_texts(folder: Path, *texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    clips = [Clip(clip_id=str(i), text=text) for i, text in enumerate(texts)]
    write_manifest(folder / "m.csv", clips)


def shards_below(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in set_bytes(folder).items() if name.endswith(".h5")}


def begin(folder: Path, cluster: Cluster, *words: str) -> Process:
    """A run that has published a shard, while a share is out."""
    made = shards_below(folder)
    process = start(folder, *words, "--dask", cluster.address)
    while shards_below(folder) == made or not shares(cluster.session):
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    return process


def no_share_is_out(cluster: Cluster) -> bool:
    deadline = time.monotonic() + 120
    while shares(cluster.session) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not shares(cluster.session)


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path, cluster: Cluster) -> None:
    local, folder = tmp_path / "local", tmp_path / "cluster"
    write_sounds(local, 12)
    write_sounds(folder, 12)
    assert run(local, *SOUNDS)[0] == 3  # one file is missing
    process = begin(folder, cluster, *SOUNDS)
    kill_worker_of(other_share(cluster.session))
    code, output = finish(process)

    assert code == 3, output
    assert "its Dask worker is gone" in output
    assert "extracted 11, failed 1 (1 missing), left 0" in output
    assert set_bytes(folder) == set_bytes(local)
    files = {path.name for path in (folder / "features").rglob("*") if path.is_file()}
    assert files == {path.name for path in (local / "features").rglob("*") if path.is_file()}
    assert run(folder, "verify", "features", "--data")[0] == 0


def test_runs_that_are_ended_leave_no_share_at_work_and_go_on_to_the_same_bytes(
    tmp_path: Path, cluster: Cluster
) -> None:
    local, folder = tmp_path / "local", tmp_path / "cluster"
    texts = [f"{'nan ' if i == 7 else ''}word {i}" for i in range(16)]
    write_texts(local, *texts)
    write_texts(folder, *texts)
    assert run(local, *TEXTS)[0] == 3

    process = begin(folder, cluster, *TEXTS)
    process.kill()
    finish(process)
    assert no_share_is_out(cluster)

    process = begin(folder, cluster, *TEXTS)
    process.terminate()
    code, output = finish(process)
    assert code == 75, output
    assert "stopped by SIGTERM; type the same command to go on" in output
    assert not shares(cluster.session)
    assert half_files(folder / "features" / "m") == []
    assert set_bytes(folder) != set_bytes(local)

    code, output = run(folder, *TEXTS, "--dask", cluster.address)
    assert code == 3, output
    assert set_bytes(folder) == set_bytes(local)


def test_a_shard_that_ends_every_worker_is_put_in_the_ledger_and_its_neighbours_are_not(
    tmp_path: Path, cluster: Cluster
) -> None:
    write_texts(tmp_path, *("poison" if i == 3 else f"word {i}" for i in range(8)))
    code, output = run(tmp_path, *TEXTS, "--dask", cluster.address)

    assert code == 3, output
    assert output.count("shard 1: its Dask worker is gone") == 3
    # The neighbour's worker is ended too, once, if it is at work then.
    assert len(re.findall(r"shard [^1]: its Dask worker is gone", output)) <= 1
    folder = tmp_path / "features" / "m" / "text-toy"
    ledger = read_ledger(folder)
    assert list(ledger) == ["2", "3"]
    assert (ledger["3"].stage, ledger["3"].code) == ("dask", "worker_died")
    assert ledger["3"].message == (
        "shard 1 failed 3 times, the last time with nothing beside it: its Dask worker is gone"
    )
    assert len(FeatureStore(folder)) == 6
    assert run(tmp_path, "verify", "features", "--data")[0] == 0


def test_a_worker_with_other_weights_ends_the_run_and_is_named(
    tmp_path: Path, cluster: Cluster
) -> None:
    write_texts(tmp_path, "a", "b")
    other = (
        "from dataclasses import replace\n"
        "init = tests.toy.Toy.__init__\n"
        "def other(self, *words):\n"
        "    init(self, *words)\n"
        "    self.spec = replace(self.spec, weights_sha256='1' * 64)\n"
        "tests.toy.Toy.__init__ = other"
    )
    code, output = run(tmp_path, *TEXTS, "--dask", cluster.address, before=other)

    assert code == 2, output
    assert re.search(r"error: worker tcp://\S+: .*\n  weights_sha256: expected '00", output)
    assert "Traceback" not in output


ANOTHER = (
    *("-m", "distributed.cli.dask_worker", "--nthreads", "1", "--resources", "GPU=1"),
    *("--no-nanny", "--no-dashboard", "--memory-limit", "0", "--name", "another"),
)


def names_of_workers(client: Client) -> list[str]:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return [str(worker["name"]) for worker in workers.values()]


@contextlib.contextmanager
def worker_with_another_micu(address: str, folder: Path) -> Iterator[None]:
    """A worker, once it is there, that finds a copy of our code which differs by one line."""
    give_up = time.monotonic() + 300
    for package in ("extract", "micu", "tests"):
        shutil.copytree(
            PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    code = folder / "extract/micu_extract/media/frames.py"
    code.write_text(code.read_text() + "\nHALF = 0.5\n")
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *ANOTHER, address],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{folder}:{folder / 'extract'}"},
            stdout=output,
            stderr=output,
        )
    try:
        with Client(address, set_as_default=False) as client:
            while "another" not in (names := names_of_workers(client)):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up, f"{names}: {log.read_text()}"
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_worker_with_an_edited_micu_is_given_no_shard(tmp_path: Path, cluster: Cluster) -> None:
    local, folder = tmp_path / "local", tmp_path / "cluster"
    texts = [f"word {i}" for i in range(8)]
    write_texts(local, *texts)
    write_texts(folder, *texts)
    assert run(local, *TEXTS)[0] == 0

    with worker_with_another_micu(cluster.address, tmp_path / "edited"):
        code, output = run(folder, *TEXTS, "--dask", cluster.address)

    assert code == 0, output
    (refused,) = re.findall(r"worker (\S+) would make other features: it has (.*); it", output)
    assert re.fullmatch(r"micu code \w{12} \(here code \w{12}\)", refused[1])
    assert f"{refused[0]}: shards" not in output
    assert set_bytes(folder) == set_bytes(local)


# --- without a cluster -------------------------------------------------------------------------


def test_a_worker_says_what_it_does_not_see(tmp_path: Path) -> None:
    write_texts(tmp_path, "a")
    (tmp_path / "token").touch()
    seen = Errand(
        run="x",
        words=("text",),
        folder=str(tmp_path),
        manifest=str(tmp_path / "m.csv"),
        manifest_sha256=file_sha256(tmp_path / "m.csv"),
        media_root=str(tmp_path),
        token=str(tmp_path / "token"),
        making=describe_making(["numpy"], []),
    )
    worker = SimpleNamespace(state=SimpleNamespace(total_resources={"GPU": 1.0}))
    assert look_around(seen, worker).problems == ()
    assert look_around(seen, worker).making == seen.making
    lacks = {
        "folder": "/none",
        "manifest": "/none.csv",
        "manifest_sha256": "0",
        "media_root": "/no/media",
        "token": "/features/token",
    }
    for name, value in lacks.items():
        (problem,) = look_around(replace(seen, **{name: value}), worker).problems
        assert "manifest" in problem if "sha" in name else str(Path(value).parent) in problem


@pytest.mark.parametrize(
    ("report", "ending"),
    [
        (ShareEnd(-9, "", "a\nb\n"), "signal SIGKILL"),
        (ShareEnd(1, "", "Traceback\nMemoryError: 5\n"), "exit code 1 (MemoryError: 5)"),
        (ShareEnd(74, "", "a\nerror: disk full\ngo on\n"), "exit code 74 (disk full go on)"),
    ],
)
def test_a_report_says_how_a_share_ended(report: ShareEnd, ending: str) -> None:
    assert report.ending == ending


def test_shares_get_what_was_typed_without_what_is_for_the_whole_run() -> None:
    typed = "m.csv --dask tcp://a:1 --out x --overwrite --max-failures=5% --json --limit 3"
    with cli.commands["text"].make_context("text", typed.split()):
        assert typed_words(CALLERS_OWN) == ["text", "m.csv", "--out", "x", "--limit", "3"]


def test_tokens_of_callers_that_died_go_and_those_of_others_at_work_stay(tmp_path: Path) -> None:
    write_texts(tmp_path, "a")
    job = Job(
        manifest=read_manifest(tmp_path / "m.csv"), media_root=tmp_path, out=tmp_path / "features"
    )
    dead, alive = job.out / ".dask-dead.partial", job.out / ".dask-alive.partial"
    with cli.commands["text"].make_context("text", ["m.csv"]), hold_file(alive):
        dead.touch()
        for path in (dead, alive):
            os.utime(path, (0, 0))
        with engine._describe_run(job, []) as errand:
            assert {*job.out.iterdir()} == {alive, Path(errand.token)}
        assert list(job.out.iterdir()) == [alive]


def test_a_machine_that_plans_for_a_cluster_needs_no_gpu_and_states_what_shares_will() -> None:
    typed: dict[str, Any] = dict.fromkeys(
        ("batch_size", "limit", "shard_rows", "overwrite", "retry_failed", "part", "manifest")
    )
    rest = {"media_root": None, "out": Path(), "workers": 1, "clip_timeout_s": None}
    settings = gather_settings(
        device="cuda:7",
        precision="bf16",
        compiled=True,
        dask="tcp://a:1",
        dry_run=False,
        as_json=False,
        **typed,
        **rest,
    )
    assert settings.run == Run(device="cpu", precision="bf16", compile=True)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("import sys; sys.modules['distributed'] = None", r"pip install 'micu\[dask\]'"),
        (
            "import micu_extract.cluster.dask.engine as e; e.CONNECT_S = 0.2",
            "address of a Dask scheduler",
        ),
    ],
    ids=["no dask", "no scheduler"],
)
def test_what_cannot_begin_says_what_to_type(tmp_path: Path, before: str, message: str) -> None:
    write_texts(tmp_path, "a")
    code, output = run(tmp_path, *TEXTS, "--dask", "tcp://127.0.0.1:1", before=before)
    assert code == 2, output
    assert re.search(message, output)
