"""The open-set protocols: what they choose, and what they must not look at."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from micu.base.errors import ConfigError, ManifestError
from micu.evaluate.code_scores import CODE_SCORES, QUANTIZATION
from micu.evaluate.details import ClipMap
from micu.evaluate.metrics import UNKNOWN, Floats, Ints, harmonic_mean
from micu.evaluate.open_set import (
    Candidate,
    OpenSetResult,
    _conclude,
    _lacks_pairs,
    _tell_choice,
    chance,
    run_oscmg,
    scores_for,
    thresholds_for,
)
from micu.evaluate.probe import ClipFeatures, ProbeConfig, fit_probe
from micu.evaluate.scores import SCORES, Fitting, Scorer, max_softmax
from micu.evaluate.splits import OpenSetSplit, SplitRules, hold_out, split_clips
from micu.evaluate.thresholds import (
    FEWEST_PAIRS,
    LEFT_OUT,
    ORACLE,
    ORACLE_AT_SOURCE_EPOCH,
    PAIRED_QUANTILE,
    SOURCE_VAL,
    Choice,
    best_threshold,
    choose_on_test,
    choose_on_validation,
    leave_classes_out,
    pick_threshold,
    transfer_threshold,
)
from micu.store.manifest import Clip


def make_clips(per_class: int, split: str, classes: str = "abcd") -> tuple[Clip, ...]:
    return tuple(
        Clip(clip_id=f"{split}/{label}/{number}", label=label, split=split)
        for label in classes
        for number in range(per_class)
    )


class PatternEncoder:
    """Every class has a direction; both modalities share it."""

    name = "pattern"
    device = torch.device("cpu")
    codebook_size = 0

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def encode(self, modality: str, clip_ids: list[str]) -> ClipFeatures:
        self.asked.append((modality, tuple(clip_ids)))
        values = torch.zeros(len(clip_ids), 3, 6)
        for row, clip_id in enumerate(clip_ids):
            _, label, number = clip_id.split("/")
            noise = torch.Generator().manual_seed(int(number) * 7 + ord(label))
            values[row] = 0.3 * torch.randn(3, 6, generator=noise)
            values[row, :, "abcd".index(label)] += 3
        return ClipFeatures(
            modality, tuple(clip_ids), values, torch.ones(values.shape[:2], dtype=torch.bool)
        )

    def width(self, modality: str) -> int:
        return 6

    def describe_probe(self, config: ProbeConfig) -> str:
        return config.describe()

    train_probe = staticmethod(fit_probe)


@pytest.fixture
def split() -> OpenSetSplit:
    clips = make_clips(8, "train") + make_clips(3, "val") + make_clips(5, "test")
    ids = {clip.clip_id for clip in clips}
    return split_clips(clips, ("b", "a"), source_ids=ids, target_ids=ids, seed=0)


QUICK = ProbeConfig(epochs=8, learning_rate=2e-2, batch_size=4)


def test_both_protocols_come_from_one_training_and_are_named(split: OpenSetSplit) -> None:
    headline, oracle = run_oscmg(PatternEncoder(), split, "video", "audio", config=QUICK, seed=0)
    assert (headline.threshold_source, oracle.threshold_source) == ("source-val", "oracle")
    assert headline.n_clips == 20
    assert headline.metrics.acc == 1.0
    assert oracle.metrics.hos >= headline.metrics.hos
    assert "95% or more of 6 known source clips" in headline.note
    assert "split 'val' of the manifest" in headline.note
    assert "on the test set" in oracle.note
    assert "not the paper's protocol" not in oracle.note


def test_the_probe_learns_from_the_source_modality_and_is_tested_on_the_target(
    split: OpenSetSplit,
) -> None:
    encoder = PatternEncoder()
    run_oscmg(encoder, split, "video", "audio", config=QUICK, seed=0)
    train, validation, test = (
        tuple(clip.clip_id for clip in clips)
        for clips in (split.train, split.validation, split.test)
    )
    assert encoder.asked == [("video", train), ("video", validation), ("audio", test)]
    assert not set(train) & {*validation, *test}


def test_choices_and_metrics_use_the_score_asked_for(
    split: OpenSetSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_flat(fitting: Fitting) -> Scorer:
        return lambda clips: np.full(len(clips.logits), 7.0)

    monkeypatch.setitem(SCORES._entries, "flat", fit_flat)
    for outcome in run_oscmg(
        PatternEncoder(), split, "video", "audio", config=QUICK, seed=0, scores=("flat",)
    ):
        assert outcome.metrics.threshold == 7.0
        assert (outcome.metrics.auroc, outcome.metrics.unk) == (0.5, 0.0)


def test_the_probe_is_trained_where_the_encoder_runs(split: OpenSetSplit) -> None:
    class Seen(Exception):
        pass

    class ElsewhereEncoder(PatternEncoder):
        device = torch.device("meta")

        def train_probe(self, features: ClipFeatures, *given: object) -> None:  # type: ignore[override]
            raise Seen(features.values.device.type, features.mask.device.type)

    with pytest.raises(Seen) as seen:
        run_oscmg(ElsewhereEncoder(), split, "video", "audio", config=QUICK, seed=0)
    assert seen.value.args == ("meta", "meta")


def test_the_oracle_says_that_clips_were_held_out_of_its_probe_too() -> None:
    clips = make_clips(8, "train") + make_clips(2, "test")
    ids = {clip.clip_id for clip in clips}
    split = split_clips(clips, ("a", "b"), source_ids=ids, target_ids=ids, seed=0)
    headline, oracle = run_oscmg(PatternEncoder(), split, "video", "audio", config=QUICK, seed=0)
    assert "15% of the training clips, held out" in headline.note
    assert "not the paper's protocol" in oracle.note
    assert "15% held out" in oracle.note


def test_a_known_class_that_the_manifest_lacks_is_refused_with_the_closest_name() -> None:
    clips = [
        Clip(clip_id=f"{split}/{label}", label=label, split=split)
        for label in ("dog bark", "siren")
        for split in ("train", "val", "test")
    ]
    ids = {clip.clip_id for clip in clips}
    with pytest.raises(ManifestError, match=r"'dog barks'; did you mean 'dog bark'"):
        split_clips(clips, ("dog barks", "siren"), source_ids=ids, target_ids=ids, seed=0)


def test_a_known_class_without_training_clips_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clips = make_clips(4, "train", "ab") + make_clips(2, "test", "abc")
    ids = {clip.clip_id for clip in clips}
    split = split_clips(
        clips,
        ("a", "c"),
        source_ids=ids,
        target_ids=ids,
        seed=0,
        rules=SplitRules(protocol="paper"),
    )
    assert "without a training clip: c" in caplog.text
    assert split.known == ("a", "c")


def test_source_val_does_not_move_with_the_test_labels(split: OpenSetSplit) -> None:
    relabelled = tuple(
        Clip(clip_id=clip.clip_id, label="abcd"[3 - "abcd".index(clip.label)], split=clip.split)
        for clip in split.test
    )
    other = OpenSetSplit(
        train=split.train,
        validation=split.validation,
        test=relabelled,
        known=split.known,
        held_out=split.held_out,
    )
    (one, one_oracle), (two, two_oracle) = (
        run_oscmg(PatternEncoder(), each, "video", "audio", config=QUICK, seed=0)
        for each in (split, other)
    )
    assert (one.epoch, one.metrics.threshold) == (two.epoch, two.metrics.threshold)
    assert one.metrics.hos != two.metrics.hos
    assert one_oracle.metrics.hos != two_oracle.metrics.hos


def test_source_val_does_not_move_with_the_test_clips(split: OpenSetSplit) -> None:
    other = OpenSetSplit(
        train=split.train,
        validation=split.validation,
        test=split.test[:7],
        known=split.known,
        held_out=split.held_out,
    )
    one, two = (
        run_oscmg(PatternEncoder(), each, "video", "audio", config=QUICK, seed=0)[0]
        for each in (split, other)
    )
    assert (one.epoch, one.metrics.threshold) == (two.epoch, two.metrics.threshold)


def test_the_split_keeps_unknown_classes_for_the_test(split: OpenSetSplit) -> None:
    assert {clip.label for clip in (*split.train, *split.validation)} == {"a", "b"}
    assert {clip.split for clip in split.train} == {"train"}
    assert split.labels(split.test).tolist() == [1] * 5 + [0] * 5 + [UNKNOWN] * 10


def test_without_a_validation_split_a_part_of_each_class_is_held_out() -> None:
    clips = make_clips(20, "train", "ab") + make_clips(2, "test")
    ids = {clip.clip_id for clip in clips}
    split = split_clips(clips, ("a", "b"), source_ids=ids, target_ids=ids, seed=3)
    assert [sum(c.label == label for c in split.validation) for label in "ab"] == [3, 3]
    assert not set(split.train) & set(split.validation)
    assert len(split.train) + len(split.validation) == 40
    assert split.held_out


def test_what_is_held_out_depends_on_the_seed_and_not_on_the_order() -> None:
    clips = make_clips(20, "train", "ab")
    _, one = hold_out(clips, seed=1)
    _, reordered = hold_out(clips[::-1], seed=1)
    _, other = hold_out(clips, seed=2)
    assert set(one) == set(reordered)
    assert set(one) != set(other)


def test_a_class_of_two_clips_keeps_one_and_a_class_of_one_keeps_it() -> None:
    stays, held = hold_out(make_clips(2, "train", "a") + make_clips(1, "train", "b"), seed=0)
    assert [clip.label for clip in stays] == ["a", "b"]
    assert [clip.label for clip in held] == ["a"]


def test_clips_count_only_where_their_modality_has_features() -> None:
    clips = make_clips(4, "train") + make_clips(2, "val") + make_clips(2, "test")
    source = {clip.clip_id for clip in clips if clip.split != "test"}
    target = {clip.clip_id for clip in clips if not clip.clip_id.endswith("/0")}
    split = split_clips(clips, ("a", "b"), source_ids=source, target_ids=target, seed=0)
    assert len(split.train) == 8
    assert len(split.test) == 4


def test_clips_without_a_label_are_not_unknown_they_are_left_out() -> None:
    clips = [*make_clips(4, "train"), *make_clips(2, "test"), Clip(clip_id="x", split="test")]
    ids = {clip.clip_id for clip in clips}
    split = split_clips(clips, ("a",), source_ids=ids, target_ids=ids, seed=0)
    assert "x" not in {clip.clip_id for clip in split.test}


def test_a_manifest_without_a_test_split_says_which_splits_it_has() -> None:
    clips = make_clips(4, "train") + make_clips(2, "dev")
    ids = {clip.clip_id for clip in clips}
    with pytest.raises(ManifestError, match=r"no test clip.*have 'dev', 'train'"):
        split_clips(clips, ("a",), source_ids=ids, target_ids=ids, seed=0)


def test_the_threshold_accepts_at_least_95_percent_of_validation() -> None:
    scores = np.arange(100) / 100
    threshold = pick_threshold(scores)
    assert (scores >= threshold).mean() >= 0.95
    assert (scores > threshold).mean() < 0.96
    assert pick_threshold(np.array([0.7, 0.2, 0.9])) == 0.2


def brute_threshold(logits: Floats, labels: Ints) -> float:
    """What `leave_classes_out` says, level by level."""
    scored: list[tuple[float, bool, bool]] = []
    for label in np.unique(labels):
        names = [c for c in range(logits.shape[1]) if c != label]
        for row, true in zip(logits, labels, strict=True):
            chances = np.exp(row[names]) / np.exp(row[names]).sum()
            scored.append((chances.max(), true != label, names[int(chances.argmax())] == true))
    best, best_hos = 0.0, -1.0
    known = [x for x in scored if x[1]]
    for level in sorted({score for score, *_ in scored}):
        os_star = sum(right and score >= level for score, _, right in known) / len(known)
        rejected = [score < level for score, is_known, _ in scored if not is_known]
        hos = harmonic_mean(os_star, float(np.mean(rejected)))
        if hos > best_hos + 1e-12:
            best, best_hos = level, hos
    return best


@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_is_left_out_is_what_the_threshold_rejects(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 6)[3:]
    logits = draw.normal(size=(21, 5)) + 3 * (np.arange(5) == labels[:, None])
    assert leave_classes_out(logits, labels) == pytest.approx(brute_threshold(logits, labels))


def test_of_equal_thresholds_the_lowest_is_taken() -> None:
    known, unknown = np.array([0.5, 0.7, 0.9]), np.array([0.1, 0.2])
    assert best_threshold(known, known, unknown) == 0.5
    assert best_threshold(known, known[2:], unknown) == 0.5
    assert best_threshold(known, known[:0], unknown) == 0.1
    assert best_threshold(known, known, np.array([0.5])) == 0.7


def test_left_out_classes_are_chosen_at_the_epoch_of_source_val() -> None:
    clips = make_clips(8, "train") + make_clips(8, "val") + make_clips(5, "test")
    ids = {clip.clip_id for clip in clips}
    three = split_clips(clips, ("a", "b", "c"), source_ids=ids, target_ids=ids, seed=0)
    assert thresholds_for(three, "video", "audio", (LEFT_OUT,)) == ((LEFT_OUT,), ())
    found = run_oscmg(
        *(PatternEncoder(), three, "video", "audio"),
        config=QUICK,
        seed=0,
        scores=("energy", "msp"),
        thresholds=(SOURCE_VAL, LEFT_OUT),
    )
    assert [(one.score, one.threshold_source) for one in found] == [
        ("energy", SOURCE_VAL),
        ("msp", SOURCE_VAL),
        ("msp", LEFT_OUT),
    ]
    _, usual, left_out = found
    assert usual.epoch == left_out.epoch
    assert "best HOS, were each class in turn unknown, of 24 known source clips" in left_out.note
    assert usual.details.threshold != left_out.details.threshold


@pytest.mark.parametrize(
    ("known", "validated", "scores", "can"),
    [
        ("ab", "ab", ("msp",), False),
        ("abc", "ab", ("msp",), True),
        ("abc", "a", ("msp",), False),
        ("abc", "abc", ("energy",), False),
        ("abc", "abc", ("energy", "msp"), True),
    ],
)
def test_leaving_classes_out_needs_three_of_them(
    split: OpenSetSplit, known: str, validated: str, scores: tuple[str, ...], can: bool
) -> None:
    clips = tuple(Clip(clip_id=name, label=name) for name in validated)
    given = replace(split, known=tuple(known), validation=clips)
    left, why = thresholds_for(given, "video", "audio", (SOURCE_VAL, LEFT_OUT), scores)
    assert left == ((SOURCE_VAL, LEFT_OUT) if can else (SOURCE_VAL,))
    assert len(why) == (not can)
    if not can:
        with pytest.raises(ManifestError, match="three known classes or more"):
            thresholds_for(given, "video", "audio", (LEFT_OUT,), scores)


def test_a_threshold_is_carried_to_the_scale_of_the_target() -> None:
    source = np.arange(40.0)
    for threshold in (0.0, 3.0, 3.5, 39.0):
        carried = transfer_threshold(threshold, source, source[::-1] * 0.1 - 7)
        assert (source * 0.1 - 7 < carried).sum() == (source < threshold).sum()
    assert transfer_threshold(100.0, source, source) == 39.0


def test_the_paired_quantile_needs_pairs_and_looks_at_no_label_of_theirs() -> None:
    clips = make_clips(8, "train") + make_clips(8, "val") + make_clips(5, "test")
    ids = {clip.clip_id for clip in clips}
    split = split_clips(clips, ("a", "b"), source_ids=ids, target_ids=ids, seed=0, paired_ids=ids)

    def outcome(given: OpenSetSplit) -> OpenSetResult:
        (found,) = run_oscmg(
            *(PatternEncoder(), given, "video", "audio"),
            config=QUICK,
            seed=0,
            thresholds=("paired-quantile",),
        )
        return found

    found = outcome(split)
    assert "48 unlabelled pairs, none of them trained or tested on: 16 of known" in found.note
    assert "classes, 32 of others or without a class" in found.note
    assert found.metrics.acc == 1.0
    shuffled = replace(split, pairs=split.pairs[::-1])
    assert outcome(shuffled).metrics == found.metrics
    with pytest.raises(ManifestError, match="expected 20 or more clips with video and audio"):
        outcome(replace(split, pairs=split.pairs[:19]))


def test_the_oracle_s_threshold_may_be_had_at_the_epoch_of_the_source(split: OpenSetSplit) -> None:
    on_validation, on_test = split.labels(split.validation), split.labels(split.test)
    right = np.eye(2)[on_validation]
    known = np.eye(2)[np.maximum(on_test, 0)]
    low, high = np.linspace(0, 0.4, len(on_test)), np.linspace(0.6, 1, len(on_test))
    overlapping = np.where(on_test == UNKNOWN, low, high)
    overlapping[np.flatnonzero(on_test == UNKNOWN)[:3]] = 0.9
    parts = {"validation": right, "test": known}
    sure = np.full(len(right), 0.95)
    candidates = [  # the first is right on validation clips, the second parts the test clips
        Candidate(parts, {"msp": {"validation": sure, "test": overlapping}}),
        Candidate(
            {**parts, "validation": 1 - right},
            {"msp": {"validation": sure, "test": np.where(on_test == UNKNOWN, low, high)}},
        ),
    ]
    mapped = ClipMap(np.zeros((0, 2), np.float32), (), (), ())
    sources = ("source-val", "oracle-at-source-epoch", "oracle")
    honest, mixed, oracle = (_conclude(candidates, split, mapped, "msp", s) for s in sources)
    assert (honest.epoch, mixed.epoch, oracle.epoch) == (0, 0, 1)
    assert honest.metrics.hos < mixed.metrics.hos < oracle.metrics.hos == 1
    assert honest.metrics.auroc == mixed.metrics.auroc
    assert mixed.note.startswith(
        "best HOS on the test set over 10 thresholds, its epoch by 6 known"
    )
    assert "probe 1 of 2 by their accuracy" in mixed.note
    closed = replace(split, test=tuple(c for c in split.test if c.label in split.known))
    kept = on_test != UNKNOWN
    seen = Candidate(
        {**parts, "test": known[kept]}, {"msp": {"validation": sure, "test": overlapping[kept]}}
    )
    alone = _conclude([seen], closed, mapped, "msp", sources[1])
    assert alone.note.startswith("no HOS without test clips")


def test_the_epoch_is_the_most_accurate_then_the_surest_then_the_first() -> None:
    labels = np.array([0, 1])
    wrong, unsure, sure = (
        np.array(rows) for rows in ([[0, 9], [0, 9]], [[1, 0], [0, 1]], [[5, 0], [0, 5]])
    )

    def chosen(*logits: np.ndarray) -> int:
        return choose_on_validation(logits, labels, [max_softmax(x) for x in logits]).epoch

    assert chosen(wrong, unsure, sure, sure) == 2
    assert chosen(unsure, wrong) == 0


def test_the_oracle_looks_at_all_epochs_and_keeps_the_first_of_equals() -> None:
    labels = np.array([0, 1, UNKNOWN])
    good = np.array([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
    bad = good[[1, 0, 2]]
    tables = [bad, good, good]
    choice = choose_on_test(tables, labels, [max_softmax(table) for table in tables])
    assert choice.epoch == 1
    assert 0.5 < choice.threshold < 1.0


def test_the_oracle_without_unknown_samples_still_answers() -> None:
    choice = choose_on_test([np.eye(2)], np.array([0, 1]), [max_softmax(np.eye(2))])
    assert (choice.epoch, math.isfinite(choice.threshold)) == (0, True)


def test_holding_out_ten_thousand_classes_is_one_pass() -> None:
    clips = [
        Clip(clip_id=f"{label}/{number}", label=str(label), split="train")
        for label in range(10_000)
        for number in range(2)
    ]
    asked = []
    stays, held = hold_out(clips, 0, classes_of=lambda clip: (asked.append(clip) or clip.label,))
    assert (len(stays), len(held)) == (10_000, 10_000)
    assert len(asked) == len(clips)  # a pass per class would be 2 × 10⁸ questions


@pytest.mark.parametrize("classes", [2, 6, 14])
def test_chance_is_the_best_any_rate_of_rejection_gives(classes: int) -> None:
    best = 0.0
    for rate in np.linspace(0.001, 0.999, 999):
        right = (1 - rate) / classes
        best = max(best, 2 * right * rate / (right + rate))
    found = chance(classes)
    assert found["hos"] == pytest.approx(best, abs=1e-5)
    assert found["hos"] == pytest.approx(2 / (1 + math.sqrt(classes)) ** 2)
    assert found["acc"] == pytest.approx(1 / classes)
    assert found["oscr"] == pytest.approx(0.5 / classes)
    assert found["auroc"] == 0.5
    assert found["unk"] + classes * found["os_star"] == pytest.approx(1)
    assert found["os_star_class_mean"] == found["os_star"]
    assert found["hos_class_mean"] == found["hos"]


@pytest.mark.parametrize("source", [SOURCE_VAL, PAIRED_QUANTILE, ORACLE, ORACLE_AT_SOURCE_EPOCH])
def test_the_note_counts_the_chosen_probe_from_one(split: OpenSetSplit, source: str) -> None:
    told = _tell_choice(split, source, Choice(epoch=2, threshold=0.5), probes=8)
    assert ("; probe 3" if source == ORACLE else "; probe 3 of 8 by their accuracy") in told
    assert ("best HOS on the test set over 10 thresholds and 8 probes" in told) == (
        source == ORACLE
    )
    assert ("best HOS on the test set over 10 thresholds, its epoch by" in told) == (
        source == ORACLE_AT_SOURCE_EPOCH
    )
    assert ("accepts 95% or more of" in told) == (source in (SOURCE_VAL, PAIRED_QUANTILE))
    assert ("carried to the target modality by 0 unlabelled pairs" in told) == (
        source == PAIRED_QUANTILE
    )


@pytest.mark.parametrize("source", [SOURCE_VAL, ORACLE, ORACLE_AT_SOURCE_EPOCH])
@pytest.mark.parametrize("known", [False, True])
def test_without_one_kind_of_test_clips_the_note_says_what_was_chosen_by(
    split: OpenSetSplit, source: str, known: bool
) -> None:
    kind = tuple(clip for clip in split.test if (clip.label in split.known) == known)
    told = _tell_choice(replace(split, test=kind), source, Choice(0, 0.5), probes=8)
    lowest = "the lowest score of the {} of 8 probes"
    assert (lowest.format("first") in told) == (source == ORACLE)
    assert (lowest.format("most accurate") in told) == (source == ORACLE_AT_SOURCE_EPOCH)


@pytest.mark.parametrize(
    ("target", "paired", "lacks"),
    [("audio", (), True), ("audio", ("a",), False), ("video", (), False), ("video", ("a",), False)],
)
def test_errors_of_another_modality_need_clips_that_have_both(
    split: OpenSetSplit, target: str, paired: tuple[str, ...], lacks: bool
) -> None:
    assert _lacks_pairs(replace(split, paired=paired), "video", target) is lacks


@pytest.mark.parametrize("paired", [(), ("a",)])
@pytest.mark.parametrize("codes", [0, 8])
@pytest.mark.parametrize("target", ["audio", "video"])
def test_all_scores_are_those_that_clips_and_features_allow(
    split: OpenSetSplit, target: str, codes: int, paired: tuple[str, ...]
) -> None:
    encoder = PatternEncoder()
    encoder.codebook_size = codes
    given = replace(split, paired=paired)
    names, left_out = scores_for(encoder, given, "video", target, "all")
    lacks = target == "audio" and not paired
    assert (QUANTIZATION in names) == (codes > 0 and not lacks)
    assert set(names) == {
        name
        for name in SCORES
        if (codes or name not in CODE_SCORES) and not (name == QUANTIZATION and lacks)
    }
    assert len(left_out) == (codes > 0 and lacks)
    if left_out:
        assert left_out[0].startswith(f"--score {QUANTIZATION}: no training clip has audio feat")
        with pytest.raises(ConfigError, match="no training clip has audio features"):
            scores_for(encoder, given, "video", target, QUANTIZATION)
    elif codes:
        assert scores_for(encoder, given, "video", target, QUANTIZATION) == ((QUANTIZATION,), ())


@pytest.mark.parametrize("pairs", [0, FEWEST_PAIRS - 1, FEWEST_PAIRS])
def test_thresholds_that_cannot_be_are_left_out_unless_none_is_left(
    split: OpenSetSplit, pairs: int
) -> None:
    assert FEWEST_PAIRS == 20
    given = replace(split, pairs=tuple(map(str, range(pairs))))
    both, alone = (SOURCE_VAL, PAIRED_QUANTILE), (PAIRED_QUANTILE,)
    assert thresholds_for(given, "video", "audio", (SOURCE_VAL,)) == ((SOURCE_VAL,), ())
    if pairs == FEWEST_PAIRS:
        for asked in (both, alone):
            assert thresholds_for(given, "video", "audio", asked) == (asked, ())
        return
    left, why = thresholds_for(given, "video", "audio", both)
    assert left == (SOURCE_VAL,)
    assert len(why) == 1
    with pytest.raises(ManifestError) as caught:
        thresholds_for(given, "video", "audio", alone)
    assert str(caught.value) == why[0]
