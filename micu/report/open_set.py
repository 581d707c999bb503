"""The part of a report that looks behind the open-set figures, one pair of modalities at a time."""

from collections.abc import Sequence

from micu.evaluate.details import Details
from micu.evaluate.thresholds import ON_TEST
from micu.report.compare import MODEL, short_preset
from micu.report.figures import (
    draw_acceptance,
    draw_confusion,
    draw_map,
    draw_thresholds,
    has_tsne,
)
from micu.report.page import Block, Drawings, Fold, Section, Title
from micu.report.paper import direction_of

CEILING = "ceiling"
SHARED = ("setting", "task", "train_modality", "test_modality", "protocol", "threshold_source")
"""What the methods of one job have in common, beside the score and what is being classified."""


def open_set_section(found: Sequence[Details], map_method: str) -> Section:
    """Curves, confusion and map of every job that has details; oracles are folded."""
    jobs: dict[tuple[str, ...], list[Details]] = {}
    ceilings = [details for details in found if details.keys.get("method") == CEILING]
    for details in found:
        if details.keys.get("method") != CEILING:
            jobs.setdefault(_job(details), []).append(details)
    blocks: list[Block] = []
    placed: set[str] = set()
    mapped: set[tuple[str, ...]] = set()
    for members in sorted(jobs.values(), key=_order):
        main = min(members, key=_rank)
        methods = _by_method([main, *members, *(c for c in ceilings if _same_target(c, main))])
        keys = main.keys
        heading = " · ".join(filter(None, (*_names(main), f"seed {keys.get('seed', '')}")))
        drawn = [
            draw_thresholds(main),
            *draw_acceptance(methods),
            draw_confusion(main),
        ]
        names = (*SHARED[:4], "classes_sha256")
        pair = (*(keys.get(name, "") for name in names), _label(main))
        if pair not in mapped and len(main.mapped.embedding):
            mapped.add(pair)
            maps, used = draw_map(main, map_method)
            drawn += maps
            placed.add(used)
        told = f"Thresholds, confusion and map: {_label(main)}."
        body: list[Block] = [Drawings(drawn, told)]
        blocks += [Fold(heading, body)] if _looks_at_the_test(main) else [Title(heading), *body]
    if placed:
        blocks.insert(0, Drawings((), _tell_maps(placed)))
    return Section("Behind the open-set figures", blocks)


def _tell_maps(placed: set[str]) -> str:
    told = f"Maps place clips by {' and '.join(sorted(placed))}, of the mean over their real steps"
    if "t-SNE" in placed:
        return f"{told}; t-SNE keeps neighbourhoods, not distances."
    hint = "" if has_tsne() else " With scikit-learn (pip install 'micu[report]') it is t-SNE."
    return f"{told}.{hint}"


def _job(details: Details) -> tuple[str, ...]:
    names = (*SHARED, "score", "classes_sha256", "manifest_sha256")
    return (*(details.keys.get(name, "") for name in names), *sorted(details.clip_ids))


def _same_target(ceiling: Details, main: Details) -> bool:
    """Whether a probe that was trained on the target itself was tested on the same clips."""
    free = ("train_modality", "probe", "features")
    names = [name for name in (*SHARED, "score", "classes_sha256") if name not in free]
    return all(ceiling.keys.get(name) == main.keys.get(name) for name in names)


def _looks_at_the_test(details: Details) -> bool:
    """Whether the threshold was chosen on the test set; other leaks do not fold a job away."""
    return details.keys.get("threshold_source") in ON_TEST


def _order(members: Sequence[Details]) -> tuple[object, ...]:
    first = members[0]
    return (_looks_at_the_test(first), not first.keys.get("setting"), _job(first))


def _rank(details: Details) -> tuple[object, ...]:
    """The model before what it is compared with, and the lowest seed."""
    seed = details.keys.get("seed", "")
    return (details.keys.get("method") != MODEL, len(seed), seed)


def _by_method(members: Sequence[Details]) -> dict[str, Details]:
    """One outcome for each method: the first one."""
    chosen: dict[str, Details] = {}
    for details in members:
        chosen.setdefault(_label(details), details)
    main = members[0]
    return {
        name
        if sorted(details.clip_ids) == sorted(main.clip_ids)
        else f"{name} (on {len(details.clip_ids)} other clips)": details
        for name, details in chosen.items()
    }


def _label(details: Details) -> str:
    """A method as legends name it; the model by its preset."""
    method = details.keys.get("method", "")
    preset = short_preset(details.keys.get("preset", ""))
    return (preset or method) if method == MODEL else method


def _names(details: Details) -> tuple[str, ...]:
    keys = details.keys
    pair = direction_of(keys.get("train_modality", ""), keys.get("test_modality", ""))
    source = keys.get("threshold_source", "")
    words = (keys.get("setting", ""), pair.replace("->", " → "), keys.get("protocol", ""), source)
    return (*words, keys.get("score", ""), f"{len(details.classes)} known")
