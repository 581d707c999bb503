"""`micu-eval`: a checkpoint and features in, rows of results out; and what is made of results.

Exit codes: 0 all good, 2 usage or an error with a message, 74 input/output error, 130 Ctrl-C.
"""

import json
import math
import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from micu.base.command_line import (
    ToolCommand,
    ToolGroup,
    drop_options,
    in_order,
    option_words,
    typed_options,
    typed_value,
)
from micu.base.devices import resolve_device
from micu.base.errors import ConfigError, StoreError
from micu.base.files import check_held, file_sha256, hold_folder, write_atomically
from micu.base.process import LAST_SEED, exit_codes, say, screen_width, show_log
from micu.base.registry import closest, suggest
from micu.cli.eval_options import OPTIONS, PROBE_OPTIONS
from micu.cli.features import (
    FeatureSets,
    find_feature_sets,
    parse_pairs,
    refuse_idle_features,
    refuse_no_checkpoint,
)
from micu.cli.outputs import refuse_shared, try_file, try_folder
from micu.cli.paper_run import paper_run
from micu.cli.report import check, paper, report
from micu.cli.search import embed, search
from micu.evaluate.columns import shown_metrics
from micu.evaluate.markdown import render_columns, render_markdown
from micu.evaluate.order import EvaluationOrder, is_frozen
from micu.evaluate.report import (
    CHANGES,
    Row,
    read_rows,
    write_rows,
)
from micu.evaluate.scores import SCORES, rank_scores
from micu.evaluate.selection import CRITERIA, choose_checkpoint, merit
from micu.evaluate.splits import CLEAN, PAPER, parse_splits, read_class_map
from micu.evaluate.thresholds import ORACLE, SOURCE_VAL
from micu.report.build import render_rows
from micu.report.commands import commands_path, read_commands, record_command
from micu.report.compare import render_table
from micu.report.paper import check_setting
from micu.store.manifest import MODALITIES, Manifest, read_class_list, read_manifest

if TYPE_CHECKING:  # torch takes seconds to import, and --help does not need it
    from micu.evaluate.encoders import FeatureEncoder
    from micu.evaluate.evaluation import Evaluation, Side
    from micu.store.sets import FeatureStore
    from micu.train.checkpoint import LoadedModel

USUAL_EPOCHS, PROBE_EPOCHS = 25, {"cmg": 30}
"""Of most published scripts; 25 for others. `--setting` has those of its own script."""

SEVERAL_SEEDS = 5
"""How many seeds `--protocol clean` takes for tasks with a probe, unless told otherwise."""


class Tasks(ToolGroup):
    """The tasks, `report` and `paper`; a first word that is none of them begins the older form.

    So `micu-eval last.pt --task cmg` does what `micu-eval cmg last.pt` does, and says so. A
    checkpoint that is called like a command is typed with its folder: `./report`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:  # noqa: D102
        if args and args[0] not in ("-h", "--help", "--version"):
            words = task_first(args, self.commands)
            if words != args:
                click.echo(
                    f"the task stands first today: micu-eval {words[0]} CHECKPOINT; --task stays",
                    err=True,
                )
            args = words
        return super().parse_args(ctx, args)


def task_first(words: Sequence[str], commands: Container[str]) -> list[str]:
    """The words of a command line with the task as the first of them.

    Args:
        words: With it there already, or after the checkpoint, or as `--task X` and `--localise`
            anywhere.
        commands: What may stand first.

    Raises:
        UsageError: There is no such task.
    """
    task, *rest = words if words and words[0] in commands else ["", *words]
    if not task and rest[1:2] and rest[1] in OPTIONS and not Path(rest[1]).exists():
        task = rest.pop(1)
    if not task:
        typed = typed_value(rest, "--task")
        task = "oscmg" if typed is None else typed
        rest = drop_options(rest, ("--task",))
        if task not in OPTIONS:  # `report` and `paper` are no tasks
            raise click.UsageError(f"unknown task {task!r}; {suggest(task, OPTIONS)}")
    if task == "cmg" and "--localise" in rest:
        task = "localise"
        rest.remove("--localise")
    return [task, *rest]


class TaskCommand(ToolCommand):
    """A task; an option that it does not have is told with the tasks that have it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:  # noqa: D102
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            takers = [
                name
                for name, command in main.commands.items()
                if any(error.option_name in option.opts for option in command.params)
            ]
            if not takers:
                raise
            raise click.UsageError(
                f"{error.option_name}: only micu-eval {' or '.join(takers)} reads it, "
                f"{self.name} does not; leave it out",
                ctx,
            ) from error


