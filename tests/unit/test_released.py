"""Reading released files: arrays come out of pickles, and nothing else ever does."""

import ast
import codecs
import collections
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from micu.base.errors import DecodeError, ManifestError, StoreError
from micu.store.manifest import read_manifest
from micu_extract import released
from micu_extract.imports import check_labels, pad_steps
from micu_extract.released import archive_stem, read_h5_row, read_pickled_array, read_zipped_array
from tests.conftest import PROJECT
from tests.released_files import (
    Rebuilt,
    Runs,
    claiming,
    features,
    hidden_in_array,
    lie_about_size,
    shell,
    write_ave,
    zip_array,
    zip_pickle,
)


def code_of(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        read_pickled_array(data, "x.zip")
    assert "x.zip" in str(caught.value)
    return caught.value.code


LAYOUTS = {
    "rows": lambda array: array,
    "columns": np.asfortranarray,
    "other axes": lambda array: array.transpose(1, 2, 0),
    "every second": lambda array: array[:, ::2],
    "no step": lambda array: array[:0],
    "read only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f2", ">f4", ">f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pickled_array_of_floats_is_read_as_float32(
    protocol: int, dtype: str, layout: str
) -> None:
    array = LAYOUTS[layout](features(3, (2, 4)).astype(dtype))
    data = pickle.dumps(array, protocol=protocol)
    for old, new in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy.core")):
        if protocol < 4:  # whose strings have no length before them
            data = data.replace(old, new)
        read = read_pickled_array(data, "x.zip")
        assert read.dtype == np.float32
        assert read.shape == array.shape
        assert np.array_equal(read, array.astype(np.float32))


def test_what_spells_bytes_spells_nothing_else(tmp_path: Path) -> None:
    for function, arguments in (
        (codecs.encode, ("a", "rot13")),
        (codecs.encode, (b"a", "latin1")),
        (codecs.encode, ("\u0100", "latin1")),
        (codecs.encode, ("a",)),
        (bytes, (10**9,)),
        (bytes, ("a", "utf-8")),
    ):
        for protocol in range(5):
            told = pickle.dumps(Runs(function, *arguments), protocol=protocol)
            assert code_of(told) == "unreadable"
    assert code_of(pickle.dumps(Runs(codecs.encode, "a", "latin1"), protocol=2)) == "bad_array"
    assert code_of(pickle.dumps(Runs(codecs.decode, b"a", "latin1"))) == "unsafe_pickle"
    assert code_of(pickle.dumps(Runs(bytearray, b"a"))) == "unsafe_pickle"


# --- bombs -----------------------------------------------------------------------------------


def shared(levels: int, name_again: bytes, end: bytes) -> bytes:
    """Tuples that hold the one before twice; to compare or spell the last takes 2^levels steps."""
    return b"\x80\x02)" + b"".join(name_again + b"\x86" for _ in range(levels)) + end


BOMBS = {
    "a mapping by shared tuples": shared(60, b"2", b"}q\x000h\x00N.").replace(b"0h", b"2h"),
    "a key of shared tuples": b"\x80\x02}" + shared(60, b"2", b"Ns.")[2:],
    "the same by memory": b"\x80\x02})"
    + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    + b"Ns.",
    "nested tuples": b"\x80\x02)" + b"\x85" * 10**6 + b".",
    "nested lists": b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "marks": b"(" * 10**7 + b".",
    "a long number": b"\x8b" + struct.pack("<I", 10**7) + b"\x7f" * 10**7 + b".",
    "a long decimal": b"L" + b"9" * 10**6 + b"L\n.",
    "a long integer": b"I" + b"9" * 10**6 + b"\n.",
    "many calls": b"\x80\x02"
    + b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1tR" * 99
    + b".",
    "a place far away": b"\x80\x04Nr" + struct.pack("<I", 2**31 - 1) + b".",
    "a place in words": b"Np2147483647\n.",
    "a place in odd words": b"Np2_147_483_647\n.",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "a string that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_ends_at_once(data: bytes) -> None:
    tracemalloc.start()
    try:
        assert code_of(data) in ("unreadable", "bad_array", "too_large", "unsafe_pickle")
        assert tracemalloc.get_traced_memory()[1] < 5 * len(data) + 2**20
    finally:
        tracemalloc.stop()


def test_shapes_and_types_that_none_has_are_refused() -> None:
    array = np.zeros(4)
    rebuild, arguments, state = array.__reduce__()  # type: ignore[misc]
    for place, wrong in (
        (1, 10**30),
        (1, (2**40,)),
        (1, (True, 4)),
        (1, [4]),
        (1, (1,) * 8 + (4,)),
        (1, "abcd"),
        (2, "f8"),
        (4, [0.0] * 4),
    ):
        told = (*state[:place], wrong, *state[place + 1 :])
        assert code_of(pickle.dumps(Rebuilt(rebuild, arguments, told), protocol=3)) == "bad_array"
    fine = (*state[:1], (1,) * 7 + (4,), *state[2:])
    data = pickle.dumps(Rebuilt(rebuild, arguments, fine), protocol=3)
    assert read_pickled_array(data, "x").shape == (1,) * 7 + (4,)


def test_mutated_pickles_are_read_or_refused() -> None:
    rng, told = random.Random(0), []
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        good = pickle.dumps(features(2, (3,)), protocol=protocol)
        for _ in range(300):
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            try:
                assert read_pickled_array(bytes(data), "x.zip").dtype == np.float32
            except DecodeError as error:
                told.append(str(error))
    assert max(map(len, told)) <= 1000


def test_names_in_archives_are_told_in_few_words(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    zip_pickle(path, b"x", member="n" * 60_000)
    with pytest.raises(DecodeError, match=r"expected one \.pkl file") as caught:
        read_zipped_array(path, "a.zip")
    assert len(str(caught.value)) <= 1000


def test_mutated_archives_are_read_or_refused(tmp_path: Path) -> None:
    rng, told = random.Random(0), []
    zip_array(tmp_path / "good.zip", features(2, (3,)))
    good, path = (tmp_path / "good.zip").read_bytes(), tmp_path / "a.zip"
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read_zipped_array(path, "a.zip")
        except DecodeError as error:
            told.append(str(error))
    assert max(map(len, told)) <= 1000


def test_arrays_in_column_order_and_of_old_and_new_numpy_are_read() -> None:
    array = np.asfortranarray(features(3, (2, 4)))
    data = pickle.dumps(array, protocol=3)
    assert np.array_equal(read_pickled_array(data, "x.zip"), array.astype(np.float32))
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        other = data.replace(b"numpy._core.multiarray", module).replace(
            b"numpy.core.multiarray", module
        )
        assert np.array_equal(read_pickled_array(other, "x.zip"), array.astype(np.float32))


def test_a_pickle_of_python_2_is_read() -> None:
    array = np.arange(2.0)
    text = array.tobytes()
    data = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"T" + struct.pack("<I", len(text)) + text + b"tb."
    )
    assert read_pickled_array(data, "x.zip").tolist() == [0.0, 1.0]


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "run"
    assert code_of(shell(marker)) == "unsafe_pickle"
    assert code_of(hidden_in_array(marker)) == "unsafe_pickle"
    assert code_of(b"cbuiltins\neval\n(S'1'\ntR.") == "unsafe_pickle"
    assert code_of(b"\x80\x04\x8c\x05numpy\x8c\x08f2py.run\x93.") == "unsafe_pickle"
    assert code_of(pickle.dumps(Runs(np.load, str(tmp_path)))) == "unsafe_pickle"
    assert code_of(pickle.dumps(collections.OrderedDict(a=1))) == "unsafe_pickle"
    assert code_of(b"Pxyz\n.") == "unsafe_pickle"  # a persistent id
    assert not marker.exists()


@pytest.mark.parametrize("name", ["ndarray", "dtype"])
def test_a_pickle_cannot_change_what_later_clips_are_read_with(name: str) -> None:
    # BUILD with a state of slots sets attributes of whatever lies on the stack
    told = b"cnumpy\n" + name.encode() + b"\n(N}S'__call__'\nI1\ns}S'state'\nI1\nstb."
    before = {key: repr(value) for key, value in vars(released._Array).items()}
    assert code_of(told) == "unreadable"
    assert {key: repr(value) for key, value in vars(released._Array).items()} == before
    array = features(2, (3,))
    assert np.array_equal(
        read_pickled_array(pickle.dumps(array, protocol=3), "x"), array.astype(np.float32)
    )


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps([1.0, 2.0]),
        pickle.dumps(np.arange(3), protocol=3),
        pickle.dumps(np.zeros(3, [("a", "f4"), ("b", "f4")]), protocol=3),
        pickle.dumps(np.zeros(3, "c16"), protocol=3),
        claiming(np.zeros(3), (1000, 1000, 1000)),
        claiming(np.zeros(3), (-1, 3)),
        claiming(np.zeros(4), (2,)),
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",  # no content
        b"cnumpy\ndtype\n(S'f8'\ntR.",
    ],
)
def test_what_is_no_array_of_floats_is_refused(data: bytes) -> None:
    assert code_of(data) == "bad_array"


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"hello", b"\x80\x63.", b"(lp0\nI1\na"])
def test_what_is_no_pickle_is_unreadable(data: bytes) -> None:
    assert code_of(data) == "unreadable"


