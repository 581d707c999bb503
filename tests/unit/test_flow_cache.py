"""What is taken from the folder of computed flow, and what is not."""

import json
import logging
import os
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import micu_extract.media.damage
import micu_extract.media.flow
import micu_extract.media.flow_cache
import micu_extract.media.readers
import micu_extract.media.source
from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FlowInput, Media
from micu_extract.flow.methods import FlowSettings
from micu_extract.media.decoding import decode_clip
from micu_extract.media.readers import read
from micu_extract.media.source import Reading
from tests.media_files import HASTY_FLOW, skip_without_decord, write_media

WANTS = FlowInput(clip_len=2, interval=3, resize=32, crop=24)
CLIP = Clip(clip_id="c", path="a.mp4")


def noisy(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (40, 64, 3)).astype(np.uint8)


@pytest.fixture
def reading(tmp_path) -> Reading:
    write_media(tmp_path / "a.mp4", frames=20, picture=noisy)
    return Reading(media_root=tmp_path, flow=HASTY_FLOW, flow_cache=tmp_path / "flow")


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Pairs of each call to the estimator."""
    calls: list[int] = []
    estimate = micu_extract.media.flow.estimate_flow

    def note(previous, following, settings):
        calls.append(len(previous))
        return estimate(previous, following, settings)

    monkeypatch.setattr(micu_extract.media.flow, "estimate_flow", note)
    return calls


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Media files that were opened for decoding."""
    names: list[str] = []
    open_container = micu_extract.media.source.av.open

    def note(name, **settings):
        names.append(name)
        return open_container(name, **settings)

    monkeypatch.setattr(micu_extract.media.source.av, "open", note)
    return names


def files_of(reading: Reading) -> list[Path]:
    return sorted(path for path in reading.flow_cache.rglob("*") if path.is_file())


def assert_same(ours: Media, theirs: Media) -> None:
    np.testing.assert_array_equal(ours.units, theirs.units)
    np.testing.assert_array_equal(ours.times_s, theirs.times_s)
    for name in ("duration_s", "steps", "notes"):
        assert getattr(ours, name) == getattr(theirs, name)


def without_cache(reading: Reading, wants: FlowInput = WANTS, clip: Clip = CLIP) -> Media:
    return read(clip, wants, replace(reading, flow_cache=None))


# --- what it saves ---------------------------------------------------------------------------


def test_a_second_run_gives_the_same_units_without_opening_the_media(reading, computed, opened):
    plain = without_cache(reading)
    cold = read(CLIP, WANTS, reading)
    assert (computed, len(opened)) == ([4, 4], 2)
    warm = read(CLIP, WANTS, reading)
    assert (computed, len(opened)) == ([4, 4], 2)
    assert_same(cold, plain)
    assert_same(warm, plain)


@pytest.mark.parametrize("dt_s", [None, 0.13])
def test_a_window_of_a_file_is_kept_with_its_exact_times(reading, dt_s, opened):
    clip = Clip(clip_id="w", path="a.mp4", start_s=0.37, end_s=1.9)
    wants = replace(WANTS, dt_s=dt_s)
    cold, count = read(clip, wants, reading), len(opened)
    assert_same(read(clip, wants, reading), cold)
    assert len(opened) == count
    assert_same(cold, without_cache(reading, wants, clip))


def test_another_backbone_computes_only_the_pairs_that_are_missing(reading, computed, opened):
    read(CLIP, WANTS, reading)
    other = replace(WANTS, clip_len=4, interval=3, crop=40)
    expected = without_cache(reading, other)
    computed.clear()
    assert_same(read(CLIP, other, reading), expected)
    assert computed == [4], "of eight pairs, four are there"
    opened.clear()
    assert_same(read(CLIP, other, reading), expected)
    assert_same(read(CLIP, WANTS, reading), without_cache(reading))
    assert len(opened) == 1, "the one read without the cache"
    assert len(files_of(reading)) == 1


def test_fields_are_kept_whole_so_that_another_crop_can_be_cut(reading):
    read(CLIP, WANTS, reading)
    with h5py.File(files_of(reading)[0]) as file:
        assert file["fields"].shape == (4, 2, 32, 51)
        assert file["fields"].dtype == np.uint8
        # A file that other programs can read, though we deflate by ourselves.
        whole = file["fields"][:].transpose(0, 2, 3, 1)
        pairs = [tuple(pair) for pair in file["pairs"][:].tolist()]
    assert pairs == [(2, 3), (5, 6), (12, 13), (15, 16)]
    units = without_cache(reading, replace(WANTS, crop=32)).units
    np.testing.assert_array_equal(units.reshape(4, 32, 32, 2), whole[:, :, 10:42])


def test_the_name_of_the_cache_is_not_in_what_it_holds(reading, tmp_path):
    read(CLIP, WANTS, reading)
    read(CLIP, WANTS, replace(reading, flow_cache=tmp_path / "other"))
    ours, theirs = files_of(reading), files_of(replace(reading, flow_cache=tmp_path / "other"))
    assert ours[0].relative_to(reading.flow_cache) == theirs[0].relative_to(tmp_path / "other")
    assert ours[0].read_bytes() == theirs[0].read_bytes()


