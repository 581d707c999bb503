"""The studies of the real-data benchmark: draws, thresholds, criteria, and who is told apart."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from benchmarks.real import main, plan_of
from benchmarks.real_answers import Answers, answers_of
from benchmarks.real_choices import (
    RULES,
    Tried,
    agreed,
    certainty,
    criteria_table,
    otsu,
    rank_correlation,
    rates,
    thresholds_table,
    two_normals,
)
from benchmarks.real_draws import is_of_test_speaker, place_of_draw, write_draw
from benchmarks.real_methods import DATA_SETS
from benchmarks.real_power import (
    bootstrap,
    compare,
    corrected_error,
    holm,
    means_of_draws,
    measure,
    power_table,
)
from benchmarks.real_runs import retrieve, rows_of_split
from micu.evaluate.metrics import UNKNOWN
from micu.report.drawings import render
from micu.store.manifest import read_class_list, read_manifest
from micu.store.sets import FeatureStore, find_sets

OBJECTS = DATA_SETS["av-objects"]
SMALL = ("--smoke", "--sets", "av-objects", "--methods", "micu,skeleton", "--workers", "1")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both studies of a toy."""
    root = tmp_path_factory.mktemp("studies")
    for stage in ("tune", "train", "choices", "draws"):
        words = [*SMALL, "--out", str(root), "--stage", stage, "--draws", "2", "--seeds", "1"]
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return root


def test_the_answers_are_those_of_the_evaluation(out: Path) -> None:
    plan = plan_of(out, ["av-objects"], ["micu"], 1, 1, 1, smoke=True)
    [run] = plan.runs(OBJECTS, "micu")
    rows = {
        (row.train_modality, row.test_modality, row.metric): row.value
        for row in rows_of_split(plan.place, run, 8)
        if row.threshold_source == "source-val"
    }
    answers = answers_of(plan.place, run, 8)
    assert set(answers) == set(OBJECTS.pairs)
    for (source, target), found in answers.items():
        for metric in ("hos", "auroc", "acc"):
            assert measure(found, metric) == pytest.approx(rows[source, target, metric], abs=1e-12)
        assert rates(RULES[0], found)[0] == pytest.approx(rows[source, target, "os_star"])
        assert len(found.pairs_source) == len(found.pairs_target) > 0
        assert len(found.validation) == len(found.validation_target) == 8 * 3
    assert not np.array_equal(answers["video", "audio"].test, answers["audio", "video"].test)


def test_recall_of_validation_pairs_reads_no_test_clip(out: Path) -> None:
    plan = plan_of(out, ["av-objects"], ["micu"], 1, 1, 1, smoke=True)
    run = plan.runs(OBJECTS, "micu")[0]
    assert list(retrieve(plan.place, run)) == ["R@1", "R@5", "R@10"]
    with (run.folder(plan.place) / "retrieval.csv").open(newline="") as file:
        assert {row["splits"] for row in csv.DictReader(file)} == {"test=val"}


def test_a_draw_deals_items_anew_with_their_own_features(out: Path) -> None:
    plan = plan_of(out, ["av-objects"], ["micu"], 1, 1, 2, smoke=True)
    there = place_of_draw(plan.place, 1)
    assert place_of_draw(plan.place, 0) == plan.place
    first, dealt = (read_manifest(place.manifest(OBJECTS)) for place in (plan.place, there))
    lists = [read_class_list(place.known(OBJECTS, 8)) for place in (plan.place, there)]
    assert lists[0] != lists[1]
    split = {clip.clip_id: clip.split for clip in first.clips}
    assert len({clip.path for clip in dealt.clips}) > len(dealt.clips) / 2
    moved = 0
    for folder in find_sets(there.features):
        copy = FeatureStore(folder, dealt)
        store = FeatureStore(plan.place.features / folder.relative_to(there.features))
        for clip in dealt.clips:
            origin = clip.path.split("+")[copy.spec.modality == "audio"]
            assert np.array_equal(copy.read(clip.clip_id).values, store.read(origin).values)
            moved += split[origin] != clip.split
    assert moved
    before = there.manifest(OBJECTS).read_bytes()
    write_draw(plan.place, OBJECTS, 1)
    assert there.manifest(OBJECTS).read_bytes() == before


