"""Whole runs of `micu-extract`, with worker processes, that are killed, stopped and disturbed."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from micu.store.manifest import Clip, write_manifest
from micu.store.sets import FeatureStore
from tests.runs import (
    RUN_S,
    SOUNDS,
    finish,
    half_files,
    left_over,
    processes_of,
    run,
    set_bytes,
    start,
    wait_for_announcement,
    wait_for_shard,
    write_sounds,
)

KILLS = int(os.environ.get("MICU_KILLS", "5"))
"""How many runs are killed; 50 takes minutes."""
BACKBONE = os.environ.get("MICU_KILL_BACKBONE", "toy-sound")
"""What they run: a toy that needs no torch, or `htsat-demo`."""
CLIPS = 24
DELAY_S = 0.03

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_sounds(folder, CLIPS)
    code, output = run(folder, *SOUNDS)
    assert code == 3, output  # one file is missing
    made = set_bytes(folder)
    assert len(made) == CLIPS // 2 + 1
    return made


def test_killed_runs_typed_again_leave_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    words = [BACKBONE if word == "toy-sound" else word for word in SOUNDS]
    for name in ("whole", "killed"):
        write_sounds(tmp_path / name, CLIPS)
    undisturbed = start(tmp_path / "whole", *words, delay_s=DELAY_S)
    wait_for_announcement(undisturbed)
    begun = time.monotonic()
    assert finish(undisturbed)[0] == 3
    length_s = time.monotonic() - begun

    folder, draw = tmp_path / "killed", random.Random(KILLS)
    kills = partial = runs = 0
    while kills < KILLS or not partial:  # not all of them before the first shard
        left = 1 - len(set_bytes(folder)) / (CLIPS // 2 + 1)
        if not left:  # too late to kill it: from the start again
            (folder / "features").rename(tmp_path / f"before-{runs}")
        runs += 1
        assert runs <= 6 * KILLS + 20
        process = start(folder, *words, delay_s=DELAY_S)
        wait_for_announcement(process)
        time.sleep(draw.uniform(0.1, 0.9) * length_s * (left or 1))
        process.kill()
        finish(process)
        kills += process.returncode == -signal.SIGKILL
        partial += 1 < len(set_bytes(folder)) < CLIPS // 2 + 1
        assert not left_over(process.pid)
    code, output = run(folder, *words)

    assert code == 3, output
    assert set_bytes(folder) == set_bytes(tmp_path / "whole")
    assert half_files(folder) == []
    assert run(folder, "verify", "features", "--data")[0] == 0


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
    ids=["TERM", "USR1", "HUP", "INT"],
)
def test_a_signal_ends_a_run_and_its_workers_with_nothing_half_made(
    tmp_path: Path, whole: dict[str, bytes], number: signal.Signals, expected: int
) -> None:
    write_sounds(tmp_path, CLIPS)
    process = start(tmp_path, *SOUNDS, delay_s=0.2)
    wait_for_shard(process, tmp_path)
    assert len(processes_of(process.pid)) >= 4  # the run, the server of processes, two workers
    if number in (signal.SIGINT, signal.SIGHUP):  # the terminal sends it to all of them
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    code, output = finish(process)

    assert code == expected, output
    assert f"stopped by {number.name}; type the same command to go on" in output
    assert "Traceback" not in output
    assert not left_over(process.pid)
    assert half_files(tmp_path) == []
    assert 1 < len(set_bytes(tmp_path)) < len(whole)
    assert run(tmp_path, *SOUNDS)[0] == 3
    assert set_bytes(tmp_path) == whole


def test_two_runs_in_one_folder_at_once_leave_the_shards_of_one(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    write_sounds(tmp_path, CLIPS)
    both = [start(tmp_path, *SOUNDS, delay_s=0.05) for _ in range(2)]
    for process in both:
        wait_for_announcement(process)
    assert [finish(process)[0] for process in both] == [3, 3]

    shards = {name: data for name, data in set_bytes(tmp_path).items() if name.endswith(".h5")}
    assert shards == {name: data for name, data in whole.items() if name.endswith(".h5")}
    assert half_files(tmp_path) == []
    assert run(tmp_path, "verify", "features", "--data")[0] == 0
    code, _ = run(tmp_path, *SOUNDS)
    assert (code, set_bytes(tmp_path)) == (3, whole)


def features(folder: Path) -> Path:
    return folder / "features" / "m" / "audio-toy-sound"


def test_what_a_killed_writer_left_goes_with_the_next_run(tmp_path: Path) -> None:
    write_sounds(tmp_path, 4)
    features(tmp_path).mkdir(parents=True)
    (features(tmp_path) / ".shard-00000.h5.0a1b.partial").write_bytes(b"half a sha")
    assert run(tmp_path, *SOUNDS)[0] == 3
    assert half_files(tmp_path) == []
    assert len(FeatureStore(features(tmp_path))) == 3


def test_a_shard_that_was_cut_off_is_named_and_made_again_alone(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    write_sounds(tmp_path, CLIPS)
    assert run(tmp_path, *SOUNDS)[0] == 3
    shard = features(tmp_path) / "shard-00001.h5"
    shard.write_bytes(shard.read_bytes()[:-8])
    others = {path: path.stat().st_mtime_ns for path in features(tmp_path).glob("shard-*")}

    code, output = run(tmp_path, "verify", "features")
    assert (code, "shard-00001.h5" in output) == (3, True)
    code, output = run(tmp_path, *SOUNDS)
    assert code == 2
    assert "shard-00001.h5" in output
    assert "delete it" in output
    shard.unlink()
    code, output = run(tmp_path, *SOUNDS)

    assert (code, "extracted 1, failed 0" in output) == (3, True), output
    assert set_bytes(tmp_path) == whole
    again = {path: path.stat().st_mtime_ns for path in features(tmp_path).glob("shard-*")}
    assert {path.name for path in again if again[path] != others[path]} == {"shard-00001.h5"}


def test_features_of_other_weights_are_refused_with_the_difference(tmp_path: Path) -> None:
    write_sounds(tmp_path, 4)
    run(tmp_path, *SOUNDS)
    before = set_bytes(tmp_path)
    other = "import sys; sys.argv += ['--weights', 'other']"  # what is typed last counts
    code, output = run(tmp_path, *SOUNDS, before=other)
    assert code == 2
    assert "weights_sha256: expected" in output
    assert "--overwrite" in output
    assert set_bytes(tmp_path) == before
    code, output = run(tmp_path, *SOUNDS, "--overwrite", before=other)
    assert (code, set_bytes(tmp_path).keys()) == (3, before.keys())
    assert set_bytes(tmp_path) != before


def test_a_run_whose_terminal_goes_away_stops_as_after_term(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    write_sounds(tmp_path, CLIPS)
    master, terminal = os.openpty()
    process = start(tmp_path, *SOUNDS, delay_s=0.2, terminal=terminal)
    os.close(terminal)
    while not list(tmp_path.rglob("shard-*.h5")):
        os.read(master, 1024)
    os.close(master)

    assert process.wait(RUN_S) == 75
    assert not left_over(process.pid)
    assert half_files(tmp_path) == []
    assert 1 < len(set_bytes(tmp_path)) < len(whole)
    assert run(tmp_path, *SOUNDS)[0] == 3
    assert set_bytes(tmp_path) == whole


FULL_DISK = (
    "import resource, signal\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))"
)


def test_a_full_disk_ends_a_run_with_74_and_the_next_one_goes_on(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    write_sounds(tmp_path, CLIPS)
    process = start(tmp_path, *SOUNDS, before=FULL_DISK)
    code, output = finish(process)
    assert code == 74, output
    assert "File too large" in output
    assert "type the same command to go on" in output
    assert "Traceback" not in output
    assert not left_over(process.pid)
    assert half_files(tmp_path) == []
    assert not any(name.endswith(".h5") for name in set_bytes(tmp_path))
    assert run(tmp_path, *SOUNDS)[0] == 3
    assert set_bytes(tmp_path) == whole


STOP = (
    "import os, signal\n"
    "encode = tests.toy.Toy.encode\n"
    "def stop(self, units):\n"
    "    os.kill(os.getpid(), signal.{name})\n"
    "    return encode(self, units)\n"
    "tests.toy.Toy.encode = stop"
)
HUNG_UP = STOP.format(name="SIGHUP")
TEXT = ("text", "toys.csv", "--backbone", "toy")


@pytest.mark.parametrize(
    ("words", "before", "expected"),
    [
        ((*TEXT, "--limit", "9"), "", 0),
        (("verify",), "", 2),  # there is nothing to verify
        (("text", "none.csv", "--backbone", "toy"), "", 2),
        (("text", "toys.csv", "--backbone", "toyy"), "", 2),
        ((*TEXT, "--no-such-option"), "", 2),
        (TEXT, "", 3),
        (TEXT, FULL_DISK.replace("4000", "1500"), 74),
        (TEXT, STOP.format(name="SIGTERM"), 75),
        (TEXT, STOP.format(name="SIGUSR1"), 75),
        (TEXT, STOP.format(name="SIGHUP"), 75),
        (TEXT, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + HUNG_UP, 3),
        (TEXT, STOP.format(name="SIGINT"), 130),
    ],
    ids=[
        "good",
        "nothing to verify",
        "no manifest",
        "no backbone",
        "no option",
        "failures",
        "full disk",
        "TERM",
        "USR1",
        "HUP",
        "HUP under nohup",
        "INT",
    ],
)
def test_a_run_says_how_it_ended_by_its_exit_code(
    tmp_path: Path, words: tuple[str, ...], before: str, expected: int
) -> None:
    (tmp_path / "features").mkdir()
    texts = ["nan of all words" if i == 9 else f"word {i}" for i in range(20)]
    clips = [Clip(clip_id=str(i), text=text) for i, text in enumerate(texts)]
    write_manifest(tmp_path / "toys.csv", clips)
    code, output = run(tmp_path, *words, before=before)
    assert code == expected, output
    assert "Traceback" not in output
    assert half_files(tmp_path) == []
