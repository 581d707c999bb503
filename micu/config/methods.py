"""Settings of the baselines' losses; the defaults are those of the preset that uses them.

A section that is changed while the loss of it has no weight is refused: it would do nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from micu.base.errors import check_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class ClubConfig:
    """CLUB: a bound of the information that codes and specific encodings share."""

    inner_steps: int = 5
    """Steps of the estimators per step of the model, on one batch."""
    learning_rate: float = 1e-3
    """Of the estimators' own Adam."""
    hidden_dim: int = 128

    def __post_init__(self) -> None:  # noqa: D105
        check_settings(
            "baselines.club",
            {
                f"inner_steps: expected at least 1, got {self.inner_steps}": self.inner_steps < 1,
                f"learning_rate: expected > 0, got {self.learning_rate}": self.learning_rate <= 0,
                f"hidden_dim: expected at least 1, got {self.hidden_dim}": self.hidden_dim < 1,
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CpcConfig:
    """Cross-modal contrastive predictive coding."""

    layers: int = 2
    """Of each modality's LSTM; the paper says one, the published code has two."""
    self_weight: float = 0.1
    """Weight of predicting a modality from itself; that of a pair is 1."""
    candidates: Literal["predictions", "targets"] = "predictions"
    """What the softmax runs over: the batch's predictions (published code), or its targets (paper,
    equation 6)."""

    def __post_init__(self) -> None:  # noqa: D105
        check_settings(
            "baselines.cpc",
            {
                f"layers: expected at least 1, got {self.layers}": self.layers < 1,
                f"self_weight: expected >= 0, got {self.self_weight}": self.self_weight < 0,
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeMatchingConfig:
    """CMCM: matching of the distributions over codes, and its warm start."""

    index: Literal["paper", "reference"] = "paper"
    """`reference` compares wrong pairs off the diagonal, as DCID's published code does."""
    warmup: float = 0.0
    """Share of the run, [0, 1), in which nothing is quantised and codes are not matched. It ends
    with k-means, whose centres the codebook starts from."""
    warmup_vectors: int = 20_000
    """How many of the last embeddings before the end of the warm-up k-means sees."""

    def __post_init__(self) -> None:  # noqa: D105
        check_settings(
            "baselines.code_matching",
            {
                f"warmup: expected [0, 1), got {self.warmup}": not 0 <= self.warmup < 1,
                f"warmup_vectors: expected at least 1, got {self.warmup_vectors}": (
                    self.warmup_vectors < 1
                ),
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfCrossConfig:
    """TURN: reconstruction of masked steps from the codes of every modality."""

    memory: Literal["pooled", "sequence"] = "pooled"
    """What is rebuilt from: the code of the clip's mean, or the codes of all its steps."""
    mask_start: float = 0.5
    """Share of masked steps at the first step of the run; it rises linearly."""
    mask_end: float = 1.0
    """Share at the run's last step."""
    layers: int = 2
    """Of each modality's decoder; heads and widths are the encoder's."""

    def __post_init__(self) -> None:  # noqa: D105
        check_settings(
            "baselines.self_cross",
            {
                f"mask_start: expected (0, 1], got {self.mask_start}": not 0 < self.mask_start <= 1,
                f"mask_end: expected (0, 1], got {self.mask_end}": not 0 < self.mask_end <= 1,
                f"layers: expected at least 1, got {self.layers}": self.layers < 1,
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportConfig:
    """CODIS: optimal transport to the codes, guided by a teacher."""

    momentum: float = 0.995
    """Of the teacher, a moving average of the encoders, once it has risen to this: in step s it is
    (1 + s) / (10 + s) at most, so that 0.995 takes 1790 steps."""
    queue_size: int = 4000
    """Clips whose teacher features are kept, per modality: ten per code, since the codes' uniform
    use means nothing for a batch that is smaller than the codebook."""
    epsilon: float = 0.05
    """Entropic regularisation of the transport."""
    iterations: int = 20
    """Of Sinkhorn's algorithm."""
    gamma: float = 0.1
    """Temperature of the assignment to codes."""
    tau: float = 0.07
    """Temperature of the instance contrast."""
    contrast_weight: float = 1.0
    """Weight of the instance contrast beside the assignment."""

    def __post_init__(self) -> None:  # noqa: D105
        positive = ("epsilon", "gamma", "tau")
        counts = ("queue_size", "iterations")
        check_settings(
            "baselines.transport",
            {
                f"momentum: expected [0, 1), got {self.momentum}": not 0 <= self.momentum < 1,
                f"contrast_weight: expected >= 0, got {self.contrast_weight}": (
                    self.contrast_weight < 0
                ),
                **{
                    f"{name}: expected > 0, got {getattr(self, name)}": getattr(self, name) <= 0
                    for name in positive
                },
                **{
                    f"{name}: expected at least 1, got {getattr(self, name)}": (
                        getattr(self, name) < 1
                    )
                    for name in counts
                },
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselinesConfig:
    """One section per loss of `LossWeights` that has settings of its own."""

    club: ClubConfig = field(default_factory=ClubConfig)
    cpc: CpcConfig = field(default_factory=CpcConfig)
    code_matching: CodeMatchingConfig = field(default_factory=CodeMatchingConfig)
    self_cross: SelfCrossConfig = field(default_factory=SelfCrossConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)

    def conflicts(
        self,
        weights: Mapping[str, float | None],
        *,
        steps: int,
        quantizer: Mapping[str, Any],
        double_forward: bool,
    ) -> dict[str, bool]:
        """What cannot go together with the run's other settings, for `check_settings`.

        Args:
            weights: `LossWeights`, by name.
            steps: T, `data.steps`.
            quantizer: `QuantizerConfig`, by name.
            double_forward: `optimizer.double_forward`.

        Returns:
            Problem → whether there is that problem.
        """
        given = {name for name, weight in weights.items() if weight is not None}
        ours = (*_SECTIONS, "one_way")
        idle = {
            f"baselines.{name}: expected the defaults with weights.{name}=none, got others; "
            f"give the loss a weight": name not in given and getattr(self, name) != kind()
            for name, kind in _SECTIONS.items()
        }
        learns = quantizer["learning"] == "gradient"
        return {
            **idle,
            "optimizer.double_forward: expected false with the losses of a baseline, got true": (
                double_forward and any(name in given for name in ours)
            ),
            "weights.reconstruction: expected a weight with weights.club, which looks at the "
            "specific encodings, got none": "club" in given and "reconstruction" not in given,
            f"data.steps: expected at least 3 with weights.cpc, got {steps}": (
                "cpc" in given and steps < 3
            ),
            "quantizer.pool: expected true with weights.self_cross and "
            "baselines.self_cross.memory=pooled and false without: nothing else looks at the codes "
            f"of means; got {str(quantizer['pool']).lower()}": (
                quantizer["pool"] != ("self_cross" in given and self.self_cross.memory == "pooled")
            ),
            "quantizer.learning: expected gradient with weights.transport and average without: "
            f"only that loss moves such codes; got {quantizer['learning']}": (
                learns != ("transport" in given)
            ),
            "weights.transport: expected > 0 with quantizer.learning=gradient, got 0.0: nothing "
            "else moves the codes": learns and weights["transport"] == 0,
            "quantizer.learning: expected average with a warm-up, which sets the codes, "
            "got gradient": learns and self.code_matching.warmup > 0,
        }


_SECTIONS: dict[str, type] = {
    "club": ClubConfig,
    "cpc": CpcConfig,
    "code_matching": CodeMatchingConfig,
    "self_cross": SelfCrossConfig,
    "transport": TransportConfig,
}
