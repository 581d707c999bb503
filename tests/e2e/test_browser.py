"""Pages in a browser, as phones and desks show them: whole, quiet, and readable by everybody."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from micu.cli.hits import render_hits
from micu.library.model import Embedding, Hit
from micu.report.build import build_report, title_of
from micu.report.page import render_html
from micu.report.read import Material
from micu.store.manifest import Clip
from tests.conftest import PROJECT
from tests.unit.test_report_page import material

pytest.importorskip("mkdocs", reason="no builder of the documentation here")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core here")
sync_api = pytest.importorskip("playwright.sync_api", reason="no driver of a browser here")

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} here")
GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of everything, the page of a search, and one of the documentation."""
    root = tmp_path_factory.mktemp("pages")
    found: Material = material()
    found.sources.clear()
    (root / "report.html").write_text(render_html(title_of(found), build_report(found, "pca")))
    index = Embedding(
        clip_ids=("a", "b"),
        modalities=("video", "audio"),
        vectors=np.eye(2, dtype=np.float32),
        codes=np.arange(8).reshape(2, 4),
        mask=np.ones((2, 4), bool),
    )
    hits = [Hit("a", "video", 0.9, 0), Hit("b", "audio", 0.1, 1)]
    clips = {"a": Clip(clip_id="a", label="dog", text="a dog barks " * 9)}
    shown = {"video": np.zeros((9, 16, 3), np.uint8), "audio": np.sin(np.arange(999.0))}
    (root / "hits.html").write_text(
        render_hits("a dog", hits, index, clips, lambda _, modality: shown[modality])
    )
    site = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--no-directory-urls"]
    subprocess.run([*site, "--site-dir", root / "site"], cwd=PROJECT, check=True)
    return {
        "report": root / "report.html",
        "search": root / "hits.html",
        "docs": root / "site/glossary.html",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "search", "docs"])
def test_a_page_is_quiet_fits_its_screen_and_has_no_grave_fault(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(pages[name].as_uri())
    wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert told == []
    faults = axe.Axe().run(page).response["violations"]
    page.close()
    assert wide[0] <= wide[1]
    grave = [
        (fault["id"], fault["nodes"][0]["html"]) for fault in faults if fault["impact"] in GRAVE
    ]
    assert not grave, json.dumps(grave, indent=1)
