"""The networks of one modality: word reader, semantic encoder, specific encoder, reconstructor.

One class each for every modality. Features are vectors per step, (B, T, C), or grids per step,
channel last, (B, T, H, W, C).

Source: sections 3.1 and 3.4 of Huang et al., ICCV 2025, and the published code (3b31fa0).
"""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from micu.base.errors import ShapeError
from micu.config.sections import EncoderConfig, ReconstructionConfig
from micu.model.grids import GridConv, GridConvTranspose, by_products
from micu.model.onednn import Linear

FRONTS: dict[str, Literal["none", "gate", "words"]] = {
    "audio": "none",
    "video": "gate",
    "flow": "gate",
    "text": "words",
}
"""What a modality's features pass before the transformer: nothing, channel gating with pooling of
the grid, or the recurrent reader of words."""

GATE_REDUCTION = 8
LSTM_LAYERS = 2
MIN_GRID = 5
"""Smallest height and width that the convolutions, which take off 4 cells, can rebuild."""


def is_convolutional(shape: Sequence[int]) -> bool:
    """Whether features of this step shape are rebuilt by convolutions: a grid of at least 5 x 5."""
    return len(shape) == 3 and min(shape[:2]) >= MIN_GRID


def check_step_shape(modality: str, shape: Sequence[int]) -> None:
    """Refuse features that the modality's networks cannot read.

    Raises:
        ShapeError: Neither a vector nor a grid, or a grid of a modality whose grids are not pooled.
    """
    grids = FRONTS[modality] == "gate"
    if len(shape) == 1 or (len(shape) == 3 and grids):
        return
    wanted = "(C,) or (H, W, C)" if grids else "(C,)"
    raise ShapeError(
        f"{modality} features: expected {wanted} per step, got {tuple(shape)}; "
        "choose another backbone for this modality"
    )


