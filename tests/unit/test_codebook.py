"""How the codebook's use is counted."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from micu.evaluate.codebook import (
    CodebookUse,
    agreement,
    count_codes,
    read_codebook,
    write_codebook,
)
from micu.evaluate.probe import ClipFeatures


def encoded(modality: str, codes: list[list[int]], real: int | None = None) -> ClipFeatures:
    table = torch.tensor(codes)
    mask = torch.ones(table.shape, dtype=torch.bool)
    mask[:, real:] = real is None
    ids = tuple(str(i) for i in range(len(codes)))
    return ClipFeatures(modality, ids, torch.zeros(*table.shape, 1), mask, table)


def test_padded_steps_are_not_counted() -> None:
    use = count_codes({"audio": encoded("audio", [[0, 1, 3], [1, 1, 3]], real=2)}, 5)
    assert use.counts["audio"].tolist() == [1, 3, 0, 0, 0]
    assert use.active("audio") == 2


def test_perplexity_is_the_number_of_codes_used_evenly() -> None:
    use = CodebookUse({"audio": np.array([5, 5, 0, 5]), "video": np.array([9, 0, 0, 0])})
    assert use.perplexity("audio") == pytest.approx(3.0)
    assert use.perplexity("video") == pytest.approx(1.0)


def test_a_modality_takes_part_in_a_code_from_a_tenth_of_its_activations() -> None:
    use = CodebookUse({"audio": np.array([90, 91, 0, 7]), "video": np.array([10, 9, 0, 0])})
    assert use.takers().tolist() == [2, 1, 0, 1]
    assert use.shares() == pytest.approx({1: 2 / 3, 2: 1 / 3})
    assert use.used_by_all() == pytest.approx(2 / 3)


def test_agreement_is_the_share_of_equal_codes_at_equal_steps() -> None:
    pair = {"audio": encoded("audio", [[0, 1, 2, 3]]), "video": encoded("video", [[0, 1, 9, 9]])}
    assert agreement(pair) == {("audio", "video"): 0.5}


def test_the_file_holds_every_code_of_every_modality(tmp_path: Path) -> None:
    write_codebook(CodebookUse({"audio": np.array([3, 0])}, "clean"), tmp_path / "codebook.csv")
    with (tmp_path / "codebook.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"code": "0", "modality": "audio", "count": "3", "protocol": "clean"},
        {"code": "1", "modality": "audio", "count": "0", "protocol": "clean"},
    ]
    assert read_codebook(tmp_path / "codebook.csv").protocol == "clean"
    (tmp_path / "old.csv").write_text("code,modality,count\n0,audio,3\n1,audio,0\n")
    assert read_codebook(tmp_path / "old.csv").protocol == ""
