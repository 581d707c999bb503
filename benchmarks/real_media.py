"""The media of the real-data benchmark: clips made of real photographs, digits and sounds.

`av-objects` pairs photographs with sounds of the same class; the video is a slow camera move over
the photograph. `av-digits` pairs hand signs and written digits, which zoom in so that their optical
flow carries the class, with spoken digits; two of the six speakers are heard in the test split
alone. Near-duplicates go before anything is split; all takes of a recording, and in av-objects all
words of a speaker, are in one split only, and an item of `val` or `test` is in one clip only. Which
items a clip is made of stands in `NAME.items.csv`. Everything is a pure function of the seed.

The folder of `av-objects` holds `items.csv` (`path, kind, label, source`: kind is `image` or
`audio`, source the file's path in its collection) and the files. That of `av-digits` holds
`t10k-images-idx3-ubyte.gz` and `t10k-labels-idx1-ubyte.gz` of MNIST, `signdigits/DIGIT/*.JPG` and
`fsdd/DIGIT_SPEAKER_TAKE.wav`.
"""

import csv
import gzip
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

import av
import cv2
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from benchmarks.real_pairs import Item, Pool, drop_duplicates, pair_items
from micu.base.errors import ManifestError
from micu.store.manifest import Clip, write_manifest
from micu_extract.backbones.base import WaveformInput
from micu_extract.media.readers import read
from micu_extract.media.source import Reading

SECONDS = {"av-objects": 5, "av-digits": 4}
"""Length of the clips, s."""
FPS = 4
SIDE = 256
"""Of the pictures, px."""
RATE = 16_000
"""Of the sounds, Hz."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_SPEAKERS = ("theo", "yweweler")
DIGIT_ITEMS = 200
"""Pictures, and sounds, that are taken of each digit: half of the pictures are hand signs."""

Picture = NDArray[np.uint8]
"""(H, W, 3), RGB."""


def write_set(name: str, source: Path, out: Path, seed: int = 0, workers: int = 2) -> Path:
    """Write the clips of one set and its manifest.

    Args:
        name: `av-objects` or `av-digits`.
        source: The folder with the set's photographs and sounds.
        out: Where `NAME.csv` and the folder `NAME` go.
        seed: Of pairs, splits and camera moves.
        workers: Processes that write clips.

    Returns:
        The manifest.

    Raises:
        ManifestError: The folder holds no list of items, or a picture cannot be read.
    """
    pictures, sounds, draw, hear = OPEN[name](source)
    pairs = pair_items(drop_duplicates(pictures), drop_duplicates(sounds), seed)
    sentence = "the sound of a {}" if name == "av-objects" else "the digit is number {}"
    (out / name).mkdir(parents=True, exist_ok=True)
    clips = [
        Clip(
            clip_id=f"{split}-{label}-{number:03d}",
            path=f"{name}/{split}-{label}-{number:03d}.mkv",
            start_s=0.0,
            end_s=float(SECONDS[name]),
            label=label,
            split=split,
            text=sentence.format(label),
        )
        for split, label, number, _ in pairs
    ]
    Parallel(workers)(
        delayed(_write_clip)(out / clip.path, draw, hear, pair[3], SECONDS[name], (seed, index))
        for index, (clip, pair) in enumerate(zip(clips, pairs, strict=True))
        if not (out / clip.path).is_file()
    )
    with (out / f"{name}.items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("clip_id", "picture", "sound", "sound_origin"))
        for clip, (*_, (picture, sound)) in zip(clips, pairs, strict=True):
            writer.writerow((clip.clip_id, picture.name, sound.name, sound.origin))
    write_manifest(out / f"{name}.csv", clips)
    return out / f"{name}.csv"


# --- photographs and sounds of objects -------------------------------------------------------


Opened = tuple[
    Pool, Pool, Callable[[Item, int, int], list[Picture]], Callable[[Item], NDArray[np.float32]]
]
"""Pictures, sounds, frames of a picture (item, count, seed), samples of a sound."""


def open_objects(source: Path) -> Opened:
    """Photographs and sounds of sixteen classes, listed in `items.csv`."""
    listed = source / "items.csv"
    if not listed.is_file():
        raise ManifestError(f"{listed}: not there; expected the list of photographs and sounds")
    with listed.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds: Mapping[str, list[Item]] = {
        kind: [
            Item(row["path"], row["label"], origin_of(row["source"]))
            for row in rows
            if row["kind"] == kind
        ]
        for kind in ("image", "audio")
    }
    hear = _Hear(source)
    return (
        Pool(kinds["image"], lambda item: _thumbnail(_load(source / item.name)), shifts=False),
        Pool(kinds["audio"], lambda item: _outline(hear(item)), shifts=True),
        _Move(source),
        hear,
    )


ORIGINS = {"esc10": r"\d-(\d+)-[A-Z]\.", "fsdd": r"\d_([a-z]+)_\d+\."}
"""What names the recording, or the speaker, in a collection's file names: in ESC-10's it is
FOLD-RECORDING-TAKE, in those of the spoken digits DIGIT_SPEAKER_TAKE."""


def origin_of(source: str) -> str:
    """The recording or speaker of a file, by its path in its collection; empty if that is silent.

    Raises:
        ManifestError: The name of a file in such a collection is of another form.
    """
    path = PurePosixPath(source)
    for collection, form in ORIGINS.items():
        if collection in path.parts:
            found = re.match(form, path.name)
            if found is None:
                raise ManifestError(f"{source}: expected a name that starts as {form} does")
            return f"{collection}/{found[1]}"
    return ""


@dataclass(frozen=True, slots=True)
class _Hear:
    """Samples of a sound file, mono, (S,)."""

    root: Path

    def __call__(self, item: Item) -> NDArray[np.float32]:
        wants = WaveformInput(sample_rate=RATE, window_s=1.0)
        clip = Clip(clip_id=item.name, path=item.name)
        units = read(clip, wants, Reading(media_root=self.root)).units
        samples: NDArray[np.float32] = np.concatenate([np.asarray(unit) for unit in units])
        return samples


@dataclass(frozen=True, slots=True)
class _Move:
    """A slow pan and zoom over a photograph."""

    root: Path

    def __call__(self, item: Item, count: int, seed: int) -> list[Picture]:
        picture = _load(self.root / item.name)
        generator = np.random.default_rng(seed)
        short = min(picture.shape[:2])
        sides = generator.uniform(0.75, 1.0, 2) * short
        places = generator.uniform(0.0, 1.0, (2, 2))
        frames = []
        for along in np.linspace(0.0, 1.0, count):
            side = (1 - along) * sides[0] + along * sides[1]
            room = np.array(picture.shape[:2]) - side
            y, x = ((1 - along) * places[0] + along * places[1]) * room
            matrix = np.array(
                [[SIDE / side, 0, -x * SIDE / side], [0, SIDE / side, -y * SIDE / side]]
            )
            frames.append(
                cv2.warpAffine(
                    picture,
                    matrix,
                    (SIDE, SIDE),
                    flags=cv2.INTER_CUBIC,
                    borderMode=cv2.BORDER_REFLECT,
                )
            )
        return frames


def _load(path: Path) -> Picture:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ManifestError(f"{path}: cannot be read as a picture")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _thumbnail(picture: Picture) -> NDArray[np.float32]:
    """A photograph's gray levels on a grid, about their mean, (256,)."""
    gray = cv2.resize(
        cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (16, 16), interpolation=cv2.INTER_AREA
    )
    return (gray.astype(np.float32) - gray.mean()).ravel()


