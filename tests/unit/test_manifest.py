import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micu.base.errors import ManifestError
from micu.store.manifest import (
    Clip,
    Event,
    read_class_list,
    read_manifest,
    row_sources,
    write_manifest,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_bad_row_is_named_with_its_line_in_one_error(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv",
        "clip_id,path,start_s,end_s\n"
        "a,a.mp4,0,3\n"
        "b,,5,9\n"
        "c,c.mp4,zz,3\n"
        "a,other.mp4,0,3\n"
        ",d.mp4,0,1\n"
        "e,e.mp4,5,3\n"
        "f,f.mp4\n",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, need=("path",))
    assert str(caught.value) == "\n".join(
        [
            f"{path}: 6 bad rows",
            "  line 3: path is empty",
            "  line 4: start_s: expected seconds, got 'zz'",
            "  line 5: repeats the id of line 2 with other content",
            "  line 6: clip_id is empty",
            "  line 7: end_s 3.0 is not after start_s 5.0",
            "  line 8: expected 4 fields",
        ]
    )


def test_an_exact_repeat_is_kept_once(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "clip_id,path\na,a.mp4\nb,b.mp4\na,a.mp4\n")
    assert [clip.clip_id for clip in read_manifest(path).clips] == ["a", "b"]


def test_only_the_columns_that_a_modality_needs_are_required(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "clip_id,text\na,a dog barks\n")
    assert read_manifest(path, need=("text",)).clips == (Clip(clip_id="a", text="a dog barks"),)
    with pytest.raises(ManifestError, match="add path"):
        read_manifest(path, need=("path",))


def test_a_missing_manifest_says_what_one_looks_like(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no such manifest; expected a CSV file .* clip_id"):
        read_manifest(tmp_path / "none.csv")


@pytest.mark.parametrize("clip_id", ["a\0b", "\ud800", "a\nb", "  "])
def test_ids_that_no_table_can_hold_are_refused(tmp_path: Path, clip_id: str) -> None:
    write_manifest(tmp_path / "m.csv", [Clip(clip_id="fine")])
    data = f'clip_id\n"{clip_id}"\n'.encode("utf-8", "surrogatepass")
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(ManifestError):
        read_manifest(tmp_path / "m.csv")


printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)
label = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=";:"), min_size=1)


@given(
    st.lists(
        st.builds(
            Clip,
            clip_id=printable,
            path=printable,
            start_s=st.none() | st.floats(0, 10),
            end_s=st.none() | st.floats(11, 20),
            label=printable,
            text=printable,
            group=printable,
            events=st.lists(
                st.builds(
                    Event, label, st.floats(0, 5), st.floats(6, 9), st.sampled_from(["", "audio"])
                )
            ).map(tuple),
        ),
        min_size=1,
        unique_by=lambda clip: clip.clip_id,
    )
)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, clips) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("manifest") / "m.csv"
    write_manifest(path, clips)
    assert list(read_manifest(path).clips) == clips


def test_file_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    clip = Clip(clip_id="a", path="caf\udce9.mp4")
    write_manifest(tmp_path / "m.csv", [clip])
    assert read_manifest(tmp_path / "m.csv").clips == (clip,)


@pytest.mark.parametrize("column", ["clip_id", "label", "split", "text", "note"])
def test_only_file_names_may_be_other_than_utf8(tmp_path: Path, column: str) -> None:
    values = {"clip_id": "a", "path": "p.mp4", "label": "l", "split": "train", "text": "t"}
    values = {**values, "note": "n", column: "caf\u00e9"}
    lines = [",".join(values), ",".join(values.values())]
    (tmp_path / "m.csv").write_bytes("\n".join(lines).encode("cp1252"))
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "m.csv")
    assert f"line 2: {column} is not UTF-8: b'caf\\xe9'; save the file as UTF-8" in str(
        caught.value
    )


@pytest.mark.parametrize(("encoding", "unit"), [("cp1252", "gr\u00f6\u00dfe"), ("utf-16", "size")])
def test_column_names_that_are_not_utf8_are_refused(
    tmp_path: Path, encoding: str, unit: str
) -> None:
    (tmp_path / "m.csv").write_bytes(f"clip_id,{unit}\na,1\n".encode(encoding))
    with pytest.raises(ManifestError, match="line 1 is not UTF-8; save the file as UTF-8"):
        read_manifest(tmp_path / "m.csv")


def test_a_column_without_a_name_is_said_once(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", ",clip_id,path\n0,a,a.mp4\n1,b,b.mp4\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value) == (f"{path}: column 1 has no name; write the CSV without the index")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "clip_id,path,path\na,a.mp4,b.mp4\n")
    with pytest.raises(ManifestError, match="more than once: path"):
        read_manifest(path)


