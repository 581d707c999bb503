"""Results: rows in a long CSV file, as a Markdown table, and as one self-contained HTML page."""

import csv
import fcntl
import html
import io
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from micu.errors import ConfigError
from micu.evaluate.columns import COLUMN_TITLES, NOT_RATES, SHOWN, shown_metrics
from micu.files import write_atomically

CHANGES = " with "
"""Between a preset's name and what was changed in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number, and everything that says how it was obtained."""

    task: str
    method: str
    """`checkpoint`, `untrained`, `input`, `ceiling` (probe trained on the target) or `chance`."""
    train_modality: str
    test_modality: str
    preset: str
    """Preset of the checkpoint, and what was changed in it."""
    seed: int
    threshold_source: str
    """`source-val`, `paired-quantile`, `oracle` (looks at the test set), or `none`."""
    metric: str
    value: float
    """Natural sign, rates in [0, 1]; NaN where `note` says why."""
    n_clips: int
    """Clips that the number is over."""
    checkpoint_sha256: str
    manifest_sha256: str
    classes_sha256: str = ""
    """Of the list of known classes."""
    score: str = ""
    """Known score, where a threshold is laid on one."""
    probe: str = ""
    """How the probe was trained, where there is one."""
    features: str = ""
    """`modality:backbone@fingerprint` of the feature sets, the probe's own first."""
    protocol: str = ""
    """`paper` (as published) or `clean`; empty where nothing differs."""
    leaks: str = ""
    """What the number rests on that it should not, names separated by blanks; see
    `micu.evaluate.leaks`."""
    note: str = ""

    def key(self) -> tuple[object, ...]:
        """What two rows about the same number have in common."""
        free = ("value", "n_clips", "leaks", "note")
        return tuple(value for name, value in asdict(self).items() if name not in free)


COLUMNS = tuple(column.name for column in fields(Row))


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Add rows to a results file; a row about the same number replaces the old one.

    The file is replaced whole under a lock on its folder, so that several evaluations may write to
    it at once and a killed one leaves it as it was.

    Raises:
        ConfigError: There is a file that is not one of results.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        merged = {row.key(): row for row in (read_rows(path) if path.exists() else ())}
        merged |= {row.key(): row for row in rows}
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in merged.values())
        write_atomically(path, table.getvalue().encode())


def read_rows(path: Path) -> list[Row]:
    """Read a results file.

    Raises:
        ConfigError: It is missing, or not one.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such results file; micu-eval … --out {path} writes one")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(
                f"{path}: not a results file of this version; expected the columns "
                f"{', '.join(COLUMNS)}; choose another --out"
            )
        try:
            return [_parse(values) for values in reader]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: line {reader.line_num}: {error}") from error


def _parse(values: Mapping[str, str]) -> Row:
    kinds = {"seed": int, "value": float, "n_clips": int}
    parsed = {name: kinds.get(name, str)(value) for name, value in values.items()}
    return Row(**parsed)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns; the first row is the header."""

    rows: tuple[tuple[str, ...], ...]


def tabulate(rows: Sequence[Row], metrics: Sequence[str]) -> Table:
    """One line per method, pair of modalities and protocol; one column per metric.

    Rates are in percent, here and nowhere else. Several seeds become mean ± standard deviation
    (of the sample, n - 1). Rows of different probes, features or classes stand on lines of their
    own, though no column shows these.
    """
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    runs: dict[tuple[str, ...], set[tuple[int, str]]] = {}
    for row in rows:
        pair = " → ".join(filter(None, (row.train_modality, row.test_modality)))
        shown = (row.task, pair, row.method, row.preset, row.protocol, row.threshold_source)
        key = (*shown, row.score, row.leaks, row.probe, row.features, row.classes_sha256)
        groups.setdefault(key, {}).setdefault(row.metric, []).append(row.value)
        runs.setdefault(key, set()).add((row.seed, row.checkpoint_sha256))
    columns = [metric for metric in metrics if any(metric in group for group in groups.values())]
    header = (
        *("task", "modalities", "method", "preset", "protocol", "threshold", "score", "leaks"),
        "runs",
    )
    lines = [
        (
            *map(_short, key[: len(header) - 1]),
            str(len(runs[key])),
            *(_cell(group.get(name, []), name) for name in columns),
        )
        for key, group in groups.items()
    ]
    titles = tuple(COLUMN_TITLES.get(name, name) for name in columns)
    return _without_empty_columns(((*header, *titles), *lines))


def _short(text: str) -> str:
    """A preset that was changed, without its changes: `micu*`; what an oracle is; no `none`."""
    if text in ("oracle", "none"):
        return {"oracle": "oracle (test set)", "none": ""}[text]
    name, *changes = text.split(CHANGES)
    return f"{name}*" if changes else name


