"""Which clips an evaluation trains on, validates on and tests on, under either protocol.

`paper` takes the lists as they are and names what leaks. `clean` repairs them: no media item is
both trained and tested on, none of the tested ones was pretrained on, and classes that cannot be
learned or tested are left out.
"""

import csv
import hashlib
import io
import logging
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError, ManifestError
from micu.base.registry import closest, suggest
from micu.base.table import read_bytes
from micu.evaluate.metrics import UNKNOWN
from micu.store.manifest import Clip
from micu.store.overlap import media_item

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST = "train", "val", "test"
"""Values of the manifest's `split` that are read unless others are asked for."""

PAPER, CLEAN = "paper", "clean"
"""The protocols."""

DIAGNOSTIC = "diagnostic"
"""In the place of a protocol: the clips and the epoch of `clean`, the threshold of the test."""

LISTED = 8
"""Names that a message lists."""

HELD_OUT = 0.15
"""Share of each class's training clips that is held out where the manifest has no `val` split."""


def parse_splits(text: str | None) -> tuple[str, ...] | None:
    """Values of `split` from an option: () if it was not typed, None for `all`.

    Raises:
        ConfigError: It was typed without a name.
    """
    if text is None:
        return ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ConfigError(
            f"--train-splits and --test-splits: expected names of the manifest's splits, or all, "
            f"got {text!r}; leave the option out for the usual ones"
        )
    return None if "all" in names else names


