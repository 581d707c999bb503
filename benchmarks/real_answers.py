"""What a probe of a trained run answers, clip by clip: what the studies are made from.

The probe, its clips and its epoch are those of `micu-eval oscmg --protocol clean`; a test compares
the figures. Beside the test clips it answers on validation clips and, in both modalities, on
unlabelled pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.real_methods import Place
from benchmarks.real_runs import PROBE, Run
from micu.cli.features import find_feature_sets
from micu.evaluate.encoders import CodeEncoder
from micu.evaluate.metrics import Floats, Ints
from micu.evaluate.probe import ProbeConfig, predict
from micu.evaluate.splits import SplitRules, split_clips
from micu.evaluate.thresholds import choose_epoch
from micu.library.clips import write_npz
from micu.store.manifest import read_class_list, read_manifest
from micu.train.checkpoint import load_checkpoint

Pair = tuple[str, str]
"""Source and target modality."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Logits of one probe, over the C known classes."""

    validation: Floats
    """Of known validation clips in the source modality, (n, C)."""
    validation_target: Floats
    """Of the same clips in the target modality, (n, C)."""
    validation_labels: Ints
    """(n,)"""
    test: Floats
    """Of all test clips in the target modality, (m, C)."""
    test_labels: Ints
    """(m,), class or -1."""
    test_ids: NDArray[np.str_]
    """(m,)"""
    pairs_source: Floats
    """Of unlabelled pairs, (k, C)."""
    pairs_target: Floats
    """(k, C)"""


def answers_of(place: Place, run: Run, known: int) -> Mapping[Pair, Answers]:
    """The answers of one run and class split, for every pair of modalities; kept in its folder."""
    path = run.folder(place) / f"answers-{known}.npz"
    if not path.is_file():
        found = _answer(place, run, known)
        write_npz(
            path,
            {
                f"{source}:{target}:{field.name}": np.asarray(getattr(answers, field.name))
                for (source, target), answers in found.items()
                for field in fields(Answers)
            },
        )
    return read_answers(path)


def read_answers(path: Path) -> Mapping[Pair, Answers]:
    """Read a file of `answers_of`."""
    parts: dict[Pair, dict[str, NDArray]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            source, target, name = key.split(":")
            parts.setdefault((source, target), {})[name] = arrays[key]
    return {pair: Answers(**found) for pair, found in parts.items()}


def _answer(place: Place, run: Run, known: int) -> Mapping[Pair, Answers]:
    torch.set_num_threads(1)
    data = run.data
    loaded = load_checkpoint(run.folder(place) / "last.pt")
    clips = read_manifest(place.manifest(data)).clips
    stores = find_feature_sets(place.features, data.modalities, place.manifest(data), {}).stores
    encoder = CodeEncoder("checkpoint", loaded.model, stores, clips)
    config = ProbeConfig(learning_rate=float(PROBE[1]))
    found: dict[Pair, Answers] = {}
    for source in data.modalities:
        targets = [target for one, target in data.pairs if one == source]
        splits = {
            target: split_clips(
                clips,
                read_class_list(place.known(data, known)),
                source_ids=stores[source],
                target_ids=stores[target],
                paired_ids=stores[target],
                seed=run.seed,
                rules=SplitRules(),
            )
            for target in targets
        }
        split = splits[targets[0]]
        ids = {
            "validation": [clip.clip_id for clip in split.validation],
            "pairs": [*split.pairs],
            "test": [clip.clip_id for clip in split.test],
        }
        wanted = {("validation", source): ids["validation"], ("pairs", source): ids["pairs"]}
        wanted |= {(part, target): ids[part] for part in ids for target in targets}
        features = {key: encoder.encode(key[1], names) for key, names in wanted.items()}
        labels = torch.from_numpy(split.labels(split.train))
        train = encoder.encode(source, [clip.clip_id for clip in split.train])
        answered = [
            {key: predict(probe, part).logits for key, part in features.items()}
            for probe in encoder.train_probe(train, labels, len(split.known), config, run.seed)
        ]
        tested, checked = split.labels(split.test), split.labels(split.validation)
        best = answered[choose_epoch([one["validation", source] for one in answered], checked)]
        for target in targets:
            found[source, target] = Answers(
                validation=best["validation", source],
                validation_target=best["validation", target],
                validation_labels=checked,
                test=best["test", target],
                test_labels=tested,
                test_ids=np.array(ids["test"]),
                pairs_source=best["pairs", source],
                pairs_target=best["pairs", target],
            )
    return found
