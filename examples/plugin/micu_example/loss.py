"""A loss, trained with `micu-train --set weights.plugins=example-spread=0.1`."""

from torch import Tensor

from micu.data.dataset import Batch
from micu.losses import Draws, Loss
from micu.model.micu import MICUOutput


class SpreadLoss(Loss):
    """Mean squared length of the semantic vectors of real steps, ()."""

    mean_over = "steps"

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """The term before weighting."""
        vectors = self.stack({name: found.semantic for name, found in output.quantized.items()})
        return vectors.square().mean(-1)[:, batch.mask].mean()
