"""A data set: from its official list to the rows of a manifest."""

from micu.store.manifest import Clip
from micu_extract.datasets.base import File, Files, data_set, read_table


@data_set("example-list", File(role="list", pattern="*list*.csv"))
def read_example(files: Files) -> list[Clip]:
    """Rows of a list with the columns `name`, `class` and `part`."""
    return [
        Clip(
            clip_id=row["name"],
            path=f"{row['name']}.wav",
            label=row["class"],
            split=row["part"],
        )
        for _, row in read_table(files["list"], ("name", "class", "part"))
    ]
