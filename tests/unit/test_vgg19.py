"""VGG19: frames picked by their number, and weights that cannot be had or do not fit."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import micu_extract.media.damage
from micu.base.errors import ConfigError, DecodeError, WeightsError
from micu.store.manifest import Clip
from micu_extract.backbones import build_backbone, hubs, vgg19
from micu_extract.backbones.base import FrameInput, Media, Run
from micu_extract.backbones.vgg19 import VGG19, build_network
from micu_extract.media.frames import pick_by_count
from micu_extract.media.readers import read
from micu_extract.media.source import Reading
from tests.media_files import frame_of, skip_without_decord, write_media

CPU = Run(device="cpu")
BY_COUNT = FrameInput(fps=4, resize=(16, 16), crop=16, sampling="count")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing twenty million weights takes most of a second."""
    monkeypatch.setattr(vgg19, "BLOCKS", ((8, 2), (8, 2), (16, 4), (16, 4), (32, 4)))


def read_by_count(path: Path, wants: FrameInput = BY_COUNT, **window: float) -> Media:
    clip = Clip(clip_id="c", path=path.name, **window)
    return read(clip, wants, Reading(media_root=path.parent))


def frames_of(media: Media) -> list[list[int]]:
    """Numbers of the pictures that were taken, by second."""
    seconds = media.times_s.astype(int)
    return [
        [frame_of(unit) for unit, at in zip(media.units, seconds, strict=True) if at == second]
        for second in range(seconds.max() + 1)
    ]


# --- frames picked by their number -----------------------------------------------------------


def test_the_frames_of_a_clip_of_250_are_those_of_the_published_arithmetic() -> None:
    picked = np.reshape(pick_by_count(250, 10, 16), (10, 16))

    assert picked[0].tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 12, 14, 15, 17, 18, 20, 21, 23]
    assert (picked - picked[0] == 25 * np.arange(10)[:, None]).all()


@pytest.mark.parametrize("per_second", [8, 16])
def test_picked_frames_equal_the_published_expression_for_any_number_of_frames(
    per_second: int,
) -> None:
    for n_frames in range(1, 700):
        published = []
        for second in range(10):
            interval = int(n_frames / 10)
            for i in range(per_second):
                published.append(int(second * interval + (i * 1.0 / per_second) * interval))
        assert pick_by_count(n_frames, 10, per_second) == published


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(1, 60))
def test_picked_frames_exist_and_never_go_back(
    pictures: int, seconds: int, per_second: int
) -> None:
    picked = pick_by_count(pictures, seconds, per_second)

    assert len(picked) == seconds * per_second
    assert picked == sorted(picked)
    assert picked[0] == 0
    assert picked[-1] < pictures


def test_frames_are_counted_and_not_timed(tmp_path: Path) -> None:
    """29 frames in 2.9 s are 9 for each of three seconds; the last two are not used."""
    media = read_by_count(write_media(tmp_path / "a.mp4", frames=29))

    assert frames_of(media) == [[0, 2, 4, 6], [9, 11, 13, 15], [18, 20, 22, 24]]
    assert media.times_s.tolist() == [0.125 + 0.25 * i for i in range(12)]
    assert (media.steps, media.duration_s) == (3, 2.9)


def test_frames_are_counted_within_the_window_of_the_clip(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=50)

    assert frames_of(read_by_count(path, start_s=2.0, end_s=4.0)) == [
        [20, 22, 25, 27],
        [30, 32, 35, 37],
    ]


