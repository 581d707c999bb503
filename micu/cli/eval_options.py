"""The options of `micu-eval`, and which task reads which."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from micu.base.errors import ConfigError
from micu.base.process import LAST_SEED, FiniteRange
from micu.cli.selection import select_on_option
from micu.evaluate import code_scores, feature_scores  # noqa: F401 - they register scores
from micu.evaluate.scores import SCORES
from micu.evaluate.splits import CLEAN, PAPER
from micu.evaluate.thresholds import ORACLE_AT_SOURCE_EPOCH, THRESHOLDS
from micu.store.manifest import MODALITIES

MOST = 2**31 - 1
"""Largest count that an option takes."""
FASTEST = 1000.0
"""Largest learning rate that an option takes."""

PROBE_OPTIONS = (
    *("--probe-epochs", "--probe-batch-size", "--probe-learning-rate"),
    *("--probe-epoch-offset", "--probe-encoder-dropout"),
)
PROBED = ("oscmg", "cmg")
"""Tasks that train a probe."""
_PAIRED = (*PROBED, "retrieval")
TASKS_OF = {
    **dict.fromkeys(("--source", "--target", "--pairs", "--chance"), _PAIRED),
    **dict.fromkeys(("--known", "--ceiling", "--target-manifest", "--class-map"), PROBED),
    **dict.fromkeys(("--train-splits", *PROBE_OPTIONS), PROBED),
    **dict.fromkeys(("--score", "--threshold", "--details", "--select-on"), ("oscmg",)),
    "--test-splits": _PAIRED,
    "--localise": ("cmg",),
    "--items": ("retrieval",),
    "--codebook-out": ("codebook",),
    "--protocol": (*_PAIRED, "codebook"),
    "--pretraining-manifest": (*_PAIRED, "codebook"),
    "--seeds": (*_PAIRED, "codebook"),
    "--batch-size": ("efficiency",),
    "--steps": ("efficiency",),
}
"""Options that some tasks alone read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What was typed."""

    checkpoints: tuple[Path, ...]
    select_on: str | None
    task: str
    features: Path
    manifest: Path | None
    target_manifest: Path | None
    class_map: Path | None
    pretraining_manifest: Path | None
    chosen: dict[str, str]
    """Backbone by modality."""
    pairs: tuple[tuple[str, str], ...]
    """(source, target) modalities."""
    known: Path | None
    train_splits: str | None
    test_splits: str | None
    encoders: tuple[str, ...]
    ceiling: bool
    chance: bool
    protocol: str
    thresholds: tuple[str, ...]
    score: str
    localise: bool
    items: int | None
    probe_epochs: int | None
    probe_batch_size: int
    probe_learning_rate: float
    probe_epoch_offset: int
    probe_encoder_dropout: bool
    seed: int | None
    seeds: int | None
    batch_size: int
    steps: int
    out: Path
    codebook_out: Path | None
    details: Path | None
    setting: str
    html: Path | None
    device: str
    as_json: bool
    options: frozenset[str]
    """Options that were typed, whatever their value."""

    @property
    def protocols(self) -> tuple[str, ...]:
        """In the order of evaluation: one probe may serve both, and `clean` needs more of it."""
        return (CLEAN, PAPER) if self.protocol == "both" else (self.protocol,)


def evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `micu-eval`, in the order in which help shows them."""
    return functools.reduce(
        lambda made, option: option(made),
        reversed(
            [
                *_input_options(),
                *_clip_options(),
                *_method_options(),
                *_probe_options(),
                *_output_options(),
            ]
        ),
        command,
    )


def _input_options() -> list[Callable[..., Any]]:
    file = click.Path(path_type=Path, dir_okay=False)
    return [
        click.option(
            "--task",
            default="oscmg",
            show_default=True,
            help="What to do: oscmg, cmg, retrieval, codebook, efficiency.",
        ),
        click.option(
            "--features",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("features"),
            show_default=True,
            help="Root of the feature sets.",
        ),
        click.option(
            "--manifest",
            type=file,
            help="Manifest of the clips [default: $MICU_MANIFEST, else the last extraction's].",
        ),
        click.option(
            "--target-manifest",
            type=file,
            help="Manifest of the clips to test on, if it is another one than --manifest.",
        ),
        click.option(
            "--class-map",
            type=file,
            help="CSV file, column label and a second one: two names of one class, such as "
            "manifests/classes/ucf-vgg-pairs.csv.",
        ),
        click.option(
            "--pretraining-manifest",
            type=file,
            help="Manifest that CHECKPOINT was trained on, to tell which clips it has seen.",
        ),
        *(
            click.option(
                f"--{name}-features", metavar="BACKBONE", help=f"Which {name} features, if several."
            )
            for name in MODALITIES
        ),
    ]


def _clip_options() -> list[Callable[..., Any]]:
    file = click.Path(path_type=Path, dir_okay=False)
    return [
        click.option("--source", help="Modality that the probe is trained on: v, a, f, t or name."),
        click.option("--target", help="Modality that it is tested on."),
        click.option("--pairs", help="Several of them at once: v:a,a:v,v:f."),
        click.option(
            "--known",
            type=file,
            help="CSV file, column label: the known classes [default for cmg: all there are].",
        ),
        click.option(
            "--train-splits",
            metavar="NAMES",
            help="Values of the manifest's split to train on, or all [default: train].",
        ),
        click.option(
            "--test-splits",
            metavar="NAMES",
            help="Values to test on, or all [default: test; under paper, --setting ave of cmg has "
            "train, as published].",
        ),
    ]


