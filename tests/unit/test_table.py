"""Manifests as spreadsheets and people write them: read as they are meant, or named."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import micu.base.table
from micu.base.errors import ManifestError
from micu.base.table import parse_seconds, read_bytes
from micu.data.dataset import read_excluded_ids
from micu.evaluate.leaks import Pretraining
from micu.store.manifest import (
    Clip,
    Event,
    Manifest,
    read_class_list,
    read_manifest,
    safe_name,
    write_manifest,
)
from micu.store.sets import set_folder
from micu_extract.cli import cli
from micu_extract.datasets import DATASETS
from micu_extract.pipeline.probe import probe_path

PLAIN = (Clip(clip_id="a", path="x/a.mp4", start_s=1.5, end_s=3.0, label="dog"),)


def read(folder: Path, data: bytes | str, *need: str) -> tuple[Clip, ...]:
    path = folder / "m.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_manifest(path, need=need).clips


def refused(folder: Path, data: bytes | str, *need: str) -> str:
    with pytest.raises(ManifestError) as caught:
        read(folder, data, *need)
    told = str(caught.value)
    assert len(told) < 2000
    return told


HEAD, ROW = "clip_id,path,start_s,end_s,label", "a,x/a.mp4,1.5,3,dog"
WAYS = {
    "plain": f"{HEAD}\n{ROW}\n",
    "no line end": f"{HEAD}\n{ROW}",
    "CRLF": f"{HEAD}\r\n{ROW}\r\n",
    "lone CR": f"{HEAD}\r{ROW}\r",
    "BOM": f"\ufeff{HEAD}\n{ROW}\n",
    "semicolons": f"{HEAD}\n{ROW}\n".replace(",", ";"),
    "semicolons, decimal comma": f"{HEAD}\n{ROW}\n".replace(",", ";").replace("1.5", "1,5"),
    "semicolons, BOM, CRLF": f"\ufeff{HEAD}\r\n{ROW}\r\n".replace(",", ";"),
    "tabs": f"{HEAD}\n{ROW}\n".replace(",", "\t"),
    "tabs, decimal comma": f"{HEAD}\n{ROW}\n".replace(",", "\t").replace("1.5", "1,5"),
    "sep=": "sep=;\r\n" + f"{HEAD}\n{ROW}\n".replace(",", ";"),
    "sep=|": "sep=|\n" + f"{HEAD}\n{ROW}\n".replace(",", "|"),
    "blanks after commas": f"{HEAD}\n{ROW}\n".replace(",", ", "),
    "blanks before commas": f"{HEAD} \n{ROW}  \n".replace(",", "  ,"),
    "tabs around fields": f"{HEAD}\n{ROW}\t\n".replace(",", "\t,\t"),
    "blanks before lines": f"  {HEAD}\n  {ROW}\n",
    "quoted": "\n".join(",".join(f'"{word}"' for word in line.split(",")) for line in (HEAD, ROW)),
    "quoted after blanks": "\n".join(
        ", ".join(f'"{word}"' for word in line.split(",")) for line in (HEAD, ROW)
    ),
    "columns of another case": f"{HEAD.title()}\n{ROW}\n",
    "COLUMNS IN CAPITALS": f"{HEAD.upper()}\n{ROW}\n",
    "empty lines": f"{HEAD}\n\n{ROW}\n\n\n",
    "empty lines first": f"\n \t\r\n{HEAD}\n{ROW}\n",
    "empty lines first, and semicolons": f"\n;;\n{HEAD}\n{ROW}\n".replace(",", ";"),
    "lines of blanks": f"{HEAD}\n   \n{ROW}\n \t \n",
    "rows of nothing": f"{HEAD}\n,,,,\n{ROW}\n , , , , \n",
    "separators at the end": f"{HEAD},,\n{ROW},,\n",
    "separators at the end of rows": f"{HEAD}\n{ROW},,\n",
    "fewer in the rows": f"{HEAD},,\n{ROW}\n",
}


@pytest.mark.parametrize("text", WAYS.values(), ids=WAYS.keys())
def test_every_way_to_write_a_manifest_says_the_same(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text, "path") == PLAIN


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("semicolon", (Clip(clip_id="a", path="a.mp4", label="dog"),)),
        ("spaces", (Clip(clip_id="a", path="a.mp4", label="dog"),)),
    ],
)
def test_the_reported_manifests_are_read(shared: Path, name: str, clips: tuple[Clip, ...]) -> None:
    assert read_manifest(shared / "media" / "reports" / f"{name}.csv").clips == clips


def test_blanks_that_are_quoted_stay(tmp_path: Path) -> None:
    text = 'clip_id,path,label\na,"  x a.mp4 ", dog \n" b",y.mp4,"a ""b"" "\n'
    first, second = read(tmp_path, text)
    assert first == Clip(clip_id="a", path="  x a.mp4 ", label="dog")
    assert second == Clip(clip_id=" b", path="y.mp4", label='a "b"')


blanks = st.text("ab \t\r\n\",;'\xa0", min_size=1, max_size=6)


@settings(deadline=None)
@given(paths=st.lists(blanks, min_size=1, max_size=5), texts=st.lists(blanks, max_size=5))
def test_any_path_comes_back(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "m.csv"
    clips = [
        Clip(clip_id=str(n), path=name, text=(texts[n] if n < len(texts) else "").strip())
        for n, name in enumerate(paths)
    ]
    write_manifest(path, clips)
    assert list(read_manifest(path).clips) == clips


def test_a_manifest_without_odd_fields_has_the_bytes_of_before(tmp_path: Path) -> None:
    clips = [*PLAIN, Clip(clip_id="b", path="a, b.mp4", text='say "x"', label="cat")]
    write_manifest(tmp_path / "m.csv", clips)
    assert (tmp_path / "m.csv").read_text() == (
        "clip_id,path,start_s,end_s,label,split,text\n"
        "a,x/a.mp4,1.5,3.0,dog,,\n"
        'b,"a, b.mp4",,,cat,,"say ""x"""\n'
    )


