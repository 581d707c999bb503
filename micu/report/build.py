"""What a report shows, part by part, from the material that was found."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from micu.evaluate.markdown import TextTable
from micu.evaluate.report import Row
from micu.evaluate.splits import CLEAN
from micu.report.compare import (
    MODEL,
    Line,
    compare,
    grouped,
    name_lists,
    short_preset,
    tabulate_lines,
)
from micu.report.drawings import COLOURS, GREY, Bar, draw_bars
from micu.report.figures import draw_codebook, draw_training
from micu.report.open_set import open_set_section
from micu.report.page import Block, Code, Drawings, Fold, Section, Title, render_html
from micu.report.paper import SETTINGS, TABLES, read_printed
from micu.report.read import Material
from micu.report.remarks import tell_presets, tell_remarks
from micu.report.summary import lead_blocks, model_name, summary_blocks
from micu.store.shard import Header

EXTRA_METRICS = {
    "oscmg": ("acc", "auroc", "oscr"),
    "cmg": ("acc_class_mean", "f1_micro", "precision", "recall"),
}
"""Shown beside those of the paper's tables, by task; the CSV has all."""

LEAKS = {
    "threshold": "the threshold was chosen on the test set",
    "epoch": "the probe's epoch was chosen on the test set",
    "checkpoint": "the checkpoint was chosen on the test set",
    "test-clips-in-training": "so many test clips are of media that the probe was trained on",
    "test-split": "tested on that split of the manifest, not on its test split",
    "unusable-classes": "so many known classes have no training or no test clip",
    "pretraining-overlap": "so many test clips are of media that the model was pretrained on",
    "pretraining-text": "the sentences of the pretraining say the class",
}
"""What the names in "rests on" mean, up to their colon."""

BLIND, ON_TEST = COLOURS[0], GREY
"""Colours of bars, by whether anything was chosen on the test set."""

PAPER_SCORES = ("", "msp")
"""What the paper lays its thresholds on; older files do not say."""

OWN = "your data"
ELSEWHERE = "Tested on another split than test"
LISTED = 20
"""Failures that are listed one by one for each feature set."""


def title_of(material: Material) -> str:
    """Model, data set and date of what a report is about: `MICU on AVE, 14 of 28…, 2025-10-19`."""
    own = [row for row in material.results if row.method == MODEL]
    models = dict.fromkeys(model_name(row.preset) for row in own)
    times = [Path(name).stat().st_mtime for name in material.sources] or [time.time()]
    day = date.fromtimestamp(max(times)).isoformat()
    data = _few(_data_sets(material))
    return f"{_few(models) or 'Results'}{data and f' on {data}'}, {day}"


def _data_sets(material: Material) -> list[str]:
    """Settings of the paper as they are told; else the manifests that features were made of."""
    settings = dict.fromkeys(row.setting for row in material.results if row.setting)
    told = [SETTINGS[name].told if name in SETTINGS else name for name in settings]
    return told or _manifests(material)


def _manifests(material: Material) -> list[str]:
    """Names of the manifests that the features were made of, by their folders."""
    return list(dict.fromkeys(Path(name).parent.name for name in material.sets))


def _few(names: Iterable[str]) -> str:
    """At most two names, and how many more there are."""
    found = [*filter(None, names)]
    return ", ".join(found[:2]) + (f" and {len(found) - 2} more" if len(found) > 2 else "")


def build_report(material: Material, map_method: str = "auto") -> list[Section]:
    """Every part of a report, empty ones included.

    Args:
        material: What was found.
        map_method: How clips are placed in the plane, see `micu.report.figures`.
    """
    elsewhere = [row for row in material.results if row.other_split]
    lines = compare([row for row in material.results if not row.other_split])
    # The codebook has a part of its own.
    own = [line for line in lines if line.of.setting not in SETTINGS and line.of.task != "codebook"]
    commands = dict.fromkeys(command.line for command in material.commands)
    return [
        Section("", lead_blocks(material.results)),
        Section("Summary", summary_blocks(material.results)),
        Section(f"Results on {_few(_manifests(material)) or OWN}", _tables(own, "Task {}")),
        Section("Overview", _overview(material, lines)),
        *_paper_sections(lines),
        Section(ELSEWHERE, _tables(compare(elsewhere), "Task {}, tested on split {}, not on test")),
        open_set_section(list(material.details.values()), map_method),
        Section("Codebook", _codebooks(material)),
        Section("Training", _trainings(material)),
        Section("Failures", _failures(material)),
        Section("Provenance", _provenance(material)),
        Section("Commands", [Code("\n".join(commands))] if commands else []),
    ]


