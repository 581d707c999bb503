"""The options of `micu-eval`: declared once, in groups, and handed to the tasks that read them."""

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import click

from micu.base.command_line import Decorator, device_option, panel
from micu.base.process import LAST_SEED, FiniteRange
from micu.cli.features import FEATURE_OPTIONS
from micu.evaluate import code_scores, feature_scores  # noqa: F401 - they register scores
from micu.evaluate.order import EvaluationOrder
from micu.evaluate.scores import SCORES
from micu.evaluate.selection import CRITERIA
from micu.evaluate.splits import CLEAN, PAPER
from micu.evaluate.thresholds import ORACLE_AT_SOURCE_EPOCH, THRESHOLDS

MOST = 2**31 - 1
"""Largest count that an option takes."""
FASTEST = 1000.0
"""Largest learning rate that an option takes."""


_DEFAULT = EvaluationOrder
_FILE = click.Path(path_type=Path, dir_okay=False)
_WRITTEN = click.Path(path_type=Path)  # what is there is looked at by `micu.cli.outputs`
_COUNT = click.IntRange(1, MOST)

# --- what there is to evaluate ---------------------------------------------------------------

_CHECKPOINT = click.argument(
    "checkpoints",
    metavar="CHECKPOINT",
    type=click.Path(path_type=Path),
    callback=lambda context, parameter, value: (value,),
)
_CHECKPOINTS = click.argument(
    "checkpoints",
    metavar="CHECKPOINT...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
_PRETRAINING = click.option(
    "--pretraining-manifest",
    type=_FILE,
    help="Manifest that CHECKPOINT was trained on, to tell which clips it has seen.",
)
_OTHER_SIDE = (
    click.option(
        "--target-manifest",
        type=_FILE,
        help="Manifest of the clips to test on, if it is another one than --manifest.",
    ),
    click.option(
        "--class-map",
        type=_FILE,
        help="CSV file, column label and a second one: two names of one class, such as "
        "manifests/classes/ucf-vgg-pairs.csv.",
    ),
)

# --- which of it -----------------------------------------------------------------------------

_PAIRS = (
    click.option("--source", help="Modality that is trained on or asked with: v, a, f, t or name."),
    click.option("--target", help="Modality that is tested on."),
    click.option("--pairs", help="Several of them at once: v:a,a:v,v:f."),
)
_KNOWN = click.option(
    "--known",
    type=_FILE,
    help="CSV file, column label: the known classes [default for cmg: all there are].",
)
_TRAIN_SPLITS = click.option(
    "--train-splits",
    metavar="NAMES",
    help="Values of the manifest's split to train on, or all [default: train].",
)
_TEST_SPLITS = click.option(
    "--test-splits",
    metavar="NAMES",
    help="Values to test on, or all [default: test; under paper, --setting ave of cmg has "
    "train, as published].",
)
_ITEMS = click.option(
    "--items", type=_COUNT, help="Retrieve among the first so many items [default: all]."
)

# --- how -------------------------------------------------------------------------------------

_PROTOCOL = click.option(
    "--protocol",
    type=click.Choice(["both", PAPER, CLEAN]),
    default=_DEFAULT.protocol,
    show_default=True,
    help="paper: clips, epoch and threshold as published, leaks included; clean: without them.",
)


def _encoder(choices: Sequence[str], told: str) -> Decorator:
    return click.option(
        "--encoder",
        "encoders",
        type=click.Choice(choices),
        multiple=True,
        default=_DEFAULT.encoders,
        show_default=True,
        help=f"What is read: the checkpoint's codes, those of the same model with random {told}",
    )


_ENCODER = _encoder(
    ("checkpoint", "untrained", "input"), "weights, or the features themselves; repeatable."
)
_CODES = _encoder(("checkpoint", "untrained"), "weights; repeatable.")
_CEILING = click.option(
    "--ceiling",
    is_flag=True,
    help="Also a linear probe on the target modality's own features and known classes.",
)
_CHANCE = click.option("--chance", is_flag=True, help="Also what guessing reaches.")
_UNKNOWN = (
    click.option(
        "--threshold",
        "thresholds",
        type=click.Choice([*THRESHOLDS, ORACLE_AT_SOURCE_EPOCH]),
        multiple=True,
        default=_DEFAULT.thresholds,
        show_default=True,
        help="Where the threshold of protocol clean comes from; repeatable. "
        f"{ORACLE_AT_SOURCE_EPOCH} looks at the test set: its rows are of protocol diagnostic.",
    ),
    click.option(
        "--score",
        default=_DEFAULT.score,
        show_default=True,
        help="What the threshold is laid on, or all, which also ranks them: "
        + ", ".join(SCORES)
        + ".",
    ),
)
_TOC = click.option(
    "--toc",
    metavar="CHANNELS[:BEST:WORST]",
    help="TOC: probe so many channels of the codes, those that tell the codebook's codes apart "
    "best; 224:1:1 takes half of them from the worst, 168:1:0:similarity scores without "
    "variance.",
)
_SELECT_ON = click.option(
    "--select-on",
    type=click.Choice(tuple(CRITERIA)),
    help="Evaluate the best of several CHECKPOINTs: by accuracy on held-out source clips, or "
    "by HOS on the test set, as the paper's.",
)
_SEED = click.option(
    "--seed",
    type=click.IntRange(0, LAST_SEED),
    help="Of the probe, and of what else is drawn [default: the checkpoint's].",
)
_SEEDS = click.option(
    "--seeds",
    type=_COUNT,
    help="How many, from --seed on [default: 1; of probes under --protocol clean 5].",
)
_PROBE = panel(
    "Probe",
    click.option(
        "--probe-epochs",
        type=_COUNT,
        help="Epochs of the probe [default: those of the --setting's published script; without "
        "one 25, and 30 for cmg].",
    ),
    click.option(
        "--probe-batch-size", type=_COUNT, default=_DEFAULT.probe_batch_size, show_default=True
    ),
    click.option(
        "--probe-learning-rate",
        type=FiniteRange(0, FASTEST, min_open=True),
        default=_DEFAULT.probe_learning_rate,
        show_default=True,
        help="For fewer than 100 steps it is 0.002, unless it is typed or --setting is.",
    ),
    click.option(
        "--probe-epoch-offset",
        type=click.IntRange(0, MOST),
        default=_DEFAULT.probe_epoch_offset,
        show_default=True,
        help="Epochs of these that are left out. The published scripts go on counting from the "
        "checkpoint's: type its epoch + 1.",
    ),
    click.option(
        "--probe-encoder-dropout",
        is_flag=True,
        help="Keep the encoder's dropout on while the probe trains, as published.",
    ),
)
PROBE_OPTIONS = (
    *("--probe-epochs", "--probe-batch-size", "--probe-learning-rate"),
    *("--probe-epoch-offset", "--probe-encoder-dropout"),
)
_MEASURE = panel(
    "Measuring",
    click.option(
        "--batch-size",
        type=_COUNT,
        default=_DEFAULT.batch_size,
        show_default=True,
        help="Clips per step.",
    ),
    click.option(
        "--steps", type=_COUNT, default=_DEFAULT.steps, show_default=True, help="Steps to measure."
    ),
)

# --- where to --------------------------------------------------------------------------------

_SETTING = click.option(
    "--setting",
    default=_DEFAULT.setting,
    metavar="NAME",
    help="What the paper's tables call these data and known classes, such as ave-14: the "
    "report puts its figure beside. micu-eval paper shows the names.",
)
_OUT = (
    click.option(
        "--out",
        type=_WRITTEN,
        default=_DEFAULT.out,
        show_default=True,
        help="CSV file that the rows are added to.",
    ),
    click.option("--html", type=_WRITTEN, help="Write a page with table and chart, too."),
    device_option,
    click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON."),
)
_SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="What this task lets you choose; repeatable. An unknown KEY shows those there are.",
)
_DETAILS = click.option(
    "--details",
    type=_WRITTEN,
    help="Folder for one file per outcome, clip by clip: what the report's curves, "
    "confusion and map are drawn from; results-details is found beside results.csv.",
)
_CODEBOOK_OUT = click.option(
    "--codebook-out", type=_WRITTEN, help="CSV file for each code's counts."
)

