"""Named runs: `micu` (recommended), `paper` (as printed), `reference` (as published code runs).

`small` is `micu` for sets of some ten to some hundred clips.

The rest are the ablations of the paper's tables and figures: `micu` with one thing changed. What
the paper has in the same table or figure as its own method is `micu`. The methods that it is
compared with stand at the end.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from micu.base.registry import Registry
from micu.config.sections import (
    BaselinesConfig,
    CodeMatchingConfig,
    ContrastiveConfig,
    DataConfig,
    EncoderConfig,
    JigsawConfig,
    LossWeights,
    OptimizerConfig,
    QuantizerConfig,
    ReconstructionConfig,
    TrainConfig,
)

PRESETS: Registry[Callable[[], TrainConfig]] = Registry("preset")
BASELINES: Registry[Callable[[], TrainConfig]] = Registry("baseline")
"""The methods among the presets that MICU is compared with."""

ALIASES = {"coarse": "ablation-coarse"}
"""Second names of presets, as they stand beside the methods; results have the first."""


@PRESETS.register("micu")
def micu() -> TrainConfig:
    """The published model with its defects mended; the defaults of `micu.config.sections`."""
    return TrainConfig()


@PRESETS.register("small")
def small() -> TrainConfig:
    """For some ten to some hundred clips: small batches, a smaller puzzle, 400 steps.

    Five epochs of batches of 80, made for 40 thousand clips, are five steps of thirty.
    """
    return TrainConfig(
        jigsaw=JigsawConfig(splits=4, permutations=24),  # a step takes less than half the time
        optimizer=OptimizerConfig(batch_size=22, epochs=400, max_steps=400),
    )


@PRESETS.register("paper")
def paper() -> TrainConfig:
    """What the paper prints, where it differs from what its published code computes.

    What the paper leaves open (P, the moving average's details) is as in `micu`.
    """
    return TrainConfig(
        encoder=EncoderConfig(
            spatial="softmax",  # attention over the grid, as in DCID, which the paper builds on
        ),
        contrastive=ContrastiveConfig(
            tau=1.0,  # section 4.1
            normalize=False,  # equations 4 and 5 are written with a dot product
            mask_axis="feature",  # section 3.2: the mask of a sample is the same at every step
        ),
        quantizer=QuantizerConfig(
            commitment_own=1.0,  # equation 7 has the modality's own code alone
            commitment_cross=0.0,
            reset="off",  # dead codes are not mentioned
        ),
        reconstruction=ReconstructionConfig(
            text_target="input",  # section 3.4 rebuilds the features
        ),
        weights=LossWeights(  # section 4.1: lambda = 1, 2, 1, 1
            fine=1.0, coarse=1.0, jigsaw=2.0, reconstruction=1.0, commitment=1.0
        ),
        data=DataConfig(splits=()),  # section 4.1 trains on all 40 thousand clips
    )


@PRESETS.register("reference")
def reference() -> TrainConfig:
    """What the published code computes with its own arguments, side effects in forward aside.

    Random numbers are not those of its run. Its jigsaw draws permutations and modalities from one
    generator seeded with 57, whatever the run's seed of 43; ours come from the run's seed, so
    `--set seed=57` gives its permutations, with other weights and another order of the data.
    """
    return TrainConfig(
        encoder=EncoderConfig(
            clone_init=True,  # its transformer layers are deep copies of one
        ),
        quantizer=QuantizerConfig(
            ema_init="zero",  # its counts start at 0
            reset="reference",  # it moves a dead code alone, by a constant, and overlooks text
            null_code=True,  # its evaluation sets code 0 to zero
        ),
        reconstruction=ReconstructionConfig(
            text_target_grad=True,  # it does not detach the LSTM's output
        ),
        jigsaw=JigsawConfig(
            splits=2,  # its arguments' defaults
            permutations=2,
        ),
        weights=LossWeights(
            jigsaw=1.0,  # it parses `jigsaw_ratio` and does not use it
        ),
        optimizer=OptimizerConfig(
            clip_jigsaw=False,  # the classifier is missing from its clipping
            double_forward=True,  # it calls the encoder twice per step
            dtype="float64",  # it casts every module to double
        ),
        data=DataConfig(splits=()),  # it reads the CSV file without looking at `split`
    )


def _variant(name: str, summary: str, **sections: Any) -> None:
    """Register `micu` with whole sections replaced.

    Args:
        name: Of the preset.
        summary: One line for the listing.
        **sections: Fields of `TrainConfig`.
    """

    def build() -> TrainConfig:
        return replace(micu(), **sections)

    build.__doc__ = summary
    PRESETS.register(name)(build)


# Tables 7 and 8. A contrastive term that is not trained is logged; a jigsaw, whose classifier would
# have learned nothing, is left out.
_variant(
    "ablation-fine",
    "Tables 7 and 8: the fine contrastive loss alone.",
    weights=LossWeights(coarse=0.0, jigsaw=None),
)
_variant(
    "ablation-coarse",
    "Tables 7 and 8: the coarse contrastive loss alone.",
    weights=LossWeights(fine=0.0, jigsaw=None),
)
_variant(
    "ablation-cujp",
    "Tables 7 and 8: the jigsaw alone.",
    weights=LossWeights(fine=0.0, coarse=0.0),
)
_variant(
    "ablation-fine-coarse",
    "Tables 7 and 8, figure 3: no jigsaw.",
    weights=LossWeights(jigsaw=None),
)
_variant(
    "ablation-fine-cujp",
    "Tables 7 and 8: no coarse contrastive loss.",
    weights=LossWeights(coarse=0.0),
)
_variant(
    "ablation-coarse-cujp",
    "Tables 7 and 8: no fine contrastive loss.",
    weights=LossWeights(fine=0.0),
)
_variant(
    "fig3-mmjp",
    "Figure 3: MOOSA's jigsaw of all modalities side by side, four parts of each of two, else two.",
    weights=LossWeights(jigsaw=None, mmjp=2.0),
)
_variant(
    "fig3-cujp2",
    "Figure 3: two splits, and both permutations of them.",
    jigsaw=JigsawConfig(splits=2, permutations=2),
)
_variant(
    "fig3-cujp4",
    "Figure 3: four splits, and all 24 permutations of them.",
    jigsaw=JigsawConfig(splits=4, permutations=24),
)
_variant(
    "fig4-independent",
    "Figure 4: a mask of its own for each modality.",
    contrastive=ContrastiveConfig(mask_share="independent"),
)
for _size in (256, 512, 800, 1024):
    _variant(
        f"fig5-{_size}",
        f"Figure 5: {_size} codes.",
        quantizer=QuantizerConfig(codebook_size=_size),
    )


# --- the methods that MICU is compared with -------------------------------------------------------
#
# A method is a configuration: which losses it has and with which weight (`LossWeights`), how its
# codebook moves (`QuantizerConfig`), and the settings of its losses (`BaselinesConfig`). What it
# does in a step beside its loss is in the hooks of its losses (`micu.losses.terms.Loss`); there is
# one training loop. Encoders, decoders, optimiser and data are MICU's for every method.

COMMITMENT = 0.25
"""Beta of a modality's distance to its own code."""


def own_codes() -> QuantizerConfig:
    """A codebook in which each modality moves and approaches its own codes alone."""
    return QuantizerConfig(ema_own=1.0, commitment_own=COMMITMENT, commitment_cross=0.0)


@BASELINES.register("cmcm")
def cmcm() -> TrainConfig:
    """CMCM: code matching after a warm start without codes.

    Modalities must use codes alike.

    Source: Liu et al., *Cross-modal discrete representation learning*, ACL 2022; no code of the
    authors is public, the loss is in DCID's. L = reconstruction + commitment + 1/2 CMCM over pairs;
    EMA and commitment of each modality alone.

    Adapted: encoders, codebook and reconstruction are MICU's, where the authors have 1,024 codes
    and a retrieval loss over clips. The warm start takes the first 3 of 8 epochs: MICU's paper
    gives CMCM 8 where the others have 5, and does not say how they are split. What differs within
    the loss and its warm start is said in `micu.losses.code_matching`.
    """
    return TrainConfig(
        quantizer=own_codes(),
        weights=LossWeights(fine=None, coarse=None, jigsaw=None, code_matching=0.5),
        optimizer=OptimizerConfig(epochs=8),
        baselines=BaselinesConfig(code_matching=CodeMatchingConfig(warmup=3 / 8)),
    )


@BASELINES.register("codis")
def codis() -> TrainConfig:
    """CODIS: transport to codes that are learnt by gradient.

    Clips are aligned through their optimal transport to a shared codebook.

    Source: Duan et al., *Multi-modal alignment using representation codebook*, CVPR 2022; no code
    of the authors is public, and constants that its abstract does not give are from memory of the
    paper. Over modalities m with embeddings z,

        L = sum_m (L_rec(m) + 1/4 MSE(z(m), its codes)) + L_assign + L_ica,

    momentum 0.995, temperatures 0.1 and 0.07. The formulas of the last two, and what differs in
    them, are in `micu.losses.transport`.

    Adapted: encoders and reconstruction are MICU's; the codebook that clips are transported to is
    the quantizer's own, learnt by gradient and kept at unit length as SwAV's prototypes are, and
    steps take the code of the largest cosine (`DirectionQuantizer` says what differs there); the
    momentum rises to its value, so that a short run has a teacher.
    """
    return TrainConfig(
        quantizer=replace(own_codes(), learning="gradient", reset="off"),
        weights=LossWeights(fine=None, coarse=None, jigsaw=None, transport=1.0),
    )


@BASELINES.register("dcid")
def dcid() -> TrainConfig:
    """DCID: everything that its published code adds up.

    Information between codes and specific encodings is lowered, between modalities raised.

    Source: Xia et al., *Achieving cross modal generalization with multimodal unified
    representation*, NeurIPS 2023, and its published code. L = reconstruction + commitment + CLUB +
    Cross-CPC + CMCM, all of weight 1, CMCM's pairs of 1/2; EMA of 1/2 own and 1/2 others;
    commitment of 1/2 own and 1/4 others, which is twice equation 8, as published.

    Differs from the paper as the published code does: the moving average takes the other
    modalities' embeddings at the same step, without attention; CMCM is part of the loss. Differs
    from that code: more or fewer modalities than it has classes for, the others' weights shared
    among them; restarted codes keep their place (`quantizer.reset`); CMCM's index is the paper's
    (`baselines.code_matching.index`); 5 epochs, as for MICU. What differs within the losses is said
    in `micu.losses.club`, `micu.losses.cpc` and `micu.losses.code_matching`.
    """
    return TrainConfig(
        weights=LossWeights(
            fine=None, coarse=None, jigsaw=None, club=1.0, cpc=1.0, code_matching=0.5
        )
    )


@BASELINES.register("fcid")
def fcid() -> TrainConfig:
    """FCID: seconds stay continuous, clips share the codebook.

    What a clip shares with its other modalities is quantised; its seconds are only disentangled.

    Source: Huang et al., *Enhancing Multimodal Unified Representations for Cross Modal
    Generalization*, ACL 2025 Findings, and its published code (haihuangcode/CMG, 3b31fa0). L =
    reconstruction of seconds and of clips + commitment (1/2 own, 1/4 others) + CLUB of seconds and
    of clips + Cross-CPC of the seconds + CMCM of the clips, pairs of 1/2, + InfoNCE of each
    modality's clips with their sentence; all of weight 1. One transformer layer; words are read
    without an LSTM.

    As in the published code, where the paper's figure has it otherwise: each modality is quantised
    on its own by shared weights, not both as one; Cross-CPC looks one step ahead, not two; training
    sees clips, evaluation single seconds, each encoded as a clip.

    Differs from that code: optimiser, batches and epochs are MICU's (theirs has 4 epochs on all
    splits, in float64); the codebook is updated by audio, video, text in turn, where its calls have
    video and audio swapped; counts start at 1, and restarted codes keep their place
    (`quantizer.ema_init`, `quantizer.reset`); CMCM's index is the paper's
    (`baselines.code_matching.index`); without text each modality's clips look for those of the
    modalities after it; retrieval compares the mean of a clip's codes, where a function that no
    script calls has the code of its mean; TOC is an option of every evaluation (`--toc`), theirs
    always on.
    """
    return TrainConfig(
        encoder=EncoderConfig(layers=1, unify="clips"),
        contrastive=ContrastiveConfig(one_way="text"),
        weights=LossWeights(
            fine=None,
            coarse=None,
            jigsaw=None,
            club=1.0,
            clip_club=1.0,
            cpc=1.0,
            code_matching=0.5,
            one_way=1.0,
        ),
    )


@BASELINES.register("skeleton")
def skeleton() -> TrainConfig:
    """Encoders, codebook and reconstruction: nothing tells modalities that they belong together.

    What the parts are worth without any alignment.

    Source: the *Baseline* of section 4.1 of Xia et al. (DCID), NeurIPS 2023, which is at chance
    there.
    """
    return TrainConfig(
        quantizer=own_codes(), weights=LossWeights(fine=None, coarse=None, jigsaw=None)
    )


@BASELINES.register("turn")
def turn() -> TrainConfig:
    """TURN: self-cross reconstruction from pooled codes.

    Each modality's masked steps are rebuilt from the pooled code of every modality.

    Source: Zhao et al., *Towards effective multi-modal interchanges in zero-resource sounding
    object localization*, NeurIPS 2022, and its published code (AwalkZY/TURN, 3640ef9):
    `calc_overall_vq_loss` of `loss/__init__.py`, `codebook/EMA_codebook.py`, `config/default.py`.
    Over modalities m with embeddings z and their means z̄ over a clip's steps,

        L = sum_m (L_rec(m) + L_commit(z(m)) + L_commit(z̄(m))) + 0.1 L_self-cross + 0.1 L_InfoNCE,

    L_commit(z) = 1/4 MSE(z, its codes); EMA of each modality alone, from steps and means both. The
    formulas of the last two, and what differs in them, are in `micu.losses.self_cross` and
    `micu.losses.contrastive`.

    Adapted:
    - Encoders, decoders, optimiser and batches are MICU's, where TURN has BERTs of six layers and
      AdamW with decay; clips are drawn alike, where TURN weighs them by files of its own (adaptive
      sampling).
    - The codebook is MICU's: 400 codes of the whole width, a moving average without bias
      correction, dead codes restart. TURN has two groups of half the width and 256 codes, which
      share one codebook, and a bias-corrected average.
    - There are codes per step as well, since what is evaluated is. TURN has those of clips alone.
    - Words that pad a sentence are zeros, and steps like others here, as everywhere in MICU: they
      enter a clip's mean and are rebuilt. TURN's mean is over real words.
    - L_rec is MICU's, and TURN has none beside the self-cross one. Its localisation losses have no
      place here.
    """
    return TrainConfig(
        quantizer=replace(own_codes(), pool=True),
        weights=LossWeights(fine=None, coarse=None, jigsaw=None, self_cross=0.1, one_way=0.1),
    )


for _name, _preset in BASELINES.items():
    PRESETS.register(_name)(_preset)
for _name, _first in ALIASES.items():
    PRESETS.register(_name)(PRESETS[_first])


def list_presets() -> str:
    """Every preset and the first line of what it says of itself, one per line."""
    width = max(len(name) for name in PRESETS)
    lines = []
    for name, build in PRESETS.items():
        summary, _, _ = (build.__doc__ or "").strip().partition("\n")
        if name in ALIASES:
            summary = f"Another name of {ALIASES[name]}."
        lines.append(f"{name:{width}}  {summary}")
    return "\n".join(lines)
