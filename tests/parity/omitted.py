"""Values of the golden files that MICU does not compute, by their published formulas.

The published code computes them on the way and no loss, code or prediction depends on them. They
guard what they are made of: embeddings, codebook, codes and specific encodings.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from micu.model.quantizer import Quantized
from tests.parity import recipe

CLUB_HEAD = "Video_encoder.feed_forward"


def matching_loss(semantic: Mapping[str, Tensor], codebook: Tensor) -> Tensor:
    """Code matching (`cmcm`), which depends on the codebook on entry only, ()."""
    use = {
        name: torch.softmax(-(z[:, :, None] - codebook).norm(dim=-1), -1).mean(1)
        for name, z in semantic.items()
    }
    pairs = (("audio", "video"), ("audio", "text"), ("video", "text"))
    losses = []
    for one, other in pairs:
        p, q = use[one], use[other]
        score = p @ (q + 1e-10).log().T + q @ (p + 1e-10).log().T
        e = torch.exp(score + (-score).max())
        losses.append(-(e.diagonal() / (e.sum(1) + 1e-5)).log().mean())
    return torch.stack(losses).sum() / 2


def most_frequent_agree(quantized: Mapping[str, Quantized]) -> int:
    """Samples whose most frequent code is the same in every modality (`equal`)."""
    rows = zip(*(entry.codes for entry in quantized.values()), strict=True)
    return sum(len({int(codes.mode().values) for codes in row}) == 1 for row in rows)


def best_two_gap(semantic: Tensor, codebook: Tensor) -> Tensor:
    """Distance of the second nearest code minus that of the nearest (`margin`), (B, T)."""
    distances = torch.cdist(semantic, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    best = distances.topk(2, dim=-1, largest=False).values
    return best[..., 1] - best[..., 0]


def club_head(specific: Tensor, encoder: recipe.Shapes, base: int) -> Tensor:
    """The video head of the unused mutual-information term (`video_club_head`).

    Args:
        specific: Specific encoding of video, (B, T, H, W, W').
        encoder: Shapes of the published encoder at this W'.
        base: First part of every seed.
    """
    head = {key: x for key, x in encoder.items() if key.startswith(CLUB_HEAD)}
    values = recipe.fill_state(recipe.emptied(encoder, head), recipe.ENCODER, base)
    state = {key: torch.from_numpy(values[key]).to(specific.dtype) for key in head}
    hidden, out = (
        (state[f"{CLUB_HEAD}.{i}.weight"], state[f"{CLUB_HEAD}.{i}.bias"]) for i in (0, 2)
    )
    return F.linear(F.relu(F.linear(specific.mean((2, 3)), *hidden)), *out)
