"""Clips that two manifests share: what is pretrained on must not be tested on."""

from collections.abc import Sequence
from dataclasses import dataclass

from micu.manifest import Clip, youtube_id


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
    clip is.
    """
    by_id = {clip.clip_id for clip in second}
    by_video: dict[str, list[str]] = {}
    for clip in second:
        if video := youtube_id(clip.clip_id):
            by_video.setdefault(video, []).append(clip.clip_id)
    shared = []
    for clip in first:
        if clip.clip_id in by_id:
            shared.append(Shared(clip, "id", (clip.clip_id,)))
        elif others := by_video.get(youtube_id(clip.clip_id) or ""):
            shared.append(Shared(clip, "youtube", tuple(others)))
    return shared
