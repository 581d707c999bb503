"""The golden files: expected values made by the published code, and the base of their seeds."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.reference import find_grid_width

OWN = Path(__file__).parent.parent / "golden"
LISTING = "reference_checkpoint_keys.json"
Golden = Callable[[str], Mapping[str, Any]]


@pytest.fixture(scope="session")
def golden_root() -> Path:
    """Folder of the golden files: `$MICU_GOLDEN`, else the one in the repository."""
    return Path(os.environ.get("MICU_GOLDEN") or OWN)


@pytest.fixture(scope="session")
def golden_settings(golden_root: Path) -> dict[str, int]:
    """What cannot be read from the arrays; `golden.json` beside them may override it."""
    path = golden_root / "golden.json"
    given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"base": 1, **given}


@pytest.fixture(scope="session")
def base(golden_settings: dict[str, int]) -> int:
    """First part of every seed of the recipe."""
    return golden_settings["base"]


@pytest.fixture(scope="session")
def grid_width(golden_settings: dict[str, int], golden: Golden, checkpoint_listing: Path) -> int:
    """Channels of the reconstruction's grid branch in the golden files.

    No array has this axis whole: unless `golden.json` says it, it is the width that gives the first
    channels of the first step.
    """
    given = golden_settings.get("grid_width")
    if given is not None:
        return given
    head = golden("semantic")["video_enc_head"]
    return find_grid_width(checkpoint_listing, golden_settings["base"], head[:1, :1])


@pytest.fixture(scope="session")
def golden(golden_root: Path) -> Golden:
    """Read one golden file by its name without suffix: name -> {key: array}."""

    def read(name: str) -> Mapping[str, Any]:
        with np.load(golden_root / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return read


@pytest.fixture(scope="session")
def checkpoint_listing(golden_root: Path) -> Path:
    """The layout of the published checkpoint, which a set of another base need not repeat."""
    path = golden_root / LISTING
    return path if path.is_file() else OWN / LISTING
