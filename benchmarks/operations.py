"""Floating point operations of a training step: what its layers need, and what was carried out.

Needed is two per multiplication of the layers as they are defined: a convolution multiplies each
cell by each tap that it meets, padding not counted. A layer's gradient takes as many for its
weights, and as many for its input if that has one. Carried out is what torch's counter sees of the
step's products, oneDNN's and, on processors, the LSTM's added. Neither counts what is not a
product: activations, norms, softmaxes, the optimiser.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product as pairs
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.train.state import TrainState


@dataclass(frozen=True, slots=True)
class Row:
    """One layer, or one kind of product that belongs to no layer."""

    name: str
    forward: int
    backward: int
    kind: str = ""
    """Of the layer."""

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.backward


def pairs_along(cells: int, taps: int, padding: int) -> int:
    """How many pairs of a cell and a tap give an output, along one axis."""
    out = cells + 2 * padding - taps + 1
    return sum(0 <= i + tap - padding < cells for i, tap in pairs(range(out), range(taps)))


def layer_operations(layer: nn.Module, x: Tensor) -> int:
    """Needed by the forward pass of a layer over its input; 0 for one that has no products."""
    if isinstance(layer, nn.Linear):
        return 2 * x.numel() * layer.out_features
    if isinstance(layer, nn.LSTM):
        steps = x.shape[0] * x.shape[1]
        weights = [p for name, p in layer.named_parameters() if "weight" in name]
        return 2 * steps * sum(p.numel() for p in weights)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        n, _, *grid = x.shape
        met = 1
        for cells, taps, padding in zip(grid, layer.kernel_size, layer.padding, strict=True):
            whole = isinstance(layer, nn.ConvTranspose2d)
            met *= cells * taps if whole else pairs_along(cells, taps, int(padding))
        return 2 * n * met * layer.in_channels * layer.out_channels
    return 0


def layer_kind(layer: nn.Module) -> str:
    """For example `3x3 convolution`; other layers by the name of their class."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return f"{'x'.join(map(str, layer.kernel_size))} convolution"
    return type(layer).__name__


def share_of(kind: str, rows: list[Row]) -> float:
    """How much of what all rows need is needed by layers of a kind, [0, 1]."""
    return sum(row.total for row in rows if row.kind == kind) / sum(row.total for row in rows)


def needed_operations(state: TrainState, batch: Batch) -> list[Row]:
    """Every product of one step, from one forward pass; its backward pass follows."""
    rows: list[Row] = []
    handles = []
    for name, module in state.model.named_modules():

        def note(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            count = layer_operations(module, inputs[0])
            if count:
                backward = count * (1 + inputs[0].requires_grad)
                rows.append(Row(name, count, backward, layer_kind(module)))

        handles.append(module.register_forward_hook(note))
    try:
        state.model.train()(batch)
    finally:
        for handle in handles:
            handle.remove()
    passes = [Row(name, count, 2 * count) for name, count in loose_products(state.config, batch)]
    lookup = len(state.config.modalities) * batch.mask.numel() * state.config.encoder.embed_dim
    return [
        *rows,
        *passes,
        Row("codebook lookup", 2 * lookup * len(state.model.quantizer.codebook), 0),
    ]


def loose_products(config: TrainConfig, batch: Batch) -> Iterator[tuple[str, int]]:
    """Products that no layer owns, forward: attention and losses."""
    count, steps = batch.mask.shape
    rows, dim, many = count * steps, config.encoder.embed_dim, len(config.modalities)
    yield "attention", 4 * many * config.encoder.layers * rows * steps * dim
    yield "fine", 2 * count * (many * steps) ** 2 * dim
    yield "coarse", 2 * (many * count) ** 2 * dim
    jigsaw = config.jigsaw
    hidden, labels = jigsaw.hidden_dim, jigsaw.permutations
    if jigsaw.labels == "sampled":
        yield "jigsaw", 2 * rows * (dim * hidden + hidden * labels)
    else:  # the first layer once for each block at each position, then summed
        first = jigsaw.splits * dim * hidden + labels * jigsaw.splits**2 * hidden
        yield "jigsaw", 2 * rows * (first + labels * hidden * labels)


@contextmanager
def carried_out() -> Iterator[Callable[[], int]]:
    """Count the operations of what runs inside; ask afterwards."""

    def onednn(left: list[int], right: list[int], *rest: Any, out_shape: Any, **named: Any) -> int:
        return 2 * left[0] * left[1] * right[0]

    def lstm(x: list[int], *weights: Any, **named: Any) -> int:
        return 2 * x[0] * x[1] * sum(w[0] * w[1] for w in weights[:2])

    def lstm_backward(x: list[int], *weights: Any, **named: Any) -> int:
        return 2 * lstm(x, *weights)

    mapping = {
        torch.ops.aten.mkldnn_rnn_layer: lstm,
        torch.ops.aten.mkldnn_rnn_layer_backward: lstm_backward,
        torch.ops.mkldnn._linear_pointwise: onednn,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        yield counter.get_total_flops
