"""The demo's closing words: the right means, from what `micu-eval` wrote."""

import csv
import math
from pathlib import Path

import pytest

from micu_extract.demo.tour import read_hos, tell_results

COLUMNS = (
    *("task", "method", "train_modality", "test_modality", "seed", "threshold_source"),
    *("metric", "value"),
)
ROWS = [
    ("oscmg", "checkpoint", "video", "audio", 1, "source-val", "hos", 0.4),
    ("oscmg", "checkpoint", "video", "audio", 2, "source-val", "hos", 0.6),
    ("oscmg", "checkpoint", "video", "audio", 2, "source-val", "acc", 0.1),
    ("oscmg", "checkpoint", "video", "audio", 1, "oracle", "hos", 0.9),
    ("oscmg", "checkpoint", "flow", "audio", 1, "source-val", "hos", 0.3),
    ("oscmg", "untrained", "video", "audio", 1, "source-val", "hos", 0.2),
    ("oscmg", "untrained", "flow", "audio", 1, "source-val", "hos", 0.2),
    ("oscmg", "ceiling", "audio", "audio", 1, "source-val", "hos", 0.8),
    ("oscmg", "ceiling", "flow", "flow", 1, "source-val", "hos", 0.1),
    ("oscmg", "chance", "video", "audio", 1, "none", "hos", 0.16),
    ("codebook", "checkpoint", "video", "audio", 1, "none", "hos", 0.7),
    ("codebook", "checkpoint", "video", "", 1, "none", "perplexity", "nan"),
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    with (tmp_path / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *ROWS])
    return tmp_path / "results.csv"


def test_hos_is_of_each_seed_and_of_what_looks_at_no_test_clip(results: Path) -> None:
    table = read_hos(results)
    pairs = "video → audio", "flow → audio"
    assert list(table.index) == [(1, pairs[0]), (1, pairs[1]), (2, pairs[0])]
    assert list(table.checkpoint) == pytest.approx([0.4, 0.3, 0.6])
    # Trained on the target alone, the ceiling stands beside every pair with that target.
    assert list(table.ceiling) == pytest.approx([0.8, 0.8, math.nan], nan_ok=True)
    assert math.isnan(table.loc[(1, pairs[1]), "chance"])


def test_the_closing_words_give_means_the_ratio_and_say_that_it_is_a_toy(results: Path) -> None:
    told = tell_results(results, 2)
    lines = {line.split("  ")[0]: line.split() for line in told.splitlines()}
    assert lines["flow → audio"][-4:] == ["30.0", "20.0", "80.0", "–"]
    assert "50.0 ± 14.1" in told  # of both seeds
    # A seed that lacks a pair is in no mean over pairs.
    assert lines["mean"] == ["mean", "35.0", "20.0", "80.0", "–"]
    assert "MICU reaches 1.7 times what its untrained twin reaches." in told
    assert "A toy" in told
    assert "mean ± standard deviation of 2 models" in told
    assert "one seed gave 52.6 or 17.5 by the number of threads" in told
    assert "one model" in tell_results(results, 1)


def test_an_untrained_twin_that_reaches_nothing_has_no_ratio(results: Path) -> None:
    results.write_text(results.read_text().replace("source-val,hos,0.2", "source-val,hos,0"))
    assert "MICU reaches 35.0 %, its untrained twin nothing." in tell_results(results, 1)
