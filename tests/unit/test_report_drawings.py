"""Drawings of a report: well-formed, at the right places, and safe whatever labels say."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from micu.base.errors import ExtraError
from micu.evaluate.codebook import CodebookUse
from micu.evaluate.metrics import accept_rates, auroc, oscr
from micu.report import clip_map
from micu.report.clip_map import place_clips, principal_plane
from micu.report.figures import (
    confusion,
    draw_acceptance,
    draw_codebook,
    draw_confusion,
    draw_map,
    draw_thresholds,
    draw_training,
    oscr_curve,
    roc_curve,
    threshold_curves,
)
from micu.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Curve,
    draw_bars,
    draw_cells,
    draw_curves,
    draw_points,
    draw_shares,
    ticks,
)
from tests.unit.test_details import make_details

HOSTILE = '</title></svg><script>alert("1")</script>\x00&'
UNIT = Axis("share", 0, 1, percent=True)


def parse(markup: str) -> ElementTree.Element:
    """Markup as XML; fails if it is not well-formed."""
    return ElementTree.fromstring(f"<div>{markup}</div>")


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


def test_a_curve_s_ends_are_where_its_values_say() -> None:
    curve = Curve("c", [0, 0.5, 1], [0, math.nan, 1])
    svg = parse(draw_curves("T", "D", [curve], UNIT, UNIT, marks=[(0.25, "here")]))
    (path,) = [e for e in svg.iter("path") if e.get("class") == "curve"]
    assert numbers(path.get("d", "")) == [LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, TOP]
    assert path.get("d", "").count("M") == 2  # NaN breaks the line
    (mark,) = [e for e in svg.iter("path") if e.get("class") == "mark"]
    assert numbers(mark.get("d", ""))[0] == pytest.approx(LEFT + (WIDTH - RIGHT - LEFT) / 4)


def test_every_drawing_has_a_title_and_a_description_and_escapes_its_labels() -> None:
    one = np.eye(2)
    drawings = [
        draw_curves(HOSTILE, HOSTILE, [], Axis(HOSTILE, 0, 1), UNIT, marks=[(0.5, HOSTILE)]),
        draw_bars(HOSTILE, HOSTILE, [(HOSTILE, 0.5, 0.7, "red")], HOSTILE),
        draw_shares(HOSTILE, HOSTILE, one, [HOSTILE] * 2, [HOSTILE] * 2),
        draw_cells(HOSTILE, HOSTILE, [("red", HOSTILE), ("", HOSTILE)]),
        draw_points(HOSTILE, HOSTILE, one, {HOSTILE: ("red", True, np.array([0, 1]))}),
    ]
    for drawing in drawings:
        assert "<script" not in drawing
        (svg,) = parse(drawing)
        assert svg.get("role") == "img"
        assert [child.tag for child in list(svg)[:2]] == ["title", "desc"]
        assert "alert" in (svg[0].text or "")
        assert float(svg.get("viewBox", "").split()[2]) <= WIDTH + 100


def test_bars_are_as_long_as_their_shares_and_marks_stand_at_the_other_one() -> None:
    svg = parse(draw_bars("T", "D", [("a", 0.5, 0.25, "red"), ("b", math.nan, math.nan, "")], "p"))
    (bar,) = svg.iter("rect")
    (mark,) = svg.iter("path")
    assert float(bar.get("width", "")) == 2 * numbers(mark.get("d", ""))[0]
    assert "50.0 (p 25.0)" in [text.text for text in svg.iter("text")]


def test_a_bar_stands_below_every_line_of_its_label() -> None:
    bars = [("a\nb", 0.5, 0.25, "red"), ("c\nd", 0.5, 0.25, "red")]
    svg = parse(draw_bars("T", "D", bars, "p"))
    names = {text.text: float(text.get("y", "")) for text in svg.iter("text")}
    tops = [float(bar.get("y", "")) for bar in svg.iter("rect")]
    assert names["a"] < names["b"] < tops[0] < tops[0] + 12 < names["c"] < names["d"] < tops[1]
    (chart,) = svg
    assert tops[1] + 12 <= float(chart.get("viewBox", "").split()[3])


def test_points_keep_one_scale_and_stay_inside() -> None:
    points = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 5.0]])
    markup = draw_points("T", "D", points, {"g": ("red", False, np.arange(3))})
    (path,) = parse(markup).iter("path")
    x0, y0, x1, y1, x2, y2 = numbers(path.get("d", "").replace("h.1", ""))
    assert (x1 - x0) == pytest.approx(2 * (y0 - y2))
    assert (y0, x0) == (y1, x2)
    assert min(x0, y2) >= 0
    assert max(x1, y0) <= WIDTH


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 100, [0, 20, 40, 60, 80, 100]), (3, 3, [3])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


# --- what is drawn ---------------------------------------------------------------------------


def test_curves_have_the_area_and_the_rates_that_the_metrics_have() -> None:
    details = make_details(150, seed=3)
    known = details.labels >= 0
    right = known & (details.logits.argmax(1) == details.labels)
    scores = details.known_score
    for curve, area in (
        (roc_curve(details, "r"), auroc(scores[known], scores[~known])),
        (oscr_curve(details, "o"), oscr(scores[right], int(known.sum()), scores[~known])),
    ):
        x, y = np.array(curve.x), np.array(curve.y)
        assert float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()) == pytest.approx(area)
    os_star, unk, hos = threshold_curves(details)
    place = 40
    at = float(os_star.x[place])
    expected = accept_rates(details.logits, details.labels, scores, at)
    assert (os_star.y[place], unk.y[place]) == expected
    assert hos.y[place] == pytest.approx(2 / (1 / expected[0] + 1 / expected[1]))


def test_confusion_counts_what_was_said_and_what_was_rejected() -> None:
    table = confusion(make_details(12))
    assert table.shape == (3, 3)
    assert table.sum(1) == pytest.approx(1)
    assert table[0, 0] > 0.7
    details = make_details(2)  # one unknown clip, one of the first class
    assert np.isnan(confusion(details)[1]).all()
    assert "NaN" not in draw_confusion(details)


def test_the_figures_of_an_outcome_are_well_formed_and_say_what_is_in_them() -> None:
    details = make_details(60)
    drawing, used = draw_map(details, "pca")
    pages = [
        draw_thresholds(details),
        draw_acceptance({"<micu>": details, "untrained": details}),
        draw_confusion(details),
        drawing,
    ]
    for page in pages:
        parse(page)
        assert "<b>" not in page
    assert used == "PCA"
    assert "used: 1.5" in pages[0]
    assert "&lt;micu&gt;: 0." in pages[1]
    points = [e for e in parse(drawing).iter("path") if e.get("class") == "points"]
    drawn = sum(e.get("d", "").count("M") for e in points)
    assert drawn == 2 * 120  # every clip of both modalities, in both maps


def test_codes_are_coloured_by_how_many_modalities_take_part() -> None:
    use = CodebookUse(
        {
            "video": np.array([50, 50, 95, 0]),
            "audio": np.array([30, 50, 5, 0]),
            "text": np.array([20, 0, 0, 0]),
        }
    )
    svg = parse(draw_codebook(use))
    cells = [e for e in svg.iter("rect") if e.find("title") is not None]
    looks = {(e.find("title").text or "").split(":")[0]: e for e in cells}  # type: ignore[union-attr]
    assert looks["code 0"].get("fill") == "var(--three)"
    assert looks["code 1"].get("fill") == "var(--two)"
    assert looks["code 2"].get("fill") == "var(--one)"
    assert looks["code 3"].get("class") == "frame"
    assert "three (1)" in "".join(svg.itertext())


def test_a_training_has_one_chart_per_loss_and_breaks_where_it_was_not_finite() -> None:
    columns = {
        "step": [1.0, 2, 3, 4],
        "total": [4.0, 3, math.nan, 1],
        "perplexity_audio": [1.0] * 4,
    }
    svg = parse(draw_training(columns, ["total"]))
    curves = [e for e in svg.iter("path") if e.get("class") == "curve"]
    assert len(curves) == 2
    assert curves[0].get("d", "").count("M") == 2


# --- clips in the plane ----------------------------------------------------------------------


def test_the_principal_plane_is_scikit_learn_s() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    vectors = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 7)
    expected = decomposition.PCA(2, svd_solver="full").fit_transform(vectors)
    got = principal_plane(vectors)
    assert np.abs(got) == pytest.approx(np.abs(expected))


def test_vectors_that_are_few_or_all_the_same_have_places_too() -> None:
    for vectors in (np.ones((30, 4)), np.ones((1, 4)), np.arange(5.0)[:, None]):
        places, used = place_clips(vectors)
        assert places.shape == (len(vectors), 2)
        assert np.isfinite(places).all()
        assert used == "PCA"


def test_without_scikit_learn_pca_takes_over_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    assert place_clips(vectors)[1] == "t-SNE"
    monkeypatch.setattr(clip_map.importlib.util, "find_spec", lambda _: None)
    assert place_clips(vectors)[1] == "PCA"
    with pytest.raises(ExtraError, match=r"micu\[report\]"):
        place_clips(vectors, "tsne")
