"""The demo's media: short real files of ten audiovisual events, and three that are broken.

An event is what moves, how it moves, what it sounds like, and a sentence about it. Colour, size,
place, speed, pitch, loudness, start and background are drawn anew for every clip, together with
noise, a second small shape and foreign sounds, so that no single pixel or frequency names the
event. Everything is a pure function of the seed.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from micu.base.files import write_atomically
from micu.store.manifest import Clip, write_manifest

DURATION_S = 4.0
SAMPLE_RATES = (16_000, 22_050, 32_000, 44_100, 48_000)
"""Hz; a file has one of them."""
SIZES_PX = ((96, 96), (96, 112), (104, 96), (96, 128))
"""Height and width of a clip, px, even."""
SPLITS = {"train": 11, "val": 4, "test": 5}
"""Clips per event; `val` makes more than twenty known clips, so that their 5th percentile is not
just the lowest score."""

Array = NDArray[np.float64]
Shape = Sequence[Array]
"""Contours (P, 2) in units of the shape's size, y down; where an even number overlap is a hole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What was drawn for one clip, shared by its pictures and its sound."""

    fps: int
    height: int
    width: int
    start_s: float
    """When the motion and its sound begin."""
    rate_hz: float
    """Cycles of the motion per second."""
    phase: float
    """Cycles that lie before the start, [0, 1)."""
    size: float
    """Of the shape, in units of the picture's short side."""
    centre: tuple[float, float]
    """Around which it moves, x and y in units of width and height."""

    def cycles(self, times_s: Array) -> Array:
        """How many cycles have run at each time; constant before the start."""
        return self.phase + self.rate_hz * np.maximum(times_s - self.start_s, 0.0)

    def beats_s(self) -> Array:
        """When a cycle ends, which is when something hits, turns round or lands, s."""
        end = self.cycles(np.array([DURATION_S]))[0]
        counts = np.arange(np.ceil(self.phase), end)
        return np.asarray(self.start_s + (counts - self.phase) / self.rate_hz, np.float64)


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw what pictures and sound of a clip have in common."""
    height, width = SIZES_PX[rng.integers(len(SIZES_PX))]
    return Scene(
        fps=int(rng.integers(12, 16)),
        height=height,
        width=width,
        start_s=float(rng.uniform(0.0, 0.7)),
        rate_hz=float(rng.uniform(0.9, 1.8)),
        phase=float(rng.uniform()),
        size=float(rng.uniform(0.13, 0.22)),
        centre=(float(rng.uniform(0.38, 0.62)), float(rng.uniform(0.42, 0.58))),
    )


# --- pictures --------------------------------------------------------------------------------


Motion = Callable[[Array, np.random.Generator], Array]
"""Cycles (N,) → poses (N, 4) or (N, instances, 4), places relative to the scene's centre."""


def _regular(corners: int, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> Array:
    angles = 2 * np.pi * (np.arange(corners) / corners - 0.25)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)


def _box(left: float, top: float, right: float, bottom: float) -> Array:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _poses(x: Array, y: Array, angle: Array | float = 0.0, scale: Array | float = 1.0) -> Array:
    """Stack poses (..., 4): x and y in units of width and height, radians, factor of the size."""
    return np.stack(np.broadcast_arrays(x, y, angle, scale), -1).astype(np.float64)


def _bounce(cycles: Array, rng: np.random.Generator) -> Array:
    reach = rng.uniform(0.3, 0.5)
    return _poses(np.zeros_like(cycles), 0.22 - reach * np.abs(np.sin(np.pi * cycles)))


def _swing(cycles: Array, rng: np.random.Generator) -> Array:
    angle = rng.uniform(0.5, 0.9) * np.cos(np.pi * cycles)
    return _poses(0.5 * np.sin(angle), 0.5 * np.cos(angle) - 0.35, -angle)


def _spin(cycles: Array, rng: np.random.Generator) -> Array:
    still = np.zeros_like(cycles)
    return _poses(still, still, rng.choice([-1, 1]) * 0.6 * np.pi * cycles, 1.2)


def _breathe(cycles: Array, rng: np.random.Generator) -> Array:
    still = np.zeros_like(cycles)
    depth = rng.uniform(0.35, 0.55)
    return _poses(still, still, 0.0, 1.1 + depth * np.sin(np.pi * cycles))


