"""HAC: humans, animals and cartoons doing the same seven things; one domain is tested on.

Source: Dong et al., SimMMDG, NeurIPS 2023, and MOOSA, ECCV 2024; the official
`HAC_{train,test}_only_{human,animal,cartoon}.csv`, without a header: `name.mp4,label`. Trained on
are the train lists of two domains, their test lists validate; the whole third domain is the test.
"""

import re
from functools import partial

from micu.store.manifest import Clip
from micu_extract.datasets.base import File, Files, Lines, data_set, read_rows, with_unique_ids

DOMAINS = ("human", "animal", "cartoon")
CLASSES = (
    *("sleeping", "watching tv", "eating", "drinking", "swimming", "running", "opening door"),
)
"""By their numbers in the lists."""
SOURCE_SPLITS = {"train": "train", "test": "val"}


def read_hac(target: str, files: Files) -> list[Clip]:
    """Rows of all lists; ids have the domain, as hundreds of names are in two.

    A clip that is in both lists of its domain has two rows of one group.

    Raises:
        ManifestError: Lines that are not of the official format, all named.
    """
    clips = []
    for domain in DOMAINS:
        for part, split in SOURCE_SPLITS.items():
            path = files[f"{domain}-{part}"]
            lines = Lines(path)
            for number, row in read_rows(path):
                if not re.fullmatch(r"[^,]+\.mp4,[0-6]", ",".join(row)):
                    lines.bad(number, f"expected name.mp4 and a label from 0 to 6, got {row}")
                    continue
                name, label = row
                clips.append(
                    Clip(
                        clip_id=f"{domain}/{name.removesuffix('.mp4')}",
                        path=f"{domain}/videos/{name}",
                        label=CLASSES[int(label)],
                        split="test" if domain == target else split,
                    )
                )
            lines.check()
    return with_unique_ids(clips)


for _target in DOMAINS:
    data_set(
        f"hac-{_target}",
        *(
            File(role=f"{domain}-{part}", pattern=f"hac_{part}_only_{domain}.csv")
            for domain in DOMAINS
            for part in SOURCE_SPLITS
        ),
    )(partial(read_hac, _target))
