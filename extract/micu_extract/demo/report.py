"""The demo's last page: results, codebook, failures and commands, in one HTML file.

It reads the tables that `micu-eval` and `micu-extract` wrote, as a user would: nothing is imported
from the evaluation.
"""

import csv
import html
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

METHODS = {
    "checkpoint": "MICU, trained",
    "untrained": "the same network, untrained",
    "ceiling": "probe trained on the target modality",
    "chance": "guessing",
}
"""Values of the results' column `method`, as the report calls them."""

HEADLINE = "source-val"
THRESHOLDS = {
    "source-val": "threshold and probe chosen on held-out clips of the source modality",
    "oracle": "chosen on the test set itself: comparable with the paper, not a fair figure",
}


@dataclass(frozen=True, slots=True)
class Typed:
    """A command that was typed."""

    line: str
    exit_code: int
    wall_s: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """A clip that one modality could not be extracted from."""

    feature_set: str
    clip_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the demo did."""

    typed: tuple[Typed, ...]
    failures: tuple[Failed, ...]
    features: Path
    """Root of the feature sets."""
    results: Path
    """CSV of `micu-eval --task oscmg`."""
    codebook: Path
    """CSV of `micu-eval --task codebook`."""
    seeds: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Scores:
    """One metric under one protocol, by pair of modalities and method."""

    by_pair: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Pair → method → one value per seed."""

    def mean(self, pair: str, method: str) -> float:
        """Mean over seeds; NaN where there is no value."""
        values = self.by_pair.get(pair, {}).get(method, ())
        return statistics.fmean(values) if values else math.nan

    def overall(self, method: str) -> float:
        """Mean over seeds and pairs."""
        return statistics.fmean(self.mean(pair, method) for pair in self.by_pair)


def read_failures(features: Path) -> tuple[Failed, ...]:
    """The ledgers of every feature set below `features`."""
    found: list[Failed] = []
    for path in sorted(features.rglob("failures.csv")):
        for row in _read_csv(path):
            found.append(Failed(path.parent.name, row["clip_id"], row["code"], row["message"]))
    return tuple(found)


