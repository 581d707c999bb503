"""`micu-eval paper-run`: every table and figure of the paper, on stand-in features."""

import csv
import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import micu.cli.paper_run
from micu.cli.evaluate import main
from micu.cli.paper_plan import BACKBONES, evaluations_of
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.evaluate.report import read_rows
from micu.report.as_printed import LAYOUTS
from micu.report.paper import read_printed
from micu.store.manifest import Clip
from micu.store.sets import find_sets, read_set
from micu.store.shard import FeatureRow
from micu.train.checkpoint import Position, save_checkpoint
from micu.train.step import build_state
from tests.conftest import PROJECT
from tests.feature_sets import SMALL, write_features
from tests.paper_clips import CLASS_LISTS, EVENTS, captioned, clips_of, known

SHAPES = {"vgg19": (2, 2, 4), "vggish": (6,), "bert": (7,)}
SHAPES |= {"swinv2": (5,), "htsat": (4,), "slowonly": (8,), "joint": (4,)}
QUICK = ("--options", "--probe-epochs 1", "--device", "cpu")
EVERY = pytest.mark.parametrize(
    ("kind", "number"), list(LAYOUTS), ids=[f"{kind}-{number}" for kind, number in LAYOUTS]
)


def one_second(clip: Clip, modality: str, shape: tuple[int, ...], steps: int) -> FeatureRow:
    """One step whose numbers are those of the clip's class, nearly."""
    number = sum(map(ord, clip.label or "".join(e.label for e in clip.events)))
    own = sum(map(ord, clip.clip_id))
    pattern = np.random.default_rng((number, len(modality))).normal(size=shape)
    noise = np.random.default_rng((own, 7)).normal(size=shape)
    times_s = np.array([np.nan if modality == "text" else 0.5])
    values = (pattern + 0.1 * noise)[None].astype(np.float32)
    return FeatureRow(clip.clip_id, values, np.ones(1, np.bool_), times_s)


