"""Features and lists that look right and are not: the right result in every task, or a sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from micu.base.errors import ConfigError, ManifestError, MicuError
from micu.cli.evaluate import main
from micu.evaluate.codebook import CodebookUse, agreement
from micu.evaluate.metrics import retrieval_recall
from micu.evaluate.probe import ClipFeatures
from micu.evaluate.report import read_rows
from micu.evaluate.scores import SCORES, Evidence, Fitting
from micu.store.manifest import Clip, Event
from tests.checkpoints import with_task
from tests.e2e.test_evaluate import specs_of, write_checkpoint
from tests.feature_sets import make_clips, make_row, write_features
from tests.unit.test_open_set import QUICK, PatternEncoder
from tests.unit.test_splits import cut

SHAPES = {"audio": (6,), "video": (5, 5, 4)}
TASKS = {
    "oscmg": ("--pairs", "v:a", "--known", "{root}/known.csv", "--probe-epochs", "1"),
    "cmg": ("cmg", "--pairs", "v:a", "--probe-epochs", "1"),
    "retrieval": ("retrieval", "--pairs", "v:a"),
    "codebook": ("codebook",),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets in which one test clip is odd, others in which all are."""
    folder = tmp_path_factory.mktemp("odd")
    clips = make_clips(48, ("train", "train", "val", "test"))
    write_features(folder / "features", clips, SHAPES)
    write_checkpoint(folder / "last.pt", specs_of(folder / "features"))

    def without_steps(clip: Clip, modality: str, *given: object) -> object:
        row = make_row(clip, modality, *given)  # type: ignore[arg-type]
        is_odd = (clip.clip_id, modality) == ("clip/9", "audio")
        return replace(row, mask=np.zeros_like(row.mask)) if is_odd else row

    def huge(*given: object) -> object:
        row = make_row(*given)  # type: ignore[arg-type]
        return replace(row, values=row.values * np.float32(1e30))

    def equal(*given: object) -> object:
        row = make_row(*given)  # type: ignore[arg-type]
        return replace(row, values=np.zeros_like(row.values))

    for name, make in (("blank", without_steps), ("huge", huge), ("equal", equal)):
        write_features(folder / "features", clips, SHAPES, name=name, make=make)  # type: ignore[arg-type]
    twin = [replace(c, label="Drum" if c.clip_id == "clip/9" else c.label) for c in clips]
    write_features(
        *(folder / "features", twin, SHAPES),
        name="twin",
        make=lambda clip, *given: make_row(replace(clip, label=clip.label.lower()), *given),
    )
    events = [
        replace(c, events=(Event(c.label, 1, 3), Event(c.label, 3.9, 12), Event(c.label, 4, 9)))
        for c in clips
    ]
    write_features(folder / "features", events, SHAPES, name="events")
    (folder / "known.csv").write_text("label\ndrum\nengine\n")
    return folder


def evaluate(root: Path, out: Path, manifest: str, *options: str) -> Result:
    given = ["--features", root / "features", "--manifest", root / f"{manifest}.csv", "--out", out]
    words = [option.replace("{root}", str(root)) for option in options]
    task, *rest = with_task(words)
    arguments = [task, root / "last.pt", *given, "--device", "cpu", *rest]
    return CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)


@pytest.mark.parametrize("task", TASKS)
def test_a_clip_without_a_real_step_is_named_in_every_task(
    root: Path, tmp_path: Path, task: str
) -> None:
    result = evaluate(root, tmp_path / "r.csv", "blank", *TASKS[task])
    assert result.exit_code == 2
    assert (
        "audio features of clip 'clip/9': no step is real; extract the set again" in result.stderr
    )
    assert not (tmp_path / "r.csv").exists()


@pytest.mark.parametrize("task", TASKS)
def test_features_that_a_model_makes_nan_of_name_the_clip_in_every_task(
    root: Path, tmp_path: Path, task: str
) -> None:
    result = evaluate(root, tmp_path / "r.csv", "huge", *TASKS[task])
    assert result.exit_code == 2
    assert "features of clip 'clip/" in result.stderr
    assert "expected a finite encoding, got NaN or infinity" in result.stderr
    assert not (tmp_path / "r.csv").exists()


