import io
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from micu.base.errors import FeatureError, ShapeError, StoreError
from micu.store import sets as store_module
from micu.store.sets import (
    FeatureStore,
    RunRecord,
    find_sets,
    publish_shard,
    read_index,
    rows_per_shard,
    set_folder,
    write_set,
)
from micu.store.shard import FeatureRow, FeatureSpec, Header, Shard, check_row, encode_shard
from tests.conftest import PYTHONPATH, not_on_windows
from tests.feature_sets import make_clips, write_features

SPEC = FeatureSpec(
    backbone="toy",
    modality="video",
    shape=(2, 3),
    hop_s=1.0,
    weights="random:0",
    weights_sha256="ab",
    preprocessing={"size": [2, 3]},
)
HEADER = Header(spec=SPEC, shard_rows=4)
RUN = RunRecord(manifest_path="m.csv", media_root=".", rows=4)


def row(clip_id: str, steps: int = 2, value: float = 1.0) -> FeatureRow:
    values = np.full((steps, 2, 3), value, np.float32)
    return FeatureRow(clip_id, values, np.ones(steps, bool), np.arange(steps) + 0.5)


def write_two_shards(folder: Path) -> None:
    write_set(folder, HEADER, RUN)
    publish_shard(folder, 0, HEADER, [row("a/b", 2, 1.0), row("../x", 4, 2.0)])
    publish_shard(folder, 1, HEADER, [row("é", 1, 3.0)])


def test_a_row_is_read_back_padded_to_the_longest_of_its_shard(tmp_path: Path) -> None:
    write_two_shards(tmp_path)
    store = FeatureStore(tmp_path)
    assert store.clip_ids == ("a/b", "../x", "é")
    short = store.read("a/b")
    np.testing.assert_array_equal(short.mask, [True, True, False, False])
    np.testing.assert_array_equal(short.times_s, [0.5, 1.5, 2.5, 3.5])
    assert short.values[:2].min() == 1.0
    assert not short.values[2:].any()
    assert store.read("é").values.shape == (1, 2, 3)


def test_equal_content_gives_equal_bytes() -> None:
    rows = [row("a"), row("b", 3)]
    assert encode_shard(HEADER, rows) == encode_shard(HEADER, rows)


