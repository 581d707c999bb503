"""Metrics are those of the published evaluation scripts."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from micu.evaluate.metrics import (
    UNKNOWN,
    batch_averaged_detection,
    detection,
    open_set_metrics,
    oracle_thresholds,
    retrieval_recall,
    softmax,
)
from micu.evaluate.probe import localization_losses
from micu.evaluate.scores import max_softmax
from micu.evaluate.thresholds import choose_on_test
from tests.parity.recipe import assert_close, tensor

Arrays = Mapping[str, Any]
RANKS = (1, 5, 10, 50)
AVVP_COLUMNS = 26  # background included, as in the recipe


@pytest.fixture(scope="module")
def arrays(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("metrics")


def cases(arrays: Arrays) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    found = []
    for name in sorted(key.removesuffix("_logits") for key in arrays if key.endswith("_logits")):
        assert arrays[f"{name}_ref_ok"], f"{name}: the file itself says it is not the published one"
        raw, classes = arrays[f"{name}_raw_labels"], int(arrays[f"{name}_C"])
        labels = np.where(raw < classes, raw, UNKNOWN)
        table, best = arrays[f"{name}_table_thr_os_unk_hos"], arrays[f"{name}_best_os_unk_hos_thr"]
        found.append((arrays[f"{name}_logits"], labels, table, best))
    assert found
    return found


def test_rates_at_all_ten_thresholds_are_the_published_ones(arrays: Arrays) -> None:
    for logits, labels, table, _ in cases(arrays):
        rows = [
            open_set_metrics(logits, labels, threshold)
            for threshold in oracle_thresholds(softmax(logits).max(-1), len(table))
        ]
        assert_close([[m.threshold, m.os_star, m.unk, m.hos] for m in rows], table)


def test_the_oracle_chooses_what_the_published_loop_chooses(arrays: Arrays) -> None:
    for logits, labels, _, best in cases(arrays):
        choice = choose_on_test([logits], labels, [max_softmax(logits)])
        metrics = open_set_metrics(logits, labels, choice.threshold)
        assert_close(metrics.hos, best[2])
        if best[2] > 0:
            assert_close([metrics.os_star, metrics.unk, metrics.threshold], best[[0, 1, 3]])
        else:  # the published loop then has found nothing, and reports zeros
            assert not best.any()


def localisation_batches(arrays: Arrays, base: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and labels of each batch."""
    batches = []
    for number, size in enumerate(arrays["loc_sizes"].tolist()):
        shape, constant = (*size, AVVP_COLUMNS), number == 2
        drawn = tensor(shape, 1000 * base + 100 + number, 3.0, -2.0)
        logits = np.full(shape, -1.0) if constant else drawn
        batches.append((logits, tensor(shape, 1000 * base + 120 + number) > 0.85))
    return batches


def test_localisation_is_averaged_over_batches_as_published(arrays: Arrays, base: int) -> None:
    batches = localisation_batches(arrays, base)
    all_logits, all_labels = map(np.concatenate, zip(*batches, strict=True))
    sizes = [len(logits) for logits, _ in batches]
    batched = batch_averaged_detection(all_logits, all_labels, sizes)
    # The published script rounds each batch's rates to float32.
    found = [batched.precision, batched.recall, batched.f1]
    assert_close(found, arrays["loc_ref_P_R_F1"], 1e-7)
    for background, name in ((True, "loc_global_P_R_F1"), (False, "loc_global_nobg_P_R_F1")):
        micro = detection(all_logits, all_labels, background=background)
        assert_close([micro.precision, micro.recall, micro.f1], arrays[name])


def test_the_localisation_loss_before_training_is_the_published_one(
    arrays: Arrays, base: int
) -> None:
    batches = localisation_batches(arrays, base)
    alpha = torch.full((AVVP_COLUMNS,), 0.1)  # float32 when published
    losses = [
        sum(localization_losses(torch.from_numpy(logits), torch.from_numpy(labels), alpha))
        for logits, labels in batches
    ]
    mean = np.average([float(x) for x in losses], weights=[len(logits) for logits, _ in batches])
    assert_close(mean, arrays["loc_ref_loss"], 1e-6)


def test_retrieval_recall_is_the_published_one(arrays: Arrays) -> None:
    owner = np.repeat(np.arange(len(arrays["ret_counts"])), arrays["ret_counts"])
    first = np.unique(owner, return_index=True)[1]
    recall = retrieval_recall(arrays["ret_audio"][first], arrays["ret_caption"], owner, RANKS)
    for direction, name in (("items_to_captions", "ret_a2t"), ("captions_to_items", "ret_t2a")):
        ours = [100 * recall[f"r{rank}_{direction}"] for rank in RANKS]
        assert_close(ours, arrays[name])
