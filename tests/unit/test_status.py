import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from micu.base.errors import ConfigError
from micu.store.shard import Shard
from micu_extract.cli import cli
from micu_extract.cluster.commands import status
from micu_extract.sets.shares import Part
from micu_extract.sets.status import SetStatus, read_status
from tests.toy import Toy, extract_manifest, toy_plan, toy_read


def extract(folder: Path, **job: object) -> Path:
    plan = toy_plan(folder, **job)  # type: ignore[arg-type]
    extract_manifest(plan, Toy(), toy_read)
    return plan.folder


def look(folder: Path) -> SetStatus:
    (found,) = read_status([folder])
    return found


def test_a_set_under_way_is_described_from_its_text_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = extract(tmp_path, part=Part(1, 2))

    def refuse(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(Shard, "open", refuse)
    found = look(folder)

    assert (found.rows, found.stored, found.failed, found.left) == (25, 15, 1, 9)
    assert found.codes == {"unreadable": 1}
    # shard 2 lacks a clip, which is in the ledger: it is done
    assert (found.shards_done, found.shards_partial, found.shards_missing) == (2, 0, 2)
    assert found.size_bytes == sum(path.stat().st_size for path in folder.glob("*.h5"))
    assert found.parts == ("1/2",)
    assert found.weights == "random:0"
    assert found.newest[:2] == "20"


def test_a_set_that_is_whole_has_nothing_left(tmp_path: Path) -> None:
    found = look(extract(tmp_path))
    assert (found.stored, found.failed, found.left) == (23, 2, 0)
    assert (found.shards_done, found.shards_partial, found.shards_missing) == (4, 0, 0)
    assert found.parts == ()


def test_damage_is_counted_not_opened(tmp_path: Path) -> None:
    folder = extract(tmp_path)
    (folder / "shard-00000.h5").write_bytes(b"")
    (folder / "shard-00001.h5").unlink()
    found = look(folder)
    assert (found.shards_done, found.shards_partial, found.shards_missing) == (2, 1, 1)
    assert found.shards_unlisted == 1
    assert (found.stored, found.failed, found.left) == (8, 2, 15)


def test_a_manifest_that_moved_does_not_hide_the_counts(tmp_path: Path) -> None:
    folder = extract(tmp_path)
    (tmp_path / "toys.csv").unlink()
    found = look(folder)
    assert (found.stored, found.failed, found.left) == (23, 2, 0)


def test_the_command_prints_lines_or_json(tmp_path: Path) -> None:
    extract(tmp_path)
    done = CliRunner().invoke(status, [str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "25 rows = 23 stored + 2 failed (2 unreadable) + 0 left" in done.output
    assert "shards 4 done, 0 partial, 0 missing" in done.output
    parsed = json.loads(CliRunner().invoke(status, [str(tmp_path), "--json"]).output)
    assert parsed[0]["stored"] == 23


def test_a_folder_without_sets_says_what_to_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(status, [str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "--out" in str(done.exception)


@pytest.mark.parametrize("command", ["status", "merge", "verify"])
def test_a_set_without_its_description_is_named_and_hides_no_other(
    tmp_path: Path, command: str
) -> None:
    folder, other = extract(tmp_path), extract(tmp_path / "other")
    (folder / "set.json").unlink()
    result = CliRunner().invoke(cli, [command, str(tmp_path)])
    assert isinstance(result.exception, SystemExit | None)
    assert result.exit_code == (0 if command == "status" else 3)
    (bad,) = [line for line in result.output.splitlines() if "no set.json" in line]
    assert str(folder) in bad
    assert f"{other}: 25 rows = 23 stored" in result.output
    extract(tmp_path)
    again = CliRunner().invoke(cli, [command, str(tmp_path)])
    assert (again.exit_code, "no set.json" in again.output) == (0, False)


COMMANDS = (
    ["status"],
    ["merge"],
    ["verify"],
    ["verify", "--data"],
    ["verify", "--data", "--repair"],
)


def three_sets(root: Path) -> list[Path]:
    """The middle one is to be spoiled: what is before and after it must have its turn."""
    folders = []
    for name in "abc":
        (root / name).mkdir()
        folders.append(extract(root / name))
    return folders


@pytest.mark.parametrize("name", ["set.json", "failures.csv", "index.jsonl"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_set_that_cannot_be_read_is_named_and_hides_no_other(
    tmp_path: Path, words: list[str], name: str
) -> None:
    first, bad, last = three_sets(tmp_path)
    (bad / name).write_bytes(b"garbage\n")
    for folder in (first, last):
        (folder / "shard-00001.h5").write_bytes(b"")
    before = {path: path.read_bytes() for path in bad.iterdir()}

    result = CliRunner().invoke(cli, [*words, str(tmp_path)])

    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 3
    told = result.stdout + result.stderr
    assert any(name in line and str(bad) in line for line in told.splitlines())
    for folder in (first, last):
        assert f"{folder}: 25 rows = " in result.stdout
        assert (folder / "shard-00001.h5").exists() == ("--repair" not in words)
    if "--repair" in words:
        assert f"not repaired: {bad / name}: " in result.stderr
    assert {path: path.read_bytes() for path in bad.iterdir() if path.name != ".lock"} == {
        path: data for path, data in before.items() if path.name != ".lock"
    }


@pytest.mark.parametrize("words", COMMANDS[:1] + COMMANDS[2:3], ids=" ".join)
def test_a_set_that_may_not_be_read_is_named_and_hides_no_other(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, bad, last = three_sets(tmp_path)
    opened = Path.open

    def refuse(path: Path, *given: object, **named: object) -> object:
        if path == bad / "set.json":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)
    result = CliRunner().invoke(cli, [*words, str(tmp_path)])
    assert result.exit_code == 3
    assert f"{bad}: cannot be read: [Errno 13] Permission denied" in result.output
    for folder in (first, last):
        assert f"{folder}: 25 rows = 23 stored" in result.stdout
    with pytest.raises(PermissionError):
        read_status([first, bad])


def test_json_has_the_sets_that_can_be_read(tmp_path: Path) -> None:
    first, bad, last = three_sets(tmp_path)
    (bad / "set.json").write_bytes(b"[]")
    result = CliRunner().invoke(cli, ["status", "--json", str(tmp_path)])
    assert result.exit_code == 3
    assert [entry["folder"] for entry in json.loads(result.stdout)] == [str(first), str(last)]
    assert result.stderr.startswith(f"bad  {bad / 'set.json'}: not the description of a feature")
