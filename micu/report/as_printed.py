"""Results in the rows and columns of the paper's tables 2 to 9 and figures 3 to 6.

Each cell has ours, and the paper's figure in brackets. What stands in a cell is protocol `paper`,
whose epoch and threshold are the best on the test set, as the printed figures are; what `clean`
gives has a table of the same form. Figures 3 to 5 are printed as drawings alone: nothing of the
paper's stands beside them.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from micu.evaluate.codebook import CodebookUse
from micu.evaluate.markdown import TextTable
from micu.evaluate.report import CHANGES, FROZEN, RELEASED, Row
from micu.evaluate.splits import CLEAN, PAPER
from micu.evaluate.thresholds import ORACLE, SOURCE_VAL
from micu.report.compare import BOTH_WAYS, MODEL, Cell, grouped, show_mean
from micu.report.drawings import COLOURS, Curve, draw_bars, draw_curves
from micu.report.figures import draw_codebook
from micu.report.page import Block, Drawings, Section, Title
from micu.report.paper import (
    BASELINES,
    SETTINGS,
    TABLES,
    direction_of,
    metric_title,
    read_printed,
)

PRETRAINING_CLIPS = 40_801
"""Of VGGSound-AVEL40k, which the hours of table 9 are for."""
GIB_OF_MIB = 1024.0
OPEN_SET = ("ave-14", "ave-21", "ucf-17", "ucf-34", "ucf-vgg-8", "ucf-vgg-12")
CLASSIFIED, LOCALISED = ("ave", "ucf-vgg"), ("avvp", "ave-avvp")
CLOSED_SET = ("ave", "avvp", "ave-avvp", "ucf-vgg")
SIZES = (256, 400, 512, 800, 1024)
"""Codes of figure 5."""


@dataclass(frozen=True, slots=True)
class Method:
    """A row of a table, or a bar."""

    preset: str
    title: str
    printed: str = ""
    """What the paper's figures are filed under; the title if empty."""

    @property
    def filed(self) -> str:
        """Name in `paper_results.csv`."""
        return self.printed or self.title


@dataclass(frozen=True, slots=True)
class Layout:
    """One table or figure of the paper."""

    kind: str
    """`table` or `figure`."""
    number: int
    title: str
    methods: tuple[Method, ...]
    settings: tuple[str, ...]
    """What is evaluated; empty for table 9's cost and figure 6's codes alone."""


def _methods(*presets: str) -> tuple[Method, ...]:
    return tuple(Method(name, name.upper()) for name in presets)


_COMPARED = _methods("codis", "turn", "cmcm", "dcid", "micu")
_BEST = _methods("cmcm", "dcid", "micu")
_TERMS = ("fine", "coarse", "cujp", "fine+coarse", "fine+cujp", "coarse+cujp")
_ABLATED = (
    *(Method(f"ablation-{t.replace('+', '-')}", t, f"MICU[{t}]") for t in _TERMS),
    Method("micu", "fine+coarse+cujp (MICU)", "MICU[fine+coarse+cujp]"),
)
_COST = (
    *_methods("cmcm", "dcid"),
    Method("fig3-mmjp", "MICU (MMJP6)"),
    Method("fig3-cujp4", "MICU (CUJP4)"),
    Method("micu", "MICU (CUJP8)"),
)
_JIGSAWS = (
    Method("ablation-fine-coarse", "no jigsaw"),
    Method("fig3-mmjp", "MMJP"),
    Method("fig3-cujp2", "CUJP2"),
    Method("fig3-cujp4", "CUJP4"),
    Method("micu", "CUJP8"),
)
_MASKS = (Method("micu", "the same mask"), Method("fig4-independent", "a mask for each modality"))
_CODES = tuple(Method("micu" if size == 400 else f"fig5-{size}", f"{size} codes") for size in SIZES)


def _suffixed(*suffixes: str) -> tuple[str, ...]:
    return tuple(f"{name}{suffix}" for name in OPEN_SET for suffix in suffixes)


