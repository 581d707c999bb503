"""From feature stores to batches: which clips, which seconds, which order."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import micu.data.loader
from micu.base.errors import ConfigError, ManifestError, ProcessError, StoreError
from micu.config.sections import DataConfig
from micu.data.dataset import Batch, FeatureDataset, align_steps, select_clips
from micu.data.loader import (
    Piped,
    _signals_held,
    _tell_of_pipe,
    _tell_of_workers,
    batch_order,
    iterate,
    make_loader,
    share_batch,
)
from micu.store.manifest import Clip, write_manifest
from micu.store.sets import FeatureStore, find_sets
from micu.store.shard import FeatureRow
from tests.conftest import PYTHONPATH, not_on_windows
from tests.feature_sets import make_clips, write_features

NAN = float("nan")


def make_row(values, mask=None, times_s=None):
    values = np.array(values, np.float32).reshape(-1, 1)
    mask = np.ones(len(values), np.bool_) if mask is None else np.array(mask, np.bool_)
    times_s = np.arange(len(values)) + 0.5 if times_s is None else np.array(times_s, np.float64)
    return FeatureRow("c", values, mask, times_s)


class FakeStore:
    def __init__(self, *rows):
        self.rows = {row.clip_id: row for row in rows}

    def __contains__(self, clip_id):
        return clip_id in self.rows

    @property
    def spec(self):
        first = next(iter(self.rows.values()))
        return SimpleNamespace(shape=first.values.shape[1:])

    def read(self, clip_id):
        return self.rows[clip_id]

    def steps_of(self, clip_id):
        return self.rows[clip_id].mask, self.rows[clip_id].times_s

    def read_into(self, clip_id, out):
        out[:] = self.rows[clip_id].values[: len(out)]


def sample_of(padding, steps=4, **rows):
    stores = {name: FakeStore(row) for name, row in rows.items()}
    config = DataConfig(steps=steps, padding=padding)
    batch = FeatureDataset(stores, [Clip(clip_id="c")], config).read_batch([0])
    features = {name: values[0] for name, values in batch.features.items()}
    return SimpleNamespace(features=features, mask=batch.mask[0])


@pytest.fixture
def stores(tmp_path):
    write_features(tmp_path / "features", make_clips())
    found = [FeatureStore(folder) for folder in find_sets(tmp_path / "features")]
    return {store.spec.modality: store for store in found}


def one_epoch(dataset, batch_size=5, **options):
    return list(iterate(make_loader(dataset, batch_size, **{"seed": 1, "epoch": 0} | options)))


def test_a_batch_is_page_locked_as_a_whole(stores, monkeypatch):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())
    batch = dataset.read_batch([0, 1])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + tensor)
    pinned = batch.pin_memory()

    assert torch.equal(pinned.mask, batch.mask + batch.mask)
    assert pinned.features.keys() == batch.features.keys()
    for name, values in batch.features.items():
        assert torch.equal(pinned.features[name], values + values)
    assert (pinned.clip_ids, pinned.labels) == (batch.clip_ids, batch.labels)


@pytest.mark.parametrize(
    ("device", "workers", "pins"),
    [("cuda:1", 2, True), ("cuda", 0, False), ("cpu", 2, False), ("mps", 2, False)],
)
def test_batches_that_others_read_for_a_gpu_are_page_locked(stores, device, workers, pins):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())
    loader = make_loader(dataset, 2, seed=0, epoch=0, workers=workers, device=device)
    assert loader.pin_memory == pins


@pytest.mark.parametrize("there", [["fork", "spawn", "forkserver"], ["spawn"]])
def test_reading_processes_come_from_a_server_where_there_is_one(stores, monkeypatch, there):
    asked = []
    monkeypatch.setattr(micu.data.loader.multiprocessing, "get_all_start_methods", lambda: there)
    monkeypatch.setattr(micu.data.loader, "DataLoader", lambda *_, **named: asked.append(named))
    dataset = FeatureDataset(stores, make_clips(), DataConfig())
    for workers in (0, 1):
        make_loader(dataset, 2, seed=0, epoch=0, workers=workers)
    methods = [named["multiprocessing_context"] for named in asked]
    assert methods == [None, "forkserver" if "forkserver" in there else "spawn"]


# --- alignment ---------------------------------------------------------------------------------


def test_a_step_lands_on_the_second_of_its_centre():
    values, mask = align_steps(make_row([1, 2, 3], times_s=[2.5, 0.5, 3.5]), 5)

    assert values[:, 0].tolist() == [2, 0, 1, 3, 0]
    assert mask.tolist() == [True, False, True, True, False]


def test_steps_without_times_keep_their_index():
    values, mask = align_steps(make_row([1, 2, 3], times_s=[NAN] * 3), 2)

    assert values[:, 0].tolist() == [1, 2]
    assert mask.all()


def test_several_steps_in_one_second_are_averaged_without_those_that_are_not_real():
    row = make_row([1, 3, 5, 9], mask=[1, 1, 1, 0], times_s=[0.25, 0.75, 1.25, 1.75])

    values, mask = align_steps(row, 2)

    assert values[:, 0].tolist() == [2, 5]
    assert mask.all()


def test_steps_past_the_end_are_cut():
    values, mask = align_steps(make_row(range(8)), 3)

    assert values[:, 0].tolist() == [0, 1, 2]
    assert mask.all()


def test_a_later_row_that_lies_in_an_early_second_is_not_cut():
    values, _ = align_steps(make_row([1, 2, 4], times_s=[0.5, 1.5, 0.7]), 2)

    assert values[:, 0].tolist() == [2.5, 2]


def test_repeat_fills_gaps_with_the_last_real_step_and_the_start_with_the_first():
    audio = make_row([9, 1, 9, 3], mask=[0, 1, 0, 1])
    sample = sample_of("repeat", steps=6, audio=audio, video=make_row([5]))

    assert sample.features["audio"][:, 0].tolist() == [1, 1, 1, 3, 3, 3]
    assert sample.features["video"][:, 0].tolist() == [5] * 6
    assert sample.mask.all()


def test_repeat_uses_the_first_real_step_even_if_it_comes_after_the_end():
    late = make_row([9, 9, 9, 7], mask=[0, 0, 0, 1])

    sample = sample_of("repeat", steps=2, audio=late, video=make_row([5, 6]))

    assert sample.features["audio"][:, 0].tolist() == [7, 7]


def test_mask_keeps_zeros_and_the_seconds_that_are_real_in_every_modality():
    audio = make_row([1, 2, 3, 4], mask=[1, 0, 1, 1])
    sample = sample_of("mask", audio=audio, video=make_row([5, 6, 7]))

    assert sample.features["audio"][:, 0].tolist() == [1, 0, 3, 4]
    assert sample.features["video"][:, 0].tolist() == [5, 6, 7, 0]
    assert sample.mask.tolist() == [True, False, True, False]


@pytest.mark.parametrize("padding", ["repeat", "mask"])
def test_words_are_padded_with_zeros_and_never_decide_the_mask(padding):
    text = make_row([1, 2], times_s=[NAN, NAN])
    sample = sample_of(padding, audio=make_row([1, 2, 3, 4]), text=text)

    assert sample.features["text"][:, 0].tolist() == [1, 2, 0, 0]
    assert sample.mask.all()


def test_a_clip_without_a_common_second_is_named_with_what_to_type():
    audio, video = make_row([1, 0], mask=[1, 0]), make_row([0, 1], mask=[0, 1])

    with pytest.raises(StoreError, match=r"clip 'c': no second is real.*data.padding=repeat"):
        sample_of("mask", steps=2, audio=audio, video=video)


# --- which clips -------------------------------------------------------------------------------


def test_only_the_configured_splits_are_used():
    clips = make_clips(12, splits=("train", "test"))

    chosen = select_clips(clips, DataConfig())

    assert {clip.split for clip in chosen} == {"train"}
    assert select_clips(clips, DataConfig(splits=("train", "test"))) == tuple(clips)
    assert select_clips(clips, DataConfig(splits=())) == tuple(clips)


def test_a_manifest_that_names_no_split_is_used_whole():
    clips = make_clips(splits=("",))

    assert select_clips(clips, DataConfig()) == tuple(clips)


def test_a_split_that_no_clip_is_of_is_an_error_that_lists_the_splits():
    clips = make_clips(12, splits=("train", "test"))
    for splits, unknown in ((("trian",), "trian"), (("train", "vall"), "vall")):
        with pytest.raises(ConfigError, match=rf"no clip is of {unknown}; .*has test, train"):
            select_clips(clips, DataConfig(splits=splits))


def test_excluded_ids_are_left_out(tmp_path):
    clips = make_clips(6)
    path = tmp_path / "no.csv"
    write_manifest(path, clips[:2])

    chosen = select_clips(clips, DataConfig(exclude_ids=str(path)))

    assert chosen == tuple(clips[2:])


def test_a_list_of_excluded_ids_must_be_readable_and_leave_something(tmp_path):
    path = tmp_path / "no.csv"
    with pytest.raises(ManifestError, match="no such file"):
        select_clips(make_clips(3), DataConfig(exclude_ids=str(path)))
    path.write_text("id\na\n")
    with pytest.raises(ManifestError, match="expected the column clip_id"):
        select_clips(make_clips(3), DataConfig(exclude_ids=str(path)))
    write_manifest(path, make_clips(3))
    with pytest.raises(ManifestError, match="excludes every clip"):
        select_clips(make_clips(3), DataConfig(exclude_ids=str(path)))


def test_clips_that_lack_a_modality_are_left_out_and_counted(caplog):
    row = make_row([1])
    named = FeatureRow("d", row.values, row.mask, row.times_s)
    stores = {"audio": FakeStore(row, named), "flow": FakeStore(row)}

    dataset = FeatureDataset(stores, [Clip(clip_id="d"), Clip(clip_id="c")], DataConfig())

    assert [clip.clip_id for clip in dataset.clips] == ["c"]
    assert "1 of 2 clips lack a modality and are left out: 1 have no flow" in caplog.text


def test_no_common_clip_is_an_error_that_says_what_to_extract():
    with pytest.raises(ManifestError, match=r"of 1 clips, 1 have no flow; extract"):
        FeatureDataset(
            {"audio": FakeStore(make_row([1])), "flow": FakeStore()},
            [Clip(clip_id="c")],
            DataConfig(),
        )


def test_the_hash_of_the_data_changes_with_the_clips(stores):
    config = DataConfig()
    one = FeatureDataset(stores, make_clips(), config)

    assert one.sha256 == FeatureDataset(stores, make_clips(), config).sha256
    assert one.sha256 != FeatureDataset(stores, make_clips()[1:], config).sha256


# --- batches -----------------------------------------------------------------------------------


def test_a_batch_holds_what_the_stores_hold(stores):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())

    batch = one_epoch(dataset, shuffle=False)[1]

    assert batch.clip_ids == tuple(f"clip/{i}" for i in range(5, 10))
    assert batch.labels[:2] == ("violin", "drum")
    assert {name: tuple(values.shape) for name, values in batch.features.items()} == {
        "audio": (5, 10, 6),
        "flow": (5, 10, 8),
        "text": (5, 10, 7),
        "video": (5, 10, 5, 5, 4),
    }
    stored = stores["video"].read("clip/7").values
    assert torch.equal(batch.features["video"][2], torch.from_numpy(stored))
    assert batch.mask.dtype == torch.bool


def test_every_clip_comes_once_per_epoch_in_another_order(stores):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())
    orders = [
        [clip_id for batch in one_epoch(dataset, epoch=epoch) for clip_id in batch.clip_ids]
        for epoch in (0, 1, 0)
    ]

    assert sorted(orders[0]) == sorted(clip.clip_id for clip in make_clips())
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_the_order_depends_on_seed_and_epoch_separately():
    orders = [
        tuple(chain(*batch_order(50, 7, seed=seed, epoch=epoch, shuffle=True)))
        for seed, epoch in [(0, 1), (1, 0), (1, 1), (2, 0)]
    ]

    assert len(set(orders)) == 4


def test_starting_inside_an_epoch_gives_its_remaining_batches(stores):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())

    whole, rest = one_epoch(dataset), one_epoch(dataset, start=3)

    assert [batch.clip_ids for batch in rest] == [batch.clip_ids for batch in whole[3:]]
    assert one_epoch(dataset, start=5) == []


def test_loading_leaves_the_global_random_state_alone(stores):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())
    before = torch.get_rng_state()

    one_epoch(dataset)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_that_was_read_from_can_be_sent_to_another_process(stores):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())
    first = dataset.read_batch([3])

    again = pickle.loads(pickle.dumps(dataset)).read_batch([3])

    assert torch.equal(first.features["video"], again.features["video"])


@pytest.mark.slow
def test_reading_in_other_processes_gives_the_same_batches(stores):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())

    here, there = one_epoch(dataset), one_epoch(dataset, workers=1)

    assert [batch.clip_ids for batch in here] == [batch.clip_ids for batch in there]
    assert all(
        torch.equal(a.features["flow"], b.features["flow"])
        for a, b in zip(here, there, strict=True)
    )


@not_on_windows
def test_readers_are_started_deaf_to_the_signals_that_stop_a_run():
    ask = "import signal; print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    with _signals_held():
        child = subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True)

    assert json.loads(child.stdout) == sorted(
        [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM]
    )
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_batches_in_float16_are_the_rounded_ones_and_become_whole_on_the_device(stores):
    whole = one_epoch(FeatureDataset(stores, make_clips(), DataConfig()))[0]
    half = one_epoch(FeatureDataset(stores, make_clips(), DataConfig(dtype="float16")))[0]

    moved = half.to("cpu", torch.float32)

    for name, values in whole.features.items():
        assert half.features[name].dtype == torch.float16
        assert torch.equal(moved.features[name], values.half().float())


def test_a_feature_beyond_float16_is_refused_with_its_clip():
    stores = {"audio": FakeStore(make_row([1, 7e4])), "flow": FakeStore(make_row([1, 2]))}
    clips, config = [Clip(clip_id="c")], DataConfig(steps=2, dtype="float16")

    with pytest.raises(
        StoreError, match=r"audio features of clip 'c': expected values below 65504"
    ):
        FeatureDataset(stores, clips, config).read_batch([0])


def test_no_clips_make_an_empty_batch_of_the_right_shape(stores):
    batch = FeatureDataset(stores, make_clips(), DataConfig()).read_batch([])

    assert batch.features["video"].shape == (0, 10, 5, 5, 4)
    assert batch.mask.shape == (0, 10)


def test_moving_a_batch_changes_its_features_type_and_nothing_else():
    mask = torch.tensor([[True, False]])
    batch = Batch({"audio": torch.ones(1, 2, 3)}, mask, ("c",), ("x",)).to("cpu", torch.float64)

    assert batch.features["audio"].dtype == torch.float64
    assert batch.mask.dtype == torch.bool
    assert (batch.clip_ids, batch.labels) == (("c",), ("x",))


def test_a_batch_without_room_in_shared_memory_goes_through_the_pipe_and_says_so(
    stores, monkeypatch, caplog
):
    _tell_of_pipe.cache_clear()
    batch = FeatureDataset(stores, make_clips(), DataConfig()).read_batch([3, 1])
    shared = []

    def refuse(values):
        if shared:
            raise RuntimeError("unable to allocate shared memory(shm) for file </t>: No space (28)")
        shared.append(values)

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    for _ in range(2):
        shared.clear()
        piped = pickle.loads(pickle.dumps(share_batch(batch)))
        assert isinstance(piped, Piped)
        found = piped.open()
        assert found.features.keys() == batch.features.keys()
        assert all(
            torch.equal(found.features[name], batch.features[name]) for name in batch.features
        )
        assert torch.equal(found.mask, batch.mask)
        assert (found.clip_ids, found.labels) == (batch.clip_ids, batch.labels)

    assert [record.message for record in caplog.records] == [
        "shared memory: no room for a batch (No space (28)); going on without, which reads more "
        "slowly. Give /dev/shm more room (docker run --shm-size=2g), or type fewer --workers"
    ]


def test_with_room_a_batch_is_shared_as_it_is(stores):
    batch = FeatureDataset(stores, make_clips(), DataConfig()).read_batch([3, 1])
    shared = share_batch(batch)

    assert shared is batch
    assert all(values.is_shared() for values in (*batch.features.values(), batch.mask))


NO_ROOM = """
import sys
from pathlib import Path
import torch
from micu.config.sections import DataConfig
from micu.data.dataset import FeatureDataset
from micu.data.loader import iterate, make_loader
from micu.store.sets import FeatureStore, find_sets
from tests.feature_sets import make_clips

