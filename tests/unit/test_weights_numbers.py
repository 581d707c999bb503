"""Weights that are no plain finite numbers are refused at loading, of every backbone, by name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from micu.base.errors import WeightsError
from micu_extract.backbones import BACKBONES, Run, build_backbone, vgg19
from micu_extract.backbones.htsat import HTSAT, HTSATClap, HTSATDemo, original_name
from micu_extract.backbones.slowonly import SlowOnly
from micu_extract.backbones.swin_v2 import SwinV2
from micu_extract.backbones.vggish import PCA_FILE, VGGish, read_pca
from micu_extract.backbones.weights import load_strictly, read_index, read_state, seeded
from micu_extract.flow.raft import RAFT
from tests.hostile_tensors import BOMBS, call, of_legacy, wrapped
from tests.parity.test_text import save_encoder

CPU = Run(device="cpu")
PUBLIC = [
    n for n, kind in BACKBONES.items() if kind.__module__.startswith("micu_extract.backbones.")
]
REAL = [name for name in PUBLIC if not name.endswith("-demo")]


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def with_number(value: float, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone(memory_format=torch.contiguous_format).to(dtype or tensor.dtype)
        changed.view(-1)[-1] = value
        return changed

    return change


ODD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "nan": (with_number(float("nan")), "expected finite numbers, got NaN or infinity"),
    "infinity": (with_number(float("-inf")), "expected finite numbers, got NaN or infinity"),
    "half nan": (with_number(float("nan"), torch.float16), "expected finite numbers"),
    "bfloat16 infinity": (with_number(float("inf"), torch.bfloat16), "expected finite numbers"),
    "too large": (with_number(1e300, torch.float64), "expected finite numbers"),
    "integer": (lambda t: t.to(torch.int64), "expected torch.float32, got torch.int64"),
    "byte": (lambda t: t.to(torch.uint8), "expected torch.float32, got torch.uint8"),
    "boolean": (lambda t: t > 0, "expected torch.float32, got torch.bool"),
    "complex": (lambda t: t.to(torch.complex64), "expected torch.float32, got torch.complex64"),
    "sparse": (lambda t: t.to_sparse(), "a tensor that is sparse"),
    "meta": (lambda t: t.to("meta"), r"a tensor that is without data \(meta\)"),
    "quantized": (
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "a tensor that is quantized",
    ),
}
SAFE = [name for name in ODD if name not in ("sparse", "meta", "quantized")]
"""Those that safetensors can hold."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_an_odd_tensor_of_a_file_is_named(name: str, tmp_path: Path) -> None:
    change, message = ODD[name]
    state = seeded(small, 3).state_dict()
    state["0.weight"] = change(state["0.weight"])
    torch.save({"state_dict": state}, tmp_path / "w.pth")

    with pytest.raises(WeightsError, match=rf"0\.weight: .*{message}"):
        load_strictly(seeded(small, 4), read_state(tmp_path / "w.pth"), "w.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_a_count_that_is_no_count_is_refused(dtype: torch.dtype) -> None:
    state = seeded(small, 3).state_dict()
    state["1.num_batches_tracked"] = torch.ones((), dtype=dtype)

    with pytest.raises(WeightsError, match=rf"1\.num_batches_tracked: .*torch\.int64, got {dtype}"):
        load_strictly(seeded(small, 4), state, "w.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_widths_of_integers_are_cast(dtype: torch.dtype) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t.to(torch.int32)
             for n, t in seeded(small, 3).state_dict().items()}  # fmt: skip
    network = seeded(small, 4)

    load_strictly(network, state, "w.pth")

    assert torch.equal(network.state_dict()["0.weight"], state["0.weight"].float())
    assert network.state_dict()["1.num_batches_tracked"].dtype == torch.int64


def test_names_of_megabytes_do_not_fill_the_screen() -> None:
    state = {**small().state_dict(), "x" * 10**6: torch.ones(1)}

    with pytest.raises(WeightsError, match="not expected") as caught:
        load_strictly(small(), state, "w.pth")

    assert len(str(caught.value)) < 1000


# --- every backbone --------------------------------------------------------------------------


def write_tensors(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(state, path)
    return path


KERAS_NAMES = {"weight": "W_1:0", "bias": "b_1:0"}


def write_keras(state: dict[str, Tensor], folder: Path) -> Path:
    """Keras turns kernels round: (kh, kw, in, out)."""
    with h5py.File(folder / "weights.h5", "w") as file:
        for name, tensor in state.items():
            layer, _, leaf = name.rpartition(".")
            array = tensor.numpy()
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
            file[f"{layer}/{layer}_{KERAS_NAMES[leaf]}"] = array
    return folder / "weights.h5"


def write_original(state: dict[str, Tensor], folder: Path) -> Path:
    """The layout of HTS-AT's authors, which holds queries, keys and values in one tensor."""
    joined: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        joined.setdefault(original_name(name), []).append(tensor)
    return write_tensors({n: ts[0] if len(ts) == 1 else torch.cat(ts) for n, ts in joined.items()},
                         folder)  # fmt: skip


def write_folder(state: dict[str, Tensor], folder: Path) -> Path:
    """A directory of transformers that is there but for its tensors."""
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def small_htsat(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(HTSAT, "CONFIG", HTSATDemo.CONFIG)
    patch.setattr(HTSAT, "LOG_MEL", HTSATDemo.LOG_MEL)
    patch.setattr(HTSATClap, "LOG_MEL", HTSATDemo.LOG_MEL)


def small_slowonly(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(SlowOnly, "WIDTH", 8)
    patch.setattr(SlowOnly, "DEPTHS", (1, 1, 1, 1))


def small_text(name: str) -> Callable[[pytest.MonkeyPatch, Path], None]:
    def make(patch: pytest.MonkeyPatch, folder: Path) -> None:
        save_encoder(name, folder)
        (folder / "model.safetensors").unlink()

    return make


def small_vgg(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(vgg19, "BLOCKS", tuple((4, count) for _, count in vgg19.BLOCKS))


Make = Callable[[pytest.MonkeyPatch, Path], None]
Write = Callable[[dict[str, Tensor], Path], Path]
TEXTS = ("bert", "clap-text", "clip-text")
SMALL: dict[str, tuple[Make, Write, str]] = {
    "swinv2": (
        lambda patch, _: patch.setattr(SwinV2, "MODEL", "test_vit"),
        write_tensors,
        "blocks.0.attn.qkv.weight",
    ),
    "vgg19": (small_vgg, write_keras, "block2_conv2.weight"),
    "vgg19-tv": (small_vgg, write_tensors, "features.2.bias"),
    "vggish": (
        lambda patch, _: patch.setattr(VGGish, "HIDDEN", 16),
        write_tensors,
        "embeddings.4.bias",
    ),
    "htsat": (small_htsat, write_original, "audio_encoder.norm.weight"),
    "htsat-clap": (small_htsat, write_tensors, "audio_encoder.norm.weight"),
    "slowonly": (small_slowonly, write_tensors, "layer1.0.conv1.bn.running_var"),
    **{name: (small_text(name), write_folder, "") for name in TEXTS},
}
"""Of each backbone with weights: how to make it small, write its file, and a tensor of it."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REAL)
def test_odd_weights_of_every_backbone_are_refused_by_the_tensor_s_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, write, key = SMALL[name]
    make(monkeypatch, tmp_path)
    options = {"model": str(tmp_path)} if name in TEXTS else {}
    random: Any = build_backbone(name, "random", CPU, **options)
    state = random._run.network.state_dict()
    key = key or next(n for n in state if re.search(r"(k_proj|self\.key)\.weight$", n))
    build_backbone(name, str(write(state, tmp_path)), CPU)
    told = original_name(key) if name == "htsat" else key
    for kind in ("nan", "infinity") if name == "vgg19" else ODD:
        change, message = ODD[kind]
        path = write({**state, key: change(state[key])}, tmp_path)

        with pytest.raises(WeightsError, match=rf"{re.escape(told)}: .*{message}"):
            build_backbone(name, str(path), CPU)


def test_a_directory_of_transformers_is_checked_before_the_library_opens_it(
    tmp_path: Path,
) -> None:
    model = save_encoder("bert", tmp_path).model
    (tmp_path / "model.safetensors").unlink()
    BOMBS["nested key"][0](tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: expected names as keys"):
        build_backbone("bert", str(tmp_path), CPU)

    name = "encoder.layer.0.attention.self.key.weight"
    torch.save({**model.state_dict(), name: torch.ones(2, 3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=rf"{name} \(2, 3\) instead of \(16, 16\) of another"):
        build_backbone("bert", str(tmp_path), CPU)


def test_a_network_in_several_files_is_read_as_one(tmp_path: Path) -> None:
    model = save_encoder("bert", tmp_path / "whole").model
    whole = build_backbone("bert", str(tmp_path / "whole"), CPU)
    model.save_pretrained(tmp_path / "whole", max_shard_size="10KB")
    (tmp_path / "whole" / "model.safetensors").unlink()
    assert len(list((tmp_path / "whole").glob("model-*.safetensors"))) > 1

    parts = build_backbone("bert", str(tmp_path / "whole"), CPU)

    assert parts.spec.weights_sha256 == whole.spec.weights_sha256


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"w": "../x.bin"}}',
        '{"weight_map": {"w": "/x.bin"}}',
        '{"weight_map": {"w": "x.txt"}}',
        "[" * 100_000,
        " " * (16 * 2**20 + 1),
    ],
    ids=range(9),
)
def test_an_index_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)

    with pytest.raises(WeightsError, match=r"index\.json: expected the names of files") as caught:
        read_index(tmp_path / "model.safetensors.index.json")

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [16 * 2**20 + 1, 2**63, 5000])
def test_a_header_of_safetensors_that_cannot_be_is_refused_unread(
    length: int, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(3)}, path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])

    with pytest.raises(WeightsError, match=rf"expected a header of .*, got {length}"):
        read_state(path)


@pytest.mark.parametrize(
    "header",
    [
        '{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        '{"w":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}',
        '{"w":' + "[" * 10_000 + "}",
    ],
    ids=["claims", "overlap", "hole", "type", "deep"],
)
def test_a_header_of_safetensors_that_lies_is_refused(header: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))

    with pytest.raises(WeightsError, match=r"w\.safetensors: cannot be read as weights"):
        read_state(path)


# --- other weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_whitening_that_is_not_finite_is_named(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VGGish, "HIDDEN", 16)
    network: Any = build_backbone("vggish", "random", CPU)._run.network  # type: ignore[attr-defined]
    torch.save(network.state_dict(), tmp_path / "vggish.pth")
    means = np.zeros(128)
    means[5] = value
    torch.save(
        {"pca_eigen_vectors": torch.eye(128), "pca_means": torch.tensor(means)},
        tmp_path / PCA_FILE,
    )

    with pytest.raises(WeightsError, match=r"pca\.pca_means: expected finite numbers"):
        build_backbone("vggish", str(tmp_path), CPU, pca=True)


@pytest.mark.parametrize(
    "body",
    [
        call("numpy.core.multiarray._reconstruct", 0, (10**12,), b"b"),
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"\x8a\x06\x00\x10\xa5\xd4\xe8\x00\x85U\x01b\x87R",
        call("numpy.dtype", "V1000000000000", False, True),
        call("numpy.zeros", 10**12),
    ],
    ids=["no class", "large", "type", "zeros"],
)
def test_a_whitening_that_asks_for_more_than_arrays_is_refused_unread(
    body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = of_legacy(wrapped(body))(tmp_path / PCA_FILE)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))

    with pytest.raises(WeightsError, match="cannot be read as VGGish's PCA"):
        read_pca(path)


def test_a_whitening_that_never_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match="cannot be read as VGGish's PCA: expected names as keys"
    ):
        read_pca(BOMBS["nested key"][0](tmp_path / PCA_FILE))


def test_weights_of_raft_that_are_not_finite_are_named(tmp_path: Path) -> None:
    network: Any = RAFT("small", "random", "cpu")._run.network
    state = dict(network.state_dict())
    name = "feature_encoder.convnormrelu.0.weight"
    state[name] = with_number(float("nan"))(state[name])
    torch.save(state, tmp_path / "raft.pth")

    with pytest.raises(WeightsError, match=rf"{name}: expected finite numbers"):
        RAFT("small", str(tmp_path / "raft.pth"), "cpu")
