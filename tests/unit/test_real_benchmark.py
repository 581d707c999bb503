"""The real-data benchmark: which items make clips, its readers and tables, and all of it, small."""

import csv
import json
import struct
from dataclasses import replace
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.real import main
from benchmarks.real_media import TEST_SPEAKERS, open_objects, origin_of, write_set
from benchmarks.real_methods import DATA_SETS, METHODS, assignments, draw_trials
from benchmarks.real_pairs import SHARES, Item, Pool, drop_duplicates, pair_items
from benchmarks.real_tables import CEILING, CLOSED, Figure, figures_of, summarise
from benchmarks.tensorflow_checkpoint import MAGIC, read_tensors
from micu.base.errors import ManifestError
from micu.config.presets import PRESETS
from micu.evaluate.report import Row, read_rows
from micu.store.manifest import read_manifest
from tests.media_files import write_wav

# --- items and pairs -------------------------------------------------------------------------


def items(kind, label, count, origins=("",)):
    return [Item(f"{kind}/{label}/{i}", label, origins[i % len(origins)]) for i in range(count)]


def every(kind, counts, origins=("",)):
    return [item for label, n in counts.items() for item in items(kind, label, n, origins)]


def test_no_item_is_in_two_splits_and_every_training_item_is_used():
    pictures, sounds = every("p", {"a": 40, "b": 100}), every("s", {"a": 90, "b": 30})
    pairs = pair_items(pictures, sounds, seed=3)
    for kind in (0, 1):
        used = {
            split: {both[kind].name for part, _, _, both in pairs if part == split}
            for split in SHARES
        }
        for one, other in pairwise([*used, next(iter(used))]):
            assert not used[one] & used[other]
        train = [n for n in (40, 100) if kind == 0] or [90, 30]
        assert len(used["train"]) == sum(round(0.6 * n) for n in train)


def test_a_clip_that_is_tested_shares_no_item_with_another():
    pairs = pair_items(every("p", {"a": 40}), every("s", {"a": 90}), seed=3)
    for kind in (0, 1):
        tested = [both[kind] for split, _, _, both in pairs if split != "train"]
        assert len(set(tested)) == len(tested)


def test_a_pair_is_of_one_class():
    pairs = pair_items(every("p", {"a": 9, "b": 9}), every("s", {"a": 9, "b": 9}), seed=0)
    assert {label for _, label, _, _ in pairs} == {"a", "b"}
    assert all(item.label == label for _, label, _, both in pairs for item in both)


def origins_by_split(pairs):
    return {
        split: {both[1].origin for part, _, _, both in pairs if part == split} for split in SHARES
    }


def test_two_speakers_are_heard_in_the_test_alone():
    speakers = ("jackson", "lucas", "theo", "yweweler")
    sounds = [
        replace(item, test_only=item.origin in TEST_SPEAKERS)
        for item in every("s", {"one": 80}, speakers)
    ]
    pairs = pair_items(every("p", {"one": 80}), [replace(s, origin="") for s in sounds], seed=1)
    held_out = {sound.name for sound in sounds if sound.test_only}
    for split in SHARES:
        heard = {both[1].name for part, _, _, both in pairs if part == split}
        assert heard <= held_out if split == "test" else not heard & held_out