def test_a_quote_that_is_left_open_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 1 cannot be read as column names"):
        read_manifest(write(tmp_path / "m.csv", 'clip_id,"path\na,a.mp4\n'))
    with pytest.raises(ManifestError, match=r"1 bad row\n  line \d: unexpected end of data"):
        read_manifest(write(tmp_path / "m.csv", 'clip_id,path\na,"a.mp4\n'))


def test_every_bad_row_is_named_however_many_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "clip_id,path\n" + "".join(f"c{i},\n" for i in range(80)))
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, need=("path",))
    expected = [f"  line {line}: path is empty" for line in range(2, 82)]
    assert str(caught.value).splitlines()[1:] == expected


def test_events_of_a_row_are_read_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "clip_id,events\na,Dog bark:0:3.5;Cat:1:2:audio;\nb,\n")
    first, second = read_manifest(path).clips
    assert first.events == (Event("Dog bark", 0.0, 3.5), Event("Cat", 1.0, 2.0, "audio"))
    assert first.events_in("audio") == first.events
    assert first.events_in("video") == first.events[:1]
    assert second.events == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("Dog:4:3", "offset_s 3.0 is before onset_s 4.0"),
        ("Dog:nan:3", "one is no time"),
        ("Dog:0:1:smell", "unknown modality 'smell'"),
        (":0:1", "event label ''"),
        ("Dog:0", "expected label:onset_s:offset_s"),
        ("Dog:0:1:audio:x", "expected label:onset_s:offset_s"),
    ],
)
def test_an_event_that_cannot_be_is_named_with_its_line(
    tmp_path: Path, entry: str, message: str
) -> None:
    path = write(tmp_path / "m.csv", f"clip_id,events\na,Dog:0:1\nb,{entry}\n")
    with pytest.raises(ManifestError, match=f"line 3: .*{message}"):
        read_manifest(path)


def test_a_clip_is_its_own_group_unless_it_says_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "clip_id,path,text,group\na,a.wav,one,\na#2,,two,a\n")
    first, second = read_manifest(path, need=("path", "text")).clips
    assert (first.group, second.group) == ("a", "a")
    assert [clip.is_caption for clip in (first, second)] == [False, True]


def test_a_caption_of_an_item_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "clip_id,path,text,group\na,a.wav,one,\nb#2,,two,b\n")
    with pytest.raises(ManifestError, match="first clip 'b#2' of group 'b'"):
        read_manifest(path, need=("path",))
    assert len(read_manifest(path, need=("text",)).clips) == 2


def test_a_class_list_keeps_the_order_of_its_file(tmp_path: Path) -> None:
    assert read_class_list(write(tmp_path / "c.csv", "label\nzebra\nant\n")) == ("zebra", "ant")
    with pytest.raises(ManifestError, match="line 3: repeats the class of line 2"):
        read_class_list(write(tmp_path / "c.csv", "label\nant\nant\n"))


@pytest.mark.shared
def test_the_real_clips_manifest_is_read(shared: Path) -> None:
    manifest = read_manifest(shared / "media" / "real" / "manifest.csv", need=("path", "text"))
    assert len(manifest.clips) == 12


def test_a_large_manifest_takes_little_more_than_its_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = tmp_path / "m.csv", 20_000
    lines = (
        f"id{i},video/id{i}.mp4,{i % 60},{i % 60 + 10},playing harp,train" for i in range(rows)
    )
    path.write_text("clip_id,path,start_s,end_s,label,split\n" + "\n".join(lines))
    monkeypatch.setattr("micu.store.manifest.read_bytes", Path.read_bytes)  # without its bound
    tracemalloc.start()
    try:
        manifest = read_manifest(path, ("path",))
        before, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        sources = row_sources(manifest.clips, "media")
        _, worked = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(set(sources)) == rows
    assert peak / rows < 500
    assert (worked - before) / rows < 250


def test_rows_that_are_made_of_one_thing_are_numbered() -> None:
    same, other = (Clip(clip_id="a", path=f"{v}.mp4", start_s=1.0, end_s=2.0) for v in "vw")
    clips = [
        same,
        replace(same, clip_id="b"),
        other,
        replace(same, label="c"),
    ]
    told = ['["v.mp4", 1.0, 2.0, 1]', '["v.mp4", 1.0, 2.0, 2]', '["w.mp4", 1.0, 2.0, 1]']
    told += ['["v.mp4", 1.0, 2.0, 3]']
    expected = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in told]
    assert row_sources(clips, "media") == tuple(expected)


def test_how_the_lines_of_a_sentence_end_is_no_part_of_its_source(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    found = []
    for data in (b'clip_id,text\na,"one\ntwo"\n', b'clip_id,text\r\na,"one\r\ntwo"\r\n'):
        path.write_bytes(data)
        found.append(row_sources(read_manifest(path).clips, "text"))
    assert found[0] == found[1] != row_sources([Clip(clip_id="a", text="one two")], "text")
