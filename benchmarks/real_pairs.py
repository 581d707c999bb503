"""Which photographs and sounds of the real-data benchmark make a clip, and in which split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}


@dataclass(frozen=True, slots=True)
class Item:
    """A photograph, a written digit or a sound."""

    name: str
    label: str
    origin: str = ""
    """The recording that it is a take of, or who speaks: what must not be in two splits. Empty is
    the item itself."""
    test_only: bool = False
    """Whether it may be in no other split than the test."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Items of one kind, and how to open them."""

    items: Sequence[Item]
    look: Callable[[Item], NDArray[np.float32]]
    """A description by which near-duplicates are found, (D,)."""
    shifts: bool
    """Whether two descriptions may be shifted against each other, as those of sounds."""
    alike: float = 0.95
    """Cosine of two descriptions from which items count as the same."""


def drop_duplicates(pool: Pool) -> list[Item]:
    """The items without those that are nearly the same as an earlier one of their class."""
    kept: list[Item] = []
    for label in dict.fromkeys(item.label for item in pool.items):
        items = [item for item in pool.items if item.label == label]
        looks = np.stack([pool.look(item) for item in items])
        looks /= np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-9)
        alike = np.tril(_cosines(looks, shifts=pool.shifts), -1) > pool.alike
        kept += [item for item, row in zip(items, alike, strict=True) if not row.any()]
    return kept


def _cosines(looks: NDArray[np.float32], *, shifts: bool) -> NDArray[np.float32]:
    """Cosine of each pair of unit vectors, (n, D) to (n, n); over all shifts, the largest."""
    if not shifts:
        return looks @ looks.T
    length = 2 * looks.shape[1]
    spectra = np.fft.rfft(looks, length)
    rows = [np.fft.irfft(spectra * one.conj(), length).max(1) for one in spectra]
    return np.stack(rows).astype(np.float32)


def pair_items(
    pictures: Sequence[Item], sounds: Sequence[Item], seed: int
) -> list[tuple[str, str, int, tuple[Item, Item]]]:
    """Split, label, number, and the picture and sound of each clip.

    In `train` the rarer kind comes round again, until every item is in a clip; in the other splits
    no item does, so that some are left over.
    """
    generator = np.random.default_rng(seed)
    pairs = []
    for label in sorted({item.label for item in pictures} & {item.label for item in sounds}):
        halves = [
            _split([item for item in kind if item.label == label], generator)
            for kind in (pictures, sounds)
        ]
        for split in SHARES:
            left, right = (half[split] for half in halves)
            most = max(len(left), len(right)) if split == "train" else min(len(left), len(right))
            pairs += [
                (split, label, i, (left[i % len(left)], right[i % len(right)])) for i in range(most)
            ]
    return pairs


def _split(items: Sequence[Item], generator: np.random.Generator) -> dict[str, list[Item]]:
    """The items of one class by split; those of one origin are in the same."""
    shuffled = [items[i] for i in generator.permutation(len(items))]
    split: dict[str, list[Item]] = {name: [] for name in SHARES}
    split["test"] += [item for item in shuffled if item.test_only]
    rest = [item for item in shuffled if not item.test_only]
    train, val = SHARES["train"], SHARES["val"]
    whole = train + val if split["test"] else 1.0
    first = round(len(rest) * train / whole)
    second = len(rest) if split["test"] else first + round(len(rest) * val)
    placed = 0
    for origin in dict.fromkeys(item.origin or item.name for item in rest):
        name = "train" if placed < first else "val" if placed < second else "test"
        takes = [item for item in rest if (item.origin or item.name) == origin]
        split[name] += takes
        placed += len(takes)
    return split
