"""The items of a set, dealt into other clips, splits and known classes: one draw decides little.

Pictures and sounds keep the features that they have, so that a draw costs no extraction: video and
flow are those of the picture, audio those of the sound. Items that the first draw left over (the
rarer kind decides how many clips `val` and `test` have) stay left over.
"""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.real_media import TEST_SPEAKERS
from benchmarks.real_methods import DataSet, Place, write_lists
from benchmarks.real_pairs import Item, pair_items
from micu.store.manifest import Clip, read_manifest, write_manifest
from micu.store.sets import FeatureStore, find_sets, publish_shard, read_set, set_folder, write_set


def place_of_draw(place: Place, draw: int) -> Place:
    """Where a draw lies; the first one is the benchmark's own."""
    return replace(place, root=place.root / "draws" / f"{draw}") if draw else place


def write_draw(place: Place, data: DataSet, draw: int) -> None:
    """Deal a set anew, unless that was done: manifest, features, lists of known classes."""
    there = place_of_draw(place, draw)
    if draw and not there.manifest(data).is_file():
        _deal(place, there, data, draw)
    write_lists(there, data, draw)


def _deal(place: Place, there: Place, data: DataSet, draw: int) -> None:
    first = {clip.clip_id: clip for clip in read_manifest(place.manifest(data)).clips}
    pictures: dict[Item, str] = {}
    sounds: dict[Item, str] = {}
    listed = place.root / f"{data.manifest}.items.csv"
    with listed.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            clip = first[row["clip_id"]]
            pictures.setdefault(Item(row["picture"], clip.label), clip.clip_id)
            alone = is_of_test_speaker(row["sound"])
            sounds.setdefault(
                Item(row["sound"], clip.label, row["sound_origin"], alone), clip.clip_id
            )
    clips: list[Clip] = []
    origins: dict[str, Mapping[str, str]] = {}
    for split, label, number, (picture, sound) in pair_items([*pictures], [*sounds], draw):
        seen, heard = pictures[picture], sounds[sound]
        name = f"{split}-{label}-{number:03d}"
        origins[name] = {"video": seen, "flow": seen, "text": seen, "audio": heard}
        clips.append(
            replace(first[seen], clip_id=name, path=f"{seen}+{heard}", split=split, group=name)
        )
    there.root.mkdir(parents=True, exist_ok=True)
    for folder in find_sets(place.features / data.manifest):
        _copy_set(folder, there, data, clips, origins)
    write_manifest(there.manifest(data), clips)


def is_of_test_speaker(sound: str) -> bool:
    """Whether a sound is a digit that one of the speakers says who are heard in the test alone."""
    collection, _, name = sound.partition("/")
    return collection == "fsdd" and name.split("_")[1] in TEST_SPEAKERS


def _copy_set(
    folder: Path,
    there: Place,
    data: DataSet,
    clips: list[Clip],
    origins: Mapping[str, Mapping[str, str]],
) -> None:
    header, run = read_set(folder)
    modality, store = header.spec.modality, FeatureStore(folder)
    copy = set_folder(there.features, data.manifest, modality, header.spec.backbone)
    copy.mkdir(parents=True, exist_ok=True)
    manifest = there.root / "dealt.csv"
    write_manifest(manifest, clips)
    sources = read_manifest(manifest).sources(modality, header.spec.made_of)
    manifest.unlink()
    write_set(copy, header, replace(run, manifest_path=str(there.manifest(data)), rows=len(clips)))
    for number, start in enumerate(range(0, len(clips), header.shard_rows)):
        rows = [
            replace(
                store.read(origins[clip.clip_id][modality]),
                clip_id=clip.clip_id,
                source=sources[clip.clip_id],
            )
            for clip in clips[start : start + header.shard_rows]
        ]
        publish_shard(copy, number, header, rows)
