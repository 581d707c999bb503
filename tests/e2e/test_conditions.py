"""Rows of `micu-eval` that were obtained otherwise stand beside each other in a results file."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from micu.cli.evaluate import main
from micu.evaluate.codebook import read_codebook
from micu.evaluate.evaluation import Published, find_published
from micu.evaluate.report import Row, read_rows
from micu.report.paper import SETTINGS
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.shard import FeatureRow
from micu.train.checkpoint import load_checkpoint
from micu.train.step import build_state
from tests.checkpoints import with_task
from tests.feature_sets import CLASSES, make_clips, write_features
from tests.oracle import (
    BACKBONES,
    OFFICIAL,
    know_everything,
    know_nothing,
    write_checkpoint,
    write_sets,
)


def numbered_row(clip: Clip, modality: str, shape: tuple[int, ...], steps: int) -> FeatureRow:
    """Features that say which picture a row is about."""
    values = np.full((steps, *shape), int(clip.group[2]), np.float32)
    times_s = np.full(steps, np.nan) if modality == "text" else np.arange(steps) + 0.5
    return FeatureRow(clip.clip_id, values, np.ones(steps, np.bool_), times_s)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, known classes, a manifest of what was pretrained on, a class map, a checkpoint."""
    folder = tmp_path_factory.mktemp("conditions")
    write_sets(folder, "m", make_clips(36, ("train", "val", "test")), "avt", CLASSES)
    (folder / "known.csv").write_text("label\ndrum\nengine\n")
    (folder / "map.csv").write_text("label,other\nviolin,fiddle\n")
    pictures = [
        Clip(clip_id=f"p/{i}#{k}", path="x.jpg" * (not k), text="words", group=f"p/{i}#0")
        for i in range(6)
        for k in range(2)
    ]
    write_features(
        folder / "features",
        pictures,
        OFFICIAL,
        name="pictures",
        backbones=BACKBONES,
        make=numbered_row,
    )
    seen = read_manifest(folder / "m.csv").clips[:18]
    write_manifest(folder / "seen.csv", seen)
    write_checkpoint(folder / "last.pt", folder / "features")
    return folder


def evaluate(root: Path, out: Path, *options: str | Path) -> list[Row]:
    task, *rest = with_task(options)
    arguments = [task, root / "last.pt", "--out", out, "--device", "cpu", *rest]
    result = CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return read_rows(out)


