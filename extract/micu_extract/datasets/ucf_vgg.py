"""UCF↔VGG: sixteen classes that UCF101 and VGGSound share, pictures of the one, sound of the other.

Source: the lists of the published code, `ucf2vggsound.csv` (`category, video_id`) and
`vggsound2ucf.csv` (`category, video_id, split`), and two files of sixteen names each, whose lines i
are one class. Bowling has no clip in the first list and playing frisbee none in the second.
"""

from pathlib import Path

from micu.base.errors import ManifestError
from micu.store.manifest import Clip
from micu_extract.datasets.base import (
    File,
    Files,
    Lines,
    cut_clip,
    data_set,
    read_lines,
    read_table,
)
from micu_extract.datasets.ucf101 import media_path
from micu_extract.datasets.vggsound import STARTS, with_starts

FILES = (
    File(role="ucf", pattern="ucf2vggsound.csv"),
    File(role="vgg", pattern="vggsound2ucf.csv"),
    File(role="ucf-names", pattern="ucf101samevggsound.txt"),
    File(role="vgg-names", pattern="vggsoundsameucf101.txt"),
    STARTS,
)


@data_set("ucf-vgg", *FILES)
def read_ucf_vgg(files: Files) -> list[Clip]:
    """UCF101's clips (split `train`), then VGGSound's (split `test`), under VGGSound's names.

    Media lie in the folders `ucf101/` and `vggsound/`. The task takes the pictures of the former
    and the sound of the latter, whose ids are those of the data set `vggsound` with `starts`.

    Raises:
        ManifestError: Files that are not of the official format, or names that differ among them.
    """
    return _read_both(files, ucf_split="train", vgg_split="test")


@data_set("vgg-ucf", *FILES)
def read_vgg_ucf(files: Files) -> list[Clip]:
    """The same rows the other way round: trained on VGGSound's clips, tested on UCF101's.

    Raises:
        ManifestError: As for `ucf-vgg`.
    """
    return _read_both(files, ucf_split="test", vgg_split="train")


def _read_both(files: Files, *, ucf_split: str, vgg_split: str) -> list[Clip]:
    ucf_names, vgg_names = _read_names(files["ucf-names"]), _read_names(files["vgg-names"])
    if len(ucf_names) != len(vgg_names):
        raise ManifestError(
            f"{files['ucf-names']} has {len(ucf_names)} names, {files['vgg-names']} "
            f"{len(vgg_names)}; expected as many: line i of both is one class"
        )
    labels = dict(zip(ucf_names, vgg_names, strict=True))
    clips = []
    for row in _read_clips(files["ucf"], ucf_names):
        category, video = row["category"], row["video_id"]
        path = f"ucf101/{media_path(category, video)}"
        clips.append(Clip(clip_id=video, path=path, label=labels[category], split=ucf_split))
    of_vgg = [
        cut_clip(
            row["video_id"],
            f"vggsound/{row['video_id']}.mp4",
            label=row["category"],
            split=vgg_split,
        )
        for row in _read_clips(files["vgg"], vgg_names)
    ]
    return clips + with_starts(of_vgg, files)


def _read_names(path: Path) -> list[str]:
    """One name per line; of `Bowling<TAB>bowling` the first, which is how the clips spell it."""
    names, lines = [], Lines(path)
    for number, line in read_lines(path):
        name, *rest = (part.strip() for part in line.split("\t"))
        if rest:
            lines.mended(number, f"{line!r} has a tab: read as {name!r}")
        names.append(name)
    return names


def _read_clips(path: Path, names: list[str]) -> list[dict[str, str]]:
    rows = [row for _, row in read_table(path, ("category", "video_id"))]
    if unknown := sorted({row["category"] for row in rows} - set(names)):
        raise ManifestError(f"{path}: classes that the names do not have: {', '.join(unknown)}")
    return rows
