"""Rows of results, averaged over seeds, beside the figures that the paper prints for them."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from micu.evaluate.columns import NOT_RATES, SHOWN
from micu.evaluate.markdown import TextTable, render_columns, render_markdown
from micu.evaluate.report import CHANGES, ClassList, Row
from micu.evaluate.sheets import render_sheet
from micu.evaluate.thresholds import ON_TEST
from micu.report.paper import (
    SETTINGS,
    Printed,
    direction_of,
    find_printed,
    metric_title,
    paper_method,
)

MODEL = "checkpoint"
"""The method that the paper's figures are about; others are there to put it in its place."""

BOTH_WAYS = "-vaf"
"""Ends the settings whose printed figures are means of both directions, as retrieval's are."""

CHOSEN_ON_TEST = ("threshold:test", "epoch:test", "checkpoint:test")
"""Of the names of `micu.evaluate.leaks`, which needs torch."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric over the seeds of one line."""

    values: tuple[float, ...]
    """One per run, rates in [0, 1]; NaN where it is not defined."""
    printed: Printed | None = None
    """The paper's figure for it, rates in percent."""
    n_clips: str = ""
    """Clips that each is over, `19 to 21` where the runs differ; empty where no run says."""

    @property
    def mean(self) -> float:
        """Mean over the runs; NaN if one is undefined."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation of the sample (n - 1); NaN for one run."""
        several = len(self.values) > 1 and not any(map(math.isnan, self.values))
        return statistics.stdev(self.values) if several else math.nan

    @property
    def difference(self) -> float:
        """Ours minus the paper's, in percentage points; NaN without one of them."""
        return math.nan if self.printed is None else 100 * self.mean - self.printed.number


@dataclass(frozen=True, slots=True)
class Line:
    """One job, over its seeds."""

    of: Row
    """One of its rows, for what all of them have in common; no hash of several checkpoints."""
    direction: str
    """V->A, V<->A; empty for tasks without."""
    runs: int
    cells: Mapping[str, Cell]
    """By metric."""

    @property
    def table(self) -> int:
        """The paper's table; 0 if it prints nothing of this line."""
        found = [cell.printed.table for cell in self.cells.values() if cell.printed]
        return min(found, default=0)

    @property
    def is_chosen_on_test(self) -> bool:
        """Whether threshold, epoch or checkpoint was chosen on the test set."""
        return any(leak in CHOSEN_ON_TEST for leak in self.of.leaks.split(";"))


def compare(results: Sequence[Row]) -> list[Line]:
    """One line per job, and one for each mean of both directions that the paper prints."""
    jobs = grouped(results, Row.group).values()
    lines = [_line(runs) for rows in jobs for runs in _repetitions(rows)]
    return in_reading_order([*lines, *_both_ways(results)])


T = TypeVar("T")
K = TypeVar("K")


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by what they have in common, in the order in which they come."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _repetitions(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows that a mean may be taken over: checkpoints that share a seed stand apart."""
    shared = shares_seeds((row.seed, row.checkpoint_sha256) for row in rows)
    return grouped(rows, lambda row: row.checkpoint_sha256 if shared else "").values()


def _line(rows: Sequence[Row], *, both_ways: bool = False) -> Line:
    first = rows[0]
    direction = direction_of(first.train_modality, first.test_modality, both_ways=both_ways)
    own = first.method == MODEL
    method = paper_method(first.preset) if own else ""
    cells = {
        metric: Cell(
            tuple(row.value for row in same),
            find_printed(first.setting, method, direction, metric),
            spell_range(row.n_clips for row in same),
        )
        for metric, same in grouped(rows, lambda row: row.metric).items()
    }
    runs = len({(row.seed, row.checkpoint_sha256) for row in rows})
    shown = direction if first.train_modality and first.test_modality else first.test_modality
    if len({row.checkpoint_sha256 for row in rows}) > 1:
        first = replace(first, checkpoint_sha256="")
    return Line(first, shown, runs, cells)


def spell_range(counts: Iterable[int | None]) -> str:
    """One count, or the least and the largest of several; empty where none is known."""
    known = [count for count in counts if count is not None]
    ends = (min(known), max(known)) if known else ()
    return " to ".join(map(str, dict.fromkeys(ends)))


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """By setting as the paper has them, known classes, and what is tested; others follow."""
    settings = list(SETTINGS)
    seen: dict[str, int] = {}
    for line in lines:
        if line.of.method == MODEL:
            seen.setdefault(line.of.test_modality, len(seen))
            seen.setdefault(line.of.train_modality, len(seen))

    def place(line: Line) -> tuple[object, ...]:
        row = line.of
        known = settings.index(row.setting) if row.setting in settings else len(settings)
        train, test = (seen.get(name, 9) for name in (row.train_modality, row.test_modality))
        classes = (row.known_classes, row.class_list)
        return known, classes, "<->" in line.direction, test, train == test, train

    return sorted(lines, key=place)


