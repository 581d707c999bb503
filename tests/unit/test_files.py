"""Files in writing, and folders in use."""

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import signal
import threading

import pytest

from micu.base import files
from micu.base.errors import ConfigError
from micu.base.files import (
    hold_folder,
    lock_folder,
    refuse_lost_link,
    remove_stale_temporaries,
    try_lock,
    wait_for_lock,
    write_atomically,
)
from micu.cli.outputs import try_file, try_folder
from micu_extract.media.decoding import block_folder


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


# --- links that lead nowhere -----------------------------------------------------------------


LINKS = {
    "a folder that is not there": ("gone/there", r"a link to .*/gone/there, which is not there"),
    "itself": ("link", "a link that leads to itself"),
    "another link to nothing": ("other", r"a link to .*/gone/there, which is not there"),
}


@pytest.mark.parametrize("below", ["", "sub", "sub/deeper"])
@pytest.mark.parametrize("kind", LINKS)
def test_a_link_that_leads_nowhere_is_named_with_where_it_leads(tmp_path, kind, below):
    target, told = LINKS[kind]
    (tmp_path / "other").symlink_to("gone/there")
    (tmp_path / "link").symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    place = tmp_path / "link" / below
    message = rf"{tmp_path}/link: expected a file or a folder, got {told}; make what it leads to"
    for write in (
        lambda: hold_folder(place),
        lambda: write_atomically(place / "x", b"1"),
        lambda: lock_folder(place).__enter__(),
        lambda: refuse_lost_link(place),
        lambda: refuse_lost_link(place / "x", may_be_made=True),
        lambda: try_folder("--details", place),
        lambda: try_file("--out", place / "x"),
    ):
        with pytest.raises(ConfigError, match=message):
            write()
    with pytest.raises(ConfigError, match=f"^--details {place}: {message}"):
        try_folder("--details", place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("target", ["r.csv", "new/r.csv", "link.csv"])
def test_a_link_to_a_file_that_is_not_there_yet_is_taken_if_its_folder_is(tmp_path, target):
    (tmp_path / "link.csv").symlink_to(target)
    if target == "r.csv":
        try_file("--out", tmp_path / "link.csv")
        with pytest.raises(ConfigError, match="which is not there"):
            refuse_lost_link(tmp_path / "link.csv")
        return
    with pytest.raises(ConfigError, match=r"--out .*/link\.csv: .*/link\.csv: .*got a link t"):
        try_file("--out", tmp_path / "link.csv")


def test_links_that_lead_somewhere_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    refuse_lost_link(tmp_path / "link" / "new" / "x")
    write_atomically(tmp_path / "link" / "new" / "x", b"1")
    assert (tmp_path / "there" / "new" / "x").read_bytes() == b"1"


def test_a_folder_that_is_a_file_is_told_as_before(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        hold_folder(tmp_path / "file")
