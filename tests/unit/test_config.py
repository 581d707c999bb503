"""Configurations: their checks, their text form, and the presets."""

import json
import math
from dataclasses import asdict, replace

import pytest

from micu.base.errors import ConfigError
from micu.config.overrides import config_differences, from_json, to_json, with_overrides
from micu.config.presets import PRESETS
from micu.config.sections import DataConfig, JigsawConfig, LossWeights, OptimizerConfig, TrainConfig

WEIGHTS = [name for name in asdict(LossWeights()) if name != "plugins"]


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("seed=7", "", "seed", 7),
        ("quantizer.codebook_size=512", "quantizer", "codebook_size", 512),
        ("optimizer.learning_rate=1e-3", "optimizer", "learning_rate", 0.001),
        ("optimizer.learning_rate=1", "optimizer", "learning_rate", 1.0),
        ("encoder.clone_init=yes", "encoder", "clone_init", True),
        ("contrastive.normalize=False", "contrastive", "normalize", False),
        ("encoder.spatial=softmax", "encoder", "spatial", "softmax"),
        ("data.exclude_ids=a=b.csv", "data", "exclude_ids", "a=b.csv"),
        ("data.splits=train, val", "data", "splits", ("train", "val")),
        ("data.splits=", "data", "splits", ()),
        ("weights.fine=none", "weights", "fine", None),
        ("weights.fine=2", "weights", "fine", 2.0),
        ("modalities=video,flow", "", "modalities", ("video", "flow")),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(assignment, section, key, value):
    config = with_overrides(TrainConfig(), [assignment])

    got = getattr(getattr(config, section) if section else config, key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "quantizer.codebok_size=5",
            "--set quantizer.codebok_size: no key 'codebok_size'; did you mean 'codebook_size'? ",
        ),
        ("seed=abc", "--set seed: expected int, got 'abc'"),
        ("weights.fine=off", "--set weights.fine: expected a finite number, got 'off'"),
        ("seed=1.0", "--set seed: expected int, got '1.0'"),
        ("quantizer=3", "--set quantizer: 'quantizer' is a section; set one of its keys"),
        ("seed.x=3", "--set seed.x: 'seed' is not a section; it has no keys"),
        ("nothing.x=3", "--set nothing.x: no key 'nothing'; "),
        ("seed", "--set seed: expected KEY=VALUE"),
        ("encoder.spatial=x", "--set encoder.spatial: expected sum or softmax, got 'x'"),
        ("encoder.clone_init=2", "--set encoder.clone_init: expected true or false, got '2'"),
        (
            "optimizer.learning_rate=nan",
            "--set optimizer.learning_rate: expected a finite number, got nan",
        ),
        ("quantizer.ema_decay=1.5", "quantizer.ema_decay: expected [0, 1), got 1.5"),
        (
            "jigsaw.splits=12",
            "train.jigsaw.splits: expected a divisor of encoder.embed_dim=256, got 12",
        ),
    ],
)
def test_a_bad_override_says_what_was_expected(assignment, message):
    with pytest.raises(ConfigError) as caught:
        with_overrides(TrainConfig(), [assignment])

    assert message in str(caught.value)


def test_all_problems_are_told_at_once():
    bad = ["quantizer.codebok_size=5", "seed=abc", "quantizer.ema_decay=1.5", "encoder.dropout=2"]

    with pytest.raises(ConfigError) as caught:
        with_overrides(TrainConfig(), bad)

    assert len(str(caught.value).splitlines()) == 4


def test_two_changes_of_one_section_are_checked_together():
    config = with_overrides(TrainConfig(), ["jigsaw.splits=4", "jigsaw.permutations=24"])

    assert config.jigsaw == JigsawConfig(splits=4, permutations=24)
    with pytest.raises(ConfigError, match=r"jigsaw.permutations: expected 1 to 4! = 24, got 256"):
        with_overrides(TrainConfig(), ["jigsaw.splits=4"])


def test_overrides_leave_the_other_settings_alone():
    config = TrainConfig(optimizer=OptimizerConfig(epochs=9))

    assert with_overrides(config, []) == config
    assert with_overrides(config, ["seed=1", "seed=2"]) == replace(config, seed=2)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_json_gives_the_same_configuration_back(name):
    config = PRESETS[name]()

    assert from_json(to_json(config)) == config


def test_json_with_unknown_missing_and_bad_keys_is_refused_with_all_of_them():
    value = asdict(TrainConfig())
    value["extra"] = 1
    value["quantizer"]["codebook_size"] = "many"
    value["encoder"]["clone_init"] = 1
    value["data"]["splits"] = "train"
    del value["modalities"]
    value["jigsaw"] = 3
    value["weights"]["fine"] = "none"

    with pytest.raises(ConfigError) as caught:
        from_json(json.dumps(value), "x.json")

    assert str(caught.value).splitlines() == [
        "x.json: extra: unknown key",
        "x.json: encoder.clone_init: expected true or false, got 1",
        "x.json: quantizer.codebook_size: expected int, got 'many'",
        "x.json: jigsaw: expected a section, got 3",
        "x.json: weights.fine: expected a finite number, got 'none'",
        "x.json: data.splits: expected a list of words, got 'train'",
        "x.json: modalities: missing; expected a configuration of micu-train",
    ]