def label_of(clip: Clip) -> tuple[str, ...]:
    """The class of a clip, if it has one."""
    return (clip.label,) if clip.label else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRules:
    """How clips are chosen."""

    protocol: str = CLEAN
    train_splits: tuple[str, ...] | None = (TRAIN,)
    """Values of `split`; None is every clip."""
    test_splits: tuple[str, ...] | None = (TEST,)
    fewest_classes: int = 2
    """Known classes that a probe must learn: with one it can be right by saying nothing else."""
    closed: bool = False
    """Whether clips of classes that are not known are left out of the test, too."""
    seen: frozenset[str] | None = None
    """Media items that the model was pretrained on; None where that is not known."""
    source_classes: Callable[[Clip], tuple[str, ...]] = label_of
    """Classes of a clip in the source modality; none for one that is not used."""
    target_classes: Callable[[Clip], tuple[str, ...]] = label_of
    """The same in the target modality."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSetSplit:
    """Which clips a task uses, and what is known."""

    train: tuple[Clip, ...]
    """Known classes, source modality."""
    validation: tuple[Clip, ...]
    """Known classes, source modality, none of them in `train`; empty under `paper`."""
    test: tuple[Clip, ...]
    """Target modality: all classes, or the known ones in closed-set tasks."""
    known: tuple[str, ...]
    """Names of the C known classes; their order is the order of the logits."""
    held_out: bool
    """Whether `validation` was cut from the training clips, for want of a `val` split."""
    pairs: tuple[str, ...] = ()
    """Clips of the source manifest with features of both modalities, neither in `train` nor tested;
    their labels are not looked at. Without the clips that the probe was fitted to, most are of
    classes that are not known, if these have training clips too."""
    pairs_of_known: int = 0
    """How many of `pairs` are of known classes; only ever told."""
    paired: tuple[str, ...] = ()
    """Clips of `train` with features of the target modality, too."""
    leaks: tuple[str, ...] = ()
    """What is wrong with these sets, each `name` or `name:detail`."""
    note: str = ""
    """What `clean` left out, in words."""
    lacking: Mapping[str, int] = field(default_factory=dict)
    """Listed clips without features, so that they are in no set: `training`, `test`."""

    @property
    def test_sha256(self) -> str:
        """Of the ids of the test clips."""
        return clips_sha256(self.test)

    @property
    def has_unknown(self) -> bool:
        """Whether clips of classes that are not known are tested."""
        return any(clip.label not in self.known for clip in self.test)

    def labels(self, clips: Sequence[Clip]) -> NDArray[np.int64]:
        """Class of each clip, or `UNKNOWN`, (n,)."""
        index = {name: number for number, name in enumerate(self.known)}
        return np.array([index.get(clip.label, UNKNOWN) for clip in clips], np.int64)

    def perceivable(self, modality: str) -> NDArray[np.bool_] | None:
        """Which test clips have an event of their class in a modality, (n,); of flow, in the video.

        None where no event names its modality, or no class can be perceived in this one.
        """
        modality = "video" if modality == "flow" else modality
        found = np.array(
            [clip.label in {e.label for e in clip.events_in(modality)} for clip in self.test]
        )
        told = any(event.modality for clip in self.test for event in clip.events)
        return found if told and found.any() else None

    def trains_as(self, other: "OpenSetSplit") -> bool:
        """Whether one probe, and its answers, serve both."""
        return (self.train, self.test, self.known) == (other.train, other.test, other.known)


def split_clips(
    clips: Sequence[Clip],
    known: Sequence[str],
    *,
    source_ids: Container[str],
    target_ids: Container[str],
    seed: int,
    targets: Sequence[Clip] | None = None,
    paired_ids: Container[str] = (),
    rules: SplitRules | None = None,
) -> OpenSetSplit:
    """Cut one manifest, or a source and a target manifest, into the sets of a task.

    A manifest that names no split is used whole. Under `clean`, validation is the split `val` if it
    has known classes there; else 15 % of each class's training clips, drawn by `seed`. Clips
    without a class are left out. A test clip whose class is not known counts as unknown.

    Args:
        clips: Of the source manifest.
        known: Known classes.
        source_ids: Source clips that have features of the source modality.
        target_ids: Target clips that have features of the target modality.
        seed: For what is held out.
        targets: Clips of the target manifest; None if it is the source manifest.
        paired_ids: Source clips that have features of the target modality.
        rules: Protocol and choice of splits; default: `clean`.

    Raises:
        ManifestError: One of the sets would be empty, or no clip is of a known class.
    """
    rules = rules or SplitRules()
    tested = clips if targets is None else targets
    _check_known(
        known, {*_classes(clips, rules.source_classes), *_classes(tested, rules.target_classes)}
    )
    wanted = set(known)
    labelled = [clip for clip in clips if wanted & {*rules.source_classes(clip)}]
    sources = [clip for clip in labelled if clip.clip_id in source_ids]
    train = of_splits(sources, rules.train_splits, clips)
    candidates = [clip for clip in tested if rules.target_classes(clip)]
    if rules.closed:
        candidates = [clip for clip in candidates if wanted & {*rules.target_classes(clip)}]
    listed = of_splits(candidates, rules.test_splits, tested)
    test = [clip for clip in listed if clip.clip_id in target_ids]
    lacking = {
        "training": len(of_splits(labelled, rules.train_splits, clips)) - len(train),
        "test": len(_unless_seen(listed, rules)) - len(_unless_seen(test, rules)),
    }
    _refuse_empty(clips, rules, {"training": train, "test": test}, lacking)
    if rules.protocol == PAPER:
        split = _as_listed(train, test, known, rules)
    else:
        trained = set(train)
        validation = [c for c in sources if c.split == VALIDATION and c not in trained]
        split = _clean(train, validation, test, known, rules, seed)
    pairs = [clip for clip in clips if clip.clip_id in source_ids and clip.clip_id in paired_ids]
    used = {clip.clip_id for clip in split.train}
    held = {media_item(clip) for clip in (*split.test, *_named_test(tested, rules))}
    unused = [c for c in pairs if c.clip_id not in used and media_item(c) not in held]
    split = replace(
        split,
        lacking=lacking,
        paired=tuple(clip.clip_id for clip in pairs if clip.clip_id in used),
        pairs=tuple(clip.clip_id for clip in unused),
        pairs_of_known=sum(bool(wanted & {*rules.source_classes(clip)}) for clip in unused),
    )
    return _checked(clips, split, rules)


def _clean(
    train: Sequence[Clip],
    validation: Sequence[Clip],
    test: Sequence[Clip],
    known: Sequence[str],
    rules: SplitRules,
    seed: int,
) -> OpenSetSplit:
    """The sets, repaired, and what was left out."""
    told: list[str] = []
    train, validation, test = _deal_shared(
        train, validation, _without_seen(test, rules, told), told
    )
    kept = _learnable(train, test, known, rules, told)
    lost = set(known) - set(kept)
    train, validation = (
        [clip for clip in part if not {*rules.source_classes(clip)} <= lost]
        for part in (train, validation)
    )
    held_out = not validation
    if held_out:
        train, validation = map(list, hold_out(train, seed, classes_of=rules.source_classes))
    return OpenSetSplit(
        train=tuple(train),
        validation=tuple(validation),
        test=tuple(clip for clip in test if not {*rules.target_classes(clip)} <= lost),
        known=kept,
        held_out=held_out,
        note="; ".join(told),
    )


def clips_sha256(clips: Iterable[Clip]) -> str:
    """SHA-256 of the ids of some clips, in whatever order they come."""
    names = sorted(clip.clip_id for clip in clips)
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def of_splits(
    clips: Sequence[Clip], splits: tuple[str, ...] | None, manifest: Sequence[Clip]
) -> list[Clip]:
    """Clips of some splits; all of them if None, or if the manifest names no split."""
    if splits is None or not any(clip.split for clip in manifest):
        return list(clips)
    return [clip for clip in clips if clip.split in splits]


def _as_listed(
    train: Sequence[Clip], test: Sequence[Clip], known: Sequence[str], rules: SplitRules
) -> OpenSetSplit:
    """The sets as `paper` has them, and what leaks in them."""
    leaks: list[str] = []
    trained = {media_item(clip) for clip in train}
    shared = sum(media_item(clip) in trained for clip in test)
    if shared:
        leaks.append(f"test-clips-in-training:{shared}")
    leaks += name_splits(test)
    lost = len(known) - len(_learnable(train, test, known, rules, []))
    if lost:
        leaks.append(f"unusable-classes:{lost}")
    return OpenSetSplit(
        train=tuple(train),
        validation=(),
        test=tuple(test),
        known=tuple(known),
        held_out=False,
        leaks=tuple(leaks),
    )


def name_splits(test: Iterable[Clip]) -> tuple[str, ...]:
    """The leak of test clips that are of another split than `test`."""
    others = sorted({clip.split for clip in test} - {TEST, ""})
    return (f"test-split:{','.join(others)}",) if others else ()


def _unless_seen(test: Sequence[Clip], rules: SplitRules) -> list[Clip]:
    """The clips that a protocol may test: `clean` none that the model was pretrained on."""
    seen = rules.seen if rules.protocol == CLEAN and rules.seen else frozenset()
    return [clip for clip in test if media_item(clip) not in seen]


def _without_seen(test: Sequence[Clip], rules: SplitRules, told: list[str]) -> list[Clip]:
    kept = _unless_seen(test, rules)
    if len(kept) < len(test):
        told.append(f"{len(test) - len(kept)} test clips left out that the model was pretrained on")
    if test and not kept:
        raise ManifestError(
            f"the model was pretrained on all {len(test)} test clips: pretrain without them "
            "(--set data.exclude_ids=FILE), or use --protocol paper"
        )
    return kept


def _deal_shared(
    train: Sequence[Clip], validation: Sequence[Clip], test: Sequence[Clip], told: list[str]
) -> tuple[list[Clip], list[Clip], list[Clip]]:
    """Give every media item that is both trained and tested on to one side.

    Which one is drawn by a hash of its name, the same for every seed and direction.
    """
    shared = {media_item(clip) for clip in (*train, *validation)} & {media_item(c) for c in test}
    to_test = {item for item in shared if hashlib.sha256(item.encode()).digest()[0] % 2}
    if shared:
        told.append(
            f"{len(shared)} media items were in training and test: {len(to_test)} are tested on, "
            "the others trained on"
        )
    return (
        [clip for clip in train if media_item(clip) not in to_test],
        [clip for clip in validation if media_item(clip) not in to_test],
        [clip for clip in test if media_item(clip) not in shared - to_test],
    )


def _learnable(
    train: Iterable[Clip],
    test: Iterable[Clip],
    known: Sequence[str],
    rules: SplitRules,
    told: list[str],
) -> tuple[str, ...]:
    """Known classes that have a training clip and a test clip."""
    trained, tested = _classes(train, rules.source_classes), _classes(test, rules.target_classes)
    lost = [name for name in known if name not in trained or name not in tested]
    if lost:
        told.append(f"classes left out, for want of a training or a test clip: {', '.join(lost)}")
    return tuple(name for name in known if name not in lost)


def _classes(
    clips: Iterable[Clip], classes_of: Callable[[Clip], tuple[str, ...]]
) -> frozenset[str]:
    return frozenset(name for clip in clips for name in classes_of(clip))


def _named_test(clips: Sequence[Clip], rules: SplitRules) -> list[Clip]:
    """Clips that a manifest with splits has for the test, whether they have features or not."""
    return of_splits(clips, rules.test_splits, clips) if any(c.split for c in clips) else []


def _checked(clips: Sequence[Clip], split: OpenSetSplit, rules: SplitRules) -> OpenSetSplit:
    """Refuse a split with an empty set.

    Raises:
        ManifestError: There is one; the message says which splits there are.
    """
    needed = {"training": split.train, "test": split.test}
    if rules.protocol == CLEAN:
        needed["validation"] = split.validation
    _refuse_empty(clips, rules, needed, split.lacking)
    untrained = sorted(set(split.known) - _classes(split.train, rules.source_classes))
    if untrained:
        logger.warning("known classes without a training clip: %s", ", ".join(untrained))
    return split


def check_classes(split: OpenSetSplit, rules: SplitRules) -> OpenSetSplit:
    """Refuse a split of which a probe would learn too few classes, or be tested on none of them.

    Raises:
        ManifestError: It is one; the message says what there is.
    """
    trained, tested = (
        _classes(split.train, rules.source_classes),
        _classes(split.test, rules.target_classes),
    )
    learned = [name for name in split.known if name in trained]
    if len(learned) < rules.fewest_classes:
        raise ManifestError(_tell_few(split, learned, rules))
    if not any(name in tested for name in split.known):
        raise ManifestError(
            f"no test clip is of a known class: {_some(split.known)} are known, the test clips are "
            f"of {_some(sorted(tested))}; see --known, --class-map and --test-splits"
        )
    return split


def _tell_few(split: OpenSetSplit, learned: Sequence[str], rules: SplitRules) -> str:
    """What to say where a probe would learn one class or none."""
    there = f"{learned[0]!r} alone" if learned else "none"
    left = f"; {split.note}" if split.note else ""
    lacking = split.lacking.get("training", 0)
    hint = f"; {lacking} training clips lack features of the source modality" if lacking else ""
    return (
        f"expected training clips of {rules.fewest_classes} or more known classes, got those of "
        f"{there}{left}{hint}; name more classes in --known, or add training and test clips of "
        f"them (split {_spell(rules.train_splits)} and {_spell(rules.test_splits)})"
    )


def _some(names: Sequence[str]) -> str:
    """Names, the first ones of many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _refuse_empty(
    clips: Sequence[Clip],
    rules: SplitRules,
    needed: Mapping[str, Sequence[Clip]],
    lacking: Mapping[str, int],
) -> None:
    for name, chosen in needed.items():
        if not chosen:
            if name == "validation":
                raise ManifestError(
                    "no validation clip: every known class has one training clip or media item, so "
                    "that none can be held out; add training clips, or a split val, or type "
                    "--protocol paper" + _tell_merged(clips)
                )
            if lacking.get(name):
                raise ManifestError(
                    f"no {name} clip: all {lacking[name]} of them in the manifest lack features "
                    f"of the {'target' if name == 'test' else 'source'} modality; extract them "
                    "(micu-extract status FEATURES shows how far each set is)"
                )
            splits = ", ".join(sorted({repr(c.split) for c in clips if rules.source_classes(c)}))
            raise ManifestError(
                f"no {name} clip. There must be clips with a class and features for training "
                f"(known classes, source modality, split {_spell(rules.train_splits)}) and for "
                f"the test (target modality, split {_spell(rules.test_splits)}); the manifest's "
                f"labelled rows have {splits or 'no label'}; see --train-splits and --test-splits"
                + _meant(name, rules, {clip.split for clip in clips})
                + (_tell_merged(clips) if rules.protocol == CLEAN else "")
            )


