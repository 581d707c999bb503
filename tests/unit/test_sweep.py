"""A sweep's plan, how its runs are done and noted, and its table."""

import csv
import json
import math
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from micu.commands import EXIT_STOPPED, StopFlag
from micu.config import TrainConfig
from micu.errors import ConfigError
from micu.evaluate.report import Row, write_rows
from micu.files import file_sha256
from micu.overrides import with_overrides
from micu.presets import PRESETS
from micu.sweep.conduct import FINISHED, Job, conduct, launcher, share_cores
from micu.sweep.plan import SweepRun, choose_part, parse_axes, plan_runs
from micu.sweep.table import collect, render_sweep, write_table

# --- the plan --------------------------------------------------------------------------------


def build(preset: str, assignments: Sequence[str]) -> TrainConfig:
    return with_overrides(PRESETS[preset](), assignments)


def plan(*axes: str, seeds: int = 1) -> list[SweepRun]:
    return plan_runs("micu", parse_axes(axes), seeds, build)


def test_a_grid_has_a_run_per_combination_and_seed() -> None:
    runs = plan("quantizer.codebook_size=256,512", "contrastive.tau=0.1,1", seeds=2)

    assert [
        (run.config.quantizer.codebook_size, run.config.contrastive.tau, run.config.seed)
        for run in runs
    ] == [(size, tau, seed) for size in (256, 512) for tau in (0.1, 1.0) for seed in (43, 44)]
    assert runs[-1].name == "quantizer.codebook_size=512_contrastive.tau=1-44"
    assert len({run.name for run in runs}) == 8
    assert runs[0].setting == runs[1].setting != runs[2].setting


def test_presets_are_swept_like_settings() -> None:
    runs = plan("preset=micu,ablation-coarse", "quantizer.codebook_size=16")

    assert [run.config.weights.fine for run in runs] == [1.0, 0.0]
    assert [run.name for run in runs] == [
        "micu_quantizer.codebook_size=16-43",
        "ablation-coarse_quantizer.codebook_size=16-43",
    ]
    assert [run.preset for run in runs] == ["micu", "ablation-coarse"]
    assert runs[0].assignments == ("quantizer.codebook_size=16",)


def test_seeds_alone_are_a_sweep_of_the_preset() -> None:
    assert [run.name for run in plan(seeds=3)] == ["micu-43", "micu-44", "micu-45"]


