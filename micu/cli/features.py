"""What both tools are told by name: modalities, splits, checkpoints, and the sets of a manifest."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import click

from micu.base.errors import ConfigError, StoreError
from micu.base.registry import closest, suggest
from micu.store.manifest import MODALITIES, Manifest, read_manifest
from micu.store.sets import FeatureStore, find_sets, read_set
from micu.store.source import find_source, next_command

SET = "set.json"
"""Marks the folder of a feature set."""

ROOT_OPTION = click.option(
    "--features",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("features"),
    show_default=True,
    help="Root of the feature sets.",
)
BACKBONE_OPTIONS = tuple(
    click.option(
        f"--{name}-features", metavar="BACKBONE", help=f"Which {name} features, if several."
    )
    for name in MODALITIES
)
NO_CHECKPOINTS = frozenset({".csv", ".gz", ".h5", ".html", ".json", ".jsonl", ".txt", ".yaml"})
"""Endings of files that stand beside a checkpoint and are none."""
FEATURE_FILES = ("last.json", "set.json", "*/set.json", "*/*/set.json")
"""What lies in a folder of features, at most so deep: what else was typed may be a whole disk."""

FEATURE_OPTIONS = (
    ROOT_OPTION,
    click.option(
        "--manifest",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Manifest of the clips [default: $MICU_MANIFEST, else the last extraction's].",
    ),
    *BACKBONE_OPTIONS,
)
"""What both tools find features by."""


@dataclass(frozen=True, slots=True)
class FeatureSets:
    """A manifest and one open feature set per modality."""

    manifest: Manifest
    stores: dict[str, FeatureStore]


def parse_modality(text: str) -> str:
    """A modality from its name or first letter.

    Raises:
        ConfigError: It is neither.
    """
    name = text.strip().lower()
    for modality in MODALITIES:
        if name in (modality, modality[0]):
            return modality
    raise ConfigError(f"unknown modality {text!r}; {suggest(name, MODALITIES)} (or first letters)")


def parse_modalities(text: str) -> tuple[str, ...]:
    """Modalities from a list such as `v,a,f` or `video,text`, in the order of `MODALITIES`.

    Raises:
        ConfigError: A part is not a modality.
    """
    chosen = {parse_modality(part) for part in text.split(",") if part.strip()}
    return tuple(modality for modality in MODALITIES if modality in chosen)


def parse_pairs(
    source: str | None, target: str | None, pairs: str | None
) -> tuple[tuple[str, str], ...]:
    """Pairs of modalities from the options, each once.

    Raises:
        ConfigError: A part is not a modality, or the options contradict each other.
    """
    if (source is None) != (target is None):
        raise ConfigError("--source and --target: expected both, got one of them")
    texts = [] if source is None or target is None else [f"{source}:{target}"]
    texts += [text for text in (pairs or "").split(",") if text.strip()]
    found: dict[tuple[str, str], None] = {}
    for text in texts:
        parts = text.split(":")
        if len(parts) != 2:
            raise ConfigError(f"--pairs: expected SOURCE:TARGET such as v:a, got {text!r}")
        found[parse_modality(parts[0]), parse_modality(parts[1])] = None
    return tuple(found)


def refuse_idle_features(chosen: Mapping[str, str], modalities: Sequence[str]) -> None:
    """Refuse a choice of features for a modality that nothing asks for.

    Args:
        chosen: Backbone by modality; empty where none was typed.
        modalities: Those that are asked for.

    Raises:
        ConfigError: There is one.
    """
    for name, backbone in chosen.items():
        if backbone and name not in modalities:
            raise ConfigError(
                f"--{name}-features {backbone}: {name} is not used, only "
                f"{', '.join(modalities)}; leave it out"
            )


def find_feature_sets(
    root: Path,
    modalities: Sequence[str],
    manifest: Path | None,
    chosen: Mapping[str, str],
    fitting: Mapping[str, str] = MappingProxyType({}),
    check: Callable[[Mapping[str, FeatureStore]], None] = lambda stores: None,
) -> FeatureSets:
    """Find and open one feature set per modality; choices for other modalities are not looked at.

    Args:
        root: Folder of the features, as `micu-extract` made it.
        modalities: Which to open, in this order.
        manifest: Manifest file; None takes `$MICU_MANIFEST`, else the last extraction's.
        chosen: Backbone by modality, needed where there are several.
        fitting: Backbone by modality that the features are to be of, as far as it is known.
        check: Refuses sets that do not suit; asked about those that there are even where others are
            missing, so that nothing is extracted beside what does not fit.

    Returns:
        The manifest and the open stores.

    Raises:
        ManifestError: No manifest is known, or it has bad rows.
        StoreError: A modality has no feature set, or several and none is chosen; all of them in
            one message.
    """
    _refuse_no_features(root, modalities, manifest, fitting)
    source = find_source(root, manifest, "--manifest")
    known = read_manifest(source.manifest)
    folder = root / known.name
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in find_sets(folder) if folder.is_dir() else ():
        spec = read_set(path)[0].spec
        found.setdefault(spec.modality, []).append((spec.backbone, path))
    stores: dict[str, FeatureStore] = {}
    problems: list[str] = []
    for modality in modalities:
        try:
            wanted = chosen.get(modality, "")
            if not found.get(modality):
                line = extraction(
                    modality, fitting.get(modality, wanted.removeprefix(f"{modality}-")), root
                )
                words = [*line, str(known.path)]
                if source.media_root.resolve() != known.path.parent.resolve():
                    words += ["--media-root", str(source.media_root)]
                there = ", ".join(sorted(p.name for sets in found.values() for _, p in sets))
                raise StoreError(
                    f"{folder}: no {modality} features; there is {there or 'nothing'}; type: "
                    f"{shlex.join(words)}"
                )
            path = _choose(modality, found[modality], wanted, fitting.get(modality, ""), folder)
            stores[modality] = FeatureStore(path, known)
        except StoreError as error:
            problems.append(str(error))
    try:
        check(stores)
    except StoreError as error:
        problems.append(str(error))
    if problems:
        raise StoreError("\n".join(problems))
    return FeatureSets(known, stores)


def extraction(modality: str, backbone: str, root: Path) -> list[str]:
    """The words that extract a modality, but for the manifest."""
    words = ["micu-extract", modality, *(["--tvl1"] if modality == "flow" else [])]
    words += ["--backbone", backbone] if backbone else []
    return [*words, *(["--out", str(root)] if root != Path("features") else [])]


def _refuse_no_features(
    root: Path, modalities: Sequence[str], manifest: Path | None, fitting: Mapping[str, str]
) -> None:
    """Refuse a folder that is none of features, such as one level below it.

    Raises:
        StoreError: It is one; the message says which folder may have been meant.
    """
    if not root.exists():
        first = next(iter(modalities), "video")
        words = extraction(first, fitting.get(first, ""), root)
        line = shlex.join([*words, str(manifest)]) if manifest else next_command(words)
        raise StoreError(
            f"--features {root}: no such folder; type the --out of micu-extract or, if nothing was "
            f"extracted yet, type: {line}"
        )
    if not root.is_dir():
        raise StoreError(f"--features {root}: expected a folder of feature sets, got a file")
    if (root / SET).is_file():
        meant = root.resolve().parent.parent
        raise StoreError(f"--features {root}: is one feature set; type --features {meant}")
    if any(root.glob(f"*/{SET}")):
        meant = root.resolve().parent
        raise StoreError(
            f"--features {root}: has the feature sets of one manifest; type --features {meant}"
        )


def _choose(
    modality: str, sets: Sequence[tuple[str, Path]], wanted: str, suiting: str, folder: Path
) -> Path:
    names = [name for name, _ in sets]
    if wanted:
        found = [path for name, path in sets if wanted in (name, path.name)]
        if not found:
            raise StoreError(
                f"{folder}: no {modality} features of backbone {wanted!r}; {suggest(wanted, names)}"
            )
    else:
        found = [path for _, path in sets]
    if len(found) > 1:
        best = suiting if suiting in names else names[0]
        raise StoreError(
            f"{folder}: {len(found)} sets of {modality} features: {', '.join(names)}; "
            f"choose one: --{modality}-features {best}"
        )
    return found[0]


def refuse_no_checkpoint(path: Path) -> None:
    """Refuse what cannot be a checkpoint by its name, and say what may have been meant.

    Raises:
        ConfigError: It is a folder, of another kind, or not there.
    """
    folder = path if path.is_dir() else path.parent
    there = sorted(file for file in folder.glob("*.pt") if file.is_file())
    last = [file for file in there if file.name == "last.pt"] or there[-1:]
    kind = path.suffix.lower()
    if path.is_file() and kind in NO_CHECKPOINTS:
        hint = f"type {last[0]}" if last else "type a .pt file, such as the last.pt of a run"
        raise ConfigError(f"{path}: expected a checkpoint, got a {kind} file; {hint}")
    if path.is_dir():
        hint = f"type {last[0]}" if last else "type a .pt file, such as the last.pt of a run"
        if any(any(path.glob(place)) for place in FEATURE_FILES):
            hint = f"these are features: type --features {path}, and a checkpoint before it"
        raise ConfigError(f"{path}: expected a checkpoint, got a folder; {hint}")
    if not path.exists():
        near = closest(path.name, (file.name for file in there)) or (last[0].name if last else "")
        runs = sorted(Path("runs").glob("**/last.pt"))
        if near:
            hint = f"type {path.parent / near}"
        elif runs:
            hint = f"type {runs[-1]}"
        elif path.name == "MICU.pt":
            hint = "the authors' checkpoint is linked from https://github.com/haihuangcode/CMG"
        else:
            hint = "train one, type: micu-train --modalities v,a"
        raise ConfigError(f"{path}: no such checkpoint; {hint}")
