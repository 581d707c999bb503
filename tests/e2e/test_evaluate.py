"""`micu-eval` from a checkpoint and features to rows, tables and a page."""

import csv
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from micu.base.errors import ConfigError
from micu.base.files import file_sha256
from micu.cli.evaluate import main, parse_pairs
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.evaluate.models import untrained_model
from micu.evaluate.report import read_rows
from micu.evaluate.splits import split_clips
from micu.store.sets import FeatureStore, find_sets, read_set
from micu.store.shard import FeatureSpec
from micu.train.checkpoint import Position, load_checkpoint, save_checkpoint
from micu.train.released import ENCODER_SECTION, TEXT_LSTM_SECTION, encoder_keys, text_lstm_keys
from micu.train.step import build_state
from tests.checkpoints import with_task
from tests.feature_sets import SHAPES, make_clips, write_features

SMALL = [
    "modalities=audio,video",
    "data.steps=4",
    "encoder.embed_dim=16",
    "encoder.heads=2",
    "encoder.layers=1",
    "encoder.feedforward_dim=16",
    "quantizer.codebook_size=24",
    "reconstruction.grid_width=8",
    "reconstruction.vector_width=8",
    "jigsaw.splits=2",
    "jigsaw.permutations=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features, a checkpoint of a model that was not trained, and known classes."""
    root = tmp_path_factory.mktemp("run")
    write_features(root / "features", make_clips(48, ("train", "train", "val", "test")))
    (root / "known.csv").write_text("label\ndrum\nengine\n")
    write_checkpoint(root / "last.pt", specs_of(root / "features"))
    return root


def specs_of(features: Path) -> dict[str, FeatureSpec]:
    specs = (read_set(folder)[0].spec for folder in find_sets(features))
    return {spec.modality: spec for spec in specs if spec.modality in ("audio", "video")}


def write_checkpoint(path: Path, specs: dict[str, FeatureSpec]) -> None:
    config = with_overrides(PRESETS["micu"](), SMALL)
    shapes = {name: SHAPES[name] for name in config.modalities}
    state = build_state(config, shapes, "cpu")
    save_checkpoint(state, path, specs=specs, position=Position(), extra={"preset": "micu"})


def evaluate(run: Path, *options: str | Path, out: Path, model: Path | None = None) -> Result:
    given = ["--features", run / "features", "--out", out]
    if "codebook" not in options and "--known" not in options:
        given += ["--known", run / "known.csv"]
    task, *rest = with_task(options)
    arguments = [task, model or run / "last.pt", *given, "--device", "cpu", *rest]
    return CliRunner().invoke(main, [str(item) for item in arguments], catch_exceptions=False)


def test_one_command_gives_both_protocols_and_all_baselines(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    result = evaluate(
        run,
        *("--pairs", "v:a,a:v", "--encoder", "checkpoint", "--encoder", "untrained"),
        *("--ceiling", "--chance", "--probe-epochs", "2", "--html", str(tmp_path / "page.html")),
        out=out,
    )
    assert result.exit_code == 0, result.output
    rows = read_rows(out)
    found = {
        (row.method, row.train_modality, row.test_modality, row.threshold_source)
        for row in rows
        if row.metric == "hos"
    }
    pairs = [("video", "audio"), ("audio", "video")]
    protocols = ("source-val", "oracle")
    expected = {(m, *p, t) for m in ("checkpoint", "untrained") for p in pairs for t in protocols}
    expected |= {("ceiling", name, name, t) for name in ("audio", "video") for t in protocols}
    expected |= {("chance", *pair, "none") for pair in pairs}
    assert found == expected
    assert all(row.threshold_source and row.note for row in rows)
    assert {row.n_clips for row in rows if row.metric != "val_acc"} == {12}
    assert {row.n_clips for row in rows if row.metric == "val_acc"} == {8}
    assert all(0 <= row.value <= 1 for row in rows if row.metric == "hos")
    trained = [row for row in rows if row.method == "checkpoint"]
    assert {row.checkpoint_sha256 for row in trained} == {load_checkpoint(run / "last.pt").sha256}
    assert {row.checkpoint_sha256 for row in rows if row.method != "checkpoint"} == {""}
    assert trained[0].preset.startswith("micu with ")
    assert "data.steps=4" in trained[0].preset
    assert "data.padding" not in trained[0].preset
    probes = {row.method: row.probe for row in rows}
    assert probes["checkpoint"] == probes["untrained"]
    assert "epochs=2" in probes["checkpoint"].split()
    assert probes["ceiling"].startswith("logistic regression")
    assert probes["chance"] == ""
    prints = {
        store.spec.modality: f"{store.spec.backbone}@{store.spec.making[:12]}"
        for store in map(FeatureStore, find_sets(run / "features"))
    }
    for row in rows:
        used = dict.fromkeys((row.train_modality, row.test_modality))
        assert row.features == " ".join(f"{name}:{prints[name]}" for name in used)
    assert "HOS" in result.stdout
    assert "oracle" in result.stdout
    assert "seed 43" in result.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_ceiling_separates_classes_that_features_separate(run: Path, tmp_path: Path) -> None:
    evaluate(run, "--source", "video", "--target", "a", "--ceiling", out=tmp_path / "r.csv")
    rows = read_rows(tmp_path / "r.csv")
    ceiling = {row.metric: row.value for row in rows if row.method == "ceiling"}
    assert ceiling["acc"] == 1.0
    assert ceiling["hos"] > 0.5


def test_evaluating_again_gives_the_same_numbers(run: Path, tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv"):
        evaluate(run, "--pairs", "v:a", "--encoder", "untrained", out=tmp_path / name)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_evaluating_changes_neither_checkpoint_nor_features(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    evaluate(run, "--pairs", "v:a", "--probe-epochs", "1", out=tmp_path / "r.csv")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_threshold_of_the_test_at_the_source_s_epoch_is_never_called_clean(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.csv"
    asked = ("--threshold", "source-val", "--threshold", "oracle-at-source-epoch")
    result = evaluate(run, "--pairs", "v:a", "--probe-epochs", "2", *asked, out=out)
    assert result.exit_code == 0, result.output
    rows = {(row.threshold_source, row.metric): row for row in read_rows(out)}
    mixed, clean = rows["oracle-at-source-epoch", "hos"], rows["source-val", "hos"]
    assert (mixed.protocol, clean.protocol) == ("diagnostic", "clean")
    assert "threshold:test" in mixed.leaks.split(";")
    assert "epoch:test" not in mixed.leaks.split(";")
    assert "threshold:test" not in clean.leaks
    assert rows["oracle", "hos"].protocol == "paper"
    probes = [rows[source, "probe"].value for source in ("oracle-at-source-epoch", "source-val")]
    assert probes[0] == probes[1]
    assert {(row.known_classes, row.class_list) for row in rows.values()} == {(2, "known")}
    assert "oracle-at-source-epoch (test set)" in result.stdout


def test_seeds_are_counted_on_and_kept_apart(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    result = evaluate(
        run,
        *("--pairs", "v:a", "--seed", "7", "--seeds", "2", "--probe-epochs", "1", "--json"),
        out=out,
    )
    printed = json.loads(result.stdout)
    assert {row["seed"] for row in printed} == {7, 8}
    assert len(printed) == len(read_rows(out))
    assert "NaN" not in result.stdout


def test_results_of_another_probe_stand_beside_the_first(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    for epochs in ("1", "2", "2"):
        evaluate(run, "--pairs", "v:a", "--probe-epochs", epochs, out=out)
    found = [row.probe for row in read_rows(out) if row.metric == "hos"]
    assert sorted(probe.split()[0] for probe in found) == ["epochs=1"] * 2 + ["epochs=2"] * 2


def test_dropout_in_the_encoder_changes_the_probe_and_nothing_else(
    run: Path, tmp_path: Path
) -> None:
    quick = ("--pairs", "v:a", "--ceiling", "--probe-epochs", "3", "--probe-learning-rate", "0.01")
    evaluate(run, *quick, out=tmp_path / "off.csv")
    for name in ("on.csv", "again.csv"):
        evaluate(run, *quick, "--probe-encoder-dropout", out=tmp_path / name)
    off, on = read_rows(tmp_path / "off.csv"), read_rows(tmp_path / "on.csv")
    assert on == read_rows(tmp_path / "again.csv")
    assert [r for r in on if r.method == "ceiling"] == [r for r in off if r.method == "ceiling"]
    thresholds = [
        [row.value for row in rows if row.method == "checkpoint" and row.metric == "threshold"]
        for rows in (off, on)
    ]
    assert thresholds[0] != thresholds[1]
    assert all("encoder_dropout=True" in row.probe for row in on if row.method == "checkpoint")


def test_the_score_asked_for_is_the_one_that_is_used(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    for score in ("msp", "entropy"):
        evaluate(run, "--pairs", "v:a", "--probe-epochs", "1", "--score", score, out=out)
    thresholds = {row.score: row.value for row in read_rows(out) if row.metric == "threshold"}
    assert 0 < thresholds["msp"] <= 1
    assert thresholds["entropy"] < 0


def test_the_untrained_encoder_is_not_the_checkpoint_s_model(run: Path, tmp_path: Path) -> None:
    both = ("--encoder", "checkpoint", "--encoder", "untrained")
    evaluate(run, "codebook", *both, "--seed", "7", out=tmp_path / "r.csv")
    values = {(row.method, row.metric): row.value for row in read_rows(tmp_path / "r.csv")}
    assert values["checkpoint", "perplexity"] != values["untrained", "perplexity"]


def test_clips_are_split_once_for_each_pair_seed_and_protocol(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def note(*given: Any, seed: int, **named: Any) -> Any:
        drawn.append(seed)
        return split_clips(*given, seed=seed, **named)

    monkeypatch.setattr("micu.evaluate.evaluation.split_clips", note)
    encoders = ("--encoder", "checkpoint", "--encoder", "untrained", "--chance", "--seeds", "2")
    evaluate(run, "--pairs", "v:a", *encoders, "--probe-epochs", "1", out=tmp_path / "r.csv")
    assert drawn == [43, 43, 44, 44]


def test_no_feature_is_read_again_for_another_seed_or_for_the_ceiling(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = FeatureStore.read_into

    def note(self: FeatureStore, clip_id: str, out: object) -> object:
        read.append(f"{self.spec.modality} {clip_id}")
        return real(self, clip_id, out)

    monkeypatch.setattr(FeatureStore, "read_into", note)
    result = evaluate(
        run,
        *("--pairs", "a:a", "--encoder", "input", "--ceiling", "--seeds", "2"),
        out=tmp_path / "r.csv",
    )
    assert result.exit_code == 0, result.output
    assert len(read) == len(set(read)) == 16 + 8 + 12  # known training and validation, all test


def test_the_untrained_encoder_is_the_seed_s_own(run: Path) -> None:
    loaded = load_checkpoint(run / "last.pt")
    torch.manual_seed(0)
    one, same, other = (
        untrained_model(loaded.config, loaded.model.shapes, seed).quantizer.codebook
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_codebook_use_is_counted_over_the_clips_of_all_modalities(
    run: Path, tmp_path: Path
) -> None:
    out, codebook = tmp_path / "r.csv", tmp_path / "codebook.csv"
    result = evaluate(run, "codebook", "--codebook-out", str(codebook), out=out)
    assert result.exit_code == 0, result.output
    rows = {(row.metric, row.test_modality): row for row in read_rows(out)}
    assert 1 <= rows["perplexity", "audio"].value <= 24
    assert rows["shared_by_1", ""].value + rows["shared_by_2", ""].value == pytest.approx(1)
    assert rows["perplexity", "video"].n_clips == 48
    with codebook.open(newline="") as file:
        counts = list(csv.DictReader(file))
    assert len(counts) == 2 * 24
    assert sum(int(row["count"]) for row in counts) == 2 * 48 * 4


def write_released(path: Path) -> None:
    """A checkpoint of the authors' layout, of random weights and small sizes."""
    changes = [item for item in SMALL if item.split(".")[0] in ("reconstruction",)]
    changes += ["modalities=audio,video,text", "encoder.embed_dim=16", "encoder.text_hidden_dim=8"]
    changes += ["quantizer.codebook_size=24", "encoder.feedforward_dim=16"]
    config = with_overrides(PRESETS["reference"](), changes)
    shapes = {"audio": (6,), "video": (7, 7, 4), "text": (7,)}
    state = {k: v.double() for k, v in untrained_model(config, shapes, 0).state_dict().items()}
    torch.save(
        {
            ENCODER_SECTION: {old: state[ours] for old, ours in encoder_keys().items()},
            TEXT_LSTM_SECTION: {old: state[ours] for old, ours in text_lstm_keys().items()},
            "epoch": 4,
        },
        path,
    )


def test_the_authors_checkpoint_is_evaluated_and_its_rows_say_what_is_not_known(
    tmp_path: Path,
) -> None:
    shapes = {"audio": (6,), "video": (7, 7, 4)}
    write_features(tmp_path / "features", make_clips(24, ("train", "test")), shapes)
    (tmp_path / "known.csv").write_text("label\ndrum\nengine\n")
    write_released(tmp_path / "last.pt")
    out = tmp_path / "r.csv"
    result = evaluate(tmp_path, "--pairs", "v:a", "--probe-epochs", "1", out=out)
    assert result.exit_code == 0, result.output
    rows = read_rows(out)
    assert {row.preset for row in rows} == {"released last (features unchecked)"}
    assert {row.checkpoint_sha256 for row in rows} == {file_sha256(tmp_path / "last.pt")}


def test_features_whose_shape_the_authors_checkpoint_cannot_take_are_refused(
    run: Path, tmp_path: Path
) -> None:
    for name in ("features", "known.csv"):
        (tmp_path / name).symlink_to(run / name)
    write_released(tmp_path / "last.pt")
    result = evaluate(tmp_path, "--pairs", "v:a", out=tmp_path / "r.csv")
    assert result.exit_code == 2
    assert "video: shape: the checkpoint expects [7, 7, 4]" in result.stderr
    assert "audio: " not in result.stderr


def test_features_of_other_weights_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    specs = {
        name: FeatureSpec(
            **{**asdict(spec), "weights_sha256": "f" * 64, "preprocessing": {"fps": 2}}
        )
        for name, spec in specs_of(run / "features").items()
    }
    write_checkpoint(tmp_path / "other.pt", specs)
    (tmp_path / "features").symlink_to(run / "features")
    (tmp_path / "known.csv").symlink_to(run / "known.csv")
    (tmp_path / "last.pt").symlink_to(tmp_path / "other.pt")
    result = evaluate(tmp_path, "--pairs", "v:a", out=tmp_path / "r.csv")
    assert result.exit_code == 2
    assert "video: weights_sha256: the checkpoint expects" in result.stderr
    assert "audio: preprocessing.fps: the checkpoint expects 2" in result.stderr
    assert not (tmp_path / "r.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "v:f"], "not trained on flow"),
        (["--pairs", "v-a"], "expected SOURCE:TARGET"),
        (["--source", "v"], "expected both"),
        (["--pairs", "v:x"], "unknown modality 'x'"),
        ([], "needs --known CSV"),
        (["--score", "mps", "--pairs", "v:a"], "did you mean 'msp'"),
        (["--encoder", "input", "--pairs", "v:a"], "--ceiling trains one"),
        (["codebook", "--encoder", "input"], "'input' is not one of"),
        (
            ["--pairs", "v:a", "--codebook-out", "c.csv"],
            "--codebook-out: only micu-eval codebook reads",
        ),
        (["codebook", "--ceiling"], "--ceiling: only micu-eval oscmg or cmg reads it"),
        (["codebook", "--chance"], "--chance: only micu-eval oscmg"),
        (["codebook", "--score", "msp"], "--score: only micu-eval oscmg"),
        (["codebook", "--pairs", "v:a"], "--pairs: only micu-eval oscmg"),
        (
            ["codebook", "--source", "v", "--target", "a"],
            "--source: only micu-eval oscmg",
        ),
        (["codebook", "--known", "k.csv"], "--known: only micu-eval oscmg"),
        (["codebook", "--probe-epochs", "25"], "--probe-epochs: only micu-eval oscmg"),
        (["--encoder", "input", "--pairs", "a:a", "--probe-batch-size", "8"], "does not read it"),
        (["--pairs", "v:a", "--text-features", "bert"], "text is not used, only video, audio"),
        (
            ["codebook", "--probe-encoder-dropout"],
            "only micu-eval oscmg or cmg or localise reads it",
        ),
        (["--encoder", "input", "--pairs", "a:a", "--probe-epoch-offset", "8"], "does not read it"),
        (["--pairs", "v:a", "--probe-epoch-offset", "25"], "probe.epoch_offset: expected 0 to 24"),
        (["--pairs", "v:a", "--select-on", "oracle"], "--select-on: expected with two checkpoints"),
        (["other.pt", "--pairs", "v:a"], "--select-on: expected with two checkpoints or more"),
        (["--device", "gpu", "--pairs", "v:a"], "--device"),
        (["--manifest", "nowhere.csv", "--pairs", "v:a"], "nowhere.csv: no such manifest"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    run: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = evaluate(run, *options, out=tmp_path / "r.csv")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "r.csv").exists()


def test_pairs_may_be_letters_or_names_and_count_once() -> None:
    pairs = parse_pairs("video", "a", "v:a, flow:text")
    assert pairs == (("video", "audio"), ("flow", "text"))
    with pytest.raises(ConfigError, match="both"):
        parse_pairs(None, "a", None)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from micu.cli.evaluate import main; "
        "r = CliRunner().invoke(main, ['cmg', '--help']); assert r.exit_code == 0, r.output; "
        "assert 'torch' not in sys.modules; assert '--known' in r.output"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