def _both_ways(results: Iterable[Row]) -> list[Line]:
    """Means of two directions, where the paper prints those: per seed, and where both are there.

    Either way may have manifests, feature sets and leaks of its own; the mean names those of both.
    """
    runs: dict[tuple[object, ...], list[Row]] = {}
    for row in results:
        known = SETTINGS.get(row.setting)
        averaged = row.setting.endswith(BOTH_WAYS) or (known and known.task == "retrieval")
        if averaged and row.train_modality != row.test_modality:
            ordered = sorted((row.train_modality, row.test_modality), key=_rank)
            same = replace(
                row,
                train_modality=ordered[0],
                test_modality=ordered[1],
                features=" ".join(sorted(kind.partition("@")[0] for kind in row.features.split())),
                manifest_sha256="",
                test_sha256="",
                leaks="",
            )
            runs.setdefault(same.number(), []).append(row)
    means = [mean for rows in runs.values() for mean in _means_of_opposites(rows)]
    jobs = grouped(means, Row.group).values()
    return [_line(found, both_ways=True) for job in jobs for found in _repetitions(job)]


def _means_of_opposites(rows: Sequence[Row]) -> Iterator[Row]:
    """The mean of a number and the one of the other way; of several, of those that look alike."""
    there = [row for row in rows if _rank(row.train_modality) < _rank(row.test_modality)]
    back = [row for row in rows if _rank(row.train_modality) > _rank(row.test_modality)]
    alike = [
        (one, other)
        for one, other in itertools.product(there, back)
        if len(there) == len(back) == 1 or _basis(one) == _basis(other)
    ]
    for one, other in alike:
        rivals = sum(one is first or other is second for first, second in alike)
        if rivals == 1 or one.test_sha256 == other.test_sha256:
            yield replace(
                one,
                value=(one.value + other.value) / 2,
                n_clips=_sum(one.n_clips, other.n_clips),
                n_lacking=_sum(one.n_lacking, other.n_lacking),
                test_sha256=_union(one.test_sha256, other.test_sha256, " "),
                features=_union(one.features, other.features, " "),
                manifest_sha256=_union(one.manifest_sha256, other.manifest_sha256, " "),
                leaks=_union(one.leaks, other.leaks, ";"),
            )


def _sum(one: int | None, other: int | None) -> int | None:
    """The sum of two counts; None where one is not known."""
    return None if one is None or other is None else one + other


def _basis(row: Row) -> tuple[object, ...]:
    return row.leaks, *(set(text.split()) for text in (row.manifest_sha256, row.features))


def _union(one: str, other: str, separator: str) -> str:
    """The names of two lists, each once, in the order in which they come."""
    names = filter(None, (*one.split(separator), *other.split(separator)))
    return separator.join(dict.fromkeys(names))


def _rank(modality: str) -> int:
    order = ("video", "audio", "flow", "text")
    return order.index(modality) if modality in order else len(order)


# --- as text ---------------------------------------------------------------------------------


def scale_of(metric: str) -> int:
    """100 for rates, which are shown in percent; 1 for other numbers."""
    return 1 if metric in NOT_RATES else 100


def show_mean(cell: Cell, metric: str, digits: int = 2) -> str:
    """`51.20 ± 0.40`, rates in percent; a dash where it is not defined."""
    scale = scale_of(metric)
    if math.isnan(cell.mean):
        return "–"
    form = f",.{digits}f"
    if scale == 1 and abs(cell.mean) < 1:  # seconds of one clip, for example
        form = ".3g"
    elif scale == 1 and len(set(cell.values)) == 1 and cell.mean.is_integer():
        form = ",.0f"
    mean = f"{scale * cell.mean:{form}}"
    spread = cell.deviation
    return mean if math.isnan(spread) else f"{mean} ± {scale * spread:{form}}"


def show_difference(cell: Cell) -> str:
    """`+1.20` or `−0.37` percentage points; empty without a figure of the paper."""
    value = cell.difference
    return "" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


TITLES = {
    "preset": "changed settings",
    "checkpoint_sha256": "checkpoint",
    "manifest_sha256": "manifest",
    "leaks": "rests on",
    "test_sha256": "test clips",
    "n_lacking": "lacking features",
    "others": "conditions",
}
"""Of columns that stand only where lines look the same without."""


