"""Numbers that are none, or too large: sentences of every command that takes them."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import micu.cli.evaluate
import micu.cli.train
import micu_extract.cli
from micu.base.errors import ConfigError, WeightsError
from micu.base.process import LAST_SEED
from micu.config.overrides import with_overrides
from micu.config.sections import TrainConfig
from micu_extract.backbones.weights import parse_request
from tests.feature_sets import make_clips, write_features
from tests.training import train

NO_SEEDS = ["-1", str(2**63), str(2**64), "9" * 40, "nan", "inf", "1.5", "1e3", "", "0x10"]


@pytest.mark.parametrize("typed", NO_SEEDS)
def test_no_seed(typed: str) -> None:
    train = CliRunner().invoke(micu.cli.train.main, ["--print-config", "--seed", typed])
    setting = CliRunner().invoke(micu.cli.train.main, ["--print-config", "--set", f"seed={typed}"])
    evaluate = CliRunner().invoke(micu.cli.evaluate.main, ["oscmg", "last.pt", "--seed", typed])
    for result in (train, setting, evaluate):
        assert result.exit_code == 2, result.output
        assert "seed" in result.output
        assert "expected" in result.output or "not" in result.output
        assert len(result.output) < 1000
    with pytest.raises(WeightsError, match="expected"):
        parse_request(f"random:{typed or 'x'}", "vggish")


@pytest.mark.parametrize("seed", [0, 1, LAST_SEED])
def test_a_seed(seed: int) -> None:
    assert with_overrides(TrainConfig(), [f"seed={seed}"]).seed == seed
    assert parse_request(f"random:{seed}", "vggish").seed == seed


def test_seeds_of_a_configuration_of_others() -> None:
    for seed in (-1, LAST_SEED + 1):
        with pytest.raises(ConfigError, match=f"seed: expected 0 to {LAST_SEED}, got {seed}"):
            TrainConfig(seed=seed)


def test_a_sweep_of_more_seeds_than_there_are(tmp_path: Path) -> None:
    words = ["--seeds", "3", "--seed", str(LAST_SEED - 1), "--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(micu.cli.train.main, words)
    assert result.exit_code == 2
    assert "expected a number of 64 bits" in result.output
    result = CliRunner().invoke(micu.cli.train.main, ["--seeds", str(10**9)])
    assert (result.exit_code, "10000" in result.output) == (2, True)


@pytest.mark.parametrize("typed", ["nan", "inf", "-inf", "-1", "0", "1e400"])
@pytest.mark.parametrize("option", ["--clip-timeout", "--worker-memory"])
def test_no_limit(option: str, typed: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("clip_id,path\na,a.wav\n")
    words = ["audio", str(tmp_path / "m.csv"), "--dry-run", option, typed]
    result = CliRunner().invoke(micu_extract.cli.cli, words)
    assert result.exit_code == 2
    assert option in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("typed", ["nan", "inf", "-inf", "1e400"])
def test_no_setting(typed: str) -> None:
    words = ["--print-config", "--set", f"optimizer.learning_rate={typed}"]
    result = CliRunner().invoke(micu.cli.train.main, words)
    assert (result.exit_code, "expected" in result.output) == (2, True)


def test_a_model_that_no_memory_holds_ends_with_71(tmp_path: Path) -> None:
    features = tmp_path / "features"
    write_features(features, make_clips(6))
    for size in (10**13, 4 * 10**18):
        result = train(features, tmp_path / "run", "--set", f"encoder.feedforward_dim={size}")
        assert result.exit_code == 71, result.output
        assert "error: memory has run out: " in result.output
        assert "Traceback" not in result.output
    result = train(features, tmp_path / "run", "--set", f"encoder.feedforward_dim={2**63}")
    assert (result.exit_code, "64 bits" in result.output) == (2, True)


NO_ROOM = """
import resource, sys
import torch, micu_extract.cli
from micu_extract.backbones import htsat
import micu_extract.backbones.weights
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**24, used + 2**24))
micu_extract.cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="confines memory by what Linux says is used")
def test_an_extraction_whose_network_finds_no_memory_ends_with_71(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("clip_id,path\na,a.wav\n")
    words = ("audio", "m.csv", "--backbone", "vggish", "--weights", "random", "--device", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 71, done.stderr
    assert "error: memory has run out: " in done.stderr
    assert "Traceback" not in done.stderr
