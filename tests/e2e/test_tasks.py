"""Every task of `micu-eval` on small stores of the official shapes, with answers that are known.

An encoder that knows the answers gets 1, one that draws gets chance.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.cli.eval_options import OPTIONS
from micu.cli.evaluate import main
from micu.config.presets import PRESETS
from micu.evaluate.encoders import CodeEncoder
from micu.evaluate.probe import ClipFeatures
from micu.evaluate.report import Row, read_rows
from micu.evaluate.scores import SCORES
from micu.evaluate.tasks import TASKS
from micu.evaluate.toc import ChannelChoice
from micu.store.manifest import Clip, Event, read_manifest
from micu.store.overlap import media_item
from tests.checkpoints import with_task
from tests.oracle import (
    avvp_clips,
    captioned_clips,
    know_everything,
    know_nothing,
    write_checkpoint,
    write_sets,
)

CLASSES = ("bell", "bark", "flute", "truck", "cat", "horse")
VGG_NAMES = ("ringing", "barking", "fluting", "trucking", "cat", "bowling")
PROBE = ("--probe-learning-rate", "0.03", "--probe-epochs", "8", "--probe-batch-size", "8")


def clips_of(names: Sequence[str], splits: Sequence[str], per: int, prefix: str) -> list[Clip]:
    """`per` clips of each class and split; the later the split, the higher the number."""
    return [
        Clip(
            clip_id=f"{prefix}/{(s * len(names) + k) * per + i}",
            path="x.mp4",
            label=name,
            split=split,
        )
        for s, split in enumerate(splits)
        for k, name in enumerate(names)
        for i in range(per)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, class lists and a checkpoint."""
    folder = tmp_path_factory.mktemp("tasks")
    ave = clips_of(CLASSES, ("train", "val", "test"), 3, "ave")
    write_sets(folder, "ave", ave, "vat", CLASSES)
    vgg = clips_of(VGG_NAMES[:5], ("",), 6, "vgg")
    write_sets(folder, "vgg", vgg, "a", (*VGG_NAMES[:4], "cat"))
    write_sets(folder, "avvp", avvp_clips(CLASSES), "va", CLASSES)
    write_sets(folder, "coco", captioned_clips(), "at", CLASSES)
    lots = clips_of(CLASSES, ("train", "val", "test"), 30, "lots")
    write_sets(folder, "lots", lots, "at", CLASSES)
    for name, known in (("known", CLASSES[:4]), ("pairs", (*CLASSES[:3], "horse"))):
        (folder / f"{name}.csv").write_text("\n".join(["label", *known]) + "\n")
    lines = [f"{a},{b}" for a, b in zip(CLASSES, VGG_NAMES, strict=True) if a != b]
    (folder / "map.csv").write_text("\n".join(["label,label_target", *lines]) + "\n")
    digest = read_manifest(folder / "ave.csv").sha256
    write_checkpoint(folder / "last.pt", folder / "features", manifest_sha256=digest)
    return folder


def evaluate(root: Path, out: Path, manifest: str, *options: str) -> tuple[list[Row], Result]:
    given = ["--features", root / "features", "--manifest", root / f"{manifest}.csv"]
    task, *rest = with_task(options)
    arguments = [task, root / "last.pt", *given, "--out", out, "--device", "cpu", *rest]
    result = CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return read_rows(out), result


def values(rows: Sequence[Row], metric: str, **given: str) -> dict[tuple[str, str], float]:
    """By protocol and threshold."""
    return {
        (row.protocol, row.threshold_source): row.value
        for row in rows
        if row.metric == metric and all(getattr(row, k) == v for k, v in given.items())
    }


def near_chance(value: float, chance: float, trials: int) -> bool:
    """Within four standard deviations of a binomial."""
    return abs(value - chance) <= 4 * math.sqrt(chance * (1 - chance) / trials)


# --- open set --------------------------------------------------------------------------------


