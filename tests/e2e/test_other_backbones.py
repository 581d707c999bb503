"""`hf:NAME` and `tv:NAME` through the command, on real clips; windows of frames across clips."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import micu
from micu.store.manifest import Clip
from micu.store.sets import find_sets
from micu_extract.backbones.base import ClipInput, FrameInput
from micu_extract.backbones.transformers_models import TransformersPictures
from micu_extract.demo.media import write_clip
from tests.conftest import not_on_windows
from tests.media_files import read_media
from tests.parity.test_transformers_models import FAMILIES, write_model
from tests.runs import run

pytestmark = not_on_windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of three seconds and their manifest."""
    root = tmp_path_factory.mktemp("others")
    rows = []
    for i in range(3):
        write_clip(root / f"{i}.mp4", "ball", (i,))
        rows.append({"clip_id": f"clip {i}", "path": f"{i}.mp4", "end_s": 3, "text": f"ball {i}"})
    pd.DataFrame(rows).to_csv(root / "m.csv", index=False)
    return root


@pytest.mark.slow
def test_every_family_extracts_real_clips_through_the_command(folder: Path) -> None:
    names, weights = [], ["--weights", "tv:r3d_18=random"]
    for family, (modality, *_) in FAMILIES.items():
        write_model(folder / "hub" / family, family)
        tail = "" if modality == "video" else f"@{modality}"
        names.append(f"hf:hub/{family}{tail}")
    names.append("tv:r3d_18")
    code, told = run(
        folder, "all", "m.csv", "--backbones", ",".join(names), *weights, "--device", "cpu"
    )
    assert code == 0, told
    found = {s.spec.backbone: s for s in map(micu.FeatureSet, find_sets(folder / "features"))}
    assert len(found) == len(names)
    for name, store in found.items():
        assert len(store) == 3, name
        row = store["clip 1"]
        assert len(row.values) == (1 if store.spec.modality == "text" else 3), name
        assert row.mask.all()
        assert np.isfinite(row.values).all()
    assert found["hf:vit"].spec.weights == "hf:vit"
    assert found["tv:r3d_18"].spec.preprocessing["input"]["frames"] == 16
    code, told = run(folder, "audio", "m.csv", "--backbone", f"hf:{folder / 'hub/ast'}")
    assert "audio-hf_ast_audio" in told


TORCHVISION = {"s3d": 1024}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision_extract_through_the_command(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """In full size, for their code has no smaller one: one window, of a clip of one second."""
    (tmp_path / "m.csv").write_text(f"clip_id,path,end_s\na,{folder / '0.mp4'},1\n")
    words = ("video", "m.csv", "--backbone", f"tv:{name}", "--weights", "random", "--device", "cpu")
    code, told = run(tmp_path, *words, "--media-root", "/")
    assert code == 0, told
    ((place,)) = find_sets(tmp_path / "features")
    store = micu.FeatureSet(place)
    assert store["a"].values.shape == (1, TORCHVISION[name])
    assert np.isfinite(store["a"].values).all()
    assert np.ptp(store["a"].values) > 0
    assert store.spec.preprocessing["input"]["frames"] == 16


def test_windows_of_several_clips_fill_a_batch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write_model(tmp_path / "videomae", "videomae")
    batches: list[int] = []
    forward = TransformersPictures._forward

    def count(self, units):
        batches.append(len({unit.tobytes() for unit in units}))
        return forward(self, units)

    monkeypatch.setattr(TransformersPictures, "_forward", count)
    feats = micu.extract_features(
        folder / "m.csv", f"hf:{home}", out=tmp_path / "f", batch_size=7, device="cpu"
    )
    assert len(feats) == 3
    assert batches == [1, 7, 2]  # the blank one, then nine windows of three clips
    monkeypatch.undo()
    alone = micu.extract_features(
        folder / "m.csv", f"hf:{home}", out=tmp_path / "g", batch_size=1, device="cpu"
    )
    np.testing.assert_allclose(alone.array(), feats.array(), atol=1e-5)


@pytest.mark.parametrize(("fps", "frames"), [(4, 4), (4, 1), (4, 6), (3, 2), (2, 5), (4, 20)])
def test_a_window_holds_the_frames_next_to_the_middle_of_its_second(
    folder: Path, fps: int, frames: int
) -> None:
    clip = Clip(clip_id="a", path="0.mp4", start_s=0.3, end_s=2.8)
    plain = read_media(clip, FrameInput(fps=fps, resize=32, crop=32), folder)
    found = read_media(clip, ClipInput(fps=fps, resize=32, crop=32, frames=frames), folder)
    assert found.units.shape == (3, frames, 32, 32, 3)
    assert found.times_s.tolist() == [0.5, 1.5, 2.5]
    last = len(plain.units) - 1
    for second in range(3):
        begin = second * fps + (fps - frames) // 2
        for i in range(frames):
            place = min(max(begin + i, 0), last)
            assert np.array_equal(found.units[second, i], plain.units[place])


def test_whole_pictures_are_kept_and_only_larger_ones_reduced(folder: Path) -> None:
    clip = Clip(clip_id="a", path="0.mp4", end_s=1)
    whole = read_media(clip, FrameInput(fps=1, resize=4000, crop=None), folder).units[0]
    small = read_media(clip, FrameInput(fps=1, resize=40, crop=None), folder).units[0]
    assert min(whole.shape[:2]) > 40
    assert min(small.shape[:2]) == 40
    side = min(whole.shape[:2])
    same = read_media(clip, FrameInput(fps=1, resize=side, crop=None), folder).units[0]
    assert np.array_equal(same, whole)
    crop = read_media(clip, FrameInput(fps=1, resize=side, crop=side), folder).units[0]
    assert crop.shape[:2] == (side, side)
