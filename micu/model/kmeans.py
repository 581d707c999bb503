"""K-means, to start a codebook where embeddings are."""

import torch
from torch import Tensor

from micu.model.quantizer import nearest_code

ROUNDS = 10


@torch.no_grad()
def kmeans(
    vectors: Tensor, clusters: int, generator: torch.Generator, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """Centres of clusters: k-means++, then Lloyd's algorithm for a fixed number of rounds.

    Args:
        vectors: (n, D), n > 0; clustered on the CPU, once in a run.
        clusters: K; with fewer different vectors than that, centres repeat.
        generator: On the CPU; the result is a function of it and the vectors.
        rounds: Of Lloyd's algorithm.

    Returns:
        Centres, (K, D), and how many vectors are nearest to each, (K,), in the vectors' type. A
        centre that loses all its vectors stays where it was.

    Reference: Arthur & Vassilvitskii, SODA 2007.
    """
    device, vectors = vectors.device, vectors.cpu()
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64)
    centres = vectors.new_empty(clusters, vectors.shape[1])
    distances = torch.full_like(vectors[:, 0], torch.inf)
    for i, draw in enumerate(draws):
        # Far vectors are likely to be the next centre; the first one is any.
        weights = torch.ones_like(distances) if i == 0 or not distances.any() else distances
        total = weights.double().cumsum(0)
        chosen = torch.searchsorted(total, draw * total[-1], right=True)
        centres[i] = vectors[chosen.clamp(max=len(vectors) - 1)]
        distances = torch.minimum(distances, (vectors - centres[i]).square().sum(1))
    for _ in range(rounds):
        codes = nearest_code(vectors, centres)
        counts = torch.bincount(codes, minlength=clusters).to(vectors.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, vectors)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    codes = nearest_code(vectors, centres)
    counts = torch.bincount(codes, minlength=clusters).to(vectors.dtype)
    return centres.to(device), counts.to(device)
