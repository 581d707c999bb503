"""Media that are encrypted are called so, and what is not is read."""

import uuid
from pathlib import Path

import numpy as np
import pytest

from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FrameInput, WaveformInput
from micu_extract.media.formats import is_encrypted
from tests.media_files import read_media, tone, write_media

FRAMES = FrameInput(fps=1, resize=16, crop=16)
WAVES = WaveformInput(sample_rate=8000, window_s=1.0)
CENC = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "01" * 16,
    "encryption_kid": "02" * 16,
}


def outcome(path: Path, wants: FrameInput | WaveformInput) -> str:
    try:
        read_media(Clip(clip_id="c", path=path.name), wants, path.parent)
    except DecodeError as error:
        return f"{error.code}: {error}"
    return "read"


def check_encrypted(path: Path, *kinds: str) -> None:
    for kind, wants in (("video", FRAMES), ("audio", WAVES)):
        expected = f"encrypted: {path.name!r}: its {kind} is encrypted"
        assert outcome(path, wants).startswith(expected if kind in kinds else "read")


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov"])
def test_common_encryption_is_named_for_pictures_and_for_sound(tmp_path, name, flags):
    options = {**CENC, "movflags": flags}
    path = write_media(tmp_path / name, frames=20, sound=tone(2, 8000), options=options)
    check_encrypted(path, "video", "audio")
    del options["encryption_scheme"]
    check_encrypted(write_media(path, frames=20, sound=tone(2, 8000), options=options))


@pytest.mark.parametrize("tag", [b"enca", b"drms", b"aavd"])
def test_a_track_that_is_encrypted_fails_its_own_modality_only(tmp_path, tag):
    path = write_media(tmp_path / "a.mp4", frames=20, sound=tone(2, 8000))
    data = path.read_bytes()
    assert data.count(b"mp4a") == 1
    path.write_bytes(data.replace(b"mp4a", tag))
    check_encrypted(path, "audio")


def test_boxes_of_64_bits_are_followed_and_nonsense_is_not(tmp_path):
    path = write_media(tmp_path / "a.mp4", frames=2, options=CENC)
    data = path.read_bytes()

    def found(content: bytes) -> bool:
        def read_at(place: int, size: int) -> bytes:
            return content[place : place + size]

        return is_encrypted(read_at, len(content), "mov,mp4,m4a,3gp,3g2,mj2", 1, {})

    assert found(data)
    long_box = b"\0\0\0\1free" + (24).to_bytes(8, "big") + bytes(8)
    assert found(long_box + data)
    assert not found(b"\0\0\0\7free" + data)
    assert not found(b"\0\0\0\1free" + (15).to_bytes(8, "big") + data)
    assert not found(data[: data.index(b"moov")] + b"moov")
    assert not found(b"\0\0\0\x08free" * 10_000 + data)
    assert not found(b"")
    moov = data.index(b"moov") - 4
    open_ended = data[:moov] + bytes(4) + data[moov + 4 :]
    assert found(open_ended)
    tkhd = data.index(b"tkhd") + 4
    assert int.from_bytes(data[tkhd + 12 : tkhd + 16], "big") == 1
    renumbered = data[: tkhd + 15] + b"\7" + data[tkhd + 16 :]
    assert not found(renumbered)
    wide = data[:tkhd] + b"\1" + data[tkhd + 1 : tkhd + 20] + b"\0\0\0\1" + data[tkhd + 24 :]
    assert found(wide)


def element(name: str, content: bytes) -> bytes:
    """An element of EBML, with a length of 8 bytes."""
    return bytes.fromhex(name) + (1 << 56 | len(content)).to_bytes(8, "big") + content


def read_length(data: bytes, place: int) -> tuple[int, int]:
    """A length of EBML, and where it ends."""
    width = 9 - data[place].bit_length()
    length = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
    return length, place + width


def test_encrypted_matroska_is_named(tmp_path):
    path = write_media(tmp_path / "a.mkv", frames=20, sound=tone(2, 8000))
    check_encrypted(path)
    key = element("47e1", b"\5") + element("47e2", b"key0")
    encoding = element("5033", b"\1") + element("5035", key)
    encodings = element("6d80", element("6240", encoding))
    data = path.read_bytes()
    tracks = bytes.fromhex("1654ae6b")
    start = data.index(tracks, data.index(tracks) + 1)  # the first is in the list of places
    length, place = read_length(data, start + 4)
    end, entries = place + length, b""
    while place < end:
        length, content = read_length(data, place + 1)
        if data[place] == 0xAE:  # a track
            entries += element("ae", data[content : content + length] + encodings)
        place = content + length
    path.write_bytes(data[:start] + element("1654ae6b", entries) + data[end:])
    check_encrypted(path, "video", "audio")


def test_asf_under_rights_management_is_named(tmp_path):
    path = write_media(
        tmp_path / "a.wmv",
        frames=20,
        codec="wmv2",
        pix_fmt="yuv420p",
        sound=np.repeat(tone(2, 44100), 2, axis=0),
        layout="stereo",
        sound_codec="mp2",
        rate=44100,
    )
    check_encrypted(path)
    data = path.read_bytes()
    texts = [b"secret", b"DRM\0", b"key\0", b"http://a\0"]
    body = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    name = uuid.UUID("2211B3FB-BD23-11D2-B4B7-00A0C955FC6E").bytes_le
    box = name + (24 + len(body)).to_bytes(8, "little") + body
    size = int.from_bytes(data[16:24], "little")
    count = int.from_bytes(data[24:28], "little")
    head = data[:16] + (size + len(box)).to_bytes(8, "little")
    head += (count + 1).to_bytes(4, "little") + data[28:30]
    path.write_bytes(head + box + data[30:])
    check_encrypted(path, "video", "audio")


@pytest.mark.parametrize("name", ["a.ts", "a.m2ts"])
def test_a_scrambled_transport_stream_is_named(tmp_path, name):
    path = write_media(tmp_path / name, frames=50, sound=tone(5, 8000), gop=5)
    check_encrypted(path)
    size = 188 if name == "a.ts" else 192
    packets = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, size).copy()
    heads = packets[:, size - 188 :]
    streams = (heads[:, 1].astype(int) & 0x1F) << 8 | heads[:, 2]
    # What a stream's first packets say of it stays in the clear, and of a few nothing is made.
    sound = np.flatnonzero(streams == (0x101 if size == 188 else 0x1100))
    half = len(sound) // 2
    for count, kinds in ((half, ()), (len(sound) - 3, ("audio",))):
        scrambled = packets.copy()
        scrambled[sound[-count:], size - 185] |= 0x80
        path.write_bytes(scrambled.tobytes())
        check_encrypted(path, *kinds)
