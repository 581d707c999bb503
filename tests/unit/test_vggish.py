import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from micu.base.errors import WeightsError
from micu_extract.backbones import Run, build_backbone, hubs
from micu_extract.backbones.base import Media
from micu_extract.backbones.sound import fill_window
from micu_extract.backbones.vggish import MAX_PCA_BYTES, SAMPLES, VGGish, read_pca
from micu_extract.backbones.vggish_network import VGGishNetwork as Network
from micu_extract.backbones.vggish_network import Whitening

CPU = Run(device="cpu")
FILE, PCA_FILE = "vggish-10086976.pth", "vggish_pca_params-970ea276.pth"


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hidden layers of 16: building the real ones takes seconds."""
    monkeypatch.setattr(VGGish, "HIDDEN", 16)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def matrices() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"pca_eigen_vectors": rng.normal(size=(128, 128)), "pca_means": rng.normal(size=128)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The two published files, of a narrow network."""
    torch.manual_seed(0)
    torch.save(Network(16).state_dict(), tmp_path / FILE)
    torch.save(matrices(), tmp_path / PCA_FILE)
    return tmp_path


# --- seconds ---------------------------------------------------------------------------------


def test_a_second_too_short_for_a_patch_is_filled_up_with_zeros() -> None:
    backbone = build_backbone("vggish", "random", CPU)
    short = noise(15_599)

    by_us, by_hand, cut = backbone.encode([short, np.append(short, np.float32(0)), short[:8000]])

    assert by_us.tobytes() == by_hand.tobytes()
    assert np.abs(cut - by_us).max() > 1e-3
    assert fill_window(short, SAMPLES)[-1] == 0.0
    assert backbone.spec.preprocessing["short_window"] == "zeros up to 15600 samples"


def test_what_follows_the_patch_of_a_second_is_not_heard() -> None:
    backbone = build_backbone("vggish", "random", CPU)
    second = noise(16_000)
    louder, earlier = second.copy(), second.copy()
    louder[15_600:] = 1.0
    earlier[15_500:] = 1.0

    same, heard, other = backbone.encode([second, louder, earlier])

    assert same.tobytes() == heard.tobytes()
    assert same.tobytes() != other.tobytes()


def test_a_last_second_with_less_than_a_tenth_of_sound_is_no_step() -> None:
    backbone = build_backbone("vggish", "random", CPU)
    seconds = [noise(16_000), noise(1600), noise(1500)]

    for count, duration_s, real in ((2, 1.1, [True, True]), (2, 1.09, [True, False])):
        units = [seconds[0], seconds[1 if duration_s == 1.1 else 2]]
        media = Media(units, np.array([0.5, 1.05]), duration_s, count)
        steps = backbone.to_steps(backbone.encode(units), media)
        assert steps.mask.tolist() == real
        assert steps.values.shape == (2, 128)


def test_an_embedding_does_not_depend_on_what_else_is_in_the_batch() -> None:
    backbone = build_backbone("vggish", "random", Run(device="cpu", batch_size=3))
    seconds = [noise(16_000, seed) for seed in range(4)]

    together = backbone.encode(seconds)

    for second, embedding in zip(seconds, together, strict=True):
        assert backbone.encode([second])[0].tobytes() == embedding.tobytes()
    assert len({embedding.tobytes() for embedding in together}) == 4


def test_options_are_written_into_the_header() -> None:
    plain = build_backbone("vggish", "random", CPU).spec
    other = build_backbone("vggish", "random", CPU, no_relu=True, pca=True).spec

    assert (plain.preprocessing["relu"], plain.preprocessing["pca"]) == (True, None)
    assert other.preprocessing["relu"] is False
    assert "8-bit" in other.preprocessing["pca"]
    assert plain.weights_sha256 != other.weights_sha256


