"""The proof of an extraction: every manifest row is in a shard or in the ledger, once."""

from dataclasses import dataclass
from pathlib import Path

from micu.errors import ManifestError, MicuError
from micu.files import file_sha256
from micu.manifest import Clip, read_manifest
from micu.shard import Header, Shard, describe_difference
from micu.store import ShardEntry, indexed_shards, read_ledger, read_set


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


def verify_set(folder: Path, manifest: Path | None = None, *, data: bool = False) -> SetReport:
    """Prove that every row of a set is in exactly one of a shard and the ledger.

    Args:
        folder: A feature set.
        manifest: Where its manifest is now; None takes the path noted by the extraction.
        data: Also hash every shard against the index and look for values that are not finite.

    Returns:
        The report; problems are listed, not raised. A shard that cannot be opened is one, and its
        rows count as missing.

    Raises:
        StoreError: The folder is not a feature set.
    """
    header, run = read_set(folder)
    problems: list[str] = []
    try:
        known = read_manifest(manifest or Path(run.manifest_path))
    except ManifestError as error:
        message = f"{error}; if the features were moved, name it with --manifest"
        return SetReport(str(folder), run.rows, 0, 0, 0, (message,))
    if known.sha256 != header.manifest_sha256:
        problems.append(f"manifest {known.path} has changed since the extraction")
    homes: dict[str, list[str]] = {}
    index = indexed_shards(folder)
    for path in sorted(folder.glob("shard-*.h5")):
        try:
            clip_ids = _check_shard(path, header, index.get(path.name), problems, data=data)
        except MicuError as error:
            problems.append(str(error))
            continue
        for clip_id in clip_ids:
            homes.setdefault(clip_id, []).append(path.name)
    stored = sum(map(len, homes.values()))
    ledger = read_ledger(folder)
    for clip_id in ledger:
        homes.setdefault(clip_id, []).append("failures.csv")
    problems += _check_rows(known.clips, run.rows, homes)
    return SetReport(str(folder), run.rows, len(known.clips), stored, len(ledger), tuple(problems))


def _check_shard(
    path: Path, header: Header, noted: ShardEntry | None, problems: list[str], *, data: bool
) -> tuple[str, ...]:
    """Ids in a shard; what is wrong with it is added to `problems`."""
    with Shard.open(path) as shard:
        clip_ids = shard.clip_ids
        if shard.header.fingerprint != header.fingerprint:
            problems.append(f"{path}: {describe_difference(header, shard.header)}")
        bad = shard.nonfinite_rows() if data else []
    if bad:
        problems.append(f"{path}: rows {bad[:10]} are not finite")
    if noted is not None and noted.clip_ids != clip_ids:
        problems.append(f"{path}: its clips are not those that the index lists")
    if data and noted is not None and file_sha256(path) != noted.sha256:
        problems.append(f"{path}: its bytes are not those that were written (sha256 differs)")
    return clip_ids


def _check_rows(clips: tuple[Clip, ...], rows: int, homes: dict[str, list[str]]) -> list[str]:
    """Rows that are nowhere or in two places, and ids that are no row."""
    problems = []
    for clip in clips[:rows]:
        places = homes.get(clip.clip_id, [])
        if len(places) != 1:
            where = " and ".join(places) or "no shard and not in the ledger"
            problems.append(f"clip {clip.clip_id!r} is in {where}")
    strangers = homes.keys() - {clip.clip_id for clip in clips}
    return problems + [f"clip {clip_id!r} is not in the manifest" for clip_id in sorted(strangers)]
