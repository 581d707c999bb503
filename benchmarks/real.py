"""Every method on the same real data: media, features, tuning, training, evaluation, one table.

Stages, each of which goes on where it was stopped:

    fetch      the material of av-digits into `--bench DIR`, from where it is published
    features   the clips, and their features by pretrained encoders (`--bench DIR`;
               see `docs/real-data.md`)
    tune       four settings of each method, chosen by accuracy on held-out source clips
    train      the chosen setting with five seeds
    evaluate   open-set with two class splits and closed-set, over all pairs of modalities
    cost       the seconds of a step of every method, in turns
    table      `table.md`, `cells.csv` (mean, deviation) and `figures.csv` (all) in `--out`
    all        these six; features only if `--bench` says where the material is
    ablation   MICU with one thing changed, two seeds: `ablation.md`
    choices    rules for thresholds and criteria of tuning, compared: `choices.md`
    draws      clips, splits and known classes dealt anew (`--draws`), every method trained on each
               with its chosen setting, and which ones can be told apart: `draws.md`, `figures`

Run: python -m benchmarks.real --stage all --bench DIR [--out .real]
"""

import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks.real_answers import Answers, answers_of
from benchmarks.real_choices import Tried, criteria_table, test_of, thresholds_table
from benchmarks.real_draws import place_of_draw, write_draw
from benchmarks.real_methods import (
    ABLATIONS,
    DATA_SETS,
    GRID,
    MAIN_SETS,
    METHODS,
    REFERENCE,
    DataSet,
    Place,
    Trial,
    draw_trials,
    write_lists,
)
from benchmarks.real_power import METRICS, Key, power_table
from benchmarks.real_runs import (
    Run,
    do_all,
    evaluate,
    measure_steps,
    reference_rows,
    retrieve,
    rows_of_split,
    train,
    validate,
)
from benchmarks.real_smoke import SMALL, write_drawn
from benchmarks.real_tables import (
    CEILING,
    CHANCE,
    TITLES,
    UNTRAINED,
    Figure,
    ablation_table,
    cells_csv,
    figures_csv,
    figures_of,
    main_table,
    pairs_table,
    split_name,
)
from micu.base.files import write_atomically
from micu.evaluate.markdown import TextTable, render_markdown
from micu.report.drawings import write_drawings

STAGES = ("tune", "train", "evaluate", "cost", "table")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done."""

    place: Place
    sets: tuple[DataSet, ...]
    methods: tuple[str, ...]
    trials: tuple[Trial, ...]
    seeds: tuple[int, ...]
    """The first one is that of tuning, too."""
    ablation_seeds: tuple[int, ...]
    ablations: tuple[str, ...]
    workers: int
    rounds: int
    """Of steps whose cost is measured."""
    draws: int

    def each(self) -> Iterator[tuple[DataSet, str]]:
        """Every set with every method."""
        return itertools.product(self.sets, self.methods)

    def trial_runs(self, data: DataSet, name: str) -> list[Run]:
        """The runs that a method's setting is chosen from."""
        return [Run(data, name, trial, self.seeds[0]) for trial in self.trials]

    def chosen(self, data: DataSet, name: str) -> Trial:
        """The setting of the run with the highest validation accuracy; among equals the first."""
        runs = self.trial_runs(data, name)
        return max(runs, key=lambda run: validate(self.place, run)).trial

    def runs(self, data: DataSet, name: str) -> list[Run]:
        """A method's runs, one per seed."""
        trial = self.chosen(data, name)
        return [Run(data, name, trial, seed) for seed in self.seeds]

    def ablation_runs(self, data: DataSet, name: str) -> list[Run]:
        """An ablation's runs, at MICU's setting."""
        trial = self.chosen(data, REFERENCE)
        return [Run(data, name, trial, seed) for seed in self.ablation_seeds]


def tune(plan: Plan) -> None:
    """Train and validate every trial; the losers' checkpoints are not kept."""
    runs = [run for data, name in plan.each() for run in plan.trial_runs(data, name)]
    do_all("tune", _try, [(plan.place, run) for run in runs], plan.workers)
    for data, name in plan.each():
        chosen = plan.chosen(data, name)
        for run in plan.trial_runs(data, name):
            if run.trial != chosen:
                _drop_checkpoints(plan.place, run)


def _try(place: Place, run: Run) -> None:
    train(place, run)
    validate(place, run)
    retrieve(place, run)
    for known in run.data.known:
        answers_of(place, run, known)


def train_all(plan: Plan) -> None:
    """Train the chosen setting of every method with every seed."""
    runs = [run for data, name in plan.each() for run in plan.runs(data, name)]
    do_all("train", train, [(plan.place, run) for run in runs], plan.workers)


def evaluate_all(plan: Plan) -> None:
    """Evaluate every run that the table shows."""
    runs = [run for data, name in plan.each() for run in plan.runs(data, name)]
    jobs = [(plan.place, run, run.seed == plan.seeds[0]) for run in runs]
    do_all("evaluate", evaluate, jobs, plan.workers)


