import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from micu.base.errors import ConfigError
from micu.store.ledger import (
    Failure,
    append_ledger,
    indexed_shards,
    ledger_name,
    part_labels,
    read_ledger,
)
from micu.store.manifest import read_manifest, write_manifest
from micu.store.sets import FeatureStore, read_set, write_set
from micu_extract.cluster.commands import merge
from micu_extract.pipeline.writer import Summary
from micu_extract.sets.merge import merge_set
from micu_extract.sets.shares import (
    FROM_INPUT,
    Part,
    choose_part,
    parse_part,
    refuse_other_partitions,
)
from micu_extract.sets.verify import verify_set
from tests.toy import Toy, extract_manifest, shard_bytes, toy_clips, toy_plan, toy_read


def run(folder: Path, **plan: object) -> Summary:
    folder.mkdir(exist_ok=True)
    return extract_manifest(toy_plan(folder, **plan), Toy(), toy_read, workers=2)  # type: ignore[arg-type]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".h5"}


# --- which part ------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(0, 1000))
def test_every_shard_belongs_to_exactly_one_part(count: int, shard: int) -> None:
    assert sum(Part(i, count).owns(shard) for i in range(1, count + 1)) == 1


def test_a_part_is_typed_as_i_of_n() -> None:
    part = parse_part("2/4")
    assert (part, part.label, str(part)) == (Part(2, 4), "2of4", "2/4")
    assert [shard for shard in range(9) if part.owns(shard)] == [1, 5]


def test_several_parts_in_one_are_typed_as_a_range() -> None:
    part = parse_part("2-3/4")
    assert (part, part.label, str(part)) == (Part(2, 4, 3), "2-3of4", "2-3/4")
    assert [shard for shard in range(9) if part.owns(shard)] == [1, 2, 5, 6]


@pytest.mark.parametrize(
    "text",
    ["0/4", "5/4", "2", "2/", "/4", "-1/4", "a/b", "2/4/8", "1.5/4", "3-2/4", "2-5/4", "0-2/4"],
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected i/n .*; type --part 2/4"):
        parse_part(text)


def array(first: int, last: int, count: int, number: int) -> dict[str, str]:
    facts = {"ID": number, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in facts.items()}


def test_a_task_of_a_slurm_array_is_a_part_unless_one_is_typed() -> None:
    assert choose_part(None, {}) is None
    assert choose_part(None, array(0, 7, 8, 0)) == Part(1, 8)
    assert choose_part(None, array(1, 8, 8, 8)) == Part(8, 8)
    assert choose_part("2/3", array(1, 8, 8, 8)) == Part(2, 3)
    assert choose_part("1/1", array(1, 8, 8, 8)) is None
    assert choose_part("-", array(1, 8, 8, 8)) == FROM_INPUT


@pytest.mark.parametrize(
    "environment",
    [array(1, 7, 4, 3), array(2, 5, 2, 5), {"SLURM_ARRAY_TASK_ID": "3"}],
)
def test_an_array_with_gaps_asks_for_the_part(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="type --part i/n"):
        choose_part(None, environment)


# --- extracting in parts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "clips"), [(2, [24, 21]), (4, [16, 13, 8, 8]), (7, [8, 8, 8, 8, 8, 5, 0])]
)
def test_parts_and_a_merge_leave_the_bytes_of_one_run(
    tmp_path: Path, count: int, clips: list[int]
) -> None:
    whole = run(tmp_path / "whole", count=45)
    sizes = []
    for number in range(count, 0, -1):
        summary = run(tmp_path / "parts", count=45, part=Part(number, count))
        sizes.append((summary.clips, summary.left))
    folder = Path(summary.folder)
    assert sizes[::-1] == [(size, 0) for size in clips]
    assert not (folder / "failures.csv").exists()
    assert len(part_labels(folder)) == count
    assert verify_set(folder, data=True).problems == ()

    report = merge_set(folder)

    assert (report.problems, report.folded, report.left) == ((), True, 0)
    assert names(folder) == {"set.json", "rows.jsonl", "index.jsonl", "failures.csv"}
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))
    assert indexed_shards(folder) == indexed_shards(Path(whole.folder))
    assert verify_set(folder, data=True).problems == ()
    assert run(tmp_path / "parts", count=45).extracted == 0


def test_parts_in_one_leave_the_bytes_of_one_run_too(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", count=45)
    for text in ("10/10", "1-9/10"):  # of six shards
        folder = Path(run(tmp_path / "parts", count=45, part=parse_part(text)).folder)
    assert part_labels(folder) == ("1-9of10", "10of10")
    assert merge_set(folder).folded
    assert names(folder) == {"set.json", "rows.jsonl", "index.jsonl", "failures.csv"}
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))