def test_events_stand_in_a_file_of_semicolons_in_quotes(tmp_path: Path) -> None:
    (clip,) = read(tmp_path, 'clip_id;events\na;"Dog:0:1;Cat:1:2"\n')
    assert clip.events == (Event("Dog", 0.0, 1.0), Event("Cat", 1.0, 2.0))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("00:01:05", "65"),
        ("1:05", "65"),
        ("01:01:05.5", "3665.5"),
        ("0:05,25", "5.25"),
        ("1,5", "1.5"),
        (",5", ".5"),
    ],
)
def test_a_time_that_is_no_number_is_told_as_one(tmp_path: Path, typed: str, meant: str) -> None:
    told = refused(tmp_path, f'clip_id,start_s\na,"{typed}"\n')
    assert told.endswith(f"  line 2: start_s: expected seconds, got '{typed}'; write {meant}")


@pytest.mark.parametrize(
    "typed",
    ["x", "-1", "nan", "inf", "1_0", "１２", "5s", "1.2.3", "1.234,5", "1 2", "0x5", ".", "e5"],
)
def test_a_time_that_is_none_is_refused(tmp_path: Path, typed: str) -> None:
    for separator in ",;":
        text = f'clip_id,end_s\na,"{typed}"\n'.replace(",", separator, 1).replace(
            'a,"', f'a{separator}"'
        )
        assert f"line 2: end_s: expected seconds, got {typed!r}" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("", None),
        (" ", None),
        ("0", 0.0),
        ("-0", 0.0),
        ("+1.", 1.0),
        (".5", 0.5),
        ("1e2", 100.0),
        ("1E-1", 0.1),
    ],
)
def test_a_time_is_a_number(typed: str, seconds: float | None) -> None:
    assert parse_seconds(typed) == seconds


