"""The published lists, cut as the published scripts cut them: the counts of every open-set task."""

from pathlib import Path

import pytest

from micu.evaluate.cmg import events_of
from micu.evaluate.metrics import UNKNOWN
from micu.evaluate.splits import OpenSetSplit, SplitRules, split_clips
from micu.store.manifest import Clip, read_class_list
from micu.store.overlap import media_item
from micu_extract.datasets import DATASETS
from tests.conftest import PROJECT

pytestmark = pytest.mark.shared

CLASSES = PROJECT / "manifests" / "classes"
AVE = ("ave", "ave_Annotations.txt", "ave_train_order.h5", "ave_val_order.h5", "ave_test_order.h5")
UCF = ("ucf101", "ucf51checked.csv")
PAIRED = (
    *("ucf2vggsound.csv", "vggsound2ucf.csv"),
    *("UCF101sameVGGSound.txt", "VGGSoundsameUCF101.txt"),
)


def read(shared: Path, name: str, *files: str) -> list[Clip]:
    return DATASETS[name].rows([str(shared / "annotations" / file) for file in files])


def cut(clips: list[Clip], known: str, rules: SplitRules) -> OpenSetSplit:
    ids = {clip.clip_id for clip in clips}
    names = read_class_list(CLASSES / f"{known}.csv")
    return split_clips(clips, names, source_ids=ids, target_ids=ids, seed=0, rules=rules)


@pytest.mark.parametrize(
    ("source", "known", "train", "known_tests", "unknown_tests", "leaks"),
    [
        (AVE, "ave-14", 1857, 223, 179, ()),
        (AVE, "ave-21", 2628, 316, 86, ()),
        (UCF, "ucf51-17", 2289, 2289, 4542, ("test-clips-in-training:2289",)),
        (UCF, "ucf51-34", 4623, 4623, 2208, ("test-clips-in-training:4623",)),
        (("ucf-vgg", *PAIRED), "ucf-vgg-8", 1160, 2390, 2423, ("unusable-classes:1",)),
        (("ucf-vgg", *PAIRED), "ucf-vgg-12", 1556, 3518, 1295, ("unusable-classes:2",)),
        (("vgg-ucf", *PAIRED), "ucf-vgg-8", 2390, 1160, 843, ("unusable-classes:1",)),
        (("vgg-ucf", *PAIRED), "ucf-vgg-12", 3518, 1556, 447, ("unusable-classes:2",)),
    ],
)
def test_open_set_tasks_have_the_published_clips_under_paper(
    shared: Path,
    source: tuple[str, ...],
    known: str,
    train: int,
    known_tests: int,
    unknown_tests: int,
    leaks: tuple[str, ...],
) -> None:
    clips = read(shared, *source)
    split = cut(clips, known, SplitRules(protocol="paper"))
    labels = split.labels(split.test)
    assert len(split.train) == train
    assert ((labels != UNKNOWN).sum(), (labels == UNKNOWN).sum()) == (known_tests, unknown_tests)
    shown = tuple(
        leak for leak in split.leaks if not leak.startswith("test-clips") or source == UCF
    )
    assert shown == leaks


def test_clean_has_no_recording_of_ucf_on_both_sides_and_no_unusable_class(shared: Path) -> None:
    clean = cut(read(shared, *UCF), "ucf51-17", SplitRules())
    trained = {media_item(clip) for clip in (*clean.train, *clean.validation)}
    assert not trained & {media_item(clip) for clip in clean.test}
    assert 800 < len(clean.train) < 1600
    paired = cut(read(shared, "vgg-ucf", *PAIRED), "ucf-vgg-12", SplitRules())
    assert len(paired.known) == 10
    assert not {clip.label for clip in paired.test} & {"playing frisbee", "bowling impact"}


def test_localisation_has_the_published_rows_of_each_modality(shared: Path) -> None:
    lists = ("AVVP_eval_audio_checked_combined.csv", "AVVP_eval_visual_checked_combined.csv")
    clips = read(shared, "avvp", *lists)
    names = read_class_list(CLASSES / "avvp.csv")
    ids = {clip.clip_id for clip in clips}
    for source, target, sizes in (
        ("video", "audio", (1661, 1846)),
        ("audio", "video", (1846, 1661)),
    ):
        rules = SplitRules(
            protocol="paper",
            closed=True,
            source_classes=lambda clip, kind=source: events_of(names, kind, clip),  # type: ignore[misc]
            target_classes=lambda clip, kind=target: events_of(names, kind, clip),  # type: ignore[misc]
        )
        split = split_clips(clips, names, source_ids=ids, target_ids=ids, seed=0, rules=rules)
        assert (len(split.train), len(split.test)) == sizes
