"""A backbone: loudness and brightness of each second of sound. It has no weights."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from micu.store.shard import FeatureSpec, Steps
from micu_extract.backbones.base import (
    Gives,
    Media,
    Option,
    Run,
    WaveformInput,
    step_centres,
)


class Loudness:
    """Root mean square and rate of zero crossings, (T, 2)."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "decibels": Option(type=bool, default=False, help="loudness in decibels")
    }
    gives = Gives(modality="audio", shape=(2,), weights="none", licence="none needed")
    wants = WaveformInput(sample_rate=8000, window_s=1)
    batch_size = 16

    def __init__(self, weights: str, run: Run, *, decibels: bool = False) -> None:
        self._decibels = decibels
        self.spec = FeatureSpec(
            backbone="example-loudness",
            modality="audio",
            shape=(2,),
            hop_s=1.0,
            weights="none",
            weights_sha256="0" * 64,
            preprocessing={"decibels": decibels},
        )

    def encode(self, units: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """One vector for each second of sound, whatever clip it is of."""
        outputs = []
        for unit in units:
            loudness = float(np.sqrt(np.mean(unit**2)))
            if self._decibels:
                loudness = 20 * np.log10(max(loudness, 1e-6))
            crossings = float(np.mean(np.diff(np.signbit(unit))))
            outputs.append(np.array([loudness, crossings], np.float32))
        return outputs

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        """The seconds of one clip."""
        real = np.ones(len(outputs), np.bool_)
        return Steps(np.stack(outputs), real, step_centres(len(outputs)))
