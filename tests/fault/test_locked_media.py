"""Files that try to make the decoder open something else, or more than is safe."""

import contextlib
import http.server
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import micu_extract.media.damage
from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FrameInput, InputSpec, WaveformInput
from micu_extract.media.source import FORMATS
from tests.media_files import read_media, tone, write_media

FRAMES = FrameInput(fps=4, resize=16, crop=16)
WAVES = WaveformInput(sample_rate=8000, window_s=10)


def outcome(path: str, root: Path, wants: InputSpec = FRAMES, **window: float) -> str:
    """`units`, or the code of the failure."""
    try:
        media = read_media(Clip(clip_id="c", path=path, **window), wants, root)
    except DecodeError as error:
        return error.code
    assert len(media.units)
    return "units"


def opens_unlocked(path: str, **options: str) -> bool:
    """Whether FFmpeg, not locked down, gets a picture out of a file."""
    with contextlib.suppress(av.error.FFmpegError, OSError), av.open(path, options=options) as file:
        return next(file.decode(video=0), None) is not None
    return False


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A media root with a good film, `real.mp4`, and its twins `real.ts` and `real.mkv`."""
    folder = tmp_path / "root"
    folder.mkdir()
    for name in ("real.mp4", "real.ts", "real.mkv"):
        write_media(folder / name, frames=10, sound=tone(1, 8000))
    return folder


class Server:
    """A server of files on this machine that notes who asks."""

    def __init__(self, folder: Path) -> None:
        requests: list[object] = []
        self.requests = requests

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, directory=str(folder), **named)

            def log_message(self, *arguments: object) -> None:
                requests.append(arguments)

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    served = Server(root)
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.http.shutdown()
    thread.join()
    served.http.server_close()


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "{url}/real.mp4",
        "file:{root}/real.mp4",
        "file://{root}/real.mp4",
        "concat:{root}/real.ts|{root}/real.ts",
        "subfile,,start,0,end,0,,:{root}/real.mp4",
        "cache:{url}/real.mp4",
        "async:{url}/real.mp4",
        "crypto:{root}/real.mp4",
        "data:video/mp4;base64,AAAA",
        "pipe:0",
        "fd:0",
        "udp://127.0.0.1:9",
        "lavfi:testsrc",
        "real%d.mp4",
    ],
)
def test_a_name_is_a_name_and_never_a_protocol(root: Path, server: Server, name: str) -> None:
    assert outcome("real.mp4", root) == "units"
    spelled = name.format(url=server.url, root=root)
    assert outcome(spelled, root) == "missing"
    assert outcome(spelled, root, WAVES) == "missing"
    assert server.requests == []


def test_the_server_is_asked_by_what_is_not_locked_down(root: Path, server: Server) -> None:
    assert opens_unlocked(f"{server.url}/real.ts")
    assert server.requests


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket", "out", "link to a link"])
def test_only_regular_files_below_the_root_are_opened(root: Path, kind: str) -> None:
    path, outside = root / "a.mp4", root.parent / "outside.mp4"
    write_media(outside, frames=5)
    expected = "not_a_file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
        expected = "outside_root"
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(root):
            listener.bind("a.mp4")
    else:
        (root / "b.mp4").symlink_to(outside)
        path.symlink_to(outside if kind == "out" else root / "b.mp4")
        expected = "outside_root"
    started = time.monotonic()
    assert outcome("a.mp4", root) == expected
    assert time.monotonic() - started < 120
    assert outcome("real.mp4", root) == "units"


# --- files that name other files -----------------------------------------------------------------

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="0" bandwidth="9"><BaseURL>{target}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>"
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
SDP += "a=rtpmap:96 H264/90000\n"
SCRIPTS = {
    "hls file": HLS.replace("{target}", "{root}/real.ts"),
    "hls relative": HLS.replace("{target}", "real.ts"),
    "hls http": HLS.replace("{target}", "{url}/real.ts"),
    "hls key": HLS.replace("#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="{url}/key"\n#EXTINF').replace(
        "{target}", "real.ts"
    ),
    "ffconcat": "ffconcat version 1.0\nfile real.mp4\n",
    "ffconcat http": "ffconcat version 1.0\nfile {url}/real.mp4\n",
    "dash": DASH.replace("{target}", "{url}/real.mp4"),
    "sdp": SDP,
    "asx": '<asx version="3.0"><entry><ref href="{url}/real.mp4"/></entry></asx>',
    "ram": "{url}/real.mp4\n",
    "quicktime": "RTSPtext\nrtsp://127.0.0.1:{port}/a\n",
    "m4v reference": "SMIL<smil><video src='{url}/real.mp4'/></smil>",
}
UNLOCKED = {"hls file", "hls relative", "hls http", "ffconcat"}
"""Those that FFmpeg follows where nothing is locked down; see the next test."""


@pytest.mark.parametrize("suffix", ["mp4", "m3u8"])
@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_opens_nothing_and_asks_nobody(
    root: Path, server: Server, kind: str, suffix: str
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        text = SCRIPTS[kind].format(url=server.url, root=root, port=free.getsockname()[1])
    (root / f"a.{suffix}").write_text(text)
    started = time.monotonic()
    assert outcome(f"a.{suffix}", root) == "unreadable"
    assert outcome(f"a.{suffix}", root, WAVES) == "unreadable"
    assert time.monotonic() - started < 120
    assert server.requests == []


@pytest.mark.parametrize("kind", sorted(UNLOCKED))
def test_these_scripts_work_where_nothing_is_locked_down(
    root: Path, server: Server, kind: str
) -> None:
    path = root / ("a.m3u8" if "hls" in kind else "a.ffconcat")
    path.write_text(SCRIPTS[kind].format(url=server.url, root=root, port=9))
    assert opens_unlocked(str(path), protocol_whitelist="file,http,tcp,crypto,data", safe="0")
    assert bool(server.requests) == ("http" in kind)


def test_no_format_that_is_opened_names_other_files() -> None:
    following = {"hls", "dash", "concat", "sdp", "rtsp", "rtp", "image2", "lavfi", "imf", "vobsub"}
    assert not following & set(FORMATS.split(","))


def box_starts(data: bytes, *path: bytes) -> list[int]:
    """Where the boxes on the way to an MP4 box start, outermost first."""
    starts, begin, end = [], 0, len(data)
    for name in path:
        while data[begin + 4 : begin + 8] != name:
            assert begin < end, name
            begin += struct.unpack_from(">I", data, begin)[0]
        starts.append(begin)
        end = begin + struct.unpack_from(">I", data, begin)[0]
        begin += 8
    return starts


def point_elsewhere(path: Path, target: Path) -> None:
    """Make an MP4 say that its media data are in another file (a Macintosh alias)."""
    data = bytearray(path.read_bytes())
    starts = box_starts(bytes(data), b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
    name = str(target).encode()
    name += b"\0" * (len(name) % 2)
    record = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + bytes(4) + bytes(16)
    record += struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    old = starts[-1] + 16  # behind the size, the name, the version and the count
    old_size = struct.unpack_from(">I", data, old)[0]
    data[old : old + old_size] = entry
    for start in starts:
        size = struct.unpack_from(">I", data, start)[0]
        struct.pack_into(">I", data, start, size + len(entry) - old_size)
    (mdat,) = box_starts(bytes(data), b"ftyp")
    mdat += struct.unpack_from(">I", data, 0)[0]
    while data[mdat + 4 : mdat + 8] != b"mdat":
        mdat += struct.unpack_from(">I", data, mdat)[0]
    size = struct.unpack_from(">I", data, mdat)[0]
    data[mdat + 8 : mdat + size] = bytes(size - 8)  # what it holds itself is worth nothing
    path.write_bytes(data)


def test_a_film_whose_data_are_in_another_file_does_not_open_that_file(root: Path) -> None:
    secret = write_media(root.parent / "secret.mov", frames=10)
    attack = root / "a.mov"
    attack.write_bytes(secret.read_bytes())
    point_elsewhere(attack, secret)
    assert opens_unlocked(str(attack), enable_drefs="1", use_absolute_path="1")
    assert outcome("a.mov", root) == "no_video"  # its track is passed over
    secret.unlink()
    assert not opens_unlocked(str(attack), enable_drefs="1", use_absolute_path="1")


# --- files that are larger than they look --------------------------------------------------------


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours of black in a small file, a picture a second, a key frame a minute."""
    black = np.zeros((16, 16, 3), np.uint8)
    folder = tmp_path_factory.mktemp("long")
    path = folder / "black.mp4"
    write_media(path, frames=7200, fps=1, codec="mpeg4", gop=60, picture=lambda i: black)
    assert path.stat().st_size < 400_000
    return path


