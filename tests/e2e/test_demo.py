"""`micu-demo`, whole but small: fewer clips and little training, through the same commands."""

from pathlib import Path

import pytest

from extract import demo
from extract.demo_report import read_scores


@pytest.mark.slow
def test_the_demo_goes_from_media_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = demo.run_demo(tmp_path / "out", seeds=1, size=demo.QUICK)

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
    again = demo.run_demo(tmp_path / "out", seeds=1, keep=True, size=demo.QUICK)
    shown = capsys.readouterr().out
    assert shown.count(" 0 clips to extract") == 4
    assert "kill -9" not in shown
    assert read_scores(again.results, "hos", "oracle") == results
