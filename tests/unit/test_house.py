"""The shape of the code is what docs/house.md says it is."""

import pytest

from benchmarks.house import (
    BEGIN,
    END,
    PACKAGES,
    arrows_between_rooms,
    draw_diagram,
    find_arrows,
    find_circle,
    find_crumbs,
    find_doubles,
    find_long,
    read_modules,
)
from tests.conftest import PROJECT

MODULES = read_modules()
ARROWS = find_arrows(MODULES)
CRUMBS = {
    "micu_extract.media.worker_server": "imported in the fork server alone, so it has to be small",
    "micu.evaluate.tasks": "the list of tasks: one import line each is how one is added",
}
"""Short modules with one importer, and why they stay."""


def test_imports_make_no_circle() -> None:
    assert find_circle(ARROWS) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_make_no_circle(package: str) -> None:
    assert find_circle(arrows_between_rooms(ARROWS, package)) == []


def test_no_file_and_no_function_is_too_long() -> None:
    assert find_long(MODULES.values()) == []


def test_no_module_is_a_crumb() -> None:
    assert {found.partition(" ")[0] for found in find_crumbs(MODULES, ARROWS)} == set(CRUMBS)


def test_a_class_name_means_one_thing() -> None:
    assert find_doubles(MODULES.values()) == []


def test_the_drawn_house_is_the_house() -> None:
    page = (PROJECT / "docs/house.md").read_text(encoding="utf-8")
    drawn = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert drawn == draw_diagram(ARROWS), "type: python -m benchmarks.house --diagram docs/house.md"