@click.group(cls=Tasks)
@click.version_option(package_name="micu")
def main() -> None:
    """Evaluate a checkpoint, or make a report of results that are there.

    CHECKPOINT is the last.pt of a micu-train run, or the authors' MICU.pt. Each command has a
    --help of its own.

    Tasks are done under two protocols, side by side: `clean` chooses epoch and threshold on
    held-out source clips; `paper` does as the published scripts did, and its rows say what leaks.
    """


TOLD = {
    "oscmg": "Recognise known and unknown classes in one modality after training in another.\n\n"
    "Of several checkpoints of a run, --select-on chooses the one that is evaluated.",
    "cmg": "Classify clips by one modality with a probe that was trained on another.",
    "localise": "Find which class is there in which second, from the manifest's events.",
    "retrieval": "Find the clip of one modality that belongs to one of another.",
    "codebook": "Count which codes are used, and by which modalities.",
    "efficiency": "Measure parameters, memory and time; without features on random numbers.",
}
EXAMPLES = {
    "oscmg": "--pairs v:a,a:v --known known.csv",
    "cmg": "--manifest manifests/ave.csv --pairs v:a,a:v --setting ave",
    "localise": "--manifest manifests/avvp.csv --pairs v:a,a:v --setting avvp",
    "retrieval": "--manifest manifests/clotho.csv --pairs a:t --setting clotho",
    "codebook": "--codebook-out codebook.csv",
    "efficiency": "--batch-size 80",
}


def _add_task(task: str) -> None:
    def run_task(**arguments: Any) -> None:
        with exit_codes("nothing was written for the task that was running; type it again"):
            context = click.get_current_context()
            pairs = [arguments.pop(name, None) for name in ("source", "target", "pairs")]
            order = EvaluationOrder(
                task="cmg" if task == "localise" else task,
                localise=task == "localise",
                chosen={name: arguments.pop(f"{name}_features") or "" for name in MODALITIES},
                pairs=parse_pairs(*pairs),
                options=frozenset(typed_options(context)),
                **arguments,
            )
            show_log()
            rows = run(order)
            line = shlex.join([*context.command_path.split(), *option_words(context)])
            record_command(order.out, line)
            _print(rows, order)

    command = in_order(*OPTIONS[task])(run_task)
    example = f"micu-eval {task} runs/micu-vaf-0/last.pt {EXAMPLES.get(task, '')}"
    main.command(
        task,
        cls=TaskCommand,
        help=TOLD.get(task, f"Evaluate {task}, a task of a plug-in."),
        example=example,
    )(command)


for each in OPTIONS:
    _add_task(each)
main.add_command(report)
main.add_command(check)
main.add_command(paper)
main.add_command(paper_run, "paper-run")
main.add_command(embed)
main.add_command(search)


def run(typed: EvaluationOrder) -> list[Row]:
    """Evaluate as asked, and add the rows of each seed to the results file."""
    if typed.score != "all":
        SCORES[typed.score]
    typed = typed.with_frozen()
    refuse_idle_options(typed)
    if typed.setting:
        check_setting(typed.setting, typed.task)
    refuse_no_checkpoints(typed.checkpoints, typed.select_on)
    try_outputs(typed)
    for folder in (typed.out.parent, typed.details):
        if folder is not None:
            hold_folder(folder, make=False)
    chosen, told = _select(typed)
    rows: list[Row] = []
    for found in _evaluate(typed, chosen):
        noted = [replace(r, note=r.note + told) if r.checkpoint_sha256 else r for r in found]
        write_rows(noted, typed.out)
        rows += noted
    check_held(typed.out)
    return rows


def refuse_idle_options(typed: EvaluationOrder) -> None:
    """Refuse options of the task that would change nothing, beside the others that were typed.

    Raises:
        ConfigError: There are some; all are named.
    """
    problems = []
    raw = {name for name in typed.encoders if name == "input" or is_frozen(name)}
    if set(typed.encoders) == raw and not typed.localise:
        problems += [
            f"{option}: --encoder {min(raw)} has a logistic regression, which does not read it"
            for option in PROBE_OPTIONS
            if option in typed.options
        ]
    if typed.toc and not {"checkpoint", "untrained"} & {*typed.encoders}:
        problems.append(f"--toc: --encoder {typed.encoders[0]} has no codes")
    if typed.protocol == PAPER and "--threshold" in typed.options:
        problems.append("--threshold: --protocol paper has a threshold of its own")
    if problems:
        raise ConfigError("\n".join(problems) + "\nleave out what does nothing")


