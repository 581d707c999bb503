"""Files in writing, and folders in use."""

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import signal
import threading

import pytest

from extract.blocks import block_folder
from micu import files
from micu.errors import ConfigError
from micu.files import (
    lock_folder,
    remove_stale_temporaries,
    try_lock,
    wait_for_lock,
    write_atomically,
)


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    left, writing = tmp_path / ".a.csv.0.partial", tmp_path / ".b.csv.1.partial"
    left.touch()
    with writing.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_stale_temporaries(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [writing.name]

    remove_stale_temporaries(tmp_path)

    assert not list(tmp_path.iterdir())


def test_a_file_is_locked_as_long_as_it_is_written(tmp_path, monkeypatch):
    flush = os.fsync

    def meanwhile(handle):
        remove_stale_temporaries(tmp_path)
        flush(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically(tmp_path / "a.csv", b"whole")

    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_bytes() == b"whole"


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    lock, removed = fcntl.flock, []

    def late(file, how):
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomically(tmp_path / "a.csv", b"whole")

    assert (tmp_path / "a.csv").read_bytes() == b"whole"


def test_without_locks_files_are_written_and_folders_used_all_the_same(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with lock_folder(tmp_path):
        write_atomically(tmp_path / "a.csv", b"whole")
        (tmp_path / ".b.csv.1.partial").touch()
        remove_stale_temporaries(tmp_path)

    assert (tmp_path / "a.csv").read_bytes() == b"whole"
    assert (tmp_path / ".b.csv.1.partial").exists()


def test_what_is_waited_for_comes_in_turn(tmp_path):
    order = []

    def second():
        with wait_for_lock(tmp_path / "lock"):
            order.append("second")

    with wait_for_lock(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        with (tmp_path / "lock").open("rb") as file:
            assert try_lock(file) is False
        order.append("first")
    thread.join()

    assert order == ["first", "second"]


def test_without_locks_nobody_waits_and_nobody_is_kept_out(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with wait_for_lock(tmp_path / "lock"), (tmp_path / "lock").open("rb") as file:
        assert try_lock(file) is None
    with block_folder() as folder:  # it would look for a folder of its own for ever
        assert folder.is_dir()


def test_a_disk_that_refuses_a_lock_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"), lock_folder(tmp_path):
        pass


def test_where_open_files_cannot_be_moved_they_are_closed_first(tmp_path, monkeypatch):
    replace = pathlib.Path.replace

    def closed_first(path, other):
        handles = []
        for link in pathlib.Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                handles.append(str(link.readlink()))
        assert str(path) not in handles
        return replace(path, other)

    monkeypatch.setattr(files, "_MOVES_OPEN", False)
    if pathlib.Path("/proc/self/fd").is_dir():
        monkeypatch.setattr(pathlib.Path, "replace", closed_first)
    (tmp_path / ".b.csv.1.partial").touch()
    write_atomically(tmp_path / "a.csv", b"whole")
    remove_stale_temporaries(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path):
        raise ZeroDivisionError
    with lock_folder(tmp_path), pytest.raises(ConfigError, match="wait for its end"):
        lock_folder(tmp_path).__enter__()


def hold(folder, ready):
    with lock_folder(folder):
        ready.set()
        signal.pause()


def test_a_lock_dies_with_its_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(600)
    with pytest.raises(ConfigError, match=rf"process {process.pid} on"):
        lock_folder(tmp_path).__enter__()

    process.kill()
    process.join()

    with lock_folder(tmp_path):
        pass
