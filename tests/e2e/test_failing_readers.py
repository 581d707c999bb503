"""A run that fails ends, and does not wait for its reading processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PYTHONPATH
from tests.feature_sets import make_clips, write_features

PATIENCE_S = 300.0
"""The script takes seconds."""

FAILS_MIDWAY = """
from pathlib import Path
from micu.config.sections import DataConfig
from micu.data.dataset import FeatureDataset
from micu.data.loader import iterate, make_loader
from micu.store.sets import FeatureStore, find_sets

if __name__ == "__main__":
    stores = [FeatureStore(folder) for folder in find_sets(Path("features"))]
    dataset = FeatureDataset({s.spec.modality: s for s in stores}, CLIPS, DataConfig())
    batches = iterate(make_loader(dataset, 2, seed=0, epoch=0, workers=2))
    next(batches)
    raise SystemExit(5)  # as an error does, whose traceback holds what is being read
"""


@pytest.mark.slow
def test_a_run_that_fails_does_not_wait_for_its_reading_processes(tmp_path: Path) -> None:
    clips = make_clips()
    write_features(tmp_path / "features", clips)
    code = f"from micu.store.manifest import Clip\nCLIPS = {clips!r}\n{FAILS_MIDWAY}"
    (tmp_path / "script.py").write_text(code)

    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 5, done.stderr
