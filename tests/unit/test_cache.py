"""Features in memory: the same batches, in no more memory than there is."""

import math

import pytest
import torch

import micu.data.cache
from micu.base.devices import available_memory
from micu.base.errors import ConfigError
from micu.config.sections import DataConfig
from micu.data.cache import CachedDataset
from micu.data.dataset import FeatureDataset
from micu.data.loader import iterate, make_loader
from micu.store.sets import FeatureStore, find_sets
from tests.feature_sets import make_clips, write_features

GIB = 2**30


@pytest.fixture
def dataset(tmp_path):
    write_features(tmp_path / "features", make_clips())
    stores = {
        store.spec.modality: store for store in map(FeatureStore, find_sets(tmp_path / "features"))
    }
    return lambda dtype: FeatureDataset(stores, make_clips(), DataConfig(dtype=dtype))


def batches(dataset, workers=0):
    return list(iterate(make_loader(dataset, 7, seed=1, epoch=0, workers=workers)))


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a.clip_ids, a.labels) == (b.clip_ids, b.labels)
        assert torch.equal(a.mask, b.mask)
        assert a.features.keys() == b.features.keys()
        for name, values in a.features.items():
            assert values.dtype == b.features[name].dtype
            assert torch.equal(values, b.features[name])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batches_from_memory_are_those_from_disk(dataset, dtype):
    plain = dataset(dtype)
    cached = CachedDataset(plain, shared=False)

    assert_same(batches(cached), batches(plain))
    assert cached.sha256 == plain.sha256


def test_the_disk_is_read_once(dataset, monkeypatch):
    cached = CachedDataset(dataset("float32"), shared=False)

    def gone(*arguments):
        raise AssertionError("read again")

    monkeypatch.setattr(FeatureStore, "_shard", gone)
    assert len(batches(cached)) == 4


@pytest.mark.slow
def test_reading_processes_see_the_same_memory_not_a_copy(dataset):
    cached = CachedDataset(dataset("float32"), shared=True)
    before = batches(cached)
    loader = iterate(make_loader(cached, 7, seed=1, epoch=0, workers=1))
    got = [next(loader)]  # the reader has started, with what it was sent
    cached._features["audio"].fill_(5.0)
    got += list(loader)

    assert_same([got[0]], [before[0]])
    assert [batch.clip_ids for batch in got] == [batch.clip_ids for batch in before]
    assert (got[-1].features["audio"] == 5.0).all()


@pytest.mark.parametrize(
    ("dtype", "memory", "shared", "message"),
    [
        ("float32", 1000, False, r"float32: .* memory is available; use --cache float16, .* out$"),
        ("float16", 1000, False, r"float16: .* is available; leave --cache out$"),
        ("float32", GIB, True, r"0\.00 GiB is free in /dev/shm.* --cache out, or --workers$"),
    ],
)
def test_features_that_do_not_fit_are_refused_before_they_are_read(
    dataset, monkeypatch, dtype, memory, shared, message
):
    monkeypatch.setattr(micu.data.cache, "available_memory", lambda: memory)
    monkeypatch.setattr(micu.data.cache, "shared_memory", lambda: 1000)
    plain = dataset(dtype)
    monkeypatch.setattr(plain, "read_batch", None)

    with pytest.raises(ConfigError, match=message):
        CachedDataset(plain, shared=shared)


def ask_all(texts):
    """What three processes answer, two of them on this machine."""
    return [*texts, *texts, *(text and f"{text} elsewhere" for text in texts)]


@pytest.mark.parametrize("shared", [False, True])
def test_every_process_of_a_machine_has_a_copy_that_counts(dataset, monkeypatch, shared):
    plain = dataset("float32")
    size = sum(
        4 * len(plain) * plain.config.steps * math.prod(shape) for shape in plain.shapes.values()
    )
    monkeypatch.setattr(micu.data.cache, "shared_memory", lambda: free)
    monkeypatch.setattr(micu.data.cache, "available_memory", lambda: 2 * free)

    free = int(2.3 * size)
    CachedDataset(plain, shared=shared, ask_all=ask_all)
    monkeypatch.setattr(micu.data.cache, "available_memory", lambda: free)
    free = int(2.1 * size)
    with pytest.raises(ConfigError, match="the features of 2 processes of this machine take"):
        CachedDataset(plain, shared=shared, ask_all=ask_all)


def write_group(root, limit, used, cached):
    root.mkdir()
    (root / "memory.max").write_text(limit)
    (root / "memory.current").write_text(str(used))
    (root / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")


@pytest.mark.parametrize(
    ("limit", "expected"), [("max\n", 8 * GIB), (f"{4 * GIB}\n", 3 * GIB), (f"{GIB}\n", 0)]
)
def test_available_memory_is_the_least_of_machine_and_container(
    tmp_path, monkeypatch, limit, expected
):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    write_group(tmp_path / "group", limit, 2 * GIB, GIB)
    monkeypatch.setattr("micu.base.devices.MEMINFO", meminfo)
    monkeypatch.setattr("micu.base.devices.CGROUP", tmp_path / "group")

    assert available_memory() == expected


def test_a_system_that_does_not_say_has_no_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("micu.base.devices.MEMINFO", tmp_path / "none")
    monkeypatch.setattr("micu.base.devices.CGROUP", tmp_path / "none")

    assert available_memory() is None
