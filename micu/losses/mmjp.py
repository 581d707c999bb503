"""MMJP, the multi-modal jigsaw puzzle: parts of all modalities side by side, in a permuted order.

A row is the codes of all modalities at one step, each cut along its channels into S parts: M * S
parts that stand one modality after the other. They are put in the order of each of P fixed
permutations, and a classifier must tell which one it was. In CUJP every place of the row may come
from any modality; here all modalities are in every row, and what a modality looks like gives its
parts away.

Source: Dong et al., MOOSA, ECCV 2024, and its published code (S = 4 for two modalities and 2 for
three, P = 128); figure 3 of Huang et al., ICCV 2025, where three modalities' is `MMJP6`.
Differs: MOOSA permutes embeddings of whole clips, of unlike width and before any quantisation; here
it is the codes of every step, as CUJP's, so that clips may have any number of steps. MOOSA lists
all (M * S)! permutations in every step.
"""

import torch
from torch import Tensor

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses.jigsaw import JigsawClassifier, draw_permutations, jigsaw_loss
from micu.losses.terms import LOSSES, Draws, Loss
from micu.model.micu import MICUOutput
from micu.model.precision import autocast


def side_by_side(quantized: Tensor, splits: int) -> Tensor:
    """Cut embedded codes into parts, all modalities' in one row.

    Args:
        quantized: Embedded codes, (M, N, D).
        splits: S, a divisor of D.

    Returns:
        (N, M * S, D / S); part s of modality m is at place m * S + s.
    """
    return torch.cat([x.unflatten(-1, (splits, -1)) for x in quantized], dim=1)


@LOSSES.register("mmjp")
class MmjpLoss(Loss):
    """Permutation classification on the parts of all modalities; owns classifier and table."""

    mean_over = "steps"
    permutations: Tensor

    def __init__(self, config: TrainConfig) -> None:  # noqa: D107
        super().__init__(config)
        settings, modalities = config.mmjp, len(config.modalities)
        self.classifier = JigsawClassifier(
            modalities * config.encoder.embed_dim, settings.hidden_dim, settings.permutations
        )
        self.splits = settings.parts_each(modalities)
        table = draw_permutations(modalities * self.splits, settings.permutations, config.seed)
        self.register_buffer("permutations", table)

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Mean cross-entropy over real steps and permutations, ()."""
        quantized = self.stack({name: q.quantized for name, q in output.quantized.items()})
        parts = side_by_side(quantized.flatten(1, 2), self.splits)
        classifier, rows = self.classifier.tensors(), batch.mask.flatten()
        with autocast(self.config, parts.device):
            return jigsaw_loss(parts, self.permutations, classifier, rows)
