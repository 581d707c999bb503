"""How far extractions are, from their text files alone: no shard and no media file is opened."""

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from micu.base.errors import ManifestError, StoreError
from micu.store.manifest import NEEDED_COLUMN, read_table
from micu.store.sets import (
    MISSING,
    Header,
    indexed_shards,
    part_labels,
    read_ledger,
    read_set,
    shard_files,
    shard_name,
    shard_number,
)


@dataclass(frozen=True, slots=True)
class SetStatus:
    """How far one set is."""

    folder: str
    backbone: str
    weights: str
    weights_sha256: str
    rows: int
    """Rows of the manifest that were to be extracted."""
    stored: int
    failed: int
    codes: dict[str, int]
    """Failures by code."""
    left: int
    shards_done: int
    """Shards of which every row is stored or failed."""
    shards_partial: int
    shards_missing: int
    shards_unlisted: int
    """Shards that the index does not know, or knows with another size or of another making;
    `verify` looks into them."""
    size_bytes: int
    parts: tuple[str, ...]
    """Parts that have files of their own, as `2/4`; none where there are no parts, or merged."""
    newest: str
    """When the last shard was written, local time; empty where there is none."""


def read_status(
    folders: list[Path], tell: Callable[[Path, StoreError | OSError], None] | None = None
) -> list[SetStatus]:
    """The status of feature sets; each manifest is read once.

    Args:
        folders: Feature sets, from `micu.store.sets.find_sets`.
        tell: Takes a set that cannot be read, and why; None lets that end all.

    Raises:
        StoreError: A `set.json` or a ledger cannot be read.
        OSError: The disk, or the rights to it, refused.
    """
    manifests: dict[tuple[Path, str], tuple[str, ...]] = {}
    found: list[SetStatus] = []
    for folder in folders:
        try:
            found.append(_status(folder, manifests))
        except (StoreError, OSError) as error:
            if tell is None:
                raise
            tell(folder, error)
    return found


def _status(folder: Path, manifests: dict[tuple[Path, str], tuple[str, ...]]) -> SetStatus:
    header, run = read_set(folder)
    noted = indexed_shards(folder)
    ledger = read_ledger(folder)
    sizes: dict[str, int] = {}
    newest = 0.0
    for path in shard_files(folder):
        facts = path.stat()
        sizes[path.name] = facts.st_size
        newest = max(newest, facts.st_mtime)
    making = header.fingerprint
    good = {n for n, size in sizes.items() if n in noted and noted[n].is_about(size, making)}
    stored = {clip_id for name in good for clip_id in noted[name].clip_ids}
    codes = Counter(row.code for clip_id, row in ledger.items() if clip_id not in stored)
    failed = sum(codes.values())
    failed_by_shard = Counter(
        _shards_of(ledger.keys() - stored, header, run.manifest_path, manifests)
    )
    done = partial = 0
    count = -(-run.rows // header.shard_rows)
    begun = {shard_number(name) for name in sizes} | set(failed_by_shard)
    for number in sorted(n for n in begun if n is not None and n < count):
        name = shard_name(number)
        rows = min(header.shard_rows, run.rows - number * header.shard_rows)
        there = len(noted[name].clip_ids) if name in good else 0
        if there + failed_by_shard[number] >= rows:
            done += 1
        elif there or name in sizes:
            partial += 1
    return SetStatus(
        folder=str(folder),
        backbone=header.spec.backbone,
        weights=header.spec.weights,
        weights_sha256=header.spec.weights_sha256,
        rows=run.rows,
        stored=len(stored),
        failed=failed,
        codes=dict(sorted(codes.items())),
        left=max(0, run.rows - len(stored) - failed),
        shards_done=done,
        shards_partial=partial,
        shards_missing=count - done - partial,
        shards_unlisted=len(sizes) - len(good),
        size_bytes=sum(sizes.values()),
        parts=tuple(label.replace("of", "/") for label in part_labels(folder)),
        newest=datetime.fromtimestamp(newest).isoformat(" ", "seconds") if newest else "",
    )


def _shards_of(
    clip_ids: set[str],
    header: Header,
    path: str,
    manifests: dict[tuple[Path, str], tuple[str, ...]],
) -> list[int]:
    """The shards that clips belong to; none where the manifest is not there any more."""
    if not clip_ids:
        return []
    key = (Path(path), header.spec.modality)
    if key not in manifests:
        manifests[key] = _read_ids(*key)
    rows = manifests[key]
    return [row // header.shard_rows for row, clip_id in enumerate(rows) if clip_id in clip_ids]


def _read_ids(path: Path, modality: str) -> tuple[str, ...]:
    """The ids of the rows that a modality is extracted from, in the order of the manifest.

    Nothing where it is not there any more, or is no manifest. Reading and checking all of it, as
    `read_manifest` does, would take ten times as long.
    """
    try:
        table = read_table(path, ("clip_id",))
        names = table.header
        column = names.index("clip_id")
        found = [row for _, row in table.rows() if not isinstance(row, csv.Error)]
        if NEEDED_COLUMN[modality] == "path" and "group" in names:
            group, media = names.index("group"), names.index("path")
            found = [row for row in found if row[media] or row[group] in ("", row[column])]
        return tuple(dict.fromkeys(row[column] for row in found))
    except (OSError, ValueError, IndexError, ManifestError):
        return ()


def describe_status(status: SetStatus) -> str:
    """A set's status in a few lines."""
    codes = ", ".join(f"{count} {code}" for code, count in status.codes.items())
    shards = (
        f"shards {status.shards_done} done, {status.shards_partial} partial, "
        f"{status.shards_missing} missing"
    )
    if status.shards_unlisted:
        shards += f", {status.shards_unlisted} not in the index"
    lines = [
        f"{status.folder}: {status.rows} rows = {status.stored} stored + {status.failed} failed"
        f"{f' ({codes})' if codes else ''} + {status.left} left",
        f"{shards}; {status.size_bytes / 1e6:.1f} MB; newest {status.newest or 'none'}",
        f"{status.backbone} with weights {status.weights} (sha256 {status.weights_sha256[:12]})",
    ]
    if status.codes.get(MISSING):
        lines.append(
            f"{status.codes[MISSING]} missing: looked for again when the extraction is typed again"
        )
    if status.rows and not status.stored:
        lines.append("nothing is stored")
    if status.parts:
        lines.append(f"parts with files of their own: {', '.join(status.parts)}")
    return "\n     ".join(lines)
