"""The demo's sounds: ten ways to sound, which differ in envelope and timbre rather than pitch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from micu_extract.demo.scenes import Scene

Array = NDArray[np.float64]


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
        count = round(self.scene.duration_s * self.sample_rate)
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
    hits = (
        stage.rng.uniform(size=len(stage.times_s)) < stage.rng.uniform(80, 250) / stage.sample_rate
    )
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
    bursts = np.arange(0, stage.scene.duration_s, gap_s)
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


SOUNDS: dict[str, Callable[[Stage], Array]] = {
    "thud": _thud,
    "tick": _tick,
    "chop": _chop,
    "swell": _swell,
    "engine": _engine,
    "patter": _patter,
    "whistle": _whistle,
    "rattle": _rattle,
    "chirp": _chirp,
    "chime": _chime,
}


def render_sound(
    name: str, scene: Scene, sample_rate: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Sound of one clip, (S,), in [-1, 1], mono, with noise and perhaps foreign sounds."""
    stage = Stage(scene, sample_rate, rng)
    sound = SOUNDS[name](stage)
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
    clicks = stage.rng.uniform(0, stage.scene.duration_s, stage.rng.integers(2, 6))
    return stage.noise(500, 4000) * stage.strike(clicks, 0.01)