def render_rows(rows: Iterable[Row]) -> str:
    """A page about rows alone, without what lies beside a results file."""
    material = Material(results=list(rows))
    return render_html(title_of(material), build_report(material))


# --- beside the paper ------------------------------------------------------------------------


def _overview(material: Material, lines: Sequence[Line]) -> list[Block]:
    compared = [line for line in lines if line.table]
    blocks: list[Block] = [
        f"{len(material.results)} figures of {len(lines)} jobs; {len(compared)} jobs have figures "
        "of the paper beside them.",
    ]
    key = {"blind to the test set": BLIND, "threshold, epoch or checkpoint chosen on it": ON_TEST}
    with_hos = [line for line in compared if "hos" in line.cells]
    charts = [
        draw_bars(
            f"HOS, {setting}: ours (bar) and the paper's (mark), %",
            "Bars are ours, marks the paper's.",
            _bars(found),
            "paper",
            key,
        )
        for setting, found in grouped(with_hos, lambda line: line.of.setting).items()
    ]
    blocks += [Drawings(charts)] if charts else []
    blocks += _tell_leaks(lines)
    if material.skipped:
        blocks.append(f"Not read: {'; '.join(material.skipped)}")
    return blocks


def _bars(lines: Sequence[Line]) -> list[Bar]:
    """Label, HOS of ours and of the paper, colour; scores of ours only where a job has no `msp`."""
    found = [
        (line, cell, cell.printed)
        for line in lines
        if (cell := line.cells.get("hos")) and cell.printed
    ]
    as_printed = {_but_score(line) for line, *_ in found if line.of.score in PAPER_SCORES}
    drawn = [
        bar
        for bar in found
        if bar[0].of.score in PAPER_SCORES or _but_score(bar[0]) not in as_printed
    ]
    known = name_lists(line.of.known_list() for line, *_ in drawn)
    several = len(set(known.values())) > 1
    labels = [
        _label(line) + (f", {known[line.of.known_list()] or 'all'} known" if several else "")
        for line, *_ in drawn
    ]
    bars = []
    for label, (line, cell, printed) in zip(labels, drawn, strict=True):
        twin = f" {line.of.checkpoint_sha256[:12]}" if labels.count(label) > 1 else ""
        if sum(_twin(line) == _twin(other) for other, *_ in drawn) > 1:
            twin += f" clips {line.of.test_sha256[:8] or '?'}"
        colour = ON_TEST if line.is_chosen_on_test else BLIND
        bars.append((label + twin, cell.mean, printed.number / 100, colour))
    return bars


def _twin(line: Line) -> tuple[str, ...]:
    """What bars of one place, over other clips, have in common."""
    return (*_but_score(line), line.of.score)


def _but_score(line: Line) -> tuple[str, ...]:
    row = line.of
    names = (line.direction, row.preset, row.checkpoint_sha256, *row.known_list())
    return (*names, row.protocol, row.threshold_source)


def _label(line: Line) -> str:
    """What is evaluated, and below it how."""
    row = line.of
    direction = line.direction.replace("<->", "↔").replace("->", "→")
    return f"{direction} {short_preset(row.preset)}\n{_told_how(row)}"


def _told_how(row: Row) -> str:
    """Protocol, threshold, and the score if it is not the paper's."""
    score = "" if row.score in PAPER_SCORES else row.score
    return " ".join(filter(None, (row.protocol, row.threshold_source.replace("none", ""), score)))


