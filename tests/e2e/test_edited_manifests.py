"""What an edit of a manifest costs: what is extracted again, what training and evaluation do."""

import csv
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import micu_extract.sets.compact as compact_module
import tests.runs
from micu.base.errors import StoreError
from micu.cli.evaluate import main as evaluate
from micu.cli.features import find_feature_sets
from micu.library.clips import FeatureSet
from micu.store.ledger import indexed_shards
from micu.store.manifest import TIMES, Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore, read_set
from micu.store.shard import Shard
from micu_extract.cli import cli
from micu_extract.sets.compact import compact_set
from micu_extract.sets.status import read_status
from micu_extract.sets.verify import verify_set
from tests.conftest import PROJECT
from tests.media_files import tone, write_media
from tests.toy import shard_bytes
from tests.training import train

CLIPS = 12
CLASSES = ("drum", "engine", "violin")
SPLITS = ("train", "val", "test", "test")


def make_clips() -> list[Clip]:
    """Clips of four files, whose windows and sentences are each one's own; the last has no file."""
    return [
        Clip(
            clip_id=f"clip {i}",
            path="missing.wav" if i == CLIPS - 1 else f"{i % 4}.wav",
            start_s=i // 4 * 0.5,
            end_s=1.0 + i // 4 * 0.5,
            label=CLASSES[i % 3],
            split=SPLITS[i // 3],
            text=f"a {CLASSES[i % 3]} sounds {i}",
        )
        for i in range(CLIPS)
    ]


def extract(folder: Path, manifest: Path) -> dict[str, int]:
    """Clips that were extracted, by modality."""
    words = ["--weights", "random", "--device", "cpu", "--json", "--out", str(folder / "features")]
    found = {}
    for modality, backbone in (("audio", "toy-sound"), ("text", "toy")):
        more = ["--workers", "1", "--media-root", str(folder)] if modality == "audio" else []
        typed = [modality, str(manifest), "--backbone", backbone, "--shard-rows", "4"]
        done = CliRunner().invoke(cli, [*typed, *words, *more])
        assert done.exit_code in (0, 3), done.output
        found[modality] = json.loads(done.stdout.splitlines()[-1])["extracted"]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with media, a manifest, features of it and a model that was trained on them."""
    folder = tmp_path_factory.mktemp("finished")
    for i in range(4):
        sound = tone(3, 8000, 220 + 50 * i)
        write_media(folder / f"{i}.wav", sound=sound, sound_codec="pcm_s16le")
    shutil.copy(folder / "0.wav", folder / "other.wav")
    write_manifest(folder / "m.csv", make_clips())
    assert extract(folder, folder / "m.csv") == {"audio": CLIPS - 1, "text": CLIPS}
    options = ("--set", "optimizer.max_steps=1", "--manifest", str(folder / "m.csv"))
    done = train(folder / "features", folder / "run", *options, modalities="a,t")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return move(finished, tmp_path / "x")


def move(finished: Path, folder: Path) -> Path:
    """A copy, as if it had been made there."""
    shutil.copytree(finished, folder)
    for path in (*folder.rglob("set.json"), *folder.rglob("failures.csv")):
        path.write_text(path.read_text().replace(str(finished), str(folder)))
    return folder


Edit = Callable[[Path], None]


def change(number: int, **values: Any) -> Callable[[list[Clip]], list[Clip]]:
    return lambda clips: [
        replace(clip, **values) if i == number else clip for i, clip in enumerate(clips)
    ]


def rewrite(edit: Callable[[list[Clip]], list[Clip]]) -> Callable[[Path], None]:
    return lambda path: write_manifest(path, edit(list(read_manifest(path).clips)))


def with_bytes(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(edit(path.read_bytes()))  # type: ignore[func-returns-value]


def add_column(path: Path) -> None:
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},mood", *(f"{line},calm" for line in lines), ""]))


Rows = list[dict[str, str]]


def table(edit: Callable[[Rows, list[str]], None], quotes: Any = csv.QUOTE_MINIMAL) -> Edit:
    """An edit of the rows and the names of the columns, as text."""

    def do(path: Path) -> None:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        names = list(rows[0])
        edit(rows, names)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, quoting=quotes, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    return do


def spell(column: str, form: str) -> Callable[[Rows, list[str]], None]:
    """Another way to write every value of a column."""
    return lambda rows, _: [row.update({column: form.format(row[column])}) for row in rows]  # type: ignore[func-returns-value]


def swap(column: str) -> Callable[[Rows, list[str]], None]:
    """The values of two rows, each in the place of the other."""

    def do(rows: Rows, _: list[str]) -> None:
        rows[4][column], rows[5][column] = rows[5][column], rows[4][column]

    return do


def spell_zeros(form: str) -> Callable[[Rows, list[str]], None]:
    """Another way to write a start of 0."""
    return lambda rows, _: [row.update(start_s=form) for row in rows if row["start_s"] == "0.0"]  # type: ignore[func-returns-value]


def link(path: Path) -> None:
    (path.parent / "link.wav").symlink_to("3.wav")
    rewrite(change(3, path="link.wav"))(path)


NEW = Clip(clip_id="new", path="1.wav", start_s=1.5, end_s=2.5, label="drum", text="quite new")
EDITS: dict[str, tuple[Callable[[Path], None], int, int, int]] = {
    # edit, audio and text clips that are extracted again, clips to train on until then
    "nothing": (lambda path: None, 0, 0, 11),
    "label": (rewrite(change(3, label="violin")), 0, 0, 11),
    "split": (rewrite(change(3, split="test")), 0, 0, 11),
    "group": (rewrite(change(3, group="clip 4")), 0, 0, 11),
    "added row": (rewrite(lambda clips: [NEW, *clips]), 1, 1, 11),
    "removed row": (rewrite(lambda clips: clips[1:]), 0, 0, 10),
    "order of the columns": (table(lambda rows, names: names.reverse()), 0, 0, 11),
    "quotes": (table(lambda rows, names: None, csv.QUOTE_ALL), 0, 0, 11),
    "semicolons": (with_bytes(lambda data: data.replace(b",", b";")), 0, 0, 11),
    "tabs": (with_bytes(lambda data: data.replace(b",", b"\t")), 0, 0, 11),
    "CR": (with_bytes(lambda data: data.replace(b"\n", b"\r")), 0, 0, 11),
    "empty lines": (with_bytes(lambda data: data + b"\n\n"), 0, 0, 11),
    "no last line end": (with_bytes(lambda data: data.rstrip()), 0, 0, 11),
    "swapped ids": (table(swap("clip_id")), 0, 0, 11),
    "swapped paths": (table(swap("path")), 0, 0, 11),
    "twin": (table(lambda rows, _: rows.append({**rows[3], "clip_id": "twin"})), 1, 1, 11),
    "dot before paths": (table(spell("path", "./{}")), 0, 0, 11),
    "two slashes": (table(spell("path", ".//{}")), 0, 0, 11),
    "digits of times": (table(spell("start_s", "{}00")), 0, 0, 11),
    "the last bits of times": (table(spell("end_s", "{}0000000004")), 0, 0, 11),
    "blanks around": (table(spell("start_s", " {} ")), 0, 0, 11),
    "order": (rewrite(lambda clips: clips[::-1]), 0, 0, 11),
    "clip id": (rewrite(change(3, clip_id="renamed")), 0, 0, 11),
    "CRLF": (with_bytes(lambda data: data.replace(b"\n", b"\r\n")), 0, 0, 11),
    "BOM": (with_bytes(lambda data: b"\xef\xbb\xbf" + data), 0, 0, 11),
    "new column": (add_column, 0, 0, 11),
    "empty starts": (table(spell_zeros("")), 0, 0, 11),
    "repeated row": (table(lambda rows, _: rows.append(rows[3])), 0, 0, 11),
    "capital letters": (with_bytes(lambda data: data.replace(b"clip_id", b"Clip_ID")), 0, 0, 11),
    "link to the same file": (link, 1, 0, 10),
    "end behind the media": (rewrite(change(3, end_s=100.0)), 1, 0, 10),
    "start behind the media": (rewrite(change(3, start_s=99.0, end_s=100.0)), 0, 0, 10),
    "accent in two characters": (rewrite(change(3, text="a cafe\u0301")), 0, 1, 10),
    "line end in a sentence": (rewrite(change(3, text="a drum\nsounds 3")), 0, 1, 10),
    "start": (rewrite(change(3, start_s=0.25)), 1, 0, 10),
    "end": (rewrite(change(3, end_s=1.25)), 1, 0, 10),
    "path": (rewrite(change(3, path="other.wav")), 1, 0, 10),
    "path of a missing file": (rewrite(change(11, path="other.wav")), 1, 0, 11),
    "sentence": (rewrite(change(3, text="something else")), 0, 1, 10),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_costs_what_it_changes_and_never_shows_old_values(folder: Path, name: str) -> None:
    edit, audio, text, ready = EDITS[name]
    manifest = folder / "m.csv"
    before = {path: path.read_bytes() for path in folder.rglob("shard-*.h5")}
    edit(manifest)

    options = ("--set", "optimizer.max_steps=1", "--manifest", str(manifest), "--json")
    trained = train(folder / "features", folder / "again", *options, modalities="a,t")
    assert trained.exit_code == 0, trained.output
    sets = find_feature_sets(folder / "features", ["audio", "text"], manifest, {})
    there = [set(store.clip_ids) for store in sets.stores.values()]
    assert len(there[0] & there[1]) == ready
    assert extract(folder, manifest) == {"audio": audio, "text": text}

    assert {path: path.read_bytes() for path in before} == before or (audio, text) != (0, 0)
    known = read_manifest(manifest)
    fresh = folder / "fresh"
    fresh.mkdir()
    for path in (*folder.glob("*.wav"), manifest):
        shutil.copy(path, fresh)
    extract(fresh, fresh / "m.csv")
    for kind in ("audio-toy-sound", "text-toy"):
        assert verify_set(folder / "features" / "m" / kind, data=True).problems == ()
        mine, new = (
            FeatureStore(root / "features" / "m" / kind, known) for root in (folder, fresh)
        )
        assert set(mine.clip_ids) == set(new.clip_ids)
        for clip_id in new.clip_ids:
            one, other = mine.read(clip_id), new.read(clip_id)
            np.testing.assert_array_equal(one.values[one.mask], other.values[other.mask])


@pytest.mark.parametrize("name", ["label", "split", "removed row", "added row", "order"])
def test_evaluation_goes_on_with_the_manifest_as_it_is_now(folder: Path, name: str) -> None:
    manifest = folder / "m.csv"
    EDITS[name][0](manifest)
    words = ["retrieval", folder / "run" / "last.pt", "--features", folder / "features"]
    words += ["--manifest", manifest, "--pairs", "a:t", "--out", folder / "r.csv"]
    done = CliRunner().invoke(evaluate, [*map(str, words), "--device", "cpu"])
    assert done.exit_code == 0, done.output


def test_a_changed_row_is_not_there_until_it_is_made_again(folder: Path) -> None:
    manifest = folder / "m.csv"
    sets = find_feature_sets(folder / "features", ["audio"], manifest, {})
    old = sets.stores["audio"].read("clip 3")
    EDITS["start"][0](manifest)
    sets = find_feature_sets(folder / "features", ["audio"], manifest, {})
    assert "clip 3" not in sets.stores["audio"]
    extract(folder, manifest)
    sets = find_feature_sets(folder / "features", ["audio"], manifest, {})
    assert not np.array_equal(sets.stores["audio"].read("clip 3").values, old.values)
    rewrite(change(3, start_s=0.0))(manifest)  # and back: what was there is there still
    again = FeatureSet(folder / "features" / "m" / "audio-toy-sound")["clip 3"]
    np.testing.assert_array_equal(again.values[:1], old.values[:1])
    sets = find_feature_sets(folder / "features", ["audio"], manifest, {})
    np.testing.assert_array_equal(sets.stores["audio"].read("clip 3").values[:1], old.values[:1])


def test_the_reader_of_the_page_on_the_format_reads_what_the_store_reads(folder: Path) -> None:
    page = (PROJECT / "docs" / "format.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = [block for block in blocks if "h5py" in block]
    lines = code[code.index("def read_features") :].strip().splitlines()
    assert len(lines) <= 20
    names: dict[str, Any] = {}
    exec(compile(code, "docs/format.md", "exec"), names)
    manifest = folder / "m.csv"
    EDITS["start"][0](manifest)
    EDITS["label"][0](manifest)
    rewrite(change(0, label="one, \u2028two\nlines"))(manifest)
    store = find_feature_sets(folder / "features", ["audio"], manifest, {}).stores["audio"]
    found = names["read_features"](store.folder, manifest)
    assert found.keys() == set(store.clip_ids)
    for clip_id, values in found.items():
        row = store.read(clip_id)
        np.testing.assert_array_equal(values, row.values[row.mask])
    rewrite(lambda clips: [replace(clips[0], label="drum")])(manifest)
    table(lambda rows, names: [(names.remove(n), rows[0].pop(n)) for n in TIMES])(manifest)
    extract(folder, manifest)
    assert names["read_features"](store.folder, manifest).keys() == {"clip 0"}


# --- compact, and other manifests ------------------------------------------------------------


def compact(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(cli, ["compact", str(folder / "features" / "m"), *words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", EDITS)
def test_compact_leaves_what_an_uninterrupted_run_leaves(folder: Path, name: str) -> None:
    EDITS[name][0](folder / "m.csv")
    extract(folder, folder / "m.csv")
    compact(folder)
    fresh = folder.parent / "fresh"
    fresh.mkdir()
    for path in (*folder.glob("*.wav"), folder / "m.csv"):
        shutil.copy2(path, fresh)
    extract(fresh, fresh / "m.csv")
    ledger = fresh / "features" / "m" / "audio-toy-sound" / "failures.csv"
    ledger.write_text(ledger.read_text().replace(str(fresh), str(folder)))
    for kind in ("audio-toy-sound", "text-toy"):
        mine, new = (root / "features" / "m" / kind for root in (folder, fresh))
        assert shard_bytes(mine) == shard_bytes(new)
        assert (mine / "rows.jsonl").read_bytes() == (new / "rows.jsonl").read_bytes()
        assert indexed_shards(mine) == indexed_shards(new)
        (status,) = read_status([mine])
        assert (status.unasked, status.left) == (0, 0)
        assert verify_set(mine, data=True).problems == ()
    assert extract(folder, folder / "m.csv") == {"audio": 0, "text": 0}


def test_status_names_what_no_manifest_asks_for(folder: Path) -> None:
    EDITS["removed row"][0](folder / "m.csv")
    (status, *_) = read_status([folder / "features" / "m" / "audio-toy-sound"])
    assert (status.rows, status.stored, status.failed, status.unasked) == (11, 10, 1, 1)
    done = CliRunner().invoke(cli, ["status", str(folder / "features")])
    assert "1 rows in the shards that no manifest asks for any more" in done.output
    assert "micu-extract compact" in done.output
    assert "1 removed" in compact(folder)


@pytest.mark.parametrize("data", [b"", b"clip_id,path\n", b"clip_id,path\na,b,c\n", b"\0", None])
def test_status_says_that_a_manifest_cannot_be_read(folder: Path, data: bytes | None) -> None:
    EDITS["start"][0](folder / "m.csv")
    extract(folder, folder / "m.csv")
    (folder / "m.csv").unlink() if data is None else (folder / "m.csv").write_bytes(data)
    (status, *_) = read_status([folder / "features" / "m" / "audio-toy-sound"])
    assert (status.rows, status.unasked) == (12, 0)
    done = CliRunner().invoke(cli, ["status", str(folder / "features")])
    assert f"rows are those of the last run: {folder / 'm.csv'}: " in done.output
    assert "compact" not in done.output


def test_rows_behind_a_limit_are_asked_for(folder: Path) -> None:
    shutil.rmtree(folder / "features")
    assert extract_sounds(folder, "--limit", "5").exit_code == 0
    EDITS["order"][0](folder / "m.csv")
    (status,) = read_status([folder / "features" / "m" / "audio-toy-sound"])
    assert (status.rows, status.stored, status.left, status.unasked) == (5, 0, 5, 0)


@pytest.mark.parametrize("moment", range(12))
def test_a_compaction_that_is_killed_is_done_by_the_next(
    folder: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = folder / "m.csv"
    EDITS["removed row"][0](manifest)
    EDITS["order"][0](manifest)
    kind = folder / "features" / "m" / "audio-toy-sound"
    wanted = find_feature_sets(folder / "features", ["audio"], manifest, {}).stores["audio"]
    values = {clip_id: wanted.read(clip_id).values for clip_id in wanted.clip_ids}
    left = [moment]

    def die_at(*names: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for place, name in ((Path, "rename"), (Path, "unlink"), (compact_module, "write_index")):
            real = getattr(place, name)
            patch.setattr(place, name, lambda *a, _r=real, **k: (die_at(), _r(*a, **k))[1])
        with suppress(KeyboardInterrupt):
            compact_set(kind)
    now = find_feature_sets(folder / "features", ["audio"], manifest, {}).stores["audio"]
    assert set(now.clip_ids) == set(values)
    for clip_id, expected in values.items():
        found = now.read(clip_id)
        np.testing.assert_array_equal(found.values[found.mask], expected[: found.mask.sum()])
    assert extract(folder, manifest)["audio"] == 0
    compact_set(kind)
    assert verify_set(kind, data=True).problems == ()
    assert verify_set(kind).unasked == 0


def other_manifest(folder: Path) -> Path:
    """Half of the clips under other ids, and one more."""
    clips = [replace(clip, clip_id=f"o{i}") for i, clip in enumerate(make_clips()[::2])]
    write_manifest(folder / "other.csv", [NEW, *clips])
    return folder / "other.csv"


def test_a_clip_that_another_manifest_has_is_read_from_there(folder: Path) -> None:
    other = other_manifest(folder)
    assert extract(folder, other) == {"audio": 1, "text": 1}
    sets = find_feature_sets(folder / "features", ["audio", "text"], other, {})
    assert len(sets.stores["audio"]) == len(sets.stores["text"]) == 7
    mine = find_feature_sets(folder / "features", ["audio"], folder / "m.csv", {}).stores["audio"]
    found = sets.stores["audio"].read("o3")
    assert found.clip_id == "o3"
    np.testing.assert_array_equal(found.values, mine.read("clip 6").values)
    again = pickle.loads(pickle.dumps(sets.stores["audio"]))
    np.testing.assert_array_equal(again.read("o3").values, found.values)
    assert set(FeatureSet(folder / "features" / "other" / "audio-toy-sound")) == {
        "new",
        *(f"o{i}" for i in range(6)),
    }
    done = CliRunner().invoke(cli, ["status", str(folder / "features" / "other")])
    assert "read from sets of other manifests: 6 of m" in done.output
    report = verify_set(folder / "features" / "other" / "audio-toy-sound", data=True)
    assert (report.problems, report.stored, report.shared, report.rows) == ((), 1, 6, 7)
    # what the other reads from here stays, though this manifest drops it
    rewrite(lambda clips: clips[3:])(folder / "m.csv")
    assert "1 removed" in compact(folder)
    assert len(find_feature_sets(folder / "features", ["audio"], other, {}).stores["audio"]) == 7
    CliRunner().invoke(cli, ["compact", str(folder / "features" / "other"), "--copy"])
    shutil.rmtree(folder / "features" / "m")
    assert len(find_feature_sets(folder / "features", ["audio"], other, {}).stores["audio"]) == 7


@pytest.mark.parametrize("name", ["set.json", "index.jsonl", "shard-00000.h5"])
def test_a_set_beside_that_is_damaged_costs_no_other(folder: Path, name: str) -> None:
    other = other_manifest(folder)
    extract(folder, other)
    for kind in ("audio-toy-sound", "text-toy"):
        (folder / "features" / "m" / kind / name).write_bytes(b"garbage\n")
    store = find_feature_sets(folder / "features", ["audio"], other, {}).stores["audio"]
    assert "new" in store
    assert verify_set(folder / "features" / "other" / "audio-toy-sound").stored == 1
    again = extract(folder, other)
    assert again == {"audio": 6, "text": 6} or name == "shard-00000.h5"


def test_files_of_another_media_root_are_other_files(folder: Path) -> None:
    other = other_manifest(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for path in folder.glob("*.wav"):
        shutil.copy(path, elsewhere)
    words = ["audio", str(other), "--media-root", str(elsewhere), "--out", str(folder / "features")]
    words += ["--backbone", "toy-sound", "--weights", "random", "--workers", "1", "--json"]
    done = CliRunner().invoke(cli, [*words, "--device", "cpu"])
    assert json.loads(done.stdout.splitlines()[-1])["extracted"] == 7


def test_a_manifest_of_another_name_costs_nothing(folder: Path) -> None:
    shutil.copy(folder / "m.csv", folder / "renamed.csv")
    assert extract(folder, folder / "renamed.csv") == {"audio": 0, "text": 0}
    options = ("--set", "optimizer.max_steps=1", "--manifest", str(folder / "renamed.csv"))
    done = train(folder / "features", folder / "again", *options, modalities="a,t")
    assert done.exit_code == 0, done.output


# --- versions --------------------------------------------------------------------------------


def extract_sounds(folder: Path, *more: str) -> Result:
    words = ["audio", str(folder / "m.csv"), "--backbone", "toy-sound", "--weights", "random"]
    words += ["--out", str(folder / "features"), "--media-root", str(folder), "--workers", "1"]
    return CliRunner().invoke(cli, [*words, "--device", "cpu", *more])


@pytest.mark.parametrize(("shift", "is_good"), [("0", True), ("0.0001", True), ("0.01", False)])
def test_other_versions_go_on_if_a_few_clips_come_out_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shift: str, is_good: bool
) -> None:
    EDITS["added row"][0](folder / "m.csv")
    kind = folder / "features" / "m" / "audio-toy-sound"
    before = shard_bytes(kind)
    monkeypatch.setenv(tests.runs.VERSION, "2")
    monkeypatch.setenv(tests.runs.SHIFT, shift)
    done = extract_sounds(folder)
    if not is_good:
        assert isinstance(done.exception, StoreError)
        told = str(done.exception)
        assert "made with toylib 1, here is toylib 2" in told
        assert "3 stored clips, extracted again, differ by up to 0.0" in told
        assert "expected at most 0.001" in told
        assert shard_bytes(kind) == before
        done = extract_sounds(folder, "--check-clips", "0")
    else:
        assert "3 stored clips, extracted again, differ by at most" in done.output
    assert done.exit_code == 3, done.output
    assert verify_set(kind, data=True).problems == ()
    assert {Shard.open(path).header.spec.versions["toylib"] for path in kind.glob("*.h5")} == {
        *"12"
    }
    assert [dict(known) for known in read_set(kind)[1].versions] == [
        {"toylib": "1"},
        {"toylib": "2"},
    ]
    EDITS["start"][0](folder / "m.csv")  # both are known now
    assert "extracted again" not in extract_sounds(folder).output


@pytest.mark.parametrize(("shift", "is_good"), [("0.0001", True), ("0.01", False)])
def test_rows_of_a_set_beside_are_compared_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shift: str, is_good: bool
) -> None:
    other = other_manifest(folder)
    monkeypatch.setenv(tests.runs.VERSION, "2")
    monkeypatch.setenv(tests.runs.SHIFT, shift)
    words = ["audio", str(other), "--backbone", "toy-sound", "--weights", "random"]
    words += ["--out", str(folder / "features"), "--media-root", str(folder), "--workers", "1"]
    done = CliRunner().invoke(cli, [*words, "--device", "cpu"])
    told = done.output + str(done.exception)
    assert f"{folder / 'features' / 'm' / 'audio-toy-sound'}: made with toylib 1, here" in told
    if not is_good:
        assert "differ by up to 0.0" in told
        assert not (folder / "features" / "other").exists()
        return
    assert done.exit_code == 0
    own = folder / "features" / "other" / "audio-toy-sound"
    assert [dict(known) for known in read_set(own)[1].versions] == [
        {"toylib": "1"},
        {"toylib": "2"},
    ]
    rewrite(lambda clips: [replace(clips[0], start_s=0.25), *clips[1:]])(other)
    again = CliRunner().invoke(cli, [*words, "--device", "cpu"])
    assert again.exit_code == 0
    assert "extracted again" not in again.output  # both are known now


def test_a_shard_that_two_versions_made_lists_both(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(lambda clips: clips[:6])(folder / "m.csv")
    shutil.rmtree(folder / "features")
    assert extract_sounds(folder, "--limit", "3").exit_code == 0
    monkeypatch.setenv(tests.runs.VERSION, "2")
    assert extract_sounds(folder).exit_code == 0
    (path,) = folder.rglob("shard-*.h5")
    with Shard.open(path) as shard:
        assert shard.header.spec.versions == {"toylib": "1, 2"}
        assert len(shard.clip_ids) == 6


def test_versions_that_cannot_be_compared_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EDITS["added row"][0](folder / "m.csv")
    rewrite(change(0, path="other.wav"))(folder / "m.csv")
    for path in folder.glob("[0-9].wav"):
        path.unlink()
    monkeypatch.setenv(tests.runs.VERSION, "2")
    done = extract_sounds(folder)
    assert isinstance(done.exception, StoreError)
    assert "none of 3 stored clips could be extracted again" in str(done.exception)


# --- media that were replaced ----------------------------------------------------------------


def test_a_file_that_was_replaced_is_named_and_its_rows_are_made_again(folder: Path) -> None:
    kind = folder / "features" / "m" / "audio-toy-sound"
    assert verify_set(kind, media=True).problems == ()
    facts = (folder / "1.wav").stat()
    write_media(folder / "1.wav", sound=tone(3, 8000, 999), sound_codec="pcm_s16le")
    os.utime(folder / "1.wav", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    (folder / "2.wav").unlink()  # which says nothing of what was made of it
    assert verify_set(kind, data=True).problems == ()
    problems = verify_set(kind, media=True).problems
    assert [problem.split(":")[0] for problem in problems] == [
        f"clip 'clip {i}'" for i in (1, 5, 9)
    ]
    assert "'1.wav' was replaced after the extraction: expected 48078 bytes of 20" in problems[0]
    words = ["verify", str(folder / "features"), "--media", "--repair"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 3
    assert "type: micu-extract verify" in done.output
    report = verify_set(kind, data=True, media=True)
    assert [problem.split(" is ")[0] for problem in report.problems] == [
        f"clip 'clip {i}'" for i in (1, 5, 9)
    ]
    assert extract(folder, folder / "m.csv") == {"audio": 3, "text": 0}
    assert verify_set(kind, data=True, media=True).problems == ()
    store = FeatureStore(kind)
    assert not np.array_equal(store.read("clip 1").values, store.read("clip 0").values)


@pytest.mark.parametrize("change_by", ["size", "time"])
def test_size_or_time_alone_tells(folder: Path, change_by: str) -> None:
    path = folder / "1.wav"
    facts = path.stat()
    if change_by == "size":
        path.write_bytes(path.read_bytes() + b"x")
    times = (facts.st_atime_ns, facts.st_mtime_ns + (change_by == "time"))
    os.utime(path, ns=times)
    kind = folder / "features" / "m" / "audio-toy-sound"
    assert len(verify_set(kind, media=True).problems) == 3