# --- what is not taken -----------------------------------------------------------------------


OTHER = {"bound": 10.0, "rounding": "truncate", "gray": "after", "resize": 28, "dt_s": 0.1}


@pytest.mark.parametrize("changed", OTHER)
def test_fields_of_other_conventions_are_kept_apart(reading, computed, changed):
    read(CLIP, WANTS, reading)
    computed.clear()
    other = replace(WANTS, **{changed: OTHER[changed]})
    assert_same(read(CLIP, other, reading), without_cache(reading, other))
    assert computed == [4, 4]
    assert len(files_of(reading)) == 2


def test_fields_of_another_method_or_decoder_are_kept_apart(reading, computed):
    skip_without_decord()
    read(CLIP, WANTS, reading)
    for other in (
        replace(reading, flow=FlowSettings(method="raft", raft="small", weights="random")),
        replace(reading, decoder="decord"),
    ):
        computed.clear()
        read(CLIP, WANTS, other)
        assert computed == [4]
    assert len(files_of(reading)) == 3


def test_another_clip_of_the_same_file_is_another_clip(reading, computed):
    read(CLIP, WANTS, reading)
    computed.clear()
    for clip in (
        replace(CLIP, clip_id="d"),
        replace(CLIP, start_s=0.5),
        replace(CLIP, end_s=1.0),
    ):
        assert_same(read(clip, WANTS, reading), without_cache(reading, clip=clip))
    assert len(files_of(reading)) == 4


@pytest.mark.parametrize("changed", ["size", "time"])
def test_media_of_another_size_or_time_of_change_are_read_again(reading, computed, changed):
    media = reading.media_root / "a.mp4"
    read(CLIP, WANTS, reading)
    status, later = media.stat(), int(changed == "time")
    if changed == "size":
        media.write_bytes(media.read_bytes() + b"\0" * 8)
    os.utime(media, ns=(status.st_atime_ns, status.st_mtime_ns + later))
    computed.clear()
    assert_same(read(CLIP, WANTS, reading), without_cache(reading))
    assert computed == [4, 4]
    assert len(files_of(reading)) == 1


def test_media_that_are_gone_are_missing_though_their_flow_is_kept(reading):
    read(CLIP, WANTS, reading)
    (reading.media_root / "a.mp4").unlink()
    with pytest.raises(DecodeError) as caught:
        read(CLIP, WANTS, reading)
    assert caught.value.code == "missing"


def test_fields_of_another_decoding_are_not_mixed_with_new_ones(reading, computed):
    read(CLIP, WANTS, reading)
    rewrite(files_of(reading)[0], header_with(covered_s=[19, 10]))
    other = replace(WANTS, clip_len=4)
    expected = without_cache(reading, other)
    computed.clear()
    assert_same(read(CLIP, other, reading), expected)
    assert computed == [8]


def test_units_that_would_not_fit_in_memory_are_refused_though_their_fields_are_kept(
    reading, monkeypatch
):
    read(CLIP, WANTS, reading)
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", 100_000)
    with pytest.raises(DecodeError) as caught:
        read(CLIP, replace(WANTS, crop=200), reading)
    assert caught.value.code == "too_large"


def test_failures_are_not_kept(reading):
    write_media(reading.media_root / "b.mp4", frames=1)
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            read(replace(CLIP, path="b.mp4"), WANTS, reading)
        assert caught.value.code == "too_short"
    assert not reading.flow_cache.exists()


# --- what is damaged or hostile --------------------------------------------------------------


def rewrite(path: Path, change) -> None:
    """Let `change` have the parts of a file, and write it again with a checksum that fits."""
    with h5py.File(path) as file:
        header, pairs = json.loads(file["header"][:].tobytes()), file["pairs"][:]
        fields = file["fields"][:]
    parts = change({"header": header, "pairs": pairs, "fields": fields}) or {}
    header = parts.get("header", header)
    raw = header if isinstance(header, bytes) else json.dumps(header, sort_keys=True).encode()
    pairs, fields = parts.get("pairs", pairs), parts.get("fields", fields)
    with h5py.File(path, "w") as file:
        if pairs.dtype == np.int32:
            digest = micu_extract.media.flow_cache._digest(raw, pairs)
            file.attrs["sha256"] = np.bytes_(digest)
        file["header"] = np.frombuffer(raw, np.uint8)
        file["pairs"] = pairs
        file.create_dataset(
            "fields", data=fields, chunks=(1, *fields.shape[1:]), **parts.get("filters", GZIP)
        )


GZIP = {"compression": "gzip", "compression_opts": 1}


def header_with(**changes):
    return lambda parts: {"header": {**parts["header"], **changes}}


