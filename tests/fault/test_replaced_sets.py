"""Sets that one run replaces while another is at work, and shards of another making."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import micu_extract.pipeline.writer as writer
from micu.base.errors import ConfigError, StoreError
from micu.base.files import LOCK
from micu_extract.cli import cli
from micu_extract.pipeline.plan import Plan, plan_extraction
from micu_extract.pipeline.writer import Summary
from micu_extract.sets.repair import repair_set
from micu_extract.sets.shares import Part, join_folder
from micu_extract.sets.status import read_status
from micu_extract.sets.verify import verify_set
from tests.toy import Toy, extract_manifest, shard_bytes, toy_job, toy_plan, toy_read

OTHER = replace(Toy().spec, weights_sha256="other")


def run(plan: Plan, **options: object) -> Summary:
    return extract_manifest(plan, Toy(), toy_read, **options)  # type: ignore[arg-type]


def other_plan(folder: Path, **job: object) -> Plan:
    if not (folder / "toys.csv").exists():
        toy_plan(folder)
    return plan_extraction(toy_job(folder, **job), OTHER)  # type: ignore[arg-type]


# --- two runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [False, True], ids=["other weights", "the same"])
def test_overwriting_beside_a_run_at_work_is_refused(tmp_path: Path, same: bool) -> None:
    whole = run(toy_plan(tmp_path / "whole"))
    plan, told = toy_plan(tmp_path / "x"), []

    def overwrite(summary: Summary) -> None:
        if summary.extracted != 9 or told:
            return
        wanted = {"overwrite": True}
        mine = toy_plan(tmp_path / "x", **wanted) if same else other_plan(tmp_path / "x", **wanted)
        with pytest.raises(ConfigError, match=r"another run.*wait for its end.*--out") as caught:
            run(mine)
        told.append(caught)

    summary = run(plan, on_clip=overwrite)
    assert told
    assert summary.left == 0
    assert shard_bytes(plan.folder) == shard_bytes(Path(whole.folder))
    assert not (plan.folder / LOCK).exists()
    assert run(other_plan(tmp_path / "x", overwrite=True)).left == 0  # nobody is there any more
    assert not (plan.folder / LOCK).exists()


def test_runs_of_one_making_are_in_one_folder_together(tmp_path: Path) -> None:
    others = []

    def beside(summary: Summary) -> None:
        if summary.extracted == 9 and not others:
            others.append(run(toy_plan(tmp_path)))

    assert run(toy_plan(tmp_path), on_clip=beside).left == 0
    assert others[0].left == 0


def test_others_may_join_a_run_that_has_replaced_what_was_there(tmp_path: Path) -> None:
    run(toy_plan(tmp_path))
    others = []

    def beside(summary: Summary) -> None:
        if summary.extracted == 9 and not others:
            others.append(run(other_plan(tmp_path, part=Part(1, 2))))

    plan = other_plan(tmp_path, overwrite=True)
    assert plan.replaces
    assert run(plan, on_clip=beside).left == 0
    assert others[0].left == 0
    assert verify_set(plan.folder).problems == ()


def test_a_set_that_was_replaced_since_the_plan_is_not_gone_on_with(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    run(other_plan(tmp_path))
    before = shard_bytes(plan.folder)
    with pytest.raises(StoreError, match=r"(?s)another run has replaced it.*weights.*--out"):
        run(plan)
    assert shard_bytes(plan.folder) == before


def test_a_set_is_not_repaired_while_a_run_is_at_work(tmp_path: Path) -> None:
    plan, told = toy_plan(tmp_path), []

    def repair(summary: Summary) -> None:
        if not told:
            with pytest.raises(ConfigError, match="wait for its end"):
                repair_set(plan.folder)
            told.append(summary)

    run(plan, on_clip=repair)
    assert told
    assert repair_set(plan.folder).deleted == ()
    assert not (plan.folder / LOCK).exists()


def test_parts_are_not_folded_unfinished_while_one_is_at_work(tmp_path: Path) -> None:
    plan, told = toy_plan(tmp_path, part=Part(1, 2)), []

    def fold(summary: Summary) -> None:
        if not told:
            told.append(CliRunner().invoke(cli, ["merge", "--incomplete", str(plan.folder)]))

    run(plan, on_clip=fold)
    assert isinstance(told[0].exception, ConfigError)
    assert "wait for its end" in str(told[0].exception)
    assert CliRunner().invoke(cli, ["merge", "--incomplete", str(plan.folder)]).exit_code == 3
    assert not (plan.folder / "index-1of2.jsonl").exists()


def test_a_lock_that_the_last_one_took_along_is_made_anew(tmp_path: Path) -> None:
    with join_folder(tmp_path, alone=False):
        (tmp_path / LOCK).unlink()
        with join_folder(tmp_path, alone=True):
            assert (tmp_path / LOCK).exists()
        assert not (tmp_path / LOCK).exists()


# --- shards of another making ----------------------------------------------------------------


def mix(folder: Path) -> Path:
    """A set whose second shard, and its index line, are of other weights."""
    mine = run(toy_plan(folder / "mine")).folder
    others = run(other_plan(folder / "others")).folder
    shutil.copy(Path(others) / "shard-00001.h5", mine)
    lines = (Path(others) / "index.jsonl").read_text().splitlines()
    with (Path(mine) / "index.jsonl").open("a") as index:
        index.writelines(line + "\n" for line in lines if "shard-00001" in line)
    return Path(mine)


def test_a_shard_of_another_making_is_not_done_whatever_the_index_says(tmp_path: Path) -> None:
    folder = mix(tmp_path)
    with pytest.raises(StoreError, match=r"(?s)shard-00001.*weights.*move it elsewhere"):
        toy_plan(tmp_path / "mine")
    (status,) = read_status([folder])
    assert (status.stored, status.shards_done, status.shards_unlisted) == (16, 3, 1)
    assert any("weights" in problem for problem in verify_set(folder).problems)
    (folder / "shard-00001.h5").rename(tmp_path / "moved.h5")
    assert run(toy_plan(tmp_path / "mine")).extracted == 7
    assert verify_set(folder, data=True).problems == ()


def test_a_description_of_another_set_makes_nothing_done(tmp_path: Path) -> None:
    folder = Path(run(toy_plan(tmp_path / "mine")).folder)
    others = Path(run(other_plan(tmp_path / "others")).folder)
    shutil.copy(others / "set.json", folder)
    assert read_status([folder])[0].stored == 0
    with pytest.raises(StoreError, match="weights_sha256"):
        other_plan(tmp_path / "mine")
    assert writer.shard_name(0) in {path.name for path in folder.iterdir()}
