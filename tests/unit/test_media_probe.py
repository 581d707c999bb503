import csv
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.store.manifest import read_manifest
from micu_extract.cli import cli
from micu_extract.pipeline.probe import probe_file
from tests.media_files import tone, write_media


def manifest(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["manifest", "folder", "-o", str(folder / "m.csv"), *words])


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_media(folder / "both.mp4", frames=20, sound=tone(2.0, 8000))
    write_media(folder / "mute.mp4", frames=20)
    write_media(folder / "sound.wav", sound=tone(2.0, 8000), sound_codec="pcm_s16le")
    (folder / "bad.mp4").write_bytes(b"nothing")
    return folder


def test_a_file_is_probed_for_streams_and_length(media: Path) -> None:
    both, mute, sound, bad, gone = (
        probe_file(name, media)
        for name in ("both.mp4", "mute.mp4", "sound.wav", "bad.mp4", "gone.mp4")
    )
    assert [(p.video, p.audio) for p in (both, mute, sound)] == [
        (True, True),
        (True, False),
        (False, True),
    ]
    assert {p.state for p in (both, mute, sound)} == {"ok"}
    assert (bad.state, gone.state) == ("unreadable", "missing")
    assert sound.duration_s == pytest.approx(2.0)


def test_the_report_marks_what_is_missing_or_short(media: Path, tmp_path: Path) -> None:
    rows = ["path,start_s,end_s", "both.mp4,0,2", "both.mp4,1,3", "gone.mp4,,", "mute.mp4,5,"]
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n")
    words = ["--annotations", str(tmp_path / "mine.csv"), "--media-root", str(media)]
    result = manifest(tmp_path, *words, "--probe", "--workers", "1")
    assert result.exit_code == 0, result.output
    with (tmp_path / "m.probe.csv").open() as file:
        report = list(csv.DictReader(file))
    assert [(row["clip_id"], row["state"]) for row in report] == [
        ("both.mp4", "ok"),
        ("both.mp4#2", "short"),
        ("gone.mp4", "missing"),
        ("mute.mp4", "short"),
    ]
    assert (report[0]["video"], report[0]["audio"]) == ("yes", "yes")
    assert "the clip ends at 3 s, its file 1.00 s before that" in report[1]["message"]
    assert "2 short, 1 ok, 1 missing; 1 without sound" in result.output


def test_files_are_probed_side_by_side(media: Path, tmp_path: Path) -> None:
    result = manifest(tmp_path, "--annotations", str(media), "--probe", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert "3 ok, 1 unreadable; 1 without sound, 1 without pictures" in result.output
    assert f"extract with --media-root {media}" in result.output


def test_a_manifest_that_cannot_be_read_back_does_not_replace_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("clip_id\nold\n")
    (tmp_path / "bad.csv").write_text("path,start_s,end_s\na.mp4,3,1\n")
    result = manifest(tmp_path, "--annotations", str(tmp_path / "bad.csv"))
    assert "end_s 1.0 is not after start_s 3.0" in str(result.exception)
    assert read_manifest(tmp_path / "m.csv").clips[0].clip_id == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "m.csv"]


def test_workers_without_a_probe_are_refused(tmp_path: Path) -> None:
    result = manifest(tmp_path, "--annotations", str(tmp_path), "--workers", "2")
    assert result.exit_code == 2
    assert "--workers: expected --probe too" in result.output
