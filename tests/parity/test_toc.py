"""TOC against the published choice of channels, and against loops over pairs of codes."""

import re

import numpy as np
import pytest
import torch

from micu.base.errors import ConfigError
from micu.evaluate.toc import ChannelChoice, score_channels
from micu.model.quantizer import nearest_code
from tests.parity import recipe
from tests.parity.conftest import Golden
from tests.parity.recipe import assert_close

CASES = ("s", "m", "full")


def codebook_of(case: str, shape: tuple[int, int], base: int) -> torch.Tensor:
    seed, (_, width) = 100 * base + 700 + 10 * CASES.index(case), shape
    codes = recipe.tensor(shape, seed) * recipe.tensor((width,), seed + 1, 0.3, 0.4)
    return torch.from_numpy(codes + recipe.tensor((width,), seed + 2, 0.4))


@pytest.mark.parametrize("case", CASES)
def test_scores_and_choices_are_the_published_ones(case: str, golden: Golden, base: int) -> None:
    expected = golden("toc")
    rows, width = (int(n) for n in expected[f"{case}_shape"])
    codebook = codebook_of(case, (rows, width), base)
    assert_close(recipe.checksum(codebook.numpy()), expected[f"{case}_codebook_chk"])
    for name, with_variance in (("simvar", True), ("sim", False)):
        scores = score_channels(codebook, with_variance=with_variance).numpy()
        assert_close(scores, expected[f"{case}_{name}_score"])
        assert_close(scores, expected[f"{case}_{name}_score_published"], 5e-6)
        choices = [key for key in expected if key.startswith(f"{case}_{name}_k")]
        assert len(choices) >= 2
        for key in choices:
            numbers = re.fullmatch(r".*_k(\d+)_(\d+)_(\d+)", key)
            assert numbers is not None
            choice = ChannelChoice(*map(int, numbers.groups()), with_variance)
            got = choice.choose(codebook).numpy()
            np.testing.assert_array_equal(got, expected[key], err_msg=key)
            assert len(got) == choice.kept


@pytest.mark.parametrize(("case", "kept"), [("s", 8), ("m", 32)])
def test_channels_are_dropped_after_a_lookup_in_all_of_them(
    case: str, kept: int, golden: Golden, base: int
) -> None:
    expected = golden("toc")
    rows, width = (int(n) for n in expected[f"{case}_shape"])
    codebook = codebook_of(case, (rows, width), base)
    seed = 100 * base + 703 + 10 * CASES.index(case)
    codes = nearest_code(torch.from_numpy(recipe.tensor((2, 5, width), seed, 0.6)), codebook)
    np.testing.assert_array_equal(codes.reshape(-1), expected[f"{case}_codes_idx"].reshape(-1))
    channels = ChannelChoice(kept).choose(codebook)
    chosen = codebook[codes][..., channels]
    assert_close(chosen, expected[f"{case}_codes_selected"].reshape(chosen.shape))


@pytest.mark.parametrize("rows", [2, 3, 9])
def test_a_score_is_what_loops_over_pairs_of_codes_give(rows: int) -> None:
    codebook = torch.from_numpy(recipe.tensor((rows, 5), 4, 0.7, 0.2))
    for c in range(5):
        column = codebook[:, c].tolist()
        products = [a * b for i, a in enumerate(column) for j, b in enumerate(column) if i != j]
        similarity = sum(products) / len(products)
        mean = sum(column) / rows
        variance = sum((x - mean) ** 2 for x in column) / (rows - 1)
        alone = score_channels(codebook, with_variance=False)[c].item()
        both = score_channels(codebook.float())[c].item()
        assert alone == pytest.approx(-0.7 * similarity, abs=1e-12)
        assert both == pytest.approx(-0.7 * similarity + 0.3 * variance, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "choice", "kept"),
    [
        ("128", ChannelChoice(128), 128),
        ("224:1:1", ChannelChoice(224, 1, 1), 224),
        ("7:2:1", ChannelChoice(7, 2, 1), 6),
        ("2:1:1", ChannelChoice(2, 1, 1), 2),
        ("5:0:1", ChannelChoice(5, 0, 1), 5),
        ("168:1:0:similarity", ChannelChoice(168, with_variance=False), 168),
    ],
)
def test_a_choice_is_typed_as_it_is_told(text: str, choice: ChannelChoice, kept: int) -> None:
    assert ChannelChoice.parse(text) == choice
    assert ChannelChoice.parse(str(choice)) == choice
    assert str(choice) == text
    assert choice.kept == kept == len(choice.choose(torch.rand(3, 256)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got ''; type"),
        ("12:1", "got '12:1'; type"),
        ("-3", "got '-3'"),
        ("٣", "expected CHANNELS"),
        ("1" * 200, "got '1{40}'"),
        ("0", "got 0 for 1 \\+ 0"),
        ("8:0:0", "got 8 for 0 \\+ 0"),
        ("2:2:1", "got 2 for 2 \\+ 1"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^--toc.*{message}"):
        ChannelChoice.parse(text)


def test_more_channels_than_the_codes_have_are_refused() -> None:
    assert ChannelChoice(4).choose(torch.rand(3, 4)).shape == (4,)
    with pytest.raises(ConfigError, match="--toc 5: expected at most the codes' 4 channels"):
        ChannelChoice(5).choose(torch.rand(3, 4))