class WordReader(nn.Module):
    """Two-layer bidirectional LSTM over the words of a text, from a zero state.

    Args:
        dim: C, width of a word's vector.
        hidden_dim: Width per direction; the output is twice as wide.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:  # noqa: D107
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden_dim, LSTM_LAYERS, batch_first=True, bidirectional=True)

    def read(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        """Contextual words.

        Args:
            words: (B, T, C). Without a mask, words of zeros are words, as in the published code.
            mask: (B, T) bool, True = real; what is masked is not read, wherever it stands.

        Returns:
            (B, T, 2 * hidden_dim), zeros where masked.
        """
        if mask is None:
            out: Tensor = self.lstm(words)[0]
            return out
        steps = words.shape[1]
        order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        lengths = mask.sum(1).clamp(min=1).cpu()  # an empty sequence cannot be packed
        gathered = words.gather(1, order[..., None].expand_as(words))
        packed = pack_padded_sequence(gathered, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=steps)
        back = order.argsort(dim=1)
        out = out.gather(1, back[..., None].expand_as(out))
        return out.masked_fill(~mask[..., None], 0.0)


class GridPool(nn.Module):
    """Channel gating with a residual, then pooling of the grid: p = pool(x * (1 + s)).

    s = sigmoid(W2 relu(W1 g)) with g the mean over the cells, hidden width C // 8, no biases. A
    vector is the grid of one cell.

    Args:
        shape: Step shape, (C,) or (H, W, C).
        attention_dim: Width of the spatial attention.
        spatial: `sum` of the cells, or `softmax` attention over them.

    Differs: `softmax` is what the published code sets out to do; its own softmax runs over an axis
        of length one, which makes it the sum.
    """

    def __init__(  # noqa: D107
        self, shape: Sequence[int], attention_dim: int, spatial: Literal["sum", "softmax"]
    ) -> None:
        super().__init__()
        dim = shape[-1]
        hidden_dim = max(1, dim // GATE_REDUCTION)
        self.squeeze = Linear(dim, hidden_dim, bias=False)
        self.excite = Linear(hidden_dim, dim, bias=False)
        self.attends = spatial == "softmax" and len(shape) == 3
        if self.attends:
            self.cell = Linear(dim, attention_dim)
            self.context = Linear(dim, attention_dim)
            self.score = Linear(attention_dim, 1)

    def pool(self, features: Tensor) -> Tensor:
        """Pool (B, T, C) or (B, T, H, W, C) to (B, T, C)."""
        cells = features.flatten(2, 3) if features.ndim == 5 else features[:, :, None]
        total = cells.sum(2)  # (B, T, C)
        mean = total / cells.shape[2]
        # 1 + s, the same for every cell: it can be taken out of their sum.
        gate = 1 + torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        if not self.attends:
            return total * gate
        gated = cells * gate[:, :, None]  # (B, T, H * W, C)
        # A weight per cell, from the cell and from the mean of all: softmax(tanh(w u)).
        shared = F.relu(self.cell(gated)) * F.relu(self.context(mean))[:, :, None]
        weights = torch.softmax(torch.tanh(self.score(shared)), dim=2)
        return (gated * weights).sum(2)


class TransformerLayer(nn.Module):
    """Post-norm encoder layer: self-attention and feed-forward, each LN(h + drop(f(h))).

    Dropout on the attention weights, after the ReLU, and on both branches.
    """

    def __init__(self, config: EncoderConfig) -> None:  # noqa: D107
        super().__init__()
        dim = config.embed_dim
        self.heads = config.heads
        self.attention_in = Linear(dim, 3 * dim)
        self.attention_out = Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.feedforward_in = Linear(dim, config.feedforward_dim)
        self.feedforward_out = Linear(config.feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.xavier_uniform_(self.attention_in.weight)
        nn.init.zeros_(self.attention_in.bias)
        nn.init.zeros_(self.attention_out.bias)

    def transform(self, steps: Tensor, mask: Tensor | None) -> Tensor:
        """Mix steps.

        Args:
            steps: (B, T, D).
            mask: Keys that may be attended to, (B, T) bool, True = real step.

        Returns:
            (B, T, D); what stands at masked steps has no meaning.
        """
        packed = self.attention_in(steps).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, D / heads)
        # softmax(Q K' / sqrt(D / heads)) V, by head; then LN(h + f(h)) twice.
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = self.attention_out(mixed.transpose(1, 2).flatten(2))
        steps = self.attention_norm(steps + self.dropout(attended))
        fed = self.feedforward_out(self.dropout(F.relu(self.feedforward_in(steps))))
        out: Tensor = self.feedforward_norm(steps + self.dropout(fed))
        return out


class SemanticEncoder(nn.Module):
    """Features of one modality to semantic embeddings (section 3.1).

    Pooling where the modality has it, a linear map, then post-norm transformer layers over time:
    no positional encoding, no norm after the last layer.

    Args:
        shape: Step shape of the features, (C,) or (H, W, C).
        gated: Gate the channels and pool the grid first.
        config: Sizes and choices.
    """

    def __init__(self, shape: Sequence[int], gated: bool, config: EncoderConfig) -> None:  # noqa: D107
        super().__init__()
        self.pool = GridPool(shape, config.embed_dim, config.spatial) if gated else None
        self.project = Linear(shape[-1], config.embed_dim)
        layers = [TransformerLayer(config) for _ in range(config.layers)]
        if config.clone_init:
            layers = [copy.deepcopy(layers[0]) for _ in layers]
        self.layers = nn.ModuleList(layers)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed every step.

        Args:
            features: (B, T, C) or (B, T, H, W, C).
            mask: (B, T) bool, True = real step; masked steps are not attended to.

        Returns:
            (B, T, D).
        """
        pooled = features if self.pool is None else self.pool.pool(features)
        # z = transformer(W p + b), with no position in it.
        steps: Tensor = self.project(pooled)
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            steps = layer.transform(steps, mask)
        return steps