def test_a_row_is_taken_out_of_a_shard_without_its_padding(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(encode_shard(HEADER, [row("a", 1), row("b", 3)]))
    with Shard.open(path) as shard:
        rows = [shard.read_own(0), shard.read_own(1)]
    assert [len(one.values) for one in rows] == [1, 3]
    assert encode_shard(HEADER, rows) == path.read_bytes()
    assert encode_shard(HEADER, rows[:1]) == encode_shard(HEADER, [row("a", 1)])


@pytest.mark.parametrize(
    ("source", "is_good"),
    [("a" * 32, True), ("", True), ("a" * 31, False), ("A" * 32, False), ("\x1b" * 32, False)],
)
def test_a_source_that_is_no_digest_is_refused(tmp_path: Path, source: str, is_good: bool) -> None:
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(encode_shard(HEADER, [replace(row("a"), source=source)]))
    with nullcontext() if is_good else pytest.raises(StoreError, match="source: expected digests"):
        Shard.open(path).close()


@pytest.mark.parametrize(("steps", "is_good"), [(0, False), (1, True), (2, True), (3, False)])
def test_a_shard_whose_rows_have_more_steps_than_it_is_refused(
    tmp_path: Path, steps: int, is_good: bool
) -> None:
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(encode_shard(HEADER, [row("a", 2)]))
    with h5py.File(path, "r+") as file:
        file["steps"][0] = steps
    with nullcontext() if is_good else pytest.raises(StoreError, match="steps: expected numbers"):
        Shard.open(path).close()


def test_a_chunk_is_one_clip_and_nothing_is_filtered() -> None:
    with h5py.File(io.BytesIO(encode_shard(HEADER, [row("a"), row("b")]))) as file:
        assert file["features"].chunks == (1, 2, 2, 3)
        assert file["features"].compression is None


@given(
    st.lists(st.text(st.characters(exclude_categories=["C"]), min_size=1), unique=True, min_size=1)
)
def test_any_printable_id_is_data_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("set")
    write_set(folder, HEADER, RUN)
    publish_shard(folder, 0, HEADER, [row(clip_id) for clip_id in ids])
    (folder / "index.jsonl").unlink()
    assert FeatureStore(folder).clip_ids == tuple(ids)


def test_the_index_is_made_again_when_it_is_missing_stale_or_cut_off(tmp_path: Path) -> None:
    write_two_shards(tmp_path)
    whole = read_index(tmp_path)
    index = tmp_path / "index.jsonl"
    lines = index.read_bytes()
    for damaged in (b"", lines[:-20], lines.replace(b'"size": ', b'"size": 1')):
        index.write_bytes(damaged)
        assert read_index(tmp_path) == whole


def test_an_indexed_set_is_planned_without_opening_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_two_shards(tmp_path)

    def refuse(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(Shard, "open", refuse)
    assert len(read_index(tmp_path)) == 2


def test_at_most_64_shards_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OPEN_SHARDS", 2)
    write_set(tmp_path, HEADER, RUN)
    for number in range(5):
        publish_shard(tmp_path, number, HEADER, [row(f"c{number}", value=number)])
    store = FeatureStore(tmp_path)
    for number in [*range(5), 0, 4]:
        assert store.read(f"c{number}").values[0, 0, 0] == number
        assert len(store._open) <= 2


def _read_in_child(store: FeatureStore, queue: "multiprocessing.Queue[float]") -> None:
    queue.put(float(store.read("../x").values[0, 0, 0]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_that_was_read_works_in_a_child(tmp_path: Path, method: str) -> None:
    write_two_shards(tmp_path)
    store = FeatureStore(tmp_path)
    store.read("../x")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=600) == 2.0
    child.join()
    assert pickle.loads(pickle.dumps(store)).read("../x").values[0, 0, 0] == 2.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(FeatureError, match="NaN or infinity"):
        check_row(row("a", value=bad), SPEC)


def test_a_row_of_another_shape_is_refused() -> None:
    wrong = FeatureRow("a", np.ones((2, 5), np.float32), np.ones(2, bool), np.zeros(2))
    with pytest.raises(ShapeError, match=r"clip 'a': expected \(T, 2, 3\), got \(2, 5\)"):
        check_row(wrong, SPEC)
    unreal = FeatureRow("a", row("a").values, np.zeros(2, bool), np.zeros(2))
    with pytest.raises(FeatureError, match="no step"):
        check_row(unreal, SPEC)


def test_shards_are_about_64_mib_within_64_to_1024_rows() -> None:
    assert rows_per_shard((1536,), 10) == 1024
    assert rows_per_shard((7, 7, 512), 10) == 66
    assert rows_per_shard((8, 8, 1536), 10) == 64


def test_feature_folders_have_safe_names() -> None:
    assert set_folder(Path("f"), "m", "video", "timm:hf-hub:a/../b") == Path(
        "f/m/video-timm_hf-hub_a_.._b"
    )


def test_shards_of_another_run_are_refused_with_the_difference(tmp_path: Path) -> None:
    write_two_shards(tmp_path)
    other = replace(HEADER, spec=replace(SPEC, weights_sha256="ee"))
    write_set(tmp_path, other, RUN)
    with pytest.raises(StoreError, match="weights_sha256: expected 'ee', got '"):
        FeatureStore(tmp_path).read("é")


def test_a_header_that_was_edited_is_refused(tmp_path: Path) -> None:
    write_two_shards(tmp_path)
    path = tmp_path / "set.json"
    record = json.loads(path.read_bytes())
    record["header"]["spec"]["weights_sha256"] = "other"
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="changed after it was written"):
        FeatureStore(tmp_path)


def _hostile(kind: str, path: Path, secret: Path) -> None:
    data = np.zeros((2, 2, 2, 3), np.float32)
    with h5py.File(path, "w") as file:
        file.attrs["header"] = np.bytes_(json.dumps(HEADER.to_json()))
        file["clip_id"] = np.array([b"a", b"b"])
        file["mask"] = np.ones((2, 2), bool)
        file["times_s"] = np.zeros((2, 2))
        if kind == "external storage":
            file.create_dataset(
                "features", data.shape, "f4", external=[(str(secret), 0, data.nbytes)]
            )
        elif kind == "external link":
            file["features"] = h5py.ExternalLink(str(secret), "features")
        elif kind == "soft link":
            file["features"] = h5py.SoftLink("/mask")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(data.shape, "f4")
            layout[:] = h5py.VirtualSource(str(secret), "features", data.shape)
            file.create_virtual_dataset("features", layout)
        elif kind == "shape bomb":
            file.create_dataset("features", (2, 2, 10**9, 3), "f4", chunks=(1, 1, 1024, 3))
        elif kind == "filter bomb":
            file.create_dataset("features", data=np.zeros((2, 2, 999, 3), "f4"), compression=9)
        elif kind == "other shape":
            file["features"] = np.zeros((3, 2, 2, 3), np.float32)
        elif kind == "other type":
            file["features"] = data.astype("f8")
        elif kind == "steps unlike the header's":
            file["features"] = np.zeros((2, 2, 3, 2), np.float32)
        elif kind == "ids of another type":
            del file["clip_id"]
            file["clip_id"] = ["a", "b"]
            file["features"] = data
        elif kind == "header in a heap":  # which libhdf5 may walk for ever
            file.attrs["header"] = json.dumps(HEADER.to_json())
            file["features"] = data
        elif kind == "no header":
            del file.attrs["header"]
            file["features"] = data
        elif kind == "group":
            file.create_group("features")
        else:
            file["features"] = data
            file["more"] = data


@pytest.mark.parametrize(
    "kind",
    [
        "external storage",
        "external link",
        "soft link",
        "virtual",
        "shape bomb",
        "filter bomb",
        "other shape",
        "other type",
        "steps unlike the header's",
        "ids of another type",
        "header in a heap",
        "no header",
        "group",
        "unknown data set",
    ],
)
def test_hostile_shards_are_refused(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["features"] = np.ones((2, 2, 2, 3), np.float32)
    path = tmp_path / "shard-00000.h5"
    _hostile(kind, path, secret)
    with pytest.raises((StoreError, ShapeError), match=r"shard-00000\.h5"):
        Shard.open(path)


def test_a_good_shard_of_the_same_making_opens(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(encode_shard(HEADER, [row("a"), row("b")]))
    with Shard.open(path) as shard:
        assert shard.clip_ids == ("a", "b")
        np.testing.assert_array_equal(shard.read(1).values, row("b").values)


@pytest.mark.parametrize("size", [0, 100, -8])
def test_a_shard_that_was_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(encode_shard(HEADER, [row("a")])[:size])
    with pytest.raises(StoreError, match="cannot be read as HDF5"):
        Shard.open(path)


@pytest.mark.parametrize(
    "kind", [pytest.param("pipe", marks=not_on_windows), "folder", "dangling link"]
)
def test_what_is_not_a_file_is_refused_without_opening_it(tmp_path: Path, kind: str) -> None:
    write_two_shards(tmp_path)
    path = tmp_path / "shard-00009.h5"
    if kind == "pipe":
        os.mkfifo(path)
        handle = os.open(path, os.O_RDWR)  # so that a broken check fails here and does not hang
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"shard-00009\.h5: not a file"):
        read_index(tmp_path)
    if kind == "pipe":
        os.close(handle)


def _damaged(data: bytes, seed: int) -> bytes:
    """`data` with one to three bits flipped."""
    draw, damaged = random.Random(seed), bytearray(data)
    for _ in range(draw.randint(1, 3)):
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def test_flipped_bits_give_an_error_about_the_shard_or_rows_of_its_shape(tmp_path: Path) -> None:
    good = encode_shard(HEADER, [row("a", 2), row("b", 3)])
    path = tmp_path / "shard-00000.h5"
    messages = []
    for seed in range(150):
        path.write_bytes(_damaged(good, seed))
        try:
            with Shard.open(path) as shard:
                rows = [shard.read(number) for number in range(2)]
                shard.nonfinite_rows()
        except (StoreError, ShapeError) as error:
            messages.append(str(error))
            continue
        assert shard.header == HEADER
        shapes = {(r.values.shape, r.mask.shape, r.times_s.shape) for r in rows}
        assert shapes == {((3, 2, 3), (3,), (3,))}
    assert len(messages) > 20
    assert all("shard-00000.h5" in message for message in messages)


def test_rows_that_are_not_finite_are_found(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(encode_shard(HEADER, [row("a"), row("b", value=np.nan), row("c")]))
    with Shard.open(path) as shard:
        assert shard.nonfinite_rows() == [1]


def test_a_shard_that_was_replaced_since_the_set_was_opened_is_refused(tmp_path: Path) -> None:
    write_two_shards(tmp_path)
    before = FeatureStore(tmp_path)
    publish_shard(tmp_path, 0, HEADER, [row("new", 2, 9.0), row("a/b", 2, 1.0), row("../x", 4)])
    with pytest.raises(StoreError, match="extended since it was opened; open it again"):
        before.read("a/b")
    assert before.read("é").values[0, 0, 0] == 3.0
    assert FeatureStore(tmp_path).read("a/b").values[0, 0, 0] == 1.0


@pytest.mark.parametrize(
    ("handles", "shards"),
    [(20, 1), (48, 1), (63, 1), (64, 2), (128, 10), (256, 26), (559, 63), (560, 64), (2**20, 64)],
)
def test_open_shards_are_bounded_by_the_handles_there_are(
    monkeypatch: pytest.MonkeyPatch, handles: int, shards: int
) -> None:
    monkeypatch.setattr(store_module, "most_handles", lambda: handles)
    assert store_module.most_open_shards() == shards


def test_handles_that_something_else_took_cost_no_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_features(tmp_path / "features", make_clips(), {"audio": (6,)})
    store = FeatureStore(next(iter(find_sets(tmp_path / "features"))))
    store.read(store.clip_ids[0])
    (opened,) = store._open
    store._open["other"] = store._open.pop(opened)
    open_shard, tries = Shard.open, []

    def refuse_once(path: Path) -> Shard:
        tries.append(path)
        if len(tries) == 1:
            raise StoreError("cannot be read") from OSError(24, "Too many open files")
        return open_shard(path)

    monkeypatch.setattr(store_module.Shard, "open", refuse_once)
    assert store.read(store.clip_ids[0]).clip_id == store.clip_ids[0]
    assert len(tries) == 2
    assert list(store._open) == [opened]


@not_on_windows
def test_the_limit_of_the_system_is_the_limit() -> None:
    code = "from micu.base.files import most_handles; print(most_handles())"
    command = f"ulimit -n 77; exec {sys.executable} -c '{code}'"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
    assert done.stdout == "77\n", done.stderr
