"""TURN's self-cross reconstruction: masked steps are rebuilt from the codes of every modality.

Each step of a clip x(m) is hidden with probability r, which rises linearly over the run, and a
decoder per modality rebuilds it from the shown steps and the code c(n) of a clip's mean:

    L = 1/M^2 sum_{m,n} mean over hidden steps and channels of |D_m(shown x(m); c(n)) - x(m)|

Source: Zhao et al., *Towards effective multi-modal interchanges in zero-resource sounding object
localization* (TURN), NeurIPS 2022, and its published code (AwalkZY/TURN, 3640ef9:
`cross_text_audio` of `models/modules/vq_vae.py`; r from 0.5 to 1 in `config/default.py`).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from micu.config.sections import SelfCrossConfig, TrainConfig
from micu.data.dataset import Batch
from micu.losses.terms import LOSSES, Draws, Loss, needed_steps
from micu.model.micu import MICU, MICUOutput
from micu.model.onednn import Linear

POSITION_SCALE = 0.02


def mask_ratio(settings: SelfCrossConfig, step: int, steps: int) -> float:
    """Share of steps to mask: linear in the step, constant after the last one.

    Args:
        settings: First and last share.
        step: From 0.
        steps: Of the run.
    """
    progress = min(1.0, step / max(1, steps - 1))
    return settings.mask_start + (settings.mask_end - settings.mask_start) * progress


def masked_l1(rebuilt: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean absolute error over the numbers of hidden steps.

    Args:
        rebuilt: (M, B, T, C), from each modality's codes.
        target: (B, T, C).
        hidden: (B, T) bool, True = the step counts.

    Returns:
        Of each row of `rebuilt`, (M,); 0 if nothing is hidden.
    """
    per_step = (rebuilt - target).abs().mean(-1)  # (M, B, T)
    return (per_step * hidden).sum((1, 2)) / hidden.sum().clamp(min=1)


class StepDecoder(nn.Module):
    """Fills in masked steps: a transformer over time that attends to a memory as well.

    Args:
        dim: C, width of a step.
        steps: Longest sequence.
        config: Width, heads and dropout are the encoder's.
    """

    def __init__(self, dim: int, steps: int, config: TrainConfig) -> None:  # noqa: D107
        super().__init__()
        sizes = config.encoder
        self.project = Linear(dim, sizes.embed_dim)
        self.hidden_step = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(POSITION_SCALE * torch.randn(steps, sizes.embed_dim))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                sizes.embed_dim,
                sizes.heads,
                sizes.feedforward_dim,
                sizes.dropout,
                batch_first=True,
            )
            for _ in range(config.baselines.self_cross.layers)
        )
        self.rebuild = Linear(sizes.embed_dim, dim)

    def fill(self, x: Tensor, hidden: Tensor, memory: Tensor, mask: Tensor, real: Tensor) -> Tensor:
        """Rebuild every step.

        Args:
            x: (N, T, C).
            hidden: (N, T) bool, True = not shown.
            memory: (N, S, D).
            mask: (N, T) bool, True = real step; others are not attended to.
            real: (N, S) bool, likewise for the memory.

        Returns:
            (N, T, C).
        """
        shown = torch.where(hidden[..., None], self.hidden_step, x)
        steps = self.project(shown) + self.positions[: x.shape[1]]
        for layer in self.layers:
            steps = layer(
                steps,
                memory,
                tgt_key_padding_mask=_unattended(mask),
                memory_key_padding_mask=_unattended(real),
            )
        return cast(Tensor, self.rebuild(steps))


def _unattended(mask: Tensor) -> Tensor:
    """True = not attended to. A sequence without a real step attends to all: to none is nan."""
    return ~mask & mask.any(1, keepdim=True)


@LOSSES.register("self_cross")
class SelfCrossLoss(Loss):
    """Mean over ordered pairs, a modality with itself included; owns a decoder per modality.

    The shares of masked steps follow the run's length; a run that is made longer afterwards goes on
    with the last share.

    Differs: any modalities, where TURN has audio and text; each is rebuilt from itself as well,
    which TURN does with text that has no pair; words are rebuilt as vectors with the absolute
    error, where TURN tells them from a vocabulary; all steps are hidden by chance, where TURN hides
    one word at least; a grid is rebuilt as its mean over cells; two layers, where TURN has six; r
    rises over the run, where TURN's does over 30 epochs; the memory may be the sequence of codes.
    """

    def __init__(self, config: TrainConfig) -> None:  # noqa: D107
        super().__init__(config)
        self.steps = 0

    def start_(self, model: MICU, steps: int) -> None:
        """Decoders as wide as the features."""
        self.steps = needed_steps(steps, "baselines.self_cross.mask_end")
        length = self.config.data.steps
        self.decoders = nn.ModuleDict(
            {
                name: StepDecoder(shape[-1], length, self.config)
                for name, shape in model.shapes.items()
            }
        )

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Mean over the M * M ordered pairs, ()."""
        names, settings = self.config.modalities, self.config.baselines.self_cross
        is_pooled = settings.memory == "pooled"
        entries = output.pooled if is_pooled else output.quantized
        memory = self.stack({name: entries[name].quantized for name in names})  # (M, B, S, D)
        mask = batch.mask
        real = mask.any(1, keepdim=True) if is_pooled else mask
        ratio = mask_ratio(settings, draws.step, self.steps)
        source, count = draws.generator("self_cross"), len(names)
        losses = []
        for name in names:
            hidden = (torch.rand(mask.shape, generator=source) < ratio).to(mask.device)
            x = batch.features[name]
            x = x if x.ndim == 3 else x.flatten(2, -2).mean(2)
            # x(m) with its hidden steps, beside the memory c(n) of every modality n at once.
            tiled = [part.repeat(count, *[1] * (part.ndim - 1)) for part in (x, hidden, mask, real)]
            decoder = cast(StepDecoder, self.decoders[name])
            rebuilt = decoder.fill(tiled[0], tiled[1], memory.flatten(0, 1), *tiled[2:])
            losses.append(masked_l1(rebuilt.view(count, *x.shape), x, hidden & mask))
        return torch.stack(losses).mean()

    def get_extra_state(self) -> int:
        """The run's length when it began."""
        return self.steps

    def set_extra_state(self, state: Any) -> None:
        """Take over what `get_extra_state` gave."""
        self.steps = int(state)
