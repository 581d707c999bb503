"""The documented commands for the paper's tables run, on small stores of the official shapes."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from micu.cli.evaluate import main
from micu.evaluate.report import read_rows
from micu.report.paper import SETTINGS
from micu.store.manifest import Clip, write_manifest
from micu.store.shard import FeatureRow
from tests.conftest import PROJECT
from tests.feature_sets import write_features
from tests.oracle import BACKBONES, OFFICIAL, know_everything, write_checkpoint
from tests.paper_clips import CLASS_LISTS, EVENTS, captioned, clips_of, known

PAGE = (PROJECT / "docs/paper.md").read_text()
SECTION = PAGE.partition("## The paper's tables\n")[2].partition("\n## ")[0]
COMMANDS = [line for line in SECTION.splitlines() if line.startswith("micu-eval ")]


def one_second(clip: Clip, modality: str, shape: tuple[int, ...], steps: int) -> FeatureRow:
    """One step that says the item, which for classes is one of ten."""
    number = int(clip.group.split("/")[1]) % 10
    times_s = np.array([np.nan if modality == "text" else 0.5])
    values = np.full((1, *shape), number, np.float32)
    return FeatureRow(clip.clip_id, values, np.ones(1, np.bool_), times_s)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user would type the commands."""
    root = tmp_path_factory.mktemp("tables")
    two_sets = clips_of(known("ucf-vgg-8", "other", "another"), ("train", "test"), 3)
    manifests = {
        "ave": clips_of(known("ave-21", "other"), ("train", "val", "test"), 1),
        "ucf101": clips_of(known("ucf51-34", "other"), ("",), 4),
        "ucf-vgg": two_sets,
        "vgg-ucf": two_sets,
        "avvp": EVENTS,
        "ave-avvp": EVENTS,
        "mscoco": captioned(6, 5),
        "clotho": captioned(6, 5),
        "valor32k": clips_of(("a",), ("test",), 3),
    }
    sides = {"ucf-vgg": {"video": "train", "audio": "test"}}
    sides["vgg-ucf"] = {"audio": "train", "video": "test"}
    for name, clips in manifests.items():
        side = sides.get(name)
        write_features(
            root / "features",
            clips,
            OFFICIAL if side is None else {kind: OFFICIAL[kind] for kind in side},
            name=name,
            backbones=BACKBONES,
            make=one_second,
            has=lambda clip, kind, side=side: side is None or side[kind] == clip.split,  # type: ignore[misc]
        )
    (root / "manifests").mkdir()
    (root / "manifests" / "classes").symlink_to(CLASS_LISTS)
    for name in manifests:
        (root / f"{name}.csv").rename(root / "manifests" / f"{name}.csv")
    write_manifest(root / "manifests" / "vggsound-avel40k.csv", [Clip(clip_id="seen/1")])
    write_checkpoint(root / "MICU.pt", root / "features")
    return root


@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: text[-60:])
def test_a_command_of_the_paper_s_tables_gives_its_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    know_everything(monkeypatch, channel=0)
    monkeypatch.chdir(folder)
    command = command.replace("$SEEN", "manifests/vggsound-avel40k.csv")
    smaller = {"seeds": 1, "items": 5, "batch-size": 1}
    for option, value in smaller.items():
        command = re.sub(rf"--{option} \d+", f"--{option} {value}", command)
    arguments = [*shlex.split(command)[1:], "--out", str(tmp_path / "r.csv"), "--device", "cpu"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = read_rows(tmp_path / "r.csv")
    if "efficiency" in command:
        assert {row.protocol for row in rows} == {""}
        return
    assert {row.protocol for row in rows} == {"paper", "clean"}
    setting = rows[0].setting
    assert setting in SETTINGS or "codebook" in command
    assert all("pretraining-overlap" not in row.leaks for row in rows)
