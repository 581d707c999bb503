"""Which fields a clip holds, with what they are made, and in which conventions."""

from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

import micu_extract.media.damage
import micu_extract.media.flow
import micu_extract.media.readers
from micu.base.errors import ConfigError, DecodeError, StoreError
from micu.store.manifest import Clip, write_manifest
from micu_extract.backbones.base import FlowInput, FrameInput, Media
from micu_extract.backbones.slowonly import SlowOnly, SlowOnlyDemo
from micu_extract.cli import cli
from micu_extract.flow.methods import FlowSettings
from micu_extract.flow.tvl1_parameters import TVL1
from micu_extract.media.damage import Damage
from micu_extract.media.flow import quantize_flow
from micu_extract.media.pictures import read_pictures
from micu_extract.media.readers import describe_reading, read
from micu_extract.media.source import Reading, Source, Window
from tests.media_files import HASTY_FLOW, flat_picture, write_media


def clip_of(path) -> Clip:
    return Clip(clip_id="c", path=path.name)


def read_flow_of(path, wants, settings=HASTY_FLOW) -> Media:
    return read(clip_of(path), wants, Reading(media_root=path.parent, flow=settings))


def stub_flow(monkeypatch, estimate) -> list[int]:
    """Let `estimate(previous, following)` stand in; gives the number of pairs of each call."""
    calls: list[int] = []

    def stand_in(previous, following, settings):
        calls.append(len(previous))
        pairs = zip(previous, following, strict=True)
        return np.stack([estimate(*pair) for pair in pairs]).astype(np.float32)

    monkeypatch.setattr(micu_extract.media.flow, "estimate_flow", stand_in)
    return calls


def number_of(picture) -> int:
    return round((float(picture.mean()) - 16) / 4)


def field_of(x: float, y: float = 0.0, size=(32, 48)) -> np.ndarray:
    return np.broadcast_to(np.float32([x, y]), (*size, 2))


