"""Damaged and hostile media, decoded as an extraction decodes them: nothing may crash or hang.

Makes a small file of each of many formats, and mutations of them: flipped bits, cuts, holes of
zeros, swapped and repeated blocks, lying length fields, heads of other files. Each goes through the
worker processes that an extraction has, once for pictures, flow and sound by PyAV, once for
pictures and flow by decord. What comes back must be media, or an error of the ledger that names
what is wrong with the file; `worker_died`, `timeout` and `unexpected` do not, and end the program
with 1, as does a file of which decord gives other pictures than PyAV.

Prints `figure: NAME VALUE`: `mutated_files`, `mutated_formats`, `mutated_good` (share of readings
that gave media), and `mutated_worker_died`, `mutated_timeout`, `mutated_unexpected`,
`mutated_other_pictures`.

Run: python benchmarks/mutated_media.py [--files 2000] [--seed 0] [--workers 2] [--keep DIR]
"""

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import click
import numpy as np
from PIL import Image

from micu.base.errors import DecodeError
from micu.base.process import StopFlag
from micu.store.manifest import Clip
from micu_extract.backbones.base import FlowInput, FrameInput, Media, WaveformInput
from micu_extract.flow.methods import FlowSettings
from micu_extract.flow.tvl1_parameters import TVL1
from micu_extract.media.decoding import Trouble
from micu_extract.media.readers import read_several
from micu_extract.media.source import Reading
from micu_extract.media.workers import decode_in_processes
from micu_extract.pipeline.decode_ahead import Work, decode_ahead

OTHER = "other_pictures"
"""decord gave media that are not PyAV's."""
BAD = ("worker_died", "timeout", "unexpected", OTHER)
"""What no file may lead to."""
CLIP_S = 60.0
"""A worker that decodes one file for longer is killed, s."""
FRAMES = 15
FPS = 10
FLOW = FlowSettings(tvl1=TVL1(warps=1, inner_iterations=3, outer_iterations=1, median=0))
SIZE = (48, 64)

# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How a file of one format is made."""

    suffix: str
    video: str = ""
    """Encoder of the pictures."""
    audio: str = ""
    """Encoder of the sound."""
    options: Mapping[str, str] | None = None
    """Of the container."""