def tabulate_lines(lines: Sequence[Line], metrics: Sequence[str]) -> TextTable:
    """Lines as a table: ours, the paper's figure and the difference for each metric."""
    present = {name for line in lines for name in line.cells}
    shown = [name for name in dict.fromkeys(metrics) if name in present]
    compared = {
        name
        for name in shown
        if any(name in line.cells and line.cells[name].printed for line in lines)
    }
    looks = [_look_of(line) for line in lines]
    several = tell_apart(looks, [line.of for line in lines], HIDDEN)
    unknown = _unknown(lines)
    header = ["setting", "known classes", "from → to", "method", "preset", "protocol", "threshold"]
    header += [*(TITLES.get(name, name) for name in several), *unknown, TITLES["leaks"]]
    header += [TITLES["test_sha256"], TITLES["n_lacking"], "runs"]
    for name in shown:
        title = metric_title(name)
        header += [title, f"{title} paper", f"{title} Δ"] if name in compared else [title]
    known = name_lists(line.of.known_list() for line in lines)
    clips = name_clips(lines)
    rows = [
        (
            line.of.setting,
            known[line.of.known_list()],
            *look,
            *(show_column(line.of, name) for name in several),
            *(line.of.others().get(name, "") for name in unknown),
            line.of.leaks.replace(";", "; "),
            clips.get(_clips_of(line), ""),
            str(line.of.n_lacking or ""),
            str(line.runs),
            *_figures(line, shown, compared),
        )
        for line, (_, _, *look) in zip(lines, looks, strict=True)
    ]
    caption = f"{SEVERAL} {BESIDE if compared else ''}".strip()
    return TextTable((tuple(header), *rows), caption).without_empty_columns()


SEVERAL = (
    "Each line is one job: what a probe was trained on and tested on, and how its threshold was "
    "found. Rates are in percent; several runs are mean ± standard deviation (n − 1). “Rests on” "
    "names what a fair figure would not look at, as what:where; an empty one names nothing."
)
BESIDE = (
    "Δ is ours minus the paper's figure, in percentage points; what the paper's rest on stands "
    "below the table."
)
"""What a reader of `tabulate_lines` has to know."""


ON_SCREEN = ("from → to", "method", "HOS", "protocol", "threshold", "AUROC", "setting")
"""Columns that a narrow screen has, these before others."""


def render_table(
    rows: Sequence[Row], metrics: Sequence[str] = SHOWN, width: int | None = None
) -> str:
    """Rows as a table, rates in percent: Markdown, or as wide as a screen if it has a width."""
    table = tabulate_lines(compare(rows), metrics)
    return render_markdown(table) if width is None else render_columns(table, width, ON_SCREEN)


Tested = tuple[str, ...]
"""Task, setting, known classes, protocol and modality of a test, and the digest of its clips."""

VALIDATION_METRIC = "val_acc"
"""The metric that is not over test clips."""


def _clips_of(line: Line) -> Tested:
    """The place in which a line stands beside others, and the test clips that it is over."""
    row = line.of
    place = (row.task, row.setting, row.classes_sha256, row.protocol, row.test_modality)
    return (*place, row.test_sha256)


def name_clips(lines: Iterable[Line]) -> dict[Tested, str]:
    """What a table calls the test clips of lines that stand beside others over other clips.

    Their number, and the first digits of their digest; `?` where an older file has none. Lines that
    are all over the same clips, as far as they say, are not among them.
    """
    numbers: dict[Tested, dict[str, None]] = {}
    for line in lines:
        tested = [cell.n_clips for name, cell in line.cells.items() if name != VALIDATION_METRIC]
        if tested:
            numbers.setdefault(_clips_of(line), {})[tested[0]] = None
    places = [key[:-1] for key in numbers]
    return {
        key: f"{' or '.join(filter(None, found)) or '?'} ({key[-1][:8] or '?'})"
        for key, found in numbers.items()
        if places.count(key[:-1]) > 1 or len(found) > 1 or any(" to " in text for text in found)
    }