def _select(typed: EvaluationOrder) -> tuple[Path, str]:
    """The checkpoint to evaluate, and what to add to the note of its rows.

    Raises:
        ConfigError: There are several and no criterion, or a criterion and only one.
    """
    criterion, paths = typed.select_on, typed.checkpoints
    if (criterion is None) != (len(paths) == 1):
        raise ConfigError(
            f"--select-on: expected with two checkpoints or more, and only then, got {criterion} "
            f"and {len(paths)}; evaluate one, or choose between several by {' or '.join(CRITERIA)}"
        )
    if criterion is None:
        return paths[0], ""
    judged = _selection_order(typed)
    candidates: dict[Path, list[Row]] = {}
    for path in paths:
        candidates[path] = [row for rows in _evaluate(judged, path) for row in rows]
        merits = merit(candidates[path], criterion)
        say(f"{path}: {CRITERIA[criterion]} {merits:.4f}")
    chosen, told = choose_checkpoint(candidates, criterion)
    say(told)
    return chosen, f"; {told}"


def refuse_no_checkpoints(paths: Sequence[Path], select_on: str | None) -> None:
    """Refuse what cannot be a checkpoint by its name, and say what may have been meant.

    Raises:
        ConfigError: One is a folder, or not there.
    """
    command = closest(str(paths[0]), main.commands)
    if command and not paths[0].exists():
        raise ConfigError(f"{paths[0]}: no such checkpoint; did you mean micu-eval {command}?")
    if len(paths) == 1 or select_on:  # else that is what is wrong
        for path in paths:
            if not is_frozen(path):
                refuse_no_checkpoint(path)


def try_outputs(typed: EvaluationOrder) -> None:
    """Refuse what could not be written at the end, before anything is trained.

    Raises:
        ConfigError: A name is taken, or the results file is none, or damaged.
        OSError: The disk is full, or a folder may not be written to.
    """
    files = {"--out": typed.out, "--html": typed.html, "--codebook-out": typed.codebook_out}
    lists = (typed.manifest, typed.target_manifest, typed.pretraining_manifest)
    read = (*typed.checkpoints, *lists, typed.known, typed.class_map)
    refuse_shared({**files, "--out, its commands": commands_path(typed.out)}, read)
    for option, path in files.items():
        if path is not None:
            try_file(option, path)
    try_file("--out, its commands", commands_path(typed.out))
    read_commands(commands_path(typed.out))
    if typed.details is not None:
        try_folder("--details", typed.details)
    if typed.out.exists():
        read_rows(typed.out)


def _selection_order(typed: EvaluationOrder) -> EvaluationOrder:
    """What is evaluated to select by: the protocol and threshold that the criterion is read from.

    They need not be those that are evaluated afterwards, nor need its score, if that is all.
    """
    return replace(
        typed,
        encoders=("checkpoint",),
        ceiling=False,
        chance=False,
        details=None,
        protocol=PAPER if typed.select_on == ORACLE else CLEAN,
        thresholds=(SOURCE_VAL,),
        score="msp" if typed.score == "all" else typed.score,
        seeds=_count_seeds(typed),
    )


def _count_seeds(typed: EvaluationOrder) -> int:
    several = SEVERAL_SEEDS if typed.protocols == (CLEAN,) and typed.task in ("oscmg", "cmg") else 1
    return typed.seeds or several


def _evaluate(typed: EvaluationOrder, checkpoint: Path) -> Iterator[list[Row]]:
    """Rows of one checkpoint, seed by seed."""
    from micu.evaluate.models import frozen_encoders, load_model
    from micu.evaluate.tasks import choose_task

    typed = replace(typed, checkpoints=(checkpoint,))
    task, of_plugin = choose_task(typed.task, typed.settings)
    device = resolve_device(typed.device)
    loaded = frozen_encoders(device) if is_frozen(checkpoint) else load_model(checkpoint, device)
    if typed.probe_encoder_dropout and not loaded.config.encoder.dropout:
        raise ConfigError(f"--probe-encoder-dropout: {checkpoint} has no dropout; leave it out")
    sides = open_sides(typed, loaded)
    typed = _with_rate(typed, sides[0].manifest)
    _refuse_foreign_splits("--train-splits", typed.train_splits, sides[0].manifest)
    _refuse_foreign_splits("--test-splits", typed.test_splits, sides[1].manifest)
    first = loaded.config.seed if typed.seed is None else typed.seed
    if first + _count_seeds(typed) - 1 > LAST_SEED:
        raise ConfigError(
            f"--seeds {_count_seeds(typed)}: expected seeds up to {LAST_SEED}, got them from "
            f"{first} on; type a smaller --seed"
        )
    made: dict[str, dict[str, FeatureEncoder]] = {}
    told: set[str] = set()
    for seed in range(first, first + _count_seeds(typed)):
        asked = _evaluation(typed, sides, loaded, seed, made)
        yield task(replace(asked, of_plugin=of_plugin, _told=told))


