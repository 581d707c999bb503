"""One feature set while it is made: what is written, when, and what is noted beside it."""

import errno
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import micu_extract.pipeline.writer as writer
from micu.store.ledger import indexed_shards, read_ledger
from micu.store.manifest import Clip
from micu.store.sets import FeatureStore, publish_shard
from micu_extract.pipeline.writer import Summary
from micu_extract.sets.verify import verify_set
from tests.toy import Toy, extract_manifest, toy_plan, toy_read


def run(folder: Path, **plan: object) -> Summary:
    return extract_manifest(toy_plan(folder, **plan), Toy(), toy_read, workers=2)  # type: ignore[arg-type]


def test_unfinished_shards_are_published_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FLUSH_S", 0.0)
    plan = toy_plan(tmp_path, shard_rows=64)
    seen = []

    def look(summary: Summary) -> None:
        shard = plan.folder / "shard-00000.h5"
        seen.append(len(FeatureStore(plan.folder)) if shard.exists() else 0)

    extract_manifest(plan, Toy(), toy_read, on_clip=look)
    # The last one may still be on its way to the disk.
    assert all(clip - 1 <= stored <= clip for clip, stored in enumerate(seen[:9]))
    assert seen[8] > 0


def test_the_network_goes_on_while_a_shard_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on = threading.Event()
    waited: list[bool] = []

    def publish(*words: object) -> None:
        waited.append(went_on.wait(10))
        publish_shard(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "publish_shard", publish)

    def look(summary: Summary) -> None:
        if summary.extracted == 9:  # the first of the second shard
            went_on.set()

    plan = toy_plan(tmp_path)
    extract_manifest(plan, Toy(), toy_read, on_clip=look)
    assert waited == [True] * 4
    assert verify_set(plan.folder, data=True).problems == ()


@pytest.mark.parametrize("refused", [0, 3])
def test_a_shard_that_the_disk_refuses_ends_the_run_and_what_is_whole_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    def publish(folder: Path, number: int, *words: object) -> None:
        if number == refused:
            raise OSError(errno.ENOSPC, "no space")
        publish_shard(folder, number, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "publish_shard", publish)
    plan = toy_plan(tmp_path)
    with pytest.raises(OSError, match="no space"):
        extract_manifest(plan, Toy(), toy_read)
    monkeypatch.undo()
    there = {path.name for path in plan.folder.glob("shard-*.h5")}
    assert f"shard-{refused:05d}.h5" not in there
    assert refused == 0 or len(there) == 3
    assert run(tmp_path).left == 0
    assert verify_set(plan.folder, data=True).problems == ()


def test_a_clip_that_would_pad_its_whole_shard_beyond_the_cap_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 5  # words of a toy clip, each of 3 float32, a mask and a time
    monkeypatch.setattr(writer, "MAX_SHARD_BYTES", 8 * (longest - 1) * (3 * 4 + 1 + 8))
    plan = toy_plan(tmp_path, count=9)
    extract_manifest(plan, Toy(), toy_read)
    (failure,) = read_ledger(plan.folder).values()
    assert (failure.clip_id, failure.stage, failure.code) == ("../c/4", "encode", "too_large")
    assert "--shard-rows" in failure.message
    assert verify_set(plan.folder, data=True).problems == ()


def test_damage_is_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def read(clip: Clip):  # type: ignore[no-untyped-def]
        return replace(toy_read(clip), notes={"corrupt_frames": int(clip.clip_id == "../c/2")})

    summary = extract_manifest(toy_plan(tmp_path), Toy(), read)
    assert summary.damaged == 1
    assert "clip '../c/2': 1 corrupt frames" in caplog.text


def test_a_damaged_clip_that_fails_afterwards_counts_as_failed_alone(tmp_path: Path) -> None:
    def read(clip: Clip):  # type: ignore[no-untyped-def]
        text = "nan" if clip.clip_id == "../c/2" else clip.text
        notes = {"corrupt_frames": int(clip.clip_id in ("../c/2", "../c/3"))}
        return replace(toy_read(clip), units=[text], notes=notes)

    summary = extract_manifest(toy_plan(tmp_path, count=5), Toy(), read)
    assert (summary.extracted, summary.failed, summary.damaged) == (4, 1, 1)


def test_clips_that_were_stored_with_damage_are_named_in_the_set(tmp_path: Path) -> None:
    def read(clip: Clip):  # type: ignore[no-untyped-def]
        return replace(toy_read(clip), notes={"corrupt_frames": 3 * (clip.clip_id == "../c/2")})

    extract_manifest(toy_plan(tmp_path, limit=5), Toy(), read)
    folder = Path(run(tmp_path).folder)  # writes the shard again, with the clips that it lacked
    assert verify_set(folder).damaged == 1
    noted = indexed_shards(folder)
    assert noted["shard-00000.h5"].damaged == {"../c/2": 3}
    assert not any(noted[name].damaged for name in noted.keys() - {"shard-00000.h5"})
