"""The shape of the code is what docs/house.md says it is."""

import ast
from pathlib import Path

import pytest

from benchmarks.house import (
    BEGIN,
    CRUMBS,
    END,
    PACKAGES,
    Module,
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


def test_imports_make_no_circle() -> None:
    assert find_circle(ARROWS) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_make_no_circle(package: str) -> None:
    assert find_circle(arrows_between_rooms(ARROWS, package)) == []


def test_no_file_and_no_function_is_too_long() -> None:
    assert find_long(MODULES.values()) == []


def test_no_module_is_a_crumb() -> None:
    assert find_crumbs(MODULES, ARROWS) == []
    assert {*CRUMBS} <= {*MODULES}


def test_a_class_name_means_one_thing() -> None:
    assert find_doubles(MODULES.values()) == []


def test_the_drawn_house_is_the_house() -> None:
    page = (PROJECT / "docs/house.md").read_text(encoding="utf-8")
    drawn = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert drawn == draw_diagram(ARROWS), "type: python -m benchmarks.house --diagram docs/house.md"


def build(**codes: str) -> dict[str, Module]:
    """Modules of a package called `micu`, from their code; `a__b` is the module `micu.a.b`."""
    modules = {}
    for key, code in codes.items():
        name = ".".join(("micu", *key.split("__")))
        path = Path(f"{name}.py")
        modules[name] = Module(name, path, len(code.splitlines()), ast.parse(code))
    return modules


def test_arrows_are_those_of_imports_wherever_they_stand() -> None:
    modules = build(
        a__x="from micu.b import y\nimport json",
        b__y="def f():\n    import micu.c.z",
        c__z="if TYPE_CHECKING:\n    from micu.a import x",
    )
    arrows = find_arrows(modules)
    assert arrows == {"micu.a.x": {"micu.b.y"}, "micu.b.y": {"micu.c.z"}, "micu.c.z": set()}
    assert find_circle(arrows) == []
    rooms = arrows_between_rooms(arrows, "micu")
    assert rooms == {"micu.a": {"micu.b"}, "micu.b": {"micu.c"}, "micu.c": set()}
    arrows["micu.c.z"].add("micu.a.x")
    assert set(find_circle(arrows)) == set(modules)
    assert len(find_circle(arrows_between_rooms(arrows, "micu"))) == 4


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("\n" * 600, []),
        ("\n" * 601, ["micu.a (601 lines)"]),
        ("def f():\n" + "    x\n" * 79, []),
        ("def f():\n" + "    x\n" * 80, ["micu.a.f (81 lines)"]),
    ],
)
def test_long_files_and_functions_are_found(code: str, found: list[str]) -> None:
    assert find_long(build(a=code).values()) == found


def test_crumbs_and_names_that_are_defined_twice_are_found() -> None:
    modules = build(
        a="class One: ...\nclass Two: ...",
        b="class One: ...\nimport micu.a" + "\n" * 58,
        c="import micu.b" + "\n" * 60,
        losses__d="",
    )
    assert find_doubles(modules.values()) == ["One"]
    assert find_crumbs(modules, find_arrows(modules)) == ["micu.a (2 lines)", "micu.b (59 lines)"]
    modules["micu.c"].tree.body += ast.parse("import micu.a").body
    assert find_crumbs(modules, find_arrows(modules)) == ["micu.b (59 lines)"]
