import functools
from dataclasses import fields, replace

import click
import pytest
from click.testing import CliRunner

from micu.base.errors import ConfigError
from micu_extract.backbones.base import FlowInput
from micu_extract.flow.methods import FLOW_METHODS, FlowSettings
from micu_extract.flow.options import FLOW_DECORATORS, FLOW_OPTIONS, flow_settings
from micu_extract.flow.tvl1_parameters import TVL1


def type_in(*words: str) -> tuple[FlowSettings, dict[str, object], object]:
    """What the words mean, or the error that they end in."""
    got = []

    def command(*, flow_cache, **typed):
        got.append((*flow_settings(device="cpu", **typed), flow_cache))

    made = functools.reduce(lambda made, option: option(made), reversed(FLOW_DECORATORS), command)
    click.command()(made).main(list(words), standalone_mode=False)
    return got[0]


def help_of() -> str:
    @click.command()
    def command(**typed):
        raise AssertionError

    made = functools.reduce(lambda made, option: option(made), reversed(FLOW_DECORATORS), command)
    return " ".join(CliRunner().invoke(made, ["--help"], terminal_width=500).output.split())


def test_a_method_alone_is_its_defaults_and_leaves_the_backbones_conventions():
    for name in FLOW_METHODS:
        expected = FlowSettings(method=name), {}, None
        assert type_in(f"--{name}") == expected
        assert type_in("--flow-method", name) == expected
        assert type_in(f"--{name}", "--flow-method", name) == expected


def test_exactly_one_method_must_be_typed():
    with pytest.raises(
        click.UsageError,
        match="choose how optical flow is computed: type --tvl1 or --raft",
    ):
        type_in()
    for words in (("--raft", "--tvl1"), ("--flow-method", "raft", "--tvl1")):
        with pytest.raises(click.UsageError, match="expected one of --tvl1 or --raft, got both"):
            type_in(*words)
    for gone in ("--dis", "--farneback"):
        with pytest.raises(click.UsageError, match="No such option"):
            type_in(gone)


def test_every_parameter_of_tvl1_is_an_option_with_its_default_in_the_help():
    text = help_of()
    words = {"lambda_": "lambda"}
    for parameter in fields(TVL1):
        typed = "--" + words.get(parameter.name, parameter.name).replace("_", "-")
        _, _, after = text.partition(f" {typed} ")
        assert after.split("[default: ")[1].split("]")[0] == str(parameter.default), typed
    values = {
        "tau": 0.2, "lambda": 0.1, "theta": 0.4, "scales": 3, "scale-step": 0.5, "warps": 2,
        "epsilon": 0.05, "inner-iterations": 9, "outer-iterations": 4, "median": 3,
    }  # fmt: skip
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    settings = type_in("--tvl1", *words)[0]
    assert settings.tvl1.describe() == {k.replace("-", "_"): v for k, v in values.items()}


def test_the_conventions_replace_those_of_the_input():
    values = {"bound": 15, "rounding": "truncate", "short-side": 320, "gray": "after", "dt": 0.04}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    overrides = type_in("--tvl1", *words)[1]
    assert replace(FlowInput(clip_len=3), **overrides) == FlowInput(
        clip_len=3, bound=15, rounding="truncate", resize=320, gray="after", dt_s=0.04
    )


def test_the_engine_the_network_and_the_cache_are_passed_on(tmp_path):
    settings, _, cache = type_in("--tvl1", "--flow-engine", "torch", "--flow-cache", str(tmp_path))
    assert (settings.engine, cache) == ("torch", tmp_path)
    settings = type_in("--raft", "--raft-model", "small", "--flow-weights", "random:2")[0]
    assert settings == FlowSettings(method="raft", raft="small", weights="random:2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--raft --lambda 0.1", "--lambda is for --tvl1"),
        ("--flow-method raft --inner-iterations 30", "--inner-iterations is for --tvl1"),
        ("--raft --flow-engine opencv", "--flow-engine is for --tvl1"),
        ("--tvl1 --flow-weights random", "--flow-weights is for --raft"),
        ("--flow-method tvl1 --raft-model small", "--raft-model is for --raft"),
        ("--raft --gray before", "looks at colour"),
    ],
)
def test_options_that_would_do_nothing_are_refused(words, message):
    with pytest.raises(click.UsageError, match=message):
        type_in(*words.split())


def test_parameters_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigError, match="tau"):
        type_in("--tvl1", "--tau", "-1")


def test_the_names_of_the_arguments_are_those_of_the_options():
    def command(**typed):
        raise AssertionError

    made = functools.reduce(lambda made, option: option(made), reversed(FLOW_DECORATORS), command)
    names = [option.name for option in click.command()(made).params]
    assert sorted(names) == sorted([*FLOW_OPTIONS, "flow_cache"])
