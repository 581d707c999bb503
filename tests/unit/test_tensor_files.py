"""Files of torch that nobody vouches for, by every way in; and that healthy ones are read."""

import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from micu.base import tensor_files
from micu.base import tensor_pickle as tensor_pickle_module
from micu.base.errors import CheckpointError, MicuError, WeightsError, brief
from micu.base.tensor_files import load_tensor_file
from micu.evaluate.models import load_model
from micu.train.checkpoint import load_checkpoint, restore_
from micu.train.released import load_released
from micu.train.step import build_state
from micu_extract.backbones.weights import read_state
from tests.checkpoints import CONFIG, SHAPES, equal
from tests.conftest import PROJECT
from tests.hostile_tensors import (
    BOMBS,
    HUGE,
    RUNS,
    nested,
    of_legacy,
    of_zip,
    tensor_pickle,
    wrapped,
    write_zip,
)

WAYS: dict[str, Callable[[Path], object]] = {
    "load_checkpoint": load_checkpoint,
    "restore_": lambda path: restore_(build_state(CONFIG, SHAPES, "cpu"), path),
    "load_released": load_released,
    "load_model": lambda path: load_model(path, "cpu"),
    "backbone": read_state,
}


@pytest.mark.filterwarnings("ignore")  # torch has words about sparse and quantised tensors
@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_file_is_refused_before_it_is_read_on_every_way_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, message = BOMBS[name]
    path = write(tmp_path / "x.pt")
    before = path.read_bytes()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))

    for way in WAYS.values():
        with pytest.raises((CheckpointError, WeightsError), match=rf"(?s)x\.pt: .*{message}"):
            way(path)

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("layout", [of_zip, of_legacy])
@pytest.mark.parametrize("name", RUNS)
def test_what_would_run_code_or_take_memory_is_refused_on_every_way_in(
    name: str, layout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = layout(wrapped(RUNS[name]))(tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))

    for way in WAYS.values():
        with pytest.raises((CheckpointError, WeightsError), match=r"would run code|could run code"):
            way(path)


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from tests.unit.test_tensor_files import WAYS
for way in WAYS.values():  # what they import is not what is measured
    try:
        way(Path(sys.executable))
    except Exception:
        pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    for name, way in WAYS.items():
        try:
            way(Path(path))
        except Exception as error:
            print(name, type(error).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def write_bomb(path: Path) -> None:
    """Half a megabyte that unpacks to 512."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(2**27, (2**27,)))
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data/0", "w") as entry:
            for _ in range(512):
                entry.write(bytes(2**20))


def test_a_bomb_takes_no_memory_and_no_time_on_any_way_in(tmp_path: Path) -> None:
    write_bomb(tmp_path / "zip.pt")
    BOMBS["nested key"][0](tmp_path / "nested.pt")
    assert (tmp_path / "zip.pt").stat().st_size < 2**20

    paths = [str(tmp_path / name) for name in ("zip.pt", "nested.pt")]
    # As a guard alone: what is nested would take for ever.
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=PROJECT,
        check=True,
    )
    *said, megabytes = done.stdout.split("\n")[:-1]
    assert [line.split()[1] for line in said] == (["CheckpointError"] * 4 + ["WeightsError"]) * 2
    assert int(megabytes) < 100


# --- healthy files ---------------------------------------------------------------------------


def trained_optimizer() -> dict[str, Any]:
    network = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def with_attributes() -> Any:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "x"  # type: ignore[attr-defined]
    tensor = torch.ones(2)
    tensor.note = [1]  # type: ignore[attr-defined]
    return {"p": parameter, "t": tensor}


shared = torch.arange(100.0)
HEALTHY: dict[str, Callable[[], Any]] = {
    "state": lambda: torch.nn.BatchNorm1d(3).state_dict(),
    "types": lambda: {str(d): torch.ones(3).to(d) for d in (
        torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )},
    "views": lambda: {
        "half": shared[:50], "rest": shared[50:], "stepped": shared[2:80:3], "last": shared[99:],
        "turned": torch.arange(12.0).view(3, 4).t(), "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0), "empty rows": torch.zeros(0, 5), "end": shared[100:],
        "expanded once": torch.arange(5).expand(1, -1),
    },
    "optimizer": trained_optimizer,
    "settings": lambda: {
        "hyper_parameters": {"a": (1, 2), "b": [1.5, None, True, -3, 2**40, 2**80], "c": {}},
        "names": {"x", "y"}, "counts": Counter("abb"), "more": OrderedDict(a=1), "c": 1 + 2j,
        "bytes": b"abc", "array": bytearray(b"abc"), "type": torch.float32,
        "device": torch.device("cpu"),
        "twice": [(0.9, 0.999)] * 50,
    },
    "attributes": with_attributes,
    "one tensor": lambda: torch.ones(3),
    "many": lambda: [torch.ones(1) for _ in range(2000)],
    "deep": lambda: {"a": {"b": {"c": {"d": [[[(torch.ones(1),)]]]}}}},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_files_are_read_as_torch_reads_them(
    name: str, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x.pt"
    torch.save(HEALTHY[name](), path, _use_new_zipfile_serialization=zipped)

    content, digest = load_tensor_file(path)

    assert equal(content, torch.load(path, weights_only=True))
    assert len(digest) == 64


def test_files_without_checksums_and_with_many_entries_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "模型.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(5)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_tensor_file(path)[0]["w"].tolist() == [0, 1, 2, 3, 4]


def test_a_network_on_a_gpu_is_read_on_the_cpu(tmp_path: Path) -> None:
    data = tensor_pickle().replace(b"ctorch\nFloat", b"ctorch.cuda\nFloat")
    data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")

    content, _ = load_tensor_file(of_zip(data)(tmp_path / "x.pt"))

    assert content["w"].device.type == "cpu"
    assert content["w"].tolist() == [0.0] * 4


def test_a_tensor_may_be_as_large_as_its_storage_and_a_list_as_deep_as_is_allowed(
    tmp_path: Path,
) -> None:
    for data in (
        tensor_pickle(4, (2, 2), (2, 1)),
        tensor_pickle(4, (3,), (1,), 1),
        tensor_pickle(4, (0, HUGE), (1, 1), 4),
        tensor_pickle(4, (1,) * 64, (1,) * 64),
    ):
        load_tensor_file(of_zip(data)(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="claim more than is there"):
        load_tensor_file(of_zip(tensor_pickle(4, (0,), (1,), 5))(tmp_path / "x.pt"))
    for deep, fits in ((96, True), (97, True), (120, False)):
        value: Any = 1
        for _ in range(deep):
            value = [value]
        torch.save({"w": value}, tmp_path / "x.pt")
        if fits:
            load_tensor_file(tmp_path / "x.pt")
        else:
            with pytest.raises(CheckpointError, match="nested more than 100 deep"):
                load_tensor_file(tmp_path / "x.pt")


def test_a_backbone_may_repeat_numbers_and_a_checkpoint_may_not(tmp_path: Path) -> None:
    path = of_zip(tensor_pickle(4, (2, 4), (0, 1)))(tmp_path / "x.pt")

    assert read_state(path)["w"].shape == (2, 4)
    with pytest.raises(CheckpointError, match=r"claim more than is there.*\(2, 4\)"):
        load_tensor_file(path)


def test_a_storage_may_be_shared_eight_times(tmp_path: Path) -> None:
    path, weights = tmp_path / "x.pt", torch.zeros(10**5)
    torch.save([weights[:] for _ in range(8)], path)
    load_tensor_file(path)
    torch.save([weights[:] for _ in range(9)], path)
    with pytest.raises(CheckpointError, match="claim more than is there"):
        load_tensor_file(path)


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_off_anywhere_is_an_error_of_this_project(
    zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(9)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()

    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(MicuError, match=r"x\.pt"):
            load_tensor_file(path)


def test_a_name_of_a_megabyte_makes_no_message_of_a_megabyte(tmp_path: Path) -> None:
    torch.save({"format": 1, "model": {"w" * 2**20: torch.eye(2).to_sparse()}}, tmp_path / "x.pt")

    for way in WAYS.values():
        with pytest.raises((CheckpointError, WeightsError)) as caught:
            way(tmp_path / "x.pt")
        assert len(str(caught.value)) < 1000
    assert brief("x" * 120) == "x" * 120
    assert len(brief("x" * 121)) == 120


def test_a_place_that_is_no_file_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_tensor_file(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a file"):
        load_tensor_file(Path("/dev/zero"))


# --- limits ------------------------------------------------------------------------------------


def test_an_archive_with_long_numbers_is_read_and_what_it_counts_is_believed_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = write_zip(tmp_path / "x.pt", tensor_pickle())
    data = path.read_bytes()
    assert b"PK\x06\x06" in data

    assert load_tensor_file(path)[0]["w"].tolist() == [0.0] * 4

    end = data.index(b"PK\x06\x06")
    for offset, value, message in (
        (32, 10**6, "at most 100000 entries in the archive, got 1000000"),
        (40, 10**9, "at most 100000 entries in the archive, got 4 in 1000000000 bytes"),
        (48, 1, "no directory at its end"),
        (0, 0, "no directory at its end"),
    ):
        changed = bytearray(data)
        changed[end + offset : end + offset + 8] = value.to_bytes(8, "little")
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=message):
            load_tensor_file(path)


@pytest.mark.parametrize(
    ("module", "limit", "most"),
    [
        (tensor_files, "MAX_ENTRIES", 4),
        (tensor_files, "MAX_PICKLE_BYTES", len(tensor_pickle())),
        (tensor_pickle_module, "MAX_OPCODES", 26),
    ],
)
def test_a_file_may_be_as_large_as_each_limit_and_no_larger(
    module: Any, limit: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "x.pt", tensor_pickle())

    monkeypatch.setattr(module, limit, most)
    load_tensor_file(path)
    monkeypatch.setattr(module, limit, most - 1)
    with pytest.raises(CheckpointError, match=rf"expected at most {most - 1} "):
        load_tensor_file(path)


def test_the_pickles_of_an_old_file_are_read_no_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = of_legacy(tensor_pickle(legacy=True))(tmp_path / "x.pt")
    pickles = path.stat().st_size - 24  # eight bytes of length, four numbers

    monkeypatch.setattr(tensor_files, "MAX_PICKLE_BYTES", pickles)
    load_tensor_file(path)
    monkeypatch.setattr(tensor_files, "MAX_PICKLE_BYTES", pickles - 1)
    with pytest.raises(CheckpointError, match=rf"at most {pickles - 1} bytes beside"):
        load_tensor_file(path)


def test_what_is_shared_counts_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = of_zip(wrapped(nested(3)))(tmp_path / "x.pt")
    # Three pairs over the number, four settings with their names, and what holds them.
    monkeypatch.setattr(tensor_pickle_module, "MAX_OPCODES", 44)
    load_tensor_file(path)
    with pytest.raises(CheckpointError, match="again and again"):
        load_tensor_file(of_zip(wrapped(nested(5)))(path))


def test_an_old_file_may_claim_what_it_has_and_no_more(tmp_path: Path) -> None:
    path = of_legacy(tensor_pickle(legacy=True))(tmp_path / "x.pt")
    data = path.read_bytes()

    path.write_bytes(data[:-8])  # the length of the storage is not counted
    with pytest.raises(MicuError, match="cannot be read"):
        load_tensor_file(path)
    path.write_bytes(data[:-9])
    with pytest.raises(CheckpointError, match="declares more bytes than it has"):
        load_tensor_file(path)