def _cell(values: Sequence[float], metric: str) -> str:
    if not values or any(math.isnan(value) for value in values):
        return "–"
    scale = 1 if metric in NOT_RATES else 100
    if metric == "seconds_per_clip":
        return f"{statistics.fmean(values):.3g}"
    mean = f"{scale * statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.2f}"


def _without_empty_columns(rows: Sequence[tuple[str, ...]]) -> Table:
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return Table(tuple(tuple(row[i] for i in kept) for row in rows))


def render_table(rows: Sequence[Row], metrics: Sequence[str] = SHOWN) -> str:
    """Rows as a Markdown table, rates in percent."""
    return render_markdown(tabulate(rows, metrics))


def render_markdown(content: Table) -> str:
    """A table as Markdown, its columns aligned."""
    table = content.rows
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "| "
        + " | ".join(
            _escape_bar(text).ljust(width) for text, width in zip(row, widths, strict=True)
        )
        + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _escape_bar(text: str) -> str:
    return text.replace("|", "\\|")


# --- the page --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BarChart:
    """Grouped horizontal bars of rates in [0, 1]."""

    title: str
    labels: tuple[str, ...]
    """One per group of bars."""
    series: Mapping[str, Sequence[float]]
    """Name → one value per label; NaN draws nothing."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page; what is empty is left out."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[BarChart, ...] = ()
    code: str = ""
    """Shown as typed."""


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de;
  --s0: #0969da; --s1: #bf5b04; --s2: #1a7f37; --s3: #8250df; --s4: #6e7781; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d;
  --s0: #58a6ff; --s1: #f0883e; --s2: #56d364; --s3: #bc8cff; --s4: #8b949e; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left;
  white-space: nowrap; }
pre { border: 1px solid var(--line); padding: .7rem; overflow-x: auto; }
svg { width: 100%; max-width: 48rem; height: auto; } svg text { fill: var(--ink); font-size: 13px; }
"""


def render_html(title: str, sections: Sequence[Section]) -> str:
    """One HTML page that needs nothing but itself: no network, no script; light and dark."""
    body = "\n".join(_render_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def describe_task(rows: Sequence[Row], task: str) -> list[Section]:
    """What the page of one evaluation shows."""
    if task != "oscmg":
        metrics = shown_metrics(task, {row.metric for row in rows})
        return [Section(task.capitalize(), tables=(tabulate(rows, metrics),))]
    table = tabulate(rows, ("os_star", "unk", "hos", "acc", "auroc", "oscr"))
    values: dict[str, dict[str, list[float]]] = {}
    for row in (row for row in rows if row.metric == "hos"):
        label = f"{row.method} {row.train_modality} → {row.test_modality}"
        values.setdefault(label, {}).setdefault(row.threshold_source, []).append(row.value)
    protocols = dict.fromkeys(name for found in values.values() for name in found)
    series = {
        name: [statistics.fmean(found.get(name, [math.nan])) for found in values.values()]
        for name in protocols
    }
    notes = dict.fromkeys(f"{row.threshold_source}: {row.note}" for row in rows if row.note)
    return [
        Section(
            "Open-set cross-modal generalisation",
            ("oracle looks at the test set; source-val does not.",),
            (table,),
            (BarChart("HOS, mean over seeds", tuple(values), series),),
        ),
        Section("How each threshold was chosen", tuple(notes)),
    ]


def _render_section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.heading)}</h2>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
    parts += [_render_bars(chart) for chart in section.charts]
    parts += [_render_html_table(table) for table in section.tables]
    if section.code:
        parts.append(f"<pre>{html.escape(section.code)}</pre>")
    return f"<section>{''.join(parts)}</section>"


def _render_html_table(table: Table) -> str:
    lines = []
    for number, row in enumerate(table.rows):
        tag = "td" if number else "th"
        cells = "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _render_bars(chart: BarChart) -> str:
    left, full, bar, gap = 220, 420, 18, 14  # px of the drawing, which scales with the page
    parts: list[str] = []
    y = 24 * len(chart.series) + gap
    for number, name in enumerate(chart.series):
        colour, top = f"var(--s{number % 5})", 24 * number
        parts.append(f'<rect x="0" y="{top + 3}" width="14" height="14" fill="{colour}"/>')
        parts.append(f'<text x="22" y="{top + 15}">{html.escape(name)}</text>')
    for group, label in enumerate(chart.labels):
        parts.append(f'<text x="0" y="{y + 13}">{html.escape(label)}</text>')
        for number, values in enumerate(chart.series.values()):
            value = values[group]
            if not math.isnan(value):
                width, fill = full * min(max(value, 0.0), 1.0), f"var(--s{number % 5})"
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{bar - 3}" '
                    f'fill="{fill}"/><text x="{left + width + 6:.1f}" y="{y + 13}">'
                    f"{100 * value:.1f} %</text>"
                )
            y += bar
        y += gap
    title = html.escape(chart.title)
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 720 {y}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
        "</figure>"
    )
