import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from extract.cli import cli
from micu.errors import ManifestError
from micu.manifest import Clip, write_manifest
from micu.store import FeatureStore, read_ledger
from tests.conftest import PROJECT
from tests.media_files import tone, write_media
from tests.toy import toy_clips


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a manifest of two clips, and the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MICU_MANIFEST", raising=False)
    (tmp_path / "manifests").mkdir()
    sound = tone(2.0, 8000)
    write_media(tmp_path / "manifests" / "one.mp4", frames=20, sound=sound)
    (tmp_path / "manifests" / "broken.mp4").write_bytes(b"")
    write_manifest(
        tmp_path / "manifests" / "vggsound.csv",
        [
            Clip(clip_id="one", path="one.mp4", text="a thing moves", end_s=2.0),
            Clip(clip_id="broken", path="broken.mp4", text="nothing", end_s=2.0),
        ],
    )
    return tmp_path


def test_each_modality_is_extracted_and_the_manifest_is_remembered(project: Path) -> None:
    demo = ("--weights", "random", "--device", "cpu")
    first = invoke("video", "--backbone", "swinv2-demo", *demo, "manifests/vggsound.csv")
    assert first.exit_code == 3, first.output
    assert invoke("flow", "--tvl1", "--backbone", "slowonly-demo", *demo).exit_code == 3
    assert invoke("audio", "--backbone", "htsat-demo", *demo).exit_code == 3
    text = invoke("text", "--backbone", "bert-demo", *demo, "--json")
    assert text.exit_code == 0, text.output
    folder = project / "features" / "vggsound"
    assert FeatureStore(folder / "video-swinv2-demo").read("one").values.shape[0] == 2
    assert FeatureStore(folder / "text-bert-demo").read("one").values.shape[0] == 3
    verified = invoke("verify", "features", "--data", "--json")
    assert verified.exit_code == 0, verified.output
    reports = json.loads(verified.output)
    assert {report["stored"] for report in reports} == {1, 2}
    assert all(report["stored"] + report["failed"] == 2 for report in reports)


def test_a_dry_run_writes_nothing(project: Path) -> None:
    done = invoke(
        *("text", "--backbone", "bert-demo", "--weights", "random", "--dry-run"),
        "manifests/vggsound.csv",
    )
    assert done.exit_code == 0, done.output
    assert '"todo": 2' in done.output
    assert not (project / "features").exists()


def test_the_environment_names_the_manifest(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICU_MANIFEST", "manifests/vggsound.csv")
    done = invoke("text", "--backbone", "bert-demo", "--weights", "random")
    assert done.exit_code == 0, done.output


def test_without_any_manifest_the_error_says_what_to_type(project: Path) -> None:
    done = invoke("text", "--backbone", "bert-demo", "--weights", "random")
    assert isinstance(done.exception, ManifestError)
    assert "micu-extract flow --tvl1 manifests/vggsound.csv" in str(done.exception)


def test_flow_asks_for_its_method(project: Path) -> None:
    assert invoke("flow", "manifests/vggsound.csv").exit_code == 2


def test_a_backbone_of_another_modality_is_refused(project: Path) -> None:
    done = invoke(
        "audio", "--backbone", "bert-demo", "--weights", "random", "manifests/vggsound.csv"
    )
    assert done.exit_code == 2
    assert "type: micu-extract text --backbone bert-demo" in done.output


def test_verify_fails_on_a_row_that_is_nowhere(project: Path) -> None:
    invoke("text", "--backbone", "bert-demo", "--weights", "random", "manifests/vggsound.csv")
    next(project.glob("features/vggsound/text-bert-demo/shard-*.h5")).unlink()
    done = invoke("verify", "features")
    assert done.exit_code == 3
    assert "clip 'one' is in no shard and not in the ledger" in done.output


def test_a_manifest_is_made_from_official_annotations(project: Path) -> None:
    (project / "vggsound.csv").write_text("abc,30,waterfall,train\n")
    done = invoke(
        *("manifest", "vggsound", "--annotations", "vggsound.csv"),
        *("-o", "manifests/new/vggsound.csv"),
    )
    assert done.exit_code == 0, done.output
    assert "1 clips" in done.output


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "extract.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )


def test_errors_are_one_message_and_exit_code_2(tmp_path: Path) -> None:
    done = run("text", "none.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: none.csv: no such manifest")
    assert "Traceback" not in done.stderr


def test_the_list_and_the_help_do_not_load_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom extract.cli import cli\n"
        "for a in (['list'], ['video', '--help'], ['verify', '--help']):\n"
        "    assert CliRunner().invoke(cli, a).exit_code == 0, a\n"
        "heavy = {'torch', 'timm', 'transformers', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_a_command_that_is_terminated_ends_with_75_and_goes_on(tmp_path: Path) -> None:
    write_manifest(tmp_path / "toys.csv", toy_clips(40))
    script = (
        "import os, signal, sys\nimport extract.pipeline as pipeline\nimport tests.toy\n"
        "from tests.toy import Toy\nfrom extract.cli import main\n"
        "encode = Toy.encode\n"
        "def kill(self, units):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return encode(self, units)\n"
        "if sys.argv.pop(1) == 'kill': Toy.encode = kill\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script]
    words = ["text", "toys.csv", "--backbone", "toy", "--weights", "random"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    codes = []
    for mode in ("kill", "go", "go"):
        done = subprocess.run(
            [*command, mode, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        codes.append(done.returncode)
    assert codes == [75, 0, 0], done.stderr
    assert len(FeatureStore(tmp_path / "features" / "toys" / "text-toy")) == 40


def test_a_missing_decoder_is_one_sentence_and_fills_no_ledger(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    done = invoke(
        *("video", "--backbone", "swinv2-demo", "--weights", "random", "--decoder", "decord"),
        "manifests/vggsound.csv",
    )
    assert str(done.exception) == "decord is not installed; type: pip install 'micu[decord]'"
    folder = project / "features" / "vggsound" / "video-swinv2-demo"
    assert [row.code for row in read_ledger(folder).values()] in ([], ["empty"])


def test_how_media_are_read_stands_in_the_header(project: Path) -> None:
    words = ("--weights", "random", "--dry-run", "manifests/vggsound.csv")
    flow = invoke("flow", "--tvl1", "--backbone", "slowonly-demo", *words)
    assert '"decoder": "pyav"' in flow.output
    assert '"method": "tvl1"' in flow.output
    assert '"scale_step": 0.8' in flow.output
    other = invoke("flow", "--tvl1", "--bound", "3", "--backbone", "slowonly-demo", *words)
    assert '"bound": 3.0' in other.output


def test_a_media_root_that_was_typed_once_is_used_only_with_its_manifest(project: Path) -> None:
    (project / "empty").mkdir()
    words = ("audio", "--backbone", "htsat-demo", "--weights", "random")
    wrong = invoke(*words, "--media-root", "empty", "manifests/vggsound.csv")
    assert "media root empty" in wrong.output
    again = invoke(*words, "--retry-failed", "manifests/vggsound.csv")
    assert "extracted 1, failed 1" in again.output


def test_what_is_wrong_is_said_before_weights_are_looked_for(project: Path) -> None:
    done = invoke("audio", "--backbone", "swinv2", "manifests/vggsound.csv")
    assert done.exit_code == 2
    assert "micu-extract video --backbone swinv2" in done.output
