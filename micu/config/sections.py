"""Every setting of a run: one frozen dataclass per component, defaults as in the preset `micu`.

Each attribute says its unit, its place in the paper and, where the published code differs from the
paper or from us, what the code does. Values are checked when a configuration is made; all problems
are reported at once.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Literal

from micu.base.errors import brief
from micu.base.errors import check_settings as _check
from micu.base.process import LAST_SEED
from micu.config.jigsaw import JigsawConfig, MmjpConfig, permutation_count
from micu.config.methods import BaselinesConfig
from micu.store.manifest import MODALITIES


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Semantic encoders, one per modality (section 3.1 of the paper)."""

    embed_dim: int = 256
    """D, width of the semantic embedding and of a code."""
    heads: int = 4
    layers: int = 2
    feedforward_dim: int = 1024
    dropout: float = 0.1
    text_hidden_dim: int = 128
    """Width of the text LSTM, per direction."""
    spatial: Literal["sum", "softmax"] = "sum"
    """Pooling of a grid. `sum` is what the published code computes: its softmax runs over an axis
    of length one, so every cell has weight 1. `softmax` is the attention that was meant."""
    clone_init: bool = False
    """Start both transformer layers from the same weights, as the published code does."""

    def __post_init__(self) -> None:  # noqa: D105
        _check(
            "encoder",
            {
                f"embed_dim: expected a positive multiple of heads={self.heads}, "
                f"got {self.embed_dim}": self.heads < 1
                or self.embed_dim < 1
                or self.embed_dim % self.heads != 0,
                f"layers: expected at least 1, got {self.layers}": self.layers < 1,
                f"feedforward_dim: expected at least 1, got {self.feedforward_dim}": (
                    self.feedforward_dim < 1
                ),
                f"text_hidden_dim: expected at least 1, got {self.text_hidden_dim}": (
                    self.text_hidden_dim < 1
                ),
                f"dropout: expected [0, 1), got {self.dropout}": not 0 <= self.dropout < 1,
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """The shared codebook (section 3.2, equations 5 and 6)."""

    codebook_size: int = 400
    """K."""
    ema_decay: float = 0.99
    ema_epsilon: float = 1e-5
    ema_own: float = 0.5
    """Weight of a modality's own feature in its codes' moving average; the others share the rest.
    With three modalities 1/2, 1/4, 1/4."""
    ema_init: Literal["one", "zero"] = "one"
    """Count that every code starts with. The published code starts with 0, which sends unused codes
    to norms of several hundred at the first update."""
    commitment_own: float = 0.5
    """Weight of the squared distance to the modality's own code."""
    commitment_cross: float = 0.25
    """Weight of the squared distances to the other modalities' codes, shared among them."""
    reset: Literal["revive", "reference", "off"] = "revive"
    """Dead codes. `revive` restarts code, count and sum beside an active code, in training only.
    `reference` moves the code alone, by a constant, so that the next update undoes it, does not
    count text; in training only, where the published code does it in evaluation as well."""
    dead_after: int = 300
    """Updates without use after which a code is dead."""
    active_within: int = 100
    """Updates within which a code that was used is active."""
    null_code: bool = False
    """Set code 0 to zero when encoding for evaluation, as the published entry points do."""
    learning: Literal["average", "gradient"] = "average"
    """`average` moves codes by the moving averages above. `gradient` leaves them to a loss and the
    optimiser; features and codes then have one length, and the nearest code is that of the largest
    cosine."""
    pool: bool = False
    """Quantise the mean of each clip's steps as well, as one more step."""

    def __post_init__(self) -> None:  # noqa: D105
        _check(
            "quantizer",
            {
                f"codebook_size: expected at least 2, got {self.codebook_size}": (
                    self.codebook_size < 2
                ),
                f"ema_decay: expected [0, 1), got {self.ema_decay}": not 0 <= self.ema_decay < 1,
                f"ema_epsilon: expected > 0, got {self.ema_epsilon}": self.ema_epsilon <= 0,
                f"ema_own: expected (0, 1], got {self.ema_own}": not 0 < self.ema_own <= 1,
                f"commitment_own: expected >= 0, got {self.commitment_own}": (
                    self.commitment_own < 0
                ),
                f"commitment_cross: expected >= 0, got {self.commitment_cross}": (
                    self.commitment_cross < 0
                ),
                f"active_within: expected at least 1, got {self.active_within}": (
                    self.active_within < 1
                ),
                f"dead_after: expected at least active_within={self.active_within}, "
                f"got {self.dead_after}": self.dead_after < self.active_within,
                f"reset: expected off with learning=gradient, got {self.reset}": (
                    self.learning == "gradient" and self.reset != "off"
                ),
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructionConfig:
    """Modality-specific encoders and decoders (section 3.2)."""

    grid_width: int = 2048
    """Channels of the convolutional branch that rebuilds grids."""
    vector_width: int = 256
    """Width of the branch that rebuilds vectors."""
    text_target: Literal["lstm", "input"] = "lstm"
    """What text is to be rebuilt as: the LSTM's output (published code), or the words' own features
    (paper)."""
    text_target_grad: bool = False
    """Let the gradient flow into the target `lstm`, as the published code does: it can then lower
    the loss by shrinking the target."""

    def __post_init__(self) -> None:  # noqa: D105
        _check(
            "reconstruction",
            {
                f"grid_width: expected a positive even number, got {self.grid_width}": (
                    self.grid_width < 2 or self.grid_width % 2 != 0
                ),
                f"vector_width: expected at least 1, got {self.vector_width}": (
                    self.vector_width < 1
                ),
                "text_target_grad: expected false with text_target=input, got true: no gradient "
                "can flow into features": self.text_target_grad and self.text_target == "input",
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveConfig:
    """FCMI: masked fine and coarse contrastive learning (section 3.3)."""

    tau: float = 0.1
    """Temperature. The paper prints 1.0 with a dot product; the published code uses 0.1 and the
    cosine, and cannot be told otherwise."""
    normalize: bool = True
    mask_ratio: float = 0.3
    mask_axis: Literal["time", "feature"] = "time"
    """What is masked: whole steps (published code), or the same features at every step (paper)."""
    mask_share: Literal["same", "independent"] = "same"
    """One mask for all modalities of a clip, or one for each of them (figure 4)."""
    pair_reduction: Literal["sum", "mean"] = "sum"
    """Over the ordered pairs of modalities, each with itself included."""

    def __post_init__(self) -> None:  # noqa: D105
        _check(
            "contrastive",
            {
                f"tau: expected > 0, got {self.tau}": self.tau <= 0,
                f"mask_ratio: expected [0, 1), got {self.mask_ratio}": (
                    not 0 <= self.mask_ratio < 1
                ),
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Lambda of equation 8, and the weights of the baselines' losses.

    One field per registered loss, of the same name. None leaves a loss out: it is not computed and
    owns nothing. Weight 0 computes it without gradient, to be logged.
    """

    fine: float | None = 1.0
    coarse: float | None = 1.0
    jigsaw: float | None = 2.0
    """The published code reads its argument and then uses 1."""
    reconstruction: float | None = 1.0
    """None leaves out the networks that rebuild, too: most of the model."""
    commitment: float | None = 1.0
    mmjp: float | None = None
    club: float | None = None
    cpc: float | None = None
    code_matching: float | None = None
    self_cross: float | None = None
    one_way: float | None = None
    transport: float | None = None

    def __post_init__(self) -> None:  # noqa: D105
        weights = {name: w for name, w in asdict(self).items() if w is not None}
        problems = {
            f"{name}: expected >= 0, got {weight}": not 0 <= weight < math.inf
            for name, weight in weights.items()
        }
        nothing = f"{', '.join(weights) or 'all'}: expected at least one above 0, got none"
        _check("weights", {**problems, nothing: not any(weights.values())})


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Adam (section 4.1)."""

    learning_rate: float = 4e-4
    batch_size: int = 80
    """Clips per step, of all processes together."""
    epochs: int = 5
    max_steps: int = 0
    """Stop after so many steps; 0 is no limit."""
    grad_clip: float = 0.5
    """L2 norm, for encoders, text LSTM and reconstruction separately."""
    clip_jigsaw: bool = True
    """Clip the jigsaws' classifiers too, each on its own; the published code does not."""
    double_forward: bool = False
    """Run the model twice per step, as the published code does: contrastive and jigsaw losses from
    the first pass, the others from the second, and the codebook updated by both."""
    micro_batch: int = 0
    """Clips that a process puts through the networks at once; 0 is all it has of the batch. Less
    memory for the same loss and gradients up to rounding, at the price of embedding every clip
    twice. Dropout differs from that of the whole batch."""
    dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the products in the networks: as `dtype`, or autocast to half the bits. Weights, codebook
    and losses stay in float32, and fp16's gradients are scaled."""
    tf32: bool = False
    """Let NVIDIA's GPUs compute float32 products in TF32: three digits instead of seven."""
    skip_nonfinite: int = 0
    """How many steps in a row may have a loss or gradient that is not finite: such a step changes
    nothing. With 0 the first one stops the run. Overflows of fp16 do not count."""

    def __post_init__(self) -> None:  # noqa: D105
        _check(
            "optimizer",
            {
                f"learning_rate: expected > 0, got {self.learning_rate}": self.learning_rate <= 0,
                f"batch_size: expected at least 2, got {self.batch_size}": self.batch_size < 2,
                f"micro_batch: expected at least 0, got {self.micro_batch}": self.micro_batch < 0,
                f"epochs: expected at least 1, got {self.epochs}": self.epochs < 1,
                f"max_steps: expected at least 0, got {self.max_steps}": self.max_steps < 0,
                f"grad_clip: expected > 0, got {self.grad_clip}": self.grad_clip <= 0,
                f"precision: expected fp32 with dtype=float64, got {self.precision}": (
                    self.dtype == "float64" and self.precision != "fp32"
                ),
                "tf32: expected false with dtype=float64, got true": (
                    self.dtype == "float64" and self.tf32
                ),
                f"skip_nonfinite: expected at least 0, got {self.skip_nonfinite}": (
                    self.skip_nonfinite < 0
                ),
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is read from the feature sets."""

    steps: int = 10
    """T; longer clips are cut, shorter ones padded."""
    splits: tuple[str, ...] = ("train",)
    """Values of the manifest's `split` that are pretrained on; empty for all rows. The paper uses
    all of VGGSound-AVEL40k, test rows included. A manifest that names no split is used whole."""
    padding: Literal["repeat", "mask"] = "repeat"
    """`repeat` repeats the last real step, and takes it for a real one, as the published code does.
    `mask` pads with zeros that nothing looks at, for modalities whose steps are seconds: one mask
    stands for all of a clip, and words are not seconds, so it is refused together with text. Words
    are always padded with zeros."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of features on their way from the disk to the device. float16 halves their memory and rounds
    them to three digits."""
    exclude_ids: str = ""
    """A CSV file with the column `clip_id`: clips that must not be trained on."""
    exclude_manifests: tuple[str, ...] = ()
    """Manifests: their clips, and every other clip of the same YouTube videos, are not trained
    on."""

    def __post_init__(self) -> None:  # noqa: D105
        _check("data", {f"steps: expected at least 1, got {self.steps}": self.steps < 1})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One pretraining run."""

    modalities: tuple[str, ...] = ("audio", "video", "text")
    """Any two or more, in the order in which the codebook is updated (the published code's: audio,
    video, text). The command line puts them in the order of `micu.store.manifest.MODALITIES`."""
    seed: int = 43
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    jigsaw: JigsawConfig = field(default_factory=JigsawConfig)
    mmjp: MmjpConfig = field(default_factory=MmjpConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)

    def __post_init__(self) -> None:  # noqa: D105
        unknown = [name for name in self.modalities if name not in MODALITIES]
        width, terms = self.encoder.embed_dim, self.terms()
        splits = self.mmjp.parts_each(len(self.modalities))
        parts = splits * len(self.modalities)
        _check(
            "train",
            {
                f"modalities: expected some of {', '.join(MODALITIES)}, "
                f"got {', '.join(unknown)}": bool(unknown),
                f"modalities: expected two or more different ones, got {self.modalities}": (
                    len(set(self.modalities)) < 2
                    or len(set(self.modalities)) < len(self.modalities)
                ),
                f"seed: expected 0 to {LAST_SEED}, got {brief(self.seed)}": (
                    not 0 <= self.seed <= LAST_SEED
                ),
                f"jigsaw.splits: expected a divisor of encoder.embed_dim={width}, "
                f"got {self.jigsaw.splits}": "jigsaw" in terms and width % self.jigsaw.splits != 0,
                f"mmjp.splits: expected a divisor of encoder.embed_dim={width}, "
                f"got {splits}": "mmjp" in terms and width % splits != 0,
                f"mmjp.permutations: expected 1 to {parts}! = {permutation_count(parts)}, "
                f"got {self.mmjp.permutations}": (
                    "mmjp" in terms and self.mmjp.permutations > permutation_count(parts)
                ),
                "weights: expected a loss above 0 beside jigsaw, got none: jigsaw.splits is 0": (
                    not any(getattr(self.weights, name) for name in terms)
                ),
                "data.padding: expected repeat with the modality text, got mask: the seconds that "
                "it hides would hide words too": (
                    self.data.padding == "mask" and "text" in self.modalities
                ),
                **self.baselines.conflicts(
                    asdict(self.weights),
                    steps=self.data.steps,
                    quantizer=asdict(self.quantizer),
                    double_forward=self.optimizer.double_forward,
                ),
            },
        )

    def terms(self) -> tuple[str, ...]:
        """Names of the losses that are computed, in the order of `LossWeights`."""
        on = [name for name, weight in asdict(self.weights).items() if weight is not None]
        return tuple(name for name in on if name != "jigsaw" or self.jigsaw.splits)