def fields_of(path, wants) -> np.ndarray:
    """The middle level of each field, (U, L, 2)."""
    units = read_flow_of(path, wants).units
    return units[:, :, units.shape[2] // 2, units.shape[3] // 2].astype(int)


def levels_of_numbers(monkeypatch) -> list[int]:
    """Fields whose level in x is the number of the first picture, in y that of the second."""
    monkeypatch.setattr(micu_extract.media.flow, "_time_scale", lambda pair, starts, wants: 1)
    monkeypatch.setattr(
        micu_extract.media.flow,
        "quantize_flow",
        lambda flow, bound, rounding: flow.astype(np.uint8),
    )
    return stub_flow(monkeypatch, lambda a, b: field_of(number_of(a), number_of(b)))


def test_flow_fields_start_where_the_published_sampler_puts_them(tmp_path, monkeypatch):
    calls = levels_of_numbers(monkeypatch)
    path = write_media(tmp_path / "a.mp4", frames=33, gop=5)
    wants = FlowInput(clip_len=5, interval=4, resize=32, crop=32)
    media = read_flow_of(path, wants)
    expected = [[min(max(centre + (k - 2) * 4, 0), 31) for k in range(5)] for centre in (5, 15, 25)]
    assert media.units.shape == (3, 5, 32, 32, 2)
    assert media.units[:, :, 0, 0, 0].tolist() == expected
    assert media.units[:, :, 0, 0, 1].tolist() == [[i + 1 for i in clip] for clip in expected]
    assert media.times_s.tolist() == [0.5, 1.5, 2.5]
    assert media.steps == 4
    pairs = len({i for clip in expected for i in clip})
    assert media.notes["pairs"] == pairs
    assert calls == [pairs]


def test_a_clip_that_ends_before_half_a_second_has_one_flow_clip_in_its_middle(
    tmp_path, monkeypatch
):
    levels_of_numbers(monkeypatch)
    path = write_media(tmp_path / "a.mp4", frames=4)
    media = read_flow_of(path, FlowInput(clip_len=2, interval=1, resize=32, crop=32))
    assert media.times_s.tolist() == [0.2]
    assert media.units[0, :, 16, 16].tolist() == [[1, 2], [2, 3]]


@pytest.mark.parametrize("dt_s", [None, 0.1])
def test_a_picture_that_does_not_come_after_the_one_before_is_left_out(tmp_path, monkeypatch, dt_s):
    levels_of_numbers(monkeypatch)
    open_in_order = micu_extract.media.readers.open_pictures

    def swap(clip, reading, damage):
        source, pictures = open_in_order(clip, reading, damage)
        order = list(pictures)
        return source, iter([*order[:4], order[5], order[4], *order[6:]])

    monkeypatch.setattr(micu_extract.media.readers, "open_pictures", swap)
    path = write_media(tmp_path / "a.mp4", frames=10)
    wants = FlowInput(clip_len=3, interval=1, resize=32, crop=32, dt_s=dt_s)
    assert fields_of(path, wants).tolist() == [[[3, 5], [5, 6], [6, 7]]]


def test_pairs_that_do_not_fit_one_call_give_the_same_fields(tmp_path, monkeypatch):
    calls = levels_of_numbers(monkeypatch)
    path = write_media(tmp_path / "a.mp4", frames=20)
    wants = FlowInput(clip_len=4, interval=2, resize=32, crop=32)
    whole = fields_of(path, wants)
    monkeypatch.setattr(micu_extract.media.flow, "CALL_BYTES", 3 * 32 * 48 * (8 + 2))
    parts = fields_of(path, wants)
    np.testing.assert_array_equal(parts, whole)
    assert calls == [8, 3, 3, 2]


def test_with_a_time_step_fields_are_placed_by_time_whatever_the_rate(tmp_path, monkeypatch):
    levels_of_numbers(monkeypatch)
    path = write_media(tmp_path / "a.mp4", frames=50, fps=25)
    wants = FlowInput(clip_len=3, interval=2, resize=32, crop=32, dt_s=0.1)
    # From 0.3, 0.5 and 0.7 s, pictures 7.5, 12.5 and 17.5, of which the earlier is taken, over
    # 2.5 pictures, of which fewer are.
    assert fields_of(path, wants).tolist() == [
        [[7, 9], [12, 14], [17, 19]],
        [[32, 34], [37, 39], [42, 44]],
    ]


def test_a_time_step_shorter_than_a_frame_goes_to_the_next_and_ends_with_the_media(
    tmp_path, monkeypatch
):
    levels_of_numbers(monkeypatch)
    path = write_media(tmp_path / "a.mp4", frames=10)
    wants = FlowInput(clip_len=2, interval=45, resize=32, crop=32, dt_s=0.01)
    assert fields_of(path, wants).tolist() == [[[0, 1], [5, 6]]]
    late = FlowInput(clip_len=1, interval=1, resize=32, crop=32, dt_s=5)
    assert fields_of(path, late).tolist() == [[[5, 9]]]


def test_a_displacement_is_scaled_to_the_time_step(tmp_path, monkeypatch):
    stub_flow(monkeypatch, lambda a, b: field_of(2 * (number_of(b) - number_of(a)), -1))
    at = {}
    for fps in (10, 20):
        path = write_media(tmp_path / f"{fps}.mp4", frames=2 * fps, fps=fps)
        wants = FlowInput(clip_len=1, interval=1, resize=32, crop=32, bound=25.5, dt_s=0.25)
        at[fps] = fields_of(path, wants)[0, 0].tolist()
    # 10 a second: two pictures, 0.2 s; 20 a second: five, 0.25 s.
    in_px = {10: [4 * 0.25 / 0.2, -1 * 0.25 / 0.2], 20: [10, -1]}
    assert at == {fps: [int(5 * (v + 25.5) + 0.5) for v in in_px[fps]] for fps in at}


def test_the_bound_and_the_rounding_are_those_asked_for(tmp_path, monkeypatch):
    stub_flow(monkeypatch, lambda a, b: field_of(0, 4.9))
    path = write_media(tmp_path / "a.mp4", frames=10)
    for bound, rounding, levels in (
        (20.0, "nearest", [128, 159]),
        (20.0, "truncate", [127, 158]),
        (5.0, "nearest", [128, 252]),
    ):
        wants = FlowInput(clip_len=1, resize=32, crop=64, bound=bound, rounding=rounding)
        units = read_flow_of(path, wants).units
        assert units[0, 0, 32, 32].tolist() == levels
        assert (units[0, 0, 0] == levels[0]).all(), "padding is as still as what does not move"


def test_pictures_become_gray_before_or_after_they_are_resized(tmp_path, monkeypatch):
    import cv2

    seen = []

    def note(previous, following):
        seen.append(previous)
        return np.zeros((*previous.shape[:2], 2))

    stub_flow(monkeypatch, note)
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    path = write_media(tmp_path / "a.mp4", frames=4, picture=lambda i: noise, gop=1)
    for gray in ("before", "after"):
        wants = FlowInput(clip_len=1, resize=40, crop=16, gray=gray)
        read_flow_of(path, wants)
    colour = FlowSettings(method="raft")
    read_flow_of(path, FlowInput(clip_len=1, resize=40, crop=16), colour)
    with Source(clip_of(path), tmp_path, "video") as source:
        picture = [p.load() for p in read_pictures(source, Window(Fraction(0), None), Damage())][2]
    to_gray, small = (lambda x: cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)), (60, 40)
    expected = [
        cv2.resize(to_gray(picture), small),
        to_gray(cv2.resize(picture, small)),
        cv2.resize(picture, small),
    ]
    for ours, theirs in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (seen[0] != seen[1]).any()


