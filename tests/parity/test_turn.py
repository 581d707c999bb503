"""TURN: self-cross reconstruction, its schedule and its contrast against loops."""

import itertools
from dataclasses import replace
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

from micu.config.presets import BASELINES
from micu.config.sections import (
    BaselinesConfig,
    DataConfig,
    EncoderConfig,
    QuantizerConfig,
    SelfCrossConfig,
    TrainConfig,
)
from micu.data.dataset import Batch
from micu.losses import Draws, Losses
from micu.losses.contrastive import OneWayLoss
from micu.losses.self_cross import SelfCrossLoss, StepDecoder, mask_ratio, masked_l1
from micu.model.micu import MICU, MICUOutput
from micu.model.quantizer import UnifiedQuantizer
from tests.models import update_

B, T, D = 3, 5, 8
SHAPES: dict[str, tuple[int, ...]] = {"audio": (6,), "video": (7, 7, 4)}
MASK = torch.arange(T) < torch.tensor([5, 3, 4])[:, None]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def configured(memory: Literal["pooled", "sequence"] = "pooled") -> TrainConfig:
    config = replace(BASELINES["turn"](), modalities=("audio", "video"))
    return replace(
        config,
        encoder=EncoderConfig(embed_dim=D, heads=2, feedforward_dim=8, dropout=0.0),
        quantizer=replace(config.quantizer, pool=memory == "pooled"),
        reconstruction=replace(config.reconstruction, grid_width=4, vector_width=4),
        data=DataConfig(steps=T),
        baselines=BaselinesConfig(self_cross=SelfCrossConfig(memory=memory)),
    )


def passed(config: TrainConfig, steps: int = 11) -> tuple[MICUOutput, Batch, Losses]:
    torch.manual_seed(0)
    model = MICU(config, SHAPES).double()
    losses = Losses(config)
    losses.start_(model, steps)
    features = {
        name: numbers(B, T, *shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())
    }
    batch = Batch(features, MASK, tuple("abc"), ("",) * B)
    return model(batch), batch, losses.double()


def draws_of(step: int) -> Draws:
    return Draws(torch.zeros(0), torch.zeros(0), seed=5, step=step)


def test_the_mask_ratio_rises_linearly_over_the_run_and_then_stays() -> None:
    settings = SelfCrossConfig(mask_start=0.5, mask_end=1.0)
    ratios = [mask_ratio(settings, step, 11) for step in (0, 1, 5, 10, 11, 50)]
    assert ratios == pytest.approx([0.5, 0.55, 0.75, 1.0, 1.0, 1.0])
    assert mask_ratio(settings, 0, 1) == 0.5


def test_the_error_is_the_mean_over_hidden_steps_of_the_absolute_one() -> None:
    rebuilt, target = numbers(2, B, T, 4), numbers(B, T, 4, seed=1)
    hidden = numbers(B, T, seed=2) > 0
    for m in range(2):
        errors = [
            float((rebuilt[m, b, t, c] - target[b, t, c]).abs())
            for b, t, c in itertools.product(range(B), range(T), range(4))
            if hidden[b, t]
        ]
        got = masked_l1(rebuilt, target, hidden)[m].item()
        assert got == pytest.approx(sum(errors) / len(errors), rel=1e-12)
    assert masked_l1(rebuilt, target, hidden & False).tolist() == [0, 0]


@pytest.mark.parametrize("step", [0, 10])
@pytest.mark.parametrize("memory", ["pooled", "sequence"])
def test_masked_steps_are_rebuilt_from_the_codes_of_every_modality(
    memory: Literal["pooled", "sequence"], step: int
) -> None:
    output, batch, losses = passed(configured(memory))
    loss, draws = cast(SelfCrossLoss, losses.self_cross), draws_of(step)
    got = loss.compute(output, batch, draws)

    source, total = draws.generator("self_cross"), 0.0
    for m in SHAPES:
        hidden = (torch.rand(MASK.shape, generator=source) < (0.5 if step == 0 else 1.0)) & MASK
        decoder = cast(StepDecoder, loss.decoders[m])
        for n in SHAPES:
            errors = []
            for b in range(B):
                length = int(MASK[b].sum())
                x = batch.features[m][b, :length]
                x = x if m == "audio" else x.mean((1, 2))
                entry = output.pooled[n] if memory == "pooled" else output.quantized[n]
                tokens = entry.quantized[b] if memory == "pooled" else entry.quantized[b, :length]
                shown = x.clone()
                shown[hidden[b, :length]] = decoder.hidden_step
                h = (decoder.project(shown) + decoder.positions[:length])[None]
                for layer in decoder.layers:
                    h = layer(h, tokens[None])
                error = (decoder.rebuild(h)[0] - x).abs()
                errors.append(error[hidden[b, :length]].flatten())
            total += float(torch.cat(errors).mean().detach()) / 4
    assert got.item() == pytest.approx(total, rel=1e-9)


