"""The notebooks run from a clean kernel, and keep what they showed."""

import os
from pathlib import Path

import pytest

from tests.conftest import PROJECT, PYTHONPATH, not_on_windows

pytestmark = [not_on_windows, pytest.mark.slow]

NOTEBOOKS = sorted((PROJECT / "examples").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_clean_kernel(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    kept = [kinds(cell) for cell in notebook.cells]
    place = {"metadata": {"path": os.fspath(tmp_path)}}
    client.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
    assert [kinds(cell) for cell in notebook.cells] == kept
    assert kinds(notebook.cells[-1])[-1] == "image/png"


def kinds(cell: dict) -> list[str]:
    """What a cell shows, beside what is printed on the way: results by their richest kind."""
    shown = [output for output in cell.get("outputs", ()) if output["output_type"] != "stream"]
    assert all(output["output_type"] != "error" for output in shown)
    return [min(output["data"]) for output in shown]


def test_the_first_hour_has_fifteen_lines_from_import_to_picture() -> None:
    import json

    cells = json.loads((PROJECT / "examples/01-first-hour.ipynb").read_text())["cells"]
    imports, *code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert "import micu" in imports
    assert len([line for text in code for line in text.splitlines() if line.strip()]) <= 15
    assert '"/' not in "".join(code)
