"""`micu-eval report` on results, and `micu-eval paper`'s figures."""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from micu.base.command_line import ToolCommand
from micu.base.errors import ConfigError
from micu.base.files import write_atomically
from micu.base.process import EXIT_FAILURES, exit_codes, show_log
from micu.cli.outputs import refuse_shared, try_file, try_folder
from micu.evaluate.markdown import render_columns, render_markdown
from micu.evaluate.report import Row, read_rows
from micu.report.figures import METHODS
from micu.report.paper import COLUMNS, SETTINGS, TABLES, Printed, select_table, tabulate_printed

RESULTS = "results.csv"
SHOWN = 12
"""Problems of one submission that are told."""
BOARD = (
    "Means over pairs of modalities, then mean ± standard deviation over seeds, in percent, under "
    "`clean`. Compare what was tested on the same clips."
)


@click.command(cls=ToolCommand, example="micu-eval report results.csv runs features -o report.html")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    "outputs",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Where to; .html, .md or .csv says what. Repeatable.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    help="Folder for every drawing as PDF, PNG (300 dpi) and SVG, for a paper.",
)
@click.option("--title", help="Of the page, and of Markdown [default: model, data set and date].")
@click.option(
    "--map",
    "map_method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="How clips are placed in the plane. auto: t-SNE if scikit-learn is installed (extra "
    "`report`), else PCA; the report says which.",
)
def report(
    runs: tuple[Path, ...],
    outputs: tuple[Path, ...],
    figures: Path | None,
    title: str | None,
    map_method: str,
) -> None:
    """Put results beside the paper's figures, with curves, maps and provenance.

    RUNS are results files and what else belongs to a report: details (--details), codebook counts
    (--codebook-out), a training's metrics.csv, feature sets with their failures; or folders that
    are searched for all of them. A results file brings the commands that lie beside it, and
    NAME-details beside NAME.csv.
    """
    with exit_codes("no report was written; type it again"):
        show_log()
        for path in outputs:
            _renderer(path)
        from micu.report.build import build_report, title_of
        from micu.report.drawings import write_drawings
        from micu.report.page import drawings_of
        from micu.report.read import METRICS, gather

        if not outputs and figures is None:
            raise ConfigError("expected -o report.html, or --figures FOLDER, got neither")
        drawn = figures is not None or any(path.suffix == ".html" for path in outputs)
        if map_method != "auto" and not drawn:
            raise ConfigError(
                f"--map {map_method}: only a page (-o report.html) and --figures have maps"
            )
        for path in outputs:
            try_file("-o", path)
        if figures is not None:
            try_folder("--figures", figures)
        material = gather(runs)
        read = (Path(name) for name in (*material.sources, *material.codebooks))
        metrics = (Path(name) / METRICS for name in material.trainings)
        refuse_shared({f"-o {path}": path for path in outputs}, [*read, *metrics])
        sections = build_report(material, map_method if drawn else "pca")
        for path in outputs:
            write_atomically(
                path, _renderer(path)(title or title_of(material), material, sections).encode()
            )
            click.echo(f"{path}: {len(material.results)} figures", err=True)
        if figures is not None:
            count = write_drawings(drawings_of(sections), figures)
            click.echo(f"{figures}: {count} drawings", err=True)


def _renderer(path: Path) -> Callable[[str, Any, Any], str]:
    """What writes a file of this name: title, material and sections in, text out.

    Raises:
        ConfigError: Its suffix is none that can be written.
    """
    from micu.report.compare import compare, render_csv
    from micu.report.page import render_html, render_report_markdown

    known: dict[str, Callable[[str, Any, Any], str]] = {
        ".html": lambda title, _, sections: render_html(title, sections),
        ".md": lambda title, _, sections: render_report_markdown(title, sections),
        ".csv": lambda _, material, __: render_csv(compare(material.results)),
    }
    if path.suffix not in known:
        raise ConfigError(f"-o {path}: expected a name that ends in {', '.join(known)}")
    return known[path.suffix]


@click.command(cls=ToolCommand, example="micu-eval paper --table 2")
@click.option("--table", type=int, help=f"One of {', '.join(map(str, TABLES))} [default: all].")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV, one figure per line, with notes.")
@click.option("--markdown", is_flag=True, help="As Markdown.")
def paper(table: int | None, as_csv: bool, markdown: bool) -> None:
    """Print the figures of the paper's tables 2 to 9, as printed there; rates in percent."""
    with exit_codes("nothing was printed"):
        if as_csv and markdown:
            raise ConfigError("--csv and --markdown: expected one of them")
        figures = select_table(table)
        if as_csv:
            click.echo(_figures_csv(figures), nl=False)
            return
        for number, title in TABLES.items():
            chosen = [figure for figure in figures if figure.table == number]
            if chosen:
                mark = "## " if markdown else ""
                content = tabulate_printed(chosen)
                click.echo(f"{mark}Table {number}: {title}\n")
                click.echo(render_markdown(content) if markdown else render_columns(content))
                for note in _notes(chosen):
                    click.echo(f"\n{note}")
                click.echo()


@click.command(cls=ToolCommand, example="micu-eval check submissions --board leaderboard.md")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--board", type=click.Path(path_type=Path), help="Write what passes as one table.")
def check(paths: tuple[Path, ...], board: Path | None) -> None:
    """Check submissions: the protocol, leaks, seeds and hashes of results files.

    PATHS are results files, or folders with one results.csv for each submission. A submission is
    called after its folder. Exit code 3: one did not pass, and is not on the board.
    """
    from micu.report.submission import find_problems, tabulate_board

    with exit_codes("nothing was written"):
        files = [f for p in paths for f in (sorted(p.rglob(RESULTS)) if p.is_dir() else [p])]
        if not files:
            raise ConfigError(f"{paths[0]}: expected a results file, or a folder with {RESULTS}")
        passed: dict[str, list[Row]] = {}
        for file in files:
            name = str(file.parent.resolve().name if file.name == RESULTS else file.stem)
            rows = read_rows(file)
            problems = find_problems(rows)
            problems += [f"another submission is called {name}; rename one"] * (name in passed)
            if not problems:
                passed[name] = rows
            shown = problems[:SHOWN] + [f"and {len(problems) - SHOWN} more"] * (
                len(problems) > SHOWN
            )
            click.echo(f"{file}: " + ("passes" if not problems else "\n  ".join(["", *shown])))
        if board is not None:
            try_file("--board", board)
            refuse_shared({"--board": board}, files)
            text = f"# Leaderboard\n\n{BOARD}\n\n{render_markdown(tabulate_board(passed))}\n"
            write_atomically(board, text.encode())
            click.echo(f"{len(passed)} submissions in {board}", err=True)
    if len(passed) < len(files):
        sys.exit(EXIT_FAILURES)


def _figures_csv(figures: Sequence[Printed]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(figure, name) for name in COLUMNS] for figure in figures)
    return text.getvalue()


def _notes(figures: Sequence[Printed]) -> list[str]:
    """What is wrong with single figures, and what those of each setting rest on."""
    single = [
        f"* {figure.method} {figure.setting} {figure.direction} {figure.metric}: {figure.note}"
        for figure in figures
        if figure.note
    ]
    names = dict.fromkeys(figure.setting for figure in figures if figure.setting in SETTINGS)
    rests = [f"{n}: {SETTINGS[n].told}. {'; '.join(SETTINGS[n].rests_on)}." for n in names]
    return [*single, "\n".join(rests)] if rests else single