def test_frames_of_a_variable_rate_are_counted_all_the_same(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", frames=8, pts=[0, 1, 2, 3, 4, 5, 18, 19])

    assert frames_of(read_by_count(path)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_seconds_past_the_end_of_the_media_have_no_frames(tmp_path: Path) -> None:
    media = read_by_count(write_media(tmp_path / "a.mp4", frames=20), start_s=0.0, end_s=4.0)

    assert frames_of(media) == [[0, 2, 5, 7], [10, 12, 15, 17]]
    assert media.steps == 4
    outputs = [np.ones(1, np.float32)] * len(media.units)
    assert VGG19.to_steps(None, outputs, media).mask.tolist() == [True, True, False, False]  # type: ignore[arg-type]


def test_fewer_frames_than_seconds_are_all_the_first(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", frames=2, pts=[0, 39])

    assert frames_of(read_by_count(path)) == [[0] * 4] * 4


def test_the_frames_are_counted_alike_by_both_decoders(tmp_path: Path) -> None:
    skip_without_decord()
    path = write_media(tmp_path / "a.mp4", frames=29)
    clip = Clip(clip_id="c", path=path.name)
    media = read(clip, BY_COUNT, Reading(media_root=tmp_path, decoder="decord"))

    assert frames_of(media) == [[0, 2, 4, 6], [9, 11, 13, 15], [18, 20, 22, 24]]


def test_frames_that_would_not_fit_in_memory_while_they_are_counted_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_media(tmp_path / "a.mp4", frames=29)
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", 28 * 16 * 16 * 3)

    with pytest.raises(DecodeError) as caught:
        read_by_count(path)

    assert caught.value.code == "too_large"


def test_frames_that_are_used_more_than_once_count_as_memory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_media(tmp_path / "a.mp4", frames=10)
    wants = FrameInput(fps=50, resize=(16, 16), crop=16, sampling="count")
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", 49 * 16 * 16 * 3)

    with pytest.raises(DecodeError) as caught:
        read_by_count(path, wants)

    assert caught.value.code == "too_large"


# --- the backbones ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg19", "vgg19-tv"])
def test_a_frame_gives_the_same_bits_whatever_its_neighbours(name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), dtype=np.uint8)
    backbone: Any = build_backbone(name, "random:3", Run(device="cpu", batch_size=2))

    together, alone = backbone.encode(frames), backbone.encode(frames[1:2])

    assert [output.shape for output in together] == [(1, 2, 32)] * 3
    assert together[1].tobytes() == alone[0].tobytes()
    assert not np.array_equal(together[0], together[1])


def test_the_two_are_told_apart_by_name_sampling_and_scale() -> None:
    ave = build_backbone("vgg19", "random", CPU, frames_per_second=8)
    other = build_backbone("vgg19-tv", "random", CPU)
    specs = ave.spec, other.spec

    assert [spec.backbone for spec in specs] == ["vgg19", "vgg19-tv"]
    assert [spec.shape for spec in specs] == [(7, 7, 512)] * 2
    assert isinstance(ave.wants, FrameInput)
    assert isinstance(other.wants, FrameInput)
    assert (ave.wants.sampling, ave.wants.fps) == ("count", 8)
    assert (other.wants.sampling, other.wants.fps) == ("time", 16)
    assert any(name.startswith("opencv-contrib-python") for name in specs[0].versions)
    assert specs[0].preprocessing["mean"] == [103.939, 116.779, 123.68]
    assert specs[1].preprocessing["mean"] == [0.485, 0.456, 0.406]


def test_the_published_keras_file_is_taken_from_the_cache_once_its_md5_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "checkpoints" / "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
    cached.parent.mkdir()
    cached.write_bytes(b"weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hubs, "_probe", lambda url: pytest.fail("asked the web"))

    with pytest.raises(WeightsError, match=r"copy in the cache is broken .*expected MD5 253f8c"):
        build_backbone("vgg19", "pretrained", CPU)

    monkeypatch.setattr(vgg19, "KERAS_MD5", hashlib.md5(b"weights").hexdigest())
    assert hubs.url_file(vgg19.KERAS_URL, md5=vgg19.KERAS_MD5) == cached


def test_a_download_with_another_md5_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, path: str, *, progress: bool) -> None:
        Path(path).write_bytes(b"<html>sign in first</html>")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(hubs, "_probe", lambda url: None)

    with pytest.raises(WeightsError, match=r"expected MD5 253f8c.*curl -LO https://storage"):
        build_backbone("vgg19", "pretrained", CPU)

    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg19", "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5: not in the cache"),
        ("vgg19-tv", "vgg19-dcbb9e9d.pth: not in the cache"),
    ],
)
def test_weights_that_cannot_be_had_are_named(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hubs, "_probe", refuse)

    with pytest.raises(WeightsError, match=message) as caught:
        build_backbone(name, "pretrained", CPU)

    assert "--weights random" in str(caught.value)


