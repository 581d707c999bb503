"""The tables of the real-data benchmark, from the rows that `micu-eval` wrote.

A cell is a mean over pairs of modalities, and over class splits where it says so, of one seed;
then mean ± standard deviation (n - 1) over seeds.
"""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from benchmarks.real_methods import METHODS, DataSet
from micu.evaluate.markdown import TextTable, render_markdown
from micu.evaluate.report import Row
from micu.evaluate.thresholds import ORACLE_AT_SOURCE_EPOCH

CHANCE, CEILING, UNTRAINED = "chance", "ceiling", "untrained"
TITLES = {
    **{name: method.title for name, method in METHODS.items()},
    UNTRAINED: "untrained",
    CHANCE: "chance",
    CEILING: "linear probe on the target modality",
}
CLOSED = "all"
"""The class split of the closed-set task."""


def split_name(known: int | None) -> str:
    """That of a class split, by how many classes are known; None is the closed-set task."""
    return CLOSED if known is None else str(known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of one run."""

    data: str
    method: str
    """Key of `TITLES`, or of an ablation."""
    seed: int
    split: str
    """How many classes are known, or `CLOSED`."""
    source: str
    target: str
    how: str
    """`source-val` and `paired-quantile` (protocol `clean`), `oracle-at-source-epoch`, whose
    threshold alone is chosen on the test set, or `paper`."""
    metric: str
    value: float


def figures_of(data: DataSet, name: str, split: str, rows: Iterable[Row]) -> list[Figure]:
    """The figures in some rows; `name` is the method of those that a checkpoint made.

    The ceiling, which has no source, stands beside every pair of its target.
    """
    found = []
    for row in rows:
        is_ceiling = row.method == CEILING
        pairs = [(s, t) for s, t in data.pairs if t == row.test_modality]
        if not is_ceiling:
            pairs = [(row.train_modality, row.test_modality)]
        # Where no threshold is laid, or it is that of nobody, the protocol alone says how.
        threshold = row.threshold_source if row.threshold_source != "none" else "source-val"
        hows = [row.protocol if row.protocol == "paper" else threshold]
        if row.protocol == "clean" and row.threshold_source == "none":
            hows.append("paired-quantile")
        found += [
            Figure(
                data=data.name,
                method=name if row.method == "checkpoint" else row.method,
                seed=row.seed,
                split=split,
                source=source,
                target=target,
                how=how,
                metric=row.metric,
                value=row.value,
            )
            for source, target in pairs
            for how in hows
        ]
    return found


@dataclass(frozen=True, slots=True)
class Cell:
    """Mean and standard deviation over seeds, as shares; NaN where there is none."""

    mean: float
    deviation: float
    seeds: int

    def __str__(self) -> str:  # noqa: D105
        if math.isnan(self.mean):
            return "–"
        mean = f"{100 * self.mean:.1f}"
        return mean if self.seeds < 2 else f"{mean} ± {100 * self.deviation:.1f}"


def summarise(figures: Iterable[Figure], keep: Callable[[Figure], bool]) -> Cell:
    """The cell of the figures that are kept: mean within each seed, then over seeds."""
    by_seed: dict[int, list[float]] = {}
    for figure in figures:
        if keep(figure):
            by_seed.setdefault(figure.seed, []).append(figure.value)
    means = [statistics.fmean(values) for values in by_seed.values()]
    if not means:
        return Cell(math.nan, math.nan, 0)
    deviation = statistics.stdev(means) if len(means) > 1 else math.nan
    return Cell(statistics.fmean(means), deviation, len(means))


@dataclass(frozen=True, slots=True)
class Column:
    """What a column of the main table is."""

    title: str
    metric: str
    how: str
    splits: tuple[str, ...]


def main_columns(data: DataSet) -> list[Column]:
    """The columns of a set's table: `clean` first."""
    splits = tuple(map(str, data.known))
    return [
        *(Column(f"HOS, {n} known", "hos", "source-val", (n,)) for n in splits),
        Column("HOS, paired threshold", "hos", "paired-quantile", splits),
        Column("AUROC", "auroc", "source-val", splits),
        Column("CMG acc.", "acc", "source-val", (CLOSED,)),
        Column("HOS, best threshold", "hos", ORACLE_AT_SOURCE_EPOCH, splits),
        *(Column(f"`paper`: HOS, {n} known", "hos", "paper", (n,)) for n in splits),
        Column("`paper`: CMG acc.", "acc", "paper", (CLOSED,)),
    ]


def main_table(
    data: DataSet, figures: Sequence[Figure], seconds: Mapping[str, float], names: Sequence[str]
) -> str:
    """One line per method; means over the pairs of modalities, in percent."""
    columns = main_columns(data)
    lines = []
    for name in names:
        step = f"{seconds[name]:.2f}" if name in seconds else ""
        lines.append((TITLES[name], *_cells(data, figures, name, columns), step))
    header = ("method", *(column.title for column in columns), "s per step")
    return render_markdown(TextTable((header, *lines)), own_titles=True)


def ablation_table(data: DataSet, figures: Sequence[Figure], titles: Mapping[str, str]) -> str:
    """One line per change, the fewest known classes; means over the pairs, in percent."""
    fewest = (split_name(min(data.known)),)
    columns = (
        Column(f"HOS, {fewest[0]} known", "hos", "source-val", fewest),
        Column("AUROC", "auroc", "source-val", fewest),
        Column("CMG acc.", "acc", "source-val", (CLOSED,)),
        Column(f"`paper`: HOS, {fewest[0]} known", "hos", "paper", fewest),
    )
    lines = [(title, *_cells(data, figures, name, columns)) for name, title in titles.items()]
    return render_markdown(
        TextTable((("", *(column.title for column in columns)), *lines)), own_titles=True
    )


def _cells(
    data: DataSet, figures: Sequence[Figure], name: str, columns: Iterable[Column]
) -> list[str]:
    own = [f for f in figures if f.data == data.name and f.method == name]
    cells = [
        summarise(
            own, lambda f, c=c: (f.metric, f.how) == (c.metric, c.how) and f.split in c.splits
        )
        for c in columns
    ]
    return [str(cell) for cell in cells]


def pairs_table(data: DataSet, figures: Sequence[Figure], names: Sequence[str]) -> str:
    """Clean HOS by pair of modalities, means over the class splits, in percent."""
    lines = []
    for name in names:
        own = [
            f
            for f in figures
            if (f.data, f.method, f.metric, f.how) == (data.name, name, "hos", "source-val")
        ]
        cells = [
            summarise(own, lambda f, pair=pair: (f.source, f.target) == pair) for pair in data.pairs
        ]
        lines.append((TITLES[name], *map(str, cells)))
    header = ("method", *(f"{source} → {target}" for source, target in data.pairs))
    return render_markdown(TextTable((header, *lines)), own_titles=True)


def figures_csv(figures: Iterable[Figure]) -> str:
    """Every figure, one per line."""
    return _csv([field.name for field in fields(Figure)], (asdict(f).values() for f in figures))


def cells_csv(figures: Sequence[Figure]) -> str:
    """Mean and standard deviation over seeds of everything, one per line."""
    groups: dict[tuple[str, ...], list[Figure]] = {}
    for f in figures:
        key = (f.data, f.method, f.split, f.source, f.target, f.how, f.metric)
        groups.setdefault(key, []).append(f)
    header = ("data", "method", "split", "source", "target", "how", "metric")
    lines = []
    for key, members in groups.items():
        cell = summarise(members, lambda _: True)
        lines.append((*key, cell.mean, cell.deviation, cell.seeds))
    return _csv((*header, "mean", "deviation", "seeds"), lines)


def _csv(header: Sequence[str], lines: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