def measure_cost(plan: Plan) -> None:
    """Time a step of every method at its chosen setting."""
    for data in plan.sets:
        runs = [plan.runs(data, name)[0] for name in plan.methods]
        measure_steps(plan.place, data, runs, plan.rounds)


def _drop_checkpoints(place: Place, run: Run) -> None:
    for path in run.folder(place).glob("*.pt"):
        path.unlink()


# --- tables ----------------------------------------------------------------------------------


def collect(plan: Plan) -> list[Figure]:
    """Every figure of every run."""
    found: list[Figure] = []
    for data, name in plan.each():
        for run in plan.runs(data, name):
            found += _figures(plan, run)
    return found


def _figures(plan: Plan, run: Run) -> list[Figure]:
    place, data = plan.place, run.data
    first = run.seed == plan.seeds[0]
    found = []
    for known in (*data.known, None):
        rows = rows_of_split(place, run, known)
        if run.name == REFERENCE:
            rows = [*rows, *reference_rows(place, run, known, first=first)]
        found += figures_of(data, run.name, split_name(known), rows)
    return found


def write_tables(plan: Plan) -> str:
    """Write all tables, and return the Markdown."""
    figures = collect(plan)
    references = (UNTRAINED, CHANCE, CEILING) if REFERENCE in plan.methods else ()
    names = (*plan.methods, *references)
    parts = []
    for data in plan.sets:
        path = plan.place.cost(data)
        seconds = json.loads(path.read_text()) if path.is_file() else {}
        parts += [
            f"### {data.name}",
            main_table(data, figures, seconds, names),
            "Clean HOS by pair, mean over the class splits:",
            pairs_table(data, figures, names),
            "Accuracy on held-out source clips of each setting that was tried; `*` is chosen:",
            _trials_table(plan, data),
        ]
    text = "\n\n".join(parts) + "\n"
    root = plan.place.root
    write_atomically(root / "table.md", text.encode())
    write_atomically(root / "cells.csv", cells_csv(figures).encode())
    write_atomically(root / "figures.csv", figures_csv(figures).encode())
    return text


def _trials_table(plan: Plan, data: DataSet) -> str:
    lines = []
    for name in plan.methods:
        chosen = plan.chosen(data, name)
        cells = [
            f"{100 * validate(plan.place, run):.1f}{'*' if run.trial == chosen else ''}"
            for run in plan.trial_runs(data, name)
        ]
        lines.append((TITLES[name], *cells))
    return render_markdown(TextTable((("method", *(trial.slug for trial in plan.trials)), *lines)))


def ablate(plan: Plan) -> str:
    """Train, evaluate and tabulate MICU with one thing changed."""
    place, names = plan.place, (REFERENCE, *plan.ablations)
    jobs = [
        (place, run)
        for data in plan.sets
        for name in names
        for run in plan.ablation_runs(data, name)
    ]
    do_all("ablation", _ablate, jobs, plan.workers)
    parts = []
    for data in plan.sets:
        figures = [
            figure
            for name in names
            for run in plan.ablation_runs(data, name)
            for known in (min(data.known), None)
            for figure in figures_of(
                data, name, split_name(known), rows_of_split(place, run, known)
            )
        ]
        titles = {name: ABLATIONS[name].title for name in plan.ablations}
        parts += [f"### {data.name}", ablation_table(data, figures, {REFERENCE: "MICU"} | titles)]
    return _write(plan, "ablation.md", parts)


def _ablate(place: Place, run: Run) -> None:
    train(place, run)
    for known in (min(run.data.known), None):
        rows_of_split(place, run, known)


# --- studies ---------------------------------------------------------------------------------


def study_choices(plan: Plan) -> str:
    """Compare what chooses thresholds, over the trained runs, and settings, over those tried."""
    parts = []
    for data in plan.sets:
        names = [name for name in plan.methods if name != "skeleton"]
        runs = [run for name in names for run in plan.runs(data, name)]
        jobs = [(plan.place, run, known) for run in runs for known in data.known]
        do_all("answers", answers_of, jobs, plan.workers)
        tried = {
            name: [_tried(plan.place, run) for run in plan.trial_runs(data, name)] for name in names
        }
        answers = [a for job in jobs for a in answers_of(*job).values()]
        parts += [f"### {data.name}", thresholds_table(answers), criteria_table(tried)]
    return _write(plan, "choices.md", parts)


def _tried(place: Place, run: Run) -> Tried:
    answers = [a for known in run.data.known for a in answers_of(place, run, known).values()]
    recalls = {f"{name} of validation pairs": value for name, value in retrieve(place, run).items()}
    return Tried({"source validation": validate(place, run), **recalls}, test_of(answers))


