"""What a change of the code's shape must leave as it is: features, losses and results, to the bit.

    python -m benchmarks.recording before.json             # on the code as it was
    python -m benchmarks.recording after.json --against before.json

Everything is done by the commands, which stay while modules move: the quick demo (the sha256 of
each shard's arrays), 50 steps of every preset on its features with one seed (every loss of every
step), and three results files with their report (every cell). Small networks: a bit that changes in
a large one changes in a small one. The same machine and versions make both records; others round
differently.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
from joblib import Parallel, delayed

STEPS = 50
SETTINGS = (
    *("encoder.embed_dim=16", "encoder.heads=2", "encoder.layers=1", "encoder.feedforward_dim=16"),
    *("encoder.text_hidden_dim=4", "reconstruction.grid_width=4", "reconstruction.vector_width=8"),
    *("data.steps=8", "optimizer.batch_size=10", "optimizer.epochs=1000"),
    f"optimizer.max_steps={STEPS}",
)
"""Of every preset's run; what presets differ in stays theirs."""
PAIRS = ("--pairs", "v:a,a:v")
RATE = ("--probe-learning-rate", "0.0004")
"""As published, however few the clips."""
TASKS = {
    "oscmg": (*PAIRS, *RATE, "--known", "known.csv", "--ceiling", "--chance", "--score", "all"),
    "cmg": (*PAIRS, *RATE),
    "retrieval": PAIRS,
}
"""Three results files: the options of each."""
NOT_COMPARED = frozenset({"clips_per_s", "checkpoint_sha256"})
"""Columns that depend on the clock or on the folder: a checkpoint notes its manifest's path."""


def type_command(name: str, *words: str, folder: Path) -> str:
    """Type a command of this environment in a folder.

    Returns:
        What it printed.

    Raises:
        ClickException: It ended otherwise than with 0.
    """
    command = [str(Path(sys.executable).with_name(name)), *words]
    # One thread each: what is added up in parts does not depend on how many cores are free.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(
            f"{' '.join([name, *words])}: expected exit code 0, got {done.returncode}\n"
            f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, without the columns that are not compared."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: value for key, value in row.items() if key not in NOT_COMPARED}
            for row in csv.DictReader(file)
        ]


def record_shards(demo: Path) -> dict[str, str]:
    """sha256 of what every shard says of its clips, by its path below the features."""
    found = {}
    for path in sorted((demo / "features").rglob("shard-*.h5")):
        digest = hashlib.sha256()
        with h5py.File(path) as shard:
            for name in ("clip_id", "features", "mask", "times_s"):
                digest.update(shard[name][:].tobytes())
        found[str(path.relative_to(demo / "features"))] = digest.hexdigest()
    return found


def record_losses(demo: Path, preset: str) -> list[dict[str, str]]:
    """What a preset logs of each of its steps."""
    run = demo / "recorded" / preset
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["--preset", preset, "--modalities", "v,a", "--seed", "1", *changes]
    type_command("micu-train", *words, "--out", str(run), folder=demo)
    rows = read_rows(run / "metrics.csv")
    if len(rows) != STEPS:
        raise click.ClickException(f"{preset}: expected {STEPS} steps, got {len(rows)}")
    return rows


def record_results(demo: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of each results file, and of the report over all of them."""
    # The model of a preset, because the demo's four steps hardly move one.
    model = "recorded/micu/last.pt"
    found = {}
    for task, options in TASKS.items():
        out = f"{task}.csv"
        type_command("micu-eval", task, model, *options, "--out", out, folder=demo)
        found[out] = read_rows(demo / out)
    report = "recorded.csv"
    type_command("micu-eval", "report", *found, "--out", report, folder=demo)
    found["report"] = read_rows(demo / report)
    return found


def record(folder: Path) -> dict[str, object]:
    """Do all of it in an empty folder."""
    click.echo("the demo …")
    type_command("micu-demo", "--quick", "--out", "demo", folder=folder)
    demo = folder / "demo"
    listed = type_command("micu-train", "--list-presets", folder=demo)
    presets = [line.split()[0] for line in listed.splitlines()]
    click.echo(f"{len(presets)} presets …")
    # Two at a time: threads that only wait for their processes.
    runs = Parallel(n_jobs=2, prefer="threads")(
        delayed(record_losses)(demo, preset) for preset in presets
    )
    click.echo("results …")
    return {
        "shards": record_shards(demo),
        "losses": dict(zip(presets, runs, strict=True)),
        "results": record_results(demo),
    }


def differences(before: object, after: object, place: str = "") -> Iterator[str]:
    """Every place where two records differ, and how."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{place}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True), 1):
            yield from differences(*pair, f"{place}/{number}")
    elif before != after:
        yield f"{place.lstrip('/')}: before {shorten(before)}, after {shorten(after)}"


def shorten(value: object) -> str:
    """At most 100 characters of a value."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An earlier record; ends with 1 if anything differs.",
)
def main(out: Path, against: Path | None) -> None:
    """Record shards, losses and results to OUT, a JSON file, and compare them."""
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder))
    text = json.dumps(found, indent=1, sort_keys=True)
    out.write_text(text + "\n", encoding="utf-8")
    click.echo(f"sha256 of the record: {hashlib.sha256(text.encode()).hexdigest()}")
    if against is not None:
        told = list(differences(json.loads(against.read_text(encoding="utf-8")), found))
        for line in told[:50]:
            click.echo(line)
        click.echo(f"figure: differences {len(told)}")
        sys.exit(bool(told))


if __name__ == "__main__":
    main()
