import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import micu_extract.media.decoding as decoding
import micu_extract.media.workers as workers
import micu_extract.pipeline.probe as probe
from micu.base.errors import DeviceError, MicuError
from micu.store.ledger import read_ledger
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore
from micu_extract.backbones.base import Media
from micu_extract.media.workers import decode_in_processes
from micu_extract.pipeline.plan import Job, plan_extraction
from micu_extract.pipeline.writer import Summary
from tests.conftest import PYTHONPATH
from tests.hostile import (
    HostileProbe,
    array_read,
    dying_start,
    hostile_read,
    read_arrays,
    read_threads,
)
from tests.media_files import tone, write_media
from tests.runs import run, write_sounds
from tests.toy import Toy, extract_manifest, shard_bytes, toy_plan, toy_read

TIMEOUT_S = 60.0


def run_texts(folder: Path, *texts: str, timeout_s: float = TIMEOUT_S) -> Summary:
    """Extract clips whose texts say what befalls them, in two worker processes."""
    path = folder / "m.csv"
    write_manifest(path, [Clip(clip_id=str(i), text=text) for i, text in enumerate(texts)])
    job = Job(manifest=read_manifest(path), media_root=folder, out=folder / "f", shard_rows=8)
    return extract_manifest(
        plan_extraction(job, Toy().spec),
        Toy(),
        hostile_read,
        workers=2,
        clip_timeout_s=timeout_s,
    )


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of the machine's shared memory."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(decoding, "shared_memory", lambda: folder)
    return folder


def test_a_decoder_that_hangs_in_c_is_killed_and_the_run_goes_on(tmp_path: Path) -> None:
    summary = run_texts(tmp_path, "a b", "hang", "c", "d e", timeout_s=2.0)

    failure = read_ledger(Path(summary.folder))["1"]
    assert (failure.stage, failure.code) == ("decode", "timeout")
    assert "--clip-timeout 2 s" in failure.message
    assert FeatureStore(Path(summary.folder)).clip_ids == ("0", "2", "3")
    assert summary.wall_s < 500


def test_a_decoder_that_never_stops_computing_is_killed_too(tmp_path: Path) -> None:
    summary = run_texts(tmp_path, "a b", "spin", "c", timeout_s=1.0)

    assert read_ledger(Path(summary.folder))["1"].code == "timeout"
    assert FeatureStore(Path(summary.folder)).clip_ids == ("0", "2")


def test_clips_that_wait_while_a_hanging_worker_is_killed_are_not_charged(tmp_path: Path) -> None:
    # Killing takes seconds where nobody listens; nothing is handed over meanwhile.
    summary = run_texts(tmp_path, "deaf", "last 1", "last 1", "last 1", "last 1", timeout_s=2.0)

    assert list(read_ledger(Path(summary.folder))) == ["0"]
    assert summary.extracted == 4


def test_a_step_of_the_clock_files_no_good_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = time.time, itertools.count()
    # Every look at it is an hour after the last one.
    monkeypatch.setattr(time, "time", lambda: clock() + 3600.0 * next(asked))
    summary = run_texts(tmp_path, "last 0.5", "last 0.5", "last 0.5", timeout_s=TIMEOUT_S)

    assert (summary.extracted, summary.failed) == (3, 0)


STOPPED_FOR_A_WHILE = """
import sys
from pathlib import Path
from tests.fault.test_workers import run_texts

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    summary = run_texts(folder, "a", f"work 1.5 {folder / 'begun'}", "b", timeout_s=3.0)
    print(summary.extracted, summary.failed, summary.codes)
"""


@pytest.mark.slow
def test_a_run_that_was_suspended_files_no_good_clip(tmp_path: Path) -> None:
    path = tmp_path / "run.py"
    path.write_text(STOPPED_FOR_A_WHILE)
    with subprocess.Popen(
        [sys.executable, path, tmp_path],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        while not (tmp_path / "begun").exists():
            assert run.poll() is None
        os.killpg(run.pid, signal.SIGSTOP)
        time.sleep(5.0)
        os.killpg(run.pid, signal.SIGCONT)
        output, _ = run.communicate(timeout=600)
    assert output == "3 0 {}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody says who is stopped")
def test_a_worker_that_was_stopped_alone_files_no_good_clip(tmp_path: Path) -> None:
    summary = run_texts(tmp_path, "a", "stop 3", "b", timeout_s=1.5)

    assert (summary.extracted, summary.failed) == (3, 0)


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep this process, and what it starts, on one core that two others want as well."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, cores)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="keeps processes on one core")
def test_on_a_busy_machine_only_what_hangs_is_killed(tmp_path: Path) -> None:
    hangs = ("spin", "hang")
    with busy_core():
        started = time.monotonic()
        summary = run_texts(tmp_path, "work 0.4", "a", *hangs, "work 0.4", timeout_s=1.0)
        took_s = time.monotonic() - started

    assert took_s > 2.0  # the good ones alone were longer at it than their limit
    assert {key: row.code for key, row in read_ledger(Path(summary.folder)).items()} == {
        "2": "timeout",
        "3": "timeout",
    }
    assert summary.extracted == 3