def test_parts_that_add_rows_leave_the_bytes_of_one_run(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        run(folder, count=20)
        clips = toy_clips(45)
        write_manifest(folder / "toys.csv", [*clips[20:30], *clips[:20], *clips[30:]])
    assert run(whole).extracted == 23
    for number in (3, 1, 2):
        folder = Path(run(parts, part=Part(number, 3)).folder)
    assert verify_set(folder, data=True).problems == ()
    report = merge_set(folder)
    assert (report.problems, report.folded, report.left) == ((), True, 0)
    mine, theirs = shard_bytes(folder), shard_bytes(whole / "features" / "toys" / "text-toy")
    ledgers = [set(each.pop("failures.csv").splitlines()) for each in (mine, theirs)]
    assert mine == theirs
    assert ledgers[0] == ledgers[1]


def test_a_part_counts_and_writes_its_own_only(tmp_path: Path) -> None:
    run(tmp_path, part=Part(1, 2))
    plan = toy_plan(tmp_path, part=Part(2, 2))
    assert (plan.todo, plan.done, plan.failed) == (8 + 1, 0, 0)
    assert [shard.number for shard in plan.shards] == [1, 3]
    before = (plan.folder / ledger_name("1of2")).read_bytes()
    run(tmp_path, part=Part(2, 2))
    again = toy_plan(tmp_path, part=Part(2, 2))
    assert (again.todo, again.done, again.failed) == (0, 8, 1)
    assert again.ledger_path == plan.folder / "failures-2of2.csv"
    assert (plan.folder / ledger_name("1of2")).read_bytes() == before


def test_every_part_writes_the_same_description(tmp_path: Path) -> None:
    described = set()
    for number in (1, 2, 3):
        folder = Path(run(tmp_path, part=Part(number, 3)).folder)
        described.add((folder / "set.json").read_bytes())
    assert len(described) == 1
    assert read_set(folder)[1].rows == 25


def test_a_run_without_a_part_goes_on_where_parts_were_left(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", part=Part(1, 3))
    rest = run(tmp_path / "parts")
    assert (rest.done_before, rest.failed_before) == (8 + 1, 0)  # shards 0 and 3 of 0 to 3
    assert (rest.extracted, rest.failed) == (14, 2)
    folder = Path(rest.folder)
    assert len(FeatureStore(folder)) == 23
    assert verify_set(folder, data=True).problems == ()
    assert part_labels(folder) == ("1of3",)
    assert merge_set(folder).folded
    assert shard_bytes(folder) == shard_bytes(Path(whole.folder))


def test_a_part_that_retries_takes_the_failures_of_an_earlier_run_along(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)
    before = shard_bytes(folder)
    for number in (1, 2):
        kept = toy_plan(tmp_path, part=Part(number, 2))
        assert (kept.todo, kept.failed) == (0, 1)
        assert run(tmp_path, part=Part(number, 2), retry_failed=True).failed == 1
    assert verify_set(folder).problems == ()
    assert merge_set(folder).folded
    assert shard_bytes(folder) == before


def test_clips_that_a_part_mended_leave_the_ledger_at_the_merge(tmp_path: Path) -> None:
    folder = Path(run(tmp_path).folder)

    def lenient(clip):  # type: ignore[no-untyped-def]
        return toy_read(replace(clip, text=clip.text.replace("bad", "good")))

    for number in (1, 2):
        plan = toy_plan(tmp_path, part=Part(number, 2), retry_failed=True)
        extract_manifest(plan, Toy(), lenient)
    assert len(FeatureStore(folder)) == 25
    before = verify_set(folder, data=True)
    assert (before.stored, before.failed, before.problems) == (25, 0, ())
    report = merge_set(folder)
    assert (report.folded, report.failed, report.stored) == (True, 0, 25)
    assert read_ledger(folder) == {}
    assert verify_set(folder, data=True).problems == ()


def test_a_plan_rewrites_rows_of_its_own_ledger_only(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, part=Part(1, 2)).folder)
    sources = read_manifest(tmp_path / "toys.csv").sources("text", "text")
    stored, failed = sources["../c/0"], sources["../c/19"]
    row = Failure("../c/0", "decode", "empty", "stored all the same", stored)
    append_ledger(folder, [row], "1of2")
    assert toy_plan(tmp_path, part=Part(1, 2)).dropped == {stored}
    assert toy_plan(tmp_path, part=Part(1, 2), retry_failed=True).dropped == {stored, failed}
    assert toy_plan(tmp_path, part=Part(2, 2)).dropped == set()
    everything = toy_plan(tmp_path)
    assert (everything.dropped, everything.failed) == (set(), 1)


# --- what is refused -------------------------------------------------------------------------


def test_a_part_does_not_overwrite(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="overwrite once without --part"):
        toy_plan(tmp_path, part=Part(1, 2), overwrite=True)


def test_a_set_is_not_shared_out_in_two_ways(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, part=Part(1, 2)).folder)
    with pytest.raises(ConfigError, match=r"got some of part 1of2.*merge --incomplete"):
        toy_plan(tmp_path, part=Part(1, 3))
    assert merge_set(folder, incomplete=True).folded
    assert toy_plan(tmp_path, part=Part(1, 3)).todo > 0