def to_frames(grids: Tensor) -> Tensor:
    """Channel-last grids as images: (B, T, H, W, C) to (B * T, C, H, W).

    For torch's convolutions they are laid out channel first in memory: 20 frames with their
    gradients took 15 to 20 s channel last and 7 to 10 s channel first, on one CPU core.
    """
    frames = grids.flatten(0, 1).permute(0, 3, 1, 2)
    return frames if by_products(frames) else frames.contiguous()


def to_grids(frames: Tensor, batch_size: int) -> Tensor:
    """Images as channel-last grids: (B * T, C, H, W) to (B, T, H, W, C), a view."""
    out = frames.permute(0, 2, 3, 1)
    return out.reshape(batch_size, -1, *out.shape[1:])


class ResidualBlock(nn.Module):
    """relu(r + conv1x1(relu(conv3x3(r)))) with r = relu(x), no biases.

    The skip path carries relu(x), not x: the published block's first ReLU works in place.
    """

    def __init__(self, width: int) -> None:  # noqa: D107
        super().__init__()
        self.inner = GridConv(width, width, 3, padding=1, bias=False)
        self.outer = GridConv(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to the same shape."""
        skip = F.relu(x)
        return F.relu(skip + self.outer(F.relu(self.inner(skip))))


class SpecificEncoder(nn.Module):
    """What a modality keeps for itself, to be rebuilt from with its codes (section 3.4).

    Convolutions for grids of at least 5 x 5, a linear map with a ReLU for all else, smaller grids
    flattened.

    Args:
        shape: Step shape of the features, (C,) or (H, W, C).
        config: Widths.
    """

    def __init__(self, shape: Sequence[int], config: ReconstructionConfig) -> None:  # noqa: D107
        super().__init__()
        self.convolutional = is_convolutional(shape)
        width = config.grid_width
        self.net: nn.Module
        if self.convolutional:
            self.net = nn.Sequential(
                GridConv(shape[-1], width // 2, 3),
                nn.ReLU(),
                GridConv(width // 2, width, 3),
                nn.ReLU(),
                GridConv(width, width, 1),
                ResidualBlock(width),
            )
        else:
            self.net = Linear(int(torch.Size(shape).numel()), config.vector_width)

    def encode(self, features: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, W'), or (B, T, H, W, C) to (B, T, H - 4, W - 4, W')."""
        if not self.convolutional:
            return F.relu(self.net(features.flatten(2)))
        return to_grids(self.net(to_frames(features)), len(features))


class Reconstructor(nn.Module):
    """Rebuilds a modality's features from its codes and its specific encoding (section 3.4).

    Args:
        shape: Step shape of the features, (C,) or (H, W, C).
        embed_dim: D, width of a code.
        config: Widths.
    """

    def __init__(self, shape: Sequence[int], embed_dim: int, config: ReconstructionConfig) -> None:  # noqa: D107
        super().__init__()
        self.shape = tuple(shape)
        self.convolutional = is_convolutional(shape)
        self.code = Linear(embed_dim, embed_dim)
        self.net: nn.Module
        if self.convolutional:
            width, dim = config.grid_width, shape[-1]
            self.net = nn.Sequential(
                GridConvTranspose(embed_dim + width, width // 2, 3),
                ResidualBlock(width // 2),
                GridConvTranspose(width // 2, dim, 3),
                nn.ReLU(),
                GridConvTranspose(dim, dim, 1),
            )
        else:
            size = int(torch.Size(shape).numel())
            self.net = Linear(embed_dim + config.vector_width, size)

    def reconstruct(self, quantized: Tensor, specific: Tensor) -> Tensor:
        """Rebuild the features; the code's channels stand before the specific ones.

        Args:
            quantized: (B, T, D).
            specific: What `SpecificEncoder.encode` returned.

        Returns:
            (B, T, *shape).
        """
        code: Tensor = self.code(quantized)
        if not self.convolutional:
            out: Tensor = self.net(torch.cat([code, specific], -1))
            return out.reshape(*out.shape[:2], *self.shape)
        spread = code[:, :, None, None].expand(*specific.shape[:-1], -1)
        joined = to_frames(torch.cat([spread, specific], -1))
        return to_grids(self.net(joined), len(quantized))
