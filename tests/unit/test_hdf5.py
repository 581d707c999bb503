"""Tests of the guard for HDF5 files of others: what is at a limit passes, nothing beyond it."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from micu.base.errors import StoreError
from micu.store import hdf5
from micu.store.hdf5 import check_data_sets, open_file, open_plain


def packed(path: Path, values: int = 10**5) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.zeros(values), chunks=(1000,), compression="gzip")
    return path


def test_as_many_data_sets_as_are_allowed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = np.zeros(2), np.zeros(2)
    monkeypatch.setattr(hdf5, "MAX_NAMES", 2)
    with open_plain(tmp_path / "a.h5") as file:
        assert sorted(file) == ["x", "y"]
    monkeypatch.setattr(hdf5, "MAX_NAMES", 1)
    with pytest.raises(StoreError, match="has 2 data sets"), open_plain(tmp_path / "a.h5"):
        pass


def test_packed_chunks_have_a_limit_and_plain_ones_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file.create_dataset("x", data=np.zeros(10**4), chunks=(1000,))
    monkeypatch.setattr(hdf5, "MAX_CHUNK_BYTES", 8000)
    with open_plain(packed(tmp_path / "a.h5")) as file:
        assert len(file["x"]) == 10**5
    monkeypatch.setattr(hdf5, "MAX_CHUNK_BYTES", 7999)
    with open_plain(tmp_path / "plain.h5") as file:
        assert len(file["x"]) == 10**4
    with pytest.raises(StoreError, match="chunks of 8000 bytes"), open_plain(tmp_path / "a.h5"):
        pass


def test_a_packed_file_declares_at_most_so_many_times_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "a.h5")
    ratio = 8 * 10**5 / path.stat().st_size
    monkeypatch.setattr(hdf5, "MAX_RATIO", ratio)
    with open_plain(path):
        pass
    monkeypatch.setattr(hdf5, "MAX_RATIO", 0.99 * ratio)
    with pytest.raises(StoreError, match=r"declares .* in a file of"), open_plain(path):
        pass


def test_data_sets_that_lie_on_each_other_do_not_fill_a_file_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(10**4)
        file["y"] = file["x"]  # a second name of the same bytes
    with open_file(path) as file:
        check_data_sets(file, ["x"], path)
        with pytest.raises(StoreError, match="declares 160000 bytes"):
            check_data_sets(file, ["x", "y"], path)


def test_what_is_to_be_plain_may_not_be_packed_and_must_have_a_shape(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.h5")
    with open_file(path) as file, pytest.raises(StoreError, match=r"filters \[1\]; expected none"):
        check_data_sets(file, ["x"], path)
    with h5py.File(path, "w") as file:
        file["x"] = h5py.Empty("f4")
    with pytest.raises(StoreError, match="x has no shape"), open_plain(path):
        pass


def test_what_the_system_refuses_is_no_reason_to_delete_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "a.h5")
    with pytest.raises(StoreError, match="not a file; delete it"):
        open_file(tmp_path / "b.h5", "; delete it")
    path.write_text("no HDF5")
    with pytest.raises(StoreError, match=r"cannot be read as HDF5 \(.*\); delete it$"):
        open_file(path, "; delete it")
    monkeypatch.setattr(h5py, "File", lambda *_, **__: (_ for _ in ()).throw(OSError(24, "many")))
    with pytest.raises(StoreError, match=r"HDF5 \(\[Errno 24\] many\)$"):
        open_file(path, "; delete it")
