"""LLP, the data of audio-visual video parsing (AVVP), and AVE→AVVP, its mixture with AVE.

Source: Tian, Li & Xu, ECCV 2020; the official `AVVP_eval_{audio,visual}.csv` (one event a line) or
the checked and combined lists that the published code names (tab separated, one clip a line,
comma-joined onset, offset, label). AVE→AVVP trains on the clips of AVE whose class AVVP has too.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from micu.base.errors import ManifestError
from micu.store.manifest import Clip, Event, youtube_start
from micu_extract.datasets.ave import ANNOTATIONS, read_annotations
from micu_extract.datasets.base import (
    File,
    Files,
    Lines,
    cut_clip,
    data_set,
    numbered,
    read_event,
    read_table,
)

LISTS = {"video": "visual", "audio": "audio"}
"""How the authors call the modalities; the order is that of the rows."""

AVE_NAMES = {
    "Accordion": "Accordion",
    "Acoustic guitar": "Acoustic_guitar",
    "Baby cry, infant cry": "Baby_cry_infant_cry",
    "Banjo": "Banjo",
    "Bark": "Dog",
    "Cat": "Cat",
    "Chainsaw": "Chainsaw",
    "Frying (food)": "Frying_(food)",
    "Helicopter": "Helicopter",
    "Motorcycle": "Motorcycle",
    "Race car, auto racing": "Car",
    "Violin, fiddle": "Violin_fiddle",
}
"""The twelve classes of AVE that AVVP has too, by their names there."""


def _lists(prefix: str) -> tuple[File, ...]:
    return tuple(
        File(role=name, pattern=f"{prefix}_eval_{name}*.csv", optional=True)
        for name in LISTS.values()
    )


@data_set("avvp", *_lists("avvp"))
def read_avvp(files: Files) -> list[Clip]:
    """The annotated clips of one list or of both.

    A clip that both lists have is one row, and its events say in which modality they are. A clip
    that a list has twice has two rows. Clips have no `label`, since they have several.

    Raises:
        ManifestError: Lines that are not of the official format, or no list was given.
    """
    return _read_lists(files, "")


@data_set("ave-avvp", File(role="ave", pattern=ANNOTATIONS.pattern), *_lists("ave_avvp"))
def read_ave_avvp(files: Files) -> list[Clip]:
    """AVE's clips of the twelve shared classes (split `train`), then AVVP's (split `test`).

    The labels are AVVP's. Media lie in the folders `ave/` and `avvp/`.

    Raises:
        ManifestError: As for `avvp`, or lines of AVE's file that are not of the official format.
    """
    ave = [clip for clip in read_annotations(files["ave"]) if clip.label in AVE_NAMES]
    return [
        *(_as_avvp(clip) for clip in ave),
        *(replace(clip, split="test") for clip in _read_lists(files, "avvp/")),
    ]


def _as_avvp(clip: Clip) -> Clip:
    label = AVE_NAMES[clip.label]
    events = tuple(replace(event, label=label) for event in clip.events)
    return replace(clip, path=f"ave/{clip.path}", label=label, events=events, split="train")


@dataclass(frozen=True, slots=True)
class _Listed:
    """One clip of one list."""

    name: str
    events: tuple[Event, ...]


def _read_lists(files: Files, folder: str) -> list[Clip]:
    """Rows of the lists that are given; `name#2` is the second row of a name in a list.

    A file is named as its video, or as its clip where the lists have several clips of the video.
    """
    given = {modality: files[name] for modality, name in LISTS.items() if name in files}
    if not given:
        raise ManifestError(
            "avvp: expected --annotations visual=…, audio=… or both, got neither list"
        )
    events: dict[tuple[str, int], tuple[Event, ...]] = {}
    for modality, path in given.items():
        seen: dict[str, int] = {}
        for listed in _read_list(path, modality):
            count = seen[listed.name] = seen.get(listed.name, 0) + 1
            key = (listed.name, count)
            events[key] = events.get(key, ()) + listed.events
    starts: dict[str, set[float]] = {}
    for name, _ in events:
        if (start := youtube_start(name)) is not None:
            starts.setdefault(name[:11], set()).add(start)
    several = {video for video, found in starts.items() if len(found) > 1}
    return [
        numbered(
            cut_clip(
                name, f"{folder}{name if name[:11] in several else name[:11]}.mp4", events=found
            ),
            count,
        )
        for (name, count), found in events.items()
    ]


def _read_list(path: Path, modality: str) -> list[_Listed]:
    """Clips of a list, in order; lines of one event each that follow one another are one clip."""
    clips: list[_Listed] = []
    lines = Lines(path)
    columns = ("filename", "onset", "offset", "event_labels")
    for line, row in read_table(path, columns):
        parts = [row[column].split(",") for column in columns[1:]]
        try:
            events = tuple(
                read_event(lines, line, label.strip(), float(onset), float(offset), modality)
                for onset, offset, label in zip(*parts, strict=True)
            )
        except (ValueError, ManifestError) as error:
            lines.bad(line, f"{row['filename']}: {error}")
            continue
        if clips and clips[-1].name == row["filename"]:
            events = clips.pop().events + events
        clips.append(_Listed(row["filename"], events))
    lines.check()
    return clips
