"""Models as a Hub has them: the same vectors to the bit, a card, and nothing hostile gets in."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file

import micu
from micu.base.errors import CheckpointError, ConfigError
from micu.evaluate.report import Row, write_rows
from micu.library.clips import FeatureSet
from micu.store.sets import find_sets
from tests.checkpoints import SHAPES, SPECS, save, trained
from tests.feature_sets import make_clips, write_features


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    told = {"manifest": "/home/someone/|my|.csv", "manifest_sha256": "b" * 64, "clips": 24}
    return save(trained(), folder / "last.pt", **told)


@pytest.fixture
def saved(checkpoint: Path, tmp_path: Path) -> Path:
    micu.load(checkpoint, device="cpu").save_pretrained(tmp_path / "model", licence="mit")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureSet]:
    root = tmp_path_factory.mktemp("sets") / "features"
    backbones = {name: spec.backbone for name, spec in SPECS.items()}
    write_features(root, make_clips(24), SHAPES, backbones=backbones)
    return {store.spec.modality: store for store in map(FeatureSet, find_sets(root))}


def same_vectors(one: micu.Model, other: micu.Model, sets: dict[str, FeatureSet]) -> bool:
    pair = []
    for model in (one, other):
        # The sets of these tests say less of themselves than the checkpoint's.
        pair.append(replace(model, loaded=replace(model.loaded, specs={})).embed(sets))
    return all(
        np.array_equal(getattr(pair[0], name), getattr(pair[1], name))
        for name in ("vectors", "codes", "mask", "clip_ids")
    )


def test_what_was_saved_is_the_same_model_to_the_bit(
    checkpoint: Path, saved: Path, sets: dict[str, FeatureSet], tmp_path: Path
) -> None:
    before, after = micu.load(checkpoint, device="cpu"), micu.load(saved, device="cpu")
    assert sorted(path.name for path in saved.iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    assert same_vectors(before, after, sets)
    assert after.loaded.config == before.loaded.config
    assert after.loaded.specs == before.loaded.specs
    assert after.loaded.step == before.loaded.step
    assert after.loaded.record["manifest"] == "|my|.csv"
    assert after.loaded.model.state_dict().keys() == before.loaded.model.state_dict().keys()
    assert micu.load(saved / "model.safetensors", device="cpu").path == after.path
    after.save_pretrained(tmp_path / "again", licence="mit")
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (saved / weights).read_bytes()


def test_the_card_says_what_it_is_and_how_it_did(checkpoint: Path, tmp_path: Path) -> None:
    model = micu.load(checkpoint, device="cpu")
    rows = [
        Row(task="cmg", method="checkpoint", metric="acc", value=0.5, checkpoint_sha256=sha256,
            train_modality="audio", test_modality="video", protocol="paper", leaks=leaks,
            seed=1, n_clips=12)
        for sha256, leaks in ((model.loaded.sha256, "epoch:test"), ("c" * 64, "of another"))
    ]  # fmt: skip
    write_rows(rows, tmp_path / "results.csv")
    model.save_pretrained(tmp_path / "m", results=tmp_path / "results.csv", licence="cc-by-4.0")
    card = (tmp_path / "m/README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: micu\n")
    assert "b" * 64 in card
    assert r"\|my\|.csv" in card
    assert "/home/someone" not in card + (tmp_path / "m/config.json").read_text()
    assert "toy_video" in card
    assert "0" * 64 in card
    assert "epoch:test" in card
    assert "0.5000" in card
    assert "of another" not in card
    with pytest.raises(ConfigError, match="licence: expected a word"):
        model.save_pretrained(tmp_path / "n", licence="my own\nlicence: mit")
    assert not (tmp_path / "n").exists()


def test_a_hub_is_read_from_its_cache_without_a_network(
    checkpoint: Path,
    saved: Path,
    sets: dict[str, FeatureSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub/models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(revision)
    (repo / "snapshots").mkdir()
    saved.rename(repo / "snapshots" / revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = micu.load("hf:org/name", device="cpu")
    assert same_vectors(found, micu.load(checkpoint, device="cpu"), sets)
    with pytest.raises(CheckpointError, match=r"hf:org/other: .*hf download org/other"):
        micu.load("hf:org/other")


def test_a_model_is_pushed_as_it_is_saved(
    checkpoint: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    pushed: dict[str, Any] = {}

    class Api:
        def create_repo(self, repo: str, **asked: Any) -> Any:
            pushed.update(asked, repo=repo)
            return type("Made", (), {"repo_id": repo})

        def upload_folder(self, *, folder_path: str, **asked: Any) -> str:
            files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            pushed.update(asked, files=files)
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = micu.load(checkpoint, device="cpu")
    assert model.push_to_hub("org/name", private=True, licence="mit") == "https://hub/commit"
    assert pushed["repo"] == pushed["repo_id"] == "org/name"
    assert pushed["private"] is True
    assert pushed["files"] == {path.name: path.read_bytes() for path in saved.iterdir()}

    def refuse(*_: Any, **__: Any) -> None:
        raise huggingface_hub.errors.HFValidationError("no name")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(ConfigError, match=r"push_to_hub 'a b': .*no name; type: hf auth login"):
        model.push_to_hub("a b")


# --- hostile ---------------------------------------------------------------------------------


def change(saved: Path, **values: Any) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"format": 2}, "expected format 1, got 2"),
        ({"shapes": {"audio": [6]}}, "shapes: expected audio, video"),
        ({"shapes": {"audio": [10**9], "video": [5]}}, "expected .*, got"),
        ({"shapes": {"audio": [-6], "video": [5]}}, "not a model that fits"),
        ({"specs": {"audio": {}}}, "specs: expected audio, video"),
        ({"record": {"a": [1]}}, "record: a: expected a text or a number"),
        ({"step": -1}, "expected a count, got -1"),
        ({"config": {"modalities": ["audio", "video"], "hook": "x"}}, "unknown key"),
        ({"config": "x" * 99}, "config"),
    ],
)
def test_a_hostile_configuration_is_refused(saved: Path, values: dict[str, Any], told: str) -> None:
    change(saved, **values)
    with pytest.raises(CheckpointError, match=told) as caught:
        micu.load(saved)
    assert "config.json: not a model that fits this version" in str(caught.value)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "", '{"format": NaN}', "x" * (5 << 20)])
def test_a_configuration_that_is_none_is_refused(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a model that fits this version"):
        micu.load(saved)


def test_hostile_tensors_are_refused(saved: Path, tmp_path: Path) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    state = load_bytes(whole)
    name = "quantizer.codebook"
    damaged = {
        "cut off": whole[:-8],
        "no file of safetensors": pickle.dumps({"a": 1}),
        "or no file": (10**12).to_bytes(8, "little") + whole[8:],
        "": b"",
    }
    for told, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=told or "cut off"):
            micu.load(saved)
    changes = {
        "not expected|unexpected|unknown|left over": {**state, "more": torch.zeros(1)},
        "missing|lacks|no ": {k: v for k, v in state.items() if k != name},
        "got|expected": {**state, name: torch.zeros(3, 3)},
        "NaN": {**state, name: state[name] * float("nan")},
    }
    for told, tensors in changes.items():
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=told):
            micu.load(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match="expected a checkpoint, or the folder of a run"):
        micu.load(saved)
