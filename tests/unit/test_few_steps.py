"""A set of few clips is told to be one, before a run that would learn nothing of it."""

from pathlib import Path

import pytest

from micu.cli.evaluate import _with_rate
from micu.cli.train import tell_steps
from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.config.sections import TrainConfig
from micu.evaluate.order import EvaluationOrder
from micu.store.manifest import Clip, Manifest


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (5, "5 steps are too few to learn from; type --preset small, or --set "
            "optimizer.epochs=300 for 300 of them"),
        (299, "299 steps are too few to learn from; type --preset small, or --set "
              "optimizer.epochs=6 for 300 of them"),
        (300, ""),
    ],
)  # fmt: skip
def test_a_run_says_how_long_it_is_and_whether_that_is_enough(
    steps: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_steps(steps, 21, TrainConfig())

    first, *more = capsys.readouterr().err.splitlines()
    assert first == f"21 clips, {steps} steps"
    assert more == [told] * bool(told)


def test_a_run_that_was_told_where_to_stop_is_not_warned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_steps(4, 21, with_overrides(TrainConfig(), ["optimizer.max_steps=4"]))

    assert capsys.readouterr().err == "21 clips, 4 steps\n"


def test_the_preset_for_small_sets_has_as_many_steps_for_any_number_of_clips() -> None:
    limits = PRESETS["small"]().optimizer
    assert limits.epochs == limits.max_steps == 400


def rate(clips: int, **typed: object) -> float:
    """The probe's learning rate with so many training clips, and as many of other splits."""
    options = frozenset(f"--{name.replace('_', '-')}" for name in typed)
    order = EvaluationOrder(
        **{"task": "oscmg", "checkpoints": (Path("x.pt"),), "chosen": {}, "options": options}
        | typed  # type: ignore[arg-type]
    )
    rows = [
        Clip(clip_id=f"{split}{n}", label="dog", split=split)
        for n in range(clips)
        for split in ("train", "test")
    ]
    return _with_rate(order, Manifest(Path("my.csv"), tuple(rows), "")).probe_learning_rate


def test_few_steps_of_the_probe_are_longer_and_said_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rate(240) == 2e-3  # 25 epochs of three batches
    told = capsys.readouterr().err
    assert told == (
        "240 clips give the probe 75 steps: its learning rate is 0.002, not 0.0004; "
        "--probe-learning-rate sets another\n"
    )
    assert rate(241) == 4e-4  # of four: a hundred
    assert capsys.readouterr().err == ""


def test_what_was_typed_and_what_is_published_stays(tmp_path: Path) -> None:
    (tmp_path / "known.csv").write_text("label\ndog\n")
    (tmp_path / "none.csv").write_text("label\ncat\n")

    assert rate(80, probe_learning_rate=3e-4) == 3e-4
    assert rate(80, setting="ave-14") == 4e-4
    assert rate(80, task="retrieval") == 4e-4
    assert rate(80, task="cmg", localise=True) == 4e-4
    assert rate(80, task="cmg") == 2e-3
    assert rate(240, task="cmg") == 2e-3  # 30 epochs of three batches
    assert rate(241, task="cmg") == 4e-4
    assert rate(80, encoders=("input", "frozen:x")) == 4e-4  # no probe reads a rate
    assert rate(80, encoders=("input", "untrained")) == 2e-3
    assert rate(80, probe_epochs=100) == 4e-4
    assert rate(80, probe_epochs=100, probe_epoch_offset=1) == 2e-3  # 99 are trained
    assert rate(80, probe_batch_size=20) == 4e-4
    assert rate(80, encoders=("frozen:x", "input")) == 4e-4  # a logistic regression has no rate
    assert rate(80, encoders=("input", "untrained")) == 2e-3
    assert rate(241, probe_epoch_offset=1) == 2e-3  # 24 epochs are left
    assert rate(200, train_splits="all") == 4e-4
    assert rate(300, known=tmp_path / "known.csv") == 4e-4
    assert rate(300, known=tmp_path / "none.csv") == 4e-4  # no clips: another error says so
