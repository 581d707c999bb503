"""The demo's pictures: shapes, how they move, and the frames that show it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = Sequence[Array]
"""Contours (P, 2) in units of the shape's size, y down; where an even number overlap is a hole."""

SIZES_PX = ((96, 96), (96, 112), (104, 96), (96, 128))
"""Height and width of a clip, px, even."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What was drawn for one clip, shared by its pictures and its sound."""

    motion: str
    duration_s: float
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
        end = self.cycles(np.array([self.duration_s]))[0]
        counts = np.arange(np.ceil(self.phase), end)
        return np.asarray(self.start_s + (counts - self.phase) / self.rate_hz, np.float64)


def draw_scene(motion: str, rng: np.random.Generator, duration_s: float) -> Scene:
    """Draw everything that may vary within an event."""
    height, width = SIZES_PX[rng.integers(len(SIZES_PX))]
    return Scene(
        motion=motion,
        duration_s=duration_s,
        fps=int(rng.integers(12, 16)),
        height=height,
        width=width,
        start_s=float(rng.uniform(0.0, 0.7)),
        rate_hz=float(rng.uniform(0.9, 1.8)),
        phase=float(rng.uniform()),
        size=float(rng.uniform(0.13, 0.22)),
        centre=(float(rng.uniform(0.38, 0.62)), float(rng.uniform(0.42, 0.58))),
    )


def _regular(corners: int, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> Array:
    angles = 2 * np.pi * (np.arange(corners) / corners - 0.25)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)


def _box(left: float, top: float, right: float, bottom: float) -> Array:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


SHAPES: dict[str, Shape] = {
    "disc": (_regular(24),),
    "bob": (_regular(20, 0.8), _box(-0.08, -3.6, 0.08, -0.8)),
    "cross": (
        _box(-1.5, -0.28, 1.5, 0.28),
        _box(-0.28, -1.5, 0.28, -0.28),
        _box(-0.28, 0.28, 0.28, 1.5),
    ),
    "ring": (_regular(24, 1.1), _regular(24, 0.6)),
    "cart": (
        _box(-1.4, -0.7, 1.4, 0.4),
        _regular(12, 0.35, -0.8, 0.75),
        _regular(12, 0.35, 0.8, 0.75),
    ),
    "drop": (_box(-0.1, -0.4, 0.1, 0.4),),
    "crescent": (_regular(24), _regular(24, 0.72, 0.28)),
    "bar": (_box(-0.2, -0.4, 0.2, 1.4), _regular(16, 0.6, 0.0, -0.95)),
    "triangle": (_regular(3, 1.2),),
    "square": (_box(-0.9, -1.1, 0.9, 1.1), _box(-0.06, -0.9, 0.06, 0.9)),
}


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


MOTIONS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "bounce": _bounce,
    "swing": _swing,
    "spin": _spin,
    "breathe": _breathe,
    "drive": _drive,
    "orbit": _orbit,
    "shake": _shake,
    "hop": _hop,
    "lift": _lift,
    "fall": _fall,
}
"""Cycles (N,) → poses (N, 4) or (N, instances, 4), places relative to the scene's centre."""


def render_frames(scene: Scene, shape: Shape, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Show a shape in its motion.

    Returns:
        Frames (N, H, W, 3), uint8, RGB, with a background, noise and perhaps a second shape.
    """
    count = round(scene.duration_s * scene.fps)
    times_s = np.arange(count) / scene.fps
    poses = MOTIONS[scene.motion](scene.cycles(times_s), rng).reshape(count, -1, 4)
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
    shape = SHAPES[str(rng.choice(sorted(SHAPES)))]
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
