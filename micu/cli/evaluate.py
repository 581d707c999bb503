"""`micu-eval`: a checkpoint and features in, rows of results out.

Exit codes: 0 all good, 2 usage or an error with a message, 74 input/output error, 130 Ctrl-C.
"""

import functools
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from micu.cli.features import FeatureSets, find_feature_sets, parse_pairs
from micu.cli.selection import select, select_on_option
from micu.commands import exit_codes
from micu.devices import resolve_device
from micu.errors import ConfigError
from micu.evaluate.report import (
    CHANGES,
    Row,
    codebook_metrics,
    describe_task,
    render_html,
    render_table,
    write_rows,
)
from micu.files import file_sha256, write_atomically
from micu.manifest import MODALITIES, read_class_list

if TYPE_CHECKING:  # torch takes seconds to import, and --help does not need it
    from micu.checkpoint import LoadedModel
    from micu.evaluate.encoders import ClipEncoder
    from micu.evaluate.tasks import Evaluation


PROBE_OPTIONS = (
    *("--probe-epochs", "--probe-batch-size", "--probe-learning-rate"),
    *("--probe-epoch-offset", "--probe-encoder-dropout"),
)
TASK_OPTIONS = {
    "oscmg": (
        *("--source", "--target", "--pairs", "--known", "--ceiling", "--chance", "--score"),
        *("--select-on", *PROBE_OPTIONS),
    ),
    "codebook": ("--codebook-out",),
}
"""Options that one task alone reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What was typed."""

    checkpoints: tuple[Path, ...]
    select_on: str | None
    task: str
    features: Path
    manifest: Path | None
    chosen: dict[str, str]
    """Backbone by modality."""
    pairs: tuple[tuple[str, str], ...]
    """(source, target) modalities."""
    known: Path | None
    encoders: tuple[str, ...]
    ceiling: bool
    chance: bool
    score: str
    probe_epochs: int
    probe_batch_size: int
    probe_learning_rate: float
    probe_epoch_offset: int
    probe_encoder_dropout: bool
    seed: int | None
    seeds: int
    out: Path
    codebook_out: Path | None
    html: Path | None
    device: str
    as_json: bool
    options: frozenset[str]
    """Options that were typed, whatever their value."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of `micu-eval`, in the order in which help shows them."""
    return functools.reduce(
        lambda made, option: option(made),
        reversed([*_input_options(), *_method_options(), *_output_options()]),
        command,
    )


def _input_options() -> list[Callable[..., Any]]:
    file = click.Path(path_type=Path, dir_okay=False)
    return [
        click.option(
            "--task", default="oscmg", show_default=True, help="What to do: oscmg, codebook."
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
        *(
            click.option(
                f"--{name}-features", metavar="BACKBONE", help=f"Which {name} features, if several."
            )
            for name in MODALITIES
        ),
        click.option("--source", help="Modality that the probe is trained on: v, a, f, t or name."),
        click.option("--target", help="Modality that it is tested on."),
        click.option("--pairs", help="Several of them at once: v:a,a:v,v:f."),
        click.option("--known", type=file, help="CSV file, column label: the known classes."),
    ]


def _method_options() -> list[Callable[..., Any]]:
    number = click.IntRange(min=1)
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
            "--score",
            default="msp",
            show_default=True,
            help="What the threshold is laid on: msp, max_logit, energy, entropy.",
        ),
        click.option(
            "--probe-epochs",
            type=number,
            default=25,
            show_default=True,
            help="Epochs of the probe (the published scripts: 25 for AVE, 16 for UCF).",
        ),
        click.option("--probe-batch-size", type=number, default=80, show_default=True),
        click.option(
            "--probe-learning-rate",
            type=click.FloatRange(min=0, min_open=True),
            default=4e-4,
            show_default=True,
            help="Raise it for sets of some hundred clips: their epochs have few steps.",
        ),
        click.option(
            "--probe-epoch-offset",
            type=click.IntRange(min=0),
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
        click.option("--seed", type=int, help="Of the probe [default: the checkpoint's]."),
        click.option(
            "--seeds", type=number, default=1, show_default=True, help="How many, from --seed on."
        ),
    ]