def test_json_of_an_earlier_version_has_the_defaults_of_what_it_lacks(caplog):
    config = with_overrides(TrainConfig(), ["optimizer.batch_size=3", "seed=7"])
    value = asdict(config)
    del value["optimizer"]["micro_batch"], value["jigsaw"]

    assert from_json(json.dumps(value), "old.json") == config
    assert "old.json: of an earlier version" in caplog.text
    assert {"jigsaw", "optimizer.micro_batch"} <= set(caplog.text.strip().replace(",", "").split())


def test_json_that_no_run_could_have_is_refused():
    value = asdict(TrainConfig()) | {"modalities": ["audio"]}

    with pytest.raises(ConfigError, match="expected two or more different ones"):
        from_json(json.dumps(value))
    with pytest.raises(ConfigError, match="not JSON"):
        from_json("{")


def test_differences_are_named_by_their_full_key():
    one = TrainConfig()
    other = replace(one, seed=1, data=DataConfig(steps=5))

    assert config_differences(one, other) == {"seed": (43, 1), "data.steps": (10, 5)}
    assert config_differences(one, one) == {}


def test_what_nothing_reads_makes_no_difference() -> None:
    one, other = TrainConfig(), with_overrides(TrainConfig(), ["mmjp.splits=2"])
    assert config_differences(one, other) == {}
    on = ["weights.mmjp=1"]
    differences = config_differences(with_overrides(one, on), with_overrides(other, on))
    assert differences == {"mmjp.splits": (None, 2)}
    assert config_differences(one, with_overrides(other, on)).keys() == {
        *("weights.mmjp", "mmjp.splits")
    }


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["weights.fine=-1"], "weights.fine: expected >= 0, got -1.0"),
        (
            [f"weights.{name}=0" for name in WEIGHTS],
            "weights.fine, coarse, jigsaw, reconstruction, commitment, mmjp, club, clip_club, "
            "cpc, code_matching, self_cross, one_way, transport: expected at least one",
        ),
        (
            [f"weights.{name}=none" for name in WEIGHTS],
            "weights.all: expected at least one above 0, got none",
        ),
        (
            [f"weights.{name}=0" for name in WEIGHTS if name != "jigsaw"] + ["jigsaw.splits=0"],
            "weights: expected a loss above 0 beside jigsaw, got none: jigsaw.splits is 0",
        ),
        (["jigsaw.splits=1"], "jigsaw.splits: expected 0 or at least 2, got 1"),
        (["mmjp.splits=3", "weights.mmjp=1"], "mmjp.splits: expected a divisor of encoder.embed"),
        (
            ["modalities=audio,video", "weights.mmjp=1", "mmjp.splits=2"],
            "mmjp.permutations: expected 1 to 4! = 24, got 128",
        ),
        (
            ["reconstruction.text_target=input", "reconstruction.text_target_grad=yes"],
            "reconstruction.text_target_grad: expected false with text_target=input, got true",
        ),
        (["quantizer.active_within=0"], "quantizer.active_within: expected at least 1, got 0"),
        (
            ["jigsaw.splits=0", "jigsaw.permutations=0"],
            "jigsaw.permutations: expected at least 1, got 0",
        ),
        (["optimizer.skip_nonfinite=-3"], "optimizer.skip_nonfinite: expected at least 0, got -3"),
        (["data.padding=mask"], "train.data.padding: expected repeat with the modality text"),
    ],
)
def test_a_setting_that_no_run_could_use_is_refused(assignments, message):
    with pytest.raises(ConfigError) as caught:
        with_overrides(TrainConfig(), assignments)

    assert message in str(caught.value)


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="coarse: expected >= 0, got nan"):
        LossWeights(coarse=math.nan)


