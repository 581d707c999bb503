"""Every setting of a run: one frozen dataclass per component, defaults as in the preset `micu`.

Each attribute says its unit, its place in the paper and, where the published code differs from the
paper or from us, what the code does. Its type says its range. Values are checked when a
configuration is made; all problems are reported at once.
"""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Literal, get_args, get_type_hints

from micu.base.errors import ConfigError, brief
from micu.base.process import LAST_SEED
from micu.store.manifest import MODALITIES

Natural = Annotated[int, "at least 0"]
Count = Annotated[int, "at least 1"]
TwoOrMore = Annotated[int, "at least 2"]
Positive = Annotated[float, "> 0"]
Weight = Annotated[float, ">= 0"]
Ratio = Annotated[float, "[0, 1)"]
Portion = Annotated[float, "(0, 1]"]

_IS_IN: dict[str, Callable[[float], bool]] = {
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "at least 2": lambda value: value >= 2,
    "> 0": lambda value: value > 0,
    ">= 0": lambda value: 0 <= value < math.inf,
    "[0, 1)": lambda value: 0 <= value < 1,
    "(0, 1]": lambda value: 0 < value <= 1,
}
"""What the ranges mean that types of settings carry."""


class ConfigSection:
    """Settings that belong together; they are checked when they are made.

    Raises:
        ConfigError: Values are out of the range that their type says, or do not go together: all of
            that in one message, one line each.
    """

    __slots__ = ()
    section = ""
    """Its name, put before each problem."""

    def problems(self) -> dict[str, bool]:
        """What types do not say: problem, `name: expected X, got Y` → whether there is that one."""
        return {}

    def __post_init__(self) -> None:  # noqa: D105
        found = []
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            # The range of `Weight | None` is in the first of its two types.
            for part in (kind, *get_args(kind)):
                ranges = [text for text in getattr(part, "__metadata__", ()) if value is not None]
                found += [
                    f"{name}: expected {text}, got {value}"
                    for text in ranges
                    if not _IS_IN[text](value)
                ]
        found += [problem for problem, is_bad in self.problems().items() if is_bad]
        if found:
            raise ConfigError("\n".join(f"{self.section}.{problem}" for problem in found))


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig(ConfigSection):
    """Semantic encoders, one per modality (section 3.1 of the paper)."""

    section = "encoder"

    embed_dim: int = 256
    """D, width of the semantic embedding and of a code."""
    heads: int = 4
    layers: Count = 2
    feedforward_dim: Count = 1024
    dropout: Ratio = 0.1
    text_hidden_dim: Count = 128
    """Width of the text LSTM, per direction."""
    spatial: Literal["sum", "softmax"] = "sum"
    """Pooling of a grid. `sum` is what the published code computes: its softmax runs over an axis
    of length one, so every cell has weight 1. `softmax` is the attention that was meant."""
    clone_init: bool = False
    """Start both transformer layers from the same weights, as the published code does."""
    unify: Literal["steps", "clips"] = "steps"
    """What is quantised: the embedding of every step; or, as in FCID, what is made of each clip's
    mean, while steps are rebuilt from their embeddings and words are read as they are."""

    def problems(self) -> dict[str, bool]:  # noqa: D102
        return {
            f"embed_dim: expected a positive multiple of heads={self.heads}, "
            f"got {self.embed_dim}": self.heads < 1
            or self.embed_dim < 1
            or self.embed_dim % self.heads != 0
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig(ConfigSection):
    """The shared codebook (section 3.3), and the commitment to it (equation 7)."""

    section = "quantizer"

    codebook_size: TwoOrMore = 400
    """K."""
    ema_decay: Ratio = 0.99
    ema_epsilon: Positive = 1e-5
    ema_own: Portion = 0.5
    """Weight of a modality's own feature in its codes' moving average; the others share the rest.
    With three modalities 1/2, 1/4, 1/4."""
    ema_init: Literal["one", "zero"] = "one"
    """Count that every code starts with. The published code starts with 0, which sends unused codes
    to norms of several hundred at the first update."""
    commitment_own: Weight = 0.5
    """Weight of the squared distance to the modality's own code."""
    commitment_cross: Weight = 0.25
    """Weight of the squared distances to the other modalities' codes, shared among them."""
    reset: Literal["revive", "reference", "off"] = "revive"
    """Dead codes. `revive` restarts code, count and sum beside an active code, in training only.
    `reference` moves the code alone, by a constant, so that the next update undoes it, does not
    count text; in training only, where the published code does it in evaluation as well."""
    dead_after: int = 300
    """Updates without use after which a code is dead."""
    active_within: Count = 100
    """Updates within which a code that was used is active."""
    null_code: bool = False
    """Set code 0 to zero when encoding for evaluation, as the published entry points do."""
    learning: Literal["average", "gradient"] = "average"
    """`average` moves codes by the moving averages above. `gradient` leaves them to a loss and the
    optimiser; features and codes then have one length, and the nearest code is that of the largest
    cosine."""
    pool: bool = False
    """Quantise the mean of each clip's steps as well, as one more step."""

    def problems(self) -> dict[str, bool]:  # noqa: D102
        return {
            f"dead_after: expected at least active_within={self.active_within}, "
            f"got {self.dead_after}": self.dead_after < self.active_within,
            f"reset: expected off with learning=gradient, got {self.reset}": (
                self.learning == "gradient" and self.reset != "off"
            ),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructionConfig(ConfigSection):
    """Modality-specific encoders and decoders (section 3.4)."""

    section = "reconstruction"

    grid_width: int = 2048
    """Channels of the convolutional branch that rebuilds grids."""
    vector_width: Count = 256
    """Width of the branch that rebuilds vectors."""
    text_target: Literal["lstm", "input"] = "lstm"
    """What text is to be rebuilt as: the LSTM's output (published code), or the words' own features
    (paper)."""
    text_target_grad: bool = False
    """Let the gradient flow into the target `lstm`, as the published code does: it can then lower
    the loss by shrinking the target."""

    def problems(self) -> dict[str, bool]:  # noqa: D102
        return {
            f"grid_width: expected a positive even number, got {self.grid_width}": (
                self.grid_width < 2 or self.grid_width % 2 != 0
            ),
            "text_target_grad: expected false with text_target=input, got true: no gradient can "
            "flow into features": self.text_target_grad and self.text_target == "input",
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveConfig(ConfigSection):
    """FCMI: masked fine and coarse contrastive learning (section 3.2, equations 4 and 5)."""

    section = "contrastive"

    tau: Positive = 0.1
    """Temperature. The paper prints 1.0 with a dot product; the published code uses 0.1 and the
    cosine, and cannot be told otherwise."""
    normalize: bool = True
    mask_ratio: Ratio = 0.3
    mask_axis: Literal["time", "feature"] = "time"
    """What is masked: whole steps (published code), or the same features at every step (paper)."""
    mask_share: Literal["same", "independent"] = "same"
    """One mask for all modalities of a clip, or one for each of them (figure 4)."""
    pair_reduction: Literal["sum", "mean"] = "sum"
    """Over the ordered pairs of modalities, each with itself included."""
    one_way: Literal["all", "text"] = "all"
    """Of the loss `one_way`: each modality looks for those that stand after it, or for text alone,
    where there is text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JigsawConfig(ConfigSection):
    """CUJP: the cross-modal unified jigsaw puzzle (section 3.3, equation 6)."""

    section = "jigsaw"

    splits: int = 8
    """O, blocks that a code is cut into along its channels. The published code runs 2. With 0 there
    is no jigsaw and no classifier, as with `weights.jigsaw=none`."""
    permutations: int = 256
    """P, permutations to tell apart. Not stated in the paper; the published code runs 2."""
    hidden_dim: Count = 512
    block_draw: Literal["batch", "row"] = "batch"
    """Draw each block's modality once per batch (published code) or once per row."""
    labels: Literal["exact", "sampled"] = "exact"
    """Put every row in all P permutations (published code), or in one that is drawn anew for each
    row and step: the same loss on average, for P times less work."""

    def problems(self) -> dict[str, bool]:  # noqa: D102
        count = permutation_count(self.splits)
        return {
            f"splits: expected 0 or at least 2, got {self.splits}": (
                self.splits != 0 and self.splits < 2
            ),
            f"permutations: expected 1 to {self.splits}! = {count}, got {self.permutations}": (
                self.splits != 0 and not 1 <= self.permutations <= count
            ),
            f"permutations: expected at least 1, got {self.permutations}": (
                self.splits == 0 and self.permutations < 1
            ),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MmjpConfig(ConfigSection):
    """MMJP, the multi-modal jigsaw puzzle of MOOSA (ECCV 2024), in place of CUJP (figure 3)."""

    section = "mmjp"

    splits: int | None = None
    """Parts that each modality's code is cut into along its channels. None is what MOOSA has for so
    many modalities: 4 for two, and 2 for three, `MMJP6`; with four, which it does not have, 2."""
    permutations: Count = 128
    """P, as in MOOSA; the MICU paper does not state its own."""
    hidden_dim: Count = 512

    def problems(self) -> dict[str, bool]:  # noqa: D102
        return {
            f"splits: expected none or at least 1, got {self.splits}": (
                self.splits is not None and self.splits < 1
            )
        }

    def parts_each(self, modalities: int) -> int:
        """How many parts each of so many modalities is cut into."""
        if self.splits is not None:
            return self.splits
        return 4 if modalities == 2 else 2


_OF_STEPS = {"fine", "coarse", "jigsaw", "mmjp", "self_cross", "transport"}
"""Losses that look at codes or embeddings of quantised steps."""


def permutation_count(parts: int) -> int:
    """How many orders some parts have; from 20 parts on, those of 20, more than any table holds."""
    return math.factorial(min(max(parts, 0), 20))


_WEIGHT = re.compile(r" *\d{1,6}(\.\d{1,12})? *")
"""Of a plug-in's loss, as it is typed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights(ConfigSection):
    """Lambda of equation 8, and the weights of the baselines' losses.

    One field per registered loss, of the same name. None leaves a loss out: it is not computed and
    owns nothing. Weight 0 computes it without gradient, to be logged.
    """

    section = "weights"

    fine: Weight | None = 1.0
    coarse: Weight | None = 1.0
    jigsaw: Weight | None = 2.0
    """The published code reads its argument and then uses 1."""
    reconstruction: Weight | None = 1.0
    """None leaves out the networks that rebuild, too: most of the model."""
    commitment: Weight | None = 1.0
    mmjp: Weight | None = None
    club: Weight | None = None
    clip_club: Weight | None = None
    cpc: Weight | None = None
    code_matching: Weight | None = None
    self_cross: Weight | None = None
    one_way: Weight | None = None
    transport: Weight | None = None
    plugins: tuple[str, ...] = ()
    """`NAME=WEIGHT` of each loss of a plug-in."""

    def given(self) -> dict[str, float]:
        """The weights of the losses that are computed, by name."""
        own = {k: v for k, v in asdict(self).items() if v is not None and k != "plugins"}
        return own | self.of_plugins()

    def of_plugins(self) -> dict[str, float]:
        """Those of plug-ins; what is no weight is left out, and is told by `problems`."""
        pairs = (entry.partition("=") for entry in self.plugins)
        return {name.strip(): float(text) for name, _, text in pairs if _WEIGHT.fullmatch(text)}

    def problems(self) -> dict[str, bool]:  # noqa: D102
        given = self.given()
        names = ", ".join(given) or "all"
        own = {field.name for field in fields(self)}
        return {
            f"{names}: expected at least one above 0, got none": not any(given.values()),
            f"plugins: expected NAME=WEIGHT, each name once and none of this project's, got "
            f"{', '.join(self.plugins)}": len(self.of_plugins().keys() - own) < len(self.plugins),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig(ConfigSection):
    """Adam (section 4.1)."""

    section = "optimizer"

    learning_rate: Positive = 4e-4
    batch_size: TwoOrMore = 80
    """Clips per step, of all processes together."""
    epochs: Count = 5
    max_steps: Natural = 0
    """Stop after so many steps; 0 is no limit."""
    grad_clip: Positive = 0.5
    """L2 norm, separately for encoders, text LSTM, reconstruction, codes that are learnt, and each
    loss with weights of its own."""
    clip_jigsaw: bool = True
    """Clip the jigsaws' classifiers too, each on its own; the published code does not."""
    double_forward: bool = False
    """Run the model twice per step, as the published code does: contrastive and jigsaw losses from
    the first pass, the others from the second, and the codebook updated by both."""
    micro_batch: Natural = 0
    """Clips that a process puts through the networks at once; 0 is all it has of the batch. Less
    memory for the same loss and gradients up to rounding, at the price of embedding every clip
    twice. Dropout differs from that of the whole batch."""
    dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the products in the networks: as `dtype`, or autocast to half the bits. Weights, codebook
    and losses stay in float32, and fp16's gradients are scaled."""
    tf32: bool = False
    """Let NVIDIA's GPUs compute float32 products in TF32: three digits instead of seven."""
    skip_nonfinite: Natural = 0
    """How many steps in a row may have a loss or gradient that is not finite: such a step changes
    nothing. With 0 the first one stops the run. Overflows of fp16 do not count."""

    def problems(self) -> dict[str, bool]:  # noqa: D102
        return {
            f"precision: expected fp32 with dtype=float64, got {self.precision}": (
                self.dtype == "float64" and self.precision != "fp32"
            ),
            "tf32: expected false with dtype=float64, got true": (
                self.dtype == "float64" and self.tf32
            ),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(ConfigSection):
    """What is read from the feature sets."""

    section = "data"

    steps: Count = 10
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ClubConfig(ConfigSection):
    """CLUB: a bound of the information that codes and specific encodings share."""

    section = "baselines.club"

    inner_steps: Count = 5
    """Steps of the estimators per step of the model, on one batch."""
    learning_rate: Positive = 1e-3
    """Of the estimators' own Adam."""
    hidden_dim: Count = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class CpcConfig(ConfigSection):
    """Cross-modal contrastive predictive coding."""

    section = "baselines.cpc"

    layers: Count = 2
    """Of each modality's LSTM; the paper says one, the published code has two."""
    self_weight: Weight = 0.1
    """Weight of predicting a modality from itself; that of a pair is 1."""
    candidates: Literal["predictions", "targets"] = "predictions"
    """What the softmax runs over: the batch's predictions (published code), or its targets (paper,
    equation 6)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeMatchingConfig(ConfigSection):
    """CMCM: matching of the distributions over codes, and its warm start."""

    section = "baselines.code_matching"

    index: Literal["paper", "reference"] = "paper"
    """`reference` compares wrong pairs off the diagonal, as DCID's published code does."""
    warmup: Ratio = 0.0
    """Share of the run, [0, 1), in which nothing is quantised and codes are not matched. It ends
    with k-means, whose centres the codebook starts from."""
    warmup_vectors: Count = 20_000
    """How many of the last embeddings before the end of the warm-up k-means sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfCrossConfig(ConfigSection):
    """TURN: reconstruction of masked steps from the codes of every modality."""

    section = "baselines.self_cross"

    memory: Literal["pooled", "sequence"] = "pooled"
    """What is rebuilt from: the code of the clip's mean, or the codes of all its steps."""
    mask_start: Portion = 0.5
    """Share of masked steps at the first step of the run; it rises linearly."""
    mask_end: Portion = 1.0
    """Share at the run's last step."""
    layers: Count = 2
    """Of each modality's decoder; heads and widths are the encoder's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportConfig(ConfigSection):
    """CODIS: optimal transport to the codes, guided by a teacher."""

    section = "baselines.transport"

    momentum: Ratio = 0.995
    """Of the teacher, a moving average of the encoders, once it has risen to this: in step s it is
    (1 + s) / (10 + s) at most, so that 0.995 takes 1790 steps."""
    queue_size: Count = 4000
    """Clips whose teacher features are kept, per modality: ten per code, since the codes' uniform
    use means nothing for a batch that is smaller than the codebook."""
    epsilon: Positive = 0.05
    """Entropic regularisation of the transport."""
    iterations: Count = 20
    """Of Sinkhorn's algorithm."""
    gamma: Positive = 0.1
    """Temperature of the assignment to codes."""
    tau: Positive = 0.07
    """Temperature of the instance contrast."""
    contrast_weight: Weight = 1.0
    """Weight of the instance contrast beside the assignment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselinesConfig(ConfigSection):
    """One section per loss of `LossWeights` that has settings of its own."""

    section = "baselines"

    club: ClubConfig = field(default_factory=ClubConfig)
    cpc: CpcConfig = field(default_factory=CpcConfig)
    code_matching: CodeMatchingConfig = field(default_factory=CodeMatchingConfig)
    self_cross: SelfCrossConfig = field(default_factory=SelfCrossConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)

    def conflicts(self, run: "TrainConfig") -> dict[str, bool]:
        """What cannot go together with the run's other settings; see `ConfigSection.problems`."""
        weights, quantizer = asdict(run.weights), run.quantizer
        given = set(run.weights.given())
        sections = {field.name: getattr(self, field.name) for field in fields(self)}
        idle = {
            f"baselines.{name}: expected the defaults with weights.{name}=none, got others; "
            f"give the loss a weight": name not in given and section != type(section)()
            for name, section in sections.items()
        }
        ours = (*sections, "one_way", "clip_club")
        learns = quantizer.learning == "gradient"
        clips = run.encoder.unify == "clips"
        of_steps = sorted(given & _OF_STEPS)
        return {
            **idle,
            f"encoder.unify: expected steps with weights.{', weights.'.join(of_steps)}, which look "
            "at the codes of steps, got clips": clips and bool(of_steps),
            "encoder.unify: expected clips with weights.clip_club, got steps": (
                "clip_club" in given and not clips
            ),
            "baselines.code_matching.warmup: expected 0 with encoder.unify=clips, got more": (
                clips and self.code_matching.warmup > 0
            ),
            "optimizer.double_forward: expected false with the losses of a baseline, got true": (
                run.optimizer.double_forward and any(name in given for name in ours)
            ),
            "weights.reconstruction: expected a weight with weights.club or weights.clip_club, "
            "which look at the specific encodings, got none": (
                bool(given & {"club", "clip_club"}) and "reconstruction" not in given
            ),
            f"data.steps: expected at least 3 with weights.cpc, got {run.data.steps}": (
                "cpc" in given and run.data.steps < 3
            ),
            "quantizer.pool: expected true with weights.self_cross and "
            "baselines.self_cross.memory=pooled and false without: nothing else looks at the codes "
            f"of means; got {str(quantizer.pool).lower()}": (
                quantizer.pool != ("self_cross" in given and self.self_cross.memory == "pooled")
            ),
            "quantizer.learning: expected gradient with weights.transport and average without: "
            f"only that loss moves such codes; got {quantizer.learning}": (
                learns != ("transport" in given)
            ),
            "weights.transport: expected > 0 with quantizer.learning=gradient, got 0.0: nothing "
            "else moves the codes": learns and weights["transport"] == 0,
            "quantizer.learning: expected average with a warm-up, which sets the codes, "
            "got gradient": learns and self.code_matching.warmup > 0,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(ConfigSection):
    """One pretraining run."""

    section = "train"

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

    def problems(self) -> dict[str, bool]:  # noqa: D102
        unknown = [name for name in self.modalities if name not in MODALITIES]
        width, terms = self.encoder.embed_dim, self.terms()
        splits = self.mmjp.parts_each(len(self.modalities))
        parts = splits * len(self.modalities)
        return {
            f"modalities: expected some of {', '.join(MODALITIES)}, got {', '.join(unknown)}": bool(
                unknown
            ),
            f"modalities: expected two or more different ones, got {self.modalities}": (
                len(set(self.modalities)) < 2 or len(set(self.modalities)) < len(self.modalities)
            ),
            f"seed: expected 0 to {LAST_SEED}, got {brief(self.seed)}": (
                not 0 <= self.seed <= LAST_SEED
            ),
            f"jigsaw.splits: expected a divisor of encoder.embed_dim={width}, "
            f"got {self.jigsaw.splits}": "jigsaw" in terms and width % self.jigsaw.splits != 0,
            f"mmjp.splits: expected a divisor of encoder.embed_dim={width}, got {splits}": "mmjp"
            in terms
            and width % splits != 0,
            f"mmjp.permutations: expected 1 to {parts}! = {permutation_count(parts)}, "
            f"got {self.mmjp.permutations}": (
                "mmjp" in terms and self.mmjp.permutations > permutation_count(parts)
            ),
            "weights: expected a loss above 0 beside jigsaw, got none: jigsaw.splits is 0": (
                not any(self.weights.given()[name] for name in terms)
            ),
            "data.padding: expected repeat with the modality text, got mask: the seconds that "
            "it hides would hide words too": (
                self.data.padding == "mask" and "text" in self.modalities
            ),
            **self.baselines.conflicts(self),
        }

    def terms(self) -> tuple[str, ...]:
        """Names of the losses that are computed, in the order of `LossWeights`."""
        on = self.weights.given()
        return tuple(name for name in on if name != "jigsaw" or self.jigsaw.splits)
