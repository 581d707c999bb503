"""Damage to a set that is finished: repair, the same command, the bytes of an undisturbed run."""

import errno
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import micu_extract.sets.verify as verify
from micu.base.errors import StoreError
from micu.store.ledger import Failure, append_ledger, indexed_shards
from micu.store.manifest import read_manifest
from micu.store.sets import publish_shard, read_set, write_set
from micu.store.shard import Header, Shard, encode_shard
from micu_extract.cluster.commands import repair_sets
from micu_extract.sets.repair import repair_set
from micu_extract.sets.shares import Part
from micu_extract.sets.verify import verify_set
from tests.toy import Toy, extract_manifest, shard_bytes, toy_plan, toy_read


def extract(folder: Path, **job: object) -> Path:
    folder.mkdir(exist_ok=True)
    plan = toy_plan(folder, **job)  # type: ignore[arg-type]
    extract_manifest(plan, Toy(), toy_read)
    return plan.folder


def flip_a_bit(path: Path, header: Header) -> None:
    with Shard.open(path) as shard:
        pattern = shard.read(0).values[0].tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(pattern) + 1] ^= 4
    path.write_bytes(data)


def truncate(path: Path, header: Header) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def empty(path: Path, header: Header) -> None:
    path.write_bytes(b"")


def put_nan(path: Path, header: Header) -> None:
    """A shard with NaN that the index knows: as if it had been written so."""
    with Shard.open(path) as shard:
        rows = [shard.read(row) for row in range(len(shard.clip_ids))]
    rows[2] = replace(rows[2], values=np.full_like(rows[2].values, np.nan))
    publish_shard(path.parent, 1, header, rows)


def make_otherwise(path: Path, header: Header) -> None:
    with Shard.open(path) as shard:
        rows = [shard.read(row) for row in range(len(shard.clip_ids))]
    path.write_bytes(encode_shard(replace(header, shard_rows=9), rows))


def lose_a_clip(path: Path, header: Header) -> None:
    with Shard.open(path) as shard:
        rows = [shard.read(row) for row in range(len(shard.clip_ids) - 1)]
    path.write_bytes(encode_shard(header, rows))


DAMAGE = [flip_a_bit, truncate, empty, put_nan, make_otherwise, lose_a_clip]


@pytest.mark.parametrize("part", [None, Part(2, 2)], ids=["whole", "part"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_broken_goes_and_the_same_command_makes_it_again(
    tmp_path: Path, damage: Callable[[Path, Header], None], part: Part | None
) -> None:
    whole = extract(tmp_path / "whole", part=part)
    folder = extract(tmp_path / "damaged", part=part)
    others = {p: p.stat().st_mtime_ns for p in folder.glob("shard-*") if "00001" not in p.name}
    assert others
    damage(folder / "shard-00001.h5", read_set(folder)[0])
    assert any("shard-00001" in line for line in verify_set(folder, data=True).problems)

    repair = repair_set(folder)

    assert len(repair.deleted) == 1
    assert "shard-00001.h5" in repair.deleted[0]
    assert repair.kept == ()
    assert shlex.split(repair.command)[:2] == ["micu-extract", "text"]
    assert "shard-00001.h5" not in indexed_shards(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == others
    again = toy_plan(tmp_path / "damaged", part=part)
    assert [shard.number for shard in again.shards] == [1]
    extract(tmp_path / "damaged", part=part)
    name = again.ledger_path.name
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for path in whole.glob("shard-*"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert not any("shard-" in line for line in verify_set(folder, data=True).problems)


def test_what_was_deleted_and_what_to_type_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = extract(tmp_path)
    empty(folder / "shard-00002.h5", read_set(folder)[0])
    repair_sets([folder])
    told = capsys.readouterr().err
    assert "deleted" in told
    assert "shard-00002.h5" in told
    command = shlex.split(told.splitlines()[-1])
    assert command == [
        *("micu-extract", "text", str(tmp_path / "toys.csv"), "--backbone", "toy"),
        *("--media-root", str(tmp_path), "--out", str(tmp_path / "features")),
        *("--shard-rows", "8", "--weights", "random"),
    ]


def test_a_good_set_is_left_alone(tmp_path: Path) -> None:
    folder = extract(tmp_path)
    before = shard_bytes(folder)
    repair = repair_set(folder)
    assert (repair.deleted, repair.dropped, repair.kept, repair.command) == ((), 0, (), "")
    assert shard_bytes(folder) == before


def test_ledger_rows_of_clips_that_are_stored_go(tmp_path: Path) -> None:
    folder = extract(tmp_path)
    before = shard_bytes(folder)
    sources = read_manifest(tmp_path / "toys.csv").sources("text", "text")
    append_ledger(folder, [Failure("../c/0", "decode", "empty", "x", sources["../c/0"])])
    assert len(verify_set(folder).problems) == 1
    append_ledger(folder, [Failure("../c/1", "decode", "empty", "x", sources["../c/1"])], "1of2")
    # Where parts are at work, the other may be one that a part has mended.
    assert verify_set(folder).problems == (
        "clip '../c/1' is in shard-00000.h5 and failures-1of2.csv",
    )
    assert repair_set(folder).dropped == 2
    assert verify_set(folder).problems == ()
    assert shard_bytes(folder) == before


def test_a_disk_that_refuses_does_not_cost_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = extract(tmp_path)
    before = shard_bytes(folder)
    good = Shard.open

    def refuse(path: Path) -> Shard:
        if path.name == "shard-00001.h5":
            raise StoreError(f"{path}: no") from OSError(errno.EIO, "Input/output error")
        return good(path)

    monkeypatch.setattr(verify.Shard, "open", refuse)
    repair = repair_set(folder)
    assert repair.deleted == ()
    assert "shard-00001.h5" in repair.kept[0]
    assert shard_bytes(folder) == before


def test_a_description_of_another_set_does_not_cost_every_shard(tmp_path: Path) -> None:
    folder = extract(tmp_path)
    before = shard_bytes(folder)
    header, run = read_set(folder)
    write_set(folder, replace(header, shard_rows=9), run)
    repair = repair_set(folder)
    assert repair.deleted == ()
    assert len(repair.kept) == 4
    assert shard_bytes(folder) == before
