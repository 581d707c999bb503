"""Clips that two manifests share: what is pretrained on must not be tested on."""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from micu.store.manifest import Clip, youtube_id

logger = logging.getLogger(__name__)

_UCF_RECORDING = re.compile(r"(v_\w+_g\d+)_c\d+")
"""A video of UCF101: a class, a recording, a clip of it."""


def media_item(clip: Clip) -> str:
    """What a clip is cut from: a YouTube video or a recording of UCF101, else its group."""
    found = _UCF_RECORDING.fullmatch(clip.group)
    return found[1] if found else youtube_id(clip.group) or clip.group


@dataclass(frozen=True, slots=True)
class Shared:
    """A clip of the first manifest that the second has too."""

    clip: Clip
    by: str
    """`id`: the same clip id; `youtube`: the same video, perhaps another part of it."""
    others: tuple[str, ...]
    """Ids of the clips of the second manifest."""


def find_shared(first: Sequence[Clip], second: Sequence[Clip]) -> list[Shared]:
    """Clips of the first manifest whose id, or whose YouTube video, the second has.

    Data sets are cut from the same videos, so that a video counts as shared whatever part of it a
    clip is. Clips of one id whose groups say that they are of two files are not shared.
    """
    by_id = {clip.clip_id: clip for clip in second}
    by_video: dict[str, list[str]] = {}
    for clip in second:
        if video := youtube_id(clip.clip_id):
            by_video.setdefault(video, []).append(clip.clip_id)
    shared, apart = [], 0
    for clip in first:
        same = by_id.get(clip.clip_id)
        if same and are_of_two_files(clip, same):
            apart += 1
        elif same:
            shared.append(Shared(clip, "id", (clip.clip_id,)))
        elif others := by_video.get(youtube_id(clip.clip_id) or ""):
            shared.append(Shared(clip, "youtube", tuple(others)))
    if apart:
        logger.warning(
            "%d clips have an id of the other manifest and are of other files: they count as two. "
            "If the files were moved or copied in between, list them again",
            apart,
        )
    return shared


def are_of_two_files(first: Clip, second: Clip) -> bool:
    """Whether clips of one id are told apart by groups that both of them were given."""
    groups = {first.group, second.group}
    return len(groups) == 2 and first.clip_id not in groups


def items_sha256(clips: Sequence[Clip]) -> str:
    """SHA-256 over the media items and sentences of clips, whatever else is said of them."""
    told = sorted(f"{media_item(clip)}\0{clip.text}" for clip in clips)
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()
