"""`micu-eval` with details, then `micu-eval report`: from a checkpoint to a page."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from micu.cli.eval_options import OPTIONS
from micu.cli.evaluate import main
from micu.evaluate.details import SUFFIX, read_details
from micu.evaluate.metrics import open_set_metrics
from micu.evaluate.report import read_rows
from micu.store.ledger import Failure, write_ledger
from micu.store.sets import find_sets
from tests.e2e.test_evaluate import run  # noqa: F401 - a fixture
from tests.unit.test_report_page import check_page


def micu_eval(*arguments: object) -> Result:
    return CliRunner().invoke(
        main, [str(item) for item in arguments], prog_name="micu-eval", catch_exceptions=False
    )


@pytest.fixture(scope="module")
def results(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Results of two seeds with details, codebook counts and a ledger beside them."""
    folder = tmp_path_factory.mktemp("results")
    shared = (run / "last.pt", "--features", run / "features", "--device", "cpu")
    out = ("--out", folder / "results.csv")
    result = micu_eval(
        *("oscmg", *shared, *out, "--known", run / "known.csv", "--pairs", "v:a", "--seeds", "2"),
        *("--ceiling", "--chance", "--encoder", "checkpoint", "--encoder", "untrained"),
        *("--probe-epochs", "1", "--setting", "ave-14", "--details", folder / "results-details"),
    )
    assert result.exit_code == 0, result.output
    codebook = ("--codebook-out", folder / "codebook.csv")
    result = micu_eval("codebook", *shared, *codebook, "--out", folder / "codebook-results.csv")
    assert result.exit_code == 0, result.output
    return folder


def test_details_are_what_the_rows_were_computed_from(results: Path) -> None:
    rows = read_rows(results / "results.csv")
    found = [read_details(path) for path in (results / "results-details").glob(f"*{SUFFIX}")]
    assert len(found) == 2 * 3 * 2  # seeds, encoders, protocols
    for details in found:
        own = {
            row.metric: row.value
            for row in rows
            if {name: str(value) for name, value in row.shared().items()} == details.keys
        }
        metrics = open_set_metrics(
            details.logits, details.labels, details.threshold, details.known_score
        )
        assert own["hos"] == pytest.approx(metrics.hos)
        assert own["auroc"] == pytest.approx(metrics.auroc)
        assert set(details.clip_classes) == {"drum", "engine", "violin"}
        assert len(details.mapped.embedding) == len(details.mapped.ids)


def test_a_folder_of_results_becomes_a_page_markdown_and_csv(
    results: Path,
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for folder in find_sets(run / "features"):
        write_ledger(folder, [Failure("clip/99", "decode", "corrupt", "<b>damaged</b>")])
    outputs = [tmp_path / f"report.{suffix}" for suffix in ("html", "md", "csv")]
    options: list[object] = [word for path in outputs for word in ("-o", path)]
    figures = tmp_path / "figures"
    options += ["--figures", figures, "--map", "pca"]
    result = micu_eval("report", results, run / "features", *options)
    assert result.exit_code == 0, result.output
    drawn = [path.name for path in figures.iterdir()]
    assert outputs[0].read_text().count("<figure>") == len(drawn) / 3
    assert {name[-4:] for name in drawn} == {".pdf", ".png", ".svg"}
    page = outputs[0].read_text()
    check_page(page)
    for text in (
        *("Table 2: Open-set cross-modal generalisation", "54.39", "threshold:test; epoch:test"),
        *("OS*, UNK and HOS against the threshold", "ROC", "OSCR", "Confusion", "PCA"),
        *("Codes by how many modalities take part", "&lt;b&gt;damaged&lt;/b&gt;", "corrupt 1"),
        *(f"micu-eval oscmg {run / 'last.pt'} --features", "--setting ave-14"),
        "Evaluated with python",
    ):
        assert text in page, text
    hashes = {row.checkpoint_sha256[:12] for row in read_rows(results / "results.csv")} - {""}
    assert all(digest in page for digest in hashes)
    assert "| ave-14 " in outputs[1].read_text()
    with outputs[2].open(newline="") as file:
        rows = list(csv.DictReader(file))
    (hos,) = [
        row
        for row in rows
        if row["metric"] == "hos"
        and (row["method"], row["threshold_source"]) == ("checkpoint", "source-val")
    ]
    assert (hos["paper"], hos["runs"], hos["direction"]) == ("54.39", "2", "V->A")


def test_details_lie_beside_the_results_file_and_come_with_it(
    results: Path, tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    micu_eval("report", results / "results.csv", "-o", page, "--map", "pca")
    assert "Confusion" in page.read_text()
    assert "Codes by" not in page.read_text()


def test_a_damaged_file_in_a_folder_is_named_and_the_rest_is_shown(
    results: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_bytes((results / "codebook-results.csv").read_bytes())
    (tmp_path / f"x{SUFFIX}").write_bytes(b"PK no")
    result = micu_eval("report", tmp_path, "-o", tmp_path / "r.html")
    assert result.exit_code == 0
    assert f"x{SUFFIX}" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "nowhere.csv", "-o", "r.html"), "no such results file"),
        (("report", "results.csv", "-o", "r.pdf"), ".html, .md, .csv"),
        (("report", "results.csv", "-o", "r.md", "--map", "tsne"), "only a page"),
        (("report", "results.csv"), "expected -o report.html, or --figures"),
        (("report", "results.csv", "--figures", "results.csv"), "expected a folder"),
        (("report", "codebook.csv", "-o", "r.md"), "no results in it"),
        (("report", "results.commands.jsonl", "-o", "r.md"), "expected a results file"),
        (("oscmg", "last.pt", "--setting", "ave-15", "--pairs", "v:a"), "ave-14"),
        (
            ("codebook", "last.pt", "--setting", "ave-14"),
            "--setting: only micu-eval oscmg",
        ),
        (("codebook", "last.pt", "--details", "d"), "--details: only micu-eval oscmg"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    results: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(results)
    result = micu_eval(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (results / "r.html").exists()


def test_help_shows_all_commands_and_each_has_its_own() -> None:
    text = micu_eval("--help").output
    for name in (*OPTIONS, "report", "paper"):
        assert f"\n {name} " in text
        assert f"Usage: micu-eval {name} [OPTIONS]" in micu_eval(name, "--help").output
    assert "Usage: micu-eval oscmg [OPTIONS] CHECKPOINT" in micu_eval("last.pt", "--help").output
    assert "micu" in micu_eval("--version").output


def test_options_may_come_before_the_checkpoint(tmp_path: Path) -> None:
    result = micu_eval("codebook", "--seed", "1", tmp_path / "last.pt")
    assert result.exit_code == 2
    assert "last.pt" in result.stderr
    assert "Usage" not in result.stderr


def test_a_report_needs_no_torch(results: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from micu.cli.evaluate import main; "
        f"r = CliRunner().invoke(main, ['report', {str(results)!r}, '-o', "
        f"{str(tmp_path / 'r.html')!r}, '--map', 'pca']); assert r.exit_code == 0, r.output; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