FILMS = (
    Kind(".mp4", "libx264", "aac"),
    Kind(".mov", "libx264", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    Kind(".mkv", "libx265", "flac"),
    Kind(".webm", "libvpx-vp9", "libopus"),
    Kind(".avi", "mpeg4", "pcm_s16le"),
    Kind(".ts", "libx264", "mp2"),
    Kind(".mpg", "mpeg2video", "mp2"),
    Kind(".flv", "flv", "libmp3lame"),
    Kind(".wmv", "wmv2", "wmav2"),
    Kind(".ivf", "libvpx"),
    Kind(".h264", "libx264"),
    Kind(".ogg", "", "libopus"),
    Kind(".wav", "", "pcm_s16le"),
    Kind(".flac", "", "flac"),
    Kind(".mp3", "", "libmp3lame"),
    Kind(".m4a", "", "aac"),
    Kind(".aiff", "", "pcm_s16be"),
)
STILLS = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff")
ANIMATED = (".webp", ".gif", ".png")


def write_film(path: Path, kind: Kind) -> None:
    """A second and a half of pictures that move, and of noise."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=dict(kind.options or {})) as container:
        streams = []
        if kind.video:
            rate = 25 if kind.video == "mpeg2video" else FPS
            video = container.add_stream(kind.video, rate=rate)
            video.height, video.width = SIZE
            video.pix_fmt = "yuv420p"
            video.options = {"g": "5"}
            streams.append((video, draw_pictures(rate)))
        if kind.audio:
            sample_rate = 48000 if kind.audio == "libopus" else 44100
            audio = container.add_stream(kind.audio, rate=sample_rate, layout="stereo")
            audio.bit_rate = 64_000
            streams.append((audio, draw_noise(rng, sample_rate, audio.format.name)))
        for stream, frames in streams:
            for frame in [*frames, None]:
                container.mux(stream.encode(frame))


def draw_pictures(rate: int) -> list[av.VideoFrame]:
    """Pictures with a bar that moves."""
    frames = []
    for i in range(FRAMES):
        picture = np.full((*SIZE, 3), 30, np.uint8)
        picture[10:, 3 * i : 3 * i + 9] = (230, 120, 40)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = i, Fraction(1, rate)
        frames.append(frame)
    return frames


def draw_noise(rng: np.random.Generator, rate: int, sample_format: str) -> list[av.AudioFrame]:
    """Frames of noise in two channels, in the format that an encoder wants."""
    resample = av.AudioResampler(format=sample_format, layout="stereo", rate=rate, frame_size=960)
    frames = []
    for i in range(FRAMES):
        noise = rng.uniform(-0.3, 0.3, (1, 2 * 4410)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="flt", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, i * 4410, Fraction(1, rate)
        frames += resample.resample(frame)
    return [*frames, *resample.resample(None)]


def write_seeds(folder: Path) -> list[Path]:
    """One file of each format."""
    paths = []
    for number, kind in enumerate(FILMS):
        paths.append(folder / f"{number}{kind.suffix}")
        write_film(paths[-1], kind)
    pictures = [Image.fromarray(p.to_ndarray(format="rgb24")) for p in draw_pictures(FPS)[:4]]
    for suffix in STILLS:
        paths.append(folder / f"still{suffix}")
        pictures[0].save(paths[-1])
    for suffix in ANIMATED:
        paths.append(folder / f"moving{suffix}")
        pictures[0].save(paths[-1], save_all=True, append_images=pictures[1:], duration=400)
    return paths


# --- mutations -----------------------------------------------------------------------------------


def flip_bits(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Flip up to 64 bits, half the time in the first two thousand bytes."""
    reach = min(len(data), 2000) if rng.random() < 0.5 else len(data)
    for _ in range(rng.randint(1, 64)):
        data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return data


def cut(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Leave out the end."""
    return data[: rng.randint(1, len(data))]


def leave_out(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Leave out a part from the middle."""
    start, end = take_span(data, rng)
    return data[:start] + data[end:]


def zero(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Put zeros, or ones, in place of a part."""
    start, end = take_span(data, rng)
    data[start:end] = rng.choice((b"\0", b"\xff")) * (end - start)
    return data


def swap(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Swap two blocks."""
    size = rng.choice((4, 16, 188, 1024))
    places = [rng.randrange(max(1, len(data) - size)) for _ in range(2)]
    first, second = (data[place : place + size] for place in places)
    data[places[0] : places[0] + size], data[places[1] : places[1] + size] = second, first
    return data


def repeat(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Repeat a part where it is."""
    start, end = take_span(data, rng)
    return data[:end] + data[start:end] * rng.randint(1, 3) + data[end:]


def lie(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Put other numbers where lengths, counts and sizes may be."""
    numbers = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    for _ in range(rng.randint(1, 4)):
        reach = min(len(data), 1500) if rng.random() < 0.7 else len(data)
        place, size = rng.randrange(reach), rng.choice((1, 2, 4, 8))
        number = rng.choice((*numbers, rng.getrandbits(32))) & (256**size - 1)
        data[place : place + size] = number.to_bytes(size, rng.choice(("big", "little")))
    return data


def splice(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Begin as another file."""
    return bytearray(other[: rng.randrange(4, 1500)]) + data[rng.randrange(len(data)) :]


Mutation = Callable[[bytearray, random.Random, bytes], bytearray]
MUTATIONS: tuple[Mutation, ...] = (flip_bits, cut, leave_out, zero, swap, repeat, lie, splice)


def take_span(data: bytearray, rng: random.Random) -> tuple[int, int]:
    """Start and end of a part."""
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 8, 64, 512, 4096)))


def mutate(seed: str, sources: Sequence[Path], number: int) -> tuple[str, bytes]:
    """The n-th file: its suffix and its bytes; every format has its turn."""
    rng = random.Random(f"{seed}/{number}")
    path = sources[number % len(sources)]
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(MUTATIONS)(data, rng, rng.choice(sources).read_bytes()) or data
        data = data or bytearray(b"\0")
    suffix = rng.choice(sources).suffix if rng.random() < 0.1 else path.suffix
    return suffix, bytes(data)


# --- decoding ------------------------------------------------------------------------------------

WANTS = {
    "frames": FrameInput(fps=4, resize=24, crop=24),
    "flow": FlowInput(clip_len=2, interval=1, resize=24, crop=24),
    "sound": WaveformInput(sample_rate=16000, window_s=2),
}
PICTURES = ("frames", "flow")
READINGS = ("pyav frames", "pyav flow", "pyav sound", "decord frames", "decord flow")


@dataclass(frozen=True)
class ReadBoth:
    """Reads a file with both decoders; sent to worker processes."""

    media_root: Path

    def __call__(self, clip: Clip, names: Sequence[str]) -> dict[str, Media | DecodeError]:
        """Media, or why there are none, by the names of `READINGS`."""
        found: dict[str, Media | DecodeError] = {}
        for decoder, wanted in (("pyav", WANTS), ("decord", {n: WANTS[n] for n in PICTURES})):
            reading = Reading(media_root=self.media_root, decoder=decoder, flow=FLOW)
            read = read_several(clip, wanted, reading)
            found |= {f"{decoder} {name}": outcome for name, outcome in read.items()}
        return {name: found[name] for name in names}


def try_files(
    folder: Path, paths: Sequence[str], workers: int, timeout_s: float = CLIP_S
) -> dict[str, dict[str, str]]:
    """By the path of each file and the name of each reading: `media`, or a code."""
    work = [Work(Clip(clip_id=path, path=path), READINGS) for path in paths]
    outcomes: dict[str, dict[str, str]] = {}
    with decode_in_processes(ReadBoth(folder), workers, timeout_s) as decoders:
        for item, outcome in decode_ahead(work, decoders, 4 * workers, StopFlag()):
            outcomes[item.clip.path] = {
                name: name_outcome(name, outcome.media) for name in outcome.media
            }
            for name, found in outcome.media.items():
                if not isinstance(found, Media) and found.code in BAD:
                    click.echo(f"{item.clip.path}: {name}: {found.message}\n{found.trace}")
    return outcomes


def name_outcome(name: str, found: Mapping[str, Media | Trouble]) -> str:
    """`media`, or what is wrong with one reading."""
    outcome = found[name]
    if not isinstance(outcome, Media):
        return outcome.code
    theirs = found[name.replace("decord", "pyav")]
    return "media" if isinstance(theirs, Media) and is_same(outcome, theirs) else OTHER


def is_same(ours: Media, theirs: Media) -> bool:
    """Whether both decoders gave the same units at the same times."""
    pairs = zip(ours.units, theirs.units, strict=False)
    return (
        len(ours.units) == len(theirs.units)
        and all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
        and np.array_equal(ours.times_s, theirs.times_s)
    )


@click.command()
@click.option("--files", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--seed", default="0", show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Where files that did harm are kept.")
def main(files: int, seed: str, workers: int, keep: Path | None) -> None:
    """Decode mutated media; see the head of this file."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_seeds(folder)
        whole = try_files(folder, [path.name for path in sources], workers)
        for path, outcome in whole.items():
            click.echo(
                f"{path:12} " + ", ".join(f"{name}: {code}" for name, code in outcome.items())
            )
        paths = []
        for number in range(files):
            suffix, data = mutate(seed, sources, number)
            paths.append(f"m{number}{suffix}")
            (folder / paths[-1]).write_bytes(data)
        found = try_files(folder, paths, workers)
        harmful = [path for path, outcome in found.items() if set(outcome.values()) & set(BAD)]
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for path in harmful:
                shutil.copy(folder / path, keep / path)
    counts = Counter(code for outcome in found.values() for code in outcome.values())
    for code, count in counts.most_common():
        click.echo(f"{count:7} {code}")
    click.echo(f"{time.monotonic() - started:.0f} s; harmful: {', '.join(harmful) or 'none'}")
    click.echo(f"figure: mutated_files {len(found)}")
    click.echo(f"figure: mutated_formats {len(sources)}")
    click.echo(f"figure: mutated_good {counts['media'] / counts.total():.3f}")
    for code in BAD:
        click.echo(f"figure: mutated_{code} {counts[code]}")
    sys.exit(1 if harmful else 0)


if __name__ == "__main__":
    main()
