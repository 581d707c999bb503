import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from micu.base.errors import WeightsError
from micu_extract.backbones import Run, build_backbone, hubs
from micu_extract.backbones.hubs import by_hand, from_hub, hub_file, url_file
from micu_extract.backbones.weights import (
    load_strictly,
    parse_request,
    read_state,
    seeded,
    tensors_sha256,
)
from micu_extract.flow.raft import RAFT


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

    with pytest.raises(WeightsError, match="could run code; refused") as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)  # torch's own text tells how to run it
    path.write_bytes(pickle.dumps(Bomb(target), protocol=2))
    with pytest.raises(WeightsError, match="could run code; refused"):
        read_state(path)

    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"nonsense", "not a checkpoint: it begins with 'nonsense'"),
        ("w.safetensors", b"\x02" + bytes(7) + b"{x", r"cannot be read as weights \(Safetensor"),
        ("w.pth", b"", "not a checkpoint: it is empty"),
        ("w.pth", b"hello world", "not a checkpoint: it begins with 'hello world'"),
        ("w.pth", b"\x80\x02junk", "cannot be read as weights: cut off, or not"),
        ("w.pth", b"(.", r"not a checkpoint: it begins with '\(\.'"),
        ("w.pth", b"\x80\x02.", "cannot be read as weights: .*; if it is damaged"),
        ("w.pth", b"\x80\x02}q\x00(X\x01\x00", "cannot be read as weights: cut off, or not"),
        ("w.bin", b"PK\x03\x04junk", "cannot be read as weights: .*no directory at its end"),
        ("w.pt", bytes(1000), "not a checkpoint: it begins with zeros"),
        (
            "w.ckpt",
            b"\n<!DOCTYPE html>\n<html>",
            r"not a checkpoint: it begins with '<!DOCTYPE html>'; the download gave a web page$",
        ),
        (
            "w.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
            "begins with 'version https://git-lfs.github.c'; it is a pointer of git-lfs",
        ),
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
    monkeypatch.setattr(hubs, "_probe", lambda url: pytest.fail("asked the hub"))

    assert from_hub("x", "https://hub", lambda local_files_only: local_files_only, "") is True


def test_a_hub_that_does_not_answer_is_asked_once_and_says_what_to_type() -> None:
    calls = []

    def fetch(local_files_only: bool) -> None:
        calls.append(local_files_only)
        raise FileNotFoundError("not cached")

    remedy = by_hand("hf download a/b", "DIR")
    with pytest.raises(WeightsError, match=r"hf download a/b; .*--weights DIR") as caught:
        from_hub("a/b", "http://localhost:9", fetch, remedy)

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
    monkeypatch.setattr(hubs, "_probe", lambda url: pytest.fail("asked the hub"))

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


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither network nor anything in a cache; the caches' folder."""

    def refuse(url: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(hubs, "_probe", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", FETCHED)
def test_published_weights_that_cannot_be_had_are_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nor is a network drawn first, which takes seconds
    monkeypatch.setattr("micu_extract.backbones.torch_backbone.seeded", pytest.fail)
    with pytest.raises(WeightsError, match="no network") as caught:
        build_backbone(name, "pretrained", Run(device="cpu"))

    assert "--weights random" in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_file_of_a_hub_is_named() -> None:
    with pytest.raises(
        WeightsError,
        match=r"^a/b: c\.bin: not in the cache.*hf download a/b c\.bin --local-dir \.;",
    ):
        hub_file("a/b", ("c.bin", "d.bin"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("weights", ["pretrained", "random:3"])
def test_another_text_encoder_that_cannot_be_had_is_not_cured_by_random_weights(
    weights: str,
) -> None:
    """Its tokenizer is on the hub whatever its weights are."""
    with pytest.raises(WeightsError, match="hf download a/b --local-dir DIR") as caught:
        build_backbone("bert", weights, Run(device="cpu"), model="a/b")

    typed = "--model DIR --weights random:3." if weights != "pretrained" else "--model DIR."
    assert f"copy it here and type {typed}" in str(caught.value)
    assert "leave --model out and type --weights random" in str(caught.value)


def test_a_file_of_a_text_encoder_needs_a_tokenizer_and_says_so(no_network: Path) -> None:
    path = no_network / "bert.safetensors"
    save_file({"w": torch.ones(1)}, path)

    with pytest.raises(WeightsError, match="--weights DIR, or --model DIR beside") as caught:
        build_backbone("bert", str(path), Run(device="cpu"))

    assert "random" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_the_weights_of_raft_are_given_with_their_own_option() -> None:
    with pytest.raises(WeightsError, match=r"curl -LO https.*raft_small") as caught:
        RAFT("small", "pretrained", "cpu")

    assert "type --flow-weights PATH." in str(caught.value)
    assert "type --flow-weights random" in str(caught.value)
    assert " --weights" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_model_of_timm_without_published_weights_says_so() -> None:
    with pytest.raises(WeightsError, match="timm:vit_giant_patch14_224: timm knows of no publ"):
        build_backbone("timm:vit_giant_patch14_224", "pretrained", Run(device="cpu"))


# --- files on the web ------------------------------------------------------------------------

CONTENT = b"weights"
URL = f"https://web/x-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.mark.parametrize("md5", ["", hashlib.md5(CONTENT).hexdigest()])
def test_a_download_is_checked_before_it_is_kept_and_again_in_the_cache(
    md5: str, no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = b"<html>sign in first</html>"

    def download(url: str, path: str, *, progress: bool) -> None:
        Path(path).write_bytes(given)

    monkeypatch.setattr(hubs, "_probe", lambda url: None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)

    with pytest.raises(WeightsError, match=r"did not give it \(x-.*expected (MD5|SHA-256) "):
        url_file(URL, md5=md5)
    assert not list((no_network / "checkpoints").iterdir())

    given = CONTENT
    path = url_file(URL, md5=md5)
    assert list((no_network / "checkpoints").iterdir()) == [path]

    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=r"the copy in the cache is broken .*; delete it"):
        url_file(URL, md5=md5)
