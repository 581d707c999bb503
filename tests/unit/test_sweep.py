"""A sweep's plan, and how its runs are done and noted."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from micu.base.errors import ConfigError
from micu.base.process import EXIT_STOPPED, StopFlag
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.config.sections import TrainConfig
from micu.sweep.conduct import FINISHED, RunCommands, conduct, launcher, share_cores, share_gpus
from micu.sweep.plan import SweepRun, choose_part, parse_axes, plan_runs

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


def test_a_sweep_of_what_nothing_reads_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        plan("mmjp.splits=2,4")
    assert "mmjp.splits=4: mmjp.splits: nothing reads it without weights.mmjp" in str(caught.value)
    with pytest.raises(ConfigError, match=r"^skeleton_jigsaw\.splits=8: jigsaw.splits: nothing"):
        plan("preset=micu,skeleton", "jigsaw.splits=8,16")
    assert len(plan("preset=micu,skeleton", "jigsaw.splits=8")) == 2  # the same in all runs
    assert len(plan("jigsaw.splits=0,8")) == 2  # off and on
    assert len(plan("preset=turn", "contrastive.tau=0.1,1")) == 2
    with pytest.raises(ConfigError, match=r"without weights\.fine or weights\.coarse"):
        plan("preset=turn", "contrastive.normalize=yes,no")


@pytest.mark.parametrize(
    ("off", "on", "axis", "reader"),
    [
        *(
            ("preset=codis", "preset=cmcm", axis, "quantizer.learning=average")
            for axis in (
                *("quantizer.ema_decay=0.9,0.99", "quantizer.ema_epsilon=0.1,1"),
                *("quantizer.ema_own=0.5,1", "quantizer.ema_init=one,zero"),
            )
        ),
        *(
            ("quantizer.reset=off", "quantizer.reset=revive", axis, "quantizer.reset=revive or")
            for axis in ("quantizer.dead_after=200,300", "quantizer.active_within=50,99")
        ),
        (
            *("preset=dcid", "preset=cmcm", "baselines.code_matching.warmup_vectors=500,5000"),
            "baselines.code_matching.warmup above 0",
        ),
        *(
            (off, "preset=micu", axis, "weights.reconstruction and the modality text")
            for off in ("weights.reconstruction=none", "modalities=audio,video;audio,flow")
            for axis in ("reconstruction.text_target=lstm,input",)
        ),
        (
            *("weights.reconstruction=none", "preset=micu"),
            *("reconstruction.vector_width=64,128", "weights.reconstruction"),
        ),
        (
            *("weights.commitment=none", "preset=micu"),
            *("quantizer.commitment_own=0.1,0.5", "weights.commitment"),
        ),
    ],
)
def test_a_sweep_of_what_the_method_has_no_use_for_is_refused(
    off: str, on: str, axis: str, reader: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(off, axis)
    assert f"{axis.partition('=')[0]}: nothing reads it without {reader}" in str(caught.value)
    assert len(plan(on, axis)) == 2


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


def jobs_in(
    out: Path, evaluate: Sequence[str] | None = None, size: str = "4,8"
) -> list[RunCommands]:
    return [
        RunCommands(
            run=run,
            folder=out / run.name,
            train=["--out", run.name, *run.assignments],
            evaluate=evaluate,
        )
        for run in plan(f"quantizer.codebook_size={size}")
    ]


def do(jobs: Sequence[RunCommands], launch: Processes, stop: StopFlag | None = None) -> list[str]:
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
    for damage in ("{", "[]", "", "[" * 100_000):
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


def test_runs_at_a_time_take_the_gpus_in_turn_and_only_those_that_are_visible() -> None:
    assert share_gpus(3, {}, 2) == ["0", "1", "0"]
    assert share_gpus(2, {}, 8) == ["0", "1"]
    assert share_gpus(4, {"CUDA_VISIBLE_DEVICES": "5,GPU-1f"}, 2) == ["5", "GPU-1f", "5", "GPU-1f"]
    assert share_gpus(2, {"CUDA_VISIBLE_DEVICES": "3,99"}, 1) == ["3", "3"]
    assert share_gpus(1, {}, 8) == share_gpus(3, {"CUDA_VISIBLE_DEVICES": ""}, 0) == []


def test_each_process_sees_a_gpu_that_no_other_one_at_the_time_has(tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(
        "import os, pathlib, sys, time\n"
        "own, other = (pathlib.Path(__file__).with_name(name) for name in sys.argv[1:])\n"
        "own.write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "while not other.exists(): time.sleep(0.01)\n"
    )
    with launcher(StopFlag(), {"PYTHONPATH": str(tmp_path)}, ["0", "1"]) as launch:

        def begin(own: str, other: str) -> Thread:
            log = tmp_path / "log.txt"
            thread = Thread(target=launch, args=("telling", [own, other], log))
            thread.start()
            return thread

        for names in ("ab", "cd"):
            for thread in (begin(*names), begin(*reversed(names))):
                thread.join(60)
            assert sorted((tmp_path / name).read_text() for name in names) == ["0", "1"]