@pytest.mark.parametrize(
    ("key", "inside", "outside", "expected"),
    [
        ("optimizer.max_steps", "0", "-1", "at least 0"),
        ("encoder.layers", "1", "0", "at least 1"),
        ("quantizer.codebook_size", "2", "1", "at least 2"),
        ("contrastive.tau", "1e-9", "0", "> 0"),
        ("quantizer.commitment_own", "0", "-1e-9", ">= 0"),
        ("encoder.dropout", "0", "1", "[0, 1)"),
        ("encoder.dropout", "0.999", "-1e-9", "[0, 1)"),
        ("quantizer.ema_own", "1", "1.001", "(0, 1]"),
        ("quantizer.ema_own", "1e-9", "0", "(0, 1]"),
    ],
)
def test_the_range_of_a_setting_is_that_of_its_type(key, inside, outside, expected):
    assert with_overrides(TrainConfig(), [f"{key}={inside}"]) is not None
    with pytest.raises(ConfigError) as caught:
        with_overrides(TrainConfig(), [f"{key}={outside}"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{key}: expected {expected}, got ")


def test_all_problems_of_a_section_are_in_one_error():
    with pytest.raises(ConfigError) as caught:
        OptimizerConfig(grad_clip=0, epochs=0, dtype="float64", tf32=True)
    assert str(caught.value).splitlines() == [
        "optimizer.epochs: expected at least 1, got 0",
        "optimizer.grad_clip: expected > 0, got 0",
        "optimizer.tf32: expected false with dtype=float64, got true",
    ]


def test_a_weight_that_is_infinite_is_refused():
    with pytest.raises(ConfigError, match="fine: expected >= 0, got inf"):
        LossWeights(fine=math.inf)


def test_one_loss_is_enough_and_without_text_steps_may_be_masked():
    alone = [f"weights.{name}=0" for name in TrainConfig().terms() if name != "jigsaw"]
    config = with_overrides(TrainConfig(), [*alone, "data.padding=mask", "modalities=audio,flow"])

    assert config.weights.jigsaw == 2
    assert config.data.padding == "mask"


MICU = {
    "modalities": ["audio", "video", "text"],
    "seed": 43,
    "encoder": {
        "embed_dim": 256,
        "heads": 4,
        "layers": 2,
        "feedforward_dim": 1024,
        "dropout": 0.1,
        "text_hidden_dim": 128,
        "spatial": "sum",
        "clone_init": False,
        "unify": "steps",
    },
    "quantizer": {
        "codebook_size": 400,
        "ema_decay": 0.99,
        "ema_epsilon": 1e-5,
        "ema_own": 0.5,
        "ema_init": "one",
        "commitment_own": 0.5,
        "commitment_cross": 0.25,
        "reset": "revive",
        "dead_after": 300,
        "active_within": 100,
        "null_code": False,
        "learning": "average",
        "pool": False,
    },
    "reconstruction": {
        "grid_width": 2048,
        "vector_width": 256,
        "text_target": "lstm",
        "text_target_grad": False,
    },
    "contrastive": {
        "tau": 0.1,
        "normalize": True,
        "mask_ratio": 0.3,
        "mask_axis": "time",
        "mask_share": "same",
        "pair_reduction": "sum",
        "one_way": "all",
    },
    "jigsaw": {
        "splits": 8,
        "permutations": 256,
        "hidden_dim": 512,
        "block_draw": "batch",
        "labels": "exact",
    },
    "mmjp": {"splits": None, "permutations": 128, "hidden_dim": 512},
    "weights": {
        "fine": 1,
        "coarse": 1,
        "jigsaw": 2,
        "reconstruction": 1,
        "commitment": 1,
        "mmjp": None,
        "club": None,
        "clip_club": None,
        "cpc": None,
        "code_matching": None,
        "self_cross": None,
        "one_way": None,
        "transport": None,
        "plugins": [],
    },
    "optimizer": {
        "learning_rate": 4e-4,
        "batch_size": 80,
        "epochs": 5,
        "max_steps": 0,
        "grad_clip": 0.5,
        "clip_jigsaw": True,
        "double_forward": False,
        "micro_batch": 0,
        "dtype": "float32",
        "precision": "fp32",
        "tf32": False,
        "skip_nonfinite": 0,
    },
    "data": {
        "steps": 10,
        "splits": ["train"],
        "padding": "repeat",
        "dtype": "float32",
        "exclude_ids": "",
        "exclude_manifests": [],
    },
    "baselines": {
        "club": {"inner_steps": 5, "learning_rate": 1e-3, "hidden_dim": 128},
        "cpc": {"layers": 2, "self_weight": 0.1, "candidates": "predictions"},
        "code_matching": {"index": "paper", "warmup": 0, "warmup_vectors": 20_000},
        "self_cross": {"memory": "pooled", "mask_start": 0.5, "mask_end": 1, "layers": 2},
        "transport": {
            "momentum": 0.995,
            "queue_size": 4000,
            "epsilon": 0.05,
            "iterations": 20,
            "gamma": 0.1,
            "tau": 0.07,
            "contrast_weight": 1,
        },
    },
}
"""What the paper and the published code state, and our choices where they disagree."""


def test_the_recommended_run_has_the_sizes_of_the_paper():
    assert json.loads(to_json(PRESETS["micu"]())) == MICU


@pytest.mark.parametrize("assignment", ["weights.jigsaw=none", "jigsaw.splits=0"])
def test_a_loss_that_is_left_out_is_not_among_the_terms(assignment):
    everything = ("fine", "coarse", "jigsaw", "reconstruction", "commitment")
    assert TrainConfig().terms() == everything
    without = with_overrides(TrainConfig(), [assignment]).terms()
    assert without == tuple(name for name in everything if name != "jigsaw")


def test_a_jigsaw_that_is_left_out_does_not_mind_its_other_settings():
    off = ["jigsaw.splits=0", "encoder.embed_dim=12", "encoder.heads=2"]
    assert with_overrides(TrainConfig(), off).jigsaw.permutations == 256


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="seed: expected 0 to 9223372036854775807, got -1"):
        TrainConfig(seed=-1)
