"""A stranger's first evaluations: what lacks is counted, what is mistyped is told in a sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.cli.evaluate import main
from micu.evaluate.report import read_rows
from micu.store.manifest import Clip
from tests.checkpoints import with_task
from tests.e2e.test_evaluate import specs_of, write_checkpoint
from tests.feature_sets import make_clips, make_row, write_features

SHAPES = {"audio": (6,), "video": (5, 5, 4)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of several manifests, lists of classes, a run, and a folder without one."""
    root = tmp_path_factory.mktemp("home")
    clips = make_clips(48, ("train", "train", "val", "test"))
    write_features(root / "features", clips)
    write_checkpoint(root / "last.pt", specs_of(root / "features"))
    changed = {
        "nosplit": [replace(clip, split="") for clip in clips],
        "notest": [replace(clip, split="train") for clip in clips],
        "upper": [replace(clip, split=clip.split.upper()) for clip in clips],
    }
    for name, others in changed.items():
        write_features(root / "features", others, SHAPES, name=name)
    write_features(
        root / "features",
        [replace(clip, label="") for clip in clips],
        SHAPES,
        name="nolabel",
        make=lambda clip, *given: make_row(replace(clip, label="drum"), *given),
    )
    others = {  # of files of their own: what the sets beside have is no help to them
        name: [replace(clip, path=f"{name}/{clip.path}") for clip in clips]
        for name in ("holes", "deaf")
    }
    write_features(root / "features", others["holes"], SHAPES, name="holes", has=has_features)
    write_features(
        root / "features",
        others["deaf"],
        SHAPES,
        name="deaf",
        has=lambda clip, kind: kind == "video",
    )
    write_features(root / "features", clips, {**SHAPES, "audio": (7,)}, name="wide")
    source = {"manifest": str(root / "toy.csv"), "media_root": str(root)}
    (root / "features" / "last.json").write_text(json.dumps(source))
    for name, text in (
        *(("known", "drum\nengine"), ("case", "DRUM\nengine"), ("typo", "drum\nengin")),
        *(("all", "drum\nengine\nviolin"), ("one", "drum"), ("blank", " drum \nengine")),
    ):
        (root / f"{name}.csv").write_text(f"label\n{text}\n")
    for name in ("run", "empty"):
        (root / name).mkdir()
    (root / "run" / "last.pt").write_bytes((root / "last.pt").read_bytes())
    return root


def has_features(clip: Clip, modality: str) -> bool:
    """Three test clips and two training clips lack audio, one more training clip video."""
    number = int(clip.clip_id.split("/")[-1])
    return not (number == 1 if modality == "video" else number in (0, 12, 9, 11, 21))


def micu_eval(*words: object) -> Result:
    arguments = list(map(str, words))
    return CliRunner().invoke(main, arguments, prog_name="micu-eval", catch_exceptions=False)


def evaluate(home: Path, out: Path, *words: object) -> Result:
    given = ("--features", home / "features", "--out", out, "--device", "cpu")
    task, *rest = with_task(words)
    return micu_eval(task, home / "last.pt", *given, *rest)


def test_test_clips_without_features_are_told_and_in_the_rows(home: Path, tmp_path: Path) -> None:
    out, pairs = tmp_path / "r.csv", ("--pairs", "v:a,a:v", "--chance")
    known = ("--known", home / "known.csv", "--probe-epochs", "1")
    result = evaluate(home, out, *pairs, *known, "--manifest", home / "holes.csv")
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("seed 43")]
    assert "9 test clips; 1 more training clips lack video features; 3 more test clips" in told[0]
    assert told[0].endswith("lack audio features")
    assert "2 more training clips lack audio features" in told[1]
    assert "test clips lack" not in told[1]
    rows = read_rows(out)
    found = {(row.test_modality, row.n_clips, row.n_lacking) for row in rows if row.metric == "hos"}
    assert found == {("audio", 9, 3), ("video", 12, 0)}
    assert len({row.test_sha256 for row in rows if row.test_modality == "audio"}) == 1
    assert len({row.test_sha256 for row in rows}) == 2
    assert "lacking features" in result.stdout
    whole = evaluate(home, tmp_path / "w.csv", *pairs, *known)
    assert whole.exit_code == 0
    assert "lack" not in whole.stderr + whole.stdout
    assert {row.n_lacking for row in read_rows(tmp_path / "w.csv")} == {0}