LAYOUTS: Mapping[tuple[str, int], Layout] = {
    (kind, number): Layout(kind, number, title, methods, settings)
    for kind, number, title, methods, settings in (
        ("table", 2, TABLES[2], _COMPARED, OPEN_SET),
        ("table", 3, TABLES[3], _COMPARED, CLOSED_SET),
        ("table", 4, TABLES[4], _BEST, ("mscoco", "clotho")),
        ("table", 5, TABLES[5], _BEST, _suffixed("", "-enhanced")),
        ("table", 6, TABLES[6], _BEST, _suffixed(BOTH_WAYS)),
        ("table", 7, TABLES[7], _ABLATED, OPEN_SET),
        ("table", 8, TABLES[8], _ABLATED, CLOSED_SET),
        ("table", 9, TABLES[9], _COST, (*OPEN_SET, *CLOSED_SET)),
        ("figure", 3, "Jigsaws, means over data sets", _JIGSAWS, (*OPEN_SET, *CLOSED_SET)),
        ("figure", 4, "Masks, means over data sets", _MASKS, (*OPEN_SET, *CLOSED_SET)),
        ("figure", 5, "Sizes of the codebook, means over data sets", _CODES, OPEN_SET + CLOSED_SET),
        ("figure", 6, "Codes that modalities share", _methods("micu"), ()),
    )
}
"""By kind and number."""

Values = Mapping[tuple[str, str, str, str], tuple[float, ...]]
"""(preset, setting, direction, metric) → one value for each seed."""


def preset_of(row: Row) -> str:
    """The preset whose row of a table a row of results belongs to.

    The authors' files stand for the method that they are called after, and settings of a sweep for
    the preset that has the same. Other changes leave the preset as it is: the report names them.
    """
    if row.method.startswith(FROZEN):
        return row.method
    name, _, changes = row.preset.partition(CHANGES)
    if name.startswith(RELEASED):
        stem = name.removeprefix(RELEASED).partition("(")[0].strip().lower()
        return stem if stem in (*BASELINES, "fcid") else "micu"
    values = dict(change.partition("=")[::2] for change in changes.split())
    if name == "micu" and values.get("contrastive.mask_share") == "independent":
        return "fig4-independent"
    if name == "micu" and f"fig5-{(size := values.get('quantizer.codebook_size'))}" in {
        method.preset for method in _CODES
    }:
        return f"fig5-{size}"
    return name


def with_frozen(layout: Layout, names: Iterable[str]) -> Layout:
    """The layout with a line for each `frozen:BACKBONE` among some names, after the paper's.

    Figures and the table of costs compare settings of MICU: they stay as they are.
    """
    if layout.kind == "figure" or layout.number == 9:
        return layout
    frozen = [name for name in dict.fromkeys(names) if name.startswith(FROZEN)]
    own = {method.preset for method in layout.methods}
    lines = tuple(Method(name, name) for name in frozen if name not in own)
    return replace(layout, methods=(*layout.methods, *lines))


def collect(rows: Iterable[Row], protocol: str) -> Values:
    """What tables and figures show, of rows of one protocol.

    Settings whose printed figures are means of both directions get such means, of every seed that
    has both. Of open-set rows those count whose threshold is the protocol's own.
    """
    threshold = {PAPER: ORACLE, CLEAN: SOURCE_VAL}[protocol]
    found: dict[tuple[str, str, str, str], dict[tuple[object, ...], float]] = {}
    for row in rows:
        own = row.method == MODEL or row.method.startswith(FROZEN)
        own = own and row.protocol in (protocol, "") and not row.other_split
        if not own or (row.task == "oscmg" and row.threshold_source != threshold):
            continue
        if row.task == "oscmg" and row.score not in ("", "msp"):
            continue
        direction = ""
        if row.train_modality and row.test_modality:
            direction = direction_of(row.train_modality, row.test_modality)
        for metric, value in _metrics_of(row):
            key = (preset_of(row), row.setting, direction, metric)
            found.setdefault(key, {})[row.seed, row.checkpoint_sha256] = value
    both: dict[tuple[str, str, str, str], dict[tuple[object, ...], float]] = {}
    for (preset, setting, direction, metric), runs in found.items():
        one, _, other = direction.partition("->")
        back = found.get((preset, setting, f"{other}->{one}", metric), {})
        known = SETTINGS.get(setting)
        averaged = setting.endswith(BOTH_WAYS) or (known and known.task == "retrieval")
        if averaged and "VAFT".find(one) < "VAFT".find(other):
            shared = {run: (runs[run] + back[run]) / 2 for run in runs if run in back}
            both[preset, setting, f"{one}<->{other}", metric] = shared
    return {key: tuple(runs.values()) for key, runs in {**found, **both}.items() if runs}


def _metrics_of(row: Row) -> Iterator[tuple[str, float]]:
    """A row's number under the names that tables have for it."""
    yield row.metric, row.value
    if row.metric == "f1_micro":  # what `clean` has in place of the published arithmetic
        yield "f1", row.value
    if row.metric == "seconds_per_step" and row.n_clips:
        yield "seconds_per_epoch", row.value * math.ceil(PRETRAINING_CLIPS / row.n_clips)