def test_flow_shows_motion_and_pads_with_stillness(tmp_path):
    def bar(i: int) -> np.ndarray:
        picture = np.zeros((32, 64, 3), np.uint8)
        y, x = np.mgrid[:32, :64]
        picture[...] = (200 * np.exp(-((x - 24 - 2 * i) ** 2 + (y - 16) ** 2) / 40))[..., None]
        return picture

    path = write_media(tmp_path / "a.mp4", frames=6, picture=bar)
    wants = FlowInput(clip_len=2, interval=1, resize=32, crop=40)
    units = read_flow_of(path, wants).units
    assert units.shape == (1, 2, 40, 40, 2)
    assert units[0, 1, 16:24, 16:26, 0].mean() > 135
    assert (units[0, :, :4] == 128).all()
    assert (units[0, :, 36:] == 128).all()


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((240, 320), (256, 341)),  # all of UCF101
        ((144, 256), (256, 455)),
        ((180, 326), (256, 464)),  # 463.6: rounded, not cut off
        ((320, 240), (341, 256)),
        ((256, 300), (256, 300)),
    ],
)
def test_a_field_is_resized_to_a_short_side_up_as_well_as_down_before_the_crop(
    tmp_path, monkeypatch, size, fitted
):
    import cv2

    rng = np.random.default_rng(0)
    field = rng.uniform(-20, 20, (*size, 2)).astype(np.float32)
    stub_flow(monkeypatch, lambda a, b: field)
    path = write_media(tmp_path / "a.mp4", frames=3, picture=lambda i: flat_picture(i, size))

    units = read_flow_of(path, FlowInput(clip_len=1, resize=320, field_side=256)).units

    # One image of x, one of y, as mmaction2 reads them.
    levels = quantize_flow(field, 20.0)
    height, width = fitted
    images = [cv2.resize(np.ascontiguousarray(levels[..., k]), (width, height)) for k in (0, 1)]
    top, left = round((height - 256) / 2), round((width - 256) / 2)
    expected = np.stack(images, axis=-1)[top : top + 256, left : left + 256]
    np.testing.assert_array_equal(units[0, 0], expected)


def test_slowonly_wants_fields_of_a_short_side_of_256_as_its_published_pipeline(tmp_path):
    for kind, side in ((SlowOnly, 256), (SlowOnlyDemo, 32)):
        described, _ = describe_reading(kind.wants, Reading(media_root=tmp_path))
        assert described["input"]["field_side"] == described["input"]["crop"] == side


