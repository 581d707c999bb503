"""MMJP against a loop written from its definition, and what it takes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.config.sections import JigsawConfig, TrainConfig
from micu.data.dataset import Batch
from micu.losses import LOSSES, Losses, draw
from micu.losses.mmjp import side_by_side
from micu.model.micu import MICUOutput
from micu.model.quantizer import Quantized

B, T, D = 2, 3, 8
SMALL = [
    "encoder.embed_dim=8",
    "encoder.heads=2",
    "mmjp.permutations=9",
    "mmjp.hidden_dim=5",
    "weights.mmjp=1",
    "weights.jigsaw=none",
]


def config_of(*more: str) -> TrainConfig:
    return with_overrides(TrainConfig(), [*SMALL, *more])


def codes_of(config: TrainConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(B, T, D, generator=generator, dtype=torch.float64).requires_grad_()
        for name in config.modalities
    }


def compute(losses: Losses, codes: dict[str, Tensor], mask: Tensor) -> Tensor:
    nothing = torch.zeros(())
    quantized = {
        name: Quantized(x * 0, x, torch.zeros(B, T, dtype=torch.int64), nothing, nothing)
        for name, x in codes.items()
    }
    batch = Batch({}, mask, ("a", "b"), ("", ""))
    drawn = draw(losses.config, B, T, seed=0, step=0, device="cpu")
    loss = losses.get_submodule("mmjp")
    assert isinstance(loss, LOSSES["mmjp"])
    return loss.compute(MICUOutput(quantized, {}, {}), batch, drawn)


def slow_loss(losses: Losses, codes: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Every real step of every clip: cut, put in order, ask, compare with the order's number."""
    state = dict(losses.named_parameters())
    table = losses.get_buffer("mmjp.permutations").tolist()
    splits = losses.get_buffer("mmjp.permutations").shape[1] // len(losses.config.modalities)
    answers = []
    for clip in range(B):
        for step in range(T):
            if not mask[clip, step]:
                continue
            parts = []
            for modality in losses.config.modalities:
                width = D // splits
                row = codes[modality][clip, step]
                parts += [row[s * width : (s + 1) * width] for s in range(splits)]
            for label, order in enumerate(table):
                puzzle = torch.cat([parts[place] for place in order])
                hidden = state["mmjp.classifier.hidden.weight"] @ puzzle
                hidden = torch.relu(hidden + state["mmjp.classifier.hidden.bias"])
                logits = state["mmjp.classifier.answer.weight"] @ hidden
                logits = logits + state["mmjp.classifier.answer.bias"]
                answers.append(-functional.log_softmax(logits, 0)[label])
    return torch.stack(answers).mean()


@pytest.mark.parametrize(
    "setting",
    [
        (),
        ("mmjp.splits=4",),
        ("mmjp.splits=1", "mmjp.permutations=6"),
        ("modalities=video,flow",),
        ("modalities=video,flow", "mmjp.splits=2"),
        ("modalities=audio,video,flow,text",),
    ],
)
def test_the_loss_and_its_gradients_are_those_of_the_definition(setting: tuple[str, ...]) -> None:
    config = config_of(*setting)
    losses, codes = Losses(config).double(), codes_of(config)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    targets = [*codes.values(), *losses.get_submodule("mmjp").parameters()]
    got, wanted = compute(losses, codes, mask), slow_loss(losses, codes, mask)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(got, targets), torch.autograd.grad(wanted, targets), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_parts_stand_one_modality_after_the_other() -> None:
    codes = torch.arange(2 * 1 * 4).view(2, 1, 4)
    assert side_by_side(codes, 2).tolist() == [[[0, 1], [2, 3], [4, 5], [6, 7]]]


def test_permutations_are_different_orders_of_all_parts_without_listing_them() -> None:
    config = config_of("modalities=audio,video,flow,text", "mmjp.splits=8", "mmjp.permutations=300")
    table = Losses(config).get_buffer("mmjp.permutations")  # of 32!, a number of 36 digits
    assert table.shape == (300, 32)
    assert all(sorted(row) == list(range(32)) for row in table.tolist())
    assert len(table.unique(dim=0)) == 300


@pytest.mark.parametrize(
    ("modalities", "parts"),
    [("audio,video", 8), ("audio,video,flow", 6), ("audio,video,flow,text", 8)],
)
def test_the_preset_fits_any_modalities_with_the_splits_of_moosa_and_its_permutations(
    modalities: str, parts: int
) -> None:
    config = with_overrides(PRESETS["fig3-mmjp"](), [f"modalities={modalities}"])
    table = Losses(config).get_buffer("mmjp.permutations")
    assert table.shape == (128, parts)
    assert len({tuple(order) for order in table.tolist()}) == 128


@pytest.mark.parametrize("modalities", ["audio,video", "audio,video,flow"])
def test_clips_of_fewer_steps_than_parts_have_the_loss_of_their_steps(modalities: str) -> None:
    config = config_of(f"modalities={modalities}")
    losses, codes = Losses(config).double(), codes_of(config)
    mask = torch.tensor([[True, False, False], [True, False, False]])
    short = {name: x[:, :1] for name, x in codes.items()}
    got = compute(losses, short, mask[:, :1])
    assert got.item() == pytest.approx(slow_loss(losses, codes, mask).item(), rel=1e-12)


def test_both_jigsaws_may_be_trained_at_once_each_with_its_own_classifier() -> None:
    both = replace(
        config_of("weights.jigsaw=1", "jigsaw.splits=2", "jigsaw.permutations=2"),
        jigsaw=JigsawConfig(splits=2, permutations=2, hidden_dim=5),
    )
    names = {name.partition(".")[0] for name, _ in Losses(both).named_parameters()}
    assert names == {"jigsaw", "mmjp"}
    assert {name.partition(".")[0] for name, _ in Losses(config_of()).named_parameters()} == {
        "mmjp"
    }


def test_the_classifier_runs_in_the_precision_of_the_run() -> None:
    mask = torch.ones(B, T, dtype=torch.bool)
    codes = {name: x.float() for name, x in codes_of(config_of()).items()}
    found = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        found.append(compute(Losses(config_of(f"optimizer.precision={precision}")), codes, mask))
    assert found[0] != found[1]
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0)
