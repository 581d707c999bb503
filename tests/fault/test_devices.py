"""Runs on several devices of one machine, some of whose processes are killed."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from micu.base.devices import parse_devices
from micu.base.errors import ConfigError
from micu.store.ledger import read_ledger
from micu_extract.cluster.dask.worker import Errand, ShareEnd, run_share, stop_shares
from micu_extract.cluster.devices import _Machine, _share_cores
from micu_extract.options import gather_settings, planning_device
from tests.fault.test_dask import TEXTS, other_share, shards_below, shares, write_texts
from tests.runs import (
    SOUNDS,
    Process,
    finish,
    half_files,
    left_over,
    run,
    set_bytes,
    start,
    write_sounds,
)

SITE = """
import sys
if any("micu_extract.cluster.dask.worker" in word for word in sys.orig_argv):
    import tests.runs
    import tests.fault.test_devices as test_devices
    import tests.toy
    tests.toy.Toy.encode = test_devices.poisoned(tests.toy.Toy.encode)
"""
"""What Python does first in the process of a share."""
KILLS = int(os.environ.get("MICU_KILLS", "2"))
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def poisoned(encode):
    """A network that ends its process at one text."""

    def wrapped(self: object, units: list[str]):
        time.sleep(0.1)
        if units[0] == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, units)

    return wrapped


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


def begin(folder: Path, site: Path, *words: str) -> Process:
    """A run that has published a shard, while a share is out."""
    made = shards_below(folder)
    process = start(folder, *words, "--devices", "cpu:2", site=site, delay_s=0.2)
    while shards_below(folder) == made or not shares(process.pid):
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    return process


@needs_proc
@pytest.mark.parametrize("devices", ["cpu:2", "cpu:3"])
def test_several_devices_make_what_one_makes(tmp_path: Path, site: Path, devices: str) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    write_sounds(one, 14)
    write_sounds(several, 14)
    assert run(one, *SOUNDS)[0] == 3  # one file is missing

    process = start(several, *SOUNDS, "--devices", devices, "--json", site=site)
    code, output = finish(process)

    assert code == 3, output
    assert output.count("extracted 13, failed 1 (1 missing), left 0") == 1
    assert output.count('"extracted": 13') == 1
    for number in range(1, int(devices[-1]) + 1):
        assert f"cpu {number}: shards" in output
    assert set_bytes(several) == set_bytes(one)
    files = {path.name for path in (several / "features").rglob("*") if path.is_file()}
    assert files == {path.name for path in (one / "features").rglob("*") if path.is_file()}
    assert run(several, "verify", "features", "--data")[0] == 0
    again = finish(start(several, *SOUNDS, "--devices", devices, site=site))[1]
    assert "1 clips to extract (1 of them were missing)" in again
    assert "extracted 0, failed 0, left 0" in again


@needs_proc
def test_a_process_that_is_killed_hands_its_shards_back(tmp_path: Path, site: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    write_sounds(one, 10 + 6 * KILLS)
    write_sounds(several, 10 + 6 * KILLS)
    assert run(one, *SOUNDS)[0] == 3
    process = begin(several, site, *SOUNDS)
    for _ in range(KILLS):
        os.kill(other_share(process.pid), signal.SIGKILL)
        time.sleep(1)
    code, output = finish(process)

    assert code == 3, output
    assert output.count("signal SIGKILL") == KILLS
    assert set_bytes(several) == set_bytes(one)


@needs_proc
def test_a_run_that_is_ended_leaves_no_process_and_goes_on_to_the_same_bytes(
    tmp_path: Path, site: Path
) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    texts = [f"{'nan ' if i == 7 else ''}word {i}" for i in range(30)]
    write_texts(one, *texts)
    write_texts(several, *texts)
    assert run(one, *TEXTS)[0] == 3

    process = begin(several, site, *TEXTS)
    process.kill()
    finish(process)
    assert left_over(process.pid) == set()

    for number, code in ((signal.SIGUSR1, 75), (signal.SIGINT, 130)):
        process = begin(several, site, *TEXTS)
        process.send_signal(number)
        ended, output = finish(process)
        assert ended == code, output
        assert f"stopped by {number.name}; type the same command to go on" in output
        assert left_over(process.pid) == set()
        assert half_files(several / "features" / "m") == []
        assert set_bytes(several) != set_bytes(one)

    code, output = finish(start(several, *TEXTS, "--devices", "cpu:2", site=site))
    assert code == 3, output
    assert set_bytes(several) == set_bytes(one)


@needs_proc
def test_a_part_on_several_devices_is_that_part(tmp_path: Path, site: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    texts = [f"{'nan ' if i in (3, 4) else ''}word {i}" for i in range(9)]
    write_texts(one, *texts)
    write_texts(several, *texts)
    assert run(one, *TEXTS)[0] == 3
    sides = "--devices", "cpu:2"

    code, output = finish(start(several, *TEXTS, *sides, "--part", "2/2", site=site))
    assert code == 3, output
    assert re.search(r"extracted 3, failed 1 \(.*\), left 0", output), output
    assert "failures are listed in features/m/text-toy/failures*.csv" in output
    assert len(shards_below(several)) == 2
    code, output = finish(start(several, *TEXTS, *sides, "--part", "1/2", site=site))
    assert code == 3, output
    assert re.search(r"extracted 4, failed 1 \(.*\), left 0", output), output
    again = run(several, *TEXTS, "--part", "1/2")[1]
    assert "extracted 0, failed 0, left 0" in again
    assert run(several, "merge", "features")[0] == 0
    assert set_bytes(several) == set_bytes(one)


@needs_proc
def test_a_shard_that_ends_every_process_is_put_in_the_ledger(tmp_path: Path, site: Path) -> None:
    write_texts(tmp_path, *(f"word {i}" if i != 3 else "poison" for i in range(8)))

    code, output = finish(start(tmp_path, *TEXTS, "--devices", "cpu:2", site=site))

    assert code == 3, output
    ledger = read_ledger(next(tmp_path.rglob("failures.csv")).parent)
    assert {row.stage for row in ledger.values()} == {"devices"}
    assert "signal SIGKILL" in ledger["3"].message
    assert "left 0" in output


def test_devices_are_named_by_number_or_all_of_them_or_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert parse_devices("all") == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert parse_devices("0,3") == ("cuda:0", "cuda:3")
    assert parse_devices("2") == ("cuda:2",)
    assert parse_devices("cpu:1") == ("cpu",)
    assert parse_devices("cpu:3") == ("cpu",) * 3
    for typed in ("4", "0,0", "", "0,", "-1", "cpu:0", "cpu", "00", "cuda:0", "0, 1"):
        with pytest.raises(ConfigError, match="a machine with 4 CUDA devices"):
            parse_devices(typed)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"got 'all' on a machine with 0 .*--devices cpu:2"):
        parse_devices("all")


def test_processes_of_the_processor_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5, 6, 7, 8}, raising=False)
    assert _share_cores(1) == []
    assert _share_cores(2) == [[4, 5], [6, 7]]
    assert _share_cores(5) == [[4], [5], [6], [7], [8]]
    assert _share_cores(6) == [[4], [5], [6], [7], [8], [4]]


@pytest.mark.parametrize(
    ("devices", "workers", "command", "words", "cores"),
    [
        (("cuda:0", "cuda:3"), 9, "video", ["--device", "cuda:3", "--workers", "4"], ()),
        (("cpu", "cpu"), 1, "audio", ["--device", "cpu", "--workers", "1"], [6, 7]),
        (("cuda:0", "cuda:3"), 9, "text", ["--device", "cuda:3"], ()),
    ],
)
def test_a_share_is_told_its_device_and_its_part_of_the_workers(
    monkeypatch: pytest.MonkeyPatch,
    devices: tuple[str, ...],
    workers: int,
    command: str,
    words: list[str],
    cores: object,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5, 6, 7}, raising=False)
    begun: list[tuple[object, ...]] = []
    given: list[tuple[str, bool]] = []
    codes = [0, 0, 9, 0]

    class Told:
        def __init__(self, errand: Errand, tell: object, where: object) -> None:
            self.words = errand.words
            begun.append((errand.words, where))

        def run(self, part: str, is_wanted: Callable[[], bool]) -> ShareEnd:
            given.append((part, is_wanted()))
            return ShareEnd(codes[len(given) - 1], "", "")

        def close(self) -> None:
            begun.append(("closed",))

    monkeypatch.setattr("micu_extract.cluster.devices.ShareProcess", Told)
    typed = (command, "m.csv", "--workers", "7", "--device=auto", "--limit", "3")
    errand = Errand(
        **dict.fromkeys(("folder", "manifest", "manifest_sha256", "media_root", "token"), ""),
        run=f"{command} {devices}",
        words=typed,
        making={},
    )
    own = (command, "m.csv", "--limit", "3", *words)
    closed = ("closed",)
    with _Machine(devices, workers) as machine:
        second = list(machine.nthreads())[1]

        def hand_out(errand: Errand, part: str) -> None:
            machine.submit(run_share, errand, part, workers=[second], pure=False).result()

        hand_out(errand, "3/7")
        hand_out(errand, "5/7")
        assert begun == [(own, cores)]  # one process for both
        doubtless = replace(errand, words=(*typed, "--max-failures", "100%"))
        hand_out(doubtless, "6/7")  # of other words: a process of its own, which ends over it
        assert begun[1:] == [closed, ((*own[:4], "--max-failures", "100%", *words), cores), closed]
        machine.run(stop_shares, errand.run, workers=[second])
        hand_out(errand, "7/7")
        assert begun[4:] == [(own, cores)]
    assert begun[5:] == [closed]
    assert given == [("3/7", True), ("5/7", True), ("6/7", True), ("7/7", False)]


def test_one_device_needs_no_shares_and_several_are_planned_for_on_the_processor() -> None:
    assert planning_device("auto", None, ()) == "auto"
    assert planning_device("auto", None, ("cuda:1",)) == "cuda:1"
    assert planning_device("auto", None, ("cuda:0", "cuda:1")) == "cpu"
    assert planning_device("auto", "tcp://here", ()) == "cpu"


SETTINGS = {
    **dict.fromkeys(("batch_size", "limit", "shard_rows", "part", "manifest", "media_root")),
    **dict.fromkeys(("compiled", "overwrite", "retry_failed", "dry_run", "as_json"), False),
    "precision": "float32",
    "out": Path("f"),
    "workers": 2,
    "clip_timeout_s": 1.0,
}


def test_what_is_typed_beside_devices_is_refused_where_it_says_otherwise() -> None:
    both = ("cpu", "cpu")
    settings = gather_settings(device="auto", dask=None, devices=both, **SETTINGS)
    assert (settings.devices, settings.shared_by, settings.run.device) == (both, "--devices", "cpu")
    settings = gather_settings(device="auto", dask=None, devices=("cpu",), **SETTINGS)
    assert (settings.devices, settings.shared_by, settings.run.device) == ((), "", "cpu")
    with pytest.raises(ConfigError, match="--devices and --device cuda:1: expected one"):
        gather_settings(device="cuda:1", dask=None, devices=both, **SETTINGS)
    with pytest.raises(ConfigError, match="--devices and --dask: expected one"):
        gather_settings(device="auto", dask="tcp://here", devices=both, **SETTINGS)