def _tell_leaks(lines: Sequence[Line]) -> list[str]:
    """What the leaks that lines name mean."""
    names = dict.fromkeys(
        leak.partition(":")[0] for line in lines for leak in line.of.leaks.split(";")
    )
    told = "; ".join(f"{name}: {LEAKS[name]}" for name in names if name in LEAKS)
    return [f"Leaks named here. {told}."] if told else []


def _paper_sections(lines: Sequence[Line]) -> list[Section]:
    """One part per table of the paper that has lines of ours."""
    known = [line for line in lines if line.of.setting in SETTINGS]
    first = {figure.setting: figure.table for figure in reversed(read_printed())}
    by_table = grouped(known, lambda line: line.table or first[line.of.setting])
    sections = []
    for number, found in sorted(by_table.items()):
        metrics = list(dict.fromkeys(f.metric for f in read_printed() if f.table == number))
        extra = EXTRA_METRICS.get(found[0].of.task, ())
        table = tabulate_lines(found, ["hos", *metrics, *extra])
        notes = [*_means(found, number), *tell_remarks(found)]
        rests = [
            f"{name} ({SETTINGS[name].told}): {'; '.join(SETTINGS[name].rests_on)}."
            for name in dict.fromkeys(line.of.setting for line in found)
        ]
        fold = Fold("What the paper's figures rest on", rests)
        sections.append(Section(f"Table {number}: {TABLES[number]}", [table, *notes, fold]))
    return sections


def _means(lines: Sequence[Line], number: int) -> list[str]:
    """Means over all columns of a table, where every one of them is there."""

    def key(line: Line) -> tuple[str, ...]:
        row = line.of
        method = (row.preset, row.checkpoint_sha256)
        return (*method, row.protocol, row.threshold_source, row.score)

    own = [line for line in lines if line.table == number and line.of.method == MODEL]
    texts = []
    for group in grouped(own, key).values():
        cells = [
            (line.cells[name], line.cells[name].printed)
            for line in group
            for name in ("hos", "acc", "f1", "r1")
            if name in line.cells and line.cells[name].printed
        ]
        methods = {printed.method for _, printed in cells if printed}
        columns = {
            (figure.setting, figure.direction)
            for figure in read_printed()
            if figure.table == number and figure.method in methods
        }
        if len(methods) == 1 and len(cells) == len(columns) > 1:
            ours = sum(100 * cell.mean for cell, _ in cells) / len(cells)
            theirs = sum(printed.number for _, printed in cells if printed) / len(cells)
            first = group[0].of
            how = _told_how(first)
            difference = f"{ours - theirs:+.2f}".replace("-", "−")
            texts.append(
                f"Mean over all {len(cells)} columns, {short_preset(first.preset)}, {how}: ours "
                f"{ours:.2f}, the paper's {theirs:.2f} ({difference})."
            )
    return texts


def _tables(lines: Sequence[Line], title: str) -> list[Block]:
    """A table for each task and split that is tested; the title has a place for both."""
    jobs = grouped(lines, lambda line: (line.of.task, line.of.other_split))
    return [
        block
        for (task, split), found in jobs.items()
        for block in _table_of(title.format(task, split), found)
    ]


def _table_of(title: str, lines: Sequence[Line]) -> list[Block]:
    """The lines of one task."""
    task = lines[0].of.task
    metrics = list(dict.fromkeys(name for line in lines for name in line.cells))
    few = ["hos", "os_star", "unk", *EXTRA_METRICS[task]] if task == "oscmg" else metrics
    return [Title(title), tabulate_lines(lines, few), *tell_remarks(lines)]


# --- codebook, training, failures, provenance --------------------------------------------------


def _codebooks(material: Material) -> list[Block]:
    lines = [line for line in compare(material.results) if line.of.task == "codebook"]
    blocks: list[Block] = []
    if lines:
        metrics = list(dict.fromkeys(name for line in lines for name in line.cells))
        lines.sort(key=lambda line: line.of.protocol != CLEAN)
        blocks.append(replace(tabulate_lines(lines, metrics), caption=CODES))
    for name, use in sorted(material.codebooks.items(), key=lambda one: one[1].protocol != CLEAN):
        told = f"{name} (protocol {use.protocol})" if use.protocol else name
        blocks += [Title(told), Drawings(draw_codebook(use))]
    return blocks


