"""VALOR-32K: 10 s clips with one sentence each about what is seen and heard.

Source: Chen et al., 2023; the official `desc_{train,val,test}.json`: a list of `video_id`, which is
`<YouTube id>_<start>_<end>`, and `desc`.
"""

import json
from pathlib import Path
from typing import Any

from micu.base.errors import ManifestError
from micu.base.table import read_bytes
from micu.store.manifest import Clip
from micu_extract.datasets.base import File, Files, cut_clip, data_set

SPLITS = ("train", "val", "test")


@data_set(
    "valor32k",
    *(File(role=split, pattern=f"*desc_{split}.json", optional=True) for split in SPLITS),
)
def read_valor32k(files: Files) -> list[Clip]:
    """Rows of the splits that are given, for media named `<video_id>.mp4`, cut already.

    Raises:
        ManifestError: A file is not of the official format.
    """
    return [
        cut_clip(video, split=split, text=" ".join(sentence.split()))
        for split in SPLITS
        if split in files
        for video, sentence in _read_sentences(files[split])
    ]


def _read_sentences(path: Path) -> list[tuple[str, str]]:
    entries = read_json(path)
    try:
        pairs = [(entry["video_id"], entry["desc"]) for entry in entries]
        if not all(isinstance(text, str) for pair in pairs for text in pair):
            raise TypeError("expected text")
    except (TypeError, KeyError) as error:
        raise ManifestError(
            f"{path}: expected a list of video_id and desc, got {error!r}"
        ) from error
    return pairs


def read_json(path: Path) -> Any:
    """What an official JSON file holds.

    Raises:
        ManifestError: It is no file, far too large, or not JSON.
    """
    try:
        return json.loads(read_bytes(path, "JSON"))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: expected JSON: {error}") from error
