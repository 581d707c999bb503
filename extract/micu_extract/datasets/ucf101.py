"""UCF101: videos of one action each; 51 of the 101 classes have sound.

Source: Soomro et al., 2012; the official `trainlist0N.txt` and `testlist0N.txt` (`Class/video.avi`,
in the training lists followed by the class number), which keep the groups of one recording
together; and the lists of the published code, `category, video_id`.
"""

import re
from pathlib import Path

from micu.base.errors import ManifestError
from micu.store.manifest import Clip
from micu_extract.datasets.base import File, Files, Lines, data_set, read_lines, read_table

_FOLDERS = {"HandStandPushups": "HandstandPushups"}
"""Folders of the archive that are not spelled as the videos in them."""


@data_set(
    "ucf101",
    File(role="list", pattern="ucf51checked*.csv", optional=True),
    File(role="train", pattern="*trainlist0*.txt", optional=True),
    File(role="test", pattern="*testlist0*.txt", optional=True),
)
def read_ucf101(files: Files) -> list[Clip]:
    """Rows of a list, with the official split where that is given; else of the official split.

    Raises:
        ManifestError: Lines that are not of the official format.
    """
    official = {
        Path(path).stem: (path, split)
        for split in ("train", "test")
        if split in files
        for path in _read_official(files[split])
    }
    if "list" not in files:
        return [
            Clip(clip_id=video, path=path, label=video.split("_")[1], split=split)
            for video, (path, split) in official.items()
        ]
    clips = []
    for _, row in read_table(files["list"], ("category", "video_id")):
        video, path = row["video_id"], media_path(row["category"], row["video_id"])
        if official and video not in official:
            raise ManifestError(f"ucf101: {video} of {files['list']} is in no official list")
        path, split = official.get(video, (path, ""))
        clips.append(Clip(clip_id=video, path=path, label=row["category"], split=split))
    return clips


def media_path(category: str, video_id: str) -> str:
    """Where UCF101's archive puts a video."""
    return f"{_FOLDERS.get(category, category)}/{video_id}.avi"


def _read_official(path: Path) -> list[str]:
    """Videos of an official list, `Class/name.avi`."""
    videos, lines = [], Lines(path)
    for number, line in read_lines(path):
        video = line.split()[0]
        if not re.fullmatch(r"\w+/v_\w+_g\d+_c\d+\.avi", video):
            lines.bad(number, f"expected Class/v_Class_g01_c01.avi, got {line!r}")
            continue
        videos.append(video)
    lines.check()
    return videos
