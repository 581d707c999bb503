"""Disks that are full, and network file systems that are away for a moment."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from micu.base import files
from micu.base.files import append_durably, check_room, remove_stale_temporaries, write_atomically

PASSING = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAITS_S", (0.0, 0.0))


def failing(
    real: Callable[..., Any], times: int, number: int
) -> tuple[Callable[..., Any], list[object]]:
    """`real`, after failing some times; and the list of its calls."""
    calls: list[object] = []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    return call, calls


STEPS = {
    "rename": (Path, "replace"),
    "flush": (os, "fsync"),
    "create": (Path, "open"),
    "folder": (os, "open"),
}


@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", STEPS)
def test_what_may_pass_is_tried_three_times(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    number: int,
) -> None:
    where, name = STEPS[step]
    path = tmp_path / "a.h5"
    path.write_bytes(b"before")
    hiccup, calls = failing(getattr(where, name), 2, number)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, hiccup)
        write_atomically(path, b"whole")
    assert len(calls) >= 3
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
    assert caplog.text.count("trying again") == 2
    assert os.strerror(number) in caplog.text


@pytest.mark.parametrize("step", ["rename", "flush", "create"])
def test_what_does_not_pass_ends_in_the_error_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    where, name = STEPS[step]
    path = tmp_path / "a.h5"
    path.write_bytes(b"before")
    hiccup, calls = failing(getattr(where, name), 99, errno.ESTALE)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, hiccup)
        with pytest.raises(OSError, match="Stale file handle"):
            write_atomically(path, b"whole")
    assert len(calls) == 1 + len(files.WAITS_S)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_does_not_pass_by_itself_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    hiccup, calls = failing(os.fsync, 1, number)
    monkeypatch.setattr(os, "fsync", hiccup)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(tmp_path / "a.h5", b"whole")
    assert len(calls) == 1
    assert not list(tmp_path.iterdir())


def test_tries_wait_longer_and_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    waits: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waits.append)
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 2, errno.EIO)[0])
    write_atomically(tmp_path / "a.h5", b"whole")
    assert waits == list(files.WAITS_S)
    assert 0 < waits[0] < waits[1] < 10
    assert len(waits) == len(files.WAITS_S)


def test_a_rename_whose_answer_was_lost_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace = Path.replace

    def lose_answer(self: Path, target: Path) -> Path:
        replace(self, target)
        return replace(self, target)  # the client asks again

    path = tmp_path / "a.h5"
    monkeypatch.setattr(Path, "replace", lose_answer)
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
    assert caplog.text == ""


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_temporary_file_that_has_gone_is_not_taken_for_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    replace, calls = Path.replace, list[Path]()
    if before:
        (tmp_path / "a.h5").write_bytes(before)

    def too_late(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 1:
            self.unlink()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", too_late)
    write_atomically(tmp_path / "a.h5", b"whole")
    assert len(calls) == 2
    assert (tmp_path / "a.h5").read_bytes() == b"whole"


def test_a_file_is_kept_from_the_cleaner_until_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def meanwhile(self: Path, target: Path) -> Path:
        remove_stale_temporaries(tmp_path)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", meanwhile)
    write_atomically(tmp_path / "a.h5", b"whole")
    assert (tmp_path / "a.h5").read_bytes() == b"whole"


# --- files that grow -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
def test_what_is_added_is_there_once_after_a_hiccup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "failures.csv"
    append_durably(path, b"first\n")
    hiccup, calls = failing(os.fsync, 2, number)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", hiccup)
        append_durably(path, b"second\n")
    assert len(calls) >= 3
    assert path.read_bytes() == b"first\nsecond\n"


def test_what_could_not_be_added_whole_is_cut_off_again(tmp_path: Path) -> None:
    path = tmp_path / "failures.csv"
    append_durably(path, b"a" * 900)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_durably(path, b"b" * 300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"a" * 900


# --- room ----------------------------------------------------------------------------------------


def test_a_disk_without_room_is_refused_before_anything_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def disk_usage(folder: Path) -> object:
        asked.append(folder)
        return SimpleNamespace(free=3 * 10**9)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    folder = tmp_path / "not" / "there" / "yet"
    check_room(folder, 3 * 10**9)
    with pytest.raises(OSError, match=r"yet: expected 3\.1 GB free, got 3 GB; .*--out"):
        check_room(folder, 31 * 10**8)
    assert asked == [tmp_path, tmp_path]
    assert not folder.parent.exists()


def test_room_is_counted_on_the_disk_itself(tmp_path: Path) -> None:
    check_room(tmp_path, 0)
    with pytest.raises(OSError, match="expected 1e\\+09 GB free"):
        check_room(tmp_path, 10**18)
