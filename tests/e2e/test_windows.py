"""What Windows lacks is not needed to train, to evaluate and to read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PYTHONPATH
from tests.feature_sets import SMALL, make_clips, write_features

HIDDEN = """
import enum, importlib.abc, os, signal, sys
# Libraries look for their own Windows; here it is only ours.
import click, filelock, h5py, joblib, numpy, torch, torch.utils.data

LACKING = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty")
SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL", "SIGQUIT", "SIGCONT", "SIGSTOP")
MASKS = ("pthread_sigmask", "pthread_kill", "setitimer", "alarm", "pause", "sigwait")
OURS = ("nice", "geteuid", "getuid", "killpg", "setsid", "getsid", "getpgid", "uname", "statvfs",
        "sched_getaffinity", "posix_fallocate", "mkfifo", "getloadavg", "sysconf", "O_DIRECTORY")

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in LACKING:
            raise ImportError(f"{name}: not on Windows", name=name)

sys.meta_path.insert(0, Hide())
for name in LACKING:
    sys.modules.pop(name, None)
for module, names in ((signal, (*SIGNALS, *MASKS)), (os, OURS)):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
signal.Signals = enum.IntEnum("Signals", {"SIGINT": 2, "SIGTERM": 15})
"""
"""Begins a script that sees what it would see on Windows."""


def run_there(folder: Path, code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run code where what Windows lacks is hidden."""
    return subprocess.run(
        [sys.executable, "-c", HIDDEN + code, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "USERNAME": "someone"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


END = "--- end ---"
IN_TURN = f"""
import importlib, json

TOOLS = {{
    "train": ("micu.cli", "train_main"),
    "evaluate": ("micu.cli", "eval_main"),
    "extract": ("micu_extract.cli", "main"),
    "demo": ("micu_extract.demo.tour", "main"),
}}

def typed(tool, words):
    module, function = TOOLS[tool]
    sys.argv = [tool, *words]
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as ended:
        return ended.code or 0
    finally:
        print({END!r}, file=sys.stderr, flush=True)
    return 0

commands, *features = sys.argv[1:]
print([typed(*command) for command in json.loads(commands)])
"""
"""Types commands in one process, which loads libraries once, and prints their exit codes."""


READ = """
from pathlib import Path
from micu.store.sets import FeatureStore, find_sets

store = FeatureStore(find_sets(Path(*features))[0])
print(store.read(store.clip_ids[0]).values.shape)
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("windows") / "features"
    write_features(root, make_clips(24, ("train", "val", "test")))
    return root


@pytest.mark.slow
def test_training_evaluating_and_reading_need_nothing_that_windows_lacks(
    features: Path, tmp_path: Path
) -> None:
    settings = [word for assignment in SMALL for word in ("--set", assignment)]
    where = ["--features", str(features), "--modalities", "v,a", "--device", "cpu"]
    words = [*where, *settings, "--out", "run"]
    (tmp_path / "known.csv").write_text("label\ndrum\nengine\n")
    found = [
        *("oscmg", "run/last.pt", "--features", str(features), "--known", "known.csv"),
        *("--pairs", "v:a", "--probe-epochs", "1"),
        *("--device", "cpu", "--out", "results.csv", "--details", "details"),
    ]
    typed = [
        ("train", [*words, "--set", "optimizer.max_steps=2"]),
        ("train", [*words, "--set", "optimizer.max_steps=3", "--resume"]),
        ("train", [*words, "--dry-run"]),
        ("evaluate", found),
    ]
    done = run_there(tmp_path, IN_TURN + READ, json.dumps(typed), str(features))

    assert done.returncode == 0, done.stderr
    *printed, codes, shape = done.stdout.splitlines()
    assert codes == "[0, 0, 0, 0]", done.stderr
    assert "3 steps; model in" in done.stderr
    assert "? MiB at most" in done.stderr + "\n".join(printed)
    assert (tmp_path / "results.csv").read_text().count("\n") > 1
    assert shape == "(10, 6)"


def test_two_runs_in_one_folder_are_told_apart_where_there_are_locks_of_windows_kind(
    tmp_path: Path,
) -> None:
    code = (
        "from pathlib import Path\n"
        "from micu.base.files import lock_folder, write_atomically, remove_stale_temporaries\n"
        "with lock_folder(Path('.')):\n"
        "    write_atomically(Path('a'), b'whole')\n"
        "    remove_stale_temporaries(Path('.'))\n"
    )
    done = run_there(
        tmp_path, "import micu.base.files\nmicu.base.files._MOVES_OPEN = False\n" + code
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_extraction_says_where_it_runs(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("clip_id,path,text\na,a.wav,a\n")
    cpu = ("--device", "cpu")
    typed = [
        ("extract", ("audio", "m.csv", *cpu)),
        ("extract", ("video", "m.csv", *cpu)),
        ("extract", ("flow", "m.csv", "--tvl1", *cpu)),
        ("extract", ("text", "m.csv", *cpu)),
        ("extract", ("all", "m.csv", "--backbones", "vggish", *cpu)),
        ("demo", ()),
    ]
    done = run_there(tmp_path, IN_TURN, json.dumps(typed))

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([2] * len(typed))
    *told, rest = done.stderr.split(END)
    assert (len(told), rest) == (len(typed), "\n")
    for stderr in told:
        assert stderr.strip().splitlines()[-1] == (
            "error: extraction: expected Linux or macOS, got a system without the module fcntl; "
            "extract on one of them (WSL counts as Linux): features are read, trained on and "
            "evaluated everywhere"
        )
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


def test_what_only_reads_works_everywhere(features: Path) -> None:
    words = (["--help"], ["list"], ["verify", "features"])
    done = run_there(features.parent, IN_TURN, json.dumps([("extract", each) for each in words]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 0]", done.stderr
