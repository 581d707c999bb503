"""Files that people name, or that come with data of others, are read in bounds: no pipe, no device.

`/dev/null` stands for what is no file: reading it ends at once, so that no test waits.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from micu.base.errors import CheckpointError, ConfigError, ManifestError, MicuError, WeightsError
from micu.cli.sweep_table import collect
from micu.cli.train import RunFolder
from micu.config.overrides import to_json
from micu.config.sections import TrainConfig
from micu.evaluate import details, report
from micu.evaluate.sheets import first_words, read_columns, read_sheet
from micu.evaluate.splits import read_class_map
from micu.report.commands import commands_path, read_commands, record_command
from micu.report.read import gather
from micu.sweep.conduct import TAIL, _last_line
from micu.train.checkpoint import load_checkpoint
from micu.train.logs import MAX_ROW_BYTES, read_metrics
from micu.train.processes.place import LAUNCHER, Place
from micu_extract.backbones.text import read_words
from micu_extract.backbones.weights import find_weights_file
from micu_extract.backbones.weights import read_index as read_weights_index
from micu_extract.datasets.base import read_lines, read_rows
from micu_extract.datasets.valor32k import read_json
from tests.unit.test_report import ROW
from tests.unit.test_sweep import plan

READERS: dict[str, tuple[Callable[[Path], object], type[MicuError], str]] = {
    "words": (read_words, ConfigError, "micu_extract.backbones.text.MAX_WORDS_BYTES"),
    "commands": (read_commands, ConfigError, "micu.report.commands.MAX_BYTES"),
    "index of weights": (
        read_weights_index,
        WeightsError,
        "micu_extract.backbones.weights.MAX_INDEX_BYTES",
    ),
    "official rows": (read_rows, ManifestError, "micu.base.table.MAX_BYTES"),
    "official lines": (read_lines, ManifestError, "micu.base.table.MAX_BYTES"),
    "official JSON": (read_json, ManifestError, "micu.base.table.MAX_BYTES"),
    "class map": (read_class_map, ManifestError, "micu.base.table.MAX_BYTES"),
    "table": (read_sheet, ConfigError, "micu.evaluate.sheets.LARGEST"),
    "columns": (read_columns, ConfigError, ""),
    "first words": (first_words, ConfigError, ""),
    "details": (details.read_details, ConfigError, ""),
}

RIGHT = {
    "words": '["cat"]',
    "commands": '{"line": "x", "versions": {}}\n',
    "index of weights": '{"weight_map": {"a": "m.safetensors"}}',
    "official rows": "a,b\n",
    "official lines": "a\n",
    "official JSON": "[1, 2]",
    "class map": "label,other\na,b\n",
    "table": "a,b\n1,2\n",
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    read, kind, _ = READERS[name]
    path = tmp_path / "given.json"
    path.symlink_to("/dev/null")
    with pytest.raises(kind, match=r"given\.json.*expected|given\.json.*(not a|no such)") as caught:
        read(path)
    assert (
        "it is no file" in str(caught.value)
        or "a device" in str(caught.value)
        or (name == "class map")
    )


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("over", [False, True])
def test_a_file_of_one_byte_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, over: bool
) -> None:
    read, kind, bound = READERS[name]
    path = tmp_path / "given.json"
    path.write_text(RIGHT[name])
    monkeypatch.setattr(bound, path.stat().st_size - over)
    if not over:
        assert read(path)
        return
    with pytest.raises(kind, match=r"given\.json: .*more than \d+ bytes"):
        read(path)


def test_bounds_have_room_for_what_people_have() -> None:
    from micu.base import table
    from micu.cli import train
    from micu.evaluate import sheets
    from micu.report import commands
    from micu_extract.backbones import text, weights

    assert text.MAX_WORDS_BYTES == weights.MAX_INDEX_BYTES == 16 * 2**20
    assert commands.MAX_BYTES == 64 * 2**20
    assert sheets.LARGEST == 256 * 2**20
    assert table.MAX_BYTES == 2**31
    assert train.MAX_MARK_BYTES == 4096


@pytest.mark.parametrize("text", ["a\tb\r\n\r\nc\td\r\n", "\ufeffa\tb\r\rc\td", "a\tb\n\nc\td\n"])
def test_official_files_are_read_whatever_ends_their_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_lines(path) == [(1, "a\tb"), (3, "c\td")]
    assert [row for _, row in read_rows(path)] == [["a", "b"], ["c", "d"]]
    path.write_text("a,b\rx\ty,c\r", newline="")
    assert [row for _, row in read_rows(path)] == [["a", "b"], ["x\ty", "c"]]


# --- what lies beside results ------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
def test_commands_that_cannot_be_read_cost_the_commands_alone(tmp_path: Path, named: bool) -> None:
    results = tmp_path / "r.csv"
    report.write_rows([ROW], results)
    os.mkfifo(commands_path(results))
    found = gather([results if named else tmp_path])
    assert len(found.results) == 1
    assert found.commands == []
    (told,) = found.skipped
    assert told.startswith(f"{commands_path(results)}: expected the commands of a results file")
    with pytest.raises(ConfigError, match="it is no file; remove it"):
        record_command(results, "micu-eval a.pt")


def test_a_command_that_is_nested_without_end_is_none(tmp_path: Path) -> None:
    path = tmp_path / "r.commands.jsonl"
    good = json.dumps({"line": "micu-eval", "versions": {"a": "1"}})
    path.write_bytes(b'{"versions": ' + b"[" * 100_000 + b"\n\xff\n" + good.encode())
    assert [command.line for command in read_commands(path)] == ["micu-eval"]


def test_a_pipe_among_results_and_details_is_not_opened(tmp_path: Path) -> None:
    report.write_rows([ROW], tmp_path / "r.csv")
    (tmp_path / "r-details").mkdir()
    os.mkfifo(tmp_path / "r-details" / f"x{details.SUFFIX}")
    (told,) = gather([tmp_path]).skipped
    assert f"x{details.SUFFIX}: not a whole file of micu-eval --details: it is no file" in told


def test_a_pipe_that_is_named_as_results_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.csv")
    with pytest.raises(ConfigError, match=r"r\.csv: expected a table, got a folder, a pipe or a"):
        gather([tmp_path / "r.csv"])


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "same"), [(4096, True), (4097, False)])
def test_a_note_of_who_began_a_run_that_is_too_long_is_of_nobody(
    tmp_path: Path, length: int, same: bool
) -> None:
    config = TrainConfig()
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "last.pt").write_bytes(b"")
    (tmp_path / LAUNCHER).write_text("m" * length)
    folder = RunFolder(tmp_path, False, False, Place(launcher="m" * length))
    if same:
        assert folder.find_begun(config) == str(tmp_path / "last.pt")
        return
    with pytest.raises(ConfigError, match="holds a run already"):
        folder.find_begun(config)


def test_a_pipe_among_checkpoints_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 cut off")
    os.mkfifo(tmp_path / "step-2.pt")
    with pytest.raises(CheckpointError, match="there is no other checkpoint beside it"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_pipe_among_weights_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="expected one file of weights, got none"):
        find_weights_file(tmp_path)
    (tmp_path / "b.pth").write_bytes(b"")
    assert find_weights_file(tmp_path) == tmp_path / "b.pth"


@pytest.mark.parametrize("over", [False, True])
def test_metrics_end_at_a_line_that_is_far_too_long(tmp_path: Path, over: bool) -> None:
    path = tmp_path / "metrics.jsonl"
    start, end = '{"step": 2, "x": "', '"}\n'
    filled = "x" * (MAX_ROW_BYTES - len(start) - len(end) + 2 * over)
    path.write_text('{"step": 1}\n' + start + filled + end + '{"step": 3}\n')
    assert [row["step"] for row in read_metrics(path)] == ([1] if over else [1, 2, 3])
    assert MAX_ROW_BYTES == 2**20


@pytest.mark.parametrize("before", [0, 1, TAIL, TAIL + 1, 3 * TAIL])
def test_the_last_line_of_a_long_log_is_found_at_its_end(tmp_path: Path, before: int) -> None:
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        file.truncate(before)
        file.seek(before)
        file.write(b"\nerror: why\n")
    assert _last_line(log) == f"error: why ({log})"
    log.write_bytes(b"\n" + b"x" * 2 * TAIL)
    assert _last_line(log) == f"{'x' * TAIL} ({log})"
    assert TAIL == 2**16


def test_a_sweep_names_results_that_were_cut_within_their_header(tmp_path: Path) -> None:
    run = plan("quantizer.codebook_size=4", seeds=1)[0]
    folder = tmp_path / run.name
    (folder / "folder.csv").mkdir(parents=True)
    os.mkfifo(folder / "pipe.csv")
    (folder / "metrics.csv").write_text("ste")
    (folder / "last.pt").write_bytes(b"")
    assert collect([run], tmp_path) == []
    (folder / "cut.csv").write_text("task,train_modality,test_mo")
    with pytest.raises(ConfigError, match=r"cut\.csv: not a results file of this version"):
        collect([run], tmp_path)
