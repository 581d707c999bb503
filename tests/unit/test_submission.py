"""What passes as a submission, and where it stands on the board."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from micu.cli.evaluate import main
from micu.evaluate.report import Row, write_rows
from micu.report.submission import find_problems, tabulate_board

ROW = Row(
    task="oscmg",
    method="checkpoint",
    train_modality="video",
    test_modality="audio",
    preset="micu",
    seed=0,
    threshold_source="source-val",
    metric="hos",
    value=0.5,
    protocol="clean",
    score="msp",
    checkpoint_sha256="a" * 64,
    manifest_sha256="b" * 64,
    test_sha256="c" * 64,
    n_clips=20,
    n_lacking=0,
    known_classes=14,
    class_list="ave-14",
)
SEEDS = [replace(ROW, seed=seed, value=0.5 + seed / 100) for seed in range(5)]


def test_five_seeds_under_clean_with_hashes_and_without_leaks_pass() -> None:
    paper = replace(ROW, protocol="paper", threshold_source="oracle", leaks="epoch:test")
    assert find_problems([*SEEDS, paper]) == []
    told = "pretraining-overlap:unknown;pretraining-text:labels"
    unknown = [replace(row, leaks=told) for row in SEEDS]
    assert find_problems(unknown) == []
    frozen = [replace(r, method="frozen:x", preset="", checkpoint_sha256="") for r in SEEDS]
    assert find_problems(frozen) == []
    two = [replace(row, manifest_sha256=f"{'b' * 64} {'d' * 64}") for row in SEEDS]
    assert find_problems(two) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaks": "test-clips-in-training:3"}, "rests on test-clips-in-training:3"),
        ({"leaks": "pretraining-overlap:2"}, "rests on pretraining-overlap:2"),
        ({"threshold_source": "oracle"}, "its threshold is chosen on the test set (oracle)"),
        ({"checkpoint_sha256": ""}, "checkpoint_sha256: expected SHA-256"),
        ({"test_sha256": "c" * 63}, "test_sha256: expected SHA-256"),
        ({"manifest_sha256": "B" * 64}, "manifest_sha256: expected SHA-256"),
        ({"value": 1.01}, "value: expected [0, 1], got 1.01"),
        ({"value": float("nan")}, "value: expected [0, 1], got nan"),
        ({"seed": None}, "it has no seed"),
        ({"seed": 1}, "expected 5 seeds or more, one row each, got 5 rows of 4 seeds"),
    ],
)
def test_what_is_wrong_is_told(change: dict[str, Any], message: str) -> None:
    problems = find_problems([replace(SEEDS[0], **change), *SEEDS[1:]])
    assert any(message in problem for problem in problems), problems


def test_four_seeds_and_rows_of_the_other_protocol_alone_are_too_few() -> None:
    [problem] = find_problems(SEEDS[:4])
    assert "got 4 rows of 4 seeds; evaluate with --seeds 5" in problem
    [problem] = find_problems([replace(row, protocol="paper") for row in SEEDS])
    assert "no row of a method under protocol clean" in problem


def test_the_board_has_means_over_pairs_then_seeds_the_best_first() -> None:
    back = [replace(r, train_modality="audio", test_modality="video", value=0.7) for r in SEEDS]
    good = [*SEEDS, *back]
    poor = [replace(row, value=0.1) for row in SEEDS]
    table = tabulate_board({"poor": poor, "good": good})
    assert [row[0] for row in table.rows] == ["submission", "good", "poor"]
    found = dict(zip(table.rows[0], table.rows[1], strict=True))
    assert found["mean"] == "61.00 ± 0.79"
    assert found["rests on"] == ""
    assert (found["pairs"], found["seeds"], found["by"]) == ("2", "5", "source-val msp")
    assert found["tested clips"] == "cccccccc"


def test_a_folder_of_submissions_becomes_a_board_of_those_that_pass(tmp_path: Path) -> None:
    for name, rows in (("fine", SEEDS), ("short", SEEDS[:3])):
        (tmp_path / name).mkdir()
        write_rows(rows, tmp_path / name / "results.csv")
    board = tmp_path / "leaderboard.md"
    result = CliRunner().invoke(main, ["check", str(tmp_path), "--board", str(board)])
    assert result.exit_code == 3
    assert "fine/results.csv: passes" in result.output
    assert "got 3 rows of 3 seeds" in result.output
    text = board.read_text()
    assert "| fine " in text
    assert "| short " not in text
    alone = CliRunner().invoke(main, ["check", str(tmp_path / "fine" / "results.csv")])
    assert alone.exit_code == 0
    empty = CliRunner().invoke(main, ["check", str(tmp_path / "fine" / "none")])
    assert empty.exit_code == 2
