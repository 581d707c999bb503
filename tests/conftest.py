"""Fixtures for every test: the maintainers' shared material, and fixed seeds."""

import os
import random
import signal
import sys
from pathlib import Path

# Tests run in two processes: threads of one would wait for those of the other. Read at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Under `nohup` every command would be started deaf to SIGHUP, and stay so, as it should.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import numpy as np
import pytest
from hypothesis import settings

# No test depends on how fast the machine is.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")

PROJECT = Path(__file__).parent.parent
PYTHONPATH = f"{PROJECT}{os.pathsep}{PROJECT / 'extract'}"
"""Of a process that imports both packages, and the tests."""

not_on_windows = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no such signals, pipes and limits"
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The maintainers' media, annotations and golden numbers; users do not have them."""
    folder = Path(os.environ.get("MICU_SHARED", PROJECT.parent / "shared"))
    if not (folder / "media").is_dir():
        pytest.skip(f"no shared material at {folder}; set MICU_SHARED to where it is")
    return folder


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may use the global generator
