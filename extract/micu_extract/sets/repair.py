"""Removing what is broken from a feature set, so that the extraction command makes it again."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from micu.base.errors import StoreError
from micu.base.files import file_sha256
from micu.store.ledger import indexed_shards, part_labels, read_failures, write_index, write_ledger
from micu.store.sets import RunRecord, publish_shard, read_index, read_set, shard_number
from micu.store.shard import Header, Shard
from micu_extract.sets.shares import join_folder
from micu_extract.sets.verify import ShardCheck, check_shards, find_replaced


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair_set` did."""

    folder: str
    deleted: tuple[str, ...]
    """One line per shard that was broken and is gone, or per row whose file was replaced."""
    dropped: int
    """Ledger rows of clips that are stored, which are gone."""
    kept: tuple[str, ...]
    """One line per shard that has a problem which deleting it would not mend."""
    command: str
    """What to type to extract again what was deleted; empty if nothing was."""


def repair_set(folder: Path) -> Repair:
    """Delete the broken shards of a set, and ledger rows of clips that are stored.

    Broken is a shard that cannot be opened, is of another making than `set.json`, holds values that
    are not finite, or differs from what the index noted when it was written. Reads every shard.

    Raises:
        StoreError: The folder is not a feature set.
        ConfigError: A run is at work there.
    """
    read_set(folder)  # nothing is made where no set is
    with join_folder(folder, alone=True):
        return _repair(folder)


def _repair(folder: Path) -> Repair:
    """`repair_set`, while nobody else is at work there."""
    header, run = read_set(folder)
    checks = list(check_shards(folder, header, indexed_shards(folder), data=True))
    # Where no shard is of the making that set.json states, it is set.json that is out of place.
    whole_set_differs = all(check.other_making for check in checks)
    broken: list[ShardCheck] = []
    kept: list[ShardCheck] = []
    for check in checks:
        if check.problems:
            mends = _deleting_mends(check, whole_set_differs=whole_set_differs)
            (broken if mends else kept).append(check)
    for check in broken:
        check.path.unlink()
    # The shards first: an index without its lines would take what is broken for good.
    if broken:
        _forget({check.path.name for check in broken}, folder)
    dropped = _drop_stored(folder, {check.path.name for check in kept})
    return Repair(
        folder=str(folder),
        deleted=tuple("; ".join(check.problems) for check in broken),
        dropped=dropped,
        kept=tuple("; ".join(check.problems) for check in kept),
        command=(run.command or extraction_command(folder, header, run)) if broken else "",
    )


def drop_replaced(folder: Path, manifest: Path | None = None) -> Repair:
    """Take the rows out of a set whose media file is not the one that was decoded.

    Raises:
        StoreError: The folder is not a feature set, or a shard is damaged.
        ManifestError: Its manifest cannot be read.
        ConfigError: A run is at work there.
    """
    read_set(folder)  # nothing is made where no set is
    with join_folder(folder, alone=True):
        header, run = read_set(folder)
        replaced = find_replaced(folder, manifest)
        for name, entry in read_index(folder, header=header).items():
            if replaced.keys().isdisjoint(entry.sources):
                continue
            if file_sha256(folder / name) != entry.sha256:
                raise StoreError(
                    f"{folder / name}: its bytes are not those that were written (sha256 differs); "
                    f"type: micu-extract verify {folder} --data --repair"
                )
            with Shard.open(folder / name) as shard:
                made = shard.header
                rows = [
                    shard.read_own(row)
                    for row, source in enumerate(shard.sources)
                    if source not in replaced
                ]
            if rows:
                number = int(shard_number(name) or 0)
                publish_shard(folder, number, made, rows, "", entry.damaged, entry.files)
            else:
                (folder / name).unlink()
                _forget({name}, folder)
        command = run.command or extraction_command(folder, header, run)
        return Repair(str(folder), tuple(replaced.values()), 0, (), command if replaced else "")


def _deleting_mends(check: ShardCheck, *, whole_set_differs: bool) -> bool:
    if check.refused or (check.path.is_dir() and not check.path.is_symlink()):
        return False
    return not (check.other_making and whole_set_differs)


def _forget(names: set[str], folder: Path) -> None:
    """Take shards out of every index."""
    for label in ("", *part_labels(folder)):
        noted = indexed_shards(folder, [label])
        if names & noted.keys():
            left = {name: entry for name, entry in noted.items() if name not in names}
            write_index(folder, left, label)


def _drop_stored(folder: Path, kept: set[str]) -> int:
    """Take clips that are in a good shard out of every ledger; how many rows that were."""
    index = read_index(folder, wants=lambda name: name not in kept)
    stored = {source for entry in index.values() for source in entry.sources}
    dropped = 0
    for label in ("", *part_labels(folder)):
        ledger = read_failures(folder, [label])
        left = [row for row in ledger.values() if row.source not in stored]
        if len(left) < len(ledger):
            write_ledger(folder, left, label)
            dropped += len(ledger) - len(left)
    return dropped


def extraction_command(folder: Path, header: Header, run: RunRecord) -> str:
    """The command that goes on with a set that does not know what it was typed with.

    Options of the backbone are not in it; where they are needed, it refuses with what differs.
    """
    spec = header.spec
    words = ["micu-extract", spec.modality, run.manifest_path, "--backbone", spec.backbone]
    words += ["--media-root", run.media_root, "--out", str(folder.parent.parent)]
    words += ["--shard-rows", str(header.shard_rows)]
    if spec.weights.startswith("random:"):
        words += ["--weights", "random"]
    return shlex.join(words)