def test_a_selected_checkpoint_and_another_pretraining_or_class_map_replace_no_row(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    out = tmp_path / "r.csv"
    given = ("--features", root / "features", "--manifest", root / "m.csv", "--pairs", "v:a")
    open_set = (*given, "--known", root / "known.csv", "--probe-epochs", "1")
    first = evaluate(root, out, *open_set)
    assert {row.conditions for row in first} == {""}
    (tmp_path / "again.pt").write_bytes((root / "last.pt").read_bytes())
    for options, condition in (
        ((tmp_path / "again.pt", "--select-on", "oracle"), "selected-on:oracle"),
        (("--pretraining-manifest", root / "seen.csv"), "pretraining:"),
        (("--class-map", root / "map.csv"), "class-map:"),
    ):
        before = read_rows(out)
        rows = evaluate(root, out, *open_set, *options)
        assert len(rows) == len(before) + len(first)
        added = [row for row in rows if row.conditions.startswith(condition)]
        assert len(added) == len(first)
    assert len(evaluate(root, out, *open_set)) == 4 * len(first)


def test_costs_of_other_batches_stand_beside_each_other(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    for size, conditions in ((1, 1), (2, 2), (2, 2)):
        rows = evaluate(root, out, "efficiency", "--batch-size", str(size), "--steps", "1")
        assert len({row.conditions for row in rows}) == conditions
    assert {row.conditions.split()[0] for row in rows} == {"batch:1", "batch:2"}
    assert "device:cpu" in rows[0].conditions
    model = load_checkpoint(root / "last.pt", "cpu").model
    counted = {row.metric: row.value for row in rows}
    unused = (model.specific_encoders, model.reconstructors)
    left_out = sum(p.numel() for part in unused for p in part.parameters())
    state = build_state(model.config, model.shapes, "cpu")
    losses = sum(p.numel() for p in state.losses.parameters())
    difference = counted["parameters"] - counted["parameters_downstream"]
    assert difference == left_out + losses  # the codebook is in both


def test_a_setting_is_trained_and_tested_as_its_published_script_and_says_what_is_not(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    given = ("--features", root / "features", "--manifest", root / "m.csv", "--pairs", "v:a")
    closed = ("cmg", *given, "--setting")
    rows = evaluate(root, tmp_path / "ave.csv", *closed, "ave")
    paper, clean = (
        next(row for row in rows if row.protocol == name) for name in ("paper", "clean")
    )
    assert (paper.splits, clean.splits) == ("test=train", "")
    assert "test-split:train" in paper.leaks
    assert paper.probe.startswith("epochs=30 ")
    assert paper.note.endswith(
        "; published: epochs counted on from the checkpoint's (--probe-epoch-offset), "
        "the encoder's dropout on while the probe trains"
    )
    assert "published" not in clean.note
    rows = evaluate(root, tmp_path / "vgg.csv", *closed, "ucf-vgg", "--protocol", "paper")
    assert rows[0].probe.startswith("epochs=40 ")
    typed = ("--probe-epochs", "2", "--probe-epoch-offset", "1", "--test-splits", "val")
    rows = evaluate(root, tmp_path / "typed.csv", *closed, "ave", *typed, "--protocol", "paper")
    assert "published: 30 epochs of the probe, the encoder's" in rows[0].note
    assert rows[0].note.endswith("tested on split train")


def test_every_setting_with_a_probe_has_its_published_script() -> None:
    for name, setting in SETTINGS.items():
        has_probe = setting.task in ("oscmg", "cmg")
        assert (find_published(setting.task, name) is not None) == has_probe, name
    assert find_published("oscmg", "ucf-17-vaf") == Published(16)
    assert find_published("oscmg", "ucf-vgg-8") == Published(25)


def test_the_gallery_of_retrieval_is_chosen_and_has_one_caption_each_where_published(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=1)
    given = ("--features", root / "features", "--manifest", root / "pictures.csv")
    retrieval = ("retrieval", *given, "--pairs", "a:t")
    out = tmp_path / "r.csv"
    evaluate(root, out, *retrieval, "--setting", "mscoco")
    rows = evaluate(root, out, *retrieval, "--setting", "mscoco", "--items", "4")
    sizes = {
        (row.protocol, row.conditions, row.test_modality): row.n_clips
        for row in rows
        if row.metric == "r1"
    }
    for protocol, captions in (("paper", 1), ("clean", 2)):
        for condition, items in (("", 6), ("items:4", 4)):
            assert sizes[protocol, condition, "text"] == items
            assert sizes[protocol, condition, "audio"] == items * captions
    assert {row.value for row in rows if row.metric == "r1"} == {1.0}
    arguments = ["retrieval", root / "last.pt", *retrieval[1:], "--items", "7", "--out", out]
    result = CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)
    assert result.exit_code == 2
    assert "--items 7: under clean there are only 6" in result.stderr


def test_codes_that_agree_are_shared_by_all_and_padded_words_are_not_counted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=1)
    counts = tmp_path / "codes.csv"
    given = ("--features", root / "features", "--manifest", root / "pictures.csv")
    rows = evaluate(*(root, tmp_path / "r.csv", "codebook", *given, "--codebook-out", counts))
    found = {(row.protocol, row.metric): row.value for row in rows if not row.test_modality}
    agreed = {row.value for row in rows if row.metric == "agreement"}
    assert agreed == {1.0}
    for protocol in ("paper", "clean"):
        assert found[protocol, "used_by_all"] == found[protocol, "shared_by_3"] == 1.0
    use = read_codebook(counts)
    assert use.protocol == "clean"  # the first that is evaluated
    assert {name: int(steps.sum()) for name, steps in use.counts.items()} == {
        "audio": 6 * 10,  # a second caption has no media
        "video": 6 * 10,
        "text": 6 * 4,
    }
