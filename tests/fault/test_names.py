"""Ids and paths that mean something to a file system, a table or HDF5: they are data."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.toy  # noqa: F401 - registers the backbone
from micu.base.errors import DecodeError, ManifestError
from micu.store.ledger import read_ledger
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore
from micu_extract.cli import cli
from micu_extract.media.media_file import find_media
from micu_extract.media.source import DECODE_ERRORS
from tests.media_files import tone, write_media
from tests.runs import SOUNDS, run, set_bytes

SET_FILES = {"set.json", "failures.csv", "index.jsonl", "rows.jsonl", "shard-00000.h5"}
HOSTILE = [
    "a/b",
    "a",
    "../x",
    "../../../../../tmp/x",
    "/abs",
    ".",
    "..",
    "-i",
    "--help",
    "~",
    "%d",
    "$(touch x)",
    "=1+1",
    'quote"d',
    "comma,",
    "CON",
    "shard-00000.h5",
    "features",
    "x" * 5000,
    "ä\u0301漢",
]
pieces = st.sampled_from(
    [*HOSTILE, "/", "\\", "..", "\0", "\n", "\r\n", "\ud800", " ", "\ufeff", "\u202e"]
)
names = st.lists(pieces | st.text(max_size=4), min_size=1, max_size=4).map("".join)
quickly = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def extract_text(folder: Path, clips: list[Clip]) -> Result:
    write_manifest(folder / "m.csv", clips)
    words = ("text", str(folder / "m.csv"), "--backbone", "toy", "--out", str(folder / "features"))
    return CliRunner().invoke(cli, words)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@quickly
@given(st.lists(names, min_size=1, max_size=6, unique=True))
def test_any_id_comes_back_from_the_store_or_is_refused_with_its_manifest(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    top = tmp_path_factory.mktemp("top")
    folder = top / "in" / "here"
    folder.mkdir(parents=True)
    clips = [Clip(clip_id=name, text=f"word {i}") for i, name in enumerate(ids)]
    try:
        done = extract_text(folder, clips)
    except UnicodeEncodeError:  # a manifest with such an id cannot even be written
        assert any("\ud800" <= char <= "\udfff" for name in ids for char in name)
        return
    if isinstance(done.exception, ManifestError):
        assert files_in(top) == {"in/here/m.csv"}
        return
    assert done.exit_code == 0, done.output
    known = [clip.clip_id for clip in read_manifest(folder / "m.csv").clips]
    assert known == ids
    store = FeatureStore(folder / "features" / "m" / "text-toy")
    assert list(store.clip_ids) == known
    assert all(store.read(name).clip_id == name for name in known)
    store.close()
    made = {f"in/here/features/m/text-toy/{name}" for name in SET_FILES}
    assert files_in(top) == {"in/here/m.csv", "in/here/features/last.json", *made}


def test_hostile_ids_are_stored_and_ledgered_side_by_side(tmp_path: Path) -> None:
    texts = ["nan fails" if i % 3 == 2 else f"word {i}" for i in range(len(HOSTILE))]
    clips = [Clip(clip_id=name, text=text) for name, text in zip(HOSTILE, texts, strict=True)]
    assert extract_text(tmp_path, clips).exit_code == 3
    folder = tmp_path / "features" / "m" / "text-toy"
    assert set(read_ledger(folder)) == set(HOSTILE[2::3])
    assert set(FeatureStore(folder).clip_ids) == set(HOSTILE) - set(HOSTILE[2::3])
    before = set_bytes(tmp_path)
    assert extract_text(tmp_path, clips).exit_code == 3
    assert set_bytes(tmp_path) == before
    done = CliRunner().invoke(cli, ["verify", str(tmp_path / "features"), "--data"])
    assert done.exit_code == 0, done.output


@quickly
@given(names)
def test_any_path_is_a_file_below_the_root_or_a_code(
    tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "root"
    (root / "a").mkdir(parents=True, exist_ok=True)
    (root / "a" / "b").touch()
    (root.parent / "x").write_bytes(b"outside")
    (root / "=1+1").write_bytes(b"inside")
    try:
        found = find_media(path, root)
    except DecodeError as error:
        found, code = None, error.code
    assert code in DECODE_ERRORS if found is None else found.is_relative_to(root.resolve())


def test_hostile_paths_cost_their_own_clips_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_media(root / "good.wav", sound=tone(1, 8000), sound_codec="pcm_s16le")
    (tmp_path / "x").write_bytes((root / "good.wav").read_bytes())
    os.mkfifo(root / "a")
    odd = [*HOSTILE, "http://127.0.0.1:9/a.wav", "/dev/zero", os.fsdecode(b"\xff\xfe.wav")]
    clips = [Clip(clip_id=f"{i}", path=path) for i, path in enumerate(odd)]
    clips += [Clip(clip_id="good", path="good.wav"), Clip(clip_id="too", path="./good.wav")]
    write_manifest(root / "m.csv", clips)
    code, output = run(root, *SOUNDS)
    folder = root / "features" / "m" / "audio-toy-sound"
    assert code == 3, output
    assert FeatureStore(folder).clip_ids == ("good", "too")
    codes = {clips[int(key)].path: row.code for key, row in read_ledger(folder).items()}
    assert len(codes) == len(odd)
    assert (codes["../x"], codes["/dev/zero"]) == ("outside_root", "outside_root")
    assert (codes["a"], codes["."], codes["a/b"]) == ("not_a_file", "not_a_file", "missing")
    assert codes["features"] == "not_a_file"
    assert set(codes.values()) == {"missing", "outside_root", "not_a_file"}


def test_names_that_no_id_can_hold_do_not_cost_a_folder_its_manifest(tmp_path: Path) -> None:
    root, out = tmp_path / "media", tmp_path / "my.csv"
    odd = ["a\u3000b.wav", "a\xa0b.wav", "a\nb.wav", os.fsdecode(b"\xff\xfe.wav")]
    for folder in ("dog", os.fsdecode(b"\xe9")):
        (root / folder).mkdir(parents=True)
        for name in (*odd, "100%.wav", "a%C2%A0b.wav"):
            (root / folder / name).touch()
    words = ("manifest", "folder", "--annotations", str(root), "-o", str(out))
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.exception
    clips = read_manifest(out).clips
    assert {clip.path for clip in clips} == {
        path.relative_to(root).as_posix() for path in root.rglob("*.wav")
    }
    assert {clip.label for clip in clips} == {"dog", "%E9"}
    ids = {clip.path: clip.clip_id for clip in clips}
    assert ids["dog/a\u3000b.wav"] == "dog/a%E3%80%80b.wav"
    assert ids["dog/100%.wav"] == "dog/100%.wav"
    assert ids[f"dog/{odd[-1]}"] == "dog/%FF%FE.wav"


def test_a_manifest_that_cannot_be_is_named_as_it_was_typed(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_bytes(b"path,label\na.wav,\xe9\n")
    out = tmp_path / "out.csv"
    words = ("manifest", "folder", "--annotations", str(tmp_path / "my.csv"), "-o", str(out))
    done = CliRunner().invoke(cli, words)
    assert isinstance(done.exception, ManifestError)
    assert str(out) in str(done.exception)
    assert ".draft" not in str(done.exception)
    assert not out.exists()
