"""Mistakes that people type in their first hour: how each ends, and what it names."""

import shlex
import shutil
import sys
import unicodedata
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from micu.cli import TOOLS
from micu.store.manifest import write_manifest
from tests.feature_sets import make_clips
from tests.media_files import write_media
from tests.oracle import write_checkpoint, write_sets

EVAL = "micu-eval oscmg last.pt --pairs v:a --known known.csv"
TRAIN = "micu-train --modalities v,a"
VIDEO = "micu-extract video --backbone swinv2-demo --weights random"

MISTAKES: dict[str, tuple[int, tuple[str, ...]]] = {
    # extracting
    "micu-extract viedo my.csv": (2, ("No such command 'viedo'",)),
    f"{VIDEO} nothere.csv": (2, ("nothere.csv: no such manifest",)),
    f"{VIDEO} media": (2, ("media: expected a manifest", "got a folder", "--media-root media")),
    f"{VIDEO} media my.csv": (2, ("my.csv", "--media-root media")),
    f"{VIDEO} two.csv --media-root empty": (
        2,
        ("media root empty", "got none of 2", "'a.mp4'", "type --media-root"),
    ),
    "micu-extract video two.csv --backbone swinv3": (2, ("did you mean 'swinv2'",)),
    "micu-extract video two.csv --backbone htsat": (2, ("micu-extract audio --backbone htsat",)),
    "micu-extract flow two.csv": (2, ("--tvl1",)),
    f"{VIDEO} last.pt": (2, ("last.pt",)),
    f"{VIDEO} nfd.csv --media-root media --out nfd": (0, ()),
    f"{VIDEO} two.csv --media-root media --out my.csv/x": (74, ("my.csv",)),
    "micu-extract verify nowhere": (2, ("nowhere",)),
    "micu-extract manifest folder --annotations empty -o new.csv": (2, ("folder per class",)),
    "micu-extract manifest folder --annotations media -o new.csv --split 70,30": (
        2,
        ("train, val and test, such as 70,15,15",),
    ),
    "micu-extract manifest vggsound --annotations nowhere -o new.csv": (2, ("nowhere",)),
    # training
    "micu-train --modalities v a": (2, ("--modalities v,a",)),
    "micu-train --modalities v": (2, ("expected two or more",)),
    "micu-train --modalities v,q": (2, ("unknown modality 'q'",)),
    f"{TRAIN} --set epochs=3": (2, ("--set epochs", "did you mean optimizer.epochs?")),
    f"{TRAIN} --set optimizer.epoch=3": (2, ("did you mean 'epochs'",)),
    f"{TRAIN} --set optimizer.epochs=three": (2, ("expected int, got 'three'",)),
    f"{TRAIN} --preset smal": (2, ("'small'",)),
    f"{TRAIN} --out my.csv/run": (2, ("--out my.csv/run: ", "name another place")),
    f"{TRAIN} --out my.csv": (2, ("my.csv",)),
    f"{TRAIN} --features features/toy": (2, ("type --features", "features")),
    "micu-train --modalities v,f": (2, ("no flow features", "micu-extract flow --tvl1")),
    # evaluating
    "micu-eval oscmg run/config.json --pairs v:a --known known.csv": (
        2,
        ("run/config.json: expected a checkpoint", "type run/last.pt"),
    ),
    "micu-eval oscmg run --pairs v:a --known known.csv": (2, ("type run/last.pt",)),
    "micu-eval oscmg nolast --pairs v:a --known known.csv": (2, ("nolast", "step-3.pt")),
    "micu-eval oscmg my.csv --pairs v:a --known known.csv": (2, ("my.csv: expected a checkpoint",)),
    "micu-eval nowhere.pt oscmg --pairs v:a --known known.csv": (
        2,
        ("nowhere.pt: no such checkpoint", "micu-eval oscmg CHECKPOINT"),
    ),
    "micu-eval oscmg last.pt --known known.csv": (2, ("--pairs v:a",)),
    "micu-eval oscmg last.pt --pairs v-a --known known.csv": (2, ("SOURCE:TARGET such as v:a",)),
    "micu-eval oscmg last.pt --pairs v:a --known toy.csv": (
        2,
        ("toy.csv: expected a list of known classes", "manifest"),
    ),
    "micu-eval oscmg last.pt --pairs v:a --known known.csv --manifest bare.csv": (
        2,
        ("no clip of the manifest has a class", "column label"),
    ),
    f"{EVAL} --out features": (2, ("features", "expected a file, got a folder")),
    "micu-eval oscmg last.pt --pairs v:f --known known.csv": (2, ("flow",)),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of media; features of a manifest, a run, and lists that do not fit."""
    home = tmp_path_factory.mktemp("home")
    toy = make_clips(24, ("train", "test"))
    write_sets(home, "toy", toy, "avt", ("drum", "engine", "violin"))
    write_checkpoint(home / "last.pt", home / "features")
    for run, name in (("run", "last.pt"), ("nolast", "step-3.pt")):
        (home / run).mkdir()
        (home / run / name).write_bytes((home / "last.pt").read_bytes())
        (home / run / "config.json").write_text("{}\n")
    shutil.copytree(home / "features/toy", home / "features/bare")
    write_manifest(home / "bare.csv", [replace(c, label="") for c in toy])
    (home / "known.csv").write_text("label\ndrum\nengine\n")
    (home / "my.csv").write_text("clip_id,path,label\nx,x.mp4,dog\n")
    (home / "two.csv").write_text("clip_id,path,label\na,a.mp4,dog\nb,b.mp4,cat\n")
    composed = unicodedata.normalize("NFC", "é.mp4")
    (home / "nfd.csv").write_text(f"clip_id,path\ne,{composed}\n", encoding="utf-8")
    (home / "empty").mkdir()
    (home / "media").mkdir()
    for name in ("a.mp4", "b.mp4", unicodedata.normalize("NFD", "é.mp4")):
        write_media(home / "media" / name, frames=20)
    return home


def type_line(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a line, and what it says."""
    name, *_ = sys.argv = shlex.split(line)
    with pytest.raises(SystemExit) as ended:
        import_module(TOOLS[name.removeprefix("micu-")][0]).main()
    return int(ended.value.code or 0), "".join(capsys.readouterr())


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_as_it_should_and_names_what_helps(
    line: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.delenv("MICU_MANIFEST", raising=False)
    before = {path: path.read_bytes() for path in home.glob("*.csv")}
    code, told = type_line(line, capsys)

    expected, names = MISTAKES[line]
    assert [name for name in names if name not in told] == [], told
    assert code == expected, told
    assert "Traceback" not in told
    assert {path: path.read_bytes() for path in before} == before