def test_speakers_of_the_test_stay_there() -> None:
    assert is_of_test_speaker("fsdd/3_theo_7.wav")
    assert not is_of_test_speaker("fsdd/3_lucas_7.wav")
    assert not is_of_test_speaker("audio/person/theo_theo.wav")


def test_the_studies_leave_their_tables_and_drawings(out: Path) -> None:
    choices, draws = ((out / f"{name}.md").read_text() for name in ("choices", "draws"))
    for rule in RULES:
        assert rule.title in choices
    assert "R@5 of validation pairs" in choices
    for title in ("MICU", "no alignment", "better than", "told apart from"):
        assert title in draws
    assert len(list((out / "figures").glob("*.svg"))) == 3


# --- thresholds ------------------------------------------------------------------------------


def logits_of(*surest: float, classes: int = 3) -> np.ndarray:
    """Logits whose first class has these probabilities, the others equal ones."""
    p = np.array(surest)[:, None]
    return np.log(np.concatenate([p, np.repeat((1 - p) / (classes - 1), classes - 1, 1)], 1))


def test_otsu_parts_two_groups() -> None:
    assert otsu(np.array([0.1, 0.2, 0.8, 0.9, 0.95])) == 0.8
    assert otsu(np.array([0.9, 0.1])) == 0.9


def test_two_normals_accept_the_upper_one() -> None:
    draw = np.random.default_rng(0)
    scores = np.concatenate([draw.normal(0.3, 0.03, 90), draw.normal(0.8, 0.05, 60)])
    assert 0.4 < two_normals(scores) < 0.75


def test_agreement_accepts_what_the_source_accepts() -> None:
    source, target = np.array([0.9, 0.8, 0.3, 0.2]), np.array([0.5, 0.4, 0.35, 0.1])
    assert agreed(source, target, 0.8) == 0.4
    assert agreed(source, target, 0.9) == 0.5
    assert agreed(source, target, 0.1) == 0.1  # all are accepted: as many as by `carried`


def test_certainty_is_one_minus_the_share_of_the_largest_entropy() -> None:
    assert certainty(logits_of(1 / 3)) == pytest.approx(0)
    assert certainty(np.array([[1000.0, 0, 0]])) == pytest.approx(1)
    half = -(0.8 * math.log(0.8) + 0.2 * math.log(0.1)) / math.log(3)
    assert certainty(logits_of(0.8)) == pytest.approx(1 - half)


def answers(shift: float = 0.0, seed: int = 0, n: int = 60) -> Answers:
    """Known clips are surer than unknown ones; `shift` makes all test clips less sure."""
    draw = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2, UNKNOWN], n // 4)
    strength = np.where(labels == UNKNOWN, 0.5, 3.0)[:, None]
    logits = strength * (np.arange(3) == np.maximum(labels, 0)[:, None])
    noisy = logits + draw.normal(0, 0.7, logits.shape)
    known = labels != UNKNOWN
    return Answers(
        validation=noisy[known] * 2,
        validation_target=noisy[known] * 2 * math.exp(-shift),
        validation_labels=labels[known],
        test=noisy * 2 * math.exp(-shift),
        test_labels=labels,
        test_ids=np.arange(n).astype(str),
        pairs_source=noisy * 2,
        pairs_target=noisy * 2 * math.exp(-shift),
    )


def test_a_threshold_that_is_carried_follows_a_shift() -> None:
    by_title = {rule.title: rule for rule in RULES}
    source, carried = (
        by_title[f"{name})"] for name in (
            "accepts 95 % of source validation (source-val", "carried (paired-quantile"
        )
    )  # fmt: skip
    plain, shifted = answers(), answers(1.5)
    assert rates(source, shifted)[0] < rates(source, plain)[0] - 0.3
    assert rates(carried, shifted) == pytest.approx(rates(carried, plain), abs=0.05)


