"""Values at the edge of every comparison of the metrics, the thresholds and the splits."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest

from micu.base.errors import MicuError
from micu.evaluate.localization import segment_labels
from micu.evaluate.metrics import (
    TPR,
    UNKNOWN,
    accept_rates,
    average_precision,
    batch_averaged_detection,
    check_open_set,
    detection,
    fpr_at_tpr,
    harmonic_mean,
    open_set_metrics,
    oracle_thresholds,
    oscr,
    retrieval_recall,
)
from micu.evaluate.probe import ProbeConfig
from micu.evaluate.splits import SplitRules, check_classes, hold_out, split_clips
from micu.evaluate.thresholds import (
    FEWEST_PAIRS,
    REJECTED,
    choose_epoch,
    choose_on_test,
    pick_threshold,
    transfer_threshold,
)
from micu.store.manifest import Clip, Event
from tests.unit.test_splits import make_clips


def test_the_constants_are_those_that_the_documentation_names() -> None:
    assert (TPR, REJECTED, FEWEST_PAIRS, UNKNOWN) == (0.95, 0.05, 20, -1)
    assert (SplitRules().fewest_classes, SplitRules().closed) == (2, False)


@pytest.mark.parametrize(("label", "fits"), [(-2, False), (-1, True), (2, True), (3, False)])
def test_labels_from_unknown_to_the_last_class_fit(label: int, fits: bool) -> None:
    given = (np.zeros((2, 3)), np.array([0, label]), np.zeros(2))
    if fits:
        check_open_set(*given)
    else:
        with pytest.raises(MicuError, match="expected -1 for unknown or a class below 3"):
            check_open_set(*given)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_logits_and_scores_that_are_not_finite_are_refused(value: float, place: int) -> None:
    given = [np.zeros((2, 3)), np.array([0, 1]), np.zeros(2)]
    given[place][-1] = value
    with pytest.raises(MicuError, match="expected finite values"):
        check_open_set(*given)


def test_rates_at_a_threshold_that_a_score_has() -> None:
    logits, labels = np.eye(2)[[0, 1, 0, 0]], np.array([0, 1, UNKNOWN, UNKNOWN])
    scores = np.array([0.5, 0.2, 0.5, 0.2])
    assert accept_rates(logits, labels, scores, 0.5) == (0.5, 0.5)
    assert accept_rates(logits, labels, scores, 0.2) == (1.0, 0.0)
    assert accept_rates(logits, labels, scores, np.nextafter(0.5, 1)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "mean"),
    [(0, 0, 0), (0, 1, 0), (1, 1, 1), (0.5, 1, 2 / 3), (0.25, 0.75, 0.375)],
)
def test_the_harmonic_mean(first: float, second: float, mean: float) -> None:
    assert harmonic_mean(first, second) == pytest.approx(mean)


def test_areas_and_rates_of_one_pair() -> None:
    one, none = np.array([1.0]), np.array([])
    for other, area in ((0.0, 1.0), (1.0, 0.5), (2.0, 0.0)):
        assert oscr(one, 1, np.array([other])) == area
        assert oscr(one, 2, np.array([other])) == area / 2
        assert fpr_at_tpr(one, np.array([other])) == (0.0 if other < 1 else 1.0)
        assert average_precision(one, np.array([other])) == (1.0 if other < 1 else 0.5)
    for empty in ((one, none), (none, one)):
        assert math.isnan(fpr_at_tpr(*empty))
        assert math.isnan(average_precision(*empty))
    assert math.isnan(oscr(none, 0, one))
    assert math.isnan(oscr(none, 1, none))
    assert oscr(none, 1, one) == 0.0


@pytest.mark.parametrize(("count", "place"), [(19, 18), (20, 18), (21, 19), (40, 37), (1, 0)])
def test_the_rate_of_true_positives_is_reached_by_the_first_point_at_95_percent(
    count: int, place: int
) -> None:
    positives = np.arange(count, 0, -1.0)
    level = positives[place]
    assert fpr_at_tpr(positives, np.array([level])) == 1.0
    assert fpr_at_tpr(positives, np.array([level - 0.5])) == 0.0


def test_ten_oracle_thresholds_with_both_ends() -> None:
    found = oracle_thresholds(np.array([3.0, 1.0, 2.0]))
    assert (len(found), found[0], found[-1]) == (10, 1.0, 3.0)
    assert np.diff(found) == pytest.approx([2 / 9] * 9)
    assert oracle_thresholds(np.array([1.0, 1.0])).tolist() == [1.0] * 10


def test_a_logit_of_zero_is_no_event_and_the_background_is_the_last_column() -> None:
    labels = np.array([[[True, False, False], [False, False, True]]])
    logits = np.array([[[1e-9, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    without = detection(logits, labels, background=False)
    assert (without.precision, without.recall, without.f1) == (1.0, 1.0, 1.0)
    other = detection(np.array([[[0.0, 1.0, 5.0], [1.0, -1.0, 5.0]]]), labels, background=False)
    assert (other.precision, other.recall, other.f1) == (0.0, 0.0, 0.0)
    half = detection(np.array([[[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]]), labels, background=True)
    assert (half.precision, half.recall) == (2 / 5, 1.0)
    nothing = detection(-np.ones_like(logits), labels, background=True)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


def test_batches_count_by_their_size() -> None:
    labels = np.ones((3, 1, 2), np.bool_)
    logits = np.stack([np.ones((1, 2)), np.ones((1, 2)), -np.ones((1, 2))])
    for sizes, mean in (([2, 1], 2 / 3), ([1, 2], 1.0), ([3], 1.0)):
        found = batch_averaged_detection(logits, labels, sizes)
        assert found.precision == pytest.approx(mean)
    assert batch_averaged_detection(logits, labels, [2, 1]).recall == pytest.approx(2 / 3)
    assert batch_averaged_detection(logits, labels, [2, 1]).f1 == pytest.approx(2 / 3)


def test_a_second_that_an_event_touches_counts_and_its_neighbours_do_not() -> None:
    for onset, offset, seconds in (
        *((1.0, 2.0, [1]), (1.0, 2.001, [1, 2]), (0.999, 1.0, [0]), (1.5, 1.6, [1])),
        *((3.0, 9.0, [3]), (4.0, 5.0, []), (2.0, 2.0, [])),
    ):
        clip = Clip(clip_id="c", events=(Event("a", onset, offset), Event("other", 0, 4)))
        found = segment_labels([clip], ("a",), "video", 4)[0]
        assert found[:, 0].nonzero()[0].tolist() == seconds, (onset, offset)
        assert (found[:, -1] != found[:, 0]).all()


def test_equal_embeddings_hit_by_chance_at_every_rank() -> None:
    for items, per, rank in ((4, 1, 1), (4, 1, 3), (4, 1, 4), (3, 2, 2), (5, 3, 1)):
        owner = np.repeat(np.arange(items), per)
        found = retrieval_recall(
            np.ones((items, 2)), np.ones((items * per, 2)), owner, ranks=(rank,)
        )
        assert found[f"r{rank}_captions_to_items"] == pytest.approx(rank / items)
        missed = math.comb(items * per - per, rank) / math.comb(items * per, rank)
        assert found[f"r{rank}_items_to_captions"] == pytest.approx(1 - missed)


def test_what_is_ahead_takes_places_and_what_is_behind_takes_none() -> None:
    items = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    captions = np.array([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    found = retrieval_recall(items, captions, np.arange(3), ranks=(1, 2, 3))
    # Item 0 has its caption second; item 1 finds caption 0 and 2 before its own.
    assert [found[f"r{k}_items_to_captions"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert retrieval_recall(np.zeros((2, 2)), np.zeros((2, 2)), np.arange(2), (1,)) == {
        "r1_items_to_captions": 0.5,
        "r1_captions_to_items": 0.5,
    }


# --- thresholds ------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "place"), [(1, 0), (20, 0), (21, 1), (40, 1), (41, 2), (100, 4)])
def test_the_threshold_is_the_score_below_which_a_twentieth_lies(count: int, place: int) -> None:
    scores = np.arange(count, dtype=float)[::-1]
    assert pick_threshold(scores) == place
    assert np.mean(scores >= pick_threshold(scores)) >= 0.95


@pytest.mark.parametrize(
    ("threshold", "carried"), [(0.0, 10.0), (1.0, 11.0), (1.5, 12.0), (3.0, 13.0), (9.0, 13.0)]
)
def test_a_carried_threshold_rejects_as_many(threshold: float, carried: float) -> None:
    source, target = np.array([2.0, 0.0, 3.0, 1.0]), np.array([13.0, 11.0, 10.0, 12.0])
    assert transfer_threshold(threshold, source, target) == carried


def test_the_epoch_is_the_first_of_those_that_are_alike() -> None:
    labels = np.array([0, 1])
    right, surer, wrong = np.eye(2), 2 * np.eye(2), np.eye(2)[::-1]
    assert choose_epoch([right, right], labels) == 0
    assert choose_epoch([wrong, right, right], labels) == 1
    assert choose_epoch([right, surer], labels) == 1
    assert choose_epoch([surer, right], labels) == 0
    assert choose_epoch([right[[0, 0]], right, 9 * right[[0, 0]]], labels) == 1


def test_the_oracle_takes_the_first_of_equal_thresholds_and_the_lowest_without_any() -> None:
    logits, labels = np.eye(2)[[0, 1, 0]], np.array([0, 1, UNKNOWN])
    scores = np.array([1.0, 1.0, 0.0])
    found = choose_on_test([logits, logits], labels, [scores, scores])
    assert (found.epoch, found.threshold) == (0, pytest.approx(1 / 9))
    nothing = choose_on_test([logits, logits], labels, [-scores, np.zeros(3)])
    assert (nothing.epoch, nothing.threshold) == (0, -1.0)
    assert choose_on_test([logits] * 2, labels, [np.zeros(3), scores]).epoch == 1


@pytest.mark.parametrize(
    ("offset", "rate", "fits"),
    [
        *((0, 1e-3, True), (24, 1e-3, True), (25, 1e-3, False), (-1, 1e-3, False)),
        *((0, 0.0, False), (0, math.nan, False), (0, math.inf, False), (0, -1.0, False)),
    ],
)
def test_settings_of_a_probe_at_their_ends(offset: int, rate: float, fits: bool) -> None:
    if fits:
        assert ProbeConfig(epoch_offset=offset, learning_rate=rate).epochs == 25
    else:
        with pytest.raises(MicuError, match="probe"):
            ProbeConfig(epoch_offset=offset, learning_rate=rate)


# --- splits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clips", "held"), [(1, 0), (2, 1), (3, 1), (9, 1), (10, 2), (16, 2), (17, 3), (20, 3)]
)
def test_of_a_class_fifteen_percent_are_held_out_one_at_least(clips: int, held: int) -> None:
    stays, out = hold_out(make_clips(clips, "train", "a"), seed=0)
    assert (len(stays), len(out)) == (clips - held, held)


def test_holding_out_asks_each_clip_once_for_its_class() -> None:
    clips = make_clips(2, "train", "".join(map(chr, range(0x4E00, 0x4E00 + 500))))
    asked: Counter[str] = Counter()

    def class_of(clip: Clip) -> tuple[str, ...]:
        asked[clip.clip_id] += 1
        return (clip.label,)

    hold_out(clips, seed=0, classes_of=class_of)
    assert set(asked.values()) == {1}


@pytest.mark.parametrize(
    ("known", "told"),
    [("ab", ""), ("a", "got those of 'a' alone"), ("ad", "got those of 'a' alone")],
)
@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_two_known_classes_are_enough_and_one_is_not(known: str, told: str, protocol: str) -> None:
    clips = make_clips(6, "train") + make_clips(3, "test", "abcd")
    ids, rules = {clip.clip_id for clip in clips}, SplitRules(protocol=protocol)
    split = split_clips(clips, tuple(known), source_ids=ids, target_ids=ids, seed=0, rules=rules)
    if told:
        with pytest.raises(MicuError, match=f"2 or more known classes, {told}"):
            check_classes(split, rules)
    else:
        assert check_classes(split, rules) is split
        assert split.has_unknown


def test_a_test_without_a_known_class_is_refused() -> None:
    clips = make_clips(6, "train") + make_clips(3, "test", "cd")
    ids, rules = {clip.clip_id for clip in clips}, SplitRules(protocol="paper")
    split = split_clips(clips, ("a", "b"), source_ids=ids, target_ids=ids, seed=0, rules=rules)
    with pytest.raises(MicuError, match=r"no test clip is of a known class: a, b are known.* c, d"):
        check_classes(split, rules)


def test_every_metric_of_one_threshold_at_its_edge() -> None:
    logits, labels = 3 * np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, UNKNOWN])
    scores = np.array([0.4, 0.6, 0.6, 0.4])
    found = open_set_metrics(logits, labels, 0.6, scores)
    assert (found.os_star, found.unk, found.hos) == (pytest.approx(1 / 3), 1.0, 0.5)
    assert (found.os_star_class_mean, found.acc) == (0.5, pytest.approx(2 / 3))
    assert found.undefined == {}


def test_the_oracle_finds_a_small_hos_and_wants_scores_for_every_epoch() -> None:
    count = 400
    labels = np.array([0] * count + [UNKNOWN])
    logits = np.eye(2)[[0] + [1] * count]  # one known clip is right
    scores = np.array([1.0] * count + [0.0])
    found = choose_on_test([logits], labels, [scores])
    assert found.threshold == pytest.approx(1 / 9)  # not 0, which accepts the unknown clip
    with pytest.raises(ValueError, match="zip"):
        choose_on_test([logits, logits], labels, [scores])


def test_of_epochs_as_accurate_the_surer_one_counts_however_unsure() -> None:
    labels = np.array([0, 1])
    unlikely, hopeless = (np.array([[9.0, 0.0], [x, 0.0]]) for x in (7.0, 12.0))
    assert choose_epoch([hopeless, unlikely], labels) == 1
    assert choose_epoch([unlikely, hopeless], labels) == 0


@pytest.mark.parametrize("count", [8, 9])
def test_a_message_lists_eight_names_and_counts_the_others(count: int) -> None:
    clips = make_clips(6, "train") + make_clips(3, "test", "lmnopqrstu"[:count])
    ids, rules = {clip.clip_id for clip in clips}, SplitRules(protocol="paper")
    split = split_clips(clips, ("a", "b"), source_ids=ids, target_ids=ids, seed=0, rules=rules)
    with pytest.raises(MicuError) as caught:
        check_classes(split, rules)
    assert ("l, m, n, o, p, q, r, s;" in str(caught.value)) == (count == 8)
    assert ("l, m, n, o, p, q, r, s and 1 more;" in str(caught.value)) == (count == 9)


@pytest.mark.parametrize(("train", "test"), [("train", "TEST"), ("TRAIN", "test")])
def test_the_split_that_was_meant_is_named_by_its_option(train: str, test: str) -> None:
    clips = make_clips(6, train) + make_clips(3, test)
    ids = {clip.clip_id for clip in clips}
    meant = "--test-splits TEST" if test == "TEST" else "--train-splits TRAIN"
    with pytest.raises(MicuError, match=rf"\(did you mean {meant}\?\)$"):
        split_clips(
            *(clips, ("a", "b")),
            source_ids=ids,
            target_ids=ids,
            seed=0,
            rules=SplitRules(protocol="paper"),
        )


def test_a_clean_split_that_leaves_out_nothing_says_nothing() -> None:
    clips = make_clips(6, "train") + make_clips(3, "test")
    ids, rules = {clip.clip_id for clip in clips}, SplitRules(seen=frozenset({"another"}))
    split = split_clips(clips, ("a", "b"), source_ids=ids, target_ids=ids, seed=0, rules=rules)
    assert (split.note, split.leaks) == ("", ())


def test_rows_without_a_split_beside_rows_with_one_are_in_no_set() -> None:
    clips = make_clips(6, "train") + make_clips(3, "test") + make_clips(2, "")
    ids, rules = {clip.clip_id for clip in clips}, SplitRules(protocol="paper")
    given = {"source_ids": ids, "target_ids": {c.clip_id for c in clips if c.label != "c"}}
    split = split_clips(clips, ("a", "b"), seed=0, rules=rules, paired_ids=ids, **given)
    assert {clip.split for clip in split.train} == {"train"}
    assert {clip.split for clip in split.test} == {"test"}
    assert not split.has_unknown
    assert not {"test/c/0", "test/c/1"} & {*split.pairs}  # named for the test, without features
    assert "/c/0" in split.pairs
    other = split_clips(clips, ("a", "b"), seed=0, rules=rules, source_ids=ids, target_ids=ids)
    assert other.has_unknown


def test_one_known_class_with_a_test_clip_is_enough_for_a_test() -> None:
    clips = make_clips(6, "train") + make_clips(3, "test", "ac")
    ids, rules = {clip.clip_id for clip in clips}, SplitRules(protocol="paper")
    split = split_clips(clips, ("a", "b"), source_ids=ids, target_ids=ids, seed=0, rules=rules)
    assert check_classes(split, rules) is split


def test_near_is_no_tie_and_ranks_are_one_five_and_ten() -> None:
    items = np.array([[1.0, 0.0], [0.0, 1.0]])
    captions = np.array(
        [[1.0, 0.05], [1.0, 0.06]]
    )  # of item 0; of item 1, and nearly as near to it
    found = retrieval_recall(items, captions, np.arange(2))
    assert found["r1_items_to_captions"] == 1.0
    assert found["r1_captions_to_items"] == 0.5
    assert {name.split("_")[0] for name in found} == {"r1", "r5", "r10"}


def test_one_class_that_is_lost_takes_its_clips_along() -> None:
    clips = make_clips(6, "train", "abc") + make_clips(3, "test", "abd")
    ids = {clip.clip_id for clip in clips}
    known = ("a", "b", "c")
    split = split_clips(clips, known, source_ids=ids, target_ids=ids, seed=0)
    assert split.known == ("a", "b")
    assert {clip.label for clip in (*split.train, *split.validation)} == {"a", "b"}
    clips = make_clips(6, "train", "ab") + make_clips(3, "test", "abcd")
    ids = {clip.clip_id for clip in clips}
    split = split_clips(clips, known, source_ids=ids, target_ids=ids, seed=0)
    assert {clip.label for clip in split.test} == {"a", "b", "d"}


def test_which_items_are_dealt_to_the_test_is_fixed_for_ever() -> None:
    clips = make_clips(4, "", "ab")
    ids = {clip.clip_id for clip in clips}
    split = split_clips(clips, ("a", "b"), source_ids=ids, target_ids=ids, seed=0)
    expected = {i for i in ids if hashlib.sha256(i.encode()).digest()[0] & 1}
    assert {clip.clip_id for clip in split.test} == expected == {"/a/2", "/a/1", "/b/3", "/a/3"}