# --- zip files -------------------------------------------------------------------------------


def zip_code(path: Path) -> str:
    with pytest.raises(DecodeError) as caught:
        read_zipped_array(path, path.name)
    return caught.value.code


def test_a_zip_file_with_one_pickle_is_read(tmp_path: Path) -> None:
    array = features(4, (128,))
    zip_array(tmp_path / "a.zip", array)
    assert np.array_equal(read_zipped_array(tmp_path / "a.zip", "a"), array.astype(np.float32))


def test_a_zip_file_with_other_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    zip_pickle(path, b"x", member="x.npy")
    assert zip_code(path) == "bad_archive"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.pkl", b"")
        archive.writestr("b.pkl", b"")
    assert zip_code(path) == "bad_archive"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.pkl", b"x" * 99)
    assert zip_code(path) == "bad_archive"
    path.write_bytes(b"PK no")
    assert zip_code(path) == "bad_archive"


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "MAX_BYTES", 100_000)
    path = tmp_path / "a.zip"
    zip_pickle(path, bytes(100_001))
    assert path.stat().st_size < 1000
    assert zip_code(path) == "too_large"
    lie_about_size(path, 50)  # what it declares is not what it holds
    assert zip_code(path) == "bad_archive"
    path.write_bytes(bytes(100_001))
    assert zip_code(path) == "too_large"