def _drive(cycles: Array, rng: np.random.Generator) -> Array:
    """Cross the picture from side to side, and come in again on the other side."""
    x = (rng.uniform() + rng.choice([-1, 1]) * 0.4 * cycles) % 1.3 - 0.65
    return _poses(x, 0.05 * np.sin(0.7 * cycles))


def _orbit(cycles: Array, rng: np.random.Generator) -> Array:
    turn = rng.choice([-1, 1]) * np.pi * cycles
    radius = rng.uniform(0.2, 0.3)
    return _poses(radius * np.cos(turn), radius * np.sin(turn))


def _shake(cycles: Array, rng: np.random.Generator) -> Array:
    reach, tilt = rng.uniform(0.04, 0.07), rng.uniform(0.2, 0.4)
    fast = 2 * np.pi * 2.3 * cycles
    return _poses(reach * np.sin(fast), 0.6 * reach * np.cos(1.3 * fast), tilt * np.sin(fast))


def _hop(cycles: Array, rng: np.random.Generator) -> Array:
    """Small leaps to one side, a rest after each, and back again."""
    leap = np.minimum(cycles % 1.0, 0.6) / 0.6
    travel = (np.floor(cycles) + leap) * 0.16
    x = np.abs(travel % 1.0 - 0.5) * 1.2 - 0.3
    return _poses(x, 0.15 - rng.uniform(0.15, 0.25) * np.sin(np.pi * leap))


def _lift(cycles: Array, rng: np.random.Generator) -> Array:
    """Straight up and down at constant speed."""
    reach = rng.uniform(0.25, 0.35)
    return _poses(np.zeros_like(cycles), reach * (4 * np.abs(0.5 * cycles % 1.0 - 0.5) - 1))


def _fall(cycles: Array, rng: np.random.Generator) -> Array:
    drops = int(rng.integers(12, 24))
    x, y = rng.uniform(-0.55, 0.55, drops), rng.uniform(0, 1.2, drops)
    down = (y + rng.uniform(0.5, 0.9) * cycles[:, None]) % 1.2 - 0.6
    return _poses(np.broadcast_to(x, down.shape), down, 0.1, rng.uniform(0.7, 1.1))


