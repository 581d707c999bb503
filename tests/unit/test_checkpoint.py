"""Checkpoints: what comes back, and what is refused."""

import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from micu.base.errors import CheckpointError
from micu.config.overrides import with_overrides
from micu.data.dataset import Batch
from micu.store.shard import FeatureSpec
from micu.train.checkpoint import (
    Position,
    load_checkpoint,
    mark_last,
    restore_,
    save_checkpoint,
)
from micu.train.step import build_state, train_step
from tests.checkpoints import CONFIG, SHAPES, SPECS, equal, make_batch, save, trained


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(trained(), tmp_path_factory.mktemp("run") / "step-000002.pt")


def test_a_loaded_model_encodes_as_the_one_that_was_saved(tmp_path):
    state = trained()
    path = save(state, tmp_path / "a.pt")

    loaded = load_checkpoint(path)

    state.model.eval()
    features = make_batch(9).features
    want, got = state.model.encode(features), loaded.model.encode(features)
    assert all(torch.equal(want[name].quantized, got[name].quantized) for name in SHAPES)
    assert not loaded.model.training
    assert (loaded.config, loaded.step) == (CONFIG, 2)


def test_a_checkpoint_says_what_it_was_trained_on(saved):
    loaded = load_checkpoint(saved)

    assert loaded.specs.keys() == SHAPES.keys()
    assert FeatureSpec.from_json(loaded.specs["video"]) == SPECS["video"]
    assert loaded.record["preset"] == "x"
    assert loaded.record["version_torch"] == torch.__version__
    assert len(loaded.sha256) == 64


def test_a_restored_run_takes_the_same_next_step(tmp_path):
    state = trained()
    path = save(state, tmp_path / "a.pt")
    fresh = build_state(CONFIG, SHAPES, "cpu")

    position, record = restore_(fresh, path)
    one, other = train_step(state, make_batch(2)), train_step(fresh, make_batch(2))

    assert position == Position(1, 5)
    assert record["preset"] == "x"
    assert one == other
    assert equal(state.model.state_dict(), fresh.model.state_dict())
    assert equal(state.losses.state_dict(), fresh.losses.state_dict())
    assert equal(state.optimizer.state_dict(), fresh.optimizer.state_dict())


def drive(state, position, until):
    """Steps whose data depend on the position and on all three generators."""
    for number in range(position.batch, until):
        noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
        batch = make_batch(number)
        batch.features["audio"].mul_(noise)
        train_step(state, batch)


LEFT_OUT = {
    "nothing": lambda state: None,
    "optimizer": lambda state: state.optimizer.state.clear(),
    "step": lambda state: setattr(state, "step", 0),
    "codebook": lambda state: state.model.quantizer.codebook.mul_(2),
    "counts": lambda state: state.model.quantizer.ema_count.fill_(1),
    "sums": lambda state: state.model.quantizer.ema_weight.fill_(0),
    "ages": lambda state: state.model.quantizer.unused.fill_(-1),
    "classifier": lambda state: next(state.losses.parameters()).data.mul_(2),
    "torch": lambda state: torch.manual_seed(99),
    "python": lambda state: random.seed(99),
    "numpy": lambda state: np.random.seed(99),  # noqa: NPY002
    "position": lambda state: None,
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_restored_run_ends_the_same_only_if_nothing_is_left_out(tmp_path, what):
    whole = build_state(CONFIG, SHAPES, "cpu")
    drive(whole, Position(), 4)
    parts = build_state(CONFIG, SHAPES, "cpu")
    drive(parts, Position(), 2)
    path = tmp_path / "a.pt"
    save_checkpoint(parts, path, specs=SPECS, position=Position(0, 2), extra={})
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)

    resumed = build_state(CONFIG, SHAPES, "cpu")
    position, _ = restore_(resumed, path)
    LEFT_OUT[what](resumed)
    drive(resumed, Position(0, 1) if what == "position" else position, 4)

    same = [
        equal(part(whole).state_dict(), part(resumed).state_dict())
        for part in (lambda s: s.model, lambda s: s.losses, lambda s: s.optimizer)
    ]
    assert all(same) == (what == "nothing")


