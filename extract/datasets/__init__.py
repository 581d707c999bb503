"""Data sets: their official annotation files to manifest rows; one import line per data set."""

from extract.datasets import vggsound  # noqa: F401
from extract.datasets.base import DATASETS

__all__ = ["DATASETS"]
