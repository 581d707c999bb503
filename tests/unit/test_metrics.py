"""Metrics keep their promises: against scikit-learn, against slow loops, and at the edges."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_ood.metrics import functional as ood
from sklearn import metrics as oracle

from micu.base.errors import MicuError, ShapeError
from micu.evaluate.metrics import (
    UNKNOWN,
    auroc,
    average_precision,
    batch_averaged_detection,
    detection,
    fpr_at_tpr,
    open_set_metrics,
    oracle_thresholds,
    oscr,
    retrieval_recall,
    softmax,
)

few_values = st.lists(st.integers(0, 4), min_size=1, max_size=30)


def drawn(seed: int, n: int = 60, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, classes)).round(1)
    labels = random.integers(UNKNOWN, classes, n)
    return logits, labels


@given(few_values, few_values)
def test_auroc_with_ties_is_that_of_scikit_learn(known: list[int], unknown: list[int]) -> None:
    truth, scores = [1] * len(known) + [0] * len(unknown), known + unknown
    expected = oracle.roc_auc_score(truth, scores)
    assert auroc(np.array(known), np.array(unknown)) == pytest.approx(expected)


@given(few_values, few_values)
def test_average_precision_with_ties_is_that_of_scikit_learn(
    known: list[int], unknown: list[int]
) -> None:
    truth, scores = [1] * len(known) + [0] * len(unknown), known + unknown
    expected = oracle.average_precision_score(truth, scores)
    assert average_precision(np.array(known), np.array(unknown)) == pytest.approx(expected)


@given(few_values, few_values)
def test_both_fpr95_are_the_first_such_roc_points_of_scikit_learn(
    known: list[int], unknown: list[int]
) -> None:
    inside, outside = np.array(known), np.array(unknown)
    truth = np.array([1] * len(known) + [0] * len(unknown))
    scores = np.concatenate([inside, outside])
    for positives, negatives, is_positive, score in (
        (inside, outside, truth, scores),
        (-outside, -inside, 1 - truth, -scores),
    ):
        fpr, tpr, _ = oracle.roc_curve(is_positive, score, drop_intermediate=False)
        assert fpr_at_tpr(positives, negatives) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_the_two_fpr95_are_not_mixed_up() -> None:
    # 20 known samples score 1 to 20, unknown ones 0 and 10: at 95 % of the known ones one unknown
    # sample is accepted; both unknown ones are rejected only with half of the known ones.
    logits = np.log(np.stack([np.arange(1, 23), np.full(22, 1e-3)], 1))
    labels = np.array([0] * 20 + [UNKNOWN] * 2)
    scores = np.array([*range(1, 21), 0, 10.0])
    metrics = open_set_metrics(logits, labels, 0.0, scores)
    assert metrics.fpr_unk_at_95tpr_known == 0.5
    assert metrics.fpr_known_at_95tpr_unk == 0.5
    scores[-1] = 3
    metrics = open_set_metrics(logits, labels, 0.0, scores)
    assert metrics.fpr_unk_at_95tpr_known == 0.5
    assert metrics.fpr_known_at_95tpr_unk == pytest.approx(3 / 20)


@pytest.mark.parametrize("seed", range(5))
def test_oscr_is_the_area_under_the_curve_drawn_point_by_point(seed: int) -> None:
    logits, labels = drawn(seed)
    scores = softmax(logits).max(-1).round(1)
    known = labels != UNKNOWN
    right = known & (logits.argmax(-1) == labels)
    levels = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    rates = [
        (
            sum(s >= level for s in scores[~known]) / (~known).sum(),
            sum(s >= level for s in scores[right]) / known.sum(),
        )
        for level in levels
    ]
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(rates))
    assert oscr(scores[right], int(known.sum()), scores[~known]) == pytest.approx(area)


@pytest.mark.parametrize("seed", range(3))
def test_open_set_metrics_are_those_of_pytorch_ood(seed: int) -> None:
    logits, labels = drawn(seed)
    scores = softmax(logits).max(-1).round(2)
    found = open_set_metrics(logits, labels, 0.5, scores)
    outlier_scores, truth = torch.from_numpy(-scores), torch.from_numpy(labels)
    predicted = torch.from_numpy(logits.argmax(-1))
    assert found.oscr == pytest.approx(ood.oscr_score(outlier_scores, predicted, truth), abs=1e-6)
    assert found.auroc == pytest.approx(float(ood.auroc(outlier_scores, truth)), abs=1e-6)
    rate = float(ood.fpr_at_tpr(outlier_scores, truth))
    assert found.fpr_known_at_95tpr_unk == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_those_of_a_loop_over_samples(seed: int) -> None:
    logits, labels = drawn(seed)
    threshold, right, rejected = 0.45, 0, 0
    by_class: dict[int, list[bool]] = {}
    for row, label in zip(logits, labels, strict=True):
        chances = np.exp(row) / np.exp(row).sum()
        called = UNKNOWN if chances.max() < threshold else int(chances.argmax())
        if label == UNKNOWN:
            rejected += called == UNKNOWN
        else:
            right += called == label
            by_class.setdefault(int(label), []).append(called == label)
    known = (labels != UNKNOWN).sum()
    metrics = open_set_metrics(logits, labels, threshold)
    assert metrics.os_star == pytest.approx(right / known)
    assert metrics.unk == pytest.approx(rejected / (len(labels) - known))
    class_mean = np.mean([np.mean(hits) for hits in by_class.values()])
    assert metrics.os_star_class_mean == pytest.approx(class_mean)
    both = metrics.os_star + metrics.unk
    assert metrics.hos == pytest.approx(2 * metrics.os_star * metrics.unk / both)
    assert metrics.acc == pytest.approx(open_set_metrics(logits, labels, 0.0).os_star)


def test_the_class_mean_does_not_follow_the_most_frequent_class() -> None:
    logits = np.array([[5.0, 0.0]] * 10)
    labels = np.array([0] * 8 + [1, UNKNOWN])
    metrics = open_set_metrics(logits, labels, 0.0)
    assert metrics.os_star == pytest.approx(8 / 9)
    assert metrics.os_star_class_mean == pytest.approx(1 / 2)


def test_a_score_at_the_threshold_is_accepted() -> None:
    logits, labels, scores = np.eye(2), np.array([0, UNKNOWN]), np.array([0.5, 0.4])
    metrics = open_set_metrics(logits, labels, 0.5, scores)
    assert (metrics.os_star, metrics.unk, metrics.hos) == (1.0, 1.0, 1.0)


def test_the_score_that_is_given_replaces_the_softmax() -> None:
    logits, labels = np.array([[9.0, 0.0], [0.0, 9.0], [0.1, 0.0]]), np.array([0, 1, UNKNOWN])
    told = open_set_metrics(logits, labels, 0.5, np.array([0.0, 0.0, 1.0]))
    assert (told.os_star, told.unk, told.auroc, told.oscr) == (0.0, 0.0, 0.0, 0.0)
    assert (told.acc, told.fpr_unk_at_95tpr_known) == (1.0, 1.0)


def test_a_perfect_classifier_scores_one_and_a_reversed_one_zero() -> None:
    logits, labels = np.eye(3), np.array([0, 1, UNKNOWN])
    best = open_set_metrics(logits, labels, 1.5, np.array([3.0, 2.0, 1.0]))
    worst = open_set_metrics(logits, labels, 1.5, np.array([1.0, 2.0, 3.0]))
    names = ("unk", "auroc", "ap_known", "ap_unknown", "os_star")
    assert [getattr(best, name) for name in names] == [1.0] * 5
    assert best.oscr == 1.0
    assert worst.auroc == 0.0
    assert worst.unk == 0.0


def test_without_unknown_samples_metrics_that_need_them_are_nan_and_say_why() -> None:
    metrics = open_set_metrics(np.eye(2), np.array([0, 1]), 0.0)
    assert (metrics.os_star, metrics.acc) == (1.0, 1.0)
    for name in ("unk", "hos", "auroc", "oscr", "fpr_unk_at_95tpr_known", "ap_unknown"):
        assert math.isnan(getattr(metrics, name))
        assert metrics.undefined[name] == "no unknown test sample"
    assert "os_star" not in metrics.undefined


def test_without_known_samples_metrics_that_need_them_are_nan_and_say_why() -> None:
    metrics = open_set_metrics(np.eye(2), np.array([UNKNOWN, UNKNOWN]), 2.0)
    assert metrics.unk == 1.0
    for name in ("os_star", "os_star_class_mean", "acc", "hos", "auroc", "oscr"):
        assert metrics.undefined[name] == "no known test sample"


def test_without_any_sample_nothing_is_defined() -> None:
    metrics = open_set_metrics(np.zeros((0, 3)), np.zeros(0, np.int64), 0.5)
    assert metrics.undefined["auroc"] == "no known and no unknown test sample"


def test_labels_of_unknown_classes_must_be_marked() -> None:
    with pytest.raises(MicuError, match="a class below 2, got 0 to 2"):
        open_set_metrics(np.eye(2), np.array([0, 2]), 0.5)
    with pytest.raises(ShapeError, match="labels"):
        open_set_metrics(np.eye(2), np.array([0]), 0.5)


def test_nan_is_refused_instead_of_being_called_known() -> None:
    with pytest.raises(MicuError, match="finite"):
        open_set_metrics(np.full((2, 2), np.nan), np.array([0, 1]), 0.5)


def test_softmax_stands_large_logits() -> None:
    assert softmax(np.array([[1e4, 0.0]])).tolist() == [[1.0, 0.0]]


def test_oracle_thresholds_run_from_the_lowest_to_the_highest_score() -> None:
    scores = np.array([0.3, 0.9, 0.1])
    thresholds = oracle_thresholds(scores)
    assert len(thresholds) == 10
    assert (thresholds[0], thresholds[-1]) == (0.1, 0.9)
    assert np.allclose(np.diff(thresholds), 0.8 / 9)


def test_micro_f1_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(4, 5, 6)), random.random((4, 5, 6)) > 0.7
    for background, columns in ((True, 6), (False, 5)):
        truth, called = (x[..., :columns].reshape(-1, columns) for x in (labels, logits > 0))
        expected = oracle.precision_recall_fscore_support(truth, called, average="micro")[:3]
        found = detection(logits, labels, background=background)
        assert (found.precision, found.recall, found.f1) == pytest.approx(expected)


def test_a_batch_without_predictions_counts_as_zero() -> None:
    logits, labels = np.full((3, 1, 2), -1.0), np.ones((3, 1, 2), bool)
    logits[0] = 1.0
    found = batch_averaged_detection(logits, labels, [1, 2])
    assert (found.precision, found.recall) == pytest.approx((1 / 3, 1 / 3))


def test_localisation_without_any_prediction_is_zero_not_an_error() -> None:
    found = detection(np.full((2, 3, 4), -1.0), np.zeros((2, 3, 4), bool), background=True)
    assert (found.precision, found.recall, found.f1) == (0.0, 0.0, 0.0)


def test_retrieval_is_that_of_a_loop_without_ties() -> None:
    random = np.random.default_rng(0)
    items, captions = random.normal(size=(7, 4)), random.normal(size=(14, 4))
    owner = np.repeat(np.arange(7), 2)

    def similarity(item: int, caption: int) -> float:
        a, b = items[item], captions[caption]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    recall = retrieval_recall(items, captions, owner, (1, 3))
    for rank in (1, 3):
        hits = 0
        for item in range(7):
            order = sorted(range(14), key=lambda c: -similarity(item, c))
            hits += any(owner[c] == item for c in order[:rank])
        assert recall[f"r{rank}_items_to_captions"] == pytest.approx(hits / 7)
        hits = 0
        for caption in range(14):
            order = sorted(range(7), key=lambda i: -similarity(i, caption))
            hits += owner[caption] in order[:rank]
        assert recall[f"r{rank}_captions_to_items"] == pytest.approx(hits / 14)


def test_retrieval_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    items, captions = random.normal(size=(9, 3)).round(), random.normal(size=(20, 3)).round()
    owner = random.integers(0, 9, 20)
    whole = retrieval_recall(items, captions, owner)
    monkeypatch.setattr("micu.evaluate.metrics.QUERIES_AT_ONCE", 4)
    assert retrieval_recall(items, captions, owner) == pytest.approx(whole)


def test_retrieval_among_equal_embeddings_is_chance() -> None:
    same = np.ones((10, 3))
    recall = retrieval_recall(same, same, np.arange(10), (1, 5, 20))
    for direction in ("items_to_captions", "captions_to_items"):
        rates = [recall[f"r{rank}_{direction}"] for rank in (1, 5, 20)]
        assert rates == pytest.approx([0.1, 0.5, 1.0])


def test_several_tied_captions_of_one_item_raise_its_chance() -> None:
    recall = retrieval_recall(np.ones((2, 2)), np.ones((4, 2)), np.array([0, 0, 1, 1]), (1, 2))
    assert recall["r1_items_to_captions"] == pytest.approx(1 / 2)
    assert recall["r2_items_to_captions"] == pytest.approx(1 - 1 / 6)
