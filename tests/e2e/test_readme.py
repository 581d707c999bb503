"""What README.md and the pages of docs/ tell users to type works."""

import contextlib
import re
import shlex
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from micu.cli.evaluate import main as eval_command
from micu.cli.evaluate import task_first
from micu.cli.features import parse_modalities
from micu.cli.train import main as train_command
from micu.store.manifest import MODALITIES
from micu.store.sets import RunRecord, publish_shard, write_set
from micu.store.shard import FeatureRow, FeatureSpec, Header
from micu_extract.backbones import find_backbone
from micu_extract.cli import cli as extract_command
from micu_extract.demo.media import EVENTS, write_clip
from micu_extract.demo.tour import cli as demo_command
from tests.feature_sets import SMALL

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()
COMMANDS: dict[str, click.Command] = {
    "micu-extract": extract_command,
    "micu-demo": demo_command,
    "micu-train": train_command,
    "micu-eval": eval_command,
}


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def typed_commands(text: str) -> list[str]:
    """Commands of ours in sh blocks, and those with arguments between backticks."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    parts = [part for line in lines for part in line.split("&&")]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [span.replace("\n", " ") for span in re.findall(r"`(micu-[a-z]+ [^`]+)`", prose)]
    ours = re.compile(r"\s*(\.venv/bin/)?micu-")
    return [part.strip() for part in [*parts, *spans] if ours.match(part)]


TYPED = [
    command
    for path in (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))
    if path.name != "commands.md"
    for command in typed_commands(path.read_text())
]


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README's commands name."""
    tables = ("visual_feature.h5", "audio_feature.h5", "labels.h5")
    lists = ("my.csv", "known.csv", "manifests/ave.csv", "manifests/vggsound-avel40k.csv")
    for name in (*lists, *tables, "runs/micu-avft-43/last.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("features", "clips", "AVE_Dataset"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(command: str) -> click.Context:
    """Parse a command line as its program would, without running it."""
    name, *arguments = shlex.split(command, comments=True)
    program = COMMANDS[Path(name).name]
    if program is eval_command and not arguments[0].startswith("-"):
        arguments = task_first(arguments, eval_command.commands)
    if isinstance(program, click.Group):
        name, found, arguments = program.resolve_command(click.Context(program), arguments)
        assert name
        assert found
        program = found
    return program.make_context(name, arguments)


def check_names(context: click.Context) -> None:
    """Values that click leaves as text name something that there is."""
    values = context.params
    # Those of the example's package are typed by a test of plug-ins.
    if values.get("backbone") and not values["backbone"].startswith("example-"):
        find_backbone(values["backbone"])
    if values.get("modalities"):
        parse_modalities(values["modalities"])
    for name in ("source", "target"):
        assert values.get(name) in (None, *MODALITIES)


@pytest.mark.parametrize("command", TYPED)
def test_what_is_typed_is_understood(users_folder: Path, command: str) -> None:
    ends: list[type[BaseException]] = [click.exceptions.Exit]  # --help
    if "-" not in command.removeprefix("micu-"):
        ends.append(click.MissingParameter)  # `micu-extract manifest` in a sentence
    with contextlib.suppress(*ends):
        check_names(parse(command))


def test_the_documents_name_every_program() -> None:
    assert {Path(shlex.split(command)[0]).name for command in TYPED} == COMMANDS.keys()
    assert len(TYPED) >= 10


@pytest.mark.parametrize(
    "wrong", ["micu-extract video --backbnoe swinv2 my.csv", "micu-extract viedo", "micu-train x"]
)
def test_a_line_that_is_wrong_would_be_found(users_folder: Path, wrong: str) -> None:
    with pytest.raises(click.UsageError):
        parse(wrong)


def test_the_two_commands_start_from_nothing_and_install_what_they_run() -> None:
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    tests = [line for line in README.splitlines() if re.search(r"\.venv/bin/pytest$", line)]

    assert tests[0] in lines, ".ci/run takes the first line that ends in .venv/bin/pytest"
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/micu-demo" in lines
    (extra,) = re.findall(r"pip install -e '\.\[(\w+)\]'", tests[0])
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert any(need.startswith("micu[test") for need in extras[extra])
    assert any(need.startswith("pytest") for need in extras["test"])
    assert "micu-demo" in project["scripts"]


def test_the_python_block_prints_the_features_of_every_set(
    users_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = FeatureSpec(
        backbone="toy",
        modality="video",
        shape=(4,),
        hop_s=1.0,
        weights="random:0",
        weights_sha256="ab",
    )
    header = Header(spec=spec, shard_rows=64)
    folder = users_folder / "features" / "my" / "video-toy"
    row = FeatureRow("a", np.ones((3, 4), np.float32), np.ones(3, bool), np.arange(3) + 0.5)
    write_set(folder, header, RunRecord(manifest_path="my.csv", media_root=".", rows=1))
    publish_shard(folder, 0, header, [row])
    (block,) = (code for code in blocks(README, "python") if "FeatureStore" in code)

    exec(compile(block, "README.md", "exec"), {})

    assert capsys.readouterr().out == "toy (3, 4) [ True  True  True] [0.5 1.5 2.5]\n"


@pytest.mark.slow
def test_the_block_about_own_clips_runs_as_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With backbones that need no weights, and a network that steps in milliseconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MICU_MANIFEST", raising=False)
    for number, name in enumerate(EVENTS):
        for place in range(3):
            path = tmp_path / "clips" / name / f"{place}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, name, (number, place))
    section = README.partition("## Your own clips")[2].partition("\n## ")[0]
    (block,) = blocks(section, "sh")
    lines = block.splitlines()
    assert len(lines) == 5
    small = [word for setting in SMALL for word in ("--set", setting)]
    told = ""
    for line in lines:
        line = line.replace("swinv2", "swinv2-demo --weights random")
        line = line.replace("htsat-clap", "htsat-demo --weights random")
        name, *words = shlex.split(line, comments=True)
        more = [*small, "--set", "optimizer.max_steps=4"] if name == "micu-train" else []
        done = CliRunner().invoke(COMMANDS[name], [*words, *more])
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception}"
        told += done.output
    assert "10 train, 10 val, 10 test" in told
    assert "learning rate is 0.002" in told
    assert (tmp_path / "results.csv").is_file()