def _with_rate(typed: EvaluationOrder, manifest: Manifest) -> EvaluationOrder:
    """A higher rate of the probe where it has few steps, unless one was typed; and say so.

    What has a figure of the paper beside it is trained as published.
    """
    from micu.evaluate.probe import FEW_STEPS, RAISED_RATE
    from micu.evaluate.splits import TRAIN, of_splits

    is_probed = typed.task in ("oscmg", "cmg") and not typed.localise and not typed.setting
    is_probed = is_probed and not {"checkpoint", "untrained"}.isdisjoint(typed.encoders)
    if not is_probed or "--probe-learning-rate" in typed.options:
        return typed
    splits = parse_splits(typed.train_splits)
    known = read_class_list(typed.known) if typed.known and not typed.class_map else ()
    labelled = [c for c in manifest.clips if c.label and (c.label in known or not known)]
    clips = len(of_splits(labelled, (TRAIN,) if splits == () else splits, manifest.clips))
    epochs = typed.probe_epochs or PROBE_EPOCHS.get(typed.task, USUAL_EPOCHS)
    epochs -= typed.probe_epoch_offset
    steps = epochs * math.ceil(clips / typed.probe_batch_size)
    if not 0 < steps < FEW_STEPS:
        return typed
    say(
        f"{clips} clips give the probe {steps} steps: its learning rate is {RAISED_RATE}, not "
        f"{typed.probe_learning_rate}; --probe-learning-rate sets another"
    )
    return replace(typed, probe_learning_rate=RAISED_RATE)


def _refuse_foreign_splits(option: str, text: str | None, manifest: Manifest) -> None:
    """Refuse a split that no clip is of, beside others that would be taken without it.

    Raises:
        ConfigError: There is one, and the manifest names splits.
    """
    there = {clip.split for clip in manifest.clips} - {""}
    for name in parse_splits(text) or () if there else ():
        if name not in there:
            raise ConfigError(
                f"{option} {name}: no clip of {manifest.path} is of this split; "
                f"{suggest(name, there)}"
            )


def open_sides(typed: EvaluationOrder, loaded: "LoadedModel") -> tuple[FeatureSets, FeatureSets]:
    """Manifest and features of the clips to train on, and of those to test on.

    They are one object unless a target manifest was typed.
    """
    from micu.evaluate.models import check_features, fitting_backbones

    def check(stores: "Mapping[str, FeatureStore]") -> None:
        if not is_frozen(typed.checkpoints[0]):
            check_features(stores, loaded)

    def find(names: Sequence[str], manifest: Path | None) -> FeatureSets:
        return find_feature_sets(
            *(typed.features, names, manifest, typed.chosen),
            fitting_backbones(loaded),
            check,
        )

    if typed.task == "efficiency" and not typed.options & {"--features", "--manifest"}:
        nothing = FeatureSets(Manifest(typed.checkpoints[0], (), ""), {})
        return nothing, nothing
    asked = dict.fromkeys(name for pair in typed.pairs for name in pair)
    paired = asked or typed.task in ("oscmg", "cmg", "retrieval")
    modalities = tuple(asked) if paired else loaded.config.modalities
    if modalities:
        refuse_idle_features(typed.chosen, modalities)
    if typed.target_manifest is None:
        sets = find(modalities, typed.manifest)
        return sets, sets
    source = find(tuple(dict.fromkeys(first for first, _ in typed.pairs)), typed.manifest)
    stores = dict(source.stores)
    for name in modalities:
        if name not in stores:
            try:
                more = find_feature_sets(typed.features, (name,), typed.manifest, typed.chosen)
                stores |= more.stores
            except StoreError:  # only paired-quantile and quantization_error read them, and say so
                continue
    check(stores)
    targets = tuple(dict.fromkeys(second for _, second in typed.pairs))
    return FeatureSets(source.manifest, stores), find(targets, typed.target_manifest)


