"""`micu-demo`, whole but small: fewer clips and little training, through the same commands."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from micu.cli.evaluate import main as evaluate
from micu.cli.train import main as train
from micu_extract.cli import cli as extract
from micu_extract.demo import tour as demo
from tests.feature_sets import SMALL

SIZE = replace(
    demo.QUICK,
    settings=(*demo.QUICK.settings, *SMALL, "optimizer.batch_size=22", "optimizer.max_steps=2"),
)
"""The quick demo with a network that steps in milliseconds."""


TOOLS = {"micu-extract": extract, "micu-train": train, "micu-eval": evaluate}


def run_here(shell: demo.Shell, name: str, *arguments: str, expect: Sequence[int] = (0,)) -> None:
    """What the demo types, in this process, which has imported everything."""
    with contextlib.chdir(shell.folder), (shell.folder / demo.LOG).open("a") as log:
        done = CliRunner().invoke(TOOLS[name], arguments)
        log.write(done.output)
    assert done.exit_code in expect, done.output


@pytest.mark.slow
def test_the_demo_goes_from_media_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.run_demo(tmp_path / "out", seeds=1, size=SIZE)

    told = demo.tell_results(tmp_path / "out/results.csv", 1)
    shown = capsys.readouterr().out
    log = (tmp_path / "out/demo.log").read_text()
    assert "kill -9: killed on purpose" in shown
    assert "27 clips to extract, 16 done" in log
    assert log.count("good features/manifest/") == 4
    lines = [line for line in shown.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert len(shown.splitlines()) <= 40
    page = (tmp_path / "out/report.html").read_text()
    for text in (
        *("untrained", "toy", "Codes by how many modalities", "Perplexity", "micu-eval"),
        *("cut-off", "sound-only", "empty", "random:0"),
    ):
        assert text in page, text
    assert shown.count("$ micu-extract flow") == 2

    monkeypatch.setattr(demo, "write_media", pytest.fail)
    monkeypatch.setattr(demo.Shell, "run", run_here)
    monkeypatch.setattr(demo.Shell, "kill_once", pytest.fail)
    demo.run_demo(tmp_path / "out", seeds=1, keep=True, size=SIZE)
    shown = capsys.readouterr().out
    log = (tmp_path / "out/demo.log").read_text()
    assert log.count(" 0 clips to extract") == 4
    assert log.count("good features/manifest/") == 4
    assert demo.tell_results(tmp_path / "out/results.csv", 1) == told
