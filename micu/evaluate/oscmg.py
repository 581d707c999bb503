"""Task `oscmg`: open-set cross-modal generalisation (tables 2, 5, 6 and 7 of the paper)."""

from dataclasses import dataclass, replace

from micu.base.errors import ConfigError
from micu.evaluate.details import write_details
from micu.evaluate.evaluation import PERCEIVABLE, TASKS, Evaluation, Trial, trial_rows
from micu.evaluate.leaks import EPOCH_ON_TEST, THRESHOLD_ON_TEST
from micu.evaluate.metrics import open_set_metrics
from micu.evaluate.open_set import OpenSetResult, chance, run_oscmg, scores_for, thresholds_for
from micu.evaluate.report import Row
from micu.evaluate.splits import DIAGNOSTIC, PAPER, OpenSetSplit
from micu.evaluate.thresholds import ON_TEST, ORACLE, ORACLE_AT_SOURCE_EPOCH


@TASKS.register("oscmg")
def evaluate_open_set(evaluation: Evaluation) -> list[Row]:
    """Open-set cross-modal generalisation; see `micu.evaluate.open_set`.

    Where both protocols have the same clips, one training of the probe serves both.

    Raises:
        ConfigError: No known classes, or no pair of modalities was given.
        ManifestError: A set of clips would be empty.
    """
    if len(evaluation.known_classes) < 2 or not evaluation.pairs:
        known, pairs = len(evaluation.known_classes), ", ".join(map(":".join, evaluation.pairs))
        raise ConfigError(
            "oscmg needs --known CSV with at least two classes (column label), and --source and "
            f"--target, or --pairs v:a,a:v; got {known or 'no'} known classes and the pairs "
            f"{pairs or 'none'}"
        )
    return evaluation.evaluate_jobs(_plan, _evaluate_trial, _chance_rows)


def _split(evaluation: Evaluation, protocol: str, trial: Trial) -> OpenSetSplit:
    return evaluation.split(evaluation.rules(protocol), evaluation.known_classes, trial)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one protocol does for a trial."""

    split: OpenSetSplit
    origins: tuple[str, ...]
    """Of thresholds."""
    scores: tuple[str, ...]


def _plan(evaluation: Evaluation, protocol: str, trial: Trial) -> _Plan:
    """What will be done; nothing is trained or encoded.

    Raises:
        ConfigError: The score cannot be.
        ManifestError: A set of clips would be empty, or no threshold can be had from them.
    """
    split = _split(evaluation, protocol, trial)
    scores, without = scores_for(trial.encoder, split, trial.source, trial.target, evaluation.score)
    origins: tuple[str, ...] = (ORACLE,)
    if protocol != PAPER:
        origins, no_threshold = thresholds_for(
            split, trial.source, trial.target, evaluation.thresholds, scores
        )
        without += no_threshold
    if not split.has_unknown:
        evaluation.tell_once(
            f"{trial.source} → {trial.target}: every test clip is of a known class, so that "
            "nothing tells known from unknown ones: UNK, HOS and AUROC will be empty. Leave some "
            "classes out of --known, or type micu-eval cmg for the closed set"
        )
    for reason in without:
        evaluation.tell_once(f"{trial.told()}: left out: {reason}")
    return _Plan(split, origins, scores)


def _evaluate_trial(evaluation: Evaluation, trial: Trial) -> list[Row]:
    """Both protocols of one encoder and pair."""
    trained: list[tuple[OpenSetSplit, list[OpenSetResult]]] = []

    def rows_of(protocol: str) -> list[Row]:
        plan = _plan(evaluation, protocol, trial)
        split = plan.split
        outcomes = next((found for known, found in trained if known.trains_as(split)), None)
        if outcomes is None:
            evaluation.tell(evaluation.describe(protocol, trial, split))
            also = (ORACLE,) if PAPER in evaluation.protocols and protocol != PAPER else ()
            outcomes = run_oscmg(
                trial.encoder,
                split,
                trial.source,
                trial.target,
                config=evaluation.probe,
                seed=evaluation.seed,
                scores=plan.scores,
                thresholds=(*plan.origins, *also),
                target_encoder=trial.target_encoder,
            )
            trained.append((split, outcomes))
        rows: list[Row] = []
        for outcome in outcomes:
            if outcome.threshold_source in plan.origins:
                rows += _outcome_rows(evaluation, protocol, trial, split, outcome)
                if evaluation.details is not None:
                    write_details(evaluation.details, outcome.details, rows[-1].shared())
        return rows

    return evaluation.each_protocol(rows_of)


def _outcome_rows(
    evaluation: Evaluation, protocol: str, trial: Trial, split: OpenSetSplit, outcome: OpenSetResult
) -> list[Row]:
    values, undefined = outcome.metrics.values(), dict(outcome.metrics.undefined)
    own, clips = split.perceivable(trial.target), outcome.details
    if own is not None:
        part = open_set_metrics(
            clips.logits[own], clips.labels[own], clips.threshold, clips.known_score[own]
        )
        rates = {name: value for name, value in part.values().items() if name != "threshold"}
        values |= {f"{name}{PERCEIVABLE}": value for name, value in rates.items()}
        undefined |= {f"{name}{PERCEIVABLE}": why for name, why in part.undefined.items()}
    values["probe"] = outcome.epoch + 1.0
    on_test = [THRESHOLD_ON_TEST] if outcome.threshold_source in ON_TEST else []
    on_test += [EPOCH_ON_TEST] if outcome.threshold_source == ORACLE else []
    if outcome.threshold_source == ORACLE_AT_SOURCE_EPOCH:
        protocol = DIAGNOSTIC
    rows = trial_rows(
        evaluation,
        "oscmg",
        trial,
        protocol,
        split,
        values,
        outcome.note,
        notes=undefined,
        chosen=on_test,
        threshold_source=outcome.threshold_source,
        score=outcome.score,
        probe=trial.encoder.describe_probe(evaluation.probe),
    )
    if outcome.n_validation:
        accuracy, count = outcome.val_acc, outcome.n_validation
        rows.append(replace(rows[-1], metric="val_acc", value=accuracy, n_clips=count))
    return rows


def _chance_rows(evaluation: Evaluation, trial: Trial, protocol: str) -> list[Row]:
    split = _split(evaluation, protocol, trial)
    note = "expected for uniform guesses at the rate of rejection with the best HOS"
    values = chance(len(split.known))
    return trial_rows(evaluation, "oscmg", trial, protocol, split, values, note)