def test_a_decimal_comma_is_none_where_commas_separate(tmp_path: Path) -> None:
    assert "got '1,5'; write 1.5" in refused(tmp_path, 'clip_id,start_s\na,"1,5"\n')
    (clip,) = read(tmp_path, "clip_id;start_s;end_s\na;1,5;12,25\n")
    assert (clip.start_s, clip.end_s) == (1.5, 12.25)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("clip_id,path\na,x\n".encode("utf-16"), "line 1 is not UTF-8; save the file as UTF-8"),
        ("clip_id,path\na,x\n".encode("utf-16-le"), "looks like UTF-16"),
        ("clip_id,path\na,x\n".encode("utf-16-be"), "looks like UTF-16"),
        ("clip_id,label\na,Grüße\n".encode("latin-1"), "line 2: label is not UTF-8"),
        ("clip_id,größe\na,x\n".encode("latin-1"), "line 1 is not UTF-8"),
        ("clip_id,label\na,x\0y\n", "line 2: label holds a NUL byte"),
        ("clip_id,label\na\0,x\n", "line 2: clip_id holds a NUL byte"),
        (f"clip_id,label\na,{'x' * 10**7}\nb,y\n", "line 2: field larger than field limit"),
        (f"clip_id,{'x' * 10**7}\na,b\n", "line 1 cannot be read as column names: field larger"),
        (f"{'x' * 100_000},b\n1,2\n", "expected the column clip_id, got xxx"),
        ("clip_id,Label,LABEL\na,x,y\n", "more than once: label"),
        ("clip_id,label,label\na,x,y\n", "more than once: label"),
        (",clip_id\n1,a\n", "column 1 has no name"),
        ("clip_id,,path\na,,b\n", "column 2 has no name"),
        (
            "clip_id|path\na|b\n",
            "expected the column clip_id, got clip_id|path; clip_id is missing: add",
        ),
        ("clip_id;path\na;b;c\n", "line 2: expected 2 fields"),
        ("clip_id;path\na\n", "line 2: expected 2 fields"),
        ("clip_id,path\na,b, ,c\n", "line 2: expected 2 fields"),
        (f"clip_id,start_s\na,{'9' * 100_000}x\n", "line 2: start_s: expected seconds"),
        ("", "got an empty file"),
        ("\n", "got an empty file"),
        ("clip_id\n\n\n", "expected at least one clip"),
        ("sep=;\nclip_id;start_s\na;x\n", "line 3: start_s: expected seconds"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, data: bytes | str, message: str) -> None:
    assert message in refused(tmp_path, data)


def test_the_line_of_a_bad_row_is_that_of_the_file(tmp_path: Path) -> None:
    text = 'clip_id;label;start_s\n\na;"two\nlines";1\n;;\nb;x;no\n'
    assert "  line 6: start_s" in refused(tmp_path, text)


def test_an_exact_name_of_a_column_goes_before_one_of_another_case(tmp_path: Path) -> None:
    (clip,) = read(tmp_path, "clip_id,Label,label\na,x,y\n")
    assert clip.label == "y"


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_a_manifest_that_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    import os

    path = tmp_path / "m.csv"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(
        ManifestError, match="got a folder" if kind == "folder" else "no such manifest"
    ):
        read_manifest(path)


def test_a_manifest_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "m.csv").open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(ManifestError, match="it has more than 2147483648 bytes"):
        read_manifest(tmp_path / "m.csv")


def test_a_packed_manifest_is_the_manifest(tmp_path: Path) -> None:
    plain, packed = tmp_path / "my.csv", tmp_path / "my.csv.gz"
    write_manifest(plain, PLAIN)
    write_manifest(packed, PLAIN)
    first = packed.read_bytes()
    write_manifest(packed, PLAIN)
    assert packed.read_bytes() == first  # no time of day in it
    assert gzip.decompress(first) == plain.read_bytes()
    read_plain, read_packed = read_manifest(plain), read_manifest(packed)
    assert read_packed.clips == read_plain.clips == PLAIN
    assert (read_packed.sha256, read_packed.name) == (read_plain.sha256, "my")
    assert probe_path(packed) == probe_path(plain) == tmp_path / "my.probe.csv"
    head, tail = plain.read_bytes()[:20], plain.read_bytes()[20:]
    packed.write_bytes(gzip.compress(head) + gzip.compress(tail))  # as `cat a.gz b.gz` makes it
    assert read_manifest(packed) == read_packed
    assert read_manifest(packed.rename(tmp_path / "m.csv")).clips == PLAIN


