"""The official files that the maintainers have: their counts are those that are published."""

import logging
from collections import Counter
from pathlib import Path

import pytest

from micu.store.manifest import Clip, read_class_list
from micu.store.overlap import find_shared
from micu_extract.datasets import DATASETS
from tests.conftest import PROJECT

CLASSES = PROJECT / "manifests" / "classes"


def official(shared: Path, name: str, *files: str) -> list[Clip]:
    folder = shared / "annotations"
    typed = [f"{role}{folder / file}" for role, file in map(split_role, files)]
    clips = DATASETS[name].rows(typed)
    assert len({clip.clip_id for clip in clips}) == len(clips)
    return clips


def split_role(text: str) -> tuple[str, str]:
    role, separator, name = text.rpartition("=")
    return role + separator, name


def splits(clips: list[Clip]) -> dict[str, int]:
    return dict(Counter(clip.split for clip in clips))


def labels(clips: list[Clip]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(clip.label for clip in clips))


@pytest.mark.shared
def test_the_official_pretraining_list_has_40801_rows(shared: Path) -> None:
    clips = official(
        shared, "vggsound-avel40k", "vggsound-avel40k.csv", "vggsoundCategories2Prompts.csv"
    )
    assert splits(clips) == {"train": 24_515, "val": 8_171, "test": 8_115}
    assert set(labels(clips)) == set(read_class_list(CLASSES / "vggsound-avel40k.csv"))
    assert len(labels(clips)) == len({clip.text for clip in clips}) == 141


@pytest.mark.shared
def test_the_official_lists_share_the_videos_that_the_readme_counts(shared: Path) -> None:
    pretraining = official(shared, "vggsound-avel40k", "vggsound-avel40k.csv")
    ave = official(shared, "ave", "ave_Annotations.txt")
    names = [f"AVVP_eval_{name}_checked_combined.csv" for name in ("visual", "audio")]
    avvp = official(shared, "avvp", *names)
    mixture = official(shared, "ave-avvp", "ave_Annotations.txt", *(f"AVE_{n}" for n in names))
    by_split = {s: [clip for clip in mixture if clip.split == s] for s in ("train", "test")}
    valor = [f"valor32k_desc_{split}.json" for split in ("train", "val", "test")]
    pairs = [(ave, pretraining), (pretraining, ave), (avvp, pretraining)]
    pairs += [(official(shared, "valor32k", *valor), pretraining)]
    pairs += [(by_split["test"], by_split["train"])]
    assert [len(find_shared(*pair)) for pair in pairs] == [351, 342, 72, 1912, 56]


