"""What own clips lack is drawn: their splits, and which of their classes are known."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from micu.base.errors import ConfigError
from micu.base.table import write_csv
from micu.store.manifest import Clip
from micu.store.overlap import media_item


def draw_splits(clips: Sequence[Clip], typed: str, seed: int) -> list[Clip]:
    """Give each clip a split, class by class.

    Rows about one item stay together. Of a class with two items one is tested, of one with three
    one validates too, if these splits have a share at all. Where the media lie changes nothing.

    Args:
        clips: None of them has a split.
        typed: Shares of train, val and test, separated by commas.
        seed: For the order in which the items of a class are dealt.

    Raises:
        ConfigError: These are no shares, or a clip has a split.
    """
    if any(clip.split for clip in clips):
        raise ConfigError("--split: expected clips without a split, got some; leave it out")
    try:
        train, val, test = (float(part) for part in typed.split(","))
        if not (train > 0 and val >= 0 and test >= 0 and math.isfinite(train + val + test)):
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"--split: expected three shares, train, val and test, such as 70,15,15; got {typed!r}"
        ) from error
    members: dict[str, list[str]] = {}
    class_of: dict[str, str] = {}
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        item = media_item(clip)
        if item not in class_of:
            class_of[item] = clip.label
            members.setdefault(clip.label, []).append(item)
    split_of: dict[str, str] = {}
    for label, items in members.items():
        random.Random(f"{seed} {label}").shuffle(items)
        dealt = 0
        for name, share in (("test", test), ("val", val)):
            wanted = max(1, round(len(items) * share / (train + val + test))) if share else 0
            count = min(wanted, len(items) - 1 - dealt)
            split_of.update(dict.fromkeys(items[dealt : dealt + count], name))
            dealt += count
    return [replace(clip, split=split_of.get(media_item(clip), "train")) for clip in clips]


def draw_known(clips: Sequence[Clip], count: int, seed: int) -> bytes:
    """Some of the classes as a class list, a CSV file with the column `label`.

    Raises:
        ConfigError: None would be unknown.
    """
    labels = sorted({clip.label for clip in clips} - {""})
    if count >= len(labels):
        raise ConfigError(
            f"--known-classes {count}: expected fewer than the {len(labels)} classes there are, so "
            "that some are unknown; type a smaller number"
        )
    known = sorted(random.Random(seed).sample(labels, count))
    return write_csv([("label",), *((name,) for name in known)])