def test_levels_are_whole_numbers_from_0_to_255() -> None:
    whitening = Whitening()
    whitening.pca_eigen_vectors.copy_(torch.eye(128))
    whitening.pca_means.fill_(1.0)
    embeddings = torch.zeros(1, 128)
    embeddings[0, :6] = torch.tensor([-9.0, -1.0, 1.0, 1.0 + 4 / 255, 3.0, 9.0])

    levels = whitening.levels(embeddings)[0]

    # 127.5 goes to the even neighbour.
    assert levels[:6].tolist() == [0.0, 0.0, 128.0, 128.0, 255.0, 255.0]


def test_a_component_is_a_row_of_the_matrix() -> None:
    whitening = Whitening()
    whitening.pca_eigen_vectors.zero_()[3, 5] = 1.0
    embeddings = torch.zeros(1, 128)
    embeddings[0, 5] = 2.0

    levels = whitening.levels(embeddings)[0]

    assert levels[3] == 255.0
    assert (levels[torch.arange(128) != 3] == 128.0).all()


# --- weights ---------------------------------------------------------------------------------


def test_the_network_has_the_published_tensors() -> None:
    with torch.device("meta"):
        state = Network().state_dict()

    convolutions = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256)}
    shapes = {f"features.{i}": (*io_, 3, 3) for i, io_ in {**convolutions, 13: (512, 512)}.items()}
    shapes |= {"embeddings.0": (4096, 12288), "embeddings.2": (4096, 4096)}
    shapes |= {"embeddings.4": (128, 4096)}
    assert {n: tuple(t.shape) for n, t in state.items() if t.ndim > 1} == {
        f"{name}.weight": shape for name, shape in shapes.items()
    }
    assert {n: tuple(t.shape) for n, t in state.items() if t.ndim == 1} == {
        f"{name}.bias": shape[:1] for name, shape in shapes.items()
    }


def test_a_directory_with_both_files_is_loaded_like_its_files(folder: Path) -> None:
    by_folder = build_backbone("vggish", str(folder), CPU).spec
    by_file = build_backbone("vggish", str(folder / FILE), CPU).spec
    both = build_backbone("vggish", str(folder / FILE), CPU, pca=True).spec

    assert by_folder == by_file
    assert by_folder.weights == FILE
    assert both.weights == f"{FILE} + {PCA_FILE}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.3.bias"), r"features\.3\.bias missing"),
        (lambda s: s.update(x=torch.zeros(1)), "x not expected"),
        (lambda s: s.update({"embeddings.4.bias": torch.zeros(1)}), "of another shape"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    state = torch.load(folder / FILE, weights_only=True)
    change(state)
    torch.save(state, folder / FILE)

    with pytest.raises(WeightsError, match=message):
        build_backbone("vggish", str(folder), CPU)


def test_a_missing_pca_file_is_an_error_that_says_where_it_is(folder: Path) -> None:
    (folder / PCA_FILE).unlink()

    with pytest.raises(WeightsError, match=f"curl -LO https://github.com/.*/{PCA_FILE}"):
        build_backbone("vggish", str(folder), CPU, pca=True)
    build_backbone("vggish", str(folder), CPU)


def test_the_folder_of_a_file_that_is_named_alone_is_said_in_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / PCA_FILE).unlink()
    monkeypatch.chdir(folder)

    with pytest.raises(WeightsError) as caught:
        build_backbone("vggish", FILE, CPU, pca=True)

    assert str(caught.value).startswith(f"{folder}: expected {PCA_FILE} beside")


def test_a_directory_with_two_networks_is_an_error(folder: Path) -> None:
    torch.save({}, folder / "other.pth")

    with pytest.raises(WeightsError, match="expected one file of weights"):
        build_backbone("vggish", str(folder), CPU)


def test_pretrained_weights_are_taken_from_the_cache_of_torch_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(hubs, "_probe", lambda url: pytest.fail("asked the network"))
    monkeypatch.setattr(hubs, "check_digest", lambda path, name, md5: None)  # zeros stand for them
    (tmp_path / "hub").mkdir()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir()
    for name in (FILE, PCA_FILE):
        (folder / name).rename(cache / name)

    backbone = build_backbone("vggish", "pretrained", CPU, pca=True)

    assert backbone.spec.weights == f"{FILE} + {PCA_FILE}"