def _output_options() -> list[Callable[..., Any]]:
    file = click.Path(path_type=Path, dir_okay=False)
    return [
        click.option(
            "--out",
            type=file,
            default=Path("results.csv"),
            show_default=True,
            help="CSV file that the rows are added to.",
        ),
        click.option("--codebook-out", type=file, help="CSV file for each code's counts."),
        click.option("--html", type=file, help="Write a page with table and chart, too."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N, mps."),
        click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON."),
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="micu")
@click.argument(
    "checkpoints",
    metavar="CHECKPOINT",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
)
@_options
def main(source: str | None, target: str | None, pairs: str | None, **arguments: Any) -> None:
    """Evaluate CHECKPOINT: the last.pt of a micu-train run, or the authors' MICU.pt.

    Of several checkpoints of a run, --select-on chooses the one that is evaluated.

    Task oscmg prints two protocols side by side: `source-val` chooses epoch and threshold on
    held-out source clips; `oracle` chooses them on the test set, as the paper's figures do.
    """
    with exit_codes("nothing was written for the task that was running; type it again"):
        chosen = {name: arguments.pop(f"{name}_features") or "" for name in MODALITIES}
        typed = Arguments(
            chosen=chosen,
            pairs=parse_pairs(source, target, pairs),
            options=_typed_options(click.get_current_context()),
            **arguments,
        )
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        _print(run(typed), typed)


def _typed_options(context: click.Context) -> frozenset[str]:
    return frozenset(
        option
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        for option in parameter.opts
    )


def run(typed: Arguments) -> list[Row]:
    """Evaluate as asked, and add the rows of each seed to the results file."""
    from micu.evaluate.open_set import SCORES
    from micu.evaluate.tasks import TASKS

    _, _ = TASKS[typed.task], SCORES[typed.score]
    _refuse_foreign_options(typed)
    alone = replace(typed, encoders=("checkpoint",), ceiling=False, chance=False)
    chosen, told = select(typed.checkpoints, typed.select_on, lambda path: _evaluate(alone, path))
    rows: list[Row] = []
    for found in _evaluate(typed, chosen):
        noted = [replace(r, note=r.note + told) if r.checkpoint_sha256 else r for r in found]
        write_rows(noted, typed.out)
        rows += noted
    return rows


def _evaluate(typed: Arguments, checkpoint: Path) -> Iterator[list[Row]]:
    """Rows of one checkpoint, seed by seed."""
    from micu.evaluate.models import check_features, load_model
    from micu.evaluate.tasks import TASKS

    device = resolve_device(typed.device)
    loaded = load_model(checkpoint, device)
    if typed.probe_encoder_dropout and not loaded.config.encoder.dropout:
        raise ConfigError(f"--probe-encoder-dropout: {checkpoint} has no dropout; leave it out")
    asked = dict.fromkeys(name for pair in typed.pairs for name in pair)
    modalities = tuple(asked) if typed.task == "oscmg" else loaded.config.modalities
    _refuse_idle_features(typed, modalities)
    sets = find_feature_sets(typed.features, modalities, typed.manifest, typed.chosen)
    check_features(sets.stores, loaded)
    first = loaded.config.seed if typed.seed is None else typed.seed
    made: dict[str, ClipEncoder] = {}
    for seed in range(first, first + typed.seeds):
        yield TASKS[typed.task](_evaluation(typed, sets, loaded, seed, device, made))


def _refuse_foreign_options(typed: Arguments) -> None:
    """Refuse options that would change nothing.

    Raises:
        ConfigError: They are another task's, or no probe reads them; all of them are named.
    """
    problems = [
        f"{option}: only --task {owner} reads it"
        for owner, options in TASK_OPTIONS.items()
        for option in options
        if owner != typed.task and option in typed.options
    ]
    if typed.task == "oscmg" and set(typed.encoders) == {"input"}:
        problems += [
            f"{option}: --encoder input has a logistic regression, which does not read it"
            for option in PROBE_OPTIONS
            if option in typed.options
        ]
    if problems:
        raise ConfigError("\n".join(problems) + "\nleave out what does nothing")


def _refuse_idle_features(typed: Arguments, modalities: Sequence[str]) -> None:
    """Refuse a choice of features for a modality that is not evaluated.

    Raises:
        ConfigError: There is one.
    """
    for name, backbone in typed.chosen.items():
        if backbone and modalities and name not in modalities:
            raise ConfigError(
                f"--{name}-features {backbone}: {name} is not evaluated, only "
                f"{', '.join(modalities)}; leave it out"
            )


def _evaluation(
    typed: Arguments,
    sets: FeatureSets,
    loaded: "LoadedModel",
    seed: int,
    device: str,
    made: "dict[str, ClipEncoder]",
) -> "Evaluation":
    """What a task is told about one seed; encoders that no seed changes are kept in `made`."""
    from micu.evaluate.encoders import ClipCache, CodeEncoder, InputEncoder, pool_inputs
    from micu.evaluate.models import describe_preset, untrained_model
    from micu.evaluate.probe import ProbeConfig
    from micu.evaluate.tasks import Evaluation

    labelled = [clip for clip in sets.manifest.clips if clip.label or typed.task == "codebook"]
    if not made:
        inputs = ClipCache(sets.stores, labelled, loaded.config.data, pool_inputs)
        made["input"] = InputEncoder("input", inputs, device)
        made["ceiling"] = InputEncoder("ceiling", inputs, device)
        made["checkpoint"] = CodeEncoder("checkpoint", loaded.model, sets.stores, labelled)
    if "untrained" in typed.encoders:
        model = untrained_model(loaded.config, loaded.model.shapes, seed).to(device)
        made["untrained"] = CodeEncoder("untrained", model, sets.stores, labelled)
    return Evaluation(
        manifest=sets.manifest,
        stores=sets.stores,
        encoders=[made[name] for name in dict.fromkeys(typed.encoders)],
        ceiling=made["ceiling"] if typed.ceiling else None,
        with_chance=typed.chance,
        seed=seed,
        pairs=typed.pairs,
        known=read_class_list(typed.known) if typed.known else (),
        classes_sha256=file_sha256(typed.known) if typed.known else "",
        probe=ProbeConfig(
            epochs=typed.probe_epochs,
            batch_size=typed.probe_batch_size,
            learning_rate=typed.probe_learning_rate,
            epoch_offset=typed.probe_epoch_offset,
            encoder_dropout=typed.probe_encoder_dropout,
        ),
        score=typed.score,
        preset=describe_preset(loaded),
        checkpoint_sha256=loaded.sha256,
        codebook_path=typed.codebook_out,
        tell=functools.partial(click.echo, err=True),
    )


def _print(rows: Sequence[Row], typed: Arguments) -> None:
    if typed.as_json:
        values = [asdict(row) for row in rows]
        for value in values:
            if math.isnan(value["value"]):
                value["value"] = None
        click.echo(json.dumps(values, indent=1))
    elif typed.task == "codebook":
        click.echo(render_table(rows, codebook_metrics(rows)))
    else:
        click.echo(render_table(rows))
    changed = sorted({row.preset for row in rows if CHANGES in row.preset})
    for preset in changed:
        click.echo(f"* {preset}", err=True)
    click.echo(f"{len(rows)} rows in {typed.out}", err=True)
    if typed.html is not None:
        page = render_html(f"micu-eval: {typed.task}", describe_task(rows, typed.task))
        write_atomically(typed.html, page.encode())
        click.echo(f"page in {typed.html}", err=True)


if __name__ == "__main__":
    main()
