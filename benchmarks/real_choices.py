"""What can be chosen without a label of the test: a threshold, and the setting of a method.

Every rule for a threshold is laid on the same answers, at the epoch that source validation chose,
so that only the threshold differs. Rules are grouped by what a user has: source clips alone,
unlabelled pairs, the unlabelled test clips, pairs whose class is known.

Sources: half of the largest entropy from Saito et al., NeurIPS 2020; one half as the least
probability from Hendrycks and Gimpel, ICLR 2017, read as a threshold; Otsu, IEEE SMC 1979; a
mixture of two normals as in open-set domain adaptation. Leaving known classes out, and agreement
over pairs, are ours.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.real_answers import Answers
from benchmarks.real_power import measure
from micu.evaluate.markdown import TextTable, render_markdown
from micu.evaluate.metrics import (
    UNKNOWN,
    Floats,
    accept_rates,
    harmonic_mean,
    softmax,
)
from micu.evaluate.thresholds import (
    best_threshold,
    leave_classes_out,
    pick_threshold,
    transfer_threshold,
)


def surest(logits: Floats) -> Floats:
    """The largest probability, (n,)."""
    result: Floats = softmax(logits).max(-1)
    return result


def certainty(logits: Floats) -> Floats:
    """One minus the entropy as a share of the largest, (n,)."""
    chances = np.maximum(softmax(logits), 1e-300)
    result: Floats = 1 + (chances * np.log(chances)).sum(-1) / np.log(logits.shape[1])
    return result


# --- thresholds ------------------------------------------------------------------------------


def best_on_test(answers: Answers) -> float:
    """The threshold with the best HOS of all on the test clips themselves."""
    scores, known = surest(answers.test), answers.test_labels != UNKNOWN
    right = answers.test.argmax(-1) == answers.test_labels
    return best_threshold(scores[known], scores[right], scores[~known])


def otsu(scores: Floats) -> float:
    """The threshold between two groups of scores that leaves the least variance within them."""
    ordered = np.sort(scores)
    sums, count = np.cumsum(ordered), len(ordered)
    below = np.arange(1, count)
    means = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    between = below * (count - below) * (means[1] - means[0]) ** 2
    return float(ordered[int(np.argmax(between)) + 1])


def two_normals(scores: Floats) -> float:
    """The lowest score that the upper one of two normal distributions explains better."""
    from sklearn.mixture import GaussianMixture

    fitted = GaussianMixture(2, random_state=0).fit(scores[:, None])
    upper = int(np.argmax(fitted.means_))
    accepted = scores[fitted.predict(scores[:, None]) == upper]
    above = accepted[accepted >= fitted.means_.min()]
    return float(above.min()) if len(above) else float(scores.max())


def agreed(source: Floats, target: Floats, threshold: float) -> float:
    """The threshold by which the target accepts the pairs that the source accepts, as a rule.

    That with the highest mean of the agreement on those accepted and on those rejected.
    """
    accepted = source >= threshold
    if accepted.all() or not accepted.any():
        return transfer_threshold(threshold, source, target)
    levels = np.unique(target)
    agreement = [(target >= t)[accepted].mean() + (target < t)[~accepted].mean() for t in levels]
    return float(levels[int(np.argmax(agreement))])


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to a threshold."""

    title: str
    has: str
    """What a user has who can take it."""
    choose: Callable[[Answers], float]
    score: Callable[[Floats], Floats] = surest


def _carried(answers: Answers, threshold: float) -> float:
    return transfer_threshold(threshold, surest(answers.pairs_source), surest(answers.pairs_target))


def _of_source(answers: Answers) -> float:
    return pick_threshold(surest(answers.validation))


