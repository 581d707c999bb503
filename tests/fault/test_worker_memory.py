"""Worker processes that may have so much memory and no more."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from micu.store.ledger import read_ledger
from micu.store.manifest import read_manifest, write_manifest
from micu.store.sets import FeatureStore
from tests.conftest import PROJECT
from tests.media_files import write_media, write_wav
from tests.runs import SOUNDS, left_over, start, write_sounds
from tests.runs import finish as finish_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux counts them")


@pytest.mark.parametrize("limited", [True, False])
def test_a_clip_that_needs_more_memory_than_a_worker_may_have_is_too_large(
    tmp_path: Path, limited: bool
) -> None:
    write_sounds(tmp_path, 6)
    write_wav(tmp_path / "long.wav", np.zeros((1, 8000 * 60 * 40)), 8000)
    clips = list(read_manifest(tmp_path / "m.csv").clips)
    clips.insert(1, type(clips[0])(clip_id="long", path="long.wav"))
    write_manifest(tmp_path / "m.csv", clips)
    process = start(tmp_path, *SOUNDS, *(("--worker-memory", "0.2") if limited else ()))
    code, output = finish_run(process)

    folder = tmp_path / "features" / "m" / "audio-toy-sound"
    failed = {key: row.code for key, row in read_ledger(folder).items()}
    assert code == 3, output
    assert failed == {"clip 2": "missing", **({"long": "too_large"} if limited else {})}
    assert len(FeatureStore(folder)) == len(clips) - len(failed)
    assert not left_over(process.pid)


DECODE = """
import resource, sys
from pathlib import Path
from micu_extract.backbones.base import FrameInput
from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from tests.media_files import read_media
folder = Path(sys.argv[1])
wants = FrameInput(fps=1, resize=16, crop=16)
read_media(Clip(clip_id="c", path="small.mp4"), wants, folder)
status = Path("/proc/self/status").read_text()
used = int(status.split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[2]) * 2**20,) * 2)
try:
    print(len(read_media(Clip(clip_id="c", path="large.avi"), wants, folder).units), "units")
except DecodeError as error:
    print(error.code)
"""


@pytest.mark.parametrize(("room_mib", "expected"), [(1000, "1 units"), (8, "too_large")])
def test_a_decoder_that_gets_no_memory_does_not_call_the_file_damaged(
    tmp_path: Path, room_mib: int, expected: str
) -> None:
    write_media(tmp_path / "small.mp4", frames=5)
    large = np.zeros((4000, 4000, 3), np.uint8)
    write_media(tmp_path / "large.avi", frames=2, codec="mjpeg", picture=lambda i: large)
    done = subprocess.run(
        [sys.executable, "-c", DECODE, str(tmp_path), str(room_mib)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == expected, done.stderr
