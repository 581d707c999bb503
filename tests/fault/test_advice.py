"""What an error says to type never destroys what is whole; names and disks have their limits."""

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from micu.base import files
from micu.base.errors import StoreError
from micu.base.files import write_atomically
from micu_extract.cli import cli
from micu_extract.sets.verify import verify_set
from tests.feature_sets import make_clips, write_features
from tests.toy import Toy, extract_manifest, shard_bytes, toy_plan, toy_read
from tests.training import train


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips())
    return root


def advises_to_overwrite(message: str) -> bool:
    """Whether a message names the option otherwise than with what it costs."""
    return message.replace("--overwrite would delete", "").count("--overwrite") > 0


def test_other_settings_than_those_of_a_set_do_not_lead_to_its_loss(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    extract_manifest(plan, Toy(), toy_read)
    before = shard_bytes(plan.folder)
    with pytest.raises(StoreError, match="made with other settings") as caught:
        toy_plan(tmp_path, shard_rows=16)
    told = str(caught.value)
    assert "type what these were made with, or extract to another --out" in told
    assert "--overwrite would delete what is there, 23 clips" in told
    assert not advises_to_overwrite(told)
    assert shard_bytes(plan.folder) == before


def test_shards_without_an_index_are_not_to_be_deleted(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    extract_manifest(plan, Toy(), toy_read)
    before = shard_bytes(plan.folder)
    (plan.folder / "index.jsonl").unlink()
    (problem,) = verify_set(plan.folder, data=True).problems
    assert "delete" not in problem
    assert "type the extraction command again" in problem
    extract_manifest(toy_plan(tmp_path), Toy(), toy_read)
    assert verify_set(plan.folder, data=True).problems == ()
    assert shard_bytes(plan.folder) == before


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ((), "go on with it by --resume, or name another --out"),
        (("--seed", "5", "--resume"), "type its settings, or name another --out"),
        (("--resume", "no config"), "name another --out"),
    ],
    ids=["the same", "another seed", "no configuration"],
)
def test_a_run_that_is_there_is_kept_by_what_is_typed_next(
    features: Path, tmp_path: Path, more: tuple[str, ...], kept: str
) -> None:
    out = tmp_path / "run"
    assert train(features, out, "--set", "optimizer.max_steps=1").exit_code == 0
    if "no config" in more:
        (out / "config.json").unlink()
        more = more[:-1]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = train(features, out, *more)
    assert result.exit_code == 2, result.output
    assert kept in result.stderr
    assert "--overwrite would delete" in result.stderr
    assert not advises_to_overwrite(result.stderr)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_features_that_changed_under_a_run_do_not_lead_to_its_loss(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train(features, out, "--set", "optimizer.max_steps=1").exit_code == 0
    write_features(tmp_path / "features", make_clips()[2:])
    result = train(tmp_path / "features", out, "--resume")
    assert result.exit_code == 2, result.output
    assert "type the manifest and features of that run" in result.stderr
    assert not advises_to_overwrite(result.stderr)


# --- names and disks -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "\N{GRINNING FACE}" * 63])
def test_a_name_that_the_file_system_bears_can_be_written(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_out_that_no_file_system_bears_is_a_sentence(features: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    result = train(features, long)
    assert result.exit_code == 74, result.output
    assert "File name too long" in result.stderr
    assert "Traceback" not in result.stderr
    toy_plan(tmp_path)
    words = ["text", str(tmp_path / "toys.csv"), "--backbone", "toy", "--weights", "random"]
    done = CliRunner().invoke(cli, [*words, "--out", str(long)])
    assert isinstance(done.exception, OSError)  # which the command ends with 74 for
    assert done.exception.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_the_first_file_of_a_run_is_a_sentence(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path) -> object:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "_create_locked", refuse)
    result = train(features, tmp_path / "run")
    assert result.exit_code == 74, result.output
    assert os.strerror(number) in result.stderr
    assert "Traceback" not in result.stderr
