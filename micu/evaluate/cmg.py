"""Task `cmg`: closed-set cross-modal generalisation (tables 3 and 8 of the paper).

Either one class per clip (AVE, UCF↔VGGSound), or with `--localise` which class is there in which
second (AVVP, AVE→AVVP).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from micu.errors import ConfigError
from micu.evaluate.encoders import ClipEncoder, check_same_space
from micu.evaluate.evaluation import TASKS, Evaluation, make_row
from micu.evaluate.leaks import EPOCH_ON_TEST
from micu.evaluate.localization import run_localization
from micu.evaluate.metrics import Floats, Ints
from micu.evaluate.probe import predict_logits
from micu.evaluate.report import Row
from micu.evaluate.splits import PAPER, OpenSetSplit
from micu.evaluate.thresholds import choose_epoch
from micu.manifest import Clip


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
    rows = [row for job in evaluation.jobs() for row in _evaluate_job(evaluation, *job)]
    if evaluation.with_chance:
        for source, target in evaluation.pairs:
            rows += evaluation.each_protocol(
                lambda protocol, s=source, t=target: _chance_rows(evaluation, protocol, s, t)  # type: ignore[misc]
            )
    return rows


def _split(
    evaluation: Evaluation, protocol: str, source: str, target: str, *, ceiling: bool = False
) -> OpenSetSplit:
    """Clips of known classes; every class that appears is known if none are named."""
    rules = evaluation.rules(protocol, closed=True)
    if evaluation.localise:
        rules = replace(
            rules,
            source_classes=partial(events_of, evaluation.known, source),
            target_classes=partial(events_of, evaluation.known, target),
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
    known = evaluation.known or tuple(dict.fromkeys(found))
    return evaluation.split(rules, known, source, target, ceiling=ceiling)


def events_of(known: tuple[str, ...], modality: str, clip: Clip) -> tuple[str, ...]:
    """Classes of a clip's events in a modality, those that are known."""
    labels = dict.fromkeys(event.label for event in clip.events_in(modality))
    return tuple(label for label in labels if not known or label in known)


def _evaluate_job(evaluation: Evaluation, name: str, source: str, target: str) -> list[Row]:
    if name == "ceiling" and evaluation.localise:
        return []
    encoder, target_encoder = evaluation.readers(name)

    def rows_of(protocol: str) -> list[Row]:
        split = _split(evaluation, protocol, source, target, ceiling=name == "ceiling")
        evaluation.tell(evaluation.describe(protocol, name, source, target, split))
        values, note = (_localise if evaluation.localise else _classify)(
            evaluation, protocol, encoder, target_encoder, split, source, target
        )
        chosen = (EPOCH_ON_TEST,) if protocol == PAPER else ()
        return [
            make_row(
                evaluation,
                task="cmg",
                protocol=protocol,
                method=name,
                train=source,
                test=target,
                threshold_source="none",
                metric=metric,
                value=value,
                n_clips=len(split.test),
                probe=_describe_probe(evaluation, encoder),
                features=(source, target),
                leaks=evaluation.leaks(name, split, *chosen),
                note=note,
            )
            for metric, value in values.items()
        ]

    return evaluation.each_protocol(rows_of)


Values = tuple[Mapping[str, float], str]
"""Metrics by name, and how the epoch was chosen."""


def _classify(
    evaluation: Evaluation,
    protocol: str,
    encoder: ClipEncoder,
    target_encoder: ClipEncoder,
    split: OpenSetSplit,
    source: str,
    target: str,
) -> Values:
    """Top-1 accuracy, over clips as published and over classes."""
    check_same_space(encoder, source, target_encoder, target)
    train, validation, test = (
        reader.encode(modality, [clip.clip_id for clip in clips]).to(encoder.device)
        for reader, modality, clips in (
            (encoder, source, split.train),
            (encoder, source, split.validation or split.train[:1]),
            (target_encoder, target, split.test),
        )
    )
    on_validation: list[Floats] = []
    on_test: list[Floats] = []
    labels = torch.from_numpy(split.labels(split.train))
    for probe in encoder.train_probe(
        train, labels, len(split.known), evaluation.probe, evaluation.seed
    ):
        on_validation.append(predict_logits(probe, validation))
        on_test.append(predict_logits(probe, test))
    tested = split.labels(split.test)
    if protocol == PAPER:
        epoch = max(range(len(on_test)), key=lambda i: (_accuracy(on_test[i], tested), -i))
    else:
        epoch = choose_epoch(on_validation, split.labels(split.validation))
    right = on_test[epoch].argmax(-1) == tested
    by_class = [right[tested == label].mean() for label in np.unique(tested)]
    values = {
        "acc": float(right.mean()),
        "acc_class_mean": float(np.mean(by_class)),
        "probe": epoch + 1.0,
    }
    return values, _tell_epoch(protocol, split, epoch, len(on_test))


def _accuracy(logits: Floats, labels: Ints) -> float:
    return float((logits.argmax(-1) == labels).mean())


def _localise(
    evaluation: Evaluation,
    protocol: str,
    encoder: ClipEncoder,
    target_encoder: ClipEncoder,
    split: OpenSetSplit,
    source: str,
    target: str,
) -> Values:
    """Precision, recall and F1 over seconds: as published, or micro without background."""
    published = protocol == PAPER
    located = run_localization(
        encoder,
        target_encoder,
        split,
        source,
        target,
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


def _describe_probe(evaluation: Evaluation, encoder: ClipEncoder) -> str:
    if evaluation.localise:
        return f"localisation {evaluation.probe.describe()}"
    return encoder.describe_probe(evaluation.probe)


def _chance_rows(evaluation: Evaluation, protocol: str, source: str, target: str) -> list[Row]:
    split = _split(evaluation, protocol, source, target)
    return [
        make_row(
            evaluation,
            task="cmg",
            protocol=protocol,
            method="chance",
            train=source,
            test=target,
            threshold_source="none",
            metric=metric,
            value=1 / len(split.known),
            n_clips=len(split.test),
            features=(source, target),
            leaks=evaluation.leaks("chance", split),
            note="uniform guesses",
        )
        for metric in ("acc", "acc_class_mean")
    ]