# --- torchvision's checkpoint ----------------------------------------------------------------


def torchvision_state() -> dict[str, torch.Tensor]:
    """Zeros that take no room, in the names of a checkpoint of torchvision."""
    shapes = {k: v.shape for k, v in build_network(keras_names=False).state_dict().items()}
    shapes["classifier.0.weight"] = torch.Size((4096, 1568))
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


def test_a_torchvision_checkpoint_is_loaded_without_its_classifier(tmp_path: Path) -> None:
    torch.save(torchvision_state(), tmp_path / "good.pth")

    backbone: Any = build_backbone("vgg19-tv", str(tmp_path / "good.pth"), CPU)

    assert not any(tensor.any() for tensor in backbone._run.network.state_dict().values())
    assert backbone.spec.weights == "good.pth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.34.bias"), "features.34.bias missing"),
        (lambda state: state.update(head=torch.ones(1)), "head not expected"),
        (
            lambda state: state.update({"features.0.bias": torch.ones(3)}),
            r"features.0.bias \(3,\) instead of \(8,\)",
        ),
    ],
)
def test_a_torchvision_checkpoint_that_does_not_fit_is_an_error(
    change: Callable[[dict[str, torch.Tensor]], Any], message: str, tmp_path: Path
) -> None:
    state = torchvision_state()
    change(state)
    torch.save(state, tmp_path / "bad.pth")

    with pytest.raises(WeightsError, match=message):
        build_backbone("vgg19-tv", str(tmp_path / "bad.pth"), CPU)


# --- Keras's files -----------------------------------------------------------------------------

FOUR = np.ones(4, np.float32)
PLACE = "block1_conv1/block1_conv1_b_1:0"