def test_a_damaged_zip_file_is_refused(tmp_path: Path) -> None:
    zip_array(tmp_path / "a.zip", features(4, (128,)))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[60:200] = bytes(140)
    (tmp_path / "a.zip").write_bytes(data)
    assert zip_code(tmp_path / "a.zip") == "bad_archive"


@pytest.mark.parametrize(
    ("clip_id", "expected"),
    [
        ("4YdbENYcIyE_23_33", "4YdbENYcIyE"),
        ("4YdbENYcIyE_23_33#2", "4YdbENYcIyE"),
        ("v_Bowling_g01_c01", "v_Bowling_g01_c01"),
        ("v_Bowling_g01_c01#2", "v_Bowling_g01_c01"),
    ],
)
def test_the_zip_file_of_a_clip_has_the_name_of_its_video(clip_id: str, expected: str) -> None:
    assert archive_stem(clip_id) == expected


# --- HDF5 ------------------------------------------------------------------------------------


def test_a_row_of_the_released_table_is_that_of_the_line(tmp_path: Path) -> None:
    write_ave(tmp_path)
    read = read_h5_row(tmp_path / "audio_feature.h5", 1, 3)
    assert np.array_equal(read, features(10, (128,), 1).astype(np.float32))
    with pytest.raises(StoreError, match="has 3 rows, the manifest 4"):
        read_h5_row(tmp_path / "audio_feature.h5", 1, 4)


def test_tables_that_lead_elsewhere_or_hold_something_else_are_refused(tmp_path: Path) -> None:
    write_ave(tmp_path)
    path = tmp_path / "x.h5"
    secret = tmp_path / "secret.txt"
    secret.write_bytes(bytes(3 * 128 * 8))

    def link(file: h5py.File) -> None:
        target = str(tmp_path / "audio_feature.h5")
        file["avadataset"] = h5py.ExternalLink(target, "avadataset")

    def soft(file: h5py.File) -> None:
        file["avadataset"] = h5py.SoftLink("/other")

    def external(file: h5py.File) -> None:
        file.create_dataset("avadataset", (3, 128), "f8", external=str(secret))

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((3, 10, 128), "f8")
        layout[:] = h5py.VirtualSource(tmp_path / "audio_feature.h5", "avadataset", (3, 10, 128))
        file.create_virtual_dataset("avadataset", layout)

    def objects(file: h5py.File) -> None:
        file.create_dataset("avadataset", (3, 10), h5py.string_dtype())

    def sparse(file: h5py.File) -> None:
        file.create_dataset("avadataset", (3, 10**9), "f8")

    def packed(file: h5py.File) -> None:
        file.create_dataset("avadataset", (3, 10**9), "f8", compression="gzip")

    def integers(file: h5py.File) -> None:
        file["avadataset"] = np.zeros((3, 10), np.int64)

    def misnamed(file: h5py.File) -> None:
        file["features"] = np.zeros((3, 10))

    def crowded(file: h5py.File) -> None:
        file["avadataset"] = np.zeros((3, 10))
        for number in range(100):
            file[f"{number}{'x' * 1000}"] = 1

    for number, hostile in enumerate(
        (link, soft, external, virtual, objects, sparse, packed, integers, misnamed, crowded)
    ):
        path = tmp_path / f"hostile{number}.h5"
        with h5py.File(path, "w") as file:
            hostile(file)
        with pytest.raises(StoreError):
            read_h5_row(path, 0, 3)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(StoreError, match="cannot be read as HDF5"):
        read_h5_row(tmp_path / "text.h5", 0, 3)