def test_retrying_everything_asks_for_a_merge_first(tmp_path: Path) -> None:
    run(tmp_path, part=Part(1, 2))
    with pytest.raises(ConfigError, match="type: micu-extract merge"):
        toy_plan(tmp_path, retry_failed=True)


# --- merging ---------------------------------------------------------------------------------


def test_a_merge_names_the_parts_that_are_missing_and_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path, part=Part(2, 3))
    done = run(tmp_path, part=Part(1, 3))
    folder = Path(done.folder)
    next(folder.glob("shard-00000.h5")).unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    report = merge_set(folder)

    assert not report.folded
    assert len(report.problems) == 2
    assert report.problems[0].startswith("part 1/3 is not finished: 8 rows")
    assert report.problems[1].startswith("part 3/3 has not begun: 8 rows")
    assert "--part 3/3" in report.problems[1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_part_that_was_begun_among_others_counts_as_begun(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, part=Part(1, 4, 3)).folder)
    (folder / "shard-00001.h5").unlink()
    problems = merge_set(folder).problems
    assert [problem.partition(":")[0] for problem in problems] == [
        "part 2/4 is not finished",
        "part 4/4 has not begun",
    ]


def test_the_merge_command_ends_with_3_until_the_parts_are_whole(tmp_path: Path) -> None:
    folder = Path(run(tmp_path, part=Part(1, 2)).folder)
    first = CliRunner().invoke(merge, [str(tmp_path)])
    assert first.exit_code == 3
    assert "part 2/2 has not begun" in first.output
    run(tmp_path, part=Part(2, 2))
    second = CliRunner().invoke(merge, [str(tmp_path), "--json"])
    assert second.exit_code == 0, second.output
    assert json.loads(second.output)[0]["folded"]
    assert part_labels(folder) == ()


def test_parts_of_two_makings_are_not_merged(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = Path(run(tmp_path, part=Part(number, 2)).folder)
    header, record = read_set(folder)
    write_set(folder, replace(header, spec=replace(header.spec, weights_sha256="others")), record)
    report = merge_set(folder)
    assert not report.folded
    assert "weights_sha256: expected 'others', got '000000" in report.problems[0]
    assert part_labels(folder) == ("1of2", "2of2")


@pytest.mark.parametrize("gone", ["failures-1of2.csv", "index-1of2.jsonl", "index-2of2.jsonl"])
def test_a_merge_that_was_killed_is_finished_by_typing_it_again(tmp_path: Path, gone: str) -> None:
    for number in (1, 2):
        folder = Path(run(tmp_path, part=Part(number, 2)).folder)
    copies = {path: path.read_bytes() for path in folder.iterdir() if "of2" in path.name}
    merge_set(folder)
    merged = shard_bytes(folder)
    for path, data in copies.items():
        if path.name != gone:
            path.write_bytes(data)
    assert merge_set(folder).folded
    assert shard_bytes(folder) == merged
    assert part_labels(folder) == ()


def test_a_ledger_that_was_merged_away_under_a_part_begins_anew(tmp_path: Path) -> None:
    append_ledger(tmp_path, [Failure("a", "decode", "empty", "x")], "1of2")
    append_ledger(tmp_path, [Failure("b", "decode", "empty", "x")], "1of2")
    assert set(read_ledger(tmp_path)) == {"a", "b"}


def test_parts_are_listed_by_number(tmp_path: Path) -> None:
    for name in (
        "index-10of12.jsonl",
        "failures-2of12.csv",
        "index-2of12.jsonl",
        "index-3of5.jsonl",
        "index-x.jsonl",
    ):
        (tmp_path / name).touch()
    assert part_labels(tmp_path) == ("3of5", "2of12", "10of12")


def test_parts_of_a_part_go_with_it_and_speak_of_its_shards(tmp_path: Path) -> None:
    failure = Failure("c", "encode", "nan", "")
    for label in ("2of6", "5of6", "1of6", "2of3", "1of3", "2of9"):
        append_ledger(tmp_path, [failure], label)
    part = Part(2, 3)
    refuse_other_partitions(tmp_path, part)
    assert part.labels_in(tmp_path) == ("", "2of6", "5of6", "2of9", "2of3")
    assert Part(5, 6).labels_in(tmp_path) == ("", "2of3", "5of6")
    for other in (Part(1, 4), Part(1, 2), Part(5, 6)):  # 2/9 is neither of 2, of 4 nor of 6
        with pytest.raises(ConfigError, match=f"expected files of {other.count} parts, got some"):
            refuse_other_partitions(tmp_path, other)
    with pytest.raises(ConfigError, match="got some of part 1of6"):
        refuse_other_partitions(tmp_path, Part(1, 3, 2))  # holds shards of several of the six
