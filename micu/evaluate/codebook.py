"""How the modalities use the codebook: counts, perplexity, and which codes they share.

Source: figure 6 of the MICU paper, whose rule is that a modality takes part in a code if it makes
up a tenth of the code's activations.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ConfigError
from micu.base.files import write_atomically
from micu.evaluate.sheets import count, read_sheet, render_sheet, show

if TYPE_CHECKING:  # torch takes seconds to import, and reading needs none
    from micu.evaluate.probe import ClipFeatures

SHARE = 0.1
"""Part of a code's activations from which a modality takes part in it."""

COLUMNS = ("code", "modality", "count", "protocol")


@dataclass(frozen=True, slots=True)
class CodebookUse:
    """How often each modality chose each code."""

    counts: dict[str, NDArray[np.int64]]
    """modality → (K,), steps that chose the code"""
    protocol: str = ""
    """Of the clips that were counted; empty where the file does not say."""

    def perplexity(self, modality: str) -> float:
        """Exponential of the entropy of the codes, [1, K]: how many codes a modality works with.

        NaN for a modality without a step.
        """
        counts = self.counts[modality]
        if not counts.sum():
            return math.nan
        chances = counts[counts > 0] / counts.sum()
        return float(np.exp(-(chances * np.log(chances)).sum()))

    def active(self, modality: str) -> int:
        """Codes that a modality chose at least once."""
        return int((self.counts[modality] > 0).sum())

    def takers(self, share: float = SHARE) -> NDArray[np.int64]:
        """How many modalities take part in each code, (K,); 0 for codes that nothing chose."""
        table = np.stack(list(self.counts.values()))
        total = table.sum(0)
        result: NDArray[np.int64] = ((table >= share * total) & (table > 0)).sum(0)
        return result

    def shares(self) -> dict[int, float]:
        """Number of modalities → share of the active codes in which just so many take part."""
        takers = self.takers()
        active = takers[takers > 0]
        return {
            number: float((active == number).mean()) if len(active) else 0.0
            for number in range(1, len(self.counts) + 1)
        }

    def used_by_all(self) -> float:
        """Share of the active codes that every modality chose at least once."""
        table = np.stack(list(self.counts.values())) > 0
        return float(table.all(0).sum() / max(1, table.any(0).sum()))


def count_codes(encoded: "Mapping[str, ClipFeatures]", codebook_size: int) -> CodebookUse:
    """Count the codes of all steps that the mask calls real.

    Args:
        encoded: modality → features with codes.
        codebook_size: K.
    """
    counts: dict[str, NDArray[np.int64]] = {}
    for modality, features in encoded.items():
        if features.codes is None:
            raise ValueError(f"{modality}: features without codes")
        chosen = features.codes[features.mask].numpy()
        counts[modality] = np.bincount(chosen, minlength=codebook_size)
    return CodebookUse(counts)


def agreement(encoded: "Mapping[str, ClipFeatures]") -> dict[tuple[str, str], float]:
    """Share of steps at which two modalities of one clip chose the same code, by pair.

    NaN where no step is real in both.

    Args:
        encoded: modality → features with codes, of the same clips in the same order.
    """
    result: dict[tuple[str, str], float] = {}
    for first, second in itertools.combinations(encoded, 2):
        left, right = encoded[first], encoded[second]
        if left.codes is None or right.codes is None or left.clip_ids != right.clip_ids:
            raise ValueError(f"{first} and {second}: expected codes of the same clips")
        same = (left.codes == right.codes)[left.mask & right.mask]
        result[first, second] = float(same.double().mean()) if len(same) else math.nan
    return result


def write_codebook(use: CodebookUse, path: Path) -> None:
    """Write every code's count by modality as a CSV file, zeros included; and the protocol."""
    rows = [
        (code, modality, int(number), use.protocol)
        for modality, counts in use.counts.items()
        for code, number in enumerate(counts)
    ]
    write_atomically(path, render_sheet(COLUMNS, rows).encode())


def read_codebook(path: Path) -> CodebookUse:
    """Read a file of `write_codebook`.

    Raises:
        ConfigError: It is not one, or was cut off.
    """
    sheet = read_sheet(path, what="a codebook file of micu-eval")
    found: dict[str, dict[int, int]] = {}
    protocols: set[str] = set()
    try:
        for line, row in sheet.rows:
            protocols.add(row.get("protocol") or "")
            uses, code = found.setdefault(row["modality"], {}), count(row["code"])
            if code in uses:
                raise ValueError(f"line {line} repeats code {code} of {show(row['modality'])}")
            uses[code] = count(row["count"])
        if len(protocols) > 1:
            raise ValueError("expected the counts of one protocol")
        codes = sorted({code for uses in found.values() for code in uses})
        if not codes or codes != list(range(len(codes))):
            raise ValueError("expected every code from 0 on for each modality")
        if min(min(uses.values()) for uses in found.values()) < 0:
            raise ValueError("expected counts of 0 or more")
        counts = {
            name: np.array([uses[code] for code in codes], np.int64) for name, uses in found.items()
        }
    except (KeyError, ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: not a codebook file of micu-eval: {error!r}") from error
    return CodebookUse(counts, *protocols)
