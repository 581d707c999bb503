"""Checkpoints of others: what would run code, or claims more than it has, is refused."""

import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

import micu
from micu.base.errors import CheckpointError, ConfigError
from micu.train.checkpoint import (
    load_checkpoint,
    restore_,
)
from micu.train.fit import find_resumable
from micu.train.step import build_state
from tests.checkpoints import CONFIG, SHAPES, equal, save, trained


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


# --- numbers that are none, and settings that are none -----------------------------------------


def with_nan(section, key, value=float("nan")):
    def change(content):
        tensor = content[section]
        for part in key:
            tensor = tensor[part]
        tensor.view(-1)[-1] = value

    return change


CODEBOOK = ("quantizer.codebook",)
NOT_FINITE = {
    "codebook": (with_nan("model", CODEBOOK), r"model\.quantizer\.codebook"),
    "infinite": (with_nan("model", CODEBOOK, float("inf")), r"model\.quantizer\.codebook"),
    "count": (with_nan("model", ("quantizer.ema_count",)), r"model\.quantizer\.ema_count"),
    "weight": (
        with_nan("model", ("semantic_encoders.audio.project.weight",)),
        r"model\.semantic_encoders\.audio\.project\.weight",
    ),
    "optimizer": (
        with_nan("optimizer", ("state", 0, "exp_avg"), -float("inf")),
        r"optimizer\.state\.0\.exp_avg",
    ),
    "optimizer's last": (
        with_nan("optimizer", ("state", 3, "exp_avg_sq")),
        r"optimizer\.state\.3\.exp_avg_sq",
    ),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_numbers_that_are_not_finite_are_named_for_evaluation_and_resumption(saved, tmp_path, name):
    change, tensor = NOT_FINITE[name]
    path = changed(saved, tmp_path, change)

    for way in (load_checkpoint, lambda p: restore_(build_state(CONFIG, SHAPES, "cpu"), p)):
        with pytest.raises(CheckpointError, match=rf"x\.pt: {tensor}: expected finite numbers"):
            way(path)


def rng(**changes):
    def change(content):
        content["rng"] = [json.dumps({**json.loads(content["rng"][0]), **changes})]

    return change


def first_state(**changes):
    return lambda content: content["optimizer"]["state"][0].update(changes)


def settings(**changes):
    return lambda content: content["optimizer"]["param_groups"][0].update(changes)


WORDS = [0] * 624
UNFIT = {
    "place": (rng(numpy=[WORDS, 10**9, 0, 0.0]), "expected a place among 624 words"),
    "place after": (rng(numpy=[WORDS, 625, 0, 0.0]), "expected a place among 624 words"),
    "negative place": (rng(numpy=[WORDS, -1, 0, 0.0]), "expected a count, got -1"),
    "no rng": (with_entry("rng", ["[]"]), "rng: expected an object, got list"),
    "deep rng": (with_entry("rng", ["[" * 100_000]), "rng: not JSON"),
    "averages": (
        first_state(exp_avg=torch.zeros(3)),
        r"optimizer: state 0: expected step \(\), exp_avg \(.*\), exp_avg_sq .*got .*\(3,\)",
    ),
    "steps": (first_state(step=torch.zeros(2)), "optimizer: state 0: expected"),
    "integers": (first_state(step=torch.tensor(1)), "optimizer: state 0: expected"),
    "one more": (first_state(more=torch.zeros(())), "optimizer: state 0: expected"),
    "no tensor": (first_state(step=1), "does not fit this run"),
    "other parameters": (settings(params=[7]), "expected the state of these parameters"),
    "no groups": (with_entry("optimizer", {"state": {}}), "does not fit this run"),
    "no optimizer": (with_entry("optimizer", [1]), "expected the state of these parameters"),
    "losses": (with_entry("losses", {}), "missing"),
    "model": (with_tensor("quantizer.codebook", torch.zeros(3, 3)), r"expected \(12, 16\)"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_state_that_does_not_fit_is_not_gone_on_from(saved, tmp_path, name):
    change, message = UNFIT[name]
    path = changed(saved, tmp_path, change)

    with pytest.raises(CheckpointError, match=rf"(?s)x\.pt: .*{message}") as caught:
        restore_(build_state(CONFIG, SHAPES, "cpu"), path)

    assert len(str(caught.value)) < 3000


def test_the_optimizer_s_settings_are_those_of_the_run_not_of_the_file(saved, tmp_path):
    path = changed(saved, tmp_path, settings(betas=("x", 3), lr=float("nan"), eps=-1))
    state = build_state(CONFIG, SHAPES, "cpu")

    restore_(state, path)

    assert {group["betas"] for group in state.optimizer.param_groups} == {(0.9, 0.999)}
    assert equal(state.optimizer.state_dict(), trained().optimizer.state_dict())


def config_with(**changes):
    def change(content):
        content["config"] = json.dumps({**json.loads(content["config"]), **changes})

    return change


def record_with(**changes):
    def change(content):
        content["record"] = json.dumps({**json.loads(content["record"]), **changes})

    return change


def spec_with(**changes):
    def change(content):
        specs = json.loads(content["specs"])
        specs["audio"].update(changes)
        content["specs"] = json.dumps(specs)

    return change


SETTINGS = {
    "deep config": (with_entry("config", "[" * 100_000), "not JSON"),
    "deep specs": (with_entry("specs", '{"a":' * 100_000), "specs: not JSON"),
    "deep record": (with_entry("record", "[" * 100_000), "record: not JSON"),
    "nan": (with_setting("encoder.dropout", float("nan")), "dropout: expected a finite number"),
    "huge": (with_setting("encoder.dropout", 10**400), "dropout: expected a finite number"),
    "huge digits": (with_entry("config", "1" * 10_000), "not JSON"),
    "long": (with_entry("config", " " * (2**20 + 1)), "text of at most 1048576"),
    "long record": (with_entry("record", " " * (4 * 2**20 + 1)), "text of at most 4194304"),
    "boolean seed": (config_with(seed=True), "seed: expected int, got True"),
    "record nan": (record_with(clips=float("nan")), "record: not JSON: expected finite"),
    "record list": (record_with(clips=[1]), r"record: clips: expected a text or a number"),
    "hop": (spec_with(hop_s="1"), "hop_s: expected seconds"),
    "backbone": (spec_with(backbone=3), "backbone: expected .* text"),
    "shape": (spec_with(shape=[-6]), "shape: expected the shape"),
    "modality": (spec_with(modality="video"), "specs: audio: not a description of audio"),
    "versions": (spec_with(versions=[]), "versions: expected a mapping"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_are_none_are_refused_in_a_sentence(saved, tmp_path, name):
    change, message = SETTINGS[name]
    path = changed(saved, tmp_path, change)

    with pytest.raises(CheckpointError, match=rf"(?s)x\.pt: .*{message}") as caught:
        load_checkpoint(path)

    assert len(str(caught.value)) < 3000


def test_a_text_may_be_as_long_as_is_allowed(saved, tmp_path):
    def change(content):
        content["config"] = content["config"].ljust(2**20)
        content["record"] = content["record"].ljust(4 * 2**20)

    assert load_checkpoint(changed(saved, tmp_path, change)).step == 2


NEWER = "a newer micu may have made it, this is .*: pip install -U micu"


@pytest.mark.parametrize(
    ("change", "is_newer"),
    [
        (config_with(hyperbolic=True), True),
        (with_entry("format", 2), True),
        (with_entry("format", 0), False),
        (with_entry("format", "2"), False),
        (lambda c: (record_with(version_micu="99.0.1")(c), c.pop("specs")), True),
        (lambda c: (record_with(version_micu=micu.__version__)(c), c.pop("specs")), False),
        (lambda c: c.pop("specs"), False),
    ],
)
def test_a_checkpoint_of_a_newer_version_says_so(saved, tmp_path, change, is_newer):
    path = changed(saved, tmp_path, change)

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)

    assert bool(re.search(NEWER, str(caught.value))) == is_newer


def test_thousands_of_unknown_settings_make_a_short_message(saved, tmp_path):
    path = changed(saved, tmp_path, config_with(**{f"key{i}": 1 for i in range(10_000)}))

    with pytest.raises(CheckpointError, match=r"and 9980 more") as caught:
        load_checkpoint(path)

    assert len(str(caught.value)) < 5000


# --- advice ------------------------------------------------------------------------------------


def foreign(path, kind):
    """A whole file of another program under a name of ours."""
    if kind == "text":
        path.write_text("notes")
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("word/document.xml", "x")
    elif kind == "legacy":
        torch.save({"w": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": {"w": torch.ones(1)}}, path)


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "step-000009.pt"])
@pytest.mark.parametrize("kind", ["text", "archive", "legacy", "torch"])
def test_the_advice_for_a_wrong_file_overwrites_nothing(saved, tmp_path, kind, name):
    (tmp_path / "step-000002.pt").write_bytes(saved.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    foreign(tmp_path / name, kind)

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / name)

    assert "cp " not in str(caught.value)
    assert "--overwrite" not in str(caught.value)


@pytest.mark.parametrize("name", ["best.pt", "step-000009.pt"])
def test_the_advice_for_a_damaged_file_does_not_overwrite_a_healthy_last(saved, tmp_path, name):
    for whole in ("last.pt", "step-000002.pt"):
        (tmp_path / whole).write_bytes(saved.read_bytes())
    (tmp_path / name).write_bytes(saved.read_bytes()[:5000])

    with pytest.raises(CheckpointError, match=r"cut off.*newest other one is .*step-000002\.pt$"):
        load_checkpoint(tmp_path / name)


def test_the_advice_names_the_newest_whole_one_and_quotes_its_path(saved, tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    data = saved.read_bytes()
    for name in ("step-999999.pt", "step-1000000.pt"):
        (folder / name).write_bytes(data)
    damaged = bytearray(data)
    with zipfile.ZipFile(saved) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    damaged[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    (folder / "step-1000001.pt").write_bytes(damaged)
    (folder / "last.pt").write_bytes(data[:-1000])

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder / "last.pt")

    typed = f"cp '{folder}/step-1000000.pt' '{folder}/last.pt'"
    assert f"type {typed} and the command again with --resume" in str(caught.value)


def test_without_a_whole_one_the_advice_is_another_folder(saved, tmp_path):
    for name in ("last.pt", "step-000002.pt"):
        (tmp_path / name).write_bytes(saved.read_bytes()[:5000])

    with pytest.raises(CheckpointError, match=r"start again with another --out$"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"", b"[" * 100_000, b'{"seed": 1e999}'])
def test_a_run_whose_settings_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"config\.json: "):
        find_resumable(tmp_path, CONFIG, resume=True, overwrite=False)
