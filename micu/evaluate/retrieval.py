"""Task `retrieval`: cross-modal retrieval without training (table 4 of the paper).

A clip's embedding in a modality is the mean over its real steps of the quantised vectors, as the
evaluation computes them; similarity is the cosine. Rows of one group are about one item: it is
found by any of its captions, and each of them is a query of its own.

Source: section 4.2 of the paper, which names the data sets and R@K.
Differs: the authors' script is lost, so embedding and averaging of directions are ours. Their list
of MSCOCO has one caption for each picture, and so has protocol `paper` in that setting; how many
pictures they took is not known: all figures are multiples of 0.1 %, as of 500 or 1,000 (`--items`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from micu.base.errors import ConfigError, ManifestError
from micu.data.dataset import TEXT
from micu.evaluate.encoders import FeatureEncoder, check_same_space, encode_real
from micu.evaluate.evaluation import TASKS, Evaluation, is_pretrained, make_row
from micu.evaluate.metrics import Floats, retrieval_recall
from micu.evaluate.report import Row
from micu.evaluate.splits import (
    CLEAN,
    PAPER,
    TEST,
    clips_sha256,
    name_splits,
    of_splits,
    parse_splits,
)
from micu.store.manifest import MODALITIES, Clip

RANKS = (1, 5, 10)
ONE_CAPTION = ("mscoco",)
"""Settings in which every item of the published list has one caption."""


@TASKS.register("retrieval")
def evaluate_retrieval(evaluation: Evaluation) -> list[Row]:
    """Recall at 1, 5 and 10 in both directions, and the mean of both.

    Raises:
        ConfigError: No pair of modalities was given.
        ManifestError: No item is left.
    """
    if not evaluation.pairs:
        raise ConfigError("retrieval needs --source and --target, or --pairs v:t")
    rows: list[Row] = []
    for source, target in dict.fromkeys(map(_in_order, evaluation.pairs)):
        methods = [*evaluation.encoders, *(["chance"] if evaluation.chance else [])]
        for name in methods:
            rows += evaluation.each_protocol(
                lambda protocol, n=name, s=source, t=target: _rows(evaluation, protocol, n, s, t)  # type: ignore[misc]
            )
    return rows


def _in_order(pair: tuple[str, str]) -> tuple[str, str]:
    """Both directions are evaluated, so that either pair stands for both; captions come second."""
    first, second = sorted(pair, key=MODALITIES.index)
    return first, second


def _rows(evaluation: Evaluation, protocol: str, name: str, source: str, target: str) -> list[Row]:
    chosen = choose_items(evaluation, protocol, source, target)
    items, captions = chosen.items, chosen.captions
    owner = {clip.group: number for number, clip in enumerate(items)}
    owners = np.array([owner[clip.group] for clip in captions])
    if name == "chance":
        found = retrieval_recall(
            np.ones((len(items), 1)), np.ones((len(captions), 1)), owners, RANKS
        )
    else:
        encoder = evaluation.source.encoders[name]
        told = f"{name} {source} ↔ {target}, {protocol}: {len(items)} items, "
        rest = f"; {chosen.lacking} more clips lack features" if chosen.lacking else ""
        evaluation.tell(f"{told}{len(captions)} captions{rest}")
        check_same_space(encoder, source, encoder, target)
        found = retrieval_recall(
            mean_embedding(encoder, source, items),
            mean_embedding(encoder, target, captions),
            owners,
            RANKS,
        )
    values: list[tuple[str, str, str, float]] = []
    for rank in RANKS:
        forth, back = found[f"r{rank}_items_to_captions"], found[f"r{rank}_captions_to_items"]
        values += [
            (source, target, f"r{rank}", forth),
            (target, source, f"r{rank}", back),
            (source, target, f"r{rank}_mean", (forth + back) / 2),
        ]
    trivial = [
        f"R@{rank} among {size} is 1 whatever is compared"
        for size in sorted({len(items), len(captions)})
        for rank in RANKS
        if rank >= size
    ]
    if trivial:
        evaluation.tell_once(f"{protocol}: {'; '.join(trivial)}")
    note = f"{len(items)} items, {len(captions)} captions; a tie counts with its chance"
    tested = dict.fromkeys((*items, *captions))  # a row may be an item and its caption
    pretrained = evaluation.pretraining.leaks(tested) if is_pretrained(name) else ()
    return [
        make_row(
            evaluation,
            task="retrieval",
            protocol=protocol,
            method=name,
            train=query,
            test=gallery,
            threshold_source="none",
            metric=metric,
            value=value,
            n_clips=len(items) if query == source else len(captions),
            n_lacking=chosen.lacking,
            test_sha256=clips_sha256(tested),
            features=(source, target),
            measured_with=f"items:{evaluation.items}" if evaluation.items else "",
            leaks=";".join((*name_splits(tested), *pretrained)),
            note="; ".join((note, *trivial)),
        )
        for query, gallery, metric, value in values
    ]


@dataclass(frozen=True, slots=True)
class Gallery:
    """What is looked for, and by what."""

    items: tuple[Clip, ...]
    """One clip per item."""
    captions: tuple[Clip, ...]
    """Every caption of these items."""
    lacking: int
    """Clips that would be one or the other, but lack features."""


def choose_items(evaluation: Evaluation, protocol: str, source: str, target: str) -> Gallery:
    """One clip per item, and every caption of these items, in manifest order.

    Clips are of the split `test` (or those asked for; all, if the manifest names no split). With
    `--items` the first so many items stay.

    Raises:
        ManifestError: There are none.
    """
    side = evaluation.source
    asked = parse_splits(evaluation.test_splits)
    asked = (TEST,) if asked == () else asked
    clips: Sequence[Clip] = of_splits(side.clips, asked, side.clips)
    if protocol == CLEAN:
        clips = evaluation.pretraining.unseen(clips)
    lacking = sum(
        (not clip.is_caption and clip.clip_id not in side.stores[source])
        or (_can_be(clip, target) and clip.clip_id not in side.stores[target])
        for clip in clips
    )
    captions = [clip for clip in clips if clip.clip_id in side.stores[target]]
    captioned = {clip.group for clip in captions}
    items: dict[str, Clip] = {}
    for clip in clips:
        if clip.clip_id in side.stores[source] and clip.group in captioned:
            items.setdefault(clip.group, clip)
    if not items:
        raise ManifestError(
            f"retrieval: no item with {source} and {target} features among {len(clips)} clips "
            f"(under {protocol}), {lacking} of which lack features; extract them, or see "
            "--test-splits"
        )
    if evaluation.items is not None:
        if len(items) < evaluation.items:
            raise ManifestError(
                f"--items {evaluation.items}: under {protocol} there are only {len(items)} with "
                f"{source} and {target} features; ask for no more, or leave it out for all"
            )
        items = dict(itertools.islice(items.items(), evaluation.items))
    chosen = [clip for clip in captions if clip.group in items]
    if protocol == PAPER and evaluation.setting in ONE_CAPTION:
        chosen = list({clip.group: clip for clip in reversed(chosen)}.values())[::-1]
    return Gallery(tuple(items.values()), tuple(chosen), lacking)


def _can_be(clip: Clip, modality: str) -> bool:
    """Whether the manifest has what a clip's features of a modality are made of."""
    return bool(clip.text) if modality == TEXT else not clip.is_caption


def mean_embedding(encoder: FeatureEncoder, modality: str, clips: Sequence[Clip]) -> Floats:
    """Mean of each clip's features over its real steps, (n, D)."""
    features = encode_real(encoder, modality, [clip.clip_id for clip in clips])
    result: Floats = features.mean().double().cpu().numpy()
    return result