@pytest.mark.parametrize(
    ("task", "told", "counts"),
    [
        (("cmg", "--pairs", "v:a", "--probe-epochs", "1"), "3 more test clips lack", {(9, 3)}),
        (("retrieval", "--pairs", "v:a"), "9 items, 9 captions; 3 more clips lack", {(9, 3)}),
        (("codebook",), "42 clips; 6 more lack features of a modality", {(42, 6)}),
    ],
)
def test_every_task_counts_the_clips_that_lack_features(
    home: Path, tmp_path: Path, task: tuple[str, ...], told: str, counts: set[tuple[int, int]]
) -> None:
    result = evaluate(home, tmp_path / "r.csv", *task, "--manifest", home / "holes.csv")
    assert result.exit_code == 0, result.output
    assert told in result.stderr
    rows = read_rows(tmp_path / "r.csv")
    assert {(row.n_clips, row.n_lacking) for row in rows} == counts
    assert len({row.test_sha256 for row in rows}) == 1
    assert rows[0].test_sha256


def test_an_evaluation_after_more_was_extracted_is_told_apart_in_the_report(
    home: Path, tmp_path: Path
) -> None:
    given = ("--pairs", "v:a", "--known", home / "known.csv", "--probe-epochs", "1")
    for name, seed in (("holes", "1"), ("toy", "2")):
        out = tmp_path / f"{name}.csv"
        result = evaluate(home, out, *given, "--manifest", home / f"{name}.csv", "--seed", seed)
        assert result.exit_code == 0, result.output
        text = out.read_text()
        for row in read_rows(out):  # as of one manifest, whose features were completed
            text = text.replace(row.manifest_sha256, "m").replace(row.features, "f")
        out.write_text(text)
    result = micu_eval("report", tmp_path, "-o", tmp_path / "r.md")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "r.md").read_text()
    assert "12 (" in page
    assert "9 (" in page
    assert " ± " not in page.replace("mean ± standard", "")


# --- mistakes --------------------------------------------------------------------------------

