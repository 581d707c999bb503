"""Where the media of a manifest really lie: official lists name clips, downloaders name files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from micu.store.manifest import Clip, youtube_id
from micu_extract.media.formats import MEDIA_SUFFIXES


@dataclass(frozen=True, slots=True)
class Located:
    """Clips with the paths of the files that there are."""

    clips: tuple[Clip, ...]
    moved: int
    """Clips whose file was found elsewhere below the root, or under another ending."""
    missing: int
    """Clips whose file was not found; they keep the path that was expected."""


def locate_media(clips: Sequence[Clip], root: Path) -> Located:
    """Find the media of clips below a folder.

    A file is taken that lies where the path says; else the only one of that name or of the clip's
    id, whatever its folder and ending; else the only one of the same YouTube id.

    Args:
        clips: Rows of a manifest; those without a path stay as they are.
        root: Folder of the media. Links to folders are not followed.
    """
    there = {
        (Path(folder) / name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root)
        for name in names
        if Path(name).suffix.lower() in MEDIA_SUFFIXES
    }
    by_stem: dict[str, list[str]] = {}
    by_video: dict[str, list[str]] = {}
    for path in sorted(there):
        stem = PurePosixPath(path).stem
        by_stem.setdefault(stem, []).append(path)
        if video := youtube_id(stem):
            by_video.setdefault(video, []).append(path)
    located, moved, missing = [], 0, 0
    for clip in clips:
        if clip.path and clip.path not in there:
            stem, name = PurePosixPath(clip.path).stem, clip.clip_id.partition("#")[0]
            found = by_stem.get(stem) or by_stem.get(name) or by_video.get(youtube_id(stem) or "")
            if found and len(found) == 1:
                moved += 1
                clip = replace(clip, path=found[0])
            else:
                missing += 1
        located.append(clip)
    return Located(tuple(located), moved, missing)
