"""What is on disk is not believed because it is there."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest

import micu.store.sets as store
import micu_extract.pipeline.writer as writer
from micu.base.errors import DecodeError, StoreError
from micu.store.ledger import Failure, append_ledger, read_ledger
from micu.store.manifest import Clip
from micu.store.sets import FeatureStore
from micu_extract.media.decoding import Trouble, decode_clip
from micu_extract.media.media_file import find_media
from micu_extract.pipeline.writer import Summary
from tests.toy import Toy, extract_manifest, shard_bytes, toy_plan, toy_read


def run(folder: Path, **plan: object) -> Summary:
    return extract_manifest(toy_plan(folder, **plan), Toy(), toy_read)  # type: ignore[arg-type]


def test_a_damaged_shard_is_not_written_again_as_a_good_one(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, limit=12).folder)
    shard = folder / "shard-00001.h5"  # half of its rows are still to come
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)

    with pytest.raises(StoreError, match=r"sha256 differs.*verify .* --data --repair"):
        run(tmp_path)

    assert shard.read_bytes() == data


def test_a_kill_in_the_middle_of_overwriting_leaves_nothing_that_counts_as_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, shard_rows=8)
    unlink, left = Path.unlink, 3

    def die(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    replacing = toy_plan(tmp_path, shard_rows=16, overwrite=True)
    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        extract_manifest(replacing, Toy(), toy_read)
    monkeypatch.undo()

    with pytest.raises(StoreError, match="shard_rows: expected 16, got 8"):
        toy_plan(tmp_path, shard_rows=16)
    again = toy_plan(tmp_path, shard_rows=16, overwrite=True)
    assert (again.todo, again.done) == (25, 0)
    folder = Path(extract_manifest(again, Toy(), toy_read).folder)
    whole = Path(run(tmp_path / "whole", shard_rows=16).folder)
    assert shard_bytes(folder) == shard_bytes(whole)


def test_a_set_that_lost_its_description_is_known_by_its_shards(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    run(tmp_path)
    (plan.folder / "set.json").unlink()

    with pytest.raises(StoreError, match="shard_rows: expected 16, got 8"):
        toy_plan(tmp_path, shard_rows=16)
    assert toy_plan(tmp_path).todo == 0


def test_a_shard_of_another_set_is_not_taken_in(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    (tmp_path / "other").mkdir()
    other = Path(run(tmp_path / "other", count=30, shard_rows=9).folder)
    (folder / "shard-00000.h5").write_bytes((other / "shard-00000.h5").read_bytes())

    with pytest.raises(StoreError, match=r"(?s)shard-00000\.h5: .*shard_rows"):
        toy_plan(tmp_path)


def test_a_second_signal_does_not_cut_off_the_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = store.publish_shard

    def slowly(*words: object, **named: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.05)
        publish(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "publish_shard", slowly)

    def stop(summary: Summary) -> None:
        if summary.extracted == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    plan = toy_plan(tmp_path)
    summary = extract_manifest(plan, Toy(), toy_read, on_clip=stop)
    assert (summary.stopped_by, summary.extracted) == ("SIGUSR1", 3)
    assert len(FeatureStore(plan.folder)) == 3


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EMFILE])
def test_a_file_system_that_does_not_answer_is_not_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")

    def refuse(path: Path, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DecodeError) as caught:
        find_media("a.wav", tmp_path)
    assert caught.value.code == "io_error"

    def read(clip: Clip, names: object) -> dict[str, object]:
        raise caught.value

    trouble = decode_clip(read, Clip(clip_id="a"), ("x",)).media["x"]  # type: ignore[arg-type]
    assert isinstance(trouble, Trouble)
    assert trouble.may_pass
    assert trouble.wait_s > 0


def test_a_failure_that_another_run_noted_after_the_planning_stays_in_the_ledger(
    tmp_path: Path,
) -> None:
    plan = toy_plan(tmp_path)
    plan.folder.mkdir(parents=True)
    append_ledger(plan.folder, [Failure("../c/24", "decode", "empty", "of another run")])
    extract_manifest(plan, Toy(), toy_read)
    assert read_ledger(plan.folder).keys() == {"../c/9", "../c/19", "../c/24"}