def _method_options() -> list[Callable[..., Any]]:
    return [
        click.option(
            "--encoder",
            "encoders",
            type=click.Choice(["checkpoint", "untrained", "input"]),
            multiple=True,
            default=("checkpoint",),
            show_default=True,
            help="What the probe reads: the checkpoint's codes, those of the same model with "
            "random weights, or the features themselves; repeatable.",
        ),
        click.option(
            "--ceiling",
            is_flag=True,
            help="Also a linear probe on the target modality's own features and known classes.",
        ),
        click.option("--chance", is_flag=True, help="Also what guessing reaches."),
        click.option(
            "--protocol",
            type=click.Choice(["both", PAPER, CLEAN]),
            default="both",
            show_default=True,
            help="paper: clips, epoch and threshold as published, leaks included; clean: without "
            "them.",
        ),
        click.option(
            "--threshold",
            "thresholds",
            type=click.Choice([*THRESHOLDS, ORACLE_AT_SOURCE_EPOCH]),
            multiple=True,
            default=THRESHOLDS[:1],
            show_default=True,
            help="Where the threshold of protocol clean comes from; repeatable. "
            f"{ORACLE_AT_SOURCE_EPOCH} looks at the test set: its rows are of protocol diagnostic.",
        ),
        click.option(
            "--score",
            default="msp",
            show_default=True,
            help="What the threshold is laid on, or all, which also ranks them: "
            + ", ".join(SCORES)
            + ".",
        ),
        click.option(
            "--localise",
            is_flag=True,
            help="Find which class is there in which second, from the manifest's events.",
        ),
        click.option(
            "--items",
            type=click.IntRange(1, MOST),
            help="Retrieve among the first so many items [default: all].",
        ),
    ]


def _probe_options() -> list[Callable[..., Any]]:
    number = click.IntRange(1, MOST)
    return [
        click.option(
            "--probe-epochs",
            type=number,
            help="Epochs of the probe [default: those of the --setting's published script; without "
            "one 25, and 30 for cmg].",
        ),
        click.option("--probe-batch-size", type=number, default=80, show_default=True),
        click.option(
            "--probe-learning-rate",
            type=FiniteRange(0, FASTEST, min_open=True),
            default=4e-4,
            show_default=True,
            help="Raise it for sets of some hundred clips: their epochs have few steps.",
        ),
        click.option(
            "--probe-epoch-offset",
            type=click.IntRange(0, MOST),
            default=0,
            show_default=True,
            help="Epochs of these that are left out. The published scripts go on counting from the "
            "checkpoint's: type its epoch + 1.",
        ),
        click.option(
            "--probe-encoder-dropout",
            is_flag=True,
            help="Keep the encoder's dropout on while the probe trains, as published.",
        ),
        select_on_option(),
        click.option(
            "--seed",
            type=click.IntRange(0, LAST_SEED),
            help="Of the probe [default: the checkpoint's].",
        ),
        click.option(
            "--seeds",
            type=number,
            help="How many, from --seed on [default: 1; with --protocol clean 5 probes].",
        ),
        click.option(
            "--batch-size", type=number, default=80, show_default=True, help="Clips per step."
        ),
        click.option(
            "--steps", type=number, default=3, show_default=True, help="Steps to measure."
        ),
    ]


def _output_options() -> list[Callable[..., Any]]:
    file = click.Path(path_type=Path)  # what is there is looked at by `micu.cli.outputs`
    return [
        click.option(
            "--out",
            type=file,
            default=Path("results.csv"),
            show_default=True,
            help="CSV file that the rows are added to.",
        ),
        click.option("--codebook-out", type=file, help="CSV file for each code's counts."),
        click.option(
            "--details",
            type=file,
            help="Folder for one file per outcome, clip by clip: what the report's curves, "
            "confusion and map are drawn from; results-details is found beside results.csv.",
        ),
        click.option(
            "--setting",
            default="",
            metavar="NAME",
            help="What the paper's tables call these data and known classes, such as ave-14: the "
            "report puts its figure beside. micu-eval paper shows the names.",
        ),
        click.option("--html", type=file, help="Write a page with table and chart, too."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N, mps."),
        click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON."),
    ]


def parse_splits(text: str | None) -> tuple[str, ...] | None:
    """Values of `split` from an option: () if it was not typed, None for `all`.

    Raises:
        ConfigError: It was typed without a name.
    """
    if text is None:
        return ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ConfigError(
            f"--train-splits and --test-splits: expected names of the manifest's splits, or all, "
            f"got {text!r}; leave the option out for the usual ones"
        )
    return None if "all" in names else names


def refuse_idle_options(typed: Arguments) -> None:
    """Refuse options that would change nothing.

    Raises:
        ConfigError: They are other tasks', or no probe or protocol reads them; all are named.
    """
    problems = [
        f"{option}: only --task {' or '.join(tasks)} reads it"
        for option, tasks in TASKS_OF.items()
        if typed.task not in tasks and option in typed.options
    ]
    if typed.task in PROBED and set(typed.encoders) == {"input"} and not typed.localise:
        problems += [
            f"{option}: --encoder input has a logistic regression, which does not read it"
            for option in PROBE_OPTIONS
            if option in typed.options
        ]
    if typed.protocol == PAPER and "--threshold" in typed.options:
        problems.append("--threshold: --protocol paper has a threshold of its own")
    if typed.localise:
        problems += [
            f"{option}: --localise has none"
            for option in ("--ceiling", "--chance")
            if option in typed.options
        ]
    if problems:
        raise ConfigError("\n".join(problems) + "\nleave out what does nothing")