@pytest.mark.parametrize(
    ("deed", "how"), [("kill", "SIGKILL"), ("segfault", "SIGSEGV"), ("exit", "exit code 7")]
)
def test_a_clip_that_kills_every_worker_is_put_in_the_ledger(
    tmp_path: Path, deed: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run_texts(tmp_path, "a", "b", deed, "c", "d", "e")

    failure = read_ledger(Path(summary.folder))["2"]
    assert (failure.stage, failure.code) == ("decode", "worker_died")
    assert how in failure.message
    assert caplog.text.count("ended its worker process") == 3  # it was tried three times
    assert FeatureStore(Path(summary.folder)).clip_ids == ("0", "1", "3", "4", "5")


def test_a_clip_whose_worker_dies_by_chance_is_extracted_all_the_same(tmp_path: Path) -> None:
    summary = run_texts(tmp_path, "a", f"once {tmp_path / 'marker'}", "c")

    assert (tmp_path / "marker").exists()
    assert (summary.extracted, summary.failed) == (3, 0)


def test_a_mistake_of_the_whole_run_ends_it_from_a_worker_too(tmp_path: Path) -> None:
    with pytest.raises(MicuError, match=r"pip install 'micu\[decord\]'"):
        run_texts(tmp_path, "a", "fatal")


def test_a_full_disk_under_what_a_worker_keeps_is_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="make room"):
        run_texts(tmp_path, "a", "full")


def test_processes_and_threads_give_the_same_bytes(tmp_path: Path) -> None:
    plans = {}
    for name, timeout_s in (("threads", None), ("processes", TIMEOUT_S)):
        (tmp_path / name).mkdir()
        plans[name] = toy_plan(tmp_path / name)
        extract_manifest(plans[name], Toy(), toy_read, workers=2, clip_timeout_s=timeout_s)

    assert shard_bytes(plans["threads"].folder) == shard_bytes(plans["processes"].folder)


def test_a_run_that_is_stopped_does_not_wait_for_its_workers(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)

    def stop(summary: Summary) -> None:
        if summary.extracted == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    started = time.monotonic()
    summary = extract_manifest(
        plan, Toy(), toy_read, workers=2, on_clip=stop, clip_timeout_s=TIMEOUT_S
    )
    assert (summary.stopped_by, summary.extracted) == ("SIGTERM", 3)
    assert time.monotonic() - started < 300


@pytest.mark.parametrize("kind", ["one", "many"])
def test_arrays_arrive_whole_and_leave_nothing_behind(kind: str, shared_memory: Path) -> None:
    clip = Clip(clip_id="5", text=kind)
    with decode_in_processes(read_arrays, 1, TIMEOUT_S) as decoders:
        names = ("a", "b")
        media = decoders.settle(decoders.submit(clip, names), names).media
        (folder,) = shared_memory.iterdir()
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert list(shared_memory.iterdir()) == []
    for name in names:
        expected, got = array_read(clip, name), media[name]
        assert isinstance(got, type(expected))
        assert isinstance(got.units, np.ndarray) == (kind == "one")
        for unit, other in zip(got.units, expected.units, strict=True):
            np.testing.assert_array_equal(unit, other)
        np.testing.assert_array_equal(got.times_s, expected.times_s)


def test_a_block_without_room_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    clip = Clip(clip_id="5", text="one")
    parcel = decoding.decode_to_block(read_arrays, tmp_path, clip, ("a",))

    assert parcel.block == ""
    np.testing.assert_array_equal(parcel.open().media["a"].units, array_read(clip, "a").units)
    assert list(tmp_path.iterdir()) == []


def test_a_device_without_memory_is_a_mistake_of_the_run_not_of_a_clip() -> None:
    def read(clip: Clip, names: object) -> dict[str, Media]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="fewer --workers"):
        workers.decode_clip(read, Clip(clip_id="a"), ("x",))


def test_a_device_without_memory_is_told_from_other_mistakes_in_a_process_too(
    tmp_path: Path,
) -> None:
    with pytest.raises(DeviceError, match="fewer --workers"):
        run_texts(tmp_path, "a", "device")


def test_torch_computes_on_one_thread_in_a_worker() -> None:
    with decode_in_processes(read_threads, 1, TIMEOUT_S) as decoders:
        media = decoders.settle(decoders.submit(Clip(clip_id="a"), ["x"]), ["x"]).media["x"]
    assert isinstance(media, Media)
    assert media.notes == {"threads": 1}


