"""Joining what parts of an extraction have made: one index, one ledger."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from micu.store.ledger import (
    Layout,
    extend_layout,
    index_name,
    ledger_name,
    part_labels,
    read_layout,
    write_index,
    write_ledger,
)
from micu.store.sets import read_index, shard_number
from micu_extract.sets.shares import Part, parse_part
from micu_extract.sets.verify import inspect_set


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What `merge_set` found and did."""

    folder: str
    rows: int
    stored: int
    failed: int
    left: int
    """Rows that are in no shard and not in the ledger."""
    parts: tuple[str, ...]
    """Labels of the parts whose files were there."""
    problems: tuple[str, ...]
    folded: bool
    """Whether there is now one index and one ledger."""


def merge_set(
    folder: Path, manifest: Path | None = None, *, incomplete: bool = False
) -> MergeReport:
    """Check that the parts of a set make a whole, and fold their files into one.

    The result is that of one run: `failures.csv` in the order of the manifest, without clips that
    are stored. A merge that was killed is finished by typing it again.

    Args:
        folder: A feature set.
        manifest: Where its manifest is now; None takes the path noted by the extraction.
        incomplete: Fold though rows are missing; only while no part is at work.

    Raises:
        StoreError: The folder is not a feature set.
        ManifestError: The manifest cannot be read.
    """
    contents = inspect_set(folder, manifest)
    labels = part_labels(folder)
    ledger = contents.ledger
    failed = [
        ledger[source]
        for source in contents.sources
        if source in ledger and source not in contents.homes
    ]
    left = contents.missing()
    layout = extend_layout(read_layout(folder), tuple(contents.known), contents.header.shard_rows)
    problems = (*contents.shard_problems, *contents.twice())
    folds = bool(labels) and not problems and (incomplete or not left)
    if folds:
        write_ledger(folder, failed)
        write_index(folder, read_index(folder))
        for label in labels:
            (folder / ledger_name(label)).unlink(missing_ok=True)
            (folder / index_name(label)).unlink(missing_ok=True)
    return MergeReport(
        folder=str(folder),
        rows=contents.rows,
        stored=len(contents.homes),
        failed=len(failed),
        left=len(left),
        parts=labels,
        problems=(
            *contents.nothing_stored(),
            *problems,
            *_missing_by_part(layout, labels, left),
        ),
        folded=folds,
    )


def _missing_by_part(layout: Layout, labels: tuple[str, ...], left: Sequence[str]) -> list[str]:
    """One line per part that has rows left, with what to type."""
    if not left:
        return []
    count = int(labels[0].split("of")[1]) if labels else 1
    begun = [parse_part(label.replace("of", "/")) for label in labels]
    places = {source: name for name, sources in layout.items() for source in sources}
    shards = Counter(shard_number(places[source]) for source in left)
    lines = []
    for number in range(1, count + 1):
        part = Part(number, count)
        rows = sum(missing for shard, missing in shards.items() if part.owns(shard or 0))
        is_begun = count == 1 or any(other.owns(number - 1) for other in begun)
        state = "is not finished" if is_begun else "has not begun"
        if rows:
            share = f" with --part {part}" if count > 1 else ""
            lines.append(
                f"part {part} {state}: {rows} rows are in no shard and not in the ledger; "
                f"type its extraction command again{share}"
            )
    return lines
