"""Feature sets: folders of shards, found by clip id.

One folder per set, `features/<manifest>/<modality>-<backbone>/`:

    set.json          what made the set (the header) and which manifest rows it was last run over
    rows.jsonl        the layout: which row has its place in which shard
    shard-00000.h5    features of the rows that have their place there; see `micu.store.shard`
    index.jsonl       one line per written shard: its sha256, size, clip ids and sources
    failures.csv      the ledger: clip_id, stage, code, message, source of every clip that failed

A row is known by its source, the digest of what it was made of (`micu.store.manifest.row_sources`),
not by where a manifest has it, nor by its clip id.

Processes that share the work (`--part 2/4`) write `index-2of4.jsonl` and `failures-2of4.csv`; see
`micu.store.ledger`.

Shards are built in memory and published by renaming, so a name always holds a whole shard, and
equal content gives equal bytes.
"""

import errno
import glob
import hashlib
import json
import logging
import os
import re
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from micu.base.errors import StoreError, shorten
from micu.base.files import file_sha256, flush_folder, most_handles, read_json, write_atomically
from micu.store.ledger import (
    LAYOUT,
    SHARD_FILE,
    ShardEntry,
    append_index,
    file_size,
    index_name,
    indexed_shards,
    ledger_name,
    part_labels,
    shard_name,
)
from micu.store.manifest import Manifest
from micu.store.shard import (
    MAX_ROWS,
    Expected,
    FeatureRow,
    FeatureSpec,
    FileState,
    Header,
    Shard,
    check_types,
    describe_difference,
    encode_shard,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

SHARD_BYTES = 64 * 2**20
SHARD_ROWS = (64, 1024)
OPEN_SHARDS = 64
"""Of one set at a time, where `ulimit -n` allows that."""
OTHER_HANDLES = 48
"""Files that a process has open beside shards."""
SETS = 8
"""That a process reads from at the same time, at most: four modalities of two data sets."""
TICK_S = 0.02
"""By how much, s, the clock of a file system may be behind: two writes can have one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Which rows a set was last run over; mutable, so not part of the header."""

    manifest_path: str
    media_root: str
    rows: int
    """How many of the manifest's first rows were to be extracted."""
    command: str = ""
    """What was typed, as a line for a shell."""
    manifest_sha256: str = ""
    """Of the manifest as it was then: noted, and not compared."""
    is_limited: bool = False
    """Whether these were not all rows of the manifest (`--limit`)."""
    versions: Sequence[Mapping[str, str]] = ()
    """Of libraries, that made rows of the set: those of the first run, and others that were
    compared with them (`--check-clips`)."""

    def rows_of(self, known: int) -> int:
        """How many of the first rows are to be there, of a manifest of `known` rows today."""
        return min(self.rows, known) if self.is_limited else known


def set_folder(root: Path, manifest_name: str, modality: str, backbone: str) -> Path:
    """Where a feature set lies; characters that file systems dislike become `_`."""
    safe = re.sub(r"[^A-Za-z0-9._+-]", "_", f"{modality}-{backbone}")
    return root / manifest_name / safe


def find_sets(root: Path) -> list[Path]:
    """Every feature set at or below `root`, sorted."""
    return sorted(path.parent for path in root.rglob("set.json"))


def find_lost_sets(root: Path) -> list[Path]:
    """Every folder at or below `root` that has shards and lost its `set.json`, sorted."""
    folders = {path.parent for path in root.rglob("shard-*.h5")}
    return sorted(folder for folder in folders if not (folder / "set.json").is_file())


def find_sets_beside(
    folder: Path, header: Header, run: RunRecord
) -> dict[Path, dict[str, ShardEntry]]:
    """What sets of other manifests have, whose rows are as good as those of `folder`.

    Returns:
        What their indexes say of the shards that are there; no shard is opened.
    """

    def look(path: Path) -> dict[str, ShardEntry]:
        return {
            name: entry
            for name, entry in indexed_shards(path).items()
            if entry.is_about(file_size(path / name), header.spec.making)
        }

    return _open_sets_beside(folder, header, run, look)


def rows_beside(folder: Path, header: Header, run: RunRecord) -> dict[str, Path]:
    """The set that has it, by source of each row that `find_sets_beside` finds."""
    return {
        source: path
        for path, shards in find_sets_beside(folder, header, run).items()
        for entry in shards.values()
        for source in entry.sources
    }


def _open_sets_beside(
    folder: Path, header: Header, run: RunRecord, open_set: Callable[[Path], T]
) -> dict[Path, T]:
    """Sets of other manifests below one `--out`, as `open_set` opens them.

    They have the making of `folder`, and their media lie in the same root: a path names the same
    file. One that cannot be read is left out.
    """
    found = {}
    for path in sorted(folder.parent.parent.glob(f"*/{glob.escape(folder.name)}/set.json")):
        if path.parent == folder:
            continue
        try:
            other, its_run = read_set(path.parent)
            same_media = header.spec.made_of != "media" or its_run.media_root == run.media_root
            if other.spec.making == header.spec.making and same_media:
                found[path.parent] = open_set(path.parent)
        except (StoreError, OSError) as error:
            logger.warning("%s: not looked into for rows: %s", path.parent, error)
    return found


def rows_per_shard(shape: Sequence[int], steps: int | None) -> int:
    """Rows that make a shard of about 64 MiB, for clips of at most `steps` steps.

    Where that is not known the fewest: a shard is as long as its longest clip.
    """
    if steps is None:
        return SHARD_ROWS[0]
    row_bytes = 4 * max(1, steps) * int(np.prod(shape))
    return int(np.clip(SHARD_BYTES // row_bytes, *SHARD_ROWS))


def shard_files(folder: Path) -> list[Path]:
    """Every shard of a set, sorted."""
    return sorted(folder.glob("shard-*.h5"))


def shard_number(name: str) -> int | None:
    """The number in a shard's file name; None if there is none."""
    found = SHARD_FILE.fullmatch(name)
    return int(found[1]) if found else None


# --- writing ---------------------------------------------------------------------------------


def publish_shard(
    folder: Path,
    number: int,
    header: Header,
    rows: Sequence[FeatureRow],
    label: str = "",
    damaged: Mapping[str, int] | None = None,
    files: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Write a shard under its final name and note it in the index of the part `label`.

    Args:
        folder: A feature set.
        number: Of the shard.
        header: Of the set.
        rows: In order.
        label: Of the part; empty for a run without parts.
        damaged: Corrupt frames by clip id, for the index; of other clips there is nothing to note.
        files: Size and time of media files by source, for the index; see `ShardEntry`.
    """
    name = shard_name(number)
    data = encode_shard(header, rows)
    write_atomically(folder / name, data)
    facts = [files.get(row.source, (-1, -1)) for row in rows] if files else []
    entry = ShardEntry(
        hashlib.sha256(data).hexdigest(),
        len(data),
        tuple(row.clip_id for row in rows),
        dict(damaged or {}),
        header.spec.making,
        tuple(row.source for row in rows),
        array("q", [size for size, _ in facts]),
        array("q", [time_ns for _, time_ns in facts]),
    )
    append_index(folder, {name: entry}, label)


def remove_set(folder: Path) -> None:
    """Remove every file of a feature set.

    `set.json` goes last: whatever a kill leaves behind, it still says what made it.
    """
    labels = ("", *part_labels(folder))
    records = [folder / name(label) for label in labels for name in (index_name, ledger_name)]
    for path in (*records, folder / LAYOUT, *shard_files(folder)):
        path.unlink(missing_ok=True)
    flush_folder(folder)
    (folder / "set.json").unlink(missing_ok=True)


def write_set(folder: Path, header: Header, run: RunRecord) -> None:
    """Write `set.json`."""
    record = {"header": header.to_json(), "run": asdict(run)}
    write_atomically(folder / "set.json", json.dumps(record, indent=1).encode())


# --- reading ---------------------------------------------------------------------------------


def read_set(folder: Path) -> tuple[Header, RunRecord]:
    """Read `set.json`.

    Raises:
        StoreError: There is none, or it is not one.
    """
    path = folder / "set.json"
    if not path.exists():
        raise StoreError(f"{folder}: not a feature set, {path.name} is missing")
    try:
        record = read_json(path)
        header, run = record["header"], RunRecord(**record["run"])
        check_types(asdict(run), _RUN)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: not the description of a feature set: {shorten(str(error), 200)}; delete it "
            "and type the extraction command again, which knows the set by its shards"
        ) from error
    return Header.from_json(header, path), run


_PATH = Expected("a path", lambda value: isinstance(value, str) and "\0" not in value)
_RUN = {
    "manifest_path": _PATH,
    "media_root": _PATH,
    "rows": Expected(
        f"a number from 0 to {MAX_ROWS}",
        lambda value: type(value) is int and 0 <= value <= MAX_ROWS,
    ),
    "command": Expected("a text", lambda value: isinstance(value, str)),
    "manifest_sha256": Expected("a text", lambda value: isinstance(value, str)),
    "is_limited": Expected("true or false", lambda value: isinstance(value, bool)),
    "versions": Expected(
        "a list of mappings",
        lambda value: (
            isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value)
        ),
    ),
}


def read_index(
    folder: Path,
    noted: Mapping[str, ShardEntry] | None = None,
    wants: Callable[[str], bool] = lambda name: True,
    header: Header | None = None,
) -> dict[str, ShardEntry]:
    """What every shard on disk holds, by shard name, sorted.

    A shard that the index misses, or knows with another size, is opened and hashed; one whose index
    line stands is not touched, so that a set of any size is planned without opening it.

    Args:
        folder: A feature set.
        noted: What the index says, from `indexed_shards`; None reads it.
        wants: Of which shards, by name.
        header: Of the set: a shard of another one is not taken in.

    Raises:
        StoreError: A shard that the index does not know cannot be opened, or is of another set.
    """
    noted = indexed_shards(folder) if noted is None else noted
    making = header.spec.making if header else None
    entries: dict[str, ShardEntry] = {}
    for shard in filter(lambda path: wants(path.name), shard_files(folder)):
        known = noted.get(shard.name)
        if known is None or not known.is_about(file_size(shard), making):
            known = _look_into(shard, header)
        entries[shard.name] = known
    return entries


def _look_into(path: Path, header: Header | None) -> ShardEntry:
    """What a shard of a set holds, from itself.

    Args:
        path: The shard.
        header: Of the set; None takes any shard.

    Raises:
        StoreError: It cannot be opened, or is of another set.
    """
    with Shard.open(path) as opened:
        making, clip_ids, sources = opened.header.spec.making, opened.clip_ids, opened.sources
        if header is not None and not opened.header.is_like(header):
            raise StoreError(
                f"{path}: {describe_difference(header, opened.header)}\nit is of another set; move "
                "it elsewhere and type the extraction command again, which makes the one that "
                "belongs there"
            )
    return ShardEntry(file_sha256(path), file_size(path), clip_ids, {}, making, sources)


def most_open_shards() -> int:
    """Shards of one set that may be open at a time: 64, and fewer with a small `ulimit -n`."""
    return min(max((most_handles() - OTHER_HANDLES) // SETS, 1), OPEN_SHARDS)


class FeatureStore:
    """Random access to the features of one set, by clip id.

    Shards are opened on first use, some at a time, once per process: an instance may be
    pickled or forked into loader workers.

    Args:
        folder: Of the set.
        manifest: Whose clips are read: a row that was made of anything but what the manifest says
            now is not there; one that only another manifest's set below the same `--out` has is
            read from there. None takes what is stored, by the ids that it was stored with.

    Raises:
        StoreError: The folder is not a feature set.
    """

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:  # noqa: D107
        self.folder = folder
        self.header, self.run = read_set(folder)
        self.shards = read_index(folder)
        self._states = {name: _settled_state(folder / name) for name in self.shards}
        self._beside: list[FeatureStore] = []
        self._where = self._places() if manifest is None else self._find_rows(manifest)
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._pid = os.getpid()

    def _places(self, *, by_source: bool = False) -> "dict[str, _Place]":
        return {
            key: (self, name, row)
            for name, entry in self.shards.items()
            for row, key in enumerate(entry.sources if by_source else entry.clip_ids)
        }

    def _find_rows(self, manifest: Manifest) -> "dict[str, _Place]":
        """Where the rows of a manifest are, here or in a set beside this one, by clip id."""
        asked = manifest.sources(self.spec.modality, self.spec.made_of)
        places = self._places(by_source=True)
        if not places.keys() >= set(asked.values()):
            beside = _open_sets_beside(self.folder, self.header, self.run, FeatureStore)
            self._beside = list(beside.values())
            for other in self._beside:
                places = other._places(by_source=True) | places
        return {clip_id: places[source] for clip_id, source in asked.items() if source in places}

    @property
    def spec(self) -> FeatureSpec:
        """What the features are."""
        return self.header.spec

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """Every stored clip, in the order of the manifest, else of the shards."""
        return tuple(self._where)

    def source_of(self, clip_id: str) -> str:
        """What the features of a clip were made of.

        Raises:
            StoreError: The clip is in no shard.
        """
        store, name, row = self._place(clip_id)
        return store.shards[name].sources[row]

    def __contains__(self, clip_id: object) -> bool:  # noqa: D105
        return clip_id in self._where

    def __len__(self) -> int:  # noqa: D105
        return len(self._where)

    def read(self, clip_id: str) -> FeatureRow:
        """Features of one clip, padded to the longest clip of its shard.

        Raises:
            StoreError: The clip is in no shard, or its shard is damaged, not of this set, or was
                written to, cut, or replaced by another since this set was opened.
        """
        store, name, row = self._place(clip_id)
        shard = store._shard(name)
        found = replace(shard.read(row), clip_id=clip_id)
        store._refuse_changed(shard)
        return found

    def steps_of(self, clip_id: str) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Mask and times of one clip, as in its `FeatureRow`.

        Raises:
            StoreError: As from `read`.
        """
        store, name, row = self._place(clip_id)
        return store._shard(name).steps_of(row)

    def read_into(self, clip_id: str, out: NDArray[np.float32]) -> None:
        """The first steps of one clip, as many as `out` takes; see `Shard.read_into`.

        Raises:
            StoreError: As from `read`.
        """
        store, name, row = self._place(clip_id)
        shard = store._shard(name)
        shard.read_into(row, out)
        store._refuse_changed(shard)

    def close(self) -> None:
        """Close every open shard; reading opens them again."""
        for store in self._beside:
            store.close()
        while self._open:
            self._open.popitem()[1].close()

    def _place(self, clip_id: str) -> "_Place":
        if clip_id not in self._where:
            raise StoreError(f"{self.folder}: no features of clip {clip_id!r}")
        return self._where[clip_id]

    def _shard(self, name: str) -> Shard:
        if self._pid != os.getpid():  # forked: these handles are the parent's
            self._open, self._pid = OrderedDict(), os.getpid()
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        most = most_open_shards()
        while len(self._open) >= most:
            self._open.popitem(last=False)[1].close()
        try:
            shard = Shard.open(self.folder / name)
        except StoreError as error:
            if getattr(error.__cause__, "errno", None) != errno.EMFILE or not self._open:
                raise
            self.close()  # something else took the handles that were counted on
            shard = Shard.open(self.folder / name)
        try:
            self._refuse_other(shard)
            self._refuse_changed(shard)
        except StoreError:
            shard.close()
            raise
        self._open[name] = shard
        return shard

    def _refuse_other(self, shard: Shard) -> None:
        """Refuse a shard of another set, and one that was replaced since this set was opened."""
        if not shard.header.is_like(self.header):
            raise StoreError(f"{shard.path}: {describe_difference(self.header, shard.header)}")
        listed = self.shards[shard.path.name]
        if (shard.clip_ids, shard.sources) != (listed.clip_ids, listed.sources):
            raise StoreError(
                f"{shard.path}: its clips are not those that the index listed: the set was "
                "extended since it was opened; open it again (type the same command again). If "
                f"that does not help, delete {self.folder / 'index.jsonl'}, which is made again"
            )

    def _refuse_changed(self, shard: Shard) -> None:
        """Refuse what was read from a shard whose bytes are not those of before any more.

        After reading: what changes later is not in what was read. A shard that only looks changed,
        for it was touched, linked or copied, is known by its checksum.
        """
        name = shard.path.name
        if shard.is_still(self._states[name]):
            return
        state = _settled_state(shard.path)
        if not shard.is_still(state) or file_sha256(shard.path) != self.shards[name].sha256:
            raise StoreError(
                f"{shard.path}: was changed or cut while it was in use: its bytes are not those "
                "that the index lists (sha256 differs), and were not used; type: micu-extract "
                f"verify {self.folder} --data --repair"
            )
        self._states[name] = state

    def __getstate__(self) -> dict[str, Any]:  # noqa: D105
        return {**self.__dict__, "_open": OrderedDict(), "_pid": -1}


_Place = tuple[FeatureStore, str, int]
"""The set, the name of the shard, the row."""


def _settled_state(path: Path) -> FileState:
    """The state of a file, once whatever is written to it from now on gets a later time."""
    state = FileState.of(path.stat())
    age_s = time.time() - max(state.mtime_ns, state.ctime_ns) / 1e9
    if abs(age_s) < TICK_S:
        time.sleep(TICK_S)
        return FileState.of(path.stat())
    return state