if __name__ == "__main__":
    sets = {path.name.split("-")[0]: FeatureStore(path) for path in find_sets(Path(sys.argv[1]))}
    dataset = FeatureDataset(sets, make_clips(), DataConfig())
    here, there = (
        list(iterate(make_loader(dataset, 8, seed=0, epoch=0, workers=workers)))
        for workers in (0, 2)
    )
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(one.features[name], other.features[name]) for name in sets)
    print(len(there))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a /dev/shm of its own")
@pytest.mark.parametrize("size", ["64k", "64m"])
def test_a_small_dev_shm_changes_no_batch_and_hangs_nothing(stores, tmp_path, size):
    script = tmp_path / "run.py"
    script.write_text(NO_ROOM)
    inside = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} {script} $0"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside]
    tried = [*command[:-1], "mount -t tmpfs tmpfs /dev/shm"]
    if shutil.which("unshare") is None or subprocess.run(tried, capture_output=True).returncode:
        pytest.skip("may not mount anything")
    done = subprocess.run(
        [*command, str(next(iter(stores.values())).folder.parent)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert ("going on without" in done.stderr) == (size == "64k")


def test_an_error_of_a_reading_process_is_the_error_itself(stores, monkeypatch):
    dataset = FeatureDataset(stores, make_clips(), DataConfig())
    refuse = StoreError("shard-00000.h5: damaged")
    monkeypatch.setattr("micu.data.loader._signals_held", nullcontext)
    batch = dataset.read_batch([0])

    class Loader:
        num_workers = 1

        def __init__(self, *items):
            self.items = items

        def __iter__(self):
            for item in self.items:
                if isinstance(item, RuntimeError):
                    raise item
                yield item

    batches = iterate(Loader(batch, refuse))
    assert next(batches) is batch
    with pytest.raises(StoreError, match=r"^shard-00000\.h5: damaged$"):
        next(batches)
    with pytest.raises(ProcessError, match="--workers 1: a process that reads features has ended"):
        next(iterate(Loader(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed"))))
    with pytest.raises(RuntimeError, match=r"^other$"):
        next(iterate(Loader(RuntimeError("other"))))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("handles", "typed", "workers", "piped"),
    [
        (40, 2, 0, False),
        (64, 8, 1, True),
        (64, 0, 0, False),
        (128, 8, 8, True),
        (256, 8, 8, False),
        (1024, 8, 8, False),
    ],
)
def test_reading_processes_are_bounded_by_the_handles_there_are(
    stores, monkeypatch, caplog, handles, typed, workers, piped
):
    _tell_of_workers.cache_clear()
    monkeypatch.setattr("micu.data.loader.most_handles", lambda: handles)
    dataset = FeatureDataset(stores, make_clips(), DataConfig())
    for _ in range(2):
        loader = make_loader(dataset, 8, seed=0, epoch=0, workers=typed)
    told = (
        f"--workers {typed}: ulimit -n {handles} has handles for {workers}; going on with so many"
    )

    assert loader.num_workers == workers
    assert loader.dataset.why_piped == (f"ulimit -n {handles}" if piped else "")
    assert caplog.text.count(told) == (workers < typed)
