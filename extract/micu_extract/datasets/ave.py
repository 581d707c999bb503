"""AVE: 4,143 videos of 10 s, one audio-visual event each, with the seconds in which it happens.

Source: Tian et al., ECCV 2018; the official `Annotations.txt`, `Category&VideoID&Quality&StartTime&
EndTime` with or without that header, and `{train,val,test}_order.h5`, whose data set `order` holds
line numbers. Line i of the annotations is row i of the authors' features.
"""

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from micu.base.errors import ManifestError
from micu.store.hdf5 import open_plain
from micu.store.manifest import Clip
from micu_extract.datasets.base import (
    File,
    Files,
    Lines,
    cut_clip,
    data_set,
    read_event,
    read_lines,
    with_unique_ids,
)

SPLITS = ("train", "val", "test")
ANNOTATIONS = File(role="annotations", pattern="*annotations.txt")


@data_set(
    "ave",
    ANNOTATIONS,
    *(File(role=split, pattern=f"*{split}_order.h5", optional=True) for split in SPLITS),
)
def read_ave(files: Files) -> list[Clip]:
    """One row per line, in the order of the lines; the event is that of the line.

    A video with several lines has several rows, `<id>`, `<id>#2`. Without order files no row has a
    split.

    Raises:
        ManifestError: Lines that are not of the official format, or order files that do not number
            them.
    """
    clips = read_annotations(files["annotations"])
    splits = _read_splits(files, len(clips))
    return [replace(clip, split=split) for clip, split in zip(clips, splits, strict=True)]


def read_annotations(path: Path) -> list[Clip]:
    """Rows of the annotation file, without splits.

    Raises:
        ManifestError: Lines that are not of the official format, all named.
    """
    clips, lines = [], Lines(path)
    for number, line in read_lines(path):
        fields = [field.strip() for field in line.split("&")]
        if number == 1 and fields[0] == "Category":
            continue
        if len(fields) != 5 or not all(re.fullmatch("[0-9]+", field) for field in fields[3:]):
            lines.bad(number, f"expected category&id&quality&start&end, got {line!r}")
            continue
        label, onset, offset = fields[0], float(fields[3]), float(fields[4])
        event = read_event(lines, number, label, onset, offset)
        clips.append(cut_clip(fields[1], label=label, events=(event,)))
    lines.check()
    return with_unique_ids(clips)


def _read_splits(files: Files, rows: int) -> list[str]:
    splits = [""] * rows
    for split in SPLITS:
        if split not in files:
            continue
        for row in _read_order(files[split], rows):
            if not 0 <= row < rows:
                raise ManifestError(
                    f"{files[split]}: expected line numbers from 0 to {rows - 1}, got {row}; is "
                    "it of another annotation file?"
                )
            if splits[row]:
                raise ManifestError(
                    f"{files[split]}: line {row} is in {splits[row]} already; the splits overlap"
                )
            splits[row] = split
    return splits


def _read_order(path: Path, rows: int) -> NDArray[np.int64]:
    with open_plain(path) as file:
        order = file.get("order")
        if not isinstance(order, h5py.Dataset) or order.ndim != 1 or order.dtype.kind not in "iu":
            raise ManifestError(f"{path}: expected a data set `order` of line numbers")
        if len(order) > rows:
            raise ManifestError(f"{path}: numbers {len(order)} lines of {rows}")
        return np.asarray(order[:], np.int64)