def kinds_of(name: str) -> dict[str, Sequence[str]]:
    """Modality → backbones that a data set has features of."""
    found: dict[str, list[str]] = {}
    for own in BACKBONES.values():
        for modality, backbone in own.items():
            if backbone not in found.setdefault(modality, []):
                found[modality].append(backbone)
    for modality in found:
        found[modality].append("joint")
    wanted = {"mscoco": ("video", "text"), "clotho": ("audio", "text")}.get(name)
    return {m: b for m, b in found.items() if wanted is None or m in wanted}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests, features of all six backbones, and where runs and results go."""
    root = tmp_path_factory.mktemp("paper")
    two_sets = clips_of(known("ucf-vgg-12", "other", "another"), ("train", "test"), 2)
    manifests = {
        "ave": clips_of(known("ave-21", "other"), ("train", "val", "test"), 1),
        "ucf101": clips_of(known("ucf51-34", "other"), ("",), 2),
        "ucf-vgg": two_sets,
        "vgg-ucf": [replace(c, split={"train": "test"}.get(c.split, "train")) for c in two_sets],
        "avvp": EVENTS,
        "ave-avvp": EVENTS,
        "mscoco": captioned(500, 2),
        "clotho": captioned(20, 2),
        "valor32k": clips_of(("a", "b"), ("test",), 3),
        "vggsound-avel40k": clips_of(("x", "y"), ("train", "test"), 5),
    }
    heard = {"ucf-vgg": "test", "vgg-ucf": "train"}  # the clips of VGGSound, which have sound alone
    for name, clips in manifests.items():
        for modality, backbones in kinds_of(name).items():
            for backbone in backbones:
                write_features(
                    root / "features",
                    clips,
                    {modality: SHAPES[backbone]},
                    name=name,
                    backbones={modality: backbone},
                    make=one_second,
                    has=lambda clip, kind, name=name: (  # type: ignore[misc]
                        name not in heard or (clip.split == heard[name]) == (kind == "audio")
                    ),
                )
    (root / "manifests").mkdir()
    shutil.copytree(CLASS_LISTS, root / "manifests" / "classes")
    for name in manifests:
        (root / f"{name}.csv").rename(root / "manifests" / f"{name}.csv")
    return root


def checkpoint(folder: Path, preset: str, backbones: str) -> Path:
    """A small model of a preset that was not trained."""
    path = folder / f"{preset}{backbones}.pt"
    if not path.exists():
        own = BACKBONES[backbones]
        names = ",".join(name for name in ("audio", "video", "flow", "text") if name in own)
        changes = [x for x in SMALL if preset.startswith("micu") or "jigsaw" not in x]
        changes += ["baselines.code_matching.warmup=0"] * (preset == "cmcm")
        if preset.startswith("fig5"):
            changes = [x for x in changes if "codebook_size" not in x]
        config = with_overrides(PRESETS[preset](), [*changes, f"modalities={names}"])
        config = replace(config, jigsaw=replace(config.jigsaw, splits=2, permutations=2))
        shapes = {name: SHAPES[own[name]] for name in config.modalities}
        specs = {}
        for place in find_sets(folder / "features" / "ave"):
            spec = read_set(place)[0].spec
            if own.get(spec.modality) == spec.backbone:
                specs[spec.modality] = spec
        state = build_state(config, shapes, "cpu", 10)
        extra: dict[str, Any] = {"preset": preset}
        save_checkpoint(state, path, specs=specs, position=Position(), extra=extra)
    return path


def type_in(folder: Path, *words: str | Path) -> Result:
    given = ["--features", folder / "features", "--manifests", folder / "manifests"]
    return CliRunner().invoke(main, ["paper-run", *map(str, [*given, *words])])


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts with their first and last method alone: the others are like them."""
    short: Mapping[tuple[str, int], Any] = {
        key: replace(layout, methods=tuple(dict.fromkeys((layout.methods[0], layout.methods[-1]))))
        for key, layout in LAYOUTS.items()
    }
    monkeypatch.setattr(micu.cli.paper_run, "LAYOUTS", short)


@EVERY
def test_a_table_or_figure_is_made_from_features_and_checkpoints(
    folder: Path, tmp_path: Path, ends: None, kind: str, number: int
) -> None:
    layout = micu.cli.paper_run.LAYOUTS[kind, number]
    jobs = evaluations_of(layout)
    words: list[str | Path] = []
    for preset, backbones in dict.fromkeys((job.preset, job.backbones) for job in jobs):
        words += ["--checkpoint", f"{preset}{backbones}={checkpoint(folder, preset, backbones)}"]
    typed = [f"--{kind}", str(number), *words, *QUICK, "--out", tmp_path / "out"]
    result = type_in(folder, *typed)
    assert result.exit_code == 0, result.output
    rows = read_rows(tmp_path / "out" / "results.csv")
    page = (tmp_path / "out" / "page.md").read_text()
    assert page.startswith(f"# {kind.capitalize()} {number}\n")
    assert (tmp_path / "out" / "page.html").read_text().count("<svg") == {
        3: 6,
        4: 6,
        5: 2,
        6: 2,
    }.get(number if kind == "figure" else 0, 0)
    if (kind, number) == ("figure", 6):
        assert "share of the active codes by how many modalities" in page
        return
    published = page.partition("\n## ")[2].partition("\n## ")[0]
    cells = list(cells_of(published))
    assert len(cells) >= len(layout.methods)
    assert all(re.match(r"\d", cell) for cell in cells), published
    assert {row.setting for row in rows} >= set(layout.settings)
    again = type_in(folder, *typed)
    assert again.exit_code == 0
    assert again.stderr.count("not repeated") == len(jobs)