def _meant(name: str, rules: SplitRules, there: Collection[str]) -> str:
    """Which splits may have been meant, as an option."""
    asked = rules.test_splits if name == "test" else rules.train_splits
    meant = [closest(split, there) for split in asked or () if split not in there]
    option = "--test-splits" if name == "test" else "--train-splits"
    return f" (did you mean {option} {','.join(meant)}?)" if meant and all(meant) else ""


def _tell_merged(clips: Sequence[Clip]) -> str:
    """How many clips count as parts of one media item, by their ids."""
    items: dict[str, set[str]] = {}
    for clip in clips:
        items.setdefault(media_item(clip), set()).add(clip.group)
    merged = {item: groups for item, groups in items.items() if len(groups) > 1}
    if not merged:
        return ""
    count = sum(map(len, merged.values()))
    return (
        f"; {count} ids are taken for parts of {len(merged)} YouTube videos or UCF101 recordings, "
        f"the first {next(iter(merged))!r}, and stay on one side: if they are not, give the rows a "
        "group of another form"
    )


def _spell(splits: tuple[str, ...] | None) -> str:
    return "any" if splits is None else " or ".join(map(repr, splits))


def _check_known(known: Sequence[str], labels: Collection[str]) -> None:
    """Refuse known classes that no manifest has: a name that was mistyped.

    Raises:
        ManifestError: There is one; all of them are named.
    """
    foreign = [name for name in known if name not in labels]
    if known and not labels:
        raise ManifestError(
            "no clip of the manifest has a class: expected some in its column label, or, with "
            "--localise, events; write them into it, and extract again under the new manifest's "
            "name"
        )
    if foreign:
        told = [f"  {name!r}; {suggest(name, labels)}" for name in foreign[:LISTED]]
        more = len(foreign) - LISTED
        raise ManifestError(
            "\n".join(
                (
                    "--known: no clip of the manifest is of class",
                    *told,
                    *([f"  and {more} more"] if more > 0 else []),
                )
            )
        )


