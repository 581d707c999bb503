"""The demo's media: short real files of ten audiovisual events, and three that are broken.

An event is what moves, how it moves, what it sounds like, and a sentence about it. Colour, size,
place, speed, pitch, loudness, start and background are drawn anew for every clip, together with
noise, a second small shape and foreign sounds, so that no single pixel or frequency names the
event. Everything is a pure function of the seed.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from micu.base.files import write_atomically
from micu.store.manifest import Clip, write_manifest
from micu_extract.demo.scenes import SHAPES, Scene, draw_scene, render_frames
from micu_extract.demo.sounds import render_sound

DURATION_S = 4.0
SAMPLE_RATES = (16_000, 22_050, 32_000, 44_100, 48_000)
"""Hz; a file has one of them."""
SPLITS = {"train": 11, "val": 4, "test": 5}
"""Clips per event; `val` makes more than twenty known clips, so that their 5th percentile is not
just the lowest score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One class of the demo."""

    shape: str
    motion: str
    sound: str
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    sounds: tuple[str, ...]
    known: bool
    """Whether its name is in `known.csv`."""


EVENTS = {
    "ball": Event(
        shape="disc", motion="bounce", sound="thud", known=True,
        nouns=("ball", "marble", "globe"), verbs=("bounces", "jumps", "rebounds"),
        sounds=("thuds", "thumps", "knocks"),
    ),
    "pendulum": Event(
        shape="bob", motion="swing", sound="tick", known=True,
        nouns=("pendulum", "bob", "weight"), verbs=("swings", "sways", "rocks"),
        sounds=("ticks", "clicks", "clacks"),
    ),
    "fan": Event(
        shape="cross", motion="spin", sound="chop", known=True,
        nouns=("fan", "propeller", "windmill"), verbs=("spins", "turns", "rotates"),
        sounds=("whirs", "flutters", "chops"),
    ),
    "balloon": Event(
        shape="ring", motion="breathe", sound="swell", known=True,
        nouns=("balloon", "bubble", "bellows"), verbs=("grows", "swells", "inflates"),
        sounds=("sighs", "breathes", "moans"),
    ),
    "cart": Event(
        shape="cart", motion="drive", sound="engine", known=True,
        nouns=("cart", "car", "truck"), verbs=("drives", "rolls", "passes"),
        sounds=("rumbles", "growls", "roars"),
    ),
    "rain": Event(
        shape="drop", motion="fall", sound="patter", known=True,
        nouns=("rain", "drizzle", "shower"), verbs=("falls", "pours", "drips"),
        sounds=("patters", "crackles", "hisses"),
    ),
    "moon": Event(
        shape="crescent", motion="orbit", sound="whistle", known=False,
        nouns=("moon", "planet", "satellite"), verbs=("circles", "orbits", "revolves"),
        sounds=("whistles", "sings", "hoots"),
    ),
    "maraca": Event(
        shape="bar", motion="shake", sound="rattle", known=False,
        nouns=("maraca", "rattle", "shaker"), verbs=("shakes", "trembles", "jitters"),
        sounds=("rattles", "jingles", "rustles"),
    ),
    "bird": Event(
        shape="triangle", motion="hop", sound="chirp", known=False,
        nouns=("bird", "sparrow", "finch"), verbs=("hops", "skips", "leaps"),
        sounds=("chirps", "tweets", "peeps"),
    ),
    "lift": Event(
        shape="square", motion="lift", sound="chime", known=False,
        nouns=("lift", "elevator", "hoist"), verbs=("rises", "climbs", "ascends"),
        sounds=("chimes", "rings", "dings"),
    ),
}  # fmt: skip

_TEMPLATES = (
    "a {colour} {noun} {verb} and {sound}",
    "the {size} {noun} {verb} as it {sound}",
    "something {sound} while a {noun} {verb}",
    "{place} a {colour} {noun} {verb}",
    "one hears that it {sound} and it {verb}",
    "a {size} {colour} thing {verb} {place}",
    "{place} the {noun} {sound}",
)
_FILLERS = {
    "colour": ("red", "green", "blue", "yellow", "grey", "white", "brown", "purple"),
    "size": ("small", "big", "tiny", "large", "middling"),
    "place": ("in the middle", "on the left", "near the edge", "somewhere", "over there"),
}


def write_media(
    folder: Path, seed: int = 0, workers: int = 2, splits: Mapping[str, int] = SPLITS
) -> Path:
    """Write the clips, three broken files, `manifest.csv` and `known.csv` into `folder`.

    Args:
        folder: Is made if need be.
        seed: Of everything that is drawn.
        workers: Processes that draw.
        splits: Clips per event, by split.

    Returns:
        The manifest's path; media paths in it are relative to `folder`.
    """
    clips = plan_clips(seed, splits)
    (folder / "media").mkdir(parents=True, exist_ok=True)
    Parallel(workers)(
        delayed(write_clip)(folder / clip.path, clip.label, (seed, number))
        for number, clip in enumerate(clips)
    )
    broken = _write_broken(folder, folder / clips[0].path)
    write_manifest(folder / "manifest.csv", [*clips, *broken])
    write_labels(folder / "known.csv", [name for name, event in EVENTS.items() if event.known])
    return folder / "manifest.csv"


def plan_clips(seed: int, splits: Mapping[str, int] = SPLITS) -> list[Clip]:
    """The manifest's rows of the whole files, in an order in which events alternate."""
    numbers = range(sum(splits.values()))
    split_of = [split for split, count in splits.items() for _ in range(count)]
    return [
        Clip(
            clip_id=f"{label}-{number:02d}",
            path=f"media/{label}-{number:02d}.mp4",
            label=label,
            split=split_of[number],
            text=write_sentence(label, np.random.default_rng([seed, 1, index, number])),
        )
        for number in numbers
        for index, label in enumerate(EVENTS)
    ]