def test_an_oracle_finds_known_and_unknown_classes_with_every_score_of_one_probe(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=0)
    rows, result = evaluate(
        root,
        tmp_path / "r.csv",
        "ave",
        *("--pairs", "v:a", "--known", str(root / "known.csv"), "--score", "all", *PROBE),
        *("--threshold", "source-val", "--threshold", "paired-quantile"),
    )
    for score in ("msp", "max_logit", "energy", "entropy", "code_likelihood"):
        hos = values(rows, "hos", score=score)
        assert hos == {
            ("clean", "source-val"): 1.0,
            ("clean", "paired-quantile"): 1.0,
            ("paper", "oracle"): 1.0,
        }, score
    for score in ("mahalanobis", "relative_mahalanobis", "vim", "class_code_likelihood"):
        assert values(rows, "auroc", score=score)["clean", "source-val"] == 1.0, score
    assert set(values(rows, "acc").values()) == {1.0}
    assert result.stderr.count("training,") == 1
    ranked = [
        line.split("|")[2].strip() for line in result.stdout.splitlines() if " source-val " in line
    ]
    assert sorted(ranked[-len(list(SCORES)) :]) == sorted(SCORES)
    leaks = {row.protocol: row.leaks.split(";") for row in rows}
    assert leaks["paper"] == ["threshold:test", "epoch:test"]
    assert leaks["clean"] == [""]


def test_an_encoder_that_draws_is_at_chance_in_open_and_closed_sets(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    known = ("--known", str(root / "known.csv"))
    rows, _ = evaluate(root, tmp_path / "r.csv", "lots", "--pairs", "a:t", *known)
    clean = {row.metric: row.value for row in rows if row.protocol == "clean"}
    assert near_chance(clean["acc"], 1 / 4, 120)
    assert abs(clean["auroc"] - 1 / 2) < 4 * math.sqrt((120 + 60 + 1) / (12 * 120 * 60))
    assert clean["oscr"] < 0.25
    rows, _ = evaluate(root, tmp_path / "c.csv", "lots", "cmg", "--pairs", "a:t", *PROBE)
    assert near_chance(values(rows, "acc")["clean", "none"], 1 / 6, 180)
    assert values(rows, "acc")["paper", "none"] >= values(rows, "acc")["clean", "none"]


def test_classes_are_joined_by_name_between_two_data_sets(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=0)
    rows, result = evaluate(
        root,
        tmp_path / "r.csv",
        "ave",
        *("--pairs", "v:a", "--known", str(root / "pairs.csv"), *PROBE),
        *("--target-manifest", str(root / "vgg.csv"), "--class-map", str(root / "map.csv")),
        *("--score", "energy"),
    )
    found = {row.protocol: row for row in rows if row.metric == "acc"}
    assert (found["paper"].n_clips, found["clean"].n_clips) == (30, 30)
    assert (found["paper"].value, found["clean"].value) == (1.0, 1.0)
    assert "unusable-classes:1" in found["paper"].leaks.split(";")
    assert found["clean"].leaks == ""
    assert "horse" in found["clean"].note
    manifests = [read_manifest(root / f"{name}.csv").sha256 for name in ("ave", "vgg")]
    assert found["clean"].manifest_sha256 == " ".join(manifests)
    assert result.stderr.count("training,") == 2  # the clean probe has one class less


# --- closed set ------------------------------------------------------------------------------


def test_an_oracle_classifies_every_clip_and_the_published_split_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=0)
    options = ("cmg", "--pairs", "v:a,a:v", *PROBE)
    rows, _ = evaluate(root, tmp_path / "r.csv", "ave", *options)
    assert set(values(rows, "acc").values()) == {1.0}
    assert set(values(rows, "acc_class_mean").values()) == {1.0}
    assert {row.leaks for row in rows if row.protocol == "paper"} == {"epoch:test"}
    rows, _ = evaluate(
        root,
        tmp_path / "p.csv",
        "ave",
        *(*options, "--protocol", "paper", "--test-splits", "train", "--chance"),
    )
    beside, _ = evaluate(root, tmp_path / "p.csv", "ave", *options, "--protocol", "paper")
    assert set(rows) < set(beside)  # another choice of clips replaces no row
    trained = next(row for row in rows if row.method == "checkpoint")
    assert trained.splits == "test=train"
    assert trained.leaks.split(";") == [
        *("epoch:test", "test-clips-in-training:18", "test-split:train", "pretraining-overlap:18")
    ]
    chance = [row for row in rows if row.method == "chance"]
    assert {row.value for row in chance} == {1 / 6}
    assert "pretraining" not in chance[0].leaks


