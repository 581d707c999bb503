"""`micu-eval` told to choose between checkpoints of a run."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from micu.base.errors import ConfigError
from micu.cli.evaluate import main
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.evaluate.report import Row, read_rows
from micu.evaluate.selection import choose_checkpoint
from micu.store.sets import find_sets, read_set
from micu.store.shard import FeatureSpec
from micu.train.checkpoint import Position, save_checkpoint
from micu.train.step import build_state
from tests.feature_sets import SHAPES, SMALL, make_clips, write_features

METRIC = {"source-val": "val_acc", "oracle": "hos"}
QUICK = ("--pairs", "v:a,a:v", "--probe-epochs", "4", "--probe-learning-rate", "0.02")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, known classes, and three checkpoints whose codes say more, or less."""
    root = tmp_path_factory.mktemp("run")
    write_features(root / "features", make_clips(48, ("train", "train", "val", "test")))
    (root / "known.csv").write_text("label\ndrum\nengine\n")
    found = (read_set(path)[0].spec for path in find_sets(root / "features"))
    specs = {spec.modality: spec for spec in found}
    for number, spread in enumerate((0.0, 1.0, 0.3)):
        write_checkpoint(root / f"step-{number}.pt", specs, spread)
    return root


def write_checkpoint(path: Path, specs: dict[str, FeatureSpec], spread: float) -> None:
    config = with_overrides(PRESETS["micu"](), [*SMALL, "modalities=audio,video"])
    state = build_state(config, {name: SHAPES[name] for name in config.modalities}, "cpu")
    torch.manual_seed(0)
    state.model.quantizer.codebook.normal_(0, spread)
    given = {name: specs[name] for name in config.modalities}
    save_checkpoint(state, path, specs=given, position=Position(), extra={"preset": "micu"})


def evaluate(folder: Path, out: Path, *arguments: str | Path) -> Result:
    where = ["--features", folder / "features", "--known", folder / "known.csv", "--out", out]
    given = ["oscmg", *arguments, *where, *QUICK, "--device", "cpu", "--seed", "0"]
    return CliRunner().invoke(main, [str(item) for item in given], catch_exceptions=False)


@pytest.mark.parametrize("protocol", list(METRIC))
def test_the_best_of_several_checkpoints_is_evaluated_and_its_rows_say_so(
    folder: Path, tmp_path: Path, protocol: str
) -> None:
    paths = [folder / f"step-{number}.pt" for number in range(3)]
    merits, alone = [], []
    for path in paths:
        evaluate(folder, tmp_path / f"{path.stem}.csv", path)
        rows = read_rows(tmp_path / f"{path.stem}.csv")
        wanted = (protocol, METRIC[protocol])
        values = [row.value for row in rows if (row.threshold_source, row.metric) == wanted]
        merits, alone = [*merits, sum(values) / 2], [*alone, rows]
    best = merits.index(max(merits))
    assert best != 0, "the first would be taken without looking"

    out = tmp_path / "r.csv"
    result = evaluate(folder, out, *paths, "--chance", "--select-on", protocol)

    assert result.exit_code == 0, result.output
    told = f"step-{best}.pt is the best of 3 checkpoints by {METRIC[protocol]}"
    assert told in result.stderr
    rows = read_rows(out)
    assert {told in row.note for row in rows if row.method == "checkpoint"} == {True}
    assert {told in row.note for row in rows if row.method == "chance"} == {False}
    assert [(row.metric, row.value) for row in rows if row.method == "checkpoint"] == [
        (row.metric, row.value) for row in alone[best]
    ]


@pytest.mark.parametrize(
    ("criterion", "evaluated"),
    [
        ("source-val", ("--protocol", "paper")),
        ("source-val", ("--protocol", "clean", "--threshold", "paired-quantile", "--seeds", "1")),
        ("oracle", ("--protocol", "clean", "--seeds", "1")),
        ("oracle", ("--score", "all")),
    ],
)
def test_a_checkpoint_is_chosen_alike_whatever_is_evaluated_afterwards(
    folder: Path, tmp_path: Path, criterion: str, evaluated: tuple[str, ...]
) -> None:
    paths = [folder / f"step-{number}.pt" for number in range(2)]
    printed = []
    for number, options in enumerate((evaluated, ())):
        known = ("--features", folder / "features", "--known", folder / "known.csv", "--seed", "0")
        where = (*known, "--out", tmp_path / f"{number}.csv", "--pairs", "v:a", *QUICK[2:])
        arguments = ["oscmg", *paths, "--select-on", criterion, *where, *options, "--device", "cpu"]
        result = CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)
        lines = result.stderr.splitlines()
        printed.append([line for line in lines if f".pt: {METRIC[criterion]} " in line])
        assert len(printed[-1]) == 2, result.output
    assert printed[0] == printed[1]


def test_nothing_is_chosen_by_what_is_not_defined() -> None:
    row = Row(
        task="oscmg",
        method="checkpoint",
        train_modality="video",
        test_modality="audio",
        preset="micu",
        seed=0,
        threshold_source="oracle",
        metric="hos",
        value=float("nan"),
        n_clips=3,
        checkpoint_sha256="0",
        manifest_sha256="0",
    )
    with pytest.raises(ConfigError, match="--select-on oracle: hos is not defined here"):
        choose_checkpoint({Path("a.pt"): [row]}, "oracle")
