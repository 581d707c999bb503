"""An encoder of two modalities in one space: how bright a second looks, how loud it sounds.

Both features have one name, so that `micu-eval oscmg frozen:example-joint` carries a classifier
from one modality to the other. It has no weights.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.store.shard import FeatureSpec, Steps
from micu_extract.backbones.base import (
    FrameInput,
    Gives,
    InputSpec,
    Media,
    Option,
    Run,
    WaveformInput,
    mean_by_step,
)

BINS = np.linspace(0, 1, 12)


class Joint:
    """A level in [0, 1] as twelve soft bins, (T, 12)."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    batch_size = 16
    gives: Gives
    wants: InputSpec

    def __init__(self, weights: str, run: Run) -> None:
        self.spec = FeatureSpec(
            backbone="example-joint",
            modality=self.gives.modality,
            shape=self.gives.shape,
            hop_s=1.0,
            weights="none",
            weights_sha256="0" * 64,
        )

    def level(self, unit: NDArray[np.generic]) -> float:
        """Of one picture, or of one second of sound, in [0, 1]."""
        raise NotImplementedError

    def encode(self, units: Sequence[NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        """One vector for each unit, whatever clip it is of."""
        levels = [self.level(unit) for unit in units]
        return [np.exp(-(((x - BINS) / 0.08) ** 2)).astype(np.float32) for x in levels]

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The mean of each second of one clip."""
        return mean_by_step(outputs, media)


class JointVideo(Joint):
    """Brightness of each picture."""

    gives = Gives(modality="video", shape=(12,), weights="none", licence="none needed")
    wants = FrameInput(fps=2, resize=32, crop=32)

    def level(self, unit: NDArray[np.generic]) -> float:
        """The mean over all pixels."""
        return float(np.mean(unit) / 255)


class JointAudio(Joint):
    """Loudness of each second."""

    gives = Gives(modality="audio", shape=(12,), weights="none", licence="none needed")
    wants = WaveformInput(sample_rate=8000, window_s=1)

    def level(self, unit: NDArray[np.generic]) -> float:
        """The amplitude that a tone of this loudness has."""
        return float(np.sqrt(2 * np.mean(np.square(unit))))
