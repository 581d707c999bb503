"""Drawings of a report: what is drawn where, and that no label is anything but text."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from micu.base.errors import ExtraError
from micu.evaluate.codebook import CodebookUse
from micu.evaluate.metrics import accept_rates, auroc, oscr
from micu.report import figures
from micu.report.drawings import (
    COLOURS,
    FORMATS,
    INK,
    NAME,
    NARROW,
    PIXELS,
    Curve,
    Drawing,
    Group,
    draw_bars,
    draw_curves,
    draw_points,
    draw_shares,
    draw_squares,
    embed,
    paint,
    plain,
    render,
    styled,
    write_drawings,
)
from micu.report.figures import (
    TAKERS,
    acceptance_curve,
    class_colour,
    confusion,
    draw_acceptance,
    draw_codebook,
    draw_confusion,
    draw_map,
    draw_thresholds,
    draw_training,
    place_clips,
    principal_plane,
    threshold_curves,
)
from micu.report.page import Section, drawings_of
from tests.unit.test_details import make_details

HOSTILE = '</title></svg><script>alert("1")</script>\x00&$\\frac{$ _中'


def painted(drawing: Drawing) -> Any:
    """The only axes of a drawing."""
    with styled():
        (axes,) = paint(drawing).axes
    return axes


def drawn(sections: Sequence[Section]) -> str:
    """All drawings of a report, as in its page."""
    return "".join(embed(drawing, number) for number, drawing in enumerate(drawings_of(sections)))


def drawings() -> list[Drawing]:
    """One of each kind, whose labels are markup, formulas and signs without a shape."""
    one = np.eye(2)
    curves = [Curve(HOSTILE, [0, 1], [0, 1])]
    return [
        draw_curves(HOSTILE, HOSTILE, curves, (HOSTILE, 0, 1), ("", 2, 2), mark=(0.5, HOSTILE)),
        draw_bars(HOSTILE, HOSTILE, [(HOSTILE, 0.5, 0.7, "red")], HOSTILE, {HOSTILE: "red"}),
        draw_shares(HOSTILE, HOSTILE, one, [HOSTILE] * 2, [HOSTILE] * 2),
        draw_squares(HOSTILE, HOSTILE, ["red", ""], {HOSTILE: "red", "none": ""}),
        draw_points(
            HOSTILE, HOSTILE, one, [Group("red", True, np.array([0, 1]))], {HOSTILE: "red"}
        ),
    ]


def test_curves_and_marks_are_where_their_values_say_and_nan_breaks_a_line() -> None:
    curve = Curve("c", [0, 0.5, 1], [0, math.nan, 1])
    axes = painted(
        draw_curves("T", "D", [curve], ("x", 0, 1), ("y", 0, 2), percent="x", mark=(0.25, "here"))
    )
    mark, line = axes.lines
    assert np.array_equal(line.get_xydata(), [[0, 0], [0.5, math.nan], [1, 1]], equal_nan=True)
    assert list(mark.get_xdata()) == [0.25, 0.25]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 2))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x, %", "y")
    (word,) = axes.texts
    assert (word.get_text(), word.get_ha()) == ("here", "left")
    far = painted(draw_curves("T", "D", [], ("x", 0, 1), ("y", 0, 1), mark=(0.51, "here")))
    assert far.texts[0].get_ha() == "right"  # else the word would leave the drawing


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (0.0, 1.0, (0, 1)),
        (2.0, 2.0, (1, 3)),
        (1e17, 1e17, (0.999e17, 1.001e17)),
        (1.7e308, 1.7e308, (0.999e300, 1.001e300)),
        (-1e308, 1e308, (-1e300, 1e300)),
    ],
)
def test_an_axis_has_two_ends_whatever_is_drawn(
    low: float, high: float, ends: tuple[float, float]
) -> None:
    curve = Curve("c", [0, 1], [low, high])
    drawing = draw_curves("T", "D", [curve], ("x", 0, 1), ("y", low, high))
    assert painted(drawing).get_ylim() == pytest.approx(ends)
    assert "svg" in embed(drawing, 1)


@pytest.mark.parametrize("drawing", drawings(), ids=lambda drawing: drawing.paint.__qualname__)
def test_every_drawing_has_a_title_and_a_description_and_its_labels_are_text(
    drawing: Drawing,
) -> None:
    markup = embed(drawing, 3)
    svg = ElementTree.fromstring(markup.replace("xlink:", ""))
    assert "<script" not in markup
    assert svg.get("role") == "img"
    assert [child.tag for child in list(svg)[:2]] == ["title", "desc"]
    assert [child.text for child in list(svg)[:2]] == [HOSTILE.replace("\x00", "�")] * 2
    assert not re.search("https?:|//[a-z]|<style|<image|@import", markup)
    assert not re.search(r"url\((?!#)", markup)


def test_text_and_axes_have_the_page_s_ink_and_nothing_covers_the_page() -> None:
    drawing = draw_curves("T", "D", [], ("a label", 0, 1), ("y", 0, 1))
    markup = embed(drawing, 0)
    assert re.search(r"fill: currentColor[^>]*>a label<", markup)
    assert INK not in markup
    assert "#ffffff" not in markup
    assert INK in render(drawing, "svg").decode()


def test_names_within_a_page_are_each_drawing_s_own() -> None:
    drawing = drawings()[-1]
    names = [set(re.findall(r'id="([^"]*)"', embed(drawing, number))) for number in (0, 1)]
    assert names[0]
    assert not names[0] & names[1]
    assert embed(drawing, 0) == embed(drawing, 0)


def test_every_drawing_is_written_for_papers_the_same_each_time(tmp_path: Path) -> None:
    assert write_drawings(drawings(), tmp_path / "new") == 5
    assert write_drawings(drawings(), tmp_path / "again") == 5
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert len(names) == 5 * len(FORMATS)
    assert names[0] == "01-title-svg-script-alert-1-script-frac.pdf"
    begins = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}
    for name in names:
        data = (tmp_path / "new" / name).read_bytes()
        assert data.startswith(begins[name[-3:]])
        assert data == (tmp_path / "again" / name).read_bytes()


def test_settings_of_the_user_s_change_no_drawing_and_stay() -> None:
    import matplotlib

    before = render(drawings()[0], "svg")
    with matplotlib.rc_context({"text.color": "red", "text.usetex": True}):
        assert render(drawings()[0], "svg") == before
        assert matplotlib.rcParams["text.usetex"]


@pytest.mark.parametrize(("length", "shown"), [(5, "x" * 5), (6, "xxxx…")])
def test_names_that_are_drawn_have_an_end(length: int, shown: str) -> None:
    assert plain("x" * length, 5) == shown


def test_a_legend_has_short_names_in_two_columns_and_a_long_one_in_one() -> None:
    for name, columns in (("n" * (NAME // 2), 2), ("n" * (NAME // 2 + 1), 1), ("_n", 2)):
        with styled():
            figure = paint(
                draw_curves("T", "D", [Curve(name, [0], [0])] * 2, ("x", 0, 1), ("y", 0, 1))
            )
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [name, name]
        assert legend._ncols == columns


def test_bars_are_as_long_as_their_shares_and_marks_stand_at_the_other_one() -> None:
    bars = [("a\nb", 0.5, 0.25, "red"), ("b", math.nan, math.nan, "")]
    axes = painted(draw_bars("T", "D", bars, "p", {"ours": "red"}))
    (bar,) = axes.patches
    (mark,) = axes.lines
    assert (bar.get_x(), bar.get_width()) == (0, 0.5)
    assert list(mark.get_xdata()) == [0.25, 0.25]
    texts = {text.get_text(): text for text in axes.texts}
    assert {*texts} == {"a\nb", "b", "50.0 (p 25.0)", "–"}
    assert texts["a\nb"].xy[1] < bar.get_y() + 1e-9 < texts["b"].xy[1]


def test_points_keep_one_scale() -> None:
    points = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 5.0]])
    axes = painted(draw_points("T", "D", points, [Group("red", False, np.array([2, 0]))], {}))
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[0, 5], [0, 0]]
    assert axes.get_aspect() == 1


# --- what is drawn ---------------------------------------------------------------------------


def test_curves_have_the_area_and_the_rates_that_the_metrics_have() -> None:
    details = make_details(150, seed=3)
    known = details.labels >= 0
    right = known & (details.logits.argmax(1) == details.labels)
    scores = details.known_score
    for curve, area in (
        (acceptance_curve(details, "r", known), auroc(scores[known], scores[~known])),
        (
            acceptance_curve(details, "o", right),
            oscr(scores[right], int(known.sum()), scores[~known]),
        ),
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
    squares = painted(draw_confusion(details)).collections[0]
    assert len(squares.get_paths()) == 2
    assert [round(colour[3], 2) for colour in squares.get_facecolors()] == [1, 1]


def test_the_figures_of_an_outcome_say_what_is_in_them() -> None:
    details = make_details(60)
    maps, used = draw_map(details, "pca")
    threshold = painted(draw_thresholds(details))
    assert [text.get_text() for text in threshold.texts] == ["used: 1.5"]
    assert used == "PCA"
    with styled():
        roc, _ = (paint(drawing) for drawing in draw_acceptance({"<micu>": details}))
    assert roc.legends[0].get_texts()[0].get_text().startswith("<micu>: 0.")
    for drawing in maps:  # every clip of both modalities
        assert sum(len(line.get_xdata()) for line in painted(drawing).lines) == 120


def test_codes_are_coloured_by_how_many_modalities_take_part() -> None:
    use = CodebookUse(
        {
            "video": np.array([50, 50, 95, 0]),
            "audio": np.array([30, 50, 5, 0]),
            "text": np.array([20, 0, 0, 0]),
        }
    )
    from matplotlib.colors import to_hex

    codes = draw_codebook(use)[0]
    faces = painted(codes).collections[0].get_facecolors()
    assert [to_hex(colour) for colour in faces[:3]] == [TAKERS[3], TAKERS[2], TAKERS[1]]
    assert faces[3][3] == 0  # an outline
    assert codes.told == "three (1), two (1), one modality (1), unused (1)."


def test_a_training_has_one_chart_per_loss_and_one_of_perplexities() -> None:
    columns = {
        "step": [1.0, 2, 3, 4],
        "total": [4.0, 3, math.nan, 1],
        "perplexity_audio": [1.0] * 4,
    }
    total, perplexity = map(painted, draw_training(columns, ["total"]))
    assert total.get_ylim() == (0, 4)
    assert np.isnan(total.lines[0].get_ydata()[2])
    assert list(perplexity.lines[0].get_ydata()) == [1.0] * 4


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
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda _: None)
    assert place_clips(vectors)[1] == "PCA"
    with pytest.raises(ExtraError, match=r"micu\[report\]"):
        place_clips(vectors, "tsne")


def contrast(colour: str, paper: str) -> float:
    """By the rule of WCAG, from 1 to 21."""
    lights = []
    for text in (colour, paper):
        shares = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        lights.append(float(np.dot(linear, (0.2126, 0.7152, 0.0722))) + 0.05)
    return max(lights) / min(lights)


@pytest.mark.parametrize("paper", ["#ffffff", "#0d1117"])
def test_every_mark_is_seen_on_white_and_on_the_dark_page(paper: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    marks = {*COLOURS, *filter(None, TAKERS)}
    marks |= {class_colour(i, n) for n in range(1, 40) for i in range(n)}
    assert [mark for mark in marks if contrast(mark, paper) < 3] == []
    assert len({class_colour(i, 12) for i in range(12)}) == 12


def test_a_wide_chart_is_moved_under_a_thumb_and_not_shrunk() -> None:
    def shares(size: int) -> str:
        names = [str(i) for i in range(size)]
        return embed(draw_shares("T", "D", np.eye(size), names, names), 0)

    assert shares(3).startswith("<svg")
    assert shares(60).startswith('<div class="wide" tabindex="0" role="group" aria-label="T"><svg')
    (narrow, wide) = (int(re.findall(r'width="(\d+)"', shares(size))[0]) for size in (3, 60))
    assert narrow <= NARROW < wide
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([0-9.]+)px", shares(60))]
    assert min(sizes) * PIXELS > 11
