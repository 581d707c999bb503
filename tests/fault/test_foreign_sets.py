"""Feature sets of others, and damaged ones: an error that says what to type, and never a traceback.

What is in `set.json`, indexes, ledgers and shards is checked by type, range and size before it is
used; a shard that changes while it is read is noticed before a value of it is used.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import micu.base.files
import micu.store.ledger
from micu.base.errors import (
    MAX_MESSAGE,
    ConfigError,
    DecodeError,
    ManifestError,
    MicuError,
    StoreError,
    shorten,
)
from micu.base.files import parse_json
from micu.config.sections import DataConfig, TrainConfig
from micu.data.dataset import FeatureDataset
from micu.store.ledger import (
    Failure,
    ShardEntry,
    append_ledger,
    indexed_shards,
    read_ledger,
    write_index,
    write_ledger,
)
from micu.store.sets import FeatureStore, RunRecord, publish_shard, read_set, write_set
from micu.store.shard import FeatureRow, FeatureSpec, Header, Shard, encode_shard
from micu.store.source import find_source
from micu.sweep.conduct import FINISHED, _read_note
from micu.train.fit import find_resumable
from micu.train.logs import read_metrics
from micu_extract.cli import cli

SPEC = FeatureSpec(
    backbone="toy", modality="video", shape=(3,), hop_s=1.0, weights="w", weights_sha256="ab"
)
HEADER = Header(spec=SPEC, shard_rows=4)
RUN = RunRecord(manifest_path="m.csv", media_root=".", rows=4)
HUGE = 10**30
ENTRY = ShardEntry("0" * 64, 7, ("a", "é"), {"a": 2}, "1" * 64, ("2" * 32, "3" * 32))


def row(clip_id: str, value: float = 1.0, steps: int = 2) -> FeatureRow:
    values = np.full((steps, 3), value, np.float32)
    return FeatureRow(clip_id, values, np.ones(steps, bool), np.arange(steps) + 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two shards."""
    made = tmp_path / "set"
    write_set(made, HEADER, RUN)
    publish_shard(made, 0, HEADER, [row("a", 1.0), row("b", 2.0)])
    publish_shard(made, 1, HEADER, [row("c", 3.0)])
    return made


# --- set.json --------------------------------------------------------------------------------


def signed(header: dict[str, Any]) -> dict[str, Any]:
    """A header with the fingerprint that goes with it, as a hostile writer would make it."""
    from micu.store.shard import _sha256_of

    body = {key: value for key, value in header.items() if key != "fingerprint"}
    return {**body, "fingerprint": _sha256_of(body)}


BAD_RUNS: dict[str, Any] = {
    "rows": [HUGE, -1, 1.5, True, "4", None, 10**8 + 1],
    "manifest_path": [7, None, ["m.csv"], "a\0b"],
    "media_root": [7, None, "a\0b"],
    "command": [7, None, {}],
    "manifest_sha256": [7, None],
    "is_limited": [7, None, "true"],
}
BAD_HEADERS: dict[str, Any] = {
    "shard_rows": [0, -1, HUGE, 10**8 + 1, True, "4", 1.5, None],
    "format": [1, 3, "x" * 10**6, None, [[]]],
}
BAD_SPECS: dict[str, Any] = {
    "backbone": [7, None, "\x1b[2J", "a\nb"],
    "modality": ["smell", 7, None, []],
    "shape": [[0], [-1], [2**28 + 1], [2**20, 2**20], [1.0], "12", None, [[1]], [1] * 9, [True]],
    "hop_s": ["1", 0, -1.0, True, [], float("inf"), float("nan")],
    "weights": [7, None],
    "weights_sha256": [7, "a\x07"],
    "preprocessing": [7, None, []],
    "versions": [7, None, "x"],
}


def described(section: str, name: str, value: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"header": HEADER.to_json(), "run": {**RUN_JSON}}
    if section == "run":
        record["run"][name] = value
    elif section == "header":
        record["header"][name] = value
    else:
        record["header"]["spec"][name] = value
    record["header"] = signed(record["header"])
    return record