HOSTILE = {
    "not JSON": lambda parts: {"header": b"{"},
    "JSON of another kind": lambda parts: {"header": b"[]"},
    "deep JSON": lambda parts: {"header": b"[" * 200_000},
    "no times": header_with(starts=[]),
    "times that run backwards": lambda parts: header_with(starts=parts["header"]["starts"][::-1])(
        parts
    ),
    "a time over zero": header_with(covered_s=[1, 0]),
    "a time that is a word": header_with(covered_s=["1e3"]),
    "notes that are lists": header_with(notes={"a": [1]}),
    "pairs twice": lambda parts: {"pairs": parts["pairs"][[0, 0, 1, 2]]},
    "pairs beyond the pictures": lambda parts: {"pairs": parts["pairs"] + np.int32(1000)},
    "pairs of another type": lambda parts: {"pairs": parts["pairs"].astype(np.float64)},
    "fewer fields than pairs": lambda parts: {"fields": parts["fields"][:3]},
    "three planes": lambda parts: {"fields": np.repeat(parts["fields"], 2, 1)[:, :3]},
    "fields of another type": lambda parts: {"fields": parts["fields"].astype(np.int16)},
    "another filter": lambda parts: {"filters": {"compression": "lzf"}},
    "two filters": lambda parts: {"filters": {**GZIP, "shuffle": True}},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_not_what_is_written_is_computed_anew(reading, computed, caplog, what):
    expected = read(CLIP, WANTS, reading)
    path = files_of(reading)[0]
    good = path.read_bytes()
    rewrite(path, HOSTILE[what])
    computed.clear()
    with caplog.at_level(logging.WARNING):
        assert_same(read(CLIP, WANTS, reading), expected)
    assert computed == [4]
    assert "computed anew" in caplog.text
    assert path.read_bytes() == good


def test_a_rewritten_file_is_taken_if_it_is_what_is_written(reading, computed):
    expected = read(CLIP, WANTS, reading)
    rewrite(files_of(reading)[0], lambda parts: None)
    computed.clear()
    assert_same(read(CLIP, WANTS, reading), expected)
    assert computed == []


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.98])
def test_a_file_cut_off_is_computed_anew(reading, computed, kept):
    expected = read(CLIP, WANTS, reading)
    path = files_of(reading)[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    computed.clear()
    assert_same(read(CLIP, WANTS, reading), expected)
    assert computed == [4]


def test_a_flipped_bit_anywhere_in_the_content_is_noticed(reading, computed):
    expected = read(CLIP, WANTS, reading)
    path = files_of(reading)[0]
    good = path.read_bytes()
    at = good.index(b'"corrupt_frames": 0') + 18  # stays JSON, of other notes
    with h5py.File(path) as file:
        places = [at, file["header"].id.get_offset() + 9, file["pairs"].id.get_offset() + 9]
        places += [file["fields"].id.get_chunk_info(i).byte_offset + 99 for i in range(4)]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        computed.clear()
        assert_same(read(CLIP, WANTS, reading), expected)
        assert computed == [4]


def test_a_field_that_would_inflate_without_end_is_not_inflated(reading, computed):
    expected = read(CLIP, WANTS, reading)
    path = files_of(reading)[0]
    with h5py.File(path, "r+") as file:
        bomb = zlib.compress(bytes(50_000_000), 9)
        file["fields"].id.write_direct_chunk((1, 0, 0, 0), bomb)
    computed.clear()
    tracemalloc.start()
    try:
        assert_same(read(CLIP, WANTS, reading), expected)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert computed == [4]


def test_a_field_without_its_checksum_is_not_taken(reading, computed):
    expected = read(CLIP, WANTS, reading)
    path = files_of(reading)[0]
    with h5py.File(path, "r+") as file:
        _, packed = file["fields"].id.read_direct_chunk((1, 0, 0, 0))
        file["fields"].id.write_direct_chunk((1, 0, 0, 0), packed[:-2])
    computed.clear()
    assert_same(read(CLIP, WANTS, reading), expected)
    assert computed == [4]


def test_links_out_of_the_file_are_not_followed(reading, computed, tmp_path):
    expected = read(CLIP, WANTS, reading)
    path = files_of(reading)[0]
    other = tmp_path / "other.h5"
    other.write_bytes(path.read_bytes())
    for link in (h5py.ExternalLink(str(other), "fields"), h5py.SoftLink("/pairs")):
        with h5py.File(path, "r+") as file:
            del file["fields"]
            file["fields"] = link
        computed.clear()
        assert_same(read(CLIP, WANTS, reading), expected)
        assert computed == [4]


def test_a_pipe_in_place_of_a_file_is_replaced(reading):
    expected = read(CLIP, WANTS, reading)
    path = files_of(reading)[0]
    path.unlink()
    os.mkfifo(path)
    assert_same(read(CLIP, WANTS, reading), expected)
    assert path.is_file()


def test_a_cache_that_cannot_be_written_stops_the_run_and_says_what_to_do(reading):
    reading.flow_cache.write_text("a file, not a folder")
    with pytest.raises(OSError, match="--flow-cache"):
        decode_clip(lambda clip, names: {"": read(clip, WANTS, reading)}, CLIP, ("",))


def test_what_killed_writers_left_is_removed(reading):
    read(CLIP, WANTS, reading)
    left = files_of(reading)[0].with_name(".x.h5.abc.partial")
    left.write_bytes(b"half")
    read(CLIP, replace(WANTS, clip_len=4), reading)
    assert not left.exists()
