"""Cross-CPC: the next step of every modality is told from the past of every other one.

Source: equation 6 of Xia et al. (DCID), NeurIPS 2023, after van den Oord et al., 2018; published
code of DCID.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses.contrastive import info_nce_pairs
from micu.losses.terms import LOSSES, Draws, Loss
from micu.model.clips import WORDS, kind_of
from micu.model.micu import MICUOutput
from micu.model.onednn import Linear


def predictive_pairs(
    predicted: Tensor,
    targets: Tensor,
    candidates: Literal["predictions", "targets"],
    mask: Tensor | None = None,
) -> Tensor:
    """Contrast of predictions and targets within the batch, for every pair of modalities.

    Args:
        predicted: From modality m, (M, B, D).
        targets: Of modality n, (M, B, D).
        candidates: What the softmax runs over.
        mask: (B,) bool, True = the sample counts.

    Returns:
        (M, M), a mean over the batch; row n = modality of the target, column m = of the prediction.

    Reference: equation 6 of DCID. Dot product, no temperature. `predictions` is what the published
        code's softmax over the second axis does: which past belongs to this next step?
    """
    queries, keys = (targets, predicted) if candidates == "predictions" else (predicted, targets)
    rows = None if mask is None else mask[None]
    pairs = info_nce_pairs(
        queries[:, None],
        keys[:, None],
        tau=1.0,
        normalize=False,
        query_mask=rows,
        key_mask=rows,
    )
    return pairs if candidates == "predictions" else pairs.T


@LOSSES.register("cpc")
class CpcLoss(Loss):
    """Weighted sum over the ordered pairs; owns an LSTM and a linear map for each modality.

    Works on the embeddings before quantisation, as the published code does. One time step ahead,
    one step per batch, the same for all modalities.

    Differs: samples whose next step is padded take no part. The LSTMs have two layers, as in the
    published code, where the paper says one.
    """

    def __init__(self, config: TrainConfig) -> None:  # noqa: D107
        super().__init__(config)
        dim, layers = config.encoder.embed_dim, config.baselines.cpc.layers
        clips = config.encoder.unify == "clips"  # words are no steps in time there
        names = [name for name in config.modalities if not (clips and kind_of(name) == WORDS)]
        self.names = tuple(names)
        self.readers = nn.ModuleDict(
            {name: nn.LSTM(dim, dim, layers, batch_first=True) for name in names}
        )
        self.predictors = nn.ModuleDict({name: Linear(dim, dim) for name in names})

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Sum over ordered pairs; a modality's prediction of itself weighs less, ()."""
        settings, steps = self.config.baselines.cpc, batch.mask.shape[1]
        last = int(torch.randint(1, steps - 1, (), generator=draws.generator("cpc")))
        # From steps 0..t of one modality, c_t; from it W c_t, to be close to z_(t+1) of another.
        past = batch.mask[:, : last + 1, None]
        predicted, targets = {}, {}
        for name, steps_of in output.step_embeddings().items():
            seen = self.readers[name](steps_of[:, : last + 1] * past)[0]  # (B, last + 1, D)
            predicted[name] = self.predictors[name](seen[:, -1])
            targets[name] = steps_of[:, last + 1]
        pairs = predictive_pairs(
            torch.stack([predicted[name] for name in self.names]),
            torch.stack([targets[name] for name in self.names]),
            settings.candidates,
            batch.mask[:, last] & batch.mask[:, last + 1],
        )
        weights = torch.ones_like(pairs).fill_diagonal_(settings.self_weight)
        return (pairs * weights).sum()