def cells_of(markdown: str) -> Iterator[str]:
    """Cells of all tables, without their first column and header."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    for i, line in enumerate(lines):
        is_head = i + 1 < len(lines) and set(lines[i + 1]) <= set("|-: ")
        if not is_head and not set(line) <= set("|-: "):
            yield from (cell.strip() for cell in line.strip("|").split("|")[1:])


@pytest.mark.parametrize("number", range(2, 10))
def test_every_printed_figure_has_a_column_row_and_command(number: int) -> None:
    layout = LAYOUTS["table", number]
    printed = [figure for figure in read_printed() if figure.table == number]
    assert {figure.method for figure in printed} == {method.filed for method in layout.methods}
    if number == 9:
        return
    assert {figure.setting for figure in printed} == set(layout.settings)
    made = set()
    for job in evaluations_of(layout):
        pairs = job.words[job.words.index("--pairs") + 1].upper().split(",")
        setting = job.words[job.words.index("--setting") + 1]
        for pair in pairs:
            made.add((job.preset, setting, pair.replace(":", "->")))
    for figure in printed:
        preset = next(m.preset for m in layout.methods if m.filed == figure.method)
        one, other = re.split("<?->", figure.direction)
        ways = [(one, other)]
        if "<" in figure.direction and number != 4:  # retrieval goes both ways in one call
            ways.append((other, one))
        for way in ways:
            assert (preset, figure.setting, "->".join(way)) in made, figure


def test_what_is_missing_is_told_with_the_command_and_the_rest_is_done(
    folder: Path, tmp_path: Path, ends: None
) -> None:
    shutil.copytree(folder, tmp_path / "some", symlinks=True)
    some = tmp_path / "some"
    shutil.rmtree(some / "features" / "clotho")
    (some / "manifests" / "mscoco.csv").unlink()
    given = ["--checkpoint", f"micu={checkpoint(folder, 'micu', '')}", *QUICK]
    typed = ["--table", "4", *given, "--out", tmp_path / "out"]
    planned = type_in(some, *typed, "--dry-run")
    assert planned.exit_code == 0
    assert "4 evaluations of 2 methods, 0 can be done" in planned.output
    for line in (
        f"micu-extract manifest mscoco -o {some}/manifests/mscoco.csv",
        f"micu-extract video {some}/manifests/mscoco.csv --backbone vgg19 --out {some}/features",
        f"micu-extract audio {some}/manifests/clotho.csv --backbone vggish --out {some}/features",
        "add --train, or --checkpoint cmcm=FILE.pt",
    ):
        assert line in planned.output
    assert not (tmp_path / "out").exists()
    shutil.copytree(folder / "features" / "clotho", some / "features" / "clotho")
    done = type_in(some, *typed)
    assert done.exit_code == 3, done.output
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert {row.setting for row in rows} == {"clotho"}
    assert "– (" in (tmp_path / "out" / "page.md").read_text()


def test_methods_are_trained_where_that_is_asked_for_and_not_again(
    folder: Path, tmp_path: Path, ends: None
) -> None:
    typed = ["--table", "4", "--train", "--runs", tmp_path / "runs", "--out", tmp_path / "out"]
    small = [*SMALL, "optimizer.epochs=1", "baselines.code_matching.warmup=0", "data.steps=2"]
    for text in small:
        typed += ["--set", text]
    result = type_in(folder, *typed, *QUICK)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "cmcm-original" / "last.pt").is_file()
    presets = {row.preset.partition(" ")[0] for row in read_rows(tmp_path / "out/results.csv")}
    assert presets == {"cmcm", "micu"}
    again = type_in(folder, *typed, *QUICK)
    assert again.stderr.count("not repeated") == 2 + 4


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_frozen_encoder_of_all_modalities_is_a_line_of_a_table(
    folder: Path, tmp_path: Path, ends: None, number: int
) -> None:
    typed = ["--table", str(number), "--frozen", "joint", *QUICK, "--out", tmp_path / "out"]
    result = type_in(folder, *typed)
    assert result.exit_code == 3  # the methods have no checkpoints
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert {row.method for row in rows} == {"frozen:joint"}
    assert {row.setting for row in rows} == set(LAYOUTS["table", number].settings)
    assert {row.preset + row.checkpoint_sha256 for row in rows} == {""}
    assert all("pretraining-overlap:unknown" in row.leaks for row in rows)
    assert all(row.features.count(":joint@") == 2 for row in rows)
    lines = (tmp_path / "out" / "page.md").read_text().splitlines()
    found = [line for line in lines if line.startswith("| frozen:joint")]
    assert found
    assert not any("–" in line for line in found[: len(found) // 2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cmg", "frozen:"], "frozen:: expected frozen:BACKBONE"),
        (["codebook", "frozen:joint"], "got it with micu-eval codebook; type another"),
        (["cmg", "frozen:joint", "--encoder", "input"], "leave out --encoder"),
        (["cmg", "frozen:joint", "--video-features", "vgg19"], "leave out --video-features"),
        (["cmg", "frozen:joint", "--toc", "3"], "--toc: --encoder frozen:joint has no codes"),
        (["cmg", "frozen:joint", "--probe-epochs", "3"], "frozen:joint has a logistic regression"),
        (["cmg", "frozen:vgg19"], "no audio features of backbone 'vgg19'"),
    ],
)
def test_a_frozen_encoder_is_refused_where_nothing_reads_it_so(
    folder: Path, tmp_path: Path, words: Sequence[str], message: str
) -> None:
    given = ["--features", folder / "features", "--manifest", folder / "manifests" / "ave.csv"]
    given += ["--pairs", "v:a"] if words[0] == "cmg" else []
    result = CliRunner().invoke(main, [*words, *map(str, [*given, "--out", tmp_path / "r.csv"])])
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_the_cost_of_methods_with_schedules_is_measured_after_their_warm_start(
    folder: Path, tmp_path: Path
) -> None:
    path = checkpoint(folder, "turn", "")
    words = ["--steps", "1", "--batch-size", "2", "--device", "cpu", "--out", tmp_path / "r.csv"]
    result = CliRunner().invoke(main, ["efficiency", str(path), *map(str, words)])
    assert result.exit_code == 0, result.output
    found = {row.metric: row.value for row in read_rows(tmp_path / "r.csv")}
    assert found["seconds_per_step"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"expected --table of \[2, 3, 4, 5, 6, 7, 8, 9\] or --figure of \[3, 4, 5, 6\]"),
        (("--table", "2", "--figure", "3"), "got both"),
        (("--table", "1"), "got 1; type one"),
        (("--figure", "2"), "got 2; type one"),
        (("--table", "2", "--checkpoint", "none.pt"), "got a file that is not there"),
        (("--table", "2", "--checkpoint", "nothing=a.pt"), "got no preset 'nothing'"),
        (("--table", "2", "--set", "seed=1"), "--set: only --train reads it"),
        (("--table", "2", "--flow-features", "x"), "flow is not used"),
        (("--table", "9", "--frozen", "joint"), "--frozen: table 9 compares settings of MICU"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder: Path, words: Sequence[str], message: str) -> None:
    result = type_in(folder, *words)
    assert result.exit_code == 2
    assert re.search(message, result.stderr.replace("\n", " ")), result.stderr


def test_a_checkpoint_of_a_method_that_the_table_has_not_is_refused(folder: Path) -> None:
    path = checkpoint(folder, "fig3-mmjp", "")
    result = type_in(folder, "--table", "2", "--checkpoint", f"fig3-mmjp={path}")
    assert result.exit_code == 2
    assert "table 2 has codis, turn, cmcm, dcid, micu; leave it out" in result.stderr


def test_the_printed_figures_stand_beside_ours() -> None:
    text = (PROJECT / "micu/report/paper_results.csv").read_text()
    assert len(list(csv.DictReader(io.StringIO(text)))) == 697