def _evaluation(
    typed: EvaluationOrder,
    sides: tuple[FeatureSets, FeatureSets],
    loaded: "LoadedModel",
    seed: int,
    made: "dict[str, dict[str, FeatureEncoder]]",
) -> "Evaluation":
    """What a task is told about one seed; encoders that no seed changes are kept in `made`."""
    from micu.evaluate.evaluation import Evaluation, find_published
    from micu.evaluate.leaks import find_pretraining
    from micu.evaluate.models import describe_preset
    from micu.evaluate.probe import ProbeConfig

    aliases = read_class_map(typed.class_map) if typed.class_map else {}
    source = _side(typed, sides[0], loaded, seed, made.setdefault("source", {}), aliases)
    target = source
    if sides[1] is not sides[0]:
        target = _side(typed, sides[1], loaded, seed, made.setdefault("target", {}), aliases)
    known = read_class_list(typed.known) if typed.known else ()
    pretrained_on = typed.pretraining_manifest
    published = find_published(typed.task, typed.setting)
    usual_epochs = published.epochs if published else PROBE_EPOCHS.get(typed.task, USUAL_EPOCHS)
    given = {field.name: getattr(typed, field.name) for field in fields(EvaluationOrder)}
    found = {
        "source": source,
        "target": target,
        "encoders": tuple(dict.fromkeys(typed.encoders)),
        "seed": seed,
        "known_classes": tuple(dict.fromkeys(aliases.get(name, name) for name in known)),
        "classes_sha256": file_sha256(typed.known) if typed.known else "",
        "listed_classes": len(known),
        "class_map_sha256": file_sha256(typed.class_map) if typed.class_map else "",
        "probe": ProbeConfig(
            epochs=typed.probe_epochs or usual_epochs,
            batch_size=typed.probe_batch_size,
            learning_rate=typed.probe_learning_rate,
            epoch_offset=typed.probe_epoch_offset,
            encoder_dropout=typed.probe_encoder_dropout,
        ),
        "thresholds": tuple(dict.fromkeys(typed.thresholds)),
        "preset": describe_preset(loaded),
        "loaded": loaded,
        "pretraining": find_pretraining(
            loaded,
            [sets.manifest for sets in sides],
            read_manifest(pretrained_on) if pretrained_on else None,
        ),
        "published": published,
        "tell": say,
    }
    return Evaluation(**{**given, **found})


def _side(
    typed: EvaluationOrder,
    sets: FeatureSets,
    loaded: "LoadedModel",
    seed: int,
    made: "dict[str, FeatureEncoder]",
    aliases: Mapping[str, str],
) -> "Side":
    """A manifest with its encoders; those that no seed changes are kept in `made`."""
    from micu.evaluate.encoders import ClipCache, CodeEncoder, InputEncoder, pool_inputs
    from micu.evaluate.evaluation import Side
    from micu.evaluate.models import untrained_model
    from micu.evaluate.toc import ChannelChoice

    choice = ChannelChoice.parse(typed.toc) if typed.toc is not None else None
    clips = sets.manifest.clips
    if not made:
        device = next(loaded.model.parameters()).device
        inputs = ClipCache(sets.stores, clips, loaded.config.data, pool_inputs)
        made["input"] = InputEncoder("input", inputs, device)
        made["ceiling"] = InputEncoder("ceiling", inputs, device)
        for name in typed.encoders:
            if is_frozen(name):
                made[name] = InputEncoder(name, inputs, device)
        made["checkpoint"] = CodeEncoder("checkpoint", loaded.model, sets.stores, clips, choice)
    if "untrained" in typed.encoders:
        model = untrained_model(loaded.config, loaded.model.shapes, seed)
        model.to(next(loaded.model.parameters()).device)
        made["untrained"] = CodeEncoder("untrained", model, sets.stores, clips, choice)
    renamed = tuple(
        replace(
            clip,
            label=aliases.get(clip.label, clip.label),
            events=tuple(replace(e, label=aliases.get(e.label, e.label)) for e in clip.events),
        )
        for clip in clips
    )
    return Side(manifest=sets.manifest, clips=renamed, stores=sets.stores, encoders=dict(made))


def _print(rows: Sequence[Row], typed: EvaluationOrder) -> None:
    if typed.as_json:
        values = [row.values() for row in rows]
        for value in values:
            if value["value"] != value["value"]:  # NaN, which JSON has not
                value["value"] = None
        click.echo(json.dumps(values, indent=1))
    else:
        width = screen_width()
        shown = shown_metrics(typed.task, {row.metric for row in rows})
        click.echo(render_table(rows, shown, width))
        if typed.score == "all":
            ranks = rank_scores(rows)
            told = render_markdown(ranks) if width is None else render_columns(ranks, width)
            click.echo(f"\n{told}")
    changed = sorted({row.preset for row in rows if CHANGES in row.preset})
    for preset in changed:
        say(f"* {preset}")
    say(f"{len(rows)} rows in {typed.out}, with all columns and metrics")
    if typed.html is not None:
        write_atomically(typed.html, render_rows(rows).encode())
        click.echo(f"page in {typed.html}", err=True)


if __name__ == "__main__":
    main()
