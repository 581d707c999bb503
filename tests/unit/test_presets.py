"""Every preset by name: it is told in one line, it builds, and it takes steps."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from click.testing import CliRunner

from micu.cli.train import main
from micu.config.overrides import with_overrides
from micu.config.presets import ALIASES, PRESETS
from micu.data.dataset import Batch
from micu.evaluate.models import LoadedModel, describe_preset
from micu.train.step import build_state, train_step

SHAPES: dict[str, tuple[int, ...]] = {
    "audio": (6,),
    "video": (5, 5, 4),
    "flow": (8,),
    "text": (7,),
}
TINY = [
    "encoder.embed_dim=16",
    "encoder.heads=2",
    "encoder.layers=1",
    "encoder.feedforward_dim=16",
    "encoder.text_hidden_dim=4",
    "reconstruction.grid_width=4",
    "reconstruction.vector_width=8",
    "jigsaw.permutations=2",
    "jigsaw.hidden_dim=8",
    "mmjp.permutations=4",
    "mmjp.hidden_dim=8",
]


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_builds_and_takes_two_steps(name: str) -> None:
    config = with_overrides(PRESETS[name](), TINY)
    shapes = {key: SHAPES[key] for key in config.modalities}
    state = build_state(config, shapes, "cpu", steps=2)  # of which cmcm quantises the second
    before = state.model.quantizer.codebook.clone()
    features = {key: torch.randn(3, 4, *SHAPES[key]) for key in config.modalities}
    batch = Batch(features, torch.ones(3, 4, dtype=torch.bool), tuple("abc"), ("",) * 3)
    batch = batch.to("cpu", getattr(torch, config.optimizer.dtype))
    reports = [train_step(state, batch) for _ in range(2)]
    assert all(math.isfinite(report.total) for report in reports)
    assert set(reports[-1].terms) == set(config.terms())
    assert not torch.equal(before, state.model.quantizer.codebook)


@pytest.mark.parametrize("name", ALIASES)
def test_results_call_a_preset_with_two_names_by_the_first(name: str) -> None:
    config = PRESETS[name]()
    assert config == PRESETS[ALIASES[name]]()
    changed = with_overrides(config, ["optimizer.epochs=3"])
    told = [
        describe_preset(cast(LoadedModel, SimpleNamespace(record={"preset": name}, config=given)))
        for given in (config, changed)
    ]
    assert told == [ALIASES[name], f"{ALIASES[name]} with optimizer.epochs=3"]


def test_the_listing_says_a_line_about_every_preset() -> None:
    result = CliRunner().invoke(main, ["--list-presets"])
    assert result.exit_code == 0
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [name for name, _ in lines] == list(PRESETS)
    assert all(summary.endswith(".") for _, summary in lines)
