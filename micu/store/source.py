"""Which manifest is meant: the one that was typed, else the last extraction's; or what to type.

A command that lacks its manifest, or its features, says the one next command in full.
"""

import gzip
import json
import os
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import click

from micu.base.command_line import typed_words
from micu.base.errors import ManifestError, shorten
from micu.base.files import read_json, write_atomically

MANIFEST_VARIABLE = "MICU_MANIFEST"

MAKE_ONE = (
    *("micu-extract", "manifest", "folder", "--annotations", "clips", "--split", "70,15,15"),
    *("--known-classes", "6", "-o", "my.csv"),
)
"""What is typed first where there is nothing but clips, in a folder per class."""

LOOKED_AT = 100
"""Files among which a manifest is looked for."""


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """A manifest, and where its media lie."""

    manifest: Path
    media_root: Path


def record_source(features: Path, source: ManifestSource) -> None:
    """Note in a feature folder what it was last extracted with."""
    absolute = {key: str(path.resolve()) for key, path in asdict(source).items()}
    write_atomically(features / "last.json", json.dumps(absolute, indent=1).encode())


def find_source(features: Path, typed: Path | None, option: str = "") -> ManifestSource:
    """The manifest to use: what was typed, else `$MICU_MANIFEST`, else the last extraction's.

    The media root is the manifest's folder, or the one that was recorded with the manifest.

    Args:
        features: Root of the feature sets.
        typed: What was typed, if it was.
        option: What the running command takes a manifest by; empty where it is an argument.

    Raises:
        ManifestError: None of the three says, or the record cannot be read.
    """
    variable = os.environ.get(MANIFEST_VARIABLE)
    named = typed or (Path(variable) if variable else None)
    if named is not None:
        return ManifestSource(named, named.parent)
    recorded = _read_source(features / "last.json")
    if recorded is None:
        context = click.get_current_context(silent=True)
        words = [*(context.command_path.split() if context else ()), *typed_words()[1:]]
        raise ManifestError(
            f"no manifest: none was typed, ${MANIFEST_VARIABLE} is not set, and {features} records "
            f"no extraction; type: {next_command([*words, *filter(None, [option])])}"
        )
    return recorded


def _read_source(path: Path) -> ManifestSource | None:
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        names = record["manifest"], record["media_root"]
        if not all(isinstance(name, str) and "\0" not in name for name in names):
            raise ValueError("paths that are none")
        return ManifestSource(*map(Path, names))
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{path}: expected the paths of a manifest and its media, got "
            f"{shorten(repr(error), 200)}; delete it, and type the manifest"
        ) from error


def next_command(words: Sequence[str]) -> str:
    """A line for a shell: `words` and a manifest that lies here, else what makes one of own clips.

    Args:
        words: The command that lacks a manifest, whose last word is to be one.
    """
    places = (path for folder in (".", "manifests") for path in Path(folder).glob("*.csv*"))
    for path in sorted(islice(places, LOOKED_AT)):
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                columns = file.readline(200).strip().split(b",")
        except (OSError, EOFError, zlib.error):
            continue
        if b"clip_id" in columns and {b"path", b"text"} & {*columns}:
            return shlex.join([*words, str(path)])
    return f"{shlex.join(MAKE_ONE)}, with your clips in a folder per class, clips/dog/1.mp4"