def test_blocks_of_a_killed_run_go_with_the_next_one_and_no_others_do(shared_memory: Path) -> None:
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "import micu_extract.media.decoding as decoding\n"
        f"decoding.shared_memory = lambda: Path({str(shared_memory)!r})\n"
        "with decoding.block_folder() as folder:\n"
        "    (folder / 'block').touch()\n"
        "    print(folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        theirs = Path(run.stdout.readline().strip())
        with decoding.block_folder() as ours:
            decoding.remove_abandoned()
            assert theirs.is_dir()
            assert ours.is_dir()
        run.kill()
    assert (theirs / "block").is_file()
    with decoding.block_folder():
        assert not theirs.exists()
    assert list(shared_memory.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("killed", ["one", "all"])
def test_workers_that_are_killed_while_idle_are_replaced(killed: str) -> None:
    with decode_in_processes(read_arrays, 2, TIMEOUT_S) as decoders:
        clips = [Clip(clip_id=str(i), text="one") for i in range(4)]
        first = decoders.submit(clips[0], ("a",))
        assert isinstance(decoders.settle(first, ("a",)).media["a"], Media)
        workers_there = _workers_of(os.getpid())
        assert len(workers_there) == 2
        for pid in workers_there[: 1 if killed == "one" else 2]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)  # the pool looks every 0.1 s
        for clip in clips:
            for _ in range(3):
                media = decoders.settle(decoders.submit(clip, ("a",)), ("a",)).media["a"]
                if isinstance(media, Media):
                    break
            assert isinstance(media, Media)
            np.testing.assert_array_equal(media.units, array_read(clip, "a").units)


def test_workers_that_never_start_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start_worker", dying_start)
    with pytest.raises(MicuError, match="none that lived"):
        decode_ten_times()


def test_a_file_that_takes_its_prober_along_is_reported_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ReadProbe", HostileProbe)
    names = ("a.wav", "segfault.wav", "hang.wav", "b.wav")
    for name in names:
        write_media(tmp_path / name, sound=tone(1, 8000), sound_codec="pcm_s16le")
    clips = [Clip(clip_id=name, path=name, end_s=1.0) for name in names]
    found = probe.probe_media(clips, tmp_path, workers=2, timeout_s=2.0)
    assert [row.state for row in found] == ["ok", "worker_died", "timeout", "ok"]
    assert [row.clip_id for row in found] == list(names)
    assert "SIGSEGV" in found[1].message
    assert "longer than 2 s" in found[2].message


def decode_ten_times() -> None:
    names = ("a",)
    with decode_in_processes(read_arrays, 1, TIMEOUT_S) as decoders:
        for _ in range(10):
            decoders.settle(decoders.submit(Clip(clip_id="1", text="one"), names), names)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_workers_die_with_a_run_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from micu.store.manifest import Clip\n"
        "from micu_extract.media.workers import decode_in_processes\n"
        "from tests.hostile import read_hostile\n"
        "if __name__ == '__main__':\n"
        "    with decode_in_processes(read_hostile, 2, 600) as decoders:\n"
        "        clips = [Clip(clip_id=str(i), text='hang') for i in range(2)]\n"
        "        futures = [decoders.submit(clip, ['a']) for clip in clips]\n"
        "        while not all(future.running() for future in futures):\n"
        "            time.sleep(0.05)\n"
        "        print('hanging', flush=True)\n"
        "        time.sleep(600)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"hanging\n"
        session = [pid for pid in _processes() if os.getsid(pid) == run.pid]
        assert len(session) >= 4  # the run, the server, two workers
        run.kill()
    deadline = time.monotonic() + 120
    while set(session) & set(_processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = set(session) & set(_processes())
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


BORN_LATE = """
import multiprocessing, os, time
from multiprocessing.connection import wait

import micu_extract.media.workers as workers


def late(reports):
    print(os.getpid(), flush=True)
    wait([multiprocessing.parent_process().sentinel])
    workers._start_worker(None, reports)
    time.sleep(3600)


if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    context.Process(target=late, args=(writer,)).start()
    time.sleep(3600)
"""


def test_a_worker_whose_run_was_killed_before_it_listens_for_that_ends_too(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(BORN_LATE)
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    ) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        run.kill()
        try:
            run.communicate(timeout=120)  # to the end of the last that holds the output
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise


def _workers_of(run: int) -> list[int]:
    """Decoding processes of a run: the children of its fork server."""
    parents = {pid: _parent(pid) for pid in _processes()}
    servers = {pid for pid, parent in parents.items() if parent == run}
    return [pid for pid, parent in parents.items() if parent in servers]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _processes() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z":
                found.append(int(entry.name))
    return found


STOPPED_AT_ONCE = """
import time
from micu_extract.media.workers import decode_in_processes
from tests.hostile import read_hostile
from micu.store.manifest import Clip

if __name__ == "__main__":
    for i in range(12):
        with decode_in_processes(read_hostile, 2, 60.0) as decoders:
            future = decoders.submit(Clip(clip_id="a", text="a"), ("x",))
            if i == 0:
                future.result()
            time.sleep(i * 0.002)
"""
"""Pools that stop while their workers are still starting."""

STOPPED_AS_A_GROUP = """
import os, signal, sys
from pathlib import Path
from tests.fault.test_workers import run_texts

if __name__ == "__main__":
    signal.signal(signal.SIGALRM, lambda number, frame: os.killpg(0, signal.SIGUSR1))
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    summary = run_texts(Path(sys.argv[1]), *["slow a"] * 60)
    sys.exit(summary.stopped_by != "SIGUSR1")
"""
"""A signal to stop that reaches every process of the run, as Slurm sends it."""


@pytest.mark.parametrize("script", [STOPPED_AT_ONCE, STOPPED_AS_A_GROUP])
def test_workers_of_a_run_that_stops_print_no_tracebacks(tmp_path: Path, script: str) -> None:
    path = tmp_path / "stops.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, path, tmp_path],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")


