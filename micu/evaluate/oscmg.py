"""Task `oscmg`: open-set cross-modal generalisation (tables 2, 5, 6 and 7 of the paper)."""

from micu.errors import ConfigError
from micu.evaluate.details import write_details
from micu.evaluate.evaluation import TASKS, Evaluation, make_row
from micu.evaluate.leaks import EPOCH_ON_TEST, THRESHOLD_ON_TEST
from micu.evaluate.open_set import Outcome, chance, run_oscmg, scores_for
from micu.evaluate.report import Row
from micu.evaluate.splits import PAPER, OpenSetSplit
from micu.evaluate.thresholds import ORACLE


@TASKS.register("oscmg")
def evaluate_open_set(evaluation: Evaluation) -> list[Row]:
    """Open-set cross-modal generalisation; see `micu.evaluate.open_set`.

    Where both protocols have the same clips, one training of the probe serves both.

    Raises:
        ConfigError: No known classes, or no pair of modalities was given.
        ManifestError: A set of clips would be empty.
    """
    if len(evaluation.known) < 2 or not evaluation.pairs:
        raise ConfigError(
            "oscmg needs --known CSV with at least two classes (column label), and --source and "
            "--target, or --pairs v:a,a:v"
        )
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
    rules = evaluation.rules(protocol)
    return evaluation.split(rules, evaluation.known, source, target, ceiling=ceiling)


def _evaluate_job(evaluation: Evaluation, name: str, source: str, target: str) -> list[Row]:
    """Both protocols of one encoder and pair."""
    encoder, target_encoder = evaluation.readers(name)
    trained: list[tuple[OpenSetSplit, list[Outcome]]] = []

    def rows_of(protocol: str) -> list[Row]:
        split = _split(evaluation, protocol, source, target, ceiling=name == "ceiling")
        origins = (ORACLE,) if protocol == PAPER else tuple(evaluation.thresholds)
        outcomes = next((found for known, found in trained if known.trains_as(split)), None)
        if outcomes is None:
            evaluation.tell(evaluation.describe(protocol, name, source, target, split))
            also = (ORACLE,) if PAPER in evaluation.protocols and protocol != PAPER else ()
            outcomes = run_oscmg(
                encoder,
                split,
                source,
                target,
                config=evaluation.probe,
                seed=evaluation.seed,
                scores=scores_for(encoder, evaluation.score),
                thresholds=(*origins, *also),
                target_encoder=target_encoder,
            )
            trained.append((split, outcomes))
        rows: list[Row] = []
        for outcome in outcomes:
            if outcome.threshold_source in origins:
                rows += _outcome_rows(evaluation, protocol, name, split, source, target, outcome)
                if evaluation.details is not None:
                    write_details(evaluation.details, outcome.details, rows[-1].shared())
        return rows

    return evaluation.each_protocol(rows_of)


def _outcome_rows(
    evaluation: Evaluation,
    protocol: str,
    name: str,
    split: OpenSetSplit,
    source: str,
    target: str,
    outcome: Outcome,
) -> list[Row]:
    values = {**outcome.metrics.values(), "probe": outcome.epoch + 1.0}
    on_test = (THRESHOLD_ON_TEST, EPOCH_ON_TEST) if outcome.threshold_source == ORACLE else ()
    encoder, _ = evaluation.readers(name)
    return [
        make_row(
            evaluation,
            task="oscmg",
            protocol=protocol,
            method=name,
            train=source,
            test=target,
            threshold_source=outcome.threshold_source,
            metric=metric,
            value=value,
            n_clips=outcome.n_clips,
            score=outcome.score,
            probe=encoder.describe_probe(evaluation.probe),
            features=(source, target),
            leaks=evaluation.leaks(name, split, *on_test),
            note=outcome.metrics.undefined.get(metric, outcome.note),
        )
        for metric, value in values.items()
    ]


def _chance_rows(evaluation: Evaluation, protocol: str, source: str, target: str) -> list[Row]:
    split = _split(evaluation, protocol, source, target)
    return [
        make_row(
            evaluation,
            task="oscmg",
            protocol=protocol,
            method="chance",
            train=source,
            test=target,
            threshold_source="none",
            metric=metric,
            value=value,
            n_clips=len(split.test),
            features=(source, target),
            leaks=evaluation.leaks("chance", split),
            note="expected for uniform guesses at the rate of rejection with the best HOS",
        )
        for metric, value in chance(len(split.known)).items()
    ]
