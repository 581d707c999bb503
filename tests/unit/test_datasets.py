from pathlib import Path

import pytest

from extract.datasets import DATASETS
from micu.errors import ManifestError
from micu.manifest import Clip


def test_vggsound_rows_name_the_files_that_downloaders_leave(tmp_path: Path) -> None:
    path = tmp_path / "vggsound.csv"
    path.write_text('---g-f_I2yQ,1,"people marching, loud",test\n--0PQM4-hqg,30,waterfall,train\n')
    assert DATASETS["vggsound"](path) == [
        Clip(
            clip_id="---g-f_I2yQ_000001",
            path="---g-f_I2yQ_000001.mp4",
            start_s=0.0,
            end_s=10.0,
            label="people marching, loud",
            split="test",
            text="people marching, loud",
        ),
        Clip(
            clip_id="--0PQM4-hqg_000030",
            path="--0PQM4-hqg_000030.mp4",
            start_s=0.0,
            end_s=10.0,
            label="waterfall",
            split="train",
            text="waterfall",
        ),
    ]


def test_lines_of_another_format_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "vggsound.csv"
    path.write_text("youtube_id,start_s,label,split\nabc,1,dog,train\nabc,x\n")
    with pytest.raises(ManifestError, match=r"(?s)2 bad lines.*line 1.*line 3"):
        DATASETS["vggsound"](path)
