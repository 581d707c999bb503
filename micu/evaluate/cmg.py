"""Task `cmg`: closed-set cross-modal generalisation (tables 3 and 8 of the paper).

Either one class per clip (AVE, UCF↔VGGSound), or with `--localise` which class is there in which
second (AVVP, AVE→AVVP).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from micu.base.errors import ConfigError
from micu.evaluate.encoders import check_same_space
from micu.evaluate.evaluation import PERCEIVABLE, TASKS, Evaluation, Trial, trial_rows
from micu.evaluate.leaks import EPOCH_ON_TEST
from micu.evaluate.localization import run_localization
from micu.evaluate.metrics import Floats, class_mean
from micu.evaluate.probe import predict
from micu.evaluate.report import Row
from micu.evaluate.splits import PAPER, OpenSetSplit
from micu.evaluate.thresholds import choose_epoch
from micu.store.manifest import Clip


@TASKS.register("cmg")
def evaluate_closed_set(evaluation: Evaluation) -> list[Row]:
    """A probe of the source modality's clips, tested on the target modality's; known classes only.

    Under `paper` the epoch is the best one on the test clips. The published AVE script tests on the
    training clips in the other modality: that is `--test-splits train`.

    Raises:
        ConfigError: No pair of modalities was given, or there is one class.
        ManifestError: A set of clips would be empty.
    """
    if not evaluation.pairs:
        raise ConfigError("cmg needs --source and --target, or --pairs v:a,a:v")
    return evaluation.evaluate_jobs(_split, _evaluate_trial, _chance_rows)


def _split(evaluation: Evaluation, protocol: str, trial: Trial) -> OpenSetSplit:
    """Clips of known classes; every class that appears is known if none are named."""
    rules = evaluation.rules(protocol, closed=True)
    if evaluation.localise:
        rules = replace(
            rules,
            fewest_classes=1,
            source_classes=partial(events_of, evaluation.known_classes, trial.source),
            target_classes=partial(events_of, evaluation.known_classes, trial.target),
        )
    found = (
        name
        for side, classes in (
            (evaluation.source, rules.source_classes),
            (evaluation.target, rules.target_classes),
        )
        for clip in side.clips
        for name in classes(clip)
    )
    known = evaluation.known_classes or tuple(dict.fromkeys(found))
    return evaluation.split(rules, known, trial)


def events_of(known: tuple[str, ...], modality: str, clip: Clip) -> tuple[str, ...]:
    """Classes of a clip's events in a modality, those that are known."""
    labels = dict.fromkeys(event.label for event in clip.events_in(modality))
    return tuple(label for label in labels if not known or label in known)


def _evaluate_trial(evaluation: Evaluation, trial: Trial) -> list[Row]:
    run = _localise if evaluation.localise else _classify
    if evaluation.localise:
        probe = f"localisation {evaluation.probe.describe()}"
    else:
        probe = trial.encoder.describe_probe(evaluation.probe)

    def rows_of(protocol: str) -> list[Row]:
        split = _split(evaluation, protocol, trial)
        evaluation.tell(evaluation.describe(protocol, trial, split))
        values, note = run(evaluation, protocol, trial, split)
        chosen = (EPOCH_ON_TEST,) if protocol == PAPER else ()
        return trial_rows(
            evaluation, "cmg", trial, protocol, split, values, note, chosen=chosen, probe=probe
        )

    return evaluation.each_protocol(rows_of)


Values = tuple[Mapping[str, float], str]
"""Metrics by name, and how the epoch was chosen."""


def _classify(evaluation: Evaluation, protocol: str, trial: Trial, split: OpenSetSplit) -> Values:
    """Top-1 accuracy, over clips as published and over classes; of perceivable clips, too."""
    encoder = trial.encoder
    check_same_space(encoder, trial.source, trial.target_encoder, trial.target)
    train, validation, test = (
        reader.encode(modality, [clip.clip_id for clip in clips]).to(encoder.device)
        for reader, modality, clips in (
            (encoder, trial.source, split.train),
            (encoder, trial.source, split.validation),
            (trial.target_encoder, trial.target, split.test),
        )
    )
    on_validation: list[Floats] = []
    on_test: list[Floats] = []
    labels = torch.from_numpy(split.labels(split.train))
    for probe in encoder.train_probe(
        train, labels, len(split.known), evaluation.probe, evaluation.seed
    ):
        if split.validation:
            on_validation.append(predict(probe, validation).logits)
        on_test.append(predict(probe, test).logits)
    tested = split.labels(split.test)
    if protocol == PAPER:
        accuracies = [float((logits.argmax(-1) == tested).mean()) for logits in on_test]
        epoch = accuracies.index(max(accuracies))
    else:
        epoch = choose_epoch(on_validation, split.labels(split.validation))
    right = on_test[epoch].argmax(-1) == tested
    values = {
        "acc": float(right.mean()),
        "acc_class_mean": class_mean(right, tested),
        "probe": epoch + 1.0,
    }
    own = split.perceivable(trial.target)
    if own is not None:
        values |= {
            f"acc{PERCEIVABLE}": float(right[own].mean()),
            f"acc_class_mean{PERCEIVABLE}": class_mean(right[own], tested[own]),
        }
    return values, _tell_epoch(protocol, split, epoch, len(on_test))


def _localise(evaluation: Evaluation, protocol: str, trial: Trial, split: OpenSetSplit) -> Values:
    """Precision, recall and F1 over seconds: as published, or micro without background."""
    published = protocol == PAPER
    steps = evaluation.loaded.config.data.steps
    late = sum(event.onset_s >= steps for c in split.test for event in c.events_in(trial.target))
    if late:
        evaluation.tell_once(
            f"{late} events of the test clips begin after the {steps} seconds that the model "
            "reads (data.steps): they are not looked for"
        )
    located = run_localization(
        trial.encoder,
        trial.target_encoder,
        split,
        trial.source,
        trial.target,
        config=evaluation.probe,
        seed=evaluation.seed,
        published=published,
    )
    kind = "" if published else "_micro"
    values = {
        f"f1{kind}": located.found.f1,
        f"precision{kind}": located.found.precision,
        f"recall{kind}": located.found.recall,
        "probe": located.epoch + 1.0,
    }
    return values, _tell_epoch(protocol, split, located.epoch, located.probes)


def _tell_epoch(protocol: str, split: OpenSetSplit, epoch: int, probes: int) -> str:
    if protocol == PAPER:
        return f"probe {epoch + 1} of {probes}, the best on the test set"
    origin = "held-out training clips" if split.held_out else "split 'val' of the manifest"
    told = f"probe {epoch + 1} of {probes}, the best on {len(split.validation)} source clips"
    return "; ".join(filter(None, (f"{told} ({origin})", split.note)))


def _chance_rows(evaluation: Evaluation, trial: Trial, protocol: str) -> list[Row]:
    split = _split(evaluation, protocol, trial)
    values = dict.fromkeys(("acc", "acc_class_mean"), 1 / len(split.known))
    return trial_rows(evaluation, "cmg", trial, protocol, split, values, "uniform guesses")