RUN_JSON = {"manifest_path": "m.csv", "media_root": ".", "rows": 4, "command": ""}
CASES = [
    (section, name, value)
    for section, table in (("run", BAD_RUNS), ("header", BAD_HEADERS), ("spec", BAD_SPECS))
    for name, values in table.items()
    for value in values
]


@pytest.mark.parametrize(("section", "name", "value"), CASES)
def test_a_description_is_checked_by_type_and_range(
    folder: Path, section: str, name: str, value: Any
) -> None:
    (folder / "set.json").write_text(json.dumps(described(section, name, value)))
    with pytest.raises(StoreError) as caught:
        read_set(folder)
    told = str(caught.value)
    assert str(folder / "set.json") in told
    assert name in told or name == "format"
    assert len(told) < 1000
    assert "again" in told  # what to type


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("run", "rows", 0),
        ("run", "rows", 10**8),
        ("run", "manifest_path", "/no/such/ü.csv"),
        ("header", "shard_rows", 1),
        ("header", "shard_rows", 10**8),
        ("spec", "shape", [1]),
        ("spec", "shape", [2**28]),
        ("spec", "shape", [1] * 8),
        ("spec", "hop_s", None),
        ("spec", "hop_s", 0.25),
        ("spec", "hop_s", 2),
        ("spec", "preprocessing", {"a": {"b": [1, None, "x"]}}),
    ],
)
def test_what_is_in_range_is_read(folder: Path, section: str, name: str, value: Any) -> None:
    (folder / "set.json").write_text(json.dumps(described(section, name, value)))
    header, run = read_set(folder)
    there = {"run": run, "header": header, "spec": header.spec}[section]
    got = getattr(there, name)
    assert (list(got) if isinstance(got, tuple) else got) == value


def test_a_description_that_lacks_an_entry_or_has_one_more_is_refused(folder: Path) -> None:
    for section in ("run", "header", "spec"):
        for change in ("lacks", "more"):
            record: dict[str, Any] = {"header": HEADER.to_json(), "run": {**RUN_JSON}}
            part = record["header"]["spec"] if section == "spec" else record[section]
            if change == "more":
                part["extra" * 10**5] = 1
            else:
                del part[
                    "rows" if section == "run" else "shard_rows" if section == "header" else "shape"
                ]
            record["header"] = signed(record["header"])
            (folder / "set.json").write_text(json.dumps(record))
            with pytest.raises(StoreError, match=r"set\.json") as caught:
                read_set(folder)
            assert len(str(caught.value)) < 1000


TEXTS = {
    "empty": b"",
    "no JSON": b"hello",
    "cut off": b'{"header": {',
    "no UTF-8": b'{"header": "\xff"}',
    "BOM": b"\xef\xbb\xbf{}",
    "deep list": b"[" * 100_000,
    "deep mapping": b'{"a":' * 100_000,
    "nested": b'{"header": ' + b"[" * 40 + b"]" * 40 + b', "run": {}}',
    "long number": b'{"run": ' + b"9" * 10_000 + b"}",
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "infinity": b'{"header": {}, "run": {"rows": Infinity}}',
    "NUL": bytes(1000),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_what_is_no_description_is_refused(folder: Path, text: bytes) -> None:
    (folder / "set.json").write_bytes(text)
    with pytest.raises(StoreError, match=r"set\.json: not the description.*again"):
        read_set(folder)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "huge"])
def test_a_description_that_is_no_small_file_is_not_read(folder: Path, kind: str) -> None:
    put(folder / "set.json", kind)
    with pytest.raises(StoreError, match=r"set\.json: not the description"):
        read_set(folder)


