"""The demo's report: the right numbers, everything in one file, nothing from elsewhere."""

import csv
import json
import math
from pathlib import Path

import pytest

from micu_extract.demo.report import (
    Failed,
    Report,
    Typed,
    read_failures,
    read_scores,
    render_page,
    render_summary,
)

COLUMNS = (
    *("task", "method", "train_modality", "test_modality", "seed", "threshold_source"),
    *("metric", "value"),
)
ROWS = [
    ("oscmg", "checkpoint", "video", "audio", 1, "source-val", "hos", 0.4),
    ("oscmg", "checkpoint", "video", "audio", 2, "source-val", "hos", 0.6),
    ("oscmg", "checkpoint", "video", "audio", 1, "oracle", "hos", 0.9),
    ("oscmg", "checkpoint", "flow", "audio", 1, "source-val", "hos", 0.3),
    ("oscmg", "untrained", "video", "audio", 1, "source-val", "hos", 0.2),
    ("oscmg", "untrained", "flow", "audio", 1, "source-val", "hos", 0.2),
    ("oscmg", "ceiling", "audio", "audio", 1, "source-val", "hos", 0.8),
    ("oscmg", "ceiling", "flow", "flow", 1, "source-val", "hos", 0.1),
    ("oscmg", "chance", "video", "audio", 1, "none", "hos", 0.16),
    ("codebook", "checkpoint", "video", "audio", 1, "none", "hos", 0.7),
]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    write(tmp_path / "results.csv", COLUMNS, ROWS)
    spec = {"versions": {"torch": "2.9"}, "shape": [8], "weights": "random:0"}
    made = {"header": {"spec": {**spec, "weights_sha256": "c0ffee" * 6}}}
    (tmp_path / "features/m/video-x").mkdir(parents=True)
    (tmp_path / "features/m/video-x/set.json").write_text(json.dumps(made))
    counts = [(0, "audio", 8), (0, "video", 8), (1, "audio", 0), (1, "video", 8), (2, "audio", 0)]
    write(tmp_path / "codebook.csv", ("code", "modality", "count"), [*counts, (2, "video", 0)])
    return Report(
        typed=(Typed("micu-train --set x=<1>", 0, 12.34, "a note"),),
        failures=(Failed("video-x", "clip <1>", "empty", "no bytes & nothing"),),
        features=tmp_path / "features",
        results=tmp_path / "results.csv",
        codebook=tmp_path / "codebook.csv",
        seeds=2,
        wall_s=99.6,
    )


def write(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_scores_are_means_over_seeds_of_one_protocol(report: Report) -> None:
    scores = read_scores(report.results, "hos", "source-val")

    assert list(scores.by_pair) == ["video → audio", "flow → audio"]
    assert scores.mean("video → audio", "checkpoint") == pytest.approx(0.5)
    assert scores.overall("checkpoint") == pytest.approx(0.4)
    assert read_scores(report.results, "hos", "oracle").mean(
        "video → audio", "checkpoint"
    ) == pytest.approx(0.9)


def test_the_ceiling_stands_beside_every_pair_with_its_target(report: Report) -> None:
    scores = read_scores(report.results, "hos", "source-val")

    assert scores.mean("video → audio", "ceiling") == scores.mean("flow → audio", "ceiling") == 0.8


def test_what_was_not_measured_is_a_dash_and_not_a_zero(report: Report) -> None:
    scores = read_scores(report.results, "hos", "source-val")

    assert math.isnan(scores.mean("flow → audio", "chance"))
    line = next(x for x in render_summary(report).splitlines() if x.startswith("flow → audio"))
    assert line.split()[-1] == "–"


def test_the_summary_gives_the_ratio_and_says_that_it_is_a_toy(report: Report) -> None:
    summary = render_summary(report)

    assert "2.0 times" in summary
    assert "toy" in summary
    assert "mean of 2 models" in summary


def test_the_page_needs_nothing_from_elsewhere(report: Report) -> None:
    page = render_page(report)

    for part in ("http:", "https:", "src=", "href=", "url(", "<script", "@import"):
        assert part not in page
    assert page.count("<svg") == page.count("</svg>") == 2
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_names_as_text_and_never_as_markup(report: Report) -> None:
    page = render_page(report)

    assert "clip &lt;1&gt;" in page
    assert "no bytes &amp; nothing" in page
    assert "--set x=&lt;1&gt;  # a note" in page


def test_the_page_counts_used_and_shared_codes(report: Report) -> None:
    page = render_page(report)

    assert "2 of 3 codes are used, 1 of them by every modality" in page
    assert "<td>video</td><td>2</td><td>2.0</td>" in page


def test_the_page_says_what_made_the_features(report: Report) -> None:
    cells = ("video-x", "(T, 8)", "random:0", "c0ffeec0ffee", "torch 2.9")

    assert "".join(f"<td>{cell}</td>" for cell in cells) in render_page(report)


def test_failures_are_read_from_every_ledger(tmp_path: Path) -> None:
    for name, rows in (("audio-x", []), ("video-x", [("a", "decode", "empty", "no bytes")])):
        (tmp_path / "m" / name).mkdir(parents=True)
        columns = ("clip_id", "stage", "code", "message")
        write(tmp_path / "m" / name / "failures.csv", columns, rows)

    assert read_failures(tmp_path) == (Failed("video-x", "a", "empty", "no bytes"),)
