"""The shape of the code, counted from the code: sizes, rooms, arrows, circles, crumbs, names.

    python -m benchmarks.house              # the counts; ends with 1 if one is over its limit
    python -m benchmarks.house --diagram docs/house.md

A room is a folder or a module at the top of a package. An arrow goes from a room to one that a
module in it imports, at its top or inside a function, type checking not counted. An arrow runs up
if its rooms lie on a circle.
"""

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click

PROJECT = Path(__file__).parents[1]
PACKAGES = {"micu_extract": PROJECT / "extract/micu_extract", "micu": PROJECT / "micu"}
MOST_LINES = {"file": 600, "function": 80, "all": 28_500}
CRUMBS = {
    "micu_extract.media.worker_server": "imported in the fork server alone, so it has to be small",
    "micu.evaluate.tasks": "the list of tasks: one import line each is how one is added",
}
"""Short modules with one importer, and why they stay."""
FEWEST_LINES = 60
"""A shorter module with one importer belongs to that importer."""
MOST_ENTRIES = {"micu_extract": 16, "micu": 12}
MOST_ARROWS = {"micu_extract": 40, "micu": 45}
REGISTERED = ("backbones", "datasets", "losses")
"""Folders in which a module of its own, imported by one line, is how the project is extended."""
BEGIN, END = "<!-- begin: made by benchmarks/house.py -->", "<!-- end -->"

Arrows = Mapping[str, set[str]]


@dataclass(frozen=True, slots=True)
class Module:
    """One file of code."""

    name: str
    path: Path
    lines: int
    tree: ast.Module = field(repr=False)

    @property
    def is_package(self) -> bool:
        """Whether it is the file of a folder."""
        return self.path.name == "__init__.py"


def read_modules() -> dict[str, Module]:
    """Every module of the product, by its dotted name."""
    modules = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            text = path.read_text(encoding="utf-8")
            modules[name] = Module(name, path, len(text.splitlines()), ast.parse(text))
    return modules


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names that code imports; those of `from a import b` as `a.b` and as `a`."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom) and tree.module:
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
        yield tree.module
    for child in ast.iter_child_nodes(tree):
        yield from imported_names(child)


def find_arrows(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """The modules that each module imports.

    `from package import module` is an arrow to the module alone.
    """
    arrows: dict[str, set[str]] = {}
    for name, module in modules.items():
        found = {target for target in imported_names(module.tree) if target in modules} - {name}
        deeper = {target.rpartition(".")[0] for target in found}
        arrows[name] = {
            target for target in found if not (modules[target].is_package and target in deeper)
        }
    return arrows


def room_of(module: str) -> str:
    """The room that a module lies in."""
    return ".".join(module.split(".")[:2])


def arrows_between_rooms(arrows: Arrows, package: str) -> dict[str, set[str]]:
    """The rooms of a package that each of its rooms imports from."""
    between: dict[str, set[str]] = defaultdict(set)
    for source, targets in arrows.items():
        if source.startswith(f"{package}.") and room_of(source) != package:
            rooms = {room_of(target) for target in targets if target.startswith(f"{package}.")}
            between[room_of(source)] |= rooms - {room_of(source)}
    return dict(between)


def find_circle(arrows: Arrows) -> list[str]:
    """A circle of imports, first and last the same; empty if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def find_crumbs(modules: Mapping[str, Module], arrows: Arrows) -> list[str]:
    """Short modules with one importer, but those that register something."""
    importers = Counter(target for targets in arrows.values() for target in targets)
    return [
        f"{name} ({module.lines} lines)"
        for name, module in modules.items()
        if module.lines < FEWEST_LINES
        and importers[name] <= 1
        and not module.is_package
        and name not in CRUMBS
        and name.split(".")[1] not in REGISTERED
    ]


def find_doubles(modules: Iterable[Module]) -> list[str]:
    """Names of classes that are defined more than once."""
    classes = Counter(
        node.name
        for module in modules
        for node in module.tree.body
        if isinstance(node, ast.ClassDef)
    )
    return [name for name, count in sorted(classes.items()) if count > 1]


def find_long(modules: Iterable[Module]) -> list[str]:
    """Files and functions over their limits."""
    found = []
    for module in modules:
        if module.lines > MOST_LINES["file"]:
            found.append(f"{module.name} ({module.lines} lines)")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_LINES["function"]:
                    found.append(f"{module.name}.{node.name} ({lines} lines)")
    return found


def draw_diagram(arrows: Arrows) -> str:
    """The rooms of both packages and the arrows between them, for Mermaid.

    An arrow that a longer way makes plain (a → c beside a → b → c) is left out.
    """
    lines = ["```mermaid", "flowchart TD"]
    for package in PACKAGES:
        between = arrows_between_rooms(arrows, package)
        rooms = sorted({*between, *(room for rooms in between.values() for room in rooms)})
        lines.append(f"  subgraph {package}")
        lines += [f'    {room.replace(".", "_")}["{room.split(".")[1]}"]' for room in rooms]
        for source in rooms:
            direct = between.get(source, set())
            over = {end for room in direct for end in _reached(between, room)}
            lines += [
                f"    {source.replace('.', '_')} --> {target.replace('.', '_')}"
                for target in sorted(direct - over)
            ]
        lines.append("  end")
    lines += ["  micu_extract --> micu", "```"]
    return "\n".join(lines)


def _reached(between: Arrows, start: str) -> set[str]:
    """The rooms that are reached from one, itself not counted."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        for room in between.get(ahead.pop(), set()) - found:
            found.add(room)
            ahead.append(room)
    return found


def count_all() -> list[tuple[str, int, int, list[str]]]:
    """What is counted: name, how many, at most, and which where each is a fault."""
    modules = read_modules()
    arrows = find_arrows(modules)
    lines = sum(module.lines for module in modules.values())
    counts: list[tuple[str, int, int, list[str]]] = [("lines", lines, MOST_LINES["all"], [])]
    for package in PACKAGES:
        between = arrows_between_rooms(arrows, package)
        rooms = {room_of(name) for name in modules if name.startswith(f"{package}.")}
        arrow_count = sum(map(len, between.values()))
        circle = find_circle(between)
        counts += [
            (f"entries at the top of {package}", len(rooms), MOST_ENTRIES[package], []),
            (f"arrows between them in {package}", arrow_count, MOST_ARROWS[package], []),
            (f"circles of rooms in {package}", bool(circle), 0, [" → ".join(circle)]),
        ]
    circle = find_circle(arrows)
    for name, found in (
        ("circles of files", [" → ".join(circle)] if circle else []),
        ("long files and functions", find_long(modules.values())),
        ("crumbs", find_crumbs(modules, arrows)),
        ("class names defined twice", find_doubles(modules.values())),
    ):
        counts.append((name, len(found), 0, found))
    return counts


@click.command()
@click.option(
    "--diagram",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Write the diagram into this page, between its marks, and stop.",
)
def main(diagram: Path | None) -> None:
    """Count the shape of the code, or draw it."""
    if diagram is not None:
        text = diagram.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        drawn = draw_diagram(find_arrows(read_modules()))
        diagram.write_text(f"{head}{BEGIN}\n{drawn}\n{END}{tail}", encoding="utf-8")
        return
    over = False
    for name, count, most, which in count_all():
        over |= count > most
        click.echo(f"{count:7,} {name} (at most {most:,}){' OVER' if count > most else ''}")
        for one in filter(None, which if count > most else ()):
            click.echo(f"          {one}")
    sys.exit(over)


if __name__ == "__main__":
    main()