@pytest.mark.parametrize("takes", [1, 4, 13])
def test_takes_of_one_recording_are_in_one_split(takes):
    recordings = tuple(f"recording {number}" for number in range(-(-80 // takes)))
    pairs = pair_items(every("p", {"a": 80}), every("s", {"a": 80}, recordings), seed=1)
    heard = origins_by_split(pairs)
    assert all(heard.values())
    for one, other in pairwise([*heard, "train"]):
        assert not heard[one] & heard[other]


def test_a_file_names_its_recording_or_speaker():
    assert origin_of("audio/esc10/helicopter/1-172649-A.ogg") == "esc10/172649"
    assert origin_of("audio/esc10/helicopter/1-172649-B.ogg") == "esc10/172649"
    assert origin_of("audio/fsdd/0_george_10.wav") == "fsdd/george"
    assert origin_of("audio/animals/cow/Inek_inek_1.wav") == ""
    with pytest.raises(ManifestError, match="expected a name"):
        origin_of("audio/esc10/helicopter/renamed.ogg")


def test_a_folder_without_its_list_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"items\.csv: not there"):
        open_objects(tmp_path)


def test_clips_are_made_of_the_items_that_are_told(tmp_path):
    source, rows = tmp_path / "source", ["path,kind,label,source"]
    rng = np.random.default_rng(0)
    source.mkdir()
    for number in range(8):
        picture, sound = f"{number}.png", f"{number}.wav"
        cv2.imwrite(str(source / picture), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        write_wav(source / sound, rng.normal(0, 0.1, (1, 16_000)), 16_000)
        rows += [f"{picture},image,a,x/{picture}", f"{sound},audio,a,esc10/1-{number}-A.wav"]
    (source / "items.csv").write_text("\n".join(rows))
    manifest = read_manifest(write_set("av-objects", source, tmp_path / "out", workers=1))
    with (tmp_path / "out/av-objects.items.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    assert [row["clip_id"] for row in told] == [clip.clip_id for clip in manifest.clips]
    assert {row["sound_origin"] for row in told} <= {f"esc10/{number}" for number in range(8)}
    with av.open(str(tmp_path / "out" / manifest.clips[0].path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, audio.rate) == (256, 256, 16_000)
        assert sum(1 for _ in container.decode(video)) == 5 * 4


def test_pairs_are_a_function_of_the_seed():
    pools = every("p", {"a": 20}), every("s", {"a": 20})
    assert pair_items(*pools, seed=1) == pair_items(*pools, seed=1)
    assert pair_items(*pools, seed=1) != pair_items(*pools, seed=2)


def looks(vectors):
    return lambda item: np.asarray(vectors[item.name], np.float32)


def test_of_near_duplicates_the_first_stays():
    three = items("p", "a", 3)
    vectors = {three[0].name: [1, 0, 0], three[1].name: [0.999, 0.01, 0], three[2].name: [0, 1, 0]}
    kept = drop_duplicates(Pool(three, looks(vectors), shifts=False))
    assert kept == [three[0], three[2]]


def test_duplicates_of_another_class_stay():
    two = [*items("p", "a", 1), *items("p", "b", 1)]
    pool = Pool(two, lambda item: np.ones(3, np.float32), shifts=False)
    assert drop_duplicates(pool) == two


def test_a_sound_that_begins_later_is_a_duplicate():
    two = items("s", "a", 2)
    sound = np.random.default_rng(0).normal(size=50)
    late = np.concatenate([np.zeros(30), sound, np.zeros(20)])
    early = np.concatenate([sound, np.zeros(50)])
    pool = Pool(two, looks({two[0].name: early, two[1].name: late}), shifts=True)
    assert drop_duplicates(pool) == two[:1]
    assert drop_duplicates(replace(pool, shifts=False)) == two


# --- TensorFlow's checkpoints ----------------------------------------------------------------


def varint(number):
    parts = []
    while number > 127:
        parts.append(number % 128 + 128)
        number //= 128
    return bytes([*parts, number])


def block(entries):
    """A block of a string table: keys share prefixes, and one restart point stands at its end."""
    made, before = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b),
            min(len(key), len(before)),
        )
        own = key[shared:]
        made += varint(shared) + varint(len(own)) + varint(len(value)) + own + value
        before = key
    return made + struct.pack("<II", 0, 1)


def entry(shape, offset, size, kind=1):
    sizes = b"".join(
        b"\x12" + varint(len(one)) + one for one in (b"\x08" + varint(n) for n in shape)
    )
    return (
        *(b"\x08" + varint(kind), b"\x12" + varint(len(sizes)) + sizes),
        *(b"\x20" + varint(offset), b"\x28" + varint(size), b"\x35\0\0\0\0"),
    )


def write_checkpoint(prefix, tensors, kind=1, data_end=None):
    data, entries = b"", [(b"", b"\x08\x01")]
    for key, values in sorted(tensors.items()):
        raw = values.astype("<f4").tobytes()
        entries.append((key.encode(), b"".join(entry(values.shape, len(data), len(raw), kind))))
        data += raw
    body, trailer = block(entries), b"\0" * 5
    index = block([(b"~", varint(0) + varint(len(body)))])
    meta = block([])
    places = varint(len(body) + 5), varint(len(meta))
    places += varint(len(body) + 5 + len(meta) + 5), varint(len(index))
    footer = b"".join(places).ljust(40, b"\0") + struct.pack("<Q", MAGIC)
    table = body + trailer + meta + trailer + index + trailer + footer
    prefix.with_name(f"{prefix.name}.index").write_bytes(table)
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data[:data_end])


TENSORS = {
    "layer/bias": np.arange(300, dtype=np.float32),
    "layer/kernel": np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 7,
    "step": np.float32([5]),
}


def test_a_checkpoint_of_tensorflow_is_read_without_it(tmp_path):
    write_checkpoint(tmp_path / "variables", TENSORS)
    read = read_tensors(tmp_path / "variables")
    assert read.keys() == TENSORS.keys()
    assert all(np.array_equal(read[name], values) for name, values in TENSORS.items())


def test_tensors_that_are_not_floats_are_passed_over(tmp_path):
    write_checkpoint(tmp_path / "variables", TENSORS, kind=9)
    assert read_tensors(tmp_path / "variables") == {}


def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path):
    write_checkpoint(tmp_path / "variables", TENSORS, data_end=-1)
    with pytest.raises(ValueError, match="names bytes that are not there"):
        read_tensors(tmp_path / "variables")


def test_another_file_is_no_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "variables", TENSORS)
    path = tmp_path / "variables.index"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="expected a sorted string table"):
        read_tensors(tmp_path / "variables")


