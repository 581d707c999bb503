"""Feature sets of the published shapes with known answers, and encoders that know them or nothing.

Channel 0 of every feature says which class is there in that second (0: none), channel 1 which item
the clip is about. `MICU.encode` is replaced: by one that reads them, or by one that draws.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from micu.config.overrides import with_overrides
from micu.config.presets import PRESETS
from micu.data.dataset import TEXT
from micu.model.micu import MICU
from micu.model.quantizer import Quantized
from micu.store.manifest import Clip, Event
from micu.store.sets import find_sets, read_set
from micu.store.shard import FeatureRow
from micu.train.checkpoint import Position, save_checkpoint
from micu.train.step import build_state
from tests.feature_sets import SMALL, STEPS, write_features

OFFICIAL = {"audio": (128,), "video": (7, 7, 512), "text": (768,)}
"""VGGish, the VGG-19 grid and BERT, as the published code reads them."""
BACKBONES = {"audio": "vggish", "video": "vgg19", "text": "bert"}
WIDTH = 16
"""Of the small model's codes."""


def avvp_clips(classes: Sequence[str]) -> list[Clip]:
    """Events of two modalities: half of the clips are annotated in one of them alone."""
    clips = []
    for i in range(24):
        kinds = (("audio", "video"), ("video",), ("audio",))[i % 3]
        events = tuple(Event(classes[i % 4], i % 5, i % 5 + 3, kind) for kind in kinds)
        clips.append(
            Clip(clip_id=f"avvp/{i}", path="x.mp4", events=events, split=("train", "test")[i // 12])
        )
    return clips


def captioned_clips() -> list[Clip]:
    """Twenty pictures with three sentences each."""
    clips = []
    for i in range(20):
        clips += [
            Clip(
                clip_id=f"coco/{i}" if not k else f"coco/{i}#{k + 1}",
                path="" if k else "x.jpg",
                text="words",
                split="test",
                group=f"coco/{i}",
            )
            for k in range(3)
        ]
    return clips


def labelled_row(names: Sequence[str]) -> Callable[..., FeatureRow]:
    """Makes features that say the clip's class, or its events by the second, and its item."""
    index = {name: number + 1 for number, name in enumerate(names)}

    def make(clip: Clip, modality: str, shape: tuple[int, ...], steps: int) -> FeatureRow:
        steps = STEPS  # as many words as seconds: padded ones would say item 0
        values = np.zeros((steps, *shape), np.float32)
        events = clip.events_in(modality)
        for event in events:
            values[int(event.onset_s) : int(event.offset_s), ..., 0] = index[event.label]
        if not events and clip.label:
            values[..., 0] = index[clip.label]
        values[..., 1] = int(clip.group.split("/")[-1])
        times_s = np.full(steps, np.nan) if modality == TEXT else np.arange(steps) + 0.5
        return FeatureRow(clip.clip_id, values, np.ones(steps, np.bool_), times_s)

    return make


def write_sets(
    root: Path,
    name: str,
    clips: Sequence[Clip],
    modalities: str,
    names: Sequence[str],
    has: Callable[[Clip, str], bool] = lambda clip, modality: True,
) -> None:
    """Feature sets of the official shapes below `root/features`, and `root/NAME.csv`."""
    shapes = {kind: OFFICIAL[kind] for kind in OFFICIAL if kind[0] in modalities}
    write_features(
        root / "features",
        clips,
        shapes,
        name=name,
        backbones=BACKBONES,
        make=labelled_row(names),
        has=has,
    )


def write_checkpoint(path: Path, features: Path, **extra: str) -> None:
    """A small untrained model of audio, video and text in the official shapes."""
    config = with_overrides(PRESETS["micu"](), [*SMALL, "modalities=audio,video,text"])
    state = build_state(config, OFFICIAL, "cpu")
    specs = {spec.modality: spec for spec in (read_set(x)[0].spec for x in find_sets(features))}
    save_checkpoint(
        state, path, specs=specs, position=Position(), extra={"preset": "micu", **extra}
    )


def _quantized(codes: Tensor, vectors: Tensor) -> Quantized:
    nothing = torch.zeros(())
    return Quantized(vectors, vectors, codes, nothing, nothing)


def know_everything(monkeypatch: pytest.MonkeyPatch, channel: int) -> None:
    """Codes that are what `channel` says; the later the item, the surer, by up to a tenth."""

    def encode(
        self: MICU, features: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> dict[str, Quantized]:
        found = {}
        for name, x in features.items():
            steps = x.flatten(2, -2).mean(2) if x.ndim > 3 else x
            codes = steps[..., channel].round().long()
            directions = torch.eye(max(WIDTH, int(codes.max()) + 1))[codes] * 3
            surer = 1 + steps[..., 1:2] / 10_000
            found[name] = _quantized(codes % 12, directions * surer)
        return found

    monkeypatch.setattr(MICU, "encode", encode)


def know_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes and vectors that are drawn, whatever the features."""
    draw = torch.Generator().manual_seed(5)

    def encode(
        self: MICU, features: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> dict[str, Quantized]:
        found = {}
        for name, x in features.items():
            codes = torch.randint(0, 12, x.shape[:2], generator=draw)
            vectors = torch.randn(*x.shape[:2], WIDTH, generator=draw)
            found[name] = _quantized(codes, vectors)
        return found

    monkeypatch.setattr(MICU, "encode", encode)
