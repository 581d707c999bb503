"""Own data: a folder per class, or a CSV file with paths and labels; and where media lie below it.

Official lists name clips, downloaders name files: `locate_media` finds the one for the other.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import quote

from micu.base.errors import ManifestError
from micu.base.table import parse_seconds
from micu.store.manifest import (
    TIMES,
    Clip,
    read_manifest,
    read_table,
    youtube_id,
    youtube_start,
)
from micu_extract.datasets.base import (
    File,
    Files,
    data_set,
    logger,
    name_some,
    with_unique_ids,
)
from micu_extract.media.formats import MEDIA_SUFFIXES, STILL_SUFFIXES

SPLITS = ("train", "val", "test")


@data_set("folder", File(role="media", pattern="*", may_be_folder=True))
def read_folder(files: Files) -> list[Clip]:
    """Rows of the media below a folder, or of a CSV file.

    `CLASS/clip.mp4` has the label CLASS; `train/CLASS/clip.mp4` the split `train` too. Deeper
    folders belong to the class above them. A CSV file has the column `path` and, as far as they are
    known, `label`, `split`, `text`, `start_s` and `end_s`; the path is the id, and that of a
    further clip of the same file `PATH#2`. What is not printable stands percent-escaped in the id.
    The group says which file it is; see `tell_apart`.

    Raises:
        ManifestError: There are no media, or the CSV file has bad rows.
    """
    source = files["media"]
    return _read_folder(source) if source.is_dir() else _read_csv(source)


def _read_folder(root: Path) -> list[Clip]:
    clips: list[Clip] = []
    others: list[str] = []
    links: list[str] = []
    specials: list[str] = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            is_special = path.exists() and not path.is_dir()
            (specials if is_special else links).append("/".join(parts))
            continue
        if path.suffix.lower() not in MEDIA_SUFFIXES or any(p.startswith(".") for p in parts):
            others.append("/".join(parts))
            continue
        has_split = len(parts) > 2 and parts[0] in SPLITS
        classes = parts[1:-1] if has_split else parts[:-1]
        name = "/".join(parts)
        clips.append(
            Clip(
                clip_id=_escape(name, str.isprintable),
                path=name,
                label=_escape(classes[0], _is_text) if classes else "",
                split=parts[0] if has_split else "",
            )
        )
    if links:
        told = (
            "links that lead to no file are left out, and folders behind them are not looked into"
        )
        logger.warning("%s: %d %s%s", root, len(links), told, name_some(links))
    if specials:
        told = "pipes, sockets and devices are left out, and not opened"
        logger.warning("%s: %d %s%s", root, len(specials), told, name_some(specials))
    if not clips:
        raise ManifestError(
            f"{root}: expected media in a folder per class, CLASS/clip.mp4; got {len(others)} "
            f"other files{name_some(others)}"
        )
    if others:
        told = name_some(others)
        logger.warning("%s: %d files are no media and are left out%s", root, len(others), told)
    if not any(clip.label for clip in clips):
        logger.warning("%s: no folder per class, so that no clip has a label", root)
    return tell_apart(with_unique_ids(clips), root)


def _escape(name: str, keep: Callable[[str], bool]) -> str:
    """A file's name with `%E3%80%80` for each character that an id or a label cannot hold."""
    return "".join(
        char if keep(char) else quote(char.encode("utf-8", "surrogateescape")) for char in name
    )


def _is_text(char: str) -> bool:
    """Whether a character is more than a byte that is not UTF-8."""
    return not "\ud800" <= char <= "\udfff"


def _read_csv(path: Path) -> list[Clip]:
    table = read_table(path, ("path",))
    if "clip_id" in table.header:  # a manifest already
        return list(read_manifest(path, need=("path",)).clips)

    def parse(row: dict[str, str], line: int) -> Clip:
        name = _escape(row["path"], str.isprintable)
        if not name:
            raise ValueError("path is empty")
        return Clip(
            clip_id=name,
            path=row["path"],
            start_s=parse_seconds(row.get("start_s", "")),
            end_s=parse_seconds(row.get("end_s", "")),
            label=row.get("label", "").strip(),
            split=row.get("split", "").strip(),
            text=row.get("text", "").strip(),
        )

    return tell_apart(with_unique_ids(table.parse(parse, TIMES)), path.parent)


def as_clips(paths: Sequence[str], root: Path) -> list[Clip]:
    """Rows of media files, of which nothing else is known.

    Args:
        paths: As they are from `root`.
        root: Folder of the media.
    """
    named = [Clip(clip_id=_escape(path, str.isprintable), path=path) for path in paths]
    return tell_apart(with_unique_ids(named), root)


def tell_apart(clips: Sequence[Clip], root: Path) -> list[Clip]:
    """Clips whose group says of which file they are: paths below two roots may be the same.

    A group is the file's name and a hash of where it lies, `a.mp4@0123456789ab`: the same for the
    same file, whatever folder above it is listed, and another for another file. Clips that name a
    YouTube video are told apart by that.
    """
    place = os.path.realpath(root)
    return [
        clip if youtube_id(clip.group) else replace(clip, group=_group(place, clip.path))
        for clip in clips
    ]


def _group(place: str, path: str) -> str:
    where = os.path.normpath(os.path.join(place, path))  # noqa: PTH118
    digest = hashlib.sha256(os.fsencode(where)).hexdigest()
    return f"{_escape(PurePath(path).name, str.isprintable)}@{digest[:12]}"


# --- where media really lie ------------------------------------------------------------------

