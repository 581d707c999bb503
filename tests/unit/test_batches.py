from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import DecodeError
from micu.store.ledger import Failure
from micu.store.manifest import Clip
from micu.store.shard import FeatureRow, FeatureSpec, Steps
from micu_extract.backbones.base import Media
from micu_extract.pipeline.encode import ClipEncoder, Encoded


class Doubler:
    """Each unit is a number; its output is twice that. A clip's steps are its outputs."""

    batch_size = 4
    spec = FeatureSpec(
        backbone="doubler",
        modality="text",
        shape=(1,),
        hop_s=1.0,
        weights="none",
        weights_sha256="",
    )

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def encode(self, units: Sequence[float]) -> list[NDArray[np.float32]]:
        if -1.0 in units:
            raise DecodeError("odd", "a unit\nis odd")
        self.batches.append(list(units))
        return [np.array([2 * unit], np.float32) for unit in units]

    def to_steps(self, outputs: Sequence[NDArray[np.float32]], media: Media) -> Steps:
        return Steps(np.stack(outputs), np.ones(len(outputs), bool), np.arange(len(outputs)) + 0.5)


def clips(*units: Sequence[float]) -> list[tuple[Clip, Media | Failure]]:
    return [
        (Clip(clip_id=str(i)), Media(list(u), np.zeros(len(u)), 1.0, len(u)))
        for i, u in enumerate(units)
    ]


def encode(decoded: list[tuple[Clip, Media | Failure]]) -> tuple[Doubler, list[Encoded]]:
    doubler = Doubler()
    encoder = ClipEncoder(doubler)  # type: ignore[arg-type]
    whole: list[Encoded] = []
    for clip, media in decoded:
        encoder.add(clip, media)
        while encoder.is_full:
            encoder.encode_batch()
        whole += encoder.pop_whole()
    while encoder.waiting:
        encoder.encode_batch()
    return doubler, [*whole, *encoder.pop_whole()]


def values(encoded: Encoded) -> list[float]:
    assert isinstance(encoded.row, FeatureRow)
    return [float(value) for value in encoded.row.values[:, 0]]


def test_batches_are_filled_across_clips_and_clips_come_out_whole() -> None:
    doubler, encoded = encode(clips([1], [2, 3], [4, 5, 6, 7, 8, 9], [10]))

    assert doubler.batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert [values(clip) for clip in encoded] == [
        [2],
        [4, 6],
        [8, 10, 12, 14, 16, 18],
        [20],
    ]
    assert [clip.clip.clip_id for clip in encoded] == ["0", "1", "2", "3"]


def test_a_clip_that_failed_keeps_its_place() -> None:
    decoded = clips([1], [2], [3])
    lost = Failure("1", "decode", "missing", "there is no such file")
    decoded[1] = decoded[1][0], lost

    doubler, encoded = encode(decoded)

    assert doubler.batches == [[1, 3]]
    assert [clip.clip.clip_id for clip in encoded] == ["0", "1", "2"]
    assert encoded[1].row == lost


def test_a_clip_that_its_network_refuses_does_not_take_its_batch_along() -> None:
    _, encoded = encode(clips([1], [2, -1, 3, 4, 5, 6], [7]))

    assert values(encoded[0]) == [2]
    assert encoded[1].row == Failure("1", "encode", "odd", "a unit is odd")
    assert values(encoded[2]) == [14]
