"""Evaluation tasks by name: encoders and feature sets in, result rows out.

A task is a function that is registered here and takes an `Evaluation`; adding one is a function and
its `@TASKS.register` line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from micu.errors import ConfigError
from micu.evaluate.codebook import agreement, count_codes, write_codebook
from micu.evaluate.encoders import ClipEncoder, CodeEncoder
from micu.evaluate.open_set import OpenSetSplit, Outcome, chance, run_oscmg, split_clips
from micu.evaluate.probe import ProbeConfig
from micu.evaluate.report import Row
from micu.manifest import Manifest
from micu.registry import Registry
from micu.store import FeatureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Everything that a task is told."""

    manifest: Manifest
    stores: Mapping[str, FeatureStore]
    """By modality; at least those of `pairs`."""
    encoders: Sequence[ClipEncoder]
    ceiling: ClipEncoder | None
    """Trains the probe on the target modality, where asked for."""
    with_chance: bool
    seed: int
    """Of the probe, of what is held out and of untrained weights."""
    pairs: Sequence[tuple[str, str]]
    """(source, target) modalities."""
    known: tuple[str, ...]
    classes_sha256: str
    """Of the file that names the known classes."""
    probe: ProbeConfig
    score: str
    preset: str
    checkpoint_sha256: str
    codebook_path: Path | None
    """Where to write each code's counts."""
    tell: Callable[[str], None]
    """Takes a line about progress."""


TASKS: Registry[Callable[[Evaluation], list[Row]]] = Registry("task")


@TASKS.register("oscmg")
def evaluate_open_set(evaluation: Evaluation) -> list[Row]:
    """Open-set cross-modal generalisation; see `micu.evaluate.open_set`.

    Raises:
        ConfigError: No known classes, or no pair of modalities was given.
        ManifestError: A set of clips would be empty.
    """
    if len(evaluation.known) < 2 or not evaluation.pairs:
        raise ConfigError(
            "oscmg needs --known CSV with at least two classes (column label), and --source and "
            "--target, or --pairs v:a,a:v"
        )
    rows: list[Row] = []
    jobs = [(encoder, *pair) for encoder in evaluation.encoders for pair in evaluation.pairs]
    if evaluation.ceiling is not None:
        targets = dict.fromkeys(target for _, target in evaluation.pairs)
        jobs += [(evaluation.ceiling, target, target) for target in targets]
    splits: dict[tuple[str, str], OpenSetSplit] = {}
    for encoder, source, target in jobs:
        if (source, target) not in splits:
            splits[source, target] = _split(evaluation, source, target)
        split = splits[source, target]
        evaluation.tell(
            f"seed {evaluation.seed}: {encoder.name} {source} → {target}: {len(split.train)} "
            f"training, {len(split.validation)} validation, {len(split.test)} test clips"
        )
        outcomes = run_oscmg(
            encoder,
            split,
            source,
            target,
            config=evaluation.probe,
            seed=evaluation.seed,
            score=evaluation.score,
        )
        for outcome in outcomes:
            rows += _outcome_rows(evaluation, encoder, source, target, outcome)
    if evaluation.with_chance:
        for source, target in evaluation.pairs:
            rows += _chance_rows(evaluation, source, target, len(splits[source, target].test))
    return rows


def _split(evaluation: Evaluation, source: str, target: str) -> OpenSetSplit:
    return split_clips(
        evaluation.manifest.clips,
        evaluation.known,
        source_ids=evaluation.stores[source],
        target_ids=evaluation.stores[target],
        seed=evaluation.seed,
    )


def _outcome_rows(
    evaluation: Evaluation, encoder: ClipEncoder, source: str, target: str, outcome: Outcome
) -> list[Row]:
    values = {**outcome.metrics.values(), "probe": outcome.epoch + 1.0}
    rows = [
        _row(
            evaluation,
            task="oscmg",
            method=encoder.name,
            train=source,
            test=target,
            threshold_source=outcome.threshold_source,
            metric=metric,
            value=value,
            n_clips=outcome.n_clips,
            score=evaluation.score,
            probe=encoder.describe_probe(evaluation.probe),
            features=(source, target),
            classes_sha256=evaluation.classes_sha256,
            note=outcome.metrics.undefined.get(metric, outcome.note),
        )
        for metric, value in values.items()
    ]
    validated = replace(
        rows[-1], metric="val_acc", value=outcome.val_acc, n_clips=outcome.n_validation
    )
    return [*rows, validated]