def test_a_sliver_whose_field_would_not_fit_in_memory_is_a_clip_that_fails(tmp_path, monkeypatch):
    stub_flow(monkeypatch, lambda a, b: field_of(0, 0, (16, 160)))
    path = write_media(tmp_path / "a.mp4", frames=3, picture=lambda i: flat_picture(i, (16, 160)))
    wants = FlowInput(clip_len=1, field_side=64, crop=8)
    needed = 1 * 8 * 8 * 2 + 64 * 640 * 2
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", needed)
    reading = Reading(media_root=tmp_path, flow=HASTY_FLOW, flow_cache=tmp_path / "cache")
    kept = [read(clip_of(path), wants, reading) for _ in range(2)]
    np.testing.assert_array_equal(kept[0].units, kept[1].units)
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", needed - 1)
    with pytest.raises(DecodeError, match="needs more than"):
        read(clip_of(path), wants, reading)


def test_larger_pictures_are_resized_before_flow_and_smaller_ones_are_not(tmp_path, monkeypatch):
    sizes = []

    def note_size(previous, following):
        sizes.append(previous.shape)
        return np.zeros((*previous.shape, 2))

    stub_flow(monkeypatch, note_size)
    large = write_media(tmp_path / "a.mp4", frames=3, picture=lambda i: flat_picture(i, (48, 70)))
    small = write_media(tmp_path / "b.mp4", frames=3)
    for path in (large, small):
        read_flow_of(path, FlowInput(clip_len=1, interval=1, resize=40, crop=16))
    assert sizes == [(40, 58), (32, 48)]


def test_the_header_says_how_flow_is_computed_and_what_was_asked_for(tmp_path):
    wants = FlowInput(bound=15.0, dt_s=0.04)
    settings = FlowSettings(engine="opencv", tvl1=TVL1(lambda_=0.1))
    described, versions = describe_reading(wants, Reading(media_root=tmp_path, flow=settings))
    assert described["input"] == asdict(wants)
    assert versions
    assert {**described["flow"], "versions": versions} == settings.describe()
    assert described["flow"]["parameters"]["lambda"] == 0.1
    elsewhere = Reading(media_root=tmp_path / "b", flow=settings, flow_cache=tmp_path)
    assert describe_reading(wants, elsewhere) == (described, versions)
    assert "flow" not in describe_reading(FrameInput(fps=1, resize=8, crop=8), elsewhere)[0]


def test_one_picture_has_no_flow(tmp_path):
    with pytest.raises(DecodeError) as caught:
        read_flow_of(write_media(tmp_path / "a.mp4", frames=1), FlowInput())
    assert caught.value.code == "too_short"


def test_a_clip_whose_flow_would_not_fit_in_memory_is_refused(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", frames=10)
    # Ten gray pictures of 32 x 48 px fit; one flow clip of 2 x 64 x 64 x 2 does not.
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", 16000)
    with pytest.raises(DecodeError) as caught:
        read_flow_of(path, FlowInput(clip_len=2, resize=32, crop=64))
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    "wrong",
    [
        {"bound": 0.0},
        {"bound": float("inf")},
        {"dt_s": -0.1},
        {"dt_s": float("nan")},
        {"resize": 0},
        {"field_side": 0},
        {"rounding": "up"},
        {"gray": "never"},
    ],
)
def test_conventions_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"flow input {next(iter(wrong))}: expected"):
        FlowInput(**wrong)


def test_a_set_of_a_method_that_is_gone_is_of_another_making(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_media(tmp_path / "a.mp4", frames=12)
    write_manifest(tmp_path / "m.csv", [Clip(clip_id="a", path="a.mp4")])
    words = ("--tvl1", "--backbone", "slowonly-demo", "--weights", "random", "--device", "cpu")
    with monkeypatch.context() as then:
        now = FlowSettings().describe()
        then.setattr(FlowSettings, "describe", lambda settings: {**now, "method": "dis"})
        assert CliRunner().invoke(cli, ["flow", *words, "m.csv"]).exit_code == 0
    done = CliRunner().invoke(cli, ["flow", *words, "m.csv"])
    assert isinstance(done.exception, StoreError)
    assert "flow.method: expected 'tvl1', got 'dis'" in str(done.exception)
    assert "--overwrite" in str(done.exception)