BY_VIDEO, AMBIGUOUS, MISSING = "by-video", "ambiguous", "missing"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A row whose file is not certain, or not there."""

    clip_id: str
    state: str
    """`by-video`: the file is known by its YouTube video alone. `ambiguous`: several files could be
    the row's, or one could be another row's too; none is taken. `missing`: there is none."""
    files: tuple[str, ...]
    """Those in question; of a row that is missing, what there is of its video."""


@dataclass(frozen=True, slots=True)
class Located:
    """Clips with the paths of the files that there are."""

    clips: tuple[Clip, ...]
    """A clip whose file was not found keeps the path that was expected."""
    moved: int
    """Clips whose file was found elsewhere below the root, or under another name."""
    doubts: tuple[Doubt, ...]

    def found(self) -> list[Clip]:
        """The clips whose file is there, with their captions, and those that have no media."""
        lost = {doubt.clip_id for doubt in self.doubts if doubt.state != BY_VIDEO}
        return [
            clip
            for clip in self.clips
            if clip.clip_id not in lost and not (clip.is_caption and clip.group in lost)
        ]


def locate_media(clips: Sequence[Clip], root: Path, *, is_own_list: bool = False) -> Located:
    """Find the media of clips below a folder; never take the file of another clip.

    A file is taken that lies where the path says. Else it is the only one of that name or of the
    clip's id, whatever its folder and ending; else the only one of the clip's YouTube video and
    start, however these are spelled; else the only one of that video whose name bears no start. A
    still is not taken for a film or a sound: thumbnails lie beside those. A file that another path
    has, or could have as well, is nobody's. Rows of one path have one file. In a list of one's own
    an id says nothing of a file: the path does.

    Args:
        clips: Rows of a manifest; those without a path stay as they are.
        root: Folder of the media. Links to folders are not followed.
        is_own_list: Whether a file is known by its folder as well, as it is where the id names one:
            the name is then unique in it alone, and `dog/1.mp4` is not `cat/1.mp4`.
    """
    there = _media_below(root)
    by_stem: dict[str, list[str]] = {}
    by_start: dict[tuple[str, float | None], list[str]] = {}
    of_video: dict[str, list[str]] = {}
    for file in sorted(there):
        stem = PurePosixPath(file).stem
        by_stem.setdefault(stem, []).append(file)
        if video := youtube_id(stem):
            by_start.setdefault((video, youtube_start(stem)), []).append(file)
            of_video.setdefault(video, []).append(file)

    def by_name(path: str, name: str) -> list[str]:
        return by_stem.get(PurePosixPath(path).stem) or by_stem.get(name, [])

    def by_own_start(path: str, name: str) -> list[str]:
        video, names = _video_of(path), (PurePosixPath(path).stem, name)
        starts = [youtube_start(text) for text in names if youtube_id(text) == video]
        start = next((start for start in starts if start is not None), None)
        return [] if start is None else by_start.get((video, start), [])

    def by_video(path: str, name: str) -> list[str]:
        return by_start.get((_video_of(path), None), [])

    names = {clip.path: clip.clip_id.partition("#")[0] for clip in reversed(clips) if clip.path}
    if is_own_list:
        names = dict.fromkeys(names, "")
    places = {path: plain for path in names if (plain := str(PurePosixPath(path))) in there}
    unsure: dict[str, tuple[str, list[str]]] = {}
    taken = set(places.values())
    for look_up in (by_name, by_own_start, by_video):
        wanted: dict[str, list[str]] = {}
        for path, name in names.items():
            if path in places or path in unsure:
                continue
            is_unique = not is_own_list and "/" not in name
            files = [
                file
                for file in look_up(path, name)
                if file not in taken and _may_be(path, file) and (is_unique or _is_tail(path, file))
            ]
            if len(files) > 1:
                unsure[path] = (AMBIGUOUS, files)
            for file in files:
                wanted.setdefault(file, []).append(path)
        for file, paths in wanted.items():
            if len(paths) > 1:
                unsure |= {path: (AMBIGUOUS, [file]) for path in paths if path not in unsure}
            elif paths[0] not in unsure:
                places[paths[0]] = file
                if look_up is by_video:
                    unsure[paths[0]] = (BY_VIDEO, [file])
        taken.update(wanted)
    located, doubts = [], []
    for clip in clips:
        if clip.path and (clip.path in unsure or clip.path not in places):
            of_it = of_video.get(_video_of(clip.path), [])
            state, files = unsure.get(clip.path, (MISSING, of_it))
            doubts.append(Doubt(clip.clip_id, state, tuple(files)))
        located.append(replace(clip, path=places.get(clip.path, clip.path)))
    moved = sum(old.path != new.path for old, new in zip(clips, located, strict=True))
    return Located(tuple(located), moved, tuple(doubts))


def _media_below(root: Path) -> set[str]:
    """Paths of the media files below a folder, from there."""
    return {
        (place / name).as_posix()
        for folder, _, names in os.walk(root)
        for place in (PurePosixPath(Path(folder).relative_to(root).as_posix()),)
        for name in names
        if Path(name).suffix.lower() in MEDIA_SUFFIXES
    }


def _may_be(path: str, file: str) -> bool:
    """Whether a file's ending is none that a film or a sound, as the path has it, cannot have."""
    asked, got = (PurePosixPath(text).suffix.lower() for text in (path, file))
    return got not in STILL_SUFFIXES or asked not in MEDIA_SUFFIXES - STILL_SUFFIXES


def _video_of(path: str) -> str:
    """The YouTube video that a file's name begins with; empty if there is none."""
    return youtube_id(PurePosixPath(path).stem) or ""


def _is_tail(path: str, other: str) -> bool:
    """Whether the folders of two paths agree, from the last upwards, as far as the shorter goes."""
    folders = (reversed(PurePosixPath(text).parent.parts) for text in (path, other))
    return all(one == another for one, another in zip(*folders, strict=False))