def test_a_model_in_float64_stays_in_float64(tmp_path):
    config = with_overrides(CONFIG, ["optimizer.dtype=float64"])
    path = save(build_state(config, SHAPES, "cpu"), tmp_path / "a.pt")

    model = load_checkpoint(path).model

    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_the_last_checkpoint_is_the_marked_one_and_a_later_save_leaves_it_alone(tmp_path):
    path = save(trained(1), tmp_path / "step-000001.pt")

    mark_last(path)
    first = (tmp_path / "last.pt").read_bytes()
    save(trained(2), path)

    assert load_checkpoint(tmp_path / "last.pt").step == 1
    assert (tmp_path / "last.pt").read_bytes() == first
    mark_last(path)
    assert load_checkpoint(tmp_path / "last.pt").step == 2
    assert not list(tmp_path.glob(".*"))


def test_without_hard_links_the_last_checkpoint_is_a_copy(tmp_path, monkeypatch):
    path = save(trained(1), tmp_path / "step-000001.pt")

    def refuse(self, target):
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    mark_last(path)

    assert (tmp_path / "last.pt").read_bytes() == path.read_bytes()


# --- what is refused ---------------------------------------------------------------------------


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_cut_off_checkpoint_names_the_one_to_go_on_from(saved, tmp_path, keep):
    data = saved.read_bytes()
    (tmp_path / "step-000002.pt").write_bytes(data)
    cut = tmp_path / "last.pt"
    cut.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])

    with pytest.raises(CheckpointError, match=r"cut off.*cp .*step-000002\.pt .*last\.pt"):
        load_checkpoint(cut)


def test_a_cut_off_checkpoint_without_another_one_says_so(saved, tmp_path):
    cut = tmp_path / "step-000002.pt"
    cut.write_bytes(saved.read_bytes()[:5000])

    with pytest.raises(CheckpointError, match="no other checkpoint"):
        load_checkpoint(cut)


def test_a_flipped_byte_is_noticed(saved, tmp_path):
    data = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(data)

    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_loaded_model_of_words_and_grids_encodes_rebuilds_and_trains(tmp_path):
    config = with_overrides(CONFIG, ["modalities=video,text", "encoder.spatial=softmax"])
    shapes = {"video": (5, 5, 4), "text": (7,)}
    state = build_state(config, shapes, "cpu")
    specs = {name: replace(SPECS["video"], modality=name, shape=shapes[name]) for name in shapes}
    path = tmp_path / "a.pt"
    save_checkpoint(state, path, specs=specs, position=Position(), extra={})

    model = load_checkpoint(path).model

    features = {name: torch.randn(4, 3, *shape) for name, shape in shapes.items()}
    batch = Batch(features, torch.ones(4, 3, dtype=torch.bool), ("a",) * 4, ("",) * 4)
    want, got = state.model.eval()(batch), model(batch)
    for name in shapes:
        assert torch.equal(want.reconstruction[name], got.reconstruction[name])
    assert {p.device.type for p in model.state_dict().values()} == {"cpu"}
    assert all(p.requires_grad for p in model.parameters())
    assert equal(model.state_dict(), state.model.state_dict())


def test_the_authors_checkpoint_is_recognised(tmp_path):
    content = {"Encoder_parameters": {}, "Text_ar_lstm_parameters": {}, "epoch": 3}
    torch.save(content, tmp_path / "MICU.pt")

    with pytest.raises(CheckpointError, match=r"authors' released checkpoint.*load_released"):
        load_checkpoint(tmp_path / "MICU.pt")


def test_a_checkpoint_of_other_shapes_does_not_restore_a_run(saved):
    state = build_state(CONFIG, {"audio": (6,), "video": (9,)}, "cpu")

    with pytest.raises(CheckpointError, match="does not fit this run"):
        restore_(state, saved)


def test_a_failed_save_leaves_the_earlier_checkpoint(saved, tmp_path, monkeypatch):
    path = save(trained(1), tmp_path / "step-000001.pt")
    before = path.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save(trained(2), path)

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001.pt"]
