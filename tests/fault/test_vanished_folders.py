"""Folders that are deleted, renamed, replaced or made read-only while a run writes into them."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import micu.cli.evaluate
import micu.train.fit
from micu.base import files
from micu.base.errors import StoreError
from micu.base.files import append_durably, check_held, hold_folder, hold_folders, write_atomically
from micu.base.process import StopFlag
from micu.store.ledger import indexed_shards
from micu.store.manifest import Clip
from micu.sweep.conduct import conduct
from micu_extract.backbones.base import FlowInput
from micu_extract.media.readers import read
from micu_extract.media.source import Reading
from micu_extract.pipeline.writer import Summary
from tests.e2e.test_evaluate import evaluate, run  # noqa: F401 - a fixture
from tests.feature_sets import make_clips, write_features
from tests.media_files import HASTY_FLOW, write_media
from tests.toy import Toy, extract_manifest, toy_plan, toy_read
from tests.training import train
from tests.unit.test_sweep import EIGHT, FOUR, Processes, jobs_in


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def rename(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replace(folder: Path) -> None:
    rename(folder)
    folder.mkdir()


def make_anew(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


FATES = [delete, rename, replace, make_anew]
Fate = Callable[[Path], None]


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


# --- the mechanism ---------------------------------------------------------------------------


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("fate", FATES)
def test_what_was_written_into_is_not_made_again(tmp_path: Path, fate: Fate, above: bool) -> None:
    folder = tmp_path / "a" / "b"
    with hold_folders():
        write_atomically(tmp_path / "a" / "first", b"1")
        write_atomically(folder / "first", b"1")
        fate(folder.parent if above else folder)
        for write in (write_atomically, append_durably):
            with pytest.raises(OSError, match="deleted, renamed or replaced"):
                write(folder / "second", b"2")
        with pytest.raises(OSError, match="Put it back"):
            check_held(folder / "first")
        assert left_in(folder) == []
    write_atomically(folder / "second", b"2")  # nothing is held any more
    assert left_in(folder) == ["second"]


def test_a_folder_that_is_put_back_is_the_one_that_was_held(tmp_path: Path) -> None:
    with hold_folders():
        write_atomically(tmp_path / "a" / "first", b"1")
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "b").rename(tmp_path / "a")
        write_atomically(tmp_path / "a" / "second", b"2")
    assert sorted(left_in(tmp_path / "a")) == ["first", "second"]


def test_what_is_not_there_yet_is_held_by_the_nearest_folder_that_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with hold_folders():
        hold_folder(tmp_path / "run" / "results" / "more", make=False)
        assert not (tmp_path / "run" / "results").exists()
        delete(tmp_path / "run")
        with pytest.raises(OSError, match="run: the folder was deleted"):
            write_atomically(tmp_path / "run" / "results" / "more" / "a.csv", b"1")
    assert not (tmp_path / "run").exists()


def test_an_inner_block_ends_nothing_and_no_handle_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    with hold_folders():
        for name in "abc":
            with hold_folders():
                write_atomically(tmp_path / name / "x", b"1")
        delete(tmp_path / "b")
        with pytest.raises(OSError, match="b: the folder was deleted"):
            write_atomically(tmp_path / "b" / "x", b"1")
        write_atomically(tmp_path / "c" / "y", b"1")
    assert len(list(Path("/dev/fd").iterdir())) == before


def wait_for_shards(folder: Path, count: int) -> None:
    """Return once a thread has published and noted so many shards."""
    deadline = time.monotonic() + 60
    while len(indexed_shards(folder)) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(indexed_shards(folder)) == count


# --- extraction ------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_rows", [4, 64])
@pytest.mark.parametrize("fate", FATES)
def test_a_set_that_goes_away_ends_its_run_and_is_not_begun_anew(
    tmp_path: Path, fate: Fate, shard_rows: int
) -> None:
    plan = toy_plan(tmp_path, shard_rows=shard_rows)

    def strike(summary: Summary) -> None:
        if summary.extracted == 6:
            wait_for_shards(plan.folder, 6 // shard_rows)
            fate(plan.folder)

    with pytest.raises(OSError, match="deleted, renamed or replaced"):
        extract_manifest(plan, Toy(), toy_read, on_clip=strike)
    assert left_in(plan.folder) == []
    again = toy_plan(tmp_path, shard_rows=shard_rows)
    assert again.todo == 25
    assert extract_manifest(again, Toy(), toy_read).left == 0


@pytest.mark.parametrize("fate", [delete, rename])
def test_a_set_that_goes_away_with_its_last_clip_is_no_success(tmp_path: Path, fate: Fate) -> None:
    extract_manifest(toy_plan(tmp_path), Toy(), toy_read)
    plan = toy_plan(tmp_path, retry_failed=True)
    calls = []

    def strike(summary: Summary) -> None:
        calls.append(summary)
        if len(calls) == plan.todo:
            fate(plan.folder.parent)

    with pytest.raises(OSError, match="deleted, renamed or replaced"):
        extract_manifest(plan, Toy(), toy_read, on_clip=strike)
    assert not plan.folder.exists()


def test_a_set_that_went_away_before_the_run_began_is_no_new_one(tmp_path: Path) -> None:
    extract_manifest(toy_plan(tmp_path, limit=8), Toy(), toy_read)
    plan = toy_plan(tmp_path)
    rename(plan.folder)
    with pytest.raises(OSError, match="has gone since the run was planned"):
        extract_manifest(plan, Toy(), toy_read)
    assert not plan.folder.exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
def test_a_folder_that_is_made_read_only_ends_the_run_with_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    plan = toy_plan(tmp_path)
    create = files._create_locked

    def refuse(path: Path) -> object:
        raise OSError(number, os.strerror(number), str(path))

    def strike(summary: Summary) -> None:
        if summary.extracted == 9:
            wait_for_shards(plan.folder, 1)
            monkeypatch.setattr(files, "_create_locked", refuse)

    with pytest.raises(OSError, match=os.strerror(number)):
        extract_manifest(plan, Toy(), toy_read, on_clip=strike)
    monkeypatch.setattr(files, "_create_locked", create)
    assert [path.name for path in plan.folder.glob("shard-*")] == ["shard-00000.h5"]
    assert extract_manifest(toy_plan(tmp_path), Toy(), toy_read).left == 0


@pytest.mark.parametrize("fate", FATES)
def test_a_flow_cache_that_goes_away_is_not_begun_anew(tmp_path: Path, fate: Fate) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_media(tmp_path / name, frames=12)
    folder = tmp_path / "cache"
    reading = Reading(media_root=tmp_path, flow=HASTY_FLOW, flow_cache=folder)

    def compute(name: str) -> None:
        read(
            Clip(clip_id=name, path=name),
            FlowInput(clip_len=2, interval=3, resize=32, crop=24),
            reading,
        )

    with hold_folders():
        compute("a.mp4")
        fate(folder)
        with pytest.raises(StoreError, match="deleted, renamed or replaced") as caught:
            compute("b.mp4")
        assert isinstance(caught.value.__cause__, OSError)  # so that the run ends with 74
    assert left_in(folder) == []


# --- training, evaluation, sweeps ------------------------------------------------------------


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips())
    return root


@pytest.mark.parametrize("at", [2, 4])
@pytest.mark.parametrize("fate", FATES)
def test_a_run_s_folder_that_goes_away_ends_the_training(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: Fate, at: int
) -> None:
    out, step = tmp_path / "runs" / "mine", micu.train.fit.train_step

    def strike(state, batch):  # type: ignore[no-untyped-def]
        report = step(state, batch)
        if state.step == at:
            fate(out)
        return report

    monkeypatch.setattr(micu.train.fit, "train_step", strike)
    words = ("--set", "optimizer.max_steps=4", "--save-every", "1")
    result = train(features, out, *words)
    assert result.exit_code == 74, result.output
    assert f"{out}: the folder was deleted, renamed or replaced" in result.stderr
    assert "Traceback" not in result.stderr
    assert left_in(out) == []
    monkeypatch.undo()
    assert train(features, out, *words).exit_code == 0


@pytest.mark.parametrize("fate", [delete, rename])
def test_a_run_s_folder_that_goes_away_while_it_is_saved_is_no_success(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: Fate
) -> None:
    out, mark = tmp_path / "mine", micu.train.fit.mark_last

    def strike(path: Path) -> None:
        mark(path)
        fate(out)

    monkeypatch.setattr(micu.train.fit, "mark_last", strike)
    result = train(features, out, "--set", "optimizer.max_steps=1")
    assert result.exit_code == 74, result.output
    assert not out.exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT])
def test_a_run_s_folder_that_is_made_read_only_ends_the_training(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    out, create = tmp_path / "mine", files._create_locked

    def refuse(path: Path) -> object:
        if "step-000002" in path.name:
            raise OSError(number, os.strerror(number), str(path))
        return create(path)

    monkeypatch.setattr(files, "_create_locked", refuse)
    result = train(features, out, "--set", "optimizer.max_steps=4", "--save-every", "1")
    assert result.exit_code == 74, result.output
    assert os.strerror(number) in result.stderr
    assert "--resume" in result.stderr
    assert sorted(path.name for path in out.glob("*.pt")) == ["last.pt", "step-000001.pt"]


@pytest.mark.parametrize("where", ["results", "details"])
@pytest.mark.parametrize("made", [False, True], ids=["new", "there before"])
def test_a_folder_of_results_that_goes_away_ends_the_evaluation(
    run: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    made: bool,
) -> None:
    mine, real = tmp_path / "mine", micu.cli.evaluate._evaluate
    mine.mkdir()
    folder = mine / "more"
    if made:
        folder.mkdir()

    def strike(*words: object):  # type: ignore[no-untyped-def]
        for rows in real(*words):  # type: ignore[arg-type]
            yield rows
            delete(mine)

    monkeypatch.setattr(micu.cli.evaluate, "_evaluate", strike)
    out = folder / "r.csv" if where == "results" else tmp_path / "r.csv"
    words = () if where == "results" else ("--details", folder)
    words = ("--pairs", "v:a", "--probe-epochs", "1", "--seeds", "2", *words)
    result = evaluate(run, *words, out=out)
    assert result.exit_code == 74, result.output
    assert "deleted, renamed or replaced" in result.stderr
    assert "Traceback" not in result.stderr
    assert not mine.exists()


def test_a_run_of_a_sweep_whose_folder_goes_away_fails_alone(tmp_path: Path) -> None:
    def strike(module: str, name: str) -> int:
        if name == FOUR:
            delete(tmp_path / FOUR)
        return 0

    with hold_folders():
        jobs, launch = jobs_in(tmp_path, evaluate=["last.pt"]), Processes(strike)
        first, second = conduct(jobs, 1, launch, StopFlag(), lambda line: None)
    assert (first.state, second.state) == ("failed", "finished")
    assert "the folder was deleted" in first.why
    assert not (tmp_path / FOUR).exists()
    assert [name for _, name in launch.begun] == [FOUR, EIGHT, EIGHT]


def test_a_sweep_whose_folder_goes_away_ends(tmp_path: Path) -> None:
    def strike(module: str, name: str) -> int:
        delete(tmp_path / "sweep")
        return 74

    with hold_folders():
        hold_folder(tmp_path / "sweep")
        launch = Processes(strike)
        with pytest.raises(OSError, match="sweep: the folder was deleted"):
            conduct(jobs_in(tmp_path / "sweep"), 1, launch, StopFlag(), lambda line: None)
    assert not (tmp_path / "sweep").exists()
    assert launch.begun == [("train", FOUR)]