def test_values_with_commas_are_separated_by_semicolons_and_make_a_folder_s_name() -> None:
    runs = plan("modalities=audio,video;audio,video,flow", "data.exclude_ids=a/b.csv")

    assert [run.config.modalities for run in runs] == [
        ("audio", "video"),
        ("audio", "video", "flow"),
    ]
    assert runs[0].name == "modalities=audio_video_data.exclude_ids=a_b.csv-43"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["quantizer.codebook_size"], "expected KEY=VALUE,VALUE"),
        (["quantizer.codebook_size=4,,8"], "no value left empty"),
        (["seed=1,2"], "--seeds N says how many"),
        (["jigsaw.splits=2", "jigsaw.splits=4"], "jigsaw.splits is swept already"),
        (["quantizer.codebook_size=4,4"], "a value stands there twice"),
        (["quantizer.codebook=4"], "no key 'codebook'; did you mean 'codebook_size'"),
        (["preset=micu,paprika"], "unknown preset 'paprika'; did you mean 'paper'"),
        (["jigsaw.splits=8,4"], "jigsaw.splits=4:\n  jigsaw.permutations: expected 1 to 4! = 24"),
        (["data.exclude_ids=a/b,a:b"], "two settings would both be named data.exclude_ids=a_b"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_begins(
    axes: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(*axes)
    assert message in str(caught.value)


def test_every_configuration_that_cannot_be_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plan("quantizer.codebook_size=1,16,0")
    assert str(caught.value).count("expected at least 2") == 2


def test_parts_share_the_runs_among_themselves() -> None:
    runs = plan("quantizer.codebook_size=4,8,16", seeds=2)
    parts = [choose_part(runs, f"{number}/4") for number in (1, 2, 3, 4)]
    assert sorted(map(len, parts)) == [1, 1, 2, 2]
    assert {run.name for part in parts for run in part} == {run.name for run in runs}
    assert choose_part(runs, None) == runs
    for wrong in ("0/4", "5/4", "1/7", "2", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="expected I/N with 1 <= I <= N <= 6"):
            choose_part(runs, wrong)


# --- the runs --------------------------------------------------------------------------------


class Processes:
    """Stands in for processes: notes what was begun, and ends as it is told."""

    def __init__(self, code: Callable[[str, str], int] = lambda module, name: 0) -> None:
        self.begun: list[tuple[str, str]] = []
        self.code = code

    def __call__(self, module: str, words: Sequence[str], log: Path) -> int:
        self.begun.append((module.rpartition(".")[2], log.parent.name))
        log.write_text(f"{words}\nerror: no luck\n")
        log.with_name("last.pt").touch()
        return self.code(module, log.parent.name)


def jobs_in(out: Path, evaluate: Sequence[str] | None = None, size: str = "4,8") -> list[Job]:
    return [
        Job(
            run=run,
            folder=out / run.name,
            train=["--out", run.name, *run.assignments],
            evaluate=evaluate,
        )
        for run in plan(f"quantizer.codebook_size={size}")
    ]


def do(jobs: Sequence[Job], launch: Processes, stop: StopFlag | None = None) -> list[str]:
    ended = conduct(jobs, 1, launch, stop or StopFlag(), lambda line: None)
    return [each.state for each in ended]


FOUR, EIGHT = "quantizer.codebook_size=4-43", "quantizer.codebook_size=8-43"


def test_a_finished_run_is_not_repeated_and_an_unfinished_one_is(tmp_path: Path) -> None:
    first = Processes(lambda module, name: 75 if name == EIGHT else 0)
    assert do(jobs_in(tmp_path), first) == ["finished", "stopped"]
    second = Processes()
    assert do(jobs_in(tmp_path), second) == ["finished", "finished"]
    third = Processes()
    assert do(jobs_in(tmp_path), third) == ["finished", "finished"]

    assert first.begun == [("train", FOUR), ("train", EIGHT)]
    assert second.begun == [("train", EIGHT)]
    assert third.begun == []


def test_a_run_that_fails_does_not_stop_the_rest_and_says_why(tmp_path: Path) -> None:
    launch = Processes(lambda module, name: 2 if name == FOUR else 0)
    told: list[str] = []

    ended = conduct(jobs_in(tmp_path), 2, launch, StopFlag(), told.append)

    assert [each.state for each in ended] == ["failed", "finished"]
    assert ended[0].why == f"exit code 2, error: no luck ({tmp_path / FOUR / 'log.txt'})"
    assert not (tmp_path / FOUR / FINISHED).exists()
    assert sorted(told)[0].startswith(f"[1/2] {FOUR}: failed: exit code 2")


def test_a_finished_run_whose_checkpoint_is_gone_is_done_again(tmp_path: Path) -> None:
    do(jobs_in(tmp_path), Processes())
    (tmp_path / FOUR / "last.pt").unlink()
    again = Processes()
    assert do(jobs_in(tmp_path), again) == ["finished", "finished"]
    assert again.begun == [("train", FOUR)]


def test_a_run_typed_otherwise_or_of_another_configuration_is_done_again(tmp_path: Path) -> None:
    do(jobs_in(tmp_path), Processes())
    typed_otherwise, configured_otherwise = Processes(), Processes()

    jobs = [replace(job, train=[*job.train, "--workers", "2"]) for job in jobs_in(tmp_path)]
    do(jobs, typed_otherwise)
    other = build("micu", ["quantizer.codebook_size=4", "optimizer.epochs=9"])
    do([replace(jobs[0], run=replace(jobs[0].run, config=other))], configured_otherwise)

    assert len(typed_otherwise.begun) == 2
    assert len(configured_otherwise.begun) == 1


def test_evaluation_follows_training_and_is_repeated_only_for_other_options(tmp_path: Path) -> None:
    with_pairs, again, other = Processes(), Processes(), Processes()
    do(jobs_in(tmp_path, size="4"), Processes())
    do(jobs_in(tmp_path, ["--pairs", "v:a"], size="4,8"), with_pairs)
    do(jobs_in(tmp_path, ["--pairs", "v:a"], size="4,8"), again)
    do(jobs_in(tmp_path, ["--pairs", "a:v"], size="4"), other)

    assert with_pairs.begun == [("evaluate", FOUR), ("train", EIGHT), ("evaluate", EIGHT)]
    assert again.begun == []
    assert other.begun == [("evaluate", FOUR)]


def test_an_evaluation_that_fails_leaves_the_training_done(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, ["--pairs", "v:a"], size="4")
    failing = Processes(lambda module, name: 2 if module == "micu.cli.evaluate" else 0)
    assert do(jobs, failing) == ["failed"]
    second = Processes()
    assert do(jobs, second) == ["finished"]
    assert second.begun == [("evaluate", FOUR)]


def test_after_a_stop_nothing_is_begun_and_what_the_signal_killed_is_no_failure(
    tmp_path: Path,
) -> None:
    stop = StopFlag()

    def code(module: str, name: str) -> int:
        stop.name = "SIGTERM"
        return -15  # before it could take notice

    launch = Processes(code)
    assert do(jobs_in(tmp_path), launch, stop) == ["stopped", "stopped"]
    assert launch.begun == [("train", FOUR)]
    assert do(jobs_in(tmp_path), Processes(lambda m, n: EXIT_STOPPED)) == ["stopped", "stopped"]


def test_what_still_runs_when_the_sweep_is_left_is_asked_to_stop(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        "import pathlib, time; pathlib.Path(__file__).with_name('begun').touch(); time.sleep(60)"
    )
    codes: list[int] = []
    with launcher(StopFlag(), {"PYTHONPATH": str(tmp_path)}) as launch:
        wait = Thread(target=lambda: codes.append(launch("sleeper", [], tmp_path / "log.txt")))
        wait.start()
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        time.sleep(0.1)
    wait.join(30)
    assert codes == [-signal.SIGTERM]


def test_a_damaged_note_counts_as_none(tmp_path: Path) -> None:
    do(jobs_in(tmp_path, size="4"), Processes())
    for damage in ("{", "[]", ""):
        (tmp_path / FOUR / FINISHED).write_text(damage)
        launch = Processes()
        do(jobs_in(tmp_path, size="4"), launch)
        assert len(launch.begun) == 1


def test_processes_at_a_time_share_the_cores_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert share_cores(1, {}) == {}
    assert share_cores(3, {}) == {"OMP_NUM_THREADS": "2"}
    assert share_cores(99, {}) == {"OMP_NUM_THREADS": "1"}
    assert share_cores(3, {"OMP_NUM_THREADS": "4"}) == {}


# --- the table -------------------------------------------------------------------------------

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
            {"step": 1, "total": 99.0, "fine": 9.0, "active_codes": 1},
            {
                "step": 2,
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
        assert found[size, "training", "active_codes"] == (7.0, 0.0, 3)
    assert found["4", "training", "total"] == pytest.approx(
        (statistics.fmean(TOTALS["4"]), statistics.stdev(TOTALS["4"]), 3)
    )
    assert math.isnan(found["8", "training", "total"][0])
    assert {line["train_modality"] for line in table if line["task"] == "oscmg"} == {"video"}


def test_the_markdown_shows_settings_by_name_and_a_dash_for_what_is_not_finite(
    tmp_path: Path,
) -> None:
    text = render_sweep(collect(finished(tmp_path), tmp_path))
    logged, evaluated = text.split("\n\n")

    assert logged.splitlines()[0] == "| setting | runs | total | fine | active_codes |"
    assert "| quantizer.codebook_size=4 | 3 | 2.5 ± 1.8 | 1 ± 0 | 7 ± 0 |" in logged
    assert "| quantizer.codebook_size=8 | 3 | – | 1 ± 0 | 7 ± 0 |" in logged
    assert "40.00 ± 20.00" in evaluated
    assert "quantizer.codebook_size=8" in evaluated
    assert "99.00" not in evaluated


def test_a_single_run_has_no_deviation(tmp_path: Path) -> None:
    runs = finished(tmp_path)[:1]
    rows = collect(runs, tmp_path)
    write_table(rows, runs, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert {line["std"] for line in csv.DictReader(file)} == {""}
    assert "±" not in render_sweep(rows)