def study_draws(plan: Plan) -> str:
    """Train every method on several draws, and compare them."""
    parts, drawings = [], []
    for data in plan.sets:
        places = [place_of_draw(plan.place, draw) for draw in range(plan.draws)]
        for draw in range(plan.draws):
            write_draw(plan.place, data, draw)
        table = {
            name: [
                [(place, Run(data, name, plan.chosen(data, name), seed)) for seed in plan.seeds]
                for place in places
            ]
            for name in plan.methods
        }
        jobs = [job for rows in table.values() for row in rows for job in row]
        do_all("draws", _train_and_answer, jobs, plan.workers)
        results = {
            TITLES[name]: [[_answers_by_key(*job) for job in row] for row in rows]
            for name, rows in table.items()
        }
        parts.append(f"### {data.name}")
        for metric in METRICS:
            text, drawing = power_table(results, metric)
            parts.append(text)
            drawings.append(replace(drawing, caption=f"{data.name}: {drawing.caption}"))
    write_drawings(drawings, plan.place.root / "figures")
    return _write(plan, "draws.md", parts)


def _train_and_answer(place: Place, run: Run) -> None:
    train(place, run)
    for known in run.data.known:
        answers_of(place, run, known)


def _answers_by_key(place: Place, run: Run) -> dict[Key, Answers]:
    return {
        (*pair, known): answers
        for known in run.data.known
        for pair, answers in answers_of(place, run, known).items()
    }


def _write(plan: Plan, name: str, parts: Sequence[str]) -> str:
    text = "\n\n".join(parts) + "\n"
    write_atomically(plan.place.root / name, text.encode())
    return text


STUDIES = {"ablation": ablate, "choices": study_choices, "draws": study_draws}

# --- command line ----------------------------------------------------------------------------


def plan_of(
    out: Path,
    sets: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    workers: int,
    draws: int,
    smoke: bool,
) -> Plan:
    """What the options ask for."""
    if smoke:
        trials = draw_trials(2, 0, {**GRID, "epochs": (1,)})
        seeds = min(seeds, 2)
    else:
        trials = draw_trials(4, 0)
    return Plan(
        place=Place(out, SMALL if smoke else ()),
        sets=tuple(DATA_SETS[name] for name in sets),
        methods=tuple(methods),
        trials=tuple(trials),
        seeds=tuple(range(1, seeds + 1)),
        ablation_seeds=(1,) if smoke else (1, 2),
        ablations=tuple(ABLATIONS)[:2] if smoke else tuple(ABLATIONS),
        workers=workers,
        rounds=1 if smoke else 20,
        draws=draws,
    )


def _names(option: str, text: str, known: Collection[str]) -> list[str]:
    names = text.split(",")
    foreign = [name for name in names if name not in known]
    if foreign:
        raise click.UsageError(f"{option}: no {', '.join(foreign)}; known: {', '.join(known)}")
    return names


@click.command()
@click.option(
    "--stage", type=click.Choice(["fetch", "features", *STAGES, *STUDIES, "all"]), default="all"
)
@click.option(
    "--bench", type=click.Path(path_type=Path), help="Folder of the photographs and sounds."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Default: .real, with --smoke .real-smoke."
)
@click.option(
    "--sets",
    default=",".join(data.name for data in MAIN_SETS),
    show_default=True,
    help=f"Some of {', '.join(DATA_SETS)}.",
)
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--draws", default=5, show_default=True, help="Of clips and splits.")
@click.option("--workers", default=2, show_default=True, help="Processes of one thread each.")
@click.option("--smoke", is_flag=True, help="A toy on drawn features that ends in seconds.")
def main(
    stage: str,
    bench: Path | None,
    out: Path | None,
    sets: str,
    methods: str,
    seeds: int,
    draws: int,
    workers: int,
    smoke: bool,
) -> None:
    """Train and evaluate every method on the same real data."""
    out = out or Path(".real-smoke" if smoke else ".real")
    chosen = _names("--sets", sets, DATA_SETS), _names("--methods", methods, METHODS)
    if bench is None and stage in ("fetch", "features"):
        raise click.UsageError(f"--stage {stage}: expected --bench DIR; see docs/real-data.md")
    if bench is not None and stage == "fetch":
        from benchmarks.real_fetch import fetch

        fetch(bench)
        return
    plan = plan_of(out, *chosen, seeds, workers, draws, smoke)
    if bench is not None and stage in ("features", "all"):
        from benchmarks.real_features import make_set

        for manifest in dict.fromkeys(data.manifest for data in plan.sets):
            make_set(manifest, bench, out, workers)
    for data in plan.sets:
        if smoke and not plan.place.manifest(data).is_file():
            write_drawn(out, data)
        if not plan.place.manifest(data).is_file():
            raise click.UsageError(f"{out}: no {data.manifest}.csv; make it with --stage features")
        write_lists(plan.place, data)
    steps = {"tune": tune, "train": train_all, "evaluate": evaluate_all, "cost": measure_cost}
    for name in STAGES if stage == "all" else (stage,):
        if name in steps:
            steps[name](plan)
    if stage in ("table", "all"):
        click.echo(write_tables(plan))
    if stage in STUDIES:
        click.echo(STUDIES[stage](plan))


if __name__ == "__main__":
    main()