def name_lists(lists: Iterable[ClassList]) -> dict[ClassList, str]:
    """What a table calls each list of known classes.

    Its size; of several of one size also its file's name, or its hash where that is no help.
    """
    found = list(dict.fromkeys(lists))
    sizes = [size or ("?" if digest else "") for size, _, digest in found]
    names = [f"{size} ({key[1]})" for size, key in zip(sizes, found, strict=True)]
    told: dict[ClassList, str] = {}
    for i, key in enumerate(found):
        told[key] = sizes[i]
        if sizes[i] and (sizes.count(sizes[i]) > 1 or sizes[i] == "?"):
            alone = key[1] and names.count(names[i]) == 1
            told[key] = names[i] if alone else f"{sizes[i]} ({key[2][:12]})"
    return told


def shares_seeds(runs: Iterable[tuple[object, str]]) -> bool:
    """Whether two checkpoints have a seed in common: no mean over the seeds of both is one of one.

    Args:
        runs: Seed and checkpoint of each.
    """
    seeds = [seed for seed, _ in set(runs)]
    return len(seeds) > len(set(seeds))


Look = tuple[str, ...]
"""What a table says of a line, whatever the others are."""

HIDDEN = ("preset", "score", "splits", "probe", "features", "checkpoint_sha256")
"""Columns that stand only where lines look the same without."""


def _look_of(line: Line) -> Look:
    row = line.of
    source = row.threshold_source
    return (
        "\n".join((row.setting, *row.known_list())),
        line.of.leaks,
        line.direction.replace("<->", " ↔ ").replace("->", " → "),
        row.method,
        short_preset(row.preset),
        row.protocol,
        f"{source} (test set)" if source in ON_TEST else source.replace("none", ""),
    )


def tell_apart(looks: Sequence[object], rows: Sequence[Row], names: Iterable[str]) -> list[str]:
    """Those of the columns that tell apart rows which look the same without."""
    shown = {name: [show_column(row, name) for row in rows] for name in names}
    apart = {name: {*zip(looks, texts, strict=True)} for name, texts in shown.items()}
    return [name for name in names if len(apart[name]) > len({*looks})]


def show_column(row: Row, name: str) -> str:
    """What a table says of a row in one of its hidden columns."""
    if name == "preset":
        return row.preset.partition(CHANGES)[2]
    if name == "others":
        return " ".join(f"{key}={text}" for key, text in row.others().items())
    text = str(getattr(row, name))
    return text[:12] if name.endswith("_sha256") else text


def _figures(line: Line, metrics: Sequence[str], compared: set[str]) -> list[str]:
    cells: list[str] = []
    for name in metrics:
        cell = line.cells.get(name)
        cells.append(show_mean(cell, name) if cell else "")
        if name in compared:
            printed = cell.printed if cell else None
            mark = "*" if printed and printed.note else ""
            cells += [
                printed.value + mark if printed else "",
                show_difference(cell) if cell else "",
            ]
    return cells


def _unknown(lines: Sequence[Line]) -> list[str]:
    """Columns of other versions that tell lines apart."""
    names = dict.fromkeys(name for line in lines for name in line.of.others())
    return [name for name in names if len({line.of.others().get(name) for line in lines}) > 1]


def short_preset(preset: str) -> str:
    """A preset that was changed, without its changes: `micu*`."""
    name, *changes = preset.split(CHANGES)
    return f"{name}*" if changes else name


def render_csv(lines: Sequence[Line]) -> str:
    """Every line and metric: ours, deviation, runs, the paper's figure; rates in percent."""
    unknown = list(dict.fromkeys(name for line in lines for name in line.of.others()))
    shared = ("task", "setting", "method", "preset", "protocol", "threshold_source", "score")
    rest: tuple[str, ...] = ("probe", "features", "checkpoint_sha256", "manifest_sha256")
    rest += ("classes_sha256", "known_classes", "class_list", "splits", "n_lacking", "test_sha256")
    header = [*shared, "direction", "metric", "ours", "deviation", "runs", "n_clips", "paper"]
    header += ["difference", "paper_table", "paper_method", "paper_note", "leaks", *rest, *unknown]
    rows: list[list[object]] = []
    for line in lines:
        values = {**line.of.values(), "known_classes": line.of.known_list()[0]}
        others = line.of.others()
        for metric, cell in line.cells.items():
            printed, scale = cell.printed, scale_of(metric)
            rows.append(
                [
                    *(values[name] for name in shared),
                    *(line.direction, metric, _number(scale * cell.mean)),
                    *(_number(scale * cell.deviation), line.runs, cell.n_clips),
                    printed.value if printed else "",
                    _number(cell.difference),
                    *((printed.table, printed.method, printed.note) if printed else ("", "", "")),
                    line.of.leaks,
                    *(values[name] for name in rest),
                    *(others.get(name, "") for name in unknown),
                ]
            )
    return render_sheet(header, rows)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
