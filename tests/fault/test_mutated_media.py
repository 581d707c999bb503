"""Damaged and hostile media of many formats harm no worker of an extraction."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.media_files import skip_without_decord

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = 80


@pytest.fixture
def mutated_media(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    # At the end: a script there has the name of the package. Workers get the path as well.
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    yield __import__("mutated_media")
    del sys.modules["mutated_media"]


def test_no_mutated_file_ends_a_worker_or_is_a_surprise(
    tmp_path: Path, mutated_media: ModuleType
) -> None:
    skip_without_decord()
    sources = mutated_media.write_seeds(tmp_path)
    assert len({source.suffix for source in sources}) >= 12
    paths = [source.name for source in sources]
    for number in range(FILES):
        suffix, data = mutated_media.mutate("tests", sources, number)
        paths.append(f"m{number}{suffix}")
        (tmp_path / paths[-1]).write_bytes(data)

    found = mutated_media.try_files(tmp_path, paths, workers=2)

    assert list(found) == paths
    harmful = {
        p: codes for p, codes in found.items() if set(codes.values()) & set(mutated_media.BAD)
    }
    assert harmful == {}
    counts = Counter(code for codes in found.values() for code in codes.values())
    assert counts["media"] > FILES  # so that mutations reach the decoders
    assert "permission" not in counts


def test_mutations_are_the_same_every_time(tmp_path: Path, mutated_media: ModuleType) -> None:
    (tmp_path / "a.wav").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "b.mp3").write_bytes(bytes(5))
    sources = sorted(tmp_path.iterdir())
    made = [mutated_media.mutate("0", sources, number) for number in range(200)]
    assert made == [mutated_media.mutate("0", sources, number) for number in range(200)]
    assert made != [mutated_media.mutate("1", sources, number) for number in range(200)]
    assert all(data for _, data in made)


def test_what_harms_is_counted_kept_and_ends_with_1(
    tmp_path: Path, mutated_media: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    def write_one(folder: Path) -> list[Path]:
        (folder / "a.wav").write_bytes(b"RIFF")
        return [folder / "a.wav"]

    def try_one(folder: Path, paths: list[str], workers: int) -> dict[str, dict[str, str]]:
        return {path: {"pyav sound": "timeout" if path == "m1.wav" else "media"} for path in paths}

    monkeypatch.setattr(mutated_media, "write_seeds", write_one)
    monkeypatch.setattr(mutated_media, "try_files", try_one)
    options = ["--files", "3", "--keep", str(tmp_path / "kept")]
    result = CliRunner().invoke(mutated_media.main, options)

    assert result.exit_code == 1
    assert "figure: mutated_timeout 1\n" in result.output
    assert "figure: mutated_worker_died 0\n" in result.output
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["m1.wav"]
    assert CliRunner().invoke(mutated_media.main, ["--files", "1"]).exit_code == 0
