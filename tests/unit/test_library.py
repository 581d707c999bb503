"""The Python face: what is public, feature sets as arrays, and vectors as evaluation has them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import micu
from micu.base.errors import ConfigError, ManifestError, StoreError
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.evaluate.models import untrained_model
from micu.library.clips import FeatureSet, read_manifest
from micu.library.model import Embedding, Model, _sentences
from micu.model.micu import MICU
from micu.store.manifest import Clip
from micu.store.sets import find_sets
from micu.store.shard import FeatureRow
from micu.train.checkpoint import LoadedModel
from tests.conftest import PYTHONPATH
from tests.feature_sets import SHAPES, SMALL, make_clips, make_row, write_features

PUBLIC = {
    "ClipList", "Embedding", "FeatureSet", "Hit", "MicuError", "Model", "evaluate_model",
    "extract_features", "load", "read_manifest", "train_model",
}  # fmt: skip


def test_these_names_are_public_typed_and_told_and_nothing_else() -> None:
    assert set(micu.__all__) == PUBLIC
    assert {name for name in dir(micu) if not name.startswith("_")} == PUBLIC
    for name in PUBLIC:
        thing = getattr(micu, name)
        assert thing.__doc__, name
        if not isinstance(thing, type):
            assert "return" in thing.__annotations__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        micu.nothing  # noqa: B018


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "h5py", "micu_extract", "pandas")
    code = f"import sys, micu; dir(micu); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": PYTHONPATH}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


# --- clips -----------------------------------------------------------------------------------


def test_clips_come_from_a_manifest_a_folder_paths_or_a_frame(tmp_path: Path) -> None:
    for name in ("a/one.wav", "b/two.wav"):
        (tmp_path / "media" / name).parent.mkdir(parents=True)
        (tmp_path / "media" / name).write_bytes(b"RIFF")
    frame = pd.DataFrame({"clip_id": ["x", "y"], "path": ["a/one.wav", "b/two.wav"]})
    frame.to_csv(tmp_path / "my.csv", index=False)

    listed = read_manifest(tmp_path / "my.csv")
    assert [clip.clip_id for clip in listed] == ["x", "y"]
    assert (listed.path, listed.media_root, listed.name) == (tmp_path / "my.csv", tmp_path, "my")
    assert read_manifest(listed) is listed
    folder = read_manifest(str(tmp_path / "media"))
    assert [(clip.path, clip.label) for clip in folder] == [("a/one.wav", "a"), ("b/two.wav", "b")]
    assert folder.media_root == tmp_path / "media"
    paths = read_manifest([tmp_path / "media" / name for name in ("a/one.wav", "b/two.wav")])
    assert [clip.path for clip in paths] == ["a/one.wav", "b/two.wav"]
    assert paths.media_root == tmp_path / "media"
    one = read_manifest(tmp_path / "media/a/one.wav")
    assert [(c.clip_id, c.path) for c in one] == [("one.wav", "one.wav")]
    shown = read_manifest(frame, media_root=tmp_path / "media")
    assert [clip.clip_id for clip in shown] == ["x", "y"]
    assert shown.media_root == tmp_path / "media"
    assert len({paths.name, folder.name, one.name, shown.name}) == 4
    written = shown.write(tmp_path / "features")
    assert written == tmp_path / "features" / f"{shown.name}.csv"
    assert read_manifest(written).clips == shown.clips


def test_tables_that_are_packed_are_read_as_the_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "one.wav").write_bytes(b"RIFF")
    texts = pd.DataFrame({"clip_id": ["x", "y"], "path": "one.wav", "text": ["a dog", "a cat"]})
    texts.to_csv(tmp_path / "my.csv.gz", index=False)
    pd.DataFrame({"path": ["one.wav"], "label": "dog"}).to_csv(tmp_path / "own.csv.gz", index=False)

    listed, own = (read_manifest(tmp_path / f"{name}.csv.gz") for name in ("my", "own"))
    assert ([clip.clip_id for clip in listed], listed.name) == (["x", "y"], "my")
    assert [(clip.path, clip.label) for clip in own] == [("one.wav", "dog")]
    assert own.name.startswith("own-")
    sentences = _sentences(str(tmp_path / "my.csv.gz"))
    assert [clip.text for clip in sentences] == ["a dog", "a cat"]
    assert [clip.text for clip in _sentences("a dog.csv.gz")] == ["a dog.csv.gz"]


def test_what_lists_no_clips_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="expected paths of media files, got none"):
        read_manifest([])
    with pytest.raises(ManifestError, match=r"a\.mp4' which is|which is none"):
        read_manifest([tmp_path / "a.mp4"])
    with pytest.raises(ManifestError, match="repeats the id of line 2"):
        read_manifest(pd.DataFrame({"clip_id": ["x", "x"], "text": ["a", "b"]}))


def test_paths_come_in_whatever_can_be_gone_through(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for name in names:
        Path(name).write_bytes(b"RIFF")
    for source in (iter(names), np.array(names), pd.Series(names, index=[7, 3]), tuple(names)):
        assert [clip.path for clip in read_manifest(source)] == ["a.wav", "b.wav"]
    frame = pd.DataFrame({"clip_id": [1, 2], "text": ["a", "b"]}, index=["x", "x"])
    assert [clip.clip_id for clip in read_manifest(frame)] == ["1", "2"]


@pytest.mark.parametrize("source", [None, 3, [3, 4], b"a.wav", Clip(clip_id="a")])
def test_what_names_no_clips_is_refused_with_a_sentence(source: object) -> None:
    with pytest.raises(ManifestError, match="clips: expected a manifest, a folder, paths of media"):
        read_manifest(source)


# --- feature sets ----------------------------------------------------------------------------


def ragged(clip: Clip, modality: str, shape: tuple[int, ...], steps: int) -> FeatureRow:
    """A clip of 1 to 14 steps; of words without times."""
    number = int(clip.clip_id.split("/")[-1])
    whole = make_row(clip, modality, shape, 14)
    length = number % 14 + 1
    values = np.where((np.arange(14) < length).reshape(-1, *(1,) * len(shape)), whole.values, 0)
    times_s = np.full(14, np.nan) if modality == "text" else np.arange(14) + 0.5
    return FeatureRow(clip.clip_id, values.astype(np.float32), np.arange(14) < length, times_s)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureSet]:
    root = tmp_path_factory.mktemp("sets") / "features"
    write_features(root, make_clips(28), make=ragged)
    found = map(FeatureSet, find_sets(root))
    return {store.spec.modality: store for store in found}


def test_a_set_gives_arrays_rows_and_files(sets: dict[str, FeatureSet], tmp_path: Path) -> None:
    video = sets["video"]
    assert len(video) == 28
    assert list(video) == list(video.clip_ids)
    assert "28 clips, video by toy_grid" in repr(video)
    assert video["clip/2"].values.shape == (3, 5, 5, 4)
    assert video["clip/2"].mask.all()
    stacked = video.array(["clip/2", "clip/0"])
    assert stacked.shape == (2, 3, 5, 5, 4)
    assert np.array_equal(stacked[0], video["clip/2"].values)
    assert not stacked[1, 1:].any()
    assert video.array().shape == (28, 14, 5, 5, 4)

    video.to_numpy(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert file["clip_ids"].tolist() == list(video)
        assert np.array_equal(file["values"], video.array())
        assert file["mask"].sum(1).tolist() == [i % 14 + 1 for i in range(28)]
        assert file["times_s"][2, :3].tolist() == [0.5, 1.5, 2.5]
    pytest.importorskip("pyarrow")
    video.to_parquet(tmp_path / "f.parquet")
    table = pd.read_parquet(tmp_path / "f.parquet")
    assert list(table.columns) == ["clip_id", "step", "time_s", "features"]
    assert len(table) == sum(i % 14 + 1 for i in range(28))
    third = table[table.clip_id == "clip/2"]
    assert np.array_equal(np.stack(third.features), video["clip/2"].values.reshape(3, -1))


# --- vectors ---------------------------------------------------------------------------------

MODALITIES = {
    "repeat": ("audio", "video", "flow", "text"),
    "mask": ("audio", "video", "flow"),  # the seconds that it hides would hide words, too
}


def build_model(padding: str, steps: int) -> Model:
    typed = [*SMALL, f"modalities={','.join(MODALITIES[padding])}", f"data.padding={padding}"]
    config = with_overrides(PRESETS["micu"](), [*typed, f"data.steps={steps}"])
    model = untrained_model(config, {name: SHAPES[name] for name in config.modalities}, 3)
    return Model(LoadedModel(model, config, 0, {}, "a" * 64, {}), Path("last.pt"))


def by_hand(model: MICU, padding: str, steps: int, modality: str, rows: list[FeatureRow]) -> dict:
    """Vectors, codes and mask, from what the README says of padding, and the model alone."""
    values = np.zeros((len(rows), steps, *rows[0].values.shape[1:]), np.float32)
    real = np.zeros((len(rows), steps), np.bool_)
    for i, row in enumerate(rows):
        length = min(len(row.mask), steps)
        values[i, :length], real[i, :length] = row.values[:length], True
        if padding == "repeat" and modality != "text":
            values[i, length:] = row.values[length - 1]
    mask = real if padding == "mask" and modality != "text" else np.ones_like(real)
    with torch.inference_mode():
        weight = next(model.parameters())
        x = torch.from_numpy(values).to(weight.dtype)
        found = model.encode({modality: x}, torch.from_numpy(mask))[modality]
    kept = torch.from_numpy(real)[..., None]
    vectors = (found.quantized * kept).sum(1) / kept.sum(1)
    return {"vectors": vectors.numpy(), "codes": found.codes.numpy(), "mask": real}


@pytest.mark.parametrize("padding", ["mask", "repeat"])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_embed_is_what_evaluation_computes_to_the_bit(
    sets: dict[str, FeatureSet], padding: str, steps: int
) -> None:
    model = build_model(padding, steps)

    @settings(max_examples=8)
    @given(
        modality=st.sampled_from(MODALITIES[padding]),
        numbers=st.lists(st.integers(0, 27), min_size=1, max_size=9, unique=True),
    )
    def check(modality: str, numbers: list[int]) -> None:
        ids = [f"clip/{number}" for number in numbers]
        found = model.embed({modality: sets[modality]}, clip_ids=ids)
        rows = [sets[modality][clip_id] for clip_id in ids]
        expected = by_hand(model.loaded.model, padding, steps, modality, rows)
        assert found.clip_ids == tuple(ids)
        assert found.modalities == (modality,) * len(ids)
        for name, values in expected.items():
            assert np.array_equal(getattr(found, name), values), name

    check()


def test_modalities_follow_one_another_and_all_clips_are_embedded(
    sets: dict[str, FeatureSet], tmp_path: Path
) -> None:
    model = build_model("repeat", 10)
    both = model.embed({"video": sets["video"], "text": sets["text"].folder})
    assert len(both) == 56
    assert both.modalities == ("video",) * 28 + ("text",) * 28
    assert both.codes.shape == both.mask.shape == (56, 10)
    alone = model.embed({"text": sets["text"]})
    assert np.array_equal(both.vectors[28:], alone.vectors)
    both.to_numpy(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert np.array_equal(file["vectors"], both.vectors)
        assert file["modalities"].tolist() == list(both.modalities)
    pytest.importorskip("pyarrow")
    both.to_parquet(tmp_path / "e.parquet")
    assert np.array_equal(np.stack(pd.read_parquet(tmp_path / "e.parquet").codes), both.codes)


def test_features_of_another_kind_are_refused(sets: dict[str, FeatureSet]) -> None:
    model = build_model("repeat", 10)
    with pytest.raises(StoreError, match="not of the kind"):
        model.embed({"flow": sets["audio"]})
    with pytest.raises(ConfigError, match="no modality 'vidoe'; did you mean 'video'"):
        model.embed({"vidoe": sets["video"]})
    with pytest.raises(ConfigError, match="expected a modality of audio, video"):
        model.embed({})
    with pytest.raises(StoreError, match="no features of clip 'x'"):
        model.embed({"video": sets["video"]}, clip_ids=["x"])
    for ids in (np.array(["clip/3"]), iter(["clip/3"])):
        assert list(map(type, model.embed({"video": sets["video"]}, clip_ids=ids).clip_ids)) == [
            str
        ]
    with pytest.raises(ConfigError, match="does not say by which backbone its text"):
        model.embed({"text": "a dog"})


# --- search ----------------------------------------------------------------------------------


def index_of(*vectors: list[float]) -> Embedding:
    size = len(vectors)
    codes, mask = np.zeros((size, 1), np.int64), np.ones((size, 1), np.bool_)
    ids = tuple(f"c{i}" for i in range(size))
    return Embedding(np.array(vectors, np.float32), codes, mask, ids, ("video",) * size)


def test_search_ranks_by_the_cosine_and_keeps_equals_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model("mask", 10)
    index = index_of([0, 0], [1, 1], [5, 0], [-1, 0], [2, 0])
    monkeypatch.setattr(Model, "embed", lambda *_, **__: index_of([3, 0]))
    hits = model.search(index, text="a dog", k=3)
    assert [(hit.clip_id, hit.place) for hit in hits] == [("c2", 2), ("c4", 4), ("c1", 1)]
    assert [round(hit.score, 6) for hit in hits] == [1, 1, round(0.5**0.5, 6)]
    assert [hit.clip_id for hit in model.search(index, text="a dog", k=99)][-2:] == ["c0", "c3"]
    assert len(model.search(index, text="a dog", k=1)) == 1


def test_a_query_is_one_of_one_kind(sets: dict[str, FeatureSet]) -> None:
    model, index = build_model("mask", 10), index_of([1, 0])
    for query in ({}, {"text": "a", "audio": "b.wav"}, {"text": "a", "k": 0}):
        with pytest.raises(ConfigError, match="expected one of text, audio, video, picture"):
            model.search(index, **query)
    with pytest.raises(ConfigError, match="expected one video to search by, got 28"):
        model.search(index, video=sets["video"])


def test_vectors_of_length_one() -> None:
    unit = index_of([0, 0], [3, 4]).unit_vectors
    assert unit.tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