def _chance_rows(evaluation: Evaluation, source: str, target: str, tested: int) -> list[Row]:
    return [
        _row(
            evaluation,
            task="oscmg",
            method="chance",
            train=source,
            test=target,
            threshold_source="none",
            metric=metric,
            value=value,
            n_clips=tested,
            features=(source, target),
            classes_sha256=evaluation.classes_sha256,
            note="expected for uniform guesses at the rate of rejection with the best HOS",
        )
        for metric, value in chance(len(evaluation.known)).items()
    ]


@TASKS.register("codebook")
def evaluate_codebook(evaluation: Evaluation) -> list[Row]:
    """How the modalities use the codebook, over every clip that all of them have.

    Raises:
        ConfigError: An encoder has no codebook.
    """
    rows: list[Row] = []
    clips = [
        clip.clip_id
        for clip in evaluation.manifest.clips
        if all(clip.clip_id in store for store in evaluation.stores.values())
    ]
    for encoder in evaluation.encoders:
        if not isinstance(encoder, CodeEncoder):
            raise ConfigError(f"--task codebook: {encoder.name!r} has no codebook")
        encoded = {name: encoder.encode(name, clips) for name in evaluation.stores}
        use = count_codes(encoded, encoder.codebook_size)
        if evaluation.codebook_path is not None and encoder is evaluation.encoders[0]:
            write_codebook(use, evaluation.codebook_path)
            evaluation.tell(f"wrote {evaluation.codebook_path} ({encoder.name})")
        values: dict[tuple[str, str, str], float] = {
            ("", "", "used_by_all"): use.used_by_all(),
            **{("", "", f"shared_by_{n}"): share for n, share in use.shares().items()},
            **{("", name, "perplexity"): use.perplexity(name) for name in encoded},
            **{("", name, "active_codes"): float(use.active(name)) for name in encoded},
            **{(*pair, "agreement"): share for pair, share in agreement(encoded).items()},
        }
        rows += [
            _row(
                evaluation,
                task="codebook",
                method=encoder.name,
                train=first,
                test=second,
                threshold_source="none",
                metric=metric,
                value=value,
                n_clips=len(clips),
                features=tuple(evaluation.stores),
            )
            for (first, second, metric), value in values.items()
        ]
    return rows


def _row(
    evaluation: Evaluation,
    *,
    task: str,
    method: str,
    train: str,
    test: str,
    threshold_source: str,
    metric: str,
    value: float,
    n_clips: int,
    features: Sequence[str],
    score: str = "",
    probe: str = "",
    classes_sha256: str = "",
    note: str = "",
) -> Row:
    """A row with the provenance that all rows of an evaluation share.

    `features` are the modalities whose feature sets the number depends on. The checkpoint's hash
    and preset stay empty for methods that do not use them.
    """
    from_checkpoint = method == "checkpoint"
    has_model = from_checkpoint or method == "untrained"
    return Row(
        task=task,
        method=method,
        train_modality=train,
        test_modality=test,
        preset=evaluation.preset if has_model else "",
        seed=evaluation.seed,
        threshold_source=threshold_source,
        metric=metric,
        value=value,
        n_clips=n_clips,
        checkpoint_sha256=evaluation.checkpoint_sha256 if from_checkpoint else "",
        manifest_sha256=evaluation.manifest.sha256,
        classes_sha256=classes_sha256,
        score=score,
        probe=probe,
        features=" ".join(
            f"{name}:{store.spec.backbone}@{store.header.fingerprint[:12]}"
            for name, store in ((name, evaluation.stores[name]) for name in dict.fromkeys(features))
        ),
        note=note,
    )
