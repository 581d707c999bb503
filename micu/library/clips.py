"""From clips to feature sets in Python: the one door to `micu_extract`, opened when it is used.

Features are those of the command, byte for byte, and lie where the command puts them: what one has
begun, the other goes on with.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from micu.base.devices import parse_devices
from micu.base.errors import ConfigError, DecodeError, ManifestError, StoreError, brief
from micu.base.files import write_atomically
from micu.store import manifest as manifests
from micu.store.ledger import Failure, read_ledger
from micu.store.manifest import Clip, safe_name
from micu.store.sets import FeatureStore, read_set
from micu.store.shard import FeatureRow

if TYPE_CHECKING:
    import pandas as pd

ClipSource: TypeAlias = (
    "ClipList | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | pd.DataFrame"
)
"""What `read_manifest` takes."""


STILL_PX = 192
"""Short side of a still."""


# --- clips -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClipList:
    """Clips, and where their media lie."""

    clips: tuple[Clip, ...]
    media_root: Path
    name: str
    """Folder name of its feature sets; of clips that no file lists it ends in a hash of them."""
    path: Path | None = None
    """The manifest file, if they come from one."""

    def __len__(self) -> int:  # noqa: D105
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:  # noqa: D105
        return iter(self.clips)

    def write(self, folder: Path) -> Path:
        """The manifest file: the one they come from, else one that is written into `folder`."""
        if self.path is not None:
            return self.path
        path = folder / f"{self.name}.csv"
        if not path.exists():
            manifests.write_manifest(path, self.clips)
        return path


def read_manifest(
    source: ClipSource, *, media_root: str | os.PathLike[str] | None = None
) -> ClipList:
    """Clips from whatever lists them.

    Args:
        source: A manifest, or a CSV file with the column `path`; a folder of media, or of a folder
            per class; one media file or several; a data frame with a manifest's columns.
        media_root: Folder that paths start from; None is that of the file or folder itself, of
            paths the deepest that has all, of a data frame the working directory.

    Returns:
        The clips in order.

    Raises:
        ManifestError: It lists no clips, or has bad rows, all of which are named in one message.
    """
    if isinstance(source, ClipList):
        return source
    root = Path(media_root) if media_root is not None else None
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            return _unwritten(_read_own(path), root or path, path.resolve().name)
        if manifests.is_table(path) or not path.is_file():
            return _read_csv(path, root or path.parent)
        source = [path]
    if hasattr(source, "to_csv") and hasattr(source, "columns"):  # a series has the first
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frame.csv"
            source.to_csv(path, index=False)
            return _unwritten(_read_csv(path, Path()).clips, root or Path(), "frame")
    try:
        paths = [Path(path) for path in source]
    except TypeError as error:
        raise ManifestError(
            "clips: expected a manifest, a folder, paths of media or a data frame, got "
            f"{brief(repr(source))}"
        ) from error
    return _read_paths(paths, root)


def _read_csv(path: Path, root: Path) -> ClipList:
    if path.is_file() and "clip_id" not in manifests.read_table(path, ()).header:
        return _unwritten(_read_own(path), root, manifests.manifest_stem(path))
    found = manifests.read_manifest(path)
    return ClipList(found.clips, root, found.name, path)


def _read_own(path: Path) -> tuple[Clip, ...]:
    """Clips of a folder or a CSV file of paths, as `micu-extract manifest folder` has them."""
    from micu_extract.datasets.folder import read_folder

    return tuple(read_folder({"media": path}))


def _read_paths(paths: Sequence[Path], root: Path | None) -> ClipList:
    from micu_extract.datasets.folder import as_clips

    if not paths:
        raise ManifestError("clips: expected paths of media files, got none")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ManifestError(
            f"clips: expected paths of media files, got {brief(missing[0])!r}, which is none, and "
            f"{len(missing) - 1} more such; type paths as they are from {Path.cwd()}"
        )
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - links stay links
    root = root or Path(os.path.commonpath([os.path.dirname(path) for path in absolute]))  # noqa: PTH120
    names = [Path(os.path.relpath(path, root)).as_posix() for path in absolute]
    return _unwritten(tuple(as_clips(names, root)), root, "clips")


def _unwritten(clips: tuple[Clip, ...], root: Path, name: str) -> ClipList:
    """Clips that no manifest lists; lists that differ have names that differ."""
    digest = hashlib.sha256(repr(clips).encode("utf-8", "surrogateescape")).hexdigest()
    return ClipList(clips, root, safe_name(f"{name}-{digest[:8]}"))


# --- feature sets ----------------------------------------------------------------------------


class FeatureSet(FeatureStore):
    """The features of one backbone; `feats["clip 7"].values` are those of a clip, (T, ...).

    Those that the manifest of the last extraction asks for as it is now, if it is still there.

    Args:
        folder: As `micu-extract` made it: it holds `set.json`.

    Raises:
        StoreError: It is no feature set.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:  # noqa: D107
        path = Path(folder)
        try:
            known = manifests.read_manifest(Path(read_set(path)[1].manifest_path))
        except ManifestError:  # it is not there any more: what is stored, by the ids it had
            known = None
        super().__init__(path, known)

    def __repr__(self) -> str:  # noqa: D105
        spec = self.spec
        return (
            f"FeatureSet({str(self.folder)!r}): {len(self)} clips, {spec.modality} by "
            f"{spec.backbone}, steps of {spec.shape}"
        )

    def __iter__(self) -> Iterator[str]:  # noqa: D105
        return iter(self.clip_ids)

    def __getitem__(self, clip_id: str) -> FeatureRow:
        """Features of a clip up to its last real step; its mask may deny some before."""
        row = self.read(clip_id)
        steps = int(np.flatnonzero(row.mask)[-1]) + 1 if row.mask.any() else 0
        return FeatureRow(clip_id, row.values[:steps], row.mask[:steps], row.times_s[:steps])

    @cached_property
    def failures(self) -> dict[str, Failure]:
        """Why clips have no features, by clip id."""
        return read_ledger(self.folder)

    def array(self, clip_ids: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Features of some clips, (n, T, ...), zeros after the end of those shorter than T.

        Args:
            clip_ids: Which, in this order; None takes all. T is the length of the longest.
        """
        return self._stack(self.clip_ids if clip_ids is None else clip_ids)["values"]

    def to_numpy(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as an `.npz`: clip_ids (n,), values (n, T, ...), mask and times_s (n, T).

        It is made in memory.
        """
        write_npz(Path(path), self._stack(self.clip_ids))

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as a table: clip_id, step, time_s and features, one row per real step.

        Grids are laid out flat: rows, columns, channels. It is made in memory.

        Raises:
            ExtraError: pyarrow is not installed.
        """
        columns: dict[str, list[Any]] = {"clip_id": [], "step": [], "time_s": [], "features": []}
        for row in map(self.read, self.clip_ids):
            for step in np.flatnonzero(row.mask):
                columns["clip_id"].append(row.clip_id)
                columns["step"].append(int(step))
                columns["time_s"].append(float(row.times_s[step]))
                columns["features"].append(row.values[step].ravel())
        write_parquet(Path(path), columns)

    def _stack(self, clip_ids: Sequence[str]) -> dict[str, NDArray[Any]]:
        rows = [self[clip_id] for clip_id in clip_ids]
        size, steps = len(rows), max((len(row.mask) for row in rows), default=0)
        values = np.zeros((size, steps, *self.spec.shape), np.float32)
        mask, times_s = np.zeros((size, steps), np.bool_), np.full((size, steps), np.nan)
        for i, row in enumerate(rows):
            length = len(row.mask)
            values[i, :length], mask[i, :length] = row.values, row.mask
            times_s[i, :length] = row.times_s
        ids = np.array(list(clip_ids), np.str_)
        return {"clip_ids": ids, "values": values, "mask": mask, "times_s": times_s}


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an `.npz` that loads without pickle, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    write_atomically(path, buffer.getvalue())


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns as a table in Parquet, whole or not at all.

    Raises:
        ExtraError: pyarrow is not installed.
    """
    import pandas as pd

    from micu.base.errors import ExtraError

    buffer = io.BytesIO()
    try:
        pd.DataFrame(dict(columns)).to_parquet(buffer, engine="pyarrow", index=False)
    except ImportError as error:
        raise ExtraError("pyarrow", "parquet") from error
    write_atomically(path, buffer.getvalue())


def show_media(roots: Mapping[str, Path]) -> "Callable[[Clip, str], NDArray[Any] | None]":
    """What finds stills and waveforms of clips.

    Args:
        roots: Where media lie, by modality.
    """

    def show(clip: Clip, modality: str) -> NDArray[Any] | None:
        from micu_extract.backbones.base import FrameInput, WaveformInput
        from micu_extract.media.readers import read
        from micu_extract.media.source import Reading

        if not clip.path:
            return None
        reading = Reading(media_root=roots[modality])
        is_sound = modality == "audio"
        wants = (
            WaveformInput(sample_rate=8000, window_s=1.0)
            if is_sound
            else FrameInput(fps=1, resize=STILL_PX, crop=STILL_PX)
        )
        try:
            units = read(clip, wants, reading).units
        except DecodeError:  # the media have gone, or are damaged: the page tells of it
            return None
        return np.concatenate(list(units)) if is_sound else np.asarray(units[len(units) // 2])

    return show


def extract_features(
    clips: ClipSource,
    backbone: str,
    *,
    out: str | os.PathLike[str] = "features",
    weights: str = "pretrained",
    media_root: str | os.PathLike[str] | None = None,
    device: str = "auto",
    devices: str = "",
    workers: int = 1,
    batch_size: int | None = None,
    precision: str = "float32",
    overwrite: bool = False,
    retry_failed: bool = False,
    conventions: Mapping[str, Any] | None = None,
    **options: Any,
) -> FeatureSet:
    """Features of every clip by one backbone; what is done already is not done again.

    Args:
        clips: As `read_manifest` takes them.
        backbone: As `micu-extract list` names it, or `timm:NAME`.
        out: Root of the feature sets.
        weights: `pretrained`, a file or folder, `random` or `random:SEED`.
        media_root: As of `read_manifest`.
        device: `auto`, `cpu`, `cuda:N` or `mps`.
        devices: Several, as `micu-extract --devices` takes them; they know no script's backbones.
        workers: 1 decodes in this process. More are processes of their own, which are killed where
            media make them hang; a script that asks for them needs `if __name__ == "__main__"`.
        batch_size: Units in one forward pass; None is the backbone's own.
        precision: `float32`, `bf16` or `fp16`.
        overwrite: Replace features that were made with other settings.
        retry_failed: Try clips that failed before again.
        conventions: Fields to replace in what the backbone wants, such as `{"bound": 10.0}`.
        **options: Of the backbone, such as `frames_per_second=4`.

    Returns:
        The set; `failures` says which clips have no features, and why.

    Raises:
        MicuError: What was asked for cannot be done.
        StoreError: No clip has features; the message says why the first has none.
        KeyboardInterrupt: It was stopped; the same call goes on.
    """
    from micu_extract.backbones.base import Run
    from micu_extract.run import Order, Settings, extract

    listed, root = read_manifest(clips, media_root=media_root), Path(out)
    if workers < 1:
        raise ConfigError(f"workers: expected at least 1, got {workers}")
    several = _parse_devices(devices, device, conventions)
    given = {"options": options, "conventions": conventions or {}}
    order = Order(backbone=backbone, weights=weights, **given)
    manifest, place = listed.write(root), "cpu" if several else device
    run = Run(device=place, batch_size=batch_size, precision=precision)  # type: ignore[arg-type]
    words = _as_typed(order, manifest, root, run)
    flags = {"overwrite": overwrite, "retry_failed": retry_failed, "limit": None}
    settings = Settings(
        manifest=manifest,
        media_root=listed.media_root if media_root is None else Path(media_root),
        out=root,
        run=run,
        job={**flags, "shard_rows": None, "part": None, "words": words},
        devices=several,
        workers=workers,
        clip_timeout_s=600.0 if workers > 1 else None,
        dry_run=False,
        as_json=False,
        is_call=True,
    )
    (summary,), (plan,) = extract([order], settings)
    if summary.stopped_by.startswith("SIG"):
        raise KeyboardInterrupt(f"stopped by {summary.stopped_by}; the same call goes on")
    if not len(found := FeatureSet(plan.folder)):
        first = next(iter(found.failures.values()), None)
        why = summary.shared or (first.message if first else "see the log above")
        raise StoreError(
            f"{plan.folder}: expected features of {len(listed)} clips, got none: {why}"
        )
    return found


def _parse_devices(
    devices: str, device: str, conventions: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """The devices that are asked for; none where one is."""
    if devices and (conventions or device != "auto"):
        other = "conventions" if conventions else f"device={device!r}"
        raise ConfigError(f"devices and {other}: expected one of them, got both; leave one out")
    return parse_devices(devices) if devices else ()


def _as_typed(order: Any, manifest: Path, out: Path, run: Any) -> tuple[str, ...]:
    """What `micu-extract` is told for the same."""
    name = order.backbone
    typed = ["all", str(manifest), "--backbones", name, "--weights", f"{name}={order.weights}"]
    typed += ["--out", str(out), "--precision", run.precision]
    typed += ["--batch-size", str(run.batch_size)] if run.batch_size else []
    typed += ["--tvl1"] if order.modality == "flow" else []
    for option, value in order.options.items():
        typed += ["--set", f"{name}.{option}={value}"]
    return tuple(typed)
