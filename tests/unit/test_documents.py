"""The documentation says what the code does, and every page can be found."""

import importlib.util
import re
from types import ModuleType

import pytest

from tests.conftest import PROJECT

DOCS = PROJECT / "docs"


def load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = load_reference()


@pytest.mark.parametrize("name", REFERENCE.PAGES)
def test_a_page_that_is_made_from_the_code_follows_it(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")

    assert page == REFERENCE.PAGES[name](), "type: python docs/reference.py"


def test_the_pages_name_every_command_and_setting() -> None:
    commands, settings = (REFERENCE.PAGES[n]() for n in ("commands.md", "settings.md"))

    for name in ("micu-extract flow", "micu-extract status", "micu-eval oscmg", "micu-demo"):
        assert re.search(rf"^###? {name}$", commands, re.MULTILINE)
    assert "| `--tvl1` |" in commands
    assert "| `quantizer.codebook_size` | `400` | K. |" in settings


def test_the_readme_is_two_screens() -> None:
    assert len((PROJECT / "README.md").read_bytes()) <= 15_000


def test_every_page_is_in_the_menu() -> None:
    menu = set(re.findall(r"[\w-]+\.(?:md|ipynb)", (PROJECT / "mkdocs.yml").read_text()))

    pages = (*DOCS.glob("*.md"), *(PROJECT / "examples").glob("*.ipynb"))
    assert menu == {path.name for path in pages}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "manifests/README.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(name: str) -> None:
    page = PROJECT / name
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text(encoding="utf-8"))

    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []
