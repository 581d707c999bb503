import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from micu.base.errors import DecodeError, ExtraError, StoreError
from micu.store.ledger import read_ledger
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore, publish_shard, read_set, write_set
from micu.store.shard import FeatureRow
from micu_extract.backbones.base import Media
from micu_extract.pipeline.writer import Summary
from micu_extract.sets.verify import verify_set
from tests.toy import Toy, extract_manifest, shard_bytes, toy_plan, toy_read


def run(folder: Path, **plan: object) -> Summary:
    return extract_manifest(toy_plan(folder, **plan), Toy(), toy_read, workers=2)  # type: ignore[arg-type]


def test_every_row_ends_in_a_shard_or_in_the_ledger(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert (summary.extracted, summary.failed, summary.left) == (23, 2, 0)
    folder = Path(summary.folder)
    assert sorted(path.name for path in folder.glob("shard-*")) == [
        f"shard-0000{k}.h5" for k in range(4)
    ]
    assert {row.code for row in read_ledger(folder).values()} == {"unreadable"}
    assert read_ledger(folder)["../c/9"].message == "the text is bad"
    report = verify_set(folder, data=True)
    assert report.problems == ()
    assert (report.stored, report.failed) == (23, 2)


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = shard_bytes(Path(first.folder))
    again = run(tmp_path)
    assert (again.extracted, again.done_before, again.failed_before) == (0, 23, 2)
    assert shard_bytes(Path(first.folder)) == before


@pytest.mark.parametrize("stop_after", [1, 7, 8, 10, 20])
def test_a_run_that_was_stopped_and_typed_again_leaves_the_same_bytes(
    tmp_path: Path, stop_after: int
) -> None:
    whole = run(tmp_path / "whole")
    (tmp_path / "halves").mkdir()
    plan = toy_plan(tmp_path / "halves")

    def stop(summary: Summary) -> None:
        if summary.extracted + summary.failed == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    first = extract_manifest(plan, Toy(), toy_read, workers=2, on_clip=stop)
    assert first.stopped_by == "SIGTERM"
    assert first.extracted + first.failed == stop_after
    assert first.left == 25 - stop_after
    second = run(tmp_path / "halves")
    assert second.left == 0
    assert shard_bytes(Path(second.folder)) == shard_bytes(Path(whole.folder))


def test_limit_then_everything_leaves_the_same_bytes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    part = run(tmp_path / "parts", limit=3)
    assert verify_set(Path(part.folder)).problems == ()
    assert verify_set(Path(part.folder)).rows == 3
    run(tmp_path / "parts", limit=11)
    run(tmp_path / "parts")
    again = run(tmp_path / "parts", limit=2)
    assert again.extracted == 0
    assert verify_set(Path(part.folder)).rows == 25
    assert shard_bytes(Path(part.folder)) == shard_bytes(Path(whole.folder))


def test_values_that_are_not_finite_end_in_the_ledger(tmp_path: Path) -> None:
    tmp_path.joinpath("x").mkdir()
    write_manifest(
        tmp_path / "x" / "toys.csv",
        [
            Clip(clip_id="a", text="fine"),
            Clip(clip_id="b", text="nan x"),
            Clip(clip_id="c", text="y"),
        ],
    )
    summary = run(tmp_path / "x")
    assert summary.codes == {"non_finite": 1}
    assert FeatureStore(Path(summary.folder)).clip_ids == ("a", "c")


def test_an_unexpected_error_in_one_clip_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath("x").mkdir()
    write_manifest(
        tmp_path / "x" / "toys.csv", [Clip(clip_id="a", text="boom"), Clip(clip_id="b", text="y")]
    )
    summary = run(tmp_path / "x")
    failure = read_ledger(Path(summary.folder))["a"]
    assert (failure.stage, failure.code) == ("decode", "unexpected")
    assert "ZeroDivisionError" in failure.message
    assert "Traceback" in caplog.text


def test_a_clip_that_its_backbone_refuses_ends_in_the_ledger(tmp_path: Path) -> None:
    class Picky(Toy):
        def to_steps(self, outputs, media):  # type: ignore[no-untyped-def]
            if media.units[0].startswith("w0"):
                raise DecodeError("no_text", "no word is left")
            return super().to_steps(outputs, media)

    summary = extract_manifest(toy_plan(tmp_path), Picky(), toy_read)
    failure = read_ledger(Path(summary.folder))["../c/0"]
    assert (failure.stage, failure.code) == ("encode", "no_text")
    assert summary.extracted == 22


def test_a_mistake_of_the_whole_run_is_no_failure_of_a_clip(tmp_path: Path) -> None:
    def read(clip: Clip):  # type: ignore[no-untyped-def]
        if clip.clip_id == "../c/10":
            raise ExtraError("decord", "decord")
        return toy_read(clip)

    plan = toy_plan(tmp_path)
    with pytest.raises(ExtraError, match=r"pip install 'micu\[decord\]'"):
        extract_manifest(plan, Toy(), read)
    assert set(read_ledger(plan.folder)) == {"../c/9"}
    assert len(FeatureStore(plan.folder)) == 9  # what was whole, of the second shard too


def test_a_run_that_is_stopped_does_not_wait_for_a_decoder(tmp_path: Path) -> None:
    release = threading.Event()

    def read(clip: Clip):  # type: ignore[no-untyped-def]
        if clip.clip_id == "../c/3":
            os.kill(os.getpid(), signal.SIGTERM)
            release.wait(60)
        return toy_read(clip)

    summary = extract_manifest(toy_plan(tmp_path), Toy(), read)
    assert not release.is_set()
    release.set()
    assert summary.stopped_by == "SIGTERM"
    assert summary.extracted <= 3
    assert run(tmp_path).left == 0


def test_a_ledger_row_that_was_cut_off_is_tried_again(tmp_path: Path) -> None:
    whole = run(tmp_path)
    ledger = Path(whole.folder) / "failures.csv"
    before = shard_bytes(Path(whole.folder))
    ledger.write_bytes(ledger.read_bytes()[:-5])
    again = run(tmp_path)
    assert (again.failed, again.failed_before, again.extracted) == (1, 1, 0)
    assert shard_bytes(Path(whole.folder)) == before


def test_a_shard_whose_index_line_was_lost_to_a_kill_is_noted_again(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    whole = shard_bytes(folder)
    index = folder / "index.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines() if line]
    for line in lines[:2]:  # as before the last publication
        line["clip_ids"], line["sources"] = line["clip_ids"][:-1], line["sources"][:-1]
    lines[1]["size"] -= 1
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(tmp_path)
    assert verify_set(folder, data=True).problems == ()
    assert shard_bytes(folder) == whole


def test_retrying_failures_fills_the_gaps(tmp_path: Path) -> None:
    first = run(tmp_path)

    def mended(clip: Clip):  # type: ignore[no-untyped-def]
        return Media([clip.text], np.zeros(0), 0.0, 1)

    plan = toy_plan(tmp_path, retry_failed=True)
    assert plan.todo == 2
    summary = extract_manifest(plan, Toy(), mended)
    assert summary.extracted == 2
    assert read_ledger(Path(first.folder)) == {}
    store = FeatureStore(Path(first.folder))
    assert store.clip_ids == tuple(f"../c/{i}" for i in range(25))
    assert verify_set(Path(first.folder), data=True).problems == ()


def test_features_of_another_making_are_not_mixed_in(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(StoreError, match=r"(?s)shard_rows: expected 16, got 8.*--overwrite"):
        toy_plan(tmp_path, shard_rows=16)
    replacing = toy_plan(tmp_path, shard_rows=16, overwrite=True)
    assert (replacing.todo, replacing.done) == (25, 0)
    assert toy_plan(tmp_path).todo == 0  # planning removed nothing
    summary = extract_manifest(replacing, Toy(), toy_read)
    assert len(list(Path(summary.folder).glob("shard-*.h5"))) == 2
    assert verify_set(Path(summary.folder), data=True).problems == ()


def test_overwriting_with_equal_settings_goes_on(tmp_path: Path) -> None:
    run(tmp_path, limit=11)
    assert toy_plan(tmp_path, overwrite=True).done == 10


def test_shards_are_small_where_lengths_are_unknown(tmp_path: Path) -> None:
    assert toy_plan(tmp_path, shard_rows=None).header.shard_rows == 64


def test_a_set_keeps_the_rows_per_shard_that_it_was_begun_with(tmp_path: Path) -> None:
    run(tmp_path, limit=11)  # 8 rows per shard
    assert toy_plan(tmp_path, shard_rows=None, usual_rows=100).header.shard_rows == 8
    with pytest.raises(StoreError, match="shard_rows: expected 16, got 8"):
        toy_plan(tmp_path, shard_rows=16)
    assert toy_plan(tmp_path / "new", shard_rows=None, usual_rows=100).header.shard_rows == 100


def test_a_row_that_a_manifest_got_is_lacking_until_it_is_extracted(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    with (tmp_path / "toys.csv").open("a") as file:
        file.write("new,,,,,,words\n")
    assert verify_set(folder).problems == ("clip 'new' is in no shard and not in the ledger",)
    assert run(tmp_path).extracted == 1
    assert verify_set(folder, data=True).problems == ()


def test_verify_finds_what_is_missing_doubled_or_damaged(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    ledger = folder / "failures.csv"
    text = ledger.read_text()
    source = read_manifest(tmp_path / "toys.csv").sources("text", "text")["../c/0"]
    ledger.write_text(text + f"../c/0,decode,unreadable,x,{source}\n")
    assert "clip '../c/0' is in shard-00000.h5 and failures.csv" in verify_set(folder).problems
    ledger.write_text(text.splitlines()[0] + "\n")
    assert any("'../c/9' is in no shard" in p for p in verify_set(folder).problems)
    ledger.write_text(text)
    shard = folder / "shard-00001.h5"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    assert any("sha256 differs" in p for p in verify_set(folder, data=True).problems)
    shard.write_bytes(data[:-8])
    report = verify_set(folder)
    assert any("cannot be read as HDF5" in p for p in report.problems)
    assert report.stored == 23 - 7  # the other shards are judged all the same
    assert not any("'../c/0'" in p for p in report.problems)


def test_verify_counts_strangers_and_finds_shards_of_another_making(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    header, record = read_set(folder)
    stranger = FeatureRow("x", np.ones((1, 3), np.float32), np.ones(1, bool), np.zeros(1))
    publish_shard(folder, 9, header, [stranger])
    report = verify_set(folder)
    assert (report.unasked, report.problems) == (1, ())
    (folder / "shard-00009.h5").unlink()
    write_set(folder, replace(header, shard_rows=99), record)
    assert sum("shard_rows: expected 99, got 8" in p for p in verify_set(folder).problems) == 4


def test_verify_finds_values_that_are_not_finite_and_a_wrong_index(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    header, _ = read_set(folder)
    bad = FeatureRow("../c/24", np.full((5, 3), np.nan, np.float32), np.ones(5, bool), np.zeros(5))
    publish_shard(folder, 3, header, [bad])
    assert any("rows [0] are not finite" in p for p in verify_set(folder, data=True).problems)
    index = folder / "index.jsonl"
    index.write_text(index.read_text().replace("../c/24", "../c/23"))
    assert any("not those that the index lists" in p for p in verify_set(folder).problems)


def test_shards_that_no_index_knows_are_not_called_good(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    (folder / "index.jsonl").unlink()
    shard = folder / "shard-00001.h5"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    (problem,) = verify_set(folder, data=True).problems
    assert "4 shards are in no index" in problem
    assert "shard-00001.h5" in problem
    assert verify_set(folder).problems == ()  # nothing of the bytes was asked


def test_features_that_were_moved_are_verified_against_a_named_manifest(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    (tmp_path / "toys.csv").rename(tmp_path / "moved.csv")
    assert "--manifest" in verify_set(folder).problems[0]
    assert verify_set(folder, tmp_path / "moved.csv").problems == ()


def test_no_more_clips_are_decoded_ahead_than_stated(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path, count=60, shard_rows=64)
    decoded: list[str] = []
    ahead: list[int] = []

    def read(clip: Clip):  # type: ignore[no-untyped-def]
        decoded.append(clip.clip_id)
        return toy_read(clip)

    extract_manifest(
        plan,
        Toy(),
        read,
        workers=2,
        on_clip=lambda s: ahead.append(len(decoded) - s.extracted - s.failed),
    )
    assert max(ahead) <= 2 * 2 + 1
