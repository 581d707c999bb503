"""Localisation across modalities: which class is there in which second.

Every step has a column per class, and a last one for background: no event of these classes.

Source: section 4.2 of the MICU paper and its published AVVP scripts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from micu.evaluate.encoders import FeatureEncoder, check_same_space
from micu.evaluate.metrics import (
    Detection,
    Floats,
    batch_averaged_detection,
    detection,
)
from micu.evaluate.probe import (
    PREDICTED_AT_ONCE,
    ClipFeatures,
    LocalizationProbe,
    ProbeConfig,
    Renew,
    check_finite,
    localization_losses,
    train_epochs,
)
from micu.evaluate.splits import OpenSetSplit
from micu.store.manifest import Clip

Segments = NDArray[np.bool_]


def segment_labels(
    clips: Sequence[Clip], known: Sequence[str], modality: str, steps: int
) -> Segments:
    """Which class is there in which second, (n, T, C + 1), background last.

    A second counts if an event that the modality perceives touches it. Events of other classes
    count as background.

    Args:
        clips: With events.
        known: Names of the C classes.
        modality: Events of another one are left out.
        steps: T, seconds.
    """
    index = {name: number for number, name in enumerate(known)}
    labels = np.zeros((len(clips), steps, len(known) + 1), np.bool_)
    for row, clip in zip(labels, clips, strict=True):
        for event in clip.events_in(modality):
            if event.label in index:
                first, last = math.floor(event.onset_s), math.ceil(event.offset_s)
                row[first:last, index[event.label]] = True
    labels[..., -1] = ~labels[..., :-1].any(-1)
    return labels


def fit_localizer(
    features: ClipFeatures,
    labels: Segments,
    config: ProbeConfig,
    seed: int,
    renew: Renew | None = None,
) -> Iterator[LocalizationProbe]:
    """Train a localisation probe, by `train_epochs`. Steps that are not real do not count.

    Args:
        features: Training clips.
        labels: (n, T, C + 1).
        config: Optimisation.
        seed: For first weights and order.
        renew: As of `train_epochs`.
    """
    target = torch.from_numpy(labels).to(features.values.device)

    def loss_of(probe: LocalizationProbe, values: Tensor, rows: Tensor) -> Tensor:
        real = features.mask[rows]
        logits = probe.logits(values)[real]
        binary, weighted = localization_losses(logits, target[rows][real], probe.alpha)
        return binary + weighted

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = LocalizationProbe(features.values.shape[-1], labels.shape[-1])
    return train_epochs(probe, features, loss_of, config, seed, renew)


def predict_segments(probe: LocalizationProbe, features: ClipFeatures) -> Floats:
    """Logits of every step, (n, T, C + 1); minus infinity where a step is not real."""
    parts: list[Tensor] = []
    with torch.inference_mode():
        for values, mask in zip(
            *(torch.split(x, PREDICTED_AT_ONCE) for x in (features.values, features.mask)),
            strict=True,
        ):
            logits = probe.logits(values)
            check_finite(logits[mask].cpu().numpy())
            parts.append(logits.masked_fill(~mask[..., None], -torch.inf).cpu())
    result: Floats = torch.cat(parts).numpy()
    return result


@dataclass(frozen=True, slots=True)
class LocalizationResult:
    """How well events were found, with the epoch that was chosen."""

    epoch: int
    """Counted from 0."""
    probes: int
    found: Detection


def run_localization(
    encoder: FeatureEncoder,
    target_encoder: FeatureEncoder,
    split: OpenSetSplit,
    source: str,
    target: str,
    *,
    config: ProbeConfig,
    seed: int,
    published: bool,
) -> LocalizationResult:
    """Train one probe, choose an epoch and say how well it finds events.

    Args:
        encoder: Of the source manifest's clips.
        target_encoder: Of the target manifest's.
        split: Which clips.
        source: Modality that is trained on; events of it are the labels.
        target: Modality that is tested on, likewise.
        config: Of the probe.
        seed: Of the probe.
        published: The published arithmetic, averaged over batches and with the background, and its
            best epoch on the test set. Else micro F1 without background, and the best epoch on the
            validation clips.
    """
    check_same_space(encoder, source, target_encoder, target)
    train = encoder.encode(source, [clip.clip_id for clip in split.train]).to(encoder.device)
    judged_clips = split.test if published else split.validation
    judge, judged_in = (target_encoder, target) if published else (encoder, source)
    judged = judge.encode(judged_in, [c.clip_id for c in judged_clips]).to(encoder.device)
    test = target_encoder.encode(target, [c.clip_id for c in split.test]).to(encoder.device)
    steps = train.values.shape[1]

    def rate(probe: LocalizationProbe, clips: Sequence[Clip], features: ClipFeatures) -> Detection:
        labels = segment_labels(clips, split.known, features.modality, steps)
        labels &= features.mask.cpu().numpy()[..., None]
        logits = predict_segments(probe, features)
        if not published:
            return detection(logits, labels, background=False)
        starts = range(0, len(clips), config.batch_size)
        sizes = [min(config.batch_size, len(clips) - start) for start in starts]
        return batch_averaged_detection(logits, labels, sizes)

    labels = segment_labels(split.train, split.known, source, steps)
    probes, renew = config.epochs - config.epoch_offset, encoder.renewer(train, config, seed)
    best, best_f1 = LocalizationResult(0, probes, Detection(0.0, 0.0, 0.0)), -1.0
    for epoch, probe in enumerate(fit_localizer(train, labels, config, seed, renew)):
        found = rate(probe, judged_clips, judged)
        if found.f1 > best_f1:
            best_f1 = found.f1
            tested = found if published else rate(probe, split.test, test)
            best = LocalizationResult(epoch, probes, tested)
    return best