# --- settings --------------------------------------------------------------------------------


def test_every_method_is_tuned_at_the_same_points():
    trials = draw_trials(4, 0)
    assert len(set(trials)) == 4
    assert trials == draw_trials(4, 0)


@pytest.mark.parametrize("name", METHODS)
def test_tuning_scales_the_main_losses_of_a_method(name):
    method, trial = METHODS[name], replace(draw_trials(1, 0)[0], factor=3.0)
    changed = dict(word.split("=") for word in assignments(method, trial, DATA_SETS["av-digits"]))
    preset = PRESETS[method.preset]().weights
    for loss in method.main:
        assert float(changed[f"weights.{loss}"]) == pytest.approx(3 * getattr(preset, loss))
        assert getattr(preset, loss) > 0


# --- tables ----------------------------------------------------------------------------------


def figure(seed, value, **given):
    empty = {"data": "d", "method": "m", "split": "8", "source": "video", "target": "audio"}
    return Figure(**{**empty, "how": "paper", "metric": "hos", **given}, seed=seed, value=value)


def test_a_cell_is_the_deviation_of_the_means_of_the_seeds():
    figures = [figure(1, 0.2), figure(1, 0.4), figure(2, 0.5), figure(2, 0.5), figure(2, 9.0)]
    cell = summarise(figures, lambda f: f.value < 1)
    assert (cell.mean, cell.seeds) == (pytest.approx(0.4), 2)
    assert cell.deviation == pytest.approx(0.2 / np.sqrt(2))
    assert str(cell) == "40.0 ± 14.1"


def test_one_seed_has_no_deviation_and_none_no_mean():
    assert str(summarise([figure(1, 0.25)], lambda _: True)) == "25.0"
    assert str(summarise([], lambda _: True)) == "–"


def row(**given):
    empty = dict.fromkeys(("preset", "checkpoint_sha256", "manifest_sha256"), "")
    numbers = {"seed": 1, "value": 0.5, "n_clips": 3}
    return Row(**{**empty, **numbers, "task": "oscmg", "metric": "hos", **given})