@pytest.mark.shared
def test_the_official_ave_has_4143_rows(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    orders = [f"ave_{split}_order.h5" for split in ("train", "val", "test")]
    clips = official(shared, "ave", "ave_Annotations.txt", *orders)
    assert splits(clips) == {"train": 3339, "val": 402, "test": 402}
    assert labels(clips) == read_class_list(CLASSES / "ave.csv")
    for known, training, tested in ((14, 1857, 223), (21, 2628, 316)):
        classes = read_class_list(CLASSES / f"ave-{known}.csv")
        assert len(classes) == known
        of_known = [clip for clip in clips if clip.label in classes]
        assert splits(of_known)["train"] == training
        assert splits(of_known)["test"] == tested
    assert sum("no length" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.shared
def test_the_official_avvp_lists_have_1661_and_1846_rows(shared: Path) -> None:
    names = ("visual", "audio")
    clips = official(shared, "avvp", *(f"AVVP_eval_{n}_checked_combined.csv" for n in names))
    assert len([c for c in clips if c.events_in("video")]) == 1661
    assert len([c for c in clips if c.events_in("audio")]) == 1846
    classes = {event.label for clip in clips for event in clip.events}
    assert classes == set(read_class_list(CLASSES / "avvp.csv"))
    assert clips == official(shared, "avvp", *(f"AVVP_eval_{n}_checked.csv" for n in names))


@pytest.mark.shared
def test_the_official_ave_avvp_lists_have_1831_1032_and_1085_rows(shared: Path) -> None:
    names = [f"AVE_AVVP_eval_{name}_checked_combined.csv" for name in ("visual", "audio")]
    clips = official(shared, "ave-avvp", "ave_Annotations.txt", *names)
    test = [clip for clip in clips if clip.split == "test"]
    assert splits(clips)["train"] == 1831
    assert len([c for c in test if c.events_in("video")]) == 1032
    assert len([c for c in test if c.events_in("audio")]) == 1085
    classes = set(read_class_list(CLASSES / "ave-avvp.csv"))
    assert {event.label for clip in clips for event in clip.events} == classes


@pytest.mark.shared
def test_the_official_ucf_lists_have_6831_rows_of_51_classes(shared: Path) -> None:
    for known, count in ((17, 2289), (34, 4623), (51, 6831)):
        name = "ucf51" if known == 51 else f"ucf51-{known}"
        listed = "ucf51checked" if known == 51 else f"ucf51checked_{known}"
        official_splits = ["ucf101_trainlist01.txt", "ucf101_testlist01.txt"]
        clips = official(shared, "ucf101", f"{listed}.csv", *official_splits)
        assert len(clips) == count
        assert set(splits(clips)) == {"train", "test"}
        assert set(labels(clips)) == set(read_class_list(CLASSES / f"{name}.csv"))


@pytest.mark.shared
def test_the_official_ucf_vgg_lists_have_the_published_rows(shared: Path) -> None:
    names = ["UCF101sameVGGSound.txt", "VGGSoundsameUCF101.txt"]
    for known, counts in (("_8", (1160, 2390)), ("_12", (1556, 3518)), ("", (2003, 4813))):
        lists = [f"ucf=ucf2vggsound{known}.csv", f"vgg=vggsound2ucf{known}.csv"]
        clips = official(shared, "ucf-vgg", *lists, *names)
        assert tuple(splits(clips).values()) == counts
        classes = read_class_list(CLASSES / f"ucf-vgg{known.replace('_', '-')}.csv")
        usable = read_class_list(CLASSES / f"ucf-vgg{known.replace('_', '-')}-usable.csv")
        by_side = [{c.label for c in clips if c.split == side} for side in ("train", "test")]
        assert by_side[0] | by_side[1] == set(classes)
        assert by_side[0] & by_side[1] == set(usable)


@pytest.mark.shared
def test_the_official_caption_files_have_their_published_rows(shared: Path) -> None:
    names = [f"valor32k_desc_{split}.json" for split in ("train", "val", "test")]
    assert len(official(shared, "valor32k", *names)) == 32_318
    lists = [f"coco_karpathy_{split}_images.txt" for split in ("val", "test")]
    assert splits(official(shared, "mscoco", *lists)) == {"val": 5000, "test": 5000}
    sounds = [f"clotho_captions_{split}.csv" for split in ("development", "evaluation")]
    clips = official(shared, "clotho", *sounds)
    assert splits(clips) == {"train": 5 * 2893, "test": 5 * 1045}
    assert sum(not clip.is_caption for clip in clips) == 2893 + 1045


def test_class_lists_are_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    lists = [path for path in CLASSES.glob("*.csv") if not path.name.endswith("-pairs.csv")]
    with caplog.at_level(logging.WARNING):
        sizes = {path.stem: len(read_class_list(path)) for path in lists}
    assert not caplog.records
    assert (sizes["ucf-vgg-8-usable"], sizes["ucf-vgg-12-usable"]) == (7, 10)
    known = {name: read_class_list(CLASSES / f"{name}.csv") for name in sizes}
    for short, whole in (("ave-14", "ave"), ("ucf51-34", "ucf51"), ("ucf-vgg-12", "ucf-vgg")):
        assert known[whole][: sizes[short]] == known[short]


def test_the_class_lists_of_multiood_and_hac_have_their_sizes() -> None:
    lists = ("hmdb51-25", "hmdb51-43", "ucf101-50", "hac", "hac-6")
    found = {name: read_class_list(CLASSES / f"{name}.csv") for name in lists}
    assert [len(classes) for classes in found.values()] == [25, 43, 50, 7, 6]
    assert set(found["hac"]) - set(found["hac-6"]) == {"drinking"}
    assert found["hmdb51-25"][-1] == "pick"
    assert not {"chew", "climb_stairs", "drink", "pick"} & set(found["hmdb51-43"])


@pytest.mark.shared
def test_the_known_classes_of_multiood_leave_6616_clips_of_ucf101_unknown(shared: Path) -> None:
    lists = ["ucf101_trainlist01.txt", "ucf101_testlist01.txt"]
    known = set(read_class_list(CLASSES / "ucf101-50.csv"))
    counts = Counter(clip.label in known for clip in official(shared, "ucf101", *lists))
    assert counts == {True: 4669 + 1005 + 1030, False: 6616}