def test_equal_features_give_what_guessing_gives(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    assert evaluate(root, out, "equal", *TASKS["oscmg"], "--score", "all").exit_code == 0
    assert {row.value for row in read_rows(out) if row.metric == "auroc"} == {0.5}
    assert {row.value for row in read_rows(out) if row.metric == "hos"} == {0.0}
    out = tmp_path / "retrieval.csv"
    result = evaluate(root, out, "equal", *TASKS["retrieval"], "--chance")
    assert result.exit_code == 0, result.output
    found = {(row.method, row.metric, row.value) for row in read_rows(out)}
    assert {f[1:] for f in found if f[0] == "chance"} == {f[1:] for f in found if f[0] != "chance"}


def test_a_class_in_another_case_is_told(root: Path, tmp_path: Path) -> None:
    result = evaluate(root, tmp_path / "r.csv", "twin", *TASKS["oscmg"])
    assert result.exit_code == 0, result.output
    assert (
        result.stderr.count("'Drum' counts as unknown, 'drum' is known: they differ in case") == 1
    )
    result = evaluate(root, tmp_path / "w.csv", "toy", *TASKS["oscmg"])
    assert "counts as unknown" not in result.stderr


def test_events_after_what_the_model_reads_are_counted(root: Path, tmp_path: Path) -> None:
    words = ("localise", "--pairs", "v:a", "--probe-epochs", "1")
    result = evaluate(root, tmp_path / "r.csv", "events", *words)
    assert result.exit_code == 0, result.output
    told = "12 events of the test clips begin after the 4 seconds that the model reads"
    assert result.stderr.count(told) == 1


@pytest.mark.parametrize(("count", "trivial"), [(5, "R@5 among 5"), (6, "R@10 among 6")])
def test_a_rank_as_large_as_the_gallery_is_told(
    root: Path, tmp_path: Path, count: int, trivial: str
) -> None:
    out = tmp_path / "r.csv"
    result = evaluate(root, out, "toy", *TASKS["retrieval"], "--items", str(count))
    assert f"{trivial} is 1 whatever is compared" in result.stderr
    assert ("R@5 among" in result.stderr) == (count == 5)
    assert all(trivial in row.note for row in read_rows(out))
    result = evaluate(root, tmp_path / "w.csv", "toy", *TASKS["retrieval"])
    assert "whatever" not in result.stderr


def test_one_clip_of_each_class_cannot_be_held_out() -> None:
    clips = [
        Clip(clip_id=f"{split}/{k}", label=k, split=split) for k in "ab" for split in ("train",)
    ]
    clips += [Clip(clip_id=f"test/{k}", label=k, split="test") for k in "abc"]
    with pytest.raises(ManifestError, match="no validation clip: every known class has one"):
        cut(clips)


def test_nan_is_refused_in_retrieval() -> None:
    good, owner = np.eye(3), np.arange(3)
    bad = good.copy()
    bad[1, 1] = np.nan
    for given in ((bad, good), (good, bad)):
        with pytest.raises(MicuError, match="expected finite values"):
            retrieval_recall(*given, owner)


def test_a_score_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from micu.evaluate.open_set import run_oscmg
    from tests.unit.test_splits import make_clips as clips_of

    def fit(_: Fitting) -> object:
        return lambda clips: np.full(len(clips.logits), np.nan)

    entries = {**SCORES._entries, "broken": fit}
    monkeypatch.setattr(SCORES, "_entries", entries)
    split = cut(clips_of(6, "train") + clips_of(3, "test"))
    with pytest.raises(ConfigError, match="--score broken: expected finite scores of the"):
        run_oscmg(
            PatternEncoder(), split, "video", "audio", config=QUICK, seed=0, scores=("broken",)
        )
    assert Evidence.__slots__


def test_a_modality_without_steps_has_no_perplexity_and_no_agreement() -> None:
    use = CodebookUse({"audio": np.array([0, 0]), "video": np.array([1, 1])})
    assert np.isnan(use.perplexity("audio"))
    assert use.perplexity("video") == pytest.approx(2)

    def features(name: str, mask: list[bool]) -> ClipFeatures:
        values, codes = torch.zeros(1, 2, 3), torch.tensor([[0, 1]])
        return ClipFeatures(name, ("c",), values, torch.tensor([mask]), codes, torch.zeros(1, 2))

    pair = {"audio": features("audio", [True, False]), "video": features("video", [False, True])}
    assert np.isnan(agreement(pair)["audio", "video"])
