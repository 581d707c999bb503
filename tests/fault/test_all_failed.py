"""Runs whose clips fail one and all, and clips whose files are looked for again."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import micu_extract.pipeline.writer as writer
from micu.base.errors import ConfigError, DecodeError
from micu.store.ledger import Failure, read_ledger
from micu.store.manifest import Clip, write_manifest
from micu_extract.cli import cli
from micu_extract.pipeline.decode_ahead import (
    ALL_FAILED,
    TOO_MANY_FAILED,
    Summary,
    Target,
    extract_several,
)
from micu_extract.pipeline.failures import JUDGED_FIRST, Limit, describe_shared
from micu_extract.pipeline.plan import plan_extraction
from micu_extract.sets.merge import merge_set
from micu_extract.sets.shares import Part
from micu_extract.sets.status import describe_status, read_status
from micu_extract.sets.verify import verify_set
from tests.media_files import tone, write_media
from tests.toy import (
    ReadOne,
    Toy,
    extract_manifest,
    shard_bytes,
    toy_clips,
    toy_job,
    toy_plan,
    toy_read,
)

Read = Callable[[Clip], object]


def failing(*good: int) -> Read:
    """A reader that fails for every clip but some."""

    def read(clip: Clip) -> object:
        if int(clip.clip_id.rpartition("/")[2]) not in good:
            raise DecodeError("no_audio", f"{clip.path!r}: has no sound in 3.5 s")
        return toy_read(replace(clip, text="word"))

    return read


def run(folder: Path, read: Read = toy_read, count: int = 40, **job: object) -> Summary:
    plan = toy_plan(folder, count, **job)  # type: ignore[arg-type]
    return extract_manifest(plan, Toy(), read, workers=2)  # type: ignore[arg-type]


# --- the first 32 ----------------------------------------------------------------------------


def test_a_run_whose_clips_all_fail_stops_and_files_none_of_them(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    summary = run(tmp_path / "x", failing())
    assert (summary.stopped_by, summary.extracted) == (ALL_FAILED, 0)
    assert summary.failed == JUDGED_FIRST == 32
    assert summary.left == 8
    assert "code no_audio (all of 32)" in summary.shared
    assert "has no sound in N s (all of 32)" in summary.shared
    folder = Path(summary.folder)
    assert read_ledger(folder) == {}
    again = run(tmp_path / "x")
    assert (again.stopped_by, again.left) == ("", 0)
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))


@pytest.mark.parametrize(("count", "stops"), [(31, False), (32, False), (33, True)])
def test_a_run_of_few_clips_ends_and_files_what_failed(
    tmp_path: Path, count: int, stops: bool
) -> None:
    summary = run(tmp_path, failing(), count)
    assert summary.stopped_by == (ALL_FAILED if stops else "")
    assert len(read_ledger(Path(summary.folder))) == (0 if stops else count)
    assert "code no_audio" in summary.shared


@pytest.mark.parametrize("good", [0, 16, 31])
def test_one_clip_that_is_stored_among_the_first_lets_the_run_go_on(
    tmp_path: Path, good: int
) -> None:
    summary = run(tmp_path, failing(good))
    assert (summary.stopped_by, summary.extracted, summary.failed) == ("", 1, 39)
    assert summary.shared == ""
    assert len(read_ledger(Path(summary.folder))) == 39


def test_the_first_good_clip_may_come_too_late(tmp_path: Path) -> None:
    assert run(tmp_path, failing(32)).stopped_by == ALL_FAILED


def test_a_set_that_holds_a_clip_goes_on_through_a_bad_stretch(tmp_path: Path) -> None:
    run(tmp_path, count=60, limit=8)
    summary = run(tmp_path, failing(), 60)
    assert (summary.stopped_by, summary.failed) == ("", 52)


def test_a_part_goes_on_where_another_part_has_stored_a_clip(tmp_path: Path) -> None:
    first = run(tmp_path, count=80, part=Part(1, 2))
    second = run(tmp_path, failing(), 80, part=Part(2, 2))
    assert (second.stopped_by, second.failed) == ("", 40)
    assert verify_set(Path(first.folder)).problems == ()
    alone = run(tmp_path / "alone", failing(), 80, part=Part(2, 2))
    assert alone.stopped_by == ALL_FAILED


def several(folder: Path, good: dict[str, tuple[int, ...]], limit: Limit | None = None) -> list:
    toy_plan(folder, 40)
    targets = {}
    for name in good:
        spec = replace(Toy().spec, backbone=name)
        network = Toy()
        network.spec = spec
        targets[name] = Target(plan_extraction(toy_job(folder), spec), network)

    def read(clip: Clip, names: tuple[str, ...]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name in names:
            try:
                found[name] = failing(*good[name])(clip)
            except DecodeError as error:
                found[name] = error
        return found

    return extract_several(targets, read, max_failures=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_share_of_failures_is_judged_at_the_end_whatever_the_batch(
    tmp_path: Path, batch_size: int
) -> None:
    network = Toy()
    network.batch_size = batch_size
    plan = toy_plan(tmp_path, count=35)
    done = extract_manifest(plan, network, toy_read, max_failures=Limit(share=0.05))
    assert (done.extracted, done.failed, done.left) == (32, 3, 0)
    assert done.stopped_by == TOO_MANY_FAILED
    done = extract_manifest(plan, network, toy_read, max_failures=Limit(share=0.1))
    assert done.stopped_by == ""


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_may_pass_is_tried_again_whichever_set_met_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("micu_extract.media.decoding.IO_WAIT_S", 0.0)
    write_manifest(tmp_path / "toys.csv", [Clip(clip_id="x", text="one two")])
    targets = {}
    for each in "ab":
        network = Toy()
        network.spec = replace(Toy().spec, backbone=each)
        plan = plan_extraction(toy_job(tmp_path), network.spec)
        targets[each] = Target(plan, network)
    tries = []

    def read(clip: Clip, names: tuple[str, ...]) -> dict[str, object]:
        tries.append(names)
        passing = DecodeError("io_error", "no answer")
        return {n: passing if n == name and len(tries) < 3 else toy_read(clip) for n in names}

    found = extract_several(targets, read)  # type: ignore[arg-type]
    assert [summary.extracted for summary in found] == [1, 1]
    assert len(tries) == 3


def test_of_several_sets_one_that_stores_clips_keeps_the_run_going(tmp_path: Path) -> None:
    bad, fine = several(tmp_path, {"bad": (), "fine": (3,)})
    assert (bad.stopped_by, bad.failed, fine.extracted) == ("", 40, 1)
    assert len(read_ledger(Path(bad.folder))) == 40
    assert "code no_audio" in bad.shared
    assert fine.shared == ""
    bad, worse = several(tmp_path / "x", {"bad": (), "worse": ()})
    assert (bad.stopped_by, worse.stopped_by) == (ALL_FAILED, ALL_FAILED)
    assert read_ledger(Path(bad.folder)) == read_ledger(Path(worse.folder)) == {}


@pytest.mark.parametrize(
    ("limit", "stops"), [(Limit(share=1.0), False), (Limit(share=0.99), True), (Limit(99), True)]
)
def test_only_who_asks_to_bear_every_failure_goes_on(
    tmp_path: Path, limit: Limit, stops: bool
) -> None:
    (summary,) = several(tmp_path, {"bad": ()}, limit)
    assert summary.stopped_by == (ALL_FAILED if stops else "")
    assert len(read_ledger(Path(summary.folder))) == (0 if stops else 40)


def test_what_failures_share_is_told_in_bounded_words() -> None:
    clips = [Clip(clip_id=f"c{i}", path=f"videos/a/{i}.mkv") for i in range(3)]
    codes = ["unexpected", "unexpected", "missing"]
    told = describe_shared(
        [
            (clip, Failure(clip.clip_id, "decode", code, f"{clip.path!r}: \x1b[2J 7 {'x' * 999}"))
            for clip, code in zip(clips, codes, strict=True)
        ]
    )
    assert "code unexpected (2 of 3)" in told
    assert "message …: " in told
    assert "[NJ N xxx" in told
    assert "folder 'videos/a'; file names in '.mkv'" in told
    assert "package of a version that does not fit" in told
    assert len(told) < 600
    assert "\x1b" not in told
    assert describe_shared([]) == ""
    others = [Clip(clip_id="a", path="b/c.mp4"), Clip(clip_id="d", path="e/f.mkv")]
    told = describe_shared([(clip, Failure("", "", "odd", "")) for clip in others])
    assert "folder" not in told
    assert "file names" not in told


def test_what_stored_nothing_is_not_called_good(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, failing(), 5).folder)
    (problem,) = verify_set(folder).problems
    assert "nothing is stored: of 5 rows 5 failed (5 no_audio)" in problem
    assert "nothing is stored" in describe_status(read_status([folder])[0])
    for command in ("verify", "merge"):
        told = CliRunner().invoke(cli, [command, str(tmp_path)])
        assert told.exit_code == 3
        assert "bad  " in told.output
        assert "nothing is stored" in told.output
    good = run(tmp_path / "x", failing(4), 5)
    assert verify_set(Path(good.folder)).problems == ()


# --- missing files ---------------------------------------------------------------------------


def lacking(*lost: int, read: Read = toy_read) -> Read:
    """A reader that does not find some files."""

    def look(clip: Clip) -> object:
        if int(clip.clip_id.rpartition("/")[2]) in lost:
            raise DecodeError("missing", "no such file")
        return read(clip)

    return look


def test_a_missing_clip_is_looked_for_again_and_nothing_else_is(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    folder = Path(run(tmp_path / "x", lacking(3, 17, 22)).folder)
    assert toy_plan(tmp_path / "x").todo == 3
    status = describe_status(read_status([folder])[0])
    assert "3 missing: looked for again" in status
    again = run(tmp_path / "x", lacking(22))
    assert (again.extracted, again.failed, again.failed_before) == (2, 0, 5)
    assert set(read_ledger(folder)) == {f"../c/{i}" for i in (9, 19, 22, 29, 39)}
    last = run(tmp_path / "x")
    assert (last.extracted, last.failed, last.failed_before) == (1, 0, 4)
    assert verify_set(folder, data=True).problems == ()
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))
    assert toy_plan(tmp_path / "x").todo == 0


def test_a_clip_that_is_still_missing_costs_no_shard_and_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(run(tmp_path, lacking(3)).folder)
    before = shard_bytes(folder)

    def refuse(*words: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(writer, "_open_on_disk", refuse)
    again = run(tmp_path, lacking(3))
    assert (again.extracted, again.failed, again.failed_before, again.left) == (0, 0, 5, 0)
    assert shard_bytes(folder) == before


def test_a_clip_that_was_missing_and_is_damaged_is_listed_once_in_its_place(
    tmp_path: Path,
) -> None:
    clips = [
        replace(clip, text="bad" if i == 3 else clip.text) for i, clip in enumerate(toy_clips(40))
    ]
    for name in ("whole", "x"):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name / "toys.csv", clips)
    whole = run(tmp_path / "whole")
    folder = Path(run(tmp_path / "x", lacking(3)).folder)
    run(tmp_path / "x")
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))
    assert toy_plan(tmp_path / "x").todo == 0


def test_a_look_that_is_stopped_loses_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    folder = Path(run(tmp_path / "x", lacking(3, 17, 22)).folder)

    def stop(summary: Summary) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    plan = toy_plan(tmp_path / "x")
    stopped = extract_manifest(plan, Toy(), toy_read, on_clip=stop)
    assert (stopped.stopped_by, stopped.extracted, stopped.left) == ("SIGTERM", 1, 2)
    assert verify_set(folder).problems == ()
    run(tmp_path / "x")
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))


def test_a_look_that_is_killed_between_shard_and_ledger_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")
    folder = Path(run(tmp_path / "x", lacking(3)).folder)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_drop_stored", lambda plan, found: None)
        run(tmp_path / "x")
    assert len(read_ledger(folder)) == 5
    assert run(tmp_path / "x").extracted == 0
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))


def test_files_that_are_still_missing_are_no_fresh_failures(tmp_path: Path) -> None:
    run(tmp_path, lacking(3, 4, 5, 6))
    plan = toy_plan(tmp_path)
    targets = {"toy": Target(plan, Toy())}
    limit = Limit(count=0)
    (again,) = extract_several(targets, ReadOne(lacking(3, 4, 5, 6)), max_failures=limit)  # type: ignore[arg-type]
    assert (again.stopped_by, again.failed, again.left) == ("", 0, 0)


def test_a_part_looks_again_for_its_own_clips(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    for number in (1, 2):
        run(tmp_path / "x", lacking(3, 12), part=Part(number, 2))
    folder = toy_plan(tmp_path / "x").folder
    assert toy_plan(tmp_path / "x").todo == 0  # a part may be at work
    assert toy_plan(tmp_path / "x", part=Part(1, 2)).todo == 1
    assert run(tmp_path / "x", part=Part(1, 2)).extracted == 1
    assert merge_set(folder).folded
    assert toy_plan(tmp_path / "x", part=Part(2, 2)).todo == 1
    assert run(tmp_path / "x").extracted == 1
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))


def test_a_part_finds_what_the_run_before_it_lacked(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    folder = Path(run(tmp_path / "x", lacking(3, 12)).folder)
    for number in (1, 2):
        assert run(tmp_path / "x", lacking(12), part=Part(number, 2)).extracted == number % 2
    assert verify_set(folder).problems == ()
    assert merge_set(folder).folded
    run(tmp_path / "x")
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))


# --- the media root --------------------------------------------------------------------------


@pytest.fixture
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Extracts sound of a manifest of some paths, in a folder with one sound."""
    monkeypatch.chdir(tmp_path)
    write_media(Path("one.wav"), sound=tone(1.0, 8000), sound_codec="pcm_s16le")

    def extract(paths: list[str], *words: str) -> Result:
        write_manifest(
            Path("s.csv"), [Clip(clip_id=str(i), path=path) for i, path in enumerate(paths)]
        )
        typed = ("audio", "s.csv", "--backbone", "toy-sound", "--weights", "random", *words)
        return CliRunner().invoke(cli, [*typed, "--device", "cpu", "--workers", "1"])

    import tests.runs  # noqa: F401 - registers the backbone

    return extract


