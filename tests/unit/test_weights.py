import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from extract.backbones import Run, build_backbone
from extract.backbones import weights as weights_module
from extract.backbones.weights import (
    from_hub,
    load_strictly,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
)
from micu.errors import WeightsError


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


# --- what was asked for ----------------------------------------------------------------------


def test_random_is_asked_for_by_name_and_seed() -> None:
    assert parse_request("random", "x").source == "random:0"
    assert parse_request("random:7", "x").source == "random:7"
    with pytest.raises(WeightsError, match="expected pretrained, random"):
        parse_request("random:", "x")
    with pytest.raises(WeightsError, match="a path that exists, got 'radnom'"):
        parse_request("radnom", "x")


def test_a_local_source_is_named_without_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    path.touch()

    assert parse_request(str(path), "x").source == "some.pth"


# --- the digest ------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_the_file_format_or_precision(tmp_path: Path) -> None:
    network = seeded(small, 3)
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    halves = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "b.pth")
    torch.save(halves, tmp_path / "c.bin")

    digests = set()
    for name in ("a.safetensors", "b.pth", "c.bin"):
        copy = seeded(small, 4)
        load_strictly(copy, read_state(tmp_path / name), name)
        digests.add(tensors_sha256(copy))

    assert digests == {tensors_sha256(network)}


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "1.num_batches_tracked"])
def test_the_digest_sees_every_tensor(name: str) -> None:
    network = seeded(small, 3)
    before = tensors_sha256(network)

    network.state_dict()[name].view(-1)[0] += 1

    assert tensors_sha256(network) != before


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, suffix: str) -> None:
    path, target = tmp_path / f"w{suffix}", tmp_path / "ran"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Bomb(target)}, path)

    with pytest.raises(WeightsError, match="could run code; refused"):
        read_state(path)
    path.write_bytes(pickle.dumps(Bomb(target), protocol=2))
    with pytest.raises(WeightsError, match="could run code; refused"):
        read_state(path)

    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"nonsense", "cannot be read as weights"),
        ("w.pth", b"", "cannot be read as weights"),
        ("w.onnx", b"x", "expected .safetensors, .pth, .pt, .bin, .ckpt, got '.onnx'"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(WeightsError, match=message) as caught:
        read_state(tmp_path / name)

    assert name in str(caught.value)


def test_a_cut_off_checkpoint_is_an_error_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])

    with pytest.raises(WeightsError, match=r"w\.pth"):
        read_state(path)


def test_a_file_that_holds_other_things_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"w": [1, 2]}, tmp_path / "w.pth")

    with pytest.raises(WeightsError, match="expected tensors by name"):
        read_state(tmp_path / "w.pth")


def test_a_directory_gives_its_usual_file_and_refuses_a_choice(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "two.safetensors")

    with pytest.raises(WeightsError, match=r"one\.safetensors, two\.safetensors"):
        read_state(tmp_path)
    save_file({"w": torch.full((1,), 5.0)}, tmp_path / "model.safetensors")

    assert read_state(tmp_path)["w"] == 5


def test_tensors_that_do_not_fit_are_named() -> None:
    state = {**small().state_dict(), "head.weight": torch.ones(1), "0.bias": torch.ones(9)}
    del state["1.bias"]

    with pytest.raises(WeightsError) as caught:
        load_strictly(small(), state, "some.pth")

    message = str(caught.value)
    assert "1.bias missing" in message
    assert "head.weight not expected" in message
    assert "0.bias (9,) instead of (2,) of another shape" in message


# --- hubs ------------------------------------------------------------------------------------


def test_what_is_in_the_cache_is_taken_without_asking_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights_module, "_probe", lambda url: pytest.fail("asked the hub"))

    assert from_hub("x", "https://hub", lambda local_files_only: local_files_only, "") is True


def test_a_hub_that_does_not_answer_is_asked_once_and_says_what_to_type() -> None:
    calls = []

    def fetch(local_files_only: bool) -> None:
        calls.append(local_files_only)
        raise FileNotFoundError("not cached")

    with pytest.raises(WeightsError, match=r"hf download a/b; .*--weights PATH") as caught:
        from_hub("a/b", "http://localhost:9", fetch, "hf download a/b")

    assert calls == [True]
    assert "http://localhost:9" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("needs sentencepiece"), "a/b: a package is missing: needs sentencepiece"),
        (
            ValueError("not JSON"),
            r"the copy in the cache is broken \(ValueError: not JSON\); delete",
        ),
    ],
)
def test_a_cached_copy_that_cannot_be_loaded_is_not_called_missing(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "_probe", lambda url: pytest.fail("asked the hub"))

    def fetch(local_files_only: bool) -> None:
        raise error

    with pytest.raises(WeightsError, match=message):
        from_hub("a/b", "https://hub", fetch, "")


def test_what_is_wrong_with_the_cache_is_said_where_the_hub_has_no_answer_either() -> None:
    def fetch(local_files_only: bool) -> None:
        raise OSError("config.json is not valid")

    with pytest.raises(WeightsError, match=r"no usable copy in the cache \(config\.json is not"):
        from_hub("a/b", "http://localhost:9", fetch, "")


FETCHED = [
    *("swinv2", "timm:test_vit", "vgg19", "vgg19-tv", "htsat-clap", "vggish", "slowonly"),
    *("bert", "clap-text", "clip-text"),
]
"""Every backbone but `htsat`, whose weights no program can fetch."""


@pytest.mark.parametrize("name", FETCHED)
def test_published_weights_that_cannot_be_had_are_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(url: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(weights_module, "_probe", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    with pytest.raises(WeightsError, match="no network") as caught:
        build_backbone(name, "pretrained", Run(device="cpu"))

    assert "--weights random" in str(caught.value)
