"""Removing from a feature set the rows that no manifest asks for, and numbering its shards anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from micu.base.errors import ConfigError, ManifestError, StoreError
from micu.base.files import check_room, file_sha256, flush_folder, remove_stale_temporaries
from micu.store.ledger import (
    ShardEntry,
    extend_layout,
    indexed_shards,
    part_labels,
    read_failures,
    read_layout,
    shard_name,
    write_index,
    write_layout,
    write_ledger,
)
from micu.store.manifest import read_manifest
from micu.store.sets import (
    find_sets_beside,
    publish_shard,
    read_index,
    read_set,
    shard_files,
    shard_number,
)
from micu.store.shard import FeatureRow, Header, Shard, join_versions
from micu_extract.sets.shares import join_folder


@dataclass(frozen=True, slots=True)
class Compaction:
    """What `compact_set` did."""

    folder: str
    kept: int
    """Rows that are in the set's shards now."""
    removed: int
    """Rows that no manifest asks for, which are gone."""
    copied: int
    """Rows that were read from other sets before."""
    written: int
    """Shards that were written anew."""


class _Place(NamedTuple):
    """Where a row is stored."""

    path: Path
    row: int
    entry: ShardEntry


def compact_set(folder: Path, manifest: Path | None = None, *, copy: bool = False) -> Compaction:
    """Leave the shards and the ledger that an uninterrupted run over the manifest would have left.

    Rows that other sets of the same making read from here come after those. A kill on the way costs
    no row that is asked for; the same command does the rest.

    Args:
        folder: A feature set.
        manifest: Where its manifest is now; None takes the path noted by the extraction.
        copy: Take in what is read from other sets, so that this one may travel alone.

    Raises:
        StoreError: The folder is not a feature set, or a shard is damaged.
        ManifestError: The manifest cannot be read.
        ConfigError: A run is at work there, or its parts are not merged.
        OSError: There is no room for the shards that change.
    """
    read_set(folder)  # nothing is made where no set is
    with join_folder(folder, alone=True):
        remove_stale_temporaries(folder)
        return _compact(folder, manifest, copy=copy)


def _compact(folder: Path, path: Path | None, *, copy: bool) -> Compaction:
    """`compact_set`, while nobody else is at work there."""
    if labels := part_labels(folder):
        raise ConfigError(
            f"{folder}: expected one index, got those of parts {', '.join(labels)}; type: "
            f"micu-extract merge {folder}"
        )
    header, run = read_set(folder)
    known = read_manifest(path or Path(run.manifest_path))
    asked = known.sources(header.spec.modality, header.spec.made_of)
    ids = {source: clip_id for clip_id, source in asked.items()}
    index = read_index(folder, header=header)
    places = _find_rows(folder, index)
    own, beside = len(places), find_sets_beside(folder, header, run)
    others = set[str]()
    for other in beside:
        try:  # what its manifest asks for now
            its = read_manifest(Path(read_set(other)[1].manifest_path))
            others.update(its.sources(header.spec.modality, header.spec.made_of).values())
        except (ManifestError, OSError):  # else all that it had a place for
            others.update(*read_layout(other).values())
    if copy:
        for other, shards in beside.items():
            found = _find_rows(other, shards)
            places = {s: place for s, place in found.items() if s in ids} | places
    layout = extend_layout({}, tuple(ids), header.shard_rows)
    rest = [source for source in places if source in others and source not in ids]
    layout = extend_layout(layout, rest, header.shard_rows)
    wanted = {name: [s for s in sources if s in places] for name, sources in layout.items()}
    wanted = {name: sources for name, sources in wanted.items() if sources}
    same = {
        name: index[name]
        for name, sources in wanted.items()
        if name in index and _has_only(index[name], sources, ids)
    }
    changed = {name: sources for name, sources in wanted.items() if name not in same}
    _check_bytes({places[s].path: places[s].entry for found in changed.values() for s in found})
    check_room(folder, sum(index[name].size for name in index.keys() - same.keys()))
    moves = _write_beside(folder, header, changed, places, ids)
    # Every row is in what is left, and in the new shards, until these have their final names.
    noted = indexed_shards(folder)
    write_index(folder, {name: noted[name] for name in moves} | same)
    for path in shard_files(folder):
        if path.name not in same and path.name not in moves:
            path.unlink()
    write_layout(folder, layout)
    for name, final in moves.items():
        (folder / name).rename(folder / final)
    flush_folder(folder)
    now = {final: noted[name] for name, final in moves.items()} | same
    write_index(folder, dict(sorted(now.items())))
    failed = read_failures(folder)
    left = [source for source in ids if source in failed and source not in places]
    write_ledger(folder, [replace(failed[source], clip_id=ids[source]) for source in left])
    kept = {source for sources in wanted.values() for source in sources}
    copied = sum(places[source].path.parent != folder for source in kept)
    return Compaction(str(folder), len(kept), own - len(kept) + copied, copied, len(moves))


def _find_rows(folder: Path, index: Mapping[str, ShardEntry]) -> dict[str, _Place]:
    """Where the rows of a set are, by source, in their order."""
    return {
        source: _Place(folder / name, row, entry)
        for name, entry in index.items()
        for row, source in enumerate(entry.sources)
    }


def _has_only(entry: ShardEntry, sources: Sequence[str], ids: Mapping[str, str]) -> bool:
    """Whether a shard is already what it is to be."""
    named = tuple(ids.get(s, old) for s, old in zip(entry.sources, entry.clip_ids, strict=True))
    return entry.sources == tuple(sources) and entry.clip_ids == named


def _check_bytes(shards: Mapping[Path, ShardEntry]) -> None:
    """Refuse damaged shards: written again, the damage would get a checksum of its own."""
    for path, entry in shards.items():
        if file_sha256(path) != entry.sha256:
            raise StoreError(
                f"{path}: its bytes are not those that were written (sha256 differs); type: "
                f"micu-extract verify {path.parent} --data --repair"
            )


def _write_beside(
    folder: Path,
    header: Header,
    wanted: Mapping[str, Sequence[str]],
    places: Mapping[str, _Place],
    ids: Mapping[str, str],
) -> dict[str, str]:
    """Write shards under numbers that are free.

    Returns:
        The names that they have, and are to have.
    """
    there = [shard_number(name) or 0 for name in (*wanted, *(p.name for p in shard_files(folder)))]
    first, moves = 1 + max(there, default=0), {}
    for name, sources in wanted.items():
        found: dict[str, FeatureRow] = {}
        damaged: dict[str, int] = {}
        files: dict[str, tuple[int, int]] = {}
        versions: dict[str, str] = {}
        for path in dict.fromkeys(places[source].path for source in sources):
            own = [source for source in sources if places[source].path == path]
            files |= places[own[0]].entry.files
            with Shard.open(path) as shard:
                versions = join_versions(versions, shard.header.spec.versions)
                for source in own:
                    row = shard.read_own(places[source].row)
                    clip_id = ids.get(source, row.clip_id)
                    found[source] = replace(row, clip_id=clip_id)
                    if row.clip_id in places[source].entry.damaged:
                        damaged[clip_id] = places[source].entry.damaged[row.clip_id]
        number = first + int(shard_number(name) or 0)
        made = replace(header, spec=replace(header.spec, versions=versions))
        rows = [found[source] for source in sources]
        publish_shard(folder, number, made, rows, damaged=damaged, files=files)
        moves[shard_name(number)] = name
    return moves