def test_a_packed_table_is_read_unless_its_chunks_are_huge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = features(10, (128,))[None].repeat(3, 0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("avadataset", data=values, compression="gzip", shuffle=True)
    assert np.array_equal(read_h5_row(tmp_path / "a.h5", 2, 3), values[2].astype(np.float32))
    monkeypatch.setattr("micu.store.hdf5.MAX_CHUNK_BYTES", 100)
    with pytest.raises(StoreError, match="has chunks of"):
        read_h5_row(tmp_path / "a.h5", 2, 3)


def test_labels_prove_that_the_rows_are_those_of_the_manifest(tmp_path: Path) -> None:
    clips = read_manifest(write_ave(tmp_path)).clips
    check_labels(tmp_path / "labels.h5", clips)
    with pytest.raises(ManifestError, match="2 of 3 rows differ from the manifest, first row 0"):
        check_labels(tmp_path / "labels.h5", (clips[2], clips[1], clips[0]))
    with pytest.raises(ManifestError, match=r"expected avadataset of shape \(2, 10, 3\)"):
        check_labels(tmp_path / "labels.h5", clips[:2])


# --- steps -----------------------------------------------------------------------------------


def test_a_short_clip_repeats_its_last_step_and_the_mask_denies_it() -> None:
    values = features(3, (4,)).astype(np.float32)
    steps = pad_steps(values)
    assert np.array_equal(steps.values, values[[0, 1, 2, 2, 2, 2, 2, 2, 2, 2]])
    assert steps.mask.tolist() == [True] * 3 + [False] * 7
    assert steps.times_s.tolist() == [i + 0.5 for i in range(10)]


def test_a_long_clip_is_cut_to_ten_steps() -> None:
    values = features(12, (4,)).astype(np.float32)
    steps = pad_steps(values)
    assert np.array_equal(steps.values, values[:10])
    assert steps.mask.all()
    assert not pad_steps(values[:0]).mask.any()


# --- nobody else -----------------------------------------------------------------------------

UNPICKLERS = {"load", "loads", "Unpickler", "_Unpickler", "read_pickle"}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unpicklings(source: str) -> list[str]:
    """Places in a source that may unpickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in MODULES and node.attr in UNPICKLERS:
                found.append(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found += [alias.name for alias in node.names if alias.name in UNPICKLERS]
        elif isinstance(node, ast.keyword):
            value = getattr(node.value, "value", None)
            if (node.arg, value) in (("allow_pickle", True), ("weights_only", False)):
                found.append(f"{node.arg}={value}")
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name in ("dill", "cloudpickle", "shelve")]
    return found


def test_nothing_but_one_file_unpickles() -> None:
    paths = [path for name in ("extract", "micu") for path in (PROJECT / name).rglob("*.py")]
    found = {
        path.relative_to(PROJECT).as_posix(): places
        for path in paths
        if (places := unpicklings(path.read_text()))
    }
    assert found == {"extract/micu_extract/released.py": ["pickle.Unpickler"]}


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "from pickle import loads",
        "np.load(p, allow_pickle=True)",
        "torch.load(p, weights_only=False)",
        "joblib.load(p)",
    ],
)
def test_a_line_that_unpickles_would_be_found(line: str) -> None:
    assert unpicklings(line)
    assert not unpicklings("joblib.Parallel(2); json.loads(x); torch.load(p, weights_only=True)")