def test_the_thresholds_table_has_the_oracle_last_and_nothing_ahead_of_it() -> None:
    lines = thresholds_table([answers(), answers(1.0, 1)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["a user has", "threshold", "HOS", "behind", "worst", "OS*", "UNK"]
    assert len(cells) == 2 + len(RULES)
    assert cells[-1][3] == "0.0"
    assert all(float(row[3]) >= 0 for row in cells[2:]), "nothing is ahead of the best"
    assert all(float(row[4]) <= float(row[2]) for row in cells[2:])


# --- settings --------------------------------------------------------------------------------


def test_a_criterion_is_told_by_what_it_chooses() -> None:
    def tried(blind: float, sees: float, auroc: float) -> Tried:
        return Tried({"blind": blind, "sees": sees}, {"auroc": auroc, "hos": auroc / 2, "acc": 1.0})

    settings = {
        "a": [tried(0.9, 0.1, 0.6), tried(0.9, 0.3, 0.8), tried(0.9, 0.2, 0.7)],
        "b": [tried(0.8, 0.2, 0.5), tried(0.9, 0.1, 0.4), tried(0.7, 0.3, 0.9)],
    }
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in criteria_table(settings).splitlines()[2:]
    ]
    assert rows == [
        ["blind", "-0.50", "50.0", "25.0", "100.0"],
        ["sees", "1.00", "85.0", "42.5", "100.0"],
        ["any of them (mean)", "", "65.0", "32.5", "100.0"],
        ["the best on the test", "", "85.0", "42.5", "100.0"],
    ]
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0


# --- who is told apart -----------------------------------------------------------------------


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([math.nan, 0.01]) == pytest.approx([1.0, 0.02])


def test_draws_that_share_clips_count_for_less() -> None:
    gaps = np.array([0.1, 0.2, 0.3, 0.2])
    plain = gaps.std(ddof=1) / 2
    assert corrected_error(gaps) == pytest.approx(plain * math.sqrt(1 + 4 * 0.25 / 0.6))
    assert math.isnan(corrected_error(gaps[:1]))


def test_a_difference_is_tested_over_draws_and_corrected_for_all_pairs() -> None:
    means = {"a": [0.5, 0.6, 0.7], "b": [0.6, 0.71, 0.79], "c": [0.5, 0.61, 0.69]}
    found = {(d.better, d.worse): d for d in compare(means)}
    assert set(found) == {("b", "a"), ("b", "c"), ("a", "c")} or ("c", "a") in found
    one = found["b", "a"]
    error = corrected_error(np.array([0.1, 0.11, 0.09]))
    assert (one.mean, one.error) == (pytest.approx(0.1), pytest.approx(error))
    raw = 2 * stats.t.sf(0.1 / error, 2)
    assert raw < one.p <= 3 * raw + 1e-12


def test_equal_methods_are_not_told_apart() -> None:
    [same] = compare({"a": [0.5, 0.5], "b": [0.5, 0.5]})
    assert (same.mean, same.p) == (0.0, 1.0)


RESULTS = {
    "good": [[{("v", "a", 3): answers(0, seed)}] for seed in range(3)],
    "bad": [
        [{("v", "a", 3): replace(one, test=one.test[::-1])}]
        for one in (answers(0, seed) for seed in range(3))
    ],
}


def test_an_interval_is_about_the_mean_and_pairs_methods() -> None:
    means, sampled = means_of_draws(RESULTS, "auroc"), bootstrap(RESULTS, "auroc", 200)
    for name, values in sampled.items():
        assert values.shape == (200,)
        assert abs(values.mean() - np.mean(means[name])) < 0.03
        assert 0 < values.std() < 0.1
    again = bootstrap({"x": RESULTS["good"], "good": RESULTS["good"]}, "auroc", 50)
    assert np.array_equal(again["x"], again["good"])


def test_the_table_says_who_is_better_than_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.real_power.RESAMPLES", 50)
    text, drawing = power_table(RESULTS, "auroc")
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["method", "AUROC", "95 % interval", "better than"]
    assert [row[0] for row in rows[2:4]] == ["good", "bad"]
    assert [row[3] for row in rows[2:4]] == ["bad", "none"]
    low, high = map(float, rows[2][2].split(" to "))
    assert low < float(rows[2][1]) < high
    assert b"<svg" in render(drawing, "svg")
