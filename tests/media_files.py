"""Small media files, written with PyAV."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from micu.base.errors import MicuError
from micu.store.manifest import Clip
from micu_extract.backbones.base import InputSpec, Media
from micu_extract.flow.methods import FlowSettings
from micu_extract.flow.tvl1_parameters import TVL1
from micu_extract.media.pictures import check_decoder
from micu_extract.media.readers import read
from micu_extract.media.source import Reading

Array = NDArray[Any]

HASTY_FLOW = FlowSettings(
    engine="opencv", tvl1=TVL1(warps=2, inner_iterations=10, outer_iterations=1, median=0)
)
"""TV-L1 that hardly iterates, for tests in which flow need not be good."""


def skip_without_decord() -> None:
    """Skip where `--decoder decord` is refused."""
    try:
        check_decoder("decord")
    except MicuError as error:
        pytest.skip(str(error))


def level_of(frame: int) -> int:
    """Gray level of the n-th picture, so that a decoded picture tells its number."""
    return 16 + 4 * (frame % 56)


def frame_of(picture: Array) -> int:
    """Number of a picture, from its middle."""
    height, width = picture.shape[:2]
    middle = picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    return round((float(middle.mean()) - 16) / 4)


def flat_picture(frame: int, size: tuple[int, int] = (32, 48)) -> Array:
    return np.full((*size, 3), level_of(frame), np.uint8)


def write_media(
    path: Path,
    *,
    frames: int = 0,
    fps: int = 10,
    picture: Callable[[int], Array] = flat_picture,
    pts: Sequence[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "",
    gop: int = 10,
    b_frames: int | None = None,
    sound: Array | None = None,
    rate: int = 8000,
    layout: str = "mono",
    sound_codec: str = "aac",
    sound_pts: int = 0,
    sound_gap: int = 0,
    rotation: int = 0,
    title: str = "",
    exif: bytes = b"",
    container_format: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A file with `frames` pictures at `pts` / fps seconds, and sound (channels, S) float.

    The second half of the sound comes `sound_gap` samples late. An MP4 film is shown turned by
    `rotation` degrees, counterclockwise.
    """
    with av.open(str(path), "w", container_format, options=options or {}) as container:
        if frames:
            video = container.add_stream(codec, rate=fps)
            video.height, video.width = picture(0).shape[:2]
            usual = {"libx264": "yuv420p", "mpeg4": "yuv420p"}.get(codec, "yuvj420p")
            video.pix_fmt = pix_fmt or usual
            video.bit_rate = 4_000_000
            video.options = {"g": str(gop)} if codec != "mjpeg" else {}
            if b_frames is not None:
                video.max_b_frames = b_frames
            if title:
                container.metadata["title"] = video.metadata["title"] = title
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=rate, layout=layout)
            if sound_codec.startswith("wma"):
                audio.bit_rate = 128_000
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = (pts[i] if pts else i), Fraction(1, fps)
            container.mux(_with_exif(packet, exif) for packet in video.encode(frame))
        if frames:
            container.mux(video.encode(None))
        if sound is not None:
            packed = sound.astype(np.float32).T.reshape(1, -1)
            block = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
            convert = av.AudioResampler(format=audio.format, layout=layout, rate=rate)
            fifo = av.AudioFifo()
            for part in convert.resample(block):
                fifo.write(part)
            size = audio.codec_context.frame_size or 1024
            while part := fifo.read(size) or fifo.read(size, partial=True):
                late = part.pts >= sound.shape[1] // 2
                part.pts += sound_pts + sound_gap * late
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    if rotation:
        turn = round(np.cos(np.radians(rotation))), round(np.sin(np.radians(rotation)))
        set_display_matrix(path, turn[0], -turn[1], turn[1], turn[0])
    return path


def _with_exif(packet: av.Packet, exif: bytes) -> av.Packet:
    """A JPEG picture with EXIF, as cameras write them; as it is without."""
    if not exif:
        return packet
    data = bytes(packet)
    segment = b"\xff\xe1" + (2 + len(exif)).to_bytes(2, "big") + exif
    longer = av.Packet(data[:2] + segment + data[2:])
    longer.stream, longer.time_base = packet.stream, packet.time_base
    longer.pts, longer.dts, longer.duration = packet.pts, packet.dts, packet.duration
    longer.is_keyframe = packet.is_keyframe
    return longer


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Have an MP4 file show its pixel (x, y) at (a x + c y, b x + d y), like a phone's film."""
    data = path.read_bytes()
    here = data.index(b"tkhd") + 44
    matrix = np.array([a << 16, b << 16, 0, c << 16, d << 16], ">i4").tobytes()
    path.write_bytes(data[:here] + matrix + data[here + len(matrix) :])
    return path


def write_wav(path: Path, sound: Array, rate: int) -> Path:
    """A WAV file of 32-bit floats from (channels, S), written byte by byte, NaN and all."""
    channels = sound.shape[0]
    data = sound.astype("<f4").T.tobytes()
    header = np.array([3 | channels << 16, rate, rate * channels * 4], "<u4").tobytes()
    header += np.array([channels * 4, 32], "<u2").tobytes()
    riff = b"WAVE" + b"fmt " + np.array(16, "<u4").tobytes() + header
    riff += b"data" + np.array(len(data), "<u4").tobytes() + data
    path.write_bytes(b"RIFF" + np.array(len(riff), "<u4").tobytes() + riff)
    return path


def tone(seconds: float, rate: int, hz: float = 220.0) -> Array:
    """A sine, (1, S)."""
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)[None]


def read_media(clip: Clip, wants: InputSpec, folder: Path, decoder: str = "pyav") -> Media:
    """Decode a clip whose media lie in `folder`."""
    return read(clip, wants, Reading(media_root=folder, decoder=decoder))
