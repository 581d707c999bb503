"""Clotho: sounds of 15 to 30 s with five sentences each.

Source: Drossos et al., ICASSP 2020; the official `clotho_captions_{development,validation,
evaluation}.csv`: `file_name, caption_1, …, caption_5`.
"""

from micu.base.errors import ManifestError
from micu.store.manifest import Clip
from micu_extract.datasets.base import File, Files, captions, data_set, read_table

SPLITS = {"development": "train", "validation": "val", "evaluation": "test"}
CAPTIONS = tuple(f"caption_{i}" for i in range(1, 6))


@data_set(
    "clotho",
    *(File(role=name, pattern=f"clotho_captions_{name}.csv", optional=True) for name in SPLITS),
)
def read_clotho(files: Files) -> list[Clip]:
    """Rows of the splits that are given: per sound `NAME`, `NAME#2`, … `NAME#5`, of one group.

    Media lie in a folder per split, as the archives unpack. A clip is its whole file.

    Raises:
        ManifestError: A file is not of the official format, or none was given.
    """
    if not files:
        raise ManifestError(
            "clotho: expected --annotations development=…, validation=… or evaluation=…"
        )
    clips: list[Clip] = []
    for name, split in SPLITS.items():
        for _, row in read_table(files[name], ("file_name", *CAPTIONS)) if name in files else ():
            item = Clip(clip_id=row["file_name"], path=f"{name}/{row['file_name']}", split=split)
            clips += captions(item, [row[column] for column in CAPTIONS if row[column]])
    return clips