@pytest.mark.parametrize("spoil", [lambda d: d[:-9], lambda d: d[:12] + b"\0" * 9 + d[21:]])
def test_a_manifest_that_is_badly_packed_is_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "my.csv.gz"
    path.write_bytes(spoil(gzip.compress(b"clip_id,path\na,a.mp4\n" * 99)))
    with pytest.raises(ManifestError, match=r"my\.csv\.gz: cannot be read"):
        read_manifest(path)


def test_what_unpacks_to_far_more_than_a_manifest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my.csv.gz"
    bomb = gzip.compress(bytes(9 * 2**20))
    path.write_bytes(bomb)
    most = 2**20 + 200 * len(bomb)
    with pytest.raises(ManifestError, match=f"unpack to more than {most}; unpack it by hand"):
        read_manifest(path)
    held = b"clip_id\n" + b"x" * 92
    path.write_bytes(gzip.compress(held))
    monkeypatch.setattr(micu.base.table, "MAX_BYTES", len(held))
    assert read_bytes(path) == held
    monkeypatch.setattr(micu.base.table, "MAX_BYTES", len(held) - 1)
    with pytest.raises(ManifestError, match="unpack to more than 99"):
        read_bytes(path)


def test_class_lists_and_lists_of_ids_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes("\ufeffLabel ; count;\r\n Grüße ;3;\r\n;;\r\ncat;4;\r\n".encode())
    assert read_class_list(path) == ("Grüße", "cat")
    path.write_bytes("\ufeffCLIP_ID;by\r\n a ;id\r\n".encode())
    assert read_excluded_ids(path) == {"a"}
    path.write_bytes("clip_id\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="line 2: clip_id is not UTF-8"):
        read_excluded_ids(path)


# --- names of folders ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vggsound", "vggsound"),
        ("my list (2)", "my list (2)"),
        ("größe.v2", "größe.v2"),
        (".hidden", ".hidden"),
        ("a..b", "a..b"),
        ("console", "console"),
        ("", "_"),
        (".", "_"),
        ("..", "__"),
        ("...", "___"),
        ("a.", "a_"),
        ("a. ", "a__"),
        (" ", "_"),
        ("../x", ".._x"),
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("a:b", "a_b"),
        ('<>"|?*', "______"),
        ("a\nb\x1b\0", "a_b__"),
        ("a\u202eb", "a_b"),
        ("a\udcff", "a_"),
        ("CON", "_CON"),
        ("nul", "_nul"),
        ("com1.v2", "_com1.v2"),
        ("LPT9", "_LPT9"),
        ("x" * 255, "x" * 255),
        ("x" * 300, "x" * 255),
        ("é" * 200, "é" * 127),
    ],
)
def test_a_name_is_one_folder(name: str, expected: str) -> None:
    assert safe_name(name) == expected


