"""Localisation: labels of seconds, the probe's training, and both arithmetics."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from micu.evaluate.encoders import FeatureEncoder
from micu.evaluate.localization import (
    LocalizationResult,
    fit_localizer,
    predict_segments,
    run_localization,
    segment_labels,
)
from micu.evaluate.metrics import batch_averaged_detection, detection
from micu.evaluate.probe import ClipFeatures, ProbeConfig
from micu.evaluate.splits import OpenSetSplit
from micu.store.manifest import Clip, Event

KNOWN = ("dog", "car")
QUICK = ProbeConfig(epochs=12, learning_rate=5e-2, batch_size=8)


def test_a_second_counts_if_an_event_of_the_modality_touches_it() -> None:
    clip = Clip(
        clip_id="x",
        events=(
            Event("dog", 1, 3, "video"),
            Event("car", 1.5, 2.2),
            Event("dog", 0, 5, "audio"),
            Event("bird", 4, 5),
        ),
    )
    labels = segment_labels([clip, Clip(clip_id="y")], KNOWN, "video", 5)
    assert labels[0].astype(int).tolist() == [
        [0, 0, 1],
        [1, 1, 0],
        [1, 1, 0],
        [0, 0, 1],
        [0, 0, 1],
    ]
    assert labels[1, :, -1].all()
    assert segment_labels([clip], KNOWN, "audio", 5)[0, :, 0].all()


def make_clips(split: str, count: int) -> tuple[Clip, ...]:
    return tuple(
        Clip(
            clip_id=f"{split}/{i}",
            events=(Event(KNOWN[i % 2], i % 3, i % 3 + 2),),
        )
        for i in range(count)
    )


class SecondEncoder:
    """Every second's vector says what is there; `flawed` clips say the opposite."""

    name = "seconds"
    device = torch.device("cpu")
    codebook_size = 0
    renew: Callable[[int], torch.Tensor] | None = None

    def __init__(self, clips: tuple[Clip, ...], flawed: str = "") -> None:
        self.clips = {clip.clip_id: clip for clip in clips}
        self.flawed = flawed

    def width(self, modality: str) -> int:
        return 4

    def renewer(self, *_: object) -> Callable[[int], torch.Tensor] | None:
        return self.renew

    def encode(self, modality: str, clip_ids: list[str]) -> ClipFeatures:
        labels = segment_labels([self.clips[name] for name in clip_ids], KNOWN, modality, 6)
        flip = np.array([bool(self.flawed) and name.startswith(self.flawed) for name in clip_ids])
        labels[flip] = ~labels[flip]
        values = torch.zeros(*labels.shape[:2], 4)
        values[..., :3] = torch.from_numpy(labels) * 3.0
        mask = torch.ones(labels.shape[:2], dtype=torch.bool)
        return ClipFeatures(modality, tuple(clip_ids), values, mask)


@pytest.fixture
def split() -> OpenSetSplit:
    return OpenSetSplit(
        train=make_clips("train", 24),
        validation=make_clips("val", 6),
        test=make_clips("test", 11),
        known=KNOWN,
        held_out=False,
    )


def run(split: OpenSetSplit, *, published: bool, flawed: str = "") -> LocalizationResult:
    encoder: FeatureEncoder = SecondEncoder((*split.train, *split.validation, *split.test), flawed)  # type: ignore[assignment]
    return run_localization(
        encoder, encoder, split, "video", "audio", config=QUICK, seed=0, published=published
    )


@pytest.mark.parametrize("published", [True, False])
def test_features_that_say_what_is_there_are_found_without_a_mistake(
    split: OpenSetSplit, published: bool
) -> None:
    found = run(split, published=published).found
    assert found.f1 == pytest.approx(1.0, abs=1e-9)


def test_the_clean_epoch_looks_at_validation_clips_and_the_published_one_at_the_test(
    split: OpenSetSplit,
) -> None:
    good = run(split, published=False)
    assert run(split, published=False, flawed="test").epoch == good.epoch
    assert run(split, published=False, flawed="test").found.f1 < 0.5
    assert run(split, published=False, flawed="val").found.f1 <= 1.0
    flawed = run(split, published=True, flawed="test")
    assert flawed.epoch != run(split, published=True).epoch


def test_epochs_are_counted_on_and_each_is_of_clips_that_are_encoded_anew(
    split: OpenSetSplit,
) -> None:
    encoder = SecondEncoder((*split.train, *split.validation, *split.test))
    values = encoder.encode("video", [clip.clip_id for clip in split.train]).values
    asked: list[int] = []

    def anew(epoch: int) -> torch.Tensor:
        asked.append(epoch)
        return values

    encoder.renew = anew
    config = replace(QUICK, epoch_offset=QUICK.epochs - 3)
    found = run_localization(
        encoder,  # type: ignore[arg-type]
        encoder,  # type: ignore[arg-type]
        split,
        "video",
        "audio",
        config=config,
        seed=0,
        published=False,
    )
    assert found.probes == 3
    assert asked == [0, 1, 2]


def test_the_same_seed_gives_the_same_localiser_and_another_another(split: OpenSetSplit) -> None:
    features = SecondEncoder(split.train).encode("video", [c.clip_id for c in split.train])
    labels = segment_labels(split.train, KNOWN, "video", 6)

    def final(seed: int) -> np.ndarray:
        torch.manual_seed(seed + 100)  # the surrounding generator must not matter
        *_, probe = fit_localizer(features, labels, ProbeConfig(epochs=1, batch_size=7), seed)
        return predict_segments(probe, features)

    assert np.array_equal(final(1), final(1))
    assert not np.array_equal(final(1), final(2))


def test_steps_that_are_not_real_neither_train_nor_count(split: OpenSetSplit) -> None:
    encoder = SecondEncoder(split.train)
    features = encoder.encode("video", [c.clip_id for c in split.train])
    labels = segment_labels(split.train, KNOWN, "video", 6)
    features.mask[:, -1] = False
    outcomes = []
    for rubbish in (0.0, 1e3):
        features.values[:, -1] = rubbish
        labels[:, -1] = bool(rubbish)
        *_, probe = fit_localizer(features, labels, ProbeConfig(epochs=2, batch_size=8), 0)
        outcomes.append(predict_segments(probe, features))
    assert np.array_equal(*outcomes)
    assert np.isneginf(outcomes[0][:, -1]).all()
    counted = labels & features.mask.numpy()[..., None]
    cut = detection(outcomes[0][:, :-1], labels[:, :-1], background=True)
    assert detection(outcomes[0], counted, background=True) == cut
    sizes = [len(labels)]
    assert batch_averaged_detection(outcomes[0], counted, sizes).f1 == pytest.approx(cut.f1)


def test_a_second_is_background_where_no_class_at_all_is_there() -> None:
    """Also where the only class is not the first."""
    clip = Clip(
        clip_id="x",
        events=(
            Event(KNOWN[1], 1.0, 2.0),
            Event(KNOWN[0], 2.0, 3.0),
            Event("elsewhere", 3.0, 4.0),
        ),
    )
    labels = segment_labels([clip], KNOWN, "video", 5)[0]
    assert labels[:, -1].tolist() == [True, False, False, True, True]
    assert labels[:, 1].tolist() == [False, True, False, False, False]
    assert labels[:, 0].tolist() == [False, False, True, False, False]
    assert not labels[:, 2:-1].any()