OPEN_SET = ("--pairs", "v:a", "--known", "{home}/known.csv")
MISTAKES = {
    "a run's folder for its checkpoint": (
        "{home}/run --pairs v:a --known {home}/known.csv",
        "run: expected a checkpoint, got a folder; type {home}/run/last.pt",
    ),
    "an empty folder": ("oscmg {home}/empty --pairs v:a", "type a .pt file, such as the last.pt"),
    "features for a checkpoint": (
        "{home}/features --pairs v:a",
        "expected a checkpoint, got a folder; these are features: type --features {home}/features",
    ),
    "one feature set for a checkpoint": ("{home}/features/toy --pairs v:a", "these are features"),
    "a checkpoint's name": ("oscmg {home}/run/lsat.pt --pairs v:a", "type {home}/run/last.pt"),
    "a command's name": ("reprot {home}", "did you mean micu-eval report?"),
    "a folder of features for the results": (
        "oscmg {home}/last.pt {set} --out {home}/features",
        "--out {home}/features: expected a file, got a folder",
    ),
    "another modality": (
        "oscmg {home}/last.pt --pairs v:f --known {home}/known.csv",
        "not trained on flow",
    ),
    "features of another width": (
        "oscmg {home}/last.pt {set} --manifest {home}/wide.csv",
        "audio: shape: the checkpoint expects [6]",
    ),
    "no features at all": (
        "oscmg {home}/last.pt {set} --manifest {home}/deaf.csv",
        "no test clip: all 12 of them in the manifest lack features of the target modality",
    ),
    "no pairs": (
        "oscmg {home}/last.pt --known {home}/known.csv",
        "got 2 known classes and the pairs none",
    ),
    "no classes": (
        "oscmg {home}/last.pt --pairs v:a",
        "got no known classes and the pairs video:audio",
    ),
    "no labels": (
        "oscmg {home}/last.pt {set} --manifest {home}/nolabel.csv",
        "no clip of the manifest has a class: expected some in its column label",
    ),
    "no test split": (
        "oscmg {home}/last.pt {set} --manifest {home}/notest.csv",
        "no test clip. There must be clips",
    ),
    "splits of another case": (
        "oscmg {home}/last.pt {set} --manifest {home}/upper.csv",
        "(did you mean --train-splits TRAIN?)",
    ),
    "a class of another case": (
        "oscmg {home}/last.pt --pairs v:a --known {home}/case.csv",
        "'DRUM'; did you mean 'drum'? known: drum, engine, violin",
    ),
    "a class with a typo": (
        "oscmg {home}/last.pt --pairs v:a --known {home}/typo.csv",
        "'engin'; did you mean 'engine'?",
    ),
    "one class": ("oscmg {home}/last.pt --pairs v:a --known {home}/one.csv", "got 1 known classes"),
    "one class of a closed set": (
        "cmg {home}/last.pt --pairs v:a --known {home}/one.csv",
        "expected training clips of 2 or more known classes, got those of 'drum' alone",
    ),
    "no split typed": (
        "oscmg {home}/last.pt {set} --test-splits ,",
        "expected names of the manifest's",
    ),
    "a split with a typo": (
        "oscmg {home}/last.pt {set} --test-splits test,vla",
        "--test-splits vla: no clip of {home}/toy.csv is of this split; did you mean 'val'?",
    ),
    "a training split with a typo": (
        "oscmg {home}/last.pt {set} --train-splits train,tset",
        "--train-splits tset: no clip",
    ),
    "features that are not there": (
        "oscmg {home}/last.pt {set} --features {home}/nowhere",
        "--features {home}/nowhere: no such folder",
    ),
    "a file of features": (
        "oscmg {home}/last.pt {set} --features {home}/features/toy/audio-toy_audio",
        "is one feature set; type --features {home}/features",
    ),
    "features of a manifest": (
        "oscmg {home}/last.pt {set} --features {home}/features/toy",
        "has the feature sets of one manifest; type --features {home}/features",
    ),
    "a folder without results": ("report {home}/empty -o {home}/r.html", "no results in it"),
    "a checkpoint for results": (
        "report {home}/last.pt -o {home}/r.html",
        "expected a results file",
    ),
    "a negative seed": ("oscmg {home}/last.pt {set} --seed -1", "-1 is not in the range"),
    "a large seed": (
        "oscmg {home}/last.pt {set} --seed 18446744073709551616",
        "is not in the range",
    ),
    "seeds beyond the last": (
        "oscmg {home}/last.pt {set} --seed 9223372036854775807 --seeds 2",
        "expected seeds up to 9223372036854775807",
    ),
    "no seeds": ("oscmg {home}/last.pt {set} --seeds 0", "0 is not in the range"),
    "a rate that is no number": (
        "oscmg {home}/last.pt {set} --probe-learning-rate nan",
        "expected a finite number, got 'nan'",
    ),
    "an infinite rate": (
        "oscmg {home}/last.pt {set} --probe-learning-rate inf",
        "is not in the range",
    ),
    "a huge rate": ("oscmg {home}/last.pt {set} --probe-learning-rate 1e38", "is not in the range"),
    "a negative batch": ("oscmg {home}/last.pt {set} --probe-batch-size -4", "is not in the range"),
    "a huge batch": (
        "oscmg {home}/last.pt {set} --probe-batch-size 2147483648",
        "is not in the range",
    ),
    "items that are no number": (
        "retrieval {home}/last.pt --pairs v:a --items nan",
        "'nan' is not a valid integer",
    ),
    "a table that is none": ("paper --table nan", "'nan' is not a valid integer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_stranger_s_mistake_is_a_sentence_before_anything_is_trained(
    home: Path, tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    typed, message = (text.replace("{set}", " ".join(OPEN_SET)) for text in MISTAKES[mistake])
    words = typed.replace("{home}", str(home)).split()
    own = [] if "report" in typed or "paper" in typed else ["--device", "cpu"]
    own += ["--features", str(home / "features")] if own and "--features" not in words else []
    own += ["--out", str(tmp_path / "r.csv")] if own and "--out" not in words else []
    before = sorted(home.rglob("*"))
    result = micu_eval(*words, *own)
    assert result.exit_code == 2, result.output
    assert message.replace("{home}", str(home)) in result.stderr
    assert "Traceback" not in result.stderr
    assert "seed 43" not in result.stderr
    assert not (tmp_path / "r.csv").exists()
    assert sorted(home.rglob("*")) == before


def test_all_classes_known_and_no_split_are_told_and_blanks_do_not_count(
    home: Path, tmp_path: Path
) -> None:
    quick = ("--pairs", "v:a", "--probe-epochs", "1")
    result = evaluate(home, tmp_path / "a.csv", *quick, "--known", home / "all.csv")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("every test clip is of a known class") == 1
    assert "type micu-eval cmg" in result.stderr
    known = ("--known", home / "blank.csv")
    nosplit = ("--manifest", home / "nosplit.csv", "--seeds", "2")
    result = evaluate(home, tmp_path / "b.csv", *quick, *known, *nosplit)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("nosplit.csv names no split: `clean` deals its clips") == 1
    result = evaluate(home, tmp_path / "c.csv", *quick, *known)
    assert "names no split" not in result.stderr
    assert "every test clip" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--known", "{home}/known.csv"),
        ("cmg",),
        ("--known", "{home}/known.csv", "--protocol", "paper"),
    ],
)
def test_a_probe_that_diverges_is_told_and_gives_no_row(
    home: Path, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "micu.evaluate.probe.clip_grad_norm_",
        lambda weights, _: [weight.data.fill_(1e38) for weight in weights],
    )
    given = [word.replace("{home}", str(home)) for word in words]
    out = tmp_path / "r.csv"
    result = evaluate(home, out, *given, "--pairs", "v:a", "--probe-epochs", "2")
    assert result.exit_code == 2
    assert "expected finite logits, got NaN or infinity" in result.stderr
    assert "type a smaller --probe-learning-rate" in result.stderr
    assert not out.exists()