@pytest.mark.parametrize("name", ["...csv", "..csv", "....csv", ".csv", "a\n.csv", "..", "con.csv"])
def test_features_of_any_manifest_lie_inside_of_out(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    folder = set_folder(out, Manifest(Path(name), (), "").name, "audio", "toy")
    folder.mkdir(parents=True)
    assert folder.resolve().parent.parent == out.resolve()
    assert folder.parent.name == folder.parent.name.strip(". ") or name == ".csv"


# --- two data sets -------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(source: Path, out: Path) -> Path:
    done = CliRunner().invoke(
        cli, ["manifest", "folder", "--annotations", str(source), "-o", str(out)]
    )
    assert done.exit_code == 0, done.output
    return out


def overlap(first: Path, second: Path) -> str:
    done = CliRunner().invoke(cli, ["overlap", str(first), str(second)])
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("names", [("one", "two"), ("one/clips", "two/clips")])
def test_two_folders_with_equal_paths_are_two(
    tmp_path: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    from micu.store.overlap import media_item

    first, second = (
        listed(touch(tmp_path / name, "dog/1.mp4", "cat/1.mp4"), tmp_path / f"{n}.csv")
        for n, name in enumerate(names)
    )
    assert overlap(first, second).startswith("0 of 2 clips")
    assert "2 clips have an id of the other manifest and are of other files" in caplog.text
    items = [{media_item(clip) for clip in read_manifest(path).clips} for path in (first, second)]
    assert len(items[0] | items[1]) == 4


def test_one_folder_is_one_however_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from micu.store.overlap import media_item

    root = touch(tmp_path / "clips", "dog/1.mp4", "cat/1.mp4")
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    first = listed(root, tmp_path / "a.csv")
    for other in (Path("clips"), Path("./clips/"), Path("clips/../clips"), Path("link")):
        second = listed(other, tmp_path / "b.csv")
        assert second.read_bytes() == first.read_bytes()
        assert overlap(first, second).startswith("2 of 2 clips")
    above = read_manifest(listed(tmp_path, tmp_path / "c.csv")).clips
    assert set(map(media_item, read_manifest(first).clips)) <= set(map(media_item, above))


def test_a_list_of_own_files_is_told_apart_alike(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.csv").write_text("Path;Start_s\nx/1.mp4;0,5\nx/1.mp4;2\n")
    first, second = (
        listed(tmp_path / name / "list.csv", tmp_path / f"{name}.csv") for name in ("one", "two")
    )
    clips = read_manifest(first).clips
    assert [(clip.clip_id, clip.path, clip.start_s) for clip in clips] == [
        ("x/1.mp4", "x/1.mp4", 0.5),
        ("x/1.mp4#2", "x/1.mp4", 2.0),
    ]
    assert len({clip.group for clip in clips}) == 1
    assert overlap(first, second).startswith("0 of 2 clips")
    (tmp_path / "one" / "abs.csv").write_text(f"path\n{tmp_path / 'one' / 'x' / '1.mp4'}\n")
    (same,) = DATASETS["folder"].rows([str(tmp_path / "one" / "abs.csv")])
    assert same.group == clips[0].group


def test_ids_of_which_one_manifest_says_no_more_are_shared(tmp_path: Path) -> None:
    own = listed(touch(tmp_path / "clips", "dog/1.mp4"), tmp_path / "own.csv")
    write_manifest(tmp_path / "old.csv", [Clip(clip_id="dog/1.mp4", path="dog/1.mp4")])
    assert overlap(own, tmp_path / "old.csv").startswith("1 of 1 clips")
    assert overlap(tmp_path / "old.csv", own).startswith("1 of 1 clips")


def test_a_pretraining_on_a_manifest_without_groups_is_known_by_ids(tmp_path: Path) -> None:
    own = listed(touch(tmp_path / "clips", "dog/1.mp4"), tmp_path / "own.csv")
    clips = read_manifest(own).clips
    old = Pretraining(frozenset({"dog/1.mp4"}))
    assert old.leaks(clips) == ("pretraining-overlap:1",)
    assert old.unseen(clips) == ()
    other = Pretraining(frozenset({"1.mp4@000000000000"}))
    assert other.leaks(clips) == ()
    assert other.unseen(clips) == clips


def test_a_youtube_video_is_that_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n4YdbENYcIyE\nx/4YdbENYcIyE\n")
    first, second = DATASETS["folder"].rows([str(tmp_path / "list.csv")])
    assert first.group == "4YdbENYcIyE"
    assert second.group.startswith("4YdbENYcIyE@")