@pytest.fixture
def packets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many packets were read; one number, in a list."""
    real, read = micu_extract.media.damage._read_packets, [0]

    def count(*arguments: Any) -> Iterator[Any]:
        for packet in real(*arguments):
            read[0] += 1
            yield packet

    monkeypatch.setattr(micu_extract.media.damage, "_read_packets", count)
    return read


@pytest.mark.parametrize("start_s", [0.0, 3600.0, 7100.0])
def test_of_two_hours_only_the_window_is_decoded(
    two_hours: Path, packets: list[int], start_s: float
) -> None:
    window = {"start_s": start_s, "end_s": start_s + 10}
    assert outcome(two_hours.name, two_hours.parent, **window) == "units"
    assert 10 <= packets[0] <= 10 + 60 + 5


def test_two_hours_as_one_clip_are_refused_as_soon_as_the_cap_is_reached(
    two_hours: Path, packets: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame_bytes = 16 * 16 * 3
    monkeypatch.setattr(micu_extract.media.damage, "MAX_UNIT_BYTES", 400 * frame_bytes)
    assert outcome(two_hours.name, two_hours.parent) == "too_large"
    assert 100 <= packets[0] <= 110  # four frames a second
    assert outcome(two_hours.name, two_hours.parent, end_s=100.0) == "units"


@pytest.mark.parametrize("rate", [8000, 44100])
def test_sound_that_one_flipped_bit_makes_hours_long_is_damaged_and_not_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    write_media(tmp_path / "a.mkv", sound=tone(2, rate), rate=rate, sound_gap=rate * 2**14)
    allocated: list[int] = []
    zeros = np.zeros

    def note(shape: Any, *arguments: Any) -> Any:
        allocated.append(int(np.prod(shape)))
        return zeros(shape, *arguments)

    monkeypatch.setattr("micu_extract.media.sound.np.zeros", note)
    assert outcome("a.mkv", tmp_path, WAVES) == "corrupt"
    assert outcome("a.mkv", tmp_path, WAVES, end_s=500.0) == "units"
    assert max(allocated, default=0) < 600 * rate


@pytest.mark.parametrize(
    ("before_s", "gap_s", "expected"),
    [
        (2, 600, "units"),
        (2, 601, "corrupt"),
        (2, 2**14, "corrupt"),
        (700, 699, "units"),
        (700, 700, "corrupt"),
    ],
)
def test_pictures_that_one_flipped_bit_makes_hours_long_are_damaged_and_not_large(
    tmp_path: Path, before_s: int, gap_s: int, expected: str
) -> None:
    black = np.zeros((16, 16, 3), np.uint8)
    times = [*range(before_s), before_s - 1 + gap_s]
    write_media(
        tmp_path / "a.mkv",
        frames=len(times),
        fps=1,
        codec="mpeg4",
        pts=times,
        picture=lambda i: black,
    )
    assert outcome("a.mkv", tmp_path) == expected
    assert outcome("a.mkv", tmp_path, end_s=before_s + 500.0) == "units"
    assert outcome("a.mkv", tmp_path, start_s=float(before_s + gap_s - 1)) == "units"


def test_a_moving_still_that_claims_hours_is_damaged(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 16), (i, i, i)) for i in (0, 99)]
    for seconds, expected in ((600, "units"), (601, "corrupt"), (2**14, "corrupt")):
        pictures[0].save(
            tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=1000 * seconds
        )
        assert outcome("a.webp", tmp_path) == expected
        assert outcome("a.webp", tmp_path, end_s=10.0) == "units"


def test_sound_that_claims_hours_of_silence_before_it_is_not_filled_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_media(tmp_path / "a.mkv", sound=tone(2, 8000), sound_gap=8000 * 3600 * 20)
    allocated: list[int] = []
    zeros = np.zeros

    def note(shape: Any, *arguments: Any) -> Any:
        allocated.append(int(np.prod(shape)))
        return zeros(shape, *arguments)

    monkeypatch.setattr("micu_extract.media.sound.np.zeros", note)
    assert outcome("a.mkv", tmp_path, WAVES) == "corrupt"
    assert max(allocated, default=0) < 10**6
    assert outcome("a.mkv", tmp_path, WAVES, end_s=1.0) == "units"
