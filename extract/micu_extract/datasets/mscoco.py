"""MSCOCO in the split of Karpathy & Fei-Fei: pictures with five or more sentences each.

Source: Lin et al., ECCV 2014, and Karpathy & Fei-Fei, CVPR 2015. Either the official
`dataset_coco.json` of the split, which has the sentences too; or a list of a split (lines of
`val2014/NAME.jpg` and the image's number) and the official `captions_*.json` of the pictures.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from micu.base.errors import ManifestError
from micu.store.manifest import Clip
from micu_extract.datasets.base import File, Files, Lines, captions, data_set, logger, read_lines
from micu_extract.datasets.valor32k import read_json

KARPATHY = {"restval": "train"}
"""Splits of `dataset_coco.json` that are used as others."""


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
