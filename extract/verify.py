"""The proof of an extraction: every manifest row is in a shard or in the ledger, once."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from micu.errors import ManifestError, StoreError
from micu.files import file_sha256
from micu.manifest import read_manifest
from micu.shard import Header, describe_difference, open_shard, shard_clip_ids, shard_header
from micu.store import read_index, read_ledger, read_set


@dataclass(frozen=True, slots=True)
class SetReport:
    """What `verify_set` found."""

    folder: str
    rows: int
    """Rows of the manifest that were to be extracted."""
    manifest_rows: int
    stored: int
    failed: int
    problems: tuple[str, ...]


def verify_set(folder: Path, *, data: bool = False) -> SetReport:
    """Prove that every row of a set is in exactly one of a shard and the ledger.

    Args:
        folder: A feature set.
        data: Also hash every shard against the index and look for values that are not finite.

    Returns:
        The report; problems are listed, not raised.

    Raises:
        StoreError: The folder is not a feature set.
    """
    header, run = read_set(folder)
    problems: list[str] = []
    try:
        manifest = read_manifest(Path(run.manifest_path))
        clips = manifest.clips
        if manifest.sha256 != header.manifest_sha256:
            problems.append(f"manifest {run.manifest_path} has changed since the extraction")
    except ManifestError as error:
        return SetReport(str(folder), run.rows, 0, 0, 0, (str(error),))
    homes: dict[str, list[str]] = {}
    stored = 0
    entries = read_index(folder) if not _unreadable(folder, problems) else {}
    for name, entry in entries.items():
        stored += len(entry.clip_ids)
        for clip_id in entry.clip_ids:
            homes.setdefault(clip_id, []).append(name)
        problems += _check_shard(folder / name, header, entry.clip_ids)
        if data:
            problems += _check_data(folder / name, entry.sha256)
    ledger = read_ledger(folder)
    for clip_id in ledger:
        homes.setdefault(clip_id, []).append("failures.csv")
    known = {clip.clip_id for clip in clips}
    for clip in clips[: run.rows]:
        places = homes.get(clip.clip_id, [])
        if len(places) != 1:
            where = " and ".join(places) or "no shard and not in the ledger"
            problems.append(f"clip {clip.clip_id!r} is in {where}")
    problems += [
        f"clip {clip_id!r} is not in the manifest" for clip_id in homes if clip_id not in known
    ]
    return SetReport(str(folder), run.rows, len(clips), stored, len(ledger), tuple(problems))


def _unreadable(folder: Path, problems: list[str]) -> bool:
    """Whether a shard cannot be opened at all; each such shard is a problem."""
    found = False
    for path in sorted(folder.glob("shard-*.h5")):
        try:
            open_shard(path).close()
        except StoreError as error:
            problems.append(str(error))
            found = True
    return found


def _check_shard(path: Path, header: Header, clip_ids: tuple[str, ...]) -> list[str]:
    try:
        with open_shard(path) as file:
            found = shard_header(file, path)
            ids = shard_clip_ids(file)
    except StoreError as error:
        return [str(error)]
    problems = []
    if found.fingerprint != header.fingerprint:
        problems.append(f"{path}: {describe_difference(header, found)}")
    if ids != clip_ids:
        problems.append(f"{path}: its clips are not those that the index lists")
    return problems


def _check_data(path: Path, sha256: str) -> list[str]:
    if file_sha256(path) != sha256:
        return [f"{path}: its bytes are not those that were written (sha256 differs)"]
    with open_shard(path) as file:
        bad = [i for i, row in enumerate(file["features"]) if not np.isfinite(row).all()]
    return [f"{path}: rows {bad[:10]} are not finite"] if bad else []
