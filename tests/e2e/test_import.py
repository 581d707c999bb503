"""`micu-extract import`: released files of each layout become feature sets."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from micu.base.errors import ConfigError, MicuError
from micu.config.sections import DataConfig
from micu.data.dataset import FeatureDataset
from micu.store.ledger import read_ledger
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore, read_set
from micu_extract.cli import cli
from tests.released_files import (
    GRID,
    HUNGRY,
    VECTOR,
    features,
    lie_about_size,
    shell,
    write_ave,
    zip_array,
    zip_pickle,
)
from tests.toy import shard_bytes


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["import", *arguments, "--workers", "1"])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_clips(path: Path, *names: str) -> None:
    write_manifest(path, [Clip(clip_id=name, path=f"{name}.mp4", label="a") for name in names])


def test_the_tables_of_ave_become_two_feature_sets(tmp_path: Path) -> None:
    write_ave(tmp_path)
    command = ["ave", "ave.csv", "--video", "visual_feature.h5", "--audio", "audio_feature.h5"]
    result = invoke(*command, "--labels", "labels.h5")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "features" / "ave"
    stores = {name: FeatureStore(folder / f"{name}-released") for name in ("video", "audio")}
    for name, shape in (("video", GRID), ("audio", VECTOR)):
        row = stores[name].read("clip 1")
        assert np.array_equal(row.values, features(10, shape, 1).astype(np.float32))
        assert row.mask.all()
    spec = stores["video"].spec
    assert spec.preprocessing["provenance"] == "released by the authors"
    assert (spec.weights, spec.weights_sha256) == ("unknown (released by the authors)", "unknown")
    assert CliRunner().invoke(cli, ["verify", "features", "--data"]).exit_code == 0
    # the features are what training reads
    dataset = FeatureDataset(stores, read_manifest(tmp_path / "ave.csv").clips, DataConfig())
    assert len(dataset) == 3
    again = invoke(*command)
    assert "0 clips to extract, 3 done" in again.output


HOSTILE = {
    "aaaaaaaaaaA": "good",
    "bbbbbbbbbbA_1_11": "short",
    "ccccccccccA": "unsafe_pickle",
    "ddddddddddA": "too_large",
    "eeeeeeeeeeA": "bad_archive",
    "ffffffffffA": "bad_array",
    "ggggggggggA": "non_finite",
    "hhhhhhhhhhA": "no_steps",
    "iiiiiiiiiiA": "missing",
    "jjjjjjjjjjA": "bad_array",
    "../kkkkkkkkkkA": "outside_root",
    "llllllllllA": "too_large",
}


def write_hostile(folder: Path, marker: Path) -> None:
    """Zip files of audio features, of which two are good."""
    zip_array(folder / "aaaaaaaaaaA.zip", features(12, VECTOR))
    zip_array(folder / "bbbbbbbbbbA.zip", features(4, VECTOR, 1))
    zip_pickle(folder / "ccccccccccA.zip", shell(marker))
    zip_pickle(folder / "ddddddddddA.zip", b"x")
    lie_about_size(folder / "ddddddddddA.zip", 2**31)
    (folder / "eeeeeeeeeeA.zip").write_text("no zip file")
    zip_array(folder / "ffffffffffA.zip", features(10, (64,)))
    nan = features(10, VECTOR)
    nan[3, 3] = np.nan
    zip_array(folder / "ggggggggggA.zip", nan)
    zip_array(folder / "hhhhhhhhhhA.zip", features(0, VECTOR))
    zip_array(folder / "jjjjjjjjjjA.zip", np.zeros((10, 128), np.int64))
    zip_array(folder.parent / "kkkkkkkkkkA.zip", features(10, VECTOR))
    zip_pickle(folder / "llllllllllA.zip", HUNGRY)


def test_hostile_files_fail_alone_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "run"
    write_hostile(tmp_path / "audio", marker)
    write_clips(tmp_path / "m.csv", *HOSTILE)
    result = invoke("avvp", "m.csv", "--audio", "audio", "--json")
    assert result.exit_code == 3, result.output
    folder = tmp_path / "features" / "m" / "audio-released"
    found = {name: failure.code for name, failure in read_ledger(folder).items()}
    assert found == dict(list(HOSTILE.items())[2:])
    assert not marker.exists()
    store = FeatureStore(folder)
    assert store.read("aaaaaaaaaaA").mask.all()
    short = store.read("bbbbbbbbbbA_1_11")
    expected = features(4, VECTOR, 1).astype(np.float32)[[0, 1, 2, *[3] * 7]]
    assert np.array_equal(short.values, expected)
    assert short.mask.tolist() == [True] * 4 + [False] * 6
    assert CliRunner().invoke(cli, ["verify", "features", "--data"]).exit_code == 0
    # a file that was mended is taken in, and the bytes are those of one run
    zip_array(tmp_path / "audio" / "ccccccccccA.zip", features(10, VECTOR, 2))
    invoke("avvp", "m.csv", "--audio", "audio", "--retry-failed")
    invoke("avvp", "m.csv", "--audio", "audio", "--out", "fresh")
    fresh = tmp_path / "fresh" / "m" / "audio-released"
    assert shard_bytes(folder) == shard_bytes(fresh)
    assert "ccccccccccA" not in read_ledger(folder)


def test_features_of_another_release_are_not_mixed_in(tmp_path: Path) -> None:
    zip_array(tmp_path / "audio" / "v_Run_g01_c01.zip", features(10, VECTOR))
    write_clips(tmp_path / "m.csv", "v_Run_g01_c01")
    assert invoke("ucf", "m.csv", "--audio", "audio").exit_code == 0
    mixed = invoke("avvp", "m.csv", "--audio", "audio")
    assert isinstance(mixed.exception, MicuError)
    assert "made with other settings" in str(mixed.exception)


def test_a_table_of_other_rows_ends_the_run(tmp_path: Path) -> None:
    write_ave(tmp_path)
    write_clips(tmp_path / "m.csv", "a", "b")
    result = invoke("ave", "m.csv", "--audio", "audio_feature.h5")
    assert isinstance(result.exception, MicuError)
    assert "has 3 rows, the manifest 2" in str(result.exception)
    assert not list((tmp_path / "features" / "m").rglob("*.h5"))


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    write_ave(tmp_path)
    (tmp_path / "zips").mkdir()
    assert "expected --video PATH, --audio PATH" in invoke("ave", "ave.csv").output
    zips, table = ("--video", "zips"), ("--video", "labels.h5")
    for words, message in (
        (("ave", "ave.csv", *zips), "expected one HDF5 file"),
        (("ave", "ave.csv", *table, *table), "expected one HDF5 file"),
        (("ucf", "ave.csv", *table), "expected folders of zip files"),
        (("ucf", "ave.csv", *zips, "--labels", "labels.h5"), "expected a release with HDF5 files"),
        (("ave-avvp", "ave.csv", *zips, *table), "expected --rows too"),
        (("ave-avvp", "ave.csv", *zips, "--rows", "ave.csv"), "one HDF5 file and folders"),
    ):
        result = invoke(*words)
        assert isinstance(result.exception, ConfigError)
        assert message in str(result.exception)


def test_a_mixture_takes_lines_of_the_table_and_zip_files(tmp_path: Path) -> None:
    write_ave(tmp_path)
    for folder, name in (("one", "aaaaaaaaaaA"), ("two", "bbbbbbbbbbA")):
        zip_array(tmp_path / folder / f"{name}.zip", features(10, VECTOR, ord(name[0])))
    write_clips(tmp_path / "m.csv", "clip 2", "aaaaaaaaaaA_1_11", "bbbbbbbbbbA_1_11")
    sources = ("audio_feature.h5", "one", "two")
    words = [word for source in sources for word in ("--audio", source)]
    result = invoke("ave-avvp", "m.csv", *words, "--rows", "ave.csv", "--labels", "labels.h5")
    assert result.exit_code == 0, result.output
    store = FeatureStore(tmp_path / "features" / "m" / "audio-released")
    for name, seed in (("clip 2", 2), ("aaaaaaaaaaA_1_11", 97), ("bbbbbbbbbbA_1_11", 98)):
        expected = features(10, VECTOR, seed).astype(np.float32)
        assert np.array_equal(store.read(name).values, expected), name


def test_a_repair_names_the_command_that_imports(tmp_path: Path) -> None:
    zip_array(tmp_path / "audio" / "v_Run_g01_c01.zip", features(10, VECTOR))
    write_clips(tmp_path / "m.csv", "v_Run_g01_c01")
    invoke("ucf", "m.csv", "--audio", "audio")
    folder = tmp_path / "features" / "m" / "audio-released"
    (folder / "shard-00000.h5").write_bytes(b"")
    result = CliRunner().invoke(cli, ["verify", "features", "--data", "--repair"])
    assert "micu-extract import ucf m.csv --audio audio" in result.output
    assert read_set(folder)[1].rows == 1
    assert json.loads((tmp_path / "features" / "last.json").read_text())["media_root"]


def test_a_file_that_is_named_as_a_video_is_not_taken_for_one_of_its_several_clips(
    tmp_path: Path,
) -> None:
    for number, name in enumerate(("aaaaaaaaaaA", "bbbbbbbbbbA", "bbbbbbbbbbA_000128")):
        zip_array(tmp_path / "audio" / f"{name}.zip", features(10, VECTOR, number))
    names = ("aaaaaaaaaaA_000001", "aaaaaaaaaaA_000001#2", "bbbbbbbbbbA_000091")
    write_clips(tmp_path / "m.csv", *names, "bbbbbbbbbbA_000128")
    result = invoke("vggsound-avel", "m.csv", "--audio", "audio")
    assert result.exit_code == 3, result.output
    told = "2 clips may take the file of their video: aaaaaaaaaaA_000001, aaaaaaaaaaA_000001#2\n"
    assert told in result.stderr
    folder = tmp_path / "features" / "m" / "audio-released"
    ((lost, failure),) = read_ledger(folder).items()
    assert (lost, failure.code) == ("bbbbbbbbbbA_000091", "missing")
    assert "bbbbbbbbbbA.zip may be of another clip" in failure.message
    store = FeatureStore(folder)
    for name, number in ((names[0], 0), (names[1], 0), ("bbbbbbbbbbA_000128", 2)):
        expected = features(10, VECTOR, number).astype(np.float32)
        assert np.array_equal(store.read(name).values, expected)
