"""Items with several sentences: media once, sentences all."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.base.errors import ConfigError
from micu.store.manifest import Clip, write_manifest
from micu.store.sets import FeatureStore
from micu_extract.cli import cli
from tests.media_files import tone, write_media
from tests.runs import ToySound  # noqa: F401 - registers a backbone
from tests.toy import Toy  # noqa: F401 - registers a backbone

DEMO = ("--weights", "random", "--device", "cpu")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_media(tmp_path / "a.wav", sound=tone(2.0, 8000), sound_codec="pcm_s16le")
    sentences = [
        Clip(
            clip_id=f"{item}#{i}" if i > 1 else item,
            group=item,
            text=f"sentence {i}",
            path=path if i == 1 else "",
        )
        for item, path in (("a", "a.wav"), ("gone", "gone.wav"))
        for i in (1, 2, 3)
    ]
    write_manifest(tmp_path / "m.csv", sentences)
    return tmp_path


def test_media_are_extracted_once_and_sentences_all(project: Path) -> None:
    sound = invoke("audio", "--backbone", "toy-sound", *DEMO, "--workers", "1", "m.csv")
    assert sound.exit_code == 3, sound.output
    words = invoke("text", "--backbone", "toy", *DEMO, "m.csv")
    assert words.exit_code == 0, words.output
    folder = project / "features" / "m"
    assert FeatureStore(folder / "audio-toy-sound").clip_ids == ("a",)
    assert len(FeatureStore(folder / "text-toy")) == 6
    verified = invoke("verify", "features", "--data")
    assert verified.exit_code == 0, verified.output
    assert "2 rows = 1 stored + 1 failed" in verified.output
    assert "6 rows = 6 stored + 0 failed" in verified.output
    status = invoke("status", "features")
    assert "2 rows = 1 stored + 1 failed (1 missing) + 0 left" in status.output
    assert "shards 1 done, 0 partial, 0 missing" in status.output


def test_one_pass_over_media_and_sentences_is_refused(project: Path) -> None:
    result = invoke("all", "--backbones", "toy,toy-sound", *DEMO, "m.csv")
    assert isinstance(result.exception, ConfigError)
    assert "extract text in a run of its own" in str(result.exception)
