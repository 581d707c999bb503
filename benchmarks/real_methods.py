"""What the real-data benchmark compares: sets, methods, the settings that are tried, ablations."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from pathlib import Path

import numpy as np

from micu.config.presets import PRESETS
from micu.store.manifest import read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Clips, and what is done with them."""

    name: str
    manifest: str
    """Name of the manifest and of its features."""
    modalities: tuple[str, ...]
    """Trained on, and evaluated in every ordered pair."""
    steps: int
    """T, seconds of a clip."""
    known: tuple[int, ...]
    """How many classes are known, in each class split."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every (source, target)."""
        return tuple(permutations(self.modalities, 2))


_OBJECTS = DataSet(
    name="av-objects",
    manifest="av-objects",
    modalities=("video", "audio"),
    steps=5,
    known=(8, 12),
)
_DIGITS = DataSet(
    name="av-digits",
    manifest="av-digits",
    modalities=("video", "audio", "flow"),
    steps=4,
    known=(5, 7),
)
MAIN_SETS = (_OBJECTS, _DIGITS)
DATA_SETS = {
    data.name: data
    for data in (
        *MAIN_SETS,
        replace(_OBJECTS, name="av-objects+text", modalities=(*_OBJECTS.modalities, "text")),
        replace(_DIGITS, name="av-digits+text", modalities=(*_DIGITS.modalities, "text")),
    )
}
"""Those with text have the class in it: the sentence is the label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A preset, and what is changed in it for a row of the table."""

    title: str
    preset: str
    main: tuple[str, ...]
    """The losses that its tuning scales."""
    settings: tuple[str, ...] = ()
    """`KEY=VALUE`."""
    longer: float = 1.0
    """Times as many epochs: where an epoch has fewer steps, or the first ones are a warm start."""
    kept: float = 1.0
    """Share of the training clips that it sees."""


CONTRAST = ("fine", "coarse")

METHODS: dict[str, Method] = {
    "micu": Method(title="MICU", preset="micu", main=CONTRAST),
    "micu-mmjp": Method(
        title="MICU, MMJP for CUJP",
        preset="fig3-mmjp",
        main=CONTRAST,
        settings=("mmjp.permutations=64",),
    ),
    "micu-no-jigsaw": Method(
        title="MICU without jigsaw", preset="ablation-fine-coarse", main=CONTRAST
    ),
    "coarse": Method(title="coarse contrast alone", preset="ablation-coarse", main=("coarse",)),
    "dcid": Method(title="DCID", preset="dcid", main=("cpc",)),
    "cmcm": Method(title="CMCM", preset="cmcm", main=("code_matching",), longer=8 / 5),
    "turn": Method(title="TURN", preset="turn", main=("self_cross", "one_way")),
    "codis": Method(title="CODIS", preset="codis", main=("transport",)),
    "skeleton": Method(title="no alignment", preset="skeleton", main=("commitment",)),
}
REFERENCE = "micu"
"""Whose networks, with random weights, are the row *untrained*."""

SHARED = (
    "optimizer.batch_size=80",
    "jigsaw.permutations=64",
    "quantizer.dead_after=30",
    "quantizer.active_within=10",
)
"""What every run changes in its preset, for a set of about a thousand clips: fewer permutations,
whose number the paper does not state (MMJP has as many), and codes that restart within the run,
which has a tenth of the published one's steps. CODIS, whose codes are learnt by gradient, has none
that restart."""


# --- tuning ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting of what is tuned."""

    learning_rate: float
    epochs: int
    factor: float
    """On the weights of the method's main losses."""

    @property
    def slug(self) -> str:
        """For names of folders and tables."""
        return f"lr{self.learning_rate:g}-e{self.epochs}-x{self.factor:g}"


GRID: Mapping[str, tuple[float, ...]] = {
    "learning_rate": (4e-4, 1e-3, 2e-3),
    "epochs": (6, 10),
    "factor": (0.3, 1.0, 3.0),
}


def draw_trials(count: int, seed: int, grid: Mapping[str, Sequence[float]] = GRID) -> list[Trial]:
    """Different points of the grid; the same for every method."""
    points = list(product(*(grid[name] for name in ("learning_rate", "epochs", "factor"))))
    chosen = np.random.default_rng(seed).permutation(len(points))[:count]
    return [
        Trial(learning_rate=float(rate), epochs=int(epochs), factor=float(factor))
        for rate, epochs, factor in (points[number] for number in sorted(chosen))
    ]


