"""The README's lines of Python: from media to figures, where a user runs them."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import micu
from micu_extract.demo.media import write_clip
from tests.conftest import PROJECT, PYTHONPATH, not_on_windows
from tests.e2e.test_readme import blocks
from tests.feature_sets import SMALL
from tests.runs import set_bytes

pytestmark = not_on_windows

LABELS = ("ball", "pendulum", "fan")
SETTINGS = dict(entry.split("=") for entry in SMALL) | {"optimizer.max_steps": 3}
FIFTEEN = blocks((PROJECT / "docs/python.md").read_text(), "python")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that the demo draws, their manifest, and a folder `extract` that has nothing to do."""
    root = tmp_path_factory.mktemp("python")
    (root / "media").mkdir()
    (root / "extract").mkdir()
    (root / "extract" / "__init__.py").write_text("raise RuntimeError('a stranger')\n")
    rows = []
    for i in range(18):
        label = LABELS[i % 3]
        write_clip(root / "media" / f"{i}.mp4", label, (i,))
        split = ("train", "val", "test")[i // 3 % 3]
        rows.append({"clip_id": f"clip {i}", "path": f"media/{i}.mp4", "label": label,
                     "split": split, "text": f"a {label}"})  # fmt: skip
    pd.DataFrame(rows).to_csv(root / "my.csv", index=False)
    return root


def run_script(folder: Path, code: str) -> tuple[str, str]:
    (folder / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_fifteen_lines_run_in_a_script_without_a_guard(folder: Path) -> None:
    assert len([line for line in FIFTEEN.splitlines() if line]) == 15
    printed, told = run_script(folder, FIFTEEN)
    lines = printed.splitlines()
    assert "clips to extract" not in told
    assert lines[0].endswith("18 clips, video by swinv2-demo, steps of (64,) (4, 64) (2, 4, 64)")
    assert lines[1].endswith("last.pt'): audio, video; 40 codes of 32 numbers")
    assert lines[2] == "(36, 32) (36, 10) 144 ('clip 0', 'clip 1')"
    for line in lines[3:6]:
        assert re.fullmatch(r"[01]\.\d{3} (video|audio) clip \d+", line)
    assert lines[6].split() == ["protocol", "metric", "value"]
    assert (folder / "features/my/video-swinv2-demo/set.json").is_file()


def test_features_are_those_of_the_command_and_are_gone_on_with(
    folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "micu_extract.cli", "audio", str(folder / "my.csv")]
    command += ["--backbone", "htsat-demo", "--weights", "random", "--out", str(tmp_path / "c")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": PYTHONPATH})

    async def extract() -> micu.FeatureSet:  # a notebook's loop is running, too
        return micu.extract_features(
            str(folder / "my.csv"), "htsat-demo", weights="random", out=tmp_path / "p"
        )

    made = asyncio.run(extract())
    assert set_bytes(tmp_path / "p") == set_bytes(tmp_path / "c")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "p").rglob("shard-*.h5")}
    again = micu.extract_features(
        str(folder / "my.csv"), "htsat-demo", weights="random", out=tmp_path / "c"
    )
    assert again.clip_ids == made.clip_ids
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_several_devices_are_named_as_for_the_command(folder: Path, tmp_path: Path) -> None:
    given = {"weights": "random:3", "frames_per_second": 1, "grid": True, "batch_size": 4}
    listed = str(folder / "my.csv")
    one = micu.extract_features(listed, "swinv2-demo", out=tmp_path / "one", **given)
    both = micu.extract_features(
        listed, "swinv2-demo", out=tmp_path / "both", devices="cpu:2", **given
    )
    assert list(both) == list(one)
    assert set_bytes(tmp_path / "both") == set_bytes(tmp_path / "one")
    for more, other in (({"device": "cpu"}, "device='cpu'"), ({"conventions": {"fps": 1}}, "conv")):
        with pytest.raises(micu.MicuError, match=f"devices and {other}"):
            micu.extract_features(listed, "swinv2-demo", devices="cpu:2", **more)


def test_a_file_is_extracted_as_the_model_was_trained(folder: Path, tmp_path: Path) -> None:
    listed = str(folder / "my.csv")
    sound = micu.extract_features(listed, "htsat-demo", weights="random:3", out=tmp_path / "f")
    slow = micu.extract_features(
        *(listed, "swinv2-demo"),
        weights="random",
        out=tmp_path / "f",
        frames_per_second=1,
        grid=True,
    )
    model = micu.train_model(
        "micu", features=[sound, slow], settings=SETTINGS, out=tmp_path / "run", device="cpu"
    )
    for modality, stored in (("audio", sound), ("video", slow)):
        one = model.embed({modality: folder / "media/3.mp4"})
        same = model.embed({modality: stored}, clip_ids=["clip 3"])
        assert one.clip_ids == ("3.mp4",)
        assert np.array_equal(one.vectors, same.vectors)
        assert np.array_equal(one.codes, same.codes)
    assert model.search(model.embed({"audio": sound}), audio=folder / "media/3.mp4", k=1)[
        0
    ].score == pytest.approx(1, abs=1e-6)
    with pytest.raises(micu.MicuError, match="weights_sha256"):
        model.embed({"audio": folder / "media/3.mp4"}, weights="random:4")
    with pytest.raises(micu.MicuError, match="expected a checkpoint, or the folder of a run"):
        micu.load(folder / "media")


def test_what_no_clip_can_give_is_told_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(
        micu.MicuError, match=r"expected features of 1 clips, got none: code unreadable"
    ):
        micu.extract_features(
            tmp_path / "a.wav", "htsat-demo", weights="random", out=tmp_path / "features"
        )
    both = micu.extract_features(
        [tmp_path / "a.wav", folder / "media/0.mp4"],
        "htsat-demo",
        weights="random",
        out=tmp_path / "features",
    )
    assert [Path(name).name for name in both] == ["0.mp4"]
    assert [Path(name).name for name in both.failures] == ["a.wav"]


def test_clips_that_another_list_had_extracted_are_not_extracted_again(
    folder: Path, tmp_path: Path
) -> None:
    media = [folder / f"media/{i}.mp4" for i in range(3)]
    given = {"weights": "random", "out": tmp_path / "f"}
    both = micu.extract_features(media[:2], "htsat-demo", **given)
    one = micu.extract_features(media[1:2], "htsat-demo", **given)
    more = micu.extract_features(media[1:], "htsat-demo", **given)
    assert list(both) == ["0.mp4", "1.mp4"]
    assert list(one) == ["1.mp4"]
    assert list(more) == ["1.mp4", "2.mp4"]
    assert np.array_equal(one.array(), both.array(["1.mp4"]))
    assert np.array_equal(more.array(["1.mp4"]), both.array(["1.mp4"]))


def test_calls_refuse_what_commands_refuse_with_their_sentences(folder: Path) -> None:
    listed = str(folder / "my.csv")
    with pytest.raises(micu.MicuError, match="unknown backbone 'swinv3'; did you mean 'swinv2'"):
        micu.extract_features(listed, "swinv3")
    with pytest.raises(micu.MicuError, match="unknown option 'frame_rate'"):
        micu.extract_features(listed, "swinv2-demo", weights="random", frame_rate=3)
    with pytest.raises(micu.MicuError, match="workers: expected at least 1, got 0"):
        micu.extract_features(listed, "swinv2-demo", workers=0)
    with pytest.raises(micu.MicuError, match="unknown task 'oscm'; did you mean 'oscmg'"):
        micu.evaluate_model("last.pt", "oscm")
    with pytest.raises(micu.MicuError, match="no option 'protocl'; did you mean 'protocol'"):
        micu.evaluate_model("last.pt", "oscmg", protocl="clean")
    with pytest.raises(micu.MicuError, match="no option 'checkpoints'"):
        micu.evaluate_model("last.pt", "oscmg", checkpoints=("other.pt",))
    with pytest.raises(micu.MicuError, match="no such checkpoint"):
        micu.evaluate_model("none.pt", "oscmg")
    with pytest.raises(
        micu.MicuError, match="expected sets of one root and one manifest, got none"
    ):
        micu.train_model(features=[])
    with pytest.raises(micu.MicuError, match="no key 'codebok'"):
        micu.train_model(features="features", settings={"quantizer.codebok": 1})