@pytest.mark.parametrize("count", [1, 2, 31, 33, 1000])
def test_a_media_root_is_judged_at_any_number_of_rows(
    sounds: Callable[..., Result], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import micu_extract.run as module

    looks: list[str] = []
    find = module.find_media

    def count_looks(path: str, root: Path) -> Path:
        looks.append(path)
        return find(path, root)

    monkeypatch.setattr(module, "find_media", count_looks)
    refused = sounds([f"{i}.wav" for i in range(count)])
    assert isinstance(refused.exception, ConfigError)
    assert f"got none of {min(count, 32)} that were looked for" in str(refused.exception)
    assert "--media-root" in str(refused.exception)
    assert not Path("features").exists()
    assert len(looks) == min(count, 32)


def test_clips_that_are_missing_by_chance_at_the_start_refuse_no_root(
    sounds: Callable[..., Result],
) -> None:
    done = sounds([f"{i}.wav" for i in range(31)] + ["one.wav"] * 31)
    assert done.exit_code == 3, done.output
    assert "extracted 31, failed 31 (31 missing)" in done.output


def test_who_says_so_goes_on_without_any_file(sounds: Callable[..., Result]) -> None:
    paths = [f"{i}.wav" for i in range(40)]
    done = sounds(paths, "--max-failures", "100%")
    assert done.exit_code == 3, done.output
    assert "extracted 0, failed 40 (40 missing)" in done.output
    assert "nothing is stored: all 40 clips that were tried failed" in done.output
    assert CliRunner().invoke(cli, ["verify", "features"]).exit_code == 3


def test_a_begun_set_is_refused_only_by_a_root_that_holds_nothing_of_it(
    sounds: Callable[..., Result],
) -> None:
    paths = ["one.wav"] * 3 + [f"{i}.wav" for i in range(40)]
    assert sounds(paths, "--limit", "3").exit_code == 0
    Path("empty").mkdir()
    refused = sounds(paths, "--media-root", "empty")
    assert "got none of 32" in str(refused.exception)
    done = sounds(paths)  # the others are missing, and the root is the right one
    assert done.exit_code == 3
    assert "extracted 0, failed 40 (40 missing)" in done.output
    Path("one.wav").unlink()
    again = sounds(paths)  # what was missing is so still
    assert again.exit_code == 3
    assert "40 clips to extract (40 of them were missing), 3 done" in again.output
    assert "extracted 0, failed 0, left 0" in again.output


def test_a_run_that_stops_at_its_first_clips_says_what_they_share(
    sounds: Callable[..., Result],
) -> None:
    Path("bad").mkdir()
    for i in range(40):
        Path(f"bad/{i}.wav").write_bytes(b"no sound at all" * 9)
    done = sounds([f"bad/{i}.wav" for i in range(40)])
    assert done.exit_code == 3, done.output
    assert "code unreadable (all of 32)" in done.output
    assert "folder 'bad'; file names in '.wav'" in done.output
    assert "stopped: the first 32 clips all failed" in done.output
    assert "type the same command" in done.output
    assert "--max-failures 100%" in done.output
    assert "--retry-failed" not in done.output
    (folder,) = Path("features/s").iterdir()
    assert read_ledger(folder) == {}


def test_few_clips_that_all_fail_say_so_in_the_end(sounds: Callable[..., Result]) -> None:
    Path("bad.wav").write_bytes(b"no sound at all" * 9)
    done = sounds(["bad.wav"] * 3)
    assert done.exit_code == 3, done.output
    assert "nothing is stored: all 3 clips that were tried failed" in done.output
    assert "--retry-failed" in done.output
    assert CliRunner().invoke(cli, ["verify", "features"]).exit_code == 3