def test_the_ceiling_stands_beside_every_pair_of_its_target():
    digits = DATA_SETS["av-digits"]
    made = {"train_modality": "flow", "test_modality": "flow", "threshold_source": "oracle"}
    rows = [row(method="ceiling", protocol="paper", **made)]
    found = figures_of(digits, "dcid", "5", rows)
    assert {(f.source, f.target) for f in found} == {("video", "flow"), ("audio", "flow")}
    assert {(f.method, f.how) for f in found} == {(CEILING, "paper")}


def test_a_figure_without_a_threshold_stands_under_every_clean_one():
    made = {"train_modality": "video", "test_modality": "audio", "threshold_source": "none"}
    rows = [row(method="chance", protocol=protocol, **made) for protocol in ("clean", "paper")]
    found = figures_of(DATA_SETS["av-objects"], "dcid", CLOSED, rows)
    assert sorted(f.how for f in found) == ["paired-quantile", "paper", "source-val"]


# --- everything, small -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    result = run(out)
    assert result.exit_code == 0, result.output
    return out


SMALL_RUN = ("--smoke", "--sets", "av-objects", "--methods", "micu,skeleton", "--workers", "1")


def run(out, *more):
    words = [*SMALL_RUN, "--out", str(out), *more]
    return CliRunner().invoke(main, words, catch_exceptions=False)


def test_the_table_has_every_method_and_its_references(benchmark):
    text = (benchmark / "table.md").read_text()
    for title in ("MICU", "no alignment", "untrained", "chance", "linear probe"):
        assert f"| {title}" in text
    with (benchmark / "figures.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    shown = {(f["split"], f["how"]) for f in found if f["method"] == "micu"}
    assert shown >= {(n, how) for n in ("8", "12") for how in ("source-val", "paper")}
    assert {f["seed"] for f in found if f["method"] == "micu"} == {"1", "2"}


def test_a_step_of_every_method_is_timed(benchmark):
    seconds = json.loads((benchmark / "av-objects.cost.json").read_text())
    assert seconds.keys() == {"micu", "skeleton"}
    assert min(seconds.values()) > 0


def test_tuning_looks_at_held_out_source_clips_of_known_classes_alone(benchmark):
    for path in benchmark.glob("runs/*/*/*/1/validation.csv"):
        for found in read_rows(path):
            assert found.train_modality == found.test_modality
            assert found.n_clips == 8 * 3
            assert "test-split:val" in found.leaks


def test_nothing_that_is_finished_is_done_again(benchmark):
    before = {path: path.stat().st_mtime_ns for path in benchmark.glob("runs/**/*.*")}
    assert run(benchmark).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in benchmark.glob("runs/**/*.*")} == before


def test_results_of_other_settings_are_not_mixed_in(benchmark):
    record = next(benchmark.glob("runs/*/skeleton/*/2/settings.json"))
    before = record.read_text()
    record.write_text(before.replace("batch_size=32", "batch_size=16"))
    result = CliRunner().invoke(main, [*SMALL_RUN, "--out", str(benchmark)])
    record.write_text(before)
    assert result.exit_code == 1
    assert "made with other settings" in result.output
    assert str(record.parent) in result.output


def test_a_toy_is_not_put_where_the_real_one_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["--stage", "table", "--methods", "micu", "--smoke"])
    assert result.exit_code == 1
    assert "not trained yet" in result.output
    assert [path.name for path in tmp_path.iterdir()] == [".real-smoke"]


def test_ablations_stand_beside_the_method_itself(benchmark):
    result = run(benchmark, "--stage", "ablation")
    assert result.exit_code == 0, result.output
    text = (benchmark / "ablation.md").read_text()
    assert "| MICU " in text
    assert "| batches of 40" in text


def test_a_mistyped_method_is_named(tmp_path):
    words = ["--smoke", "--out", str(tmp_path), "--methods", "micu,dicd"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "--methods: no dicd; known: micu" in result.output
