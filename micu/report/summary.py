"""What a report begins with: one sentence, one chart, and of each method one line of a table.

Each figure is a mean over all pairs of modalities.
"""

import hashlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from micu.evaluate.columns import COLUMN_TITLES
from micu.evaluate.markdown import TextTable
from micu.evaluate.report import Row
from micu.evaluate.splits import CLEAN, DIAGNOSTIC, PAPER
from micu.evaluate.thresholds import ORACLE, SOURCE_VAL
from micu.report.compare import (
    MODEL,
    TITLES,
    Cell,
    grouped,
    name_lists,
    shares_seeds,
    short_preset,
    show_column,
    show_mean,
    spell_range,
    tell_apart,
)
from micu.report.drawings import COLOURS, GREY, draw_bars
from micu.report.page import Block, Drawings, Title
from micu.report.paper import direction_of, paper_method
from micu.report.remarks import tell_presets

MAIN = {
    "oscmg": ("hos", "auroc"),
    "cmg": ("acc", "f1_micro", "f1"),
    "retrieval": ("r1",),
}
"""What a task is summed up by."""

PROTOCOLS = (CLEAN, "", DIAGNOSTIC, PAPER)
"""In the order of columns; the first ones look at no test set."""

HIDDEN = ("score", "probe", "features", "manifest_sha256", "splits", "others")
"""What tells lines apart, and has no column unless two lines look the same without, or there are
several manifests."""

READING = (
    "Means over all pairs of modalities within each seed, in percent; then mean ± standard "
    "deviation (n − 1) over seeds. The columns clean chose nothing on the test set; paper chose "
    "threshold and epoch on it, diagnostic the threshold alone. A star: settings differ from the "
    "preset, see below the table."
)

WORDS = {"chance": "guessing", "ceiling": "trained on target"}
"""What the first sentence calls a method."""

Column = tuple[str, str, str]
"""Protocol, origin of the threshold, metric."""

NO_THRESHOLD = "none"


@dataclass(frozen=True, slots=True)
class Means:
    """One line: a method with one list of known classes."""

    of: Row
    """One of its rows; the checkpoint's hash only where checkpoints share a seed."""
    pairs: tuple[str, ...]
    cells: Mapping[Column, Cell]
    leaks: str
    """Names of what figures of `clean` rest on all the same."""
    clips: str
    """Test clips, `19 to 21` where pairs or protocols differ; empty where no row says."""
    lacking: str
    """Test clips that lack features, likewise; empty for none."""
    tested: frozenset[tuple[str, str]]
    """Protocol and pair with the digest of their test clips."""
    left_out: int
    """Seeds that lack a pair."""

    @property
    def label(self) -> str:
        """The preset, and what else than its checkpoint is tested."""
        row, name = self.of, short_preset(self.of.preset)
        return name or row.method if row.method == MODEL else f"{row.method} {name}".strip()


def model_name(preset: str) -> str:
    """What the paper calls a model, else its preset; MICU for few clips is MICU, too."""
    short = short_preset(preset)
    return paper_method(preset) or ("MICU" if short.rstrip("*") == "small" else short)


def lead_blocks(results: Iterable[Row]) -> list[Block]:
    """One sentence and one chart: the model and what it is compared with, nothing chosen on tests.

    Of several tasks it is about the first, of several sets or lists of known classes about the one
    that has most to compare.
    """
    kept = _kept(results)
    task = next((task for task in MAIN if any(row.task == task for row in kept)), "")
    groups = grouped(
        summarise([row for row in kept if row.task == task]),
        lambda line: (line.of.setting, line.of.known_list(), line.of.manifest_sha256),
    )
    first = max(groups.values(), key=len, default=[])
    columns = [column for column in _columns(first) if column[2] in MAIN[task][:1]]
    column = next((c for c in columns if c[:2] == (CLEAN, SOURCE_VAL)), next(iter(columns), None))
    found = [
        (line, cell)
        for line in first
        if column and (cell := _cell(line, column)) and not math.isnan(cell.mean)
    ]
    if not column or not found:
        return []
    found.sort(key=lambda one: (one[0].of.method != MODEL, -one[1].mean))
    title = COLUMN_TITLES.get(column[2], column[2])
    names = [_first_name(line.of) for line, _ in found]
    figures = [show_mean(cell, column[2], digits=0) for _, cell in found]
    sentence = f"{title}, %: " + ", ".join(map(" ".join, zip(names, figures, strict=True)))
    of = first[0].of
    seeds = spell_range(len(cell.values) for line, cell in found if line.of.method == MODEL)
    how = (
        f"Mean over {', '.join(first[0].pairs) or 'all clips'}",
        f"± over {seeds} seeds" if seeds not in ("", "1") else "one seed, so without ±",
        f"protocol {column[0]}" if column[0] else "",
        f"threshold {column[1]}" if column[1] != NO_THRESHOLD else "",
        f"{of.known_classes} known classes" if of.known_classes else "",
        of.setting,
    )
    bars = [
        (f"{name}  {figure}", cell.mean, math.nan, COLOURS[0] if line.of.method == MODEL else GREY)
        for name, figure, (line, cell) in zip(names, figures, found, strict=True)
    ]
    told = f"{'; '.join(filter(None, how))}."
    return [f"{sentence}.", told, Drawings([draw_bars(f"{title}, %", sentence, bars, "", {})])]


