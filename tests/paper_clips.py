"""Small manifests of the shapes of the data sets in the paper's tables."""

from collections.abc import Sequence

from micu.store.manifest import Clip, Event, read_class_list
from tests.conftest import PROJECT

CLASS_LISTS = PROJECT / "manifests" / "classes"
EVENTS = [
    Clip(
        clip_id=f"c/{i}",
        path="x.mp4",
        split=("train", "test")[i % 2],
        events=(Event("ab"[i // 2 % 2], 0, 1),),
    )
    for i in range(16)
]
"""Clips that are annotated by the second."""


def known(name: str, *others: str) -> tuple[str, ...]:
    """A list of known classes, and others."""
    return (*read_class_list(CLASS_LISTS / f"{name}.csv"), *others)


def clips_of(names: Sequence[str], splits: Sequence[str], per: int) -> list[Clip]:
    """`per` clips of each class and split."""
    kinds = [(split, k) for split in splits for k in range(len(names)) for _ in range(per)]
    return [
        Clip(clip_id=f"c/{k}/{i}", path="x.mp4", label=names[k], split=split)
        for i, (split, k) in enumerate(kinds)
    ]


def captioned(count: int, captions: int) -> list[Clip]:
    """Items of several sentences each, the first of which has the media."""
    return [
        Clip(clip_id=f"c/{i}/{k}", path="x" * (not k), text="words", split="test", group=f"c/{i}/0")
        for i in range(count)
        for k in range(captions)
    ]
