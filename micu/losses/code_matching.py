"""CMCM: cross-modal matching of the distributions over codes, and the warm start before it.

Source: equations 3 to 6 of Liu et al., *Cross-modal discrete representation learning*, ACL 2022
(arXiv 2106.05438); published code of DCID, whose quantizer has this loss.
"""

import itertools
from typing import Any, Literal

import torch
from torch import Tensor

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses.terms import LOSSES, Draws, Loss, needed_steps
from micu.model.micu import MICU, MICUOutput, mean_over_steps
from micu.model.quantizer import nearest_code

SMALLEST_DISTANCE_SQUARED = 1e-12
SMALLEST_SHARE = 1e-10
KMEANS_ROUNDS = 10
"""Of Lloyd's algorithm."""


def code_distributions(semantic: Tensor, codebook: Tensor, mask: Tensor | None) -> Tensor:
    """Share of each code in a sample: softmax of minus the distance, mean over steps.

    Args:
        semantic: (M, B, T, D).
        codebook: (K, D); distances are in its type, whatever `autocast` says.
        mask: (B, T) bool, True = real step.

    Returns:
        (M, B, K); rows sum to 1, or to 0 where a sample has no step.

    Reference: equation 3 of Liu et al. The distance is not squared.
    """
    with torch.autocast(semantic.device.type, enabled=False):
        x, codes = semantic.to(codebook.dtype), codebook
        # |z - e|^2 = |z|^2 - 2 z e + |e|^2.
        squared = x.square().sum(-1, keepdim=True) - 2 * x @ codes.T + codes.square().sum(-1)
        distances = squared.clamp(min=SMALLEST_DISTANCE_SQUARED).sqrt()
    return mean_over_steps(torch.softmax(-distances, -1), mask)


def matching_loss(
    one: Tensor,
    other: Tensor,
    has_steps: Tensor | None = None,
    index: Literal["paper", "reference"] = "paper",
) -> Tensor:
    """Contrast of two modalities' distributions within the batch.

    Args:
        one: (B, K).
        other: (B, K).
        has_steps: (B,) bool, True = the sample counts.
        index: `reference` adds a second term that is not transposed, so that off the diagonal it
            compares the wrong way round.

    Returns:
        Mean over the batch, ().

    Reference: equations 4 to 6 of Liu et al.: score = minus the symmetric cross-entropy, softmax
        over the second modality's samples. Differs from DCID's code: log-softmax, without its 1e-5.
    """
    one_log, other_log = ((x + SMALLEST_SHARE).log() for x in (one, other))
    back = one_log @ other.T
    if index == "reference":
        back = other @ one_log.T
    # Equation 4: S_ij = sum_k p_i log q_j + q_j log p_i.
    scores = one @ other_log.T + back  # (B, B)
    if has_steps is None:
        return -torch.log_softmax(scores, 1).diagonal().mean()
    # A sample's own score stays, so that no row is without a candidate.
    dropped = ~has_steps[None] & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    losses = -torch.log_softmax(scores.masked_fill(dropped, -torch.inf), 1).diagonal()
    return (losses * has_steps).sum() / has_steps.sum().clamp(min=1)


@torch.no_grad()
def kmeans(
    vectors: Tensor, clusters: int, generator: torch.Generator, rounds: int = KMEANS_ROUNDS
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


@LOSSES.register("code_matching")
class CodeMatchingLoss(Loss):
    """Sum over the unordered pairs of modalities; owns the store of embeddings of a warm start.

    Differs: Liu et al. pretrain without codes; the warm start that ends in k-means is our way to do
    the same within one run.
    """

    vectors: Tensor

    def __init__(self, config: TrainConfig) -> None:  # noqa: D107
        super().__init__(config)
        settings = config.baselines.code_matching
        self.warmup_steps = self.stored = 0
        if settings.warmup:
            size = (settings.warmup_vectors, config.encoder.embed_dim)
            self.register_buffer("vectors", torch.zeros(size))

    def start_(self, model: MICU, steps: int) -> None:
        """Find where the warm-up ends."""
        share = self.config.baselines.code_matching.warmup
        if share:
            what = "baselines.code_matching.warmup"
            self.warmup_steps = max(1, round(share * needed_steps(steps, what)))

    def is_continuous(self, step: int) -> bool:
        """Whether the warm-up goes on: also after a skipped last step, until there are clusters."""
        return step < self.warmup_steps or self.stored > 0

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Sum over pairs, (); 0 during the warm-up."""
        semantic = self.stack({name: q.semantic for name, q in output.quantized.items()})
        if self.is_continuous(draws.step):
            return semantic.new_zeros(())
        mask = output.quantized_mask(batch.mask)
        use = code_distributions(semantic, output.codebook, mask)
        has_steps, index = batch.mask.any(1), self.config.baselines.code_matching.index
        losses = [
            matching_loss(one, other, has_steps, index)
            for one, other in itertools.combinations(use, 2)
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def after_step_(self, model: MICU, output: MICUOutput, batch: Batch, draws: Draws) -> None:
        """Keep embeddings during the warm-up, and start the codebook from them at its end."""
        if self.is_continuous(draws.step):
            semantic = self.stack(output.update_semantic())
            self._keep_(semantic[:, output.update_mask(batch.mask)].flatten(0, 1))
        if self.stored and draws.step + 1 >= self.warmup_steps:
            vectors = self.vectors[: self.stored]
            size = self.config.quantizer.codebook_size
            centres, counts = kmeans(vectors, size, draws.generator("k-means"))
            per_batch = counts * (batch.mask.sum() / len(vectors))
            model.quantizer.begin_with_(centres, per_batch.clamp(min=1.0))
            self.stored = 0

    def _keep_(self, vectors: Tensor) -> None:
        """Put vectors, (n, D), before those that are there; the oldest fall out."""
        kept = torch.cat([vectors, self.vectors[: self.stored]])[: len(self.vectors)]
        self.stored = len(kept)
        self.vectors[: self.stored] = kept

    def get_extra_state(self) -> dict[str, int]:
        """End of the warm-up, which a longer run does not move, and what is in the store."""
        return {"warmup_steps": self.warmup_steps, "stored": self.stored}

    def set_extra_state(self, state: Any) -> None:
        """Take over what `get_extra_state` gave."""
        self.warmup_steps, self.stored = int(state["warmup_steps"]), int(state["stored"])
