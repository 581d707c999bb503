"""`micu-eval embed` and `micu-eval search`: from a trained model to files and a page."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import micu
from micu.cli.evaluate import main
from micu.cli.hits import render_hits, tabulate
from micu.library.model import Embedding, Hit
from micu.store.manifest import Clip
from micu_extract.demo.media import write_clip
from tests.conftest import not_on_windows
from tests.feature_sets import SMALL

pytestmark = not_on_windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, their features of three modalities, and a model that was hardly trained."""
    root = tmp_path_factory.mktemp("search")
    (root / "media").mkdir()
    rows = []
    for i in range(6):
        label = ("ball", "fan")[i % 2]
        write_clip(root / "media" / f"{i}.mp4", label, (i,))
        rows.append({"clip_id": f"clip {i}", "path": f"media/{i}.mp4", "text": f"a {label} <b>"})
    pd.DataFrame(rows).to_csv(root / "my.csv", index=False)
    backbones = ("swinv2-demo", "htsat-demo", "bert-demo")
    sets = [
        micu.extract_features(root / "my.csv", name, weights="random", out=root / "features")
        for name in backbones
    ]
    settings = dict(entry.split("=") for entry in SMALL) | {"optimizer.max_steps": 2}
    micu.train_model(features=sets, settings=settings, out=root / "run", device="cpu")
    Image.new("RGB", (80, 60), "red").save(root / "red.png")
    return root


def type_in(folder: Path, command: str, *words: str | Path) -> Result:
    typed = [command, folder / "run", *words, "--features", folder / "features", "--device", "cpu"]
    return CliRunner().invoke(main, [str(word) for word in typed], catch_exceptions=False)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_embed_writes_what_the_call_gives(folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"e.{kind}"
    done = type_in(folder, "embed", folder / "my.csv", "-o", out, "--modalities", "v,t")
    assert done.exit_code == 0, done.output
    assert f"{out}: 6 video, 6 text" in done.stderr
    root = folder / "features/my"
    sets = {"video": root / "video-swinv2-demo", "text": root / "text-bert-demo"}
    e = micu.load(folder / "run", device="cpu").embed(sets)
    read = np.load(out) if kind == "npz" else pd.read_parquet(out)
    assert list(read["clip_ids"]) == list(e.clip_ids)
    assert np.array_equal(np.stack(list(read["vectors"])), e.vectors)
    assert np.array_equal(np.stack(list(read["codes"])), e.codes)


def test_without_names_all_modalities_are_searched_by_any_query(
    folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "hits.html"
    done = type_in(folder, "search", "--text", "a fan <b>", "-o", page, "-k", "18", "--json")
    assert done.exit_code == 0, done.output
    hits = json.loads(done.stdout)
    assert len(hits) == 18
    assert {hit["modality"] for hit in hits} == {"audio", "video", "text"}
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    shown = page.read_text()
    assert "a fan &lt;b&gt;" in shown
    assert "<b>" not in shown
    assert shown.count("<figure>") == 18
    assert shown.count("data:image/png;base64") == 12  # six stills, twice: text shows one, too
    assert "no text to show" not in shown
    assert "img-src data:" in shown
    for query in (("--audio", folder / "media/0.mp4"), ("--picture", folder / "red.png")):
        done = type_in(folder, "search", *query, "-k", "2", "--modalities", "v")
        assert done.exit_code == 0, done.output
        assert len(re.findall(r"^\| [12] ", done.stdout, re.MULTILINE)) == 2
        assert "a ball" in done.stdout or "a fan" in done.stdout


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("embed", ["-o", "e.csv"], "expected a name that ends in .npz or .parquet"),
        ("embed", ["-o", "e.npz", "--modalities", "f"], "no flow features"),
        ("search", [], "expected one of text, audio, video, picture"),
        ("search", ["--text", "a", "--audio", "b"], "expected one of text, audio, video, picture"),
        ("search", ["--text", "a", "--text-features", "x"], "no text features of backbone 'x'"),
    ],
)
def test_mistakes_are_told(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = type_in(folder, command, *words)
    assert done.exit_code == 2
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_media_or_manifest_shows_codes_of_real_steps_alone() -> None:
    codes = np.array([[7, 8, 9], [1, 2, 3]])
    mask = np.array([[True, True, True], [True, False, True]])
    index = Embedding(np.ones((2, 2)), codes, mask, ("a", "gone"), ("audio", "video"))
    wave = np.sin(np.arange(999)).astype(np.float32)
    hits = [Hit("gone", "video", 0.5, 1), Hit("a", "audio", 0.25, 0)]
    clips = {"a": Clip(clip_id="a", text="hello")}
    shown = render_hits(
        "found",
        hits,
        index,
        clips,
        lambda clip, modality: wave if clip.text else None,
    )
    drawn = re.findall(r"<desc>(.*?)</desc>", shown)
    assert drawn == ["codes 1 3", "codes 7 8 9"]
    assert "1. gone, video, 0.500</figcaption>" in shown
    assert "2. a, audio, 0.250: hello</figcaption>" in shown
    assert shown.count("no video to show") == 1
    assert "no audio to show" not in shown
    assert tabulate(hits, clips).rows == (
        ("", "score", "clip", "modality", "sentence"),
        ("1", "0.5000", "gone", "video", ""),
        ("2", "0.2500", "a", "audio", "hello"),
    )
