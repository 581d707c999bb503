"""What every evaluation task is told, what it gives, and the register of tasks.

A task is a function that is registered here and takes an `Evaluation`; adding one is a file with
its `@TASKS.register` line, and an import line in `micu.evaluate.tasks`. A plug-in's may be a frozen
dataclass that is called, whose fields are what `--set` sets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from micu.base.errors import ConfigError, ManifestError
from micu.base.registry import Registry
from micu.config.overrides import with_overrides
from micu.evaluate.encoders import FeatureEncoder, check_same_space
from micu.evaluate.leaks import CHECKPOINT_ON_TEST, Pretraining
from micu.evaluate.order import EvaluationOrder
from micu.evaluate.probe import ProbeConfig
from micu.evaluate.report import FROZEN, Row
from micu.evaluate.splits import (
    PAPER,
    TEST,
    TRAIN,
    OpenSetSplit,
    SplitRules,
    check_classes,
    parse_splits,
    split_clips,
)
from micu.evaluate.thresholds import ORACLE
from micu.evaluate.toc import ChannelChoice
from micu.store.manifest import Clip, Manifest
from micu.store.sets import FeatureStore
from micu.train.checkpoint import LoadedModel

CEILING = "ceiling"
"""The method whose probe is trained on the target modality."""
PERCEIVABLE = "_perceivable"
"""Ends the metrics of those test clips whose class can be perceived in the target modality."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the published script of a task and setting does that an evaluation may do otherwise.

    Source: the published scripts, whose defaults the paper's tables 2 to 8 rest on.
    """

    epochs: int
    """Of the probe, counted on from the checkpoint's."""
    test_splits: tuple[str, ...] = (TEST,)
    """Values of the manifest's `split`."""

    def departures(self, probe: ProbeConfig, test_splits: Sequence[str] | None) -> tuple[str, ...]:
        """In what an evaluation under `paper` is not as published, in words."""
        found = []
        if probe.epochs != self.epochs:
            found.append(f"{self.epochs} epochs of the probe")
        if not probe.epoch_offset:
            found.append("epochs counted on from the checkpoint's (--probe-epoch-offset)")
        if not probe.encoder_dropout:
            found.append("the encoder's dropout on while the probe trains")
        if test_splits != self.test_splits:
            found.append(f"tested on split {','.join(self.test_splits)}")
        return tuple(found)


_CLOSED = {
    "ave": Published(30, (TRAIN,)),
    "avvp": Published(30),
    "ave-avvp": Published(30),
    "ucf-vgg": Published(40),
}