def read_scores(path: Path, metric: str, threshold_source: str) -> Scores:
    """One metric from the long table of results.

    The ceiling is trained on the target modality alone, so it stands beside every pair with that
    target; guessing has no threshold.
    """
    rows = [row for row in _read_csv(path) if row["task"] == "oscmg" and row["metric"] == metric]
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["train_modality"] != row["test_modality"]:
            values.setdefault(f"{row['train_modality']} → {row['test_modality']}", {})
    for row in rows:
        if row["threshold_source"] not in (threshold_source, "none"):
            continue
        for pair, methods in values.items():
            source, target = pair.split(" → ")
            own = row["method"] == "ceiling" or row["train_modality"] == source
            if own and row["test_modality"] == target:
                methods.setdefault(row["method"], []).append(float(row["value"]))
    return Scores(
        {
            pair: {method: tuple(found) for method, found in methods.items()}
            for pair, methods in values.items()
        }
    )


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def render_summary(report: Report) -> str:
    """The table that the demo ends with, for a terminal."""
    scores = read_scores(report.results, "hos", HEADLINE)
    header = ("HOS, %", *METHODS.values())
    lines = [header]
    for pair in scores.by_pair:
        lines.append((pair, *(_percent(scores.mean(pair, method)) for method in METHODS)))
    lines.append(("mean", *(_percent(scores.overall(method)) for method in METHODS)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return f"{table}\n{_ratio(scores)}\n{_explain(report)}"


def _ratio(scores: Scores) -> str:
    trained, untrained = scores.overall("checkpoint"), scores.overall("untrained")
    if untrained <= 0:
        return f"MICU reaches {_percent(trained)} %, its untrained twin nothing."
    return f"MICU reaches {trained / untrained:.1f} times what its untrained twin reaches."


def _explain(report: Report) -> str:
    runs = "one model" if report.seeds == 1 else f"the mean of {report.seeds} models"
    return (
        f"HOS is the harmonic mean of accuracy on known classes and of unknown clips found; "
        f"{THRESHOLDS[HEADLINE]}; {runs}. A toy: the files were drawn for it, the backbones "
        "have random weights, and the numbers say nothing about real data. "
        f"{report.wall_s:.0f} s in all."
    )


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


# --- the page --------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fcfcfa; --line: #d5d8dc;
  --m0: #1264a3; --m1: #b35900; --m2: #2e7d32; --m3: #757d85; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --paper: #14171a; --line: #353b41;
  --m0: #5fb0f0; --m1: #f0964a; --m2: #6fcf75; --m3: #99a1a9; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: left;
  vertical-align: top; }
pre { border: 1px solid var(--line); padding: .7rem; overflow-x: auto; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 13px; }
.toy { border-left: 4px solid var(--m1); padding-left: .8rem; }
"""

NEXT = """\
# a manifest of your own: clip_id, path, start_s, end_s, label, split, text
micu-extract list
micu-extract video my.csv --backbone swinv2 --media-root /data/videos
micu-extract audio my.csv --backbone htsat --media-root /data/videos
micu-extract flow my.csv --tvl1 --media-root /data/videos
micu-extract verify features
micu-train --modalities v,a,f
micu-eval runs/micu-afv-43/last.pt --known known.csv --source video --target audio
"""


def render_page(report: Report) -> str:
    """The report: needs no network and no script, and reads well in light and dark."""
    sections = (
        ("Results", _results(report)),
        ("How the modalities use the codebook", _codebook(report.codebook)),
        ("What failed, and why", _failures(report.failures)),
        ("What was typed", _commands(report.typed)),
        ("Made with", _sources(report.features)),
        ("Your own data", f"<pre>{html.escape(NEXT)}</pre>"),
    )
    body = "\n".join(f"<section><h2>{title}</h2>\n{text}</section>" for title, text in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>micu-demo</title><style>{STYLE}</style></head>\n"
        f"<body><h1>micu-demo</h1>\n<p class='toy'>{html.escape(_explain(report))}</p>\n"
        f"{body}\n</body></html>\n"
    )


def _results(report: Report) -> str:
    headline = read_scores(report.results, "hos", HEADLINE)
    parts = [
        "<p>A probe learns six known classes from one modality and is tested in another one on "
        "ten; the other four it should refuse.</p>",
        f"<p>{html.escape(_ratio(headline))}</p>",
        _draw_bars(headline, f"HOS; {THRESHOLDS[HEADLINE]}"),
    ]
    for source, told in THRESHOLDS.items():
        rows: list[Sequence[str]] = [
            ("from → to", "method", "HOS, %", "OS*, %", "UNK, %", "closed-set accuracy, %")
        ]
        tables = [read_scores(report.results, m, source) for m in ("hos", "os_star", "unk", "acc")]
        for pair in tables[0].by_pair:
            for method, name in METHODS.items():
                rows.append((pair, name, *(_with_spread(table, pair, method) for table in tables)))
        parts.append(f"<h3><code>{source}</code>: {html.escape(told)}</h3>{_table(rows)}")
    parts.append(
        "<p>OS* is the accuracy on known classes, a refused clip counting as wrong; UNK the share "
        "of unknown clips that are refused; HOS their harmonic mean. Guessing is at its best rate "
        "of refusal. The probe trained on the target modality reads that modality's features "
        "alone, so codes that were learned from four can beat it.</p>"
    )
    return "\n".join(parts)


def _with_spread(scores: Scores, pair: str, method: str) -> str:
    values = scores.by_pair.get(pair, {}).get(method, ())
    mean = _percent(scores.mean(pair, method))
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _draw_bars(scores: Scores, title: str) -> str:
    """Horizontal bars, grouped by pair, guessing as a dashed line."""
    left, full, bar = 130, 480, 17  # px of the drawing, which scales with the page
    shown = [method for method in METHODS if method != "chance"]
    parts: list[str] = []
    y = 18 * len(METHODS) + 12
    for number, (method, name) in enumerate(METHODS.items()):
        top = 18 * number
        high, down = (12, 0) if method != "chance" else (2, 6)
        parts.append(
            f'<rect x="{left}" y="{top + down}" width="14" height="{high}" '
            f'fill="var(--m{number})"/><text x="{left + 22}" y="{top + 11}">{name}</text>'
        )
    for pair in scores.by_pair:
        parts.append(f'<text x="0" y="{y + 2 * bar - 4}">{html.escape(pair)}</text>')
        for number, method in enumerate(shown):
            top, value = y + number * bar, scores.mean(pair, method)
            if not math.isnan(value):
                width = full * value
                parts.append(
                    f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{bar - 3}" '
                    f'fill="var(--m{number})"/>'
                    f'<text x="{left + width + 5:.1f}" y="{top + 12}">{_percent(value)} %</text>'
                )
        x = left + full * scores.mean(pair, "chance")
        if not math.isnan(x):
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2}" y2="{y + len(shown) * bar}" '
                'stroke="var(--m3)" stroke-width="2" stroke-dasharray="4 3"/>'
            )
        y += len(shown) * bar + 14
    caption = html.escape(title)
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 740 {y}" role="img" aria-label="{caption}">{"".join(parts)}</svg>'
        "</figure>"
    )


def _codebook(path: Path) -> str:
    """How many codes each modality uses, how evenly, and a strip of all codes by use."""
    counts: dict[str, dict[int, int]] = {}
    codes: set[int] = set()
    for row in _read_csv(path):
        codes.add(int(row["code"]))
        if int(row["count"]) > 0:
            counts.setdefault(row["modality"], {})[int(row["code"])] = int(row["count"])
    used = set().union(*counts.values())
    shared = set.intersection(*map(set, counts.values())) if counts else set()
    rows = [("modality", "codes used", "perplexity")]
    rows += [
        (name, str(len(use)), f"{_perplexity(use.values()):.1f}") for name, use in counts.items()
    ]
    order = sorted(used, key=lambda code: -sum(use.get(code, 0) for use in counts.values()))
    return (
        f"<p>{len(used)} of {len(codes)} codes are used, {len(shared)} of them by every modality. "
        "Each column is a code, the most used first; the darker, the more often a modality chose "
        f"it.</p>{_draw_strips(counts, order)}{_table(rows)}"
    )


def _perplexity(counts: Iterable[int]) -> float:
    values = [count for count in counts if count]
    total = sum(values)
    return math.exp(-sum(n / total * math.log(n / total) for n in values))


def _draw_strips(counts: Mapping[str, Mapping[int, int]], order: Sequence[int]) -> str:
    left, full, high = 60, 680, 22
    width = full / max(1, len(order))
    parts = []
    for number, (name, use) in enumerate(counts.items()):
        y, peak = number * (high + 6), max(use.values())
        parts.append(f'<text x="0" y="{y + 15}">{html.escape(name)}</text>')
        parts += [
            f'<rect x="{left + place * width:.1f}" y="{y}" width="{width:.2f}" height="{high}" '
            f'fill="var(--m0)" fill-opacity="{0.15 + 0.85 * use[code] / peak:.2f}"/>'
            for place, code in enumerate(order)
            if code in use
        ]
    return (
        f'<svg viewBox="0 0 740 {len(counts) * (high + 6)}" role="img" '
        f'aria-label="codes by modality">{"".join(parts)}</svg>'
    )


def _failures(failures: Sequence[Failed]) -> str:
    rows = [("feature set", "clip", "code", "message")]
    rows += [(f.feature_set, f.clip_id, f.code, f.message) for f in failures]
    return (
        "<p>Three files were broken on purpose. Every row of the manifest is in a shard or here, "
        f"never in both and never in neither.</p>{_table(rows)}"
    )


def _commands(typed: Sequence[Typed]) -> str:
    rows = [("s", "exit code", "command")]
    for command in typed:
        note = f"  # {command.note}" if command.note else ""
        rows.append((f"{command.wall_s:.1f}", str(command.exit_code), command.line + note))
    return (
        "<p>Exit code 3 says that an extraction is finished and some clips are in its ledger.</p>"
        f"{_table(rows)}"
    )


def _sources(features: Path) -> str:
    """Backbone, weights and versions of each feature set, from its own description."""
    rows: list[Sequence[str]] = [("features", "shape", "weights", "sha256", "versions")]
    for path in sorted(features.rglob("set.json")):
        spec = json.loads(path.read_bytes())["header"]["spec"]
        versions = ", ".join(f"{name} {number}" for name, number in spec["versions"].items())
        shape = ", ".join(map(str, ("T", *spec["shape"])))
        digest = spec["weights_sha256"][:12]
        rows.append((path.parent.name, f"({shape})", spec["weights"], digest, versions))
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        lines.append(
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        )
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'
