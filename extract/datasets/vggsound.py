"""VGGSound: 10 s clips of YouTube videos, one label each.

Source: Chen et al., ICASSP 2020; the official `vggsound.csv`, without a header: YouTube id, start
in seconds, label, split.
"""

import csv
from pathlib import Path

from extract.datasets.base import DATASETS
from micu.errors import ManifestError
from micu.manifest import Clip

CLIP_S = 10.0


@DATASETS.register("vggsound")
def read_vggsound(annotations: Path) -> list[Clip]:
    """Rows of the official list, for media named `<id>_<start, six digits>.mp4`.

    The media are taken to be cut already, as the usual downloaders leave them: a clip is its whole
    file, ten seconds long. The label is also the text.

    Raises:
        ManifestError: Lines that are not of the official format, all named.
    """
    clips: list[Clip] = []
    bad: list[str] = []
    with annotations.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.reader(file), start=1):
            if len(row) != 4 or not row[1].strip().isdigit():
                bad.append(f"  line {line}: expected id, start in seconds, label, split; got {row}")
                continue
            youtube_id, start, label, split = (field.strip() for field in row)
            stem = f"{youtube_id}_{int(start):06d}"
            clips.append(
                Clip(
                    clip_id=stem,
                    path=f"{stem}.mp4",
                    start_s=0.0,
                    end_s=CLIP_S,
                    label=label,
                    split=split,
                    text=label,
                )
            )
    if bad:
        shown = "\n".join(bad[:20])
        raise ManifestError(f"{annotations}: {len(bad)} bad lines\n{shown}")
    return clips
