"""MSCOCO and Clotho: pictures, and sounds of 15 to 30 s, with five or more sentences each.

Source of MSCOCO, in the split of Karpathy & Fei-Fei: Lin et al., ECCV 2014, and Karpathy & Fei-Fei,
CVPR 2015. Either the official `dataset_coco.json` of the split, which has the sentences too; or a
list of a split (lines of `val2014/NAME.jpg` and the image's number) and the official
`captions_*.json` of the pictures.

Source of Clotho: Drossos et al., ICASSP 2020; the official `clotho_captions_{development,
validation,evaluation}.csv`: `file_name, caption_1, …, caption_5`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from micu.base.errors import ManifestError
from micu.store.manifest import Clip
from micu_extract.datasets.base import (
    File,
    Files,
    Lines,
    captions,
    data_set,
    logger,
    read_lines,
    read_table,
)
from micu_extract.datasets.valor32k import read_json

KARPATHY = {"restval": "train"}
"""Splits of `dataset_coco.json` that are used as others."""
CLOTHO_SPLITS = {"development": "train", "validation": "val", "evaluation": "test"}
CLOTHO_COLUMNS = tuple(f"caption_{i}" for i in range(1, 6))


@data_set(
    "mscoco",
    File(role="karpathy", pattern="dataset_coco.json", optional=True),
    File(role="val", pattern="*val_images.txt", optional=True),
    File(role="test", pattern="*test_images.txt", optional=True),
    File(role="captions", pattern="captions_*.json", optional=True),
)
def read_mscoco(files: Files) -> list[Clip]:
    """Rows of the pictures, each with its sentences: `NAME`, `NAME#2`, …, of the group `NAME`.

    Raises:
        ManifestError: A file is not of the official format, or no list was given.
    """
    if "karpathy" in files:
        return _read_karpathy(files["karpathy"])
    lists = [split for split in ("val", "test") if split in files]
    if not lists:
        raise ManifestError(
            "mscoco: expected --annotations dataset_coco.json, or val=… or test=…, with captions=…"
        )
    sentences = _read_captions(files["captions"]) if "captions" in files else {}
    clips: list[Clip] = []
    for split in lists:
        for path, image in _read_list(files[split]):
            clips += _rows(path, split, sentences.get(image, ()))
    silent = sum(not clip.text for clip in clips)
    if silent:
        logger.warning("mscoco: %d pictures have no sentence; type captions=… too", silent)
    return clips


def _rows(path: str, split: str, sentences: Iterable[str]) -> list[Clip]:
    item = Clip(clip_id=Path(path).stem, path=path, split=split)
    return captions(item, tuple(sentences) or ("",))


def _read_karpathy(path: Path) -> list[Clip]:
    clips: list[Clip] = []
    try:
        for image in read_json(path)["images"]:
            split = KARPATHY.get(image["split"], image["split"])
            sentences = [sentence["raw"] for sentence in image["sentences"]]
            clips += _rows(f"{image['filepath']}/{image['filename']}", split, sentences)
    except (TypeError, KeyError) as error:
        raise ManifestError(
            f"{path}: expected images with filepath, filename, split and sentences, got {error!r}"
        ) from error
    return clips


def _read_captions(path: Path) -> dict[int, list[str]]:
    """Sentences by image id, in the order of the file."""
    found: dict[int, list[str]] = {}
    try:
        for entry in read_json(path)["annotations"]:
            found.setdefault(int(entry["image_id"]), []).append(str(entry["caption"]))
    except (TypeError, KeyError, ValueError) as error:
        raise ManifestError(
            f"{path}: expected annotations with image_id and caption, got {error!r}"
        ) from error
    return found


def _read_list(path: Path) -> list[tuple[str, int]]:
    images, lines = [], Lines(path)
    for number, line in read_lines(path):
        match = re.fullmatch(r"(\S+\.jpg)\s+(\d+)", line.strip())
        if match is None:
            lines.bad(number, f"expected FILE.jpg and an image id, got {line!r}")
            continue
        images.append((match[1], int(match[2])))
    lines.check()
    return images


@data_set(
    "clotho",
    *(
        File(role=name, pattern=f"clotho_captions_{name}.csv", optional=True)
        for name in CLOTHO_SPLITS
    ),
)
def read_clotho(files: Files) -> list[Clip]:
    """Rows of the splits that are given: per sound `NAME`, `NAME#2`, … `NAME#5`, of one group.

    Media lie in a folder per split, as the archives unpack. A clip is its whole file.

    Raises:
        ManifestError: A file is not of the official format.
    """
    clips: list[Clip] = []
    for name, split in CLOTHO_SPLITS.items():
        for _, row in (
            read_table(files[name], ("file_name", *CLOTHO_COLUMNS)) if name in files else ()
        ):
            item = Clip(clip_id=row["file_name"], path=f"{name}/{row['file_name']}", split=split)
            clips += captions(item, [row[column] for column in CLOTHO_COLUMNS if row[column]])
    return clips