def test_clips_look_for_their_pair_in_one_direction() -> None:
    output, batch, losses = passed(configured())
    got = losses.one_way.compute(output, batch, draws_of(0))  # type: ignore[operator]
    clips = [
        torch.stack([output.quantized[name].semantic[b, MASK[b]].mean(0) for b in range(B)])
        for name in SHAPES
    ]
    cosines = torch.cosine_similarity(clips[0][:, None], clips[1][None], dim=-1) / 0.1
    expected = -cosines.log_softmax(1).diagonal().mean()
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)


def test_each_modality_looks_for_those_that_stand_after_it_and_the_pairs_are_added_up() -> None:
    config = replace(configured(), modalities=("audio", "video", "flow"))
    clips, has_steps = numbers(4, 3, D), torch.tensor([True, True, False, True])
    got = OneWayLoss(config).compare(clips, has_steps)
    rows, total = [0, 1, 3], 0.0
    for m, n in ((0, 1), (0, 2), (1, 2)):
        for i in rows:
            cosines = torch.stack(
                [torch.cosine_similarity(clips[i, m], clips[j, n], dim=0) / 0.1 for j in rows]
            )
            total -= float(cosines.log_softmax(0)[rows.index(i)]) / len(rows)
    assert got.item() == pytest.approx(total, rel=1e-9)


def test_pooled_codes_are_those_of_the_mean_over_real_steps_and_move_the_codebook() -> None:
    config = replace(configured(), quantizer=replace(configured().quantizer, codebook_size=4))
    torch.manual_seed(0)
    model = MICU(config, SHAPES).double()
    _, batch, _ = passed(configured())
    output = model(batch)
    codebook = model.quantizer.codebook
    for name in SHAPES:
        for b in range(B):
            mean = output.quantized[name].semantic[b, MASK[b]].mean(0)
            nearest = int((codebook - mean).square().sum(1).argmin())
            assert int(output.pooled[name].codes[b, 0]) == nearest
            torch.testing.assert_close(output.pooled[name].quantized[b, 0], codebook[nearest])
    expected = by_hand(output, model.quantizer)
    update_(
        model.quantizer,
        output.update_semantic(),
        output.update_mask(batch.mask),
        codes=output.update_codes(),
    )
    torch.testing.assert_close(model.quantizer.codebook, expected)


def by_hand(output: MICUOutput, quantizer: UnifiedQuantizer) -> Tensor:
    """The codebook after the moving averages of each modality's own steps and means."""
    decay, epsilon = QuantizerConfig().ema_decay, QuantizerConfig().ema_epsilon
    count, weight = quantizer.ema_count.clone(), quantizer.ema_weight.clone()
    for name in SHAPES:
        counts, sums = torch.zeros_like(count), torch.zeros_like(weight)
        for b in range(B):
            entries = [
                (int(output.quantized[name].codes[b, t]), output.quantized[name].semantic[b, t])
                for t in range(T)
                if MASK[b, t]
            ]
            entries.append(
                (int(output.pooled[name].codes[b, 0]), output.pooled[name].semantic[b, 0])
            )
            for code, vector in entries:
                counts[code] += 1
                sums[code] += vector.detach()
        count = decay * count + (1 - decay) * counts
        count = (count + epsilon) / (count.sum() + len(count) * epsilon) * count.sum()
        weight = decay * weight + (1 - decay) * sums
    return weight / count[:, None]
