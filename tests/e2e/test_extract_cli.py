import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import micu_extract.media.source
import micu_extract.run
from micu.base.errors import ConfigError, ManifestError
from micu.store.ledger import read_ledger
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore, find_sets, read_set
from micu_extract.backbones.base import FlowInput, FrameInput, WaveformInput
from micu_extract.cli import cli
from micu_extract.media.readers import read, read_several
from micu_extract.sets.verify import verify_set
from tests.conftest import PROJECT, PYTHONPATH
from tests.media_files import tone, write_media
from tests.toy import shard_bytes, toy_clips


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
    typed = "text --backbone bert-demo --weights random manifests/vggsound.csv"
    assert str(done.exception).endswith(typed)


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
        [sys.executable, "-m", "micu_extract.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
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
        "import sys\nfrom click.testing import CliRunner\nfrom micu_extract.cli import cli\n"
        "for a in (['list'], ['video', '--help'], ['verify', '--help']):\n"
        "    assert CliRunner().invoke(cli, a).exit_code == 0, a\n"
        "heavy = {'torch', 'timm', 'transformers', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_a_command_that_is_terminated_ends_with_75_and_goes_on(tmp_path: Path) -> None:
    write_manifest(tmp_path / "toys.csv", toy_clips(40))
    script = (
        "import os, signal, sys\nimport tests.toy\n"
        "import micu_extract.pipeline.decode_ahead as pipeline\n"
        "from tests.toy import Toy\nfrom micu_extract.cli import main\n"
        "encode = Toy.encode\n"
        "def kill(self, units):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return encode(self, units)\n"
        "if sys.argv.pop(1) == 'kill': Toy.encode = kill\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script]
    words = ["text", "toys.csv", "--backbone", "toy", "--weights", "random"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
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


DEMO_NAMES = ("swinv2-demo", "htsat-demo", "slowonly-demo", "bert-demo")


def test_several_backbones_in_one_pass_give_the_features_of_each_alone(project: Path) -> None:
    """Bit for bit, failures too; the fingerprints are those of separate runs."""
    words = ("--weights", "random", "manifests/vggsound.csv")
    once = invoke(
        *("all", "--backbones", ",".join(DEMO_NAMES), "--tvl1", "--out", "once", "--clip-timeout"),
        *("100", "--set", "swinv2-demo.frames-per-second=3", *words),
    )
    assert once.exit_code == 3, once.output
    for modality, name in zip(("video", "audio", "flow", "text"), DEMO_NAMES, strict=True):
        own = {"video": ("--frames-per-second", "3"), "flow": ("--tvl1",)}.get(modality, ())
        invoke(modality, "--backbone", name, "--out", "apart", *own, *words)
        folders = [Path(root) / "vggsound" / f"{modality}-{name}" for root in ("once", "apart")]
        first, second = map(shard_bytes, folders)
        assert first == second
        assert "shard-00000.h5" in first
    again = invoke("all", "--backbones", ",".join(DEMO_NAMES), "--tvl1", "--out", "once", *words)
    assert "made with other settings" in str(again.exception)  # without --set it is another set


def write_sentences(count: int) -> None:
    clips = [Clip(clip_id=str(i), text=f"word{i}", end_s=2.0) for i in range(count)]
    write_manifest(Path("sentences.csv"), clips)


def test_parts_of_several_backbones_have_the_same_clips(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that was begun with another number of rows per shard is refused."""
    write_sentences(5)
    small = {"toy": 4, "bert-demo": 2}
    monkeypatch.setattr(micu_extract.run, "usual_rows", lambda _, spec: small[spec.backbone])
    words = ("sentences.csv", "--weights", "random", "--part", "1/2")
    both = ("all", "--backbones", "toy,bert-demo", *words)
    assert invoke(*both).exit_code == 0
    for folder in find_sets(Path("features")):
        assert read_set(folder)[0].shard_rows == 2
        assert FeatureStore(folder).clip_ids == ("0", "1", "4")
    alone = ("text", "--backbone", "bert-demo", *words, "--shard-rows", "3", "--out", "other")
    assert invoke(*alone).exit_code == 0
    refused = invoke(*both, "--out", "other")
    assert "got [2, 3] there" in str(refused.exception)


def test_a_media_root_that_holds_no_file_is_refused_before_every_clip_fails(
    project: Path,
) -> None:
    clips = [Clip(clip_id=str(i), path=f"{i}.wav", end_s=1.0) for i in range(40)]
    write_manifest(Path("sounds.csv"), clips)
    words = ("audio", "sounds.csv", "--backbone", "htsat-demo", "--weights", "random")
    refused = invoke(*words)
    assert isinstance(refused.exception, ConfigError)
    assert "none of 32" in str(refused.exception)
    assert "--media-root" in str(refused.exception)
    assert not Path("features").exists()
    for i in range(3):  # among those that are looked at
        write_media(Path(f"{i}.wav"), sound=tone(1.0, 8000), sound_codec="pcm_s16le")
    assert invoke(*words).exit_code == 3
    assert len(read_ledger(Path("features/sounds/audio-htsat-demo"))) == 37


def test_a_path_that_no_file_system_takes_costs_its_clip_alone(project: Path) -> None:
    paths = ["x" * 300 + ".wav", *(f"{i}.wav" for i in range(39))]
    write_manifest(Path("sounds.csv"), [Clip(clip_id=path, path=path) for path in paths])
    write_media(Path("38.wav"), sound=tone(1.0, 8000), sound_codec="pcm_s16le")
    words = ("audio", "sounds.csv", "--backbone", "htsat-demo", "--weights", "random")
    assert "none of 32" in str(invoke(*words).exception)
    for i in range(3):
        Path(f"{i}.wav").hardlink_to("38.wav")
    assert invoke(*words).exit_code == 3
    ledger = read_ledger(Path("features/sounds/audio-htsat-demo"))
    assert len(ledger) == 36
    assert ledger[paths[0]].code == "missing"


def test_links_out_of_the_media_root_are_refused_with_what_to_type(project: Path) -> None:
    for folder in ("media", "links"):
        Path(folder).mkdir()
    write_media(Path("media/a.wav"), sound=tone(1.0, 8000), sound_codec="pcm_s16le")
    for i in range(40):
        Path(f"links/{i}.wav").symlink_to("../media/a.wav")
    write_manifest(Path("s.csv"), [Clip(clip_id=str(i), path=f"{i}.wav") for i in range(40)])
    words = ("audio", "s.csv", "--backbone", "htsat-demo", "--weights", "random")
    refused = invoke(*words, "--media-root", "links")
    assert "name a folder above both" in str(refused.exception)
    assert not Path("features").exists()


def test_a_set_knows_the_command_that_it_was_typed_with(project: Path) -> None:
    write_sentences(3)
    words = ("text", "sentences.csv", "--backbone", "bert-demo", "--weights=random")
    assert invoke(*words, "--max-words", "2", "--part", "1/2", "--json").exit_code == 0
    (folder,) = find_sets(Path("features"))
    typed = read_set(folder)[1].command
    command = shlex.join(("micu-extract", *words, "--max-words", "2"))
    assert typed == f"cd {shlex.quote(str(project))} && {command}"
    (folder / "shard-00000.h5").write_bytes(b"")
    repaired = invoke("verify", "--data", "--repair")
    assert typed in repaired.output


def test_the_command_that_a_set_knows_makes_all_of_it_again(project: Path) -> None:
    """Whatever was left out when it was typed, and whatever was typed since."""
    write_sentences(3)
    clips = [Clip(clip_id=name, path=f"{name}.wav", text=name) for name in "ab"]
    Path("media").mkdir()
    for clip in clips:
        write_media(Path("media", clip.path), sound=tone(1.0, 8000), sound_codec="pcm_s16le")
    write_manifest(Path("both.csv"), clips)
    sound = ("audio", "--backbone", "htsat-demo", "--weights", "random", "--shard-rows", "1")
    text = ("text", "--backbone", "bert-demo", "--weights", "random", "--shard-rows", "1")
    for words in (
        ("audio", "both.csv", *sound[1:], "--media-root", "media"),
        sound,
        text,
        (*text, "--limit", "1"),
        (*text, "sentences.csv"),
    ):
        assert invoke(*words).exit_code == 0, words
    folders = find_sets(Path("features"))
    assert len(folders) == 3
    for folder in folders:
        (folder / "shard-00001.h5").write_bytes(b"")
        _, _, command = read_set(folder)[1].command.partition(" && micu-extract ")
        invoke("verify", str(folder), "--data", "--repair")
        assert invoke(*shlex.split(command)).exit_code == 0
        assert verify_set(folder, data=True).problems == ()


def test_each_stream_is_decoded_once_for_all_backbones(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_source = micu_extract.media.source.Source._open

    def note(source: micu_extract.media.source.Source) -> None:
        opened.append(source.kind)
        open_source(source)

    monkeypatch.setattr(micu_extract.media.source.Source, "_open", note)
    clip = read_manifest(Path("manifests/vggsound.csv")).clips[0]
    wants = {
        **{f"video{i}": FrameInput(fps=i + 1, resize=16, crop=16) for i in range(2)},
        **{f"flow{i}": FlowInput(clip_len=1, resize=16 + i, crop=16) for i in range(2)},
        **{f"audio{i}": WaveformInput(sample_rate=8000 + i, window_s=1) for i in range(2)},
    }
    reading = micu_extract.media.source.Reading(media_root=project / "manifests")
    found = read_several(clip, wants, reading)
    assert opened == ["video", "audio"]
    for name, spec in wants.items():
        alone = read(clip, spec, reading)
        for unit, other in zip(found[name].units, alone.units, strict=True):
            np.testing.assert_array_equal(unit, other)


def test_what_is_said_of_a_backbone_that_is_not_asked_for_is_refused(project: Path) -> None:
    for wrong, told in (
        (("--weights", "htsat=random"), "'htsat' is not one of --backbones"),
        (("--set", "bert-demo.max_word=3"), "did you mean 'max_words'"),
        (("--set", "bert-demo.max-words=x"), "'x' is not a valid integer"),
        (("--tvl1",), "no backbone of --backbones takes flow"),
    ):
        done = invoke("all", "--backbones", "bert-demo", *wrong, "manifests/vggsound.csv")
        assert done.exit_code == 2
        assert told in done.output


def test_a_link_to_a_folder_that_is_not_there_is_named(project: Path) -> None:
    write_sentences(3)
    Path("features").symlink_to("disk/features")
    done = invoke("text", "sentences.csv", "--backbone", "bert-demo", "--weights", "random")
    assert isinstance(done.exception, ConfigError)
    assert f"got a link to {project}/disk/features, which is not there" in str(done.exception)
    assert not Path("disk").exists()