def _outline(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first five seconds of a sound at an eighth of the rate, (10000,)."""
    whole = np.pad(samples[: 5 * RATE], (0, max(0, 5 * RATE - len(samples))))
    return whole.reshape(-1, 8).mean(1)


# --- digits ----------------------------------------------------------------------------------


def open_digits(source: Path) -> Opened:
    """Hand signs, written digits and spoken digits."""
    generator = np.random.default_rng(0)
    images = _idx(source / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = _idx(source / "t10k-labels-idx1-ubyte.gz", 8)
    pictures, sounds = [], []
    for digit, word in enumerate(DIGITS):
        written = generator.permutation(np.flatnonzero(labels == digit))[: DIGIT_ITEMS // 2]
        signs = sorted((source / "signdigits" / str(digit)).glob("*.JPG"))
        chosen = generator.permutation(len(signs))[: DIGIT_ITEMS // 2]
        pictures += [Item(f"mnist/{number}", word) for number in written]
        pictures += [Item(f"signdigits/{digit}/{signs[number].name}", word) for number in chosen]
        spoken = sorted((source / "fsdd").glob(f"{digit}_*.wav"))
        for path in (spoken[number] for number in generator.permutation(len(spoken))[:DIGIT_ITEMS]):
            speaker = path.name.split("_")[1]
            sounds.append(Item(f"fsdd/{path.name}", word, test_only=speaker in TEST_SPEAKERS))
    zoom, hear = _Zoom(source, images), _Hear(source)
    return (
        Pool(pictures, lambda item: _thumbnail(zoom.picture(item)), shifts=False, alike=0.999),
        Pool(sounds, lambda item: _outline(hear(item)), shifts=True),
        zoom,
        hear,
    )


@dataclass(frozen=True, slots=True)
class _Zoom:
    """A digit that comes nearer, from a slightly different place each time."""

    root: Path
    written: NDArray[np.uint8]
    """MNIST's test pictures, (10000, 28, 28)."""

    def picture(self, item: Item) -> Picture:
        kind, _, rest = item.name.partition("/")
        if kind == "mnist":
            gray = cv2.resize(self.written[int(rest)], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            return np.repeat(gray[:, :, None], 3, axis=2)
        return cv2.resize(_load(self.root / item.name), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)

    def __call__(self, item: Item, count: int, seed: int) -> list[Picture]:
        picture = self.picture(item)
        generator = np.random.default_rng(seed)
        first, rate = generator.uniform(0.9, 1.0), generator.uniform(1.04, 1.06)
        shift = generator.uniform(-0.04, 0.04, 2) * SIDE
        frames = []
        for number in range(count):
            # A zoom that begins anew each second, so that every step shows it.
            scale = first * rate ** (number % FPS)
            matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), 0.0, scale)
            matrix[:, 2] += shift
            frames.append(cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR))
        return frames


def _idx(path: Path, header: int) -> NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


OPEN: Mapping[str, Callable[[Path], Opened]] = {
    "av-objects": open_objects,
    "av-digits": open_digits,
}


# --- files -----------------------------------------------------------------------------------


def _write_clip(
    path: Path,
    draw: Callable[[Item, int, int], list[Picture]],
    hear: Callable[[Item], NDArray[np.float32]],
    pair: tuple[Item, Item],
    seconds: int,
    seed: tuple[int, int],
) -> None:
    """One clip with pictures and sound; its sound may be shorter than its pictures."""
    frames = draw(pair[0], seconds * FPS, int(np.random.SeedSequence(seed).generate_state(1)[0]))
    samples = hear(pair[1])[: seconds * RATE]
    half = path.with_suffix(".part")
    with av.open(str(half), "w", format="matroska") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "16", "g": "4"})
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        levels = np.clip(np.round(samples * 32767), -32768, 32767).astype(np.int16)
        block = av.AudioFrame.from_ndarray(levels[None], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    half.rename(path)