def assignments(method: Method, trial: Trial, data: DataSet) -> list[str]:
    """Everything that a run changes in its preset, `KEY=VALUE`; a later one wins."""
    weights = PRESETS[method.preset]().weights
    return [
        f"data.steps={data.steps}",
        *SHARED,
        f"optimizer.learning_rate={trial.learning_rate:g}",
        f"optimizer.epochs={max(1, round(trial.epochs * method.longer))}",
        *(f"weights.{name}={getattr(weights, name) * trial.factor:g}" for name in method.main),
        *method.settings,
    ]


# --- ablation --------------------------------------------------------------------------------


def _changed(title: str, *settings: str, longer: float = 1.0, kept: float = 1.0) -> Method:
    micu = METHODS["micu"]
    return replace(micu, title=title, settings=settings, longer=longer, kept=kept)


ABLATIONS: dict[str, Method] = {
    "batch-40": _changed("batches of 40, as many steps", "optimizer.batch_size=40", longer=0.5),
    "batch-160": _changed("batches of 160, as many steps", "optimizer.batch_size=160", longer=2),
    "pairs-half": _changed("half of the pairs, as many steps", longer=2, kept=0.5),
    "pairs-quarter": _changed("a quarter of the pairs, as many steps", longer=4, kept=0.25),
    "codes-100": _changed("100 codes", "quantizer.codebook_size=100"),
    "codes-800": _changed("800 codes", "quantizer.codebook_size=800"),
    "mask-0": _changed("nothing masked", "contrastive.mask_ratio=0"),
    "mask-0.6": _changed("0.6 masked", "contrastive.mask_ratio=0.6"),
    "tau-1": _changed("temperature 1", "contrastive.tau=1"),
    "tau-1-dot": _changed(
        "temperature 1, dot product (as printed)",
        "contrastive.tau=1",
        "contrastive.normalize=no",
    ),
    "lambda2-0": _changed("no jigsaw (λ₂ = 0)", "weights.jigsaw=0"),
    "lambda2-0.5": _changed("λ₂ = 0.5", "weights.jigsaw=0.5"),
    "lambda2-8": _changed("λ₂ = 8", "weights.jigsaw=8"),
    "epochs-3": _changed("three times as many steps", longer=3),
    "permutations-2": _changed(
        "2 splits, 2 permutations (as published)", "jigsaw.splits=2", "jigsaw.permutations=2"
    ),
    "permutations-256": _changed("256 permutations", "jigsaw.permutations=256"),
    "mmjp": replace(METHODS["micu-mmjp"], title="MMJP for CUJP"),
}
"""MICU with one thing changed, at the setting that was chosen for it."""


# --- files that every run reads --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where the benchmark keeps everything."""

    root: Path
    settings: tuple[str, ...] = field(default=())
    """Changed in every run, last: a small model for a test."""

    @property
    def features(self) -> Path:
        """As `micu-extract` made them."""
        return self.root / "features"

    def manifest(self, data: DataSet) -> Path:
        """The manifest of a set."""
        return self.root / f"{data.manifest}.csv"

    def cost(self, data: DataSet) -> Path:
        """The seconds of a step of each method."""
        return self.root / f"{data.name}.cost.json"

    def known(self, data: DataSet, count: int) -> Path:
        """The list of known classes of one class split."""
        return self.root / "known" / f"{data.manifest}-{count}.csv"

    def excluded(self, data: DataSet, share: float) -> Path:
        """The training clips that a run on a share of them does not see."""
        return self.root / "known" / f"{data.manifest}-without-{share:g}.csv"


def write_lists(place: Place, data: DataSet, seed: int = 0) -> None:
    """Write the known classes of each class split, and which clips the ablations leave out.

    The classes are put in one order, drawn by `seed`, so that a smaller split is within a larger.
    """
    clips = read_manifest(place.manifest(data)).clips
    classes = sorted({clip.label for clip in clips})
    order = np.random.default_rng(seed).permutation(len(classes))
    for count in data.known:
        path = place.known(data, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_column(path, "label", sorted(classes[number] for number in order[:count]))
    ids = [clip.clip_id for clip in clips if clip.split == "train"]
    shuffled = np.random.default_rng(seed).permutation(len(ids))
    for share in {method.kept for method in ABLATIONS.values()} - {1.0}:
        left_out = sorted(ids[number] for number in shuffled[round(share * len(ids)) :])
        _write_column(place.excluded(data, share), "clip_id", left_out)


def _write_column(path: Path, title: str, values: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([value] for value in (title, *values))
