"""A link that is swapped between a path's check and its opening never leads out of the root."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import micu_extract.media.media_file
from micu.base.errors import DecodeError
from micu.store.manifest import Clip
from micu_extract.backbones.base import FrameInput
from micu_extract.media.media_file import MediaFile, find_media
from micu_extract.media.source import Source
from tests.media_files import frame_of, read_media, write_media

FRAMES = FrameInput(fps=1, resize=16, crop=16)
INSIDE, OUTSIDE = 10, 50
CLIP = Clip(clip_id="c", path="sub/a.mp4")


def write_film(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((32, 48, 3), 16 + 4 * level, np.uint8)
    return write_media(path, frames=10, picture=lambda i: picture)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_film(tmp_path / "root/in/a.mp4", INSIDE)
    write_film(tmp_path / "out/a.mp4", OUTSIDE)
    return tmp_path / "root"


def swap(link: Path, target: Path) -> None:
    """Have a link lead elsewhere, at one blow."""
    link.with_name("new").symlink_to(target)
    link.with_name("new").replace(link)


def open_handles() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.parametrize("part", ["file", "folder"])
def test_a_part_of_a_path_that_became_a_link_after_the_check_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    link, outside = root / "sub", root.parent / "out"
    link.mkdir()
    write_film(link / "a.mp4", INSIDE)

    def find(path: str, media_root: Path) -> Path:
        real = find_media(path, media_root)
        if part == "file":
            (link / "a.mp4").unlink()
            (link / "a.mp4").symlink_to(outside / "a.mp4")
        else:
            link.rename(root / "away")
            link.symlink_to(outside)
        return real

    monkeypatch.setattr(micu_extract.media.media_file, "find_media", find)
    with pytest.raises(DecodeError, match="out of") as caught:
        read_media(CLIP, FRAMES, root)
    assert caught.value.code == "outside_root"


def test_a_link_inside_the_root_that_is_swapped_once_is_resolved_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "in").rename(root / "one")
    (root / "sub").symlink_to(root / "one")

    def find(path: str, media_root: Path) -> Path:
        real = find_media(path, media_root)
        if (root / "one").is_dir():
            (root / "one").rename(root / "two")
            swap(root / "sub", root / "two")
        return real

    monkeypatch.setattr(micu_extract.media.media_file, "find_media", find)
    assert frame_of(read_media(CLIP, FRAMES, root).units[0]) == INSIDE


def test_a_path_whose_parts_never_stand_still_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    def find(path: str, media_root: Path) -> Path:
        checked.append(path)
        return root / "in" / "gone.mp4"

    monkeypatch.setattr(micu_extract.media.media_file, "find_media", find)
    with pytest.raises(DecodeError, match=r"'sub/a\.mp4': its links change while") as caught:
        MediaFile("sub/a.mp4", root)
    assert (caught.value.code, len(checked)) == ("outside_root", 10)


@pytest.mark.parametrize("kind", ["pipe", "empty", "folder"])
def test_what_was_put_in_place_of_the_file_is_checked_once_it_is_open(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def find(path: str, media_root: Path) -> Path:
        real = find_media(path, media_root)
        real.unlink()
        if kind == "pipe":
            os.mkfifo(real)  # opening it as usual would wait for a writer for ever
        elif kind == "folder":
            real.mkdir()
        else:
            real.touch()
        return real

    monkeypatch.setattr(micu_extract.media.media_file, "find_media", find)
    handles = open_handles()
    with pytest.raises(DecodeError) as caught:
        read_media(Clip(clip_id="c", path="in/a.mp4"), FRAMES, root)
    assert caught.value.code == ("empty" if kind == "empty" else "not_a_file")
    assert open_handles() == handles


def test_an_open_file_stays_the_one_that_was_checked_when_it_is_read_again(root: Path) -> None:
    (root / "sub").symlink_to(root / "in")
    handles = open_handles()
    with Source(CLIP, root, "video") as source:
        swap(root / "sub", root.parent / "out")
        (root / "in/a.mp4").unlink()
        source.restart()
        (picture,) = {int(f.to_ndarray(format="gray").mean()) for f in source.container.decode()}
        assert source.path.read_bytes()[4:8] == b"ftyp"
        assert source.path.read_bytes()[4:8] == b"ftyp"
    assert abs(picture - (16 + 4 * INSIDE)) < 3
    assert open_handles() == handles


def test_the_root_itself_may_be_a_link_and_its_folders_may_be_closed_to_listing(
    root: Path,
) -> None:
    (root.parent / "link").symlink_to(root)
    (root / "in").chmod(0o311)
    try:
        media = read_media(Clip(clip_id="c", path="in/a.mp4"), FRAMES, root.parent / "link")
    finally:
        (root / "in").chmod(0o755)
    assert frame_of(media.units[0]) == INSIDE


def test_no_swap_in_a_loop_leads_out_of_the_root(root: Path) -> None:
    link, done = root / "sub", threading.Event()
    link.symlink_to(root / "in")

    def keep_swapping() -> None:
        while not done.is_set():
            swap(link, root.parent / "out")
            swap(link, root / "in")

    swapper = threading.Thread(target=keep_swapping)
    swapper.start()
    seen: dict[Any, int] = {}
    try:
        for _ in range(1500):
            try:
                with MediaFile(CLIP.path, root) as file:
                    found: Any = file.path.stat().st_ino
            except DecodeError as error:
                found = error.code
            seen[found] = seen.get(found, 0) + 1
    finally:
        done.set()
        swapper.join()
    inside = (root / "in/a.mp4").stat().st_ino
    assert set(seen) <= {inside, "outside_root", "missing"}
    assert seen[inside] > 0