def _first_name(row: Row) -> str:
    if row.method == MODEL:
        return model_name(row.preset) or "the model"
    return WORDS.get(row.method, row.method)


def _kept(results: Iterable[Row]) -> list[Row]:
    return [row for row in results if row.metric in MAIN.get(row.task, ()) and not row.other_split]


def summary_blocks(results: Iterable[Row]) -> list[Block]:
    """A table for each task, and what the stars in it stand for."""
    kept = _kept(results)
    blocks: list[Block] = []
    for task in dict.fromkeys(row.task for row in kept):
        lines = summarise([row for row in kept if row.task == task])
        missing = sum(line.left_out for line in lines)
        blocks += [Title(f"Task {task}"), replace(tabulate(lines), caption=READING)]
        blocks += [f"Seeds left out for want of a pair: {missing}."] if missing else []
    return [*blocks, *tell_presets(row.preset for row in kept)]


def summarise(rows: Sequence[Row]) -> list[Means]:
    """The lines of one task: by setting and list of known classes, the model's own first."""
    groups = grouped(rows, lambda row: (row.setting, row.known_list(), *_method_of(row)))
    lines = [_sum_up(part) for group in groups.values() for part in _comparable(group)]
    manifests = list(dict.fromkeys(row.manifest_sha256 for row in rows))

    def place(line: Means) -> tuple[object, ...]:
        row = line.of
        manifest = manifests.index(row.manifest_sha256)
        return row.setting, manifest, row.known_classes, row.method != MODEL

    return sorted(lines, key=place)


def _method_of(row: Row) -> tuple[object, ...]:
    """What is one for all pairs and protocols of a line; a published split is its protocol's."""
    splits = "" if row.setting and row.splits == "test=train" else row.splits
    shared = (row.method, row.preset, splits, row.score, row.probe, row.manifest_sha256)
    return (*shared, *row.others().items())