# --- the tasks -------------------------------------------------------------------------------

DATA, CLIPS, METHOD, OUTPUT = "Data", "Clips", "Method", "Output"
_PROBED = (_ENCODER, _PROTOCOL, _TOC, _SEED, _SEEDS)
_PROBED_DATA = panel(DATA, *FEATURE_OPTIONS, *_OTHER_SIDE, _PRETRAINING)
_PROBED_CLIPS = panel(CLIPS, *_PAIRS, _KNOWN, _TRAIN_SPLITS, _TEST_SPLITS)
OPTIONS: dict[str, tuple[Decorator, ...]] = {
    "oscmg": (
        _CHECKPOINTS,
        _PROBED_DATA,
        _PROBED_CLIPS,
        panel(METHOD, *_PROBED, *_UNKNOWN, _CEILING, _CHANCE, _SELECT_ON),
        _PROBE,
        panel(OUTPUT, *_OUT, _SETTING, _DETAILS),
    ),
    "cmg": (
        _CHECKPOINT,
        _PROBED_DATA,
        _PROBED_CLIPS,
        panel(METHOD, *_PROBED, _CEILING, _CHANCE),
        _PROBE,
        panel(OUTPUT, *_OUT, _SETTING),
    ),
    "localise": (
        _CHECKPOINT,
        _PROBED_DATA,
        _PROBED_CLIPS,
        panel(METHOD, *_PROBED),
        _PROBE,
        panel(OUTPUT, *_OUT, _SETTING),
    ),
    "retrieval": (
        _CHECKPOINT,
        panel(DATA, *FEATURE_OPTIONS, _PRETRAINING),
        panel(CLIPS, *_PAIRS, _TEST_SPLITS, _ITEMS),
        panel(METHOD, *_PROBED, _CHANCE),
        panel(OUTPUT, *_OUT, _SETTING),
    ),
    "codebook": (
        _CHECKPOINT,
        panel(DATA, *FEATURE_OPTIONS, _PRETRAINING),
        panel(METHOD, _CODES, _PROTOCOL, _SEED, _SEEDS),
        panel(OUTPUT, *_OUT, _CODEBOOK_OUT),
    ),
    "efficiency": (
        _CHECKPOINT,
        panel(DATA, *FEATURE_OPTIONS),
        _MEASURE,
        panel(METHOD, _SEED),
        panel(OUTPUT, *_OUT),
    ),
}
"""What each task is typed with, in the order in which help shows it."""
_OF_PLUGIN = (
    _CHECKPOINT,
    _PROBED_DATA,
    _PROBED_CLIPS,
    panel(METHOD, *_PROBED, _SETTINGS),
    _PROBE,
    panel(OUTPUT, *_OUT),
)
OPTIONS |= {point.name: _OF_PLUGIN for point in entry_points(group="micu.tasks")}
