"""How far extractions are, from their text files alone: no shard and no media file is opened."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

from micu.base.errors import ManifestError, StoreError, shorten
from micu.store.ledger import (
    MISSING,
    extend_layout,
    indexed_shards,
    part_labels,
    read_failures,
    read_layout,
)
from micu.store.manifest import read_manifest
from micu.store.sets import RunRecord, find_sets_beside, read_set, shard_files
from micu.store.shard import FeatureSpec


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
    shared: dict[str, int]
    """Rows that only sets of other manifests have, by the name of the manifest."""
    unasked: int
    """Rows in shards that no manifest asks for any more."""
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
    manifest_error: str
    """Why its manifest cannot be read now, and the rows are the last run's; empty where it can."""


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
    found: list[SetStatus] = []
    known: dict[tuple[str, str, str], _Asked] = {}
    for folder in folders:
        try:
            found.append(_status(folder, known))
        except (StoreError, OSError) as error:
            if tell is None:
                raise
            tell(folder, error)
    return found


_Asked = tuple[tuple[str, ...], str]
"""The rows that a manifest asks for, by source, or why it cannot be read."""


def _status(folder: Path, known: dict[tuple[str, str, str], _Asked]) -> SetStatus:
    header, run = read_set(folder)
    noted = indexed_shards(folder)
    sizes: dict[str, int] = {}
    newest = 0.0
    for path in shard_files(folder):
        facts = path.stat()
        sizes[path.name] = facts.st_size
        newest = max(newest, facts.st_mtime)
    making = header.spec.making
    good = {n for n, size in sizes.items() if n in noted and noted[n].is_about(size, making)}
    there = {source for name in good for source in noted[name].sources}
    layout = read_layout(folder) or {name: noted[name].sources for name in sorted(noted)}
    all_rows, error = _asked(run, header.spec, known)
    if error:  # what had its place first
        all_rows = tuple(chain.from_iterable(layout.values()))
    count = run.rows if error else run.rows_of(len(all_rows))
    asked_rows = all_rows[:count]
    layout = extend_layout(layout, asked_rows, header.shard_rows)
    asked = set(asked_rows)
    stored = there & asked
    lacking = asked - stored
    ledger = [row for row in read_failures(folder).values() if row.source in lacking]
    codes = Counter(row.code for row in ledger)
    settled = stored | {row.source for row in ledger}
    shared: dict[str, int] = {}
    others: set[str] = set()
    for other, shards in find_sets_beside(folder, header, run).items():
        its_rows, its_error = _asked(read_set(other)[1], header.spec, known)
        others.update(*(read_layout(other).values() if its_error else [its_rows]))
        its = chain.from_iterable(entry.sources for entry in shards.values())
        fresh = (asked - settled).intersection(its)
        shared |= {other.parent.name: len(fresh)} if fresh else {}
        settled |= fresh
    done = partial = missing = 0
    for name, places in layout.items():
        wanted = asked.intersection(places)
        if wanted and wanted <= settled:
            done += 1
        elif wanted and (wanted & stored or name in sizes):
            partial += 1
        elif wanted:
            missing += 1
    return SetStatus(
        folder=str(folder),
        backbone=header.spec.backbone,
        weights=header.spec.weights,
        weights_sha256=header.spec.weights_sha256,
        rows=count,
        stored=len(stored),
        failed=len(ledger),
        codes=dict(sorted(codes.items())),
        left=max(0, count - len(settled)),
        shared=shared,
        unasked=len(there.difference(all_rows, others)),
        shards_done=done,
        shards_partial=partial,
        shards_missing=missing,
        shards_unlisted=len(sizes) - len(good),
        size_bytes=sum(sizes.values()),
        parts=tuple(label.replace("of", "/") for label in part_labels(folder)),
        newest=datetime.fromtimestamp(newest).isoformat(" ", "seconds") if newest else "",
        manifest_error=error,
    )


def _asked(run: RunRecord, spec: FeatureSpec, known: dict[tuple[str, str, str], _Asked]) -> _Asked:
    """What the manifest asks for as it is now."""
    key = (run.manifest_path, spec.modality, spec.made_of)
    if key not in known:
        try:
            manifest = read_manifest(Path(run.manifest_path))
            known[key] = tuple(manifest.sources(*key[1:]).values()), ""
        except (ManifestError, OSError) as error:
            known[key] = (), shorten(str(error), 200)
    return known[key]


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
    if status.shared:
        told = ", ".join(f"{count} of {name}" for name, count in status.shared.items())
        lines.append(f"read from sets of other manifests: {told}")
    if status.manifest_error:
        lines.append(f"rows are those of the last run: {status.manifest_error}")
    if status.unasked:
        lines.append(
            f"{status.unasked} rows in the shards that no manifest asks for any more; to remove "
            f"them, type: micu-extract compact {status.folder}"
        )
    if status.rows and not status.stored and not status.shared:
        lines.append("nothing is stored")
    if status.parts:
        lines.append(f"parts with files of their own: {', '.join(status.parts)}")
    return "\n     ".join(lines)