CODES = (
    "How modalities use the codes. clean counts clips that the model was not pretrained on, and is "
    "what to go by; protocol paper counts those as well. agreement: share of steps at which two "
    "modalities of one clip chose the same code, in percent; used_by_all: share of the codes that "
    "every modality chose at least once."
)
LOSSES = ("total", "fine", "coarse", "jigsaw", "reconstruction", "commitment")
NOT_LOSSES = (
    *("step", "epoch", "batch", "learning_rate", "active_codes", "shared_codes", "skipped"),
    *("clips", "clips_per_s"),
)


def _trainings(material: Material) -> list[Block]:
    blocks: list[Block] = []
    for name, columns in material.trainings.items():
        if not columns.get("step"):
            continue
        others = [
            column
            for column in columns
            if column not in (*LOSSES, *NOT_LOSSES)
            and not column.startswith(("grad_norm_", "perplexity_"))
        ]
        terms = [term for term in (*LOSSES, *others) if term in columns]
        last = f"{int(columns['step'][-1])} steps"
        blocks += [Title(f"{name}: {last}"), Drawings(draw_training(columns, terms))]
    return blocks


def _failures(material: Material) -> list[Block]:
    if not material.sets:
        return []
    total = sum(map(len, material.failures.values()))
    blocks: list[Block] = [
        f"{total} clips of {len(material.sets)} feature sets failed, and are in their ledgers."
    ]
    for name, failures in material.failures.items():
        counts = Counter(failure.code for failure in failures)
        told = ", ".join(f"{code} {count}" for code, count in counts.most_common())
        rows = [(f.clip_id, f.stage, f.code, f.message) for f in failures[:LISTED]]
        told_of = f"Clips of {name} without features, and why."
        table = TextTable((("clip", "stage", "code", "message"), *rows), told_of)
        first = f", the first {LISTED}" if len(failures) > LISTED else ""
        blocks.append(Fold(f"{name}: {told}{first}", [table]))
    return blocks


def _provenance(material: Material) -> list[Block]:
    """Hashes and seeds of the results, and what the feature sets are."""
    groups: dict[tuple[str, ...], set[str]] = {}
    for row in material.results:
        size, name, digest = row.known_list()
        known = " ".join(filter(None, (size, name, digest[:12])))
        hashes = (row.checkpoint_sha256, row.manifest_sha256)
        features = " ".join(sorted(row.features.split()))
        key = (row.method, short_preset(row.preset), *map(_short, hashes), known, features)
        groups.setdefault(key, set()).add("" if row.seed is None else str(row.seed))
    header = ("method", "preset", "checkpoint", "manifest", "known classes", "features", "seeds")
    rows = [(*key, ", ".join(sorted(seeds))) for key, seeds in groups.items()]
    changed = tell_presets(row.preset for row in material.results)
    blocks: list[Block] = [
        f"Read from {', '.join(material.sources)}.",
        TextTable(
            (header, *rows), "What was evaluated: SHA-256 of each file, its first 12 digits."
        ),
        *changed,
    ]
    if material.sets:
        blocks.append(_sets_table(material.sets))
    versions = dict.fromkeys(_versions(command.versions) for command in material.commands)
    blocks += [f"Evaluated with {text}." for text in versions]
    return blocks


def _short(hashes: str) -> str:
    """The first digits of one SHA-256, or of several."""
    return " ".join(digest[:12] for digest in hashes.split())


def _sets_table(sets: Mapping[str, Header]) -> TextTable:
    header = ("features", "steps", "weights", "weights' SHA-256", "fingerprint", "versions")
    rows = [
        (
            name,
            f"(T, {', '.join(map(str, made.spec.shape))})",
            made.spec.weights,
            made.spec.weights_sha256[:12],
            made.spec.making[:12],
            _versions(made.spec.versions),
        )
        for name, made in sets.items()
    ]
    return TextTable((header, *rows), "The feature sets: the shape of a step, and what made them.")


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
