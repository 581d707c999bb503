"""Data sets: their official annotation files to manifest rows; one import line per data set."""

from micu_extract.datasets import (  # noqa: F401
    ave,
    avvp,
    folder,
    hac,
    mscoco,
    ucf101,
    ucf_vgg,
    valor32k,
    vggsound,
)
from micu_extract.datasets.base import DATASETS

__all__ = ["DATASETS"]
