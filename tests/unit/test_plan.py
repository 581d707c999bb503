from dataclasses import replace
from pathlib import Path

import pytest

from micu.base.errors import ConfigError
from micu.store.manifest import Clip, write_manifest
from micu_extract.pipeline.failures import Limit, parse_share
from micu_extract.pipeline.plan import Plan, plan_extraction
from tests.toy import Toy, extract_manifest, toy_job, toy_plan, toy_read


def test_a_limit_is_a_number_of_clips_or_a_share() -> None:
    assert parse_share("20") == Limit(count=20)
    assert parse_share(" 5% ") == Limit(share=0.05)
    assert parse_share("0") == Limit(count=0)


@pytest.mark.parametrize("text", ["", "%", "-1", "5.5", "101%", "-1%", "nan%", "5 %%", "five", "²"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-failures 5%"):
        parse_share(text)


def test_a_number_is_reached_by_one_more() -> None:
    limit = parse_share("3")
    assert [limit.reached(failed, 3) for failed in (0, 3, 4)] == [False, False, True]


def test_a_share_is_judged_after_a_hundred_clips_or_at_the_end() -> None:
    limit = parse_share("5%")
    assert not limit.reached(99, 99)
    assert limit.reached(99, 99, at_end=True)
    assert not limit.reached(5, 100)
    assert limit.reached(6, 100)
    assert not limit.reached(0, 0, at_end=True)


# --- room ----------------------------------------------------------------------------------------


def test_the_words_of_a_text_take_room_not_its_seconds(tmp_path: Path) -> None:
    """10 words of 3 numbers, a mask and a time for each of 8 rows, whatever `end_s` says."""
    clips = [Clip(clip_id=str(i), text="word " * 40, end_s=10.0 + i) for i in range(8)]
    write_manifest(tmp_path / "toys.csv", clips)
    header = 16 * 1024

    def needs(**preprocessing: int) -> int:
        spec = replace(Toy().spec, hop_s=None, preprocessing=preprocessing)
        return plan_extraction(toy_job(tmp_path), spec).bytes_needed

    assert needs(max_words=10) == 8 * 10 * (3 * 4 + 9) + header
    assert needs() == 8 * (3 * 4 + 9) + header  # one vector for the sentence
    assert needs(max_words=1000) == 8 * 199 * (3 * 4 + 9) + header  # its characters


def test_clips_of_unknown_length_take_the_room_of_those_that_are_there(tmp_path: Path) -> None:
    assert toy_plan(tmp_path).bytes_needed == 0
    first = extract(toy_plan(tmp_path, limit=8))
    size = (first.folder / "shard-00000.h5").stat().st_size
    # of 8 rows one failed, and 17 in 3 shards are left
    assert toy_plan(tmp_path).bytes_needed == pytest.approx(17 * size / 8, abs=3)


def test_what_a_run_replaces_makes_room(tmp_path: Path) -> None:
    clips = [Clip(clip_id=str(i), text="a b", end_s=2.0) for i in range(8)]
    write_manifest(tmp_path / "toys.csv", clips)
    whole = toy_plan(tmp_path).bytes_needed
    folder = extract(toy_plan(tmp_path)).folder
    other = replace(Toy().spec, weights_sha256="other")
    again = plan_extraction(toy_job(tmp_path, overwrite=True), other)
    assert again.bytes_needed == whole - (folder / "shard-00000.h5").stat().st_size


def extract(plan: Plan) -> Plan:
    extract_manifest(plan, Toy(), toy_read)
    return plan