@pytest.mark.parametrize("kept", [[], [FILE]])
def test_weights_that_cannot_be_fetched_are_an_error_that_says_what_to_type(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[str]
) -> None:
    def refuse(url: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hubs, "_probe", refuse)
    monkeypatch.setattr(hubs, "check_digest", lambda path, name, md5: None)  # zeros stand for them
    (tmp_path / "checkpoints").mkdir()
    for name in kept:
        (folder / name).rename(tmp_path / "checkpoints" / name)

    with pytest.raises(
        WeightsError, match=r"type: curl -LO https://github\.com/harritaylor"
    ) as caught:
        build_backbone("vggish", "pretrained", CPU, pca=True)

    assert str(caught.value).startswith(f"{PCA_FILE if kept else FILE}: not in the cache")
    assert f"type --weights {'DIR' if kept else 'PATH'}" in str(caught.value)


# --- the PCA file ----------------------------------------------------------------------------


def old_pickle(value: Any) -> bytes:
    """As NumPy 1 and Python 3.7 wrote it: protocol 2, and the former name of NumPy's module."""
    return pickle.dumps(value, protocol=2).replace(
        b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    )


def save_as_in_2019(value: Any, path: Path) -> None:
    """The layout of `torch.save` before 1.6, around a pickle of `value`."""
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    path.write_bytes(file.getvalue().replace(pickle.dumps({}, protocol=2), old_pickle(value), 1))


def test_the_arrays_of_a_file_from_2019_are_read(tmp_path: Path) -> None:
    save_as_in_2019(matrices(), tmp_path / PCA_FILE)

    state = read_pca(tmp_path / PCA_FILE)

    assert b"numpy.core.multiarray" in (tmp_path / PCA_FILE).read_bytes()
    for name, value in matrices().items():
        np.testing.assert_array_equal(state[f"pca.{name}"], value.astype(np.float32))


def test_tensors_and_a_column_of_means_are_read_too(tmp_path: Path) -> None:
    tensors = {name: torch.from_numpy(value) for name, value in matrices().items()}
    tensors["pca_means"] = tensors["pca_means"].reshape(128, 1)
    torch.save(tensors, tmp_path / PCA_FILE)

    state = read_pca(tmp_path / PCA_FILE)

    assert state["pca.pca_means"].shape == (128,)


class Deed:
    """Would run code where a pickle is trusted."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected pca_eigen_vectors and pca_means by name"),
        ({"pca_means": np.zeros(128)}, "expected pca_eigen_vectors and pca_means by name"),
        ({**matrices(), "more": np.zeros(1)}, "expected pca_eigen_vectors and pca_means by name"),
        ({**matrices(), "pca_means": np.zeros(127)}, r"pca_means: expected \(128,\), got \(127,\)"),
        ({**matrices(), "pca_means": np.zeros((1, 128))}, r"pca_means: expected \(128,\)"),
        ({**matrices(), "pca_means": "128"}, "expected arrays of numbers"),
        ({**matrices(), "pca_means": np.array([1, "a"] * 64, object)}, "cannot be read"),
        ({**matrices(), "pca_means": Deed()}, "cannot be read"),
    ],
)
def test_a_pca_file_that_holds_anything_else_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / PCA_FILE)

    with pytest.raises(WeightsError, match=message):
        read_pca(tmp_path / PCA_FILE)

    assert not (tmp_path / "touched").exists()


def test_a_pca_file_that_is_cut_off_or_far_too_large_is_an_error(tmp_path: Path) -> None:
    torch.save(matrices(), tmp_path / PCA_FILE)
    whole = (tmp_path / PCA_FILE).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:1000])
    (tmp_path / "large.pth").write_bytes(whole + bytes(MAX_PCA_BYTES))

    for name, message in (("cut.pth", "cannot be read"), ("large.pth", "expected at most")):
        with pytest.raises(WeightsError, match=f"{name}: {message}"):
            read_pca(tmp_path / name)