def find_published(task: str, setting: str) -> Published | None:
    """What the script of a task and setting does; None where none was published, or none is named.

    Args:
        task: `oscmg` or `cmg`; others train no probe.
        setting: A name of `micu.report.paper.SETTINGS`.
    """
    if task == "cmg":
        return _CLOSED.get(setting)
    if task != "oscmg" or not setting:
        return None
    is_ucf = setting.startswith("ucf-") and not setting.startswith("ucf-vgg")
    return Published(16 if is_ucf else 25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A manifest, its features, and what encodes them."""

    manifest: Manifest
    clips: tuple[Clip, ...]
    """Of the manifest, classes named as in the class map."""
    stores: Mapping[str, FeatureStore]
    """By modality."""
    encoders: Mapping[str, FeatureEncoder]
    """By name: `checkpoint`, `untrained`, `input`, `ceiling`; those that were asked for."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One encoder, trained on one modality and tested on another."""

    method: str
    """Name of the encoder, `ceiling` or `chance`."""
    source: str
    target: str
    encoder: FeatureEncoder
    """Of the clips to train on."""
    target_encoder: FeatureEncoder
    """Of the clips to test on."""

    def told(self) -> str:
        """Its name in messages."""
        return f"{self.method} {self.source} → {self.target}"


@dataclass(frozen=True, kw_only=True)
class Evaluation(EvaluationOrder):
    """Everything that a task is told: what was typed, and what was found for it."""

    source: Side
    target: Side
    """The same object, unless a target manifest was given."""
    seed: int
    """Of the probe, of what is held out and of untrained weights."""
    known_classes: tuple[str, ...]
    """Named as in the class map; empty: every class."""
    classes_sha256: str
    """Of the file that names the known classes."""
    listed_classes: int
    """Names in that file, before the class map; 0 without one."""
    class_map_sha256: str
    """Of the file that joins names of classes; empty without one."""
    probe: ProbeConfig
    preset: str
    loaded: LoadedModel
    pretraining: Pretraining
    of_plugin: Sequence[str] = ()
    """Package and version of a plug-in's task, and its settings, as conditions of every row."""
    published: Published | None
    """What the published script of the setting does."""
    tell: Callable[[str], None]
    """Takes a line about progress."""
    _splits: dict[tuple[str, str, str, bool], OpenSetSplit] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def tell_once(self, line: str) -> None:
        """Tell a line that was not told before."""
        if line not in self._told:
            self._told.add(line)
            self.tell(line)

    def rules(self, protocol: str, **given: Any) -> SplitRules:
        """How clips are chosen under a protocol; `given` are the task's own fields."""
        trained, tested = parse_splits(self.train_splits), self._test_splits(protocol)
        return SplitRules(
            **{
                "protocol": protocol,
                "train_splits": (TRAIN,) if trained == () else trained,
                "test_splits": (TEST,) if tested == () else tested,
                "seen": self.pretraining.seen,
                **given,
            }
        )

    def _test_splits(self, protocol: str) -> tuple[str, ...] | None:
        """Those asked for, else those that `paper` has in this setting; () for the usual ones."""
        unusual = self.published and self.published.test_splits != (TEST,)
        asked = parse_splits(self.test_splits)
        if self.published and unusual and protocol == PAPER and asked == ():
            return self.published.test_splits
        return asked

    def departures(self, protocol: str, method: str) -> str:
        """In what a row under `paper` is not as published, to be added to its note."""
        has_probe = method in ("checkpoint", "untrained")
        if not self.published or not has_probe or protocol != PAPER:
            return ""
        tested = self._test_splits(protocol)
        found = self.published.departures(self.probe, tested if tested != () else (TEST,))
        return f"; published: {', '.join(found)}" if found else ""

    def told_splits(self, protocol: str) -> str:
        """Value of the column `splits`."""
        asked = {"train": parse_splits(self.train_splits), "test": self._test_splits(protocol)}
        return " ".join(
            f"{part}={'all' if names is None else ','.join(names)}"
            for part, names in asked.items()
            if names != ()
        )

    def conditions(self, method: str) -> Iterator[str]:
        """What the rows of a method depend on beside what has a column of its own."""
        if self.class_map_sha256:
            yield f"class-map:{self.class_map_sha256[:12]}"
        if self.toc is not None and method in ("checkpoint", "untrained"):
            yield f"toc:{ChannelChoice.parse(self.toc)}"
        if is_pretrained(method) and self.pretraining.manifest_sha256:
            yield f"pretraining:{self.pretraining.manifest_sha256[:12]}"
        if method == "checkpoint" and self.select_on:
            yield f"selected-on:{self.select_on}"
        yield from self.of_plugin

    def tell_splits(self) -> None:
        """Tell of a manifest that names no split, so that it is trained and tested on whole."""
        for manifest in dict.fromkeys(side.manifest for side in (self.source, self.target)):
            if self.source is self.target and not any(clip.split for clip in manifest.clips):
                self.tell_once(
                    f"{manifest.path} names no split: `clean` deals its clips to training and "
                    "test, `paper` trains and tests on the same ones and says so. With a column "
                    "split of train, val and test you decide that"
                )

    def split(self, rules: SplitRules, known: Sequence[str], trial: Trial) -> OpenSetSplit:
        """The clips of one protocol and pair; of the ceiling, all from the target manifest.

        Raises:
            ManifestError: A set of clips would be empty; the message names the trial.
        """
        source, target, is_ceiling = trial.source, trial.target, trial.method == CEILING
        key = (rules.protocol, source, target, is_ceiling)
        if key not in self._splits:
            side = self.target if is_ceiling else self.source
            try:
                split = split_clips(
                    side.clips,
                    known,
                    source_ids=side.stores[source],
                    target_ids=self.target.stores[target],
                    seed=self.seed,
                    targets=None if side is self.target else self.target.clips,
                    paired_ids=side.stores.get(target, ()),
                    rules=rules,
                )
                self._splits[key] = check_classes(split, rules)
            except ManifestError as error:
                raise ManifestError(f"{trial.told()}, {rules.protocol}: {error}") from error
        self._tell_twins(known)
        return self._splits[key]

    def _tell_twins(self, known: Sequence[str]) -> None:
        """Tell of classes that count as unknown, but are known ones in another case."""
        folded = {name.casefold(): name for name in known}
        labels = {clip.label for side in (self.source, self.target) for clip in side.clips}
        for label in sorted(labels - {*known}):
            if label.casefold() in folded:
                self.tell_once(
                    f"{label!r} counts as unknown, {folded[label.casefold()]!r} is known: they "
                    "differ in case alone; mend the manifest, or join them by --class-map"
                )

    def each_protocol(self, make: Callable[[str], list[Row]]) -> list[Row]:
        """The rows of every protocol; where two are asked for, one that cannot be is told of.

        Raises:
            ManifestError: No protocol can be.
        """
        rows: list[Row] = []
        problems: list[ManifestError] = []
        for protocol in self.protocols:
            try:
                rows += make(protocol)
            except ManifestError as error:
                problems.append(error)
        if len(problems) == len(self.protocols):
            raise problems[0]
        for problem in problems:
            self.tell(f"not under the other protocol: {problem}")
        return rows

    def trials(self) -> Iterator[Trial]:
        """Every probe that is to be trained, those of the ceiling last."""
        for name in self.encoders:
            for source, target in self.pairs:
                encoders = self.source.encoders[name], self.target.encoders[name]
                yield Trial(name, source, target, *encoders)
        if self.ceiling:
            ceiling = self.target.encoders[CEILING]
            for target in dict.fromkeys(target for _, target in self.pairs):
                yield Trial(CEILING, target, target, ceiling, ceiling)

    def possible_trials(self, plan: Callable[["Evaluation", str, Trial], object]) -> list[Trial]:
        """The trials, each of which can be under one protocol or more.

        A ceiling for which there are no clips is told of, and left out: source and target modality
        may be those of two data sets.

        Raises:
            ConfigError: A trial cannot be as it was asked for.
            ManifestError: There are not the clips for another trial under any protocol.
        """
        trials: list[Trial] = []
        for trial in self.trials():
            check_same_space(trial.encoder, trial.source, trial.target_encoder, trial.target)
            problems: list[ManifestError] = []
            for protocol in self.protocols:
                try:
                    plan(self, protocol, trial)
                except ManifestError as error:
                    problems.append(error)
            if len(problems) < len(self.protocols):
                trials.append(trial)
            elif trial.method == CEILING:
                self.tell(f"left out: {problems[0]}")
            else:
                raise problems[0]
        return trials

    def evaluate_jobs(
        self,
        plan: Callable[["Evaluation", str, Trial], object],
        evaluate: Callable[["Evaluation", Trial], list[Row]],
        guess: Callable[["Evaluation", Trial, str], list[Row]],
    ) -> list[Row]:
        """The rows of every trial, and of guessing where that was asked for.

        All of them are planned before the first is trained.

        Args:
            plan: Makes the sets of clips of a protocol and trial, and checks what was asked.
            evaluate: Gives the rows of a trial under every protocol.
            guess: Gives those of guessing, for a pair and a protocol.
        """
        trials = self.possible_trials(plan)
        self.tell_splits()
        rows = [row for trial in trials for row in evaluate(self, trial)]
        if self.chance:
            for trial in trials:
                if trial.method == self.encoders[0]:
                    rows += self.each_protocol(
                        partial(guess, self, replace(trial, method="chance"))
                    )
        return rows

    def describe(self, protocol: str, trial: Trial, split: OpenSetSplit) -> str:
        """A line about the training that begins."""
        validation = f"{len(split.validation)} validation, " if split.validation else ""
        sides = {"training": trial.source, "test": trial.target}
        lacking = [
            f"{count} more {part} clips lack {sides[part]} features"
            for part, count in split.lacking.items()
            if count
        ]
        return "; ".join(
            (
                f"seed {self.seed}: {trial.told()}, {protocol}: "
                f"{len(split.train)} training, {validation}{len(split.test)} test clips",
                *lacking,
                *filter(None, [split.note]),
            )
        )

    def leaks(self, method: str, split: OpenSetSplit, *chosen: str) -> str:
        """Value of the column `leaks`; `chosen` says how epoch and threshold were."""
        if method == "checkpoint":
            selected = (CHECKPOINT_ON_TEST,) if self.select_on == ORACLE else ()
            chosen = (*chosen, *selected)
        pretrained = self.pretraining.leaks(split.test) if is_pretrained(method) else ()
        return ";".join((*chosen, *split.leaks, *pretrained))


def is_pretrained(method: str) -> bool:
    """Whether a method has seen clips before: a checkpoint, or a frozen encoder."""
    return method == "checkpoint" or method.startswith(FROZEN)


TASKS: Registry[Callable[[Evaluation], list[Row]]] = Registry("task", "micu.tasks", ("__call__",))


def choose_task(
    name: str, settings: Sequence[str]
) -> tuple[Callable[[Evaluation], list[Row]], list[str]]:
    """A task with its settings, and what its rows say of a plug-in.

    Args:
        name: Of the task.
        settings: `KEY=VALUE`.

    Raises:
        RegistryError: There is no such task.
        ConfigError: It has no such setting.
    """
    task: Any = TASKS[name]
    values: dict[str, Any] = {}
    if is_dataclass(task):
        task = with_overrides(task, settings)
        values = asdict(task)
    elif settings:
        raise ConfigError(f"--set {settings[0]}: {name} has no settings; leave it out")
    made = {**dict(filter(None, [TASKS.makers.get(name)])), **values}
    return task, [f"{key}:{value}" for key, value in made.items()]


def make_row(
    evaluation: Evaluation,
    *,
    method: str,
    train: str,
    test: str,
    features: Sequence[str],
    protocol: str = "",
    note: str = "",
    measured_with: str = "",
    **given: Any,
) -> Row:
    """A row with the provenance that all rows of an evaluation share.

    `features` are the modalities whose feature sets the number depends on, the last one that of the
    target manifest. The checkpoint's hash and preset stay empty for methods that do not use them.
    `measured_with` are conditions of the task's own.
    """
    from_checkpoint = method == "checkpoint"
    has_model = from_checkpoint or method == "untrained"
    source, target = evaluation.source, evaluation.target
    stores = {name: source.stores[name] for name in features if name in source.stores}
    if features and target is not source:
        stores[features[-1]] = target.stores[features[-1]]
    manifests = dict.fromkeys((source.manifest.sha256, target.manifest.sha256))
    return Row(
        method=method,
        train_modality=train,
        test_modality=test,
        preset=evaluation.preset if has_model else "",
        seed=evaluation.seed,
        checkpoint_sha256=evaluation.loaded.sha256 if from_checkpoint else "",
        manifest_sha256=" ".join(manifests),
        classes_sha256=evaluation.classes_sha256,
        known_classes=evaluation.listed_classes,
        class_list=evaluation.known.stem if evaluation.known else "",
        setting=evaluation.setting,
        splits=evaluation.told_splits(protocol),
        protocol=protocol,
        note=note + evaluation.departures(protocol, method),
        conditions=" ".join((*evaluation.conditions(method), *measured_with.split())),
        features=" ".join(
            f"{name}:{store.spec.backbone}@{store.spec.making[:12]}"
            for name, store in stores.items()
        ),
        **given,
    )


def trial_rows(
    evaluation: Evaluation,
    task: str,
    trial: Trial,
    protocol: str,
    split: OpenSetSplit,
    values: Mapping[str, float],
    note: str,
    *,
    notes: Mapping[str, str] = MappingProxyType({}),
    chosen: Sequence[str] = (),
    threshold_source: str = "none",
    **given: Any,
) -> list[Row]:
    """A row for each of the values that a trial has, by metric.

    `notes` stand in the place of `note`, by metric; metrics of perceivable clips have the number
    of these. `chosen` says how epoch and threshold were, if
    that leaks.
    """
    own = split.perceivable(trial.target)
    perceivable = 0 if own is None else int(own.sum())
    return [
        make_row(
            evaluation,
            task=task,
            protocol=protocol,
            method=trial.method,
            train=trial.source,
            test=trial.target,
            threshold_source=threshold_source,
            metric=metric,
            value=value,
            n_clips=perceivable if metric.endswith(PERCEIVABLE) else len(split.test),
            n_lacking=split.lacking.get("test", 0),
            test_sha256=split.test_sha256,
            features=(trial.source, trial.target),
            leaks=evaluation.leaks(trial.method, split, *chosen),
            note=notes.get(metric, note),
            **given,
        )
        for metric, value in values.items()
    ]