def render_frames(
    scene: Scene, shape: Shape, motion: Motion, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Show a shape in its motion.

    Returns:
        Frames (N, H, W, 3), uint8, RGB, with a background, noise and perhaps a second shape.
    """
    count = round(DURATION_S * scene.fps)
    times_s = np.arange(count) / scene.fps
    poses = motion(scene.cycles(times_s), rng).reshape(count, -1, 4)
    poses[..., :2] += scene.centre
    background = _draw_background(scene, rng)
    colour = _draw_colour(rng)
    extra = _draw_distractor(times_s, rng) if rng.uniform() < 0.5 else None
    frames = np.empty((count, scene.height, scene.width, 3), np.float32)
    for i in range(count):
        frames[i] = background
        if extra is not None:
            _fill(frames[i], extra[0], extra[2], extra[1][i], scene.size * 0.45)
        for pose in poses[i]:
            _fill(frames[i], shape, colour, pose, scene.size)
    frames += rng.uniform(1.0, 5.0) * rng.standard_normal(frames.shape, np.float32)
    return frames.clip(0, 255).astype(np.uint8)


def _draw_background(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """A dim soft gradient with a coarse still texture.

    Dim, because no network with random weights takes a light thing before a dark ground for the
    same as a dark one before a light ground.
    """
    corners = rng.uniform(20, 55) + rng.uniform(-15, 15, (2, 2, 3))
    texture = rng.normal(0.0, rng.uniform(1.0, 6.0), (10, 10, 3))
    size = (scene.width, scene.height)
    picture = cv2.resize(corners, size) + cv2.resize(texture, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(picture.clip(0, 255), np.float32)


def _draw_colour(rng: np.random.Generator) -> Array:
    """A light colour of any hue, (3,), in [0, 255]."""
    return (rng.uniform(140, 225) + rng.uniform(-60, 60, 3)).clip(0, 255)


def _draw_distractor(times_s: Array, rng: np.random.Generator) -> tuple[Shape, Array, Array]:
    """A small shape of any kind that drifts slowly: shape, poses (N, 4), colour."""
    shape = EVENTS[rng.choice(_BESIDE)].shape
    (x, y), (dx, dy) = rng.uniform(0.1, 0.9, 2), rng.uniform(-0.06, 0.06, 2)
    poses = _poses(x + dx * times_s, y + dy * times_s, float(rng.uniform(0, 6.3)))
    return shape, poses, _draw_colour(rng)


def _fill(
    picture: NDArray[np.float32], shape: Shape, colour: Array, pose: Array, size: float
) -> None:
    """Draw a shape into a picture (H, W, 3), in place, to a sixteenth of a pixel."""
    height, width = picture.shape[:2]
    x, y, angle, scale = pose
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    place = np.array([x * width, y * height])
    radius = scale * size * min(height, width)
    contours = [np.round((c @ turn * radius + place) * 16).astype(np.int32) for c in shape]
    cover = np.zeros((height, width), np.uint8)
    left, top, wide, high = cv2.boundingRect(cv2.fillPoly(cover, contours, 255, cv2.LINE_AA, 4))
    part = np.s_[top : top + high, left : left + wide]
    weight = cover[part][..., None].astype(np.float32) / 255
    picture[part] += weight * (colour.astype(np.float32) - picture[part])


# --- sounds ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a sound happens: its scene, its clock and its chance."""

    scene: Scene
    sample_rate: int
    """Hz."""
    rng: np.random.Generator

    @property
    def times_s(self) -> Array:
        """Time of each sample, (S,), s."""
        count = round(DURATION_S * self.sample_rate)
        return np.arange(count) / self.sample_rate

    def noise(self, low_hz: float, high_hz: float) -> Array:
        """Gaussian noise between two frequencies, (S,), of unit power."""
        spectrum = np.fft.rfft(self.rng.normal(size=len(self.times_s)))
        hz = np.fft.rfftfreq(len(self.times_s), 1 / self.sample_rate)
        spectrum[(hz < low_hz) | (hz > high_hz)] = 0
        sound = np.fft.irfft(spectrum, len(self.times_s))
        return np.asarray(sound / (sound.std() + 1e-9))

    def strike(self, at_s: Array, decay_s: float) -> Array:
        """Envelope (S,) that jumps to 1 at each of `at_s` and falls off by e in `decay_s`."""
        envelope = np.zeros(len(self.times_s))
        for start_s in at_s:
            since_s = self.times_s - start_s
            envelope += np.where(since_s >= 0, np.exp(-np.maximum(since_s, 0) / decay_s), 0)
        return envelope.clip(0, 1.5)

    def tone(self, hz: Array | float) -> Array:
        """A sine whose frequency may vary, (S,)."""
        steps = np.broadcast_to(np.asarray(hz, np.float64), self.times_s.shape) / self.sample_rate
        return np.sin(2 * np.pi * np.cumsum(steps))


def _thud(stage: Stage) -> Array:
    body = stage.tone(stage.rng.uniform(70, 180)) + 0.3 * stage.noise(100, 900)
    return body * stage.strike(stage.scene.beats_s(), stage.rng.uniform(0.05, 0.1))


def _tick(stage: Stage) -> Array:
    """Short clicks at every turn and between, high and low by turns."""
    beats = stage.scene.beats_s()
    between = beats + 0.5 / stage.scene.rate_hz
    decay, low = stage.rng.uniform(0.004, 0.01), stage.rng.uniform(900, 1800)
    high = stage.noise(1.3 * low, 3 * low) * stage.strike(beats, decay)
    return high + stage.noise(0.6 * low, 1.2 * low) * stage.strike(between, decay)


def _chop(stage: Stage) -> Array:
    """Broad low noise that blades cut several times a turn."""
    blades = stage.rng.uniform(5, 8) * stage.scene.rate_hz
    gate = 0.5 + 0.5 * stage.tone(blades)
    return stage.noise(80, stage.rng.uniform(900, 2200)) * gate**2


def _swell(stage: Stage) -> Array:
    """A soft chord that comes and goes."""
    root = stage.rng.uniform(160, 330)
    chord = sum(stage.tone(root * k) / k for k in (1.0, 1.5, 2.0, 3.0))
    return np.asarray(chord * np.sin(np.pi * stage.scene.cycles(stage.times_s)) ** 2)


def _engine(stage: Stage) -> Array:
    """A steady buzz, rich in harmonics."""
    wobble = 1 + 0.04 * stage.tone(stage.rng.uniform(0.5, 2))
    phase = np.cumsum(stage.rng.uniform(55, 120) * wobble / stage.sample_rate)
    return 2 * (phase % 1.0) - 1 + 0.2 * stage.noise(50, 1000)


def _patter(stage: Stage) -> Array:
    """Very many tiny hits at no rhythm."""
    chances = stage.rng.uniform(size=len(stage.times_s))
    hits = chances < stage.rng.uniform(80, 250) / stage.sample_rate
    drops = np.where(hits, stage.rng.uniform(0.2, 1.0, hits.shape), 0.0)
    ring_s = np.arange(round(0.004 * stage.sample_rate)) / stage.sample_rate
    ring = np.sin(2 * np.pi * stage.rng.uniform(1500, 3500) * ring_s) * np.exp(-ring_s / 0.001)
    return np.convolve(drops, ring)[: len(drops)] + 0.01 * stage.noise(1000, 6000)


def _whistle(stage: Stage) -> Array:
    """One pure voice with vibrato, whose pitch goes round."""
    round_ = 0.15 * np.sin(np.pi * stage.scene.cycles(stage.times_s))
    vibrato = 0.03 * stage.tone(stage.rng.uniform(5, 7))
    return stage.tone(stage.rng.uniform(500, 1200) * (1 + round_ + vibrato))


def _rattle(stage: Stage) -> Array:
    """Rapid bursts of high noise."""
    gap_s = 1 / stage.rng.uniform(8, 12)
    bursts = np.arange(0, DURATION_S, gap_s)
    bursts = bursts + stage.rng.normal(0, 0.1 * gap_s, bursts.shape)
    return stage.noise(2200, 7500) * stage.strike(bursts, 0.018)


def _chirp(stage: Stage) -> Array:
    """Two quick upward sweeps at each landing."""
    base, rise = stage.rng.uniform(1300, 2200), stage.rng.uniform(0.8, 1.4)
    starts = np.sort(np.concatenate([stage.scene.beats_s(), stage.scene.beats_s() + 0.16]))
    last = np.searchsorted(starts, stage.times_s, side="right") - 1
    since = np.where(last >= 0, stage.times_s - starts[np.maximum(last, 0)], 1.0) / 0.12
    window = np.where(since < 1, np.sin(np.pi * since.clip(0, 1)), 0.0)
    return stage.tone(base * (1 + rise * since.clip(0, 1))) * window


def _chime(stage: Stage) -> Array:
    """A struck bell: partials that are not harmonic and ring on."""
    root = stage.rng.uniform(350, 800)
    beats = stage.scene.beats_s()
    partials = ((1.0, 0.9), (2.76, 0.5), (5.4, 0.25))
    return np.asarray(sum(stage.tone(root * k) * stage.strike(beats, d) * d for k, d in partials))


Sound = Callable[[Stage], Array]
"""Sound of a clip, (S,), at any scale."""


def render_sound(
    make: Sound, scene: Scene, sample_rate: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Sound of one clip, (S,), in [-1, 1], mono, with noise and perhaps foreign sounds."""
    stage = Stage(scene, sample_rate, rng)
    sound = make(stage)
    fade = ((stage.times_s - scene.start_s) / 0.02).clip(0, 1)
    sound = sound * fade / (np.abs(sound).max() + 1e-9)
    noise_db = rng.uniform(-42, -24)
    sound = sound + 10 ** (noise_db / 20) * stage.noise(30, sample_rate / 2)
    if rng.uniform() < 0.5:
        sound = sound + rng.uniform(0.05, 0.25) * _draw_foreign(stage)
    loudness = rng.uniform(0.2, 0.9)
    return np.asarray(loudness * sound / np.abs(sound).max(), np.float32)


def _draw_foreign(stage: Stage) -> Array:
    """A few clicks at random times, or a faint hum."""
    if stage.rng.uniform() < 0.5:
        return stage.tone(stage.rng.uniform(90, 400))
    clicks = stage.rng.uniform(0, DURATION_S, stage.rng.integers(2, 6))
    return stage.noise(500, 4000) * stage.strike(clicks, 0.01)


# --- events ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoClass:
    """One class of the demo."""

    shape: Shape
    motion: Motion
    sound: Sound
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    sounds: tuple[str, ...]
    known: bool
    """Whether its name is in `known.csv`."""


EVENTS = {
    "ball": DemoClass(
        motion=_bounce, sound=_thud, known=True, shape=(_regular(24),),
        nouns=("ball", "marble", "globe"), verbs=("bounces", "jumps", "rebounds"),
        sounds=("thuds", "thumps", "knocks"),
    ),
    "pendulum": DemoClass(
        motion=_swing, sound=_tick, known=True,
        shape=(_regular(20, 0.8), _box(-0.08, -3.6, 0.08, -0.8)),
        nouns=("pendulum", "bob", "weight"), verbs=("swings", "sways", "rocks"),
        sounds=("ticks", "clicks", "clacks"),
    ),
    "fan": DemoClass(
        motion=_spin, sound=_chop, known=True, shape=(
            _box(-1.5, -0.28, 1.5, 0.28), _box(-0.28, -1.5, 0.28, -0.28),
            _box(-0.28, 0.28, 0.28, 1.5),
        ),
        nouns=("fan", "propeller", "windmill"), verbs=("spins", "turns", "rotates"),
        sounds=("whirs", "flutters", "chops"),
    ),
    "balloon": DemoClass(
        motion=_breathe, sound=_swell, known=True, shape=(_regular(24, 1.1), _regular(24, 0.6)),
        nouns=("balloon", "bubble", "bellows"), verbs=("grows", "swells", "inflates"),
        sounds=("sighs", "breathes", "moans"),
    ),
    "cart": DemoClass(
        motion=_drive, sound=_engine, known=True, shape=(
            _box(-1.4, -0.7, 1.4, 0.4), _regular(12, 0.35, -0.8, 0.75),
            _regular(12, 0.35, 0.8, 0.75),
        ),
        nouns=("cart", "car", "truck"), verbs=("drives", "rolls", "passes"),
        sounds=("rumbles", "growls", "roars"),
    ),
    "rain": DemoClass(
        motion=_fall, sound=_patter, known=True, shape=(_box(-0.1, -0.4, 0.1, 0.4),),
        nouns=("rain", "drizzle", "shower"), verbs=("falls", "pours", "drips"),
        sounds=("patters", "crackles", "hisses"),
    ),
    "moon": DemoClass(
        motion=_orbit, sound=_whistle, known=False, shape=(_regular(24), _regular(24, 0.72, 0.28)),
        nouns=("moon", "planet", "satellite"), verbs=("circles", "orbits", "revolves"),
        sounds=("whistles", "sings", "hoots"),
    ),
    "maraca": DemoClass(
        motion=_shake, sound=_rattle, known=False,
        shape=(_box(-0.2, -0.4, 0.2, 1.4), _regular(16, 0.6, 0.0, -0.95)),
        nouns=("maraca", "rattle", "shaker"), verbs=("shakes", "trembles", "jitters"),
        sounds=("rattles", "jingles", "rustles"),
    ),
    "bird": DemoClass(
        motion=_hop, sound=_chirp, known=False, shape=(_regular(3, 1.2),),
        nouns=("bird", "sparrow", "finch"), verbs=("hops", "skips", "leaps"),
        sounds=("chirps", "tweets", "peeps"),
    ),
    "lift": DemoClass(
        motion=_lift, sound=_chime, known=False,
        shape=(_box(-0.9, -1.1, 0.9, 1.1), _box(-0.06, -0.9, 0.06, 0.9)),
        nouns=("lift", "elevator", "hoist"), verbs=("rises", "climbs", "ascends"),
        sounds=("chimes", "rings", "dings"),
    ),
}  # fmt: skip

_BESIDE = (
    "maraca", "pendulum", "cart", "moon", "fan", "ball", "rain", "balloon", "lift", "bird",
)  # fmt: skip
"""Events whose shape may drift beside that of the clip."""
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


# --- files -----------------------------------------------------------------------------------


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
    known = [name for name, event in EVENTS.items() if event.known]
    write_atomically(folder / "known.csv", "\n".join(["label", *known, ""]).encode())
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


def write_clip(path: Path, label: str, seed: tuple[int, ...]) -> None:
    """Draw one clip of an event and write it as H.264 and AAC in MP4."""
    event, rng = EVENTS[label], np.random.default_rng([2, *seed])
    scene = draw_scene(rng)
    sample_rate = int(rng.choice(SAMPLE_RATES))
    frames = render_frames(scene, event.shape, event.motion, rng)
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
        if frames is not None:
            for picture in frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
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
    scene = draw_scene(rng)
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