def as_printed_sections(
    layout: Layout, rows: Sequence[Row], codebooks: Mapping[str, CodebookUse]
) -> list[Section]:
    """The parts of a page about one table or figure."""
    layout = with_frozen(layout, [row.method for row in rows])
    heading = f"{layout.kind.capitalize()} {layout.number}: {layout.title}"
    if layout.kind == "figure" and layout.number == 6:
        blocks: list[Block] = []
        for name, use in codebooks.items():
            shares = ", ".join(f"{n}: {share:.1%}" for n, share in use.shares().items())
            told = f"{name}: share of the active codes by how many modalities take part: {shares}."
            blocks += [told, Drawings(draw_codebook(use))]
        return [Section(heading, blocks or ["No counts of codes yet."])]
    sections = []
    for protocol, told in (
        (PAPER, "as published: epoch and threshold are the best on the test set"),
        (CLEAN, "nothing chosen on the test set"),
    ):
        values = collect(rows, protocol)
        tables = _tables(layout, values, with_printed=protocol == PAPER)
        if layout.kind == "figure":
            tables += _charts(layout, values)
        sections.append(Section(f"{heading}; {protocol}, {told}", tables))
    return sections


# --- tables ----------------------------------------------------------------------------------


def _tables(layout: Layout, values: Values, *, with_printed: bool) -> list[Block]:
    if layout.kind == "figure":
        return [_figure_table(layout, values)]
    if layout.number == 9:
        return _cost_table(layout, values)
    printed = {
        (figure.setting, figure.method, figure.direction, figure.metric): figure
        for figure in read_printed()
        if figure.table == layout.number
    }
    columns = list(dict.fromkeys((s, d, m) for s, _, d, m in printed))
    order = {setting: place for place, setting in enumerate(layout.settings)}
    columns.sort(key=lambda column: order[column[0]])  # Original beside Enhanced
    blocks: list[Block] = []
    for setting, under in grouped(columns, lambda column: _data_of(column[0])).items():
        header = ["method", *(_column_title(layout, column) for column in under)]
        lines = []
        for method in layout.methods:
            cells = []
            for name, direction, metric in under:
                cell = Cell(
                    values.get((method.preset, name, direction, metric), (math.nan,)),
                    printed.get((name, method.filed, direction, metric)) if with_printed else None,
                )
                cells.append(_show(cell))
            lines.append((method.title, *cells))
        blocks += [Title(setting), TextTable((tuple(header), *lines))]
    means = _means_table(layout, values, printed if with_printed else {}, columns)
    return [*blocks, Title("Mean over all columns"), means]


def _data_of(setting: str) -> str:
    """The data and known classes of a setting, whatever its backbones."""
    return setting.removesuffix("-enhanced").removesuffix(BOTH_WAYS)


def _column_title(layout: Layout, column: tuple[str, str, str]) -> str:
    setting, direction, metric = column
    backbones = ""
    if layout.number == 5:
        backbones = "Enhanced " if setting.endswith("-enhanced") else "Original "
    arrow = direction.replace("<->", "↔").replace("->", "→")
    return f"{backbones}{arrow} {metric_title(metric)}"


def _means_table(
    layout: Layout,
    values: Values,
    printed: Mapping[tuple[str, str, str, str], object],
    columns: Sequence[tuple[str, str, str]],
) -> TextTable:
    """Means of each metric over all its columns; a dash where one is missing."""
    kinds = grouped(columns, lambda column: (column[0].rpartition("-enhanced")[1], column[2]))
    header = [
        "method",
        *(f"{kind[0].strip('-')} {metric_title(kind[1])}".strip() for kind in kinds),
    ]
    lines = []
    for method in layout.methods:
        cells = []
        for under in kinds.values():
            ours = _mean([values.get((method.preset, *column), ()) for column in under])
            theirs = [printed.get((s, method.filed, d, m)) for s, d, m in under]
            numbers = [figure.number for figure in theirs if figure is not None]  # type: ignore[attr-defined]
            text = "–" if math.isnan(ours) else f"{100 * ours:.2f}"
            if len(numbers) == len(under):
                text += f" ({statistics.fmean(numbers):.2f})"
            cells.append(text)
        lines.append((method.title, *cells))
    return TextTable((tuple(header), *lines))


