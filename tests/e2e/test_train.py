"""`micu-train` from feature sets to checkpoints: stopping, going on, and refusing."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from click.testing import CliRunner

import micu.train.cost
import micu.train.fit
from micu.base.errors import ConfigError, ManifestError, StoreError
from micu.base.files import file_sha256
from micu.base.process import stop_signals
from micu.cli.features import find_feature_sets, parse_modalities
from micu.cli.train import main
from micu.config.overrides import with_overrides
from micu.config.sections import TrainConfig
from micu.data.dataset import FeatureDataset
from micu.data.loader import iterate, make_loader
from micu.store.manifest import MODALITIES, write_manifest
from micu.train.checkpoint import load_checkpoint
from micu.train.step import build_state, train_step
from tests.conftest import not_on_windows
from tests.feature_sets import SHAPES, SMALL, make_clips, write_features
from tests.training import arguments, assert_same_run, metrics, train

SUBSETS = [subset for size in (2, 3, 4) for subset in combinations(MODALITIES, size)]
STEPS_PER_EPOCH = 3  # 24 clips in batches of 8


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "features"
    write_features(root, make_clips())
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.mark.parametrize("modalities", SUBSETS, ids=["-".join(subset) for subset in SUBSETS])
def test_every_subset_of_modalities_trains(features, modalities):
    config = replace(with_overrides(TrainConfig(), SMALL), modalities=modalities)
    sets = find_feature_sets(features, modalities, None, {})
    dataset = FeatureDataset(sets.stores, sets.manifest.clips, config.data)
    state = build_state(config, dataset.shapes, "cpu")
    before = {name: p.clone() for name, p in state.model.named_parameters()}

    loader = make_loader(dataset, 8, seed=0, epoch=0)
    reports = [
        train_step(state, batch) for batch, _ in zip(iterate(loader), range(2), strict=False)
    ]

    assert dataset.shapes == {name: SHAPES[name] for name in modalities}
    assert state.step == 2
    assert not any(report.skipped for report in reports)
    for name in modalities:
        moved = [
            key for key, p in state.model.named_parameters() if not torch.equal(p, before[key])
        ]
        assert any(f".{name}." in key for key in moved), name


def test_a_run_leaves_its_configuration_its_metrics_and_a_model(features, out, caplog):
    caplog.set_level("INFO", "micu")
    result = train(features, out, "--set", "optimizer.epochs=2", "--save-every", "2", "--json")

    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    loaded = load_checkpoint(out / "last.pt")
    rows = metrics(out)
    assert summary["steps"] == loaded.step == len(rows) == 2 * STEPS_PER_EPOCH
    assert json.loads((out / "config.json").read_text())["modalities"] == ["audio", "video"]
    assert loaded.record["preset"] == "micu"
    assert loaded.record["clips"] == 24
    assert loaded.record["manifest_sha256"] == file_sha256(features.parent / "toy.csv")
    assert loaded.specs["video"]["backbone"] == "toy_grid"
    assert sorted(path.name for path in out.glob("*.pt")) == [
        "last.pt",
        "step-000004.pt",
        "step-000006.pt",
    ]
    assert {"fine", "coarse", "jigsaw", "reconstruction", "commitment", "total"} <= rows[0].keys()
    assert {"grad_norm_encoder", "perplexity_audio", "active_codes"} <= rows[0].keys()
    assert {"shared_codes", "learning_rate"} <= rows[0].keys()
    assert "epoch 2/2, step 6/6" in caplog.text


def test_a_run_depends_on_nothing_but_its_configuration(features, tmp_path):
    for name in ("one", "other"):
        result = train(features, tmp_path / name, "--set", "optimizer.max_steps=2")
        assert result.exit_code == 0, result.output
        torch.rand(7)

    assert_same_run(tmp_path / "one", tmp_path / "other")
    train(features, tmp_path / "third", "--set", "optimizer.max_steps=2", "--seed", "1")
    assert metrics(tmp_path / "one") != metrics(tmp_path / "third")


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_across_processes(features, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    to_the_end = ("--set", "optimizer.epochs=2")
    assert train(features, whole, *to_the_end, modalities="v,a,t").exit_code == 0
    inside_an_epoch = ("--set", "optimizer.max_steps=4")
    assert train(features, parts, *inside_an_epoch, modalities="v,a,t").exit_code == 0

    subprocess.run(
        [
            sys.executable,
            "-m",
            "micu.cli.train",
            *arguments(features, parts, *to_the_end, "--resume", modalities="v,a,t"),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
    )

    assert_same_run(whole, parts)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SIGTERM", 75),
        pytest.param("SIGUSR1", 75, marks=not_on_windows),
        pytest.param("SIGHUP", 75, marks=not_on_windows),
        ("SIGINT", 130),
    ],
)
def test_a_signal_ends_the_step_saves_and_can_be_gone_on_from(
    features, tmp_path, monkeypatch, name, code
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = ("--set", "optimizer.max_steps=4")
    assert train(features, whole, *settings).exit_code == 0
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def interrupted(state, batch):
        if state.step == 1:
            signal.raise_signal(getattr(signal, name))
        return train_step(state, batch)

    monkeypatch.setattr(micu.train.fit, "train_step", interrupted)
    result = train(features, parts, *settings)

    assert result.exit_code == code, result.output
    assert f"stopped by {name} after step 2" in result.stderr
    assert "--resume" in result.stderr
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    monkeypatch.undo()
    assert train(features, parts, *settings, "--resume").exit_code == 0
    assert_same_run(whole, parts)


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)

        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("option", ["--dry-run", "--tensorboard", "--json"])
def test_ctrl_c_is_130_wherever_it_comes(features, out, monkeypatch, option):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("micu.train.logs.import_tensorboard", lambda: None)
    monkeypatch.setattr("micu.cli.train.find_feature_sets", interrupted)

    result = train(features, out, option)

    assert result.exit_code == 130
    assert "interrupted; " in result.stderr
    assert "--resume" in result.stderr


def test_a_second_ctrl_c_is_130_too(features, out, monkeypatch):
    def interrupted(state, batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(micu.train.fit, "train_step", interrupted)

    assert train(features, out).exit_code == 130


def test_features_are_read_by_as_many_processes_as_were_asked_for(features, out, monkeypatch):
    asked = []

    def note(*arguments, workers, **settings):
        asked.append(workers)
        return make_loader(*arguments, **settings)

    monkeypatch.setattr("micu.data.loader.make_loader", note)
    result = train(features, out, "--workers", "3", "--set", "optimizer.max_steps=1")

    assert result.exit_code == 0, result.output
    assert set(asked) == {3}


def test_a_backbone_of_a_modality_that_is_not_trained_is_refused(features, out):
    result = train(features, out, "--text-features", "nosuch")

    assert result.exit_code == 2
    assert "--text-features nosuch: text is not used" in result.stderr
    assert not out.exists()


def test_a_full_disk_is_an_input_output_error(features, out, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(micu.train.fit, "mark_last", full)

    result = train(features, out, "--set", "optimizer.max_steps=1")

    assert result.exit_code == 74
    assert "No space left on device" in result.stderr
    assert "--resume" in result.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_run_from_memory_says_how_its_features_were_kept(features, tmp_path, dtype):
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    settings = ("--set", "optimizer.max_steps=4")
    assert train(features, plain, *settings, "--set", f"data.dtype={dtype}").exit_code == 0
    result = train(features, cached, *settings, "--cache", dtype)

    assert result.exit_code == 0, result.output
    assert load_checkpoint(cached / "last.pt").config.data.dtype == dtype
    assert_same_run(plain, cached)


def test_options_with_names_of_their_own_set_their_settings():
    options = ["--precision", "bf16", "--seed", "3", "--cache", "float16", "--print-config"]
    shown = json.loads(CliRunner().invoke(main, options).stdout)

    assert shown["optimizer"]["precision"] == "bf16"
    assert shown["seed"] == 3
    assert shown["data"]["dtype"] == "float16"
    assert shown["optimizer"]["tf32"] is False


def test_seed_0_is_a_seed():
    shown = json.loads(CliRunner().invoke(main, ["--seed", "0", "--print-config"]).stdout)
    assert shown["seed"] == 0


def test_a_setting_that_nothing_reads_is_told(features, out, caplog):
    settings = ("--set", "weights.jigsaw=none", "--set", "optimizer.max_steps=1")
    assert train(features, out, *settings).exit_code == 0
    told = [text for text in caplog.messages if "nothing reads it" in text]
    assert told == [
        f"--set jigsaw.{name}: nothing reads it without weights.jigsaw"
        for name in ("splits", "permutations", "hidden_dim")
    ]


def test_a_run_in_half_precision_trains_and_does_not_resume_in_another(features, out):
    settings = ("--set", "optimizer.max_steps=2")
    result = train(features, out, *settings, "--precision", "bf16")
    other = train(features, out, *settings, "--resume")

    assert result.exit_code == 0, result.output
    assert other.exit_code == 2
    assert "optimizer.precision: there bf16, here fp32" in other.stderr


def test_missing_tensorboard_names_the_extra_and_leaves_no_run(features, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    result = train(features, out, "--tensorboard")

    assert result.exit_code == 2
    assert "pip install 'micu[tensorboard]'" in result.stderr
    assert not out.exists()


def test_clips_of_an_excluded_manifest_are_not_trained_on_and_the_run_says_so(
    features, out, tmp_path
):
    write_manifest(tmp_path / "tested.csv", make_clips()[:5])
    option = ("--exclude-manifest", str(tmp_path / "tested.csv"), "--set", "optimizer.max_steps=1")

    result = train(features, out, *option)

    assert result.exit_code == 0, result.output
    loaded = load_checkpoint(out / "last.pt")
    assert loaded.config.data.exclude_manifests == (str(tmp_path / "tested.csv"),)
    assert (loaded.record["clips"], loaded.record["excluded_clips"]) == (19, 5)


def test_what_a_preset_has_for_three_modalities_may_be_fitted_to_two_at_once():
    words = ["--preset", "fig3-mmjp", "--modalities", "v,a", "--print-config"]
    assert CliRunner().invoke(main, words).exit_code == 0
    words += ["--set", "mmjp.splits=2"]
    assert "expected 1 to 4! = 24, got 128" in CliRunner().invoke(main, words).output
    result = CliRunner().invoke(main, [*words, "--set", "mmjp.permutations=24"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["modalities"] == ["audio", "video"]


def test_print_config_needs_no_features_and_shows_every_override():
    result = CliRunner().invoke(
        main, ["--preset", "reference", "--set", "seed=5", "--print-config"]
    )

    assert result.exit_code == 0
    assert json.loads(result.stdout)["seed"] == 5
    assert json.loads(result.stdout)["jigsaw"]["splits"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modalities", "v,q"], "unknown modality 'q'"),
        (["--modalities", "v"], "expected two or more"),
        (["--set", "sed=1"], "did you mean 'seed'?"),
        (["--preset", "mico"], "'micu'"),
        (["--device", "tpu"], "expected auto, cpu, cuda"),
        (["--features", "nowhere"], "no such folder; type the --out of micu-extract"),
        (["--tf32"], "optimizer.tf32: expected a CUDA device, got cpu"),
    ],
)
def test_bad_options_exit_with_two_and_a_message(features, out, options, message):
    result = train(features, out, *options)

    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


# --- finding feature sets ------------------------------------------------------------------------


def test_modalities_are_letters_or_names_in_the_order_of_the_codebook():
    assert parse_modalities("t,flow, V,a") == ("audio", "video", "flow", "text")
    with pytest.raises(ConfigError, match="unknown modality 'vidoe'; did you mean 'video'"):
        parse_modalities("vidoe,a")


def test_the_manifest_is_the_option_else_the_variable_else_the_record(
    features, tmp_path, monkeypatch
):
    other = tmp_path / "other.csv"
    toy = features.parent / "toy.csv"
    other.write_bytes(toy.read_bytes())

    assert find_feature_sets(features, ["audio"], None, {}).manifest.path == toy
    monkeypatch.setenv("MICU_MANIFEST", str(other))
    with pytest.raises(StoreError, match=r"other: no audio features; there is nothing"):
        find_feature_sets(features, ["audio"], None, {})
    assert find_feature_sets(features, ["audio"], toy, {}).manifest.path == toy


def test_a_broken_record_is_a_message(tmp_path):
    (tmp_path / "last.json").write_text("{}")

    with pytest.raises(ManifestError, match=r"last\.json: expected the paths"):
        find_feature_sets(tmp_path, ["audio"], None, {})


def test_several_sets_of_a_modality_need_a_choice_and_every_problem_is_told(tmp_path):
    root = tmp_path / "features"
    write_features(root, make_clips(4), {"audio": (6,), "video": (8,)})
    write_features(root, make_clips(4), {"video": (9,)}, backbones={"video": "other"})

    with pytest.raises(StoreError) as caught:
        find_feature_sets(root, ["video", "flow"], None, {})
    chosen = find_feature_sets(root, ["video"], None, {"video": "other"})

    assert "choose one: --video-features other" in str(caught.value)
    assert "no flow features; there is audio-toy_audio, video-other, video-toy_grid; type: " in str(
        caught.value
    )
    assert chosen.stores["video"].spec.shape == (9,)
    with pytest.raises(StoreError, match="of backbone 'othr'; did you mean 'other'"):
        find_feature_sets(root, ["video"], None, {"video": "othr"})


def test_features_of_an_older_manifest_are_those_of_the_rows_that_it_still_has(tmp_path):
    root = tmp_path / "features"
    manifest = write_features(root, make_clips(4), {"audio": (6,)})
    text = manifest.read_text().replace("clip/3,3.mp4", "clip/3,other.mp4")
    manifest.write_text(text + "new,,,,,,\n")

    store = find_feature_sets(root, ["audio"], None, {}).stores["audio"]
    assert store.clip_ids == ("clip/0", "clip/1", "clip/2")
