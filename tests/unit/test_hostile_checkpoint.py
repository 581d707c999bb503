"""Checkpoints of others: what would run code, or claims more than it has, is refused."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from micu.checkpoint import (
    load_checkpoint,
    restore_,
)
from micu.errors import CheckpointError
from micu.step import build_state
from tests.checkpoints import CONFIG, SHAPES, save, trained


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(trained(), tmp_path_factory.mktemp("run") / "step-000002.pt")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, zipped):
    trap, path = tmp_path / "trap", tmp_path / "x.pt"
    if zipped:
        torch.save({"format": 1, "model": Touch(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Touch(trap)))

    with pytest.raises(CheckpointError, match=r"would run code|not a checkpoint"):
        load_checkpoint(path)
    assert not trap.exists()


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(saved, tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**6))

    with pytest.raises(CheckpointError, match="declares more bytes than it has"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"format": 99}, [1, 2], {"format": 1}, {"format": 1, "config": 3}]
)
def test_other_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")

    with pytest.raises(
        CheckpointError, match=r"x\.pt: (expected checkpoint format|not a checkpoint)"
    ):
        load_checkpoint(tmp_path / "x.pt")


def changed(saved, tmp_path, change):
    content = torch.load(saved, weights_only=True)
    change(content)
    path = tmp_path / "x.pt"
    torch.save(content, path)
    return path


def with_setting(key, value):
    def change(content):
        config = json.loads(content["config"])
        section, name = key.split(".")
        config[section][name] = value
        content["config"] = json.dumps(config)

    return change


def with_entry(key, value):
    return lambda content: content.update({key: value})


def with_tensor(key, tensor):
    return lambda content: content["model"].update({key: tensor})


HUGE = 2 * 10**9
HOSTILE = {
    "codebook": (with_setting("quantizer.codebook_size", HUGE), r"expected \(2000000000, 16\)"),
    "width": (with_setting("reconstruction.vector_width", HUGE), r"expected \(2000000000, 6\)"),
    "layers": (with_setting("encoder.layers", HUGE), "has not the 2000000000 layers"),
    "overflow": (with_setting("encoder.feedforward_dim", 10**400), "not a checkpoint that fits"),
    "expanded": (
        with_tensor("quantizer.codebook", torch.zeros(()).expand(HUGE, 16)),
        "claim more than is there",
    ),
    "type": (
        with_tensor("quantizer.codebook", torch.zeros(12, 16, dtype=torch.float64)),
        r"expected \(12, 16\) torch.float32, got \(12, 16\) torch.float64",
    ),
    "sparse": (with_tensor("quantizer.codebook", torch.zeros(12, 16).to_sparse()), "plain array"),
    "bodiless": (
        with_tensor("quantizer.codebook", torch.empty(12, 16, device="meta")),
        "plain array",
    ),
    "no tensor": (with_tensor("quantizer.codebook", 3), "'quantizer.codebook' is no tensor"),
    "unknown": (with_tensor("quantizer.more", torch.zeros(1)), "unknown 'quantizer.more'"),
    "missing": (
        lambda content: content["model"].pop("quantizer.codebook"),
        "missing 'quantizer.codebook'",
    ),
    "model": (with_entry("model", [1]), "not a checkpoint that fits"),
    "shapes": (with_entry("shapes", {"audio": [HUGE], "video": [5]}), "expected .*2000000000"),
    "shape": (with_entry("shapes", {"audio": ["6"], "video": [5]}), "not a checkpoint that fits"),
    "record": (with_entry("record", "[]"), "record: expected an object, got list"),
    "record kind": (with_entry("record", 3), "not a checkpoint that fits"),
    "no specs": (with_entry("specs", "{}"), "specs: expected audio, video, got none"),
    "specs": (with_entry("specs", '{"audio": {"x": 1}, "video": {"x": 1}}'), "not a checkpoint"),
    "specs kind": (with_entry("specs", '{"audio": 1, "video": []}'), "not a checkpoint"),
    "step": (with_entry("step", "1"), "expected a count, got '1'"),
    "negative step": (with_entry("step", -1), "expected a count, got -1"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch, of its own load
@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_that_states_what_it_has_not_is_refused_without_making_it(
    saved, tmp_path, name
):
    change, message = HOSTILE[name]
    path = changed(saved, tmp_path, change)

    with pytest.raises(CheckpointError, match=rf"(?s)x\.pt: .*{message}"):
        load_checkpoint(path)


def test_storage_shared_by_many_tensors_does_not_multiply(saved, tmp_path):
    shared = torch.zeros(10**5)
    path = changed(saved, tmp_path, with_entry("more", [shared[:] for _ in range(100)]))

    with pytest.raises(CheckpointError, match="claim more than is there"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["expanded", "record", "step", "negative step"])
def test_a_run_does_not_go_on_from_a_hostile_checkpoint(saved, tmp_path, name):
    change, message = HOSTILE[name]
    path = changed(saved, tmp_path, change)

    with pytest.raises(CheckpointError, match=rf"(?s)x\.pt: .*{message}"):
        restore_(build_state(CONFIG, SHAPES, "cpu"), path)
