import os
import signal
from pathlib import Path

import pytest

import extract.pipeline as pipeline
from extract.pipeline import extract_manifest
from extract.verify import verify_set
from micu.errors import StoreError
from micu.manifest import Clip, write_manifest
from micu.store import FeatureStore, read_ledger
from tests.toy import Toy, shard_bytes, toy_plan, toy_read


def run(folder: Path, **plan: object) -> pipeline.Summary:
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

    def stop(summary: pipeline.Summary) -> None:
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


def test_unfinished_shards_are_published_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "FLUSH_S", 0.0)
    plan = toy_plan(tmp_path, shard_rows=64)
    seen = []

    def look(summary: pipeline.Summary) -> None:
        shard = plan.folder / "shard-00000.h5"
        seen.append(len(FeatureStore(plan.folder)) if shard.exists() else 0)

    extract_manifest(plan, Toy(), toy_read, on_clip=look)
    assert seen[:4] == [0, 1, 2, 3]


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


def test_retrying_failures_fills_the_gaps(tmp_path: Path) -> None:
    first = run(tmp_path)

    def mended(clip: Clip):  # type: ignore[no-untyped-def]
        return pipeline.Media([clip.text], pipeline_zeros, 0.0, 1)

    import numpy as np

    pipeline_zeros = np.zeros(0)
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
    assert toy_plan(tmp_path, shard_rows=16, overwrite=True).todo == 25


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    summary = run(tmp_path)
    with (tmp_path / "toys.csv").open("a") as file:
        file.write("new,,,,,,words\n")
    with pytest.raises(StoreError, match="manifest_sha256"):
        toy_plan(tmp_path)
    problems = verify_set(Path(summary.folder)).problems
    assert any("has changed since" in problem for problem in problems)


def test_verify_finds_what_is_missing_doubled_or_damaged(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    ledger = folder / "failures.csv"
    text = ledger.read_text()
    ledger.write_text(text + "../c/0,decode,unreadable,x\n")
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
    assert any("cannot be opened" in p for p in verify_set(folder).problems)


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