def _comparable(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows that one mean may be taken over: no seed twice, one feature set for each modality."""
    shared = shares_seeds((row.seed, row.checkpoint_sha256) for row in rows)
    sets: dict[str, set[str]] = {}
    for row in rows:
        for name in row.features.split():
            sets.setdefault(name.partition(":")[0], set()).add(name)
    several = any(len(found) > 1 for found in sets.values())
    clips = _other_clips(rows)

    def key(row: Row) -> tuple[str, ...]:
        features = sorted(row.features.split()) if several else []
        tested = clips.get((row.seed, row.checkpoint_sha256), ())
        return (row.checkpoint_sha256 if shared else "", *features, *tested)

    apart = grouped(rows, key)
    return [part for found in apart.values() for part in _over_the_same(found)]


def _other_clips(rows: Sequence[Row]) -> dict[tuple[int | None, str], list[str]]:
    """By seed and checkpoint, the test clips of what was tested on others by another run."""
    differ = _tested_twice(rows)
    runs: dict[tuple[int | None, str], set[str]] = {}
    for row in rows:
        if _place(row) in differ:
            told = " ".join((*_place(row), row.test_sha256))
            runs.setdefault((row.seed, row.checkpoint_sha256), set()).add(told)
    return {run: sorted(told) for run, told in runs.items()}


def _over_the_same(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """The rows, those of one run that was tested twice, on other clips, apart."""
    twice = _tested_twice(rows)
    return grouped(rows, lambda row: row.test_sha256 if _place(row) in twice else "").values()


def _tested_twice(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Protocols and pairs that were tested on several sets of clips."""
    places = grouped(rows, _place)
    return {place for place, same in places.items() if len({row.test_sha256 for row in same}) > 1}


def _place(row: Row) -> tuple[str, str]:
    return row.protocol, _pair(row)


def _sum_up(rows: Sequence[Row]) -> Means:
    pairs = tuple(dict.fromkeys(map(_pair, rows)))
    found: dict[Column, dict[int | None, dict[str, float]]] = {}
    for row in rows:
        column = (row.protocol, row.threshold_source, row.metric)
        found.setdefault(column, {}).setdefault(row.seed, {})[_pair(row)] = row.value
    cells = {
        column: Cell(
            tuple(statistics.fmean(v.values()) for v in seeds.values() if len(v) == len(pairs))
        )
        for column, seeds in found.items()
    }
    cells = {column: cell for column, cell in cells.items() if cell.values}
    lacking = {seed for seeds in found.values() for seed, v in seeds.items() if len(v) < len(pairs)}
    leaks = dict.fromkeys(
        leak.partition(":")[0]
        for row in rows
        if row.protocol == CLEAN
        for leak in row.leaks.split(";")
    )
    return Means(
        rows[0],
        pairs,
        cells,
        ", ".join(filter(None, leaks)),
        clips=spell_range(row.n_clips for row in rows),
        lacking=spell_range(row.n_lacking or None for row in rows),
        tested=frozenset(("\n".join(_place(row)), row.test_sha256) for row in rows),
        left_out=len(lacking),
    )


def _pair(row: Row) -> str:
    return direction_of(row.train_modality, row.test_modality).replace("->", "→")


def tabulate(lines: Sequence[Means]) -> TextTable:
    """Lines as a table, `clean` first and `paper` beside it."""
    columns = _columns(lines)
    known = name_lists(line.of.known_list() for line in lines)
    looks = [
        (line.of.setting, known[line.of.known_list()], line.label, line.pairs) for line in lines
    ]
    names = ("preset", *HIDDEN, "checkpoint_sha256")
    told = tell_apart(looks, [line.of for line in lines], names)
    if len({line.of.manifest_sha256 for line in lines}) > 1:
        told.append("manifest_sha256")
    apart = [name for name in names if name in told]
    clips = _clips(lines)
    header = ("setting", "known classes", "preset", *(TITLES.get(name, name) for name in apart))
    rows = [
        (
            *look[:3],
            *(show_column(line.of, name) for name in apart),
            *(_figure(line, column) for column in columns),
            line.leaks,
            ", ".join(line.pairs),
            tested,
            line.lacking,
            spell_range([len(cell.values) for cell in line.cells.values()]) or "0",
        )
        for line, look, tested in zip(lines, looks, clips, strict=True)
    ]
    last = ("clean rests on", "pairs", TITLES["test_sha256"], TITLES["n_lacking"], "seeds")
    table = [(*header, *map(_title, columns), *last), *rows]
    return TextTable(tuple(table)).without_empty_columns()


def _clips(lines: Sequence[Means]) -> list[str]:
    """The test clips of each line, where a pair or another line is over others; with a digest."""
    places: dict[tuple[str, ...], set[str]] = {}
    for line in lines:
        for place, digest in line.tested:
            places.setdefault((line.of.setting, *line.of.known_list(), place), set()).add(digest)
    differ = {place for place, digests in places.items() if len(digests) > 1}
    told = []
    for line in lines:
        own = (line.of.setting, *line.of.known_list())
        others = sorted(digest for place, digest in line.tested if (*own, place) in differ)
        digest = hashlib.sha256(" ".join(others).encode()).hexdigest()[:8] if others else ""
        named = line.clips or "?"
        told.append(
            f"{named} ({digest if any(others) else '?'})"
            if others
            else (line.clips if " to " in line.clips else "")
        )
    return told


def _figure(line: Means, column: Column) -> str:
    """A cell; what guessing reaches, which has no threshold, stands under every one."""
    cell = _cell(line, column)
    return show_mean(cell, column[2]) if cell else ""


def _cell(line: Means, column: Column) -> Cell | None:
    protocol, _, metric = column
    return line.cells.get(column) or line.cells.get((protocol, NO_THRESHOLD, metric))


def _columns(lines: Sequence[Means]) -> list[Column]:
    """By protocol; AUROC, which needs no threshold, once for each choice of the epoch."""
    there = [column for line in lines for column in line.cells]
    places = [*PROTOCOLS, *(protocol for protocol, *_ in there)]
    found = sorted(dict.fromkeys(there), key=lambda column: places.index(column[0]))
    laid = {(protocol, metric) for protocol, source, metric in found if source != NO_THRESHOLD}
    first: dict[tuple[str, bool], str] = {}
    kept: list[Column] = []
    for protocol, source, metric in found:
        if source == NO_THRESHOLD and (protocol, metric) in laid:
            continue
        epoch = (protocol.replace(DIAGNOSTIC, CLEAN), source == ORACLE)
        if metric == "auroc" and first.setdefault(epoch, source) != source:
            continue
        kept.append((protocol, source, metric))
    return kept


def _title(column: Column) -> str:
    protocol, source, metric = column
    how = " ".join(filter(None, (protocol, source.replace(NO_THRESHOLD, ""))))
    return f"{how}: {COLUMN_TITLES.get(metric, metric)}".removeprefix(": ")