SOURCE, PAIRS, BATCH, LABELLED = (
    "source clips alone", "unlabelled pairs", "the test clips, unlabelled", "labelled pairs"
)  # fmt: skip
RULES = (
    Rule("accepts 95 % of source validation (source-val)", SOURCE, _of_source),
    Rule("accepts 80 % of it", SOURCE, lambda a: float(np.quantile(surest(a.validation), 0.2))),
    Rule("accepts 50 % of it", SOURCE, lambda a: float(np.quantile(surest(a.validation), 0.5))),
    Rule("probability 1/2", SOURCE, lambda a: 0.5),
    Rule("half of the largest entropy", SOURCE, lambda a: 0.5, certainty),
    Rule(
        "known classes left out (left-out-classes)",
        SOURCE,
        lambda a: leave_classes_out(a.validation, a.validation_labels),
    ),
    Rule("carried (paired-quantile)", PAIRS, lambda a: _carried(a, _of_source(a))),
    Rule(
        "known classes left out, carried",
        PAIRS,
        lambda a: _carried(a, leave_classes_out(a.validation, a.validation_labels)),
    ),
    Rule(
        "agreement of both modalities",
        PAIRS,
        lambda a: agreed(surest(a.pairs_source), surest(a.pairs_target), _of_source(a)),
    ),
    Rule("Otsu on the pairs", PAIRS, lambda a: otsu(surest(a.pairs_target))),
    Rule("Otsu on the test", BATCH, lambda a: otsu(surest(a.test))),
    Rule("two normals on the test", BATCH, lambda a: two_normals(surest(a.test))),
    Rule(
        "accepts 95 % of target validation",
        LABELLED,
        lambda a: pick_threshold(surest(a.validation_target)),
    ),
    Rule(
        "known classes left out, target",
        LABELLED,
        lambda a: leave_classes_out(a.validation_target, a.validation_labels),
    ),
    Rule("the best on the test", "the test's labels", best_on_test),
)


def rates(rule: Rule, answers: Answers) -> tuple[float, float]:
    """OS* and UNK at a rule's threshold."""
    scores = rule.score(answers.test)
    return accept_rates(answers.test, answers.test_labels, scores, rule.choose(answers))


def thresholds_table(answers: Iterable[Answers]) -> str:
    """Each rule's means over all answers (runs, class splits and pairs of modalities), in percent.

    `behind` is the mean distance to the best threshold on the test itself, and `worst` its
    tenth percentile of HOS over the answers.
    """
    every = list(answers)
    found = {rule.title: [rates(rule, a) for a in every] for rule in RULES}
    hos = {title: [harmonic_mean(*pair) for pair in pairs] for title, pairs in found.items()}
    best = hos[RULES[-1].title]
    lines = []
    for rule in RULES:
        both, reached = found[rule.title], hos[rule.title]
        values = (
            statistics.fmean(reached),
            statistics.fmean(b - r for b, r in zip(best, reached, strict=True)),
            float(np.quantile(reached, 0.1)),
            statistics.fmean(one for one, _ in both),
            statistics.fmean(other for _, other in both),
        )
        lines.append((rule.has, rule.title, *(f"{100 * value:.1f}" for value in values)))
    header = ("a user has", "threshold", "HOS", "behind", "worst", "OS*", "UNK")
    return render_markdown(TextTable((header, *lines)), own_titles=True)


# --- settings --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tried:
    """One setting of a method, and what it came to."""

    criteria: Mapping[str, float]
    """What may choose it."""
    test: Mapping[str, float]


def test_of(answers: Iterable[Answers]) -> dict[str, float]:
    """What tuning is to predict: the mean AUROC, HOS and accuracy of a run."""
    every = list(answers)
    return {
        metric: statistics.fmean(measure(a, metric) for a in every)
        for metric in ("auroc", "hos", "acc")
    }


def criteria_table(tried: Mapping[str, Sequence[Tried]]) -> str:
    """What each criterion would choose, means over the methods, in percent.

    `rank` is the mean over methods of Spearman's correlation between a criterion and the test's
    AUROC, over the settings that were tried; a criterion that is the same for all of them has 0.
    """
    names = [*next(iter(tried.values()))[0].criteria]
    metrics = [*next(iter(tried.values()))[0].test]

    lines = []
    for name in names:
        ranks, chosen = [], []
        for settings in tried.values():
            values = [one.criteria[name] for one in settings]
            ranks.append(rank_correlation(values, [one.test["auroc"] for one in settings]))
            chosen.append(settings[values.index(max(values))].test)
        cells = (statistics.fmean(test[metric] for test in chosen) for metric in metrics)
        lines.append((name, f"{statistics.fmean(ranks):.2f}", *(f"{100 * x:.1f}" for x in cells)))
    for title, pick in (("any of them (mean)", statistics.fmean), ("the best on the test", max)):
        cells = (
            statistics.fmean(pick([one.test[metric] for one in s]) for s in tried.values())
            for metric in metrics
        )
        lines.append((title, "", *(f"{100 * x:.1f}" for x in cells)))
    header = ("chosen by", "rank", "AUROC", "HOS", "acc.")
    return render_markdown(TextTable((header, *lines)), own_titles=True)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; 0 where one of them is the same throughout."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    return float(stats.spearmanr(one, other).statistic)
