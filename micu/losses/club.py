"""CLUB: an upper bound of the information that a modality's codes and specific encodings share.

Lowering it pushes what all modalities say into the codes and the rest into the specific encodings.
Source: equations 4 and 5 of Xia et al., *Achieving cross modal generalization with multimodal
unified representation* (DCID), NeurIPS 2023, after Cheng et al., ICML 2020; published code of DCID.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from micu.base.tensors import load_adam_
from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses.terms import LOSSES, Draws, Loss
from micu.model.clips import kind_of
from micu.model.micu import MICU, MICUOutput, mean_over_steps
from micu.model.networks import SpecificEncoder
from micu.model.onednn import Linear

ESTIMATOR_LAYERS = 3
Pair = tuple[Tensor, Tensor, Tensor]
"""What is shared, (n, T, D), what is specific, (n, T, Y), and the mask of both, (n, T)."""
HEAD_REDUCTION = 2
"""By how much each of the two layers of a grid's head divides the width."""


def log_likelihood(mean: Tensor, log_variance: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """What the estimators maximise: log q(y|x), constants left out, mean over real steps.

    Args:
        mean: Of q, (B, T, Y).
        log_variance: Likewise.
        y: (B, T, Y).
        mask: (B, T) bool, True = real step.

    Returns:
        ().
    """
    # log N(y; mu, sigma^2) = -(mu - y)^2 / (2 sigma^2) - log(sigma^2) / 2 + constant.
    per_step = (-(mean - y).square() / log_variance.exp() - log_variance).sum(-1) / 2
    return (per_step * mask).sum() / mask.sum().clamp(min=1)


def club_bound(
    mean: Tensor, log_variance: Tensor, y: Tensor, other: Tensor, mask: Tensor
) -> Tensor:
    """The bound: log q of what belongs together minus log q of what does not, mean over samples.

    Args:
        mean: Of q, (B, T, Y).
        log_variance: Likewise.
        y: (B, T, Y).
        other: (B,) int64, the sample that each one is paired with for the second term.
        mask: (B, T) bool, True = real step. A pair counts at steps that are real in both, and all
            its means are over these: over other steps the terms would differ for y that are alike.

    Returns:
        ().

    Reference: equation 5 of DCID. Differs from the printed double sum as the published code does:
        one other sample for each, and errors and log-variance are averaged over steps before they
        are divided.
    """
    both = mask & mask[other]
    apart = mean_over_steps((mean - y[other]).square(), both)
    together = mean_over_steps((mean - y).square(), both)
    variance = mean_over_steps(log_variance, both).exp()
    # log q(y_i|x_i) - log q(y_j|x_i): the log-variance is that of x_i in both, and drops out.
    per_sample = ((apart - together) / variance).sum(-1) / 2  # (B,), 0 for clips that share no step
    return per_sample.sum() / both.any(1).sum().clamp(min=1)


def club_bound_of_clips(
    mean: Tensor, log_variance: Tensor, y: Tensor, other: Tensor, mask: Tensor
) -> Tensor:
    """The bound as FCID's code has it for clips: a mean over channels, a sum over clips.

    Args:
        mean: Of q, (n, 1, Y).
        log_variance: Likewise.
        y: (n, 1, Y).
        other: (n,) int64, the clip that each one is paired with for the second term.
        mask: (n, 1) bool, True = the clip has a real step; a pair counts where both have.

    Returns:
        ().

    Differs from `club_bound` as the published function does: it averages over the second axis,
        steps or here channels, and sums over the last. So a bound grows with the batch.
    """
    both = (mask & mask[other])[:, 0]
    apart = (mean - y[other]).square().mean((1, 2))
    together = (mean - y).square().mean((1, 2))
    per_clip = (apart - together) / log_variance.mean((1, 2)).exp() / 2  # (n,)
    return (per_clip * both).sum()


class Estimator(nn.Module):
    """q(y|x): mean and log-variance of y, each by a network with three hidden layers.

    The log-variance ends in a tanh. The parameters need no gradient but while they are trained.
    """

    def __init__(self, dim: int, out_dim: int, hidden_dim: int) -> None:  # noqa: D107
        super().__init__()
        self.mean = _mlp(dim, out_dim, hidden_dim)
        self.log_variance = nn.Sequential(_mlp(dim, out_dim, hidden_dim), nn.Tanh())
        self.requires_grad_(False)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (..., D) to twice (..., Y)."""
        return self.mean(x), self.log_variance(x)


def _mlp(dim: int, out_dim: int, hidden_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(ESTIMATOR_LAYERS):
        layers += [Linear(dim, hidden_dim), nn.ReLU()]
        dim = hidden_dim
    return nn.Sequential(*layers, Linear(dim, out_dim))


@LOSSES.register("club")
class ClubLoss(Loss):
    """The bound of every modality, summed; owns the estimators and their Adam.

    Differs: grids of any size are averaged over their cells before their head, where the published
    code needs 3 x 3 cells. One Adam serves all estimators: it treats each number on its own, as
    theirs, one per modality, do.
    """

    purpose = "club"
    """Of its draws."""
    bound = staticmethod(club_bound)

    def start_(self, model: MICU, steps: int) -> None:
        """Estimators as wide as the model's specific encodings."""
        self.heads, self.estimators = nn.ModuleDict(), nn.ModuleDict()
        for name, encoder in model.specific_encoders.items():
            width = _width(cast(SpecificEncoder, encoder), self.config)
            if cast(SpecificEncoder, encoder).convolutional:
                narrower = max(1, width // HEAD_REDUCTION)
                out = max(1, narrower // HEAD_REDUCTION)
                self.heads[name] = nn.Sequential(
                    Linear(width, narrower), nn.ReLU(), Linear(narrower, out)
                )
                width = out
            self._add_estimator(name, width)
        self._optimize()

    def _add_estimator(self, name: str, width: int) -> None:
        dim, hidden_dim = self.config.encoder.embed_dim, self.config.baselines.club.hidden_dim
        self.estimators[name] = Estimator(dim, width, hidden_dim)

    def _optimize(self) -> None:
        rate = self.config.baselines.club.learning_rate
        self.optimizer = torch.optim.Adam(self.estimators.parameters(), lr=rate)

    def fit_estimators_(self, output: MICUOutput, batch: Batch, draws: Draws) -> None:
        """Some steps of the estimators towards what this forward pass gave."""
        with torch.no_grad():
            pairs = self._pairs(output, batch)
        self.estimators.requires_grad_(True)
        with torch.enable_grad():
            for _ in range(self.config.baselines.club.inner_steps):
                fits = [
                    log_likelihood(*self._predict(name, x.detach()), y.detach(), mask)
                    for name, (x, y, mask) in pairs.items()
                ]
                self.optimizer.zero_grad()
                (-torch.stack(fits).sum()).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
        self.optimizer.zero_grad()
        self.estimators.requires_grad_(False)

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Sum over pairs of encodings, (); the gradient goes to all of these."""
        source = draws.generator(self.purpose)
        bounds = []
        for name, (x, y, mask) in self._pairs(output, batch).items():
            other = torch.randperm(len(mask), generator=source).to(mask.device)
            bounds.append(self.bound(*self._predict(name, x), y, other, mask))
        return torch.stack(bounds).sum()

    def get_extra_state(self) -> dict[str, Any]:
        """State of the estimators' Adam."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: Any) -> None:
        """Take over what `get_extra_state` gave."""
        load_adam_(self.optimizer, state)

    def _predict(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        return cast(Estimator, self.estimators[name]).predict(x)

    def _pairs(self, output: MICUOutput, batch: Batch) -> dict[str, Pair]:
        """What is shared, specific encodings as vectors, and their mask, by modality."""
        shared = output.rebuilt_from()
        return {
            name: (
                shared[name],
                self.heads[name](x.mean((2, 3))) if name in self.heads else x,
                batch.mask,
            )
            for name, x in ((m, output.specific[m]) for m in self.estimators)
        }


@LOSSES.register("clip_club")
class ClipClubLoss(ClubLoss):
    """FCID's bounds between what its clips share and what is their own, g and p.

    One for words, and one for all other modalities, whose clips stand one below the other.

    Differs: clips without a real step take no part.
    """

    purpose = "clip_club"
    bound = staticmethod(club_bound_of_clips)

    def start_(self, model: MICU, steps: int) -> None:
        """An estimator for each kind of modality."""
        self.estimators = nn.ModuleDict()
        for kind in sorted({kind_of(name) for name in self.config.modalities}, reverse=True):
            self._add_estimator(kind, self.config.reconstruction.vector_width)
        self._optimize()

    def _pairs(self, output: MICUOutput, batch: Batch) -> dict[str, Pair]:
        """g, p and mask of the clips of each kind, (n, 1, D), (n, 1, W) and (n, 1)."""
        assert output.clips is not None
        found = {}
        for kind in self.estimators:
            names = [name for name in self.config.modalities if kind_of(name) == kind]
            found[kind] = (
                torch.cat([output.clips.general[name] for name in names]),
                torch.cat([output.clips.specific[name] for name in names]),
                output.quantized_mask(batch.mask).repeat(len(names), 1),
            )
        return found


def _width(encoder: SpecificEncoder, config: TrainConfig) -> int:
    """Channels of a specific encoding."""
    sizes = config.reconstruction
    return sizes.grid_width if encoder.convolutional else sizes.vector_width