def test_what_is_only_heard_is_not_counted_for_video(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the test clips show the next class, and sound like their own."""
    know_everything(monkeypatch, channel=0)
    clips = clips_of(CLASSES, ("train", "val", "test"), 3, "sounder")
    for i, clip in enumerate(clips):
        shown = CLASSES[(CLASSES.index(clip.label) + 1) % 6]
        events = (Event(clip.label, 0, 10, "audio"), Event(shown, 0, 10, "video"))
        if clip.split == "test":
            events = events if i % 3 == 0 else (Event(clip.label, 0, 10),)
            clips[i] = replace(clip, events=events)
    write_sets(tmp_path, "sounder", clips, "va", CLASSES)
    (tmp_path / "last.pt").write_bytes((root / "last.pt").read_bytes())
    pairs = ("--pairs", "v:a,a:v", *PROBE)
    rows, _ = evaluate(tmp_path, tmp_path / "c.csv", "sounder", "cmg", *pairs)
    found = {(r.test_modality, r.metric): (r.value, r.n_clips) for r in rows}
    assert found["video", "acc"] == (pytest.approx(12 / 18), 18)
    assert found["video", "acc_class_mean_perceivable"] == (1.0, 12)
    assert found["video", "acc_perceivable"] == (1.0, 12)
    assert found["audio", "acc"] == found["audio", "acc_perceivable"] == (1.0, 18)
    known = ("--known", str(root / "known.csv"), "--score", "energy")
    rows, _ = evaluate(tmp_path, tmp_path / "o.csv", "sounder", *pairs, *known)
    honest = [row for row in rows if row.threshold_source == "source-val"]
    found = {(r.test_modality, r.metric): (r.value, r.n_clips) for r in honest}
    assert found["video", "os_star"][0] == pytest.approx(8 / 12)
    assert found["video", "unk"][0] == pytest.approx(5 / 6)
    assert found["video", "hos_perceivable"] == (1.0, 12)
    assert found["audio", "hos_perceivable"] == (1.0, 18)
    assert ("video", "threshold_perceivable") not in found
    rows, _ = evaluate(root, tmp_path / "plain.csv", "ave", "cmg", *pairs)
    assert not any(row.metric.endswith("perceivable") for row in rows)


def test_an_oracle_locates_every_event_in_the_arithmetic_of_each_protocol(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=0)
    rows, _ = evaluate(
        root,
        tmp_path / "r.csv",
        "avvp",
        *("localise", "--pairs", "v:a,a:v"),
        *("--probe-learning-rate", "0.05", "--probe-epochs", "25", "--probe-batch-size", "8"),
    )
    paper, clean = ([row for row in rows if row.protocol == name] for name in ("paper", "clean"))
    assert {row.metric for row in paper} == {"f1", "precision", "recall", "probe"}
    assert {row.metric for row in clean} == {"f1_micro", "precision_micro", "recall_micro", "probe"}
    for row in rows:
        if row.metric.startswith("f1"):
            assert row.value == pytest.approx(1.0, abs=1e-6), (row.protocol, row.train_modality)
            assert row.n_clips == 8  # of 12 test clips, those with events in the target modality


def test_an_encoder_that_draws_locates_no_more_than_calling_everything_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    rows, _ = evaluate(
        root,
        tmp_path / "r.csv",
        "avvp",
        *("localise", "--pairs", "v:a,a:v", "--protocol", "clean"),
        *("--seeds", "1", "--probe-learning-rate", "0.05", "--probe-batch-size", "8"),
    )
    f1 = [row.value for row in rows if row.metric == "f1_micro"]
    # Of four classes one is there in three of ten seconds: precision 3/40, recall 1.
    assert len(f1) == 2
    assert max(f1) < 6 / 43 + 0.15


# --- retrieval -------------------------------------------------------------------------------


def test_an_oracle_retrieves_every_item_by_every_caption(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_everything(monkeypatch, channel=1)
    rows, _ = evaluate(
        root,
        tmp_path / "r.csv",
        "coco",
        *("retrieval", "--pairs", "a:t,t:a", "--chance"),
    )
    found = {
        (row.method, row.train_modality, row.test_modality, row.metric): row
        for row in rows
        if row.protocol == "clean"
    }
    for rank in (1, 5, 10):
        for direction in (("audio", "text"), ("text", "audio")):
            assert found["checkpoint", *direction, f"r{rank}"].value == 1.0
        mean = [
            found["chance", *d, f"r{rank}"].value for d in (("audio", "text"), ("text", "audio"))
        ]
        assert found["chance", "audio", "text", f"r{rank}_mean"].value == pytest.approx(
            sum(mean) / 2
        )
        assert found["chance", "text", "audio", f"r{rank}"].value == pytest.approx(rank / 20)
    assert found["checkpoint", "audio", "text", "r1"].n_clips == 20
    assert found["checkpoint", "text", "audio", "r1"].n_clips == 60
    assert found["checkpoint", "text", "audio", "r1"].leaks == "pretraining-overlap:unknown"


def test_retrieval_counts_each_test_clip_once_and_each_pair_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    rows, result = evaluate(
        root,
        tmp_path / "r.csv",
        "ave",
        *("retrieval", "--protocol", "paper", "--test-splits", "train"),
        *("--pairs", "v:a,a:v"),
    )
    assert {row.leaks for row in rows} == {"test-split:train;pretraining-overlap:18"}
    assert {row.n_clips for row in rows} == {18}
    assert result.stderr.count("18 items, 18 captions") == 1
    assert len(rows) == 9


def test_an_encoder_that_draws_retrieves_by_chance(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    rows, _ = evaluate(root, tmp_path / "r.csv", "lots", "retrieval", "--pairs", "a:t")
    for row in rows:
        if row.metric == "r10":
            assert near_chance(row.value, 10 / 180, 180)


@pytest.mark.parametrize(
    ("task", "manifest", "pair"),
    [
        ("oscmg", "ave", "v:a"),
        ("cmg", "ave", "v:a"),
        ("localise", "avvp", "v:a"),
        ("retrieval", "coco", "a:t"),
    ],
)
def test_toc_drops_channels_of_the_codes_in_every_task_that_reads_them(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    manifest: str,
    pair: str,
) -> None:
    seen, encode = [], CodeEncoder.encode

    def watch(self: CodeEncoder, modality: str, clip_ids: Sequence[str]) -> ClipFeatures:
        found = encode(self, modality, clip_ids)
        whole = self._cache.get(modality, clip_ids).values
        channels = ChannelChoice(5, 1, 1).choose(self.model.quantizer.codebook)
        assert found.values.equal(whole[..., channels] if self.width(modality) == 4 else whole)
        seen.append(self.width(modality))
        return found

    monkeypatch.setattr(CodeEncoder, "encode", watch)
    options = [task, "--pairs", pair, "--protocol", "paper", "--encoder", "untrained"]
    options += ["--known", str(root / "known.csv")] * (task == "oscmg")
    options += PROBE * (task != "retrieval")
    out = tmp_path / "r.csv"
    plain, _ = evaluate(root, out, manifest, *options)
    rows, _ = evaluate(root, out, manifest, *options, "--toc", "5:1:1")
    chosen = [row for row in rows if row.conditions]
    assert {row.conditions for row in chosen} == {"toc:5:1:1"}
    assert len(rows) == 2 * len(plain) == 2 * len(chosen)
    assert set(seen) == {4, 16}


def test_toc_is_refused_where_nothing_has_channels_to_choose(root: Path, tmp_path: Path) -> None:
    given = ["--features", root / "features", "--manifest", root / "ave.csv", "--pairs", "v:a"]
    for words, message in (
        (["--encoder", "input", "--toc", "4"], "--toc: --encoder input has no codes"),
        (["--toc", "1000"], "--toc 1000: expected at most the codes' "),
        (["--toc", "4:1"], "--toc: expected CHANNELS"),
    ):
        typed = ["cmg", root / "last.pt", *given, "--out", tmp_path / "r.csv", *words]
        result = CliRunner().invoke(main, [str(word) for word in typed])
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "r.csv").exists()


# --- protocols -------------------------------------------------------------------------------


def test_clean_takes_several_seeds_and_prints_their_deviation(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    rows, result = evaluate(
        root,
        tmp_path / "r.csv",
        "ave",
        *("cmg", "--pairs", "v:a", "--protocol", "clean", "--probe-epochs", "1"),
    )
    assert {row.seed for row in rows} == set(range(43, 48))
    assert {row.protocol for row in rows} == {"clean"}
    assert "±" in result.stdout


def test_clean_leaves_out_what_was_pretrained_on_and_paper_names_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    rows, _ = evaluate(
        root,
        tmp_path / "r.csv",
        "ave",
        *("codebook", "--protocol", "both"),
    )
    split = PRESETS["micu"]().data.splits
    seen = {media_item(c) for c in read_manifest(root / "ave.csv").clips if c.split in split}
    found = {row.protocol: row for row in rows if row.metric == "used_by_all"}
    assert found["paper"].leaks == f"pretraining-overlap:{len(seen)}"
    assert (found["paper"].n_clips, found["clean"].n_clips) == (54, 54 - len(seen))
    assert found["clean"].leaks == ""


def test_a_protocol_that_cannot_be_is_told_of_and_the_other_one_stays(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_nothing(monkeypatch)
    rows, result = evaluate(
        root,
        tmp_path / "r.csv",
        "ave",
        *("retrieval", "--pairs", "v:a", "--test-splits", "train"),
    )
    assert {row.protocol for row in rows} == {"paper"}
    assert "not under the other protocol" in result.stderr


# --- the older form --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("today", "before"),
    [
        (["codebook"], ["--task=codebook"]),
        (["cmg", "--pairs", "v:a", *PROBE], ["--pairs", "v:a", *PROBE, "--task", "cmg"]),
        (
            ["localise", "--pairs", "v:a", *PROBE],
            ["--localise", "--task", "cmg", "--pairs", "v:a", *PROBE],
        ),
    ],
    ids=["codebook", "cmg", "localise"],
)
def test_the_older_form_gives_the_same_rows_and_says_how_it_is_typed_today(
    root: Path, tmp_path: Path, today: list[str], before: list[str]
) -> None:
    task, *options = today
    manifest = "avvp" if task == "localise" else "ave"
    given = ["--features", root / "features", "--manifest", root / f"{manifest}.csv"]
    told = []
    for words, out in (
        ([task, root / "last.pt", *options], "a"),
        ([root / "last.pt", *before], "b"),
    ):
        typed = [str(x) for x in (*words, *given, "--out", tmp_path / f"{out}.csv")]
        result = CliRunner().invoke(main, typed, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        told.append(result.stderr.count(f"today: micu-eval {task} CHECKPOINT"))
    assert told == [0, 1]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_every_task_has_a_command() -> None:
    assert {*OPTIONS} == {name for name, _ in TASKS.items()} | {"localise"}


# --- efficiency ------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_efficiency_is_measured_and_says_on_what(root: Path, tmp_path: Path, given: bool) -> None:
    features = ["--features", root / "features", "--manifest", root / "ave.csv"]
    arguments = ["efficiency", root / "last.pt", "--batch-size", "4", "--steps", "1"]
    arguments += [*(features if given else []), "--out", tmp_path / "r.csv", "--device", "cpu"]
    result = CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = {row.metric: row for row in read_rows(tmp_path / "r.csv")}
    assert found["parameters"].value > found["parameters_downstream"].value > 0
    for metric in ("training_memory_mib", "inference_memory_mib", "seconds_per_step"):
        assert found[metric].value > 0
    assert 0 < found["seconds_per_clip"].value < found["seconds_per_step"].value
    note = found["parameters"].note
    assert "cpu, 1 threads" in note or "threads" in note
    assert ("given features" if given else "random features") in note
    assert "seconds per step" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cmg"], "cmg needs --source and --target"),
        (["retrieval"], "retrieval needs --source"),
        (["efficiency", "--encoder", "untrained"], "efficiency does not; leave it out"),
        (["efficiency", "--protocol", "paper"], "--protocol: only micu-eval"),
        (["retrieval", "--pairs", "v:a", "--known", "k.csv"], "--known: only micu-eval"),
        (["cmg", "--pairs", "v:a", "--score", "msp"], "--score: only micu-eval oscmg"),
        (["localise", "--pairs", "v:a", "--chance"], "--chance: only micu-eval"),
        (["cmg", "--pairs", "v:a", "--class-map", "m.csv"], "no such class map"),
        (
            ["--protocol", "paper", "--threshold", "source-val", "--pairs", "v:a"],
            "--protocol paper has a threshold of its own",
        ),
        (["--score", "quantization_error", "--encoder", "input", "--pairs", "a:a"], "no codes"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    root: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = ["--features", root / "features", "--manifest", root / "ave.csv"]
    task, *rest = with_task(options)
    given += ["--known", root / "known.csv"] if task == "oscmg" else []
    given = [] if task == "efficiency" else given
    arguments = [task, root / "last.pt", *given, "--out", tmp_path / "r.csv", *rest]
    result = CliRunner().invoke(main, [str(item) for item in arguments], catch_exceptions=False)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "r.csv").exists()
