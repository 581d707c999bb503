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


def test_hos_is_the_mean_over_seeds_of_what_looks_at_no_test_clip(results: Path) -> None:
    table = read_hos(results)
    assert list(table.index) == [("video", "audio"), ("flow", "audio")]
    assert table.loc[("video", "audio"), "checkpoint"] == pytest.approx(0.5)
    assert table.loc[("flow", "audio"), "checkpoint"] == pytest.approx(0.3)
    # Trained on the target alone, the ceiling stands beside every pair with that target.
    assert list(table.ceiling) == [0.8, 0.8]
    assert math.isnan(table.loc[("flow", "audio"), "chance"])


def test_the_closing_words_give_means_the_ratio_and_say_that_it_is_a_toy(results: Path) -> None:
    told = tell_results(results, 2)
    lines = {line.split("  ")[0]: line.split() for line in told.splitlines()}
    assert lines["flow → audio"][-4:] == ["30.0", "20.0", "80.0", "–"]
    assert lines["mean"] == ["mean", "40.0", "20.0", "80.0", "–"]
    assert "MICU reaches 2.0 times what its untrained twin reaches." in told
    assert "A toy" in told
    assert "the mean of 2 models" in told
    assert "one model" in tell_results(results, 1)


def test_an_untrained_twin_that_reaches_nothing_has_no_ratio(results: Path) -> None:
    results.write_text(results.read_text().replace("source-val,hos,0.2", "source-val,hos,0"))
    assert "MICU reaches 40.0 %, its untrained twin nothing." in tell_results(results, 1)