NO_GUARD = """
import sys
from pathlib import Path
from tests.fault.test_workers import run_texts

print("imported", flush=True)
summary = run_texts(Path(sys.argv[1]), "a", "b")
print(summary.extracted, flush=True)
"""
TYPED = """
import sys
import tests.runs
from micu_extract.cli import main

sys.argv = ["micu-extract", "audio", "m.csv", "--backbone", "toy-sound", "--workers", "2"]
main()
"""
ODD_GUARD = """
import sys
from pathlib import Path
from tests.fault.test_workers import run_texts

is_run = __name__ == "__main__"
summary = is_run and run_texts(Path(sys.argv[1]), "a", "b")
print(summary and summary.extracted, flush=True)
"""
IN_A_FUNCTION = NO_GUARD.replace("summary =", "def start():\n    return").replace(
    "print(summary", "if '__main__' == __name__:\n    summary = start()\n    print(summary"
)


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [(NO_GUARD, 2, "imported\n"), (TYPED, 2, ""), (ODD_GUARD, 0, "2\n"), (IN_A_FUNCTION, 0, "2\n")],
    ids=["none", "none, by the command", "an odd one", "a function"],
)
def test_a_script_without_a_guard_is_told_to_have_one(
    tmp_path: Path, script: str, code: int, said: str
) -> None:
    write_sounds(tmp_path, 4)
    path = tmp_path / "my script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, path, tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert done.stdout.endswith(said)
    assert ("under if __name__ == '__main__'" in done.stderr) == (code == 2)
    assert done.stderr.count("error:") == (code == 2)


def test_a_module_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    write_sounds(tmp_path, 4)
    (tmp_path / "starts.py").write_text(NO_GUARD)
    done = subprocess.run(
        [sys.executable, "-m", "starts", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "starts: expected the extraction to start under if __name__" in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize("script", [NO_GUARD, TYPED], ids=["a call", "the command"])
def test_a_script_that_is_no_file_is_told_to_be_one(tmp_path: Path, script: str) -> None:
    write_sounds(tmp_path, 4)
    done = subprocess.run(
        [sys.executable, "-", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        input=script,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "<stdin>: expected an extraction that is started from a file" in done.stderr
    assert done.stderr.count("error:") == 1


PROBES = """
import sys
from pathlib import Path
from micu_extract.pipeline.probe import probe_media
from micu.store.manifest import read_manifest

clips = read_manifest(Path("m.csv"), ("path",)).clips
print(len(probe_media(clips, Path("."), workers=2, timeout_s=60.0)))
"""


def test_looking_at_media_without_a_guard_is_told_in_one_sentence(tmp_path: Path) -> None:
    write_sounds(tmp_path, 4)
    path = tmp_path / "probes.py"
    path.write_text(PROBES)
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "under if __name__ == '__main__'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_more_workers_than_there_are_handles_for_are_told_with_the_remedy(tmp_path: Path) -> None:
    write_sounds(tmp_path, 4)
    before = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    words = ["audio", "m.csv", "--backbone", "toy-sound", "--workers", "40"]
    code, output = run(tmp_path, *words, before=before)

    assert code == 2, output
    assert "Traceback" not in output
    assert "error: decoding: expected worker processes, got a system that starts no more" in output
    assert "type fewer --workers, or first: ulimit -n 1024" in output