def put(path: Path, kind: str) -> None:
    """Something that must not be read to its end, if it has one."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(20 * 2**30)  # of holes


def test_nesting_is_bounded_exactly() -> None:
    most = micu.base.files.MAX_DEPTH
    assert parse_json(b"[" * most + b"]" * most)
    with pytest.raises(ValueError, match="nested deeper than 32"):
        parse_json(b"[" * (most + 1) + b"]" * (most + 1))
    with pytest.raises(ValueError, match="nested deeper than 32"):
        parse_json(b'{"a":' * (most + 1) + b"1" + b"}" * (most + 1))


def test_the_largest_description_is_read(folder: Path) -> None:
    record = described("run", "rows", 4)
    record["run"]["command"] = "x"
    missing = micu.base.files.MAX_JSON_BYTES - len(json.dumps(record))
    record["run"]["command"] += "y" * missing
    (folder / "set.json").write_text(json.dumps(record))
    assert (folder / "set.json").stat().st_size == micu.base.files.MAX_JSON_BYTES
    assert len(read_set(folder)[1].command) == missing + 1
    record["run"]["command"] += "y"
    (folder / "set.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match="more than"):
        read_set(folder)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "folder", "none"])
def test_a_foreign_manifest_path_is_not_read_for_ever(folder: Path, target: str) -> None:
    path = folder / "manifest"
    if target in ("pipe", "folder"):
        put(path, target)
    record = described("run", "manifest_path", target if target[0] == "/" else str(path))
    (folder / "set.json").write_text(json.dumps(record))
    write_ledger(folder, [Failure("x", "decode", "gone", "m")])
    status = CliRunner().invoke(cli, ["status", str(folder)])
    assert status.exit_code == 0, status.output
    verify = CliRunner().invoke(cli, ["verify", str(folder)])
    assert verify.exit_code == 3
    expected = "got a folder" if target == "folder" else "no such manifest"
    assert expected in verify.output


def test_the_most_rows_there_can_be_take_no_time(folder: Path) -> None:
    record = described("run", "rows", 10**8)
    record["header"]["shard_rows"] = 1
    record["header"] = signed(record["header"])
    (folder / "set.json").write_text(json.dumps(record))
    for name in ("shard-00000.h5", "shard-00001.h5"):
        (folder / name).unlink()
    status = CliRunner().invoke(cli, ["status", "--json", str(folder)])
    assert json.loads(status.output)[0]["rows"] == 10**8


@pytest.mark.parametrize("text", [*TEXTS.values(), b'{"manifest": 7, "media_root": "x"}'])
def test_a_note_of_the_last_extraction_is_checked(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "last.json").write_bytes(text)
    with pytest.raises(ManifestError, match=r"last\.json: .*delete it, and type") as caught:
        find_source(tmp_path, None)
    assert len(str(caught.value)) < 1000


# --- ledgers ---------------------------------------------------------------------------------

HEAD = b"clip_id,stage,code,message,source\n"
LEDGERS = {
    "a huge field": HEAD + b"a,decode,x," + b"y" * 200_000 + b",\n",
    "no UTF-8": HEAD + b"a,decode,x,caf\xe9,\n",
    "BOM": b"\xef\xbb\xbf" + HEAD,
    "semicolons": HEAD.replace(b",", b";") + b"a;decode;x;y;\n",
    "tabs": HEAD.replace(b",", b"\t") + b"a\tdecode\tx\ty\t\n",
    "a column more": HEAD + b"a,decode,x,y,,z\n",
    "a column fewer": HEAD + b"a,decode,x,y\n",
    "another header": b"id,stage,code,message,source\na,decode,x,y,\n",
    "no header": b"a,decode,x,y,\n",
    "UTF-16": HEAD.decode().encode("utf-16"),
    "garbage": bytes(range(256)) * 4 + b"\n",
    "NUL": bytes(100) + b"\n",
}


@pytest.mark.parametrize("text", LEDGERS.values(), ids=LEDGERS.keys())
def test_a_ledger_that_nobody_wrote_is_an_error_with_the_remedy(folder: Path, text: bytes) -> None:
    (folder / "failures.csv").write_bytes(text)
    with pytest.raises(
        StoreError, match=r"failures\.csv: not the ledger that was written: .*; delete it and type"
    ) as caught:
        read_ledger(folder)
    assert len(str(caught.value)) < 1000
    for command in (["status"], ["verify"], ["merge"]):
        result = CliRunner().invoke(cli, [*command, str(folder)])
        assert result.exit_code != 0
        assert result.exception is None or isinstance(result.exception, MicuError | SystemExit)


@pytest.mark.parametrize("name", ["set.json", "failures.csv", "index.jsonl"])
def test_a_set_that_cannot_be_read_does_not_keep_others_from_their_report(
    folder: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(folder, tmp_path / "bad")
    (tmp_path / "bad" / name).write_bytes(b"garbage\n")
    (tmp_path / "m.csv").write_text("clip_id,path\na,a\nb,b\nc,c\n")
    words = ["verify", "--json", str(tmp_path), "--manifest", str(tmp_path / "m.csv")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 3
    bad, _ = json.loads(done.output)
    assert "and type the extraction command again" in bad["problems"][0]
    assert name in bad["problems"][0]


@pytest.mark.parametrize("name", ["failures.csv", "index.jsonl", "index-1of2.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "huge"])
def test_a_record_that_is_no_file_is_not_read(folder: Path, name: str, kind: str) -> None:
    put(folder / name, kind)
    read: Callable[[Path], object] = read_ledger if name[0] == "f" else indexed_shards
    with pytest.raises(StoreError, match=f"{name}: not the"):
        read(folder)


@pytest.mark.parametrize("text", [b"", b"clip_id,st", HEAD, HEAD + b"a,dec", HEAD + b"\xc3"])
def test_a_ledger_that_a_kill_cut_off_is_read_and_goes_on(folder: Path, text: bytes) -> None:
    (folder / "failures.csv").write_bytes(text)
    assert read_ledger(folder) == {}
    append_ledger(folder, [Failure("b", "decode", "x", "m")])
    append_ledger(folder, [Failure("c", "decode", "x", "m")])
    assert read_ledger(folder).keys() == {"b", "c"}
    assert (folder / "failures.csv").read_bytes() == HEAD + b"b,decode,x,m,\nc,decode,x,m,\n"


def test_a_blank_line_in_a_ledger_is_none(folder: Path) -> None:
    (folder / "failures.csv").write_bytes(HEAD + b"\r\na,decode,x,y,\n\n")
    assert read_ledger(folder).keys() == {"a"}


@pytest.mark.parametrize("hostile", ["x" * 10**6, "a\rb", "a\0b", "\x1b[2J", "\udcff", 'a"b,c\nd'])
def test_whatever_a_clip_tells_its_row_is_one_row(folder: Path, hostile: str) -> None:
    failure = Failure("a", "decode", "x", hostile)
    write_ledger(folder, [failure, Failure("b", "decode", "y", "fine")])
    append_ledger(folder, [Failure("c", "decode", "z", f"{hostile}; type less")])
    read = read_ledger(folder)
    assert read["a"] == failure
    assert list(read) == ["a", "b", "c"]
    assert len(read["c"].message) <= MAX_MESSAGE
    assert read["c"].message.endswith("; type less")
    assert not set(read["a"].message) & set("\r\0\x1b\udcff")


def test_messages_are_bounded_where_a_failure_is_made() -> None:
    error = DecodeError("bad_archive", f"a.zip: {'n' * 10**7}; type less")
    assert len(str(error)) == MAX_MESSAGE
    assert str(error).startswith("a.zip: nnn")
    assert str(error).endswith("nnn; type less")
    assert str(DecodeError("x", "y" * MAX_MESSAGE)) == "y" * MAX_MESSAGE


@pytest.mark.parametrize("most", [10, 11, 12, 100])
def test_a_text_is_shortened_once(most: int) -> None:
    text = "".join(map(str, range(1000)))
    short = shorten(text, most)
    assert len(short) == most
    assert shorten(short, most) == short
    assert shorten(text[:most], most) == text[:most]
    begin, end = short.split(" … ")
    assert text.startswith(begin)
    assert text.endswith(end)


# --- indexes ---------------------------------------------------------------------------------


def line(**changes: Any) -> bytes:
    value = {"shard": "shard-00000.h5", "sha256": "0" * 64, "size": 7, "clip_ids": ["a"]}
    value |= {"damaged": {}, "making": "1" * 64, "sources": ["2" * 32]}
    value |= {"media_bytes": [], "media_mtime_ns": [], **changes}
    return json.dumps(value).encode() + b"\n"


INDEXES = {
    "garbage": b"hello\n",
    "NULs": bytes(100) + b"\n",
    "bytes": bytes(range(128, 256)) + b"\n",
    "BOM": b"\xef\xbb\xbf" + line(),
    "UTF-16": line().decode().encode("utf-16"),
    "semicolons": b"shard;sha256;size;clip_ids\n",
    "JSON of something else": b'{"a": 1}\n',
    "a list": b"[]\n",
    "a number": b"7\n",
    "no sha": line(sha256=None),
    "short sha": line(sha256="0" * 63),
    "huge size": line(size=HUGE),
    "size past the bound": line(size=2**50 + 1),
    "negative size": line(size=-1),
    "size is true": line(size=True),
    "size is text": line(size="7"),
    "ids are a text": line(clip_ids="abc"),
    "ids are numbers": line(clip_ids=[1, 2]),
    "damaged is a list": line(damaged=["a"]),
    "damaged is a text": line(damaged={"a": "1"}),
    "damaged is negative": line(damaged={"a": -1}),
    "no damaged": line().replace(b'"damaged": {}, ', b""),
    "no making": line().replace(b'"making": "' + b"1" * 64 + b'", ', b""),
    "an empty making": line(making=""),
    "no sources": line().replace(b', "sources": ["' + b"2" * 32 + b'"]', b""),
    "a source more": line(sources=["2" * 32] * 2),
    "no sizes": line(media_bytes=None),
    "a size more": line(media_bytes=[1, 2]),
    "a size is text": line(media_bytes=["1"]),
    "a size is true": line(media_bytes=[True]),
    "a time past the bound": line(media_mtime_ns=[2**63]),
    "a time before -1": line(media_mtime_ns=[-2]),
    "a short source": line(sources=["2" * 31]),
    "a long source": line(sources=["2" * 33]),
    "another file": line(shard="../../x"),
    "another name": line(shard="shard-1.h5"),
    "deep": b'{"shard": ' + b"[" * 100_000 + b"\n",
    "a flipped byte": line().replace(b'"size"', b'"size\x01'),
    "a flipped brace": line().replace(b"[", b"{"),
    "one in the middle": line() + b"garbage\n" + line(),
    "a cut line that is not ours": b'{"other": "x\n',
}


@pytest.mark.parametrize("text", INDEXES.values(), ids=INDEXES.keys())
def test_an_index_that_nobody_wrote_is_an_error_with_the_remedy(folder: Path, text: bytes) -> None:
    (folder / "index.jsonl").write_bytes(text)
    with pytest.raises(
        StoreError, match=r"index\.jsonl: not the index that was written: .*; delete it and type"
    ) as caught:
        indexed_shards(folder)
    assert len(str(caught.value)) < 1000
    with pytest.raises(StoreError, match="delete it and type"):
        FeatureStore(folder)
    (folder / "index.jsonl").unlink()  # as the message says
    assert len(FeatureStore(folder)) == 3


def test_every_line_that_a_kill_cut_off_is_passed_over(folder: Path) -> None:
    write_index(folder, {"shard-00000.h5": ENTRY, "shard-00001.h5": ENTRY})
    path = folder / "index.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert indexed_shards(folder) == {"shard-00000.h5": ENTRY}
        path.write_bytes(whole[:length] + b"\n" + whole[:first])
        assert indexed_shards(folder) == {"shard-00000.h5": ENTRY}
    path.write_bytes(whole)
    assert len(indexed_shards(folder)) == 2


def test_the_bounds_of_an_index_are_read(folder: Path) -> None:
    text = line(size=2**50, damaged={"a": 0}) + line(
        shard="shard-100000.h5", size=0, clip_ids=[], sources=[]
    )
    (folder / "index.jsonl").write_bytes(text + b"\r\n")
    found = indexed_shards(folder)
    assert [entry.size for entry in found.values()] == [2**50, 0]
    (folder / "index.jsonl").write_bytes(line(media_bytes=[0], media_mtime_ns=[2**63 - 1]))
    assert indexed_shards(folder)["shard-00000.h5"].files == {"2" * 32: (0, 2**63 - 1)}
    (folder / "index.jsonl").write_bytes(line(media_bytes=[-1], media_mtime_ns=[-1]))
    assert indexed_shards(folder)["shard-00000.h5"].files == {}


# --- files of a run ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*TEXTS.values(), b'{"step": "1"}', b'{"total": 1}', b"[1]"])
def test_metrics_that_nobody_wrote_end_where_they_begin(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + text + b'\n{"step": 3}\n')
    assert [row["step"] for row in read_metrics(path)] == [1]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_note_of_a_finished_run_that_nobody_wrote_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FINISHED).write_bytes(text)
    assert not set(_read_note(tmp_path)) - {"header", "run"}
    (tmp_path / FINISHED).unlink()
    assert _read_note(tmp_path) == {}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_configuration_that_nobody_wrote_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    (tmp_path / "last.pt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        find_resumable(tmp_path, TrainConfig(), resume=True, overwrite=False)
    assert len(str(caught.value)) < 2000


# --- shards ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["many attributes", "shaped header", "long header", "deep header", "many data sets"]
)
def test_what_else_a_shard_may_say_is_bounded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(encode_shard(HEADER, [row("a")]))
    with h5py.File(path, "r") as good:
        arrays = {name: good[name][()] for name in good}
    with h5py.File(path, "w", libver="latest") as file:
        for name, array in arrays.items():
            file[name] = array
        if kind == "shaped header":
            file.attrs["header"] = np.array([b"{}"] * 9)
        elif kind == "long header":
            file.attrs["header"] = np.bytes_(b"{" * (64 * 2**10 + 1))
        elif kind == "deep header":
            file.attrs["header"] = np.bytes_(b"[" * 60_000)
        elif kind == "many data sets":
            for number in range(2000):
                file[f"{number}{'x' * 1000}"] = 1
        else:
            for number in range(1000):
                file.attrs[f"header{number}"] = number
    with pytest.raises(StoreError, match=r"shard-00000\.h5") as caught:
        Shard.open(path)
    assert len(str(caught.value)) < 1000


def test_what_differs_in_a_foreign_header_is_told_in_few_words(folder: Path) -> None:
    header = signed(
        {**HEADER.to_json(), "spec": {**asdict(SPEC), "preprocessing": {"note": "x" * 10**6}}}
    )
    record = {"header": header, "run": RUN_JSON}
    record["header"]["spec"]["versions"] = {f"{n}": "y" * 1000 for n in range(500)}
    record["header"] = signed(record["header"])
    (folder / "set.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match="made with other settings") as caught:
        FeatureStore(folder).read("a")
    assert len(str(caught.value)) < 60_000


# --- shards that change while they are open ----------------------------------------------------


def place_of_values(path: Path) -> int:
    with h5py.File(path, locking=False) as file:
        return int(file["features"].id.get_chunk_info(0).byte_offset)


def edit(path: Path) -> None:
    """Change a value in place."""
    place = place_of_values(path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(np.full(6, 99.0, np.float32).tobytes())


def cut(path: Path) -> None:
    os.truncate(path, place_of_values(path))


def edit_and_hide(path: Path) -> None:
    """The same, with the times of before."""
    before = path.stat()
    edit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")
    edit(path)


@pytest.mark.parametrize("change", [edit, cut, edit_and_hide, grow])
@pytest.mark.parametrize("opened", [True, False], ids=["open", "not opened yet"])
def test_a_shard_that_changes_in_place_is_noticed_before_a_wrong_value_is_used(
    folder: Path, change: Callable[[Path], None], opened: bool
) -> None:
    store = FeatureStore(folder)
    if opened:
        assert store.read("b").values[0, 0] == 2.0
    path = folder / "shard-00000.h5"
    change(path)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"shard-00000\.h5: ") as caught:
            store.read("a")
    if opened or change is not cut:
        assert "changed or cut while it was in use" in str(caught.value)
        assert f"type: micu-extract verify {folder} --data --repair" in str(caught.value)
    with pytest.raises(StoreError, match=r"shard-00000\.h5"):
        store.read_into("a", np.empty((2, 3), np.float32))
    assert store.read("c").values[0, 0] == 3.0


def test_a_batch_of_a_changed_shard_is_refused(folder: Path) -> None:
    from micu.store.manifest import Clip

    store = FeatureStore(folder)
    clips = [Clip(clip_id=name, label="x") for name in "abc"]
    data = FeatureDataset({"video": store}, clips, DataConfig(steps=2))
    assert data.read_batch([0, 1, 2]).features["video"][0, 0, 0] == 1.0
    edit(folder / "shard-00000.h5")
    with pytest.raises(StoreError, match="changed or cut"):
        data.read_batch([0, 1])
    assert data.read_batch([2]).features["video"][0, 0, 0] == 3.0


def test_a_shard_that_only_looks_changed_is_read_on(folder: Path) -> None:
    store = FeatureStore(folder)
    path = folder / "shard-00000.h5"
    assert store.read("a").values[0, 0] == 1.0
    os.utime(path)
    assert store.read("a").values[0, 0] == 1.0
    os.link(path, folder / "kept")
    assert store.read("a").values[0, 0] == 1.0
    edit(path)
    with pytest.raises(StoreError, match="changed or cut"):
        store.read("a")


def test_a_shard_whose_name_another_takes_is_read_to_its_end(folder: Path) -> None:
    store = FeatureStore(folder)
    assert store.read("a").values[0, 0] == 1.0
    path = folder / "shard-00000.h5"
    shutil.copy(path, folder / "copy")
    edit(folder / "copy")
    (folder / "copy").replace(path)
    assert store.read("a").values[0, 0] == 1.0
    path.unlink()
    assert store.read("b").values[0, 0] == 2.0


def test_another_shard_of_the_same_clips_is_known_by_its_checksum(folder: Path) -> None:
    store = FeatureStore(folder)
    path = folder / "shard-00000.h5"
    shutil.copy(path, folder / "copy")
    (folder / "copy").replace(path)
    assert store.read("a").values[0, 0] == 1.0  # the same bytes
    store.close()
    shutil.copy(path, folder / "copy")
    edit(folder / "copy")
    (folder / "copy").replace(path)
    with pytest.raises(StoreError, match="changed or cut while it was in use"):
        store.read("a")


# --- values that are none ----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("steps", [2, 3], ids=["in place", "aligned"])
def test_a_value_that_is_none_names_the_clip(tmp_path: Path, bad: float, steps: int) -> None:
    from micu.store.manifest import Clip

    folder = tmp_path / "set"
    write_set(folder, HEADER, RUN)
    rows = [row("fine", 1.0), row("bad", 1.0), row("large", 1e30)]
    rows[1].values[1, 2] = bad
    publish_shard(folder, 0, HEADER, rows)
    clips = [Clip(clip_id=name) for name in ("fine", "bad", "large")]
    data = FeatureDataset({"video": FeatureStore(folder)}, clips, DataConfig(steps=steps))
    with pytest.raises(StoreError, match=r"video features of clip 'bad': expected finite values"):
        data.read_batch([0, 1])
    assert data.read_batch([0, 2]).features["video"].isfinite().all()
