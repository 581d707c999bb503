"""`micu-demo`, whole but small: fewer clips and little training, through the same commands."""

from dataclasses import replace
from pathlib import Path

import pytest

from micu_extract.demo import tour as demo
from micu_extract.demo.report import read_scores
from tests.feature_sets import SMALL

SIZE = replace(
    demo.QUICK,
    settings=(*demo.QUICK.settings, *SMALL, "optimizer.batch_size=22", "optimizer.max_steps=2"),
)
"""The quick demo with a network that steps in milliseconds."""


@pytest.mark.slow
def test_the_demo_goes_from_media_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = demo.run_demo(tmp_path / "out", seeds=1, size=SIZE)

    results = read_scores(report.results, "hos", "oracle")
    shown = capsys.readouterr().out
    assert "kill -9: killed on purpose" in shown
    assert "27 clips to extract, 16 done" in shown
    assert shown.count("good features/manifest/") == 4
    assert {failed.clip_id for failed in report.failures} == {"empty", "cut-off", "sound-only"}
    page = (tmp_path / "out/report.html").read_text()
    for told in ("untrained", "cut-off", "micu-extract flow", "micu-eval", "toy"):
        assert told in page

    monkeypatch.setattr(demo, "write_media", pytest.fail)
    # The one that is killed only once, and one with broken files: each is three seconds of imports.
    there = {name: demo.BACKBONES[name] for name in ("video", "flow")}
    monkeypatch.setattr(demo, "BACKBONES", there)
    again = demo.run_demo(tmp_path / "out", seeds=1, keep=True, size=SIZE)
    shown = capsys.readouterr().out
    assert shown.count(" 0 clips to extract") == 2
    assert shown.count("good features/manifest/") == 4
    assert "kill -9" not in shown
    assert read_scores(again.results, "hos", "oracle") == results