def write_sentence(label: str, rng: np.random.Generator) -> str:
    """A sentence about an event: template and words are drawn, at most ten words."""
    event = EVENTS[label]
    words = {"noun": event.nouns, "verb": event.verbs, "sound": event.sounds, **_FILLERS}
    drawn = {name: str(rng.choice(choices)) for name, choices in words.items()}
    return str(rng.choice(_TEMPLATES)).format(**drawn)


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """Write a class list as `micu.store.manifest.read_class_list` reads it."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([["label"], *([label] for label in labels)])
    write_atomically(path, table.getvalue().encode())


def write_clip(path: Path, label: str, seed: tuple[int, ...]) -> None:
    """Draw one clip of an event and write it as H.264 and AAC in MP4."""
    event, rng = EVENTS[label], np.random.default_rng([2, *seed])
    scene = draw_scene(event.motion, rng, DURATION_S)
    sample_rate = int(rng.choice(SAMPLE_RATES))
    frames = render_frames(scene, SHAPES[event.shape], rng)
    sound = render_sound(event.sound, scene, sample_rate, rng)
    encode_file(path, scene, frames, sound, sample_rate)


def encode_file(
    path: Path,
    scene: Scene,
    frames: NDArray[np.uint8] | None,
    sound: NDArray[np.float32],
    sample_rate: int,
) -> None:
    """Write frames (N, H, W, 3) RGB, if any, and mono sound (S,) in [-1, 1]."""
    buffer = io.BytesIO()
    # Bit-exact output holds no library versions or dates, so equal seeds give equal bytes.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        if frames is not None:
            # With its macroblock tree, x264 does not always give the same bytes twice.
            plain = "mbtree=0:rc-lookahead=0"
            options = {"preset": "veryfast", "crf": "26", "threads": "1", "x264-params": plain}
            video = container.add_stream("libx264", rate=scene.fps, options=options)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.codec_context.flags |= _BIT_EXACT
        fast = {"aac_coder": "fast"}
        audio = container.add_stream("aac", rate=sample_rate, layout="mono", options=fast)
        audio.bit_rate = 64_000
        audio.codec_context.flags |= _BIT_EXACT
        container.start_encoding()
        for picture in frames if frames is not None else ():
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(video.encode(frame))
        if frames is not None:
            container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = sample_rate, Fraction(1, sample_rate), 0
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    path.write_bytes(buffer.getvalue())


_BIT_EXACT = int(av.codec.context.Flags.bitexact)


def _write_broken(folder: Path, whole: Path) -> list[Clip]:
    """Files that cannot be decoded, wholly or in part, as every large collection has some."""
    data = whole.read_bytes()
    write_atomically(folder / "media/empty.mp4", b"")
    write_atomically(folder / "media/cut-off.mp4", data[: len(data) * 3 // 5])
    rng = np.random.default_rng(3)
    scene = draw_scene(EVENTS["rain"].motion, rng, DURATION_S)
    sound = render_sound(EVENTS["rain"].sound, scene, 16_000, rng)
    encode_file(folder / "media/sound-only.mp4", scene, None, sound, 16_000)
    return [
        Clip(clip_id=name, path=f"media/{name}.mp4", label=label, split="train", text=text)
        for name, label, text in (
            ("empty", "ball", "a ball that nobody recorded"),
            ("cut-off", "ball", "a ball whose file was cut off"),
            ("sound-only", "rain", "rain behind a closed shutter"),
        )
    ]
