"""A sweep's table: what its runs logged and found, over the seeds."""

import csv
import json
import math
import statistics
from pathlib import Path

import pytest

from micu.base.files import file_sha256
from micu.cli.sweep_table import TRAINING, collect, render_sweep, write_table
from micu.evaluate.report import Row, write_rows
from micu.sweep.plan import SweepRun
from tests.unit.test_sweep import plan

TOTALS = {"4": [1.0, 2.0, 4.5], "8": [3.0, 3.0, math.nan]}
HOS = {"4": [0.2, 0.4, 0.6], "8": [0.5, 0.5, 0.5]}


def result(metric: str, value: float, checkpoint: str, seed: int) -> Row:
    return Row(
        task="oscmg",
        method="checkpoint",
        train_modality="video",
        test_modality="audio",
        preset="micu with quantizer.codebook_size=4",
        seed=seed,
        threshold_source="source-val",
        metric=metric,
        value=value,
        n_clips=3,
        checkpoint_sha256=checkpoint,
        manifest_sha256="0",
        score="msp",
    )


def finished(out: Path) -> list[SweepRun]:
    """Folders of finished runs: two probes each, and rows of a checkpoint that is gone."""
    runs = plan("quantizer.codebook_size=4,8", seeds=3)
    for run in runs:
        folder, size = out / run.name, run.values["quantizer.codebook_size"]
        folder.mkdir(parents=True)
        number = run.config.seed - 43
        total = TOTALS[size][number]
        rows = [
            {"step": 1, "epoch": 0, "total": 99.0, "fine": 9.0, "active_codes": 1},
            {
                "step": 2,
                "epoch": 1,
                "learning_rate": 0.1,
                "grad_norm_encoder": 5.0,
                "total": None if math.isnan(total) else total,
                "fine": 1.0,
                "active_codes": 7,
                "skipped": 0,
            },
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "metrics.csv").write_text("step,total\n1,99\n")
        (folder / "last.pt").write_bytes(run.name.encode())
        sha256 = file_sha256(folder / "last.pt")
        hos = HOS[size][number]
        found = [result("hos", hos + shift, sha256, seed) for seed, shift in ((0, -0.1), (1, 0.1))]
        write_rows([*found, result("hos", 0.99, "gone", 0)], folder / "any-name.csv")
    return runs


def test_the_table_has_mean_and_deviation_over_the_runs_of_a_setting(tmp_path: Path) -> None:
    runs = finished(tmp_path)
    rows = collect(runs, tmp_path)
    write_table(rows, runs, tmp_path / "sweep.csv")

    with (tmp_path / "sweep.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    found = {
        (line["quantizer.codebook_size"], line["task"], line["metric"]): (
            float(line["mean"]),
            float(line["std"] or "nan"),
            int(line["runs"]),
        )
        for line in table
    }
    assert len(found) == len(table) == 8
    for size in ("4", "8"):
        hos, spread, count = found[size, "oscmg", "hos"]
        assert hos == pytest.approx(statistics.fmean(HOS[size]))
        assert spread == pytest.approx(statistics.stdev(HOS[size]))
        assert count == 3
        assert found[size, TRAINING, "active_codes"] == (7.0, 0.0, 3)
    assert found["4", TRAINING, "total"] == pytest.approx(
        (statistics.fmean(TOTALS["4"]), statistics.stdev(TOTALS["4"]), 3)
    )
    assert math.isnan(found["8", TRAINING, "total"][0])
    assert {line["train_modality"] for line in table if line["task"] == "oscmg"} == {"video"}


def test_the_markdown_shows_settings_by_name_and_a_dash_for_what_is_not_finite(
    tmp_path: Path,
) -> None:
    text = render_sweep(collect(finished(tmp_path), tmp_path))
    heading, logged, evaluated = text.split("\n\n")

    assert heading == "Means over the clips of the last epoch:"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in logged.splitlines()]
    assert cells[0] == ["setting", "runs", "total", "fine", "active_codes"]
    assert cells[2:] == [
        ["quantizer.codebook_size=4", "3", "2.5 ± 1.8", "1 ± 0", "7 ± 0"],
        ["quantizer.codebook_size=8", "3", "–", "1 ± 0", "7 ± 0"],
    ]
    assert "40.00 ± 20.00" in evaluated
    assert "quantizer.codebook_size=8" in evaluated
    assert "99.00" not in evaluated


def test_what_was_logged_is_the_mean_over_the_clips_of_the_last_epoch(tmp_path: Path) -> None:
    (run,) = plan()
    nothing_moved = {"step": 3, "epoch": 1, "clips": 80, "fine": None, "skipped": 1}
    rows = [
        {"step": 1, "epoch": 0, "clips": 80, "fine": 50.0, "skipped": 0},
        {"step": 2, "epoch": 1, "clips": 80, "fine": 4.0, "skipped": 0},
        nothing_moved,
        {"step": 4, "epoch": 1, "clips": 20, "fine": 9.0, "skipped": 0},
    ]
    path = tmp_path / run.name / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(row.metric, row.value) for row in collect([run], tmp_path)] == [("fine", 5.0)]

    path.write_text(json.dumps(nothing_moved) + "\n")
    assert math.isnan(collect([run], tmp_path)[0].value)


def test_a_single_run_has_no_deviation(tmp_path: Path) -> None:
    runs = finished(tmp_path)[:1]
    rows = collect(runs, tmp_path)
    write_table(rows, runs, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert {line["std"] for line in csv.DictReader(file)} == {""}
    assert "±" not in render_sweep(rows)