def _mean(cells: Iterable[Sequence[float]]) -> float:
    """Mean over columns of the means over seeds; NaN if a column has none."""
    means = [statistics.fmean(values) if values else math.nan for values in cells]
    return statistics.fmean(means) if means else math.nan


def _show(cell: Cell) -> str:
    """Ours and, in brackets, the paper's; both in percent."""
    ours = show_mean(cell, "hos")
    if cell.printed is None:
        return ours
    return f"{ours} ({cell.printed.value}{'*' if cell.printed.note else ''})"


def _cost_table(layout: Layout, values: Values) -> list[Block]:
    """Table 9; hours are those of the measured steps, extrapolated to an epoch of AVEL-40k."""
    printed = {(f.method, f.metric): f.value for f in read_printed() if f.table == layout.number}
    lines = []
    for method in layout.methods:
        measured = {
            metric: _mean([values.get((method.preset, "", "", metric), ())])
            for metric in ("training_memory_mib", "parameters", "seconds_per_epoch", "epochs")
        }
        means = summed_up(method.preset, values)
        cells = (
            ("gpu_memory_gb", _number(measured["training_memory_mib"] / GIB_OF_MIB)),
            ("hours_per_epoch", _number(measured["seconds_per_epoch"] / 3600, 3)),
            ("epochs", _number(measured["epochs"], 0)),
            ("parameters", _number(measured["parameters"] / 1e6)),
            ("mean_hos", _number(100 * means["HOS"])),
            ("mean_cmg", _number(100 * means["CMG"])),
        )
        lines.append(
            (
                method.title,
                *(
                    ours + (f" ({printed[method.filed, name]})" if name != "parameters" else "")
                    for name, ours in cells
                ),
            )
        )
    header = (
        "method",
        "memory, GB",
        "hours per epoch",
        "epochs",
        "parameters, M",
        "mean HOS",
        "mean CMG",
    )
    told = (
        "Memory and hours were measured here, on the steps of `micu-eval efficiency`; hours are "
        f"extrapolated from these to an epoch of {PRETRAINING_CLIPS:,} clips, without reading. "
        "The paper's, in brackets, are of an RTX 3090."
    )
    return [told, TextTable((header, *lines))]


def _number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


# --- figures ---------------------------------------------------------------------------------


def summed_up(preset: str, values: Values) -> dict[str, float]:
    """Means over data sets and directions, of the open set and of both kinds of CMG.

    Returns:
        By title, in [0, 1]; NaN where a column is missing.
    """
    ways = ("V->A", "A->V")

    def mean(settings: Sequence[str], metric: str) -> float:
        return _mean([values.get((preset, s, way, metric), ()) for s in settings for way in ways])

    classified, localised = mean(CLASSIFIED, "acc"), mean(LOCALISED, "f1")
    return {
        "HOS": mean(OPEN_SET, "hos"),
        "CMG": (classified + localised) / 2,
        "CMG classification": classified,
        "CMG localisation": localised,
    }


def _figure_table(layout: Layout, values: Values) -> TextTable:
    found = [(method.title, summed_up(method.preset, values)) for method in layout.methods]
    header = ("", *found[0][1])
    return TextTable((header, *((t, *(_number(100 * x) for x in m.values())) for t, m in found)))


def _charts(layout: Layout, values: Values) -> list[Block]:
    """Bars of each mean; lines over the size of the codebook for figure 5."""
    found = [(method.title, summed_up(method.preset, values)) for method in layout.methods]
    shown = ("HOS", "CMG classification", "CMG localisation")
    if layout.number == 5:
        sizes = [float(title.split()[0]) for title, _ in found]
        curves = [Curve(name, sizes, [means[name] for _, means in found]) for name in shown]
        told = "; ".join(
            f"{name}: {', '.join(f'{title} {_number(100 * m[name])}' for title, m in found)}"
            for name in shown
        )
        x, y = ("codes", float(SIZES[0]), float(SIZES[-1])), ("mean over data sets", 0.0, 1.0)
        return [Drawings([draw_curves(layout.title, told, curves, x, y, percent="y")])]
    drawn = []
    for name, colour in zip(shown, COLOURS, strict=False):
        bars = [(title, means[name], math.nan, colour) for title, means in found]
        told = ", ".join(f"{title} {_number(100 * means[name])}" for title, means in found)
        drawn.append(draw_bars(f"{layout.title}: {name}, %", f"{told}.", bars, "", {name: colour}))
    return [Drawings(drawn)]
