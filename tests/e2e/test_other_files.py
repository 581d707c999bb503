"""A row is never shown with the features of another file, wherever manifests and media lie."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import tests.runs  # registers a backbone  # noqa: F401
from micu.base.errors import StoreError
from micu.store.manifest import Clip, write_manifest
from micu.store.sets import FeatureStore, read_set
from micu_extract.cli import cli
from micu_extract.sets.verify import verify_set
from tests.media_files import tone, write_media


def clip(number: int, name: str | None = None) -> Clip:
    return Clip(clip_id=name or f"c{number}", path=f"{number}.wav", label="dog")


def write_sounds(folder: Path, *, pitch: float = 220) -> Path:
    folder.mkdir(parents=True)
    for i in range(4):
        sound = tone(1, 8000, pitch + 50 * i)
        write_media(folder / f"{i}.wav", sound=sound, sound_codec="pcm_s16le")
    return folder


def extract(manifest: Path, media: Path, out: Path, *more: str) -> Result:
    words = ["audio", str(manifest), "--media-root", str(media), "--out", str(out), "--json"]
    words += ["--backbone", "toy-sound", "--weights", "random", "--workers", "1"]
    return CliRunner().invoke(cli, [*words, "--device", "cpu", *more])


def extracted(result: Result) -> int:
    assert result.exit_code == 0, result.output
    count: int = json.loads(result.stdout.splitlines()[-1])["extracted"]
    return count


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with media, a manifest of them all, and a set of their features."""
    media = write_sounds(tmp_path / "media")
    write_manifest(tmp_path / "my.csv", [clip(i) for i in range(4)])
    assert extracted(extract(tmp_path / "my.csv", media, tmp_path / "out")) == 4
    return tmp_path


@pytest.mark.parametrize("seconds", [1, 2])
def test_files_of_one_name_below_another_root_are_not_taken_for_those_that_were_made(
    made: Path, seconds: int
) -> None:
    """Whether their sizes tell them apart or not."""
    other = write_sounds(made / "y", pitch=500)
    for path in other.iterdir():
        sound = tone(seconds, 8000, 700)
        write_media(path, sound=sound, sound_codec="pcm_s16le")
    before = read_set(made / "out/my/audio-toy-sound")[1]
    refused = extract(made / "my.csv", other, made / "out")
    assert isinstance(refused.exception, StoreError)
    told = str(refused.exception)
    how = {1: "now they are in", 2: "are others: '0.wav' has"}  # compared as clips, or by size
    assert how[seconds] in told
    assert str(made / "media") in told
    assert "another --out" in told
    assert read_set(made / "out/my/audio-toy-sound")[1] == before


@pytest.mark.parametrize("keeps_times", [True, False])
def test_media_that_moved_are_gone_on_with(made: Path, keeps_times: bool) -> None:
    copy = shutil.copy2 if keeps_times else shutil.copyfile
    shutil.copytree(made / "media", made / "moved", copy_function=copy)
    shutil.rmtree(made / "media")
    done = extract(made / "my.csv", made / "moved", made / "out")
    assert extracted(done) == 0
    assert ("extracted again" in done.output) is not keeps_times
    assert read_set(made / "out/my/audio-toy-sound")[1].media_root == str(made / "moved")


def test_compact_keeps_what_other_manifests_ask_for_as_they_are_now(made: Path) -> None:
    out, sub = made / "out", made / "sub.csv"
    write_manifest(sub, [clip(0)])
    assert extracted(extract(sub, made / "media", out)) == 0
    write_manifest(sub, [clip(1)])
    write_manifest(made / "my.csv", [clip(2), clip(3)])
    (own,) = [
        line
        for line in CliRunner().invoke(cli, ["status", str(out)]).output.splitlines()
        if "no manifest asks for" in line
    ]
    assert own.strip().startswith("1 rows")
    assert CliRunner().invoke(cli, ["compact", str(out / "my")]).exit_code == 0
    store = FeatureStore(out / "my/audio-toy-sound")
    assert set(store.clip_ids) == {"c1", "c2", "c3"}
    assert verify_set(out / "sub/audio-toy-sound").problems == ()


def test_media_that_are_all_away_are_not_called_good(made: Path) -> None:
    (made / "media").rename(made / "away")
    (problem,) = verify_set(made / "out/my/audio-toy-sound", media=True).problems
    assert "none of its 4 media files" in problem


def test_a_replaced_file_is_noticed_where_its_row_is_read_from_a_set_beside(made: Path) -> None:
    sub = made / "sub.csv"
    write_manifest(sub, [clip(0)])
    assert extracted(extract(sub, made / "media", made / "out")) == 0
    write_media(made / "media/0.wav", sound=tone(1, 8000, 900), sound_codec="pcm_s16le")
    (problem,) = verify_set(made / "out/sub/audio-toy-sound", media=True).problems
    assert "was replaced" in problem
    assert f"verify {made / 'out/my/audio-toy-sound'} --media --repair" in problem


def test_manifests_of_one_name_in_two_folders_are_told_of(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (made / "y").mkdir()
    write_manifest(made / "y/my.csv", [clip(0)])
    assert extracted(extract(made / "y/my.csv", made / "media", made / "out")) == 0
    assert f"was made for {made / 'my.csv'}, which is there still" in caplog.text
