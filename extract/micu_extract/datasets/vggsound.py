"""VGGSound: 10 s clips of YouTube videos, one label each; and AVEL-40k, its list for pretraining.

Source: Chen et al., ICASSP 2020; the official `vggsound.csv`, without a header: YouTube id, start
in seconds, label, split. AVEL-40k is the list of 40,801 of these clips that MICU and its
predecessors pretrain on: `category, video_id, split`, without the start.
"""

import re
from pathlib import Path

from micu.store.manifest import Clip
from micu_extract.datasets.base import File, Files, Lines, data_set, read_rows, read_table

CLIP_S = 10.0


@data_set("vggsound", File(role="list", pattern="vggsound.csv"))
def read_vggsound(files: Files) -> list[Clip]:
    """Rows of the official list, for media named `<id>_<start, six digits>.mp4`.

    The media are taken to be cut already, as the usual downloaders leave them: a clip is its whole
    file, ten seconds long. The label is also the text.

    Raises:
        ManifestError: Lines that are not of the official format, all named.
    """
    return [
        _clip(f"{youtube_id}_{start:06d}", label, split, label)
        for youtube_id, start, label, split in _read_list(files["list"])
    ]


@data_set(
    "vggsound-avel40k",
    File(role="list", pattern="vggsound-avel40k.csv"),
    File(role="prompts", pattern="vggsoundcategories2prompts.csv", optional=True),
    File(role="starts", pattern="vggsound.csv", optional=True),
)
def read_avel40k(files: Files) -> list[Clip]:
    """Rows of the pretraining list.

    The text is the label, or with the prompts the one sentence that the published code has for the
    label. Either way the "text" is the class; see docs/manifests.md. With `starts`, ids and media
    are those of the data set `vggsound`; else `<id>`, the names of the released features.

    Raises:
        ManifestError: A file is not of the official format, or a label has no sentence.
    """
    starts = (
        {youtube_id: start for youtube_id, start, _, _ in _read_list(files["starts"])}
        if "starts" in files
        else {}
    )
    sentences = (
        {r["label"]: r["prompt"] for _, r in read_table(files["prompts"], ("label", "prompt"))}
        if "prompts" in files
        else None
    )
    clips, lines = [], Lines(files["list"])
    for line, row in read_table(files["list"], ("category", "video_id", "split")):
        label, video_id = row["category"], row["video_id"]
        if sentences is not None and label not in sentences:
            lines.bad(line, f"no sentence for {label!r} in {files['prompts']}")
            continue
        stem = f"{video_id}_{starts[video_id]:06d}" if video_id in starts else video_id
        text = label if sentences is None else sentences[label]
        clips.append(_clip(stem, label, row["split"], text))
    lines.check()
    return clips


def _clip(stem: str, label: str, split: str, text: str) -> Clip:
    return Clip(
        clip_id=stem,
        path=f"{stem}.mp4",
        start_s=0.0,
        end_s=CLIP_S,
        label=label,
        split=split,
        text=text,
    )


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
