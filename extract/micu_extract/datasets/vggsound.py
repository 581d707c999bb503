"""VGGSound: 10 s clips of YouTube videos, one label each; AVEL-40k and -90k, lists for pretraining.

Source: Chen et al., ICASSP 2020; the official `vggsound.csv`, without a header: YouTube id, start
in seconds, label, split. AVEL-40k is the list of 40,801 of these clips that MICU and its
predecessors pretrain on: `category, video_id, split`, without the start. AVEL-90k is CoDAAR's, of
87,323 clips and the same classes; 33,508 are in both. VGGSounder (Zverev et al., ICCV 2025) lists
all labels of the test clips: `video_id, label, modality` and more.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from micu.store.manifest import Clip, Event
from micu_extract.datasets.base import (
    CLIP_S,
    File,
    Files,
    Lines,
    cut_clip,
    data_set,
    logger,
    name_some,
    read_rows,
    read_table,
)

PERCEIVED = {"A": "audio", "V": "video", "AV": ""}
"""VGGSounder's names of where a label can be perceived, and an event's."""
STARTS = File(role="starts", pattern="vggsound.csv", optional=True)


@data_set("vggsound", File(role="list", pattern="vggsound.csv"))
def read_vggsound(files: Files) -> list[Clip]:
    """Rows of the official list, for media named `<id>_<start, six digits>.mp4`.

    The media are taken to be cut already, as the usual downloaders leave them: a clip is its whole
    file, ten seconds long. The label is also the text.

    Raises:
        ManifestError: Lines that are not of the official format, all named.
    """
    return [
        cut_clip(_stem(youtube_id, start), label=label, split=split, text=label)
        for youtube_id, start, label, split in _read_list(files["list"])
    ]


def _avel_files(name: str) -> tuple[File, ...]:
    return (
        File(role="list", pattern=name),
        File(role="prompts", pattern="vggsoundcategories2prompts.csv", optional=True),
        STARTS,
    )


@data_set("vggsound-avel90k", *_avel_files("vggsound-avel90k*.csv"))
@data_set("vggsound-avel40k", *_avel_files("vggsound-avel40k.csv"))
def read_avel(files: Files) -> list[Clip]:
    """Rows of a pretraining list.

    The text is the label, or with the prompts the one sentence that the published code has for the
    label. Either way the "text" is the class; see docs/manifests.md. With `starts`, ids and media
    are those of the data set `vggsound`; else `<id>`, the names of the released features.

    Raises:
        ManifestError: A file is not of the official format, or a label has no sentence.
    """
    sentences = (
        {r["label"]: r["prompt"] for _, r in read_table(files["prompts"], ("label", "prompt"))}
        if "prompts" in files
        else None
    )
    clips, lines = [], Lines(files["list"])
    for line, row in read_table(files["list"], ("category", "video_id", "split")):
        label = row["category"]
        if sentences is not None and label not in sentences:
            lines.bad(line, f"no sentence for {label!r} in {files['prompts']}")
            continue
        text = label if sentences is None else sentences[label]
        clips.append(cut_clip(row["video_id"], label=label, split=row["split"], text=text))
    lines.check()
    return with_starts(clips, files)


def with_starts(clips: Sequence[Clip], files: Files) -> list[Clip]:
    """Clips of VGGSound that are listed by video alone, with the starts of the official list.

    VGGSound has several clips of some videos, so that the class has to agree as well; the lists cut
    its name at the first comma. What is still not told apart keeps its name.

    Args:
        clips: Rows whose id, and whose file's name, is a YouTube id.
        files: Official files, `starts` among them or not.

    Raises:
        ManifestError: The official list is not of its format.
    """
    if "starts" not in files:
        return list(clips)
    starts: dict[tuple[str, str], set[int]] = {}
    for video, start, label, _ in _read_list(files["starts"]):
        for name in {label, label.split(",")[0]}:
            starts.setdefault((video, name), set()).add(start)
    told, unknown = [], []
    for clip in clips:
        found = starts.get((clip.clip_id, clip.label), set())
        if len(found) != 1:
            unknown.append(clip.clip_id)
            told.append(clip)
            continue
        name = _stem(clip.clip_id, next(iter(found)))
        path = PurePosixPath(clip.path).with_name(f"{name}.mp4").as_posix()
        told.append(replace(clip, clip_id=name, path=path, group=""))
    if unknown:
        logger.warning(
            "%s: %d clips have no start of their class in it, or several, and keep their names%s",
            files["starts"],
            len(unknown),
            name_some(unknown),
        )
    return told


@data_set(
    "vggsounder",
    File(role="list", pattern="vggsounder*.csv"),
    File(role="classes", pattern="vggsound.csv"),
)
def read_vggsounder(files: Files) -> list[Clip]:
    """Clips of VGGSound's test list, with all that can be heard or seen in them as events.

    The label is VGGSound's. The events have no times of their own: each is as long as its clip.

    Raises:
        ManifestError: A file is not of the official format.
    """
    events: dict[str, list[Event]] = {}
    lines = Lines(files["list"])
    for line, row in read_table(files["list"], ("video_id", "label", "modality")):
        if row["modality"] not in PERCEIVED:
            lines.bad(line, f"expected modality A, V or AV, got {row['modality']!r}")
            continue
        event = Event(row["label"], 0.0, CLIP_S, PERCEIVED[row["modality"]])
        events.setdefault(row["video_id"], []).append(event)
    lines.check()
    labels = {_stem(video, start): label for video, start, label, _ in _read_list(files["classes"])}
    clips = [
        cut_clip(stem, label=labels.get(stem, ""), split="test", events=tuple(found))
        for stem, found in events.items()
    ]
    if unknown := [clip.clip_id for clip in clips if not clip.label]:
        told = name_some(unknown)
        logger.warning("%s: %d clips are not in it%s", files["classes"], len(unknown), told)
    return clips


def _stem(video: str, start_s: int) -> str:
    return f"{video}_{start_s:06d}"


def _read_list(path: Path) -> list[tuple[str, int, str, str]]:
    """Id, start (s), label and split of every line of the official list."""
    rows, lines = [], Lines(path)
    for line, row in read_rows(path):
        if len(row) != 4 or not re.fullmatch("[0-9]{1,6}", row[1]):
            lines.bad(line, f"expected id, start in seconds, label, split; got {row}")
            continue
        youtube_id, start, label, split = row
        rows.append((youtube_id, int(start), label, split))
    lines.check()
    return rows