def hold_out(
    clips: Sequence[Clip],
    seed: int,
    classes_of: Callable[[Clip], tuple[str, ...]] = label_of,
) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """Split clips class by class: what stays, and what is held out.

    Of every class with two media items or more, at least one is held out and at least one stays. A
    clip with several classes counts for the first.
    """
    random = np.random.default_rng(seed)
    members: dict[str, set[str]] = {}
    for clip in clips:
        members.setdefault(classes_of(clip)[0], set()).add(media_item(clip))
    held: set[str] = set()
    for _, unsorted in sorted(members.items()):
        items = sorted(unsorted)
        count = min(max(1, round(HELD_OUT * len(items))), len(items) - 1)
        held.update(items[i] for i in random.permutation(len(items))[:count])
    stays = tuple(clip for clip in clips if media_item(clip) not in held)
    return stays, tuple(clip for clip in clips if media_item(clip) in held)


def read_class_map(path: Path) -> dict[str, str]:
    """Read the names that one class has in two data sets.

    Args:
        path: A CSV file, whose first two columns are read; the first of them is `label`.

    Returns:
        Each name of the second column that differs → its `label`, by which both go from here on.

    Raises:
        ManifestError: The file is missing, empty, or has a name twice.
    """
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such class map; expected a CSV file whose first two columns are label and "
            "the other name"
        )
    try:
        text = read_bytes(path).decode("utf-8-sig")
        header, *lines = [*csv.reader(io.StringIO(text, newline=""), strict=True)] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: not a CSV file in UTF-8: {error}") from error
    if len(header) < 2 or header[0].strip() != "label" or not lines:
        raise ManifestError(
            f"{path}: expected the column label, one of other names and at least one row, got "
            f"{', '.join(header) or 'nothing'} and {len(lines)} rows"
        )
    seen: dict[str, int] = {}
    renamed: dict[str, str] = {}
    for number, line in enumerate(lines, 2):
        name, other = (*(text.strip() for text in line), "", "")[:2]
        for text in dict.fromkeys((name, other)):
            if not text:
                raise ManifestError(f"{path}: line {number}: a name is empty")
            if text in seen:
                raise ManifestError(f"{path}: line {number} repeats {text!r} of line {seen[text]}")
            seen[text] = number
        if other != name:
            renamed[other] = name
    return renamed