@pytest.fixture
def keras_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A narrow network in the layout of the published file, with a classifier."""
    monkeypatch.chdir(tmp_path)  # where external data would be written
    monkeypatch.setattr(vgg19, "BLOCKS", ((4, 2), (4, 1)))
    rng = np.random.default_rng(0)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, tensor in build_network(keras_names=True).state_dict().items():
            layer, _, leaf = name.rpartition(".")
            shape = tuple(tensor.shape)
            shape = (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape
            array = rng.random(shape, np.float32)
            file[f"{layer}/{layer}_{'W' if leaf == 'weight' else 'b'}_1:0"] = array
        file.create_group("block1_pool")
        file["fc1/fc1_W_1:0"] = np.ones((2, 2), np.float32)
    return path


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_kernels_are_turned_to_the_order_of_torch(keras_file: Path, suffix: str) -> None:
    path = keras_file.rename(keras_file.with_suffix(suffix))
    state = vgg19.read_keras(path)
    network: Any = build_backbone("vgg19", str(path), CPU)._run.network  # type: ignore[attr-defined]

    assert sorted(state) == sorted(network.state_dict())
    with h5py.File(path) as file:
        kernel = file["block1_conv2/block1_conv2_W_1:0"][()]  # (kh, kw, in, out)
        assert state["block1_conv1.bias"].tolist() == file[PLACE][()].tolist()
    for row, column, before, after in np.ndindex(kernel.shape):
        turned = state["block1_conv2.weight"][after, before, row, column].item()
        assert turned == kernel[row, column, before, after]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])


def _replace(file: h5py.File, value: Any, **storage: Any) -> None:
    del file[PLACE]
    if isinstance(value, np.ndarray):
        file.create_dataset(PLACE, data=value, **storage)
    elif value is not None:
        file[PLACE] = value


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    del file[PLACE]
    file.create_virtual_dataset(PLACE, layout)


def _huge(file: h5py.File) -> None:
    """Declares a terabyte; none of it is stored."""
    del file[PLACE]
    file.create_dataset(PLACE, (2**40,), np.uint8, chunks=(2**20,))


def _huge_and_sparse(file: h5py.File) -> None:
    """Declares a terabyte, in a file whose length says the same; hardly a byte is on the disk."""
    del file[PLACE]
    space = h5py.h5s.create_simple((2**38,))
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(file.id, PLACE.encode(), h5py.h5t.IEEE_F32LE, space, settings)


def _link_the_group(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.move("block1_conv1", "elsewhere")
        file["block1_conv1"] = link

    return change


LACKING = f"expected the layout of Keras's published file, got one without {PLACE[:13]}"
BAD_FILES: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "missing": (lambda file: _replace(file, None), f"got one without {PLACE}; other files"),
    "another layout": (
        lambda file: file.move(PLACE, "block1_conv1/block1_conv1/bias:0"),
        f"got one without {PLACE}; other files",
    ),
    "misshapen": (
        lambda file: _replace(file, FOUR[:3]),
        r"expected numbers of shape \(4,\), got float32 of shape \(3,\)",
    ),
    "a group": (
        lambda file: (_replace(file, None), file.create_group(PLACE)),
        "does not hold its own data",
    ),
    "a type": (lambda file: _replace(file, np.dtype("f4")), "does not hold its own data"),
    "integers": (
        lambda file: _replace(file, np.ones(4, np.int32)),
        r"expected numbers of shape \(4,\), got int32",
    ),
    "strings": (
        lambda file: _replace(file, np.array(["a"] * 4, dtype=h5py.string_dtype())),
        r"expected numbers of shape \(4,\), got object",
    ),
    "soft link": (lambda file: _replace(file, h5py.SoftLink("/fc1")), "is a SoftLink"),
    "external link": (
        lambda file: _replace(file, h5py.ExternalLink("/etc/hostname", "/x")),
        "is a ExternalLink",
    ),
    "a group of links": (_link_the_group(h5py.SoftLink("/elsewhere")), LACKING),
    "a group elsewhere": (_link_the_group(h5py.ExternalLink("a.h5", "/elsewhere")), LACKING),
    "external data": (
        lambda file: _replace(file, FOUR, external=[("elsewhere", 0, 16)]),
        "does not hold its own data",
    ),
    "virtual": (_virtual, "does not hold its own data"),
    "compressed": (lambda file: _replace(file, FOUR, compression="gzip"), "is packed by filters"),
    "never written": (
        lambda file: (_replace(file, None), file.create_dataset(PLACE, (4,), np.float32)),
        "has not the numbers that it declares",
    ),
    "huge": (_huge, "declares 109951162"),
    "huge and sparse": (_huge_and_sparse, r"expected numbers of shape \(4,\), got float32"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_keras_file_that_is_not_what_it_should_be_is_refused(case: str, keras_file: Path) -> None:
    change, message = BAD_FILES[case]
    build_backbone("vgg19", str(keras_file), CPU)
    with h5py.File(keras_file, "r+") as file:
        change(file)

    with pytest.raises(WeightsError, match=message) as caught:
        build_backbone("vgg19", str(keras_file), CPU)

    assert keras_file.name in str(caught.value)


def test_a_damaged_keras_file_is_an_error_about_the_file(keras_file: Path) -> None:
    whole = keras_file.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        keras_file.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"a\.h5: cannot be read as HDF5"):
            build_backbone("vgg19", str(keras_file), CPU)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("weights.npz", r"'\.npz'"),
        ("weights", "'weights'"),
        ("folder/", "a directory"),
        ("folder.h5/", "a directory"),
    ],
)
def test_what_is_no_file_of_weights_by_name_is_refused(name: str, got: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else path.touch()

    with pytest.raises(
        WeightsError,
        match=rf"expected a file of Keras's weights, \.h5 or \.hdf5 or \.safetensors, got {got}$",
    ):
        build_backbone("vgg19", str(path), CPU)


def test_a_file_of_torchvision_is_sent_to_the_backbone_that_takes_it(tmp_path: Path) -> None:
    torch.save(torchvision_state(), tmp_path / "vgg19.pth")

    with pytest.raises(WeightsError, match=r"got torchvision's; take --backbone vgg19-tv$"):
        build_backbone("vgg19", str(tmp_path / "vgg19.pth"), CPU)


def test_a_file_of_keras_is_sent_to_the_backbone_that_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "vgg19_weights.h5"
    path.touch()

    with pytest.raises(WeightsError, match=r"for Keras's weights take --backbone vgg19$"):
        build_backbone("vgg19-tv", str(path), CPU)


def test_an_option_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="frames_per_second: expected at least 1, got 0"):
        build_backbone("vgg19", "random", CPU, frames_per_second=0)
