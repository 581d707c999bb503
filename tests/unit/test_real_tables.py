"""The tables of the real-data benchmark: which figures stand in which column."""

import csv
import io
import itertools
import random

import pytest

from benchmarks.real_methods import DATA_SETS
from benchmarks.real_tables import CLOSED, Figure, cells_csv, main_table, pairs_table

OBJECTS = DATA_SETS["av-objects"]
PERCENT = {
    ("hos", "source-val", "8"): 11.0,
    ("hos", "source-val", "12"): 12.0,
    ("hos", "paired-quantile", "8"): 21.0,
    ("hos", "paired-quantile", "12"): 22.0,
    ("hos", "paper", "8"): 31.0,
    ("hos", "paper", "12"): 32.0,
    ("auroc", "source-val", "8"): 51.0,
    ("auroc", "source-val", "12"): 52.0,
    ("auroc", "paired-quantile", "8"): 57.0,
    ("auroc", "paired-quantile", "12"): 58.0,
    ("auroc", "paper", "8"): 61.0,
    ("auroc", "paper", "12"): 62.0,
    ("acc", "source-val", CLOSED): 81.0,
    ("acc", "paired-quantile", CLOSED): 82.0,
    ("acc", "paper", CLOSED): 83.0,
    ("acc", "source-val", "8"): 91.0,  # open-set jobs have an accuracy, too
    ("acc", "paper", "12"): 92.0,
}
"""What each kind of figure is, as a mean over pairs and seeds."""
BY_PAIR = {("video", "audio"): 4.0, ("audio", "video"): -4.0}
BY_SEED = {1: 1.0, 2: -1.0}


def make_figures() -> list[Figure]:
    """Every kind in both pairs with two seeds, beside those of another set and another method."""
    made = []
    others = (("av-digits", "dcid", 33.0), ("av-objects", "cmcm", 5.0))
    for data, method, more in ((OBJECTS.name, "dcid", 0.0), *others):
        for (kind, mean), pair, seed in itertools.product(PERCENT.items(), BY_PAIR, BY_SEED):
            metric, how, split = kind
            made.append(
                Figure(
                    data=data,
                    method=method,
                    seed=seed,
                    split=split,
                    source=pair[0],
                    target=pair[1],
                    how=how,
                    metric=metric,
                    value=(mean + more + BY_PAIR[pair] + BY_SEED[seed]) / 100,
                )
            )
    random.Random(0).shuffle(made)
    return made


def read_table(text: str) -> dict[str, dict[str, str]]:
    """A Markdown table: the cells by title of their column, by the first cell of their line."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()]
    header, _, *body = (line for line in lines if len(line) > 1)
    return {line[0]: dict(zip(header, line, strict=True)) for line in body}


@pytest.mark.parametrize(("name", "title", "more"), [("dcid", "DCID", 0), ("cmcm", "CMCM", 5)])
def test_every_column_has_the_figures_that_its_title_says(
    name: str, title: str, more: float
) -> None:
    text = main_table(OBJECTS, make_figures(), {"dcid": 0.126}, ["dcid", "cmcm"])
    expected = {
        "HOS, 8 known": 11.0,
        "HOS, 12 known": 12.0,
        "HOS, paired threshold": 21.5,
        "AUROC": 51.5,
        "CMG acc.": 81.0,
        "`paper`: HOS, 8 known": 31.0,
        "`paper`: HOS, 12 known": 32.0,
        "`paper`: CMG acc.": 83.0,
    }
    line = read_table(text)[title]
    assert {column: line[column] for column in expected} == {
        column: f"{mean + more:.1f} ± 1.4" for column, mean in expected.items()
    }
    assert line["s per step"] == ("0.13" if name == "dcid" else "")


def test_a_method_without_figures_has_a_line_of_dashes_and_methods_keep_their_order() -> None:
    found = read_table(main_table(OBJECTS, make_figures(), {}, ["turn", "dcid"]))
    assert list(found) == ["TURN", "DCID"]
    empty = {
        key: cell for key, cell in found["TURN"].items() if key not in ("method", "s per step")
    }
    assert set(empty.values()) == {"–"}


def test_the_table_of_pairs_has_the_clean_means_over_the_class_splits() -> None:
    found = read_table(pairs_table(OBJECTS, make_figures(), ["cmcm", "dcid"]))
    assert found == {
        "CMCM": {"method": "CMCM", "video → audio": "20.5 ± 1.4", "audio → video": "12.5 ± 1.4"},
        "DCID": {"method": "DCID", "video → audio": "15.5 ± 1.4", "audio → video": "7.5 ± 1.4"},
    }


def test_the_file_of_cells_has_one_line_per_kind_of_figure_and_pair() -> None:
    lines = list(csv.DictReader(io.StringIO(cells_csv(make_figures()))))
    assert len(lines) == 3 * len(PERCENT) * len(BY_PAIR)
    found = {
        (line["metric"], line["how"], line["split"]): 100 * float(line["mean"])
        for line in lines
        if (line["data"], line["method"], line["source"]) == (OBJECTS.name, "dcid", "audio")
    }
    assert found == pytest.approx({kind: mean - 4 for kind, mean in PERCENT.items()})
    assert {line["seeds"] for line in lines} == {"2"}
    assert all(float(line["deviation"]) == pytest.approx(0.02 / 2**0.5) for line in lines)
